"""A plugin directory, opened once for each pass over it, so that no pass mixes two directories of the same name."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING, Final

from latticed.catalog import mounts
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from pathlib import Path

# No O_NOFOLLOW, unlike everywhere below it: the operator may have made the plugin directory a link.
_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NONBLOCK

RootId = tuple[int, int]
"""(dev, inode) of a plugin directory."""

_LEFTOVERS: Final = frozenset({"lost+found", "@eaDir", "__MACOSX", "$RECYCLE.BIN"})
"""Directories that file systems, storage servers and archivers leave behind (contracts §1)."""


def may_be_bundle(name: str) -> bool:
    """Whether a directory of this name in a plugin directory is looked at: hidden ones and leftovers are not."""
    return name not in _LEFTOVERS and not name.startswith(".")


class Root:
    """An open plugin directory: `fd`, `id`, the id of its `mount`, and the `owners` whose files may lie in its bundles.

    Open only during a pass: an open descriptor would keep a file system from being unmounted.
    """

    def __init__(self, fd: int) -> None:
        found = os.fstat(fd)
        self.fd = fd
        self.id: RootId = (found.st_dev, found.st_ino)
        # What lies on another mount than this is mounted within the plugin directory, and not watched.
        self.mount = mounts.mount_of(fd)
        # Who may own a bundle's files (contracts §1).
        self.owners = frozenset({0, os.geteuid(), found.st_uid})

    def close(self) -> None:
        """Close the descriptor. Call it once: afterwards another file may have the same number."""
        os.close(self.fd)


class Shared:
    """One Root for the threads of a batch: of the first that has it open, closed by `close` or the last that leaves.

    A thread that is stuck keeps it open, so that the number of its descriptor means nothing else meanwhile. The lock is
    not held while it is opened: `close`, on the event loop, would wait as long as the file system does not answer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._root: Root | None = None
        self._users = 0
        self._closing = False

    def close(self) -> None:
        """The batch is over: no thread enters any more."""
        with self._lock:
            self._closing = True
            self._close_unused()

    def __enter__(self) -> Root:
        with self._lock:
            if (root := self._root) is not None:
                self._users += 1
                return root
        opened = open_root(self._path)
        with self._lock:
            self._users += 1
            root = self._root = self._root or opened
        if root is not opened:  # another thread was quicker
            opened.close()
        return root

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            self._close_unused()

    def _close_unused(self) -> None:
        if self._closing and self._users == 0 and self._root is not None:
            self._root.close()
            self._root = None


def open_root(path: Path) -> Root:
    """Open the plugin directory; Problem("directory_missing" | "directory_unreadable") says what is there instead.

    The operator may have made `path` a symlink: it is followed here, each time anew, and nowhere else.
    """
    try:
        return Root(os.open(path, _FLAGS))
    except FileNotFoundError as error:
        raise Problem("directory_missing", f"expected a directory {path}, found nothing", f"mkdir {path}") from error
    # Missing too, not unreadable: whatever bundles were known there are gone.
    except NotADirectoryError as error:
        raise Problem("directory_missing", f"expected a directory {path}, found {_kind(path)}") from error
    except OSError as error:
        detail = f"expected to read the directory {path}, found: {error.strerror}"
        raise Problem("directory_unreadable", detail, "the daemon's user must be able to list and enter it") from error


def identify(path: Path) -> RootId | None:
    """Which directory `path` means now; None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None


def _kind(path: Path) -> str:
    """What is at `path`, which is no directory, for a message."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return "something below a file"
    return "a regular file" if stat.S_ISREG(mode) else "another kind of file"
