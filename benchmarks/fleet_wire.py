"""FLEETWIRE: a bundle of 16 MiB in chunks beside nats-py's own object store, an invocation, a revocation, and how long
nodes take that were cut off.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from typing import TYPE_CHECKING, Any, Final

from benchmarks import fleet_changes, rows
from latticed.fleet import chunks, deployment, nats_connection, nkeys
from latticed.fleet.nats_engine import NatsEngine
from latticed.fleet.spool import Spool
from tests.house import cut_wires, simulated_fleets

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.bench import Bench
    from latticed.fleet.nats_connection import NatsConnection
    from latticed.fleet.nats_engine import NatsControllerEngine
    from tests.house.nats_servers import Fleet

BUNDLE_BYTES: Final = 16 << 20
MAX_HEAL_S: Final = 62.0
"""Two seconds and the period in which a node looks up its document."""


def measure(bench: Bench) -> list[rows.Row]:
    with bench.scratch() as place:
        return asyncio.run(_measure(place, bench))


async def _measure(place: Path, bench: Bench) -> list[rows.Row]:
    sizes = deployment.Sizes(nodes=1_000, bundles_bytes=1 << 30)
    async with fleet_changes.provided(place, 1, sizes) as (fleet, engine):
        return [
            await _bundle(fleet, engine, place, bench),
            await _invoked(fleet, engine, bench),
            await _revoked(fleet, bench),
            *[await _healed(fleet, engine, place, bench, how) for how in ("reset", "silent")],
        ]


async def _bundle(fleet: Fleet, engine: NatsControllerEngine, place: Path, bench: Bench) -> rows.Row:
    ours, theirs, put = list[float](), list[float](), list[float]()
    spool = place / "bundles"
    async with (
        fleet.connected("web-1") as connection,
        nats_connection.probing(fleet.endpoint(fleet.controller, "bare")) as (client, _),
    ):
        store: Any = await client.jetstream(timeout=30).create_object_store("bench")
        for number in range(bench.pairs):
            data = os.urandom(BUNDLE_BYTES)
            (place / "bundle").write_bytes(data)
            began_s = time.monotonic()
            sha256 = await chunks.put(engine, place / "bundle")
            put.append(time.monotonic() - began_s)
            await store.put(f"bundle-{number}", data)
            for which in (0, 1) if number % 2 else (1, 0):
                spool.mkdir()
                began_s = time.monotonic()
                if which:
                    held = Spool(spool, most_bytes=64 << 20, bundle_bytes=32 << 20)
                    await chunks.fetch(NatsEngine(connection, "web-1"), held, sha256)
                    ours.append(time.monotonic() - began_s)
                else:
                    found = await store.get(f"bundle-{number}")
                    await asyncio.to_thread(_write, spool / "bundle", found.data)
                    theirs.append(time.monotonic() - began_s)
                shutil.rmtree(spool)
    pairs = rows.Pairs(ours=tuple(ours), theirs=tuple(theirs))
    return rows.Row(
        target="FLEETWIRE",
        what=f"a bundle of 16 MiB to a node's spool, hashed and synced (to the engine: {rows.seconds(_median(put))})",
        ours=rows.seconds(pairs.our_median),
        reference=f"{rows.seconds(pairs.their_median)} nats-py's object store",
        ratio=rows.spread(pairs.ratios),
        samples=rows.samples(pairs),
    )


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())


async def _invoked(fleet: Fleet, engine: NatsControllerEngine, bench: Bench) -> rows.Row:
    """A question and its answer by the engine, without a plugin."""
    took = list[float]()
    async with fleet.connected("web-2") as connection:
        node = NatsEngine(connection, "web-2")

        async def answer() -> None:
            async for question in node.invocations():
                await question.answer(question.data)

        answering = asyncio.create_task(answer())
        await node.beat(b"{}")
        await asyncio.sleep(1.0)
        for _ in range(bench.some(500, 50)):
            began_s = time.monotonic()
            await engine.invoke("web-2", bytes(500), 10)
            took.append(time.monotonic() - began_s)
        answering.cancel()
        await asyncio.wait({answering})
    return rows.Row(
        target="FLEETWIRE",
        what="an invocation to a node's link and its answer back, p50, p99",
        ours=f"{rows.seconds(rows.percentile(took, 0.5))}, {rows.seconds(rows.percentile(took, 0.99))}",
    )


async def _revoked(fleet: Fleet, bench: Bench) -> rows.Row:
    """Credentials revoked, until the node's connection is closed; those of others stay."""
    took = list[float]()
    revoked = dict[str, int]()
    async with fleet.connected("system") as system:
        for number in range(bench.pairs):
            name = f"revoked-{number}"
            async with fleet.connected(name) as connection:
                public = nkeys.UserCredentials.parse(fleet.node(name).read_bytes()).key.public
                now_s = int(time.time()) + 1
                revoked[public] = now_s
                tokens = deployment.account_tokens(fleet.identities, now_s=now_s + number, revoked=revoked)
                began_s = time.monotonic()
                await system.request("$SYS.REQ.CLAIMS.UPDATE", tokens[fleet.identities.nodes.public].encode())
                await _down(connection)
                took.append(time.monotonic() - began_s)
    return rows.Row(
        target="FLEETWIRE",
        what="a node's credentials revoked, until its connection is closed",
        ours=rows.seconds(_median(took)),
        samples={"ours": took},
    )


async def _down(connection: NatsConnection) -> None:
    while connection.up:
        await asyncio.sleep(0.0005)


async def _healed(fleet: Fleet, engine: NatsControllerEngine, place: Path, bench: Bench, how: str) -> rows.Row:
    """Nodes cut off until each knows it; a change; healed: until each has judged it."""
    count, took = bench.some(100, 10), list[float]()
    async with cut_wires.forwarding(fleet.servers[0].port) as wire:
        urls = (f"tls://127.0.0.1:{wire.port}",)
        beneath = place / how
        beneath.mkdir()
        async with simulated_fleets.running(fleet, count, beneath, prefix=how, urls=urls) as nodes:
            await nodes.all_up()
            for generation in range(1, bench.some(3, 1) + 1):
                (wire.cut if how == "reset" else wire.hole)()
                await nodes.all_up(0)
                await asyncio.sleep(bench.some(30, 1))  # by then the pauses between tries are the longest
                await nodes.assign(engine, nodes.intent(generation), generation)
                wire.heal()
                healed_s = time.monotonic()
                await nodes.all_have(generation)
                heard = await nodes.listed(do="heard", generation=generation)
                took += [at - healed_s for _, _, at in heard]
                await nodes.all_up()
    return rows.Row(
        target="FLEETWIRE",
        what=f"{count} nodes behind a {how} network, changed meanwhile: healed to verdict, p50, p99, last",
        ours=", ".join(rows.seconds(value) for value in (_median(took), rows.percentile(took, 0.99), max(took))),
        wanted=f"≤ {MAX_HEAL_S:.0f} s",
        met=max(took) <= MAX_HEAL_S,
        samples={"ours": took},
    )


def _median(values: list[float]) -> float:
    return rows.percentile(values, 0.5)
