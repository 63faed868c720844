"""How often a node does what others can cause: a budget of seconds that comes back with time. Pure.

    pace = Pace(burst_s=10)
    pace.wait_s(now_s)               # how long to wait before the next; 0: now
    pace = pace.spent(cost_s, now_s) # after it, or before

Whoever has the engine or the link may send documents without end. What that costs the host is bounded by making the
cost of a piece of work a multiple of the time that it took.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from msgspec import Struct

TIMES: Final = 4.0
"""What work costs, in multiples of the time that it takes: a flood of it takes a quarter of the time at most."""
REFUSED_S: Final = 10.0
"""Between looks for no other reason than that a document was refused: only the status has to say so."""


class Pace(Struct, frozen=True, kw_only=True):
    """`burst_s` may be spent at once. `left_s` was left at `at_s` (a monotonic clock): below 0 it has to come back
    first.
    """

    burst_s: float
    left_s: float | None = None
    at_s: float = 0.0

    def wait_s(self, now_s: float) -> float:
        """Seconds until more may be spent."""
        return max(0.0, -self._left_s(now_s))

    def spent(self, cost_s: float, now_s: float) -> Pace:
        return Pace(burst_s=self.burst_s, left_s=self._left_s(now_s) - cost_s, at_s=now_s)

    def worked(self, took_s: float, now_s: float, *, least_s: float) -> Pace:
        """After work that took so long; it costs `least_s` in any case."""
        return self.spent(max(least_s, TIMES * took_s), now_s)

    def _left_s(self, now_s: float) -> float:
        if self.left_s is None:
            return self.burst_s
        return min(self.burst_s, self.left_s + max(0.0, now_s - self.at_s))


class Cause(IntEnum):
    """Why a node looks at its daemon; of several the greatest counts."""

    TIME = 0
    REFUSED = 1
    """A document was refused."""
    NEW = 2
    """Something was taken up, or a bundle is there or missing."""


def look_wait_s(pace: Pace, cause: Cause, *, last_s: float, now_s: float, reconcile_s: float) -> float:
    """Seconds until the next look, when the last one ended at `last_s`. Never more than `reconcile_s` after that."""
    regular_s = max(0.0, last_s + reconcile_s - now_s)
    match cause:
        case Cause.TIME:
            return regular_s
        case Cause.REFUSED:
            return min(regular_s, max(pace.wait_s(now_s), last_s + REFUSED_S - now_s, 0.0))
        case Cause.NEW:
            return min(regular_s, pace.wait_s(now_s))
