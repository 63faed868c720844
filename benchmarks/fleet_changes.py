"""FLEET: a change for each of 1,000 nodes, from its publication to the node's verdict, on one nats-server and on three.

Nodes are simulated (`tests/house/simulated_nodes.py`): the agent's own connection, link and judging, without a daemon.
The reference is nats-py alone: the same number of plain clients on the same server, each asked a question of the same
size, as many at once, and nothing kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from typing import TYPE_CHECKING, Final

from benchmarks import processes, rows
from benchmarks.bench import say
from benchmarks.references import bare_subscribers
from latticed.fleet import deployment, nats_connection, subjects
from tests.house import nats_servers, simulated_fleets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from nats.aio.client import Client

    from benchmarks.bench import Bench
    from latticed.fleet.nats_engine import NatsControllerEngine
    from tests.house.simulated_fleets import SimulatedFleet

MAX_S: Final = 0.150
MAX_KIB: Final = 50
DOCUMENT_BYTES: Final = 2_000
"""About what a node's desired document has here."""


SERVER_MIB: Final = 64
"""A server's own, whatever the number of nodes: its executable, itself, the buffers of its streams."""
SETTLE_S: Final = 30.0
PER_S: Final = {1: 250, 3: 100}
"""Documents a second by the number of servers: what two processors keep up with, which all nodes and servers share."""


def measure(bench: Bench) -> list[rows.Row]:
    with bench.scratch() as place:
        found = [row for servers in (1, 3) for row in asyncio.run(_measure(place / str(servers), bench, servers))]
        return [*found, *asyncio.run(_memory(place / "memory", bench))]


async def _measure(place: Path, bench: Bench, servers: int) -> list[rows.Row]:
    count = bench.some(1_000, 100)
    ours, theirs, whole = list[list[float]](), list[list[float]](), list[float]()
    pushed, paced, own = list[list[float]](), list[list[float]](), list[float]()
    sizes = deployment.Sizes(nodes=2 * count, bundles_bytes=64 << 20)
    async with (
        provided(place, servers, sizes) as (fleet, engine),
        simulated_fleets.running(fleet, count, place) as nodes,
    ):
        await nodes.all_up()
        say(f"FLEET: {count} nodes are connected to {servers} server(s)")
        generations = itertools.count(1)
        await changed(engine, nodes, next(generations))
        async with _bare(fleet, count, place) as bare:
            for pair in range(bench.pairs):
                for which in (0, 1) if pair % 2 else (1, 0):
                    if which:
                        judged, took_s = await changed(engine, nodes, next(generations))
                        ours.append(judged)
                        whole.append(took_s)
                    else:
                        theirs.append(await bare.asked())
                pushed.append(await bare.pushed(engine))
                paced.append((await changed(engine, nodes, next(generations), every_s=1 / PER_S[servers]))[0])
        heard = await nodes.listed(do="heard", generation=None)
        own += [judged - received for _, received, judged in heard]
    return [*_rows(servers, count, ours, theirs, whole), _paced_row(servers, paced), *_part_rows(pushed, own)]


async def _memory(place: Path, bench: Bench) -> list[rows.Row]:
    """Of a server that was made for so many nodes, with nobody else on it."""
    count = bench.some(1_000, 100)
    async with (
        provided(place, 1, deployment.Sizes(nodes=count, bundles_bytes=64 << 20)) as (fleet, engine),
        simulated_fleets.running(fleet, count, place) as nodes,
    ):
        await nodes.all_up()
        found = [await settled(fleet, count)]
        for generation in range(1, bench.some(6, 2)):
            await changed(engine, nodes, generation)
        found.append(await settled(fleet, count))
    return [memory_row("FLEET", count, found)]


async def settled(fleet: nats_servers.Fleet, count: int) -> float:
    """KiB for each node once nothing is asked of it but pings for a while: resident memory, less `SERVER_MIB`."""
    await asyncio.sleep(SETTLE_S)
    return max((found - SERVER_MIB) * 1024 / count for found in memory_mib(fleet))


@contextlib.asynccontextmanager
async def provided(
    place: Path, servers: int, sizes: deployment.Sizes
) -> AsyncIterator[tuple[nats_servers.Fleet, NatsControllerEngine]]:
    """Servers, and a controller's engine on them."""
    with nats_servers.running(place / "nats", servers, sizes) as fleet:
        async with fleet.connected("controller") as connection:
            yield fleet, await fleet.provide(connection)


async def changed(
    engine: NatsControllerEngine, nodes: SimulatedFleet, generation: int, *, every_s: float = 0.0
) -> tuple[list[float], float]:
    """Give each node a new document: seconds from the publication of each to its verdict, and from the first to all."""
    await asyncio.sleep(5.0)  # what came of the change before (events, statuses) is over
    began_s = time.monotonic()
    await nodes.assign(engine, nodes.intent(generation), generation, every_s=every_s)
    await nodes.all_have(generation)
    _, judged = await nodes.latencies(generation)
    if lost := len(await nodes.listed(do="connected", since=began_s)):
        say(f"FLEET: {lost} nodes lost their connection meanwhile, and have another")
    heard = await nodes.listed(do="heard", generation=generation)
    return judged, max(at for _, _, at in heard) - min(nodes.published_s.values())


def memory_mib(fleet: nats_servers.Fleet) -> list[float]:
    """Of each server, resident."""
    return [processes.memory_mib(server.process.pid) for server in fleet.servers if server.process is not None]


