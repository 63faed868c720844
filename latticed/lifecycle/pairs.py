"""Judges stored pairs (manifest and artifact) of accepted plugins and replaces damaged ones, one pair at a time.

Runs in background tasks. A finding stops its plugin at once (`registry.refresh`); stopping never waits for hashing.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latticed.bundle.refusal import BundleRefused
from latticed.kit import logs
from latticed.kit.tasks import fenced
from latticed.lifecycle import presence
from latticed.model.audit import DAEMON, Event
from latticed.model.errors import Problem
from latticed.model.fault import Fault
from latticed.model.lifecycle import Status
from latticed.model.verdict import Code, Refused
from latticed.trust import keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterable
    from typing import Any

    from latticed.catalog.catalog import Catalog
    from latticed.catalog.pair_judge import PairJudge
    from latticed.ledger import Ledger
    from latticed.lifecycle.effect_waiter import EffectWaiter
    from latticed.lifecycle.policy import PolicyKeeper
    from latticed.lifecycle.registry import Registry
    from latticed.lifecycle.state import LifecycleState
    from latticed.model.lifecycle import Record
    from latticed.model.verdict import Verdict, Verified

EFFECT_S: Final = 10.0
"""Longest time that `in_effect` waits, in seconds."""
EFFECT_POLL_S: Final = 0.02
"""How often `in_effect` looks, in seconds."""
TOGETHER: Final = 64
"""Pairs whose signatures are verified in one go, on a thread: 10 to 20 ms."""
BUSY_POLL_S: Final = 0.05
"""How soon mending is tried again while a decision about the plugin is under way."""

log = logs.get_logger()


class Pairs:
    """Judges stored pairs, and keeps `LifecycleState.pair_faults`.

    `refused_at_start` yields ids whose stored pair was refused when the supervisor started it. Call `start` once,
    `close` at the end.
    """

    def __init__(
        self,
        *,
        state: LifecycleState,
        registry: Registry,
        effects: EffectWaiter,
        catalog: Catalog,
        ledger: Ledger,
        judge_pair: PairJudge,
        policy: PolicyKeeper,
        refused_at_start: asyncio.Queue[str],
    ) -> None:
        self._state = state
        self._registry = registry
        self._effects = effects
        self._catalog = catalog
        self._ledger = ledger
        self._judge_pair = judge_pair
        self._policy = policy
        self._refused_at_start = refused_at_start
        self._in_effect = policy.current
        self._policy_changes = 0
        self._outdated = False
        self._to_mend: dict[str, None] = {}  # ids, in the order in which they came
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def judge(self, record: Record, *, hashed: bool = False) -> Fault | None:
        """Verify the stored pair under the policy in force; what is wrong with it, or None.

        `hashed`: the stored artifact has just been hashed, so it is not read again. A read error is returned but not
        kept in `pair_faults`: the next start tries again.
        """
        facts = record.facts
        return self._taken(record, await self._judge_pair(facts.identity, facts.artifact_sha256 if hashed else None))

    def _taken(self, record: Record, verdict: Verdict) -> Fault | None:
        """As `_note`; a pair that holds has no fault any more."""
        if not isinstance(verdict, Refused):
            self._state.pair_faults.pop(record.facts.identity, None)
        return self._note(record, verdict)

    async def _by_signature(self) -> AsyncIterator[tuple[Record, Verdict]]:
        """The verdict on every stored pair, artifacts taken as they were hashed last."""
        ids = self._state.accepted()
        for first in range(0, len(ids), TOGETHER):
            records = [self._state.records[one] for one in ids[first : first + TOGETHER]]
            verdicts = await self._judge_pair.many((one.facts.identity, one.facts.artifact_sha256) for one in records)
            for found in zip(records, verdicts, strict=True):
                yield found

    def _note(self, record: Record, verdict: Verdict) -> Fault | None:
        """Take in a verdict on the pair of `record`: keep a fault in `pair_faults`; what is wrong with it, or None."""
        if not isinstance(verdict, Refused):
            self._learn(record, verdict.interpreter)
            return None
        fault = Fault(verdict.code.value, verdict.reason, verdict.hint)
        # An I/O error may pass, and nothing would clear the fault before the pair is judged again.
        if verdict.code is not Code.UNREADABLE:
            self._state.pair_faults[record.facts.identity] = fault
        return fault

    def _learn(self, record: Record, interpreter: str) -> None:
        """Add the interpreter of an accepted artifact to its record, if that was not known."""
        after, state = presence.with_interpreter(record, interpreter), self._state
        # Not if the record was replaced while the pair was judged, or a decision is about to replace it.
        if after is not record and state.records.get(record.id) is record and record.id not in state.busy:
            self._registry.put_later(after)

    async def policy_changed(self) -> None:
        """Judge all again: what the policy refuses is stopped before anything is hashed or written.

        Hashing goes on in the background; `judged` waits for it.
        """
        # Taken once: the policy may change again while the pairs are judged, and only this one is in effect afterwards.
        policy, self._policy_changes = self._policy.current, self._policy_changes + 1
        mine = self._policy_changes
        await asyncio.gather(*[self._effects.settled(plugin_id) for plugin_id in await self._judge_without_hashing()])
        # Hashing, in the background, takes longer and finds what is wrong with the files themselves.
        self._outdated = True
        # Not if a later call has begun meanwhile: it may have ended first, and its policy is the newer one.
        if mine == self._policy_changes:
            self._in_effect = policy
        if "judging" not in self._tasks:
            self._spawn("judging", self._judge_again())

    async def judged(self) -> None:
        """Return once every pair has been judged, with hashing, under the current policy."""
        if (judging := self._tasks.get("judging")) is not None:
            await asyncio.wait({judging})

    async def _judge_again(self) -> None:
        """Judge all pairs, again and again while the policy has changed meanwhile."""
        while self._outdated:
            self._outdated = False
            await self._judge(self._state.accepted())
        del self._tasks["judging"]  # no await since the check: a later change starts a new task

    async def in_effect(self) -> None:
        """Return once what the policy in force refuses is stopped, or EFFECT_S have passed; raises nothing."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EFFECT_S):
                while self._in_effect != self._policy.current:  # noqa: ASYNC110 - both are replaced from elsewhere
                    await asyncio.sleep(EFFECT_POLL_S)

    async def _judge_without_hashing(self) -> list[str]:
        """Apply the policy in force to every pair without hashing; the ids that are being stopped."""
        stopped = []
        async for record, verdict in self._by_signature():
            if self._note(record, verdict) is not None:
                self._registry.refresh(record.id)
                stopped.append(record.id)
        return stopped

    async def _judge(self, ids: Iterable[str]) -> None:
        """Verify the stored pairs of these, artifacts included; each finding takes effect at once."""
        for plugin_id in ids:
            record = self._state.records[plugin_id]
            # It may have been forgotten while others were judged.
            if not record.accepted:
                continue
            fault = await self.judge(record)
            self._registry.refresh(plugin_id)
            if fault is not None:
                self.mend_soon(plugin_id)

    async def judge_signatures(self) -> None:
        """Verify manifest, signature and policy of every stored pair, before the first scan; findings are kept for it.

        Artifacts are hashed afterwards: an active plugin's by its start, those of the others by `judge_rest`.
        """
        async for record, verdict in self._by_signature():
            self._taken(record, verdict)

    def judge_rest(self) -> None:
        """In the background: verify the stored pairs, artifacts included, of plugins that are not active."""
        self._spawn("judging", self._judge_rest())

    async def _judge_rest(self) -> None:
        await self._judge([one for one in self._state.accepted() if not self._is_active(one)])
        await self._judge_again()

    def _is_active(self, plugin_id: str) -> bool:
        return self._state.records[plugin_id].status is Status.ACTIVE

    def start(self) -> None:
        """Follow `refused_at_start` in a background task, which `close` ends.

        Each pair that the supervisor refused at a start is judged again; if it is faulty, its plugin is stopped and the
        pair is replaced if possible.
        """
        self._spawn("refused pairs", self._follow_refused())

    def mend_soon(self, plugin_id: str) -> None:
        """Try to replace the pair of a plugin, in the background; nothing happens if it is in order.

        It is replaced only by a bundle on disk that verifies and has the accepted identity.
        """
        self._to_mend[plugin_id] = None
        if "mending" not in self._tasks:
            self._spawn("mending", self._mend_all())

    async def close(self) -> None:
        """Cancel the background tasks and wait until they have ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` as the task of this name; a failure is logged."""
        task = fenced(work, lambda error: log.error("pairs_failed", task=name, error=repr(error)), name=name)
        self._tasks[name] = task
        # By task: under its name a newer one may run by the time that this one is done.
        task.add_done_callback(lambda done: self._forget(name, done))

    def _forget(self, name: str, done: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is done:
            del self._tasks[name]

    async def _follow_refused(self) -> None:
        """Judge each pair again that was refused at a start; stop its plugin and try to replace the pair."""
        while True:
            plugin_id = await self._refused_at_start.get()
            record = self._state.records.get(plugin_id)
            # Judged here again: since the start the policy may have changed, or the pair been replaced.
            if record is not None and record.accepted and await self.judge(record) is not None:
                self._registry.refresh(plugin_id)
                self.mend_soon(plugin_id)

    async def _mend_all(self) -> None:
        """Mend in the order in which ids came; an id that comes again while it waits keeps its place."""
        while self._to_mend:
            plugin_id = next(iter(self._to_mend))
            del self._to_mend[plugin_id]
            await self._mend(plugin_id)
        del self._tasks["mending"]  # no await since the check: a later call starts a new task

    def resigned(self, plugin_id: str) -> bool:
        """Whether the bundle on disk has the accepted identity, but another signature that verifies too."""
        record, winner = self._state.records.get(plugin_id), self._state.presence(plugin_id).winner
        if record is None or not record.accepted or winner is None:
            return False
        plugin = self._state.plugins[plugin_id]
        is_same = winner.verdict.identity == record.facts.identity
        return is_same and winner.verdict.manifest.signature_ed25519 != plugin.manifest.signature_ed25519

    async def _mend(self, plugin_id: str) -> None:
        """Replace a pair that is damaged or signed by another key, if the same identity verifies on disk."""
        record, winner = self._state.records.get(plugin_id), self._state.presence(plugin_id).winner
        if record is None or winner is None or winner.verdict.identity != record.facts.identity:
            return
        fault, resigned = self._state.pair_fault(record), self.resigned(plugin_id)
        if fault is None and not resigned:
            return
        if plugin_id in self._state.busy:  # retried after the decision, which writes the record
            self._to_mend[plugin_id] = None
            await asyncio.sleep(BUSY_POLL_S)
            return
        try:
            # Verifies while it copies, and leaves an intact pair alone.
            await self._catalog.keep(winner.name, winner.verdict)
        except (Problem, BundleRefused, OSError) as error:
            log.warning("pair_not_mended", plugin_id=plugin_id, reason=str(error))
            return
        # Judged from the store, not believed: only a pair that verifies there counts as mended.
        if await self.judge(record) is None:
            self._record_mended(plugin_id, winner.verdict, fault, resigned=resigned)
        # Whatever came of it: the plugin is armed again, or its fault is shown as it is now.
        self._registry.refresh(plugin_id)

    def _record_mended(self, plugin_id: str, found: Verified, fault: Fault | None, *, resigned: bool) -> None:
        """Record that the stored pair was replaced; a new signature goes into the record's manifest."""
        detail: dict[str, str | int | bool] = {"identity": found.identity}
        # As it is now: it may have changed while the pair was copied and judged.
        record = self._state.records[plugin_id]
        if resigned and record.facts.identity == found.identity and plugin_id not in self._state.busy:
            signed = presence.facts_of(found, accepted=True)
            self._registry.put_later(replace(record, facts=replace(record.facts, manifest=signed.manifest)))
            detail |= {"publisher": found.manifest.publisher, "key": keys.fingerprint(found.key) if found.key else ""}
        event = Event(
            actor=str(DAEMON),
            action="plugin.resigned" if resigned else "plugin.mended",
            target=plugin_id,
            code=fault.code if fault is not None else "",
            reason=fault.reason if fault is not None else "",
            detail=detail if resigned else {},
        )
        self._ledger.record_later(event)
