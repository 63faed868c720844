"""One decision at a time about an id, and its way to the ledger; for operators' decisions and those of gates."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from latticed.lifecycle import recording
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from latticed.ledger import Ledger, Transaction
    from latticed.lifecycle.registry import Registry
    from latticed.lifecycle.revocations import RevocationKeeper
    from latticed.lifecycle.state import LifecycleState
    from latticed.lifecycle.write_behind import WriteBehind
    from latticed.model.audit import Event
    from latticed.model.lifecycle import Record


@dataclass(kw_only=True, eq=False)
class Turns:
    """Whoever changes a record does it within its `turn`, and puts it on disk by `write`."""

    state: LifecycleState
    registry: Registry
    write_behind: WriteBehind
    ledger: Ledger
    revocations: RevocationKeeper
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)
    """By id, and kept: there are never more than records."""

    @contextlib.asynccontextmanager
    async def turn(self, plugin_id: str) -> AsyncIterator[None]:
        """Wait for earlier decisions about a known id; changes on disk meanwhile take effect at the end (`refresh`)."""
        async with self._locks.setdefault(plugin_id, asyncio.Lock()):
            # While it is busy, the registry leaves the record alone and arms nothing.
            self.state.busy.add(plugin_id)
            cancelled = False
            try:
                yield
            except asyncio.CancelledError:
                cancelled = True
                raise
            finally:
                # The marks are removed first: saving and `refresh` leave out an id that is marked as busy.
                self.state.busy.discard(plugin_id)
                self.state.in_handover.discard(plugin_id)
                # The end of its caller, as when the daemon stops, takes no write back: the record of which these are
                # the pairs may come onto the disk still. The next turn forgets them.
                if not cancelled:
                    self.state.being_stored.pop(plugin_id, None)
                    self.state.being_kept.pop(plugin_id, None)
                self.write_behind.wake()
                self.registry.refresh(plugin_id)

    async def write(self, record: Record, event: Event, also: Callable[[Transaction], None] | None) -> None:
        """Put a record on disk with its event and what `also` changes, then make it the current one.

        Problem ledger_unavailable: then the old record stays in force.
        """
        # Loosening goes to the floors first: a start tightens the ledger to them.
        await self.revocations.before(record)
        try:
            await self.ledger.write(recording.writing(record, event, also), durable=True)
            self.registry.put(record)
        finally:
            # Also after a failure: the floors may have been loosened for a record that was not written.
            self.write_behind.tidy()
        with contextlib.suppress(Problem):  # `write_floors` may have used the old record; tidying retries
            await self.revocations.before(record)
