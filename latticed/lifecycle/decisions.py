"""What operators ask of the lifecycle: each decision is judged by `advance`, recorded, then carried out.

A decision that starts something is on disk before it takes effect; one that stops something takes effect first.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from typing import TYPE_CHECKING, Literal

from latticed.bundle.refusal import BundleRefused
from latticed.kit import logs
from latticed.lifecycle import advance, granting, handover
from latticed.lifecycle import effects as rest
from latticed.lifecycle import kept_data as leavings
from latticed.lifecycle import presence as sight
from latticed.lifecycle import recording as deeds
from latticed.lifecycle.advance import NO_CONSENT, UpgradeConsent
from latticed.model.audit import Event
from latticed.model.errors import Fault, Problem
from latticed.model.lifecycle import Record, Status

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    from latticed.ledger import Transaction
    from latticed.lifecycle.granting import Regrant
    from latticed.lifecycle.kept_data import KeptData
    from latticed.lifecycle.lifecycle import Lifecycle
    from latticed.model.audit import Actor
    from latticed.trust.claims import IdClaim

log = logs.get_logger()


class Decisions:
    """The doors through which records change by somebody's word."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._life = lifecycle
        self._locks: dict[str, asyncio.Lock] = {}
        self._keeping: dict[str, str] = {}

    async def change(
        self, actor: Actor, plugin_id: str, wanted: Status, consent: UpgradeConsent = NO_CONSENT
    ) -> Record:
        """Install, activate or disable; returns once it is armed, stopped or failed (10 s at most)."""
        async with self._one(actor, plugin_id) as record:
            seen = self._life.sight(plugin_id)
            after = await self._accepted(actor, record, self._changed(record, wanted, consent), wanted)
            if wanted is Status.DISABLED:
                return await self._disable(actor, record, after)
            await self._keep(actor, after, seen.winner)
            if wanted is Status.ACTIVE:
                await self._admit(actor, after)
            await self._write(after, self._told(actor, record, after), None)
        return await self._settled(after)

    async def upgrade(self, actor: Actor, plugin_id: str, consent: UpgradeConsent = NO_CONSENT) -> Record:
        """Swap to the candidate, or to the bundle of another publisher accepted by name."""
        async with self._one(actor, plugin_id, forgotten=consent.publisher is not None) as record:
            claim = self._candidate(record, consent)
            after = await self._accepted(actor, record, self._upgraded(record, claim, consent), "upgrade")
            if after.accepted:
                await self._keep(actor, after, claim)
            if after.status is Status.ACTIVE:
                await self._admit(actor, after)
            if after.facts.publisher != record.facts.publisher:
                await self._stop(record)  # or its code would reach what is the other's from now on
            await self._write(after, self._told(actor, record, after), handover.set_aside(record, after))
            if after.facts.publisher != record.facts.publisher:
                await self._life.rooms.services.forget(plugin_id)
        return await self._settled(after)

    def foresee(
        self, plugin_id: str, wanted: Status | Literal["upgrade"], consent: UpgradeConsent = NO_CONSENT
    ) -> Record:
        """The record as `change` or `upgrade` would leave it, by the rules alone: nothing is stored or recorded.

        Problem with what would refuse it. The bundle is not read again, so what the disk does next is not foreseen.
        """
        record = self._known(plugin_id, forgotten=wanted == "upgrade" and consent.publisher is not None)
        if wanted == "upgrade":
            outcome = self._upgraded(record, self._candidate(record, consent), consent)
        else:
            outcome = self._changed(record, wanted, consent)
        if isinstance(outcome, Problem):
            raise outcome
        return outcome

    async def regrant(self, actor: Actor, plugin_id: str, wanted: Regrant) -> Record:
        """Change what is granted; an armed plugin's Gate knows at once.

        One that loses what it was started with is started again without it.
        """
        async with self._one(actor, plugin_id) as record:
            outcome = self._regranted(record, wanted)
            after = await self._accepted(actor, record, outcome, "grants")
            supervisor, usual = self._life.rooms.supervisor, self._life.rooms.defaults
            supervisor.regrant(plugin_id, frozenset(record.granted) - wanted.trim)
            detail: dict[str, str | int | bool] = {
                "granted": ",".join(sorted(wanted.grant)),
                "trimmed": ",".join(sorted(wanted.trim)),
                "hosts": ",".join(after.hosts),
                "permits": " ".join(after.permits),
                "withheld": " ".join(granting.withheld(after, usual)),
            }
            event = deeds.event(actor, "plugin.grants", after, detail)
            renews = granting.ends_life(record, after, usual)
            widens = bool(wanted.grant) or granting.widens(record, after, usual)  # what was asked for is recorded first
            if widens:
                await self._write(after, event, None)
            else:
                self._life.put(after)
            if renews and after.accepted:
                supervisor.renew(self._life.plugins[plugin_id])
            if not widens:
                await self._tighten(after, event)
            supervisor.regrant(plugin_id, frozenset(after.granted))
            await rest.drained(self._life.rooms, plugin_id)
        return await self._settled(after) if renews else after

    async def forget(self, actor: Actor, plugin_id: str, *, purge: bool = False) -> tuple[Record, KeptData]:
        """Leave only a tombstone of what is not active, and its data; with `purge` also what was left before.

        The record as it is then, and the data that there is or, with `purge`, was.
        """
        rooms = self._life.rooms
        async with self._one(actor, plugin_id, forgotten=purge) as record:
            outcome = advance.forget(record, self._life.sight(plugin_id), rooms.clock.wall_us())
            if isinstance(outcome, Problem) and purge and not record.accepted:
                outcome = record  # its bundle lies there; what an earlier life left can go all the same
            after = await self._accepted(actor, record, outcome, "forget")
            files = await leavings.files_of(rooms.services.static, plugin_id)
            left = rooms.ledger.read(lambda db: leavings.count(db, plugin_id, files))
            event = deeds.event(actor, "plugin.forget", after, {"purged": purge, **dataclasses.asdict(left)})
            await self._write(after, event, handover.strip(plugin_id, purge=purge))
            await rooms.services.forget(plugin_id)
            rooms.supervisor.drop(plugin_id)
            if purge:
                await leavings.remove_files(rooms.services.static, plugin_id)
        return after, left

    async def restart(self, actor: Actor, plugin_id: str) -> Record:
        """Stop and start an active plugin, and close its breaker."""
        async with self._one(actor, plugin_id) as record:
            if record.status is not Status.ACTIVE:
                detail = f"cannot restart {plugin_id}: it is {record.status}, expected active"
                raise await self._refused(actor, plugin_id, Problem("invalid_transition", detail).fault)
            seen = self._life.sight(plugin_id)
            if not seen.available:
                trouble = f": {seen.trouble.code}" if seen.trouble else ""
                detail = f"cannot restart {plugin_id}: its bundle does not verify{trouble}"
                raise await self._refused(actor, plugin_id, Problem("not_available", detail).fault)
            await self._life.rooms.ledger.record(deeds.event(actor, "plugin.restart", record, {}))
            self._life.rooms.supervisor.arm(self._life.plugins[plugin_id], frozenset(record.granted), afresh=True)
        return await self._settled(record)

    def keeping(self) -> Collection[str]:
        """Identities that are being stored, though no record names them yet."""
        return self._keeping.values()

    async def _stop(self, record: Record) -> None:
        """Have nothing of it alive, nor done for it; once this is decided, that goes on again if it still may."""
        self._life.held.add(record.id)
        self._life.update_permissions(record.id)
        if record.status is Status.ACTIVE:
            self._life.rooms.supervisor.disarm(self._life.plugins[record.id])
            await rest.at_rest(self._life.rooms, record.id)

    async def _disable(self, actor: Actor, before: Record, after: Record) -> Record:
        """Stop first, record when possible: a full disk keeps nothing running."""
        self._life.rooms.supervisor.disarm(self._life.plugins[after.id])
        await self._tighten(after, deeds.status_event(actor, before, after))
        await rest.at_rest(self._life.rooms, after.id)
        return after

    async def _tighten(self, after: Record, event: Event) -> None:
        """Hold a decision that only takes away at once, and have it written as soon as the ledger can."""
        life = self._life
        life.put(after)
        life.saver.tidy()
        try:
            await life.rooms.ledger.write(deeds.writing(after, event, None), durable=True, essential=True)
        except Problem as problem:
            log.error("decision_not_recorded", plugin_id=after.id, code=problem.code)
            life.saver.save(after.id, event)

    @contextlib.asynccontextmanager
    async def _one(self, actor: Actor, plugin_id: str, *, forgotten: bool = False) -> AsyncIterator[Record]:
        """One decision at a time per id; what the disk says meanwhile is looked at again afterwards.

        A tombstone counts only where `forgotten` says so.
        """
        if plugin_id not in self._life.records:  # no lock for every name that somebody makes up
            raise await self._refused(actor, plugin_id, _unknown(plugin_id).fault)
        async with self._locks.setdefault(plugin_id, asyncio.Lock()):
            try:
                record = self._known(plugin_id, forgotten=forgotten)
            except Problem as missing:
                raise await self._refused(actor, plugin_id, missing.fault) from None
            self._life.busy.add(plugin_id)
            try:
                yield record
            finally:
                self._life.busy.discard(plugin_id)
                self._life.held.discard(plugin_id)
                self._keeping.pop(plugin_id, None)
                self._life.saver.wake()
                self._life.follow(plugin_id)

    def _known(self, plugin_id: str, *, forgotten: bool) -> Record:
        record = self._life.records.get(plugin_id)
        if record is None or (record.forgotten and not forgotten):
            raise _unknown(plugin_id)
        return record

    def _changed(self, record: Record, wanted: Status, consent: UpgradeConsent) -> Record | Problem:
        life = self._life
        seen, now_us = life.sight(record.id), life.rooms.clock.wall_us()
        outcome = advance.transition(record, wanted, seen, consent, now_us, life.rooms.defaults)
        if isinstance(outcome, Record) and wanted is Status.ACTIVE:
            needed = sight.plugin_of(outcome, life.rooms.defaults).manifest.dependencies
            return advance.unmet(needed, life.records) or outcome
        return outcome

    def _upgraded(self, record: Record, claim: IdClaim | None, consent: UpgradeConsent) -> Record | Problem:
        return advance.upgrade(record, claim, consent, self._life.rooms.clock.wall_us(), self._life.rooms.defaults)

    def _regranted(self, record: Record, wanted: Regrant) -> Record | Problem:
        seen, rooms = self._life.sight(record.id), self._life.rooms
        there = seen.winner.verdict.manifest if seen.winner is not None and not record.accepted else None
        manifest = sight.manifest_of(record.facts) or there
        return granting.regrant(record, wanted, manifest, rooms.clock.wall_us(), rooms.defaults)

    def _candidate(self, record: Record, consent: UpgradeConsent) -> IdClaim | None:
        if consent.publisher is not None and consent.publisher != record.facts.publisher:
            return self._life.claimant(record.id, consent.publisher)
        return self._life.sight(record.id).winner

    async def _accepted(self, actor: Actor, record: Record, outcome: Record | Problem, wanted: str) -> Record:
        if isinstance(outcome, Problem):
            raise await self._refused(actor, record.id, outcome.fault, wanted)
        return outcome

    async def _refused(self, actor: Actor, plugin_id: str, fault: Fault, wanted: str = "") -> Problem:
        """The Problem to raise, once the refusal is on record; refusing does not depend on that."""
        refusal = Event(
            actor=str(actor),
            action="plugin.status",
            target=plugin_id,
            decision="deny",
            code=fault.code,
            reason=fault.reason,
            detail={"wanted": wanted},
        )
        try:
            await self._life.rooms.ledger.record(refusal)
        except Problem as unrecorded:
            log.error("refusal_not_recorded", plugin_id=plugin_id, code=unrecorded.code)
        return Problem.of(fault)

    async def _keep(self, actor: Actor, record: Record, claim: IdClaim | None) -> None:
        """Have the pair that `record` names in the store, copied from the bundle while it is hashed again."""
        self._keeping[record.id] = record.facts.identity
        on_disk = claim is not None and claim.verdict.identity == record.facts.identity
        if claim is not None and on_disk:
            try:
                await self._life.rooms.catalog.keep(claim.name, claim.verdict)
            except (BundleRefused, Problem) as error:
                raise await self._refused(actor, record.id, error.fault) from error
        if fault := await self._life.pairs.judge(record, hashed=on_disk):  # `keep` hashed it
            raise await self._refused(actor, record.id, fault)

    async def _admit(self, actor: Actor, record: Record) -> None:
        """Ask the runner whether this host can run it, before anything is put on record."""
        try:
            await self._life.rooms.supervisor.admit(sight.plugin_of(record, self._life.rooms.defaults))
        except (BundleRefused, Problem) as error:
            raise await self._refused(actor, record.id, error.fault, record.status.value) from error

    async def _write(self, record: Record, event: Event, also: Callable[[Transaction], None] | None) -> None:
        await self._life.rooms.revocations.before(record, self._life.records)
        try:
            await self._life.rooms.ledger.write(deeds.writing(record, event, also), durable=True)
            self._life.put(record)
        finally:
            self._life.saver.tidy()
        with contextlib.suppress(Problem):  # written meanwhile from the record before; tidying tries again
            await self._life.rooms.revocations.before(record, self._life.records)

    def _told(self, actor: Actor, before: Record, after: Record) -> Event:
        return deeds.status_event(actor, before, after, granting.withheld(after, self._life.rooms.defaults))

    async def _settled(self, record: Record) -> Record:
        await rest.at_rest(self._life.rooms, record.id)
        return self._life.records.get(record.id, record)


def _unknown(plugin_id: str) -> Problem:
    detail = f"there is no plugin {plugin_id[:130]!r}"
    return Problem("not_found", detail, "latticectl list, or latticectl rejected")
