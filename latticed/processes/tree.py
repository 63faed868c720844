"""The processes of a running child: its roots and all that descend from them."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def pids(roots: Iterable[int]) -> list[int]:
    """`roots` (`Child.roots`, unreaped children) and their living descendants; a snapshot, so one may have ended."""
    return [*roots, *(pid for root in roots for pid in _descendants(root))]


def _descendants(pid: int) -> Iterator[int]:
    """Living descendants of `pid`; at most as many as its limit of processes allows."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # the thread has ended meanwhile
            for child in (task / "children").read_bytes().split():
                yield int(child)
                yield from _descendants(int(child))
