"""The controller's database: one SQLite file, one thread that has it open, one transaction for each change.

    with-block of `opened(directory)`; `await database.write(change, durable=True)`; `await database.read(question)`

`change` and `question` are functions that get the connection and run on that thread. Durable: on disk (fsync) before
`write` returns. It is this process's alone: a second one on the same directory is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

from latticed.kit import files
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

Connection = sqlite3.Connection
"""What other modules name instead of sqlite3's class."""

FILE: Final = "controller.db"
LOCK: Final = "lock"
_BUSY_S: Final = 2.0
_WAL_BYTES: Final = 64 << 20
_PAGES: Final = 1_000

T = TypeVar("T")

_FIRST: Final = """
CREATE TABLE documents (
    sha256 TEXT PRIMARY KEY, kind TEXT NOT NULL, node TEXT NOT NULL, envelope BLOB NOT NULL, received INTEGER NOT NULL
) STRICT;
CREATE INDEX documents_of_node ON documents (node) WHERE node <> '';
CREATE TABLE nodes (
    name TEXT PRIMARY KEY, key TEXT NOT NULL, labels TEXT NOT NULL, serial INTEGER NOT NULL, since INTEGER NOT NULL
) STRICT;
CREATE TABLE tokens (
    token TEXT PRIMARY KEY, node TEXT NOT NULL, key TEXT NOT NULL, labels TEXT NOT NULL, expires INTEGER NOT NULL,
    request TEXT NOT NULL
) STRICT;
CREATE TABLE floors (
    node TEXT PRIMARY KEY, epoch INTEGER NOT NULL, generation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE assignments (
    node TEXT PRIMARY KEY, epoch INTEGER NOT NULL, generation INTEGER NOT NULL, intent TEXT NOT NULL,
    key TEXT NOT NULL, signer TEXT NOT NULL,
    expires INTEGER NOT NULL, made INTEGER NOT NULL, envelope BLOB NOT NULL
) STRICT;
CREATE TABLE sources (intent TEXT PRIMARY KEY, bundles BLOB NOT NULL) STRICT;
CREATE TABLE rollouts (name TEXT PRIMARY KEY, step INTEGER NOT NULL, record BLOB NOT NULL) STRICT;
CREATE TABLE statuses (node TEXT PRIMARY KEY, seen BLOB NOT NULL) STRICT;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, node TEXT NOT NULL, key TEXT NOT NULL, number INTEGER NOT NULL,
    at INTEGER NOT NULL, seq INTEGER NOT NULL, actor TEXT NOT NULL, decision TEXT NOT NULL, action TEXT NOT NULL,
    target TEXT NOT NULL, code TEXT NOT NULL, reason TEXT NOT NULL,
    hash TEXT NOT NULL, prev TEXT NOT NULL, received INTEGER NOT NULL, envelope BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX events_of_node ON events (node, key, number, hash);
CREATE TABLE heads (
    node TEXT PRIMARY KEY, key TEXT NOT NULL, number INTEGER NOT NULL, hash TEXT NOT NULL, missed INTEGER NOT NULL
) STRICT;
CREATE TABLE bundles (
    sha256 TEXT PRIMARY KEY, plugin TEXT NOT NULL, version TEXT NOT NULL, identity TEXT NOT NULL,
    publisher TEXT NOT NULL, size INTEGER NOT NULL, received INTEGER NOT NULL
) STRICT;
CREATE TABLE alarms (
    code TEXT NOT NULL, node TEXT NOT NULL, reason TEXT NOT NULL, hint TEXT NOT NULL, since INTEGER NOT NULL,
    PRIMARY KEY (code, node)
) STRICT, WITHOUT ROWID;
CREATE TABLE positions (stream TEXT PRIMARY KEY, created TEXT NOT NULL, last INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
"""Times are whole seconds since 1970. `floors`: the last epoch and generation reserved for a node, or heard of."""
_FLOORS_OF_KEYS: Final = """
CREATE TABLE floors_of_keys (
    node TEXT NOT NULL, key TEXT NOT NULL, epoch INTEGER NOT NULL, generation INTEGER NOT NULL, PRIMARY KEY (node, key)
) STRICT, WITHOUT ROWID;
INSERT INTO floors_of_keys SELECT name, key, epoch, generation FROM nodes JOIN floors ON node = name;
INSERT OR IGNORE INTO floors_of_keys SELECT node, key, epoch, generation FROM assignments;
DROP TABLE floors;
ALTER TABLE floors_of_keys RENAME TO floors;
"""
"""A host that has another one's name begins with generations of its own."""
_REVOKED: Final = """
CREATE TABLE revoked (key TEXT PRIMARY KEY, since INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""
"""The list that said so first need not be kept."""
MIGRATIONS: Final = (_FIRST, _FLOORS_OF_KEYS, _REVOKED)
"""In order; only ever appended to. SQLite's user_version is how many of these a database has taken."""


