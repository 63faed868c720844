"""The listener for plugins' HTTP routes: opens and closes it as routes come and go, and handles requests."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Final, Self, cast

from aiohttp import HttpVersion11, hdrs, web

from latticed.host.route import own_style
from latticed.host.route.table import NO_LISTENER, RouteListener, RouteRequest
from latticed.ingress import answers, request_target
from latticed.ingress.connection import OutsideConnection
from latticed.ingress.hosts import Hosts
from latticed.kit import descriptors, logs
from latticed.kit.connection_limiter import ConnectionLimiter
from latticed.kit.tasks import fenced
from latticed.model.errors import Problem
from latticed.settings import endpoints

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.host.route.table import RouteClaim, RouteTable
    from latticed.ingress.answers import IngressAnswer
    from latticed.kit.clock import Clock
    from latticed.settings import HttpSettings

MAX_BODY_BYTES: Final = 256 << 10
"""Of a request's body, which a target gets as a whole."""
MAX_HEADER_BYTES: Final = 16 << 10
"""Of all names and values of a request together."""
DRAIN_S: Final = 3.0
"""Seconds that answers under way have to finish when the daemon stops, unless they are given more."""
UNSENT_BYTES: Final = 64 << 20
"""Of answers that clients have not taken yet, of all connections; beyond it those of LARGE_BYTES are refused."""
LARGE_BYTES: Final = 64 << 10
RETRY_S: Final = 1.0
"""Seconds until an address that could not be bound is tried again."""
BACKLOG: Final = 512
"""Connections that the kernel queues until they are accepted (listen(2))."""
CONNECTIONS: Final = 512
"""Open connections of one listener; beyond that the oldest one without a complete request is cut."""

log = logs.get_logger()


