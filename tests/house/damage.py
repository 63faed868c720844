"""Ways a ledger's files can be damaged, each a function of the state directory of a stopped daemon."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

PAGE = 4096


def header(state: Path) -> None:
    """The first bytes of the database are overwritten."""
    _overwrite(state / "ledger.sqlite3", 0, b"not a database at all")


def page_in_the_middle(state: Path) -> None:
    """One page has noise; a table or an index is damaged with it."""
    database = state / "ledger.sqlite3"
    _overwrite(database, database.stat().st_size // PAGE // 2 * PAGE, os.urandom(PAGE))


def truncated(state: Path) -> None:
    """The second half is missing."""
    database = state / "ledger.sqlite3"
    os.truncate(database, database.stat().st_size // PAGE // 2 * PAGE)


def zero_bytes(state: Path) -> None:
    """The file is empty."""
    os.truncate(state / "ledger.sqlite3", 0)


def gone(state: Path) -> None:
    """The file is missing."""
    (state / "ledger.sqlite3").unlink()


def zeros(state: Path) -> None:
    """Make the database as long as before and all zeros, which is what some power cuts leave."""
    database = state / "ledger.sqlite3"
    size = database.stat().st_size
    os.truncate(database, 0)
    os.truncate(database, size)


def wal_garbage(state: Path) -> None:
    """The WAL has no valid header: SQLite alone would take it for an empty one."""
    (state / "ledger.sqlite3-wal").write_bytes(os.urandom(3 * PAGE))


def foreign_row(state: Path) -> None:
    """SQLite finds nothing wrong, but a record has values that latticed never writes."""
    _execute(state, "UPDATE records SET status = 'king'")


def trigger(state: Path) -> None:
    """The file is intact, but has a trigger, which would act within latticed's own statements."""
    _execute(state, "CREATE TRIGGER t AFTER INSERT ON audit BEGIN DELETE FROM revocations; END")


def key_of_another_kind(state: Path) -> None:
    """The host key file is not a host key."""
    (state / "host.key").write_bytes(b"short")


AT_ONCE: dict[str, Callable[[Path], None]] = {
    "header": header,
    "page in the middle": page_in_the_middle,
    "truncated": truncated,
    "zero bytes": zero_bytes,
    "gone": gone,
    "zeros": zeros,
    "wal garbage": wal_garbage,
    "foreign row": foreign_row,
}
"""What every start refuses."""


def newer(state: Path) -> None:
    """Make the ledger one of a later version of latticed, which is not damaged."""
    _execute(state, "PRAGMA user_version = 99")


def _overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _execute(state: Path, statement: str) -> None:
    owner = state.stat()
    connection = sqlite3.connect(state / "ledger.sqlite3", isolation_level=None)
    try:
        connection.execute(statement)
    finally:
        connection.close()
    for path in state.glob("ledger.sqlite3*"):
        os.chown(path, owner.st_uid, owner.st_gid)
