"""The actor of the lifecycle: reads what the catalog sees, takes what operators decide, tells the supervisor.

What runs follows the disk and the decision at once and in memory (`_follow`); what is on record follows through the
ledger (`saver`), so that stopping never waits for a disk that is full.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from latticed.host.permissions import UNKNOWN
from latticed.kit import logs
from latticed.kit.tasks import fenced
from latticed.ledger import records as rows
from latticed.lifecycle import advance, verdicts
from latticed.lifecycle import presence as sight
from latticed.lifecycle.decisions import Decisions
from latticed.lifecycle.pairs import Pairs
from latticed.lifecycle.presence import Presence
from latticed.lifecycle.refused_log import RefusedLog
from latticed.lifecycle.write_behind import WriteBehind
from latticed.model.lifecycle import Record, Status
from latticed.model.verdict import Refused, Verified
from latticed.trust import claims
from latticed.trust.claims import Claimants

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed.catalog.catalog import Sighting
    from latticed.host.permissions import PluginStanding
    from latticed.lifecycle.deps import LifecycleDeps
    from latticed.model.verdict import Verdict
    from latticed.runners.contract import PluginToRun

log = logs.get_logger()


class Lifecycle:
    """All records, and what the disk says of each. An async context manager; entered once the first scan is told."""

    def __init__(self, rooms: LifecycleDeps) -> None:
        self.rooms = rooms
        self.records: dict[str, Record] = {}
        self.plugins: dict[str, PluginToRun] = {}
        self.decide = Decisions(self)
        self.busy: set[str] = set()
        self.held: set[str] = set()
        """Ids that are coming into other hands right now: nothing is done for them."""
        self.saver = WriteBehind(
            rooms.ledger,
            rooms.store,
            rooms.revocations,
            records=self.records.values,
            current=self.records.__getitem__,
            busy=self.busy,
            keeping=self.decide.keeping,
        )
        self._found: dict[str, Verdict] = {}
        self._claimants: dict[str, Claimants] = {}  # bundles that verify, by the id they claim
        self._contested: set[str] = set()  # ids of which some claimant is refused
        self._refusals = RefusedLog(log, rooms.ledger.record_news)
        self._sources: dict[str, str] = {}
        self._critical: set[str] = set()
        self._sights: dict[str, Presence] = {}
        self.pairs = Pairs(self)
        self.closed = False
        self._told = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        for record in self.rooms.ledger.read(rows.load_all):
            self.put(after := sight.migrated(record))
            if after is not record:
                self.saver.save(record.id)
        self.rooms.services.permissions.complete = True
        await self.pairs.judge_all()
        self.pairs.open()
        self._task = fenced(
            self._observe(), lambda error: log.critical("lifecycle_failed", error=repr(error)), name="lifecycle"
        )
        told = asyncio.ensure_future(self._told.wait())
        await asyncio.wait({told, self._task}, return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        self.saver.tidy()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.closed = True
        await self.pairs.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self.saver.close()

    @property
    def told(self) -> bool:
        """Whether the first scan has been taken down."""
        return self._told.is_set()

    @property
    def alive(self) -> bool:
        """Whether what the catalog sees is still being followed."""
        return self._task is not None and not self._task.done()

    # What others ask.

    def critical(self) -> list[Record]:
        """Active plugins without which the daemon is not healthy."""
        found = [self.records[plugin_id] for plugin_id in sorted(self._critical)]
        return [record for record in found if record.status is Status.ACTIVE]

    def known(self) -> list[Record]:
        """Every record that is not a tombstone, sorted by id."""
        return sorted((r for r in self.records.values() if not r.forgotten), key=lambda record: record.id)

    def sight(self, plugin_id: str) -> Presence:
        """What the disk says of an id right now."""
        return self._sights.get(plugin_id, Presence())

    def update_permissions(self, plugin_id: str) -> None:
        """Have host services know how a plugin stands: what it may no longer do is being stopped on return."""
        self.rooms.services.update(plugin_id, self._standing(plugin_id))

    def _standing(self, plugin_id: str) -> PluginStanding:
        record = self.records.get(plugin_id)
        if record is None or record.status is not Status.ACTIVE:
            return UNKNOWN
        found = sight.standing(record, self.plugins[plugin_id].manifest, self._sights.get(plugin_id))
        return replace(found, active=False, fault="", seen=True) if plugin_id in self.held else found

    def rejected(self) -> dict[str, Refused]:
        """Every bundle on disk that may not run, by name: refused by itself, or by who else claims its id."""
        found = {name: verdict for name, verdict in self._found.items() if isinstance(verdict, Refused)}
        for plugin_id in self._contested:
            for claim in self._claimants[plugin_id]:
                if (refused := self._refusal(plugin_id, claim.name)) is not None:
                    found[claim.name] = refused
        return found

    def claimant(self, plugin_id: str, publisher: str) -> claims.IdClaim | None:
        """The one bundle of `publisher` that verifies and was refused only because another publisher holds the id."""
        found = [c for c in self._claimants.get(plugin_id, ()) if c.verdict.manifest.publisher == publisher]
        fitting = [claim for claim in found if self._refusal(plugin_id, claim.name) is not None]
        return fitting[0] if len(fitting) == 1 else None

    # What the catalog says.

    async def _observe(self) -> None:
        async for batch in self.rooms.catalog.changes():
            gone = set() if self.told else set(self.records)  # what vanished while nobody looked is no news
            for plugin_id in self._take(batch, gone):
                if self.sight(plugin_id).stored is not None or self.pairs.resigned(plugin_id):
                    self.pairs.mend_soon(plugin_id)
            if not self.told:
                await self.saver.flush()
                self._told.set()

    def _take(self, batch: Iterable[Sighting], touched: set[str]) -> set[str]:
        with self._refusals.bounded():
            for seen in batch:
                touched |= self._enter(seen)
            for plugin_id in touched:
                self.follow(plugin_id)
        return touched

    def _enter(self, seen: Sighting) -> set[str]:
        """Take down one sighting; the ids it may matter to."""
        touched = {self._sources[seen.name]} if seen.name in self._sources else set()
        before = self._found.pop(seen.name, None)
        if isinstance(before, Verified):
            self._disclaim(before.manifest.id, seen.name)
            touched.add(before.manifest.id)
        if seen.name not in self._sources:  # else its record's id tells of it
            self._tell_of_stranger(seen, before if isinstance(before, Refused) else None)
        match seen.verdict:
            case Verified() as verdict:
                self._found[seen.name] = verdict
                claimants = self._claimants.setdefault(verdict.manifest.id, Claimants())
                claimants.put(claims.IdClaim(name=seen.name, verdict=verdict))
                self._refusals.newcomer(verdict.manifest.id, seen.name)
                touched.add(verdict.manifest.id)
            case Refused() as verdict:
                self._found[seen.name] = verdict
                self._refusals.tell(bundle=seen.name, code=verdict.code, reason=verdict.reason)
            case None:
                pass
        return touched

    def _tell_of_stranger(self, seen: Sighting, before: Refused | None) -> None:
        """Put on record what is new about a bundle that is no plugin's; that it is gone is nothing to anybody."""
        refused = seen.verdict if isinstance(seen.verdict, Refused) else None
        if seen.verdict is not None and (event := verdicts.of_bundle(seen.name, before, refused)) is not None:
            self.rooms.ledger.record_news(event)

    def _disclaim(self, plugin_id: str, name: str) -> None:
        claimants = self._claimants[plugin_id]
        claimants.drop(name)
        if not claimants:
            del self._claimants[plugin_id]

    def follow(self, plugin_id: str) -> None:
        """Look at one id again: who may claim it, what may run, what is to be put on record."""
        if self.closed:
            return
        now_us = self.rooms.clock.wall_us()
        record = self.records.get(plugin_id)
        winner = self._resolve(plugin_id, record)
        fault = None
        if winner is None and record is not None:
            fault = sight.fault_at(self._found.get(record.source), self._refusal(plugin_id, record.source))
        stored = self.pairs.fault(record) if record is not None else None
        before, seen = self._sights.get(plugin_id), Presence(winner=winner, fault=fault, stored=stored)
        self._sights[plugin_id] = seen
        self.update_permissions(plugin_id)
        if record is not None and (event := verdicts.of_plugin(record, before, seen)) is not None:
            self.rooms.ledger.record_news(event, apart=plugin_id if record.accepted else "")
        if plugin_id not in self.busy:
            if winner is not None and (record is None or record.forgotten):
                self.remember(advance.first_seen(winner, now_us, record))
            elif winner is not None and record is not None:
                self.remember(advance.follow(record, winner, now_us))
        self._run(plugin_id)

    def _resolve(self, plugin_id: str, record: Record | None) -> claims.IdClaim | None:
        """Who is the plugin. Only newcomers and whoever was it before are told of: never all copies again."""
        claimants = self._claimants.get(plugin_id, Claimants())
        winner = claimants.winner(sight.pin_of(record) if record else None)
        (self._contested.add if len(claimants) > (winner is not None) else self._contested.discard)(plugin_id)
        former = self.sight(plugin_id).winner
        former_name = former.name if former is not None and former != winner else None
        self._refusals.settle(plugin_id, former_name, lambda name: self._refusal(plugin_id, name))
        return winner

    def _refusal(self, plugin_id: str, name: str) -> Refused | None:
        """Why the bundle of this name, which verifies, is not the plugin; None when it is, or claims another id."""
        record = self.records.get(plugin_id)
        claimants = self._claimants.get(plugin_id)
        return claimants.refusal(name, sight.pin_of(record) if record else None) if claimants else None

    def _run(self, plugin_id: str) -> None:
        """Have alive what is active and available, and nothing else."""
        record = self.records.get(plugin_id)
        if record is None or not record.accepted:
            return
        seen = self.sight(plugin_id)
        plugin = self.plugins[plugin_id]
        if record.status is not Status.ACTIVE:
            self.rooms.supervisor.disarm(plugin)
        elif not seen.available:
            self.rooms.supervisor.disarm(plugin, seen.trouble)
        elif plugin_id not in self.busy:  # else once it is decided what it is to be
            self.rooms.supervisor.arm(plugin, frozenset(record.granted))

    # What is on record.

    def put(self, record: Record) -> None:
        """Hold `record` from now on."""
        before = self.records.get(record.id)
        if before is not None and self._sources.get(before.source) == record.id:
            del self._sources[before.source]
            self.rooms.catalog.release(before.source)
        if not record.accepted:  # of thousands that merely lie there, no second copy of the manifest is held
            self.plugins.pop(record.id, None)
            self._critical.discard(record.id)
        elif (
            record.id not in self.plugins
            or before is None
            or (before.facts, before.terms) != (record.facts, record.terms)
        ):
            plugin = self.plugins[record.id] = sight.plugin_of(record, self.rooms.defaults)
            (self._critical.add if plugin.manifest.critical else self._critical.discard)(record.id)
        self.records[record.id] = record
        self._sources[record.source] = record.id
        if record.accepted:
            self.rooms.catalog.hold(record.source)
        self.rooms.catalog.attend(record.source, active=record.status is Status.ACTIVE)
        self.update_permissions(record.id)

    def remember(self, record: Record) -> None:
        """Hold `record`, and have it written soon."""
        if self.records.get(record.id) == record:
            self.records[record.id] = record  # equal, but made of what is held anyway
        else:
            self.put(record)
            self.saver.save(record.id)

    # What the policy says.

    async def policy_changed(self) -> None:
        """Judge every bundle and every stored pair again, and write down what is revoked now."""
        self.rooms.catalog.rescan()
        await self.pairs.policy_changed()
