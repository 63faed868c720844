"""Every rule of supervision, one by one, without an event loop."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latticed.model import restart
from latticed.model.errors import Fault
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
    """The state after `events`, and everything that was to be done on the way."""
    state, done = state or HandleState(), []
    for event in events:
        state, actions = decide(state, event, RULES)
        done += actions
    return state, done


ARMED = after(Arm(), Started("held"))[0]
WAITING = after(CRASH, state=ARMED)[0]
BROKEN = after(CRASH, RetryDue(), CRASH, RetryDue(), CRASH, state=ARMED)[0]
HELD = after(Disarm(FAULT), Stopped(), state=ARMED)[0]


def test_arming_starts():
    """A stopped handle is started and armed."""
    state, done = after(Arm())
    assert (state.phase, state.wanted, done) == (Phase.STARTING, True, [HandleAction.START])
    assert ARMED.phase is Phase.ARMED
    assert ARMED.message == "held"


@pytest.mark.parametrize("before", [ARMED, WAITING, BROKEN, after(Arm())[0]], ids=lambda state: state.phase.value)
def test_arming_again_changes_nothing(before):
    """Every look at the disk says it anew: that is no reason to start, to retry early or to close the breaker."""
    state, done = after(Arm(), state=before)
    assert (state, done) == (before, [])


def test_disarming_stops_and_rests():
    """An operator's word: it is stopped, and its failures are forgiven."""
    state, done = after(Disarm(), state=ARMED)
    assert (state.phase, state.wanted, done) == (Phase.STOPPING, False, [HandleAction.STOP])
    state, done = after(Stopped(), state=state)
    assert (state.phase, state.fault, state.message, done) == (Phase.STOPPED, None, "", [])


def test_disarming_for_a_fault_holds_it_with_the_reason():
    """A tampered bundle: failed with the code, not stopped."""
    assert (HELD.phase, HELD.wanted, HELD.fault, HELD.message) == (Phase.HELD, False, FAULT, FAULT.reason)
    state, done = after(Disarm(FAULT))
    assert (state.phase, done) == (Phase.HELD, [])


def test_what_is_held_starts_when_armed():
    """Its bundle verifies again: at once, without a backoff."""
    state, done = after(Arm(), state=HELD)
    assert (state.phase, state.fault, state.message, done) == (Phase.STARTING, None, "", [HandleAction.START])


@pytest.mark.parametrize("before", [WAITING, BROKEN], ids=["waiting", "broken"])
@pytest.mark.parametrize(("fault", "phase"), [(None, Phase.STOPPED), (FAULT, Phase.HELD)])
def test_disarming_what_waits_takes_back_the_retry(before, fault, phase):
    """Nothing starts later by itself."""
    state, done = after(Disarm(fault), state=before)
    assert (state.phase, done) == (phase, [HandleAction.CANCEL_RETRY])
    assert after(RetryDue(), state=state) == (state, [])


def test_a_crash_waits_and_retries():
    """Failed with the reason; the retry starts it again and counts."""
    assert (WAITING.phase, WAITING.fault) == (Phase.WAITING, Fault("exited", "status 3"))
    assert after(CRASH, state=ARMED)[1] == [HandleAction.RETRY]
    state, done = after(RetryDue(), state=WAITING)
    assert (state.phase, state.restarts, done) == (Phase.STARTING, 1, [HandleAction.START])


def test_a_failed_start_counts_like_a_crash():
    """Three failures in a row open the breaker, wherever they happen; no fourth attempt."""
    state, done = after(Arm(), CRASH, RetryDue(), CRASH, RetryDue(), CRASH)
    assert (state.phase, done.count(HandleAction.START), done.count(HandleAction.RETRY)) == (Phase.BROKEN, 3, 2)
    assert after(RetryDue(), Arm(), RetryDue(), state=state) == (state, [])