class Ingress:
    """Serves the routes of `routes` at `http.listen`. An async context manager: on exit open answers get `drain_s()`.

    It listens only while a plugin has a claim; `routes.listener` says where, or why not.
    """

    connection: type[OutsideConnection] = OutsideConnection

    def __init__(
        self,
        routes: RouteTable,
        settings: HttpSettings,
        *,
        clock: Clock,
        drain_s: Callable[[], float] = lambda: DRAIN_S,
    ) -> None:
        self._routes = routes
        self._drain_s = drain_s
        self._endpoint = endpoints.loopback(settings.listen) or ("127.0.0.1", 0)
        self._hosts = Hosts(settings)
        # At most a quarter of the descriptors (RLIMIT_NOFILE): the rest is for the control socket, plugins and files.
        self._limiter: ConnectionLimiter[OutsideConnection] = ConnectionLimiter(
            clock, most=min(CONNECTIONS, descriptors.limit() // 4)
        )
        self._server: asyncio.Server | None = None
        self._http: web.Server | None = None
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._http = web.Server(self._handle, handler_cancellation=True)  # a lost connection cancels its handler
        async with contextlib.AsyncExitStack() as stack:
            # Ends in reverse: stop listening, let answers finish, end the tasks, close what is left.
            stack.push_async_callback(self._http.shutdown, 1.0)
            for work, name in ((self._limiter.sweep(), "ingress sweeper"), (self._keep(), "ingress listener")):
                stack.push_async_callback(cancelled, fenced(work, self._failed, name=name))
            stack.push_async_callback(self._drain)
            stack.callback(self._close_listener)
            # Neither url nor fault: `wait_for_listener` waits from here on.
            self._routes.set_listener(RouteListener())
            stack.callback(self._routes.set_listener, NO_LISTENER)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def allow(self, settings: HttpSettings) -> None:
        """Serve the hosts of these settings from now on. Where it listens does not change."""
        self._hosts = Hosts(settings)

    async def _drain(self) -> None:
        # Asked only now: how much time is left depends on what was stopped before.
        await self._limiter.drain(self._drain_s())

    def _failed(self, error: BaseException) -> None:
        """Log an unexpected error of a background task, and report the listener as failed to plugins with routes."""
        log.error("ingress_failed", error=repr(error))
        self._routes.set_listener(RouteListener(fault="the listener failed, see the daemon's log"))

    async def _keep(self) -> None:
        """Open and close the listener as claims come and go, until cancelled."""
        while True:
            # Before looking at the claims: a change during `_listen` is then seen in the next round.
            self._routes.changed.clear()
            if self._routes.in_use and self._server is None:
                await self._listen()
            elif not self._routes.in_use and self._server is not None:
                self._close_listener()
                # Without a route there is nothing to answer: connections are cut, or end with the answer under way.
                self._limiter.dismiss()
                self._routes.set_listener(RouteListener())
            again = self._routes.in_use and self._server is None
            with contextlib.suppress(TimeoutError):
                # There is no notification when an address becomes free, so it is tried again.
                async with asyncio.timeout(RETRY_S if again else None):
                    await self._routes.changed.wait()

    async def _listen(self) -> None:
        """Bind and listen; a failure is logged and reported to plugins, and `_keep` tries again."""
        loop, http = asyncio.get_running_loop(), cast("web.Server", self._http)
        try:
            sock = _bound(self._endpoint)
        except OSError as error:
            where, reason = _url(self._endpoint), error.strerror or str(error)
            fault = f"cannot listen at {where}: {reason}"
            # Tried again every RETRY_S: the same failure is logged once.
            if self._routes.listener.fault != fault:
                log.error("ingress_unavailable", address=where, reason=reason)
            self._routes.set_listener(RouteListener(fault=fault))
            return
        # asyncio calls accept() `backlog` times per wake-up, even when no descriptor is left: each failure is a log
        # entry and schedules a retry. So it gets 1, and listen() sets the length of the kernel's queue afterwards.
        self._server = await loop.create_server(
            lambda: self.connection(self._limiter, http, loop), sock=sock, backlog=1
        )
        sock.listen(BACKLOG)
        url = _url(sock.getsockname()[:2])
        log.info("ingress_listening", address=url)
        self._routes.set_listener(RouteListener(url=url))

    def _close_listener(self) -> None:
        """Stop listening; open connections stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
            log.info("ingress_closed")

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to one request, for aiohttp; called for one request of a connection at a time.

        Problems become problem documents; unexpected exceptions are logged and become `internal`.
        """
        connection = cast("OutsideConnection", request.protocol)  # the server makes no other
        try:
            answer = await self._answer(request, connection)
        except Problem as problem:
            answer = answers.of_problem(problem)
        # The client has gone, or the server shuts down: there is no one to answer.
        except (ConnectionError, asyncio.CancelledError):
            raise
        except web.RequestPayloadError:
            answer = answers.of_problem(Problem("bad_request", "expected the body that the headers promise"))
        except Exception:
            log.error("ingress_failed", exc_info=True)
            answer = answers.of_problem(Problem("internal", "the daemon failed to answer, see its log"))
        finally:
            connection.answered()
        if connection.last or _out_of_step(request):
            answer.force_close()
        return cast("web.StreamResponse", answer)

    async def _answer(
        self, request: web.BaseRequest, connection: OutsideConnection
    ) -> IngressAnswer | web.StreamResponse:
        """The answer to one request. Problem for every refusal; its code decides the status (`answers.STATUS_OF`)."""
        # Refusals first that need no route: target, Host, size of headers.
        asked = request_target.parse(request.raw_path)
        # Several Host fields, or none, are 400 (RFC 9112, section 3.2).
        said = request.headers.getall(hdrs.HOST, [])
        if len(said) != 1:
            raise Problem("bad_request", "expected one Host")
        # Before the route is looked up: a page that gets here by DNS rebinding learns nothing of what there is.
        host = said[0] if asked.authority is None else asked.authority
        self._hosts.check(host)
        check_headers(request.raw_headers)
        # Then the route and its method, before the body is read.
        claim = self._routes.find(asked.path)
        if claim is None:
            raise Problem("not_found", "there is no such route")
        method = request.method
        if method == "HEAD" and method not in claim.target.methods:  # answered like GET, without the body
            method = "GET"
        if method not in claim.target.methods:
            return _not_allowed(claim)
        # Until `complete`: a client that ends its side now never sends the whole body, see `eof_received`.
        connection.wants_body = request.body_exists
        body = await _body(request) if request.body_exists else b""
        # The whole request is here: from now on the deadline for the answer runs, see `OutsideConnection.swept`.
        connection.complete()
        wanted = RouteRequest(method=method, path=asked.path, query=asked.query, headers=request.headers, body=body)
        try:
            response = await claim.target.serve(wanted)
            # A client that does not read keeps its answer in memory until it is cut.
            if len(response.body) > LARGE_BYTES and self._unsent_bytes() > UNSENT_BYTES:
                raise Problem("busy", "too much that was answered is not read")
            # Only for a page that loads something: most answers are none.
            place = own_style.own_place(host, claim.plugin_id, claim.prefixes[0]) if response.own is not None else ""
            return answers.of_response(response, place)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            # `give_up` cancelled it once. If the count is not 0 then, there is another reason too (shutdown, a lost
            # connection), and that cancellation has to go on.
            if connection.late and task is not None and task.uncancel() == 0:
                raise Problem("deadline_exceeded", "the answer took too long") from None
            raise

    def _unsent_bytes(self) -> int:
        """Bytes of answers that are buffered for clients, of all connections."""
        wires = (connection.wire for connection in self._limiter.connections())
        return sum(wire.get_write_buffer_size() for wire in wires if wire is not None)


def check_headers(fields: tuple[tuple[bytes, bytes], ...]) -> None:
    """Problem("headers_too_large") when all names and values together are more than MAX_HEADER_BYTES."""
    size = 0
    for name, value in fields:
        size += len(name) + len(value)
    if size > MAX_HEADER_BYTES:
        raise Problem("headers_too_large", f"expected at most {MAX_HEADER_BYTES} bytes of headers")


async def _body(request: web.BaseRequest) -> bytes:
    """The whole body; Problem("request_too_large") beyond the limit. The connection limiter cuts slow senders."""
    too_large = Problem("request_too_large", f"expected a body of at most {MAX_BODY_BYTES} bytes")
    # Before 100 Continue: a client that waits for it then sends no body at all.
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise too_large
    if expects := request.headers.get(hdrs.EXPECT):
        if expects.lower() != "100-continue" or request.version < HttpVersion11:
            raise Problem("expectation_failed", "expected no other expectation than 100-continue")
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # nothing of the answer itself has been sent
    # Counted as it comes: chunks announce no length.
    received = bytearray()
    async for chunk in request.content.iter_any():
        received += chunk
        if len(received) > MAX_BODY_BYTES:
            raise too_large
    return bytes(received)


def _not_allowed(claim: RouteClaim) -> IngressAnswer:
    """405 with Allow (RFC 9110, section 15.5.6), for a method that the target does not take."""
    methods = claim.target.methods
    allowed = ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))
    problem = Problem("method_not_allowed", f"expected one of {allowed}")
    return answers.of_problem(problem, ("Allow", allowed))


def _out_of_step(request: web.BaseRequest) -> bool:
    """Whether the next bytes on this connection could belong to this request, so that it must be closed."""
    unread = request.body_exists and not request.content.at_eof()
    return unread or request.method == "CONNECT" or hdrs.UPGRADE in request.headers


def _bound(endpoint: tuple[str, int]) -> socket.socket:
    """A non-blocking socket that is bound to the address and listens; OSError."""
    sock = socket.socket(socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        # Else connections of an earlier daemon in TIME_WAIT keep the address in use (socket(7)).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(endpoint)
        # With SO_REUSEADDR bind(2) can succeed where only listen(2) finds that the address is in use.
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


def _url(endpoint: tuple[str, int]) -> str:
    """`http://address:port`, an IPv6 address in brackets."""
    address, port = endpoint
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


async def cancelled(task: asyncio.Task[None]) -> None:
    """Cancel a task and return once it has ended; its exception is dropped."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
