"""A hostile engine, controller, node and stranger against what a node believes: none of it counts."""

from __future__ import annotations

import pytest

from latticed.fleet import judging
from tests.house import fleet_attacks, fleets

NOW = fleets.NOW
HISTORY = fleet_attacks.History(fleets.Fleet())
DESIRED = list(fleet_attacks.attacks(HISTORY))
INVOKED = list(fleet_attacks.invocations(HISTORY))


@pytest.fixture(scope="module")
def state():
    """A node that has taken up generations 1 to 5."""
    found = HISTORY.fleet.state()
    for desired in HISTORY.desired:
        found, verdict = judging.judge(found, desired, now_s=NOW)
        assert isinstance(verdict, judging.TakenUp), verdict
    return found


def test_there_are_more_than_two_hundred():
    assert len({data for _, data in DESIRED} | {data for _, data in INVOKED}) > 250


@pytest.mark.parametrize(("what", "data"), DESIRED, ids=[what for what, _ in DESIRED])
def test_no_attack_alters_what_a_node_wants_or_knows(state, what, data):
    after, verdict = judging.judge(state, data, now_s=NOW)
    assert isinstance(verdict, judging.Refusal), what
    assert after == state, what
    # What is genuine is still taken.
    _, verdict = judging.judge(after, fleets.packed(**HISTORY.next()), now_s=NOW)
    assert isinstance(verdict, judging.TakenUp)


@pytest.mark.parametrize(("what", "data"), INVOKED, ids=[f"{n}: {what}" for n, (what, _) in enumerate(INVOKED)])
def test_nobody_but_an_operator_invokes(state, what, data):
    after, verdict = judging.judge_invocation(state, data, now_s=NOW)
    assert isinstance(verdict, judging.Refusal), what
    assert after == state, what
