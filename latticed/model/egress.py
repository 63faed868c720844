"""Host patterns, bound origins, and whether a caller may connect to a host (contracts §3, docs/operate/egress.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from latticed.model import hosts

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed.model.addresses import Address

# Of manifests, in which hosts are in normal form already; ports are checked against _HIGHEST_PORT afterwards.
_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_PATTERN: Final = re.compile(
    rf"(?:(?:\*\.)?{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\]):(?P<port>[1-9][0-9]{{0,4}})", re.ASCII
)
# What operators write: a pattern, or the origin of a URL; the host is normalised afterwards.
_CONSENT: Final = re.compile(
    r"(?:(?P<scheme>[Hh][Tt][Tt][Pp][Ss]?)://)?(?P<wild>\*\.)?(?P<host>\[[^\[\]]*\]|[^\[\]:/?#@=\s*]+)"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?/?",
)
_HOST_EXPECTED: Final = "expected a host and port such as api.example.org:443, *.example.org:443 or *"
"""Begin of the messages about patterns."""
_HIGHEST_PORT: Final = 65535
ANY: Final = "*"
"""Grants any public host on STAR_PORTS; a manifest cannot declare it."""
SCHEMES: Final = ("http", "https", "tcp", "smtp", "smtps", "dns", "ping")
"""Schemes of bound origins; `ping` has no port, so its origins have port 0."""
_ORIGIN: Final = re.compile(
    r"(?P<scheme>[a-z]+)://(?P<host>\[[^\[\]]*\]|[^\[\]:/?#@=\s]+)(?::(?P<port>[1-9][0-9]{0,4}))?(?:=(?P<address>\S+))?",
    re.ASCII,
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ping": 0}
"""Ports of origins that name none."""
_UNBINDABLE: Final = frozenset({"this network", "unspecified", "multicast", "reserved", "IPv4 within IPv6", "discard"})
"""Kinds of addresses (`addresses.blocked_class`) that are not those of one machine."""
STAR_PORTS: Final = frozenset({80, 443})
"""The ports that `*` covers; hosts on other ports must be granted by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A target that an operator bound to one plugin; it may be private. `host` is in normal form (`model.hosts`).

    As text: `http://backend.lan:8080=10.0.0.5` (a name, with the address that it is pinned to), `http://10.0.0.5:8080`.
    """

    scheme: str
    host: str
    port: int
    address: Address

    def __str__(self) -> str:
        pinned = "" if hosts.address_of(self.host) else f"={self.address}"
        port = f":{self.port}" if self.port else ""
        return f"{self.scheme}://{hosts.bracketed(self.host)}{port}{pinned}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressRights:
    """Where one caller may connect to.

    `hosts` are the patterns that the operator granted (`*`: any public host, on STAR_PORTS), `declared` those of the
    manifest, or None when the caller cannot declare hosts (v1 manifests, latticed's own services).
    `owner` is the plugin whose quota of DNS queries is used; empty for latticed itself.
    """

    hosts: tuple[str, ...] = ()
    declared: tuple[str, ...] | None = None
    origins: tuple[Origin, ...] = ()
    owner: str = ""


def is_pattern(text: str) -> bool:
    """Whether `text` is `host:port`, `*.host:port` or `[v6]:port`, in lower case."""
    found = _PATTERN.fullmatch(text)
    return found is not None and int(found["port"]) <= _HIGHEST_PORT


def consent(text: str) -> str:
    """Normalise a host pattern (or `*`) as an operator writes it; ValueError says what was expected.

    `API.example.org:443` gives `api.example.org:443`, `https://api.example.org/` too. Hosts are taken in every form
    that http.do takes: any case, a trailing dot, non-ASCII letters, addresses. The origin of a URL without a port gets
    the default port of its scheme.
    """
    if text == ANY:
        return ANY
    found = _CONSENT.fullmatch(text)
    if found is None:
        raise ValueError(f"{_HOST_EXPECTED}, found {text[:80]!r}")
    # 0, which is refused below, where neither a port nor a scheme is given.
    port = int(found["port"]) if found["port"] else _DEFAULT_PORTS.get((found["scheme"] or "").lower(), 0)
    if not 0 < port <= _HIGHEST_PORT:
        raise ValueError(f"{_HOST_EXPECTED}, found {text[:80]!r}")
    try:
        host = hosts.bracketed(hosts.normal(found["host"]))
    except hosts.NotAHost as error:
        raise ValueError(f"{error}, found {text[:80]!r}") from error
    pattern = f"{found['wild'] or ''}{host}:{port}"
    # Last, on the result: what is stored must be what `_parts` takes apart again.
    if not is_pattern(pattern):
        raise ValueError(f"{_HOST_EXPECTED}, found {text[:80]!r}")
    return pattern


def within(pattern: str, others: Iterable[str]) -> bool:
    """Whether one of `others` covers all hosts that `pattern` covers.

    `a.example.org:443` is within `*.example.org:443`; `*.example.org:443` is not within `a.example.org:443`.
    """
    # A port of -1 is that of an invalid pattern, which is within nothing.
    host, port = _parts(pattern)
    return port > 0 and any(_means(_parts(other), host, port) for other in others)


def meet(granted: Iterable[str], declared: tuple[str, ...]) -> tuple[str, ...]:
    """The effective patterns: those that cover what both cover; `*` in `granted` covers all declared on STAR_PORTS.

    Two patterns are disjoint, or one is within the other (names are a tree, RFC 1034), so no new pattern is needed.
    """
    found: list[str] = []
    for one in granted:
        if one == ANY:
            found += on_star_ports(declared)
        elif within(one, declared):
            found.append(one)
        else:
            found += [other for other in declared if within(other, (one,))]
    return tuple(dict.fromkeys(found))


def on_star_ports(declared: Iterable[str]) -> tuple[str, ...]:
    """The patterns of `declared` that `*` covers: those on port 80 or 443."""
    return tuple(one for one in declared if _parts(one)[1] in STAR_PORTS)


def origin(text: str) -> Origin:
    """Parse `scheme://host[:port][=address]`; ValueError says what was expected.

    `http://backend.lan:8080=10.0.0.5`, `ping://10.0.0.5`. A host name needs the address that it is pinned to: bound
    names are never looked up in the DNS.
    """
    found = _ORIGIN.fullmatch(text)
    if found is None or found["scheme"] not in SCHEMES:
        raise ValueError(f"expected scheme://host:port[=address] with one of {', '.join(SCHEMES)}")
    host = hosts.normal(found["host"])
    # -1, which is refused below, for a scheme that has no usual port.
    port = int(found["port"]) if found["port"] else _DEFAULT_PORTS.get(found["scheme"], -1)
    if port > _HIGHEST_PORT or port < 0 or (found["scheme"] == "ping" and port):
        raise ValueError("expected a port from 1 to 65535 (none for ping)")
    literal = hosts.address_of(host)
    address = hosts.address_of(found["address"]) if found["address"] else literal
    # An address as host needs no pin; if it has one, that must be the same address.
    if address is None or literal not in (None, address):
        raise ValueError("expected the address that the name is pinned to, as in http://backend.lan:8080=10.0.0.5")
    if (fault := _unbindable(address)) is not None:
        raise ValueError(f"expected the address of one machine, found one that is {fault}")
    return Origin(scheme=found["scheme"], host=host, port=port, address=address)


def pinned(rights: EgressRights, *, scheme: str, host: str, port: int) -> tuple[Address, ...]:
    """The addresses of the origins bound to exactly this target; empty when it is not bound.

    `host` is in normal form; `port` 0 is that of `ping`.
    """
    wanted = (scheme, host, port)
    return tuple(one.address for one in rights.origins if (one.scheme, one.host, one.port) == wanted)


def refusal(rights: EgressRights, *, host: str, port: int) -> str | None:
    """Why a caller may not connect to a host (normal form) that is no bound origin; None when patterns allow it.

    The caller must still check that the host's addresses are public. `port` 0 means a protocol without ports, such as
    ping: then a pattern of the host with any port will do.
    """
    shown = f"{hosts.bracketed(host)}:{port}" if port else hosts.bracketed(host)
    if rights.declared is not None and not any(covers(one, host, port) for one in rights.declared):
        return f"host not declared: {shown} is not in the manifest's egress.hosts"
    named = any(covers(one, host, port) for one in rights.hosts if one != ANY)
    if not named and ANY not in rights.hosts:
        return f"host not granted: the operator has not accepted {shown}"
    if not named and port and port not in STAR_PORTS:
        return f"port not granted: * means ports 80 and 443, so the operator must accept {shown} by name"
    if hosts.address_of(host) is None and (near := hosts.local_name(host)) is not None:
        return f"host not public: {near}"
    return None


def fix(rights: EgressRights, *, host: str, port: int) -> str:
    """The permit that would lift a `refusal`, as `host=api.example.org:443`.

    Empty when no permit would: the host is not declared, it cannot be public, or the protocol has no ports.
    """
    declared = rights.declared is None or any(covers(one, host, port) for one in rights.declared)
    if not declared or not port or (hosts.address_of(host) is None and hosts.local_name(host) is not None):
        return ""
    return f"host={hosts.bracketed(host)}:{port}"


def address_in(pattern: str) -> Address | None:
    """The address that a pattern of `consent` names; None for one of names."""
    return hosts.address_of(_parts(pattern)[0]) if pattern != ANY else None


def binding(*, scheme: str, host: str, port: int, address: Address) -> str:
    """The permit that binds this target to `address`, as `origin=…`; empty when `origin` would reject it."""
    pin = "" if hosts.address_of(host) else f"={address}"
    where = f":{port}" if port else ""
    try:
        return f"origin={origin(f'{scheme}://{hosts.bracketed(host)}{where}{pin}')}"
    except ValueError:
        return ""


def covers(pattern: str, host: str, port: int) -> bool:
    """Whether a pattern covers this host (normal form) and port; `*.a.b` covers all names below a.b, not a.b."""
    return _means(_parts(pattern), host, port)


def _means(pattern: tuple[str, int], host: str, port: int) -> bool:
    """As `covers`, of a parsed pattern; `host` may begin with `*.`, for all names below it."""
    wanted, wanted_port = pattern
    # Port 0 stands for any: a protocol without ports.
    if port not in (0, wanted_port):
        return False
    if wanted.startswith("*."):
        # With the dot, so that *.a.b does not cover xa.b.
        return host.endswith(wanted[1:]) and hosts.address_of(host) is None
    return host == wanted


# Patterns come from manifests and operators, and are compared at every connection.
@lru_cache(maxsize=4_096)
def _parts(pattern: str) -> tuple[str, int]:
    """(host in normal form, port); ("", -1) for a pattern that can never match."""
    if not is_pattern(pattern):
        return "", -1
    host, _, port = pattern.rpartition(":")
    wild, host = ("*.", host[2:]) if host.startswith("*.") else ("", host)
    try:
        return wild + hosts.normal(host), int(port)
    except hosts.NotAHost:
        return "", -1


def is_metadata(bound: Origin) -> bool:
    """Whether an origin is a cloud's metadata service, from which this machine's credentials can be read."""
    from latticed.model import addresses

    return addresses.blocked_class(bound.address) == addresses.METADATA


def _unbindable(address: Address) -> str | None:
    """Why no origin can be bound to `address` (not one machine, or with a zone id); None when one can."""
    from latticed.model import addresses

    if getattr(address, "scope_id", None) is not None:
        return "zoned"
    found = addresses.blocked_class(address)
    return found if found in _UNBINDABLE else None
