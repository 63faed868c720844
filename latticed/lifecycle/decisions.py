"""Operators' decisions about plugins: each is judged by `advance`, recorded, then carried out.

A decision that starts something is on disk before it takes effect; one that stops something takes effect first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from latticed.bundle.refusal import BundleRefused
from latticed.kit import logs
from latticed.ledger import configs, versions
from latticed.ledger import records as record_rows
from latticed.ledger.configs import ConfigRow
from latticed.ledger.versions import BadVersion
from latticed.lifecycle import advance, granting, handover, kept_data, presence, recording
from latticed.lifecycle.advance import NO_CONSENT, UpgradeConsent
from latticed.lifecycle.upgrades import ROLLED_BACK
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.model.fault import Fault
from latticed.model.lifecycle import Record, Status
from latticed.runners.configuration import schema_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from latticed.catalog.catalog import Catalog
    from latticed.host.services import HostServices
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger, Transaction
    from latticed.lifecycle.configurations import Configurations
    from latticed.lifecycle.effect_waiter import EffectWaiter
    from latticed.lifecycle.granting import Regrant
    from latticed.lifecycle.kept_data import KeptData
    from latticed.lifecycle.pairs import Pairs
    from latticed.lifecycle.registry import Registry
    from latticed.lifecycle.state import LifecycleState
    from latticed.lifecycle.turns import Turns
    from latticed.lifecycle.upgrades import OpenGate, Upgrades
    from latticed.lifecycle.write_behind import WriteBehind
    from latticed.model.accepted import Usual
    from latticed.model.audit import Actor
    from latticed.model.manifest import Manifest
    from latticed.runners.configuration import Configuration
    from latticed.supervisor.supervisor import Supervisor
    from latticed.trust.claims import IdClaim

T = TypeVar("T")
log = logs.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Configured:
    """What `configure` did. `changed` is False for a document that was set already, and for a dry run."""

    record: Record
    config: Configuration
    changed: bool
    restarted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedVersion:
    """`to`: the version to return to (None: the newest that is kept and was not left for being bad). `snapshot`: with
    its values and configuration as they were when it was replaced.
    """

    to: str | None = None
    snapshot: bool = False
    consent: UpgradeConsent = NO_CONSENT


@dataclass(kw_only=True, eq=False)
class Decisions:
    """Everything by which an operator changes a record.

    `actor` is always who decided, for the audit record. A refusal is recorded, then raised as Problem. Besides the
    codes of `advance` and `granting`, each method raises not_found, and ledger_unavailable when the decision could not
    be recorded.
    """

    state: LifecycleState
    registry: Registry
    turns: Turns
    upgrades: Upgrades
    pairs: Pairs
    write_behind: WriteBehind
    effects: EffectWaiter
    ledger: Ledger
    catalog: Catalog
    supervisor: Supervisor
    services: HostServices
    configurations: Configurations
    clock: Clock
    defaults: Usual
    _disabling: Counter[str] = field(default_factory=Counter)
    """By id, how many decisions to disable the plugin wait for their turn or have it."""
    _preparing: dict[str, asyncio.Task[Any]] = field(default_factory=dict)
    """By id, what the decision under way prepares and what may take seconds: see `_prepared`."""

    async def change(
        self, actor: Actor, plugin_id: str, wanted: Status, consent: UpgradeConsent = NO_CONSENT
    ) -> tuple[Record, bool]:
        """Install, activate or disable, for `wanted`; returns once it is armed, stopped or failed (10 s at most).

        With the record whether this changed it: False for what is so already, of which nothing is recorded then.
        Disabling never fails because of the disk. Problems besides those of `advance.transition`: dependency_unmet, the
        code of a verdict when the pair does not verify, store_unavailable, and those of the runner
        (`sandbox_unavailable`, ...).
        """
        if wanted is Status.DISABLED:
            return await self._disable(actor, plugin_id, consent)
        async with self._deciding(actor, plugin_id) as record:
            changes = not advance.holds(record, wanted, consent)
            after = await self._take_up(actor, record, wanted, consent) if changes else record
        return await self._settled(after), changes

    async def _take_up(self, actor: Actor, record: Record, wanted: Status, consent: UpgradeConsent) -> Record:
        """Install or activate; the record after it."""
        seen = self.state.presence(record.id)
        after = await self._accepted(actor, record, self._changed(record, wanted, consent), wanted)
        # For what starts, in this order: pair in the store, host able to run it, record on disk, then armed.
        await self._prepared(actor, after, wanted, self._store(actor, after, seen.winner))
        if wanted is Status.ACTIVE:
            await self._prepared(actor, after, wanted, self._admit(actor, after, record))
        event = self._status_event(actor, record, after, consent)
        # The disk may have refused to end a gate when the plugin was disabled: a start would take it for open.
        await self.turns.write(after, event, self._noted(after, self.upgrades.ending(record.id)))
        return after

    async def upgrade(self, actor: Actor, plugin_id: str, consent: UpgradeConsent = NO_CONSENT) -> tuple[Record, bool]:
        """Switch to the candidate, or to the bundle of another publisher that `consent` names; returns as `change`.

        Problems besides those of `advance.upgrade`: as `change`. When another publisher takes over, the old one's
        plugin is stopped first and its data set aside (`handover.set_aside`).
        """
        async with self._deciding(actor, plugin_id, forgotten=consent.publisher is not None) as record:
            await self._not_given_up(actor, record, "upgrade")
            changes = not advance.is_up_to_date(record, self.state.presence(plugin_id), consent)
            after = await self._take(actor, record, consent) if changes else record
        # After the block: a gate may have to be decided first, which takes its own turn.
        await self.upgrades.armed(plugin_id)
        return await self._settled(after), changes

    async def _take(self, actor: Actor, record: Record, consent: UpgradeConsent) -> Record:
        """Switch to the candidate; the record after it."""
        claim = self._candidate(record, consent)
        after = await self._accepted(actor, record, self._upgraded(record, claim, consent), "upgrade")
        if after.accepted:
            await self._prepared(actor, after, "upgrade", self._store(actor, after, claim))
        if after.status is Status.ACTIVE:
            await self._prepared(actor, after, "upgrade", self._admit(actor, after, record))
        event = self._status_event(actor, record, after, consent)
        if after.facts.publisher != record.facts.publisher:
            await self._take_over(record, after, event)
        elif record.accepted and not record.builtin:
            await self.upgrades.switch(record, after, event, self._noted(after, None), gated=True)
        else:
            await self.turns.write(after, event, self._noted(after, None))
        return after

    async def _take_over(self, before: Record, after: Record, event: Event) -> None:
        """Hand the id over to another publisher."""
        await self._stop(before)  # or its code could reach data of the new publisher
        await self.turns.write(after, event, self._noted(after, handover.set_aside(before, after)))
        self.upgrades.taken_over(after.id)
        self.upgrades.reload(after.id)
        # Its rows went with the write; this stops what host services still run of them.
        await self.services.forget(after.id)

    async def rollback(self, actor: Actor, plugin_id: str, wanted: WantedVersion) -> Record:
        """Return to an earlier version; while an upgrade is on trial, to the one before it unless another is named.

        Its stored pair is judged anew: Problem with the code of a verdict when it is revoked, damaged or gone. Others:
        not_found when no such version is kept, those of `advance.rolled_back` and, of an active plugin, as `change`.
        """
        if (one := self._stands_by(plugin_id, wanted)) is not None:
            # It runs, so dependencies are not looked at; but it may have been revoked a moment ago.
            if fault := await self.pairs.judge(one.before):
                raise await self._refused(actor, plugin_id, fault, "rollback")
            await self.upgrades.give_up(one, actor)
            return await self._settled(self.state.records[plugin_id])
        async with self._deciding(actor, plugin_id) as record:
            await self._not_given_up(actor, record, "rollback")
            kept, outcome = self._rolled_back(record, wanted)
            after = await self._accepted(actor, record, outcome, "rollback")
            if fault := await self.pairs.judge(after):
                raise await self._refused(actor, plugin_id, fault, "rollback")
            if after.status is Status.ACTIVE:
                admitted = self._admit(actor, after, record, number=kept if wanted.snapshot else 0)
                await self._prepared(actor, after, "rollback", admitted)
            left = BadVersion(
                plugin_id=plugin_id,
                identity=record.facts.identity,
                version=record.facts.version,
                code=ROLLED_BACK,
                reason="an operator went back",
                marked_at=self.clock.wall_us(),
            )
            detail: dict[str, str | int | bool] = {
                "version": after.facts.version,
                "identity": after.facts.identity,
                "before": record.facts.version,
                "snapshot": wanted.snapshot,
            }

            def change(tx: Transaction) -> None:
                if wanted.snapshot:
                    versions.bring_back(tx, plugin_id, kept, keep=True)
                versions.mark_bad(tx, left)

            event = recording.event(actor, "plugin.rollback", after, detail)
            await self.upgrades.switch(record, after, event, self._noted(after, change), gated=False)
        return await self._settled(after)

    async def foresee_rollback(self, plugin_id: str, wanted: WantedVersion) -> Record:
        """The record as `rollback` would leave it; Problem with what would refuse it, the stored pair's verdict too."""
        record = self._known(plugin_id, forgotten=False)
        one = self._stands_by(plugin_id, wanted)
        number, outcome = (0, self.upgrades.returned(one)) if one is not None else self._rolled_back(record, wanted)
        if isinstance(outcome, Problem):
            raise outcome
        if fault := await self.pairs.judge(outcome):
            raise Problem.of(fault)
        if one is None:
            await self.need_config(outcome, record, number=number if wanted.snapshot else 0)
        return outcome

    def _stands_by(self, plugin_id: str, wanted: WantedVersion) -> OpenGate | None:
        """The open gate, if the version that is wanted is the one before it, which goes on without a new start."""
        one = self.upgrades.open_gate(plugin_id)
        return one if one is not None and wanted.to in {None, one.before.facts.version} else None

    def _rolled_back(self, record: Record, wanted: WantedVersion) -> tuple[int, Record | Problem]:
        """The number of the kept version that `rollback` takes, and what it would make of the record, by the rules."""
        kept = self.state.kept.get(record.id, ())
        bad = self.state.bad.get(record.id, {})
        target = advance.kept_version(record, kept, bad, wanted.to)
        if isinstance(target, Problem):
            return 0, target
        read = [self.ledger.read(lambda db, n=one.number: versions.record_of(db, record.id, n)) for one in kept]  # type: ignore[misc]
        records = {one.number: record_rows.decode(data) for one, data in zip(kept, read, strict=True) if data}
        newer = [found for number, found in records.items() if number > target.number]
        now_us = self.clock.wall_us()
        outcome = advance.rolled_back(record, records[target.number], newer, wanted.consent, now_us, self.defaults)
        return target.number, self._met(outcome)

    def foresee(
        self, plugin_id: str, wanted: Status | Literal["upgrade"], consent: UpgradeConsent = NO_CONSENT
    ) -> Record:
        """The record as `change` or `upgrade` would leave it, by the rules alone: nothing is stored or recorded.

        Problem with what would refuse it. The bundle is not read again, so later changes on disk are not foreseen.
        """
        record = self._known(plugin_id, forgotten=wanted == "upgrade" and consent.publisher is not None)
        if wanted == "upgrade":
            if advance.is_up_to_date(record, self.state.presence(plugin_id), consent):
                return record
            outcome = self._upgraded(record, self._candidate(record, consent), consent)
        elif advance.holds(record, wanted, consent):
            return record
        else:
            outcome = self._changed(record, wanted, consent)
        if isinstance(outcome, Problem):
            raise outcome
        return outcome

    async def need_config(self, after: Record, before: Record | None = None, *, number: int = 0) -> None:
        """Problem needs_config when `after`, if it is active, could not start with its configuration.

        `before` is the record that it comes from: the present one unless given. `number`: with the configuration of
        this kept version. Changes and records nothing.
        """
        before = before or self.state.records[after.id]
        if after.status is Status.ACTIVE and after.facts.manifest:
            row = self.configurations.stored(handover.config_of(before, after))
            if number:
                row = self.ledger.read(lambda db: versions.config_of(db, after.id, number))
            other = before.facts.identity != after.facts.identity
            await self.configurations.fitting(presence.plugin_of(after, self.defaults).manifest, row, upgrading=other)

    async def regrant(self, actor: Actor, plugin_id: str, wanted: Regrant) -> Record:
        """Change grants; an armed plugin's Gate applies them at once. Problems as `granting.regrant`.

        A plugin that loses something fixed at its start is restarted. What only takes away applies even if the disk is
        full.
        """
        async with self._deciding(actor, plugin_id) as record:
            outcome = self._regranted(record, wanted)
            after = await self._accepted(actor, record, outcome, "grants")
            supervisor, defaults = self.supervisor, self.defaults
            supervisor.regrant(plugin_id, frozenset(record.granted) - wanted.trim)  # trims take effect before the write
            detail: dict[str, str | int | bool] = {
                "granted": ",".join(sorted(wanted.grant)),
                "trimmed": ",".join(sorted(wanted.trim)),
                "hosts": ",".join(after.hosts),
                "permits": " ".join(after.permits),
                "withheld": " ".join(granting.withheld(after, defaults)),
                **recording.by_kind("added", wanted.add),
                **recording.by_kind("removed", wanted.remove),
            }
            event = recording.event(actor, "plugin.grants", after, detail)
            # What widens has to be on disk first; what only narrows takes effect first.
            restarts = granting.needs_restart(record, after, defaults)
            widens = bool(wanted.grant) or granting.widens(record, after, defaults)
            if widens:
                await self.turns.write(after, event, None)
            else:
                # In memory first: what only takes away must not wait for the disk (architecture, decision 6).
                self.registry.put(after)
            if restarts and after.accepted:
                supervisor.renew(self.state.plugins[plugin_id])
            self.upgrades.narrowed(after)
            if not widens:
                await self._tighten(after, event)
            # Now what was granted, too: it is on record.
            supervisor.regrant(plugin_id, frozenset(after.granted))
        # Host services may still be ending what it may not do any more; no further decision waits for that.
        await self.effects.drained(plugin_id)
        return await self._settled(after) if restarts else after

    async def configure(
        self, actor: Actor, plugin_id: str, document: dict[str, Any], *, dry_run: bool = False
    ) -> Configured:
        """Set the configuration of an accepted plugin, and restart an active one; with `dry_run` only check it.

        A document that is set already changes nothing and restarts nothing. Problems: those of
        `Configurations.check`, invalid_transition for a plugin that is not installed.
        """
        if dry_run:
            record = self._known(plugin_id, forgotten=False)
            checked = await self.configurations.check(self._manifest(record), document)
            return Configured(record=record, config=checked, changed=False, restarted=False)
        # Checked before its turn: a check may take seconds, and disabling the plugin must not wait for that.
        asked = self.state.records.get(plugin_id)
        found = None if asked is None or asked.forgotten else await self._checked(actor, asked, document)
        async with self._deciding(actor, plugin_id) as record:
            event = recording.event(actor, "plugin.config", record, {})
            if found is None or schema_of(self._manifest(record)).sha256 != found[1].schema_sha256:
                # The plugin was upgraded meanwhile.
                found = await self._prepared(actor, record, "configure", self._checked(actor, record, document))
            checked, row = found
            # On record is which document, not its contents: those may be private.
            detail: dict[str, str | int | bool] = {"bytes": len(checked.data), "sha256": checked.sha256}
            old = self.configurations.stored(plugin_id)
            if old is not None and old.sha256 == row.sha256 and old.schema_sha256 == row.schema_sha256:
                return Configured(record=record, config=checked, changed=False, restarted=False)
            # The same document is written again for another schema: the next start then need not check it once more
            # (`Configurations.fitting`). On disk before the restart, which reads it.
            await self.turns.write(record, replace(event, detail=detail), lambda tx: configs.put(tx, plugin_id, row))
            changed = old is None or old.sha256 != row.sha256
            restarted = changed and record.status is Status.ACTIVE and self.state.presence(plugin_id).available
            if restarted:
                self.supervisor.arm(self.state.plugins[plugin_id], frozenset(record.granted), afresh=True)
        # After the block, so that waiting for the restart delays no further decision on the plugin.
        after = await self._settled(record)
        return Configured(record=after, config=checked, changed=changed, restarted=restarted)

    async def forget(self, actor: Actor, plugin_id: str, *, purge: bool = False) -> tuple[Record, KeptData]:
        """Reduce a plugin that is not active to a tombstone; `purge` removes its data too, also a tombstone's.

        Returns the record, and how much data is left or, with `purge`, was removed. Problems: as `advance.forget`, and
        store_unavailable.
        """
        async with self._deciding(actor, plugin_id, forgotten=purge) as record:
            await self._not_given_up(actor, record, "forget")
            outcome = advance.forget(record, self.state.presence(plugin_id), self.clock.wall_us())
            if isinstance(outcome, Problem) and purge and not record.accepted:
                outcome = record  # its bundle is on disk: no tombstone, but old data can be purged
            after = await self._accepted(actor, record, outcome, "forget")
            on_disk = await kept_data.on_disk(self.services, plugin_id)
            left = self.ledger.read(lambda db: kept_data.count(db, plugin_id, on_disk))
            event = recording.event(actor, "plugin.forget", after, {"purged": purge, **asdict(left)})
            # Rows first, files last: files that are left by a crash are removed when it is purged again.
            await self.turns.write(after, event, handover.strip(plugin_id, purge=purge))
            self.upgrades.reload(plugin_id)
            await self.services.forget(plugin_id)
            self.supervisor.drop(plugin_id)
            if purge:
                await kept_data.remove_files(self.services, plugin_id)
        return after, left

    async def restart(self, actor: Actor, plugin_id: str) -> Record:
        """Stop and start an active plugin, and close its breaker.

        Problems: invalid_transition when it is not active, not_available, audit_unavailable.
        """
        async with self._deciding(actor, plugin_id) as record:
            if record.status is not Status.ACTIVE:
                detail = f"cannot restart {plugin_id}: it is {record.status}, expected active"
                hint = advance.next_step(record, Status.ACTIVE)
                raise await self._refused(actor, plugin_id, Problem("invalid_transition", detail, hint).fault)
            seen = self.state.presence(plugin_id)
            if not seen.available:
                trouble = f": {seen.trouble.code}" if seen.trouble else ""
                detail = f"cannot restart {plugin_id}: its bundle does not verify{trouble}"
                hint = f"latticectl explain {plugin_id}"
                raise await self._refused(actor, plugin_id, Problem("not_available", detail, hint).fault)
            # Before it takes effect, as everything that starts something.
            await self.ledger.record(recording.event(actor, "plugin.restart", record, {}))
            self.supervisor.arm(self.state.plugins[plugin_id], frozenset(record.granted), afresh=True)
        return await self._settled(record)

    def _noted(self, after: Record, first: Callable[[Transaction], None] | None) -> Callable[[Transaction], None]:
        """`first`, then a note of the schema that the configuration of an active `after` was found to fit.

        Else each of its starts would check it again.
        """

        def change(tx: Transaction) -> None:
            if first is not None:
                first(tx)
            if after.status is Status.ACTIVE:
                configs.fits(tx, after.id, schema_of(presence.plugin_of(after, self.defaults).manifest).sha256)

        return change

    async def _checked(self, actor: Actor, record: Record, document: dict[str, Any]) -> tuple[Configuration, ConfigRow]:
        """`document`, checked for the plugin of `record`, and the row that stores it.

        Problem invalid_transition unless the record is accepted, and those of `Configurations.check`; each is recorded
        before it is raised.
        """
        try:
            if not record.accepted:
                # No publisher holds the id yet: a bundle of another one may still take it.
                detail = f"cannot configure {record.id}: it is {record.status}, expected an installed plugin"
                raise Problem("invalid_transition", detail, f"latticectl install {record.id}")
            manifest = self._manifest(record)
            checked = await self.configurations.check(manifest, document)
        except Problem as problem:
            await self._unset(recording.event(actor, "plugin.config", record, {}), problem)
            raise
        schema_sha256, now_us = schema_of(manifest).sha256, self.clock.wall_us()
        row = ConfigRow(document=checked.data, sha256=checked.sha256, schema_sha256=schema_sha256, updated_at=now_us)
        return checked, row

    async def _unset(self, event: Event, problem: Problem) -> None:
        """Record a refused configuration; a failure to record it is only logged."""
        try:
            await self.ledger.record(replace(event, decision="deny", code=problem.code, reason=problem.reason))
        except Problem as unrecorded:
            log.error("refusal_not_recorded", plugin_id=event.target, code=unrecorded.code)

    def manifest_of(self, plugin_id: str) -> Manifest:
        """The manifest that a plugin's configuration is for: the accepted one, else that of its bundle.

        Problems: not_found, not_available when there is neither.
        """
        return self._manifest(self._known(plugin_id, forgotten=False))

    def _manifest(self, record: Record) -> Manifest:
        """The manifest that `record` accepted, else that of the verified bundle on disk; Problem not_available."""
        winner = self.state.presence(record.id).winner
        manifest = presence.manifest_of(record.facts) or (winner.verdict.manifest if winner is not None else None)
        if manifest is None:
            raise Problem(
                "not_available", f"there is no verified bundle of {record.id}", f"latticectl info {record.id}"
            )
        return manifest

    async def _stop(self, record: Record) -> None:
        """Stop a plugin and what host services do for it, until `_deciding` clears `in_handover`."""
        # Host services first, as in `Registry.refresh`: nothing new may begin for it.
        self.state.in_handover.add(record.id)
        self.registry.update_permissions(record.id)
        if record.status is Status.ACTIVE:
            self.supervisor.disarm(self.state.plugins[record.id])
            await self.effects.settled(record.id)

    async def _disable(self, actor: Actor, plugin_id: str, consent: UpgradeConsent) -> tuple[Record, bool]:
        """Stop first, record when possible: a full disk must not keep a plugin running."""
        # Before its turn, for which it does not wait while an activation or an upgrade is prepared.
        self._disabling[plugin_id] += 1
        if preparing := self._preparing.get(plugin_id):
            preparing.cancel()
        try:
            async with self._deciding(actor, plugin_id) as before:
                wanted = Status.DISABLED
                if advance.holds(before, wanted, consent):
                    return before, False
                after = await self._accepted(actor, before, self._changed(before, wanted, consent), wanted)
                self.supervisor.disarm(self.state.plugins[plugin_id])
                # A gate ends by it: nothing is proven, and nothing runs.
                if not self.upgrades.is_given_up(plugin_id):
                    self.upgrades.ended(plugin_id)
                event = recording.status_event(actor, before, after)
                await self._tighten(after, event, self.upgrades.ending(plugin_id))
                await self.effects.settled(plugin_id)
                return after, True
        finally:
            self._disabling[plugin_id] -= 1
            if not self._disabling[plugin_id]:
                del self._disabling[plugin_id]

    async def _prepared(self, actor: Actor, after: Record, wanted: str, step: Coroutine[Any, Any, T]) -> T:
        """What `step` returns, which may take seconds: copying and judging a pair, checking a configuration.

        Problem invalid_transition when `after` is active and the plugin is to be disabled meanwhile: stopping does not
        wait for what would only be started to be stopped.
        """
        if after.status is not Status.ACTIVE:
            return await step
        task = asyncio.ensure_future(step)
        self._preparing[after.id] = task
        if self._disabling[after.id]:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            # Of the task alone, or of this decision, which cancels the task too.
            deciding = asyncio.current_task()
            if deciding is None or deciding.cancelling():
                raise
        finally:
            del self._preparing[after.id]
        detail = f"expected that {after.id} may be started, found that it is being disabled"
        fault = Fault("invalid_transition", detail, "ask again if it is still wanted")
        raise await self._refused(actor, after.id, fault, wanted)

    async def _tighten(self, after: Record, event: Event, also: Callable[[Transaction], None] | None = None) -> None:
        """Apply at once a decision that only takes away; it is written as soon as the ledger can.

        `also` is written with it or not at all: by the time of a later try it may not hold any more.
        """
        # In memory first: from here nothing arms it again.
        self.registry.put(after)
        self.write_behind.tidy()
        try:
            await self.ledger.write(recording.writing(after, event, also), durable=True, essential=True)
        except Problem as problem:
            log.error("decision_not_recorded", plugin_id=after.id, code=problem.code)
            # Retried until the disk takes it, with its event.
            self.write_behind.unrecorded.add(after.id)
            self.write_behind.save(after.id, event)

    @contextlib.asynccontextmanager
    async def _deciding(self, actor: Actor, plugin_id: str, *, forgotten: bool = False) -> AsyncIterator[Record]:
        """One decision at a time per id; changes on disk meanwhile take effect at its end (`refresh`).

        A tombstone is not_found unless `forgotten`.
        """
        if plugin_id not in self.state.records:  # before making a lock: callers may ask for any name
            raise await self._refused(actor, plugin_id, unknown(plugin_id).fault)
        async with self.turns.turn(plugin_id):
            try:
                record = self._known(plugin_id, forgotten=forgotten)
            except Problem as missing:
                raise await self._refused(actor, plugin_id, missing.fault) from None
            yield record

    async def _not_given_up(self, actor: Actor, record: Record, wanted: str) -> None:
        """Problem invalid_transition while the plugin is on its way back to the version before."""
        if self.upgrades.is_given_up(record.id):
            detail = (
                f"expected a version of {record.id} that stays, found that {record.facts.version} is being given up"
            )
            fault = Fault("invalid_transition", detail, f"latticectl info {record.id} shows when the other one is back")
            raise await self._refused(actor, record.id, fault, wanted)

    def _known(self, plugin_id: str, *, forgotten: bool) -> Record:
        """The record; Problem not_found, also for a tombstone unless `forgotten`."""
        record = self.state.records.get(plugin_id)
        if record is None or (record.forgotten and not forgotten):
            raise unknown(plugin_id)
        return record

    def _changed(self, record: Record, wanted: Status, consent: UpgradeConsent) -> Record | Problem:
        """What `change` would make of the record, by the rules."""
        seen, now_us = self.state.presence(record.id), self.clock.wall_us()
        return self._met(advance.transition(record, wanted, seen, consent, now_us, self.defaults))

    def _upgraded(self, record: Record, claim: IdClaim | None, consent: UpgradeConsent) -> Record | Problem:
        """What `upgrade` would make of the record, by the rules."""
        outcome = advance.upgrade(record, claim, consent, self.clock.wall_us(), self.defaults)
        bad = self.state.bad.get(record.id, {})
        found = advance.bad_candidate(outcome, bad, consent) or outcome
        # A built-in plugin follows latticed, whatever it needs: consent is all that it may have waited for.
        return found if record.builtin else self._met(found)

    def _met(self, outcome: Record | Problem) -> Record | Problem:
        """`outcome`; Problem dependency_unmet when it is active and what it needs is not."""
        if isinstance(outcome, Problem) or outcome.status is not Status.ACTIVE:
            return outcome
        needed = presence.plugin_of(outcome, self.defaults).manifest.dependencies
        return advance.unmet(needed, self.state.records) or outcome

    def _regranted(self, record: Record, wanted: Regrant) -> Record | Problem:
        """What `regrant` would make of the record, by the rules."""
        seen = self.state.presence(record.id)
        # Before the install a record keeps no manifest; what may be granted is then read from the bundle.
        there = seen.winner.verdict.manifest if seen.winner is not None and not record.accepted else None
        manifest = presence.manifest_of(record.facts) or there
        return granting.regrant(record, wanted, manifest, self.clock.wall_us(), self.defaults)

    def _candidate(self, record: Record, consent: UpgradeConsent) -> IdClaim | None:
        """The bundle that an upgrade takes: the plugin's own, or that of the publisher who is to take over."""
        if consent.publisher is not None and consent.publisher != record.facts.publisher:
            return self.registry.claimant(record.id, consent.publisher)
        return self.state.presence(record.id).winner

    async def _accepted(self, actor: Actor, record: Record, outcome: Record | Problem, wanted: str) -> Record:
        """The record that the rules give; a Problem is recorded as refusal of `wanted`, then raised."""
        if isinstance(outcome, Problem):
            raise await self._refused(actor, record.id, outcome.fault, wanted)
        return outcome

    async def _refused(self, actor: Actor, plugin_id: str, fault: Fault, wanted: str = "") -> Problem:
        """The Problem to raise, after the refusal was recorded; a failure to record it is only logged."""
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
            await self.ledger.record(refusal)
        except Problem as unrecorded:
            log.error("refusal_not_recorded", plugin_id=plugin_id, code=unrecorded.code)
        return Problem.of(fault)

    async def _store(self, actor: Actor, record: Record, claim: IdClaim | None) -> None:
        """Have the pair that `record` names in the store: copied from the bundle if that is on disk, and judged.

        Problem with the code of the verdict that refuses it, store_unavailable, or deadline_exceeded.
        """
        # Before it is copied: tidying must not take it for unused while no record names it.
        self.state.being_stored[record.id] = record.facts.identity
        on_disk = claim is not None and claim.verdict.identity == record.facts.identity
        if claim is not None and on_disk:
            try:
                await self.catalog.keep(claim.name, claim.verdict)
            except (BundleRefused, Problem) as error:
                raise await self._refused(actor, record.id, error.fault) from error
        if fault := await self.pairs.judge(record, hashed=on_disk):  # `keep` hashed it
            raise await self._refused(actor, record.id, fault)

    async def _admit(self, actor: Actor, record: Record, before: Record, *, number: int = 0) -> None:
        """Whether this host can run it and its configuration fits (`need_config`), asked before anything is put on
        record.
        """
        try:
            await self.supervisor.admit(presence.plugin_of(record, self.defaults))
            await self.need_config(record, before, number=number)
        except (BundleRefused, Problem) as error:
            raise await self._refused(actor, record.id, error.fault, record.status.value) from error

    def _status_event(self, actor: Actor, before: Record, after: Record, consent: UpgradeConsent) -> Event:
        return recording.status_event(actor, before, after, granting.withheld(after, self.defaults), consent.named)

    async def _settled(self, record: Record) -> Record:
        """The record as it is once its decision has taken effect, or 10 s have passed."""
        await self.effects.settled(record.id)
        return self.state.records.get(record.id, record)


def unknown(plugin_id: str) -> Problem:
    """Problem not_found for an id without a record."""
    detail = f"there is no plugin {plugin_id[:130]!r}"
    return Problem("not_found", detail, "latticectl list, or latticectl rejected")
