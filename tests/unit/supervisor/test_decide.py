"""Every rule of supervision, without an event loop."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latticed.model import restart
from latticed.model.fault import Fault
from latticed.model.runtime import Health
from latticed.supervisor import decide as rules
from latticed.supervisor.decide import (
    Arm,
    Checked,
    Disarm,
    Event,
    HandleAction,
    HandleState,
    InstanceFailed,
    Phase,
    RetryDue,
    Started,
    Stopped,
    decide,
)

RULES = rules.SupervisionRules(restart=restart.RestartPolicy(breaker_failures=3, healthy_s=60), bad_checks=3)
FAULT = Fault("digest_mismatch", "expected 7f, found 91")
CRASH = InstanceFailed("exited", "status 3")
SICK = Checked(Health.UNHEALTHY, "no answer")


def after(*events: Event, state: HandleState | None = None) -> tuple[HandleState, list[HandleAction]]:
    """The state after `events`, and all actions on the way."""
    state, done = state or HandleState(), []
    for event in events:
        state, actions = decide(state, event, RULES)
        done += actions
    return state, done


ARMED = after(Arm(), Started("held"))[0]
WAITING = after(CRASH, state=ARMED)[0]
BROKEN = after(CRASH, RetryDue(), CRASH, RetryDue(), CRASH, state=ARMED)[0]
REFUSED = after(Disarm(FAULT), Stopped(), state=ARMED)[0]


def test_arming_stopped_handle_starts_it():
    """Once started it is armed."""
    state, done = after(Arm())
    assert (state.phase, state.wanted, done) == (Phase.STARTING, True, [HandleAction.START])
    assert ARMED.phase is Phase.ARMED
    assert ARMED.message == "held"


@pytest.mark.parametrize("before", [ARMED, WAITING, BROKEN, after(Arm())[0]], ids=lambda state: state.phase.value)
def test_arming_an_armed_plugin_changes_nothing(before):
    """Every rescan arms it again: that must not start it, retry early or close the breaker."""
    state, done = after(Arm(), state=before)
    assert (state, done) == (before, [])


def test_disarm_stops_plugin_and_clears_failures():
    """An operator has decided it, so nothing is left to report once the plugin has stopped."""
    state, done = after(Disarm(), state=ARMED)
    assert (state.phase, state.wanted, done) == (Phase.STOPPING, False, [HandleAction.STOP])
    state, done = after(Stopped(), state=state)
    assert (state.phase, state.fault, state.message, done) == (Phase.STOPPED, None, "", [])


def test_disarmed_plugin_with_a_fault_is_refused_with_its_reason():
    """A tampered bundle: failed with the code, not stopped."""
    assert (REFUSED.phase, REFUSED.wanted) == (Phase.REFUSED, False)
    assert (REFUSED.fault, REFUSED.message) == (FAULT, FAULT.reason)
    state, done = after(Disarm(FAULT))
    assert (state.phase, done) == (Phase.REFUSED, [])


def test_refused_plugin_starts_when_armed():
    """Its bundle verifies again: it starts at once, without a backoff."""
    state, done = after(Arm(), state=REFUSED)
    assert (state.phase, state.fault, state.message, done) == (Phase.STARTING, None, "", [HandleAction.START])


@pytest.mark.parametrize("before", [WAITING, BROKEN], ids=["waiting", "broken"])
@pytest.mark.parametrize(("fault", "phase"), [(None, Phase.STOPPED), (FAULT, Phase.REFUSED)])
def test_disarm_cancels_pending_retry(before, fault, phase):
    state, done = after(Disarm(fault), state=before)
    assert (state.phase, done) == (phase, [HandleAction.CANCEL_RETRY])
    assert after(RetryDue(), state=state) == (state, [])


def test_crashed_plugin_waits_and_retries():
    """Failed with the reason; the retry starts it again and counts as a restart."""
    assert (WAITING.phase, WAITING.fault) == (Phase.WAITING, Fault("exited", "status 3"))
    assert after(CRASH, state=ARMED)[1] == [HandleAction.RETRY]
    state, done = after(RetryDue(), state=WAITING)
    assert (state.phase, state.restarts, done) == (Phase.STARTING, 1, [HandleAction.START])


def test_failed_start_counts_like_a_crash():
    """Three failures in a row, of either kind, open the breaker; no fourth attempt."""
    state, done = after(Arm(), CRASH, RetryDue(), CRASH, RetryDue(), CRASH)
    assert (state.phase, done.count(HandleAction.START), done.count(HandleAction.RETRY)) == (Phase.BROKEN, 3, 2)
    assert after(RetryDue(), Arm(), RetryDue(), state=state) == (state, [])


@pytest.mark.parametrize("code", ["exited", "crashed", "out_of_memory", "wasm_trap", "answers_unread"])
def test_failure_after_outside_request_does_not_open_breaker(code):
    """Any number of them, with any code, are retried with backoff, and the reason says so. Three other failures still
    open it.
    """
    theirs, state = InstanceFailed(code, "x", visited=True), ARMED
    for _ in range(50):
        state, done = after(theirs, state=state)
        assert (state.phase, done) == (Phase.WAITING, [HandleAction.RETRY])
        assert state.fault == Fault(code, f"x {restart.VISITED}")
        assert state.failures.delay_s(RULES.restart, 0.5) <= 15
        state, _ = after(RetryDue(), Started(), state=state)
    state, _ = after(CRASH, RetryDue(), Started(), theirs, RetryDue(), CRASH, RetryDue(), state=state)
    assert state.phase is Phase.STARTING
    assert after(Started(), CRASH, state=state)[0].phase is Phase.BROKEN


def test_failed_start_counts_although_outside_request_is_noted():
    """No request reaches an instance that is starting."""
    state, _ = after(Arm(), *[InstanceFailed("exited", "x", visited=True), RetryDue()] * 3)
    assert (state.phase, state.message) == (Phase.BROKEN, "x")


def test_bad_health_after_outside_request_does_not_open_breaker():
    """The plugin is restarted with backoff each time."""
    state = ARMED
    for _ in range(10):
        state, _ = after(*[replace(SICK, visited=True)] * 3, Stopped(), state=state)
        assert (state.phase, state.failures.counted) == (Phase.WAITING, 0)
        assert state.message.endswith(restart.VISITED)
        state, _ = after(RetryDue(), Started(), state=state)


def test_excused_code_does_not_open_breaker():
    """message_too_large while running: growing backoff, but no breaker. It counts at a start, before any request."""
    long = replace(CRASH, code="message_too_large")
    state, done = ARMED, []
    for _ in range(10):
        state, more = after(long, RetryDue(), Started(), state=state)
        done += more
    assert (state.phase, state.failures.in_a_row, done.count(HandleAction.RETRY)) == (Phase.ARMED, 10, 10)
    state, _ = after(CRASH, RetryDue(), CRASH, RetryDue(), state=state)
    assert state.phase is Phase.STARTING
    assert after(long, state=state)[0].phase is Phase.BROKEN


def test_only_failures_in_a_row_open_breaker():
    """An uptime of a minute resets the count."""
    state, _ = after(CRASH, RetryDue(), Started(), CRASH, RetryDue(), Started(), state=ARMED)
    assert state.failures.in_a_row == 2
    state, done = after(replace(CRASH, uptime_s=60.0), state=state)
    assert (state.phase, state.failures.in_a_row, done) == (Phase.WAITING, 1, [HandleAction.RETRY])


def test_operator_closes_breaker_by_restart_or_disable_and_activate():
    state, done = after(Arm(afresh=True), state=BROKEN)
    assert (state.phase, state.failures.in_a_row, done) == (
        Phase.STARTING,
        0,
        [HandleAction.CANCEL_RETRY, HandleAction.START],
    )
    state, done = after(Disarm(), Arm(), state=BROKEN)
    assert (state.phase, state.failures.in_a_row) == (Phase.STARTING, 0)


def test_returned_bundle_does_not_close_breaker():
    """Only an operator does; meanwhile the fault says so."""
    state, done = after(Disarm(FAULT), Arm(), state=BROKEN)
    assert (state.phase, done) == (Phase.BROKEN, [HandleAction.CANCEL_RETRY])
    assert state.fault is not None
    assert state.fault.code == "breaker_open"
    assert after(Arm(afresh=True), state=state)[0].phase is Phase.STARTING


def test_returned_bundle_keeps_failure_count():
    """It continues when the bundle is back."""
    state, _ = after(Disarm(FAULT), Arm(), CRASH, RetryDue(), CRASH, state=WAITING)
    assert state.phase is Phase.BROKEN


def test_disable_clears_failures_even_if_fault_follows_while_stopping():
    """Earlier failures do not count once it verifies and is wanted again."""
    state, _ = after(CRASH, RetryDue(), Disarm(), Disarm(FAULT), Stopped(), state=ARMED)
    assert (state.phase, state.fault, state.failures.in_a_row) == (Phase.REFUSED, FAULT, 0)


def test_final_failure_is_not_retried():
    """A stored pair that does not verify is one."""
    state, done = after(Arm(), InstanceFailed("digest_mismatch", "expected 7f", final=True))
    assert (state.phase, state.wanted, done) == (Phase.REFUSED, False, [HandleAction.START])
    assert after(RetryDue(), state=state) == (state, [])
    assert after(Arm(), state=state)[1] == [HandleAction.START]


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.ARMED])
def test_arming_afresh_replaces_running_instance(phase):
    """The old instance is stopped first, the new one starts once it has ended."""
    state, done = after(Arm(afresh=True), state=replace(ARMED, phase=phase))
    assert (state.phase, done) == (Phase.STOPPING, [HandleAction.STOP])
    state, done = after(Stopped(), state=state)
    assert (state.phase, state.restarts, done) == (Phase.STARTING, 1, [HandleAction.START])


def test_plugin_armed_while_stopping_starts_after_the_stop():
    """There are never two instances at once."""
    state, done = after(Disarm(), Arm(), state=ARMED)
    assert (state.phase, done) == (Phase.STOPPING, [HandleAction.STOP])
    assert after(Stopped(), state=state)[1] == [HandleAction.START]


def test_plugin_disarmed_again_while_stopping_stays_stopped():
    """The last event counts."""
    state, done = after(Disarm(), Arm(), Disarm(FAULT), Stopped(), state=ARMED)
    assert (state.phase, done) == (Phase.REFUSED, [HandleAction.STOP])


def test_only_unhealthy_checks_in_a_row_are_counted():
    """Degraded is no failure; a good check resets the count."""
    state, done = after(SICK, SICK, Checked(Health.DEGRADED, "slow"), SICK, SICK, state=ARMED)
    assert (state.phase, state.health, state.message, done) == (Phase.ARMED, Health.UNHEALTHY, "no answer", [])


def test_repeated_bad_health_stops_and_retries_the_plugin():
    """It is stopped, then retried with a backoff, and it counts for the breaker."""
    state, done = after(SICK, SICK, SICK, state=ARMED)
    assert (state.phase, done) == (Phase.STOPPING, [HandleAction.STOP])
    state, done = after(Stopped(), state=state)
    assert (state.phase, state.failures.in_a_row, done) == (Phase.WAITING, 1, [HandleAction.RETRY])
    assert state.fault is not None
    assert state.fault.code == "unhealthy"
    assert "3 times in a row: no answer" in state.fault.reason


def test_arming_does_not_clear_bad_health():
    """A rescan while it is being stopped for its health does not skip the backoff."""
    state, _ = after(SICK, SICK, SICK, Arm(), Stopped(), state=ARMED)
    assert (state.phase, state.failures.in_a_row) == (Phase.WAITING, 1)


def test_operator_restart_of_unhealthy_plugin_skips_backoff():
    """The plugin is being stopped for its health."""
    state, _ = after(SICK, SICK, SICK, Arm(afresh=True), Stopped(), state=ARMED)
    assert (state.phase, state.failures.in_a_row) == (Phase.STARTING, 0)


@pytest.mark.parametrize(
    "state",
    [HandleState(), WAITING, BROKEN, REFUSED, after(Disarm(), state=ARMED)[0]],
    ids=lambda state: state.phase.value,
)
@pytest.mark.parametrize("event", [Started(), CRASH, SICK], ids=["started", "failed", "checked"])
def test_late_events_of_a_stopped_plugin_are_ignored(state, event):
    """A stopped plugin cannot start, crash or become unhealthy."""
    assert after(event, state=state) == (state, [])


@pytest.mark.parametrize("state", [HandleState(), ARMED, WAITING, BROKEN, REFUSED], ids=lambda state: state.phase.value)
def test_stopped_event_is_ignored_unless_stopping(state):
    assert after(Stopped(), state=state) == (state, [])
