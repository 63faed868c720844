"""Restart arithmetic: exponential backoff with jitter, and the breaker that a crash loop opens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How failures are answered. All times in seconds.

    A handle that stayed up for `healthy_s` starts over; `breaker_failures` failures in a row open the breaker,
    which only an operator closes.
    """

    base_s: float = 1.0
    factor: float = 2.0
    ceiling_s: float = 60.0
    jitter: float = 0.2
    healthy_s: float = 60.0
    breaker_failures: int = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """How often a handle has failed in a row; `excused` of these count for the pause alone, not for the breaker."""

    in_a_row: int = 0
    excused: int = 0

    def after(self, uptime_s: float, policy: Policy, *, excused: bool = False) -> Failures:
        """The count after one more failure of a handle that had been up for `uptime_s`."""
        before = Failures() if uptime_s >= policy.healthy_s else self
        return Failures(in_a_row=before.in_a_row + 1, excused=before.excused + excused)

    def breaker_open(self, policy: Policy) -> bool:
        return self.in_a_row - self.excused >= policy.breaker_failures

    def delay_s(self, policy: Policy, roll: float) -> float:
        """Seconds to wait before the next attempt; `roll` in [0, 1) is the dice, spread over ± `jitter`."""
        exponent = min(max(self.in_a_row - 1, 0), 64)
        plain = min(policy.ceiling_s, policy.base_s * policy.factor**exponent)
        return plain * (1 + policy.jitter * (2 * roll - 1))
