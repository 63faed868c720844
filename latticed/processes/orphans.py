"""Reaping children that nobody here started: as process 1 of a container every orphan in it becomes ours.

So do processes that a shell began before it executed us. They would stay as zombies, each a process id that is never
free again. Our own children are left to who waits for them.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from latticed.processes import spawn as birth

if TYPE_CHECKING:
    from collections.abc import Iterator


def reap(proc: Path = Path("/proc/self")) -> int:
    """Reap every orphan that has ended; how many. From the loop's thread, where children are started and waited for.

    While a child is being started nothing is: it may be one whose id we do not know yet.
    """
    if birth.BEGUN or not _any_ended():
        return 0
    reaped = 0
    for pid in _children(proc):
        if pid not in birth.OURS:
            with contextlib.suppress(ChildProcessError):
                reaped += os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
    return reaped


def _any_ended() -> bool:
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _children(proc: Path) -> Iterator[int]:
    with contextlib.suppress(OSError):  # no descriptor is free: the next look reaps them
        for task in (proc / "task").iterdir():
            with contextlib.suppress(OSError):
                yield from map(int, (task / "children").read_bytes().split())
