"""How often one plugin may have the host act for it, counted here and not at the Gate: in memory, per plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from latticed.kit.clock import Clock

_MOST: Final = 4_096
"""Plugins that are remembered before those with a full allowance are dropped."""


class Allowance:
    """`burst` acts at once for each plugin, one more every `refill_s` seconds."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # plugin: acts left, monotonic time of that

    def take(self, plugin_id: str, *, burst: float, refill_s: float) -> float:
        """0 when one more act is allowed, which is counted; else the seconds until it is."""
        now_s = self._clock.monotonic_s()
        left, at_s = self._left.get(plugin_id, (burst, now_s))
        left = min(burst, left + max(now_s - at_s, 0.0) / refill_s)
        allowed = left >= 1
        if len(self._left) >= _MOST:
            self._drop_idle(now_s, burst * refill_s)
        self._left[plugin_id] = (left - 1 if allowed else left, now_s)
        return 0.0 if allowed else (1 - left) * refill_s

    def _drop_idle(self, now_s: float, full_after_s: float) -> None:
        self._left = {one: (left, at_s) for one, (left, at_s) in self._left.items() if now_s - at_s < full_after_s}