class ControllerDatabase:
    """See the module. Problem store_unavailable for what the disk does not take: nothing of that change is kept."""

    def __init__(self, directory: Path, connection: Connection, thread: ThreadPoolExecutor, *, fresh: bool) -> None:
        self.directory = directory
        self.fresh = fresh
        """Whether there was none before."""
        self._connection = connection
        self._thread = thread
        self._synchronous = ""

    async def write(self, change: Callable[[Connection], T], *, durable: bool = False) -> T:
        """What `change` returns, once it is committed."""
        return await self._on_thread(lambda: self._committed(change, durable=durable))

    async def read(self, question: Callable[[Connection], T]) -> T:
        """What `question` returns."""
        return await self._on_thread(lambda: self._asked(question))

    async def backup(self, target: Path) -> tuple[int, str]:
        """Write a verified copy to the new file `target`: its size in bytes and its SHA-256. Problem exists,
        store_unavailable; no file is left then.
        """
        return await self._on_thread(lambda: self._copied(target))

    async def _on_thread(self, work: Callable[[], T]) -> T:
        running = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            # Whoever was cancelled must know whether it was committed: it never goes on behind his back.
            with contextlib.suppress(Problem):
                await running
            raise

    def _asked(self, question: Callable[[Connection], T]) -> T:
        try:
            return question(self._connection)
        except sqlite3.Error as error:
            raise unavailable(error) from error

    def _committed(self, change: Callable[[Connection], T], *, durable: bool) -> T:
        connection = self._connection
        try:
            self._synchronise("FULL" if durable else "NORMAL")
            connection.execute("BEGIN IMMEDIATE")
            found = change(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            # On some errors (disk full) SQLite has rolled back itself.
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise unavailable(error) from error
            raise
        return found

    def _synchronise(self, wanted: str) -> None:
        if wanted != self._synchronous:
            self._connection.execute(f"PRAGMA synchronous={wanted}")
            self._synchronous = wanted

    def _copied(self, target: Path) -> tuple[int, str]:
        try:
            # Made here for its mode and for EXCL: SQLite would open an existing file, and follow a link.
            os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        except FileExistsError as error:
            raise Problem("exists", f"expected no file at {target}, found one", "choose another name") from error
        except OSError as error:
            raise unavailable(error) from error
        try:
            copy = sqlite3.connect(target, isolation_level=None)
            try:
                self._connection.backup(copy, pages=_PAGES)
                copy.execute("PRAGMA journal_mode=DELETE")
                if found := _fault(copy):
                    hint = "latticed-controller --rebuild begins an empty database with what the fleet has"
                    raise Problem("store_damaged", f"expected a sound copy, found: {found}", hint)
            finally:
                copy.close()
            with files.closing(os.open(target, os.O_RDONLY | os.O_CLOEXEC)) as fd:
                os.fsync(fd)
                digest = _digest(fd)
            files.sync_directory(target.parent)
            return target.stat().st_size, digest
        except BaseException as error:
            target.unlink(missing_ok=True)
            if isinstance(error, sqlite3.Error | OSError):
                raise unavailable(error) from error
            raise


@contextlib.asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[ControllerDatabase]:
    """The database in this directory, made and migrated when it has to be. Problem state_unusable, state_in_use,
    store_damaged, store_newer.
    """
    thread = ThreadPoolExecutor(1, "controller database")
    loop = asyncio.get_running_loop()
    lock = await asyncio.to_thread(_locked, directory)
    try:
        fresh = not (directory / FILE).exists()
        connection = await loop.run_in_executor(thread, lambda: _open(directory / FILE))
        try:
            yield ControllerDatabase(directory, connection, thread, fresh=fresh)
        finally:
            await loop.run_in_executor(thread, connection.close)
    finally:
        thread.shutdown(wait=False)
        os.close(lock)


@contextlib.contextmanager
def alone(directory: Path) -> Iterator[None]:
    """While no controller runs on this state. Problem state_unusable, state_in_use. Blocks."""
    lock = _locked(directory)
    try:
        yield
    finally:
        os.close(lock)


async def set_aside(directory: Path) -> Path | None:
    """Rename the database, so that the next start begins an empty one; the new path, None when there is none. Problem
    state_unusable, state_in_use.
    """
    lock = await asyncio.to_thread(_locked, directory)
    try:
        target = directory / f"{FILE}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        for end in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{directory / FILE}{end}", f"{target}{end}")
        files.sync_directory(directory)
        return target if target.exists() else None
    except OSError as error:
        raise _unusable(directory, error) from error
    finally:
        os.close(lock)


