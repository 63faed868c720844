"""Reads and edits trust.json with the caller's own permissions; replaces it atomically, under a lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from typing import TYPE_CHECKING, Final

from latticed.kit import files, trusted_files
from latticed.model.errors import Problem
from latticed.trust import policy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BYTES: Final = 1 << 20
"""Bounds what is read into memory."""
LOCK_S: Final = 5.0
"""How long to wait for another latticectl that edits the file."""
_LOCK_PAUSE_S: Final = 0.02
"""Between two attempts to lock."""
_DISK: Final = frozenset({errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO})
_LOCK_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
"""Neither a link nor a FIFO in the place of the lock file is followed or waited for."""
_MODE: Final = 0o644
"""The daemon's user must be able to read it, and nothing in it is secret."""


def read(path: Path) -> policy.TrustPolicy:
    """The policy in `path`.

    Problem "policy_unreadable"; "policy_invalid" for its contents, or when others may write to it.

    The rules are those of contracts §4, with the caller in place of the daemon's user.
    """
    try:
        data = trusted_files.read(path, MAX_BYTES, owners=frozenset({0, os.geteuid()}))
    except FileNotFoundError as error:
        raise Problem(
            "policy_unreadable", f"expected a trust policy at {path}, found no file", "latticectl trust add makes one"
        ) from error
    # ValueError: it is no regular file, or larger than MAX_BYTES (`files.read_open`).
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise Problem("policy_unreadable", f"cannot read the trust policy {path}: {why}") from error
    except trusted_files.ForeignFile as fault:
        hint = "only root or you may be able to change it"
        raise Problem("policy_invalid", f"cannot trust {path}: {fault}", hint) from fault
    try:
        return policy.decode(data)
    except Problem as problem:
        raise Problem(problem.code, f"{path}: {problem.reason}", problem.hint) from problem


@contextlib.contextmanager
def editing(path: Path) -> Iterator[policy.TrustPolicy]:
    """The policy in `path` (an empty one when there is no file) while no other latticectl edits it.

    Problem "policy_busy" when another one does for longer than LOCK_S, "policy_denied" where the caller may not write,
    and those of `read`. The lock is on a file of mode 0600: flock(2) on the directory would let any user who can open
    it block all edits.
    """
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        directory = files.open_directory(path.parent.resolve())
    except OSError as error:
        raise _denied(path, error) from error
    with files.closing(directory), _locked(path, directory):
        yield read(path) if path.exists() else policy.NOBODY


@contextlib.contextmanager
def _locked(path: Path, directory: int) -> Iterator[None]:
    """Hold a lock on a file beside `path` that is removed afterwards; Problem("policy_busy") after LOCK_S."""
    name, until_s = f".{path.name}.lock", time.monotonic() + LOCK_S
    while True:
        # Opened anew each time, since the holder removes the file when it is done.
        lock = _lock_file(path.with_name(name), directory)
        with files.closing(lock):
            if _is_held(lock, name, directory):
                try:
                    yield
                finally:
                    # While it is locked: whoever has it open then finds that the name leads elsewhere (`_is_held`).
                    os.unlink(name, dir_fd=directory)
                return
        if time.monotonic() > until_s:
            detail = f"cannot edit {path}: another latticectl has been doing so for more than {LOCK_S:g} s"
            raise Problem("policy_busy", detail, f"end it: fuser {path.with_name(name)} tells which it is")
        time.sleep(_LOCK_PAUSE_S)


def _is_held(lock: int, name: str, directory: int) -> bool:
    """Try to lock; whether we hold the lock of the file that `name` leads to now.

    Its last holder removes the file, so the lock of a removed one counts for nothing.
    """
    try:
        # flock(2) first: only what the name leads to while it is locked counts.
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.fstat(lock).st_ino == os.stat(name, dir_fd=directory, follow_symlinks=False).st_ino
    # Another one holds it, or has just removed it.
    except (BlockingIOError, FileNotFoundError):
        return False


def _lock_file(place: Path, directory: int) -> int:
    """A descriptor of the lock file, which is made if it is missing: mode 0600, of the directory's owner. Problem
    policy_denied.
    """
    try:
        lock = os.open(place.name, _LOCK_FLAGS, 0o600, dir_fd=directory)
    except OSError as error:
        raise _denied(place, error) from error
    try:
        owner, found = os.fstat(directory).st_uid, os.fstat(lock)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid not in {0, os.geteuid(), owner}:
            detail = f"{place}: expected a file of uid {owner} with mode 0600, found uid {found.st_uid} and mode"
            raise Problem("policy_denied", f"{detail} {stat.S_IMODE(found.st_mode):04o}", f"rm {place}")
        # If root's latticectl is killed the file stays; with mode 0600 its owner must be the one who edits here.
        if os.geteuid() == 0 and found.st_uid != owner:
            os.fchown(lock, owner, -1)
    # The caller gets no descriptor to close.
    except BaseException:
        os.close(lock)
        raise
    return lock


def write(path: Path, new: policy.TrustPolicy) -> None:
    """Replace `path`, links in it followed, or make it (mode 0644).

    Problem "policy_denied" when the caller may not, "too_large" and "policy_invalid" for what nobody could read then.
    """
    data = policy.encode(new)
    if len(data) > MAX_BYTES:
        detail = f"{path}: expected a trust policy of at most {MAX_BYTES} bytes, found {len(data)}; it was not changed"
        raise Problem("too_large", detail, "revoke a key or `id@*` instead of so many digests or versions")
    policy.decode(data)
    try:
        files.replace(path.resolve(), data, mode=_MODE)
    except OSError as error:
        raise _denied(path, error) from error


def _denied(path: Path, error: OSError) -> Problem:
    """The Problem for a file that cannot be written: io_error where nobody could."""
    if error.errno in _DISK:
        return Problem("io_error", f"cannot write {path}: {error.strerror or error}")
    hint = "run this as the owner of the trust policy (root)" if isinstance(error, PermissionError) else ""
    return Problem("policy_denied", f"cannot write {path}: {error.strerror or error}", hint)