@pytest.mark.parametrize("code", ["exited", "crashed", "out_of_memory", "wasm_trap", "answers_unread"])
def test_no_failure_of_a_life_that_visitors_reached_opens_the_breaker(code):
    """However often, whatever its code: paused, started again, and it says why. Its own three do all the same."""
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


def test_a_start_is_no_visitor_s_doing():
    """Nobody reaches what is starting: whatever is said of it, that counts."""
    state, _ = after(Arm(), *[InstanceFailed("exited", "x", visited=True), RetryDue()] * 3)
    assert (state.phase, state.message) == (Phase.BROKEN, "x")


def test_a_plugin_that_visitors_keep_too_busy_for_its_health_is_excused():
    """Restarted for it, with a pause; never broken by it."""
    state = ARMED
    for _ in range(10):
        state, _ = after(*[replace(SICK, visited=True)] * 3, Stopped(), state=state)
        assert (state.phase, state.failures.counted) == (Phase.WAITING, 0)
        assert state.message.endswith(restart.VISITED)
        state, _ = after(RetryDue(), Started(), state=state)


def test_what_anybody_can_have_a_plugin_echo_opens_no_breaker():
    """An answer that is too long, however often: growing pauses, but no breaker. At a start nobody has asked it yet."""
    long = replace(CRASH, code="message_too_large")
    state, done = ARMED, []
    for _ in range(10):
        state, more = after(long, RetryDue(), Started(), state=state)
        done += more
    assert (state.phase, state.failures.in_a_row, done.count(HandleAction.RETRY)) == (Phase.ARMED, 10, 10)
    state, _ = after(CRASH, RetryDue(), CRASH, RetryDue(), state=state)
    assert state.phase is Phase.STARTING
    assert after(long, state=state)[0].phase is Phase.BROKEN


def test_only_failures_in_a_row_open_the_breaker():
    """A life of a minute starts the count over."""
    state, _ = after(CRASH, RetryDue(), Started(), CRASH, RetryDue(), Started(), state=ARMED)
    assert state.failures.in_a_row == 2
    state, done = after(replace(CRASH, uptime_s=60.0), state=state)
    assert (state.phase, state.failures.in_a_row, done) == (Phase.WAITING, 1, [HandleAction.RETRY])


def test_an_operator_closes_the_breaker():
    """Restart starts it afresh; so does switching it off and on."""
    state, done = after(Arm(afresh=True), state=BROKEN)
    assert (state.phase, state.failures.in_a_row, done) == (
        Phase.STARTING,
        0,
        [HandleAction.CANCEL_RETRY, HandleAction.START],
    )
    state, done = after(Disarm(), Arm(), state=BROKEN)
    assert (state.phase, state.failures.in_a_row) == (Phase.STARTING, 0)


def test_the_disk_does_not_close_the_breaker():
    """A bundle that goes and comes back is no operator: what crashed too often stays down and says why."""
    state, done = after(Disarm(FAULT), Arm(), state=BROKEN)
    assert (state.phase, done) == (Phase.BROKEN, [HandleAction.CANCEL_RETRY])
    assert state.fault is not None
    assert state.fault.code == "breaker_open"
    assert after(Arm(afresh=True), state=state)[0].phase is Phase.STARTING


def test_the_disk_does_not_forgive_crashes():
    """The count goes on where it was when the bundle comes back."""
    state, _ = after(Disarm(FAULT), Arm(), CRASH, RetryDue(), CRASH, state=WAITING)
    assert state.phase is Phase.BROKEN


def test_an_operator_who_disables_forgives_also_what_is_found_damaged_while_it_stops():
    """Once it is whole and wanted again, earlier failures count no more."""
    state, _ = after(CRASH, RetryDue(), Disarm(), Disarm(FAULT), Stopped(), state=ARMED)
    assert (state.phase, state.fault, state.failures.in_a_row) == (Phase.HELD, FAULT, 0)


