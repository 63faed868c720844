"""Whether the state directory's files are still those that were opened, so that the next start finds what is written.

A process that has a file open goes on writing to it after it was replaced or removed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from pathlib import Path

Identity = tuple[int, ...]

_HINT: Final = "put back what was there; or restart latticed, which then takes what is there now"


class DirectoryIdentity:
    """The state directory and its files by (device, inode), as they were when this was made.

    The key also by size and mtime.

    `database`, `key` and `lock` are names in `directory`. Everything here blocks as long as the disk does. `fault` may
    be called from any thread, `written` by the writer's only.
    """

    def __init__(self, directory: Path, *, database: str, key: str, lock: str) -> None:
        # As text: a Path takes as long as the call of stat(2), and these are looked at with each commit.
        self._directory = str(directory)
        self._wal = str(directory / f"{database}-wal")
        self._key = str(directory / key)
        self._watched = {
            self._directory: "state_replaced",
            str(directory / database): "ledger_replaced",
            self._key: "host_key_replaced",
            str(directory / lock): "state_replaced",
        }
        self._seen = {path: self._identity(path) for path in self._watched}

    def written(self) -> None:
        """Call after a commit: from then on the write-ahead log must exist too."""
        if self._wal not in self._watched and (found := self._identity(self._wal)) is not None:
            # Before `_watched`: `fault` may be running on another thread and looks up each watched path here.
            self._seen[self._wal] = found
            self._watched[self._wal] = "ledger_replaced"

    def fault(self) -> Problem | None:
        """The Problem when a file is missing or has been replaced; None when all are as they were.

        Codes: state_replaced (directory, lock), ledger_replaced (database, write-ahead log), host_key_replaced.
        """
        # A copy: the writer's thread may add the write-ahead log meanwhile, and iterating over the dict would raise.
        for path, code in [*self._watched.items()]:
            found = self._identity(path)
            if found != self._seen[path]:
                name = "the state directory" if path == self._directory else os.path.basename(path)
                what = "found nothing" if found is None else "found another one"
                return Problem(code, f"expected {name} to be the one that latticed entered, {what}", _HINT)
        return None

    def _identity(self, path: str) -> Identity | None:
        """(device, inode) of what is at `path`, of the key with size and mtime.

        None when nothing can be found there.
        """
        try:
            # The path of the state directory may be a link, which is followed. Its files were opened with O_NOFOLLOW: a
            # link in the place of one has replaced it, so the link itself is looked at.
            found = os.stat(path, follow_symlinks=path == self._directory)
        except OSError:
            return None
        # The key is written once; the other files change with every write, so only their inode counts.
        changed = (found.st_size, found.st_mtime_ns) if path == self._key else ()
        return (found.st_dev, found.st_ino, *changed)
