"""When a schedule is due: intervals, days, cron; clocks that are set, nights without an hour, and with one twice."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from latticed.model import schedule
from latticed.model.manifest import Schedule
from latticed.model.schedule import ScheduleHistory, due_at

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = Schedule(name="m", every_s=60, action="check")
NIGHTLY = Schedule(name="n", daily="02:30", action="check")
HOURS = Schedule(name="h", cron="0 * * * *", action="check")


def us(text, zone=UTC):
    """Microseconds of a local time such as 2026-03-29T02:30."""
    return round(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp() * 1_000_000)


def local(at, zone=BERLIN):
    return datetime.fromtimestamp(at / 1_000_000, zone).isoformat(timespec="minutes")


def ran(at, took_s=1):
    return ScheduleHistory(since=0, began_at=at, ended_at=at + took_s * 1_000_000)


def test_interval_runs_at_once_and_then_one_interval_after_the_last_began():
    now = us("2026-01-01T12:00")
    assert due_at(MINUTE, ScheduleHistory(since=now), now, UTC) == now
    assert due_at(MINUTE, ran(now), now + 1, UTC) == now + 60_000_000


@pytest.mark.parametrize(("took_s", "after_s"), [(1, 60), (60, 60), (61, 120), (119, 120), (181, 240)])
def test_run_that_takes_longer_than_its_interval_leaves_out_what_came_meanwhile(took_s, after_s):
    now = us("2026-01-01T12:00")
    assert due_at(MINUTE, ran(now, took_s), now + took_s * 1_000_000, UTC) == now + after_s * 1_000_000


@pytest.mark.parametrize(
    ("one", "last", "now"),
    [
        (MINUTE, "2026-01-01T12:00", "2026-01-04T12:00"),
        (NIGHTLY, "2026-01-01T02:30", "2026-01-04T12:00"),
        (HOURS, "2026-01-01T02:00", "2026-01-04T12:30"),
    ],
)
def test_all_that_was_missed_while_stopped_is_one_run(one, last, now):
    """It is due at once; after that one run the next is in the future."""
    last, now = us(last, BERLIN), us(now, BERLIN)
    assert due_at(one, ran(last), now, BERLIN) <= now
    assert due_at(one, ran(now), now + 2_000_000, BERLIN) > now + 2_000_000


def test_daily_and_cron_wait_for_their_first_moment():
    """A schedule that was just accepted has missed nothing."""
    now = us("2026-01-01T12:00", BERLIN)
    assert local(due_at(NIGHTLY, ScheduleHistory(since=now), now, BERLIN)) == "2026-01-02T02:30+01:00"
    weekly = Schedule(name="w", cron="15 6 * * MON-FRI", action="check")
    assert local(due_at(weekly, ScheduleHistory(since=now), now, BERLIN)) == "2026-01-02T06:15+01:00"


def test_night_without_the_scheduled_hour_runs_when_clocks_are_set_forward():
    found = due_at(NIGHTLY, ran(us("2026-03-28T02:30", BERLIN)), us("2026-03-28T03:00", BERLIN), BERLIN)
    assert local(found) == "2026-03-29T03:00+02:00"
    assert local(due_at(NIGHTLY, ran(found), found + 2_000_000, BERLIN)) == "2026-03-30T02:30+02:00"


def test_night_with_the_scheduled_hour_twice_runs_once():
    found = due_at(NIGHTLY, ran(us("2026-10-24T02:30", BERLIN)), us("2026-10-24T03:00", BERLIN), BERLIN)
    assert local(found) == "2026-10-25T02:30+02:00"
    assert local(due_at(NIGHTLY, ran(found), found + 2_000_000, BERLIN)) == "2026-10-26T02:30+01:00"
    # Accepted in the second of the two hours: the first one has passed.
    second = found + 45 * 60 * 1_000_000
    assert local(due_at(NIGHTLY, ScheduleHistory(since=second), second, BERLIN)) == "2026-10-26T02:30+01:00"


def test_every_hour_runs_in_both_hours_of_that_night():
    found, moments = us("2026-10-25T01:00", BERLIN), []
    for _ in range(4):
        found = due_at(HOURS, ran(found), found + 2_000_000, BERLIN)
        moments.append(local(found))
    assert moments == [
        "2026-10-25T02:00+02:00",
        "2026-10-25T02:00+01:00",
        "2026-10-25T03:00+01:00",
        "2026-10-25T04:00+01:00",
    ]


def test_zone_that_moves_over_the_scheduled_minute_runs_it_once_at_once():
    """At 02:20 in Berlin the host moves to Helsinki, where 02:30 has just passed and nothing ran."""
    now, helsinki = us("2026-01-02T02:20", BERLIN), ZoneInfo("Europe/Helsinki")
    history = ran(us("2026-01-01T02:30", BERLIN))
    assert due_at(NIGHTLY, history, now, BERLIN) > now
    assert due_at(NIGHTLY, history, now, helsinki) <= now
    assert local(due_at(NIGHTLY, ran(now), now + 2_000_000, helsinki), helsinki) == "2026-01-03T02:30+02:00"


def test_clock_that_is_set_back_a_little_runs_nothing_again():
    """By three hours at most: then the next run is the one after the last."""
    last = us("2026-01-02T02:30", BERLIN)
    found = due_at(NIGHTLY, ran(last), last - 2 * 3_600_000_000, BERLIN)
    assert local(found) == "2026-01-03T02:30+01:00"
    # An interval is short: it begins again, instead of waiting for hours.
    assert due_at(MINUTE, ran(last), last - 2 * 3_600_000_000, UTC) == last - 2 * 3_600_000_000 + 60_000_000


def test_clock_that_was_two_years_ahead_does_not_stop_it_for_two_years():
    ahead, now = us("2028-01-02T02:30", BERLIN), us("2026-01-02T12:00", BERLIN)
    assert local(due_at(NIGHTLY, ran(ahead), now, BERLIN)) == "2026-01-03T02:30+01:00"
    assert due_at(MINUTE, ran(ahead), now, UTC) == now + 60_000_000


@pytest.mark.parametrize("now", [0, 1, us("9500-01-01T00:00"), us("9999-12-31T23:59")])
def test_clock_at_the_ends_of_time_raises_nothing(now):
    for one in (MINUTE, NIGHTLY, HOURS):
        found = due_at(one, ScheduleHistory(since=now), now, BERLIN)
        assert found is None or schedule.latest_jitter(one, found, BERLIN) <= schedule.JITTER_US


def test_jitter_is_a_tenth_of_the_time_to_the_next_run_and_half_a_minute_at_most():
    now = us("2026-01-02T02:30", BERLIN)
    assert schedule.latest_jitter(MINUTE, now, BERLIN) == 6_000_000
    assert schedule.latest_jitter(NIGHTLY, now, BERLIN) == 30_000_000
    often = Schedule(name="o", cron="* * * * *", action="check")
    assert schedule.latest_jitter(often, now, BERLIN) == 6_000_000


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "* * * *",
        "* * * * * *",
        "0 0 30 2 *",
        "0 0 31 4,6 *",
        "60 * * * *",
        "* 24 * * *",
        "* * * * 8",
        "*/0 * * * *",
        "a * * * *",
        "5-1 * * * *",
        "@daily",
        "* *  * * *",
        "* * * * *\n",
        "* * * * ²",
        f"{'9' * 5_000} * * * *",
        ",".join("1" * 200) + " * * * *",
    ],
)
def test_cron_that_is_none_or_never_comes_is_refused(expression):
    with pytest.raises(schedule.NoSchedule):
        schedule.check_cron(expression)


@pytest.mark.parametrize(
    "expression", ["* * * * *", "*/5 8-17 * * 1-5", "0 0 29 2 *", "0 0 29 2 */7", "0 0 L * *", "0 9 * JAN,JUL MON#1"]
)
def test_cron_that_comes_is_taken(expression):
    schedule.check_cron(expression)


def test_word_of_a_schedule_names_all_that_could_be_more():
    """Name, time, action and payload: what an operator accepts is that and nothing else."""
    assert schedule.word(MINUTE) == "m@every_s:60@check"
    assert schedule.word(NIGHTLY) == "n@daily:02:30@check"
    assert schedule.word(HOURS) == "h@cron:0 * * * *@check"
    words = {
        schedule.word(Schedule(name="m", every_s=60, action="check", payload=payload))
        for payload in (None, {}, {"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2, "b": 2}, "", False)
    }
    assert len(words) == 6
