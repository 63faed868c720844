"""Every rule of access, in its order, and the arithmetic of rates. No loop, no clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.broker import limits
from latticed.broker.decide import Allow, CallAttempt, Deny, Rights, decide
from latticed.model import hostcall

BOTH = Rights(declared=frozenset({"kv:read"}), granted=frozenset({"kv:read"}))
DECLARED = Rights(declared=frozenset({"kv:read"}), granted=frozenset())
NONE = Rights(declared=frozenset(), granted=frozenset({"kv:read"}))


def judged(rights, *, method="kv.get", size=10, within_rate=True):
    found = decide(CallAttempt(method=method, size=size, within_rate=within_rate), rights, max_bytes=100)
    return found.code.value if isinstance(found, Deny) else found


@pytest.mark.parametrize(
    ("rights", "call", "expected"),
    [
        (BOTH, {}, Allow(capability="kv:read")),
        (BOTH, {"size": 100}, Allow(capability="kv:read")),
        (BOTH, {"method": "kv.none"}, "not_found"),
        (NONE, {}, "capability_denied"),
        (DECLARED, {}, "capability_not_granted"),
        (BOTH, {"method": "kv.put"}, "capability_denied"),
        (BOTH, {"size": 101}, "too_large"),
        (BOTH, {"within_rate": False}, "rate_limited"),
        (NONE, {"method": "kv.none", "size": 101, "within_rate": False}, "not_found"),
        (NONE, {"size": 101, "within_rate": False}, "capability_denied"),
        (DECLARED, {"size": 101, "within_rate": False}, "capability_not_granted"),
        (BOTH, {"size": 101, "within_rate": False}, "too_large"),
    ],
)
def test_the_first_rule_that_fails_answers(rights, call, expected):
    """Known, declared, granted, small enough, not too often."""
    assert judged(rights, **call) == expected


@given(
    method=st.sampled_from([*hostcall.CAPABILITY_OF, "none", ""]),
    declared=st.frozensets(st.sampled_from(sorted(set(hostcall.CAPABILITY_OF.values())))),
    granted=st.frozensets(st.sampled_from(sorted(set(hostcall.CAPABILITY_OF.values())))),
)
def test_allowed_is_declared_and_granted(method, declared, granted):
    """A grant of what is not declared opens nothing; nor does a declaration that nobody granted."""
    found = judged(Rights(declared=declared, granted=granted), method=method)
    needed = hostcall.CAPABILITY_OF.get(method)
    assert isinstance(found, Allow) == (needed is not None and needed in declared and needed in granted)


@given(
    steps=st.lists(st.floats(0, 5), max_size=60),
    per_second=st.floats(0.1, 50),
    burst=st.floats(1, 20),
)
def test_never_more_than_burst_and_rate_together(steps, per_second, burst):
    """Over any time from the start: at most the burst, and what the time has refilled."""
    rate, bucket, now_s, allowed = limits.Rate(per_second=per_second, burst=burst), None, 100.0, 0
    for step in steps:
        now_s += step
        bucket, within = limits.take(bucket, rate, now_s)
        allowed += within
        assert allowed <= burst + (now_s - 100.0) * per_second + 1e-6
        assert 0 <= bucket.tokens <= burst


def test_a_clock_that_goes_back_refills_nothing():
    """Monotonic clocks do not; a suspended machine's may seem to."""
    rate = limits.Rate(per_second=1, burst=1)
    bucket, within = limits.take(None, rate, 100.0)
    assert within
    bucket, within = limits.take(bucket, rate, 50.0)
    assert not within
