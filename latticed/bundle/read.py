"""Reading the two files of a bundle, which may be changed or replaced meanwhile (contracts §1).

One `BundleDirectory` is one look at one bundle. Both files are opened beneath the directory's descriptor, never through
a link, never waiting for the other end of a FIFO. What cannot be had is a `BundleRefused` with its verdict code.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import sys
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from latticed.bundle import refusal
from latticed.bundle.refusal import ARTIFACT, MANIFEST, BundleRefused
from latticed.kit import files
from latticed.kit.value import Value
from latticed.model import accepted
from latticed.model.verdict import Code

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = [
    "ARTIFACT",
    "MANIFEST",
    "BundleDirectory",
    "BundleRefused",
    "ReadLimits",
    "Stamp",
    "fingerprint",
    "open_bundle",
    "stamp_of",
]

BUFFER_BYTES: Final = 256 * 1024  # measured: 256 KiB with readv beats hashlib.file_digest and larger reads

Stamp = tuple[int, int, int, int, int, int]
"""(dev, inode, size, mode, mtime_ns, ctime_ns) of one file."""

_buffers = threading.local()
"""A scratch buffer for each thread that reads (`_own_buffer`)."""


class ReadLimits(Value, frozen=True, kw_only=True):
    """How much of a bundle is read at most, in bytes, and for how long (settings `limits.*`)."""

    manifest_bytes: int = 64 << 10
    artifact_bytes: int = 64 << 20
    deadline_s: float = 30.0


class BundleDirectory:
    """One reading of the bundle in the directory `fd`, which it owns and closes.

    `owners` are the uids that the two files may belong to. The deadline starts now and covers all that is read through
    it. Where both files are read, call `manifest` first. Blocks; use it from one thread.
    """

    def __init__(
        self,
        fd: int,
        *,
        limits: ReadLimits,
        owners: frozenset[int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fd = fd
        self._limits = limits
        self._owners = owners
        self._clock = clock
        self._deadline = clock() + limits.deadline_s
        self._artifact: int | BundleRefused | None = None
        """Its descriptor, why it cannot be opened, or None while that was not tried."""
        self.interpreter = ""
        """What the artifact that was hashed last is run by (`model.accepted.interpreter_of`)."""
        self.read_as: Stamp | None = None
        """The stamp that the artifact had while it was read last."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open; closing twice is harmless."""
        self._forget_artifact()
        if self._fd >= 0:
            files.close_read(self._fd)
            self._fd = -1

    def manifest(self) -> bytes:
        """The bytes of `manifest.json`, or BundleRefused.

        The artifact is opened as well (and kept open for `hash_artifact`): that it cannot be opened, or belongs to
        another user, outranks whatever the manifest says (contracts §5).
        """
        self._forget_artifact()
        # The artifact first: what is wrong with it may outrank the manifest.
        self._artifact = self._try_open(ARTIFACT)
        found = self._try_open(MANIFEST)
        if isinstance(found, BundleRefused):
            raise _worse(found, self._artifact)
        with files.closing_read(found):
            if isinstance(self._artifact, BundleRefused) and self._artifact.code is Code.UNREADABLE:
                raise self._artifact
            before = self._regular(found, MANIFEST, limit=self._limits.manifest_bytes)
            self._check_owner(before, MANIFEST)
            if isinstance(self._artifact, int):
                self._check_owner(os.fstat(self._artifact), ARTIFACT)
            return self._read_manifest(found, before)

    def hash_artifact(self, buffer: bytearray | None = None, *, copy_to: int | None = None) -> tuple[str, int]:
        """SHA-256 (lowercase hex) and size in bytes of `artifact`, or BundleRefused.

        The bytes are written to the descriptor `copy_to` while they are hashed: what is stored is what was judged.
        `buffer` is scratch space; without one each thread reuses its own.
        """
        digest = hashlib.sha256()

        def take(chunk: memoryview) -> None:
            digest.update(chunk)
            if copy_to is not None:
                files.write_all(copy_to, chunk)

        size = self._read_artifact(take, memoryview(buffer or _own_buffer()))
        return digest.hexdigest(), size

    def copy_artifact(self, copy_to: int) -> int:
        """Write the bytes of `artifact` to the descriptor `copy_to`, which the caller hashes; their number.

        BundleRefused as for `hash_artifact`.
        """
        return self._read_artifact(lambda chunk: files.write_all(copy_to, chunk), memoryview(_own_buffer()))

    def artifact_stamp(self) -> Stamp | None:
        """What lstat(2) says of `artifact` now; None when it cannot be looked at. Nothing is opened or checked."""
        return _stamp(ARTIFACT, self._fd)

    def _read_artifact(self, take: Callable[[memoryview], None], buffer: memoryview) -> int:
        """Open the artifact, unless `manifest` did, check it, and give its bytes to `take`; their number."""
        found = self._artifact if self._artifact is not None else self._try_open(ARTIFACT)
        # Taken over: from here it is closed below, whatever happens.
        self._artifact = None
        if isinstance(found, BundleRefused):
            raise found
        with files.closing_read(found):
            # Checked again on the descriptor: the name may have been given to another file since it was looked at.
            before = self._regular(found, ARTIFACT, limit=self._limits.artifact_bytes)
            self._check_owner(before, ARTIFACT)
            return self._pass_on(found, before, take, buffer)

    def _pass_on(self, fd: int, before: os.stat_result, take: Callable[[memoryview], None], buffer: memoryview) -> int:
        """Read `fd` to its end and give `take` each chunk, which is valid during the call only; the number of bytes."""
        size = 0
        head = b""
        # Stops at the size seen at first, so a file that grows for ever ends; `_check_unchanged` finds the growth.
        while (size == 0 or size < before.st_size) and (count := self._readv(fd, buffer, ARTIFACT)):
            size += count
            if len(head) < accepted.HEAD_BYTES:
                head += bytes(buffer[: min(count, accepted.HEAD_BYTES - len(head))])
            # Counted too, not only looked at before: a file may be larger than its size says (it grows, or is of a
            # pseudo file system).
            if size > self._limits.artifact_bytes:
                raise refusal.too_large(ARTIFACT, self._limits.artifact_bytes, size)
            take(buffer[:count])
        self._check_unchanged(fd, before, size, ARTIFACT)
        self.read_as = stamp_of(before)
        self.interpreter = sys.intern(accepted.interpreter_of(head))  # thousands have a few between them
        return size

    def _read_manifest(self, fd: int, before: os.stat_result) -> bytes:
        """All bytes of the manifest open at `fd`, of which `before` is the stat."""
        buffer = memoryview(_own_buffer())
        data = bytearray()
        while (not data or len(data) < before.st_size) and (count := self._readv(fd, buffer, MANIFEST)):
            data += buffer[:count]
            if len(data) > self._limits.manifest_bytes:
                raise refusal.too_large(MANIFEST, self._limits.manifest_bytes, len(data))
        self._check_unchanged(fd, before, len(data), MANIFEST)
        return bytes(data)

    def _readv(self, fd: int, buffer: memoryview, name: str) -> int:
        """The number of bytes read into `buffer`, 0 at the end. The deadline counts between reads only."""
        self._check_in_time(name)
        try:
            return os.readv(fd, [buffer])
        except OSError as error:
            raise refusal.unreadable(name, error) from error

    def _check_in_time(self, name: str) -> None:
        """BundleRefused once the deadline has passed."""
        if self._clock() > self._deadline:
            raise refusal.too_slow(name, self._limits.deadline_s)

    def _try_open(self, name: str) -> int | BundleRefused:
        """A descriptor of the regular file `name`, or why there is none."""
        try:
            # Looked at before it is opened: opening a device can be an act in itself.
            seen = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            if not stat.S_ISREG(seen.st_mode):
                return refusal.not_regular(name, seen.st_mode)
            # Without following links or waiting (O_NOFOLLOW, O_NONBLOCK): it may have been swapped since the stat.
            return files.open_file(name, beneath=self._fd)
        except FileNotFoundError:
            return refusal.missing(name)
        except OSError as error:
            if error.errno in {errno.ELOOP, errno.ENXIO}:  # swapped for a link or a socket since its lstat
                return refusal.not_regular(name, stat.S_IFLNK if error.errno == errno.ELOOP else stat.S_IFSOCK)
            return refusal.unreadable(name, error)

    def _regular(self, fd: int, name: str, *, limit: int) -> os.stat_result:
        """The stat of an open file; BundleRefused when it is no regular file or larger than `limit`."""
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise refusal.not_regular(name, found.st_mode)
        if found.st_size > limit:
            raise refusal.too_large(name, limit, found.st_size)
        return found

    def _check_owner(self, found: os.stat_result, name: str) -> None:
        """BundleRefused when the file is not of one of the `owners`."""
        if found.st_uid not in self._owners:
            raise refusal.foreign_owner(name, self._owners, found.st_uid)

    def _check_unchanged(self, fd: int, before: os.stat_result, size: int, name: str) -> None:
        """BundleRefused when the file changed while it was read, or the deadline has passed.

        Reading stops at the size the file had before; that it still has it, and its times, makes that its end.
        """
        self._check_in_time(name)
        after = os.fstat(fd)
        if _moment(before) != _moment(after) or size != after.st_size:
            raise refusal.changed(name)

    def _forget_artifact(self) -> None:
        """Close the artifact that `manifest` left open, if any."""
        if isinstance(self._artifact, int):
            files.close_read(self._artifact)
        self._artifact = None


