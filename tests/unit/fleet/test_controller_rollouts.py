"""Rollouts carried out by a real controller over a real nats-server, to nodes that judge and report as real ones do."""

from __future__ import annotations

import itertools

import pytest

from latticed.fleet import documents
from latticed.fleet.controller import views
from latticed.model.errors import Problem
from tests.house import fleet_controllers as house
from tests.house import nats_servers
from tests.house.fleet_controllers import until

_numbers = itertools.count(1)


@pytest.fixture
def operator():
    return house.Operator(f"fleet-{next(_numbers)}")


@pytest.fixture
async def controlled(fleet, operator, tmp_path):
    async with house.running(fleet, tmp_path, operator=operator) as made:
        await made.leads()
        yield made


@pytest.fixture
def names():
    number = next(_numbers)
    return [f"r{number}-{one}" for one in range(1, 8)]


async def test_release_goes_through_its_waves_unattended(fleet, controlled, operator, names):
    async with house.nodes(fleet, controlled, names) as nodes:
        intent = await controlled.give(operator.intent())
        name = await controlled.roll(intent)
        done = await controlled.reaches(name, "done")
        assert [one.nodes for one in done.waves] == [2, 3, 2]
        assert {one.state.present.intent for one in nodes.values()} == {intent}
        assert all(one.refusals == [] for one in nodes.values())
        await until(lambda: {views.state(controlled.core, one) for one in names} == {"settled"})


async def test_bad_release_touches_its_first_wave_alone_and_is_back_by_itself(fleet, controlled, operator, names):
    async with house.nodes(fleet, controlled, names) as nodes:
        good = await controlled.give(operator.intent())
        await controlled.reaches(await controlled.roll(good), "done")
        worse = await controlled.give(operator.intent(back_to=(good,)))
        for one in nodes.values():
            one.outcome = house.bad(worse)
        name = await controlled.roll(worse)
        back = await controlled.reaches(name, "returned")
        assert "not well" in back.reason
        # Once it is back no host says it any more.
        assert "acme.demo: candidate_bad given up on this host: unhealthy" in back.reason
        touched = [one for one in nodes.values() if len(one.seen) == 3]
        assert len(touched) == back.waves[0].nodes == 2
        assert all(len(one.seen) == 1 for one in nodes.values() if one not in touched)
        assert {one.state.present.intent for one in nodes.values()} == {good}


async def test_first_release_that_is_bad_is_halted_as_there_is_no_way_back(fleet, controlled, operator, names):
    async with house.nodes(fleet, controlled, names) as nodes:
        worse = await controlled.give(operator.intent())
        for one in nodes.values():
            one.outcome = house.bad(worse)
        name = await controlled.roll(worse)
        halted = await controlled.reaches(name, "halted")
        assert "none has a way back" in halted.reason
        await until(lambda: sum(one.state.present is not None for one in nodes.values()) == 2)
        with pytest.raises(Problem) as refused:
            await controlled.operations.act(name, "back", "")
        assert refused.value.code == "no_way_back"


async def test_rollout_is_halted_resumed_and_taken_back_by_an_operator(fleet, controlled, operator, names):
    async with house.nodes(fleet, controlled, names) as nodes:
        first = await controlled.give(operator.intent())
        await controlled.reaches(await controlled.roll(first), "done")
        second = await controlled.give(operator.intent(back_to=(first,)))
        for one in nodes.values():
            one.settles = False
        name = await controlled.roll(second)
        await until(lambda: sum(one.state.present.intent == second for one in nodes.values()) == 2)
        halted = await controlled.operations.act(name, "halt", "lunch")
        assert (halted.state, halted.reason) == ("halted", "lunch")
        for one in nodes.values():
            one.settles = True
            await one.report()
        await until(lambda: controlled.rollout(name).waves[0].well == 2)
        assert sum(one.state.present.intent == second for one in nodes.values()) == 2
        await controlled.operations.act(name, "resume", "")
        await controlled.reaches(name, "done")
        await controlled.operations.act(name, "back", "we liked the other one")
        await controlled.reaches(name, "returned")
        assert {one.state.present.intent for one in nodes.values()} == {first}


