"""What controllers make of failures: killed, two of them, an engine that loses or invents, lost state, a full disk."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import itertools
import os
import random
import shutil
import sys
import time

import pytest

from latticed.fleet import controller_view as view
from latticed.fleet import documents
from latticed.fleet.controller import bundle_files, database, lease, records
from latticed.fleet.documents import Assignment
from latticed.fleet.nats_engine import NatsControllerEngine
from latticed.fleet.rollout import GatePolicy, RolloutState
from latticed.model.errors import Problem
from latticed.trust import key_files
from tests.house import bundles, controller_processes, fleets, long, nats_servers
from tests.house import fleet_controllers as house
from tests.house.fleet_controllers import until
from tests.unit.fleet import test_controller_process as files

_numbers = itertools.count(1)


@pytest.fixture
def operator():
    return house.Operator(f"failures-{next(_numbers)}")


@pytest.fixture
def servers(tmp_path):
    """A server of the test's own: others' controllers hold its lease otherwise, and it is killed."""
    with nats_servers.running(tmp_path / "own") as running:
        yield running


class Witness:
    """Every desired document that is published, by node: the generations in order, and which assignments had each."""

    def __init__(self) -> None:
        self.generations: dict[str, list[int]] = collections.defaultdict(list)
        self.assignments: dict[tuple[str, int], set[str]] = collections.defaultdict(set)

    async def watch(self, connection) -> None:
        async with contextlib.aclosing(connection.messages("$KV.desired.*", most=10_000)) as messages:
            async for message in messages:
                signed = documents.read(documents.unpack(message.data, most=1 << 20).assignment, Assignment)
                node = signed.document.node
                self.generations[node].append(signed.document.generation)
                self.assignments[node, signed.document.generation].add(signed.sha256)

    def check(self) -> None:
        """No generation was used for two assignments, and none went back."""
        assert {place: found for place, found in self.assignments.items() if len(found) > 1} == {}
        for node, seen in self.generations.items():
            assert seen == sorted(seen), node


@contextlib.asynccontextmanager
async def witnessed(servers):
    async with servers.connected("controller") as connection:
        witness = Witness()
        watching = asyncio.ensure_future(witness.watch(connection))
        try:
            yield witness
        finally:
            watching.cancel()
            await asyncio.wait({watching})
        witness.check()


class Simulated:
    """Nodes of controllers that are processes."""

    def __init__(self, servers, operator, names):
        self.servers, self.operator = servers, operator
        self.nodes = {name: house.SimulatedNode(None, operator, name) for name in names}

    @contextlib.asynccontextmanager
    async def living(self):
        async with house.revived(self.servers, self.nodes) as nodes:
            yield nodes

    async def have(self, intent: str) -> None:
        """Returns once all of them have it."""
        await until(lambda: self.having(intent) == len(self.nodes), lambda: str(self.having(intent)))

    def having(self, intent: str) -> int:
        return sum(one.state.present is not None and one.state.present.intent == intent for one in self.nodes.values())


async def asked(what, *arguments):
    return await asyncio.to_thread(what, *arguments)


async def certified(controller, simulated):
    """The controller is certified, and knows the nodes."""
    await asked(controller.certified)
    await asked(controller.leads)
    for one in simulated.nodes.values():
        await asked(controller.post, "documents", simulated.operator.node(one.name, one.public))
    await asked(
        controller.until, lambda: controller.get("fleet")["nodes"]["present"] == len(simulated.nodes), "nodes present"
    )


def is_over(controller, name):
    return state_of(controller, name) in {"done", "returned"}


def state_of(controller, name):
    return controller.get("fleet", "rollouts", name)["state"]


async def test_second_controller_goes_on_when_the_leader_is_killed_in_mid_rollout(servers, operator, tmp_path):
    simulated = Simulated(servers, operator, [f"k{one}" for one in range(8)])
    first = controller_processes.ControllerProcess(servers, tmp_path, operator=operator, name="c1")
    second = controller_processes.ControllerProcess(servers, tmp_path, operator=operator, name="c2")
    async with witnessed(servers), simulated.living() as nodes:
        try:
            await asked(first.start)
            await certified(first, simulated)
            await asked(second.start)
            await asked(second.certified)
            for one in nodes.values():
                one.settles = False
            intent = (await asked(first.post, "documents", operator.intent()))["sha256"]
            begun = await asked(first.post, "rollouts", {"intent": intent, "name": "r1"})
            assert begun["state"] == "running"
            await until(lambda: simulated.having(intent) == 2)
            # It has seen the other one lead, and so knows whose word about rollouts is the newest.
            await asked(second.until, lambda: second.ask("GET", "/api/fleet/rollouts/r1")[0] == 200, "to hear of it")
            status, problem = await asked(second.ask, "POST", "/api/fleet/rollouts/r1/halt", b"{}")
            assert (status, problem["code"]) == (503, "not_leader")
            assert "c1" in problem["hint"]
            await asked(first.kill)
            for one in nodes.values():
                one.settles = True
                await one.report()
            await asked(second.leads)
            await asked(second.until, lambda: state_of(second, "r1") == "done", "the rollout")
            assert simulated.having(intent) == 8
            # Who was killed comes back as the second, and knows how it ended.
            await asked(first.start)
            await asked(first.until, lambda: state_of(first, "r1") == "done", "to have heard")
            assert first.get("fleet")["leader"] is False
        finally:
            for one in (first, second):
                if one.process is not None:
                    await asked(one.stop)


async def test_killed_at_random_points_it_uses_no_generation_twice_and_goes_on(servers, operator, tmp_path):
    chance = random.Random(20)
    simulated = Simulated(servers, operator, [f"x{one}" for one in range(12)])
    controller = controller_processes.ControllerProcess(servers, tmp_path, operator=operator)
    async with witnessed(servers) as witness, simulated.living():
        try:
            await asked(controller.start)
            await certified(controller, simulated)
            before = ()
            for number in range(long.times(3, 30)):
                intent = (await asked(controller.post, "documents", operator.intent(back_to=before)))["sha256"]
                name = f"r{number}"
                await asked(controller.leads)
                await asked(controller.post, "rollouts", {"intent": intent, "name": name})
                await asyncio.sleep(chance.uniform(0, 0.6))
                if chance.random() < 0.3:
                    with contextlib.suppress(AssertionError):  # it may be over
                        await asked(controller.post, f"rollouts/{name}/back", {})
                    await asyncio.sleep(chance.uniform(0, 0.2))
                await asked(controller.kill)
                await asked(controller.start)
                await asked(controller.leads)
                over = functools.partial(is_over, controller, name)
                await asked(controller.until, over, f"{name} over")
                if state_of(controller, name) == "done":
                    await simulated.have(intent)
                    before = (intent,)
            assert len(witness.generations) == 12
        finally:
            await asked(controller.stop)


async def test_engine_that_has_lost_everything_is_filled_again(servers, operator, tmp_path):
    names = [f"w{one}" for one in range(5)]
    async with house.running(servers, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        bundle = bundles.drop(tmp_path, "x", author=bundles.author("acme"), v2=True, id="acme.demo")
        sha256, data = files.tarred(tmp_path / "y", id="acme.demo")
        assert bundle.path.exists()

        async def body():
            yield data

        await controlled.operations.take_bundle(sha256, body())
        async with house.nodes(servers, controlled, names) as nodes:
            intent = await controlled.give(operator.intent())
            await controlled.reaches(await controlled.roll(intent), "done")
            before = {one.name: one.state.generation for one in nodes.values()}
            servers.servers[0].kill()
            shutil.rmtree(servers.servers[0].directory / "jetstream")
            servers.servers[0].start()
            engine = controlled.running.engine
            await until(lambda: controlled.running.connection.up)
            await controlled.leads()

            async def all_there():
                found = [await engine.desired(name) for name in names]
                return None not in found and await engine.chunks_kept(sha256) == 1

            await nats_servers.until(lambda: quiet(all_there()))
            later = await controlled.give(operator.intent(back_to=(intent,)))
            await controlled.reaches(await controlled.roll(later), "done")
            # The same assignments were put there again: none was made anew.
            assert {one.name: [number for number, _ in one.seen] for one in nodes.values()} == {
                name: [number, number + 1] for name, number in before.items()
            }


async def test_bundle_is_handed_over_again_after_a_backup_was_restored_and_the_engine_lost_everything(
    servers, operator, tmp_path
):
    """A backup says which bundles there were, and has no file of them."""
    sha256, data = files.tarred(tmp_path / "x", id="acme.demo")

    async def body():
        yield data

    async with house.running(servers, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        first = await controlled.operations.take_bundle(sha256, body())
        (listed,) = (await controlled.operations.bundles()).bundles
        assert (first.new, listed.here) == (True, True)
        backup = (await controlled.operations.backup(view.BackupWanted(name="one.db"))).path
        key = controlled.running.settings.state_dir + "/key"
    servers.servers[0].kill()
    shutil.rmtree(servers.servers[0].directory / "jetstream")
    servers.servers[0].start()
    state = tmp_path / "restored/c1"
    state.mkdir(mode=0o700, parents=True)
    shutil.copy(backup, state / "controller.db")
    shutil.copy(key, state / "key")
    async with house.running(servers, tmp_path / "restored", operator=operator) as controlled:
        await controlled.leads()
        # Room for the one bundle: it does not count beside itself.
        controlled.operations._coming = bundle_files.Coming(len(data))
        assert [one.here for one in (await controlled.operations.bundles()).bundles] == [False]
        again = await controlled.operations.take_bundle(sha256, body())
        assert (again.new, again.here, again.id) == (False, True, "acme.demo")
        assert [one.here for one in (await controlled.operations.bundles()).bundles] == [True]
        assert await controlled.running.engine.chunks_kept(sha256) == 1


async def quiet(asking):
    """False while the engine does not answer."""
    from latticed.fleet.engine import EngineUnavailable

    try:
        return await asking
    except EngineUnavailable:
        return False


async def test_engine_that_shows_older_documents_or_none_is_corrected(servers, operator, tmp_path):
    async with house.running(servers, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        async with house.node(servers, controlled, "o1") as node, servers.connected("controller") as connection:
            await until(lambda: "o1" in controlled.core.present)
            engine = NatsControllerEngine(connection)
            first = await controlled.give(operator.intent())
            await controlled.reaches(await controlled.roll(first), "done")
            old = await engine.desired("o1")
            second = await controlled.give(operator.intent(back_to=(first,)))
            await controlled.reaches(await controlled.roll(second), "done")
            wanted = await engine.desired("o1")
            for lie in (old.data, b"{}", b"\xff" * 100):
                kept = await engine.desired("o1")
                await engine.put_desired("o1", lie, kept.revision)

                async def corrected():
                    return (await engine.desired("o1")).data == wanted.data

                await nats_servers.until(corrected)
            await until(lambda: ("desired_foreign", "o1") in controlled.core.alarms)
            assert node.state.present.intent == second
            assert controlled.core.assignments["o1"].generation == 2


async def test_controller_that_loses_its_lease_stops_at_once(servers, operator, tmp_path):
    async with house.running(servers, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        async with house.nodes(servers, controlled, ["l1", "l2"]), servers.connected("controller") as connection:
            engine = NatsControllerEngine(connection)
            intent = await controlled.give(operator.intent())
            thief = {"holder": "c9", "instance": "f" * 32, "at": 1, "until": 2}
            await steal(engine, thief)
            await until(lambda: not controlled.running.lease.held)
            with pytest.raises(Problem) as refused:
                await controlled.roll(intent)
            assert refused.value.code == "not_leader"
            assert "c9" in refused.value.hint
            assert await engine.desired("l1") is None
            assert "lease_lost" in codes(controlled)
            # Nobody renews it: it is taken again, and the rollout can begin.
            await controlled.leads()
            await controlled.reaches(await controlled.roll(intent), "done")


LONG_LEASE = lease.LeasePeriods(ttl_s=30, renew_s=0.4, margin_s=0.5, look_s=0.2)


async def known(controlled, operator, names):
    """The controller knows nodes of these names, which are away."""
    for name in names:
        await controlled.give(operator.node(name, fleets.public(key_files.generate())))


async def test_controller_whose_lease_ended_without_the_message_system_sends_nobody_to_itself(operator, tmp_path):
    with nats_servers.running(tmp_path / "own") as servers:
        async with house.running(servers, tmp_path, operator=operator) as controlled:
            await controlled.leads()
            intent = await controlled.give(operator.intent())
            servers.servers[0].kill()
            await until(lambda: not controlled.running.lease.held)
            with pytest.raises(Problem) as refused:
                await controlled.roll(intent)
            assert refused.value.code == "not_leader"
            assert refused.value.hint == "ask again once the message system can be reached"


async def test_operator_who_is_answered_has_told_the_controller_that_takes_over(servers, operator, tmp_path):
    """The leader goes away at once, before its next round."""
    async with (
        house.running(servers, tmp_path, operator=operator) as first,
        house.running(servers, tmp_path, operator=operator, name="c2") as second,
    ):
        await until(lambda: first.leader.acts or second.leader.acts)
        leads, other = (first, second) if first.leader.acts else (second, first)
        await known(leads, operator, ["h1", "h2", "h3"])
        intent = await leads.give(operator.intent())
        await ended(leads, "controller lead")
        name = await leads.roll(intent, policy=view.PolicyView(patience_s=3_600))
        assert (await leads.operations.act(name, "halt", "the shop is slow")).state == "halted"
        await ended(leads, "controller keep")
        await leads.running.lease.release()
        await other.leads()
        assert (other.rollout(name).state, other.rollout(name).reason) == ("halted", "the shop is slow")


async def ended(controlled, name):
    """End the tasks of a controller that have this name."""
    tasks = [one for one in controlled.running._tasks if one.get_name() == name]
    for one in tasks:
        one.cancel()
    await asyncio.wait(tasks)


async def test_operator_is_told_that_other_controllers_may_not_know(servers, operator, tmp_path):
    async with house.running(servers, tmp_path, operator=operator, lease=LONG_LEASE) as controlled:
        await controlled.leads()
        await known(controlled, operator, ["h1", "h2", "h3"])
        intent = await controlled.give(operator.intent())
        name = await controlled.roll(intent, policy=view.PolicyView(patience_s=3_600))
        servers.servers[0].kill()
        with pytest.raises(Problem, match="it is kept here, and others may not know of it") as refused:
            await controlled.operations.act(name, "halt", "")
        assert refused.value.code == "engine_unavailable"
        assert controlled.rollout(name).state == "halted"
        await until(lambda: not controlled.running.connection.up)
        with pytest.raises(Problem) as refused:
            await controlled.roll(intent, name="more")
        assert refused.value.code == "engine_unavailable"
        servers.servers[0].start()

        async def told():
            kept = await controlled.running.engine.get(f"rollout-{name}")
            return records.found(kept.data, controlled.core.shelf).state == "halted"

        await nats_servers.until(lambda: quiet(told()))


async def test_rollout_does_not_begin_by_a_controller_that_lost_its_lease_while_it_was_asked(
    servers, operator, tmp_path
):
    async with (
        house.running(servers, tmp_path, operator=operator) as controlled,
        servers.connected("controller") as connection,
    ):
        await controlled.leads()
        await known(controlled, operator, ["h1"])
        intent = await controlled.give(operator.intent())
        async with controlled.core.changing:
            asking = asyncio.ensure_future(controlled.roll(intent))
            await asyncio.sleep(0)  # it waits for its turn
            await steal(NatsControllerEngine(connection), {"holder": "c9", "instance": "f" * 32, "at": 1, "until": 2})
            await until(lambda: not controlled.running.lease.held)
        with pytest.raises(Problem) as refused:
            await asking
        assert refused.value.code == "not_leader"
        assert controlled.core.rollouts == {}


async def test_rollout_that_nobody_was_told_of_ends_where_another_has_its_nodes_since(servers, operator, tmp_path):
    nodes = [operator.node(name, fleets.public(key_files.generate())) for name in ("h1", "h2", "h3")]
    policy = view.PolicyView(patience_s=3_600)
    async with house.running(servers, tmp_path, operator=operator, lease=LONG_LEASE) as first:
        await first.leads()
        for one in nodes:
            await first.give(one)
        intent = await first.give(operator.intent())
        async with (
            first.core.changing
        ):  # from here to the rollout nothing else runs: it does not see that the server is gone
            servers.servers[0].kill()
        with pytest.raises(Problem) as refused:
            await first.roll(intent, name="untold", policy=policy)
        assert refused.value.code == "engine_unavailable"
        began = first.core.rollouts["untold"].began
    servers.servers[0].start()
    async with servers.connected("controller") as connection:
        engine = NatsControllerEngine(connection)
        await engine.put("lease", b"", (await engine.get("lease")).revision, ttl_s=1)
    async with house.running(servers, tmp_path, operator=operator, name="c2") as second:
        await second.leads()
        for one in nodes:
            await second.give(one)
        intent = await second.give(operator.intent())
        await until(lambda: second.core.now_s() > began)
        await second.roll(intent, name="told", policy=policy)
        assert "untold" not in second.core.rollouts
    async with house.running(servers, tmp_path, operator=operator) as first:
        await first.leads()
        assert first.rollout("told").state == "running"
        assert (first.rollout("untold").state, first.core.rollouts["untold"].over) == ("halted", True)
        assert "the rollout told has its nodes" in first.rollout("untold").reason


@pytest.fixture
async def three_nodes(servers, operator, tmp_path):
    """`led()`: a controller of three nodes that leads, always with the same database."""

    @contextlib.asynccontextmanager
    async def led():
        async with house.running(servers, tmp_path, operator=operator, lease=LONG_LEASE) as controlled:
            await controlled.leads()
            for name in ("h1", "h2", "h3"):
                if name not in controlled.core.nodes:
                    await controlled.give(operator.node(name, fleets.public(key_files.generate())))
            yield controlled

    return led


async def test_rollout_of_before_closes_none_though_the_clock_was_ahead_when_it_began(three_nodes, operator):
    async with three_nodes() as controlled:
        intent = await controlled.give(operator.intent())
        controlled.core.clock = lambda: time.time() + 600
        await controlled.roll(intent, name="bad", policy=view.PolicyView(patience_s=3_600))
        await controlled.operations.act("bad", "halt", "it is bad")
        controlled.core.clock = time.time
        await controlled.roll(intent, name="mended", policy=view.PolicyView(patience_s=3_600))
        assert controlled.core.rollouts["bad"].closed
    async with three_nodes() as controlled:
        assert controlled.rollout("mended").state == "running"


async def test_rollout_of_before_that_is_done_ends_none_once_the_clock_that_was_ahead_is_set_back(
    three_nodes, operator
):
    """Nor does it get the nodes back."""
    async with three_nodes() as controlled:
        anyway = view.PolicyView(patience_s=3_600, away_share=1.0)
        zeroth = await controlled.give(operator.intent())
        await controlled.reaches(await controlled.roll(zeroth, policy=anyway), "done")
        controlled.core.clock = lambda: time.time() + 600
        first = await controlled.give(operator.intent(back_to=(zeroth,)))
        await controlled.reaches(await controlled.roll(first, name="first", policy=anyway), "done")
        controlled.core.clock = time.time
        second = await controlled.give(operator.intent(back_to=(first,)))
        await controlled.roll(second, name="second", policy=view.PolicyView(patience_s=3_600))
        with pytest.raises(Problem) as refused:
            await controlled.operations.act("first", "back", "")
        assert refused.value.code == "invalid_transition"
        assert (controlled.rollout("first").state, controlled.rollout("first").reason) == ("done", "")
        controlled.core.clock = lambda: time.time() + 1_200
        epoch = controlled.running.lease.epoch
        await controlled.running.lease.release()
        await until(lambda: controlled.leader.acts and controlled.running.lease.epoch != epoch)
        assert (controlled.rollout("second").state, controlled.core.rollouts["second"].closed) == ("running", False)


async def test_record_of_a_stolen_key_that_began_in_the_future_closes_no_rollout(three_nodes, operator):
    stolen = key_files.generate()
    async with three_nodes() as controlled:
        await controlled.give(operator.controller(fleets.public(stolen), "c2"))
        left = records.begun(
            "left",
            ("h1", "h2", "h3"),
            release="a" * 64,
            has={},
            policy=GatePolicy(),
            sizes=(1,),
            sources=(),
            now_s=2**53 - 1,
        ).changing(2**53 - 1, state=RolloutState.DONE)
        key, envelope = records.shared(left, stolen, fleet=operator.fleet, controller="c2", now_s=1)
        assert await controlled.core.learn_record(envelope, key)
        await controlled.give(operator.revocations(fleets.public(stolen)))
        await controlled.roll(await controlled.give(operator.intent()), name="real")
    async with three_nodes() as controlled:
        assert (controlled.rollout("real").state, controlled.core.rollouts["real"].closed) == ("running", False)


async def test_lease_ends_while_its_host_is_suspended(servers, monkeypatch):
    """The engine does not wait for it; a clock that stands still in a suspend would have it act long after."""
    async with servers.connected("controller") as connection:
        engine = await servers.provide(connection)
        held = lease.Lease(engine, "c1")
        keeping = asyncio.ensure_future(held.keep())
        try:
            await until(lambda: held.held)
            asleep = time.clock_gettime(time.CLOCK_BOOTTIME) + 3_600
            monkeypatch.setattr(time, "clock_gettime", {time.CLOCK_BOOTTIME: asleep}.__getitem__)
            assert not held.held
        finally:
            keeping.cancel()
            await asyncio.wait({keeping})


async def test_bundles_that_come_together_share_the_room(servers, operator, tmp_path):
    """Each of them would have fitted alone."""
    async with house.running(servers, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        operations = controlled.operations
        size = servers.sizes.bundles_bytes
        going = asyncio.Event()

        async def half():
            for _ in range(10):
                yield bytes(size // 20)
            await going.wait()

        async def most():
            for _ in range(15):
                yield bytes(size // 20)

        first = asyncio.ensure_future(operations.take_bundle("a" * 64, half()))
        await until(lambda: sum(one for (one,) in operations._coming._arrived) >= size // 2 - 20)
        with pytest.raises(Problem) as refused:
            await operations.take_bundle("b" * 64, most())
        assert refused.value.code == "quota_exceeded"
        going.set()
        with pytest.raises(Problem) as refused:
            await first
        assert refused.value.code == "bundle_mismatch"
        # What did not come to be leaves its room to others.
        with pytest.raises(Problem) as refused:
            await operations.take_bundle("b" * 64, most())
        assert refused.value.code == "bundle_mismatch"


async def steal(engine, thief):
    import msgspec

    from latticed.fleet.engine import Conflict

    while True:
        kept = await engine.get("lease")
        with contextlib.suppress(Conflict):
            await engine.put("lease", msgspec.json.encode(thief), kept.revision if kept else 0, ttl_s=3)
            return


def codes(controlled):
    from latticed.fleet.controller import views

    return {one.code for one in views.alarms(controlled.core, controlled.running.facts())}


async def test_lost_state_is_rebuilt_from_what_the_fleet_has(servers, operator, tmp_path):
    names = [f"b{one}" for one in range(7)]
    async with house.running(servers, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        async with house.nodes(servers, controlled, names) as nodes:
            first = await controlled.give(operator.intent())
            await controlled.reaches(await controlled.roll(first), "done")
            for one in nodes.values():
                one.settles = False
            second = await controlled.give(operator.intent(back_to=(first,)))
            begun = await controlled.roll(second)
            await until(lambda: sum(one.state.present.intent == second for one in nodes.values()) == 2)
            await controlled.give(operator.revocations(fleets.public(fleets.STRANGER)))
            await until(lambda: controlled.leader._shared_steps.get(f"rollout-{begun}"))
            await until(lambda: all(fleets.public(fleets.STRANGER) in one.state.revoked for one in nodes.values()))
            generations = {name: one.generation for name, one in controlled.core.assignments.items()}
            documents_before = {one.sha256 for _, one in controlled.core.shelf.envelopes()}
            kept = {one.name: one for one in nodes.values()}
    aside = await database.set_aside(tmp_path / "c1")
    assert aside is not None
    async with house.running(servers, tmp_path, operator=operator, certify=False) as again:
        await again.leads()
        async with house.revived(servers, kept) as nodes:
            await until(lambda: set(names) <= again.core.present)
            assert {one.sha256 for _, one in again.core.shelf.envelopes()} >= documents_before
            assert {name: one.generation for name, one in again.core.assignments.items()} == generations
            # Whether it is the newest word about it nobody can tell.
            assert again.rollout(begun).state == "halted"
            assert "state_rebuilt" in codes(again)
            for one in nodes.values():
                one.settles = True
                await one.report()
            await again.operations.act(begun, "resume", "")
            # Whoever takes over once more knows by now whose word it is.
            again.leader._taken_over = None
            await again.leads()
            await again.reaches(begun, "done")
            assert {one.state.present.intent for one in nodes.values()} == {second}
            for one in nodes.values():
                numbers = [number for number, _ in one.seen]
                assert numbers == sorted(set(numbers))


FULL = """
import asyncio, os, pathlib, sys
from latticed.fleet.controller import database, lease
from latticed.model.errors import Problem

