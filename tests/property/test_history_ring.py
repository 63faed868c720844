"""The ring of a plugin's history against a list of everything that was taken."""

from __future__ import annotations

import gc
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from latticed.supervisor import ring as rules
from latticed.supervisor.ring import Counters, HistoryRing, HistoryStep

AMOUNTS = st.one_of(st.just(0), st.integers(0, 3_000), st.integers(0, 1 << 44))
TAKEN = st.lists(
    st.tuples(
        st.one_of(st.just(1), st.integers(0, 3), st.integers(0, 2_000)), st.tuples(*[AMOUNTS] * 5), st.integers(1, 40)
    ),
    max_size=25,
)
"""Minutes since the one before, what was done in it, and how many more minutes did the same."""


def near(found: HistoryStep | None, wanted: HistoryStep | None) -> bool:
    """Within 0.1 %, as minutes are rounded down once and quarters once more."""
    if found is None or wanted is None:
        return found is wanted
    most = rules.unpacked(0xFFFE)
    return all(
        min(want, most) * 0.998 - 1 <= got <= want if want < most else got >= most * 0.99
        for got, want in zip(found, wanted, strict=True)
    )


def together(steps: list[HistoryStep]) -> HistoryStep | None:
    if not steps:
        return None
    columns = list(zip(*steps, strict=True))
    return HistoryStep(sum(columns[0]), max(columns[1]), *map(sum, columns[2:]))


@given(taken=TAKEN)
@settings(deadline=None)
def test_ring_is_the_end_of_all_that_was_taken(taken):
    """Gaps, jumps longer than a day and minutes that come twice included."""
    kept, minutes, minute, total = HistoryRing(), dict[int, HistoryStep](), 0, [0] * 5
    for ahead, done, times in taken:
        for again in range(times):
            minute += ahead if again == 0 else 1
            if minute in minutes or minute == 0:
                continue
            total = [one + more for one, more in zip(total, done, strict=True)]
            kept.take(minute, Counters(*total)._replace(memory_kib=done[1]))
            minutes[minute] = HistoryStep(*done)
    if not minutes:
        assert (kept.hour(), kept.day(), kept.last) == ([], [], -1)
        return
    first, last = min(minutes), max(minutes)
    assert (kept.first, kept.last) == (first, last)
    hour = [minutes.get(one) for one in range(max(first, last - 59), last + 1)]
    quarters = range(max(first // 15, last // 15 - 95), last // 15 + 1)
    day = [together([found for one in range(at * 15, at * 15 + 15) if (found := minutes.get(one))]) for at in quarters]
    for found, wanted in ((kept.hour(), hour), (kept.day(), day)):
        assert len(found) == len(wanted)
        assert all(near(*pair) for pair in zip(found, wanted, strict=True)), (found, wanted)


@given(number=st.integers(0, 1 << 60), more=st.integers(0, 1 << 60))
def test_packed_numbers_keep_their_order_and_are_exact_to_a_thousandth(number, more):
    found = rules.unpacked(rules.packed(number))
    assert rules.packed(number) < 0xFFFF
    assert found == number if number < 2_048 else True
    assert number * 0.999 <= found <= number or number >= 1 << 42
    assert found <= rules.unpacked(rules.packed(number + more))


def test_counters_that_begin_again_are_counted_from_there():
    """Restarts do when an operator starts a plugin anew; processor time that comes out lower than before is none."""
    kept = HistoryRing()
    kept.take(1, Counters(cpu_ms=500, memory_kib=9, restarts=4, calls=10, denied=1))
    kept.take(2, Counters(cpu_ms=400, memory_kib=5, restarts=1, calls=3, denied=0))
    assert kept.hour()[1] == HistoryStep(cpu_ms=0, memory_kib=5, restarts=1, calls=3, denied=0)


def test_ring_takes_less_than_two_kibibytes():
    """With all that belongs to it, of ten thousand plugins that are busy; of idle ones next to nothing."""
    for amount, most in ((123_456, 2_048), (0, 256)):
        gc.collect()
        tracemalloc.start()
        try:
            rings = {f"acme.p{number:05}": HistoryRing() for number in range(10_000)}
            for minute in (1, 2, 3):
                for number, kept in enumerate(rings.values()):
                    kept.take(minute, Counters(*[amount and amount * minute + number] * 5))
            each = tracemalloc.get_traced_memory()[0] / len(rings)
        finally:
            tracemalloc.stop()
        assert each <= most, each
