"""Backoff and breaker are pure arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.model.restart import Failures, RestartPolicy

POLICY = RestartPolicy(base_s=1, factor=2, ceiling_s=60, jitter=0.2, healthy_s=60, breaker_failures=6)


@pytest.mark.parametrize(("in_a_row", "expected_s"), [(1, 1), (2, 2), (3, 4), (4, 8), (6, 32), (7, 60), (500, 60)])
def test_restart_delay_doubles_up_to_the_ceiling(in_a_row, expected_s):
    """A roll of 0.5 means no jitter."""
    assert Failures(in_a_row=in_a_row).delay_s(POLICY, 0.5) == pytest.approx(expected_s)


@given(in_a_row=st.integers(0, 10**9), roll=st.floats(0, 1, exclude_max=True))
def test_restart_jitter_is_within_20_percent(in_a_row, roll):
    """It goes both ways, after any number of failures."""
    plain_s = Failures(in_a_row=in_a_row).delay_s(POLICY, 0.5)
    assert plain_s * 0.8 <= Failures(in_a_row=in_a_row).delay_s(POLICY, roll) <= plain_s * 1.2


def test_failure_count_resets_after_healthy_uptime():
    """An uptime of 60 s, the policy's `healthy_s`, resets it; 59.999 s does not."""
    assert Failures(in_a_row=5).after(59.999, POLICY).in_a_row == 6
    assert Failures(in_a_row=5).after(60, POLICY).in_a_row == 1
    assert Failures().after(0, POLICY).in_a_row == 1


@pytest.mark.parametrize(
    ("counted", "excused", "expected_s"), [(0, 1, 1), (0, 3, 4), (0, 99, 15), (1, 2, 4), (6, 9, 32)]
)
def test_excused_failures_delay_at_most_a_quarter_of_the_ceiling(counted, excused, expected_s):
    """Outside requests that crash a plugin once a minute cause pauses of 15 s; its own failures get the full delay."""
    failures = Failures(in_a_row=counted + excused, excused=excused)
    assert failures.delay_s(POLICY, 0.5) == pytest.approx(expected_s)


def test_breaker_opens_at_the_sixth_failure_in_a_row():
    """Six in a row open it, five do not."""
    assert not Failures(in_a_row=5).breaker_open(POLICY)
    assert Failures(in_a_row=6).breaker_open(POLICY)


def test_backoff_base_of_zero_gives_no_delay():
    """Settings allow it."""
    assert Failures(in_a_row=9).delay_s(RestartPolicy(base_s=0), 0.9) == 0
