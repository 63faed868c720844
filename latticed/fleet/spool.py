"""Where a node keeps bundles that it fetches until its daemon has taken them: a directory with a bound.

    <sha256>.part   as far as it came; resumed after a crash, at a multiple of a chunk
    <sha256>.tar    whole, and its digest was right

Nothing in it is believed: the daemon judges every bundle itself. Names are made of digests, and no link is followed.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import stat
import threading
from typing import TYPE_CHECKING, Final, NoReturn, Self

from latticed.fleet import messages
from latticed.fleet.engine import CHUNK_BYTES
from latticed.kit import files

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_OURS: Final = re.compile(r"[0-9a-f]{64}\.(part|tar)", re.ASCII)
_PART_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MODE: Final = 0o644  # the daemon reads it under its own uid
_READ_BYTES: Final = 1 << 20


class NotFetched(Exception):
    """A bundle that could not be had; the message says why. What came of it is kept when it may be of use.

    `begun_elsewhere`: what came from here was put behind what there was before, the whole is of no use and is gone; so
    this source may have the right bundle all the same.
    """

    def __init__(self, message: str, *, begun_elsewhere: bool = False) -> None:
        super().__init__(message)
        self.begun_elsewhere = begun_elsewhere


class Spool:
    """The directory, which must exist. `most_bytes` counts all files in it, `bundle_bytes` one bundle.

    One process uses it at a time. All methods but `release` block: they are called in threads. What is held is not
    dropped to make room for others; at most `at_once` bundles are held, and only what is held is begun.
    """

    def __init__(self, directory: Path, *, most_bytes: int, bundle_bytes: int) -> None:
        self._directory = directory
        self._most_bytes = most_bytes
        self._bundle_bytes = min(bundle_bytes, most_bytes)
        self._lock = threading.Lock()
        self._begun: set[str] = set()  # names of parts that are open
        self._held: set[str] = set()

    @property
    def at_once(self) -> int:
        """How many of the largest bundles there is room for."""
        return self._most_bytes // self._bundle_bytes

    def hold(self, sha256: str) -> None:
        """Drop nothing of this bundle until `release`."""
        with self._lock:  # it is not being dropped just now
            self._held.add(sha256)

    def release(self, sha256: str) -> None:
        self._held.discard(sha256)

    def has(self, sha256: str) -> bool:
        """Whether the bundle is whole here."""
        with contextlib.suppress(FileNotFoundError):
            return stat.S_ISREG(os.lstat(self._directory / messages.spool_name(sha256)).st_mode)
        return False

    def begin(self, sha256: str) -> Partial:
        """What there is of the bundle so far, open for more; OSError.

        Older files that are not held go first when there would not be room for largest bundles, this one and those
        that are open.
        """
        name = _part_name(sha256)
        ended = functools.partial(self._begun.discard, name)
        with contextlib.ExitStack() as undo:
            undo.callback(ended)
            with self._lock:
                self._begun.add(name)
                self._make_room()
            directory = files.open_directory(self._directory)
            undo.callback(os.close, directory)
            fd = os.open(name, _PART_FLAGS, _MODE, dir_fd=directory)
            undo.callback(os.close, fd)
            partial = Partial(sha256, directory, fd, most_bytes=self._bundle_bytes, ended=ended)
            partial.resume()
            undo.pop_all()
        return partial

    def forget(self, sha256: str) -> None:
        """Remove what there is of the bundle: its daemon has taken it, or nobody wants it any more."""
        for name in (_part_name(sha256), messages.spool_name(sha256)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._directory / name)

    def _make_room(self) -> None:
        """Remove files, those that changed longest ago first, until largest bundles fit."""
        coming = self._bundle_bytes * len(self._begun)
        found = []
        with os.scandir(self._directory) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another bundle is whole just now, or taken
                    if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        found.append((status.st_mtime_ns, entry.name, status.st_size))
        used = sum(size for _, _, size in found)
        for _, name, size in sorted(found):
            if used + coming <= self._most_bytes:
                return
            if name not in self._begun and name.partition(".")[0] not in self._held:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._directory / name)
                used -= size


class Partial:
    """One bundle as it comes: it is hashed while it is written."""

    def __init__(self, sha256: str, directory: int, fd: int, *, most_bytes: int, ended: Callable[[], object]) -> None:
        self._sha256 = sha256
        self._directory = directory
        self._fd = fd
        self._most_bytes = most_bytes
        self._ended = ended
        self._digest = hashlib.sha256()
        self._begun_elsewhere = False
        self.size = 0
        """Bytes so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._directory)
        self._ended()

    def resume(self) -> None:
        """Hash what is there, down to a multiple of a chunk, and go on behind it."""
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            raise NotFetched(f"expected a regular file in the spool, found {stat.filemode(found.st_mode)}")
        whole = found.st_size - found.st_size % CHUNK_BYTES
        os.ftruncate(self._fd, whole)
        while self.size < whole:
            data = os.read(self._fd, min(_READ_BYTES, whole - self.size))
            if not data:
                raise NotFetched("expected nobody else to write in the spool, found a file that became shorter")
            self._digest.update(data)
            self.size += len(data)
        self._begun_elsewhere = self.size > 0

    def restart(self) -> None:
        """Forget what came: it comes from the start."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._digest, self.size, self._begun_elsewhere = hashlib.sha256(), 0, False

    def write(self, data: bytes) -> None:
        """What comes next. NotFetched when that is too much, or the disk is full: then nothing is left of it, so that
        the host has the room.
        """
        if self.size + len(data) > self._most_bytes:
            self.give_up(f"expected a bundle of at most {self._most_bytes} bytes, found a larger one")
        try:
            files.write_all(self._fd, data)
        except OSError as error:
            if error.errno not in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise
            self._remove()
            raise NotFetched(f"expected room for it in the spool: {error.strerror}") from error
        self._digest.update(data)
        self.size += len(data)

    def finish(self) -> None:
        """It is whole: give it its name. NotFetched when it is another one than was asked for, and nothing is left."""
        if (found := self._digest.hexdigest()) != self._sha256:
            self.give_up(f"expected a bundle with the digest {self._sha256}, found {found}")
        os.fchmod(self._fd, _MODE)  # whatever the umask was
        os.fsync(self._fd)
        os.replace(
            _part_name(self._sha256),
            messages.spool_name(self._sha256),
            src_dir_fd=self._directory,
            dst_dir_fd=self._directory,
        )
        os.fsync(self._directory)

    def give_up(self, reason: str) -> NoReturn:
        """Nothing is left of it: NotFetched."""
        self._remove()
        raise NotFetched(reason, begun_elsewhere=self._begun_elsewhere)

    def _remove(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_part_name(self._sha256), dir_fd=self._directory)


def _part_name(sha256: str) -> str:
    return messages.spool_name(sha256).removesuffix(".tar") + ".part"
