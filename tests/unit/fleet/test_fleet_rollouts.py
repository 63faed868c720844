"""Rollouts over real servers to simulated nodes: a bad release ends with its first wave, a good one needs nobody, and
servers that die or are restarted meanwhile stop neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time

import pytest

from latticed.fleet import deployment, documents
from latticed.fleet.engine import EngineUnavailable
from latticed.fleet.rollout import WAVES, RolloutState
from tests.house import fleets, long, nats_servers, rollout_driver, simulated_fleets

WAIT_S = long.times(150, 1_500)
NODES = long.times(30, 1_000)
SIZES = WAVES if long.LONG else (2, 4, 8)
QUICK = {"install_s": 0.1, "pauses_s": (0.2, 0.5), "periods": {"reconcile_s": 2.0, "beat_s": long.times(1, 10)}}


@contextlib.asynccontextmanager
async def rolling(place, count, servers=1):
    """Servers, `count` nodes that have a first release, and who drives rollouts."""
    sizes = deployment.Sizes(nodes=count, bundles_bytes=8 << 20)
    with nats_servers.running(place / "nats", servers, sizes) as fleet:
        async with (
            asyncio.timeout(WAIT_S),
            fleet.connected("controller") as connection,
            simulated_fleets.running(fleet, count, place, **QUICK) as nodes,
        ):
            engine = await fleet.provide(connection)
            async with rollout_driver.driven(engine, nodes) as driver:
                await nodes.all_up()
                old = nodes.intent(1)
                await driver.assign(old)
                await driver.reports.until(lambda: all(driver.reports.settled(one, old) for one in nodes.names))
                yield fleet, driver, old


async def test_bad_release_touches_its_first_wave_alone_and_is_back_by_itself(tmp_path):
    async with rolling(tmp_path, NODES) as (_, driver, old):
        bad = driver.nodes.intent(2, bad=True, back_to=(documents.name_of(old),))
        ended = await driver.roll(bad, before=old, sizes=SIZES)
        assert ended.state is RolloutState.RETURNED
        assert "not well" in ended.reason
        assert set(await driver.nodes.listed(do="touched", intent=documents.name_of(bad))) == set(ended.waves[0])
        await driver.reports.until(lambda: all(driver.reports.settled(one, old) for one in driver.nodes.names))
        assert await driver.nodes.counted(do="have") == {documents.name_of(old): NODES}


async def test_good_release_goes_through_five_waves_and_nobody_is_asked(tmp_path):
    async with rolling(tmp_path, NODES) as (_, driver, old):
        good = driver.nodes.intent(2, back_to=(documents.name_of(old),))
        ended = await driver.roll(good, before=old, sizes=SIZES)
        assert ended.state is RolloutState.DONE
        assert [len(one) for one in ended.waves] == ([10, 90, 400, 400, 100] if long.LONG else [2, 4, 8, 8, 8])
        assert await driver.nodes.counted(do="have") == {documents.name_of(good): NODES}
        # Nobody of a wave was given it before all of the one before had it.
        given = driver.given_s[documents.name_of(good)]
        had = {name: at for name, _, at in await driver.nodes.listed(do="heard", generation=None)}
        for one, two in itertools.pairwise(ended.waves):
            assert max(had[name] for name in one) < min(given[name] for name in two)


async def test_controller_that_is_revoked_in_mid_rollout_moves_no_node_any_more(tmp_path):
    """Another one goes on with what an operator signed; each node refuses the revoked one, whatever it assigns."""
    async with rolling(tmp_path, NODES) as (_, driver, old):
        nodes, good = driver.nodes, driver.nodes.intent(2, back_to=(documents.name_of(old),))
        await driver.assign(good, nodes.names[:3])
        nodes.controller = fleets.OTHER_CONTROLLER
        listed = nodes.fleet.revocations(fleets.public(fleets.CONTROLLER))
        nodes.revocations = documents.sign(listed, fleets.OPERATOR)
        assert (await driver.roll(good, before=old, sizes=SIZES)).state is RolloutState.DONE
        await driver.assign(nodes.intent(3))
        await nodes.all_have(driver.generation)

        nodes.controller, nodes.revocations = fleets.CONTROLLER, None
        had = await nodes.counted(do="have")
        await driver.assign(good)
        await nats_servers.until(lambda: all_refuse(nodes, "controller_revoked"))
        assert await nodes.counted(do="have") == had


async def all_refuse(nodes, code):
    return (await nodes.counted(do="refused"))[code] >= len(nodes.names)


async def test_engine_that_was_gone_in_mid_rollout_comes_back_to_each_node_once(tmp_path):
    """For so long that every node knows; nobody does anything when it is back, and none connects again and again."""
    async with rolling(tmp_path, NODES) as (fleet, driver, old):
        good = driver.nodes.intent(2, back_to=(documents.name_of(old),))
        rolled = asyncio.create_task(driver.roll(good, before=old, sizes=SIZES))
        await nats_servers.until(lambda: has(driver.given_s.get(documents.name_of(good))))
        fleet.servers[0].kill()
        await driver.nodes.all_up(0)
        began_s = time.monotonic()
        await asyncio.to_thread(fleet.servers[0].start)
        assert (await rolled).state is RolloutState.DONE
        assert await driver.nodes.counted(do="have") == {documents.name_of(good): NODES}
        assert len(await driver.nodes.listed(do="connected", since=began_s)) == NODES
        await driver.reports.until(lambda: all(complete(driver, one) for one in driver.nodes.names))


@pytest.mark.slow
async def test_waves_go_on_while_a_server_of_three_is_dead(tmp_path):
    count = long.times(14, 300)
    sizes = (2, 4, 8) if not long.LONG else (10, 90, 100)
    async with rolling(tmp_path, count, 3) as (fleet, driver, old):
        good = driver.nodes.intent(2, back_to=(documents.name_of(old),))
        rolled = asyncio.create_task(driver.roll(good, before=old, sizes=sizes))
        name = documents.name_of(good)
        await nats_servers.until(lambda: has(len(driver.given_s.get(name, ())) >= sizes[0]))
        killed = fleet.servers[await leader(driver.engine, "KV_desired")]
        killed.kill()
        ended = await rolled
        assert ended.state is RolloutState.DONE
        assert await driver.nodes.counted(do="have") == {name: count}
        # What was acknowledged is there, also where it was not when it was written.
        killed.start()
        await whole(driver.engine)
        for one in driver.nodes.names:
            assert (await driver.engine.desired(one)).revision == driver.nodes.revisions[one]
        await driver.reports.until(lambda: all(complete(driver, one) for one in driver.nodes.names))


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, *long.only(3)])
async def test_servers_are_restarted_in_turn_under_load(tmp_path, stopped):
    """Documents go on to be written, each until it is acknowledged, while servers are stopped and started in turn."""
    async with rolling(tmp_path, long.times(10, 300), 3) as (fleet, driver, _):
        generations = itertools.count(2)
        restarted = asyncio.Event()
        last = None

        async def load():
            nonlocal last
            while not restarted.is_set():
                last = driver.nodes.intent(next(generations))
                await driver.assign(last)

        loading = asyncio.create_task(load())
        for server in fleet.servers[:stopped]:
            seen = driver.generation
            await asyncio.to_thread(server.stop)
            await nats_servers.until(lambda seen=seen: has(driver.generation >= seen + 2))
            await asyncio.to_thread(server.start)
            await whole(driver.engine)
        restarted.set()
        await loading
        await driver.reports.until(lambda: all(driver.reports.settled(one, last) for one in driver.nodes.names))
        assert await driver.nodes.counted(do="have") == {documents.name_of(last): len(driver.nodes.names)}
        await driver.reports.until(lambda: all(complete(driver, one) for one in driver.nodes.names))


def complete(driver, node):
    """Whether each event that a node's newest status counts is there, once and in order."""
    numbers = driver.reports.numbers(node)
    return numbers == list(range(1, driver.reports.statuses[node].events + 1))


async def has(value):
    return value


async def leader(engine, stream):
    """The number of the server that leads a stream."""
    while True:
        with contextlib.suppress(EngineUnavailable):
            name = (await engine._api(f"STREAM.INFO.{stream}", None)).get("cluster", {}).get("leader")
            if name:
                return int(name.rpartition("-")[2]) - 1
        await asyncio.sleep(0.1)


async def whole(engine):
    """Until every stream has its leader and two replicas that are current."""
    for stream in ("KV_desired", "EVENTS", "STATUS", "PRESENCE", "KV_fleet", "BUNDLES"):
        while True:
            with contextlib.suppress(EngineUnavailable):
                found = (await engine._api(f"STREAM.INFO.{stream}", None)).get("cluster", {})
                if found.get("leader") and all(one.get("current") for one in found.get("replicas", [{}])):
                    break
            await asyncio.sleep(0.1)
