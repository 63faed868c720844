"""Hosts that join by a real controller over a real nats-server, once, and renew their credentials."""

from __future__ import annotations

import itertools
import time

import msgspec
import pytest

from latticed.fleet import enrolment, nkeys, subjects
from latticed.fleet.controller import records
from latticed.fleet.controller.settings import EnrolmentSettings
from latticed.fleet.engine import EngineUnavailable
from latticed.model.errors import Problem
from latticed.trust import key_files
from tests.house import fleet_controllers as house
from tests.house.fleet_controllers import until
from tests.house.fleet_joining import Host

_numbers = itertools.count(1)


@pytest.fixture
def operator():
    return house.Operator(f"joining-{next(_numbers)}")


@pytest.fixture
def signer(fleet, tmp_path):
    """By which a controller signs nodes' credentials, as `latticectl fleet init` writes it."""
    path = tmp_path / "node-signer"
    path.write_text(fleet.identities.node_signer.seed + "\n")
    return EnrolmentSettings(node_signer=str(path), account=fleet.identities.nodes.public)


@pytest.fixture
async def controlled(fleet, operator, tmp_path, signer):
    async with house.running(fleet, tmp_path, operator=operator, enrolment=signer) as made:
        await made.leads()
        yield made


@pytest.fixture
def name():
    return f"host-{next(_numbers)}"


async def refusal(asking):
    """The code of a refusal; empty where there is none."""
    try:
        await asking
    except Problem as problem:
        return problem.code
    return ""


async def code_of(asking):
    with pytest.raises(Problem) as refused:
        await asking
    return refused.value.code


async def test_host_joins_and_is_given_what_its_labels_select(fleet, controlled, operator, name, tmp_path):
    host = Host(fleet, operator, name, tmp_path)
    granted = await host.ask(host.invited())
    assert controlled.core.nodes[name].key == host.public
    assert controlled.core.nodes[name].labels == {"role": "web"}
    async with host.connected(granted) as engine:
        await engine.beat(b"{}")
        await until(lambda: name in controlled.core.present)
        intent = await controlled.give(operator.intent())
        await controlled.roll(intent)
        await until(lambda: name in controlled.core.assignments)
        node = house.SimulatedNode(engine, operator, name)
        node.key, node.state = (
            host.key,
            house.judging.NodeState(
                fleet=operator.fleet,
                operators=(operator.public,),
                node=name,
                node_key=host.public,
                labels={"role": "web"},
            ),
        )
        while (found := await engine.desired()) is None:
            pass
        await node.judge(found)
        assert node.state.present.intent == intent
        await until(lambda: controlled.core.statuses.get(name) is not None)


async def test_invitation_counts_once_also_after_a_restart(fleet, operator, name, tmp_path, signer):
    first, second = Host(fleet, operator, name, tmp_path), Host(fleet, operator, name, tmp_path)
    async with house.running(fleet, tmp_path, operator=operator, enrolment=signer) as controlled:
        await controlled.leads()
        invited = first.invited()
        await first.ask(invited)
        assert await code_of(second.ask(invited)) == "enrolment_used"
        # Its answer was lost: the same host asks again, with the same keys.
        await first.ask(invited)
    async with house.running(fleet, tmp_path, operator=operator, enrolment=signer) as controlled:
        await controlled.leads()
        assert await code_of(second.ask(invited)) == "enrolment_used"
        assert controlled.core.nodes[name].key == first.public
    # Nor with another controller, which was told.
    async with house.running(fleet, tmp_path, operator=operator, enrolment=signer, name="c2") as other:
        await other.leads()
        assert await code_of(second.ask(invited)) == "enrolment_used"


async def test_that_an_invitation_was_used_is_with_the_other_controllers_before_it_is_answered(
    fleet, controlled, operator, name, tmp_path
):
    """However the controller ends then, whoever copied the invitation is refused by the one that takes over."""
    invited = (host := Host(fleet, operator, name, tmp_path)).invited()
    await host.ask(invited)
    kept = await controlled.running.engine.get(f"joined-{invited.document.token}")
    assert records.found(kept.data, controlled.core.shelf).key == host.public


async def test_invitation_that_another_controller_has_taken_meanwhile_counts_no_more(
    fleet, controlled, operator, name, tmp_path
):
    host, thief = Host(fleet, operator, name, tmp_path), Host(fleet, operator, name, tmp_path)
    invited = host.invited()
    other = key_files.generate()
    await controlled.give(operator.controller(key_files.public_text(other), "c2"))
    key, envelope = records.shared(joined(host, invited), other, fleet=operator.fleet, controller="c2", now_s=1)
    await controlled.running.engine.put(key, envelope, 0)
    assert await code_of(thief.ask(invited)) == "enrolment_used"
    assert controlled.core.nodes[name].key == host.public


