"""Three servers: what was acknowledged survives the death of any one of them, by SIGKILL, while nodes go on."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from latticed.fleet.engine import EngineUnavailable
from latticed.fleet.nats_engine import NatsEngine
from tests.house import long, nats_servers
from tests.house.nats_servers import until

KILLS = long.times(1, 5)
WAIT_S = 120 * KILLS
PAUSE_S = 0.1 * KILLS
"""Between two events of a node: of each node 256 are kept, and more are refused."""
NODES = 3


@pytest.fixture
def fleet(tmp_path):
    with nats_servers.running(tmp_path / "nats", 3) as running:
        yield running


async def leader(controller):
    """The number of the server that leads the stream of events."""
    while True:
        with contextlib.suppress(EngineUnavailable):
            info = await controller._api("STREAM.INFO.EVENTS", None)
            name = info.get("cluster", {}).get("leader")
            if name:
                return int(name.rpartition("-")[2]) - 1
        await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_nothing_acknowledged_is_lost_when_leaders_are_killed(fleet):
    acknowledged: dict[str, int] = {}

    async def write(name):
        async with fleet.connected(name) as connection:
            engine = NatsEngine(connection, name)
            while True:
                number = acknowledged.get(name, 0)
                with contextlib.suppress(EngineUnavailable):
                    await engine.publish_event(b"%d" % number, f"{name}-{number}")
                    acknowledged[name] = number + 1
                await asyncio.sleep(PAUSE_S)

    async with asyncio.timeout(WAIT_S), fleet.connected("controller") as connection:
        controller = await fleet.provide(connection)
        writers = [asyncio.create_task(write(f"node-{number}")) for number in range(NODES)]

        async def all_write_on():
            before = dict(acknowledged)
            await until(lambda: _two_more_each(acknowledged, before))

        try:
            await all_write_on()
            for _ in range(KILLS):
                killed = fleet.servers[await leader(controller)]
                killed.kill()
                await all_write_on()
                killed.start()
                await all_write_on()
        finally:
            for task in writers:
                task.cancel()
            await asyncio.wait(writers)

        kept: dict[str, list[int]] = {}
        wanted = sum(acknowledged.values())
        async with contextlib.aclosing(controller.events()) as batches:
            async for batch in batches:
                for one in batch:
                    kept.setdefault(one.subject.split(".")[1], []).append(int(one.data))
                if sum(map(len, kept.values())) >= wanted:
                    break
        # Each once, in order; the last may be there although its acknowledgement was not heard.
        for name, count in acknowledged.items():
            assert kept[name][:count] == list(range(count))
            assert len(kept[name]) <= count + 1


async def _two_more_each(acknowledged, before):
    names = [f"node-{number}" for number in range(NODES)]
    return all(acknowledged.get(name, 0) >= before.get(name, 0) + 2 for name in names)
