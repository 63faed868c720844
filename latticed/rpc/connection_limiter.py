"""Connections: who is at the other end, how long they may take, how many one user may hold.

aiohttp never cuts a stalled header or body by itself, and keeps idle connections for an hour. So each connection notes
since when it owes us a complete request, and a sweep cuts those that take too long. Beyond `PER_UID` connections the
oldest one of that user without a complete request is cut, never a newer complete request (contracts §7).
"""

from __future__ import annotations

import asyncio
import contextlib
import select
from typing import TYPE_CHECKING, Final, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from latticed import wire
from latticed.kit import peers
from latticed.kit.http_bodies import Bodies
from latticed.rpc import problems

if TYPE_CHECKING:
    from latticed.kit.clock import Clock

REQUEST_S: Final = 5.0  # a request that has begun is complete by then
IDLE_S: Final = 15.0  # a connection without any
ANSWER_S: Final = 60.0  # an answer has been taken by then
STREAMS: Final = 32  # of one user at once
PER_UID: Final = 128
SWEEP_S: Final = 0.5
HEADER_BYTES: Final = 8190


class ControlConnection(RequestHandler):
    """One connection of the control socket, with its peer and what it owes."""

    def __init__(self, doorman: Doorman, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=IDLE_S,
            lingering_time=1.0,
            max_line_size=HEADER_BYTES,
            max_field_size=HEADER_BYTES,
            auto_decompress=False,  # nobody compresses on a unix socket, but for bombs
        )
        self._doorman = doorman
        self.peer: peers.Peer | None = None
        self.wire: asyncio.Transport | None = None
        self.answering = False
        self.streaming = False
        self.begun = False
        self.leaving = False
        self._bodies = Bodies()
        self._ended = False
        self.since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.wire = cast("asyncio.Transport", transport)
        try:
            self.peer = peers.of(transport.get_extra_info("socket"))
        except OSError:  # gone already
            self.wire.abort()
            return
        self._doorman.enter(self, self.peer.uid)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._doorman.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.begun and not self.answering:
            self.begun, self.since_s = True, self._doorman.now()
        super().data_received(data)
        self.leaving |= self._bodies.look(self._messages)

    def eof_received(self) -> bool:  # type: ignore[override] # asyncio asks: keep it open for writing?
        """It will ask no more: what it asked is still answered, unless it is gone altogether."""
        self._ended = True
        asked = bool(self._messages) or self._waiter is None  # aiohttp waits for nothing while it answers
        return asked and not _hung_up(self.wire)

    @property
    def last(self) -> bool:
        """Whether the answer that it gets now is its last."""
        return self.leaving or (self._ended and not self._messages)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """What aiohttp refuses before any handler (an unknown Expect) leaves in our form too."""
        fitting = problems.of_http_error(resp) if isinstance(resp, web.HTTPException) else resp
        finished = await super().finish_response(request, fitting, start_time)
        if self.last:
            self.close()
        return finished

    def complete(self) -> None:
        """Its request is here; from now on an answer is owed to it."""
        self.answering, self.begun, self.since_s = True, False, self._doorman.now()

    def stream(self) -> bool:
        """From now on its answer has no end, if its user may have one more such; who writes it sets the pace."""
        self.streaming = self._doorman.may_stream(self)
        return self.streaming

    def answered(self) -> None:
        self.answering, self.streaming, self.since_s = False, False, self._doorman.now()

    def overdue(self, now_s: float) -> bool:
        """Whether it has taken longer than anybody may."""
        limit_s = ANSWER_S if self.answering else REQUEST_S if self.begun else IDLE_S
        return not self.streaming and now_s - self.since_s > limit_s

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """What does not parse as HTTP: 400 in our form, and the connection is over."""
        if status >= 500:
            return super().handle_error(request, status, exc, message)
        body = problems.document("bad_request", "expected an HTTP/1.1 request", "", status)
        answer = web.Response(status=status, body=body, content_type=wire.PROBLEM_TYPE)
        answer.force_close()
        return answer


def _hung_up(transport: asyncio.Transport | None) -> bool:
    """Whether the peer has closed both ways; one that only stopped writing still reads (poll(2), POLLHUP)."""
    if transport is None:
        return True
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))


class Doorman:
    """All connections of the control socket; `most` at once, so that descriptors are left for everything else."""

    def __init__(self, clock: Clock, *, most: int) -> None:
        self._clock = clock
        self._most = most
        self._by_uid: dict[int, dict[ControlConnection, None]] = {}
        self._draining: asyncio.Event | None = None
        self.cut = 0

    def now(self) -> float:
        return self._clock.monotonic_s()

    def enter(self, connection: ControlConnection, uid: int) -> None:
        """Take in a new connection of `uid`; the oldest idle one of whoever has too many makes room for it."""
        connection.since_s = self.now()
        mine = self._by_uid.setdefault(uid, {})
        full = sum(map(len, self._by_uid.values())) >= self._most
        if full or len(mine) >= PER_UID:
            crowd = mine if len(mine) >= PER_UID else max(self._by_uid.values(), key=len)
            idle = (c for c in crowd if not c.answering)
            victim = min(idle, key=lambda c: c.since_s, default=connection)
            self._cut(victim)
            if victim is connection:
                return
        mine[connection] = None

    def may_stream(self, connection: ControlConnection) -> bool:
        """Whether the user of `connection` may have one more stream."""
        mine = self._by_uid.get(connection.peer.uid, {}) if connection.peer else {}
        return sum(one.streaming for one in mine) < STREAMS

    def leave(self, connection: ControlConnection) -> None:
        if connection.peer is not None and (mine := self._by_uid.get(connection.peer.uid)) is not None:
            mine.pop(connection, None)
            if not mine:
                del self._by_uid[connection.peer.uid]
        if self._draining is not None and not self._by_uid:
            self._draining.set()

    async def sweep(self) -> None:
        """Cut what is overdue, until cancelled."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = self.now()
            for connection in [one for one in self._all() if one.overdue(now_s)]:
                self._cut(connection)

    async def drain(self, within_s: float) -> None:
        """Cut idle connections, let answers under way finish for `within_s` at most, then cut the rest."""
        self._draining = asyncio.Event()
        for connection in self._all():
            if connection.answering:
                connection.leaving = True  # close() would turn a deaf ear to the rest of its body
            else:
                self._cut(connection)
        if self._by_uid:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), within_s)
        for connection in self._all():
            self._cut(connection)

    def _all(self) -> list[ControlConnection]:
        return [connection for mine in self._by_uid.values() for connection in mine]

    def _cut(self, connection: ControlConnection) -> None:
        self.cut += 1
        self.leave(connection)  # now: many may come before the loop tells of its loss, and each must cut another
        if connection.wire is not None:
            connection.wire.abort()
