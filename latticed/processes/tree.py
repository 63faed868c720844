"""The processes of a running child: its roots and all that descend from them, and what they use."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# The units of times and of memory in /proc/PID/stat.
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_RSS: Final = 21  # rss, field 24 of proc_pid_stat(5), in `_stat`


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What processes use: `cpu_s` seconds of processor time so far, that of children that they reaped included, and
    nothing of those that ended while SIGCHLD was ignored; `memory_bytes` resident, pages that they share counted for
    each, page tables not; `tasks`: their threads.
    """

    cpu_s: float = 0.0
    memory_bytes: int = 0
    tasks: int = 0


def pids(roots: Iterable[int]) -> list[int]:
    """`roots` (`Child.roots`, unreaped children) and their living descendants; a snapshot, so one may have ended."""
    return [*roots, *(pid for root in roots for pid in _descendants(root))]


def used(roots: Iterable[int]) -> Used:
    """What `roots` and their living descendants use, by /proc."""
    found = [one for pid in pids(roots) if (one := _used(pid)) is not None]
    return Used(
        cpu_s=sum(one.cpu_s for one in found),
        memory_bytes=sum(one.memory_bytes for one in found),
        tasks=sum(one.tasks for one in found),
    )


def _used(pid: int) -> Used | None:
    """What one process uses; None when it is gone."""
    place = Path(f"/proc/{pid}")
    try:
        row = _stat(place)
    except OSError:
        return None
    pages = int(row[_RSS]) or _pages_of_threads(place)
    # The first after the name is field 3 of proc_pid_stat(5): utime, stime, cutime and cstime are 14 to 17, num_threads
    # 20.
    return Used(cpu_s=sum(map(int, row[11:15])) / _TICKS_PER_S, tasks=int(row[17]), memory_bytes=pages * _PAGE)


def _pages_of_threads(place: Path) -> int:
    """Resident pages of a process that shows none itself, because its first thread has ended; 0 for one that has."""
    pages = 0
    for thread in (place / "task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            pages = max(pages, int(_stat(thread)[_RSS]))
    return pages


def _stat(place: Path) -> list[bytes]:
    """The fields of `stat` in /proc of a process or thread, from its state on. OSError."""
    return (place / "stat").read_bytes().rpartition(b")")[2].split()  # the child chooses the name


def _descendants(pid: int) -> Iterator[int]:
    """Living descendants of `pid`; at most as many as its limit of processes allows."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            for child in (task / "children").read_bytes().split():
                yield int(child)
                yield from _descendants(int(child))