@pytest.mark.parametrize("forge", ["no request", "another key", "other labels"])
async def test_stolen_controllers_key_puts_nobody_in_the_place_of_a_node(
    fleet, controlled, operator, name, tmp_path, forge
):
    host, thief = Host(fleet, operator, name, tmp_path), Host(fleet, operator, name, tmp_path)
    await host.ask(host.invited())
    stolen = key_files.generate()
    await controlled.give(operator.controller(key_files.public_text(stolen), "c2"))
    fields = {
        "no request": {"request": ""},
        "another key": {"key": thief.public},
        "other labels": {"labels": {"role": "payroll"}},
    }[forge]
    forged = msgspec.structs.replace(joined(host, host.invited()), **fields)
    key, envelope = records.shared(forged, stolen, fleet=operator.fleet, controller="c2", now_s=1)
    assert not await controlled.core.learn_record(envelope, key)
    assert controlled.core.nodes[name].key == host.public
    assert controlled.core.nodes[name].labels == {"role": "web"}


def joined(host, invited):
    """What a controller keeps of this host that has joined."""
    token = invited.document
    asked = enrolment.request(invited, host.public, host.user.public)
    return records.JoinedRecord(
        token=token.token,
        node=token.node,
        key=host.public,
        labels=token.labels,
        expires=token.expires,
        request=asked.decode(),
    )


async def test_host_that_joins_while_the_disk_is_full_is_told_so_and_keeps_its_invitation(
    fleet, controlled, operator, name, tmp_path
):
    async with house.full(controlled.core.database):
        for number in itertools.count():  # some may find room in pages that are there
            name = f"{name}-{number}"
            host, thief = Host(fleet, operator, name, tmp_path), Host(fleet, operator, name, tmp_path)
            invited = host.invited()
            if refused := await refusal(host.ask(invited)):
                break
        assert refused == "store_unavailable"
        assert name not in controlled.core.nodes
        # Meanwhile nobody else has it: it says elsewhere that this host used it.
        assert await code_of(thief.ask(invited)) == "enrolment_used"
    await host.ask(invited)
    assert controlled.core.nodes[name].key == host.public
    assert await code_of(thief.ask(invited)) == "enrolment_used"


async def test_record_under_another_name_is_not_taken(fleet, controlled, operator, name, tmp_path):
    """The engine shows one host's record in the place of another's."""
    host = Host(fleet, operator, name, tmp_path)
    record = joined(host, host.invited())
    key, envelope = records.shared(record, controlled.core.key, fleet=operator.fleet, controller="c1", now_s=1)
    assert not await controlled.core.learn_record(envelope, f"joined-{'0' * 32}")
    assert not await controlled.core.learn_record(envelope, "rollout-a")
    assert name not in controlled.core.nodes
    assert await controlled.core.learn_record(envelope, key)


async def test_another_connection_has_nothing_judged_anew(fleet, operator, tmp_path, signer, name):
    """Of what is there as it was: with ten thousand nodes it would take the controller from everything else."""
    async with house.running(fleet, tmp_path, operator=operator, enrolment=signer) as controlled:
        await controlled.leads()
        host = Host(fleet, operator, name, tmp_path)
        await host.ask(host.invited())
        await controlled.roll(await controlled.give(operator.intent()))
        await until(lambda: name in controlled.leader._engine_has)
        judged = []
        record, desired = controlled.core.learn_record, controlled.core.learn
        controlled.core.learn_record = lambda *given: judged.append(given) or record(*given)
        controlled.core.learn = lambda *given: judged.append(given) or desired(*given)
        connections = controlled.running.connection.connections
        await controlled.running.connection._state.client.close()
        await until(lambda: controlled.running.connection.connections > connections and controlled.leader.acts)
        known = {f"joined-{one}" for one in controlled.core.tokens}
        assert [one for one in judged if one[-1] in known or one[0] in controlled.core.nodes] == []


async def test_name_that_another_host_has_is_given_to_nobody_until_that_key_is_revoked(
    fleet, controlled, operator, name, tmp_path
):
    first, second = Host(fleet, operator, name, tmp_path), Host(fleet, operator, name, tmp_path)
    await first.ask(first.invited())
    assert await code_of(second.ask(second.invited())) == "node_exists"
    await controlled.give(operator.revocations(first.public))
    await second.ask(second.invited())
    assert controlled.core.nodes[name].key == second.public
    assert ("node_key_changed", name) in controlled.core.alarms


async def test_host_that_was_revoked_and_joined_anew_keeps_its_name_at_a_controller_that_begins_with_nothing(
    fleet, operator, name, tmp_path, signer
):
    first, second = Host(fleet, operator, name, tmp_path), Host(fleet, operator, name, tmp_path)
    # In the order of their names, in which they are learnt, the old host's request comes last.
    newer, older = sorted((first.invited(), second.invited()), key=lambda one: one.document.token)
    async with house.running(fleet, tmp_path, operator=operator, enrolment=signer) as controlled:
        await controlled.leads()
        await first.ask(older)
        await controlled.give(operator.revocations(first.public))
        await second.ask(newer)
    async with house.running(fleet, tmp_path, operator=operator, enrolment=signer, name="c2") as other:
        await other.leads()
        assert other.core.tokens.keys() == {older.document.token, newer.document.token}
        assert other.core.nodes[name].key == second.public
        # Who asks anew is answered, and nobody is in its place.
        granted = await second.ask(newer)
        async with second.connected(granted) as engine:
            asked = enrolment.renewal(second.key, fleet=operator.fleet, node=name, user=second.user.public)
            second.answered(await engine.renew(asked))


