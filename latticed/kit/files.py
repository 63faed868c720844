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
    from pathlib import Path

# O_NONBLOCK: opening a FIFO would wait for a writer. O_NOCTTY: a terminal must not become ours.
_FILE_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Of renameat2(2), linux/fs.h and linux/fcntl.h.
_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2


def open_directory(name: str | Path, *, beneath: int | None = None) -> int:
    """A descriptor of the directory `name`, relative to the open directory `beneath` if that is given. OSError; a
    symlink in its last component is refused (ELOOP or ENOTDIR).
    """
    return os.open(name, _DIRECTORY_FLAGS, dir_fd=beneath)


def open_file(name: str, *, beneath: int) -> int:
    """A read descriptor of the single component `name` in the directory `beneath`; never follows a link, never waits
    for a FIFO's writer. ValueError for anything but one component; OSError as open(2), ELOOP for a link.

    What it is (a file, a FIFO, a device) is not judged: see `read_open`.
    """
    if "/" in name or name in {"", ".", ".."}:
        raise ValueError(f"expected one path component, found {name!r}")
    return os.open(name, _FILE_FLAGS, dir_fd=beneath)


class closing:  # noqa: N801 - used as contextlib's is
    """A context that gives the raw descriptor `fd` and closes it at its end.

    A class, as a scan enters it four times for each bundle: a generator takes 2 µs more.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


class closing_read(closing):  # noqa: N801 - as above
    """As `closing`, of a descriptor that is only read from, where `close_read` closes it."""

    __slots__ = ()

    def __exit__(self, *_: object) -> None:
        close_read(self._fd)


def close_read(fd: int) -> None:
    """Close a descriptor that was only read from. An error of close(2), as of a mount that has just died, says nothing
    about what was read, and the descriptor is gone all the same.
    """
    with contextlib.suppress(OSError):
        os.close(fd)


def read_at_most(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most `limit` bytes, symlinks followed; OSError or ValueError otherwise.

    A FIFO or device at `path` is refused without blocking.
    """
    with closing_read(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
        return read_open(fd, limit)


def read_open(fd: int, limit: int) -> bytes:
    """The bytes behind `fd`, which must be a regular file of at most `limit` bytes; OSError or ValueError otherwise."""
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise ValueError(f"expected a regular file, found {stat.filemode(os.fstat(fd).st_mode)}")
    chunks: list[bytes] = []
    size = 0
    # One byte more than allowed is enough to tell, however fast the file grows.
    while chunk := os.read(fd, limit + 1 - size):
        chunks.append(chunk)
        size += len(chunk)
        if size > limit:
            raise ValueError(f"expected at most {limit} bytes")
    return b"".join(chunks)


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write the whole of `data`, however many calls that takes. OSError; BlockingIOError on a descriptor that is full
    and does not block.
    """
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def replace(path: Path, data: bytes, *, mode: int) -> None:
    """Make `path` hold `data`: the old or the new bytes survive a crash, never a mixture. OSError; the old file is left
    then.

    A new file gets `mode`. An existing one keeps its mode and its owner; OSError when the caller may not set that
    owner.
    """
    # Beside it: rename(2) does not work across file systems.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with closing(fd):
            # The umask took bits from the mode given to open(2).
            os.fchmod(fd, mode)
            with contextlib.suppress(FileNotFoundError):
                old = path.stat()
                os.fchmod(fd, stat.S_IMODE(old.st_mode))
                if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(fd, old.st_uid, old.st_gid)
            write_all(fd, data)
            # Before the rename: otherwise a crash could leave the new name with missing bytes.
            os.fsync(fd)
        os.replace(temporary, path)
    # No half-written file is left, not even by a cancellation; after a kill see `clear_remains`.
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def exchange(one: Path, other: Path) -> None:
    """Have each of two paths of one file system name what the other named, in one step (renameat2(2)), and sync that.

    OSError; EINVAL or ENOSYS where the file system cannot: then nothing is changed.
    """
    # Here, and not at the daemon's start: it is used seldom.
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    # The standard library has rename(2) alone, and two of them in a row are not one step.
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one))
    sync_directory(one.parent)


def clear_remains(path: Path) -> None:
    """Remove what killed calls of `replace` for `path` left behind. No `replace` of it may be running."""
    remains = re.compile(re.escape(f".{path.name}.") + r"[0-9a-f]{12}")
    for name in os.listdir(path.parent):
        if remains.fullmatch(name):
            os.unlink(path.parent / name)


def sync_directory(path: Path) -> None:
    """Make renames and unlinks in the directory `path` survive a power cut (fsync(2)). OSError."""
    with closing(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)