async def test_going_back_waits_for_no_node_that_is_away(operator, names, tmp_path):
    with nats_servers.running(tmp_path / "own") as servers:
        async with house.running(servers, tmp_path, operator=operator) as controlled:
            await controlled.leads()
            async with house.nodes(servers, controlled, names[1:]) as nodes:
                async with house.node(servers, controlled, names[0]) as away:
                    await until(lambda: names[0] in controlled.core.present)
                    first = await controlled.give(operator.intent())
                    await controlled.reaches(await controlled.roll(first), "done")
                    second = await controlled.give(operator.intent(back_to=(first,)))
                    name = await controlled.roll(second)
                    await controlled.reaches(name, "done")
                    assert away.state.present.intent == second
                # Its last beat counts for a minute; a server that starts anew has none in memory.
                servers.servers[0].kill()
                servers.servers[0].start()
                await until(lambda: set(names[1:]) == set(controlled.core.present))
                await controlled.leads()
                await controlled.operations.act(name, "back", "")
                await controlled.reaches(name, "returned")
                assert {one.state.present.intent for one in nodes.values()} == {first}
                # It finds what it is to have when it comes back.
                await away.judge((await controlled.running.engine.desired(names[0])).data)
                assert away.state.present.intent == first


async def test_newer_rollout_has_the_nodes_of_one_that_was_halted(fleet, controlled, operator, names):
    async with house.nodes(fleet, controlled, names) as nodes:
        first = await controlled.give(operator.intent())
        for one in nodes.values():
            one.settles = False
        begun = await controlled.roll(first)
        await until(lambda: sum(one.state.present is not None for one in nodes.values()) == 2)
        second = await controlled.give(operator.intent(back_to=(first,)))
        with pytest.raises(Problem) as refused:
            await controlled.roll(second)
        assert refused.value.code == "rollout_running"
        await controlled.operations.act(begun, "halt", "")
        for one in nodes.values():
            one.settles = True
        await controlled.reaches(await controlled.roll(second), "done")
        assert {one.state.present.intent for one in nodes.values()} == {second}
        with pytest.raises(Problem) as refused:
            await controlled.operations.act(begun, "resume", "")
        assert refused.value.code == "invalid_transition"


async def test_intent_goes_to_nodes_that_its_selector_names_by_certified_labels(fleet, controlled, operator, names):
    async with house.nodes(fleet, controlled, names[:2]) as nodes:
        other, web = nodes[names[0]], nodes[names[1]]
        await controlled.give(operator.node(names[0], other.public, labels={"role": "db"}))
        intent = await controlled.give(operator.intent())
        await controlled.reaches(await controlled.roll(intent), "done")
        assert web.state.present.intent == intent
        assert other.state.present is None
        assert await controlled.running.engine.desired(names[0]) is None


async def test_nodes_that_get_other_labels_in_mid_rollout_neither_hold_it_up_nor_turn_it_back(
    fleet, controlled, operator, names
):
    async with house.nodes(fleet, controlled, names) as nodes:
        first = await controlled.give(operator.intent())
        await controlled.reaches(await controlled.roll(first), "done")
        second = await controlled.give(operator.intent(back_to=(first,)))
        for one in nodes.values():
            one.settles = False
        name = await controlled.roll(second)
        waves = controlled.core.rollouts[name].rollout().waves
        of_first, of_last = nodes[waves[0][0]], nodes[waves[-1][0]]
        await until(lambda: of_first.state.present.intent == second)
        for one in (of_first, of_last):
            await controlled.give(operator.node(one.name, one.public, labels={"role": "db"}))
        for one in nodes.values():
            one.settles = one is not of_first
            await one.report()
        await controlled.reaches(name, "done")
        assert (of_first.state.present.intent, of_last.state.present.intent) == (second, first)
        await controlled.operations.act(name, "back", "")
        assert (await controlled.reaches(name, "returned")).stuck == ()
        have = {one.name for one in nodes.values() if one.state.present.intent == first}
        assert have == nodes.keys() - {of_first.name}
        assert not any(one.refusals for one in nodes.values())


