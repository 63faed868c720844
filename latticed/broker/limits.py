"""Token buckets: how often a plugin may call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """`burst` calls at once, refilled at `per_second`."""

    per_second: float
    burst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """What is left of a rate: `tokens` at the monotonic time `at_s`."""

    tokens: float
    at_s: float


def take(bucket: Bucket | None, rate: Rate, now_s: float) -> tuple[Bucket, bool]:
    """The bucket (None: nobody has drawn from it yet) after one more call, and whether the call is within `rate`.

    The rate may be another one than at the last call.
    """
    last = bucket or Bucket(tokens=rate.burst, at_s=now_s)
    tokens = min(rate.burst, last.tokens + max(0.0, now_s - last.at_s) * rate.per_second)
    within = tokens >= 1
    return Bucket(tokens=tokens - 1 if within else tokens, at_s=now_s), within
