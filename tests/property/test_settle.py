"""Any order of marks and checks: no name is lost, early, or later than the longest time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from latticed.catalog.settle import Settle

QUIET_S = 3.0
LONGEST_S = 10.0

_steps = st.lists(
    st.tuples(st.integers(min_value=0, max_value=4), st.none() | st.sampled_from(["a", "b", "c"])), max_size=60
)


@given(_steps)
def test_every_changed_name_becomes_due_in_time(steps: list[tuple[int, str | None]]) -> None:
    """The scheduler is compared with a simple model, step by step."""
    settle = Settle(quiet_s=QUIET_S, longest_s=LONGEST_S)
    first: dict[str, float] = {}
    last: dict[str, float] = {}
    now = 0.0
    for delay, name in steps:
        now += delay
        if name is not None:
            settle.mark(name, now)
            first.setdefault(name, now)
            last[name] = now
            continue
        expected = {key for key in first if now >= last[key] + QUIET_S or now >= first[key] + LONGEST_S}
        found = settle.due(now)
        assert sorted(found) == sorted(expected)
        for key in found:
            del first[key], last[key]
        moments = [min(last[key] + QUIET_S, first[key] + LONGEST_S) for key in first]
        assert settle.next_due_s() == (min(moments) if moments else None)
    now += LONGEST_S
    assert sorted(settle.due(now)) == sorted(first)
    assert len(settle) == 0
