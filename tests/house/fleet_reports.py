"""What nodes tell, as a controller reads it from the engine: the newest status of each, and all events.

async with fleet_reports.followed(engine) as reports:
    await reports.until(lambda: reports.settled("web-1", intent))
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from latticed.fleet import documents, subjects
from latticed.fleet.controller import readers
from latticed.fleet.nats_engine import NatsControllerEngine


@dataclass
class Reports:
    statuses: dict[str, documents.NodeStatus] = field(default_factory=dict)
    told: dict[str, list[documents.NodeStatus]] = field(default_factory=dict)
    """All that were read of each node, oldest first; of two that come at once only the newest is."""
    events: dict[str, list[documents.NodeEvent]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    def settled(self, node: str, intent: documents.Intent) -> bool:
        status = self.statuses.get(node)
        return status is not None and status.settled and status.intent == documents.name_of(intent)

    def numbers(self, node: str) -> list[int]:
        return [one.number for one in self.events.get(node, ())]


@contextlib.asynccontextmanager
async def followed(engine: NatsControllerEngine) -> AsyncIterator[Reports]:
    """What is read while the block runs, and what was there before; each has its signature checked. At another
    connection all is read anew, as a controller does: a server may have lost what it had last.
    """
    reports = Reports()

    async def read_statuses() -> None:
        reports.told.clear()
        async with contextlib.aclosing(engine.statuses()) as batches:
            async for batch in batches:
                for one in batch:
                    node = subjects.node_of(one.subject)
                    reports.statuses[node] = documents.read(one.data, documents.NodeStatus).document
                    reports.told.setdefault(node, []).append(reports.statuses[node])
                reports.changed.set()

    async def read_events() -> None:
        reports.events.clear()
        async with contextlib.aclosing(engine.events()) as batches:
            async for batch in batches:
                for one in batch:
                    event = documents.read(one.data, documents.NodeEvent).document
                    reports.events.setdefault(subjects.node_of(one.subject), []).append(event)
                reports.changed.set()

    reading = [
        asyncio.create_task(readers.at_each_connection(engine._connection, work))
        for work in (read_statuses, read_events)
    ]
    try:
        yield reports
    finally:
        for task in reading:
            task.cancel()
        await asyncio.wait(reading)
        for task in reading:
            if not task.cancelled():
                task.result()
