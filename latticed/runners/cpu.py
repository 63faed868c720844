"""A limit on processor time where there is no cgroup: measured, and the child is ended beyond it.

With a cgroup the kernel throttles a child; without one it can only be ended.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.processes import tree

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.processes.child import Child

WINDOW_S: Final = 10.0
"""The window, in seconds, over which the share of a core is measured, so that bursts are allowed."""
# The unit of times in /proc/PID/stat, per second.
_TICKS: Final = os.sysconf("SC_CLK_TCK")


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
        self._used_s, self._at_s = self._used() or 0.0, self._loop.time()
        self._next = self._loop.call_later(window_s, self._look)

    def close(self) -> None:
        """Stop measuring; `exceeded` is not called any more."""
        self._next.cancel()

    def _look(self) -> None:
        """Compare what was used since the last look with the limit; called every `window_s` seconds while it runs."""
        used_s, now = self._used(), self._loop.time()
        if used_s is None:
            return  # it has ended
        share = 100 * (used_s - self._used_s) / (now - self._at_s)
        if share > self._percent:
            limit = f"expected at most {self._percent} % of a core over {self._window_s:g} s, found {share:.0f} %"
            self._exceeded(limit)
            return
        self._used_s, self._at_s = used_s, now
        self._next = self._loop.call_later(self._window_s, self._look)

    def _used(self) -> float | None:
        """Seconds of processor time so far. `roots` are unreaped children, so their pids cannot have been reused."""
        if self._child.exit is not None:
            return None
        roots = self._child.roots
        return sum(_ticks(pid) or 0 for pid in tree.pids(roots)) / _TICKS


def _ticks(pid: int) -> int | None:
    """Clock ticks that a process and the children it reaped have used; None when it is gone."""
    try:
        numbers = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()  # the child chooses the name
    except OSError:
        return None
    # utime, stime, cutime, cstime: fields 14 to 17 of proc_pid_stat(5); the first after the name is field 3.
    return sum(int(number) for number in numbers[11:15])
