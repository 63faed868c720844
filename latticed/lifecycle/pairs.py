"""What is known of the stored pairs of accepted plugins: judged, found damaged, mended.

Nothing here is waited for by what stops a plugin: judging and mending go on beside it, one pair at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latticed.bundle.refusal import BundleRefused
from latticed.kit import logs
from latticed.kit.tasks import fenced
from latticed.lifecycle import effects as rest
from latticed.lifecycle import presence as sight
from latticed.model.audit import DAEMON, Event
from latticed.model.errors import Fault, Problem
from latticed.model.verdict import Code, Refused
from latticed.trust import keys

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any

    from latticed.lifecycle.lifecycle import Lifecycle
    from latticed.model.lifecycle import Record
    from latticed.model.verdict import Verdict, Verified

EFFECT_S: Final = 10.0
EFFECT_LOOK_S: Final = 0.02
BUSY_LOOK_S: Final = 0.05
"""How soon a pair is looked at again whose plugin is being decided about."""

log = logs.get_logger()


class Pairs:
    """Findings by identity: a pair that is not named here verified when it was last judged."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._life = lifecycle
        self._faults: dict[str, Fault] = {}
        self._in_effect = lifecycle.rooms.policy.current
        self._outdated = False
        self._wanted: dict[str, None] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def fault(self, record: Record) -> Fault | None:
        """Why the stored pair of an accepted plugin may not run, or None."""
        return self._faults.get(record.facts.identity) if record.accepted else None

    async def judge(self, record: Record, *, hashed: bool = False) -> Fault | None:
        """Verify the stored pair under the policy in force; what is wrong with it, or None.

        `hashed`: the stored artifact has just been hashed, so it is not read again.
        One that cannot be read just now is no finding: whoever starts it tries again.
        """
        facts, rooms = record.facts, self._life.rooms
        verdict = await (rooms.glance(facts.identity, facts.artifact_sha256) if hashed else rooms.judge(facts.identity))
        if not isinstance(verdict, Refused):
            self._faults.pop(record.facts.identity, None)
        return self._note(record, verdict)

    def _note(self, record: Record, verdict: Verdict) -> Fault | None:
        if not isinstance(verdict, Refused):
            self._learn(record, verdict.interpreter)
            return None
        fault = Fault(verdict.code.value, verdict.reason, verdict.hint)
        if verdict.code is not Code.UNREADABLE:
            self._faults[record.facts.identity] = fault
        return fault

    def _learn(self, record: Record, interpreter: str) -> None:
        """What an accepted artifact is run by, where that was not known."""
        after, life = sight.with_interpreter(record, interpreter), self._life
        if after is not record and life.records.get(record.id) is record and record.id not in life.busy:
            life.remember(after)

    async def policy_changed(self) -> None:
        """Judge all again: what the policy refuses is stopped before anything is hashed again, or written.

        The hashing goes on beside: `judged` returns when it is done.
        """
        rooms = self._life.rooms
        policy = rooms.policy.current
        await asyncio.gather(*[rest.at_rest(rooms, plugin_id) for plugin_id in await self._glance_all()])
        self._in_effect, self._outdated = policy, True
        if "judging" not in self._tasks:
            self._beside("judging", self._judge_again())
        await rooms.revocations.remember()
        self._life.saver.tidy()

    async def judged(self) -> None:
        """Return once every pair has been judged by the policy of now."""
        if (judging := self._tasks.get("judging")) is not None:
            await asyncio.wait({judging})

    async def _judge_again(self) -> None:
        while self._outdated:
            self._outdated = False
            await self.judge_all()
        del self._tasks["judging"]  # in the step that saw nothing outdated: another change begins anew

    async def in_effect(self) -> None:
        """Return once what the policy in force refuses is stopped; waits for EFFECT_S at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EFFECT_S):
                while self._in_effect != self._life.rooms.policy.current:  # noqa: ASYNC110 - both are replaced from elsewhere
                    await asyncio.sleep(EFFECT_LOOK_S)

    async def _glance_all(self) -> list[str]:
        """Find what the policy in force refuses, which takes no hashing; the ids of what is being stopped for it."""
        stopped = []
        for plugin_id in [record.id for record in self._life.records.values() if record.accepted]:
            record = self._life.records[plugin_id]
            verdict = await self._life.rooms.glance(record.facts.identity, record.facts.artifact_sha256)
            if self._note(record, verdict) is not None:
                self._life.follow(plugin_id)
                stopped.append(plugin_id)
        return stopped

    async def judge_all(self) -> None:
        """Verify every stored pair; each finding has its effect at once."""
        for plugin_id in [record.id for record in self._life.records.values() if record.accepted]:
            record = self._life.records[plugin_id]
            fault = await self.judge(record)
            if self._life.told:
                self._life.follow(plugin_id)
                if fault is not None:
                    self.mend_soon(plugin_id)

    def open(self) -> None:
        """Follow what the supervisor finds damaged, until closed."""
        self._beside("refused pairs", self._watch())

    def mend_soon(self, plugin_id: str) -> None:
        """Look whether a damaged pair can be mended, beside everything else."""
        self._wanted[plugin_id] = None
        if "mending" not in self._tasks:
            self._beside("mending", self._mend_all())

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _beside(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = fenced(work, lambda error: log.error("pairs_failed", task=name, error=repr(error)), name=name)
        self._tasks[name] = task
        task.add_done_callback(lambda done: self._forget(name, done))

    def _forget(self, name: str, done: asyncio.Task[None]) -> None:
        if self._tasks.get(name) is done:
            del self._tasks[name]

    async def _watch(self) -> None:
        """A pair that was refused when it was to be started: the lifecycle must know, and mend it if it can."""
        while True:
            plugin_id = await self._life.rooms.supervisor.refused.get()
            record = self._life.records.get(plugin_id)
            if record is not None and record.accepted and await self.judge(record) is not None:
                self._life.follow(plugin_id)
                self.mend_soon(plugin_id)

    async def _mend_all(self) -> None:
        while self._wanted:
            plugin_id = next(iter(self._wanted))
            del self._wanted[plugin_id]
            await self._mend(plugin_id)
        del self._tasks["mending"]  # in the step that saw nothing wanted: who wants something next begins anew

    def resigned(self, plugin_id: str) -> bool:
        """Whether the accepted identity lies on disk with another signature, which verifies under a trusted key."""
        record, winner = self._life.records.get(plugin_id), self._life.sight(plugin_id).winner
        if record is None or not record.accepted or winner is None:
            return False
        plugin = self._life.plugins[plugin_id]
        is_same = winner.verdict.identity == record.facts.identity
        return is_same and winner.verdict.manifest.signature_ed25519 != plugin.manifest.signature_ed25519

    async def _mend(self, plugin_id: str) -> None:
        """Replace a stored pair that is damaged, or signed by another key, with the same one that verifies on disk."""
        record, winner = self._life.records.get(plugin_id), self._life.sight(plugin_id).winner
        if record is None or winner is None or winner.verdict.identity != record.facts.identity:
            return
        fault, resigned = self.fault(record), self.resigned(plugin_id)
        if fault is None and not resigned:
            return
        if plugin_id in self._life.busy:  # that decision writes the record; its end is awaited beside everything else
            self._wanted[plugin_id] = None
            await asyncio.sleep(BUSY_LOOK_S)
            return
        try:
            await self._life.rooms.catalog.keep(winner.name, winner.verdict)
        except (Problem, BundleRefused, OSError) as error:
            log.warning("pair_not_mended", plugin_id=plugin_id, reason=str(error))
            return
        if await self.judge(record) is None:
            self._tell_mended(plugin_id, winner.verdict, fault, resigned=resigned)
        self._life.follow(plugin_id)

    def _tell_mended(self, plugin_id: str, found: Verified, fault: Fault | None, *, resigned: bool) -> None:
        """Put on record what replaced the stored pair, and keep with the record the signature that it has now."""
        life = self._life
        detail: dict[str, str | int | bool] = {"identity": found.identity}
        record = life.records[plugin_id]
        if resigned and record.facts.identity == found.identity and plugin_id not in life.busy:
            signed = sight.facts_of(found, accepted=True)
            life.remember(replace(record, facts=replace(record.facts, manifest=signed.manifest)))
            detail |= {"publisher": found.manifest.publisher, "key": keys.fingerprint(found.key) if found.key else ""}
        told = Event(
            actor=str(DAEMON),
            action="plugin.resigned" if resigned else "plugin.mended",
            target=plugin_id,
            code=fault.code if fault is not None else "",
            reason=fault.reason if fault is not None else "",
            detail=detail if resigned else {},
        )
        life.rooms.ledger.record_later(told)
