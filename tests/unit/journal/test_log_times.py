"""Times of lines in auth.log, of which the traditional form has no year."""

from __future__ import annotations

import calendar
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host.node import journal_query


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def at(*when: int) -> float:
    return datetime(*when, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("stamp", "asked", "year"),
    [
        ("Feb 29 12:00:00", (2028, 3, 1), 2028),
        ("Feb 29 12:00:00", (2029, 1, 1), 2028),
        ("Feb 29 12:00:00", (2030, 6, 1), 2028),
        ("Feb 29 12:00:00", (2103, 6, 1), 2096),
        ("Dec 31 23:59:59", (2027, 1, 1), 2026),
        ("Jan  2 00:00:00", (2027, 1, 1, 12), 2027),
        ("Jan  3 00:00:00", (2027, 1, 1), 2026),
    ],
)
def test_year_is_the_last_one_in_which_there_was_such_a_moment(stamp, asked, year):
    found = journal_query._rfc3339(stamp, at(*asked))
    assert found is not None
    assert found.startswith(f"{year}-")


@pytest.mark.parametrize("stamp", ["Feb 30 12:00:00", "Foo  1 00:00:00", "9999-99-99T99:99:99Z", "Jan  1 25:00:00"])
def test_impossible_time_is_none(stamp):
    assert journal_query._rfc3339(stamp, at(2028, 3, 1)) is None


@given(
    when=st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2099, 1, 1)),  # noqa: DTZ001 - taken for UTC
    later_s=st.integers(0, 364 * 86_400),
)
def test_line_that_is_read_within_a_year_gets_its_own_time(when, later_s):
    seconds = calendar.timegm(when.timetuple())
    stamp = time.strftime("%b %e %H:%M:%S", time.gmtime(seconds))
    assert journal_query._rfc3339(stamp, seconds + later_s) == f"{when.isoformat()[:19]}.000000Z"
