"""Rollouts by a real controller over real servers to many simulated nodes: a bad release ends with its first wave, a
good one needs nobody, and servers that die, restart or lose what they had stop neither.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import json
import shutil
import signal
import time
from dataclasses import dataclass, field

import pytest
from msgspec import structs

from latticed.fleet import deployment
from latticed.fleet.controller.lease import LeasePeriods
from latticed.fleet.controller.settings import GateSettings
from latticed.fleet.engine import Conflict, EngineUnavailable
from latticed.fleet.rollout import WAVES
from latticed.model.errors import Problem
from tests.house import fleet_controllers, fleet_reports, fleets, long, nats_servers, simulated_fleets, simulated_nodes

WAIT_S = long.times(150, 1_500)
NODES = long.times(30, 1_000)
SIZES = WAVES if long.LONG else (2, 4, 8)
QUICK = {
    "install_s": 0.1,
    "pauses_s": (0.2, 0.5),
    "periods": {"reconcile_s": long.times(2, 20), "beat_s": long.times(1, 10)},
}
LEASE = LeasePeriods(ttl_s=8, renew_s=1.0, margin_s=1.0, look_s=0.2)
"""Longer than a machine under load keeps a process waiting: what is looked at here is not who leads."""
GATE = GateSettings(sizes=SIZES, settle_s=0.0, patience_s=float(WAIT_S))
_numbers = itertools.count(1)


@dataclass
class Rolling:
    """Servers, a controller and nodes that have the release `old`."""

    servers: nats_servers.Fleet
    controlled: fleet_controllers.Controlled
    nodes: simulated_fleets.SimulatedFleet
    reports: fleet_reports.Reports
    old: str = ""
    made: int = field(default=0)

    async def release(self, *, bad: bool = False, back_to: tuple[str, ...] | None = None) -> str:
        """Another intent, which the controller has."""
        self.made += 1
        identity = (simulated_nodes.BAD if bad else "000") + f"{self.made:061x}"
        back_to = ((self.old,) if self.old else ()) if back_to is None else back_to
        wanted = self.controlled.operator.intent(plugins=(fleets.plugin(identity=identity),), back_to=back_to)
        return await self.controlled.give(wanted)

    async def all_have(self, intent: str) -> None:
        """Until each node says that it has it, and is well."""
        await self.reports.until(lambda: all(self.settled(name, intent) for name in self.nodes.names))
        assert await self.nodes.counted(do="have") == {intent: len(self.nodes.names)}

    def settled(self, name: str, intent: str) -> bool:
        status = self.reports.statuses.get(name)
        return status is not None and status.settled and status.intent == intent

    async def all_told(self) -> None:
        """Until each event that a node's newest status counts is there, once and in order."""
        for name in self.nodes.names:
            await self.reports.until(
                lambda name=name: self.reports.numbers(name) == list(range(1, self.reports.statuses[name].events + 1))
            )

    async def all_gone(self) -> None:
        """Until each node knows that it has no connection."""
        await self.nodes.all_up(0)


@contextlib.asynccontextmanager
async def rolling(place, count, servers=1):
    operator = fleet_controllers.Operator("home")
    sizes = deployment.Sizes(nodes=count, bundles_bytes=8 << 20)
    with nats_servers.running(place / "nats", servers, sizes) as fleet:
        async with (
            asyncio.timeout(WAIT_S),
            fleet_controllers.running(fleet, place, operator=operator, gate=GATE, lease=LEASE) as controlled,
            simulated_fleets.running(fleet, count, place, **QUICK) as nodes,
            fleet_reports.followed(controlled.running.engine) as reports,
        ):
            await controlled.leads()
            await nodes.all_up()
            for number, name in enumerate(nodes.names):
                await controlled.give(operator.node(name, simulated_fleets.key_of(number)))
            found = Rolling(fleet, controlled, nodes, reports)
            found.old = await found.release()
            await controlled.reaches(await controlled.roll(found.old, sizes=(count,)), "done")
            await found.all_have(found.old)
            yield found


