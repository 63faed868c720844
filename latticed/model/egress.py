"""Host patterns, bound origins, and who may connect where (contracts §3, docs/egress.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from latticed.model import hosts

if TYPE_CHECKING:
    from latticed.model.addresses import Address

_LABEL: Final = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_PATTERN: Final = re.compile(
    rf"(?:(?:\*\.)?{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]+\]):(?P<port>[1-9][0-9]{{0,4}})", re.ASCII
)
_HIGHEST_PORT: Final = 65535
ANY: Final = "*"
SCHEMES: Final = ("http", "https", "tcp", "smtp", "smtps", "dns", "ping")
"""What an origin may be bound for; `ping` knows no port, so its origins carry 0."""
_ORIGIN: Final = re.compile(
    r"(?P<scheme>[a-z]+)://(?P<host>\[[^\[\]]*\]|[^\[\]:/?#@=\s]+)(?::(?P<port>[1-9][0-9]{0,4}))?(?:=(?P<address>\S+))?",
    re.ASCII,
)
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ping": 0}
_UNBINDABLE: Final = frozenset({"this network", "unspecified", "multicast", "reserved", "IPv4 within IPv6", "discard"})
_OTHER_PROTOCOLS: Final = frozenset(
    {1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109}
    | {110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530}
    | {531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3306, 3659, 4045}
    | {4190, 5060, 5061, 5432, 6000, 6379, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080, 11211, 27017}
)
"""Ports of other protocols, which an HTTP request could be made to speak (the Fetch standard's, and databases')."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A target that an operator bound to one plugin, private ones included; `host` in normal form (`model.hosts`)."""

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

    `hosts` are the patterns an operator accepted (`*`: any public host), `declared` those of the manifest; None means
    that the caller has no manifest which could declare any (v1, and latticed's own services). `owner` is the plugin
    whose share of name look-ups is used; empty for latticed's own.
    """

    hosts: tuple[str, ...] = ()
    declared: tuple[str, ...] | None = None
    origins: tuple[Origin, ...] = ()
    owner: str = ""


def is_pattern(text: str) -> bool:
    """Whether `text` is `host:port`, `*.host:port` or `[v6]:port`, in lower case."""
    found = _PATTERN.fullmatch(text)
    return found is not None and int(found["port"]) <= _HIGHEST_PORT


def is_consent(text: str) -> bool:
    """Whether an operator may accept `text`: a pattern, or `*` for any host the manifest or the plugin names."""
    return text == ANY or is_pattern(text)


def origin(text: str) -> Origin:
    """`scheme://host[:port][=address]` as a bound origin; ValueError says what was expected.

    A name needs the address that it is pinned to: it is never looked up.
    """
    found = _ORIGIN.fullmatch(text)
    if found is None or found["scheme"] not in SCHEMES:
        raise ValueError(f"expected scheme://host:port[=address] with one of {', '.join(SCHEMES)}")
    host = hosts.normal(found["host"])
    port = int(found["port"]) if found["port"] else _DEFAULT_PORTS.get(found["scheme"], -1)
    if port > _HIGHEST_PORT or port < 0 or (found["scheme"] == "ping" and port):
        raise ValueError("expected a port from 1 to 65535 (none for ping)")
    literal = hosts.address_of(host)
    address = hosts.address_of(found["address"]) if found["address"] else literal
    if address is None or literal not in (None, address):
        raise ValueError("expected the address that the name is pinned to, as in http://backend.lan:8080=10.0.0.5")
    if (fault := _unbindable(address)) is not None:
        raise ValueError(f"expected the address of one machine, found one that is {fault}")
    return Origin(scheme=found["scheme"], host=host, port=port, address=address)


def pinned(rights: EgressRights, *, scheme: str, host: str, port: int) -> tuple[Address, ...]:
    """The addresses of the bound origins that are exactly this target; none when it is not bound."""
    wanted = (scheme, host, port)
    return tuple(one.address for one in rights.origins if (one.scheme, one.host, one.port) == wanted)


def refusal(rights: EgressRights, *, scheme: str, host: str, port: int) -> str | None:
    """Why a caller may not connect to a host (normal form) that is no bound origin; None when it may, if it is public.

    `port` 0 means no port at all, as for ping: then any pattern of the host will do.
    """
    shown = f"{hosts.bracketed(host)}:{port}" if port else hosts.bracketed(host)
    if rights.declared is not None and not any(covers(one, host, port) for one in rights.declared):
        return f"host not declared: {shown} is not in the manifest's egress.hosts"
    named = any(covers(one, host, port) for one in rights.hosts if one != ANY)
    if not named and ANY not in rights.hosts:
        return f"host not granted: the operator has not accepted {shown}"
    is_named = named or rights.declared is not None
    if not is_named and scheme in {"http", "https"} and port in _OTHER_PROTOCOLS:
        return f"port not granted: {port} is another protocol's, so the operator must accept {shown} by name"
    if hosts.address_of(host) is None and (near := hosts.local_name(host)) is not None:
        return f"host not public: {near}"
    return None


def covers(pattern: str, host: str, port: int) -> bool:
    """Whether a pattern means this host (normal form) and port; `*.a.b` means all names below a.b, not a.b itself."""
    wanted, wanted_port = _parts(pattern)
    if port not in (0, wanted_port):
        return False
    if wanted.startswith("*."):
        return host.endswith(wanted[1:]) and hosts.address_of(host) is None
    return host == wanted


@lru_cache(maxsize=4_096)
def _parts(pattern: str) -> tuple[str, int]:
    """Host in normal form, and port; ("", 0) for a pattern that can never match."""
    if not is_pattern(pattern):
        return "", -1
    host, _, port = pattern.rpartition(":")
    wild, host = ("*.", host[2:]) if host.startswith("*.") else ("", host)
    try:
        return wild + hosts.normal(host), int(port)
    except hosts.NotAHost:
        return "", -1


def _unbindable(address: Address) -> str | None:
    from latticed.model import addresses

    if getattr(address, "scope_id", None) is not None:
        return "zoned"
    found = addresses.blocked_class(address)
    return found if found in _UNBINDABLE else None
