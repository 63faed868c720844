from __future__ import annotations

from latticed.kit.log_limit import MOST_KINDS, LogLimiter


def test_one_entry_per_kind_and_period_has_the_count_of_all():
    sparing = LogLimiter(every_s=10)
    assert [sparing.take(("a",), float(second)) for second in range(12)] == [1, *[None] * 9, 10, None]


def test_log_limiter_counts_each_kind_and_remembers_a_limited_number():
    sparing = LogLimiter(every_s=10)
    assert [sparing.take((str(number),), 0.0) for number in range(2 * MOST_KINDS)] == [1] * (2 * MOST_KINDS)
    assert sparing.take((str(2 * MOST_KINDS - 1),), 1.0) is None
    assert len(sparing._kinds) == MOST_KINDS
