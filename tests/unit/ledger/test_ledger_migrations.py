from __future__ import annotations

import hashlib
from collections.abc import Iterator

import apsw
import pytest

from latticed.ledger import migrations, records
from latticed.model.errors import Problem


@pytest.fixture
def empty() -> Iterator[apsw.Connection]:
    connection = apsw.Connection(":memory:")
    yield connection
    connection.close()


def tables(connection: apsw.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def test_an_empty_database_gets_every_table_and_the_latest_number(empty: apsw.Connection) -> None:
    """From nothing, all steps are taken."""
    assert migrations.migrate(empty) == len(migrations.MIGRATIONS) == migrations.version_of(empty)
    assert {"records", "kv", "kv_usage", "audit", "heads", "revocations"} <= tables(empty)


def test_only_missing_steps_are_taken(empty: apsw.Connection) -> None:
    """A ledger of an older version takes the later steps and keeps its rows."""
    first = "CREATE TABLE a (x INTEGER); CREATE TABLE b (x INTEGER)"
    migrations.migrate(empty, steps=(first,))
    empty.execute("INSERT INTO a VALUES (7)")
    assert migrations.migrate(empty, steps=(first, "ALTER TABLE a ADD COLUMN y INTEGER DEFAULT 5")) == 2
    assert empty.execute("SELECT x, y FROM a").fetchall() == [(7, 5)]


def test_a_step_that_fails_leaves_the_version_before_it(empty: apsw.Connection) -> None:
    """Each step is one transaction: half a step is never kept."""
    with pytest.raises(apsw.SQLError):
        migrations.migrate(empty, steps=("CREATE TABLE a (x)", "CREATE TABLE b (x); CREATE TABLE a (x)"))
    assert migrations.version_of(empty) == 1
    assert tables(empty) == {"a"}


def test_a_newer_ledger_is_refused(empty: apsw.Connection) -> None:
    """An unknown version is not touched: the error names both numbers."""
    empty.execute("PRAGMA user_version=99")
    with pytest.raises(Problem, match=r"or lower, found 99") as caught:
        migrations.migrate(empty)
    assert caught.value.code == "ledger_newer"


def test_a_record_from_before_there_were_terms_is_read_without_any(empty: apsw.Connection) -> None:
    """The lifecycle then takes what its stored manifest has for accepted."""
    before = migrations.MIGRATIONS.index(migrations._TERMS)
    migrations.migrate(empty, steps=migrations.MIGRATIONS[:before])
    columns = [name for name in records._COLUMNS if name not in {"interpreter", "terms"}]
    texts = {"capabilities": '["kv:read"]', "masked": "[]", "hosts": "[]", "permits": "[]", "status": "active"}
    blobs = {"manifest": b"{}", "source": b"plugins/demo"}
    numbers = {"signed", "forgotten", *(name for name in columns if name.endswith("_at"))}
    row = [0 if name in numbers else blobs.get(name, texts.get(name, name)) for name in columns]
    marks = ", ".join("?" * len(columns))
    empty.execute(f"INSERT INTO records ({', '.join(columns)}) VALUES ({marks})", row)  # noqa: S608 - constants
    migrations.migrate(empty)
    (found,) = records.load_all(empty)
    assert (found.terms, found.facts.interpreter, found.facts.capabilities) == (None, "", ("kv:read",))


BEFORE_TWO_CHAINS = 12
"""The number of the schema with one audit chain and without terms."""


def test_steps_that_ledgers_have_taken_are_not_edited() -> None:
    """Else a ledger of before and a new one would differ under the same number."""
    taken = "\0".join(migrations.MIGRATIONS[:BEFORE_TWO_CHAINS])
    found = hashlib.sha256(taken.encode()).hexdigest()
    assert found == "852b232cafc27ac589e40690af77f611ec50ab65343fafdf10b94e400de3bc2c"


def test_every_row_of_the_schema_with_one_chain_is_kept(empty: apsw.Connection) -> None:
    """A row in each table of before is the same after the later steps, column by column."""
    migrations.migrate(empty, steps=migrations.MIGRATIONS[:BEFORE_TWO_CHAINS])
    columns = {table: _columns(empty, table) for table in tables(empty) if not table.startswith("sqlite_")}
    values = {"INTEGER": 1, "TEXT": "plugin:acme.demo@old", "BLOB": b"x"}
    before = {}
    for table in sorted(columns, key=lambda name: name == "monitor_results"):  # its rows refer to those of monitors
        before[table] = tuple(values[kind] for kind in columns[table].values())
        marks = ", ".join("?" * len(before[table]))
        empty.execute(f"INSERT INTO {table} VALUES ({marks})", before[table])  # noqa: S608 - constants
    migrations.migrate(empty)
    assert len(before) == 20
    for table, row in before.items():
        names = ", ".join(columns[table])
        assert empty.execute(f"SELECT {names} FROM {table}").fetchall() == [row]  # noqa: S608 - constants
    assert empty.execute("SELECT * FROM audit_horizons").fetchall() == [("acme.demo", 1, 0)]


def _columns(connection: apsw.Connection, table: str) -> dict[str, str]:
    return {name: kind for _, name, kind, *_ in connection.execute(f"PRAGMA table_info({table})")}
