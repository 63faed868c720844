"""Schedules over years, zones and clocks that jump: each day once, never twice, and never stopped for long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from latticed.model import schedule
from latticed.model.manifest import Schedule
from latticed.model.schedule import ScheduleHistory, due_at

US = 1_000_000
DAY = 86_400 * US
START = round(datetime(2026, 1, 1, tzinfo=UTC).timestamp()) * US
ZONES = [
    ZoneInfo(name)
    for name in (
        "UTC",
        "Europe/Berlin",
        "America/Havana",  # clocks are set at midnight
        "Australia/Lord_Howe",  # by half an hour
        "America/Santiago",
        "Asia/Kathmandu",
        "Pacific/Auckland",
    )
]

_zones = st.sampled_from(ZONES)
_minutes = st.integers(0, 24 * 60 - 1)
_daily = _minutes.map(lambda at: Schedule(name="d", daily=f"{at // 60:02}:{at % 60:02}", action="go"))
_every = st.integers(10, 100_000).map(lambda period: Schedule(name="e", every_s=period, action="go"))
_cron = st.sampled_from(["* * * * *", "*/15 * * * *", "7 */2 * * *", "0 3 * * 1-5", "30 2 29 2 *", "0 0 L * *"]).map(
    lambda text: Schedule(name="c", cron=text, action="go")
)
_any = _daily | _every | _cron


@given(_daily, _zones, st.integers(0, 365))
def test_each_local_day_has_one_run(one: Schedule, zone: ZoneInfo, day: int) -> None:
    """Over eight days from any day of the year, whatever the zone does in these nights."""
    now = START + day * DAY
    history = ScheduleHistory(since=now)
    days = []
    for _ in range(8):
        due = due_at(one, history, now, zone)
        assert due is not None
        now = max(due, now)
        days.append((datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=now)).astimezone(zone).date())
        history = ScheduleHistory(since=history.since, began_at=now, ended_at=now + US)
        now += US
    assert days == [days[0] + timedelta(days=number) for number in range(8)]


_steps = st.lists(
    st.tuples(
        # What happens before it is looked again: time passes, the daemon is stopped for days, the clock is set.
        st.sampled_from(["wait", "stop", "set"]),
        st.integers(0, 400 * 86_400) | st.integers(0, 7_200),
        st.booleans(),
        _zones,
        st.integers(0, 5_000),
    ),
    min_size=1,
    max_size=12,
)


@given(_any, _steps)
def test_whatever_the_clock_does_no_moment_runs_twice_and_none_is_waited_for_long(
    one: Schedule, steps: list[tuple[str, int, bool, ZoneInfo, int]]
) -> None:
    """After each run the next one is later; from any state one comes within the period of the schedule."""
    now, history = START, ScheduleHistory(since=START)
    longest = DAY * 8 * 366 if one.cron else DAY + 3 * 3_600 * US + 7_200 * US if one.daily else (one.every_s or 0) * US
    for what, seconds, back, zone, took in steps:
        now += seconds * US if what != "set" or not back else -min(seconds * US, now - DAY)
        due = due_at(one, history, now, zone)
        assert due is not None
        assert due - now <= longest + schedule.SET_BACK_US
        if due > now:
            continue
        history = ScheduleHistory(since=history.since, began_at=now, ended_at=now + took * US)
        now += took * US
        after = due_at(one, history, now, zone)
        assert after is not None
        assert after >= now
        assert after > history.began_at
        if one.every_s is not None:
            assert (after - history.began_at) % (one.every_s * US) == 0
        assert 0 <= schedule.latest_jitter(one, after, zone) <= schedule.JITTER_US
