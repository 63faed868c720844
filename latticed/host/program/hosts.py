"""What a service may reach from a network of its own (`hosts` of service.put), and how that looks in there. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.host.call import HostError
from latticed.kit.value import Value
from latticed.model import egress, hosts
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from latticed.model.egress import EgressRights

MAX_HOSTS: Final = 64
"""Hosts of one service: each exact one has a listening socket."""
PROXY: Final = ("127.77.0.1", 3128)
"""Where the CONNECT proxy listens in the network of a service; no usual address of a program's own."""
SCHEMES: Final = ("https", "http", "tcp")
"""Schemes of bound origins that a service may reach: which one it speaks is between it and the other side."""


class ReachableHost(Value, frozen=True, kw_only=True):
    """A host and port, `host` in normal form."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{hosts.bracketed(self.host)}:{self.port}"


class HostLayout(Value, frozen=True, kw_only=True):
    """The way out as a program sees it: `listen` are addresses and ports, in that order of `targets` (None: the
    proxy); `names` are names and the addresses that they have in there.
    """

    listen: tuple[tuple[str, int], ...]
    targets: tuple[ReachableHost | None, ...]
    names: tuple[tuple[str, str], ...]


def checked(asked: Sequence[str], rights: EgressRights | None) -> tuple[str, ...]:
    """The patterns in normal form, each within `rights` (None: the plugin may connect nowhere). HostError bad_params,
    egress_blocked, capability_not_granted.
    """
    if len(asked) > MAX_HOSTS:
        raise HostError(Denial.BAD_PARAMS, f"hosts: expected at most {MAX_HOSTS}, found {len(asked)}")
    found: dict[str, None] = {}
    for one in asked:
        try:
            pattern = egress.consent(one)
        except ValueError as error:
            raise HostError(Denial.BAD_PARAMS, f"hosts: {error}") from error
        if rights is None:
            raise HostError(Denial.CAPABILITY_NOT_GRANTED, "hosts: http:egress is not granted to this plugin")
        if reason := refusal(pattern, rights):
            raise HostError(Denial.EGRESS_BLOCKED, f"hosts: {reason}", fix=f"host={pattern}")
        found[pattern] = None
    return tuple(found)


def refusal(pattern: str, rights: EgressRights) -> str:
    """Why a pattern is not within `rights`; empty when all that it covers is."""
    if pattern == egress.ANY:
        return "" if egress.ANY in rights.hosts else "host not granted: the operator has not accepted *"
    target = exact(pattern)
    if target is not None:
        if scheme_of(target, rights) is not None:
            return ""
        return egress.refusal(rights, host=target.host, port=target.port) or ""
    if rights.declared is not None and not egress.within(pattern, rights.declared):
        return f"host not declared: {pattern} is not in the manifest's egress.hosts"
    if egress.within(pattern, rights.hosts) or (egress.ANY in rights.hosts and egress.on_star_ports([pattern])):
        return ""
    return f"host not granted: the operator has not accepted {pattern}"


def allowed(target: ReachableHost, patterns: Iterable[str]) -> bool:
    """Whether one of a service's patterns covers this host and port; `*` leaves it to the guard alone."""
    return any(one == egress.ANY or egress.covers(one, target.host, target.port) for one in patterns)


def scheme_of(target: ReachableHost, rights: EgressRights) -> str | None:
    """The scheme by which this target is a bound origin, or None when it is none."""
    bound = {one.scheme for one in rights.origins if (one.host, one.port) == (target.host, target.port)}
    return next((scheme for scheme in SCHEMES if scheme in bound), None)


def exact(pattern: str) -> ReachableHost | None:
    """The host and port that a pattern in normal form is; None for one with a wildcard."""
    host, _, port = pattern.rpartition(":")
    return None if pattern.startswith("*") else ReachableHost(host=host.strip("[]"), port=int(port))


def layout(patterns: Iterable[str]) -> HostLayout:
    """Where what is listened on in the network of a service with these patterns, and what its names resolve to there.

        ("a.example:443", "a.example:80", "*.b.example:443")
            ->  a.example has 127.77.1.1, where ports 443 and 80 lead to it; 127.77.0.1:3128 is the proxy

    Addresses are for the proxy alone: a program connects to them without a name, and they may be its own.
    """
    if not (patterns := tuple(patterns)):
        return HostLayout(listen=(), targets=(), names=())
    targets = [target for one in patterns if (target := exact(one)) is not None]
    named = [one for one in targets if hosts.address_of(one.host) is None and one.host != "localhost"]
    names = dict.fromkeys(one.host for one in named)
    address = {host: f"127.77.1.{number}" for number, host in enumerate(names, start=1)}
    return HostLayout(
        listen=(PROXY, *((address[one.host], one.port) for one in named)),
        targets=(None, *named),
        names=tuple(address.items()),
    )


def environment() -> dict[str, str]:
    """The variables by which programs find the proxy; it takes CONNECT alone, so it is for https."""
    proxy = f"http://{PROXY[0]}:{PROXY[1]}"
    return {
        "HTTPS_PROXY": proxy,
        "https_proxy": proxy,
        "NO_PROXY": "localhost,127.0.0.1,::1",
        "no_proxy": "localhost,127.0.0.1,::1",
    }
