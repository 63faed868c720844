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
from latticed.lifecycle.effect_waiter import EffectWaiter
from latticed.lifecycle.pairs import Pairs
from latticed.lifecycle.registry import Registry
from latticed.lifecycle.state import LifecycleState
from latticed.lifecycle.turns import Turns
from latticed.lifecycle.upgrades import Upgrades
from latticed.lifecycle.write_behind import WriteBehind

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from latticed.lifecycle.deps import LifecycleDeps
    from latticed.lifecycle.presence import Presence
    from latticed.model.lifecycle import Record
    from latticed.model.verdict import Refused
    from latticed.runners.contract import PluginToRun
    from latticed.trust.claims import IdClaim

log = logs.get_logger()


class Lifecycle:
    """All parts of the lifecycle on one common state.

    An async context manager; entered once the first scan of the plugin directories is taken in. Left, it stops
    following the disk and writes what is pending; stopping the plugins is up to the supervisor.
    """

    def __init__(self, deps: LifecycleDeps) -> None:
        self.deps = deps
        # All parts act on this one state, each made after those that it calls.
        self.state = LifecycleState()
        self.write_behind = WriteBehind(deps.ledger, deps.store, deps.revocations, self.state)
        # Arms and disarms plugins by what record, disk and stored pair say.
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
        effects = EffectWaiter(deps.supervisor, deps.services)
        # Judges stored pairs, and mends those that a bundle on disk can replace.
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
        turns = Turns(
            state=self.state,
            registry=self.registry,
            write_behind=self.write_behind,
            ledger=deps.ledger,
            revocations=deps.revocations,
        )
        # Watches new versions, and keeps those before them.
        self.upgrades = Upgrades(
            state=self.state,
            turns=turns,
            ledger=deps.ledger,
            supervisor=deps.supervisor,
            services=deps.services,
            judge=deps.judge,
            clock=deps.clock,
            defaults=deps.defaults,
            gate_s=deps.gate_s,
        )
        # Carries out what operators ask for.
        self.decisions = Decisions(
            state=self.state,
            registry=self.registry,
            turns=turns,
            upgrades=self.upgrades,
            pairs=self.pairs,
            write_behind=self.write_behind,
            effects=effects,
            ledger=deps.ledger,
            catalog=deps.catalog,
            supervisor=deps.supervisor,
            services=deps.services,
            configurations=deps.configurations,
            clock=deps.clock,
            defaults=deps.defaults,
        )
        self._scanned = asyncio.Event()
        self._following: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        # Records first: what they permit is known before anything of the disk is judged.
        for record in self.deps.ledger.read(rows.load_all):
            self.registry.put(after := presence.migrated(record))
            if after is not record:
                self.write_behind.save(record.id)
        # Before the first scan arms plugins: it starts those that stand by with them.
        await self.upgrades.load()
        # From now on an id without a record counts as unknown, no longer as not seen yet.
        self.deps.services.permissions.complete = True
        # Before the first scan arms plugins: it must know which stored pairs may not run.
        await self.pairs.judge_signatures()
        self.pairs.start()
        # A failure ends following, which `alive` shows: the daemon then stops.
        self._following = fenced(
            self._follow_catalog(), lambda error: log.critical("lifecycle_failed", error=repr(error)), name="lifecycle"
        )
        # Either the first scan is taken in, or following has failed: never wait for a scan that cannot come.
        scanned = asyncio.ensure_future(self._scanned.wait())
        await asyncio.wait({scanned, self._following}, return_when=asyncio.FIRST_COMPLETED)
        scanned.cancel()
        self.upgrades.start()
        # Pairs and temporary files that an earlier process left.
        self.write_behind.tidy()
        return self

    async def __aexit__(self, *_: object) -> None:
        # First: a refresh while closing must not arm or disarm anything any more.
        self.registry.closed = True
        await self.upgrades.close()
        await self.pairs.close()
        # Then the stream of changes, and last the writes: nothing can add to them any more.
        if self._following is not None:
            self._following.cancel()
            await asyncio.gather(self._following, return_exceptions=True)
        await self.write_behind.close()

    @property
    def alive(self) -> bool:
        """Whether the catalog's changes are still being followed."""
        return self._following is not None and not self._following.done()

    async def _follow_catalog(self) -> None:
        """Take in the catalog's batches; the first one ends the start, which waits for it."""
        async for batch in self.deps.catalog.changes():
            # Bundles that vanished while no daemon ran are in no batch: the first scan touches every record.
            touched = set() if self._scanned.is_set() else set(self.state.records)
            # A bundle that has come may replace a damaged pair, or bring a new signature for it.
            for ids in self.registry.take(batch, touched):
                for plugin_id in ids:
                    if self.state.presence(plugin_id).stored is not None or self.pairs.resigned(plugin_id):
                        self.pairs.mend_soon(plugin_id)
                await asyncio.sleep(0)
            if not self._scanned.is_set():
                # So that what the first scan found is on record when the daemon opens. If it fails, it is retried in
                # the background.
                await self.write_behind.flush()
                # Artifacts, which nobody executes before a decision that hashes them: the start does not wait for it.
                self.pairs.judge_rest()
                self._scanned.set()

    async def policy_changed(self) -> None:
        """Judge every bundle and every stored pair again, and record new revocations.

        On return what the new policy refuses is stopped (waited for at most `effects.SETTLE_S`); hashing goes on in the
        background.
        """
        # First, whether there is a version to go back to: a gate must know when the one on trial is stopped.
        await self.upgrades.policy_changed()
        # Only starts the scan. Stopping comes next, recording last: a full disk must not delay a stop.
        self.deps.catalog.rescan()
        await self.pairs.policy_changed()
        await self.deps.revocations.remember()
        self.write_behind.tidy()

    # Queries of the control API.

    @property
    def records(self) -> Mapping[str, Record]:
        """Every record by id, tombstones too."""
        return self.state.records

    @property
    def active(self) -> Collection[str]:
        """The ids of the records whose status is active."""
        return self.state.active

    @property
    def plugins(self) -> Mapping[str, PluginToRun]:
        """What the supervisor runs of each accepted plugin, by id."""
        return self.state.plugins

    def known(self) -> list[Record]:
        """Every record that is not a tombstone, sorted by id."""
        return self.state.known()

    def presence(self, plugin_id: str) -> Presence:
        """What the disk says of an id right now."""
        return self.state.presence(plugin_id)

    def critical(self) -> list[Record]:
        """Active plugins whose manifest says `critical`."""
        return self.registry.critical()

    def rejected(self) -> dict[str, Refused]:
        """Every bundle on disk that may not run, by name, with why."""
        return self.registry.rejected()

    def claimant(self, plugin_id: str, publisher: str) -> IdClaim | None:
        """The one bundle by which another publisher could take over the id (`Registry.claimant`)."""
        return self.registry.claimant(plugin_id, publisher)