def unavailable(error: BaseException) -> Problem:
    """The Problem of a disk that does not take what was to be written."""
    return Problem(
        "store_unavailable",
        f"the controller's database cannot be written: {error}",
        "free some space or mend the disk below its state directory; it is tried again",
    )


def _locked(directory: Path) -> int:
    """A descriptor that holds the directory's lock."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = directory.stat()
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            hint = f"chown it to the controller's user and chmod 0700 {directory}"
            raise Problem("state_unusable", f"expected {directory} to be this user's alone", hint)
        fd = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        hint = "stop it first, or give this one a state directory of its own"
        raise Problem("state_in_use", f"another latticed-controller holds {directory}", hint) from error
    return fd


def _open(path: Path) -> Connection:
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise _unusable(path, error) from error
    try:
        # Alone with it: the WAL's index is then in memory, and no other process can write behind our back.
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            reason = f"expected a file system that can hold a WAL, found journal mode {mode}"
            raise Problem("state_unusable", reason, "state_dir in the settings names a directory on a local disk")
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")
        if found := _fault(connection):
            raise _damaged(found)
        _migrate(connection)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            raise _damaged(str(error)) from error
        if isinstance(error, sqlite3.Error):
            raise _unusable(path, error) from error
        raise
    return connection


def _migrate(connection: Connection) -> None:
    """Take the steps that are missing, each in a transaction of its own. Problem store_newer."""
    found = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if found > len(MIGRATIONS):
        raise Problem(
            "store_newer",
            f"expected a database of version {len(MIGRATIONS)} or lower, found {found}",
            "it was written by a newer latticed-controller: run that one, or restore a backup made before the upgrade",
        )
    for number, script in enumerate(MIGRATIONS[found:], start=found + 1):
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nPRAGMA user_version={number};\nCOMMIT;")


def _fault(connection: Connection) -> str:
    """What is wrong with a database, in SQLite's words; empty when nothing is."""
    try:
        first = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if first is None or first[0] == "ok" else " ".join(str(first[0]).split())[:300]


def _digest(fd: int) -> str:
    digest, place = hashlib.sha256(), 0
    while data := os.pread(fd, 1 << 20, place):
        digest.update(data)
        place += len(data)
    return digest.hexdigest()


def _damaged(found: str) -> Problem:
    return Problem(
        "store_damaged",
        f"expected a sound database, found: {found}",
        "restore a backup, or have it made anew from what the fleet has: latticed-controller --rebuild",
    )


def _unusable(path: Path, error: Exception) -> Problem:
    return Problem(
        "state_unusable",
        f"{path} cannot be used: {error}",
        "the state directory must be on a writable file system with free space and belong to the controller's user",
    )
