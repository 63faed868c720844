"""The console's connections: where it listens, how many there may be, and how long each may owe a whole request.

Any user of the host can connect to a port of 127.0.0.1. aiohttp alone would hold such a connection for an hour.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong

from latticed.console import guard
from latticed.kit import descriptors, unix_listener
from latticed.kit.clock import SystemClock
from latticed.kit.connection_limiter import ConnectionLimiter, LimitedConnection
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from latticed.console.guard import ListenAt

MOST: Final = 256
"""Connections at once. A browser holds six, and a tab of it one of them."""
REQUEST_S: Final = 5.0
"""From the first byte of a request to its last, and again for the rest of a form whose headers are whole."""
IDLE_S: Final = 30.0
"""Without a request, or with an answer that nobody reads."""
_LINE_BYTES: Final = 8_190
_FIELD_BYTES: Final = 65_536
"""Of one header. Cookies know no ports: a browser sends here, too, what all others of this address have set."""
_TOO_LONG: Final = f"""expected headers of at most {_FIELD_BYTES} bytes each
Another page of this address may have set long cookies: delete the cookies of this address in your browser, or open a
new link by its other name (localhost, 127.0.0.1).
"""
_HEADERS: Final = 64
BACKLOG: Final = 1024
"""Who waits to be accepted. Where the queue of a unix socket is full, a client with a deadline is refused (unix(7))."""


class ConsoleConnection(LimitedConnection):
    """One connection of a browser, or of whoever else connects.

    While a handler answers there is no limit: what it waits for (the daemon, a form, a reader of `live`) has its own.
    """

    request_s = REQUEST_S
    idle_s = IDLE_S
    answer_s = float("inf")

    def __init__(
        self, limiter: ConnectionLimiter[ConsoleConnection], server: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            limiter,
            server,
            loop=loop,
            # How long the rest of a form is read that was refused unread.
            lingering_time=1.0,
            max_line_size=_LINE_BYTES,
            max_field_size=_FIELD_BYTES,
            max_headers=_HEADERS,
            access_log=None,
            auto_decompress=False,  # no browser compresses a form
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """May cut another connection, when there are too many, or this one."""
        super().connection_made(transport)
        self.limiter.enter(self)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; aiohttp's own, such as to an unknown method, get the same headers as a page's."""
        # Of what and of which version it is made is not for whoever finds the port.
        for name, value in (*guard.HEADERS.items(), ("Server", "latticed")):
            resp.headers.setdefault(name, value)
        if self.last:
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what is no HTTP with 400, and a fault of ours with 500; nothing of either is repeated."""
        del request, message
        if status >= 500:
            self.log_exception("console_failed", exc_info=exc)
        text = "expected an HTTP/1.1 request\n" if status < 500 else "the console failed to answer\n"
        if isinstance(exc, LineTooLong) and exc.args[1:2] == (_FIELD_BYTES,):
            status, text = 431, _TOO_LONG
        answer = web.Response(status=status, text=text, headers=guard.HEADERS)
        # Where the next request would begin is unknown.
        answer.force_close()
        return answer


@web.middleware
async def timed(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Tell a request's connection when its answer begins and ends."""
    connection = cast("ConsoleConnection", request.protocol)
    connection.complete()
    try:
        return await handler(request)
    finally:
        connection.answered()


@contextlib.asynccontextmanager
async def listening(runner: web.AppRunner, at: ListenAt) -> AsyncIterator[ListenAt]:
    """Accept connections while this is open; yields `at` with the port that it got. OSError, Problem listen_failed.

    `runner` was set up, and is cleaned up after this.
    """
    loop = asyncio.get_running_loop()
    http = cast("web.Server", runner.server)
    limiter: ConnectionLimiter[ConsoleConnection] = ConnectionLimiter(
        # The other half is for what asks the daemon.
        SystemClock(),
        most=min(MOST, descriptors.limit() // 2),
    )
    with _bound(at) as sock:
        # asyncio calls accept() `backlog` times per wake-up, before any limit is looked at.
        server = await loop.create_server(lambda: ConsoleConnection(limiter, http, loop), sock=sock, backlog=1)
        sock.listen(BACKLOG)
        sweeping = asyncio.create_task(limiter.sweep())
        try:
            yield at if at.path else at._replace(port=sock.getsockname()[1])
        finally:
            server.close()
            sweeping.cancel()
            limiter.dismiss()


@contextlib.contextmanager
def unix_socket(path: str) -> Iterator[socket.socket]:
    """A listening unix socket of mode 0660 from its first moment, removed at the end unless another took its place.

    OSError; Problem listen_failed where another process listens already: whose pages would break off.
    """
    place = Path(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            with contextlib.suppress(BlockingIOError):  # its queue is full
                asking.connect(path)
            raise Problem("listen_failed", f"another process listens at {path}", "end it, or choose another path")
    sock = unix_listener.listen(place, backlog=BACKLOG)
    made = place.lstat()
    try:
        yield sock
    finally:
        sock.close()
        with contextlib.suppress(OSError):
            now = place.lstat()
            if stat.S_ISSOCK(now.st_mode) and (now.st_dev, now.st_ino) == (made.st_dev, made.st_ino):
                place.unlink()


@contextlib.contextmanager
def _bound(at: ListenAt) -> Iterator[socket.socket]:
    if at.path:
        with unix_socket(at.path) as sock:
            yield sock
        return
    family = socket.AF_INET6 if ":" in at.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        sock.setblocking(False)
        # A port that is named is taken again at once after a restart.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((at.host, at.port))
        yield sock
