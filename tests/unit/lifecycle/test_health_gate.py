"""Whether an upgraded version stays: the rules alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latticed.lifecycle import health_gate
from latticed.lifecycle.health_gate import Baseline, Condition, GateLook, GateStep, HealthGate, Tally
from latticed.model.fault import Fault
from latticed.model.runtime import Health

GATE_S = 60.0
FRESH = HealthGate(baseline=Baseline())
WELL = GateLook(condition=Condition.ARMED, health=Health.HEALTHY)


def decided(one: HealthGate, seen: GateLook, now_s: float):
    return health_gate.decide(one, seen, now_s, gate_s=GATE_S)


def opened(at_s: float = 100.0, baseline: Baseline | None = None) -> HealthGate:
    """A gate whose new version was armed at `at_s`."""
    return decided(HealthGate(baseline=baseline or Baseline()), WELL, at_s).gate


def at_end(seen: GateLook, baseline: Baseline | None = None):
    """What is decided when the gate has ended and the health was asked for."""
    asked = decided(opened(baseline=baseline), seen, 160.0)
    return asked if asked.step is not GateStep.CHECK else decided(asked.gate, seen, 160.1)


def test_healthy_version_stays_after_the_gate_and_one_last_check():
    one = opened()
    assert one.until_s == 160.0
    assert decided(one, WELL, 159.9).step is GateStep.WAIT
    asked = decided(one, WELL, 160.0)
    assert asked.step is GateStep.CHECK
    assert decided(asked.gate, WELL, 160.1).step is GateStep.COMMIT


def test_time_counts_from_when_it_was_armed():
    starting = decided(FRESH, GateLook(condition=Condition.STARTING), 10.0)
    assert (starting.step, starting.gate.until_s) == (GateStep.WAIT, None)
    assert decided(starting.gate, WELL, 50.0).gate.until_s == 110.0


def test_failure_returns_at_once_with_its_reason():
    fault = Fault("exited", "status 3")
    for one in (FRESH, opened()):
        found = decided(one, GateLook(condition=Condition.FAILED, fault=fault), 101.0)
        assert (found.step, found.fault) == (GateStep.RETURN, fault)


@pytest.mark.parametrize(
    ("health", "before", "step"),
    [
        (Health.HEALTHY, Health.HEALTHY, GateStep.COMMIT),
        (Health.UNKNOWN, Health.HEALTHY, GateStep.COMMIT),
        (Health.UNHEALTHY, Health.UNKNOWN, GateStep.RETURN),
        (Health.DEGRADED, Health.HEALTHY, GateStep.RETURN),
        (Health.DEGRADED, Health.DEGRADED, GateStep.COMMIT),
    ],
)
def test_health_at_the_end_may_not_be_worse_than_before(health, before, step):
    assert at_end(replace(WELL, health=health), Baseline(health=before)).step is step


def test_version_that_is_not_armed_at_the_end_is_given_up():
    """It was restarted for what visitors may have caused, which alone is no failure."""
    assert at_end(GateLook(condition=Condition.STARTING)).fault.code == "not_armed"


@pytest.mark.parametrize(
    ("before", "now", "jumps"),
    [
        (Tally(total=1000, bad=0), Tally(total=1000, bad=2), False),
        (Tally(total=1000, bad=0), Tally(total=10, bad=3), True),
        (Tally(), Tally(total=3, bad=3), True),
        (Tally(total=100, bad=50), Tally(total=10, bad=10), False),
        (Tally(total=100, bad=20), Tally(total=100, bad=44), False),
        (Tally(total=100, bad=20), Tally(total=100, bad=46), True),
        (Tally(total=10_000, bad=0), Tally(total=10_000, bad=400), False),
    ],
)
def test_more_than_twice_the_share_and_a_twentieth_is_a_jump(before, now, jumps):
    assert health_gate.jumped(before, now) is jumps
    for field, code in (("calls", "denials_jumped"), ("invocations", "errors_jumped")):
        found = decided(opened(baseline=Baseline(**{field: before})), replace(WELL, **{field: now}), 101.0)
        assert (found.fault.code if found.fault else None) == (code if jumps else None)


def test_gate_begins_anew_when_the_plugin_was_away():
    away = decided(opened(), GateLook(condition=Condition.AWAY, can_return=False), 159.0)
    assert (away.step, away.gate.until_s) == (GateStep.WAIT, None)
    assert decided(away.gate, WELL, 161.0).gate.until_s == 221.0


def test_without_a_version_to_return_to_the_new_one_stays():
    for condition in (Condition.ARMED, Condition.FAILED):
        found = decided(opened(), GateLook(condition=condition, can_return=False), 101.0)
        assert (found.step, found.fault.code) == (GateStep.COMMIT, "no_return")
