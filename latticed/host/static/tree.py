"""Files of plugins on disk, a directory each; a crash or a full disk leaves the old version of a file.

Paths are opened one component at a time beneath an open directory, never through a symlink. All of it blocks: call it
in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
import threading
from typing import TYPE_CHECKING, Final

from latticed.host.call import HostError
from latticed.kit import files
from latticed.kit.files import closing
from latticed.kit.value import Value
from latticed.model.hostcall import Denial

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

# Begins with a dot, which `calls.path_fault` refuses: no plugin can name such a file.
_TEMPORARY: Final = ".put-"
MAX_DIGESTS: Final = 20_000
"""Digests that are kept in memory, of all plugins."""
# ENOTDIR: a file where the path has a directory; ELOOP: a symlink, which O_NOFOLLOW refuses (open(2)).
_ABSENT: Final = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


class StaticQuota(Value, frozen=True, kw_only=True):
    """What one plugin may publish: number of files, and bytes of all of them."""

    files: int
    total_bytes: int


class StaticEntry(Value, frozen=True, kw_only=True):
    """One file; `path` is relative to its plugin's directory, `size` in bytes, `modified_us` in µs since the epoch.

    `version`: another one for other bytes at the same path.
    """

    path: str
    size: int
    modified_us: int
    version: tuple[int, ...]


class StaticFiles:
    """The directories of all plugins beneath `directory` (made 0700). An owner is the path of its directory there, as
    `acme/acme.demo` (publisher and id).

    Paths and owners have been checked by the caller. HostError service_unavailable for errors of the disk. For use by
    several threads.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        # By owner. Threads' locks, as everything here runs in threads of an executor; one for each, so that a put does
        # not wait for those of other plugins.
        self._locks: dict[str, threading.Lock] = {}
        # By owner: (files, bytes), so that a put need not walk the directory. Absent: unknown.
        self._used: dict[str, tuple[int, int]] = {}
        # By owner and path: (version, SHA-256), so that lists need not read what has not changed.
        self._digests: dict[tuple[str, str], tuple[tuple[int, ...], str]] = {}

    def put(self, owner: str, path: str, data: bytes, quota: StaticQuota) -> None:
        """Make `path` hold `data`, on disk when it returns; until then readers find the previous file.

        HostError quota_exceeded; bad_params when `path` is a directory, or lies below a file.
        """
        with self._locked(owner), _as_host_errors():
            files_used, bytes_used = self._usage(owner)
            old = self._size(owner, path)
            if old is None and files_used >= quota.files:
                raise HostError(Denial.QUOTA_EXCEEDED, f"expected at most {quota.files} files, found {files_used}")
            new_total = bytes_used + len(data) - (old or 0)
            # A file may always shrink, even while the total is above a quota that was lowered.
            if len(data) > (old or 0) and new_total > quota.total_bytes:
                found = f"expected at most {quota.total_bytes} bytes in all files, found {new_total}"
                raise HostError(Denial.QUOTA_EXCEEDED, found)
            del self._used[owner]  # an error below leaves it unknown: counted again by the next call
            try:
                self._replace(owner, path, data)
            # Raised again: whatever ends it, no empty directories are left.
            except BaseException:
                # Directories may have been made before the disk was full.
                self._prune(owner, path)
                raise
            self._used[owner] = (files_used + (old is None), new_total)

    def delete(self, owner: str, path: str) -> bool:
        """Remove a file, durably, and directories that become empty; False when there was none."""
        with self._locked(owner), _as_host_errors():
            self._used.pop(owner, None)
            folder, _, name = path.rpartition("/")
            try:
                with self._open_directory(owner, folder) as fd:
                    os.unlink(name, dir_fd=fd)
                    # So that a deleted file is not there again after a crash.
                    os.fsync(fd)
            except IsADirectoryError:
                return False
            except OSError as error:
                if error.errno in _ABSENT:
                    return False
                raise
            self._prune(owner, path)
            return True

    def read(self, owner: str, path: str) -> tuple[bytes, int] | None:
        """The bytes of a file and its mtime in µs since the epoch, or None. Needs no lock: `put` replaces files by
        rename.
        """
        folder, _, name = path.rpartition("/")
        with _as_host_errors():
            try:
                with self._open_directory(owner, folder) as above, closing(files.open_file(name, beneath=above)) as fd:
                    found = os.fstat(fd)
                    return (files.read_open(fd, found.st_size), found.st_mtime_ns // 1_000) if _is_file(found) else None
            except ValueError:  # longer than fstat said: changed by another process
                raise OSError(errno.EIO, "the file was changed from outside") from None
            except OSError as error:
                if error.errno in _ABSENT:
                    return None
                raise

    def entries(self, owner: str) -> list[StaticEntry]:
        """All files of a plugin, by path; empty when it has no directory."""
        with _as_host_errors(), contextlib.ExitStack() as stack:
            try:
                top = stack.enter_context(self._open_directory(owner, ""))
            except OSError as error:
                if error.errno in _ABSENT:
                    return []
                raise
            return sorted(_walk(top, ""), key=lambda entry: entry.path)

    def digests(self, owner: str, wanted: Sequence[StaticEntry]) -> dict[str, str]:
        """The SHA-256 of files by path, without those that are gone by now."""
        found = {}
        for entry in wanted:
            known = self._digests.get((owner, entry.path))
            if known is None or known[0] != entry.version:
                if (read := self.read(owner, entry.path)) is None:
                    continue
                if len(self._digests) >= MAX_DIGESTS:
                    self._digests.clear()
                known = self._digests[owner, entry.path] = (entry.version, hashlib.sha256(read[0]).hexdigest())
            found[entry.path] = known[1]
        return found

    def owners(self, plugin_id: str) -> list[str]:
        """The directories of an id that exist, one for each of its publishers, past ones included."""
        with _as_host_errors():
            try:
                # The first level has publishers; a plugin id may be in several of them.
                found = os.listdir(self._directory)
            except FileNotFoundError:
                return []
            owners = (f"{publisher}/{plugin_id}" for publisher in sorted(found))
            return [owner for owner in owners if os.path.lexists(self._directory / owner)]

    def remove(self, owner: str) -> bool:
        """Remove a plugin's whole directory, durably; False when there was none."""
        with self._locked(owner), _as_host_errors():
            self._used.pop(owner, None)
            try:
                shutil.rmtree(self._directory / owner)  # follows no link on any level
            except FileNotFoundError:
                return False
            files.sync_directory((self._directory / owner).parent)
            return True

    @contextlib.contextmanager
    def _locked(self, owner: str) -> Iterator[None]:
        """One writer at a time for an owner: quota and change belong together. Locks are kept for good; there are as
        many as plugins.
        """
        with self._locks.setdefault(owner, threading.Lock()):
            yield

    def _usage(self, owner: str) -> tuple[int, int]:
        """(files, bytes) of an owner, cached; the caller holds the lock. When nothing is cached, leftovers of
        interrupted puts are removed first.
        """
        if owner not in self._used:
            with contextlib.suppress(FileNotFoundError), self._open_directory(owner, "") as fd:
                _sweep(fd)
            found = self.entries(owner)
            self._used[owner] = (len(found), sum(entry.size for entry in found))
        return self._used[owner]

    def _size(self, owner: str, path: str) -> int | None:
        """The size of the file that `path` names, or None; HostError bad_params when it is a directory, or a part of it
        is a file.
        """
        folder, _, name = path.rpartition("/")
        try:
            with self._open_directory(owner, folder) as fd:
                found = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except NotADirectoryError as error:
            raise HostError(Denial.BAD_PARAMS, f"a part of {path} is a file") from error
        if stat.S_ISDIR(found.st_mode):
            raise HostError(Denial.BAD_PARAMS, f"{path} is a directory")
        return found.st_size

    def _replace(self, owner: str, path: str, data: bytes) -> None:
        """Write `data` to a temporary file beside `path`, and rename it there. OSError; the temporary file is removed
        then.
        """
        folder, _, name = path.rpartition("/")
        with self._open_directory(owner, folder, make=True) as above:
            temporary = f"{_TEMPORARY}{secrets.token_hex(8)}"
            # O_EXCL and O_NOFOLLOW: never into a file or through a link that another process has put there.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(temporary, flags, 0o600, dir_fd=above)
            try:
                with closing(fd):
                    files.write_all(fd, data)
                    # Before the rename: after a crash the name must not lead to a file without its data.
                    os.fsync(fd)
                os.rename(temporary, name, src_dir_fd=above, dst_dir_fd=above)
            except BaseException:
                # The error that led here counts. What cannot be removed now is swept by the next put (`_usage`).
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=above)
                raise
            os.fsync(above)  # makes the rename durable

    def _prune(self, owner: str, path: str) -> None:
        """Remove empty directories above `path`, up to the first that is not empty."""
        folder = path.rpartition("/")[0]
        while folder:
            above, _, name = folder.rpartition("/")
            try:
                with self._open_directory(owner, above) as fd:
                    os.rmdir(name, dir_fd=fd)
            # Not empty, as a rule. Anything else leaves an empty directory, which does no harm.
            except OSError:
                return
            folder = above

    @contextlib.contextmanager
    def _open_directory(self, owner: str, folder: str, *, make: bool = False) -> Iterator[int]:
        """A descriptor of a directory of `owner`'s, open within the context; with `make`, missing directories are made.
        OSError, also for a link on the way.
        """
        if make:
            self._directory.mkdir(mode=0o700, exist_ok=True)
        fd = files.open_directory(self._directory)
        try:
            for name in (*owner.split("/"), *(part for part in folder.split("/") if part)):
                if make:
                    _make(name, fd)
                below = files.open_directory(name, beneath=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)


