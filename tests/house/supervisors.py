"""A real Supervisor over a real Store, a fake runner and a clock that the test advances."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latticed.broker.gate import Broker, GateLimits
from latticed.bundle import read
from latticed.catalog.store import Store
from latticed.kit.wheel import Wheel
from latticed.model import restart
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.model.runtime import Runtime
from latticed.model.verdict import Verdict, Verified
from latticed.runners.contract import PluginToRun
from latticed.supervisor.deps import HandleDeps
from latticed.supervisor.supervisor import Supervisor
from latticed.trust import verify
from tests.house import bundles, catalogs
from tests.house.clocks import ManualClock
from tests.house.runners import Driven

GRANTED = frozenset({"kv:read"})


@dataclass(slots=True, kw_only=True)
class Stand:
    """A supervisor for one test. `events` are the audit events that it recorded."""

    root: Path
    supervisor: Supervisor
    tools: HandleDeps
    store: Store
    driven: Driven
    clock: ManualClock
    author: bundles.Author
    events: list[Event] = field(default_factory=list)

    def stored(self, **fields: Any) -> PluginToRun:
        """A verified plugin whose pair is in the store."""
        bundle = bundles.drop(self.root, author=self.author, v2=True, **fields)
        with read.open_bundle(bundle.path, limits=read.ReadLimits(), owners=owners()) as found:
            verdict = verify.verify(found, self.policy(), host_version=catalogs.HOST_VERSION)
            assert isinstance(verdict, Verified), verdict
            self.store.keep(found, verdict)
        return PluginToRun(id=bundle.id, identity=verdict.identity, manifest=verdict.manifest)

    def policy(self) -> Any:
        return catalogs.trusting(self.author)

    async def armed(self, **fields: Any) -> PluginToRun:
        """Such a plugin, armed."""
        plugin = await asyncio.to_thread(lambda: self.stored(**fields))
        self.supervisor.arm(plugin, GRANTED)
        await self.settled(plugin)
        assert self.runtime(plugin).state == "armed", self.runtime(plugin)
        return plugin

    async def settled(self, plugin: PluginToRun) -> None:
        await self.supervisor.settled(plugin.id, within_s=catalogs.DEADLINE_S)

    def runtime(self, plugin: PluginToRun) -> Runtime:
        return self.supervisor.runtime(plugin.id)

    def states(self, plugin: PluginToRun) -> list[str]:
        """Its recorded runtime states: `state` or `state:code`."""
        mine = [event for event in self.events if event.target == plugin.id]
        return [":".join(filter(None, (str(event.detail["state"]), event.code))) for event in mine]

    async def pass_time(self, seconds: float) -> None:
        """Let `seconds` pass on the wheel, and what is due then happen."""
        self.clock.advance(seconds)
        self.tools.wheel.advance()
        await self.quiet()

    async def quiet(self) -> None:
        """Let everything that has begun come to its next wait."""
        for _ in range(20):
            await asyncio.sleep(0)


def owners() -> frozenset[int]:
    return frozenset({0, os.geteuid()})


@contextlib.asynccontextmanager
async def standing(root: Path, *, start_deadline_s: float = 10.0, record_fails: bool = False) -> AsyncIterator[Stand]:
    """A supervisor with restart rules 1 s, doubling, breaker at 3, and no jitter."""
    clock, driven, author, events = ManualClock(), Driven(), bundles.author(), list[Event]()
    store = Store(root / "store")

    def record(event: Event, done: Callable[[Any, BaseException | None], None]) -> None:
        if record_fails:
            done(None, Problem("audit_unavailable", "the disk is full"))
        else:
            events.append(event)
            done(len(events), None)

    async def judge(identity: str, sha256: str | None) -> Verdict:
        policy, version = catalogs.trusting(author), catalogs.HOST_VERSION
        return await asyncio.to_thread(store.verify, identity, policy, host_version=version, sha256=sha256)

    def record_later(event: Event) -> None:
        if not record_fails:
            events.append(event)

    tools = HandleDeps(
        runners=dict.fromkeys(("system", "wasm", "worker"), driven),
        broker=Broker({}, record=record, clock=clock, gate_limits=GateLimits()),
        store=store,
        judge=judge,
        record=record_later,
        clock=clock,
        restart=restart.RestartPolicy(base_s=1, factor=2, ceiling_s=60, jitter=0.2, healthy_s=60, breaker_failures=3),
        start_deadline_s=start_deadline_s,
        stop_grace_s=5.0,
        wheel=Wheel(clock),
        roll=lambda: 0.5,
    )
    async with Supervisor(tools, {}) as supervisor:
        yield Stand(
            root=root,
            supervisor=supervisor,
            tools=tools,
            store=store,
            driven=driven,
            clock=clock,
            author=author,
            events=events,
        )
