"""What every handle works with."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from latticed.broker.decide import Rights
from latticed.host.service import Caller
from latticed.kit import logs
from latticed.kit.tasks import fenced
from latticed.kit.wheel import Wheel
from latticed.model.errors import Problem
from latticed.model.verdict import Code, Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

    from latticed.broker.gate import Broker, Gate
    from latticed.catalog.store import Store
    from latticed.kit.clock import Clock
    from latticed.model import restart
    from latticed.model.audit import Event as AuditEvent
    from latticed.model.verdict import Verdict
    from latticed.runners.contract import Living, Plugin, Runner

log = logs.get_logger()

_TOLD: Final = {"armed": "plugin_armed", "stopped": "plugin_stopped", "failed": "plugin_failed"}

FINAL_CODES: Final = frozenset(code.value for code in Code) - {Code.UNREADABLE.value}
"""Failures that trying again cannot mend: the stored pair no longer verifies. An I/O error may pass."""


@dataclass(slots=True, kw_only=True)
class Tools:
    """What a handle works with; one for all handles.

    `judge` verifies a stored pair under the current policy; `record` has an event written as soon as that can be.
    """

    runners: Mapping[str, Runner]
    broker: Broker
    store: Store
    judge: Callable[[str], Awaitable[Verdict]]
    record: Callable[[AuditEvent], None]
    clock: Clock
    restart: restart.Policy
    start_deadline_s: float
    stop_grace_s: float
    wheel: Wheel = field(default_factory=Wheel)
    roll: Callable[[], float] = random.random
    final_codes: frozenset[str] = FINAL_CODES
    refused: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    """Ids whose stored pair was refused at a start, for the lifecycle to read."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def runner_name(self, plugin: Plugin) -> str:
        return self.runners[plugin.manifest.type].name

    def gate(self, plugin: Plugin, granted: frozenset[str]) -> Gate:
        rights = Rights(declared=frozenset(plugin.manifest.capabilities), granted=granted)
        own = plugin.manifest.runtime.limits.host_calls_per_s
        return self.broker.gate(Caller(plugin_id=plugin.id), rights, calls_per_s=own)

    async def start(self, plugin: Plugin, gate: Gate, on_exit: Callable[[str, str], None]) -> Living:
        """Verify the stored pair again, then let its runner start it."""
        verdict = await self.judge(plugin.identity)
        if isinstance(verdict, Refused):
            if verdict.code.value in self.final_codes:
                self.refused.put_nowait(plugin.id)
            raise Problem(verdict.code.value, verdict.reason, verdict.hint)
        runner = self.runners[plugin.manifest.type]
        with self.store.open(plugin.identity) as pair:
            return await runner.start(plugin, pair, gate, on_exit)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """A task whose failure is logged and goes no further."""
        task = fenced(work, lambda error: log.error("task_failed", task=name, error=repr(error)), name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def note(self, event: AuditEvent) -> None:
        """Have what happened to a handle recorded; stopping never waits for that."""
        log.info(_TOLD[str(event.detail["state"])], plugin_id=event.target, code=event.code, reason=event.reason)
        self.record(event)
