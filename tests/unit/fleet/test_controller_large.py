"""Rollouts over many hosts, whose names are made by chance: controllers tell each other of them, over a real server."""

from __future__ import annotations

import itertools
import random
import uuid

import pytest

from latticed.fleet.controller import lease, records, store
from latticed.fleet.controller.assigning import FleetNodeKey
from latticed.fleet.controller.settings import GateSettings
from latticed.model.errors import Problem
from tests.house import fleet_controllers as house
from tests.house import fleets, nats_servers
from tests.house.fleet_controllers import until

KEY = fleets.public(fleets.NODE)
_numbers = itertools.count(1)


@pytest.fixture
def operator():
    return house.Operator(f"large-{next(_numbers)}")


def started(servers, place, operator, name="c1"):
    # A lease that a busy machine does not lose: it is not what these tests are about.
    periods = lease.LeasePeriods(ttl_s=30, renew_s=0.4, margin_s=0.5, look_s=0.2)
    return house.running(servers, place, operator=operator, gate=GateSettings(), name=name, lease=periods)


async def known(controlled, count, name):
    """So many hosts that have joined."""
    chance = random.Random(count)
    names = [name(chance) for _ in range(count)]
    made = [FleetNodeKey(name=one, key=KEY, labels={"role": "web"}, serial=0) for one in names]
    async with controlled.core.changing:
        await controlled.core.write(lambda connection: store.put_nodes(connection, made))
        controlled.core.nodes.update({one.name: one for one in made})
    return sorted(names)


def of_uuid(chance):
    return str(uuid.UUID(int=chance.getrandbits(128)))


def of_ec2(chance):
    return f"i-0{chance.getrandbits(64):016x}"


@pytest.mark.parametrize("name", [of_uuid, of_ec2])
async def test_ten_thousand_hosts_are_rolled_out_over_and_another_controller_knows_it(fleet, operator, tmp_path, name):
    async with started(fleet, tmp_path, operator) as controlled:
        await controlled.leads()
        names = await known(controlled, 10_000, name)
        # What they go back to differs from host to host.
        chance, before = random.Random(7), [await controlled.give(operator.intent()) for _ in range(4)]
        intent = await controlled.give(operator.intent(back_to=tuple(before)))
        controlled.operations.ways_back = lambda _intent, nodes, _now_s: {one: chance.choice(before) for one in nodes}
        rolled = await controlled.roll(intent)
        record = controlled.core.rollouts[rolled]
        # At the first wave, which is then on disk and in the engine.
        await until(lambda: len(controlled.core.assignments) == 10)
        # And as large as it can become: of half of them what they had has expired.
        places = {place: {one for one in found if chance.random() < 0.5} for place, found in record.befores.items()}
        befores = {
            place: tuple(one for one in found if one not in places[place]) for place, found in record.befores.items()
        }
        befores[""] = tuple(sorted(set().union(*places.values())))
        async with controlled.core.changing:
            last = controlled.core.rollouts[rolled].changing(controlled.core.now_s(), befores=befores)
            await controlled.core.keep(rollouts=[last])
        key = f"{records.ROLLOUT}{rolled}"
        await until(lambda: controlled.leader._shared_steps.get(key, 0) >= last.step)
        await until(lambda: not controlled.leader.troubles)
    async with started(fleet, tmp_path, operator, name="c2") as other:
        await other.leads()
        assert list(other.core.rollouts[rolled].nodes) == names
        assert other.core.rollouts[rolled].befores == last.befores


async def refused(controlled, operator):
    intent = await controlled.give(operator.intent())
    with pytest.raises(Problem) as problem:
        await controlled.roll(intent)
    assert controlled.core.rollouts == {}
    return problem.value.code


@pytest.mark.parametrize(("count", "name"), [(20_001, of_ec2), (20_000, of_uuid)], ids=["nodes", "bytes"])
async def test_rollout_that_no_other_controller_could_be_told_of_is_refused(fleet, operator, tmp_path, count, name):
    async with started(fleet, tmp_path, operator) as controlled:
        await controlled.leads()
        await known(controlled, count, name)
        assert await refused(controlled, operator) == "too_large"
        await controlled.leads()


async def test_rollout_that_is_larger_than_a_message_of_the_server_is_refused(operator, tmp_path):
    servers = nats_servers.configured(tmp_path / "own")
    (server,) = servers.servers
    server.configuration.write_text(f"max_payload: 200KB\n{server.configuration.read_text()}")
    server.start()
    try:
        async with started(servers, tmp_path, operator) as controlled:
            await controlled.leads()
            await known(controlled, 10_000, of_uuid)
            assert await refused(controlled, operator) == "too_large"
    finally:
        server.stop()