def open_bundle(
    name: str | Path,
    *,
    beneath: int | None = None,
    limits: ReadLimits,
    owners: frozenset[int],
    clock: Callable[[], float] = time.monotonic,
) -> BundleDirectory:
    """Open the bundle directory `name` (beneath a directory's descriptor), or raise BundleRefused.

    `limits`, `owners` and `clock` as in BundleDirectory. A bundle that is gone is `manifest_missing`; a link in place
    of the directory is never followed.
    """
    try:
        fd = files.open_directory(name, beneath=beneath)
    except FileNotFoundError as error:
        raise BundleRefused(
            Code.MANIFEST_MISSING, "expected a bundle directory, found nothing of that name", "check the name"
        ) from error
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:
            raise BundleRefused(
                Code.UNREADABLE,
                "expected a bundle directory, found a link or another kind of file",
                "a bundle is a real directory; links are not followed",
            ) from error
        raise refusal.unreadable("the bundle directory", error) from error
    return BundleDirectory(fd, limits=limits, owners=owners, clock=clock)


def fingerprint(name: str, *, beneath: int) -> tuple[Stamp | None, Stamp | None]:
    """What `lstat` says of manifest and artifact of the bundle `name`; None for a part that is missing.

    Equal fingerprints mean that nothing was written in between, as far as the file system's times show: a scan may skip
    such a bundle. A name that is no real directory has no parts.
    """
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=beneath, follow_symlinks=False).st_mode):
            return None, None
    except OSError:
        return None, None
    # If `name` is swapped for a link meanwhile, another file's stamp comes out: a difference, so the bundle is read.
    return stamps(name, beneath=beneath)


