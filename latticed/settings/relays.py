"""Parsing of a mail relay: `smtps://host:port` or `smtp://host:port`, optionally `=address` to pin the name to."""

from __future__ import annotations

import re
from typing import Any, Final

_RELAY: Final = re.compile(
    r"(?P<scheme>smtps?)://(?P<host>\[[^\[\]]+\]|[^\[\]:/?#@=\s]+):(?P<port>[1-9][0-9]{0,4})(?P<pinned>=\S+)?", re.ASCII
)
_MAX_PORT: Final = 65_535
_ALLOWED: Final = re.compile(r"[^@\s]*@[a-z0-9](?:[a-z0-9.-]{0,252}[a-z0-9])?", re.ASCII)


def parsed(value: str) -> tuple[str, str, int, bool] | None:
    """(scheme, host in normal form, port, whether it is pinned to an address); None for anything else.

    `smtps://Mail.example.org:465` gives ("smtps", "mail.example.org", 465, False).
    """
    from latticed.model import egress, hosts  # latticectl has no use for them

    found = _RELAY.fullmatch(value)
    if found is None or int(found["port"]) > _MAX_PORT:
        return None
    try:
        host = hosts.normal(found["host"])
        # An address, written or pinned, is judged as an origin is: a single machine.
        if found["pinned"] or hosts.address_of(host) is not None:
            egress.origin(value)
    except ValueError:
        return None
    return found["scheme"], host, int(found["port"]), bool(found["pinned"])


def relay_fault(value: Any) -> str:
    """What a relay has to be, in words, when `value` is neither one nor empty; else empty."""
    if not value or parsed(value):
        return ""
    return "smtps://host:port or smtp://host:port, a private one with its address: smtp://mail.lan:25=10.0.0.7"


def allow_fault(value: Any) -> str:
    """What the entries of a list of recipients have to be, in words, when one is not; else empty."""
    return "" if all(_ALLOWED.fullmatch(one) for one in value) else "addresses such as ops@example.org or @example.org"
