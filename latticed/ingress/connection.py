"""Connections from outside. All arrive from one loopback address, so one bound holds for all of them together."""

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
IDLE_S: Final = 15.0  # a connection without any, or one that does not take its answer
DEADLINE_S: Final = 10.0  # an answer has been made by then, or is given up
ANSWER_S: Final = 15.0  # and by then it has been taken, too
LINGER_S: Final = 0.5  # how long an unwanted body is read, so that the client reads its refusal
LINE_BYTES: Final = 8_192  # of a request target; the parser's errors are told apart by their limits
FIELD_BYTES: Final = 8_190
HEADERS: Final = 64


class OutsideConnection(LimitedConnection):
    """One connection; its answer is given up after DEADLINE_S."""

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
        super().connection_made(transport)
        self.limiter.enter(self)

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio asks: keep it open for writing?
        """The client sends no more; complete requests are still answered."""
        self._ended = True
        if self._messages:
            return True
        self.close()  # after the answer under way
        return self._waiter is None and not self.wants_body

    def complete(self) -> None:
        """Its request is here; from now on an answer is owed to it by the current task."""
        super().complete()
        self._working, self.late, self.wants_body = asyncio.current_task(), False, False

    def answered(self) -> None:
        super().answered()
        self._working, self.wants_body = None, False

    def swept(self, now_s: float) -> None:
        if self.answering and now_s - self.since_s > DEADLINE_S:
            self.give_up()

    def give_up(self) -> None:
        """Its answer takes too long: the handler is cancelled, and sees `late`."""
        if self._working is not None and not self.late:
            self.late = True
            self._working.cancel()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Answer what does not parse as HTTP with a problem document, and close the connection."""
        del request, message
        if status >= 500:
            self.log_exception("ingress_failed", exc_info=exc)
            problem = Problem("internal", "the daemon failed to answer, see its log")
        elif isinstance(exc, LineTooLong) and exc.args[1:2] == (LINE_BYTES,):
            problem = Problem("uri_too_long", f"expected a URL of at most {request_target.MAX_CHARACTERS} characters")
        elif isinstance(exc, LineTooLong):
            problem = Problem("headers_too_large", f"expected headers of at most {FIELD_BYTES} bytes each")
        else:
            problem = Problem("bad_request", "expected an HTTP/1.1 request")
        answer = answers.of_problem(problem)
        answer.force_close()
        return cast("web.StreamResponse", answer)
