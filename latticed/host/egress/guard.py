"""The egress guard: looks a target's name up once, checks every address found, and connects to checked ones only."""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Final

from latticed.host.call import HostError
from latticed.host.egress.resolver import SystemResolver, TooManyLookups
from latticed.kit.interfaces import own_addresses as addresses_of_this_host
from latticed.model import addresses, egress, hosts
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.host.egress.resolver import Resolver
    from latticed.model.addresses import Address, Network
    from latticed.model.egress import EgressRights

MAX_ADDRESSES: Final = 64
"""Of one name; each is judged, and a name server could answer with thousands."""
_MAX_TRIED: Final = 4  # addresses of one target that `connect` tries, within `connect_s` together


class Guard:
    """Decides where connections may go, and opens them.

    `blocked` are further networks that no plugin may reach, for example the public address of a NAT router in front of
    this host. `own_addresses` returns those of this host's interfaces. `lookup_s` and `connect_s`: seconds for a
    look-up, and for connecting to all addresses of a target together.
    """

    def __init__(
        self,
        *,
        resolver: Resolver | None = None,
        blocked: tuple[Network, ...] = (),
        own_addresses: Callable[[], frozenset[Address]] = addresses_of_this_host,
        lookup_s: float = 5.0,
        connect_s: float = 5.0,
    ) -> None:
        self._resolver = resolver or SystemResolver()
        self._blocked = blocked
        self._own_addresses = own_addresses
        self._lookup_s = lookup_s
        self.connect_s = connect_s

    async def resolve(self, host: str, port: int, rights: EgressRights, *, scheme: str = "tcp") -> tuple[Address, ...]:
        """The addresses of this target, all of them allowed under `rights`, in the order to try them.

        `host` as in a URL (IPv6 in brackets) or in normal form, `port` 0 for ping. `scheme`: by it, host and port an
        origin that the operator bound is recognised, which is reached at its bound address. HostError: `egress_blocked`
        says which rule, `service_unavailable` that the name has no address, `rate_limited` that too many look-ups of
        this owner are unanswered; `deadline_exceeded`.
        """
        name = _normal(host)
        # An origin that the operator bound may be private: nothing is looked up, so no DNS answer can move it.
        if pinned := egress.pinned(rights, scheme=scheme, host=name, port=port):
            return pinned
        literal = hosts.address_of(name)
        # Before what the manifest says: whoever declares a private address reaches it as little. Not what only this
        # host knows, its own addresses and those that the operator blocked: that is for who may go there otherwise.
        if literal is not None and (kind := addresses.blocked_class(literal)) is not None:
            raise _not_public(kind, literal, scheme=scheme, host=name, port=port)
        # Before the look-up: a name that is asked for can carry data to its name servers.
        if reason := egress.refusal(rights, host=name, port=port):
            raise HostError(Denial.EGRESS_BLOCKED, reason, fix=egress.fix(rights, host=name, port=port))
        found = await self._lookup(name, rights.owner) if literal is None else (literal,)
        # Read at each call: the addresses of interfaces change while the daemon runs.
        own = self._own_addresses()
        for address in found:  # all must be allowed: DNS may vary which one is used
            if reason := self._refusal(address, own):
                raise _not_public(reason, address, scheme=scheme, host=name, port=port)
        return found

    async def connect(
        self,
        host: str,
        port: int,
        rights: EgressRights,
        *,
        scheme: str = "tcp",
        tls: ssl.SSLContext | None = None,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to this target, with TLS verified against `host` where a context is given; the caller closes it.

        `rights`, `scheme`: see `resolve`. HostError as `resolve`, and `service_unavailable` when nothing answers,
        `deadline_exceeded` when too slowly.
        """
        # The time is shared equally: one address that does not answer must leave time for the others.
        found = (await self.resolve(host, port, rights, scheme=scheme))[:_MAX_TRIED]
        name = _normal(host)
        shown = f"{hosts.bracketed(name)}:{port}"
        failure: HostError | None = None
        for address in found:
            try:
                async with asyncio.timeout(self.connect_s / len(found)):
                    # A literal address: asyncio looks nothing up.
                    return await asyncio.open_connection(
                        str(address), port, ssl=tls, server_hostname=name if tls else None
                    )
            except TimeoutError:
                timeout = HostError(Denial.DEADLINE_EXCEEDED, f"no connection to {shown} within {self.connect_s:g} s")
                failure = failure or timeout
            except ssl.SSLError:
                # Replaces other failures: that something answered but cannot be trusted is what matters.
                failure = HostError(Denial.SERVICE_UNAVAILABLE, f"no TLS connection that can be trusted to {shown}")
            except OSError:  # another address may answer
                failure = failure or HostError(Denial.SERVICE_UNAVAILABLE, f"cannot connect to {shown}")
        raise failure or HostError(Denial.SERVICE_UNAVAILABLE, f"cannot connect to {shown}")

    def is_bound(self, host: str, port: int, rights: EgressRights, *, scheme: str) -> bool:
        """Whether this target is an origin that the operator bound, and so reached at its bound address."""
        return bool(egress.pinned(rights, scheme=scheme, host=_normal(host), port=port))

    async def _lookup(self, name: str, owner: str) -> tuple[Address, ...]:
        """The addresses of a name, at least one; HostError as `resolve`. `owner`: see `Resolver.lookup`."""
        try:
            async with asyncio.timeout(self._lookup_s):
                found = await self._resolver.lookup(name, owner)
        except TimeoutError as error:
            raise HostError(Denial.DEADLINE_EXCEEDED, f"no address of {name} within {self._lookup_s:g} s") from error
        except TooManyLookups as error:
            raise HostError(Denial.RATE_LIMITED, f"no address of {name} is asked for now: {error}") from error
        except OSError as error:
            raise HostError(Denial.SERVICE_UNAVAILABLE, f"the address of {name} cannot be found") from error
        if not found:
            raise HostError(Denial.SERVICE_UNAVAILABLE, f"{name} has no address")
        if len(found) > MAX_ADDRESSES:
            raise HostError(Denial.EGRESS_BLOCKED, f"{name} has more than {MAX_ADDRESSES} addresses")
        return found

    def _refusal(self, address: Address, own: frozenset[Address]) -> str | None:
        """Why an address may not be connected to, or None. `own`: the addresses of this host."""
        if (kind := addresses.blocked_class(address)) is not None:
            return kind
        # Also the public ones: services on this host may trust connections from it.
        if address in own:
            return "this host's own"
        if any(address in network for network in self._blocked):
            return "blocked by the operator"
        return None


def _not_public(reason: str, address: Address, *, scheme: str, host: str, port: int) -> HostError:
    """The refusal of an address, with the origin that an operator could bind."""
    fix = egress.binding(scheme=scheme, host=host, port=port, address=address)
    return HostError(Denial.EGRESS_BLOCKED, f"address not public: {host} has one that is {reason}", fix=fix)


def _normal(host: str) -> str:
    """A host in normal form, IPv6 without brackets; HostError `egress_blocked` when it can be read in two ways."""
    try:
        literal = hosts.address_of(host)
        return hosts.normal(host) if literal is None else hosts.normal(hosts.bracketed(host))
    except hosts.NotAHost as error:
        raise HostError(Denial.EGRESS_BLOCKED, f"host not understood: {error}") from error
