"""How often a node does what others can cause."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.fleet.pace import REFUSED_S, TIMES, Cause, Pace, look_wait_s


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), max_size=60), st.floats(0.1, 20), st.floats(0.1, 2))
def test_work_takes_a_bounded_share_of_any_time(done, burst_s, least_s):
    """(pause, how long it took) of each: whoever waits as it says spends at most the burst, and what time brought."""
    pace, now, worked, last = Pace(burst_s=burst_s), 100.0, 0.0, 0.0
    for pause_s, took_s in done:
        now += max(pause_s, pace.wait_s(now))
        now += took_s
        pace = pace.worked(took_s, now, least_s=least_s)
        worked, last = worked + max(least_s, TIMES * took_s), max(least_s, TIMES * took_s)
    assert worked <= burst_s + (now - 100.0) + last + 1e-6


def test_burst_is_at_once_and_comes_back_with_time():
    pace = Pace(burst_s=3)
    for _ in range(4):
        assert pace.wait_s(10) == 0
        pace = pace.spent(1, 10)
    assert pace.wait_s(10) == 1
    assert pace.wait_s(11) == 0
    assert Pace(burst_s=3, left_s=-50, at_s=0).wait_s(20) == 30
    # However long nothing was: no more than the burst. Nor less, when a clock goes back.
    assert pace.spent(0, 1_000).left_s == 3
    assert pace.wait_s(5) == 1


@pytest.mark.parametrize(
    ("cause", "left_s", "ago_s", "wait_s"),
    [
        (Cause.TIME, 5, 10, 50),
        (Cause.TIME, 5, 70, 0),
        (Cause.NEW, 5, 0, 0),
        (Cause.NEW, -7, 0, 7),
        (Cause.NEW, -90, 10, 50),
        (Cause.REFUSED, 5, 3, REFUSED_S - 3),
        (Cause.REFUSED, 5, 30, 0),
        (Cause.REFUSED, -20, 30, 20),
    ],
)
def test_look_is_due(cause, left_s, ago_s, wait_s):
    pace = Pace(burst_s=10, left_s=left_s, at_s=1_000)
    assert look_wait_s(pace, cause, last_s=1_000 - ago_s, now_s=1_000, reconcile_s=60) == wait_s