async def test_bad_release_touches_its_first_wave_alone_and_is_back_by_itself(tmp_path):
    async with rolling(tmp_path, NODES) as fleet:
        bad = await fleet.release(bad=True)
        ended = await fleet.controlled.reaches(await fleet.controlled.roll(bad), "returned")
        assert "not well" in ended.reason
        assert ended.touched == SIZES[0]
        assert len(await fleet.nodes.listed(do="touched", intent=bad)) == SIZES[0]
        await fleet.all_have(fleet.old)


async def test_good_release_goes_through_five_waves_and_nobody_is_asked(tmp_path):
    async with rolling(tmp_path, NODES) as fleet:
        good = await fleet.release()
        name = await fleet.controlled.roll(good)
        ended = await fleet.controlled.reaches(name, "done")
        assert [one.nodes for one in ended.waves] == ([10, 90, 400, 400, 100] if long.LONG else [2, 4, 8, 8, 8])
        await fleet.all_have(good)
        # Nobody of a wave had it before all of the one before.
        heard = await fleet.nodes.listed(do="touched_s", intent=good)
        wave_of = {
            node: number
            for number, wave in enumerate(fleet.controlled.core.rollouts[name].rollout().waves)
            for node in wave
        }
        times = collections.defaultdict(list)
        for node, at in heard:
            times[wave_of[node]].append(at)
        for number in range(4):
            assert max(times[number]) < min(times[number + 1])


async def test_engine_that_was_gone_in_mid_rollout_comes_back_to_each_node_once(tmp_path):
    """For so long that every node knows; nobody does anything when it is back, and none connects again and again."""
    async with rolling(tmp_path, NODES) as fleet:
        good = await fleet.release()
        name = await fleet.controlled.roll(good)
        await nats_servers.until(lambda: touched(fleet, good, SIZES[0]))
        fleet.servers.servers[0].kill()
        await fleet.all_gone()
        began_s = time.monotonic()
        await asyncio.to_thread(fleet.servers.servers[0].start)
        await fleet.controlled.reaches(name, "done")
        await fleet.all_have(good)
        assert len(await fleet.nodes.listed(do="connected", since=began_s)) == NODES
        await fleet.all_told()


async def test_engine_that_lost_its_last_minutes_is_filled_again_and_no_node_goes_back(tmp_path):
    """Its data of before a rollout is put in place of what it has: the controller puts there again what is missing."""
    async with rolling(tmp_path, NODES) as fleet:
        server = fleet.servers.servers[0]
        await asyncio.to_thread(server.stop)
        kept = shutil.copytree(server.directory, tmp_path / "kept")
        await asyncio.to_thread(server.start)
        good = await fleet.release()
        name = await rolled(fleet, good)
        await fleet.controlled.reaches(name, "done")
        await fleet.all_have(good)
        newest = {one: fleet.controlled.core.assignments[one].generation for one in fleet.nodes.names}

        await asyncio.to_thread(server.kill)
        shutil.rmtree(server.directory)
        shutil.copytree(kept, server.directory)
        await asyncio.to_thread(server.start)
        await fleet_controllers.until(lambda: fleet.controlled.leader.acts)
        await nats_servers.until(lambda: engine_has(fleet, good))
        assert await fleet.nodes.counted(do="have") == {good: NODES}
        assert {one: fleet.controlled.core.assignments[one].generation for one in fleet.nodes.names} == newest
        # It goes on from there.
        last = await fleet.release(back_to=(good,))
        await fleet.controlled.reaches(await rolled(fleet, last, sizes=(NODES,)), "done")
        await fleet.all_have(last)


async def rolled(fleet, intent, **fields):
    """Begin a rollout; asked for again, as an operator would, when the lease went back with the engine's data, or while
    there is no connection. One that began, though the engine did not say that it has it, goes on.
    """
    name = f"r{next(_numbers)}"
    while name not in fleet.controlled.core.rollouts:
        await fleet.controlled.leads()
        try:
            await fleet.controlled.roll(intent, name=name, **fields)
        except Problem as problem:
            if problem.code not in {"not_leader", "engine_unavailable"}:
                raise
            await asyncio.sleep(0.05)
    return name


async def engine_has(fleet, intent):
    """Whether the engine has, for each node, a document by which it is to have this intent."""
    with contextlib.suppress(EngineUnavailable):
        for name in fleet.nodes.names:
            found = await fleet.controlled.running.engine.desired(name)
            if found is None or assigned(found.data) != intent:
                return False
        return True
    return False


