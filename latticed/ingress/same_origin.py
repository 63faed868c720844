"""Protection against cross-site request forgery, by Origin and Sec-Fetch-Site (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem
from latticed.settings import endpoints

if TYPE_CHECKING:
    from collections.abc import Mapping

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that must not change anything (RFC 9110, section 9.2.1; TRACE is not served)."""
# Default ports, which Origin and Host leave out.
_PORTS: Final = {"http": 80, "https": 443}


def check(method: str, host: str, fields: Mapping[str, str], *, websocket: bool = False) -> None:
    """Raise Problem("origin_not_allowed") for a request that a page of another origin may have made.

    `host`: the Host that the request is addressed to; `fields`: its headers. Websockets and state-changing methods must
    have our Origin; others may lack it, but must not have a foreign one. Without an Origin, Sec-Fetch-Site must be
    same-origin or none, or the request a navigation: the cookie's SameSite alone would admit pages on other ports of
    this host.
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
    """Whether an Origin header is `http://` or `https://` followed by the request's Host. `null` is not."""
    scheme, divider, authority = origin.partition("://")
    named, asked = endpoints.host(authority), endpoints.host(host)
    # The scheme is not compared: TLS may end at a proxy in front, which asks us over http.
    if not divider or scheme not in _PORTS or named is None or asked is None:
        return False
    default = _PORTS[scheme]
    return (named[0], named[1] or default) == (asked[0], asked[1] or default)


def is_secure(origin: str | None) -> bool:
    """Whether the browser uses https, by its Origin; TLS then ends at a proxy in front of us."""
    return origin is not None and origin.lower().startswith("https://")


def _refused(detail: str) -> Problem:
    return Problem("origin_not_allowed", detail)
