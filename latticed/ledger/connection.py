"""Opens SQLite with the ledger's settings, and distinguishes storage errors from errors of a caller."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final, Protocol

import apsw

from latticed.ledger import integrity, migrations
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from pathlib import Path

Connection = apsw.Connection
"""What other packages name instead of apsw's class."""

BUSY_MS: Final = 2_000
"""How long a statement waits for a lock of another connection, in milliseconds."""
OWN: Final = "unix-excl"
"""The VFS of the daemon's connections: the WAL index is in heap memory (sqlite.org/vfs.html), not in a mapped file.

On a disk that does not take writes, a page fault in that mapping would block even readers, and so the event loop. The
price: no other process can open the database meanwhile.
"""
CHECKPOINT_PAGES: Final = 4_000
"""Pages (of 4 KiB, SQLite's default) in the write-ahead log before it is folded into the database."""
RECOVER_HINT: Final = "keep a copy of the state directory and run: latticed --recover"

STORAGE_ERRORS: Final = (
    apsw.FullError,
    apsw.IOError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.ReadOnlyError,
    apsw.CantOpenError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.NoMemError,
    apsw.ProtocolError,
    apsw.PermissionsError,
    apsw.InterruptError,
)
"""Errors of the disk, not of the statement; SQLite may already have rolled the whole transaction back."""

DAMAGE: Final = (apsw.CorruptError, apsw.NotADBError)
"""Errors by which SQLite says that the file itself is damaged, or no database."""
DAMAGED: Final = (*DAMAGE, apsw.SQLError, apsw.IOError, apsw.MismatchError, UnicodeDecodeError)
"""Errors when reading a damaged database: a missing table, an unreadable page."""


class RowReader(Protocol):
    """What the row functions need for reading: a Connection or a Transaction.

    Of the cursor they use `fetchone`, `fetchall` and apsw's `get`: the value of the only row and column, a tuple for
    the only row, None for none.
    """

    def execute(self, statements: str, bindings: tuple[Any, ...] = ..., /) -> apsw.Cursor: ...


def unavailable(error: BaseException) -> Problem:
    """The Problem ledger_unavailable for a write that failed with the storage error `error`."""
    return Problem(
        "ledger_unavailable",
        f"the ledger cannot be written: {error}",
        "free some space or mend the disk below the state directory; the next write tries again",
    )


def damaged(detail: str) -> Problem:
    """The Problem of a damaged ledger: it may have lost what was written."""
    return Problem("ledger_damaged", detail, RECOVER_HINT)


def open_writer(path: Path) -> Connection:
    """The write connection: checked (`integrity.check` says how far), migrated, in WAL mode.

    Problems: ledger_damaged, ledger_newer, state_unusable. A file that is refused is left as it was found, WAL
    included.
    """
    # Before SQLite opens it: it would take a broken WAL for an empty one.
    if fault := integrity.in_wal(path):
        raise damaged(f"expected a sound database, found: {fault}")
    try:
        # Made here so that the mode does not depend on the umask; SQLite gives the -wal the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        connection = Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READWRITE, vfs=OWN)
    # Not opened at all: nothing is known of its contents, so this is not reported as damage.
    except (OSError, apsw.Error) as error:
        raise _unusable(path, error) from error
    try:
        _prepare(connection)
    except BaseException as error:
        # Whatever went wrong: closing as usual would checkpoint into a file that is being refused.
        _leave(connection)
        if isinstance(error, DAMAGE):
            raise damaged(f"expected a sound database, found: {error}") from error
        if isinstance(error, apsw.Error):
            raise _unusable(path, error) from error
        raise
    return connection


def open_witness(path: Path) -> Connection:
    """A read-only connection to a database that is open nowhere else, and that may be damaged; raises apsw.Error.

    Closing it leaves the WAL as it is (read-only connections do not checkpoint), as the only good rows may be there.
    """
    connection = Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READONLY)
    connection.set_busy_timeout(BUSY_MS)
    connection.pragma("trusted_schema", False)
    return connection


def open_reader(path: Path) -> Connection:
    """A read-only connection to a ledger that a writer of this process keeps open; raises apsw.Error."""
    connection = Connection(os.fspath(path), flags=apsw.SQLITE_OPEN_READONLY, vfs=OWN)
    connection.set_busy_timeout(BUSY_MS)
    connection.pragma("trusted_schema", False)
    return connection


def _prepare(connection: Connection) -> None:
    """Set the connection up, then check the database, then migrate it; Problems state_unusable, ledger_damaged,
    ledger_newer.
    """
    connection.set_busy_timeout(BUSY_MS)
    # SQLite returns the mode in force instead of failing where it cannot have a WAL.
    mode = connection.pragma("journal_mode", "wal")
    if mode != "wal":
        raise Problem("state_unusable", f"expected a file system that can hold a WAL, found journal mode {mode}")
    # In WAL mode a commit then survives kill -9, but a power cut may undo it; `Committer` sets "full" where needed.
    connection.pragma("synchronous", "normal")
    connection.pragma("foreign_keys", True)
    # The schema comes from a file: its views and triggers may call no functions with side effects.
    connection.pragma("trusted_schema", False)
    # In bytes: after a large transaction or a long snapshot the WAL file would keep its greatest size.
    connection.pragma("journal_size_limit", 64 << 20)
    # In pages: four times SQLite's own. Each time has two fsyncs, for which all who have something recorded wait.
    connection.wal_autocheckpoint(CHECKPOINT_PAGES)
    # Before the migrations: they must not write into a damaged file.
    found = integrity.check(connection)
    if found:
        raise damaged(f"expected a sound database, found: {found}")
    migrations.migrate(connection)


def _leave(connection: Connection) -> None:
    """Close without a checkpoint, which would write into the damaged file."""
    # If even this fails there is nothing left to do but close.
    with contextlib.suppress(apsw.Error):
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.close()


def _unusable(path: Path, error: Exception) -> Problem:
    """The Problem for a database that cannot be opened, though nothing says that it is damaged."""
    return Problem(
        "state_unusable",
        f"{path} cannot be opened: {error}",
        "the state directory must be on a writable file system with free space and belong to latticed's user",
    )
