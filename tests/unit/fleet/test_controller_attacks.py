"""What who has stolen something, or holds the message system, can make a controller do: nothing that lasts."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import itertools
import json
import random
import time

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.fleet import documents, judging, subjects
from latticed.fleet.controller import lease, records, views
from latticed.fleet.controller.assigning import KeptBundle
from latticed.fleet.controller.shelf import DocumentShelf, judged
from latticed.fleet.documents import Malformed
from latticed.fleet.engine import Conflict
from latticed.fleet.nats_engine import NatsControllerEngine
from latticed.model.errors import Problem
from tests.house import fleet_controllers as house
from tests.house import fleets, nats_servers
from tests.house.fleet_controllers import until

_numbers = itertools.count(1)


@pytest.fixture
def operator():
    return house.Operator(f"attacked-{next(_numbers)}")


@pytest.fixture
def servers(tmp_path):
    """A server of the test's own: its streams are deleted."""
    with nats_servers.running(tmp_path / "own") as running:
        yield running


def record(**fields):
    plain = records.begun(
        "evil", ("n1", "n2"), release="a" * 64, has={}, policy=house.GATE.policy, sizes=(1,), sources=(), now_s=1
    )
    return msgspec.structs.replace(plain, **fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"wave": 2},
        {"wave": 2**53 - 1},
        {"befores": {"b" * 64: (2,)}},
        {"befores": {"b" * 64: (2**53 - 1,)}},
        {"step": 2**52 + 1},
        {"step": 2**53 - 1},
    ],
    ids=["wave", "wave of the largest", "place", "place of the largest", "step", "last step"],
)
def test_record_of_a_stolen_key_that_no_rollout_can_be_is_not_taken(operator, fields):
    stolen = Ed25519PrivateKey.generate()
    shelf = DocumentShelf(fleet=operator.fleet, operators=(operator.public,))
    shelf = shelf.taking(judged(shelf, operator.controller(fleets.public(stolen), "c2")))
    _, good = records.shared(record(), stolen, fleet=operator.fleet, controller="c2", now_s=1)
    assert records.found(good, shelf).rollout().touched
    _, bad = records.shared(record(**fields), stolen, fleet=operator.fleet, controller="c2", now_s=1)
    with pytest.raises(Malformed):
        records.found(bad, shelf)


def largest(key, fleet):
    """A record that can just be shared: with a few bytes more it cannot be."""

    def fits(size):
        try:
            records.shared(record(before=text[:size]), key, fleet=fleet, controller="c2", now_s=1)
        except Malformed:
            return False
        return True

    text = random.Random(1).randbytes(1 << 19).hex()
    size = bisect.bisect_left(range(len(text)), True, key=lambda one: not fits(one)) - 1
    return record(before=text[:size])


@pytest.mark.parametrize("evil", ["the last step", "of the largest"])
async def test_record_of_a_stolen_key_ends_no_controller_and_keeps_none_from_its_work(
    servers, operator, tmp_path, evil
):
    """Also not after a restart. Which record cannot be handed on is said for as long as that is so."""
    stolen = Ed25519PrivateKey.generate()
    made = record(step=2**53 - 1) if evil == "the last step" else largest(stolen, operator.fleet)
    key, envelope = records.shared(made, stolen, fleet=operator.fleet, controller="c2", now_s=1)
    told = (("not_done", f"sharing {key}"),) if evil == "of the largest" else ()
    for number in range(2):
        async with house.running(servers, tmp_path, operator=operator) as controlled:
            await controlled.give(operator.controller(fleets.public(stolen), "c2"))
            await controlled.leads()
            if not number:
                await controlled.core.learn_record(envelope, key)
            name = f"z{number}"
            async with house.node(servers, controlled, name):
                await until(lambda name=name: name in controlled.core.present)
                selector = documents.Selector(labels={"role": "web"}, nodes=(name,))
                intent = await controlled.give(operator.intent(selector=selector))
                await controlled.reaches(await controlled.roll(intent), "done")
            assert [task for task in controlled.running._tasks if task.done()] == []
            shown = views.alarms(controlled.core, controlled.running.facts())
            assert tuple((one.code, one.reason.partition(":")[0]) for one in shown if one.code == "not_done") == told


@pytest.fixture
async def unsharable(servers, operator, tmp_path):
    """A controller that has a record over n1 by a stolen key, which it cannot hand on and says so."""
    stolen = Ed25519PrivateKey.generate()
    key, envelope = records.shared(
        largest(stolen, operator.fleet), stolen, fleet=operator.fleet, controller="c2", now_s=1
    )
    periods = lease.LeasePeriods(ttl_s=30, renew_s=0.4, margin_s=0.5, look_s=0.2)
    async with house.running(servers, tmp_path, operator=operator, lease=periods) as controlled:
        await controlled.give(operator.controller(fleets.public(stolen), "c2"))
        await controlled.leads()
        await controlled.core.learn_record(envelope, key)
        await until(lambda: f"sharing {key}" in controlled.leader.troubles)
        yield controlled


