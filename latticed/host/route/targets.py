"""What answers on a route that a plugin has put: a template, one of its actions, published files, or an upstream."""

from __future__ import annotations

import base64
import contextlib
import functools
import re
import time
import urllib.parse
from typing import TYPE_CHECKING, Any, Final

from latticed.host.call import HostError
from latticed.host.route import own_style, rendering, template
from latticed.host.route.table import RouteRequest, RouteResponse
from latticed.kit import logs
from latticed.kit.log_limit import LogLimiter
from latticed.kit.value import Value
from latticed.model import published
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping

    from latticed.host.route.template import Template
    from latticed.host.static.calls import StaticFile
    from latticed.model.addresses import Address
    from latticed.model.egress import Origin

    Live = Callable[[str], bool]
    Call = Callable[[str, str, dict[str, Any]], Awaitable[Any]]
    Invoke = Callable[[str, str, Any], Awaitable[dict[str, Any]]]
    Read = Callable[..., Awaitable[StaticFile]]

MAX_IN_FLIGHT: Final = 8
"""Concurrent requests of one invoke route: each may be a process."""
MAX_ANSWER_BYTES: Final = 1 << 20
"""Of the decoded body in an action's result."""
MAX_HEADERS: Final = 32
"""Headers that an action gets; more of a request are left out, and so are longer values. The listener itself takes up
to 16 KiB of headers (docs/write/workers.md).
"""
MAX_HEADER_CHARACTERS: Final = 4_096
INDEX: Final = "index.html"
"""What a directory of published files shows."""
# Without `cookie` and `authorization`: routes of all plugins share one origin, so they may be for another one.
_FORWARDED: Final = frozenset({"accept", "accept-language", "content-type", "user-agent", "if-none-match"})
_NOT_FORWARDED: Final = re.compile(r"x-(?:forwarded|real|original|rewrite|client|cluster|http|method|remote).*")
"""Of the `x-` headers, those that proxies set about clients, and those that make servers see another request."""
_TYPE: Final = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(?:\s*;\s*[A-Za-z0-9-]+=[A-Za-z0-9._+-]+)*")
# Answers without content by definition (RFC 9110, sections 15.3.5 and 15.3.6).
_WITHOUT_BODY: Final = frozenset({204, 205})
_ANSWER: Final = frozenset({"status", "content_type", "userinfo", "body", "body_base64"})
USERINFO: Final = "subscription-userinfo"
"""The header by which clients of subscriptions learn bytes, quota and end: the only one that an action may set."""
_REFUSED: Final = LogLimiter()

log = logs.get_logger()
_USERINFO: Final = re.compile(r"[a-z]+=[0-9]{1,20}(?:; [a-z]+=[0-9]{1,20}){0,7}")


class Templated:
    """A template of a plugin, as the target of a route.

    `live(plugin_id)`: whether the plugin may have it served now. Values are read with `call(plugin_id, method,
    params)`, a host call through its Gate. Making one raises Problem source_blocked for too many styles.
    """

    methods = frozenset({"GET", "HEAD"})

    def __init__(self, plugin_id: str, compiled: Template, content_type: str, *, live: Live, call: Call) -> None:
        self._plugin_id = plugin_id
        self._compiled = compiled
        self._content_type = content_type
        self._own = own_style.of_template(compiled.parts, content_type)
        self._live = live
        self._call = functools.partial(call, plugin_id)

    async def serve(self, request: RouteRequest) -> RouteResponse:
        """See RouteTarget. Problem not_found, and as `rendering.render`."""
        _check_live(self._live, self._plugin_id)
        body = await rendering.render(
            self._compiled,
            request.path,
            request.method,
            request.query,
            content_type=self._content_type,
            call=self._call,
        )
        # Asked again: the plugin may have been stopped or have lost the right while values were read.
        _check_live(self._live, self._plugin_id)
        return RouteResponse(body=body, content_type=self._content_type, own=self._own)


