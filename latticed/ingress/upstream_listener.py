"""The listener of proxied upstreams, `http.service_listen`: behind a login (system-plugins.md, Sub-Store).

It is apart from the routes' listener, so that it is another origin for browsers. Paths that are not declared public
need a login session.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import urllib.parse
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self, cast

from aiohttp import hdrs, web

from latticed.host.call import HostError
from latticed.host.route import public_paths, public_token
from latticed.host.route.table import RouteListener
from latticed.ingress import answers, forwarding, ingress, relay, request_target, same_origin
from latticed.ingress.answers import IngressAnswer
from latticed.ingress.ingress import Ingress
from latticed.ingress.login_pages import OWN_PREFIX, LoginPages
from latticed.ingress.proxy import ProxiedAnswer, Proxy, ProxyLimits
from latticed.ingress.sessions import Sessions
from latticed.ingress.upstream_connection import UpstreamConnection
from latticed.kit.tasks import fenced
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.host.route.targets import Proxied
    from latticed.host.route.upstreams import UpstreamTable
    from latticed.ingress.connection import OutsideConnection
    from latticed.ingress.sessions import LoginSession
    from latticed.kit.clock import Clock
    from latticed.model.audit import Event
    from latticed.settings import HttpSettings

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""The methods that are proxied: not CONNECT and TRACE."""
LOOK_S: Final = 1.0
"""Seconds between looks at the answers under way."""
PUBLIC_S: Final = 120.0
"""How long an answer without a login may take as a whole."""
OFF: Final = "http.service_listen is not set"
"""Why services are not proxied."""
# With path parameters (`/..;x/`), which some servers cut off before they resolve dots.
_DOTS: Final = re.compile(r"(?:^|[/\\])\.{1,2}(?:;[^/\\]*)?(?:[/\\]|$)")
_DECODINGS: Final = 4
"""How often a path is decoded to look for dot segments. One that would change again after that is refused."""
# With %, so that escapes stay as the client wrote them.
_NOT_ENCODED: Final = "!#$%&'()*+,/:;=?@[]~\"<>\\^`{|}"


@dataclass(frozen=True, slots=True, eq=False)
class _Stream:
    """One answer under way, with its login session (None: a public path) and the monotonic time when it began."""

    connection: OutsideConnection
    target: Proxied
    session: LoginSession | None
    since_s: float


