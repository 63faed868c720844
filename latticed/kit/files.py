"""Opening what others may have put there, and replacing files so that a crash leaves the old or the new one.

All opens are of a single path component beneath an already open directory, with O_NOFOLLOW: there is no second
component that could be a link, so the kernel guarantees what `openat2(RESOLVE_BENEATH|RESOLVE_NO_SYMLINKS)` would.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_directory(name: str | Path, *, beneath: int | None = None) -> int:
    """A descriptor of the directory `name`; a symlink in its last component is refused (ELOOP or ENOTDIR)."""
    return os.open(name, _DIRECTORY_FLAGS, dir_fd=beneath)


def open_file(name: str, *, beneath: int) -> int:
    """A read descriptor of the single component `name`; never follows a link, never waits for a FIFO's writer."""
    if "/" in name or name in {"", ".", ".."}:
        raise ValueError(f"expected one path component, found {name!r}")
    return os.open(name, _FILE_FLAGS, dir_fd=beneath)


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """Use a raw descriptor and close it."""
    try:
        yield fd
    finally:
        os.close(fd)


def read_at_most(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes, symlinks followed; OSError or ValueError otherwise."""
    with closing(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"expected a regular file, found {stat.filemode(os.fstat(fd).st_mode)}")
        chunks: list[bytes] = []
        size = 0
        while chunk := os.read(fd, limit + 1 - size):
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise ValueError(f"expected at most {limit} bytes")
        return b"".join(chunks)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write the whole of `data`, however many calls that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace(path: Path, data: bytes, *, mode: int) -> None:
    """Make `path` hold `data`: the old or the new bytes survive a crash, never a mixture.

    An existing file keeps its owner and mode when the caller may set them.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with closing(fd):
            os.fchmod(fd, mode)
            with contextlib.suppress(FileNotFoundError):
                old = path.stat()
                os.fchmod(fd, stat.S_IMODE(old.st_mode))
                if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(fd, old.st_uid, old.st_gid)
            write_all(fd, data)
            os.fsync(fd)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def clear_remains(path: Path) -> None:
    """Remove what calls of `replace` for `path` left behind when they were killed; nobody else may be replacing it."""
    remains = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{12}")
    for name in os.listdir(path.parent):
        if remains.fullmatch(name):
            os.unlink(path.parent / name)


def sync_directory(path: Path) -> None:
    """Make renames and unlinks in `path` survive a power cut."""
    with closing(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)


def foreign_writers(path: Path, *, owners: frozenset[int]) -> str | None:
    """What lets somebody else change `path`, in words, or None.

    `path` and all its parents (links resolved) must belong to one of `owners` and be writable by nobody else;
    root-owned sticky directories such as /tmp pass (contracts §4).
    """
    resolved = path.resolve()
    for place in (resolved, *resolved.parents):
        found = place.stat()
        if found.st_uid not in owners:
            return f"{place} belongs to uid {found.st_uid}, expected {' or '.join(map(str, sorted(owners)))}"
        sticky = stat.S_ISDIR(found.st_mode) and found.st_uid == 0 and found.st_mode & stat.S_ISVTX
        if found.st_mode & 0o022 and not sticky:
            return f"{place} is writable by others (mode {stat.S_IMODE(found.st_mode):04o})"
    return None
