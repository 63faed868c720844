"""Usage of proxies is never counted twice and at most one poll is lost, whatever is killed, started anew, set back."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest

from latticed.plans import protocol, proxy
from latticed.system.proxy import usage
from latticed.system.proxy.usage import ByteCount, Connection, Usage


class World:
    """A core with connections, and a daemon that polls and keeps; both are killed now and then."""

    def __init__(self, rng):
        self.rng = rng
        self.ids = itertools.count()
        self.live = {}
        self.over = {}  # ended, and told still
        self.carried = {}  # by user: all bytes that went through
        self.at_risk = {}  # by user: bytes of ended connections that no kept poll has seen
        self.unseen = {}  # by connection: bytes since the last kept poll
        self.kept = None
        self.state = Usage()

    def step(self):
        self.rng.choice([self.open, self.carry, self.carry, self.carry, self.poll, self.poll, self.close])()
        if self.rng.random() < 0.03:
            self.core_killed()
        if self.rng.random() < 0.05:
            self.daemon_killed()

    def open(self):
        name = f"id-{next(self.ids)}"
        self.live[name] = [self.rng.choice(["anna", "ben", ""]), 0, 0]
        self.unseen[name] = 0

    def carry(self):
        if self.live:
            name = self.rng.choice(list(self.live))
            up, down = self.rng.randrange(1000), self.rng.randrange(100_000)
            self.live[name][1] += up
            self.live[name][2] += down
            self.unseen[name] += up + down
            user = self.live[name][0]
            self.carried[user] = self.carried.get(user, 0) + up + down

    def close(self, name=None):
        if self.live:
            name = name or self.rng.choice(list(self.live))
            self.over[name] = self.live.pop(name)
            while len(self.over) > 2:
                self.forget(next(iter(self.over)))

    def forget(self, name):
        user = self.over.pop(name)[0]
        self.at_risk[user] = self.at_risk.get(user, 0) + self.unseen.pop(name)

    def told(self):
        return [
            Connection(id=name, user=user, up_bytes=up, down_bytes=down, is_open=name in self.live)
            for name, (user, up, down) in {**self.live, **self.over}.items()
        ]

    def poll(self):
        told = self.told()
        self.rng.shuffle(told)
        self.state = usage.polled(self.state, told)
        if self.rng.random() < 0.2:
            return  # the daemon is killed before it is kept
        parts = usage.split(self.state)
        self.kept = [usage.written(one) for one in parts]
        self.unseen = dict.fromkeys([*self.live, *self.over], 0)

    def core_killed(self):
        for name in list(self.live):
            self.close(name)
        for name in list(self.over):
            self.forget(name)

    def daemon_killed(self):
        self.state = usage.joined(map(usage.read, self.kept or []))

    def used(self, user):
        return self.state.used.get(user, ByteCount()).total()


@pytest.mark.parametrize("seed", range(150))
def test_nothing_counts_twice_and_only_what_no_poll_saw_is_lost(seed):
    world = World(random.Random(seed))
    for _ in range(200):
        world.step()
        for user in ("anna", "ben"):
            assert world.used(user) <= world.carried.get(user, 0)
    while True:  # one poll that is kept
        world.poll()
        if world.kept == [usage.written(one) for one in usage.split(world.state)] and not any(world.unseen.values()):
            break
    for user in ("anna", "ben"):
        assert world.carried.get(user, 0) - world.used(user) <= world.at_risk.get(user, 0)
    assert world.used("") == 0


@pytest.mark.parametrize("seed", range(50))
def test_the_same_poll_again_changes_nothing(seed):
    world = World(random.Random(seed))
    for _ in range(80):
        world.step()
    told = world.told()
    once = usage.polled(world.state, told)
    assert usage.polled(once, told) == usage.polled(once, [*told, *told]) == once


def test_counters_that_go_back_count_nothing():
    state = usage.polled(Usage(), [Connection(id="a", user="anna", up_bytes=10, down_bytes=5)])
    state = usage.polled(state, [Connection(id="a", user="anna", up_bytes=4, down_bytes=6)])
    state = usage.polled(state, [Connection(id="a", user="anna", up_bytes=10, down_bytes=6)])
    assert state.used["anna"] == ByteCount(up_bytes=10, down_bytes=6)


def test_what_ended_between_two_polls_is_counted_once_and_is_no_device():
    ended = Connection(id="a", user="anna", source="198.51.100.1", up_bytes=10, down_bytes=5, is_open=False)
    state = usage.polled(Usage(), [ended])
    for _ in range(3):
        state = usage.polled(usage.read(usage.written(state)), [ended])
        assert state.used["anna"].total() == 15
    assert usage.sources([ended]) == {}
    assert usage.polled(state, []).seen == {}


def test_what_a_version_before_has_counted_is_not_counted_again_after_its_end():
    """It knew of open connections alone, and forgot those that had ended, which the core tells still."""
    before = usage.read('{"used": {"anna": [100, 0]}, "seen": {"anna b": [40, 0]}, "ended": {}}')
    told = [
        Connection(id="a", user="anna", up_bytes=60, is_open=False),
        Connection(id="b", user="anna", up_bytes=45, is_open=False),
        Connection(id="c", user="anna", up_bytes=7),
    ]
    state = usage.polled(usage.joined([before, Usage()]), told)
    assert state.used["anna"].total() == 100 + 5 + 7
    assert usage.polled(state, [*told, Connection(id="d", user="anna", up_bytes=1, is_open=False)]).used[
        "anna"
    ] == ByteCount(up_bytes=113)


def test_what_is_kept_is_bounded_by_what_is_live():
    state = Usage()
    for index in range(1_000):
        state = usage.polled(state, [Connection(id=f"id-{index}", user="anna", up_bytes=1)])
    assert (len(state.seen), state.used["anna"].total()) == (1, 1_000)


def test_too_many_connections_are_told_in_part_and_only_of_who_has_the_most():
    rng = random.Random(1)
    anna = [Connection(id=f"a{one}", user="anna", up_bytes=rng.randrange(9), down_bytes=one) for one in range(100)]
    few = [Connection(id=f"{name}{one}", user=name) for name in ("ben", "cleo") for one in range(3)]
    found, left = usage.told([*anna, *few], 50)
    assert (len(found), left) == (50, {"anna": 56})
    assert set(few) < set(found)
    least = min(one.up_bytes + one.down_bytes for one in found if one.user == "anna")
    assert all(one.up_bytes + one.down_bytes <= least for one in anna if one not in found)
    assert usage.told(few, 6) == (tuple(few), {})


def test_the_longest_answer_that_tells_connections_is_one_that_the_helper_gives():
    most = Connection(id="x" * 36, user="u" * 32, source="f" * 45, up_bytes=(1 << 63) - 1, down_bytes=(1 << 63) - 1)
    told = msgspec.json.encode([proxy._told(most)] * usage.MAX_TOLD)
    assert len(told) < protocol.MAX_ANSWER_BYTES * 3 / 4, "findings, plans and ports are beside it"


@pytest.mark.parametrize("seed", range(30))
def test_of_connections_that_are_told_now_and_then_nothing_counts_twice(seed):
    """Those of Anna are too many; in the end, when all are told, all has been counted."""
    rng = random.Random(seed)
    live, state = {}, Usage()
    for step in range(60):
        for one in range(rng.randrange(4)):
            live[f"{step}.{one}"] = [rng.choice(["anna", "anna", "anna", "ben"]), 0]
        for carried in live.values():
            carried[1] += rng.choice([0, 1, 50])
        told = [Connection(id=name, user=user, up_bytes=up) for name, (user, up) in live.items()]
        found, left = usage.told(told, 20)
        state = usage.polled(state, found, left)
        for user in ("anna", "ben"):
            assert state.used.get(user, ByteCount()).total() <= sum(up for name, up in live.values() if name == user)
    state = usage.polled(state, told)
    assert {name: one.total() for name, one in state.used.items()} == {
        user: sum(up for name, up in live.values() if name == user) for user in ("anna", "ben")
    }


def test_what_was_seen_of_connections_that_are_not_told_is_bounded(monkeypatch):
    monkeypatch.setattr(usage, "MAX_SEEN", 100)
    state = Usage()
    for index in range(1_000):
        state = usage.polled(state, [Connection(id=f"id-{index}", user="anna", up_bytes=1)], {"anna": 1})
    assert (len(state.seen), state.used["anna"].total(), "anna id-999" in state.seen) == (100, 1_000, True)


def test_quota_and_end_cut_a_user_and_nobody_else():
    told = [
        Connection(id="a1", user="anna", source="198.51.100.1", up_bytes=60, down_bytes=40),
        Connection(id="b1", user="ben", source="198.51.100.1", up_bytes=60, down_bytes=39),
        Connection(id="a2", user="anna", source="198.51.100.2"),
        Connection(id="a3", user="anna", source="198.51.100.2"),
    ]
    state = usage.polled(Usage(), told)
    off = usage.over(state, {}, {"anna": 100, "ben": 100, "carl": 100}, now_s=0)
    assert off == {"anna"}
    assert usage.sources(told) == {"anna": 2, "ben": 1}
    assert usage.over(usage.reset(state, "anna"), {}, {"anna": 100}, now_s=0) == frozenset()
    # What is open still counts from the reset on, not from its opening.
    again = usage.polled(usage.reset(state, "anna"), told)
    assert again.used["anna"].total() == 0


def test_a_clock_that_is_set_back_opens_nothing():
    until = {"anna": 100}
    state = usage.ticked(Usage(), until, 100)
    assert usage.over(usage.read(usage.written(state)), until, {}, now_s=5) == {"anna"}
    # Prolonged by the operator, it is another end.
    assert usage.over(state, {"anna": 200}, {}, now_s=150) == frozenset()
    assert usage.ticked(state, until, 99) == state


@pytest.mark.parametrize(
    "hostile",
    [
        *(
            "",
            "[]",
            "{}",
            "null",
            "1",
            '{"used": [], "seen": {}, "ended": {}}',
            '{"used": {"a": [1]}, "seen": {}, "ended": {}}',
        ),
        *('{"used": {"a": [1, -1]}, "seen": {}, "ended": {}}', '{"used": {"a": [1, true]}, "seen": {}, "ended": {}}'),
        *('{"used": {"a": 5}, "seen": {}, "ended": {}}', '{"used": {}, "seen": {}, "ended": {"a": "x"}}'),
    ],
)
def test_what_was_never_written_is_no_state(hostile):
    with pytest.raises(ValueError):
        usage.read(hostile)
