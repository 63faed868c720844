"""Parsing of listen addresses and of Host names. Standard library only."""

from __future__ import annotations

import re
from typing import Any, Final

_ENDPOINT: Final = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.]+)\]|(?P<four>[0-9.]+)):(?P<port>[0-9]{1,5})")
_HOST: Final = re.compile(
    r"(?P<name>\[[0-9a-f:.]{2,45}\]|[a-z0-9_](?:[a-z0-9_.-]{0,252}[a-z0-9_])?)(?::(?P<port>[0-9]{0,5}))?"
)
_MAX_PORT: Final = 65_535


def loopback(value: str) -> tuple[str, int] | None:
    """(address, port) of `127.0.0.1:8787` or `[::1]:8787`; None when it is anything but a loopback address and a port.

    Port 0 lets the kernel choose one.
    """
    import ipaddress  # latticectl has no use for it

    found = _ENDPOINT.fullmatch(value)
    if found is None or int(found["port"]) > _MAX_PORT:
        return None
    try:
        address = ipaddress.ip_address(found["six"] or found["four"])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return None
    # Brackets for IPv6 and only for it (RFC 3986 §3.2.2).
    if not address.is_loopback or (address.version == 6) != bool(found["six"]):
        return None
    return str(address), int(found["port"])


def host(value: str) -> tuple[str, int | None] | None:
    """(name in lower case, port or None) of a Host field (RFC 9110, section 7.2); None when it is no host.

    An IPv6 address keeps its brackets.
    """
    found = _HOST.fullmatch(value.lower())
    if found is None or int(found["port"] or 0) > _MAX_PORT:
        return None
    return found["name"], int(found["port"]) if found["port"] else None


def loopback_fault(value: Any) -> str:
    """What a listen address has to be, in words, when `value` is not one; else empty."""
    return "" if loopback(value) else "a loopback address and a port, such as 127.0.0.1:8787 or [::1]:8787"


def optional_loopback_fault(value: Any) -> str:
    """As `loopback_fault`; an empty value is valid, too."""
    return loopback_fault(value) if value else ""


def hosts_fault(value: Any) -> str:
    """What the entries of a list of Host names have to be, in words, when one is not; else empty."""
    return "" if all(host(one) for one in value) else "names such as app.example.org or localhost:8787"
