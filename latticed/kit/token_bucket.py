"""Token buckets, in memory: how often an owner may do something, or how fast a pipe is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_MOST_KEYS: Final = 4_096
"""Keys that are remembered before those with a full bucket are dropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """How often something may happen: `burst` times (at least 1) at once, one more every `1 / per_second` seconds."""

    per_second: float
    burst: float


class TokenBuckets:
    """One bucket for each key; full at first. The caller passes the monotonic time, and the rate of now."""

    def __init__(self) -> None:
        self._tokens: dict[str, tuple[float, float]] = {}  # key: tokens left, monotonic time of that

    def take(self, key: str, rate: Rate, now_s: float) -> float:
        """Take a token of `key`: 0 when there was one, else the seconds until there is one (nothing is taken then).

        `now_s` is the monotonic time; a clock set back adds no tokens.
        """
        left, at_s = self._tokens.get(key, (rate.burst, now_s))
        left = min(rate.burst, left + max(now_s - at_s, 0.0) * rate.per_second)
        if len(self._tokens) >= _MOST_KEYS:
            self._drop_full(now_s, rate.burst / rate.per_second)
        self._tokens[key] = (left - 1 if left >= 1 else left, now_s)
        return 0.0 if left >= 1 else (1 - left) / rate.per_second

    def _drop_full(self, now_s: float, full_after_s: float) -> None:
        """Forget the buckets not used for `full_after_s` seconds: at the present rate a new one would be the same."""
        self._tokens = {one: (left, at_s) for one, (left, at_s) in self._tokens.items() if now_s - at_s < full_after_s}


class ByteBucket:
    """How fast a pipe is read, for readers that learn the size only afterwards: it may go below zero, into debt.

    Reading costs time of the event loop that all plugins share; a pipe that is not read blocks its writer (pipe(7)).
    """

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._left = rate.burst
        self._at_s = 0.0

    def spend(self, size: int, now_s: float) -> None:
        """Take `size` bytes that were read at the monotonic time `now_s`."""
        self._left = min(self._left + (now_s - self._at_s) * self._rate.per_second, self._rate.burst) - size
        self._at_s = now_s

    def take(self, size: int, now_s: float) -> bool:
        """Take `size` bytes if there are as many at the monotonic time `now_s`; whether there were."""
        self.spend(0, now_s)
        if self._left < size:
            return False
        self._left -= size
        return True

    @property
    def pause_s(self) -> float:
        """The seconds, counted from the last `spend`, after which reading may go on; 0 when it need not pause."""
        return max(-self._left / self._rate.per_second, 0.0)
