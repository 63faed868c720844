"""The queue of notifications: many senders, one deliverer, at-least-once delivery.

The deliverer takes due items (`next` waits for one, `take` does not) and reports each outcome: `done`, `retry` or
`fail`. An item without a report is queued again after `LEASE_S`, and at the next start, so a notification may be
delivered twice, with the same id.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Final, Literal, Self

from latticed.kit import logs, text
from latticed.ledger import notification_upkeep as upkeep
from latticed.ledger import notifications as rows
from latticed.model import restart
from latticed.model.audit import DAEMON, Event
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger, Transaction
    from latticed.ledger.notifications import Item, NotificationRow, QueuedNotification, Status
    from latticed.settings import NotifySettings

LEASE_S: Final = 600.0
"""Seconds for a delivery; an item without a report by then is queued again."""
SWEEP_S: Final = 60.0
"""Seconds between sweeps (`NotificationQueue.sweep`). Waiting time is counted by them, so it is exact to about this."""
FAULT_PAUSE_S: Final = 5.0
"""Seconds until a waiting deliverer tries again while the ledger cannot be written."""
MAX_PAUSE_S: Final = 30.0
"""The longest sleep of a waiting deliverer; bounded since due times are wall clock, which may be set meanwhile."""
DAY_S: Final = 86_400
REASON_CHARACTERS: Final = 500
"""Reasons of failed attempts may contain text of the receiver; they are stored and shown."""

log = logs.get_logger()


class NotificationQueue:
    """An async context manager: on entry, items that the previous process was delivering are queued again.

    `may(plugin_id)`: whether a plugin's notifications may be delivered now; otherwise they wait. `roll` gives a random
    number in [0, 1) for the backoff.

    For any number of senders, but one deliverer. Methods that write raise Problem ledger_unavailable when the disk does
    not take it, unless they say otherwise.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Clock,
        settings: NotifySettings,
        may: Callable[[str], bool] = lambda _: True,
        roll: Callable[[], float] = random.random,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self.settings = settings
        self._may = may
        self._roll = roll
        self._changed = asyncio.Event()
        self._taken: dict[str, float] = {}  # id: monotonic seconds at which its lease began
        self._swept_s = clock.monotonic_s()
        self._upkeep: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        counts = await self._ledger.read_slow(upkeep.counts)
        if counts["delivering"]:
            try:
                # Before anything can be taken: no report will come on what is `delivering` now.
                log.info("notifications_requeued", count=await self._ledger.write(rows.recover))
            except Problem as problem:  # the disk is full or failing: the next start does it
                log.error("notifications_not_requeued", code=problem.code, reason=problem.reason)
        self._upkeep = asyncio.create_task(self._sweep_regularly(), name="notification upkeep")
        return self

    async def __aexit__(self, *_: object) -> None:
        # Before the last sweep, which must not overlap with a regular one.
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.gather(self._upkeep, return_exceptions=True)
        # Counts the waiting time since the last sweep; otherwise each restart would lose up to SWEEP_S of it.
        with contextlib.suppress(Problem):  # the disk is full or failing: only waiting times are lost
            await self.sweep()

    # Senders.

    async def accept(self, plugin_id: str, message: NotificationRow) -> QueuedNotification:
        """Queue a message; it is on disk (fsynced) when this returns. The result has the id under which it is
        delivered.

        Problems: quota_exceeded, ledger_unavailable.
        """
        accepted = await self._ledger.write(lambda tx: self.accept_in(tx, plugin_id, message), durable=True)
        self.wake()
        return accepted

    def accept_in(self, tx: Transaction, plugin_id: str, message: NotificationRow) -> QueuedNotification:
        """As `accept`, within a durable transaction of the caller, who calls `wake` after the commit: so a message and
        what it is about are stored together or not at all.
        """
        return rows.accept(tx, plugin_id, message, self._quota(), now_us=self._clock.wall_us())

    def wake(self) -> None:
        """Have a waiting deliverer look for due items now, instead of after its pause."""
        self._changed.set()

    # The deliverer.

    async def next(self, *, ready: Callable[[], object] = lambda: True) -> Item | None:
        """The next item, once one is due, now `delivering`; None when there may be one while not `ready`. While the
        ledger cannot be written it waits, and raises nothing.
        """
        while ready():
            # Cleared before looking, not after: a `wake` in between then ends the wait below at once.
            self._changed.clear()
            # Problem: the ledger cannot be written. The item stays queued, and is tried again after the pause.
            pause_s = FAULT_PAUSE_S
            with contextlib.suppress(Problem):
                if (item := await self.take()) is not None:
                    return item
                pause_s = self._pause_s()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
        return None

    async def take(self) -> Item | None:
        """An item that is due, now `delivering`, with this attempt counted; None if none is due. Plugins take turns."""
        now_us, resting = self._clock.wall_us(), self._resting()
        # Looked up first: a read is cheap, while every write costs a transaction of the one writer.
        due = self._ledger.read(lambda db: rows.next_due(db, now_us=now_us, resting=resting))
        if due is None or due > now_us:
            return None
        item = await self._ledger.write(lambda tx: rows.take(tx, now_us=now_us, resting=resting))
        if item is not None:
            # After the commit: cancelled in between, the row is `delivering` without a lease here; `_lost` gives it
            # one.
            self._taken[item.id] = self._clock.monotonic_s()
        return item

    async def take_more(self, most: int) -> list[Item]:
        """Further items that are due, as `take`, in one transaction."""
        now_us, resting = self._clock.wall_us(), self._resting()

        def change(tx: Transaction) -> list[Item]:
            found: list[Item] = []
            while len(found) < most and (item := rows.take(tx, now_us=now_us, resting=resting)) is not None:
                found.append(item)
            return found

        due = self._ledger.read(lambda db: rows.next_due(db, now_us=now_us, resting=resting))
        items = [] if due is None or due > now_us else await self._ledger.write(change)
        self._taken |= dict.fromkeys((item.id for item in items), self._clock.monotonic_s())
        return items

    async def hand_over(self, items: Iterable[Item], change: Callable[[Transaction], object]) -> None:
        """Have `change` hand taken items over to channels: from then on they wait for these, without a lease."""
        await self._ledger.write(change)
        for item in items:
            self._taken.pop(item.id, None)

    async def done(self, item_id: str) -> bool:
        """Record a delivery, and erase the body; False when the item has ended before, or is unknown."""
        now_us = self._clock.wall_us()
        # Not fsynced: after a power cut the item may be delivered once more, with the same id.
        ended = await self._ledger.write(lambda tx: rows.finish(tx, item_id, "done", now_us=now_us))
        # After the commit: if the write fails, the lease goes on, and the item is queued again when it ends.
        self._taken.pop(item_id, None)
        return ended

    async def retry(
        self, item: Item, *, code: str, reason: str = "", retry_after_s: float | None = None
    ) -> Literal["queued", "failed"]:
        """Record a failed attempt: queue the item again after a backoff, or fail it. Returns which of both was done.

        `code` and `reason` say why the attempt failed. The pause is at least `retry_after_s` (what the receiver asked
        for) and at most `rows.LONGEST_WAIT_US`. The item fails after `notify.give_up_days` of waiting, counted in
        uptime of the daemon.
        """
        settings, reason = self.settings, text.sanitise(reason, REASON_CHARACTERS)
        # A Retry-After can only lengthen the pause.
        delay_s = max(self._backoff_s(item.attempts), retry_after_s or 0.0)
        limit_s = settings.give_up_days * DAY_S
        now_us = self._clock.wall_us()
        next_at = now_us + min(round(delay_s * 1_000_000), rows.LONGEST_WAIT_US)

        def change(tx: Transaction) -> Literal["queued", "failed"]:
            # Judged within the transaction: a sweep may have aged the item since it was taken.
            if rows.waited_s(tx, item.id) < limit_s:
                rows.put_back(tx, item.id, next_at=next_at, now_us=now_us, code=code, reason=reason)
                return "queued"
            # False when an operator has pruned it meanwhile, or its lease ended and another attempt delivered it.
            if rows.finish(tx, item.id, "failed", now_us=now_us, code=code, reason=reason):
                tx.append_audit(_failed_event(item, code, reason))
            return "failed"

        outcome = await self._ledger.write(change)
        self._taken.pop(item.id, None)
        self.wake()
        return outcome

    async def fail(self, item: Item, *, code: str, reason: str = "") -> bool:
        """Record a permanent failure, with an audit event; False when the item has ended before."""
        now_us, reason = self._clock.wall_us(), text.sanitise(reason, REASON_CHARACTERS)

        def change(tx: Transaction) -> bool:
            ended = rows.finish(tx, item.id, "failed", now_us=now_us, code=code, reason=reason)
            if ended:
                tx.append_audit(_failed_event(item, code, reason))
            return ended

        ended = await self._ledger.write(change)
        self._taken.pop(item.id, None)
        return ended

    # Operators.

    async def page(
        self,
        *,
        statuses: Collection[Status] = (),
        plugin_id: str | None = None,
        before_seq: int = 0,
        limit: int = 100,
    ) -> list[Item]:
        """At most `limit` items, newest first, of `statuses` (empty: of any) and of one plugin or all.

        For the next page, pass the last `seq` as `before_seq`.
        """
        return await self._ledger.read_slow(
            lambda db: upkeep.page(db, statuses=statuses, plugin_id=plugin_id, before_seq=before_seq, limit=limit)
        )

    async def counts(self) -> dict[Status, int]:
        """The number of items by status, each status included."""
        return await self._ledger.read_slow(upkeep.counts)

    async def reopen(self, item_id: str) -> bool:
        """Queue a failed item again, with a new time to wait; False when no failed item has that id. Problem
        quota_exceeded.
        """
        now_us = self._clock.wall_us()
        change = await self._ledger.write(
            lambda tx: rows.reopen(tx, item_id, self._quota(), now_us=now_us), durable=True
        )
        self.wake()
        return change

    async def prune(
        self,
        *,
        statuses: Collection[Status] = upkeep.FINISHED,
        plugin_id: str | None = None,
        before_us: int = 0,
    ) -> int:
        """Remove items of these statuses (by default ended ones), of one plugin or all, that were last changed before
        `before_us` (wall clock in µs, 0: all of them). Returns how many. Queued ones are lost.
        """
        return await self._ledger.write(
            lambda tx: upkeep.prune(tx, statuses=statuses, plugin_id=plugin_id, before_us=before_us), durable=True
        )

    # Upkeep.

    async def sweep(self) -> None:
        """Count uptime towards waiting items, fail those too old, queue lost ones again, apply retention; one
        transaction.

        Called every SWEEP_S and when the daemon ends.
        """
        settings, now_us, now_s = self.settings, self._clock.wall_us(), self._clock.monotonic_s()
        # Whole seconds, as rows count them; the rest stays in `_swept_s` for the next sweep. Monotonic, so that setting
        # the wall clock expires nothing.
        passed_s = int(now_s - self._swept_s)
        lost = self._lost(now_s)

        def change(tx: Transaction) -> None:
            upkeep.age(tx, passed_s)
            for plugin_id, count in upkeep.give_up(tx, settings.give_up_days * DAY_S, now_us=now_us).items():
                tx.append_audit(_gave_up_event(plugin_id, count))
            for item_id in lost:
                rows.put_back(tx, item_id, next_at=now_us, now_us=now_us, code="lost", reason="no answer")
            before_us, most = now_us - settings.keep_days * DAY_S * 1_000_000, settings.keep_items
            # Room for some more at once: it sorts all of them, 0.1 s for 10,000, in which nothing else is recorded.
            upkeep.retain(tx, before_us=before_us, most=most, room=most // 20)

        await self._ledger.write(change)
        # Only once it is committed: after a failed write, the next sweep counts these seconds, too.
        self._swept_s += passed_s
        for item_id in lost:
            self._taken.pop(item_id, None)
        if lost:
            self.wake()

    def _lost(self, now_s: float) -> list[str]:
        """Ids of items whose lease has ended: no report came within LEASE_S.

        One whose `take` was cancelled is not in `_taken`: its lease begins now. Items that have ended are dropped from
        it.
        """
        delivering = self._ledger.read(rows.delivering)
        self._taken = {item_id: self._taken.get(item_id, now_s) for item_id in delivering}
        return [item_id for item_id, taken_s in self._taken.items() if now_s - taken_s >= LEASE_S]

    async def _sweep_regularly(self) -> None:
        """Sweep until cancelled; a failing disk does not end it."""
        while True:
            await asyncio.sleep(SWEEP_S)
            with contextlib.suppress(Problem):  # the disk is full or failing: writers get the error
                await self.sweep()

    def _pause_s(self) -> float:
        """Seconds until the next item is due, at most MAX_PAUSE_S."""
        now_us, resting = self._clock.wall_us(), self._resting()
        due = self._ledger.read(lambda db: rows.next_due(db, now_us=now_us, resting=resting))
        # At least 50 ms: an item that is due but cannot be taken must not make the deliverer spin.
        return MAX_PAUSE_S if due is None else min(max((due - now_us) / 1_000_000, 0.05), MAX_PAUSE_S)

    def _resting(self) -> frozenset[str]:
        """The plugins whose notifications may not be delivered now."""
        return frozenset(one for one in self._ledger.read(rows.senders) if not self._may(one))

    def _backoff_s(self, attempts: int) -> float:
        """The pause before the next attempt, in seconds, after so many `attempts` that failed."""
        settings = self.settings
        backoff = restart.Backoff(base_s=settings.backoff_base_s, ceiling_s=settings.backoff_ceiling_s)
        return backoff.delay_s(attempts, self._roll())

    def _quota(self) -> rows.NotificationQuota:
        """The limits of the settings, as the ledger takes them."""
        settings = self.settings
        return rows.NotificationQuota(
            items=settings.plugin_items,
            total_bytes=settings.plugin_bytes,
            all_items=settings.total_items,
            all_bytes=settings.total_bytes,
        )


def _failed_event(item: Item, code: str, reason: str) -> Event:
    """The audit event of one item that failed."""
    detail: dict[str, str | int | bool] = {"plugin": item.plugin_id, "event": item.event, "attempts": item.attempts}
    return Event(actor=str(DAEMON), action="notify.failed", target=item.id, code=code, reason=reason, detail=detail)


def _gave_up_event(plugin_id: str, count: int) -> Event:
    """The audit event for `count` items of one plugin that waited too long: one for all, as there may be thousands."""
    detail: dict[str, str | int | bool] = {"plugin": plugin_id, "count": count}
    return Event(actor=str(DAEMON), action="notify.failed", target=plugin_id, code="gave_up", detail=detail)