place = pathlib.Path(sys.argv[1])

async def main():
    async with database.opened(place / "state") as base:
        number = 0
        def change(connection):
            connection.execute("INSERT INTO sources VALUES (?, ?)", (str(number), b"x" * 20_000))
        kept = 0
        try:
            while True:
                await base.write(change, durable=True)
                kept += 1
                number += 1
        except Problem as problem:
            print(problem.code)
        count = lambda connection: connection.execute("SELECT count(*) FROM sources").fetchone()[0]
        print(await base.read(count) == kept)
        try:
            await base.backup(place / "copy.db")
        except Problem as problem:
            print(problem.code, (place / "copy.db").exists())
        (place / "ballast").unlink()
        await base.write(change, durable=True)
    async with database.opened(place / "state") as base:
        print(await base.read(count) == kept + 1)

(place / "state").mkdir(0o700)
(place / "ballast").write_bytes(b"b" * (1 << 20))
asyncio.run(main())
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to mount")
async def test_full_disk_keeps_what_was_kept_and_takes_more_once_there_is_room(tmp_path):
    small = ("unshare", "-m", "mount", "-t", "tmpfs", "none", str(tmp_path))
    trial = await asyncio.create_subprocess_exec(*small, stderr=asyncio.subprocess.DEVNULL)
    if await trial.wait():
        pytest.skip("no mount namespace can be made here")
    script = f'mount -t tmpfs -o size=4m,mode=0700 none "$0" && exec "{sys.executable}" -P -c "$1" "$0"'
    done = await asyncio.create_subprocess_exec(
        "unshare", "-m", "sh", "-c", script, str(tmp_path), FULL, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await done.communicate()
    assert said.decode().split("\n") == ["store_unavailable", "True", "store_unavailable False", "True", ""]


async def test_what_the_disk_does_not_take_is_published_to_nobody(servers, operator, tmp_path):
    async with house.running(servers, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        base = controlled.core.database
        async with house.nodes(servers, controlled, ["d1", "d2"]) as nodes:
            intent = await controlled.give(operator.intent())
            async with house.full(base):
                with pytest.raises(Problem) as refused:
                    await controlled.roll(intent)
                assert refused.value.code == "store_unavailable"
                assert "store_unavailable" in codes(controlled)
                assert controlled.core.rollouts == {}
                assert all(one.state.present is None for one in nodes.values())
            await controlled.reaches(await controlled.roll(intent), "done")
            assert "store_unavailable" not in codes(controlled)


async def test_controllers_that_know_nothing_of_each_other_agree_on_documents(servers, operator, tmp_path):
    async with (
        house.running(servers, tmp_path, operator=operator, name="c1") as first,
        house.running(servers, tmp_path, operator=operator, name="c2") as second,
    ):
        await until(lambda: first.leader.acts or second.leader.acts)
        leads, follows = (first, second) if first.leader.acts else (second, first)
        async with house.node(servers, leads, "a1"):
            # Before the node says how it is: who does not know it yet has that with its next status, after minutes.
            await until(lambda: "a1" in follows.core.nodes)
            intent = await leads.give(operator.intent())
            await leads.reaches(await leads.roll(intent), "done")
            await until(lambda: intent in follows.core.shelf.intents)
            await until(lambda: "a1" in follows.core.statuses)
            assert not follows.leader.acts


async def test_record_by_nobody_who_is_certified_is_not_believed(servers, operator, tmp_path):
    from latticed.fleet.controller import records

    async with house.running(servers, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        async with house.node(servers, controlled, "h1") as node, servers.connected("controller") as connection:
            await until(lambda: "h1" in controlled.core.present)
            intent = await controlled.give(operator.intent())
            record = records.begun(
                "evil",
                ("h1",),
                release=intent,
                has={},
                policy=house.GATE.policy,
                sizes=(1,),
                sources=(),
                now_s=1,
            )
            key, envelope = records.shared(record, fleets.STRANGER, fleet=operator.fleet, controller="c1", now_s=1)
            engine = NatsControllerEngine(connection)
            await engine.put(key, envelope, 0)
            later = await controlled.give(operator.intent())
            await controlled.reaches(await controlled.roll(later), "done")
            await asyncio.sleep(0)
            assert "evil" not in controlled.core.rollouts
            assert node.state.present.intent == later
