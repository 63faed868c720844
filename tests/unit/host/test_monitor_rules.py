"""The pure parts of monitors: states and alerts, fair queue, ICMP packets."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from latticed.host.fair_queue import FairQueue
from latticed.host.monitor import icmp
from latticed.host.monitor.rules import MonitorStatus, decide

OUTCOMES = st.sampled_from(["up", "down", "unsupported", "blocked", "error"])
NEWS = {"up", "down"}


def run(outcomes, failures):
    """Every standing and alert, one after another."""
    standing, found = MonitorStatus(), []
    for outcome in outcomes:
        standing, alert = decide(standing, outcome, failures)
        found.append((standing, alert))
    return found


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_state_that_goes_down_and_up_gives_two_alerts(failures):
    """This holds for any `failures`; a target that is up from the start gives none."""
    outcomes = ["up"] * 5 + ["down"] * 5 + ["up"] * 5
    alerts = [(number, alert) for number, (_, alert) in enumerate(run(outcomes, failures)) if alert]
    assert alerts == [(4 + failures, "down"), (9 + failures, "up")]


def test_target_down_from_the_start_alerts():
    """It alerts once, after `failures` results."""
    assert [alert for _, alert in run(["down"] * 5, 2)] == [None, "down", None, None, None]


@given(outcomes=st.lists(OUTCOMES, max_size=60), failures=st.integers(1, 5))
def test_alerts_alternate_and_follow_enough_failures(outcomes, failures):
    """There are never two of a kind in a row; each comes after `failures` results of that kind in a row."""
    found = run(outcomes, failures)
    alerts = [alert for _, alert in found if alert]
    assert all(one != other for one, other in itertools.pairwise(alerts))
    assert alerts[:1] in ([], ["down"])
    for number, (standing, alert) in enumerate(found):
        if alert:
            evidence = [outcome for outcome in outcomes[: number + 1] if outcome in NEWS]
            assert evidence[-failures:] == [alert] * failures
            assert standing == MonitorStatus(state=alert)


@given(outcomes=st.lists(OUTCOMES, max_size=60), failures=st.integers(1, 5))
def test_monitor_state_is_kept_until_enough_failures(outcomes, failures):
    """Results that say nothing about the target change nothing; one result suffices only from `unknown`."""
    before = MonitorStatus()
    for outcome, (after, alert) in zip(outcomes, run(outcomes, failures), strict=True):
        assert 0 <= after.against < failures
        if outcome not in NEWS:
            assert (after, alert) == (before, None)
        elif after.state != before.state:
            assert after.state == outcome
            assert alert == outcome or (before.state, outcome) == ("unknown", "up")
        else:
            assert alert is None
            assert after.against in {0, before.against + 1}
        before = after


def test_fewer_failures_in_a_row_do_not_alert():
    """Results alternate, and `failures` is two."""
    assert {alert for _, alert in run(["up"] + ["down", "up"] * 20, 2)} == {None}


# FairQueue.


class TurnsMachine(RuleBasedStateMachine):
    """Owners push, pop and release in any order."""

    TOTAL, PER_OWNER = 6, 4

    def __init__(self):
        super().__init__()
        self.turns = FairQueue(total=self.TOTAL, per_owner=self.PER_OWNER)
        self.waiting, self.running, self.numbers = {}, [], itertools.count()

    @rule(owner=st.sampled_from("abcd"), slow=st.booleans(), many=st.integers(1, 4))
    def push(self, owner, slow, many):
        for _ in range(many):
            item = (owner, next(self.numbers))
            self.turns.push(owner, item, slow=slow)
            self.waiting.setdefault((owner, slow), []).append(item)

    @rule()
    def pop(self):
        found = self.turns.pop()
        if found is None:
            for (owner, slow), items in self.waiting.items():
                mine = self._held(owner) < self.PER_OWNER
                idle = (owner, slow) not in self.running
                assert not (items and mine and idle), "nobody waits for others in a lane of his where nothing runs"
                free = mine and len(self.running) < self.TOTAL
                assert not (items and not slow and free), "a quick one waits only for a place"
            return
        (owner, number), slow = found
        assert self.waiting[owner, slow].pop(0) == (owner, number), "first come, first served in a lane"
        self.running.append((owner, slow))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data):
        owner, slow = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.turns.release(owner, slow=slow)

    @invariant()
    def running_items_stay_within_bounds(self):
        assert self.turns.running == len(self.running) <= self.TOTAL + 2 * 4
        assert len(self.turns) == sum(map(len, self.waiting.values()))
        assert sum(slow for _, slow in self.running) <= self.TOTAL // 2 + 4
        for owner in "abcd":
            assert self._held(owner) <= self.PER_OWNER
            assert sum(one == (owner, True) for one in self.running) <= self.PER_OWNER // 2

    def _held(self, owner):
        return sum(one == owner for one, _ in self.running)


TestFairQueueInvariants = TurnsMachine.TestCase
TestFairQueueInvariants.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_owners_take_turns_in_the_queue():
    """The first item of one owner does not wait for a hundred of another."""
    turns = FairQueue(total=100, per_owner=100)
    for number in range(100):
        turns.push("many", number, slow=False)
    turns.push("few", "mine", slow=False)
    assert [turns.pop()[0] for _ in range(3)] == [0, "mine", 1]


def test_slow_items_in_the_queue_leave_slots_for_quick_ones():
    """With all slots for slow items taken, quick ones start; slow ones still get their turns."""
    turns = FairQueue(total=4, per_owner=4)
    for number in range(10):
        turns.push("a", f"hangs {number}", slow=True)
    assert [turns.pop() for _ in range(3)] == [("hangs 0", True), ("hangs 1", True), None]
    for number in range(3):
        turns.push("a", f"quick {number}", slow=False)
    assert [turns.pop() for _ in range(3)] == [("quick 0", False), ("quick 1", False), None]
    turns.push("b", "of another", slow=False)
    assert turns.pop() == ("of another", False)
    turns.release("a", slow=True)
    turns.release("b", slow=False)
    assert turns.pop() == ("hangs 2", True)


# Echoes (RFC 792, RFC 4443).

TOKENS = st.binary(min_size=16, max_size=16)


@given(identifier=st.integers(0, 65535), sequence=st.integers(0, 65535), token=TOKENS)
def test_echo_request_has_header_and_valid_checksum(identifier, sequence, token):
    """A packet with its checksum sums to zero (RFC 1071); the header is that of RFC 792 and RFC 4443."""
    packet = icmp.request(4, identifier, sequence, token)
    assert icmp.checksum(packet) == 0
    assert packet[:2] == b"\x08\x00"
    assert packet[4:] == identifier.to_bytes(2, "big") + sequence.to_bytes(2, "big") + token
    assert icmp.request(6, identifier, sequence, token)[:4] == b"\x80\x00\x00\x00"


@given(sequence=st.integers(0, 65535), token=TOKENS, data=st.binary(max_size=80), version=st.sampled_from([4, 6]))
def test_only_the_echo_reply_to_the_request_is_accepted(sequence, token, data, version):
    """It has its sequence and token, with or without IP header; our own request, seen on loopback, is not accepted."""
    kind = 0 if version == 4 else 129
    reply = bytes([kind, 0, 1, 2, 9, 9]) + sequence.to_bytes(2, "big") + token
    assert icmp.is_reply(version, reply, sequence, token)
    assert icmp.is_reply(4, b"\x46" + bytes(23) + b"\x00" + reply[1:], sequence, token)
    assert not icmp.is_reply(version, icmp.request(version, 1, sequence, token), sequence, token)
    assert not icmp.is_reply(version, reply, (sequence + 1) % 65536, token)
    assert not icmp.is_reply(version, reply[:-1], sequence, token)
    assert not icmp.is_reply(version, reply + b"x", sequence, token)
    assert not icmp.is_reply(version, data, sequence, token)
