"""Token buckets: how often a plugin may call."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """`burst` calls at once, refilled at `per_second`; `at_s` is the monotonic time of the last look."""

    per_second: float
    burst: float
    tokens: float
    at_s: float

    def take(self, now_s: float) -> tuple[Bucket, bool]:
        """The bucket after one more call at `now_s`, and whether the call is within the rate."""
        tokens = min(self.burst, self.tokens + max(0.0, now_s - self.at_s) * self.per_second)
        within = tokens >= 1
        return replace(self, tokens=tokens - 1 if within else tokens, at_s=now_s), within


def full(per_second: float, burst: float, now_s: float) -> Bucket:
    """A bucket nobody has drawn from yet."""
    return Bucket(per_second=per_second, burst=burst, tokens=burst, at_s=now_s)