async def test_host_that_is_invited_again_under_its_key_has_the_labels_of_that_invitation(
    fleet, controlled, operator, name, tmp_path
):
    host = Host(fleet, operator, name, tmp_path)
    await host.ask(host.invited())
    again = host.invited(labels={"role": "db"}, expires=int(time.time()) + 7_200)
    host.user = nkeys.Key.generate(nkeys.KeyKind.USER)
    await host.ask(again)
    assert controlled.core.nodes[name].key == host.public
    assert controlled.core.nodes[name].labels == {"role": "db"}


async def test_host_is_let_in_by_no_labels_that_the_controller_would_not_go_by(
    fleet, controlled, operator, name, tmp_path
):
    """Its own would be those of the invitation that it joined by last."""
    host, now_s = Host(fleet, operator, name, tmp_path), int(time.time())
    first = host.invited(expires=now_s + 7_200)
    await host.ask(first)
    assert await code_of(host.ask(host.invited(labels={"role": "db"}, expires=now_s + 3_600))) == "labels_kept"
    # By the same ones it may, and is not let in by others then that end between.
    await host.ask(host.invited(expires=now_s + 3_600))
    assert await code_of(host.ask(host.invited(labels={"role": "db"}, expires=now_s + 5_400))) == "labels_kept"
    assert controlled.core.nodes[name].labels == {"role": "web"}
    await host.ask(host.invited(labels={"role": "db"}, expires=now_s + 10_800))
    assert controlled.core.nodes[name].labels == {"role": "db"}
    # Nor by the first one, once more.
    assert await code_of(host.ask(first)) == "labels_kept"
    # What an operator certified counts before all of them, for both.
    await controlled.give(operator.node(name, host.public, labels={"role": "ci"}))
    await host.ask(first)
    assert controlled.core.nodes[name].labels == {"role": "ci"}


async def test_credentials_are_renewed_by_the_nodes_own_key_alone(fleet, controlled, operator, name, tmp_path):
    host, thief = Host(fleet, operator, name, tmp_path), Host(fleet, operator, name, tmp_path)
    granted = await host.ask(host.invited())
    async with host.connected(granted) as engine:
        asked = enrolment.renewal(host.key, fleet=operator.fleet, node=name, user=host.user.public)
        renewed = host.answered(await engine.renew(asked))
        assert renewed.expires >= granted.expires
        stolen = enrolment.renewal(thief.key, fleet=operator.fleet, node=name, user=thief.user.public)
        with pytest.raises(Problem) as refused:
            thief.answered(await engine.renew(stolen))
        assert refused.value.code == "node_unknown"
        await controlled.give(operator.revocations(host.public))
        with pytest.raises(Problem) as refused:
            host.answered(await engine.renew(asked))
        assert refused.value.code == "node_revoked"
    async with host.connected(renewed) as engine:
        await engine.desired()


async def test_what_is_no_request_is_refused_and_the_next_one_is_answered(fleet, controlled, operator, name, tmp_path):
    host = Host(fleet, operator, name, tmp_path)
    invited = host.invited()
    path = tmp_path / "invited.creds"
    path.write_bytes(invited.credentials.text())
    nonce = invited.document.token
    async with fleet.connected(nonce, credentials=path) as connection:
        for rubbish in (b"", b"{}", b"\xff" * 1000, b"[" * 5_000, b"x" * 60_000):
            answer = await connection.request(subjects.enrolment(nonce), rubbish)
            with pytest.raises(Problem) as refused:
                host.answered(answer.data)
            assert refused.value.code == "enrolment_invalid"
        # A question to nobody is none.
        await connection.publish(subjects.enrolment(nonce), b"{}")
    await host.ask(invited)


async def test_controller_that_no_operator_certified_lets_nobody_join(fleet, operator, name, tmp_path, signer):
    host = Host(fleet, operator, name, tmp_path)
    async with house.running(fleet, tmp_path, operator=operator, enrolment=signer, certify=False) as controlled:
        await controlled.leads()
        invited = host.invited()
        assert await code_of(host.ask(invited)) == "controller_uncertified"
        assert name not in controlled.core.nodes
        await controlled.certified()
        await host.ask(invited)


async def test_controller_without_the_signing_key_answers_nothing(fleet, operator, name, tmp_path):
    host = Host(fleet, operator, name, tmp_path)
    async with house.running(fleet, tmp_path, operator=operator) as controlled:
        await controlled.leads()
        with pytest.raises(EngineUnavailable):
            await host.ask_once(host.invited())
