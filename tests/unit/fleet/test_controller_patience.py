"""A rollout loses patience over what its controller could have heard: not over an outage, or a clock that is set."""

from __future__ import annotations

import itertools
import time

import pytest

from latticed.fleet import controller_view as view
from latticed.fleet.controller import observing, views
from tests.house import fleet_controllers as house
from tests.house import nats_servers
from tests.house.fleet_controllers import until

_numbers = itertools.count(1)
NAMES = ["p1", "p2", "p3", "p4"]


@pytest.fixture
def operator():
    return house.Operator(f"patience-{next(_numbers)}")


@pytest.fixture
def servers(tmp_path):
    """A server of the test's own, which is killed."""
    with nats_servers.running(tmp_path / "own") as running:
        yield running


async def begun(controlled, operator, nodes, **policy):
    """A rollout that all nodes have taken up and are at still; they have another release to go back to."""
    first = await controlled.give(operator.intent())
    await controlled.reaches(await controlled.roll(first), "done")
    second = await controlled.give(operator.intent(back_to=(first,)))
    for one in nodes.values():
        one.settles = False
    name = await controlled.roll(second, sizes=(len(nodes),), policy=view.PolicyView(**policy))
    await until(lambda: {controlled.core.statuses[one].intent for one in nodes} == {second})
    return name


def later(controlled, monkeypatch, *, wall_s=0.0, steady_s=0.0):
    """The clocks of this process, from now on."""
    controlled.core.clock = lambda: time.time() + wall_s
    read = time.clock_gettime
    monkeypatch.setattr(
        time, "clock_gettime", lambda clock: read(clock) + (steady_s if clock == time.CLOCK_BOOTTIME else 0)
    )


async def rounds(controlled, count):
    """So many decisions of the leader."""
    decide, left = controlled.leader.decide, itertools.count(count, -1)
    seen = []

    async def counted():
        await decide()
        seen.append(next(left))

    controlled.leader.decide = counted
    await until(lambda: len(seen) > count)
    controlled.leader.decide = decide


async def test_outage_of_longer_than_its_patience_does_not_stop_a_rollout(servers, operator, tmp_path, monkeypatch):
    async with house.running(servers, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        async with house.nodes(servers, controlled, NAMES) as nodes:
            name = await begun(controlled, operator, nodes, settle_s=0.0)
            servers.servers[0].kill()
            await until(lambda: not controlled.running.connection.up)
            long_s = 2 * observing.SILENT_S
            later(controlled, monkeypatch, wall_s=long_s, steady_s=long_s)
            servers.servers[0].start()
            await until(lambda: controlled.running.connection.up)
            await controlled.leads()
            await rounds(controlled, 3)
            assert (controlled.rollout(name).state, controlled.rollout(name).reason) == ("running", "")
            await until(lambda: set(NAMES) <= controlled.core.present)
            for one in nodes.values():
                one.settles = True
                await one.report()
            await controlled.reaches(name, "done")


async def test_rollout_that_is_heard_and_gets_nowhere_loses_its_patience(servers, operator, tmp_path, monkeypatch):
    """The clock goes on, and the controller has its connection all the while."""
    lease = house.LeasePeriods(ttl_s=3_600, renew_s=0.4, margin_s=0.5, look_s=0.2)
    async with house.running(servers, tmp_path, operator=operator, lease=lease) as controlled:
        await controlled.leads()
        async with house.nodes(servers, controlled, NAMES) as nodes:
            name = await begun(controlled, operator, nodes, settle_s=0.0)
            later(controlled, monkeypatch, wall_s=1_000, steady_s=1_000)
            await controlled.reaches(name, "returning")
            assert "4 of 4 nodes are not well" in controlled.rollout(name).reason


def waiting(*, there):
    """What becomes of a host on which acme.base is, or is not, what acme.demo needs: yet, or for good."""
    unmet = "needs acme.base ^2.0.0 active, found active 1.0.0"
    base = house.plugin(id="acme.base", code="" if there else "bundle_awaited", reason="its bundle is being fetched")
    return lambda _: (house.plugin(code="dependency_unmet", reason=unmet), base)


async def rolled(controlled, operator, nodes, outcome):
    """The name of a rollout of two plugins to all nodes, which have told what became of it."""
    name = await begun(controlled, operator, nodes, settle_s=0.0)
    for one in nodes.values():
        one.settles, one.outcome = True, outcome
        await one.report()
    await until(lambda: all(controlled.core.statuses[one].plugins[0].code == "dependency_unmet" for one in nodes))
    return name


@pytest.mark.parametrize("there", [False, True], ids=["bundle on its way", "taken up after the one that needs it"])
async def test_plugin_that_waits_for_another_of_its_release_takes_no_rollout_back(servers, operator, tmp_path, there):
    async with house.running(servers, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        async with house.nodes(servers, controlled, NAMES) as nodes:
            name = await rolled(controlled, operator, nodes, waiting(there=there))
            assert (controlled.rollout(name).state, controlled.rollout(name).unwell) == ("running", ())
            for one in nodes.values():
                one.outcome = house.well
                await one.report()
            await controlled.reaches(name, "done")


async def test_release_whose_plugin_never_gets_what_it_needs_is_taken_back(servers, operator, tmp_path, monkeypatch):
    lease = house.LeasePeriods(ttl_s=3_600, renew_s=0.4, margin_s=0.5, look_s=0.2)
    async with house.running(servers, tmp_path, operator=operator, lease=lease) as controlled:
        await controlled.leads()
        async with house.nodes(servers, controlled, NAMES) as nodes:
            name = await rolled(controlled, operator, nodes, waiting(there=True))
            later(controlled, monkeypatch, wall_s=1_000, steady_s=1_000)
            await controlled.reaches(name, "returning")
            assert "4 of 4 nodes are not well" in controlled.rollout(name).reason


@pytest.mark.parametrize("wall_s", [1_000.0, -3_600.0])
async def test_clock_of_a_controller_that_is_set_changes_nothing(servers, operator, tmp_path, monkeypatch, wall_s):
    async with house.running(servers, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        async with house.nodes(servers, controlled, NAMES) as nodes:
            name = await begun(controlled, operator, nodes, settle_s=2.0)
            for one in nodes.values():
                one.settles = True
                await one.report()
            await until(lambda: all(controlled.core.seen[one].since for one in NAMES))
            later(controlled, monkeypatch, wall_s=wall_s)
            await rounds(controlled, 2)
            said = views.alarms(controlled.core, controlled.running.facts())
            assert not [one for one in said if one.code == "node_silent"]
            ended = await controlled.reaches(name, "done")
            assert ended.reason == ""
