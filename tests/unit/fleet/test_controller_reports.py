"""What a controller makes of what comes from nodes and from the engine: forged, repeated, lost, forked, too much."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.fleet import documents
from latticed.fleet.controller import store, views
from latticed.fleet.engine import QuotaExceeded, Stored
from latticed.fleet.nats_engine import NatsEngine
from latticed.model.errors import Problem
from tests.house import fleet_controllers as house
from tests.house.fleet_controllers import until

_numbers = itertools.count(1)


@pytest.fixture
def operator():
    return house.Operator(f"reports-{next(_numbers)}")


@pytest.fixture
async def controlled(fleet, operator, tmp_path):
    async with house.running(fleet, tmp_path, operator=operator) as made:
        await made.leads()
        yield made


@pytest.fixture
async def node(fleet, controlled):
    async with house.node(fleet, controlled, f"n{next(_numbers)}") as made:
        await until(lambda: made.name in controlled.core.present)
        yield made


async def settled(controlled, operator, node):
    intent = await controlled.give(operator.intent())
    await controlled.reaches(await controlled.roll(intent), "done")
    return intent


def shown(controlled):
    """Codes of all alarms."""
    return {one.code for one in views.alarms(controlled.core, controlled.running.facts())}


async def alarm(controlled, code, node):
    await until(lambda: (code, node.name) in controlled.core.alarms, lambda: f"{code}: {controlled.core.alarms}")
    return controlled.core.alarms[code, node.name]


async def heard(controlled, node, wanted):
    """A later status was taken, so what came before it was judged."""
    await node.report(reason=wanted)
    await until(lambda: controlled.core.statuses[node.name].reason == wanted)


class TestStatuses:
    async def test_status_by_another_key_changes_nothing(self, controlled, operator, node):
        intent = await settled(controlled, operator, node)
        stranger = Ed25519PrivateKey.generate()
        lie = documents.sign(
            documents.NodeStatus(
                fleet=operator.fleet,
                node=node.name,
                at=2**35,
                epoch=1,
                generation=99,
                intent="",
                settled=False,
                refused="",
                reason="",
                plugins=(house.plugin(health="unhealthy"),),
                plans=(),
                events=0,
                head=documents.GENESIS,
            ),
            stranger,
        )
        await node.engine.publish_status(lie)
        await alarm(controlled, "status_forged", node)
        assert controlled.core.statuses[node.name].intent == intent
        assert controlled.core.floors[node.name, node.public] == (1, 1)

    async def test_status_of_another_node_under_its_key_changes_nothing(self, fleet, controlled, operator, node):
        await settled(controlled, operator, node)
        async with house.node(fleet, controlled, f"other-{next(_numbers)}") as other:
            await other.report()
            await until(lambda: other.name in controlled.core.statuses)
            await other.engine.publish_status(node.status())
            await alarm(controlled, "status_forged", other)

    async def test_status_that_is_shown_again_changes_nothing(self, controlled, operator, node):
        await settled(controlled, operator, node)
        well = node.status()
        await node.engine.publish_status(well)
        node.outcome = lambda _: (house.plugin(health="unhealthy"),)
        await heard(controlled, node, "ill")
        await node.engine.publish_status(well)
        await alarm(controlled, "status_old", node)
        assert controlled.core.statuses[node.name].reason == "ill"

    async def test_node_that_reports_again_and_again_costs_one_row(self, controlled, operator, node):
        await settled(controlled, operator, node)
        refused = 0
        for number in range(300):
            try:
                await node.engine.publish_status(node.status(reason=f"flood {number}"))
            except QuotaExceeded:
                refused += 1
        await until(lambda: controlled.core.statuses[node.name].reason.startswith("flood"))
        assert refused > 200
        rows = await controlled.core.database.read(
            lambda connection: connection.execute("SELECT count(*) FROM statuses").fetchone()[0]
        )
        assert rows == 1

    async def test_bytes_that_are_no_status_are_an_alarm_and_no_more(self, controlled, operator, node):
        await settled(controlled, operator, node)
        for rubbish in (b"", b"{}", b"\xff" * 64, b"[" * 60_000, json.dumps({"payload": "x" * 50_000}).encode()):
            await node.engine.publish_status(rubbish)
        await alarm(controlled, "status_forged", node)
        await heard(controlled, node, "and here")

    async def test_node_that_says_it_is_at_the_last_generation_is_given_nothing_until_another_epoch(
        self, controlled, operator, node, monkeypatch
    ):
        monkeypatch.setattr("latticed.fleet.controller.leader._AHEAD_S", 0)
        intent = await settled(controlled, operator, node)
        await node.report(generation=2**53 - 1, intent="")
        await until(lambda: controlled.core.floors[node.name, node.public] == (1, 2**53 - 1))
        await until(lambda: f"epoch of {node.name}" in controlled.leader.troubles)
        assert controlled.core.assignments[node.name].turn == (1, 1)
        await controlled.give(operator.controller(controlled.core.signer, epoch=2))
        await until(lambda: controlled.core.assignments[node.name].turn == (2, 1))
        await until(lambda: (node.state.epoch, node.state.generation) == (2, 1))
        assert node.state.present.intent == intent

    async def test_host_that_has_the_name_of_one_that_lied_is_assigned_what_others_are(
        self, fleet, controlled, operator, node
    ):
        """A taken-over host said that it is at the last generation; it was revoked, and set up anew."""
        await settled(controlled, operator, node)
        await node.report(generation=2**53 - 1, intent="")
        await until(lambda: controlled.core.floors[node.name, node.public] == (1, 2**53 - 1))
        await controlled.give(operator.revocations(node.public))
        async with house.node(fleet, controlled, node.name) as anew:
            assert node.name not in controlled.core.statuses
            intent = await settled(controlled, operator, anew)
            assert (anew.state.present.intent, anew.state.epoch) == (intent, 1)
        kept = await controlled.core.database.read(store.load)
        assert (kept.floors, set(kept.statuses)) == (controlled.core.floors, set(controlled.core.statuses))

    async def test_node_that_says_it_has_an_epoch_that_nobody_certified_raises_no_floor(
        self, controlled, operator, node
    ):
        await settled(controlled, operator, node)
        await node.report(epoch=9, generation=4, intent="")
        await until(lambda: controlled.core.statuses[node.name].epoch == 9)
        assert controlled.core.floors[node.name, node.public] == (1, 1)

    async def test_node_that_took_up_something_unknown_under_a_later_number_is_given_its_release_again(
        self, controlled, operator, node, monkeypatch
    ):
        monkeypatch.setattr("latticed.fleet.controller.leader._AHEAD_S", 0)
        intent = await settled(controlled, operator, node)
        await node.report(generation=7, intent="ab" * 32, settled=False)
        await until(lambda: controlled.core.assignments[node.name].generation == 8)
        await until(lambda: node.state.generation == 8)
        assert node.state.present.intent == intent


class TestEvents:
    async def kept(self, controlled, node):
        rows = await controlled.core.database.read(
            lambda connection: store.events(connection, node=node.name, after=0, limit=1000)
        )
        return [row[2] for row in rows]

    async def test_chain_is_kept_once_in_order(self, controlled, node):
        for number in range(1, 6):
            await node.tell(node.event())
            await until(lambda: controlled.core.heads.get(node.name) and True)
            assert number
        await until(lambda: controlled.core.heads[node.name].number == 5)
        assert await self.kept(controlled, node) == [1, 2, 3, 4, 5]
        assert controlled.core.heads[node.name].missed == 0
        assert not {code for code, name in controlled.core.alarms if name == node.name}

    async def test_lost_event_is_counted_and_the_next_is_kept(self, controlled, node):
        await node.tell(node.event())
        node.event()
        node.event()
        await node.tell(node.event())
        await until(lambda: controlled.core.heads.get(node.name) and controlled.core.heads[node.name].number == 4)
        assert controlled.core.heads[node.name].missed == 2
        await alarm(controlled, "events_missed", node)

    async def test_second_event_of_one_number_is_a_fork(self, controlled, node):
        await node.tell(node.event())
        await until(lambda: node.name in controlled.core.heads)
        first = node.head
        await node.tell(node.event(reason="so it was"))
        node.head, node.number = first, 1
        await node.tell(node.event(reason="no, so"))
        found = await alarm(controlled, "chain_forked", node)
        assert "found two" in found.reason
        assert await self.kept(controlled, node) == [1, 2, 2]

    async def test_event_that_does_not_follow_is_a_fork(self, controlled, node):
        await node.tell(node.event())
        await node.tell(node.event(prev="ab" * 32))
        found = await alarm(controlled, "chain_forked", node)
        assert "to follow" in found.reason

    async def test_event_by_another_key_is_not_kept(self, controlled, operator, node):
        theirs = node.key
        node.key = Ed25519PrivateKey.generate()
        forged = node.event()
        node.key, node.number, node.head = theirs, 0, documents.GENESIS
        await node.tell(forged)
        await alarm(controlled, "event_forged", node)
        await node.tell(node.event())
        await until(lambda: node.name in controlled.core.heads)
        assert await self.kept(controlled, node) == [1]

    async def test_what_a_host_said_before_its_key_was_revoked_is_no_forgery_by_who_has_its_name_now(
        self, controlled, operator, node
    ):
        """A controller that connects anew is shown what is left of the host before."""
        said, status = node.event(), node.status(refused="not_selected")
        await node.tell(said)
        await node.engine.publish_status(status)
        await until(lambda: node.name in controlled.core.heads and node.name in controlled.core.statuses)
        assert "node_refuses" in shown(controlled)
        await controlled.give(operator.revocations(node.public))
        assert "node_refuses" not in shown(controlled)
        another = Ed25519PrivateKey.generate()
        await controlled.give(operator.node(node.name, house.fleets.public(another)))
        events, statuses = (Stored(subject="s", revision=2**40, data=one) for one in (said, status))
        await controlled.core.take_events([events], {"s": node.name})
        await controlled.core.take_statuses([statuses], {"s": node.name})
        assert not {("event_forged", node.name), ("status_forged", node.name)} & controlled.core.alarms.keys()

    async def test_flooding_node_fills_its_own_quota_and_nobody_elses(self, fleet, controlled, node):
        async with house.node(fleet, controlled, f"calm-{next(_numbers)}") as calm:
            refused = 0
            for _ in range(600):
                try:
                    await node.tell(node.event(reason="x" * 400))
                except QuotaExceeded:
                    refused += 1
            await calm.tell(calm.event())
            await until(lambda: calm.name in controlled.core.heads)
            kept = len(await self.kept(controlled, node))
            assert kept <= store.EVENTS_PER_NODE
            # What was kept makes room: a node that waits a little is heard again.
            while True:
                try:
                    await node.tell(node.event(reason="later"))
                    break
                except QuotaExceeded:
                    continue
            await until(lambda: controlled.core.heads[node.name].number == node.number)
            counts = await controlled.running.engine.event_counts()
            assert counts[node.name] <= 256
            assert refused < 600

    async def test_newest_thousand_events_of_a_node_are_kept(self, controlled, node, monkeypatch):
        monkeypatch.setattr(store, "EVENTS_PER_NODE", 5)
        for _ in range(12):
            await node.tell(node.event())
        await until(lambda: controlled.core.heads.get(node.name) and controlled.core.heads[node.name].number == 12)
        assert await self.kept(controlled, node) == [8, 9, 10, 11, 12]


class TestDocuments:
    async def test_document_of_no_operator_is_refused(self, controlled, operator):
        stranger = house.Operator(operator.fleet, Ed25519PrivateKey.generate())
        for envelope, code in (
            (stranger.intent(), "operator_unknown"),
            (house.Operator("elsewhere").intent(), "other_fleet"),
            (b"{}", "document_malformed"),
            (b"\xff", "document_malformed"),
        ):
            with pytest.raises(Problem) as refused:
                await controlled.give(envelope)
            assert refused.value.code == code

    async def test_document_is_kept_once(self, controlled, operator):
        envelope = operator.intent()
        first = await controlled.operations.take_document(envelope)
        again = await controlled.operations.take_document(envelope)
        assert (first.new, again.new, first.sha256) == (True, False, again.sha256)

    async def test_node_of_another_key_is_an_alarm(self, controlled, operator, node):
        await controlled.give(operator.node(node.name, house.fleets.public(house.fleets.STRANGER)))
        await alarm(controlled, "node_key_changed", node)

    async def test_every_node_hears_of_every_list_of_revocations(self, fleet, controlled, operator, node):
        await settled(controlled, operator, node)
        first, second = (house.fleets.public(Ed25519PrivateKey.generate()) for _ in range(2))
        await controlled.give(operator.revocations(first))
        await until(lambda: first in node.state.revoked)
        taken = await controlled.operations.take_document(operator.revocations(second))
        assert "not in this one" in taken.notes[0]
        await until(lambda: {first, second} <= node.state.revoked)
        # One list that has both is all that is sent from then on.
        await controlled.give(operator.revocations(first, second))
        assert len(controlled.core.shelf.told) == 1


async def test_host_that_is_known_late_is_known_with_all_that_it_has_said(fleet, controlled, operator):
    """Another controller let it in, and told of it after it had spoken; it says nothing more meanwhile."""
    core, heard = controlled.core, controlled.running.readers.heard
    name = f"late{next(_numbers)}"
    async with fleet.connected(name) as connection:
        node = house.SimulatedNode(NatsEngine(connection, name), operator, name)
        before = dict(heard)
        await node.report()
        for _ in range(3):
            await node.tell(node.event())
        await until(lambda: heard["statuses"] > before["statuses"] and heard["events"] >= before["events"] + 3)
        assert name not in core.statuses
        await controlled.give(operator.node(name, node.public))
        await until(lambda: name in core.statuses and name in core.heads and core.heads[name].number == 3)
        await node.tell(node.event())
        await until(lambda: core.heads[name].number == 4)
        assert (core.heads[name].missed, core.alarms) == (0, {})


async def tell(node, count):
    for _ in range(count):
        await node.tell(node.event())


async def test_event_that_comes_just_when_its_host_is_known_follows_those_before(fleet, controlled, operator):
    core, heard = controlled.core, controlled.running.readers.heard
    name = f"late{next(_numbers)}"
    async with fleet.connected(name) as connection:
        node = house.SimulatedNode(NatsEngine(connection, name), operator, name)
        before = heard["events"]
        for _ in range(3):
            await node.tell(node.event())
        await until(lambda: heard["events"] >= before + 3)
        telling = asyncio.ensure_future(tell(node, 5))
        await controlled.give(operator.node(name, node.public))
        await telling
        await until(lambda: name in core.heads and core.heads[name].number == 8)
        assert (core.heads[name].missed, core.alarms) == (0, {})


async def test_what_the_host_before_has_said_under_a_name_is_not_told_of_as_forged(controlled, operator, node):
    core = controlled.core
    await node.report()
    await node.tell(node.event())
    await until(lambda: node.name in core.heads)
    await controlled.give(operator.revocations(node.public))
    after = house.SimulatedNode(node.engine, operator, node.name)
    await controlled.give(operator.node(node.name, after.public))
    await until(lambda: not core.newcomers)
    await after.report()
    await after.tell(after.event())
    await until(lambda: core.heads[node.name].key == after.public and node.name in core.statuses)
    assert {code for code, _ in core.alarms} <= {"node_key_changed"}
