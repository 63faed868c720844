"""Upgrades on trial, and the versions that a plugin had before: keeps, watches, commits and returns.

While a gate is open two versions run. What is on disk says at each moment which one is the plugin, so that a kill
leaves the old or the new one; a start of the daemon watches an open gate anew.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from latticed.host import declared as host_declared
from latticed.kit import logs
from latticed.kit.tasks import fenced
from latticed.kit.value import Value
from latticed.ledger import records as record_rows
from latticed.ledger import versions
from latticed.ledger.versions import BadVersion, KeptVersion
from latticed.lifecycle import advance, granting, health_gate, presence, recording
from latticed.lifecycle.effect_waiter import SETTLE_S
from latticed.lifecycle.health_gate import Baseline, Condition, GateLook, GateStep, Tally
from latticed.model.audit import DAEMON
from latticed.model.errors import Problem
from latticed.model.fault import Fault
from latticed.model.lifecycle import Status
from latticed.model.runtime import RuntimeState
from latticed.model.verdict import Code, Refused
from latticed.supervisor.decide import Phase

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.broker.gate import Count
    from latticed.catalog.pair_judge import PairJudge
    from latticed.host.services import HostServices
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger, Transaction
    from latticed.lifecycle.state import LifecycleState
    from latticed.lifecycle.turns import Turns
    from latticed.model.accepted import Usual
    from latticed.model.audit import Actor, Decision, Event
    from latticed.model.lifecycle import Record
    from latticed.supervisor.supervisor import Supervisor

POLL_S: Final = 0.1
"""How often an open gate is looked at."""
AGAIN_S: Final = 1.0
"""Pause after a decision of a gate that could not be recorded: a full disk needs time."""
ROLLED_BACK: Final = "rolled_back"
"""Code of a version that an operator left."""

log = logs.get_logger()


class GateNote(Value, frozen=True, kw_only=True):
    """What is on disk of an open gate, as JSON: the version on trial, and what the one before did and had."""

    identity: str
    version: str
    baseline: Baseline
    declared: host_declared.Declared


class UpgradeState(Value, frozen=True, kw_only=True):
    """What became of the last upgrade or rollback since the daemon started, as operators see it.

    `version` is the one that was to be taken, `before` the other one; `until_us`: when the gate ends (0: not armed
    yet); `at_us`: when it was decided. Times in microseconds since the epoch.
    """

    state: Literal["gating", "committed", "rolled_back"]
    version: str
    before: str
    until_us: int = 0
    at_us: int = 0
    fault: Fault | None = None


@dataclass(slots=True, eq=False, kw_only=True)
class OpenGate:
    """An upgrade that is watched. `before` is the record of the version that stands by, kept as `number`; `runs` is
    that without what was taken back since, as it was started.
    """

    plugin_id: str
    number: int
    before: Record
    runs: Record
    note: GateNote
    called: Tally
    """The host calls of the plugin when the gate was opened."""
    gate: health_gate.HealthGate
    refused: bool = False
    """Whether the version before may not run under the policy in force."""
    armed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the new version was armed, or given up."""
    given_up: tuple[Fault, Actor] | None = None
    """Why and by whom the new version is given up, once that has begun: it is then carried through."""
    ending: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the gate is ended: a watch and an operator may both be about to."""


@dataclass(kw_only=True, eq=False)
class Upgrades:
    """Keeps earlier versions, and has one task for each open gate. `gate_s` is the setting, replaced on a reload.

    `switch`, `ended` and `reload` are called within the turn of a decision about the id.
    """

    state: LifecycleState
    turns: Turns
    ledger: Ledger
    supervisor: Supervisor
    services: HostServices
    judge: PairJudge
    clock: Clock
    defaults: Usual
    gate_s: float
    shown: dict[str, UpgradeState] = field(default_factory=dict)
    """By id, the last upgrade."""
    results: dict[str, int] = field(default_factory=lambda: {"committed": 0, "rolled_back": 0})
    """How many upgrades ended in which way since the daemon started."""
    _open: dict[str, OpenGate] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    # Start and end of the daemon.

    async def load(self) -> None:
        """Take in what is on disk; versions that stand by start with those that replaced them. Before the first scan.

        A gate whose plugin is not active any more, or has another version, is over.
        """
        for kept in self.ledger.read(versions.load):
            self.state.kept[kept.plugin_id] = (*self.state.kept.get(kept.plugin_id, ()), kept)
        for bad in self.ledger.read(versions.load_bad):
            self.state.bad.setdefault(bad.plugin_id, {})[bad.identity] = bad
        for kept in [one for every in self.state.kept.values() for one in every if one.gate is not None]:
            if not self._resume(kept):
                try:
                    await self.ledger.write(lambda tx, kept=kept: versions.end_gate(tx, kept.plugin_id))  # type: ignore[misc]
                except Problem as problem:
                    log.error("gate_not_ended", plugin_id=kept.plugin_id, code=problem.code)

    def _resume(self, kept: KeptVersion) -> bool:
        """Have a version stand by again whose gate was open when the daemon ended; False if the gate is over."""
        record = self.state.records.get(kept.plugin_id)
        data = self.ledger.read(lambda db: versions.record_of(db, kept.plugin_id, kept.number))
        try:
            note = msgspec.json.decode(kept.gate or b"", type=GateNote)
            before = record_rows.decode(data or b"")
        except (msgspec.MsgspecError, Problem) as error:
            log.error("gate_unreadable", plugin_id=kept.plugin_id, reason=str(error))
            return False
        if record is None or record.status is not Status.ACTIVE or record.facts.identity != note.identity:
            return False
        one = self._open[record.id] = self._opened(before, kept.number, note, called=Tally())
        # What an operator took back since the gate was opened counts for both, also over a restart.
        runs = one.runs = advance.regained(before, (record,), self.defaults)
        plugins = presence.plugin_of(runs, self.defaults), self.state.plugins[record.id]
        self.supervisor.resume(plugins[0], frozenset(runs.granted), kept.number, plugins[1])
        return True

    def start(self) -> None:
        """Watch the gates that were open when the daemon ended; after the first scan."""
        for one in self._open.values():
            self._watch_in_background(one)

    async def close(self) -> None:
        """Stop watching; open gates go on at the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Decisions of operators.

    async def switch(
        self,
        before: Record,
        after: Record,
        event: Event,
        also: Callable[[Transaction], None] | None,
        *,
        gated: bool,
    ) -> None:
        """Put `after` on record in place of `before`, another version of the same publisher, which is kept.

        `gated`, and if both can run: they run side by side, and a gate decides. `also` changes more in the same
        transaction, after `before` was kept. Problem ledger_unavailable: nothing has changed.
        """
        plugin_id, facts = after.id, before.facts
        number = max((one.number for one in self.state.kept.get(plugin_id, ())), default=0) + 1
        note = self._note(before, after) if gated else None
        kept = KeptVersion(
            plugin_id=plugin_id,
            number=number,
            version=facts.version,
            identity=facts.identity,
            gate=msgspec.json.encode(note) if note is not None else None,
            kept_at=self.clock.wall_us(),
        )
        called = _tally(self.supervisor.calls().get(plugin_id))
        record = record_rows.encode(before)

        def change(tx: Transaction) -> None:
            versions.keep(tx, kept, record)
            versions.unmark_bad(tx, plugin_id, after.facts.identity)
            if also is not None:
                also(tx)
            versions.prune(tx, plugin_id, after.facts.identity)

        # Before the copy exists: from the moment it does, what the old version writes goes there.
        if note is not None:
            self.supervisor.stand_by(plugin_id, number)
        # Before the new record is there: from then on nothing else names the pair of the old one.
        self.state.being_kept[plugin_id] = facts.identity
        try:
            await self.turns.write(after, event, change)
        except BaseException:
            if note is not None:
                self.supervisor.stand_by(plugin_id, 0)
            raise
        finally:
            self.reload(plugin_id)
        self.ended(plugin_id)
        if note is None:
            self._show(before, after, "committed")
            return
        self.supervisor.put_in_charge(self.state.plugins[plugin_id], frozenset(after.granted))
        one = self._open[plugin_id] = self._opened(before, number, note, called)
        self._watch_in_background(one)

    def ended(self, plugin_id: str) -> None:
        """A decision of an operator has ended the plugin's gate, if one is open: the new version stays."""
        if (one := self._open.pop(plugin_id, None)) is not None:
            self.supervisor.retire(plugin_id)
            self._end(one, "committed")

    def ending(self, plugin_id: str) -> Callable[[Transaction], None] | None:
        """What ends the plugin's gate on disk; None for one whose version is being given up: that goes on, or the one
        would be left with what the other declared.
        """
        return None if self.is_given_up(plugin_id) else lambda tx: versions.end_gate(tx, plugin_id)

    def taken_over(self, plugin_id: str) -> None:
        """Another publisher has the id now: a gate was of code that is gone, neither committed nor rolled back."""
        self.shown.pop(plugin_id, None)
        if (one := self._open.pop(plugin_id, None)) is not None:
            self.supervisor.retire(plugin_id)
            one.armed.set()
            log.info("upgrade_ended", plugin_id=plugin_id, result="taken_over", code="")

    def reload(self, plugin_id: str) -> None:
        """Take in what the ledger has of the plugin by now."""
        self.state.kept[plugin_id] = tuple(self.ledger.read(lambda db: versions.load(db, plugin_id)))
        self.state.bad[plugin_id] = {
            one.identity: one for one in self.ledger.read(lambda d: versions.load_bad(d, plugin_id))
        }

    def open_gate(self, plugin_id: str) -> OpenGate | None:
        """The plugin's gate, if one is open."""
        return self._open.get(plugin_id)

    def is_given_up(self, plugin_id: str) -> bool:
        """Whether the plugin is on its way back to the version before: no other version can be taken meanwhile."""
        one = self._open.get(plugin_id)
        return one is not None and one.given_up is not None

    def narrowed(self, record: Record) -> None:
        """Restart the version that stands by if it has lost, with this `record` of the other one, what it was started
        with.
        """
        if (one := self._open.get(record.id)) is not None:
            runs = advance.regained(one.before, (record,), self.defaults)
            if granting.needs_restart(one.runs, runs, self.defaults):
                self.supervisor.renew_behind(presence.plugin_of(runs, self.defaults))
                one.runs = runs

    async def give_up(self, one: OpenGate, actor: Actor) -> None:
        """Return to the version before for an operator; nothing when the gate was decided meanwhile.

        Problem ledger_unavailable: then the version before answers, and returning goes on in the background.
        """
        await self._return(one, Fault(ROLLED_BACK, "an operator went back"), actor)

    async def armed(self, plugin_id: str) -> None:
        """Return once the new version is armed or its gate has ended, or SETTLE_S seconds have passed."""
        if (one := self._open.get(plugin_id)) is not None:
            try:
                await asyncio.wait_for(one.armed.wait(), SETTLE_S)
            except TimeoutError:
                return

    # The policy.

    async def policy_changed(self) -> None:
        """Stop what stands by and may not run any more; no stop is waited for."""
        await self._judge_before(list(self._open.values()))

    async def _judge_before(self, gates: list[OpenGate]) -> None:
        """Find out whether the versions before may run under the policy in force; those that may not are stopped."""
        facts = [one.before.facts for one in gates]
        verdicts = await self.judge.many([(one.identity, one.artifact_sha256) for one in facts])
        for one, verdict in zip(gates, verdicts, strict=True):
            # Its gate may have ended meanwhile: another version stands by now, of which nothing was found out.
            if self._open.get(one.plugin_id) is not one:
                continue
            # An I/O error may pass, and says nothing.
            if isinstance(verdict, Refused) and verdict.code is Code.UNREADABLE:
                continue
            one.refused = isinstance(verdict, Refused)
            if isinstance(verdict, Refused):
                self.supervisor.refuse_behind(one.plugin_id, Fault(verdict.code.value, verdict.reason, verdict.hint))

    # Gates.

    def _note(self, before: Record, after: Record) -> GateNote | None:
        """The gate of an upgrade; None when there is none: switched off, or only one of both can run."""
        plugin_id = before.id
        runs = self.supervisor.runtime(plugin_id).state is RuntimeState.ARMED
        if not (self.gate_s > 0 and runs and self.state.presence(plugin_id).available):
            return None
        if before.status is not Status.ACTIVE or before.builtin:
            return None
        baseline = Baseline(
            calls=_tally(self.supervisor.calls().get(plugin_id)),
            invocations=_tally(self.supervisor.invoked(plugin_id)),
            health=self.supervisor.runtime(plugin_id).health,
        )
        kept = host_declared.of(self.services, plugin_id)
        return GateNote(identity=after.facts.identity, version=after.facts.version, baseline=baseline, declared=kept)

    def _opened(self, before: Record, number: int, note: GateNote, called: Tally) -> OpenGate:
        state = UpgradeState(state="gating", version=note.version, before=before.facts.version)
        self.shown[before.id] = state
        return OpenGate(
            plugin_id=before.id,
            number=number,
            before=before,
            runs=before,
            note=note,
            called=called,
            gate=health_gate.HealthGate(baseline=note.baseline),
        )

    def _watch_in_background(self, one: OpenGate) -> None:
        def failed(error: BaseException) -> None:
            log.error("gate_failed", plugin_id=one.plugin_id, error=repr(error))

        task = fenced(self._watch(one), failed, name=f"gate {one.plugin_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, one: OpenGate) -> None:
        """Look at an open gate until it is decided."""
        while self._open.get(one.plugin_id) is one:
            if one.given_up is not None:
                await self._decided(one, health_gate.GateDecision(one.gate, GateStep.RETURN, one.given_up[0]))
                continue
            decided = health_gate.decide(one.gate, self._seen(one), self.clock.monotonic_s(), gate_s=self.gate_s)
            self._progress(one, decided.gate)
            match decided.step:
                case GateStep.WAIT:
                    await asyncio.sleep(POLL_S)
                case GateStep.CHECK:
                    await self.supervisor.ask_health(one.plugin_id)
                case GateStep.RETURN:
                    # The policy may have changed a moment ago: then it is decided again.
                    await self._judge_before([one])
                    if not one.refused:
                        await self._decided(one, decided)
                case _:
                    await self._decided(one, decided)

    async def _decided(self, one: OpenGate, decided: health_gate.GateDecision) -> None:
        """Commit or return; a failure to record it is tried again."""
        try:
            if decided.step is GateStep.COMMIT:
                await self._commit(one, decided.fault)
            else:
                await self._return(one, decided.fault or Fault("failed", "it failed"), DAEMON)
        except Problem as problem:
            log.error("gate_not_recorded", plugin_id=one.plugin_id, code=problem.code, reason=problem.reason)
            await asyncio.sleep(AGAIN_S)

    def _progress(self, one: OpenGate, after: health_gate.HealthGate) -> None:
        """Take in the gate's next state; operators see when it ends."""
        if after.until_s != one.gate.until_s:
            until_us = 0
            if after.until_s is not None:
                until_us = self.clock.wall_us() + int((after.until_s - self.clock.monotonic_s()) * 1e6)
                one.armed.set()
            self.shown[one.plugin_id] = replace(self.shown[one.plugin_id], until_us=until_us)
        one.gate = after

    def _seen(self, one: OpenGate) -> GateLook:
        """How the new version is now."""
        watched, record = self.supervisor.watched(one.plugin_id), self.state.records[one.plugin_id]
        if watched is None or record.status is not Status.ACTIVE:
            return GateLook(condition=Condition.AWAY)
        seen = self.state.presence(one.plugin_id)
        if not seen.available:
            # What is revoked will not come back; both were stopped, and the version before may go on.
            revoked = seen.trouble is not None and seen.trouble.code in presence.REVOCATIONS
            condition = Condition.FAILED if revoked else Condition.AWAY
            return GateLook(condition=condition, fault=seen.trouble, can_return=not one.refused)
        state = watched.state
        counted = state.failures.counted > 0 or state.phase in {Phase.BROKEN, Phase.REFUSED}
        condition = Condition.FAILED if counted else _CONDITION_OF[state.phase]
        return GateLook(
            condition=condition,
            health=state.health,
            calls=_tally(watched.called).since(one.called),
            invocations=_tally(watched.invoked),
            fault=state.fault,
            can_return=not one.refused and watched.before is not Phase.REFUSED,
        )

    async def _commit(self, one: OpenGate, fault: Fault | None) -> None:
        """The new version stays; the one before is kept, and stopped. `fault`: why it was not watched to the end."""
        async with one.ending, self.turns.turn(one.plugin_id):
            if self._open.get(one.plugin_id) is not one:
                return
            record = self.state.records[one.plugin_id]
            event = self._event(one, DAEMON, "committed", fault)
            await self.turns.write(record, event, lambda tx: versions.end_gate(tx, one.plugin_id))
            self.ended(one.plugin_id)
            self.reload(one.plugin_id)

    async def _return(self, one: OpenGate, fault: Fault, actor: Actor) -> None:
        """Give up the new version: the one before is the plugin again, with its values and all that it had.

        The order matters: nothing of the new version runs when its successor's things are put back; until all is in one
        transaction on disk, the new version is on record, and a kill leads back to an open gate.
        """
        async with one.ending:
            # In a turn: a decision under way may be about to end the gate, and what is put back below must not meet
            # what another version declares.
            async with self.turns.turn(one.plugin_id):
                if self._open.get(one.plugin_id) is not one:
                    return
                one.given_up = one.given_up or (fault, actor)
            await self._carry_through(one, *one.given_up)

    async def _carry_through(self, one: OpenGate, fault: Fault, actor: Actor) -> None:
        """As `_return`, once nothing but disabling and grants can come in between."""
        plugin_id = one.plugin_id
        # Before its turn: both may take seconds, for which a decision to disable the plugin does not wait.
        await self.supervisor.give_up(plugin_id, fault)
        await host_declared.put_back(self.services, plugin_id, one.note.declared, by=str(DAEMON))
        async with self.turns.turn(plugin_id):
            after = self.returned(one)
            bad = BadVersion(
                plugin_id=plugin_id,
                identity=one.note.identity,
                version=one.note.version,
                code=fault.code,
                reason=fault.reason,
                marked_at=after.updated_at,
            )

            def change(tx: Transaction) -> None:
                versions.bring_back(tx, plugin_id, one.number, keep=False)
                versions.mark_bad(tx, bad)

            await self.turns.write(after, self._event(one, actor, "rolled_back", fault), change)
            del self._open[plugin_id]
            self.supervisor.fall_back(plugin_id)
            if granting.needs_restart(one.runs, after, self.defaults):
                self.supervisor.renew(self.state.plugins[plugin_id])
            self.reload(plugin_id)
            self._end(one, "rolled_back", fault)

    def returned(self, one: OpenGate) -> Record:
        """The record as a return to the version before leaves it now.

        Dependencies are not looked at: that version has been running all the time, and an active plugin is not stopped
        because of what it needs.
        """
        record = self.state.records[one.plugin_id]
        # From the record that goes: what the operator decided meanwhile, where the bundle is, the highest version.
        return replace(
            advance.regained(one.before, (record,), self.defaults),
            status=record.status,
            source=record.source,
            floor=record.floor,
            activated_at=record.activated_at,
            disabled_at=record.disabled_at,
            updated_at=self.clock.wall_us(),
        )

    def _event(self, one: OpenGate, actor: Actor, result: str, fault: Fault | None) -> Event:
        """The event of a gate's end."""
        detail: dict[str, str | int | bool] = {
            "result": result,
            "version": one.note.version,
            "identity": one.note.identity,
            "before": one.before.facts.version,
        }
        record = self.state.records[one.plugin_id]
        decision: Decision = "deny" if result == "rolled_back" else "allow"
        event = replace(recording.event(actor, "plugin.upgrade", record, detail), decision=decision)
        return event if fault is None else replace(event, code=fault.code, reason=fault.reason)

    def _end(self, one: OpenGate, result: Literal["committed", "rolled_back"], fault: Fault | None = None) -> None:
        """Show and count what became of a gate."""
        self.results[result] += 1
        self.shown[one.plugin_id] = UpgradeState(
            state=result,
            version=one.note.version,
            before=one.before.facts.version,
            at_us=self.clock.wall_us(),
            fault=fault,
        )
        one.armed.set()
        log.info("upgrade_ended", plugin_id=one.plugin_id, result=result, code=fault.code if fault else "")

    def _show(self, before: Record, after: Record, result: Literal["committed"]) -> None:
        """Show a switch that no gate watches."""
        self.shown[after.id] = UpgradeState(
            state=result, version=after.facts.version, before=before.facts.version, at_us=self.clock.wall_us()
        )


_CONDITION_OF: Final = {
    Phase.ARMED: Condition.ARMED,
    Phase.STARTING: Condition.STARTING,
    Phase.STOPPING: Condition.STARTING,  # an operator restarts it; after a failure it will be WAITING
    Phase.WAITING: Condition.STARTING,  # for a failure that visitors may have caused: errors are counted apart
    Phase.STOPPED: Condition.AWAY,
    Phase.BROKEN: Condition.FAILED,
    Phase.REFUSED: Condition.FAILED,
}


def _tally(count: Count | None) -> Tally:
    """A count as the gate's rules take it."""
    return Tally(total=count.calls, bad=count.denied) if count is not None else Tally()