class Invoked:
    """An action of a plugin that answers requests.

    It gets {method, path, query, headers, body, body_base64} and results in {status, content_type, body | body_base64}.
    `live(plugin_id)`: whether the plugin may have it served now; `invoke(plugin_id, action, payload)` has the action
    carried out and returns its reply `{ok, message, result, error}`.
    """

    def __init__(self, plugin_id: str, action: str, methods: tuple[str, ...], *, live: Live, invoke: Invoke) -> None:
        self.methods = frozenset(methods)
        self._plugin_id = plugin_id
        self._action = action
        self._live = live
        self._invoke = invoke
        self._in_flight = 0

    async def serve(self, request: RouteRequest) -> RouteResponse:
        """See RouteTarget. Problem not_found, busy, plugin_error, output_too_large, and those of the invocation."""
        _check_live(self._live, self._plugin_id)
        # Refused and not queued: a queue of visitors' requests would grow without bound while the plugin is slow.
        if self._in_flight >= MAX_IN_FLIGHT:
            raise Problem("busy", f"expected at most {MAX_IN_FLIGHT} requests at once")
        self._in_flight += 1
        try:
            reply = await self._invoke(self._plugin_id, self._action, invoke_payload(request))
        finally:
            self._in_flight -= 1
        # As above: what it answers is not sent once the route may not be served.
        _check_live(self._live, self._plugin_id)
        if not reply.get("ok"):
            raise Problem("plugin_error", "the plugin says that it failed")
        try:
            return response_from(reply.get("result"))
        except Problem as problem:
            # The visitor is told no more than that it failed: this is for the author. By the code: reasons have sizes
            # that the plugin chooses: each would be of a kind of its own.
            told = (self._plugin_id, self._action, problem.code)
            if (count := _REFUSED.take(told, time.monotonic())) is not None:
                log.warning(
                    "route_answer_refused",
                    plugin_id=self._plugin_id,
                    action=self._action,
                    code=problem.code,
                    reason=problem.reason,
                    count=count,
                )
            raise


class FilesServed:
    """Published files, as the target of a route at `prefix`, which ends with a slash.

    `live(plugin_id)`: whether the plugin may have its route served now. `read(path, range, if_none_match=, if_range=)`
    is `StaticCalls.read` for one reader and owner; `folder` is empty or ends with a slash, and precedes each path.
    """

    methods = frozenset({"GET", "HEAD"})

    def __init__(self, plugin_id: str, prefix: str, folder: str, *, live: Live, read: Read) -> None:
        self._plugin_id = plugin_id
        self._prefix = prefix
        self._folder = folder
        self._live = live
        self._read = read

    async def serve(self, request: RouteRequest) -> RouteResponse:
        """See RouteTarget. Problem not_found, service_unavailable.

        A path that ends with a slash is that of the `index.html` there; the route's own without its slash is moved to
        the one with it, or relative links of the page would lead elsewhere.
        """
        _check_live(self._live, self._plugin_id)
        if request.path + "/" == self._prefix:
            location = urllib.parse.quote(self._prefix)
            return RouteResponse(body=b"", status=301, more=(("Location", location),))
        path = self._folder + request.path.removeprefix(self._prefix)
        if not path or path.endswith("/"):
            path += INDEX
        asked = request.headers
        # Of a page the whole is needed: its styles are in its policy, which a 304 would replace by one without them.
        page = path.lower().endswith(tuple(f".{one}" for one in published.HTML))
        try:
            found = await self._read(
                path,
                # A range is of GET alone (RFC 9110, section 14.2).
                asked.get("Range", "") if request.method == "GET" and not page else "",
                if_none_match="" if page else asked.get("If-None-Match", ""),
                if_range=asked.get("If-Range", ""),
            )
        except HostError as error:
            code = "not_found" if error.code is Denial.NOT_FOUND else "service_unavailable"
            raise Problem(code, error.reason) from error
        _check_live(self._live, self._plugin_id)
        headers = dict(found.headers)
        kind, policy = headers.pop("Content-Type"), headers.pop("Content-Security-Policy")
        if page:
            # A page that was published with more styles than a policy may have is served without them.
            with contextlib.suppress(Problem):
                policy = own_style.with_hashes(policy, own_style.of_page(found.body, kind))
        return RouteResponse(
            body=found.body,
            content_type=kind,
            status=found.status,
            policy=policy,
            cache=headers.pop("Cache-Control"),
            more=tuple((name, value) for name, value in headers.items() if name != "X-Content-Type-Options"),
        )


class Proxied(Value, frozen=True, kw_only=True):
    """A plugin's upstream on the service listener. `prefix` ends with a slash and is cut off paths before forwarding.

    `login`: the name of the secret with its password; empty: only `public` is served. `token`: the name of the secret
    with what opens `public`; empty: that is open to everybody. `pinned()` is the address to
    connect to, None unless the operator granted `publish` for the origin; `live()`: whether anything may be served now.
    `visited()` is called for each connection that a visitor's request makes to it (docs/adr/0015). `service`: in whose
    own network the upstream is, empty for the host's; `inside(address)`: a socket of that network, Problem when it has
    none now; None for the host's.

    No `serve`: the service listener streams requests to it instead of collecting them.
    """

    plugin_id: str
    prefix: str
    origin: Origin
    login: str
    public: tuple[str, ...]
    token: str
    live: Callable[[], bool]
    pinned: Callable[[], Address | None]
    visited: Callable[[], None]
    service: str = ""
    inside: Callable[[Address], Awaitable[socket.socket]] | None = None


