"""Writing down what has already taken effect: records that follow the disk, stops that could not wait, floors.

Whatever keeps the ledger from taking them, they are tried again until it does.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from latticed.kit import logs
from latticed.kit.tasks import fenced
from latticed.ledger import records as rows

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from latticed.catalog.store import Store
    from latticed.ledger import Ledger, Transaction
    from latticed.lifecycle.revocations import RevocationKeeper
    from latticed.model.audit import Event
    from latticed.model.lifecycle import Record

AGAIN_S: Final = 1.0
TIDY_S: Final = 0.5

log = logs.get_logger()


class WriteBehind:
    """Saves records by id as they are at that moment; ids that are `busy` with a decision wait for its end."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        revocations: RevocationKeeper,
        *,
        records: Callable[[], Collection[Record]],
        current: Callable[[str], Record],
        busy: Collection[str],
        keeping: Callable[[], Collection[str]],
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._revocations = revocations
        self._records = records
        self._current = current
        self._busy = busy
        self._keeping = keeping
        self._unsaved: set[str] = set()
        self._owed: list[Event] = []
        self._untidy = False
        self._closed = False
        self._saving: asyncio.Task[None] | None = None
        self._tidying: asyncio.Task[None] | None = None
        self.refused = 0
        """How many records the ledger did not take when they were last offered."""

    def save(self, plugin_id: str, event: Event | None = None) -> None:
        """Have a record written soon, with the event that tells why it changed."""
        self._unsaved.add(plugin_id)
        if event is not None:
            self._owed.append(event)
        self.wake()

    def wake(self) -> None:
        """Go on saving: an id is no longer busy."""
        if self._unsaved and (self._saving is None or self._saving.done()):
            self._saving = fenced(self._save(), lambda e: log.error("saver_failed", error=repr(e)), name="record saver")

    def tidy(self) -> None:
        """Have floors mirrored, and stored pairs that nobody runs from dropped, soon and once for many changes."""
        self._untidy = True
        if self._tidying is None or self._tidying.done():
            self._tidying = fenced(self._tidy(), lambda e: log.error("tidying_failed", error=repr(e)), name="tidying")

    async def flush(self) -> bool:
        """Write what has not been written; False when the ledger cannot."""
        ids = self._unsaved.difference(self._busy)
        pending = [self._current(plugin_id) for plugin_id in ids]
        if not pending:
            return True
        owed, self._owed = self._owed, []  # taken, so that a flush beside this one does not write them again

        def change(tx: Transaction) -> None:
            for record in pending:
                rows.put(tx, record)
            for event in owed:
                tx.append_audit(event)

        self._unsaved -= ids
        written = False
        try:
            await self._ledger.write(change)
            written = True
        except Exception as error:  # noqa: BLE001 - whatever kept it from being written, it is tried again
            log.error("records_not_saved", records=len(pending), error=str(error))
        finally:
            if not written:  # cancelled, too: nobody knows whether it was, and twice is better than never
                self._unsaved |= ids
                self._owed[:0] = owed
                if not self._closed:  # the saver may have found nothing to do while they were being offered
                    self.wake()
        self.refused = 0 if written else len(pending)
        return written

    async def close(self) -> None:
        """Try a last time."""
        self._closed = True
        running = [task for task in (self._saving, self._tidying) if task is not None and not task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self.flush()
        if self._untidy:
            await self._put_in_order()
        else:  # they name the newest head, by which an older ledger is known at the next start
            await self._revocations.write_floors(self._records())

    async def _save(self) -> None:
        while self._unsaved.difference(self._busy):
            if not await self.flush():
                await asyncio.sleep(AGAIN_S)

    async def _tidy(self) -> None:
        while self._untidy:
            await asyncio.sleep(TIDY_S)
            await self._put_in_order()
            if self._untidy:
                await asyncio.sleep(AGAIN_S)

    async def _put_in_order(self) -> None:
        self._untidy = False
        records = self._records()
        self._store.mark()
        in_use = {record.facts.identity for record in records if record.accepted}
        try:
            await asyncio.to_thread(self._store.collect, in_use.union(self._keeping()))
        except OSError as error:
            log.error("store_not_tidied", error=error.strerror or str(error))
            self._untidy = True
        self._untidy = not await self._revocations.write_floors(records) or self._untidy
