"""Common base of the keepers of monitors and DNS records: short runs, due by a timer wheel, few at a time.

An item is scheduled (`_schedule`), then due (`_due`), queued (`_enqueue`), run (`_run`) and ended (`_ended`), where the
subclass schedules it again.
"""

from __future__ import annotations

import abc
import asyncio
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from latticed.host.fair_queue import FairQueue
from latticed.host.keeper import Keeper
from latticed.kit import logs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from latticed.kit.wheel import Ticket, Wheel
    from latticed.ledger import Ledger, Transaction
    from latticed.model.egress import EgressRights

AGAIN_S: Final = 10.0
"""Seconds until an item is due again after an unexpected error."""

log = logs.get_logger()


@dataclass(slots=True, kw_only=True, eq=False)
class ScheduledItem(abc.ABC):
    """What a subclass keeps of one row. `key`: that of its row. `ticket`: its timer. `task`: its run.

    `busy`: queued or running. `gone`: deleted or replaced, so that no run of it may start.
    """

    key: int
    plugin_id: str
    name: str
    ticket: Ticket | None = None
    task: asyncio.Task[None] | None = None
    busy: bool = False
    gone: bool = False

    @property
    @abc.abstractmethod
    def slow(self) -> bool:
        """Whether its next run is expected to take long, as it never ran, timed out or failed; see `FairQueue`."""


Scheduled = TypeVar("Scheduled", bound=ScheduledItem)


class ScheduledKeeper(Keeper[Scheduled]):
    """Keeps items that are run again and again, each for a short time.

    `rights(plugin_id)`: where a plugin may connect to, None while it may not act: then nothing is run for it. At most
    `total` runs at a time, `per_plugin` of one plugin; see `FairQueue`.
    """

    def __init__(
        self,
        ledger: Ledger,
        kind: str,
        *,
        wheel: Wheel,
        rights: Callable[[str], EgressRights | None],
        total: int,
        per_plugin: int,
        delete_row: Callable[..., bool],
        delete_rows: Callable[[Transaction, str], int],
    ) -> None:
        super().__init__(ledger, kind, delete_row=delete_row, delete_rows=delete_rows)
        self._wheel = wheel
        self._rights = rights
        self._queue: FairQueue[Scheduled] = FairQueue(total=total, per_owner=per_plugin)

    def resting(self, plugin_id: str) -> bool:
        """Whether nothing is run for this plugin, as it may not act."""
        return self._rights(plugin_id) is None

    def recheck(self, plugin_id: str) -> None:
        """Cancel the runs of one plugin if it may not act; if it may, its items run when they are due."""
        # Only runs: the items stay scheduled, and each run asks for its rights again when it begins (`_guarded`).
        if self.resting(plugin_id):
            for one in self.of(plugin_id):
                if one.task is not None:
                    one.task.cancel()

    async def drained(self, plugin_id: str) -> None:
        """Return once no run is left of a plugin that may not act."""
        if self.resting(plugin_id):
            running = [one.task for one in self.of(plugin_id) if one.task is not None]
            await asyncio.gather(*running, return_exceptions=True)

    # For subclasses.

    @abc.abstractmethod
    def _due(self, one: Scheduled) -> None:
        """Called when the delay given to `_schedule` is over; calls `_enqueue` or `_schedule`."""

    @abc.abstractmethod
    async def _run(self, one: Scheduled, rights: EgressRights) -> None:
        """Do one run of the item under `rights`; the caller logs what it raises."""

    def _ended(self, one: Scheduled) -> None:
        """Called after a run has ended or was cancelled, unless the item is gone."""

    def _schedule(self, one: Scheduled, after_s: float) -> None:
        """Call `_due` for this item after `after_s` seconds, at most a tick of the wheel late."""
        one.ticket = self._wheel.add(after_s, functools.partial(self._fenced, one, self._due))

    def _fenced(self, one: Scheduled, step: Callable[[Scheduled], None]) -> None:
        """Call `_due` or `_ended`. One that raises (no descriptor left, say) is logged and due again in AGAIN_S.

        A ticket of the wheel fires once, and each step schedules the next: without this the item would never run again.
        """
        try:
            step(one)
        except Exception:
            event = f"{self._kind}_failed"
            log.error(event, plugin_id=one.plugin_id, name=one.name, exc_info=True)
            if not one.gone and not one.busy:
                self._schedule(one, AGAIN_S)

    def _enqueue(self, one: Scheduled) -> None:
        """Queue one run of the item, and start it if there is a free slot."""
        one.busy = True
        self._queue.push(one.plugin_id, one, slow=one.slow)
        self._start()

    async def _stop(self, items: Iterable[Scheduled]) -> None:
        """Cancel timers and runs of these items, and return once the runs have ended; `_start` drops queued ones."""
        running = []
        for one in items:
            one.gone = True
            if one.ticket is not None:
                # A cancelled ticket calls nothing, so no recheck of this item is queued from here on.
                one.ticket.cancel()
            if one.task is not None:
                one.task.cancel()
                running.append(one.task)
        await asyncio.gather(*running, return_exceptions=True)

    # Runs.

    def _start(self) -> None:
        """Start queued runs while there are free slots."""
        while (found := self._queue.pop()) is not None:
            one, slow = found
            # Stopped while it was queued: no task was ever made, so no callback of one frees the slot.
            if one.gone:
                one.busy = False
                self._queue.release(one.plugin_id, slow=slow)
                continue
            one.task = asyncio.create_task(self._guarded(one), name=f"{self._kind} {one.plugin_id}/{one.name}")
            # A callback, not a `finally` in the task: a task cancelled before its first step runs none of its code.
            one.task.add_done_callback(functools.partial(self._release, one, slow=slow))

    def _release(self, one: Scheduled, _: asyncio.Task[None], *, slow: bool) -> None:
        """Called when a run has ended, whatever its end: frees the slot and starts the next run."""
        one.busy, one.task = False, None
        # `slow` as it was when queued: `one.slow` may have changed by the run, and would free a slot of the other lane.
        self._queue.release(one.plugin_id, slow=slow)
        # `_stop` and `put` decide about an item that was deleted or replaced; rescheduling it here would run it again.
        if not one.gone:
            self._fenced(one, self._ended)
        self._start()

    async def _guarded(self, one: Scheduled) -> None:
        """One run; no exception but CancelledError escapes, as nothing awaits this task."""
        try:
            rights = self._rights(one.plugin_id)  # read here: rights may have changed while it was queued
            if rights is not None:
                # Without rights the run ends here, and `_ended` schedules the next one: it is asked again then.
                await self._run(one, rights)
        except Exception:
            event = f"{self._kind}_failed"
            # A fault of latticed: expected failures are outcomes that `_run` stores.
            log.error(event, plugin_id=one.plugin_id, name=one.name, exc_info=True)
