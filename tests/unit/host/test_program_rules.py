"""Restarts of long-lived programs: every order of ends, without processes."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from latticed.host.program.rules import NoRestart, ProgramEnded, RestartAfter, RestartRules, after
from latticed.model.restart import Failures, RestartPolicy

POLICY = RestartPolicy(base_s=1.0, ceiling_s=8.0, jitter=0.2, healthy_s=60.0, breaker_failures=4)
ENDS = st.builds(ProgramEnded, code=st.just("exited"), message=st.just("m"), status=st.sampled_from([None, 0, 1, 255]))


def rules(restart="always", hopeless=frozenset()):
    return RestartRules(restart=restart, policy=POLICY, hopeless=hopeless)


@given(
    st.sampled_from(["always", "on-failure", "never"]),
    st.booleans(),
    st.lists(st.tuples(ENDS, st.sampled_from([0.0, 59.0, 60.0]), st.floats(0, 0.999)), max_size=40),
)
def test_restarts_end_and_delays_stay_in_bounds(restart, has_hopeless, ends):
    """Four quick failures in a row end at the breaker; pauses grow no further than the ceiling and its jitter."""
    wanted, failures, quick = rules(restart, frozenset({255}) if has_hopeless else frozenset()), Failures(), 0
    for ended, uptime_s, roll in ends:
        next_ = after(failures, ended, wanted, uptime_s=uptime_s, roll=roll)
        quick = 1 if uptime_s >= 60 else quick + 1
        if isinstance(next_, NoRestart):
            assert next_.state == "failed" or ended.status == 0
            assert (next_.state == "failed") == bool(next_.code)
            return
        assert restart != "never"
        assert not (has_hopeless and ended.status == 255)
        assert quick < 4
        assert 0.8 <= next_.delay_s <= 8.0 * 1.2
        failures = next_.failures


@given(st.lists(st.tuples(ENDS, st.booleans()), max_size=40))
def test_ends_after_outside_requests_do_not_open_the_breaker(ends):
    """Four ends without a request open it; others only lengthen the pause."""
    failures, own = Failures(), 0
    for ended, visited in ends:
        next_ = after(failures, replace(ended, visited=visited), rules(), uptime_s=0.0, roll=0.5)
        own += not visited
        if own == 4:
            assert isinstance(next_, NoRestart)
            assert (next_.code, next_.message[:18]) == ("crash_loop", "it ended 4 times i")
            return
        assert isinstance(next_, RestartAfter)
        assert next_.delay_s <= (8.0 if own else 2.0)
        failures = next_.failures


def test_program_with_hopeless_exit_code_is_not_restarted():
    over = after(
        Failures(),
        ProgramEnded(code="exited", message="m", status=255),
        rules(hopeless=frozenset({255})),
        uptime_s=999,
        roll=0,
    )
    assert over == NoRestart(state="failed", code="exited", message="m")


def test_restart_delay_doubles_after_each_failure():
    failures, pauses = Failures(), []
    for _ in range(3):
        next_ = after(failures, ProgramEnded(code="exited", message="m", status=1), rules(), uptime_s=0, roll=0.5)
        assert isinstance(next_, RestartAfter)
        pauses.append(next_.delay_s)
        failures = next_.failures
    assert pauses == [1.0, 2.0, 4.0]
