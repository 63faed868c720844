"""The lifecycle as a whole: loads the records, follows the catalog, and wires the parts to their common state.

Decisions and changes on disk take effect in memory at once (`registry`); the ledger follows (`write_behind`), so that
stopping never waits for a full disk.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

from latticed.kit import logs
from latticed.kit.tasks import fenced
from latticed.ledger import records as rows
from latticed.lifecycle import presence
from latticed.lifecycle.decisions import Decisions
from latticed.lifecycle.effects import Effects
from latticed.lifecycle.pairs import Pairs
from latticed.lifecycle.registry import Registry
from latticed.lifecycle.state import LifecycleState
from latticed.lifecycle.write_behind import WriteBehind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.lifecycle.deps import LifecycleDeps
    from latticed.lifecycle.presence import Presence
    from latticed.model.lifecycle import Record
    from latticed.model.verdict import Refused
    from latticed.runners.contract import PluginToRun
    from latticed.trust.claims import IdClaim

log = logs.get_logger()


class Lifecycle:
    """An async context manager; entered once the first scan of the plugin directories is taken in."""

    def __init__(self, deps: LifecycleDeps) -> None:
        self.deps = deps
        self.state = LifecycleState()
        self.write_behind = WriteBehind(deps.ledger, deps.store, deps.revocations, self.state)
        self.registry = Registry(
            state=self.state,
            ledger=deps.ledger,
            catalog=deps.catalog,
            supervisor=deps.supervisor,
            services=deps.services,
            write_behind=self.write_behind,
            clock=deps.clock,
            defaults=deps.defaults,
        )
        effects = Effects(deps.supervisor, deps.services)
        self.pairs = Pairs(
            state=self.state,
            registry=self.registry,
            effects=effects,
            catalog=deps.catalog,
            ledger=deps.ledger,
            judge_pair=deps.judge,
            policy=deps.policy,
            refused_at_start=deps.supervisor.refused,
        )
        self.decisions = Decisions(
            state=self.state,
            registry=self.registry,
            pairs=self.pairs,
            write_behind=self.write_behind,
            effects=effects,
            ledger=deps.ledger,
            catalog=deps.catalog,
            supervisor=deps.supervisor,
            services=deps.services,
            revocations=deps.revocations,
            clock=deps.clock,
            defaults=deps.defaults,
        )
        self._scanned = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        for record in self.deps.ledger.read(rows.load_all):
            self.registry.put(after := presence.migrated(record))
            if after is not record:
                self.write_behind.save(record.id)
        self.deps.services.permissions.complete = True
        await self.pairs.judge_all()
        self.pairs.start()
        self._following = fenced(
            self._follow_catalog(), lambda error: log.critical("lifecycle_failed", error=repr(error)), name="lifecycle"
        )
        scanned = asyncio.ensure_future(self._scanned.wait())
        await asyncio.wait({scanned, self._following}, return_when=asyncio.FIRST_COMPLETED)
        scanned.cancel()
        self.write_behind.tidy()
        return self

    async def __aexit__(self, *_: object) -> None:
        # First: a refresh while closing must not arm or disarm anything any more.
        self.registry.closed = True
        await self.pairs.close()
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self.write_behind.close()

    @property
    def alive(self) -> bool:
        """Whether the catalog's changes are still being followed."""
        return self._following is not None and not self._following.done()

    async def _follow_catalog(self) -> None:
        async for batch in self.deps.catalog.changes():
            # Bundles that vanished while no daemon ran are in no batch: the first scan touches every record.
            touched = set() if self._scanned.is_set() else set(self.state.records)
            for plugin_id in self.registry.take(batch, touched):
                if self.state.presence(plugin_id).stored is not None or self.pairs.resigned(plugin_id):
                    self.pairs.mend_soon(plugin_id)
            if not self._scanned.is_set():
                await self.write_behind.flush()
                self.pairs.scanned = True
                self._scanned.set()

    async def policy_changed(self) -> None:
        """Judge every bundle and every stored pair again, and record new revocations."""
        self.deps.catalog.rescan()
        await self.pairs.policy_changed()
        await self.deps.revocations.remember()
        self.write_behind.tidy()

    # Queries of the control API.

    @property
    def records(self) -> Mapping[str, Record]:
        return self.state.records

    @property
    def plugins(self) -> Mapping[str, PluginToRun]:
        return self.state.plugins

    def known(self) -> list[Record]:
        """See `LifecycleState.known`."""
        return self.state.known()

    def presence(self, plugin_id: str) -> Presence:
        """See `LifecycleState.presence`."""
        return self.state.presence(plugin_id)

    def critical(self) -> list[Record]:
        """See `Registry.critical`."""
        return self.registry.critical()

    def rejected(self) -> dict[str, Refused]:
        """See `Registry.rejected`."""
        return self.registry.rejected()

    def claimant(self, plugin_id: str, publisher: str) -> IdClaim | None:
        """See `Registry.claimant`."""
        return self.registry.claimant(plugin_id, publisher)
