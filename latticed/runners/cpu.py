"""Limits on processor time that are measured; beyond them the child is ended.

Of a child without a cgroup: with one the kernel throttles it. And of any that computes on after an invocation's time.
Without any group, what processes used that ended while SIGCHLD was ignored is counted nowhere (wait(2)): these limits
do not hold a child with `processes` that means to get around them (docs/security/sandbox.md).
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


class OvertimeWatch:
    """Calls `exceeded()` once when the child and its descendants used more than `most_s` seconds of processor time from
    now on, unless `over()` is true by then. It ends nothing itself. `close` it before the loop ends.
    """

    def __init__(self, child: Child, most_s: float, exceeded: Callable[[], None], *, over: Callable[[], bool]) -> None:
        self._child = child
        self._most_s = most_s
        self._exceeded = exceeded
        self._over = over
        self._used_s = child.cpu_s
        self._look_later()

    def close(self) -> None:
        """Stop measuring; `exceeded` is not called any more."""
        self._next.cancel()

    def _look_later(self) -> None:
        self._next = asyncio.get_running_loop().call_later(self._most_s / 2, self._look)

    def _look(self) -> None:
        """Compare what was used with the limit, unless it is over."""
        if self._child.exit is not None or self._over():
            return
        if self._child.cpu_s - self._used_s > self._most_s:
            self._exceeded()
        else:
            self._look_later()
