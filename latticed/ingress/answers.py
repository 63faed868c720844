"""HTTP responses, all with the same protective headers; errors are problem documents (RFC 9457) with a stable code."""

from __future__ import annotations

import functools
import json
import time
from email.utils import formatdate
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from aiohttp import HttpVersion11

from latticed import wire
from latticed.host.route import own_style
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from aiohttp import web
    from aiohttp.abc import AbstractStreamWriter

    from latticed.host.route.table import RouteResponse

GUARDS: Final = MappingProxyType(
    {
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": own_style.STRICT,
        "Cache-Control": "no-store",
    }
)
"""Sent with every answer (system-plugins.md, worker:route)."""

STATUS_OF: Final = MappingProxyType(
    {
        "bad_request": HTTPStatus.BAD_REQUEST,
        "not_found": HTTPStatus.NOT_FOUND,
        "method_not_allowed": HTTPStatus.METHOD_NOT_ALLOWED,
        "request_too_large": HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "uri_too_long": HTTPStatus.REQUEST_URI_TOO_LONG,
        "expectation_failed": HTTPStatus.EXPECTATION_FAILED,
        "host_not_allowed": HTTPStatus.MISDIRECTED_REQUEST,
        "headers_too_large": HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "internal": HTTPStatus.INTERNAL_SERVER_ERROR,
        "service_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
        "audit_unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
        "rate_limited": HTTPStatus.SERVICE_UNAVAILABLE,
        "busy": HTTPStatus.SERVICE_UNAVAILABLE,
        "not_armed": HTTPStatus.SERVICE_UNAVAILABLE,
        "deadline_exceeded": HTTPStatus.GATEWAY_TIMEOUT,
        "login_required": HTTPStatus.UNAUTHORIZED,
        "login_failed": HTTPStatus.FORBIDDEN,
        "login_throttled": HTTPStatus.TOO_MANY_REQUESTS,
        "origin_not_allowed": HTTPStatus.FORBIDDEN,
    }
)
"""HTTP statuses by the code of a Problem. Any other code is a failure of the plugin: 502."""

_WORDS: Final = {
    HTTPStatus.BAD_GATEWAY: "the plugin failed to answer",
    HTTPStatus.SERVICE_UNAVAILABLE: "the plugin cannot answer now, try again later",
    HTTPStatus.GATEWAY_TIMEOUT: "the plugin did not answer in time",
}
"""The detail that clients get for these statuses, instead of the internal one."""


class IngressAnswer:
    """A complete response, written at once; implements only what aiohttp's RequestHandler uses of a StreamResponse.

    `more`: further headers as (name, value), already checked; `policy`, `cache`: the Content-Security-Policy and the
    Cache-Control, those of GUARDS when empty. `web.Response` would add a Server header, and takes half the time of
    rendering a small template.
    """

    __slots__ = ("_body", "_cache", "_content_type", "_data", "_more", "_policy", "_writer", "keep_alive", "status")

    def __init__(
        self,
        body: bytes,
        content_type: str,
        *,
        status: int = 200,
        more: tuple[tuple[str, str], ...] = (),
        policy: str = "",
        cache: str = "",
    ) -> None:
        self.status = status
        self.keep_alive: bool | None = None
        self._body = body
        self._content_type = content_type
        self._more = more
        self._policy = policy
        self._cache = cache
        self._data = b""
        self._writer: AbstractStreamWriter

    def force_close(self) -> None:
        """Close the connection after this answer."""
        self.keep_alive = False

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter:
        """Build the bytes of the response to `request`. Called by aiohttp before `write_eof`."""
        wanted = request.keep_alive
        if self.keep_alive is None:
            self.keep_alive = wanted
        # HTTP/1.1 keeps connections by default, HTTP/1.0 only with this header (RFC 9112, section 9.3).
        closing = b"" if self.keep_alive else b"Connection: close\r\n"
        if self.keep_alive and request.version < HttpVersion11:
            closing = b"Connection: keep-alive\r\n"
        # For HEAD too: the length that GET would have. Not with 304, which would have to say that of 200 (RFC 9110,
        # section 8.6).
        length = b"" if self.status == HTTPStatus.NOT_MODIFIED else b"Content-Length: %d\r\n" % len(self._body)
        self._data = b"%s%sDate: %s\r\n%s%s\r\n%s" % (
            _head(self.status, self._content_type, self._policy, self._cache),
            _fields(self._more) if self._more else b"",
            _date(int(time.time())),
            length,
            closing,
            b"" if request.method == "HEAD" else self._body,
        )
        self._writer = request.writer
        return self._writer

    async def write_eof(self) -> None:
        """Send it; waits while the connection's write buffer is full."""
        await self._writer.write_eof(self._data)


def of_response(response: RouteResponse, place: str) -> IngressAnswer:
    """The response of a target, whose page may load what is at `place` (`own_style.own_place`).

    Problem("plugin_error") for a content type that could inject another header.
    """
    said = response.content_type
    # Checked for the answers of all targets.
    if not (said.isascii() and said.isprintable()):
        raise Problem("plugin_error", "expected a content type in visible ASCII")
    return IngressAnswer(
        response.body,
        said,
        status=response.status,
        more=response.more,
        policy=response.policy if response.own is None else own_style.policy(response.own, place),
        cache=response.cache,
    )


def of_problem(problem: Problem, *more: tuple[str, str]) -> IngressAnswer:
    """A problem document without internal details; `more` are further headers.

    `code` is that of the Problem; `detail` is its reason, or a fixed text for statuses in _WORDS.
    """
    status = STATUS_OF.get(problem.code, HTTPStatus.BAD_GATEWAY)
    document = {
        "type": "about:blank",
        "title": status.phrase,
        "status": int(status),
        "code": problem.code,
        "detail": _WORDS.get(status, problem.reason),
    }
    return IngressAnswer(json.dumps(document).encode("ascii"), wire.PROBLEM_TYPE, status=int(status), more=more)


# Bounded: plugins choose status and content type.
@functools.lru_cache(maxsize=256)
def _head(status: int, content_type: str, policy: str, cache: str) -> bytes:
    """Status line and the headers that are the same for every such answer (RFC 9112, sections 4 and 5)."""
    # Not `in HTTPStatus`: on Python 3.11 that raises TypeError for an int that is no member.
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""
    replaced = {"Content-Security-Policy": policy, "Cache-Control": cache}
    guards = {**GUARDS, **{name: value for name, value in replaced.items() if value}}
    return f"HTTP/1.1 {status} {phrase}\r\n".encode() + _fields((*guards.items(), ("Content-Type", content_type)))


def _fields(fields: tuple[tuple[str, str], ...]) -> bytes:
    """Header lines as bytes; names and values have been checked for line ends."""
    return "".join(f"{name}: {value}\r\n" for name, value in fields).encode()


# Formatting the date costs more than the rest of a small answer; it changes once per second.
@functools.lru_cache(maxsize=4)
def _date(now_s: int) -> bytes:
    """The Date header for a second since the epoch (RFC 9110, section 5.6.7)."""
    return formatdate(now_s, usegmt=True).encode()
