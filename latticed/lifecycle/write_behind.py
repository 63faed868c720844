"""Writes to the ledger what has already taken effect: records that follow the disk, stops, floors.

Failed writes are retried every AGAIN_S.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from latticed.kit import logs
from latticed.kit.tasks import fenced
from latticed.ledger import records as rows

if TYPE_CHECKING:
    from latticed.catalog.store import Store
    from latticed.ledger import Ledger, Transaction
    from latticed.lifecycle.revocations import RevocationKeeper
    from latticed.lifecycle.state import LifecycleState
    from latticed.model.audit import Event

AGAIN_S: Final = 1.0
"""Pause after a failed write, in seconds: a full disk or a busy one needs time, and each failure is logged."""
TIDY_S: Final = 0.5
"""Delay of tidying, in seconds: a batch of decisions is followed by one run instead of one for each."""

log = logs.get_logger()


class WriteBehind:
    """Writes records to the ledger in the background, each as it is when written, after `save(plugin_id)`.

    Failed writes are retried. A plugin with a decision under way (`state.busy`) is written after the decision ends
    (`wake`).
    """

    def __init__(self, ledger: Ledger, store: Store, revocations: RevocationKeeper, state: LifecycleState) -> None:
        self._ledger = ledger
        self._store = store
        self._revocations = revocations
        self._state = state
        self._unsaved: set[str] = set()
        self._pending_events: list[Event] = []
        self._needs_tidying = False
        self._closed = False
        self._saving: asyncio.Task[None] | None = None
        self._tidying: asyncio.Task[None] | None = None
        self.refused = 0
        """How many records the last write could not save."""
        self.unrecorded: set[str] = set()
        """Plugins that were stopped by a decision which the ledger did not take so far."""

    def save(self, plugin_id: str, event: Event | None = None) -> None:
        """Have the record of `plugin_id` written soon, with the event that explains its change.

        Returns at once. What is written is the record as it is then, so several calls may end in one write.
        """
        self._unsaved.add(plugin_id)
        if event is not None:
            self._pending_events.append(event)
        self.wake()

    def wake(self) -> None:
        """Resume saving, if there is anything to save: an id is no longer busy."""
        if self._unsaved and (self._saving is None or self._saving.done()):
            self._saving = fenced(self._save(), lambda e: log.error("saver_failed", error=repr(e)), name="record saver")

    def tidy(self) -> None:
        """Have floors written and unused stored pairs removed soon; many calls give one run."""
        self._needs_tidying = True
        if self._tidying is None or self._tidying.done():
            self._tidying = fenced(self._tidy(), lambda e: log.error("tidying_failed", error=repr(e)), name="tidying")

    async def flush(self) -> bool:
        """Write what is pending now; False when that failed: then it stays pending and is retried.

        Records of busy ids are left out; `wake` has them written when the decision has ended.
        """
        ids = self._unsaved.difference(self._state.busy)
        pending = [self._state.records[plugin_id] for plugin_id in ids]
        if not pending:
            return True
        events, self._pending_events = (
            self._pending_events,
            [],
        )  # taken, so that a concurrent flush does not write them too

        def change(tx: Transaction) -> None:
            for record in pending:
                rows.put(tx, record)
            for event in events:
                tx.append_audit(event)

        # Before the wait: a change that comes while this is written marks its id again, and is not lost.
        self._unsaved -= ids
        written = False
        try:
            await self._ledger.write(change)
            written = True
        # Also what is no Problem: the finally below keeps the records, and the saver must go on.
        except Exception as error:  # noqa: BLE001 - any failure is retried
            log.error("records_not_saved", records=len(pending), error=str(error))
        finally:
            if not written:  # also when cancelled: a duplicate is better than a loss
                self._unsaved |= ids
                self._pending_events[:0] = events
                if not self._closed:  # the saver may have ended while nothing was pending
                    self.wake()
        if written:
            self.unrecorded -= ids
        self.refused = 0 if written else len(pending)
        return written

    async def close(self) -> None:
        """Stop the tasks, then write what is pending and the floors, each once; a failure is logged."""
        self._closed = True
        running = [task for task in (self._saving, self._tidying) if task is not None and not task.done()]
        for task in running:
            task.cancel()
        # Their cancellation puts back what they were writing (`flush`); only then the last flush.
        await asyncio.gather(*running, return_exceptions=True)
        await self.flush()
        if self._needs_tidying:
            await self._put_in_order()
        else:  # the newest head in the floors lets the next start detect a rollback
            await self._revocations.write_floors(self._state.records.values())

    async def _save(self) -> None:
        """Write until only records of busy plugins are left; after a failure again, AGAIN_S seconds later."""
        while self._unsaved.difference(self._state.busy):
            if not await self.flush():
                await asyncio.sleep(AGAIN_S)

    async def _tidy(self) -> None:
        """Write floors and remove unused pairs, after TIDY_S seconds; after a failure again, AGAIN_S seconds later."""
        while self._needs_tidying:
            await asyncio.sleep(TIDY_S)
            await self._put_in_order()
            if self._needs_tidying:
                await asyncio.sleep(AGAIN_S)

    async def _put_in_order(self) -> None:
        """Remove unused pairs from the store and write the floors; what fails leaves `_needs_tidying` set."""
        # Reset first: a call of `tidy` while this waits asks for another run.
        self._needs_tidying = False
        # In the step that reads what is in use: `collect` spares what is kept from here on.
        self._store.mark()
        in_use = self._state.in_use()
        try:
            await asyncio.to_thread(self._store.collect, in_use)
        except OSError as error:
            log.error("store_not_tidied", error=error.strerror or str(error))
            self._needs_tidying = True
        # The records as they are by now: a grant may have been answered meanwhile.
        written = await self._revocations.write_floors(self._state.records.values())
        self._needs_tidying = not written or self._needs_tidying
