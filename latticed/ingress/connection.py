"""Connections from outside: what each owes and since when, and how many there may be.

aiohttp cuts neither a stalled header nor a stalled body, and waits an hour for an idle client. Everybody arrives from
the same loopback address, so there is one bound for all: beyond it the oldest connection without a complete request
makes room.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from latticed.ingress import answers, request_target
from latticed.kit.http_bodies import Bodies
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from aiohttp import web

    from latticed.kit.clock import Clock

REQUEST_S: Final = 5.0  # a request that has begun is complete by then, its body included
IDLE_S: Final = 15.0  # a connection without any, or one that does not take its answer
DEADLINE_S: Final = 10.0  # an answer has been made by then, or is given up
ANSWER_S: Final = 15.0  # and by then, come what may
SWEEP_S: Final = 0.5
LINGER_S: Final = 0.5  # how long a body that nobody wants is read, so that its refusal is
LINE_BYTES: Final = 8_192  # of a request target; the parser's errors are told apart by their limits
FIELD_BYTES: Final = 8_190
HEADERS: Final = 64


class OutsideConnection(RequestHandler):
    """One connection and what it owes."""

    def __init__(self, crowd: Crowd, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            max_line_size=LINE_BYTES,
            max_field_size=FIELD_BYTES,
            max_headers=HEADERS,
            access_log=None,  # type: ignore[arg-type] # what aiohttp's own run_app hands over
            auto_decompress=False,  # a target gets what was sent, not what it swells to
        )
        self._crowd = crowd
        self.wire: asyncio.Transport | None = None
        self.begun = False
        self.answering = False
        self.leaving = False
        self._bodies = Bodies()
        self.wants_body = False
        self.late = False
        self._working: asyncio.Task[Any] | None = None
        self._ended = False
        self.since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.wire = cast("asyncio.Transport", transport)
        self._crowd.enter(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._crowd.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.begun and not self.answering:
            self.begun, self.since_s = True, self._crowd.now()
        super().data_received(data)
        self.leaving |= self._bodies.look(self._messages)

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio asks: keep it open for writing?
        """It will ask no more: what it has asked in full is still answered."""
        self._ended = True
        if self._messages:
            return True
        self.close()  # after the answer under way
        return self._waiter is None and not self.wants_body

    @property
    def last(self) -> bool:
        """Whether the answer that it gets now is its last."""
        return self.leaving or (self._ended and not self._messages)

    def complete(self) -> None:
        """Its request is here; from now on an answer is owed to it by the current task."""
        self._working, self.late = asyncio.current_task(), False
        self.answering, self.begun, self.wants_body, self.since_s = True, False, False, self._crowd.now()

    def answered(self) -> None:
        self.answering, self.begun, self.wants_body, self.since_s = False, False, False, self._crowd.now()
        self._working = None

    def give_up(self) -> None:
        """Its answer takes too long: whoever makes it is told by being cancelled, and sees `late`."""
        if self._working is not None and not self.late:
            self.late = True
            self._working.cancel()

    def overdue(self, now_s: float) -> bool:
        """Whether it has taken longer than anybody may."""
        limit_s = ANSWER_S if self.answering else REQUEST_S if self.begun else IDLE_S
        return now_s - self.since_s > limit_s

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What does not parse as HTTP is refused in our form, and the connection is over."""
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


class Crowd:
    """All connections; `most` at once, so that descriptors are left for everything else."""

    def __init__(self, clock: Clock, *, most: int) -> None:
        self._clock = clock
        self._most = most
        self._all: dict[OutsideConnection, None] = {}
        self._emptied = asyncio.Event()
        self.cut = 0

    def __len__(self) -> int:
        return len(self._all)

    def now(self) -> float:
        return self._clock.monotonic_s()

    def enter(self, connection: OutsideConnection) -> None:
        """Take in a new connection; the oldest that owes us something makes room for it, or it is turned away."""
        connection.since_s = self.now()
        if len(self._all) >= self._most:
            owing = (one for one in self._all if not one.answering)
            victim = min(owing, key=lambda one: one.since_s, default=connection)
            self._cut(victim)
            if victim is connection:
                return
        self._all[connection] = None

    def leave(self, connection: OutsideConnection) -> None:
        self._all.pop(connection, None)
        if not self._all:
            self._emptied.set()

    async def sweep(self) -> None:
        """Cut who is overdue and give up what takes too long, until cancelled.

        One look at all of them now and then: a timer for each request would cost more than most answers do.
        """
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = self.now()
            for connection in list(self._all):
                if connection.overdue(now_s):
                    self._cut(connection)
                elif connection.answering and now_s - connection.since_s > DEADLINE_S:
                    connection.give_up()

    def dismiss(self) -> None:
        """Cut whoever waits; whoever is being answered goes with that answer."""
        for connection in list(self._all):
            if connection.answering:
                connection.leaving = True
            else:
                self._cut(connection)

    async def drain(self, within_s: float) -> None:
        """Dismiss all, wait for answers under way for `within_s` seconds at most, then cut the rest."""
        self._emptied.clear()
        self.dismiss()
        if self._all:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), within_s)
        for connection in list(self._all):
            self._cut(connection)

    def _cut(self, connection: OutsideConnection) -> None:
        self.cut += 1
        self.leave(connection)  # now: many may come before the loop tells of its loss, and each must cut another
        if connection.wire is not None:
            connection.wire.abort()
