"""kit.token_bucket: bursts, refilling, and how much is remembered."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from latticed.kit import token_bucket
from latticed.kit.token_bucket import Rate, TokenBuckets


@given(
    steps=st.lists(st.floats(0, 5), max_size=60),
    per_second=st.floats(0.1, 50),
    burst=st.floats(1, 20),
)
def test_never_more_than_burst_and_rate_together(steps, per_second, burst):
    """Over any time from the start: at most the burst, and what the time has refilled."""
    rate, buckets, now_s, allowed = Rate(per_second=per_second, burst=burst), TokenBuckets(), 100.0, 0
    for step in steps:
        now_s += step
        wait_s = buckets.take("a", rate, now_s)
        allowed += wait_s == 0
        assert allowed <= burst + (now_s - 100.0) * per_second + 1e-6
        assert 0 <= wait_s <= 1 / per_second


def test_a_clock_that_goes_back_refills_nothing():
    """Monotonic clocks do not; a suspended machine's may seem to."""
    buckets, rate = TokenBuckets(), Rate(per_second=1, burst=1)
    assert buckets.take("a", rate, 100.0) == 0
    assert buckets.take("a", rate, 50.0) == 1


def test_each_key_has_its_own_bucket_and_full_ones_are_forgotten(monkeypatch):
    """Memory is bounded, and nobody who has taken too much gets anything by it."""
    monkeypatch.setattr(token_bucket, "_MOST_KEYS", 3)
    buckets, rate = TokenBuckets(), Rate(per_second=0.1, burst=1)
    for key in "ab":
        assert buckets.take(key, rate, 0.0) == 0
    assert buckets.take("b", rate, 8.0) > 0
    assert buckets.take("c", rate, 12.0) == 0
    assert buckets.take("d", rate, 12.0) == 0
    assert set(buckets._tokens) == {"b", "c", "d"}
