"""Formats and parses times and durations: `3m ago`, `in 12s`, `2h 5m`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from latticed.model.errors import Problem

_STEPS: Final = ((60, 1, "s"), (3600, 60, "m"), (172_800, 3600, "h"), (31_536_000, 86_400, "d"))
"""(below so many seconds, seconds of the unit, unit): `h` up to two days, `d` up to a year."""
_YEAR_S: Final = 31_536_000
"""365 days."""
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
"""Seconds of the units that --since takes."""


def _amount(seconds: float) -> str:
    """A duration in its largest unit: 90 is `1m`."""
    for below, size, unit in _STEPS:
        if seconds < below:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds // _YEAR_S)}y"


def relative(text: str, now_s: float) -> str:
    """An RFC 3339 time as seen from `now_s` (seconds since the epoch): `3m ago`, `in 12s`.

    Text that is no time comes back as it is.
    """
    try:
        then_s = _parse(text).timestamp()
    except ValueError:
        return text
    behind_s = now_s - then_s
    return f"{_amount(behind_s)} ago" if behind_s >= 0 else f"in {_amount(-behind_s)}"


def is_later(text: str, than_s: float) -> bool:
    """Whether an RFC 3339 time is after `than_s` (seconds since the epoch); False for text that is no time."""
    try:
        return _parse(text).timestamp() > than_s
    except ValueError:
        return False


def absolute(text: str) -> str:
    """An RFC 3339 time without its fraction, in UTC: `2026-01-31T08:00:00Z`.

    Text that is no time comes back as it is.
    """
    try:
        return _parse(text).strftime("%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return text


def duration(seconds: float) -> str:
    """`seconds` in the two largest units: 7500 is `2h 5m`, 0 is `0s`."""
    whole = max(0, int(seconds))
    parts = ((whole // 86_400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s"))
    first = next((at for at, (count, _) in enumerate(parts) if count), len(parts) - 1)
    return " ".join(f"{count}{unit}" for count, unit in parts[first : first + 2] if count) or "0s"


def since(text: str, now_s: float) -> str:
    """What `--since` was given (`10m`, `2h`, `3d` or an RFC 3339 time) as RFC 3339 UTC; Problem("usage") otherwise."""
    unit = _UNITS_S.get(text[-1:])
    if unit is not None and text[:-1].isascii() and text[:-1].isdigit():
        try:
            then = datetime.fromtimestamp(now_s, tz=UTC) - timedelta(seconds=int(text[:-1]) * unit)
        # Longer ago than time can be written: all events.
        except OverflowError:
            then = datetime.fromtimestamp(0, tz=UTC)
        return then.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    try:
        return _parse(text).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except ValueError as error:
        raise Problem(
            "usage", f"--since: expected 10m, 2h, 3d or a time like 2025-01-31T08:00:00Z, found {text[:80]!r}"
        ) from error


def _parse(text: str) -> datetime:
    """The time in UTC; without a zone it is taken for UTC. ValueError for other text."""
    try:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError as error:
        raise ValueError(text) from error