def _make(name: str, above: int) -> None:
    """Make a directory, durably, in the one with the descriptor `above`, if it does not exist. OSError."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=above)
        # Else the directory, and the file that is fsynced in it, may be gone after a power cut.
        os.fsync(above)


def _walk(fd: int, above: str) -> Iterator[StaticEntry]:
    """The regular files beneath an open directory, in any order; links and other kinds are left out. `above`: the path
    of that directory, empty or with a slash at its end.
    """
    for name in os.listdir(fd):
        if name.startswith(_TEMPORARY):
            continue
        try:
            found = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                with closing(files.open_directory(name, beneath=fd)) as below:
                    yield from _walk(below, f"{above}{name}/")
        except FileNotFoundError:  # deleted meanwhile
            continue
        if _is_file(found):
            # The inode, as `put` replaces files; the ctime, for what another process wrote into one.
            version = (found.st_ino, found.st_size, found.st_ctime_ns)
            modified_us = found.st_mtime_ns // 1_000
            yield StaticEntry(path=above + name, size=found.st_size, modified_us=modified_us, version=version)


def _sweep(fd: int) -> None:
    """Remove temporary files that `_replace` left when the daemon was killed in it, at any depth; the caller holds the
    lock.
    """
    for name in os.listdir(fd):
        if name.startswith(_TEMPORARY):
            os.unlink(name, dir_fd=fd)
        elif stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            with closing(files.open_directory(name, beneath=fd)) as below:
                _sweep(below)


def _is_file(found: os.stat_result) -> bool:
    """Whether it is a regular file: reading a FIFO or a device, which another process may put there, could block for
    ever.
    """
    return stat.S_ISREG(found.st_mode)


@contextlib.contextmanager
def _as_host_errors() -> Iterator[None]:
    """Raise HostError for an OSError, with the system's message and without paths."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "the disk refused"
        raise HostError(Denial.SERVICE_UNAVAILABLE, f"files cannot be kept right now: {reason}") from error
