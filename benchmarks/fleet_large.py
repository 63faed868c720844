"""FLEET10K: 10,000 nodes on one nats-server, each with a connection of its own: a change for each, memory, and a server
that is gone for a minute.

The nodes are those of FLEET: the project's own client and link, on real TLS connections, in four processes.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from typing import TYPE_CHECKING, Final

from benchmarks import fleet_changes, processes, rows
from benchmarks.bench import say
from latticed.fleet import deployment
from latticed.fleet.nats_connection import PAUSES
from tests.house import simulated_fleets

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.bench import Bench
    from latticed.fleet.nats_engine import NatsControllerEngine
    from tests.house.nats_servers import Fleet
    from tests.house.simulated_fleets import SimulatedFleet

MAX_S: Final = 3.0
RETURN_S: Final = 180.0
"""After which who has not come back is counted."""
PROCESSES: Final = 4
LONGEST_PAUSE_S: Final = 2 * PAUSES.ceiling_s


def measure(bench: Bench) -> list[rows.Row]:
    with bench.scratch() as place:
        return asyncio.run(_measure(place, bench))


async def _measure(place: Path, bench: Bench) -> list[rows.Row]:
    count = bench.some(10_000, 400)
    sizes = deployment.Sizes(nodes=count, bundles_bytes=64 << 20)
    async with (
        fleet_changes.provided(place, 1, sizes) as (fleet, engine),
        # Installing is spread as over hosts: what they publish then is not what is measured.
        simulated_fleets.running(fleet, count, place, processes=PROCESSES, install_s=20.0) as nodes,
    ):
        began_s = time.monotonic()
        await nodes.all_up()
        say(f"FLEET10K: {count} nodes are connected after {time.monotonic() - began_s:.0f} s")
        memory = [await fleet_changes.settled(fleet, count)]
        found: list[tuple[list[float], float]] = []
        for generation in range(1, bench.some(3, 2) + 1):
            found.append(await fleet_changes.changed(engine, nodes, generation))
            say(f"FLEET10K: change {generation}: p99 {rows.percentile(found[-1][0], 0.99):.2f} s")
            await asyncio.sleep(bench.some(45, 1))
        memory.append(await fleet_changes.settled(fleet, count))
        returned = await _returned(fleet, engine, nodes, gone_s=bench.some(60, 3))
    return [*_change_rows(count, found), fleet_changes.memory_row("FLEET10K", count, memory), *returned]


async def _returned(
    fleet: Fleet, engine: NatsControllerEngine, nodes: SimulatedFleet, *, gone_s: float
) -> list[rows.Row]:
    """Kill the server, start it later, and change what each node is to have while they come back."""
    server, count, generation = fleet.servers[0], len(nodes.names), 100
    await asyncio.to_thread(server.kill)
    await asyncio.sleep(gone_s)
    await asyncio.to_thread(server.start)
    began_s = time.monotonic()
    assert server.process is not None
    await nodes.assign(engine, nodes.intent(generation), generation)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(RETURN_S):
            await nodes.all_have(generation)
    used_s = processes.cpu_s(server.process.pid)
    heard = await nodes.listed(do="heard", generation=generation)
    last = {str(name): at - max(nodes.published_s[name], began_s) for name, _, at in heard}
    connected = [moment - began_s for moment in await nodes.listed(do="connected", since=began_s)]
    seconds = collections.Counter(int(moment) for moment in connected)
    return [
        rows.Row(
            target="FLEET10K",
            what=f"a server gone for {gone_s:.0f} s: its start until each node is connected, p50, p99, last",
            ours=", ".join(rows.seconds(value) for value in (*_points(connected, 0.5, 0.99), max(connected))),
            reference=f"≤ {LONGEST_PAUSE_S:.0f} s of pauses between two tries",
            samples={"ours": connected},
        ),
        rows.Row(
            target="FLEET10K",
            what="... most connections in one second, more or fewer than nodes, the server's CPU for all of it",
            ours=f"{max(seconds.values())}, {len(connected) - count:+}, {rows.seconds(used_s)}",
            wanted=f"≤ {count // 8} in one second",
            met=max(seconds.values()) <= count // 8,
        ),
        rows.Row(
            target="FLEET10K",
            what="... a document of then, published (or the server's start) to verdict, p50, p99; nodes without it",
            ours=", ".join(
                [*(rows.seconds(value) for value in _points(list(last.values()), 0.5, 0.99)), str(count - len(last))]
            ),
            wanted=f"≤ {2 + 60} s, 0",
            met=rows.percentile(list(last.values()), 0.99) <= 62 and len(last) == count,
        ),
    ]


def _points(values: Sequence[float], *shares: float) -> list[float]:
    return [rows.percentile(values, share) for share in shares]


def _change_rows(count: int, found: Sequence[tuple[Sequence[float], float]]) -> list[rows.Row]:
    p99 = [rows.percentile(judged, 0.99) for judged, _ in found]
    p50 = [rows.percentile(judged, 0.5) for judged, _ in found]
    whole = [took_s for _, took_s in found]
    return [
        rows.Row(
            target="FLEET10K",
            what=f"{count:,} nodes, 1 server: a document's publication to the node's verdict, p99 (p50)",
            ours=f"{rows.seconds(rows.percentile(p99, 0.5))} ({rows.seconds(rows.percentile(p50, 0.5))})",
            wanted=f"≤ {rows.seconds(MAX_S)}",
            met=rows.percentile(p99, 0.5) <= MAX_S,
            samples={"ours": p99},
        ),
        rows.Row(
            target="FLEET10K",
            what=f"... from the first of {count:,} documents to the last verdict",
            ours=rows.seconds(rows.percentile(whole, 0.5)),
            samples={"ours": whole},
        ),
    ]
