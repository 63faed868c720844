"""Space put by for the day the disk is full: what stops a plugin is recorded from it (architecture, decision 6).

While it is spent, only what is essential is written, for what is left of it must not go to the next host call; it is
made again before anything else is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from latticed.kit import files

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "reserve"
BYTES: Final = 1 << 20
"""Some two thousand decisions, as long as readers let the WAL be used again; some two hundred when they do not."""

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Reserve:
    """One preallocated file in the state directory; belongs to the writer's thread."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._held = False

    def held(self) -> bool:
        """Whether it is there, made now if there is space again.

        A file system that cannot put space by has no reserve and is no reason to refuse writes.
        """
        if not self._held:
            self._held = self._make()
        return self._held

    def give_up(self) -> None:
        """Free its space for the next write."""
        self._held = False
        with contextlib.suppress(OSError):
            os.truncate(self._path, 0)

    def _make(self) -> bool:
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            with files.closing(os.open(self._path, flags, 0o600)) as fd:
                return _allocate(fd)
        except OSError as error:
            return error.errno not in _NO_SPACE


def _allocate(fd: int) -> bool:
    try:
        os.posix_fallocate(fd, 0, BYTES)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            return True
        os.ftruncate(fd, 0)  # a part of it is no use
        return False
    return True
