"""Ledgers as earlier versions of latticed left them."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import apsw

from latticed.ledger import migrations


def rewrite(database: Path, steps: int) -> None:
    """Make a closed ledger one that has taken `steps` migrations, with those of its rows that had a place then."""
    old = database.with_name(f"{database.name}.old")
    with contextlib.closing(apsw.Connection(os.fspath(old))) as written:
        migrations.migrate(written, steps=migrations.MIGRATIONS[:steps])
        written.execute("ATTACH ? AS now", (os.fspath(database),))
        for table in _tables(written, "main") & _tables(written, "now"):
            kept = ", ".join(_columns(written, "main", table) & _columns(written, "now", table))
            written.execute(f"INSERT INTO main.{table} ({kept}) SELECT {kept} FROM now.{table}")  # noqa: S608 - ours
    owner = database.stat()
    shutil.copymode(database, old)
    os.chown(old, owner.st_uid, owner.st_gid)
    old.replace(database)
    for part in ("-wal", "-shm"):
        Path(f"{database}{part}").unlink(missing_ok=True)


def _tables(connection: apsw.Connection, schema: str) -> set[str]:
    named = connection.execute(f"SELECT name FROM {schema}.sqlite_schema WHERE type = 'table'")  # noqa: S608 - ours
    return {name for (name,) in named if not name.startswith("sqlite_")}


def _columns(connection: apsw.Connection, schema: str, table: str) -> set[str]:
    return {name for _, name, *_ in connection.execute(f"PRAGMA {schema}.table_info({table})")}
