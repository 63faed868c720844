"""A preallocated file, freed on a full disk so that stopping a plugin can be recorded (architecture, decision 6).

While it is freed, only essential jobs are written, so that host calls do not use up the space; it is allocated again
before anything else is written.
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
"""Its name in the state directory."""
BYTES: Final = 1 << 20
"""1 MiB: enough for about 2,000 decisions, or about 200 while a reader keeps the WAL from being reused."""

_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
"""A full file system, or a used-up quota of the daemon's user."""


class Reserve:
    """One preallocated file in the state directory; belongs to the writer's thread."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        self._held = False

    def held(self) -> bool:
        """Whether the file is allocated; tries to allocate it if not.

        True also on a file system without preallocation: that is no reason to refuse writes.
        """
        if not self._held:
            self._held = self._make()
        return self._held

    def give_up(self) -> None:
        """Free its space for the next write; `held` is what allocates it again."""
        self._held = False
        # If truncating fails the essential write fails as well, and that error is reported.
        with contextlib.suppress(OSError):
            os.truncate(self._path, 0)

    def _make(self) -> bool:
        """Allocate the file; False when there is no space for it."""
        try:
            # NOFOLLOW: a link placed here must not have another file allocated or truncated.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            with files.closing(os.open(self._path, flags, 0o600)) as fd:
                return _allocate(fd)
        except OSError as error:
            # Other errors are no lack of space: then there is no reserve, but writes are not refused.
            return error.errno not in _NO_SPACE


def _allocate(fd: int) -> bool:
    """Allocate the open file wholly; False, and nothing allocated, when there is no space."""
    try:
        # Blocks are really allocated: a sparse file made by truncate(2) would free nothing when it is given up.
        os.posix_fallocate(fd, 0, BYTES)
    except OSError as error:
        if error.errno not in _NO_SPACE:
            return True
        os.ftruncate(fd, 0)  # a partial reserve would only take space
        return False
    return True
