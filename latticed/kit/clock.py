"""The time, passed in: tests bring their own."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from. Passed in, so that tests can set it."""

    def wall_us(self) -> int:
        """Microseconds since the epoch; may jump in either direction when the clock is set."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some moment; never goes back."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def wall_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic_s(self) -> float:
        return time.monotonic()


def rfc3339(wall_us: int) -> str:
    """`wall_us` as RFC 3339 UTC with microseconds, the form used on every wire."""
    whole = datetime.fromtimestamp(wall_us // 1_000_000, tz=UTC).isoformat()  # a third of what strftime takes
    return f"{whole[:19]}.{wall_us % 1_000_000:06d}Z"
