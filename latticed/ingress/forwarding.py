"""Which headers the proxy passes on between a client and a service (RFC 9110 section 7.6; pure).

The service belongs to a plugin: it must not see our session cookie or the client's credentials, and cannot set ours.

Request headers pass only if they are listed here. Programs behind a proxy trust many others (`Remote-User: admin`,
`X-Auth-Request-Email`, `X-Real-IP`, `X-Original-URL`), and which ones differs from program to program, so a list of
headers to drop would never be complete. Response headers that would take effect beyond the service's own prefix are
dropped.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from multidict import CIMultiDict

from latticed.ingress.upstream_connection import SESSION_COOKIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# For one connection only (RFC 9110, section 7.6.1), with the old `Keep-Alive` and `Proxy-Connection`.
_HOP_BY_HOP: Final = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade"
    " http2-settings".split()
)
_ASKED: Final = frozenset(
    # request headers of RFC 9110, 9111, 9218, 9651
    "accept accept-charset accept-encoding accept-language cache-control content-disposition content-encoding"
    " content-language content-range content-type date if-match if-modified-since if-none-match if-range"
    " if-unmodified-since max-forwards pragma prefer priority range user-agent want-content-digest content-digest"
    # what browsers add
    " access-control-request-headers access-control-request-method dnt last-event-id save-data sec-gpc"
    " upgrade-insecure-requests"
    # what pages send to their own server: CSRF tokens, and headers of common libraries
    " idempotency-key x-requested-with x-csrf-token x-csrftoken x-xsrf-token csrf-token turbo-frame"
    " traceparent tracestate x-request-id".split()
)
# Fetch metadata, client hints, htmx, Inertia.
_ASKED_FAMILIES: Final = ("sec-fetch-", "sec-ch-", "hx-", "x-inertia")
_NOT_ANSWERED: Final = _HOP_BY_HOP | frozenset(
    "content-length set-cookie location content-location www-authenticate strict-transport-security alt-svc"
    " public-key-pins public-key-pins-report-only expect-ct clear-site-data x-sendfile x-lighttpd-send-file"
    " x-reproxy-url date"
    # would apply to the whole origin, and so to other plugins' services
    " service-worker-allowed accept-ch critical-ch nel report-to reporting-endpoints origin-agent-cluster"
    " origin-trial speculation-rules set-login activate-storage-access sec-session-registration"
    " no-vary-search use-as-dictionary".split()
)
# A 401 must have a challenge (RFC 9110, section 15.5.2). For the service's own, browsers would ask for a password that
# `asked` then removes: a service knows whoever logs in there by a cookie alone.
_CHALLENGE: Final = "Cookie"
# One directive of Cache-Control; its value may be quoted, with commas in it.
_DIRECTIVE: Final = re.compile(r'(?:[^,"]|"[^"]*"?)+')
# Directives for shared caches, which `private` takes the place of (RFC 9111, section 5.2.2).
_FOR_SHARED: Final = frozenset("public s-maxage proxy-revalidate private".split())
# For caches of their own kind, which heed it before Cache-Control (RFC 9213).
_TARGETED_CACHE: Final = re.compile(r".+-cache-control|surrogate-control", re.IGNORECASE)
_COOKIE_PATH: Final = re.compile(r"path\s*=\s*(?P<path>/.*)", re.IGNORECASE)
_COOKIE_DOMAIN: Final = re.compile(r"domain\s*(?:=.*)?", re.IGNORECASE)


def asked(fields: Mapping[str, str], *, origin: str, host: str) -> CIMultiDict[str]:
    """The request headers for a service at `origin` (`http://host:port`), with Host set to `host`. Cookies of others
    pass, our session cookies do not (docs/adr/0013).

    `Sec-WebSocket-*` is left out: the proxy makes a handshake of its own with the service.
    """
    listed = _listed(fields)
    out: CIMultiDict[str] = CIMultiDict({"Host": host})
    for name, value in fields.items():
        lower = name.lower()
        known = lower in _ASKED or lower.startswith(_ASKED_FAMILIES)
        if known and lower not in listed and _is_sound(value):
            out.add(name, value)
    if "Origin" in fields:  # already checked against our origin; the service compares it with its own
        out["Origin"] = origin
    if cookies := others_cookies(_all(fields, "Cookie")):
        out["Cookie"] = cookies
    return out


def answered(
    fields: Mapping[str, str], *, origin: str, prefix: str, private: bool, refused: bool = False
) -> CIMultiDict[str]:
    """The response headers for the client: Location and cookies moved below `prefix`, none for the whole origin.

    `private`: the request had a login session; no shared cache may keep the answer then. `refused`: its status is 401.
    """
    listed = _listed(fields)
    out: CIMultiDict[str] = CIMultiDict()
    for name, value in fields.items():
        lower = name.lower()
        if lower not in _NOT_ANSWERED and lower not in listed and not lower.startswith("x-accel-") and _is_sound(value):
            out.add(name, value)
    out.setdefault("Server", "latticed")  # else aiohttp adds its own
    if fields.get("Content-Type", "").lower().startswith("text/event-stream"):
        # Else an nginx in front keeps the end of an event until the next. All else it takes at once, for slow clients.
        out["X-Accel-Buffering"] = "no"
    for name in ("Location", "Content-Location"):
        for value in _all(fields, name)[:1]:
            if _is_sound(value):
                out[name] = moved(value, origin=origin, prefix=prefix)
    for value in _all(fields, "Set-Cookie"):
        if _is_sound(value) and (kept := _cookie(value, prefix)):
            out.add("Set-Cookie", kept)
    if refused:
        out["WWW-Authenticate"] = _CHALLENGE
    if private:
        out.add("Vary", "Cookie")
        out["Cache-Control"] = _kept_private(",".join(out.getall("Cache-Control", [])))
        for name in [name for name in out if _TARGETED_CACHE.fullmatch(name)]:
            out.popall(name, None)
    return out


def _kept_private(said: str) -> str:
    """A Cache-Control by which no shared cache keeps the answer, and browsers do what the service says.

        "max-age=60, immutable"  ->  "max-age=60, immutable, private"
        "public, s-maxage=9"     ->  "private"
        "no-store"               ->  "no-store"

    A shared cache may keep what has no Cache-Control by rules of its own, and what has a `max-age` too: the request had
    no Authorization (RFC 9111, sections 3 and 4.2.2).
    """
    directives = [one.strip() for one in _DIRECTIVE.findall(said) if one.strip()]
    if "no-store" in {one.lower() for one in directives}:
        return said
    kept = [one for one in directives if one.partition("=")[0].strip().lower() not in _FOR_SHARED]
    return ", ".join([*kept, "private"])


def moved(location: str, *, origin: str, prefix: str) -> str:
    """The service's Location header as the client must see it: moved below `prefix` if it leads to `origin`.

        "/a"                          ->  "/p/a", with the prefix "/p/"
        "http://10.0.0.1:80/a"        ->  "/p/a", if the origin is "http://10.0.0.1:80"
        "https://elsewhere.example/"  ->  as it is

    Relative ones such as "b" stay as they are: clients resolve them against the path they asked for.
    """
    if location == origin or location.startswith((origin + "/", origin + "?", origin + "#")):
        location = location.removeprefix(origin)
        location = location if location.startswith("/") else "/" + location
    # `//host` and, in browsers, `/\host` name another host.
    if location.startswith("/") and not location.startswith(("//", "/\\")):
        return prefix + location[1:]
    return location


def others_cookies(fields: Iterable[str]) -> str:
    """Cookie fields joined to one, without our session cookies; empty when none is left."""
    pairs = [pair.strip() for field in fields if _is_sound(field) for pair in field.split(";")]
    return "; ".join(pair for pair in pairs if pair and not _is_ours(pair.partition("=")[0]))


def session_ids(fields: Iterable[str]) -> list[tuple[str, str]]:
    """(name, value) of every cookie with a name of our session cookies; several when a page of another port set one."""
    pairs = [pair.strip().partition("=") for field in fields for pair in field.split(";")]
    return [(name.strip(), value.strip()) for name, _, value in pairs if name.strip() in SESSION_COOKIES]


def _cookie(value: str, prefix: str) -> str:
    """A Set-Cookie of the service, restricted to its prefix and this host; empty if it has the name of ours."""
    pair, *attributes = [part.strip() for part in value.split(";")]
    name = pair.partition("=")[0]
    if _is_ours(name) or not name.strip():  # RFC 6265bis: a nameless cookie's value could pass for a name
        return ""
    kept = [pair]
    for attribute in attributes:
        # Without Domain a cookie is sent to this host alone.
        if _COOKIE_DOMAIN.fullmatch(attribute):
            continue
        path = _COOKIE_PATH.fullmatch(attribute)
        own_host = name.lower().startswith("__host-")
        # A `__Host-` cookie is only taken with `Path=/` (RFC 6265bis, section 4.1.3.2).
        kept.append(f"Path={prefix}{path['path'][1:]}" if path and not own_host else attribute)
    return "; ".join(kept)


def _is_ours(name: str) -> bool:
    """Whether a cookie has the name of one of our session cookies, in any case."""
    return name.strip().lower() in {one.lower() for one in SESSION_COOKIES}


def _listed(fields: Mapping[str, str]) -> frozenset[str]:
    """The header names that Connection lists as hop-by-hop."""
    return frozenset(name.strip().lower() for field in _all(fields, "Connection") for name in field.split(","))


def _all(fields: Mapping[str, str], name: str) -> list[str]:
    """All values of a header, in their order; `fields` need not be case-insensitive."""
    return [value for found, value in fields.items() if found.lower() == name.lower()]


def _is_sound(value: str) -> bool:
    """Whether a value may be forwarded: valid UTF-8 without control characters other than tab."""
    return not any((char < " " and char != "\t") or char == "\x7f" or "\ud800" <= char <= "\udfff" for char in value)