class UpstreamIngress(Ingress):
    """Serves what `routes` has at `http.service_listen`, behind logins; does nothing where that is not set.

    `secret(plugin_id, name)`: a password as bound now (HostError when it is not); `record` takes audit events.
    """

    connection = UpstreamConnection

    def __init__(
        self,
        routes: UpstreamTable,
        settings: HttpSettings,
        *,
        secret: Callable[[str, str], str],
        record: Callable[[Event], None],
        clock: Clock,
        limits: ProxyLimits | None = None,
    ) -> None:
        super().__init__(routes, _own(settings), clock=clock)
        self._on = routes.enabled
        self._secret = secret
        self._clock = clock
        self._sessions = Sessions(secret=secret, record=record, clock=clock)
        self._login_pages = LoginPages(self._sessions, self._found)
        self._proxy = Proxy(limits or ProxyLimits())
        self._streams: set[_Stream] = set()
        self._inside = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        if not self._on:
            self._routes.set_listener(RouteListener(fault=OFF))
            return self
        async with contextlib.AsyncExitStack() as stack:
            # Ends in reverse: the watching task, the listener, then the client session that its answers use.
            await stack.enter_async_context(self._proxy)
            stack.push_async_callback(super().__aexit__, None, None, None)
            await super().__aenter__()
            # So that answers end with their route, and not at the next look.
            self._routes.on_release = self._cut
            watching = fenced(self._watch(), self._failed, name="service streams")
            stack.push_async_callback(ingress.cancelled, watching)
            self._inside = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._inside.aclose()

    def allow(self, settings: HttpSettings) -> None:
        super().allow(_own(settings))

    async def _answer(
        self, request: web.BaseRequest, connection: OutsideConnection
    ) -> IngressAnswer | web.StreamResponse:
        """The answer to one request: a page of ours, a refusal, or what the service answers, already sent."""
        # Refusals first that need no route: target, Host, headers, dot segments in every decoding.
        asked = request_target.parse(request.raw_path)
        host = self._addressed(request, asked)
        _check_dots(asked.path)
        # Until `complete`: a client that ends its side now never sends the whole body, see `eof_received`.
        connection.wants_body = request.body_exists
        if asked.path.startswith(OWN_PREFIX):
            return await self._login_pages.answer(request, asked, host)
        # Found by the decoded path; from here on the encoded one counts, which the service gets as it is.
        target = self._found(asked.path)
        if target is None or not target.live():
            raise Problem("not_found", "there is no such service")
        if request.method not in METHODS:
            allowed = ", ".join(sorted(METHODS))
            return answers.of_problem(Problem("method_not_allowed", f"expected one of {allowed}"), ("Allow", allowed))
        path, query = _origin_form(request.raw_path)
        # 308 and not 301: method and body stay as they are (RFC 9110, section 15.4.9).
        if path + "/" == target.prefix:
            return IngressAnswer(
                b"", "text/plain; charset=utf-8", status=308, more=(("Location", target.prefix + query),)
            )
        if not path.startswith(target.prefix):  # equal only after decoding
            raise Problem("not_found", "there is no such service")
        # A login is needed unless the path is public; only then is the service connected to.
        below = "/" + path.removeprefix(target.prefix)
        session = None
        public_query = self._public_query(request, target, below, query)
        if public_query is None:
            session = self._session(request, target, host)
            if session is None:
                return self._login_pages.sent_to(request, path + query)
            public_query = query
        passed = ProxiedAnswer(
            request=request,
            connection=connection,
            target=target,
            path=below + public_query,
            private=session is not None or bool(target.token),
        )
        return await self._passed_on(passed, session)

    def _public_query(self, request: web.BaseRequest, target: Proxied, below: str, query: str) -> str | None:
        """The query for the service when the request needs no login, else None.

        `below`: the path below the route, and `query` with its ?, both encoded. Who has the token may ask for what is
        at the path and no more, so nothing of the query is passed on: to some programs it says what to fetch.
        """
        # Without a login only reading: no body, no websocket, no method that changes anything.
        readable = request.method in {"GET", "HEAD"} and not relay.is_wanted(request) and not request.body_exists
        if not readable or not public_paths.is_public(target.public, below):
            return None
        if not target.token:
            return query
        said = public_token.given(query)
        try:
            opened = said is not None and public_token.matches(self._secret(target.plugin_id, target.token), said)
        except HostError:  # the secret was unbound or deleted, or cannot be decrypted
            return None
        return "" if opened else None

    def _session(self, request: web.BaseRequest, target: Proxied, host: str) -> LoginSession | None:
        """The login session of a request that may pass with it, or None. Problem not_found, origin_not_allowed."""
        # There is no password that would open it, so it is answered as if it did not exist.
        if not target.login:
            raise Problem("not_found", "there is no such service")
        session = self._sessions.find(target, forwarding.session_ids(request.headers.getall(hdrs.COOKIE, [])))
        if session is not None:
            # Browsers send the session cookie for pages of other origins too (cross-site request forgery).
            same_origin.check(request.method, host, request.headers, websocket=relay.is_wanted(request))
        return session

    async def _passed_on(self, passed: ProxiedAnswer, session: LoginSession | None) -> web.StreamResponse:
        """Have the request answered by the service, and watch the answer while it is under way."""
        # Now, with the body still to come: it is streamed, and the proxy has limits of its own for it.
        passed.connection.complete()
        stream = _Stream(passed.connection, passed.target, session, self._clock.monotonic_s())
        self._streams.add(stream)
        try:
            if relay.is_wanted(passed.request):
                return await relay.relay(passed, self._proxy)
            return await self._proxy.forward(passed)
        finally:
            self._streams.discard(stream)

    def _addressed(self, request: web.BaseRequest, asked: request_target.RequestTarget) -> str:
        """The host that the request is for. Problem unless there is exactly one Host, it is one of ours, and the
        headers pass.
        """
        said = request.headers.getall(hdrs.HOST, [])
        if len(said) != 1:
            raise Problem("bad_request", "expected one Host")
        host = said[0] if asked.authority is None else asked.authority
        self._hosts.check(host)
        ingress.check_headers(request.raw_headers)
        return host

    def _found(self, path: str) -> Proxied | None:
        """The proxied service that a decoded path belongs to, or None."""
        claim = self._routes.find(path)
        # Only Proxied are claimed in an UpstreamTable, see `RouteKeeper._stored_route`.
        return None if claim is None else cast("Proxied", cast("Any", claim.target))

    async def _watch(self) -> None:
        """Abort open answers after a logout, a changed password, a stopped plugin, or PUBLIC_S on a public path."""
        while True:
            await asyncio.sleep(LOOK_S)
            self._cut()

    def _cut(self) -> None:
        """Abort those open answers that may not be continued (`_may_go_on`)."""
        for stream in list(self._streams):
            if not self._may_go_on(stream) and stream.connection.wire is not None:
                stream.connection.wire.abort()

    def _may_go_on(self, stream: _Stream) -> bool:
        """Whether an answer may still be sent: route still there, service live, address granted, session valid, time
        not over.
        """
        if not self._is_still_routed(stream.target) or not stream.target.live() or stream.target.pinned() is None:
            return False
        if stream.session is None:
            return self._clock.monotonic_s() - stream.since_s <= PUBLIC_S
        return self._sessions.holds(stream.session, stream.target)

    def _is_still_routed(self, target: Proxied) -> bool:
        """Whether requests to the prefix of `target` go where they went when it was found, behind the same login."""
        found = self._found(target.prefix)
        # By what they say, since a plugin that starts again puts equal routes anew.
        return found is not None and _route(found) == _route(target)


