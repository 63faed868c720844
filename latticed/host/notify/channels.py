"""The channels of queued notifications: what waits for which one, when, and how each of them fares.

The queue (`keeper`) has items; here is one row for each item and channel. A deliverer takes a message of a channel,
has it sent and reports the outcome; channels do not wait for each other. What is taken and never reported is taken
again at the next start, with the same id.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Literal

from latticed.host.notify import rules
from latticed.kit import logs, text
from latticed.ledger import audit, deliveries, notifications
from latticed.model import restart
from latticed.model.audit import DAEMON, Event
from latticed.model.chain import DECISIONS, Position
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from latticed.host.notify.keeper import NotificationQueue
    from latticed.host.notify.rules import Outcome
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger, Transaction
    from latticed.ledger.deliveries import ChannelView, DeliveryRow, Message, Planned
    from latticed.ledger.notifications import Item, NotificationRow

TOGETHER: Final = 100
"""Most items of one message."""
PAGE: Final = 200
"""Audit events that are looked at in one transaction."""
DAY_US: Final = 86_400 * 1_000_000
REASON_CHARACTERS: Final = 300

log = logs.get_logger()


class ChannelKeeper:
    """What waits for the channels. One deliverer; methods that write raise Problem ledger_unavailable when the disk
    does not take it. `roll` gives a random number in [0, 1) for the backoff.
    """

    def __init__(
        self, ledger: Ledger, queue: NotificationQueue, *, clock: Clock, roll: Callable[[], float] = random.random
    ) -> None:
        self._ledger = ledger
        self._queue = queue
        self._clock = clock
        self._roll = roll
        self.changed = asyncio.Event()
        """Set when something may be due earlier than `due` said."""

    # The deliverer.

    async def plan(self, routed: Sequence[tuple[Item, Collection[Planned]]]) -> None:
        """Have taken items wait for their channels, in one transaction; one without a channel ends."""
        now_us = self._clock.wall_us()

        def change(tx: Transaction) -> None:
            for item, channels in routed:
                deliveries.plan(tx, item, channels, now_us=now_us)

        await self._queue.hand_over([item for item, _ in routed], change)
        self.changed.set()

    def due(self) -> list[tuple[str, float]]:
        """(channel, seconds until its next message may be sent) for each that something waits for; 0: now."""
        now_us = self._clock.wall_us()
        found = self._ledger.read(lambda db: deliveries.due(db, now_us=now_us))
        return [(name, max(at - now_us, 0) / 1_000_000) for name, at in found]

    async def take(self, channel: str) -> Message | None:
        """The next message of a channel, with this attempt counted; None when nothing is due."""
        now_us = self._clock.wall_us()
        return await self._ledger.write(lambda tx: deliveries.take(tx, channel, now_us=now_us, most=TOGETHER))

    async def report(self, message: Message, found: Outcome) -> None:
        """Record how the attempt ended, in one transaction with the channel's state and what is told of it."""
        now_us, name = self._clock.wall_us(), message.channel.name
        # The other side's words may be in them; they are kept for the channel, too.
        code, reason = text.sanitise(found.code, 64), text.sanitise(found.reason, REASON_CHARACTERS)
        found = replace(found, code=code, reason=reason)

        def change(tx: Transaction) -> bool:
            # Read again: only this deliverer changes it, but an operator's reset may have come between.
            before = deliveries.get(tx, name)
            now = rules.after(before, found, now_us=now_us, backoff_s=self._backoff_s)
            now, row = rules.told(before, now, now_us=now_us)
            deliveries.put(tx, now)
            if found.outcome == "retry":
                deliveries.put_back(tx, message, next_at=now.paused_until, code=code, reason=reason)
            else:
                state: Literal["done", "failed"] = "done" if found.outcome == "done" else "failed"
                deliveries.end(tx, message, state, now_us=now_us, code=code, reason=reason)
            if found.outcome == "fail":
                tx.append_audit(_failed(message, code, reason))
            return row is not None and bool(self._accepted(tx, row))

        # Not fsynced: after a power cut the message is sent once more, with the same id.
        if await self._ledger.write(change):
            self._queue.wake()
        self.changed.set()

    async def works(self, channel: str) -> None:
        """A channel has taken a test message: it is degraded no more, and what waits for it is sent now."""
        now_us = self._clock.wall_us()

        def change(tx: Transaction) -> None:
            found = rules.Outcome(outcome="done")
            before = deliveries.get(tx, channel)
            deliveries.put(tx, rules.after(before, found, now_us=now_us, backoff_s=self._backoff_s))
            deliveries.resume(tx, channel, now_us=now_us)

        await self._ledger.write(change)
        self.changed.set()

    async def sweep(self) -> None:
        """Give up what has waited too long or is too much, and forget channels that are used no more."""
        settings, now_us = self._queue.settings, self._clock.wall_us()

        def change(tx: Transaction) -> None:
            given_up = deliveries.give_up(tx, settings.give_up_days * 86_400, now_us=now_us)
            if given_up:
                tx.append_audit(_lost("channels", "gave_up", given_up))
            for name, count in deliveries.trim(tx, settings.total_items, now_us=now_us).items():
                tx.append_audit(_lost(name, "overflow", count))
            deliveries.tidy(tx, before_us=now_us - max(settings.keep_days, 1) * DAY_US, now_us=now_us)

        await self._ledger.write(change)

    # latticed's own events.

    async def follow(self, *, told: bool) -> None:
        """Wait for audit events, and queue a notification for those that people are told of; `told` False: for none,
        and what happens meanwhile is never told.
        """
        seq = self._ledger.read(deliveries.events_read)
        if told != (seq is not None):
            seq = self._ledger.read(audit.position).decisions if told else None
            kept = seq  # the same at a repetition of the transaction
            await self._ledger.write(lambda tx: deliveries.set_events_read(tx, kept))
        await self._ledger.wait_for_events(self._ledger.read(audit.position) if seq is None else Position(seq))
        if told and await self._ledger.write(self._read_events, durable=True):
            self._queue.wake()

    def _read_events(self, tx: Transaction) -> bool:
        """Queue notifications for the next page of events, and keep how far they were read: once each, whatever
        crashes.
        """
        seq = deliveries.events_read(tx) or 0
        found = audit.query(tx, chain=DECISIONS, after=seq, limit=PAGE)
        said = [self._accepted(tx, row) for row in map(rules.own, found) if row is not None]
        if None in said:
            # The queue is full of its own: the events themselves are on record.
            log.error("notifications_not_queued", count=said.count(None))
        if found:
            deliveries.set_events_read(tx, found[-1]["seq"])
        return True in said

    async def say(self, row: NotificationRow) -> None:
        """Queue a notification of latticed's own."""
        if await self._ledger.write(lambda tx: self._accepted(tx, row), durable=True):
            self._queue.wake()

    def _accepted(self, tx: Transaction, row: NotificationRow) -> bool | None:
        """Queue one of latticed's own; whether it is a new one, None when the queue is full."""
        try:
            return not self._queue.accept_in(tx, rules.SENDER, row).duplicate
        except Problem:
            return None

    # Operators.

    async def view(self) -> list[ChannelView]:
        """Every channel with what waits for it."""
        return await self._ledger.read_slow(deliveries.view)

    async def of_items(self, items: Collection[str]) -> dict[str, list[DeliveryRow]]:
        """How these items fare at their channels."""
        return await self._ledger.read_slow(lambda db: deliveries.of_items(db, items))

    def degraded(self) -> dict[str, str]:
        """Why each degraded channel is that, by name."""
        return self._ledger.read_kept("degraded channels", deliveries.degraded)

    def waiting(self) -> int:
        """How many notifications of all senders no channel was found for yet."""
        return self._ledger.read_kept("notifications waiting", notifications.usage)[0]

    def _backoff_s(self, failures: int) -> float:
        settings = self._queue.settings
        backoff = restart.Backoff(base_s=settings.backoff_base_s, ceiling_s=settings.backoff_ceiling_s)
        return backoff.delay_s(failures, self._roll())


def _failed(message: Message, code: str, reason: str) -> Event:
    detail: dict[str, str | int | bool] = {
        "channel": message.channel.name,
        "items": len(message.items),
        "attempts": message.attempts,
    }
    return Event(actor=str(DAEMON), action="notify.failed", target=message.id, code=code, reason=reason, detail=detail)


def _lost(name: str, code: str, count: int) -> Event:
    detail: dict[str, str | int | bool] = {"count": count}
    return Event(actor=str(DAEMON), action="notify.failed", target=name, code=code, detail=detail)