def test_a_final_failure_is_held():
    """The stored pair does not verify: trying again cannot mend that."""
    state, done = after(Arm(), InstanceFailed("digest_mismatch", "expected 7f", final=True))
    assert (state.phase, state.wanted, done) == (Phase.HELD, False, [HandleAction.START])
    assert after(RetryDue(), state=state) == (state, [])
    assert after(Arm(), state=state)[1] == [HandleAction.START]


@pytest.mark.parametrize("phase", [Phase.STARTING, Phase.ARMED])
def test_afresh_replaces_what_lives(phase):
    """The old life is stopped first, the new one starts when it is gone."""
    state, done = after(Arm(afresh=True), state=replace(ARMED, phase=phase))
    assert (state.phase, done) == (Phase.STOPPING, [HandleAction.STOP])
    state, done = after(Stopped(), state=state)
    assert (state.phase, state.restarts, done) == (Phase.STARTING, 1, [HandleAction.START])


def test_wanted_again_while_it_stops():
    """It ends first, then starts: never two lives at once."""
    state, done = after(Disarm(), Arm(), state=ARMED)
    assert (state.phase, done) == (Phase.STOPPING, [HandleAction.STOP])
    assert after(Stopped(), state=state)[1] == [HandleAction.START]


def test_unwanted_again_while_it_stops():
    """The last word counts."""
    state, done = after(Disarm(), Arm(), Disarm(FAULT), Stopped(), state=ARMED)
    assert (state.phase, done) == (Phase.HELD, [HandleAction.STOP])


def test_health_is_shown_and_only_counted_when_bad():
    """Degraded is no failure; a good check starts the count over."""
    state, done = after(SICK, SICK, Checked(Health.DEGRADED, "slow"), SICK, SICK, state=ARMED)
    assert (state.phase, state.health, state.message, done) == (Phase.ARMED, Health.UNHEALTHY, "no answer", [])


def test_unhealthy_often_enough_is_a_failure():
    """It is stopped, then retried with a backoff, and it counts for the breaker."""
    state, done = after(SICK, SICK, SICK, state=ARMED)
    assert (state.phase, done) == (Phase.STOPPING, [HandleAction.STOP])
    state, done = after(Stopped(), state=state)
    assert (state.phase, state.failures.in_a_row, done) == (Phase.WAITING, 1, [HandleAction.RETRY])
    assert state.fault is not None
    assert state.fault.code == "unhealthy"
    assert "3 times in a row: no answer" in state.fault.reason


def test_arming_does_not_wash_off_bad_health():
    """A look at the disk while it is being stopped for its health is no excuse from the backoff."""
    state, _ = after(SICK, SICK, SICK, Arm(), Stopped(), state=ARMED)
    assert (state.phase, state.failures.in_a_row) == (Phase.WAITING, 1)


def test_an_operator_restarts_what_is_ill_at_once():
    """A restart while it is being stopped for its health needs no backoff."""
    state, _ = after(SICK, SICK, SICK, Arm(afresh=True), Stopped(), state=ARMED)
    assert (state.phase, state.failures.in_a_row) == (Phase.STARTING, 0)


@pytest.mark.parametrize(
    "state",
    [HandleState(), WAITING, BROKEN, HELD, after(Disarm(), state=ARMED)[0]],
    ids=lambda state: state.phase.value,
)
@pytest.mark.parametrize("event", [Started(), CRASH, SICK], ids=["started", "failed", "checked"])
def test_late_news_of_a_life_that_is_over_counts_for_nothing(state, event):
    """What no longer lives cannot start, crash or be ill."""
    assert after(event, state=state) == (state, [])


@pytest.mark.parametrize("state", [HandleState(), ARMED, WAITING, BROKEN, HELD], ids=lambda state: state.phase.value)
def test_stopped_means_nothing_to_what_is_not_stopping(state):
    """Only a stop that was asked for ends in one."""
    assert after(Stopped(), state=state) == (state, [])
