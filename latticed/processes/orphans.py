"""Reaping children that the daemon did not start: as process 1 of a container it inherits every orphan there.

So it does processes that a shell started before it executed the daemon. Unreaped they stay zombies and use up process
ids. Children that the daemon started itself (`spawn.OURS`) are left to the code that waits for them.
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
    """Reap every orphan that has ended and return their number. Call it on the event loop's thread.

    Does nothing while a child is being started: the stub's own child may not be known by its pid yet.
    """
    # The cheap check first: reading /proc for every thread is only worth it when some child has ended.
    if birth.BEGUN or not _any_ended():
        return 0
    reaped = 0
    for pid in _children(proc):
        if pid not in birth.OURS:
            with contextlib.suppress(ChildProcessError):
                reaped += os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None
    return reaped


def _any_ended() -> bool:
    """Whether any child has ended and not been reaped yet; WNOWAIT leaves it as it is."""
    try:
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False


def _children(proc: Path) -> Iterator[int]:
    """The pids of this process's children, which the kernel lists for each thread that started them."""
    # /proc/PID/task/TID/children (proc(5)).
    with contextlib.suppress(OSError):  # no descriptor is free (EMFILE): the next call reaps them
        for task in (proc / "task").iterdir():
            with contextlib.suppress(OSError):  # the thread has ended meanwhile
                yield from map(int, (task / "children").read_bytes().split())
