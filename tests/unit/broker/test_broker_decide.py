"""Every access rule for host calls, in its order. No event loop, no clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.broker.decide import Allow, CallAttempt, Rights, decide
from latticed.model import hostcall
from latticed.model.hostcall import Denied

BOTH = Rights(declared=frozenset({"kv:read"}), granted=frozenset({"kv:read"}))
DECLARED = Rights(declared=frozenset({"kv:read"}), granted=frozenset())
NONE = Rights(declared=frozenset(), granted=frozenset({"kv:read"}))


def judged(rights, *, method="kv.get", size=10, within_rate=True):
    found = decide(CallAttempt(method=method, size=size, within_rate=within_rate), rights, max_bytes=100)
    return found.code.value if isinstance(found, Denied) else found


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
def test_first_failing_access_rule_gives_the_denial(rights, call, expected):
    """The rules in order: known, declared, granted, small enough, within the rate."""
    assert judged(rights, **call) == expected


@given(
    method=st.sampled_from([*hostcall.CAPABILITY_OF, "none", ""]),
    declared=st.frozensets(st.sampled_from(sorted(set(hostcall.CAPABILITY_OF.values())))),
    granted=st.frozensets(st.sampled_from(sorted(set(hostcall.CAPABILITY_OF.values())))),
)
def test_call_needs_capability_declared_and_granted(method, declared, granted):
    """A grant of what is not declared does not make it effective, nor does a declaration alone."""
    found = judged(Rights(declared=declared, granted=granted), method=method)
    needed = hostcall.CAPABILITY_OF.get(method)
    assert isinstance(found, Allow) == (needed is not None and needed in declared and needed in granted)
