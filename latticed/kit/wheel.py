"""One timer for very many: a wheel that turns every 50 ms (docs/internals/performance.md).

A task per periodic check costs 7-10 % of a core for 10,000 of them, `call_at` chains 6 %, this 0.5 %.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Final

from latticed.kit import clock, logs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

TICK_S: Final = 0.05
"""Seconds between two turns of the wheel: by so much a call may be late."""
log = logs.get_logger()


class Ticket:
    """A call that is due at some tick; made by `Wheel.add` and `Wheel.every`."""

    __slots__ = ("_callback", "_due", "_period", "_tick", "_ticks")

    def __init__(self, ticks: dict[int, dict[Ticket, None]], callback: Callable[[], None], period: float) -> None:
        self._ticks = ticks  # those of its wheel
        self._callback: Callable[[], None] | None = callback
        self._due, self._period = 0.0, period  # in ticks; a period of 0 is a single call
        self._tick = 0

    def cancel(self) -> None:
        """Do not call any more. Any number of times, also from within the call."""
        self._callback = None
        # Removed at once: those that are made and cancelled again and again would pile up until they were due.
        others = self._ticks.get(self._tick, {})
        if self in others:
            del others[self]
            if not others:
                del self._ticks[self._tick]


class Wheel:
    """Calls back after a delay or periodically, never early, at most a tick late (plus what other calls take).

    Callbacks are short and never block; they are called on the loop that runs `run`. When one raises, that is logged,
    it keeps its period, and the others are called all the same.
    """

    def __init__(self, source: clock.Clock | None = None) -> None:
        self._clock = source or clock.SystemClock()
        self._due: dict[int, dict[Ticket, None]] = {}  # tick -> tickets, in the order in which they were entered
        self._turned = math.floor(self._now())  # every tick up to this one has been served
        self._wanted = asyncio.Event()

    def add(self, delay_s: float, callback: Callable[[], None]) -> Ticket:
        """Call `callback` once, `delay_s` seconds from now."""
        return self._insert(Ticket(self._due, callback, 0.0), self._now() + max(delay_s, 0.0) / TICK_S)

    def every(self, period_s: float, callback: Callable[[], None], *, first_s: float | None = None) -> Ticket:
        """Call `callback` every `period_s` seconds (at least a tick), first after `first_s` (default: one period).

        Each call is due a period after the last was *due*, so lateness does not add up; calls missed while the machine
        or the loop stood still are left out. Where there are many, give them different `first_s`, so that they do not
        all come in one tick.
        """
        period = max(period_s / TICK_S, 1.0)
        first = period if first_s is None else max(first_s, 0.0) / TICK_S
        return self._insert(Ticket(self._due, callback, period), self._now() + first)

    async def run(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Serve the ticks as they come, until cancelled; an empty wheel waits, without waking up. Tests
        pass `sleep`.
        """
        while True:
            if not self._due:
                self._wanted.clear()
                await self._wanted.wait()
            now = self._now()
            # To the beginning of the next tick, so that lateness does not add up.
            await sleep(max(math.floor(now) + 1 - now, 0.0) * TICK_S)
            self.advance()

    def advance(self) -> int:
        """Serve every tick up to now; return the number of calls made. `run` does this; so may tests."""
        now = math.floor(self._now())
        if now <= self._turned:
            return 0
        passed: Iterable[int] = range(self._turned + 1, now + 1)
        if now - self._turned > len(self._due):  # after a long pause: go through all tickets instead
            passed = sorted(tick for tick in self._due if tick <= now)
        due = [tick for tick in passed if tick in self._due]
        self._turned = now  # before the calls: what they add must not come into a tick that is being served
        # A call may have cancelled all that a later one of these ticks had: then that is gone.
        return sum(self._serve(ticket) for tick in due for ticket in self._due.pop(tick, {}))

    def __len__(self) -> int:
        """Calls that are to come."""
        return sum(len(tickets) for tickets in self._due.values())

    def _serve(self, ticket: Ticket) -> int:
        """Make one call, unless it was cancelled; enter a periodic one again. 1 when a call was made, else 0."""
        callback = ticket._callback  # noqa: SLF001 - a ticket is a part of its wheel
        if callback is None:
            return 0
        try:
            callback()
        except Exception:
            log.error("timer_call_failed", exc_info=True)
        # The next multiple of the period after now: what was missed is left out, the phase stays.
        if ticket._period and ticket._callback is not None:  # noqa: SLF001
            behind = max(self._now() - ticket._due, 0.0)  # noqa: SLF001
            next_due = ticket._due + ticket._period * max(math.ceil(behind / ticket._period), 1)  # noqa: SLF001
            self._insert(ticket, next_due)
        return 1

    def _insert(self, ticket: Ticket, due: float) -> Ticket:
        """Enter a ticket that is due at `due`, in ticks, and wake `run` if it waits for one; returns the ticket."""
        ticket._due = due  # noqa: SLF001
        # Rounded up: never early. At the earliest the next tick: one that has been served is not looked at again.
        ticket._tick = tick = max(math.ceil(due), self._turned + 1)  # noqa: SLF001
        self._due.setdefault(tick, {})[ticket] = None
        self._wanted.set()
        return ticket

    def _now(self) -> float:
        """The monotonic time in ticks of TICK_S seconds."""
        return self._clock.monotonic_s() / TICK_S
