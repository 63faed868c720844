"""Backoff: how long to wait after failures in a row, for all that is retried; and the breaker of a crash loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

VISITED: Final = "(visitors' requests had reached it: this does not count for the breaker)"
"""Added to the message of an excused failure, which a visitor's request may have caused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential backoff: how long to wait after failures in a row.

    `base_s` after the first failure, `factor` times as long after each further one, at most `ceiling_s`; spread over ±
    `jitter` of that. With the defaults: 1, 2, 4, 8, 16, 32, 60, 60, … seconds, each ± 20 %.
    """

    base_s: float = 1.0
    factor: float = 2.0
    ceiling_s: float = 60.0
    jitter: float = 0.2

    def plain_s(self, failures: int) -> float:
        """Seconds after so many failures in a row, without jitter; 0 after none."""
        # The exponent is bounded: a float power overflows (OverflowError) after some thousand failures.
        return min(self.ceiling_s, self.base_s * self.factor ** min(failures - 1, 64)) if failures > 0 else 0.0

    def delay_s(self, failures: int, roll: float) -> float:
        """Seconds to wait after so many failures in a row; `roll` in [0, 1) is random and chosen by the caller."""
        return spread(self.plain_s(failures), self.jitter, roll)


def spread(seconds: float, share: float, roll: float) -> float:
    """`seconds` ± `share` of it, by `roll` in [0, 1): what failed at the same time is not retried at the same time.

    0 gives the shortest, 0.5 `seconds` itself.
    """
    return seconds * (1 + share * (2 * roll - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy(Backoff):
    """When something that failed is started again, and after how many failures no more.

    A handle that stayed up for `healthy_s` starts over; `breaker_failures` failures in a row that are not excused open
    the breaker, which only an operator closes. Excused ones alone never make the pause longer than `excused_share` of
    `ceiling_s`: each may be a request of a visitor who wants to stop the plugin.
    """

    excused_share: float = 0.25
    healthy_s: float = 60.0
    breaker_failures: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """How often a handle has failed in a row; `excused` of these count for the pause alone, not for the breaker."""

    in_a_row: int = 0
    excused: int = 0

    def after(self, uptime_s: float, policy: RestartPolicy, *, excused: bool = False) -> Failures:
        """The count after one more failure of a handle that had been up for `uptime_s`."""
        before = Failures() if uptime_s >= policy.healthy_s else self
        return Failures(in_a_row=before.in_a_row + 1, excused=before.excused + excused)

    @property
    def counted(self) -> int:
        """Number of failures that count for the breaker."""
        return self.in_a_row - self.excused

    def breaker_open(self, policy: RestartPolicy) -> bool:
        """Whether the failures that count are as many as the policy allows."""
        return self.counted >= policy.breaker_failures

    def delay_s(self, policy: RestartPolicy, roll: float) -> float:
        """Seconds to wait before the next attempt; `roll` in [0, 1) is random."""
        # All failures make the pause longer, but excused ones only up to their share of the ceiling.
        excused_s = min(policy.ceiling_s * policy.excused_share, policy.plain_s(self.in_a_row))
        return spread(max(policy.plain_s(self.counted), excused_s), policy.jitter, roll)
