"""Queue of audit events whose callers do not wait for the commit; a full disk does not lose them.

They are written in order, from the reserve if need be, and kept in memory until that works. Memory is bounded: past
`MAX` the newer ones are only counted, and the count is recorded when the ledger can be written again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latticed.kit import clock, logs
from latticed.model.audit import DAEMON, Event
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.ledger.transaction import Transaction
    from latticed.ledger.writer import LedgerWriter

# Bounds memory while the disk is full for hours; beyond it only a count is kept.
MAX: Final = 10_000
# Small enough for one transaction from the reserve, which holds about 2,000 decisions.
BATCH: Final = 500
# How long a refused batch waits: a full disk does not get free by trying more often.
AGAIN_S: Final = 1.0
# In microseconds: below a second the chain's own `ts` says well enough when it happened.
_LATE_US: Final = 1_000_000

log = logs.get_logger()


class DeferredEvents:
    """A queue of events that wait for the writer. Used on the event loop's thread only."""

    def __init__(self, writer: LedgerWriter, now: clock.Clock) -> None:
        self._writer = writer
        self._now = now
        self._events: deque[tuple[int, Event]] = deque()
        self._lost = 0
        self._refused = False
        self._wake = asyncio.Event()
        # The batch handed to the writer: its future, and how many events and lost ones are in it.
        self._writing: tuple[asyncio.Future[None], int, int] | None = None

    @property
    def waiting(self) -> int:
        """Number of events not recorded yet, including those that are only counted."""
        return len(self._events) + self._lost

    @property
    def refused(self) -> int:
        """Number of waiting events while the ledger refuses writes; 0 while it takes them."""
        return self.waiting if self._refused else 0

    def put(self, event: Event) -> None:
        """Queue `event`; never blocks, never fails."""
        if len(self._events) < MAX:
            # With the time it happened: `ts` of the chain is that of the commit, which may be hours later.
            self._events.append((self._now.wall_us(), event))
        else:
            self._lost += 1
        self._wake.set()

    async def run(self) -> None:
        """Write queued events until cancelled, and try again every `AGAIN_S` while the ledger refuses them."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not await self.flush():
                await asyncio.sleep(AGAIN_S)
                # What was refused is still queued, and no `put` may ever come to wake this again.
                self._wake.set()

    async def flush(self) -> bool:
        """Write all queued events; False when the ledger cannot be written, and what is left stays queued."""
        while self._writing is not None or self._events or self._lost:
            try:
                # A submitted batch is remembered: submitting its events again would record them twice.
                future, count, lost = self._writing = self._writing or self._submit()
            except Problem:  # closed
                return False
            # `wait` does not cancel the future when this task is cancelled; `await future` would.
            await asyncio.wait([future])  # cancelled here, it goes on, and the next flush learns what came of it
            self._writing = None
            if (error := future.exception()) is not None:
                self._refused = True
                log.warning("events_wait_to_be_recorded", count=self.waiting, error=str(error))
                return False
            self._refused = False
            # Removed only after the commit; newer events stand behind them, so the first `count` are those.
            for _ in range(count):
                self._events.popleft()
            # Subtracted, not set to 0: more may have been lost since the batch was made.
            self._lost -= lost
        return True

    def _submit(self) -> tuple[asyncio.Future[None], int, int]:
        """Hand the oldest `BATCH` events, and the count of lost ones, to the writer: (future, events, lost)."""
        # The count of lost events is fixed here: those lost from now on go into the next batch.
        now_us, lost = self._now.wall_us(), self._lost
        events = [_dated(event, at_us, now_us) for at_us, event in itertools.islice(self._events, BATCH)]

        def change(tx: Transaction) -> None:
            for event in events:
                tx.append_audit(event)
            if lost:
                tx.append_audit(_count(lost))

        # Essential: on a full disk these are written from the reserve.
        return self._writer.submit(change, essential=True), len(events), lost


def _dated(event: Event, at_us: int, now_us: int) -> Event:
    """The event with `at`, the time it happened, if it is recorded more than a second later."""
    if now_us - at_us < _LATE_US:
        return event
    # `at` first: recording caps the number of entries from the end.
    return replace(event, detail={"at": clock.rfc3339(at_us), **event.detail})


def _count(lost: int) -> Event:
    """The event that says how many events were lost."""
    reason = "these could not be recorded, and there were too many to remember"
    return Event(actor=str(DAEMON), action="audit.lost", target="audit", reason=reason, detail={"count": lost})
