"""The time, passed in: tests bring their own."""

from __future__ import annotations

import functools
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
    second, rest_us = divmod(wall_us, 1_000_000)
    return f"{_whole(second)}.{rest_us:06d}Z"


@functools.lru_cache(maxsize=16)  # thousands of events are recorded in one second
def _whole(second: int) -> str:
    return datetime.fromtimestamp(second, tz=UTC).isoformat()[:19]  # a third of what strftime takes
