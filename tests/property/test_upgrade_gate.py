"""The gate of an upgrade as a state machine: whatever is seen of the new version, in whatever order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from latticed.lifecycle import health_gate
from latticed.lifecycle.health_gate import Baseline, Condition, GateLook, GateStep, HealthGate, Tally
from latticed.model.runtime import Health

GATE_S = 10.0
TALLIES = st.builds(lambda good, bad: Tally(total=good + bad, bad=bad), st.integers(0, 40), st.integers(0, 40))
HEALTH = st.sampled_from(Health)
BASELINES = st.builds(Baseline, calls=TALLIES, invocations=TALLIES, health=HEALTH)
LOOKS = st.lists(
    st.tuples(
        st.floats(0, 8),
        st.builds(
            GateLook,
            condition=st.sampled_from(Condition),
            health=HEALTH,
            calls=TALLIES,
            invocations=TALLIES,
            can_return=st.booleans(),
        ),
    ),
    min_size=1,
    max_size=30,
)


@given(baseline=BASELINES, looks=LOOKS)
def test_a_version_stays_only_after_a_whole_gate_without_a_fault(baseline, looks):
    one, now_s, watched_since_s = HealthGate(baseline=baseline), 0.0, None
    for passed_s, seen in looks:
        now_s += passed_s
        found = health_gate.decide(one, seen, now_s, gate_s=GATE_S)
        bad = (
            seen.condition is Condition.FAILED
            or health_gate.jumped(baseline.calls, seen.calls)
            or health_gate.jumped(baseline.invocations, seen.invocations)
        )
        if seen.condition is Condition.AWAY:
            assert found.step is GateStep.WAIT
            watched_since_s = None
        elif not seen.can_return:
            assert found.step is GateStep.COMMIT
            return
        elif bad:
            assert found.step is GateStep.RETURN
            assert found.fault is not None
            return
        elif watched_since_s is None and seen.condition is Condition.ARMED:
            watched_since_s = now_s
        match found.step:
            case GateStep.COMMIT:
                assert watched_since_s is not None
                assert now_s - watched_since_s >= GATE_S
                assert one.checked
                assert seen.condition is Condition.ARMED
                assert seen.health is not Health.UNHEALTHY
                return
            case GateStep.RETURN:
                assert watched_since_s is not None
                assert now_s - watched_since_s >= GATE_S
                return
            case GateStep.CHECK:
                assert now_s - (watched_since_s or 0.0) >= GATE_S
            case GateStep.WAIT:
                pass
        one = found.gate
