"""kit.token_bucket: bursts, refilling and bounded memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from latticed.kit import token_bucket
from latticed.kit.token_bucket import ByteBucket, Rate, TokenBuckets


@given(
    steps=st.lists(st.floats(0, 5), max_size=60),
    per_second=st.floats(0.1, 50),
    burst=st.floats(1, 20),
)
def test_tokens_never_exceed_burst_plus_rate(steps, per_second, burst):
    """This holds over any time since the start."""
    rate, buckets, now_s, allowed = Rate(per_second=per_second, burst=burst), TokenBuckets(), 100.0, 0
    for step in steps:
        now_s += step
        wait_s = buckets.take("a", rate, now_s)
        allowed += wait_s == 0
        assert allowed <= burst + (now_s - 100.0) * per_second + 1e-6
        assert 0 <= wait_s <= 1 / per_second


def test_clock_set_back_adds_no_tokens():
    """Monotonic clocks are not set back, but the time passed in may be."""
    buckets, rate = TokenBuckets(), Rate(per_second=1, burst=1)
    assert buckets.take("a", rate, 100.0) == 0
    assert buckets.take("a", rate, 50.0) == 1


def test_keys_have_their_own_buckets_and_full_ones_are_dropped(monkeypatch):
    """Dropping saves memory, and gives no token."""
    monkeypatch.setattr(token_bucket, "_MOST_KEYS", 3)
    buckets, rate = TokenBuckets(), Rate(per_second=0.1, burst=1)
    for key in "ab":
        assert buckets.take(key, rate, 0.0) == 0
    assert buckets.take("b", rate, 8.0) > 0
    assert buckets.take("c", rate, 12.0) == 0
    assert buckets.take("d", rate, 12.0) == 0
    assert set(buckets._tokens) == {"b", "c", "d"}


def test_reader_in_debt_pauses_until_it_has_refilled():
    """A read may be larger than what is left: the pause is the time that the rate needs for what is missing."""
    bucket = ByteBucket(Rate(per_second=100, burst=1_000))
    bucket.spend(1_000, 10.0)
    assert bucket.pause_s == 0
    bucket.spend(50, 10.0)
    assert bucket.pause_s == 0.5
    bucket.spend(0, 10.5)
    assert bucket.pause_s == 0
    bucket.spend(1_000, 1_000.0)  # a long silence refills no more than the burst
    assert bucket.pause_s == 0