class _Bare(simulated_fleets.AskedProcesses):
    client: Client
    revisions: dict[str, int]

    async def asked(self) -> list[float]:
        """Ask each: seconds from the question to when it was heard."""
        limit, asked_s = asyncio.Semaphore(simulated_fleets.AT_ONCE), dict[str, float]()

        async def ask(name: str) -> None:
            async with limit:
                asked_s[name] = time.monotonic()
                await self.client.request(subjects.invocation(name), bytes(DOCUMENT_BYTES), timeout=60)

        await asyncio.sleep(5.0)
        await asyncio.gather(*map(ask, self.names))
        return await self._since(asked_s)

    async def pushed(self, engine: NatsControllerEngine) -> list[float]:
        """Give each a document: seconds from its publication to when it was heard."""
        limit, put_s = asyncio.Semaphore(simulated_fleets.AT_ONCE), dict[str, float]()

        async def put(name: str) -> None:
            async with limit:
                put_s[name] = time.monotonic()
                self.revisions[name] = await engine.put_desired(
                    name, bytes(DOCUMENT_BYTES), self.revisions.get(name, 0)
                )

        await asyncio.sleep(5.0)
        await asyncio.gather(*map(put, self.names))
        return await self._since(put_s)

    async def _since(self, began_s: dict[str, float]) -> list[float]:
        """Until each has heard what was sent to it: seconds from then to that."""
        while True:
            heard = dict(await self.listed(do="heard"))
            if all(heard.get(name, 0.0) >= at for name, at in began_s.items()):
                return [heard[name] - at for name, at in began_s.items()]
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def _bare(fleet: nats_servers.Fleet, count: int, place: Path) -> AsyncIterator[_Bare]:
    names = [f"bare-{number}" for number in range(count)]
    found = _Bare(processes=[], names=names)
    found.revisions = {}
    endpoint = fleet.endpoint(fleet.controller, "bare")
    async with nats_connection.probing(endpoint) as (found.client, _):
        try:
            for which in range(2):
                told = {
                    "nodes": [(name, os.fspath(fleet.node(name))) for name in names[which::2]],
                    "servers": fleet.urls,
                    "ca": os.fspath(fleet.ca),
                }
                plan = place / f"bare-{which}.json"
                found.processes.append(await simulated_fleets.started(bare_subscribers.__file__, plan, told))
            await found.all_up()
            yield found
        finally:
            await found.end()


def _rows(
    servers: int, count: int, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], whole: Sequence[float]
) -> list[rows.Row]:
    p99 = rows.Pairs(
        ours=tuple(rows.percentile(one, 0.99) for one in ours),
        theirs=tuple(rows.percentile(one, 0.99) for one in theirs),
    )
    p50 = rows.percentile([rows.percentile(one, 0.5) for one in ours], 0.5)
    where = "1 server" if servers == 1 else f"{servers} servers"
    return [
        rows.Row(
            target="FLEET",
            what=f"{count:,} nodes, {where}: a document's publication to the node's verdict, p99 (p50)",
            ours=f"{rows.seconds(p99.our_median)} ({rows.seconds(p50)})",
            reference=f"{rows.seconds(p99.their_median)} nats-py, a question, nothing kept",
            ratio=rows.spread(p99.ratios),
            wanted=f"≤ {rows.seconds(MAX_S)}",
            met=p99.our_median <= MAX_S,
            samples=rows.samples(p99),
        ),
        rows.Row(
            target="FLEET",
            what=f"... from the first of {count:,} documents to the last verdict",
            ours=rows.seconds(rows.percentile(whole, 0.5)),
            samples={"ours": list(whole)},
        ),
    ]


def _paced_row(servers: int, judged: Sequence[Sequence[float]]) -> rows.Row:
    p99 = [rows.percentile(one, 0.99) for one in judged]
    p50 = rows.percentile([rows.percentile(one, 0.5) for one in judged], 0.5)
    return rows.Row(
        target="FLEET",
        what=f"... the same with {PER_S[servers]} documents a second, p99 (p50)",
        ours=f"{rows.seconds(rows.percentile(p99, 0.5))} ({rows.seconds(p50)})",
        wanted=f"≤ {rows.seconds(MAX_S)}",
        met=rows.percentile(p99, 0.5) <= MAX_S,
        samples={"ours": p99},
    )


def _part_rows(pushed: Sequence[Sequence[float]], own: Sequence[float]) -> list[rows.Row]:
    """What a document takes apart from waiting for the processors that all nodes share here."""
    p99 = [rows.percentile(one, 0.99) for one in pushed]
    arrived, judged = rows.percentile(p99, 0.5), rows.percentile(own, 0.99)
    return [
        rows.Row(
            target="FLEET",
            what="... to its arrival at as many plain clients, p99; a node's own verdict, p50, p99",
            ours=", ".join(rows.seconds(value) for value in (arrived, rows.percentile(own, 0.5), judged)),
            wanted=f"≤ {rows.seconds(MAX_S)} together",
            met=arrived + judged <= MAX_S,
            samples={"ours": p99},
        )
    ]


def memory_row(target: str, count: int, found: Sequence[float]) -> rows.Row:
    return rows.Row(
        target=target,
        what=f"the server's memory for each of {count:,} nodes beyond {SERVER_MIB} MiB: connected, then changed",
        ours=" and ".join(f"{value:.0f} KiB" for value in found),
        wanted=f"≤ {MAX_KIB} KiB",
        met=max(found) <= MAX_KIB,
        samples={"ours": list(found)},
    )