def stamps(name: str, *, beneath: int) -> tuple[Stamp | None, Stamp | None]:
    """As `fingerprint`, without looking at the directory: the files are found through a link in its place, too."""
    return _stamp(f"{name}/{MANIFEST}", beneath), _stamp(f"{name}/{ARTIFACT}", beneath)


def _stamp(path: str, beneath: int) -> Stamp | None:
    """What lstat(2) says of one file; None when it cannot be looked at."""
    try:
        found = os.stat(path, dir_fd=beneath, follow_symlinks=False)
    except OSError:
        return None
    return stamp_of(found)


def stamp_of(found: os.stat_result) -> Stamp:
    """The stamp of a file by its stat."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mode, found.st_mtime_ns, found.st_ctime_ns


def _moment(found: os.stat_result) -> tuple[int, int, int, int]:
    """(size, mtime, ctime in ns, inode): at least one of them changes when a file is written to or replaced."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def _own_buffer() -> bytearray:
    """This thread's scratch space; filling a fresh one for each file would cost more than hashing small files."""
    buffer: bytearray | None = getattr(_buffers, "buffer", None)
    if buffer is None:
        buffer = _buffers.buffer = bytearray(BUFFER_BYTES)
    return buffer


def _worse(manifest: BundleRefused, artifact: int | BundleRefused | None) -> BundleRefused:
    """The first in the order of codes: an artifact that cannot be opened outranks a manifest that is not there."""
    unreadable = isinstance(artifact, BundleRefused) and artifact.code is Code.UNREADABLE
    return artifact if isinstance(artifact, BundleRefused) and unreadable else manifest
