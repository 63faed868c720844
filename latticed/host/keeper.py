"""Common base of keepers: what plugins declared once is kept in force, and stopped while it may not run.

An item is in memory as long as its row is in the ledger; its key is the plugin's id and a name (and, for a DNS record,
a type). A change completes even if its caller is cancelled, and changes of one plugin never overlap.
"""

from __future__ import annotations

import abc
import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from latticed.kit import logs
from latticed.kit.tasks import BackgroundTasks

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from latticed.ledger import Ledger, Transaction
    from latticed.ledger.ddns import DdnsRow
    from latticed.ledger.monitors import MonitorRow
    from latticed.ledger.programs import ProgramRow

T = TypeVar("T")
Item = TypeVar("Item")

log = logs.get_logger()


class Keeper(abc.ABC, Generic[Item]):
    """An async context manager; subclasses load their rows on entry and define how items are stopped.

    `kind` is the prefix of log events. `delete_row(tx, *key)` deletes one row and returns whether there was one;
    `delete_rows(tx, plugin_id)` deletes all of a plugin and returns how many.
    """

    def __init__(
        self,
        ledger: Ledger,
        kind: str,
        *,
        delete_row: Callable[..., bool],
        delete_rows: Callable[[Transaction, str], int],
    ) -> None:
        self._ledger = ledger
        self._kind = kind
        self._delete_row = delete_row
        self._delete_rows = delete_rows
        self._kept: dict[tuple[str, ...], Item] = {}
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by plugin id
        self._background = BackgroundTasks()

    async def __aexit__(self, *_: object) -> None:
        # Changes under way first: one may still add an item, which must be among those that are stopped below.
        await self._background.ended()
        await self._stop(list(self._kept.values()))
        self._kept.clear()

    def every(self) -> list[Item]:
        """All items, by plugin and name."""
        return [self._kept[key] for key in sorted(self._kept)]

    def of(self, plugin_id: str) -> list[Item]:
        """The items of one plugin, by name."""
        return [self._kept[key] for key in sorted(key for key in self._kept if key[0] == plugin_id)]

    def get(self, *key: str) -> Item | None:
        """The item with this key (plugin id, name, and the type of a DNS record), or None."""
        return self._kept.get(key)

    async def delete(self, plugin_id: str, *name: str) -> bool:
        """Stop one and delete it; False when there was none. Problem ledger_unavailable."""
        return await self._change(plugin_id, lambda: self._delete((plugin_id, *name)))

    async def forget(self, plugin_id: str) -> int:
        """Stop and delete all of one plugin; how many rows there were. Problem ledger_unavailable."""
        return await self._change(plugin_id, lambda: self._forget(plugin_id))

    async def settled(self, plugin_id: str) -> None:
        """Return once all changes of one plugin that were asked for before have ended, also those whose callers are
        gone.
        """
        await self._change(plugin_id, lambda: asyncio.sleep(0))

    # For subclasses.

    @abc.abstractmethod
    async def _stop(self, items: Iterable[Item]) -> None:
        """Stop these items. Returns once nothing runs for them; nothing is started for them afterwards."""

    async def _discard(self, items: Iterable[Item]) -> None:
        """Stop these items, and remove what they have outside the ledger."""
        await self._stop(items)

    async def _delete(self, key: tuple[str, ...]) -> bool:
        """Delete the row, then stop the item; True when there was a row."""
        # The row first: if the ledger cannot be written, the item stays in force and the caller gets the error.
        existed = await self._ledger.write(lambda tx: self._delete_row(tx, *key), durable=True)
        if (found := self._kept.pop(key, None)) is not None:
            await self._discard([found])
        return existed

    async def _forget(self, plugin_id: str) -> int:
        """Stop and remove all items of a plugin, then delete its rows; how many rows there were."""
        # Stopped first, unlike `_delete`: the plugin is being dropped, and nothing of it may run
        # even if the write fails.
        await self._discard([self._kept.pop(key) for key in list(self._kept) if key[0] == plugin_id])
        return await self._ledger.write(lambda tx: self._delete_rows(tx, plugin_id), durable=True)

    def _decoded(self, row: MonitorRow | DdnsRow | ProgramRow, decode: Callable[[str], T]) -> T | None:
        """The spec of a row; None, logged, if it does not decode (from another version); its owner can put it again."""
        try:
            return decode(row.spec)
        except msgspec.MsgspecError as error:
            event = f"{self._kind}_unreadable"
            log.error(event, plugin_id=row.plugin_id, name=row.name, reason=str(error))
            return None

    async def _change(self, plugin_id: str, change: Callable[[], Awaitable[T]]) -> T:
        """The result of `change`, run after earlier changes of this plugin; a cancelled caller does not cancel it."""

        async def in_turn() -> T:
            # asyncio.Lock serves waiters in the order in which they came, so the last change of a plugin wins.
            async with self._changing[plugin_id]:
                return await change()

        # Shielded: cancelled between the write and the change in memory, the two would differ until the next start.
        return await self._background.whole(in_turn())