def assigned(document):
    """The intent that a desired document assigns."""
    return fleets.opened(json.dumps(json.loads(document)["assignment"]).encode())["intent"]


@pytest.mark.slow
async def test_waves_go_on_while_a_server_of_three_is_dead(tmp_path):
    count = long.times(14, 300)
    async with rolling(tmp_path, count, 3) as fleet:
        good = await fleet.release()
        name = await fleet.controlled.roll(good)
        await nats_servers.until(lambda: touched(fleet, good, SIZES[0]))
        engine = fleet.controlled.running.engine
        killed = fleet.servers.servers[await leader(engine, "KV_desired")]
        killed.kill()
        await fleet.controlled.reaches(name, "done")
        await fleet.all_have(good)
        # What was acknowledged is there, also where it was not when it was written.
        killed.start()
        await whole(engine)
        assert await engine_has(fleet, good)
        await fleet.all_told()


@pytest.mark.slow
async def test_operator_is_answered_though_the_servers_have_not_agreed_yet_on_what_was_said_before(
    tmp_path, monkeypatch
):
    """Until they have, they refuse what comes after it, and show what was there before it."""
    async with rolling(tmp_path, 2, 3) as fleet:
        name = await fleet.controlled.roll(await fleet.release())
        await fleet.controlled.reaches(name, "done")
        core, engine = fleet.controlled.core, fleet.controlled.running.engine
        connected = engine._connection._client().connected_url.port
        ours = next(number for number, one in enumerate(fleet.servers.servers) if one.port == connected)
        while (leads := await leader(engine, "KV_fleet")) != ours:
            with contextlib.suppress(EngineUnavailable):
                await engine._api("STREAM.LEADER.STEPDOWN.KV_fleet", None)
        slow = [one.process for number, one in enumerate(fleet.servers.servers) if number != leads]
        begun, refused, put = [], [], engine.put

        async def counted(key, *what, **options):
            begun.append(key)
            try:
                return await put(key, *what, **options)
            except Conflict:
                refused.append(key)
                raise

        monkeypatch.setattr(engine, "put", counted)
        for process in slow:
            process.send_signal(signal.SIGSTOP)
        try:
            before = asyncio.ensure_future(fleet.controlled.leader.share_rollout(core.rollouts[name]))
            await fleet_controllers.until(lambda: any(name in one for one in begun), lambda: f"{begun}")
            core.rollouts[name] = structs.replace(core.rollouts[name], reason="said later")
            said = asyncio.ensure_future(fleet.controlled.operations._share(core.rollouts[name]))
            await fleet_controllers.until(lambda: len(refused) > 3 or said.done(), lambda: f"{refused}")
        finally:
            for process in slow:
                process.send_signal(signal.SIGCONT)
        await said
        await asyncio.wait({before})
        before.exception()


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, *long.only(3)])
async def test_servers_are_restarted_in_turn_under_load(tmp_path, stopped):
    """One release after the other is given to all nodes, while servers are stopped and started in turn."""
    async with rolling(tmp_path, long.times(10, 300), 3) as fleet:
        restarted, done = asyncio.Event(), []

        async def load():
            while not restarted.is_set():
                release = await fleet.release(back_to=tuple(done[-1:]))
                name = await rolled(fleet, release, sizes=(len(fleet.nodes.names),))
                await fleet.controlled.reaches(name, "done")
                done.append(release)
                await asyncio.sleep(1.0)  # a node may say something sixty times in five minutes

        loading = asyncio.create_task(load())
        for server in fleet.servers.servers[:stopped]:
            seen = len(done)
            await asyncio.to_thread(server.stop)
            await nats_servers.until(lambda seen=seen: more(done, seen + 2))
            await asyncio.to_thread(server.start)
            await whole(fleet.controlled.running.engine)
        restarted.set()
        await loading
        await fleet.all_have(done[-1])
        await fleet.all_told()


async def more(found, count):
    return len(found) >= count


async def touched(fleet, intent, count):
    return len(await fleet.nodes.listed(do="touched", intent=intent)) >= count


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
