"""A directory that a hostile program fills: measured, given to another user, and removed, whatever is in it.

Every path is opened one component at a time beneath an open directory, so no link is ever followed. All of it blocks:
call it in a thread.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from typing import TYPE_CHECKING, Final

from latticed.kit import files
from latticed.kit.files import closing
from latticed.kit.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MAX_LEVELS: Final = 64
"""Directories within each other; each takes a descriptor while a tree is walked."""
GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
"""Errors of opening what was there a moment ago: it was removed, or something of another kind is in its place."""
_BLOCK: Final = 512  # what st_blocks counts (stat(2))


class DataUse(Value, frozen=True, kw_only=True):
    """What is in a directory: `bytes` of all files, and how many `files`, directories among them."""

    bytes: int = 0
    files: int = 0


class TreeEntry(Value, frozen=True, kw_only=True):
    """One entry below a directory: `path` relative to it, as the system has it (bytes); `found` is its own lstat(2).

    `directory` is a descriptor of the directory that it is in, open until the next entry is asked for.
    """

    path: bytes
    found: os.stat_result
    directory: int

    @property
    def name(self) -> bytes:
        """The last part of `path`."""
        return self.path.rpartition(b"/")[2]


class TooDeep(Exception):
    """There are more than MAX_LEVELS directories within each other."""


def walk(directory: Path, unreadable: Callable[[bytes, OSError], None] | None = None) -> Iterator[TreeEntry]:
    """Every entry below `directory`, each directory before what is in it. OSError; TooDeep.

    What vanishes meanwhile is left out. A directory that its owner may not read is made readable, as a program can
    always take its own rights away. `unreadable` is told the path of what cannot be read, which is left out then
    instead of raising the error; not of `directory` itself.
    """
    with closing(files.open_directory(directory)) as top:
        # (open directory, path, names left): a stack instead of recursion, as the depth is the program's choice.
        levels = [(top, b"", _names(top))]
        try:
            while levels:
                fd, above, names = levels[-1]
                if not names:
                    levels.pop()
                    if levels:
                        os.close(fd)
                    continue
                name = names.pop()
                try:
                    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    yield TreeEntry(path=above + name, found=found, directory=fd)
                    if stat.S_ISDIR(found.st_mode):
                        if len(levels) >= MAX_LEVELS:
                            raise TooDeep
                        levels.append((enter(name, fd), above + name + b"/", []))
                        levels[-1][2].extend(_names(levels[-1][0]))
                except OSError as error:
                    if error.errno in GONE:
                        continue
                    if unreadable is None:
                        raise
                    unreadable(above + name, error)
        finally:
            for one, _, _ in levels[1:]:
                os.close(one)


def measure(directory: Path, most: DataUse) -> DataUse:
    """What is below `directory`; it stops as soon as that is more than `most`. OSError; TooDeep.

    A file counts as what it takes on the disk, or as its size if that is more: a sparse file counts whole, since a copy
    of it may be whole. The bytes of one that has several names count once.
    """
    size = count = 0
    linked: set[int] = set()
    for entry in walk(directory):
        found = entry.found
        count += 1
        if found.st_ino not in linked:
            size += taken(found)
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            linked.add(found.st_ino)
        if count > most.files or size > most.bytes:
            break
    return DataUse(bytes=size, files=count)


def taken(found: os.stat_result) -> int:
    """The bytes that one file counts for: see `measure`."""
    return max(found.st_size, found.st_blocks * _BLOCK)


def hand_over(directory: Path, uid: int, gid: int) -> None:
    """Give `directory` and all that is in it to this user; nothing runs that could change it. OSError; TooDeep."""
    os.chown(directory, uid, gid, follow_symlinks=False)
    for entry in walk(directory):
        if (entry.found.st_uid, entry.found.st_gid) != (uid, gid):
            os.chown(entry.name, uid, gid, dir_fd=entry.directory, follow_symlinks=False)


def remove(directory: Path) -> bool:
    """Remove `directory`, however deep it is; False when there was none. OSError. Nothing may be writing to it.

    `shutil.rmtree` recurses for each level, and a program can make more of them than that survives.
    """
    try:
        top = files.open_directory(directory)
    except FileNotFoundError:
        return False
    with closing(top):
        _make_passable(top)
        while names := os.listdir(top):
            for name in names:
                _remove_entry(os.fsencode(name), top)
    os.rmdir(directory)
    return True


def enter(name: bytes, beneath: int) -> int:
    """A descriptor of the directory `name` in the open directory `beneath`, made readable where it is not. OSError."""
    try:
        return files.open_directory(os.fsdecode(name), beneath=beneath)
    except PermissionError:
        make_readable(name, beneath, mode=0o700)
        return files.open_directory(os.fsdecode(name), beneath=beneath)


def make_readable(name: bytes, beneath: int, *, mode: int) -> None:
    """Change the mode of `name` itself, never of what a link leads to. OSError."""
    with closing(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=beneath)) as fd:
        _change_mode(fd, mode)


def _change_mode(fd: int, mode: int) -> None:
    """Change a mode by descriptor, also one of O_PATH, which fchmod(2) refuses."""
    if not stat.S_ISLNK(os.fstat(fd).st_mode):
        os.chmod(f"/proc/self/fd/{fd}", mode)


def _make_passable(fd: int) -> None:
    """Have its owner read, change and enter an open directory. OSError."""
    if stat.S_IMODE(os.fstat(fd).st_mode) & 0o700 != 0o700:
        _change_mode(fd, 0o700)


def _remove_entry(name: bytes, top: int) -> None:
    """Remove one entry of the open directory `top`; directories within it are moved up into `top`, for later."""
    if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=top)
        return
    with closing(enter(name, top)) as fd:
        _make_passable(fd)
        for inner in map(os.fsencode, os.listdir(fd)):
            if stat.S_ISDIR(os.stat(inner, dir_fd=fd, follow_symlinks=False).st_mode):
                # Moving a directory changes its `..`, for which it must be writable (rename(2)).
                make_readable(inner, fd, mode=0o700)
                os.rename(inner, f".{secrets.token_hex(8)}", src_dir_fd=fd, dst_dir_fd=top)
            else:
                os.unlink(inner, dir_fd=fd)
    os.rmdir(name, dir_fd=top)


def _names(fd: int) -> list[bytes]:
    """The names in an open directory, each once: one that is renamed meanwhile may be listed twice (readdir(3))."""
    return [os.fsencode(name) for name in dict.fromkeys(os.listdir(fd))]
