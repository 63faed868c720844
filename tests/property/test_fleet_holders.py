"""Which host has a name: what a controller learns of it leads to the same one in every order."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from latticed.fleet import documents, enrolment, nkeys
from latticed.fleet.controller import database, records, retention, store
from latticed.fleet.controller.core import FleetCore
from tests.house import fleets, long

NAME, DAY, NOW = "web-1", fleets.DAY, fleets.NOW
HOSTS = tuple(map(fleets.key, range(11, 14)))
USERS = {one: nkeys.Key.generate(nkeys.KeyKind.USER).public for one in HOSTS}


def signed(document):
    return documents.sign(document, fleets.OPERATOR)


def joined(number, host, role, expires):
    """What a controller shares of a host that joined by the invitation of this number."""
    invitation = fleets.key(100 + number)
    token = documents.EnrolmentToken(
        fleet="home",
        token=enrolment.nonce_of(fleets.public(invitation)),
        addresses=("tls://fleet.example.org:4222",),
        certificates="-----BEGIN CERTIFICATE-----\n",
        operators=(fleets.public(fleets.OPERATOR),),
        node=NAME,
        labels={"role": role},
        expires=expires,
    )
    request = documents.EnrolmentRequest(
        fleet="home",
        token=token.token,
        node=NAME,
        node_key=fleets.public(host),
        user=USERS[host],
    )
    form = {"token": msgspec.Raw(signed(token)), "request": msgspec.Raw(documents.sign(request, invitation))}
    record = records.JoinedRecord(
        token=token.token,
        node=NAME,
        key=fleets.public(host),
        labels=token.labels,
        expires=expires,
        request=msgspec.json.encode(form).decode(),
    )
    return records.shared(record, fleets.CONTROLLER, fleet="home", controller="c1", now_s=NOW)


def revoked(host, serial):
    return signed(documents.Revocations(fleet="home", serial=serial, keys=(fleets.public(host),), intents=()))


def certified(host, role, serial):
    key = fleets.public(host)
    return signed(
        documents.NodeCertificate(fleet="home", node=NAME, node_key=key, labels={"role": role}, serial=serial)
    )


async def learnt(steps, look=lambda core: core.nodes.get(NAME)):
    """The host of the name, or what `look` finds, at a controller that began with nothing."""
    with tempfile.TemporaryDirectory() as place:
        async with database.opened(Path(place) / "state") as kept:
            core = FleetCore(
                kept,
                await kept.read(store.load),
                fleet="home",
                controller="c1",
                operators=(fleets.public(fleets.OPERATOR),),
                key=fleets.CONTROLLER,
                clock=lambda: NOW,
            )
            await core.learn_document(signed(fleets.Fleet().certificate()))
            for name, data in steps:
                if name == NAME:
                    assert await core.learn(NAME, data)
                elif name:
                    assert await core.learn_record(data, name)
                else:
                    await core.learn_document(data)
            assert (await kept.read(store.load)).nodes == core.nodes
            return look(core)


def desired(host, generation):
    """What another controller has put into the engine for the host of this key."""
    fleet = fleets.Fleet(node=NAME)
    intent = fleet.intent()
    assignment = fleet.assignment(intent, generation, node_key=fleets.public(host))
    return fleets.packed(
        assignment=documents.sign(assignment, fleets.CONTROLLER),
        intent=signed(intent),
        controller=signed(fleet.certificate()),
    )


_HOST = st.integers(0, len(HOSTS) - 1)
_ROLE = st.sampled_from(["web", "db"])
_STEPS = st.tuples(
    st.lists(st.tuples(_HOST, _ROLE, st.integers(1, 3)), max_size=4),
    st.sets(_HOST),
    st.lists(st.tuples(_HOST, _ROLE), max_size=2),
)
"""Hosts that joined (who, as what, when the invitation ended), whose keys were revoked, which were certified."""


@settings(max_examples=long.times(40, 400))
@given(_STEPS, st.randoms(use_true_random=False))
def test_host_of_a_name_is_the_same_in_whatever_order_records_come(found, random):
    hosts, gone, certificates = found
    steps = [joined(number, HOSTS[one], role, NOW + end * DAY) for number, (one, role, end) in enumerate(hosts)]
    steps += [("", revoked(HOSTS[one], serial)) for serial, one in enumerate(sorted(gone), 1)]
    steps += [("", certified(HOSTS[one], role, serial)) for serial, (one, role) in enumerate(certificates, 1)]
    expected = asyncio.run(learnt(steps))
    left = {fleets.public(HOSTS[one]) for one in {one for one, *_ in hosts} - gone}
    if left:
        # A revoked key has the name no longer than another one can have it.
        assert expected.key in left | {fleets.public(HOSTS[one]) for one, _ in certificates if one not in gone}
    random.shuffle(steps)
    assert asyncio.run(learnt(steps)) == expected


def test_host_that_joined_anew_after_its_revocation_keeps_its_name_whatever_is_learnt_later():
    """Its old request is dropped after some months, and another controller that has it still shares it again."""
    old, new = joined(0, HOSTS[0], "web", NOW + 2 * DAY), joined(1, HOSTS[1], "web", NOW + DAY)
    steps = [("", revoked(HOSTS[0], 1)), new, old]
    for order in (steps, [old, new, ("", revoked(HOSTS[0], 1))]):
        assert asyncio.run(learnt(order)).key == fleets.public(HOSTS[1])


def test_host_invited_again_under_its_key_has_the_labels_of_the_later_invitation():
    first, later = joined(0, HOSTS[0], "web", NOW + DAY), joined(1, HOSTS[0], "db", NOW + 2 * DAY)
    for order in ([first, later], [later, first]):
        assert asyncio.run(learnt(order)).labels == {"role": "db"}


def test_name_that_a_host_has_is_given_to_no_other_one_by_a_later_invitation():
    first, later = joined(0, HOSTS[0], "web", NOW + DAY), joined(1, HOSTS[1], "db", NOW + 2 * DAY)
    for order in ([first, later], [later, first]):
        assert asyncio.run(learnt(order)).key == fleets.public(HOSTS[0])


def test_requests_by_which_a_host_has_its_name_before_others_are_kept():
    """The first one, and the newest; those between are dropped after their time."""
    steps = [joined(number, HOSTS[0], "web", NOW + number * DAY) for number in range(1, 5)]

    def look(core):
        return retention.outdated(core, now_s=NOW + 100 * DAY, keep_s=90 * DAY).tokens

    assert [f"joined-{one}" for one in asyncio.run(learnt(steps, look))] == [name for name, _ in steps[1:3]]


@given(st.permutations(range(5)))
def test_host_of_a_name_has_generations_of_its_own_in_whatever_order_assignments_are_learnt(order):
    old, new = HOSTS[:2]
    steps = [
        joined(0, old, "web", NOW + DAY),
        joined(1, new, "web", NOW + 2 * DAY),
        ("", revoked(old, 1)),
        (NAME, desired(old, 2**53 - 1)),
        (NAME, desired(new, 3)),
    ]

    def look(core):
        return core.nodes[NAME].key, core.next_turn(NAME)

    assert asyncio.run(learnt([steps[one] for one in order], look)) == (fleets.public(new), (1, 4))


@given(st.permutations([1, 2, 3]))
def test_newest_assignment_of_the_host_of_a_name_is_kept_before_any_of_another_host(order):
    old, new = HOSTS[:2]
    steps = [joined(0, old, "web", NOW + DAY), joined(1, new, "web", NOW + 2 * DAY), ("", revoked(old, 1))]
    given_ = {1: desired(old, 500), 2: desired(new, 2), 3: desired(new, 3)}

    def look(core):
        return core.assignments[NAME].key, core.assignments[NAME].turn

    found = asyncio.run(learnt([*steps, *((NAME, given_[one]) for one in order)], look))
    assert found == (fleets.public(new), (1, 3))