async def test_node_whose_labels_what_it_had_does_not_select_has_no_way_back(fleet, controlled, operator, names):
    app = documents.Selector(labels={"role": "app"}, nodes=())
    async with house.nodes(fleet, controlled, names) as nodes:
        first = await controlled.give(operator.intent())
        await controlled.reaches(await controlled.roll(first), "done")
        for one in nodes.values():
            await controlled.give(operator.node(one.name, one.public, labels={"role": "app"}))
        second = await controlled.give(operator.intent(back_to=(first,), selector=app))
        for one in nodes.values():
            one.outcome = house.bad(second)
        halted = await controlled.reaches(await controlled.roll(second), "halted")
        assert "none has a way back" in halted.reason
        assert not any(one.refusals for one in nodes.values())


async def test_intent_that_is_revoked_while_it_is_rolled_goes_no_further(fleet, controlled, operator, names):
    async with house.nodes(fleet, controlled, names) as nodes:
        for one in nodes.values():
            one.settles = False
        intent = await controlled.give(operator.intent())
        name = await controlled.roll(intent)
        await until(lambda: sum(one.state.present is not None for one in nodes.values()) == 2)
        await controlled.give(operator.revocations(intents=(intent,)))
        halted = await controlled.reaches(name, "halted")
        assert "intent_revoked" in halted.reason
        # Those that have it hear of it, with the document that they have.
        await until(lambda: sum(intent in one.state.revoked for one in nodes.values()) == 2)
        for one in nodes.values():
            one.settles = True
            await one.report()
        with pytest.raises(Problem):
            await controlled.roll(intent)
        assert sum(one.state.present is not None for one in nodes.values()) == 2


async def test_controller_that_is_revoked_in_mid_rollout_halts_and_a_new_key_goes_on(fleet, operator, names, tmp_path):
    async with house.running(fleet, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        async with house.nodes(fleet, controlled, names) as nodes:
            for one in nodes.values():
                one.settles = False
            intent = await controlled.give(operator.intent())
            name = await controlled.roll(intent)
            await until(lambda: sum(one.state.present is not None for one in nodes.values()) == 2)
            revoked = controlled.core.signer
            await controlled.give(operator.revocations(revoked))
            halted = await controlled.reaches(name, "halted")
            assert "controller_revoked" in halted.reason
            await until(lambda: sum(revoked in one.state.revoked for one in nodes.values()) == 2)
            kept = {one.name: one for one in nodes.values()}
    (tmp_path / "c1/key").unlink()
    async with house.running(fleet, tmp_path, operator=operator, certify=False) as again:
        await again.leads()
        assert again.core.signer != revoked
        with pytest.raises(Problem) as refused:
            await again.operations.begin(house.view.RolloutWanted(intent=intent))
        assert refused.value.code == "controller_uncertified"
        await again.certified()
        await again.operations.act(name, "resume", "")
        async with house.revived(fleet, kept) as nodes:
            for one in nodes.values():
                one.settles = True
                await one.report()
            await again.reaches(name, "done")
            assert {one.state.present.intent for one in nodes.values()} == {intent}
            for one in nodes.values():
                assert [number for number, _ in one.seen] == sorted({number for number, _ in one.seen})


async def test_assignment_is_renewed_for_a_node_that_has_not_taken_it_up_and_for_no_other(
    fleet, operator, names, tmp_path
):
    async with house.running(fleet, tmp_path, operator=operator, assignment_s=6) as controlled:
        await controlled.leads()
        async with (
            house.node(fleet, controlled, names[0]) as there,
            house.node(fleet, controlled, names[1], live=False) as away,
        ):
            await until(lambda: names[0] in controlled.core.present)
            intent = await controlled.give(operator.intent())
            policy = house.view.PolicyView(away_share=1.0, settle_s=0.0)
            await controlled.reaches(await controlled.roll(intent, policy=policy), "done")
            first = controlled.core.assignments[names[1]].generation
            await until(lambda: controlled.core.assignments[names[1]].generation > first)
            assert [number for number, _ in there.seen] == [1]
            assert controlled.core.assignments[names[0]].generation == 1
            await away.judge((await controlled.running.engine.desired(names[1])).data)
            assert away.state.present.intent == intent
