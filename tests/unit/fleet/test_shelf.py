"""What a controller keeps of all that operators sign in years: lists of revocations and intents have an end."""

from __future__ import annotations

import contextlib

import pytest

from latticed.fleet import documents
from latticed.fleet.controller import assigning, database, retention, shelf, store
from latticed.fleet.controller.core import FleetCore
from latticed.model.errors import Problem
from tests.house import fleets
from tests.house.fleets import DAY, NOW, OPERATOR, SECOND

FLEET = fleets.Fleet()
FEW = 20
KEYS = [fleets.public(fleets.key(1_000 + number)) for number in range(FEW + 10)]
KEEP_S = 90 * DAY


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(shelf, "MOST_LISTS", FEW)


class Clock:
    now_s = NOW

    def __call__(self):
        return self.now_s


@contextlib.asynccontextmanager
async def controller(place, clock):
    """A controller's knowledge over its database in `place`."""
    async with database.opened(place / "state") as kept:
        yield FleetCore(
            kept,
            await kept.read(store.load),
            fleet="home",
            controller="c1",
            operators=(fleets.public(OPERATOR), fleets.public(SECOND)),
            key=fleets.CONTROLLER,
            clock=clock,
        )


def revocations(*keys, serial, by=OPERATOR):
    return documents.sign(FLEET.revocations(*keys, serial=serial), by)


def shelved(*envelopes):
    """A shelf with these documents."""
    found = shelf.DocumentShelf(fleet="home", operators=tuple(map(fleets.public, (OPERATOR, SECOND))))
    for one in envelopes:
        found = found.taking(shelf.judged(found, one))
    return found


def told(found):
    """The keys of each list that nodes are told of, in turn."""
    return [one.document.keys for one in found.told]


async def test_hosts_are_revoked_one_after_the_other_without_end(tmp_path):
    clock = Clock()
    async with controller(tmp_path, clock) as core:
        for number in range(1, len(KEYS) + 1):
            clock.now_s = NOW + number * DAY
            await core.take_document(revocations(*KEYS[:number], serial=number))
        # One of before is there already, whoever hands it over again.
        _, new, _ = await core.take_document(revocations(*KEYS[:3], serial=3))
        assert not new
        assert told(core.shelf) == [tuple(KEYS)]
    async with controller(tmp_path, clock) as core:
        assert (core.shelf.revoked, told(core.shelf)) == (set(KEYS), [tuple(KEYS)])
        # Since when, is known of each: whoever was revoked long ago has no credentials any more.
        assert core.revoked_since == {key: NOW + number * DAY for number, key in enumerate(KEYS, 1)}
        rows = await core.database.read(lambda one: one.execute("SELECT count(*) FROM documents").fetchone())
        assert rows == (1,)


def test_list_is_kept_beside_one_by_another_operator_that_has_all_of_it():
    first = revocations(*KEYS[:2], serial=1)
    found = shelved(first, revocations(*KEYS[:3], serial=2, by=SECOND))
    assert told(found) == [tuple(KEYS[:3])]
    # That one is revoked: what the first has said is told on.
    found = found.taking(shelf.judged(found, revocations(fleets.public(SECOND), serial=3)))
    assert sorted(told(found)) == sorted([(fleets.public(SECOND),), tuple(KEYS[:2])])
    assert shelf.untold(found) == {KEYS[2]}


def test_many_lists_that_do_not_contain_each_other_have_an_end_and_one_with_all_of_them_is_taken():
    found = shelved(*(revocations(key, serial=number) for number, key in enumerate(KEYS[:FEW], 1)))
    with pytest.raises(Problem) as refused:
        shelf.judged(found, revocations(KEYS[-1], serial=999))
    assert (refused.value.code, "all of several" in refused.value.hint) == ("quota_exceeded", True)
    found = found.taking(shelf.judged(found, revocations(*KEYS, serial=999)))
    assert told(found) == [tuple(KEYS)]


def test_operator_is_asked_for_one_list_with_all_only_where_one_has_room_for_all():
    many = [fleets.public(fleets.key(2_000 + number)) for number in range(440)]
    for first, second, asked in ((many[:1], KEYS, True), (many, KEYS, False)):
        before = shelved(revocations(*first, serial=1))
        last = shelf.judged(before, revocations(*second, serial=2))
        assert bool(shelf.notes(before.taking(last), last, before)) == asked


def test_what_was_revoked_last_is_told_first():
    first, second = KEYS[:9], KEYS[9:10]
    found = shelved(revocations(*first, serial=1), revocations(*second, serial=2))
    assert told(found) == [tuple(second), tuple(first)]


async def test_intents_without_use_go_once_they_have_been_expired_for_a_while(tmp_path):
    clock = Clock()
    intents = [documents.sign(FLEET.intent(number), OPERATOR) for number in range(1, 5)]
    names = [documents.read(one, documents.Intent).sha256 for one in intents]
    async with controller(tmp_path, clock) as core:
        for one in intents:
            await core.take_document(one)
        node = assigning.FleetNodeKey(name="n1", key=FLEET.node_key, labels={"role": "web"}, serial=0)
        key = assigning.AssigningKey(
            private=fleets.CONTROLLER, public=fleets.public(fleets.CONTROLLER), epoch=1, life_s=DAY
        )
        made = assigning.made(core.shelf, node, names[1], generation=1, sources=(), key=key, now_s=NOW)
        async with core.changing:
            await core.keep([made], sources={names[0]: (), names[1]: ()})
        clock.now_s = NOW + 30 * DAY + KEEP_S
        await retention.drop_intents(core, keep_s=KEEP_S)
        assert set(core.shelf.intents) == set(names)
        clock.now_s += 1
        await retention.drop_intents(core, keep_s=KEEP_S)
    async with controller(tmp_path, clock) as core:
        # One is assigned, and the newest says which numbers are used.
        assert set(core.shelf.intents) == {names[1], names[3]}
        assert set(core.sources) == {names[1]}
