"""Builds a ledger under a temporary name, to replace a damaged or restored one, and renames it once complete.

Nothing is deleted: what was there is renamed. After a crash between the two renames there is a host
key without a ledger, for which a start refuses to make a new one. Everything here blocks; callers hold the lock of the
state directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import apsw

from latticed.kit import files
from latticed.ledger import audit, connection, floors, integrity, migrations, records, revocations, state, versions
from latticed.ledger.chain import Chains
from latticed.ledger.revocations import RevocationRows
from latticed.ledger.rollback import MOST_HEADS
from latticed.ledger.transaction import Transaction
from latticed.model.chain import CALLS, DECISIONS, GENESIS
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.kit.clock import Clock
    from latticed.model.chain import Head, Name
    from latticed.model.lifecycle import Record

PARTS: Final = ("", "-wal", "-shm")
"""What SQLite adds to the name of a database."""

_CHUNK: Final = 1 << 20
"""Bytes that `fingerprint` reads at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredRows:
    """What can still be read of a ledger. It is no evidence: use it only to be stricter.

    `kept`: identities of versions that plugins had before. `last_seq` and `last_hash` are of the last decision,
    `calls_seq` and `calls_hash` of the last host call; 0 and empty when there is none to be read. `heads`: hashes of
    the newest heads of both chains, as many as a start may find in the journal.
    """

    records: tuple[Record, ...] = ()
    kept: frozenset[str] = frozenset()
    revoked: RevocationRows = field(default_factory=RevocationRows)
    last_seq: int = 0
    last_hash: str = ""
    calls_seq: int = 0
    calls_hash: str = ""
    heads: tuple[str, ...] = ()


def diagnosis(directory: Path) -> str:
    """What is wrong with the ledger of `directory` and with its host key, checked wholly; empty when both are sound.

    Problem ledger_newer: it was written by a newer latticed. Problem not_found: there was never one. Problem
    state_unusable: the key cannot be read.
    """
    database, had_key = directory / state.DATABASE, (directory / state.HOST_KEY).exists()
    if not database.exists() and not had_key:
        raise Problem("not_found", f"there is no ledger in {directory}", "start latticed: it makes a new one")
    if not database.exists() or not database.stat().st_size:
        return f"expected {state.DATABASE} beside {state.HOST_KEY}, found none"
    # Before SQLite opens it: it would take a broken WAL for an empty one.
    if fault := integrity.in_wal(database) or _wrong_with_key(directory):
        return fault
    try:
        with contextlib.closing(connection.open_witness(database)) as witness:
            return _wrong_with(witness)
    # A database that SQLite cannot read is a damaged one.
    except apsw.Error as error:
        return str(error)


def read_damaged(database: Path) -> RecoveredRows:
    """What can still be read of a damaged database; empty when nothing can."""
    try:
        with contextlib.closing(connection.open_witness(database)) as witness:
            last_seq, last_hash = _end(witness, DECISIONS)
            calls_seq, calls_hash = _end(witness, CALLS)
            # Each part by itself: an unreadable table must not keep the others from being read.
            return RecoveredRows(
                records=records.readable(witness),
                kept=versions.readable(witness),
                revoked=revocations.readable(witness),
                last_seq=last_seq,
                last_hash=last_hash,
                calls_seq=calls_seq,
                calls_hash=calls_hash,
                heads=(*_heads(witness, DECISIONS), *_heads(witness, CALLS)),
            )
    # Not even the header can be read: then nothing of it counts.
    except (apsw.Error, OSError):
        return RecoveredRows()


def _end(witness: connection.Connection, name: Name) -> tuple[int, str]:
    """The last event of a chain that can be read: its seq and hash."""
    last: Any = None
    # One chain may be readable although the other is not.
    with contextlib.suppress(*connection.DAMAGED):
        last = witness.execute(
            f"SELECT seq, hash FROM {audit.TABLES[name].events} ORDER BY seq DESC LIMIT 1"  # noqa: S608 - constants
        ).get
    return (last[0], last[1]) if last else (0, "")


def _heads(witness: connection.Connection, name: Name) -> list[str]:
    """Hashes of the newest signed heads of a chain that can be read."""
    found: list[str] = []
    with contextlib.suppress(*connection.DAMAGED):
        newest = f"SELECT hash FROM {audit.TABLES[name].heads} ORDER BY id DESC LIMIT ?"  # noqa: S608 - constants
        for (one,) in witness.execute(newest, (MOST_HEADS,)):
            # A damaged row may have anything; what has no hash's length is none.
            if isinstance(one, str) and len(one) == len(GENESIS):
                found.append(one)
    return found


