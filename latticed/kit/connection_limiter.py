"""Connections of an HTTP listener: time limits for each of them, and a limit on how many there are.

aiohttp cuts neither a stalled header nor a stalled body, and keeps idle connections for an hour. So each connection
notes since when it owes a complete request, and a sweep cuts those that take too long. Where there are too many, the
oldest one without a complete request is cut, never a newer complete request.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar, cast

from aiohttp.web_protocol import RequestHandler

from latticed.kit.http_bodies import Bodies

if TYPE_CHECKING:
    from collections.abc import Callable

    from aiohttp import web

    from latticed.kit.clock import Clock

SWEEP_S: Final = 0.5
"""Seconds between two sweeps: by so much a limit may be exceeded."""
FRESH_S: Final = 1.0
"""How long a new connection may take to send its request once the listener drains: it is told, not cut."""
INTERRUPTED_S: Final = 1.0
"""How long the answers of interrupted requests may take to be sent."""
C = TypeVar("C", bound="LimitedConnection")


class LimitedConnection(RequestHandler):
    """One connection of aiohttp, with its time limits. A subclass sets them, enters the connection into its limiter,
    and calls `complete` and `answered` for each request.

    `begun`: bytes of a request have come, but not all; `answering`: a handler makes the answer; `since_s`: since when
    either holds, or the connection is idle (monotonic).
    """

    request_s: ClassVar[float]
    """Seconds that a request may take from its first byte until `complete` is called."""
    idle_s: ClassVar[float]
    """Seconds that a connection may be without a request."""
    answer_s: ClassVar[float]
    """Seconds from `complete` to `answered`, the longest that an answer may take."""

    def __init__(self, limiter: ConnectionLimiter[Any], server: web.Server, **options: Any) -> None:
        super().__init__(server, keepalive_timeout=self.idle_s, **options)
        self.limiter = limiter
        self.owner: int | None = None
        """The number under which the limiter counts it, such as a uid; None before it was entered."""
        self.wire: asyncio.Transport | None = None
        self.begun = False
        self.answering = False
        self.leaving = False
        """It is to be closed after the answer under way."""
        self.since_s = 0.0
        self.fresh = True
        """None of its requests was answered yet."""
        self._bodies = Bodies()
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.wire = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.limiter.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # Only at the first byte: a client that sends a byte now and then must not renew its time.
        if not self.begun and not self.answering:
            self.begun, self.since_s = True, self.limiter.now()
        super().data_received(data)
        # After aiohttp's parser, whose messages it checks, and before any handler runs.
        self.leaving |= self._bodies.check(self._messages)

    @property
    def last(self) -> bool:
        """Whether the answer that it gets now is its last, so that it says `Connection: close`."""
        return self.leaving or (self._ended and not self._messages)

    def complete(self) -> None:
        """A handler begins to answer its request; from now on `answer_s` counts."""
        self.answering, self.begun, self.since_s = True, False, self.limiter.now()

    def answered(self) -> None:
        """Its request is answered; from now on it counts as idle."""
        self.answering, self.begun, self.since_s = False, False, self.limiter.now()
        self.fresh = False

    @property
    def busy(self) -> bool:
        """Whether an answer is being made or sent: such a connection is not cut before its time."""
        return self.answering or self.buffered

    @property
    def buffered(self) -> bool:
        """Whether its peer has yet to take a part of an answer."""
        return self.wire is not None and self.wire.get_write_buffer_size() > 0

    def see_off(self) -> None:
        """End with the answer under way."""
        self.leaving = True  # aiohttp's close() would no longer read the rest of a body
        # Its last answer said that it stays open: nothing else closes it when that is sent.
        if self.wire is not None and self.buffered and not (self.answering or self.begun or self._messages):
            self.wire.close()

    def interrupt(self) -> None:
        """Called when draining has taken too long: answer at once. Does nothing here, for subclasses."""

    def overdue(self, now_s: float) -> bool:
        """Whether it has taken longer than its limit for what it is doing; `now_s` is the monotonic time."""
        limit_s = self.answer_s if self.answering else self.request_s if self.begun else self.idle_s
        return now_s - self.since_s > limit_s

    def swept(self, now_s: float) -> None:
        """Called by each sweep that does not close the connection; does nothing here, for subclasses."""


class ConnectionLimiter(Generic[C]):
    """The connections of a listener: `most` at once, of one owner `per_owner` (by default as many as there may be).

    Used on the event loop only.
    """

    def __init__(self, clock: Clock, *, most: int, per_owner: int | None = None) -> None:
        self._clock = clock
        self._most = most
        self._per_owner = per_owner
        self._by_owner: dict[int, dict[C, None]] = {}
        self._changed = asyncio.Event()
        self.cut = 0
        """How many were cut since this was made."""

    def now(self) -> float:
        """Seconds on the monotonic clock."""
        return self._clock.monotonic_s()

    def connections(self) -> list[C]:
        """All connections, as a new list: connections may be cut while the caller iterates over it."""
        return [connection for owned in self._by_owner.values() for connection in owned]

    def of(self, owner: int | None) -> list[C]:
        """The connections of one owner; none for None."""
        return [] if owner is None else list(self._by_owner.get(owner, ()))

    def enter(self, connection: C, owner: int = 0) -> None:
        """Take in a new connection of `owner`. If there are too many, the oldest without a complete request is cut; if
        every other has one, this connection is.

        Too many of its owner: one of theirs is cut; too many in all: one of the owner who has most.
        """
        connection.since_s, connection.owner = self.now(), owner
        owned = self._by_owner.setdefault(owner, {})
        too_many_owned = self._per_owner is not None and len(owned) >= self._per_owner
        if too_many_owned or sum(map(len, self._by_owner.values())) >= self._most:
            # Of the owner who has most, so that one who opens many does not push out the others.
            candidates = owned if too_many_owned else max(self._by_owner.values(), key=len)
            waiting = (one for one in candidates if not one.answering)
            victim = min(waiting, key=lambda one: one.since_s, default=connection)
            self._cut(victim)
            if victim is connection:
                return
        self._by_owner.setdefault(owner, {})[connection] = None  # anew: cutting its owner's last one has dropped theirs

    def leave(self, connection: C) -> None:
        """Drop a connection that has ended; one that is not here, or no more, is ignored."""
        owner = connection.owner
        if owner is not None and (owned := self._by_owner.get(owner)) is not None:
            owned.pop(connection, None)
            if not owned:
                del self._by_owner[owner]
        self.changed()

    def changed(self) -> None:
        """A connection does something else than before: whoever waits for that looks again."""
        self._changed.set()

    async def sweep(self) -> None:
        """Cut what is overdue, until cancelled. One pass over all: a timer for each request would cost more."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = self.now()
            for connection in self.connections():
                if connection.overdue(now_s):
                    self._cut(connection)
                else:
                    connection.swept(now_s)

    def dismiss(self) -> None:
        """Cut the connections without a complete request; the others end with the answer under way. Does not wait."""
        for connection in self.connections():
            if connection.busy:
                connection.see_off()
            else:
                self._cut(connection)

    async def drain(self, within_s: float) -> None:
        """Let answers under way finish for `within_s` seconds at most, then interrupt them, then cut what is left.

        A new connection has FRESH_S to send its request, which is answered: to a client that is cut it would not be
        known whether anything was done. Those that come later, where the listener is open still, are answered while
        this goes on, and hold up nothing.
        """
        for connection in self.connections():
            if connection.busy or connection.begun or connection.fresh:
                connection.see_off()
            else:
                self._cut(connection)
        fresh_s = min(FRESH_S, within_s)
        await self._until(lambda one: one.busy, fresh_s)
        self.dismiss()
        under_way = set(self.connections())
        await self._until(lambda one: one not in under_way, within_s - fresh_s)
        for connection in self.connections():
            connection.interrupt()
        await self._until(lambda one: not (one.busy or one.begun), INTERRUPTED_S)
        for connection in self.connections():
            self._cut(connection)

    async def _until(self, may_stay: Callable[[C], bool], within_s: float) -> None:
        """Wait until only connections are left that may stay, for `within_s` seconds at most."""
        # By the loop's clock: the other one may be a test's that stands still.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while any(not may_stay(one) for one in self.connections()):
                    self._changed.clear()
                    await self._changed.wait()

    def _cut(self, connection: C) -> None:
        """Drop a connection and close it at once, without sending what is buffered."""
        self.cut += 1
        self.leave(connection)  # at once: many may come before connection_lost is called, and each must cut another
        if connection.wire is not None:
            # Not close(), which would wait for a peer that does not read.
            connection.wire.abort()
