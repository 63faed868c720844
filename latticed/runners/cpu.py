"""A limit on processor time where there is no cgroup: measured, and the child is ended beyond it.

With a cgroup the kernel throttles a child; without one it can only be ended.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.processes.child import Child

WINDOW_S: Final = 10.0
"""The window, in seconds, over which the share of a core is measured, so that bursts are allowed."""


class CpuWatch:
    """Calls `exceeded(reason)` once when the child and its descendants used more than `percent` of one core over
    `window_s` seconds; 150 is one and a half cores. It ends nothing itself. `close` it before the loop ends.
    """

    def __init__(
        self, child: Child, percent: int, exceeded: Callable[[str], None], *, window_s: float = WINDOW_S
    ) -> None:
        self._child = child
        self._percent = percent
        self._exceeded = exceeded
        self._window_s = window_s
        self._loop = asyncio.get_running_loop()
        self._used_s, self._at_s = child.cpu_s, self._loop.time()
        self._next = self._loop.call_later(window_s, self._look)

    def close(self) -> None:
        """Stop measuring; `exceeded` is not called any more."""
        self._next.cancel()

    def _look(self) -> None:
        """Compare what was used since the last look with the limit; called every `window_s` seconds while it runs."""
        if self._child.exit is not None:
            return
        used_s, now = self._child.cpu_s, self._loop.time()
        share = 100 * (used_s - self._used_s) / (now - self._at_s)
        if share > self._percent:
            limit = f"expected at most {self._percent} % of a core over {self._window_s:g} s, found {share:.0f} %"
            self._exceeded(limit)
            return
        self._used_s, self._at_s = used_s, now
        self._next = self._loop.call_later(self._window_s, self._look)