def write(database: Path, key: Ed25519PrivateKey, clock: Clock, change: Callable[[Transaction], None]) -> Head | None:
    """Make `database` if there is none, do `change` in one transaction and sign the chain; on disk when it returns.

    Problems: those of opening it; state_unusable when the disk would not take it.
    """
    writer = connection.open_writer(database)
    try:
        # The caller renames this file to the ledger's name: its contents must be on disk before.
        writer.pragma("synchronous", "full")
        chains = Chains(writer, key=key, now=clock)
        with writer:
            chains.begin()
            change(Transaction(writer, chains))
            chains.flush()
            chains.sign()
        # Everything must be in the one file: only that is renamed, not its WAL.
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    except connection.STORAGE_ERRORS as error:
        raise Problem("state_unusable", f"{database.name} cannot be written: {error}", "free some space") from error
    finally:
        writer.close()
    return chains.decisions.head


def set_aside(directory: Path, label: str) -> tuple[str, ...]:
    """Rename the ledger of `directory` to `ledger.sqlite3.<label>`, WAL and index with it; returns the new names.

    On disk when it returns. Parts that do not exist are skipped, so it can be repeated after a crash.
    """
    moved = []
    # The WAL goes along: SQLite would take one left here for that of the next database (sqlite.org/howtocorrupt.html).
    for part in PARTS:
        name = f"{state.DATABASE}{part}"
        with contextlib.suppress(FileNotFoundError):
            os.rename(directory / name, directory / f"{state.DATABASE}.{label}{part}")
            moved.append(f"{state.DATABASE}.{label}{part}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(directory / integrity.NOTE, directory / f"{integrity.NOTE}.{label}")
    # Before the new ledger gets the name: these renames must be on disk.
    files.sync_directory(directory)
    return tuple(moved)


def put_in_place(directory: Path, database: Path) -> None:
    """Rename `database`, which must be open nowhere, to the ledger's name; on disk when it returns."""
    os.rename(database, directory / state.DATABASE)
    files.sync_directory(directory)


def discard(database: Path) -> None:
    """Remove a temporary database that was not renamed, with its WAL and index; missing files are no error."""
    for part in PARTS:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{database}{part}")


def fingerprint(path: Path) -> str:
    """SHA-256 of a file, in lower-case hex; empty when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError:
        return ""
    return digest.hexdigest()


def trusted_floors(directory: Path, key: Ed25519PrivateKey) -> floors.Floors:
    """The signed floors.

    Problem floors_invalid for a file that `key` did not sign, and for none: it is made with the key.
    """
    if not floors.present(directory):
        raise Problem("floors_invalid", f"expected {floors.FILE} beside {state.HOST_KEY}, found none")
    return floors.read(directory, key.public_key())


def _wrong_with_key(directory: Path) -> str:
    """What is wrong with the host key; Problem state_unusable when that is no damage."""
    if not (directory / state.HOST_KEY).exists():
        return f"expected {state.HOST_KEY} beside {state.DATABASE}, found none"
    try:
        state.load_key(directory)
    except Problem as problem:
        # Anything else (mode, permission) is for the operator to correct: a rebuild would not help.
        if problem.code != "ledger_damaged":
            raise
        return problem.reason
    return ""


def _wrong_with(witness: connection.Connection) -> str:
    """What is wrong with the database; Problem ledger_newer when it is only of a newer version."""
    # The file first: what is read of a damaged one below may raise anything.
    if found := integrity.check(witness, whole=True):
        return found
    version = migrations.version_of(witness)
    if version > len(migrations.MIGRATIONS):
        raise Problem("ledger_newer", "this ledger is not damaged: it was written by a newer latticed", "run that one")
    # An added trigger or view would act within later statements; `quick_check` reports none.
    if version == 0 or _schema(witness) != _expected_schema(version):
        return "expected the tables of latticed and nothing else, found others"
    try:
        records.load_all(witness)
    except Problem as problem:
        return problem.reason
    return ""


def _schema(conn: connection.RowReader) -> set[tuple[Any, ...]]:
    """Tables, indices, and triggers and views if there are any: those would act within our own statements."""
    return set(conn.execute("SELECT type, name, sql FROM sqlite_schema WHERE sql IS NOT NULL"))


def _expected_schema(version: int) -> set[tuple[Any, ...]]:
    """(type, name, sql) of all that a new database of this schema version has, made by the migrations in memory."""
    with contextlib.closing(apsw.Connection(":memory:")) as fresh:
        migrations.migrate(fresh, steps=migrations.MIGRATIONS[:version])
        return _schema(fresh)
