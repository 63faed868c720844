"""Rollouts over simulated nodes: what is good reaches all of them, what is bad its first wave alone."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.fleet import rollout as rollouts
from latticed.fleet.rollout import GatePolicy, NodeReport, RolloutState

NEW, OLD = "new", "old"
POLICY = GatePolicy(settle_s=30, patience_s=300)


class Fleet:
    """Nodes that do what they are assigned after a while, unless they are away or slow for ever."""

    def __init__(self, names, *, bad=(), away=(), deaf=(), chance=None):
        self.names, self.bad, self.away, self.deaf = names, set(bad), set(away), set(deaf)
        self.chance = chance or random.Random(1)
        self.has = dict.fromkeys(names, (OLD, 0.0))
        self.given: list[dict[str, str]] = []

    def reports(self, now_s):
        return {
            name: NodeReport(
                release=release,
                well_s=now_s - since_s,
                healthy=not (release == NEW and name in self.bad),
                present=name not in self.away,
            )
            for name, (release, since_s) in self.has.items()
        }

    def take(self, wanted, now_s):
        self.given.append(wanted)
        for name, release in wanted.items():
            acts = name not in self.away and name not in self.deaf
            if acts and self.has[name][0] != release and self.chance.random() < 0.7:
                self.has[name] = (release, now_s)

    def play(self, rollout, *, steps=3_000, step_s=5.0):
        """The rollout when it is over, or after so many steps."""
        now_s = rollout.wave_began_s
        for _ in range(steps):
            rollout, wanted = rollouts.decide(
                rollout, self.reports(now_s), now_s=now_s, waited_s=now_s - rollout.wave_began_s
            )
            self.take(wanted, now_s)
            if rollout.state in {RolloutState.DONE, RolloutState.RETURNED, RolloutState.HALTED}:
                break
            now_s += step_s
        return rollout

    def with_(self, release):
        return {name for name, (has, _) in self.has.items() if has == release}


def names(count):
    return [f"node-{number}" for number in range(count)]


def begun(nodes, policy=POLICY):
    return rollouts.begin("r1", nodes, release=NEW, before=OLD, policy=policy, now_s=1_000.0)


def test_good_release_reaches_a_thousand_nodes_in_five_waves():
    fleet = Fleet(names(1_000))
    rollout = begun(fleet.names)
    assert [len(wave) for wave in rollout.waves] == [10, 90, 400, 400, 100]
    assert fleet.play(rollout).state is RolloutState.DONE
    assert fleet.with_(NEW) == set(fleet.names)


def test_bad_release_touches_its_first_wave_and_is_back_by_itself():
    fleet = Fleet(names(1_000), bad=names(1_000))
    over = fleet.play(begun(fleet.names))
    assert over.state is RolloutState.RETURNED
    assert {node for given in fleet.given for node in given} == set(over.waves[0])
    assert fleet.with_(OLD) == set(fleet.names)
    assert "10 of 10 nodes are not well" in over.reason or "of 10 nodes are not well" in over.reason


def test_release_that_turns_bad_on_the_last_wave_goes_back_everywhere():
    nodes = names(1_000)
    last = begun(nodes).waves[-1]
    fleet = Fleet(nodes, bad=last)
    assert fleet.play(begun(nodes)).state is RolloutState.RETURNED
    assert fleet.with_(OLD) == set(nodes)


def test_node_that_says_nothing_is_not_well_after_a_while():
    nodes = names(10)
    fleet = Fleet(nodes, deaf=nodes[:3])
    assert fleet.play(begun(nodes)).state is RolloutState.RETURNED


def test_few_that_are_away_are_waited_for_by_nobody_and_many_by_an_operator():
    nodes = names(100)
    first = begun(nodes).waves[0]
    few, many = Fleet(nodes, away=first[:2]), Fleet(nodes, away=first[:3])
    assert few.play(begun(nodes)).state is RolloutState.DONE
    halted = many.play(begun(nodes))
    assert (halted.state, halted.wave) == (RolloutState.HALTED, 0)
    assert "3 of 10 nodes are away" in halted.reason
    many.away.clear()
    assert many.play(rollouts.resumed(halted, now_s=9_000.0)).state is RolloutState.DONE


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        ({}, "well"),
        ({"well_s": 29.0}, "pending"),
        ({"release": OLD}, "pending"),
        ({"release": OLD, "healthy": False}, "pending"),
        ({"healthy": False}, "unwell"),
        ({"restarts": 3}, "unwell"),
        ({"restarts": 2}, "well"),
        ({"denials_per_minute": 61.0}, "unwell"),
        ({"present": False}, "away"),
        ({"present": False, "healthy": False}, "away"),
    ],
)
def test_what_a_report_says(change, outcome):
    report = dataclasses.replace(NodeReport(release=NEW, well_s=30.0, healthy=True), **change)
    assert rollouts.outcome(begun(names(1)), report, waited_s=0.0) == outcome


def test_operator_can_halt_resume_and_go_back():
    fleet = Fleet(names(200))
    halted = rollouts.halted(begun(fleet.names), "lunch")
    still, wanted = rollouts.decide(halted, fleet.reports(9_999.0), now_s=9_999.0, waited_s=9_999.0)
    assert (still, set(wanted)) == (halted, set(halted.waves[0]))
    back = fleet.play(rollouts.returning(halted, "no"))
    assert back.state is RolloutState.RETURNED
    assert rollouts.halted(back, "late") is back
    assert rollouts.resumed(back, now_s=0.0) is back


@given(
    count=st.integers(0, 120),
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    name=st.text("abc", max_size=3),
)
def test_each_node_is_in_one_wave(count, sizes, name):
    found = rollouts.waves(name, names(count), sizes)
    assert sorted(node for wave in found for node in wave) == sorted(names(count))
    assert [len(wave) for wave in found[:-1]] == [sizes[min(i, len(sizes) - 1)] for i in range(len(found) - 1)]


@given(data=st.data(), count=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_no_later_wave_begins_before_each_gate_and_every_rollout_ends(data, count, seed):
    """Whichever nodes are bad, away or deaf, and however long each takes."""
    nodes = names(count)
    some = st.sets(st.sampled_from(nodes), max_size=count)
    fleet = Fleet(nodes, bad=data.draw(some), away=data.draw(some), deaf=data.draw(some), chance=random.Random(seed))
    rollout = rollouts.begin(
        "r", nodes, release=NEW, before=OLD, policy=POLICY, now_s=0.0, sizes=data.draw(st.just([1, 3, 8]))
    )
    now_s = 0.0
    for _ in range(2_000):
        before = rollout
        reports = fleet.reports(now_s)
        waited_s = now_s - rollout.wave_began_s
        rollout, wanted = rollouts.decide(rollout, reports, now_s=now_s, waited_s=waited_s)
        assert set(wanted) <= set(rollout.touched)
        if rollout.wave > before.wave:
            assert rollout.wave == before.wave + 1
            there = [node for node in before.waves[before.wave] if node not in fleet.away]
            assert (
                all(fleet.has[node][0] == NEW and node not in fleet.bad | fleet.deaf for node in there)
                or len(before.touched) >= 1 / POLICY.unwell_share
            )
            assert len(there) >= (1 - POLICY.away_share) * len(before.waves[before.wave])
        if rollout.state is not RolloutState.RUNNING and before.state is not RolloutState.RUNNING:
            assert rollout.wave == before.wave
        fleet.take(wanted, now_s)
        now_s += 7.0
        if rollout.state in {RolloutState.DONE, RolloutState.HALTED, RolloutState.RETURNED}:
            break
    # A node that takes nothing cannot be brought back either: it never had anything else.
    assert rollout.state in {RolloutState.DONE, RolloutState.HALTED, RolloutState.RETURNED}
