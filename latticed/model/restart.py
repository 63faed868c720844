"""Restart arithmetic: exponential backoff with jitter, and the breaker that a crash loop opens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

VISITED: Final = "(visitors' requests had reached it: this does not count for the breaker)"
"""What is said besides of a failure that is excused, as outsiders may have caused it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """How failures are answered. All times in seconds.

    A handle that stayed up for `healthy_s` starts over; `breaker_failures` failures in a row that are not excused open
    the breaker, which only an operator closes. Excused ones alone never make the pause longer than `excused_share` of
    `ceiling_s`: each may be one request of somebody who wants it down.
    """

    base_s: float = 1.0
    factor: float = 2.0
    ceiling_s: float = 60.0
    excused_share: float = 0.25
    jitter: float = 0.2
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
        """Those that count for the breaker."""
        return self.in_a_row - self.excused

    def breaker_open(self, policy: RestartPolicy) -> bool:
        return self.counted >= policy.breaker_failures

    def delay_s(self, policy: RestartPolicy, roll: float) -> float:
        """Seconds to wait before the next attempt; `roll` in [0, 1) is the dice, spread over ± `jitter`."""
        own = min(policy.ceiling_s, _doubled(policy, self.counted))
        plain = max(own, min(policy.ceiling_s * policy.excused_share, _doubled(policy, self.in_a_row)))
        return plain * (1 + policy.jitter * (2 * roll - 1))


def _doubled(policy: RestartPolicy, times: int) -> float:
    return policy.base_s * policy.factor ** min(times - 1, 64) if times else 0.0