def invoke_payload(request: RouteRequest) -> dict[str, Any]:
    """A request as an action gets it: without cookies, credentials, and headers of proxies about the client.

    Header names are in lower case; of a repeated header the first is kept. `query` is a list of [name, value] pairs.
    `body` is text, or None with `body_base64` when it is not UTF-8; both are None without a body.
    """
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        lower = name.lower()
        wanted = lower in _FORWARDED or (lower.startswith("x-") and not _NOT_FORWARDED.fullmatch(lower))
        if wanted and lower not in headers and len(headers) < MAX_HEADERS and len(value) <= MAX_HEADER_CHARACTERS:
            # aiohttp gives invalid UTF-8 as surrogate escapes, which cannot be encoded as UTF-8 again.
            headers[lower] = value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    payload: dict[str, Any] = {
        "method": request.method,
        "path": request.path,
        "query": [list(pair) for pair in request.query],
        "headers": headers,
        "body": None,
        "body_base64": None,
    }
    if request.body:
        try:
            payload["body"] = request.body.decode("utf-8")
        except UnicodeDecodeError:
            payload["body_base64"] = base64.b64encode(request.body).decode("ascii")
    return payload


def response_from(result: Any) -> RouteResponse:
    """The response in an action's result: {status, content_type, userinfo, body | body_base64}, all optional.

    Problem("plugin_error"), or ("output_too_large") for a body over MAX_ANSWER_BYTES.
    """
    if not isinstance(result, dict) or not result.keys() <= _ANSWER:
        raise _bad_answer(f"expected a result with {', '.join(sorted(_ANSWER))}, found something else")
    status, kind = result.get("status", 200), result.get("content_type", "text/plain; charset=utf-8")
    # `type`, because True is an instance of int. No redirects: an action cannot give a Location.
    if type(status) is not int or not (200 <= status <= 299 or 400 <= status <= 599) or status in _WITHOUT_BODY:
        raise _bad_answer("expected a status of 200 to 299 (not 204, 205) or 400 to 599")
    # _TYPE has no line ends and no other control characters, so the value cannot add a header to the answer.
    if not isinstance(kind, str) or len(kind) > 128 or not _TYPE.fullmatch(kind):
        raise _bad_answer("expected a content type such as text/plain")
    info = result.get("userinfo")
    if info is not None and not (isinstance(info, str) and _USERINFO.fullmatch(info)):
        raise _bad_answer("expected userinfo such as upload=1; download=2; total=3")
    body = _body(result)
    if len(body) > MAX_ANSWER_BYTES:
        detail = f"expected an answer of at most {MAX_ANSWER_BYTES} bytes, found {len(body)}"
        raise Problem("output_too_large", detail)
    own = own_style.of_page(body, kind)
    if own is not None and ";" not in kind:
        kind += "; charset=utf-8"  # else a browser would guess one, with which the hashes may not match
    return RouteResponse(
        body=body,
        content_type=kind,
        status=status,
        policy=own_style.SVG_POLICY if kind.partition(";")[0].strip().lower() == "image/svg+xml" else "",
        more=() if info is None else ((USERINFO, info),),
        own=own,
    )


def compiled(source: str) -> Template:
    """A stored template, parsed; Problem("source_blocked"). Takes milliseconds for 256 KiB: call it in a thread."""
    return template.parse(source.encode("utf-8"))


def _body(result: Mapping[str, Any]) -> bytes:
    """The body of an action's result in bytes, empty when there is none; Problem plugin_error."""
    plain, coded = result.get("body"), result.get("body_base64")
    if plain is not None and coded is not None:
        raise _bad_answer("expected one of body and body_base64, found both")
    try:
        if plain is not None:
            return plain.encode("utf-8") if isinstance(plain, str) else _not_text()
        return (
            base64.b64decode(coded, validate=True) if isinstance(coded, str) else b"" if coded is None else _not_text()
        )
    except ValueError as error:
        raise _bad_answer("expected body to be text, or body_base64 to be base64") from error


def _not_text() -> bytes:
    raise _bad_answer("expected body and body_base64 to be text")


def _check_live(live: Live, plugin_id: str) -> None:
    """Problem not_found while the plugin may not have its route served; a visitor learns no more."""
    if not live(plugin_id):
        raise Problem("not_found", "there is no such route")


def _bad_answer(detail: str) -> Problem:
    """Problem plugin_error for a result that is no response."""
    return Problem("plugin_error", detail)
