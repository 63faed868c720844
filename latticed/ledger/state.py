"""The state directory: its lock, the host's key, the write connection. How old its ledger may be: `rollback`."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import stat
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.kit import files, trusted_files
from latticed.kit.value import Value, field
from latticed.ledger import connection, floors, integrity, rollback
from latticed.ledger.directory_identity import DirectoryIdentity
from latticed.ledger.reserve import Reserve
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK: Final = "lock"
"""Name of the file that flock(2) locks; it holds the pid of the daemon, for messages only."""
DATABASE: Final = "ledger.sqlite3"
HOST_KEY: Final = "host.key"
_SEED_BYTES: Final = 32
"""An Ed25519 private key (RFC 8032, section 5.1.5) is 32 random bytes."""


class StateDir(Value, frozen=True, kw_only=True):
    """An open state directory, locked against other daemons, with its write connection and host key.

    `partly_checked`: the file was too large for a complete check. `behind` says why the ledger counts as older than
    `floors`, when that was accepted.
    """

    directory: Path
    writer: connection.Connection
    key: Ed25519PrivateKey
    identity: DirectoryIdentity
    partly_checked: bool = False
    floors: floors.Floors = field(default_factory=floors.Floors)
    behind: str = ""

    @property
    def database(self) -> Path:
        """The path of the SQLite file."""
        return self.directory / DATABASE


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Lock `directory` (made 0700 if missing), opening nothing in it. Problems: state_unusable, state_in_use.

    Never waits for the lock. Held until the context is left.
    """
    with contextlib.ExitStack() as stack:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            trusted_files.check_directory(directory)
            fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, fd)
            os.fchmod(fd, 0o600)  # any user who can open it can lock it
            # flock(2) ends with the descriptor: kill -9 leaves no stale lock, and the file is never removed.
            _lock(fd, directory)
        except OSError as error:
            raise _unusable(directory, error) from error
        except trusted_files.ForeignFile as fault:
            hint = f"chown and chmod go-w {directory}, once you know that what lies in it is yours"
            raise Problem("state_unusable", f"the state directory {directory}: {fault}", hint) from fault
        yield


@contextlib.contextmanager
def enter(directory: Path, *, accept_rollback: bool = False) -> Iterator[StateDir]:
    """Lock `directory` and open its database; blocking, so not for the event loop.

    Problems: state_unusable, state_in_use, ledger_damaged, ledger_newer; ledger_rolled_back, floors_invalid unless
    `accept_rollback`.
    """
    with locked(directory), contextlib.ExitStack() as stack:
        _clear_remains(directory)
        # Looked at before anything is made: opening the database creates the file.
        had_key = (directory / HOST_KEY).exists()
        had_database = _holds_bytes(directory / DATABASE)
        # A key without a database means that one was lost: making a new one would hide it.
        if had_key and not had_database:
            raise connection.damaged(f"expected {DATABASE} beside {HOST_KEY}, found none")
        # Damage that an earlier run found in the part of a large file which opening does not check.
        if found := integrity.noted(directory):
            raise connection.damaged(f"expected a sound database, found earlier: {found}")
        writer = _open_writer(directory)
        stack.callback(writer.close)
        if not had_key:
            _make_key(directory, writer)
        partly, key = integrity.partial(writer), load_key(directory)
        kept, behind = rollback.check_floors(directory, writer, key, accept=accept_rollback)
        # Last, when every file exists that it watches.
        identity = DirectoryIdentity(directory, database=DATABASE, key=HOST_KEY, lock=LOCK)
        yield StateDir(
            directory=directory,
            writer=writer,
            key=key,
            identity=identity,
            partly_checked=partly,
            floors=kept,
            behind=behind,
        )


def _open_writer(directory: Path) -> connection.Connection:
    """The write connection; a full disk, where even the index of the WAL has no room, gets the reserve."""
    try:
        return connection.open_writer(directory / DATABASE)
    # Only what more free space may help with is tried again.
    except Problem as problem:
        if problem.code != "state_unusable":
            raise
    # Frees the reserved space for this second attempt; the committer allocates it again.
    Reserve(directory).give_up()
    return connection.open_writer(directory / DATABASE)


def _clear_remains(directory: Path) -> None:
    """Remove temporary files left by a process that was killed while replacing a file."""
    with contextlib.suppress(OSError):  # a failing disk is reported by the reads and writes that matter
        for name in (HOST_KEY, floors.FILE):
            files.clear_remains(directory / name)


def public_half(key: Ed25519PrivateKey) -> str:
    """The public key as base64 of its 32 raw bytes."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode("ascii")


def _lock(fd: int, directory: Path) -> None:
    """Lock the open file without waiting and write our pid into it; Problem state_in_use."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        # For the message only: the lock itself is flock(2), the number may be of an earlier holder.
        pid = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        raise Problem(
            "state_in_use",
            f"another latticed (pid {pid}) holds {directory}",
            "stop it first, or give this one a state directory of its own",
        ) from error
    # Only now, with the lock held: the pid of a running daemon must not be erased.
    os.ftruncate(fd, 0)
    with contextlib.suppress(OSError):  # only for messages; a full disk must not prevent a start
        os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)


def _holds_bytes(path: Path) -> bool:
    """Whether the file exists and is not empty: a first start that was killed may leave an empty database."""
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


def _make_key(directory: Path, writer: connection.Connection) -> None:
    """Write a new host key and signed, empty floors; Problem ledger_damaged when the ledger has events, state_unusable.

    It is made after the database, so a missing key is normal only while nothing was recorded.
    """
    events = writer.execute("SELECT count(*) FROM (SELECT 1 FROM audit LIMIT 1)").get
    if events:
        raise connection.damaged(f"expected {HOST_KEY} beside a ledger with events, found none")
    try:
        make_key(directory)
    except OSError as error:
        raise _unusable(directory, error) from error
    # From now on, recovery and restore take a missing floors file for a removed one.
    floors.write(directory, floors.Floors(), load_key(directory))


def make_key(directory: Path) -> None:
    """Write a new host key (32 random bytes, mode 0600), fsynced; raises OSError."""
    files.replace(directory / HOST_KEY, os.urandom(_SEED_BYTES), mode=0o600)


def load_key(directory: Path) -> Ed25519PrivateKey:
    """The host key kept in `directory`. Problems: state_unusable (unreadable, mode), ledger_damaged (it is no key)."""
    path = directory / HOST_KEY
    try:
        # NONBLOCK: opening a FIFO put in its place must not wait for a writer.
        with files.closing(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)) as fd:
            found = os.fstat(fd)
            # One byte more, so that a file that is too long is noticed.
            seed = os.read(fd, _SEED_BYTES + 1)
    except OSError as error:
        raise _unusable(path.parent, error) from error
    if not stat.S_ISREG(found.st_mode) or len(seed) != _SEED_BYTES:
        raise connection.damaged(f"{HOST_KEY}: expected {_SEED_BYTES} bytes, found {found.st_size}")
    if found.st_mode & 0o077:
        raise Problem(
            "state_unusable",
            f"{HOST_KEY}: expected mode 0600, found {stat.S_IMODE(found.st_mode):04o}: others may have read it",
            f"chmod 600 {path}",
        )
    return Ed25519PrivateKey.from_private_bytes(seed)


def _unusable(directory: Path, error: OSError) -> Problem:
    """The Problem state_unusable for an error of the system at the state directory."""
    return Problem(
        "state_unusable",
        f"the state directory {directory} cannot be used: {error.strerror or error}",
        "it must be a directory that latticed's user may write, with free space",
    )
