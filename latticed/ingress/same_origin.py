"""Protection against cross-site request forgery: is a request from a page of this service? (pure)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem
from latticed.settings import endpoints

if TYPE_CHECKING:
    from collections.abc import Mapping

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_PORTS: Final = {"http": 80, "https": 443}


def check(method: str, host: str, fields: Mapping[str, str], *, websocket: bool = False) -> None:
    """Problem("origin_not_allowed") for a request that a page of another site made with the user's session.

    Websockets and requests that change state must have our Origin; others must not have another one. Sec-Fetch-Site, if
    present, must not say cross-site: the cookie's SameSite allows other ports of this host.
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
    """Whether a browser that sends this Origin uses https, with a proxy in front of us."""
    return origin is not None and origin.lower().startswith("https://")


def _refused(detail: str) -> Problem:
    return Problem("origin_not_allowed", detail)
