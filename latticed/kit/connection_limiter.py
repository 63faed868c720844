"""Connections of an HTTP listener: what each owes us and since when, and how many there may be.

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
    from aiohttp import web

    from latticed.kit.clock import Clock

SWEEP_S: Final = 0.5
C = TypeVar("C", bound="LimitedConnection")


class LimitedConnection(RequestHandler):
    """One connection. A subclass enters it into its limiter, and calls `complete` and `answered` for each request."""

    request_s: ClassVar[float]
    """A request that has begun is complete by then, its body included."""
    idle_s: ClassVar[float]
    """How long a connection may be without a request."""
    answer_s: ClassVar[float]
    """By when an answer has been taken."""

    def __init__(self, limiter: ConnectionLimiter[Any], server: web.Server, **options: Any) -> None:
        super().__init__(server, keepalive_timeout=self.idle_s, **options)
        self.limiter = limiter
        self.owner: int | None = None
        """Under whom the limiter counts it."""
        self.wire: asyncio.Transport | None = None
        self.begun = False
        self.answering = False
        self.leaving = False
        """Closed after the answer under way."""
        self.since_s = 0.0
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
        self.leaving |= self._bodies.check(self._messages)

    @property
    def last(self) -> bool:
        """Whether the answer that it gets now is its last."""
        return self.leaving or (self._ended and not self._messages)

    def complete(self) -> None:
        """Its request is here; from now on an answer is owed to it."""
        self.answering, self.begun, self.since_s = True, False, self.limiter.now()

    def answered(self) -> None:
        self.answering, self.begun, self.since_s = False, False, self.limiter.now()

    def overdue(self, now_s: float) -> bool:
        """Whether it has taken longer than anybody may."""
        limit_s = self.answer_s if self.answering else self.request_s if self.begun else self.idle_s
        return now_s - self.since_s > limit_s

    def swept(self, now_s: float) -> None:
        """Called by each sweep that does not cut it."""


class ConnectionLimiter(Generic[C]):
    """The connections of a listener: `most` at once, of one owner `per_owner` (by default as many as there may be)."""

    def __init__(self, clock: Clock, *, most: int, per_owner: int | None = None) -> None:
        self._clock = clock
        self._most = most
        self._per_owner = per_owner
        self._by_owner: dict[int, dict[C, None]] = {}
        self._emptied = asyncio.Event()
        self.cut = 0
        """How many were cut."""

    def now(self) -> float:
        """Seconds on the monotonic clock."""
        return self._clock.monotonic_s()

    def connections(self) -> list[C]:
        return [connection for owned in self._by_owner.values() for connection in owned]

    def of(self, owner: int | None) -> list[C]:
        """The connections of one owner; none of nobody."""
        return [] if owner is None else list(self._by_owner.get(owner, ()))

    def enter(self, connection: C, owner: int = 0) -> None:
        """Take in a new connection; if there are too many, the oldest without a complete request, or this, is cut.

        Too many of its owner: one of theirs; too many in all: one of the owner who has most.
        """
        connection.since_s, connection.owner = self.now(), owner
        owned = self._by_owner.setdefault(owner, {})
        too_many_owned = self._per_owner is not None and len(owned) >= self._per_owner
        if too_many_owned or sum(map(len, self._by_owner.values())) >= self._most:
            candidates = owned if too_many_owned else max(self._by_owner.values(), key=len)
            waiting = (one for one in candidates if not one.answering)
            victim = min(waiting, key=lambda one: one.since_s, default=connection)
            self._cut(victim)
            if victim is connection:
                return
        self._by_owner.setdefault(owner, {})[connection] = None  # anew: cutting its owner's last one has dropped theirs

    def leave(self, connection: C) -> None:
        owner = connection.owner
        if owner is not None and (owned := self._by_owner.get(owner)) is not None:
            owned.pop(connection, None)
            if not owned:
                del self._by_owner[owner]
        if not self._by_owner:
            self._emptied.set()

    async def sweep(self) -> None:
        """Cut what is overdue, until cancelled. One pass over all: a timer for each request would cost more than it."""
        while True:
            await asyncio.sleep(SWEEP_S)
            now_s = self.now()
            for connection in self.connections():
                if connection.overdue(now_s):
                    self._cut(connection)
                else:
                    connection.swept(now_s)

    def dismiss(self) -> None:
        """Cut the connections that wait for nothing; the others end with the answer under way."""
        for connection in self.connections():
            if connection.answering:
                connection.leaving = True  # aiohttp's close() would no longer read the rest of its body
            else:
                self._cut(connection)

    async def drain(self, within_s: float) -> None:
        """Dismiss all, let answers under way finish for `within_s` seconds at most, then cut the rest."""
        # Before dismissing, which may cut the last connection and set it.
        self._emptied.clear()
        self.dismiss()
        if self._by_owner:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._emptied.wait(), within_s)
        for connection in self.connections():
            self._cut(connection)

    def _cut(self, connection: C) -> None:
        self.cut += 1
        self.leave(connection)  # at once: many may come before connection_lost is called, and each must cut another
        if connection.wire is not None:
            # Not close(), which would wait for a peer that does not read.
            connection.wire.abort()
