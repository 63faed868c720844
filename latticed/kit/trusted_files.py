"""Reading a file that nobody but its owners may be able to change, however its path is made (contracts §4).

The path is walked one component at a time. Every directory and link on the way is judged on what was opened, and the
bytes come from the descriptor that was judged: replacing a link or file meanwhile changes nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from latticed.kit import files

if TYPE_CHECKING:
    from pathlib import Path

_MOST_LINKS: Final = 40  # path_resolution(7)
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC  # to pass through, not to list
# O_NONBLOCK: opening a FIFO would wait for a writer. O_NOCTTY: a terminal must not become ours.
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class ForeignFile(Exception):
    """Somebody else can change what is at this path; the message says who and where."""


def read(path: Path, limit: int, *, owners: frozenset[int]) -> bytes:
    """The bytes of a regular file of at most `limit` bytes that only `owners` can change.

    The file, and every directory and link that leads to it, must belong to one of `owners` (uids) and be writable by
    nobody else; root-owned sticky directories such as /tmp pass. ForeignFile otherwise; OSError and ValueError
    as `files.read_at_most`.
    """
    with files.closing(_open(path, owners)) as fd:
        return files.read_open(fd, limit)


def check(path: Path, *, owners: frozenset[int]) -> None:
    """ForeignFile unless only `owners` can change the file at `path`, judged as `read` does; OSError, ValueError."""
    os.close(_open(path, owners))


def check_path(place: str, *, owners: frozenset[int]) -> None:
    """ForeignFile unless only `owners` can change `place`, a resolved path (no links), and every directory above it.

    OSError. It is looked at, not opened: for what has been read already, or will be while nobody else can change it.
    """
    while True:
        _judge(os.lstat(place), place, owners)
        if place == "/":
            return
        place = os.path.dirname(place)


def check_directory(directory: Path) -> None:
    """ForeignFile unless root or this process's user owns `directory` and nobody else may write there; OSError when it
    cannot be looked at. One that does not exist passes.
    """
    try:
        found = directory.stat()
    except FileNotFoundError:
        return
    mode, owners = stat.S_IMODE(found.st_mode), sorted({0, os.geteuid()})
    if found.st_uid not in owners or mode & 0o022:
        expected = " or ".join(map(str, owners))
        raise ForeignFile(
            f"expected it to belong to uid {expected} and to be writable by nobody else, "
            f"found uid {found.st_uid} and mode {mode:04o}"
        )


def _open(path: Path, owners: frozenset[int]) -> int:
    """The file at `path`, opened for reading, after every step to it was judged. ForeignFile, OSError, ValueError as
    `read`.
    """
    rest, links, here = [*path.absolute().parts[1:]], 0, "/"
    current = os.open("/", _DIRECTORY)
    try:
        _judge(os.fstat(current), here, owners)
        while rest:
            name = rest.pop(0)
            # Only a first look: whatever is opened below is judged again by its descriptor.
            found = os.stat(name, dir_fd=current, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > _MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
                _judge(found, os.path.join(here, name), owners)
                # Another link may be here by now: whatever it says, each component of its target is judged in turn.
                target = os.readlink(name, dir_fd=current)
                rest[:0] = [part for part in target.split("/") if part not in {"", "."}]
                if target.startswith("/"):
                    here, current = "/", _step("/", current)
                continue
            here = os.path.normpath(os.path.join(here, name))  # for messages
            if not rest and not stat.S_ISDIR(found.st_mode):
                fd = os.open(name, _FILE, dir_fd=current)
                return _judged(fd, here, owners)
            current = _step(name, current)
            _judge(os.fstat(current), here, owners)
        raise ValueError(f"expected a regular file, found the directory {here}")
    finally:
        os.close(current)


def _step(name: str, current: int) -> int:
    """A descriptor of the directory `name` beneath `current`, opened without following a link; closes `current`."""
    following = os.open(name, _DIRECTORY, dir_fd=current)
    os.close(current)
    return following


def _judged(fd: int, place: str, owners: frozenset[int]) -> int:
    """The descriptor `fd`, if what it leads to may be trusted; it is closed otherwise."""
    try:
        _judge(os.fstat(fd), place, owners)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _judge(found: os.stat_result, place: str, owners: frozenset[int]) -> None:
    """ForeignFile when somebody outside of `owners` can change what `found` describes; `place` is for the message."""
    if found.st_uid not in owners:
        expected = " or ".join(map(str, sorted(owners)))
        raise ForeignFile(f"{place} belongs to uid {found.st_uid}, expected {expected}")
    # In a sticky directory others may add files, but not replace those of root and the owners (inode(7)).
    sticky = stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and found.st_mode & stat.S_ISVTX
    # The mode of a link means nothing: it is always 0777 (symlink(7)).
    if found.st_mode & 0o022 and not sticky and not stat.S_ISLNK(found.st_mode):
        raise ForeignFile(f"{place} is writable by others (mode {stat.S_IMODE(found.st_mode):04o})")
