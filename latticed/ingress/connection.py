"""Connections of the route listener. All come from a loopback address, so the limit is for all, not per address."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp.http_exceptions import LineTooLong

from latticed.ingress import answers, request_target
from latticed.kit.connection_limiter import ConnectionLimiter, LimitedConnection
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from aiohttp import web

REQUEST_S: Final = 5.0
"""Seconds from the first byte of a request to its last, body included."""
IDLE_S: Final = 15.0  # of a connection without a request under way
DEADLINE_S: Final = 10.0  # for a handler to return its answer; then it is cancelled
ANSWER_S: Final = 15.0  # for the client to have received the answer
LINGER_S: Final = 0.5  # a refused body is read for so long: closing at once would reset the connection
LINE_BYTES: Final = 8_192  # of a request target; `handle_error` knows by this limit which line was too long
FIELD_BYTES: Final = 8_190
HEADERS: Final = 64
"""Header fields of one request; aiohttp refuses more."""


class OutsideConnection(LimitedConnection):
    """One connection of a listener for visitors; a handler that has not answered after DEADLINE_S is cancelled.

    `late`: the handler was cancelled for that reason. `wants_body`: the handler is reading a body that is not complete.
    """

    request_s = REQUEST_S
    idle_s = IDLE_S
    answer_s = ANSWER_S

    def __init__(
        self, limiter: ConnectionLimiter[OutsideConnection], server: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            limiter,
            server,
            loop=loop,
            lingering_time=LINGER_S,
            max_line_size=LINE_BYTES,
            max_field_size=FIELD_BYTES,
            max_headers=HEADERS,
            access_log=None,  # what aiohttp's own run_app passes
            auto_decompress=False,  # a target gets the bytes that were sent, not what they decompress to
        )
        self.wants_body = False
        self.late = False
        self._working: asyncio.Task[Any] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio for a new connection."""
        super().connection_made(transport)
        # May cut this connection at once, when there are too many.
        self.limiter.enter(self)

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio asks: keep it open for writing?
        """Keep a half-closed connection open until its complete requests are answered; True: open for writing."""
        self._ended = True
        # Requests that the parser has completed and no handler has begun yet (aiohttp's RequestHandler).
        if self._messages:
            return True
        self.close()  # after the answer under way
        # With a waiter no request is under way; with a body outstanding the request cannot become whole any more.
        return self._waiter is None and not self.wants_body

    def complete(self) -> None:
        """Called when the handler starts to answer; the current task is the one that `give_up` cancels."""
        super().complete()
        self._working, self.late, self.wants_body = asyncio.current_task(), False, False

    def answered(self) -> None:
        """Called when the handler has its answer; a proxied one has been sent by then."""
        super().answered()
        self._working, self.wants_body = None, False

    def swept(self, now_s: float) -> None:
        """Called by each sweep of the limiter, every half second: ends an answer that has taken DEADLINE_S."""
        if self.answering and now_s - self.since_s > DEADLINE_S:
            self.give_up()

    def give_up(self) -> None:
        """Cancel the handler once, with `late` set, which distinguishes this from a lost connection."""
        if self._working is not None and not self.late:
            self.late = True
            # Once only: a second cancellation would end the handler's own clean-up.
            self._working.cancel()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what does not parse as HTTP with a problem document, and close the connection. Called by aiohttp."""
        del request, message
        if status >= 500:
            self.log_exception("ingress_failed", exc_info=exc)
            problem = Problem("internal", "the daemon failed to answer, see its log")
        # The parser's exception names the limit that was passed: LINE_BYTES and FIELD_BYTES differ for this.
        elif isinstance(exc, LineTooLong) and exc.args[1:2] == (LINE_BYTES,):
            problem = Problem("uri_too_long", f"expected a URL of at most {request_target.MAX_CHARACTERS} characters")
        elif isinstance(exc, LineTooLong):
            problem = Problem("headers_too_large", f"expected headers of at most {FIELD_BYTES} bytes each")
        else:
            problem = Problem("bad_request", "expected an HTTP/1.1 request")
        answer = answers.of_problem(problem)
        # Where the next request begins is unknown.
        answer.force_close()
        return cast("web.StreamResponse", answer)
