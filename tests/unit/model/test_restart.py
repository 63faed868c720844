"""Backoff and breaker are arithmetic: nothing waits here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.model.restart import Failures, RestartPolicy

POLICY = RestartPolicy(base_s=1, factor=2, ceiling_s=60, jitter=0.2, healthy_s=60, breaker_failures=6)


@pytest.mark.parametrize(("in_a_row", "expected_s"), [(1, 1), (2, 2), (3, 4), (4, 8), (6, 32), (7, 60), (500, 60)])
def test_the_delay_doubles_up_to_the_ceiling(in_a_row, expected_s):
    """With the dice in the middle there is no jitter."""
    assert Failures(in_a_row=in_a_row).delay_s(POLICY, 0.5) == pytest.approx(expected_s)


@given(in_a_row=st.integers(0, 10**9), roll=st.floats(0, 1, exclude_max=True))
def test_jitter_spreads_both_ways_and_stays_in_its_bounds(in_a_row, roll):
    """Never more than 20 % from the plain delay, however often it failed."""
    plain_s = Failures(in_a_row=in_a_row).delay_s(POLICY, 0.5)
    assert plain_s * 0.8 <= Failures(in_a_row=in_a_row).delay_s(POLICY, roll) <= plain_s * 1.2


def test_only_failures_in_a_row_count():
    """A handle that was up for long enough starts over; a moment less does not."""
    assert Failures(in_a_row=5).after(59.999, POLICY).in_a_row == 6
    assert Failures(in_a_row=5).after(60, POLICY).in_a_row == 1
    assert Failures().after(0, POLICY).in_a_row == 1


@pytest.mark.parametrize(
    ("counted", "excused", "expected_s"), [(0, 1, 1), (0, 3, 4), (0, 99, 15), (1, 2, 4), (6, 9, 32)]
)
def test_excused_failures_pause_for_a_quarter_of_the_ceiling_at_most(counted, excused, expected_s):
    """Who wants it down by one request each minute gets 15 s for it; its own failures are answered as ever."""
    failures = Failures(in_a_row=counted + excused, excused=excused)
    assert failures.delay_s(POLICY, 0.5) == pytest.approx(expected_s)


def test_the_breaker_opens_with_its_last_failure():
    """Six in a row open it, five do not."""
    assert not Failures(in_a_row=5).breaker_open(POLICY)
    assert Failures(in_a_row=6).breaker_open(POLICY)


def test_a_base_of_zero_never_waits():
    """Settings allow it, for tests and for the impatient."""
    assert Failures(in_a_row=9).delay_s(RestartPolicy(base_s=0), 0.9) == 0