async def test_record_that_cannot_be_handed_on_is_said_by_who_has_the_lease_again(servers, unsharable):
    async with servers.connected("controller") as connection:
        engine = NatsControllerEngine(connection)
        taken = json.dumps({"holder": "c9", "instance": "f" * 32, "at": 1, "until": 2}).encode()
        while True:
            with contextlib.suppress(Conflict):  # it was renewed meanwhile
                held = await engine.put("lease", taken, (await engine.get("lease")).revision, ttl_s=600)
                break
        await until(lambda: not unsharable.leader.troubles)
        await engine.put("lease", b"", held, ttl_s=1)
    await unsharable.leads()
    await until(lambda: [one for one in unsharable.leader.troubles if one.startswith("sharing ")])


async def test_rollout_begins_over_hosts_of_a_record_that_cannot_be_handed_on(servers, operator, unsharable):
    async with house.node(servers, unsharable, "n1"):
        await until(lambda: "n1" in unsharable.core.present)
        await unsharable.reaches(await unsharable.roll(await unsharable.give(operator.intent())), "done")
    assert unsharable.core.rollouts["evil"].closed


async def test_streams_that_are_deleted_are_made_again_by_the_controller_that_leads(servers, operator, tmp_path):
    async with house.running(servers, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        async with house.node(servers, controlled, "s1") as node, servers.connected("controller") as connection:
            await until(lambda: "s1" in controlled.core.present)
            engine = NatsControllerEngine(connection)
            deleted = (subjects.EVENTS_STREAM, subjects.STATUS_STREAM, subjects.DESIRED_STREAM)
            for stream in deleted:
                await connection.request(f"$JS.API.STREAM.DELETE.{stream}", b"")

            async def made_again():
                return None not in (await engine.streams(deleted)).values()

            await nats_servers.until(made_again)
            await controlled.leads()
            intent = await controlled.give(operator.intent())
            await controlled.reaches(await controlled.roll(intent), "done")
            assert node.state.present.intent == intent
            ended = [task for task in controlled.running._tasks if task.done()]
            assert ended == []


async def test_nodes_that_are_revoked_in_mid_rollout_neither_hold_it_up_nor_turn_it_back(servers, operator, tmp_path):
    gate = msgspec.structs.replace(house.GATE, sizes=(2, 1, 1, 1))
    async with house.running(servers, tmp_path, operator=operator, gate=gate) as controlled:
        await controlled.leads()
        async with house.nodes(servers, controlled, [f"v{one}" for one in range(5)]) as nodes:
            first = await controlled.give(operator.intent())
            await controlled.reaches(await controlled.roll(first), "done")
            second = await controlled.give(operator.intent(back_to=(first,)))
            for one in nodes.values():
                one.settles = False
            name = await controlled.roll(second)
            waves = controlled.core.rollouts[name].rollout().waves
            of_first, of_last = nodes[waves[0][0]], nodes[waves[-1][0]]
            await until(lambda: of_first.state.present.intent == second)
            await controlled.give(operator.revocations(of_first.public, of_last.public))
            of_first.outcome = house.bad(second)
            await of_first.report()
            for one in nodes.values():
                one.settles = True
                await one.report()
            await controlled.reaches(name, "done")
            have = {one.name for one in nodes.values() if one.state.present.intent == second}
            assert have == nodes.keys() - {of_last.name}


async def test_what_is_revoked_last_is_told_at_once_where_there_are_several_lists(servers, operator, tmp_path):
    periods = dataclasses.replace(house.PERIODS, turn_s=86_400)
    async with house.running(servers, tmp_path, operator=operator, periods=periods) as controlled:
        await controlled.leads()
        async with house.node(servers, controlled, "told") as node:
            await controlled.roll(await controlled.give(operator.intent()))
            for number in range(801, 804):
                stolen = fleets.public(fleets.key(number))
                await controlled.give(operator.revocations(stolen))
                await until(lambda key=stolen: key in node.state.revoked)


async def test_list_is_told_to_a_host_until_it_says_that_it_has_learnt_it(servers, operator, tmp_path):
    """Where there are several: what it knows is not put there again and again."""
    periods = dataclasses.replace(house.PERIODS, turn_s=0.2)
    async with house.running(servers, tmp_path, operator=operator, periods=periods) as controlled:
        await controlled.leads()
        async with house.node(servers, controlled, "says") as says, house.node(servers, controlled, "mute") as mute:
            await controlled.reaches(await controlled.roll(await controlled.give(operator.intent())), "done")
            for number in range(801, 804):
                await controlled.give(operator.revocations(fleets.public(fleets.key(number))))
            await until(lambda: len(says.state.lists) == len(mute.state.lists) == 3)
            await says.report()
            await until(lambda: len(controlled.core.statuses["says"].lists) == 3)
            async with servers.connected("controller") as connection:
                engine = NatsControllerEngine(connection)

                async def put_again(name):
                    before = (await engine.desired(name)).revision
                    await nats_servers.until(lambda: later(name, before))

                async def later(name, revision):
                    return (await engine.desired(name)).revision > revision

                await put_again("mute")  # what was on its way is there
                before = (await engine.desired("says")).revision
                for _ in range(4):
                    await put_again("mute")
                assert (await engine.desired("says")).revision == before


async def test_events_under_a_name_that_no_node_can_have_keep_nobody_from_being_heard(servers, operator, tmp_path):
    async with house.running(servers, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        async with house.node(servers, controlled, "e1") as node, servers.connected("controller") as connection:
            await until(lambda: "e1" in controlled.core.present)
            answer = json.loads((await connection.request("ev.No_Name.audit", b"{}")).data)
            assert answer["stream"] == subjects.EVENTS_STREAM
            engine = NatsControllerEngine(connection)
            for _ in range(170):
                await node.tell(node.event())

            async def thinned():
                return (await engine.event_counts()).get("e1", 999) <= 160

            await nats_servers.until(thinned)


@pytest.mark.parametrize("counts", [True, False], ids=["certified", "expired"])
async def test_controllers_key_whose_certificate_has_expired_uses_up_no_generations(
    servers, operator, tmp_path, counts
):
    """Nor has it another controller sign what it likes: that is for one whose certificate counts."""
    async with house.running(servers, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        other = Ed25519PrivateKey.generate()
        await controlled.give(operator.controller(fleets.public(other), "c2", life_s=3_600 if counts else -1))
        async with house.node(servers, controlled, "x1") as node:
            await until(lambda: "x1" in controlled.core.present)
            first = await controlled.give(operator.intent())
            await controlled.reaches(await controlled.roll(first), "done")
            last = controlled.core.floors["x1", node.public][1]
            lie = documents.Assignment(
                fleet=operator.fleet,
                node="x1",
                node_key=node.public,
                epoch=1,
                generation=last + 1_000_000,
                intent=first,
                bundles=(),
                expires=int(time.time()) + 3_600,
            )
            shelf = controlled.core.shelf
            data = documents.pack(
                documents.DesiredDocument(
                    assignment=documents.sign(lie, other),
                    intent=shelf.intents[first].envelope,
                    controller=shelf.certificate(fleets.public(other)).envelope,
                )
            )
            assert await controlled.core.learn("x1", data) is counts
            assert (controlled.core.floors["x1", node.public][1] > last) is counts


async def test_answer_that_is_no_base64_is_as_none():
    class Lying:
        async def request(self, *_args, **_fields):
            return nats_reply({"message": {"data": "*", "seq": "x"}})

    from latticed.fleet.engine import EngineUnavailable

    with pytest.raises(EngineUnavailable):
        await NatsControllerEngine(Lying()).get("lease")


def nats_reply(answer):
    from latticed.fleet.nats_connection import NatsReply

    return NatsReply(data=json.dumps(answer).encode(), headers={})


async def test_bundle_that_there_is_no_room_for_is_refused_with_the_setting_that_makes_room(fleet, operator, tmp_path):
    async def nothing():
        yield b""

    async with house.running(fleet, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        room = controlled.running.settings.engine.bundles_bytes
        controlled.core.bundles["a" * 64] = KeptBundle(
            sha256="a" * 64, plugin="acme.demo", version="1.0.0", identity="", publisher="", size=room
        )
        with pytest.raises(Problem) as refused:
            await controlled.operations.take_bundle("b" * 64, nothing())
        assert (refused.value.code, "bundles_bytes" in refused.value.hint) == ("quota_exceeded", True)


async def test_labels_by_a_stolen_operators_key_go_once_it_is_revoked_and_another_operator_says_so(
    fleet, operator, tmp_path
):
    """Of whatever serial the thief's certificate was."""
    stolen = house.Operator(operator.fleet, fleets.STRANGER)
    key = fleets.public(Ed25519PrivateKey.generate())
    shown = judging.NodeState(
        fleet=operator.fleet, operators=(operator.public, stolen.public), node="n1", node_key=key, labels={}
    )

    def certified(by, role, serial):
        made = documents.NodeCertificate(
            fleet=operator.fleet, node="n1", node_key=key, labels={"role": role}, serial=serial
        )
        return documents.sign(made, by.key)

    forged, good = certified(stolen, "payroll", 2**53 - 1), certified(operator, "web", 2)
    async with house.running(fleet, tmp_path, operator=operator) as controlled:
        core = controlled.core
        core.shelf = dataclasses.replace(core.shelf, operators=(operator.public, stolen.public))
        for envelope in (forged, operator.revocations(stolen.public), good):
            await controlled.give(envelope)
        assert core.nodes["n1"].labels == {"role": "web"}
        with pytest.raises(Problem) as refused:
            await controlled.give(certified(operator, "mail", 2))
        assert refused.value.code == "document_old"
    for node, revocations in ((forged, None), (good, operator.revocations(stolen.public))):
        rest = dict.fromkeys(("assignment", "intent", "controller"), good)
        desired = documents.DesiredDocument(**rest, node=node, revocations=revocations)
        shown, _ = judging.judge(shown, documents.pack(desired), now_s=1)
    assert (shown.labels, shown.serial) == ({"role": "web"}, 2)
