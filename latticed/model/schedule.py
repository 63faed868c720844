"""When a plugin's schedule is due: every so many seconds, daily, or by a cron expression. Pure: clock and time zone are
given.

A schedule runs once for all moments that were missed, and never for a moment twice. All times are microseconds since
the epoch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from datetime import tzinfo

    from latticed.model.manifest import Schedule

MOST: Final = 16
"""Schedules of one manifest."""
SHORTEST_S: Final = 10
LONGEST_S: Final = 366 * 86_400
MAX_CRON: Final = 120
"""Characters of a cron expression."""
MAX_PAYLOAD_BYTES: Final = 16 << 10
NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?", re.ASCII)
ACTION: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
DAILY: Final = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]", re.ASCII)
_CRON: Final = re.compile(r"[0-9A-Za-z*/,#-]+(?: [0-9A-Za-z*/,#-]+){4}", re.ASCII)

SET_BACK_US: Final = 3 * 3_600 * 1_000_000
"""A clock that was set back by no more than this runs nothing again that had run (as Debian's cron(8) has it)."""
JITTER_US: Final = 30 * 1_000_000
JITTER_SHARE: Final = 10
"""A run begins late by a random part of JITTER_US, at most a tenth of the time to the next one."""
_US: Final = 1_000_000
_END: Final = datetime(9_000, 1, 1, tzinfo=UTC).timestamp() * _US
"""What is later has no next moment: a datetime ends with the year 9999."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleHistory:
    """What is known of a schedule: in force `since`; its last run from `began_at` to `ended_at`, 0 for none."""

    since: int
    began_at: int = 0
    ended_at: int = 0


class NoSchedule(ValueError):
    """No cron expression of five fields, or one that never comes; the message says what was expected."""


def due_at(schedule: Schedule, history: ScheduleHistory, now: int, zone: tzinfo) -> int | None:
    """When it is to run next, for a clock that says `now`; at once if that has passed, None for never.

    What was missed is one run. A run that took longer than the time to the next one leaves out what came meanwhile.
    `zone`: what `daily` and `cron` are in; when it changes, the next moment is the next one in the new zone.
    """
    history = moved_back(schedule, history, now)
    if schedule.every_s is not None:
        return _next_interval(schedule.every_s * _US, history)
    return _next_moment(cron_of(schedule), max(history.since, history.began_at, history.ended_at), zone)


def moved_back(schedule: Schedule, history: ScheduleHistory, now: int) -> ScheduleHistory:
    """The history to reckon from, no later than `now` when the clock was set back: else the same.

    To be kept by whoever asks again later: what is reckoned from each new `now` is never reached.
    """
    # An interval must not stop for as long as the clock was ahead. Of a moment, waiting a few hours for the old time is
    # better than running once more; by more than that it is not.
    tolerated = _US if schedule.every_s is not None else SET_BACK_US
    if max(history.since, history.began_at, history.ended_at) - now <= tolerated:
        return history
    return ScheduleHistory(
        since=min(history.since, now), began_at=min(history.began_at, now), ended_at=min(history.ended_at, now)
    )


def latest_jitter(schedule: Schedule, due: int, zone: tzinfo) -> int:
    """The most that a run due at `due` may be late so that plugins do not all run in one moment."""
    if schedule.every_s is not None:
        period = schedule.every_s * _US
    else:
        following = _next_moment(cron_of(schedule), due, zone)
        period = (following if following is not None else due + JITTER_US * JITTER_SHARE) - due
    return min(JITTER_US, period // JITTER_SHARE)


def check_cron(expression: str) -> None:
    """Raise NoSchedule unless the text is a cron expression of five fields that comes sooner or later."""
    if len(expression) > MAX_CRON or not _CRON.fullmatch(expression):
        raise NoSchedule("expected five fields with one space between, such as `30 3 * * 1-5`")
    try:
        # From a leap year's first day: whatever comes at all comes within the 28 years of the calendar.
        found = _next_moment(expression, _us(datetime(2024, 1, 1, tzinfo=UTC)), UTC)
    except ValueError as error:
        raise NoSchedule(f"expected minute, hour, day of month, month, day of week: {error}") from error
    if found is None:
        raise NoSchedule("expected a time that comes, found none in 50 years")


def word(schedule: Schedule) -> str:
    """The schedule as the operator names it to accept it: `disk@every_s:60@check`, with a payload `…@1f3a90c2b4d5`.

    Another time, action or payload is another word.
    """
    kind, value = next((kind, found) for kind in KINDS if (found := getattr(schedule, kind)) is not None)
    named = f"{schedule.name}@{kind}:{value}@{schedule.action}"
    if schedule.payload is None:
        return named
    return f"{named}@{hashlib.sha256(_encoded(schedule.payload)).hexdigest()[:12]}"


KINDS: Final = ("every_s", "daily", "cron")
"""The ways to say when; a schedule has exactly one of them."""


def cron_of(schedule: Schedule) -> str:
    """The cron expression of a schedule that is `daily` or `cron`."""
    if schedule.daily is not None:
        hour, _, minute = schedule.daily.partition(":")
        return f"{int(minute)} {int(hour)} * * *"
    assert schedule.cron is not None  # noqa: S101 - a manifest's schedule has one of the three
    return schedule.cron


def payload_bytes(payload: Any) -> int:
    """The size of a payload as JSON."""
    return len(_encoded(payload))


def _next_interval(period: int, history: ScheduleHistory) -> int:
    """The next multiple of `period` after the last run began that is not before its end; `since` for the first run."""
    began = history.began_at
    if not began:
        return history.since
    took = max(history.ended_at - began, 0)
    return began + max(math.ceil(took / period), 1) * period


def _next_moment(expression: str, after: int, zone: tzinfo) -> int | None:
    """The first moment after `after` at which the expression fits the time in `zone`; None for none in 50 years.

    In the night in which clocks are set forward what would be skipped comes when they are; what would come twice comes
    once, unless minute or hour begins with a `*`: the rules of Debian's cron(8), which cronsim follows. ValueError.
    """
    from cronsim import CronSim, CronSimError  # imported by those that have schedules only

    if not 0 <= after < _END:
        return None
    # Not fromtimestamp: above 2038 it may fail on platforms, and it takes floats.
    start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=after // _US)
    try:
        # In the repeated hour cronsim begins again at its first half, and so with moments that have passed.
        return next((at for found in CronSim(expression, start.astimezone(zone)) if (at := _us(found)) > after), None)
    except CronSimError as error:
        raise ValueError(str(error)[:120]) from error


def _us(moment: datetime) -> int:
    """Microseconds since the epoch."""
    return round((moment - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


def _encoded(payload: Any) -> bytes:
    """A payload as JSON, one text for equal values."""
    return json.dumps(payload, sort_keys=True, separators=(",", ":")).encode("ascii")
