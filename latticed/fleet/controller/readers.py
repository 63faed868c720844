"""What a controller hears: statuses, events and beats of nodes, at each connection anew.

Every controller keeps what it hears, whether it holds the lease or not, so that whoever takes over knows how nodes are.
A stream that was made anew, or has lost its end, is read from where it surely was not: nothing counts twice. What nodes
have said before they were known here is read once they are.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from latticed.fleet import subjects
from latticed.fleet.controller import store
from latticed.fleet.controller.leader import names
from latticed.fleet.engine import EngineUnavailable
from latticed.kit import logs
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latticed.fleet.controller.core import FleetCore
    from latticed.fleet.controller.leader import Leader
    from latticed.fleet.nats_connection import NatsConnection
    from latticed.fleet.nats_engine import NatsControllerEngine

_AGAIN: Final = 4_096
"""Events that are read again at a new connection: a server that was killed may have lost the end, and gone on."""
_PAUSE_S: Final = 1.0

log = logs.get_logger()


class NodeReaders:
    """`read` runs for as long as the process."""

    def __init__(
        self,
        core: FleetCore,
        connection: NatsConnection,
        engine: NatsControllerEngine,
        leader: Leader,
        *,
        present_s: float,
    ) -> None:
        self._core, self._connection, self._engine, self._leader = core, connection, engine, leader
        self._present_s = present_s
        self.heard: dict[str, int] = {"statuses": 0, "events": 0}

    async def read(self) -> None:
        """All of it, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for work in (self._statuses, self._events, self._presence, self._newcomers):
                group.create_task(at_each_connection(self._connection, work), name=f"fleet {work.__name__}")

    async def _statuses(self) -> None:
        there = (await self._engine.position(subjects.STATUS_STREAM)).last
        async with contextlib.aclosing(self._engine.statuses()) as batches:  # type: ignore[type-var]
            async for batch in batches:
                await self._core.take_statuses(batch, names(batch), read_before=there)
                self.heard["statuses"] += len(batch)

    async def _events(self) -> None:
        core, stream = self._core, subjects.EVENTS_STREAM
        position = await self._engine.position(stream)
        created, last = await core.database.read(lambda connection: store.position(connection, stream))
        same = created == position.created and last <= position.last
        after = max(0, last - _AGAIN) if same else 0
        self._leader.events_read = after
        if after >= position.last:
            self._leader.events_read = position.last
        async with contextlib.aclosing(self._engine.events(after)) as batches:  # type: ignore[type-var]
            async for batch in batches:
                # First what came before: later ones would say that it is missing.
                while late := core.newcomers.intersection(names(batch).values()):
                    await self._catch_up(late.pop())
                await core.take_events(batch, names(batch))
                self.heard["events"] += len(batch)
                newest = batch[-1].revision
                await core.write(
                    lambda connection: store.put_position(connection, stream, position.created, newest),  # noqa: B023
                    durable=False,
                )
                self._leader.events_read = newest

    async def _newcomers(self) -> None:
        core = self._core
        while True:
            core.newcomers_came.clear()
            while core.newcomers:
                await self._catch_up(min(core.newcomers))
            await core.newcomers_came.wait()

    async def _catch_up(self, node: str) -> None:
        """Take what a node has said before it was known here."""
        core = self._core
        if (status := await self._engine.status(node)) is not None:
            await core.take_statuses([status], {status.subject: node}, read_before=status.revision, late=True)
        async for batch in self._engine.events_of(node):
            await core.take_events(batch, names(batch), late=True)
        core.newcomers.discard(node)

    async def _presence(self) -> None:
        core = self._core
        while True:
            beats = await self._engine.present()
            present = frozenset(names(beats).values())
            if present != core.present:
                core.present = present
                core.work.set()
            await asyncio.sleep(self._present_s)


async def at_each_connection(connection: NatsConnection, work: Callable[[], Awaitable[None]]) -> None:
    """Have `work` begin anew when the connection is another one, or after what failed: a stream may have lost its end
    meanwhile, and count from before.
    """
    while True:
        await connection.wait_up()
        seen = connection.connections
        working = asyncio.ensure_future(work())
        other = asyncio.ensure_future(connection.wait_for_another(seen))
        try:
            await asyncio.wait({working, other}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            other.cancel()
            await asyncio.wait({working, other})
        if not working.cancelled() and (error := working.exception()) is not None:
            if not isinstance(error, EngineUnavailable | Problem | KeyError):
                raise error
            await asyncio.sleep(_PAUSE_S)