def _route(target: Proxied) -> tuple[object, ...]:
    """What two targets have in common when they are of the same route."""
    return (
        target.plugin_id,
        target.prefix,
        target.origin,
        target.service,
        target.login,
        target.public,
        target.token,
    )


def _own(settings: HttpSettings) -> HttpSettings:
    """The settings as the base class reads them, which listens at `listen`."""
    # Port 0 is never bound: without an address `__aenter__` opens nothing.
    return replace(settings, listen=settings.service_listen or "127.0.0.1:0")


def _origin_form(raw: str) -> tuple[str, str]:
    """(path, query with its ?) of a valid request target, still encoded; other than ASCII is percent-encoded.

        "/a%2Fb?x"           ->  ("/a%2Fb", "?x")
        "http://host:80/a"   ->  ("/a", "")
        "http://host?x"      ->  ("/", "?x")

    The authority of a whole URL is dropped; `_addressed` has checked it.
    """
    if not raw.startswith("/"):  # with a whole URL
        rest = raw.partition("://")[2]
        start = min((place for mark in "/?" if (place := rest.find(mark)) >= 0), default=len(rest))
        raw = rest[start:]
        raw = raw if raw.startswith("/") else "/" + raw
    plain = urllib.parse.quote(raw.encode("utf-8", "surrogateescape"), safe=_NOT_ENCODED)
    path, mark, query = plain.partition("?")
    return path, mark + query


def _check_dots(path: str) -> None:
    """Raise Problem("bad_request") for dot segments that appear when a path is decoded again, as some services do.

    `path` has been decoded once.
    """
    for _ in range(_DECODINGS):
        if _DOTS.search(path) or "\0" in path:
            raise Problem("bad_request", "expected a URL without the segments . and ..")
        again = urllib.parse.unquote(path)
        if again == path:
            return
        path = again
    raise Problem("bad_request", "expected a URL that is not encoded over and over")
