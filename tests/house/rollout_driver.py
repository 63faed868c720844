"""A rollout carried out over a real engine: `latticed.fleet.rollout` decides, documents are put, reports are read.

async with rollout_driver.driven(engine, nodes) as driver:
    await driver.assign(old)
    rollout = await driver.roll(new, before=old, sizes=(10, 90, 400))
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from latticed.fleet import documents, rollout
from latticed.fleet.nats_engine import NatsControllerEngine
from latticed.fleet.rollout import GatePolicy, NodeReport, Rollout, RolloutState
from tests.house import fleet_reports
from tests.house.fleet_reports import Reports
from tests.house.simulated_fleets import SimulatedFleet

_LOOK_S = 0.1
QUICK = GatePolicy(settle_s=0.0, patience_s=120.0)


@dataclass
class Driver:
    engine: NatsControllerEngine
    nodes: SimulatedFleet
    reports: Reports
    assigned: dict[str, str] = field(default_factory=dict)
    """The intent that each node was given, once the engine has acknowledged it."""
    given_s: dict[str, dict[str, float]] = field(default_factory=dict)
    """Of each intent: when it was given to which node (monotonic)."""
    generation: int = 0
    intents: dict[str, documents.Intent] = field(default_factory=dict)

    async def assign(self, intent: documents.Intent, names: Sequence[str] | None = None) -> None:
        """Give an intent to these nodes (all), whoever has it already left out."""
        name = documents.name_of(intent)
        self.intents[name] = intent
        wanted = [one for one in (names or self.nodes.names) if self.assigned.get(one) != name]
        if not wanted:
            return
        self.generation += 1
        index = {one: number for number, one in enumerate(self.nodes.names)}
        await self.nodes.assign(self.engine, intent, self.generation, [index[one] for one in wanted])
        self.assigned |= dict.fromkeys(wanted, name)
        given = self.given_s.setdefault(name, {})
        for one in wanted:
            given.setdefault(one, self.nodes.published_s[one])

    async def roll(
        self,
        release: documents.Intent,
        *,
        before: documents.Intent,
        sizes: Sequence[int],
        policy: GatePolicy = QUICK,
    ) -> Rollout:
        """Until it is done, has returned, or waits for an operator."""
        for one in (release, before):
            self.intents[documents.name_of(one)] = one
        under_way = rollout.begin(
            "r1",
            self.nodes.names,
            release=documents.name_of(release),
            before=documents.name_of(before),
            policy=policy,
            now_s=time.monotonic(),
            sizes=sizes,
        )
        while under_way.state in {RolloutState.RUNNING, RolloutState.RETURNING}:
            under_way, wanted = rollout.decide(under_way, self._read(), now_s=time.monotonic())
            for name in set(wanted.values()):
                await self.assign(self.intents[name], [node for node, had in wanted.items() if had == name])
            await asyncio.sleep(_LOOK_S)
        return under_way

    def _read(self) -> dict[str, NodeReport]:
        return {
            node: NodeReport(
                release=status.intent,
                since_s=time.monotonic(),
                healthy=status.settled and all(one.health != "unhealthy" for one in status.plugins),
                restarts=max((one.restarts for one in status.plugins), default=0),
            )
            for node, status in self.reports.statuses.items()
            if status.plugins
        }


@contextlib.asynccontextmanager
async def driven(engine: NatsControllerEngine, nodes: SimulatedFleet) -> AsyncIterator[Driver]:
    async with fleet_reports.followed(engine) as reports:
        yield Driver(engine, nodes, reports)
