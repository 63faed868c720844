"""Time that passes only when a test says so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class ManualClock:
    """Wall clock and monotonic clock from one number; starts at 2026-01-02T03:04:05Z."""

    now_us: int = 1_767_323_045_000_000

    def wall_us(self) -> int:
        return self.now_us

    def monotonic_s(self) -> float:
        return self.now_us / 1_000_000

    def advance(self, seconds: float) -> None:
        self.now_us += round(seconds * 1_000_000)
