"""Whether a request to a service was made by a page of that service, or by one elsewhere (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem
from latticed.settings import endpoints

if TYPE_CHECKING:
    from collections.abc import Mapping

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_PORTS: Final = {"http": 80, "https": 443}


def check(method: str, host: str, fields: Mapping[str, str], *, websocket: bool = False) -> None:
    """Problem("origin_not_allowed") for what a page elsewhere had a browser do with its user's session.

    What changes state, and a websocket, must say its Origin. Anything else must not say another one; and browsers that
    tell of fetch metadata must not be fetching for another site (SameSite lets other ports of this host through).
    """
    said = fields.get("Origin")
    if said is None and (websocket or method not in SAFE):
        raise _refused("expected an Origin, found none")
    if said is not None and not is_own(said, host):
        raise _refused("expected the Origin of this service, found another")
    site = fields.get("Sec-Fetch-Site", "none").lower()
    if said is None and site not in {"none", "same-origin"} and fields.get("Sec-Fetch-Mode", "").lower() != "navigate":
        raise _refused("expected a request of this service's own pages, found one of another site")


def is_own(origin: str, host: str) -> bool:
    """Whether an Origin field names the Host that was asked, over http or https."""
    scheme, divider, authority = origin.partition("://")
    named, asked = endpoints.host(authority), endpoints.host(host)
    if not divider or scheme not in _PORTS or named is None or asked is None:
        return False
    default = _PORTS[scheme]
    return (named[0], named[1] or default) == (asked[0], asked[1] or default)


def is_secure(origin: str | None) -> bool:
    """Whether the browser that says this Origin speaks https with whatever stands before us."""
    return origin is not None and origin.lower().startswith("https://")


def _refused(detail: str) -> Problem:
    return Problem("origin_not_allowed", detail)
