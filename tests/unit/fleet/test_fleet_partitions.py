"""A network that is cut at each moment of a document's way: in the end the node has it, and the controller knows.

The controller puts a bundle and a document, the node takes both up, and tells of it by a status and events, over two
wires, one to each of them. At each moment at which one of them carries something it is cut, or carries nothing for a
while and is cut then.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest

from latticed.fleet import chunks, documents
from latticed.fleet.engine import Conflict, EngineUnavailable
from tests.house import cut_wires, fleet_reports, fleets, links, long, nats_servers, simulated_fleets, simulated_nodes

WAIT_S = 120
HOLE_S = 0.3
MOST = 400
"""More pieces of data than one way takes."""
BUNDLE_BYTES = 300_000


@contextlib.asynccontextmanager
async def wired(fleet):
    """A wire, and where to connect to be behind it."""
    async with cut_wires.forwarding(fleet.servers[0].port) as wire:
        yield wire, (f"tls://127.0.0.1:{wire.port}",)


async def until_done(action):
    """Do it again until the engine was there for all of it."""
    while True:
        try:
            return await action()
        except (EngineUnavailable, Conflict):
            await asyncio.sleep(0.05)


async def put(engine, name, document):
    """As a controller does that has to have it there."""
    found = await engine.desired(name)
    if found is None or found.data != document:
        await engine.put_desired(name, document, 0 if found is None else found.revision)


def broken(wire, how):
    """Cut it now, for a moment; or first let nothing pass for as long, and tell nobody."""
    loop = asyncio.get_running_loop()
    if how == "hole":
        wire.hole()
        loop.call_later(HOLE_S, wire.cut)
        loop.call_later(2 * HOLE_S, wire.heal)
    else:
        wire.cut()
        loop.call_later(HOLE_S, wire.heal)


@pytest.mark.timeout(1_200)  # at each moment, in the long form
@pytest.mark.parametrize(
    ("whose", "how"),
    [("node", "cut"), ("controller", "hole"), *long.only(("node", "hole"), ("controller", "cut"))],
)
async def test_document_arrives_whatever_moment_the_network_breaks_at(fleet, node, directory, tmp_path, whose, how):
    simulated = simulated_fleets.SimulatedFleet(processes=[], names=[node], fleet=fleets.Fleet())
    simulated.fleet.now = simulated_fleets.now_s()
    moments, broke = iter(range(1, MOST, long.times(12, 1))), True
    async with contextlib.AsyncExitStack() as stack:
        at_node, node_urls = await stack.enter_async_context(wired(fleet))
        at_controller, controller_urls = await stack.enter_async_context(wired(fleet))
        connection = await stack.enter_async_context(fleet.connected("controller", urls=controller_urls))
        engine = await fleet.provide(connection)
        reports = await stack.enter_async_context(fleet_reports.followed(engine))
        one = simulated_nodes.SimulatedNode(
            simulated_fleets.spec(fleet, node, 0, simulated.fleet.now),
            node_urls,
            fleet.endpoint(fleet.node(node), node).tls,
            directory,
            periods=links.QUICK,
            pauses=nats_servers.QUICK,
        )
        running = asyncio.create_task(one.run())
        generation = 0
        while broke:
            generation += 1
            data = random.Random(generation).randbytes(BUNDLE_BYTES)
            path = tmp_path / "bundle"
            path.write_bytes(data)
            wire = at_node if whose == "node" else at_controller
            async with asyncio.timeout(WAIT_S):
                await one.connection.wait_up()
                await connection.wait_up()
                wire.after(next(moments), lambda wire=wire: broken(wire, how))
                sha256 = await until_done(lambda path=path: chunks.put(engine, path))
                source = documents.BundleSource(id="acme.demo", sha256=sha256, urls=())
                intent = simulated.intent(generation)
                document = simulated.desired(0, intent, generation, bundles=(source,))
                await until_done(lambda document=document: put(engine, node, document))
                await reports.until(lambda intent=intent: reports.settled(node, intent))
                await reports.until(lambda: len(reports.numbers(node)) >= one.state.events)
                broke = not wire.waits
                wire.after(0, lambda: None)
            assert (directory / f"{sha256}.tar").read_bytes() == data
        # Each event once and in order, and no document twice or out of order.
        assert reports.numbers(node) == list(range(1, one.state.events + 1))
        assert [heard.generation for heard in one.heard] == list(range(1, generation + 1))
        assert not one.refused
        running.cancel()
        await asyncio.wait({running})
    assert generation >= 2
