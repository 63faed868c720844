from __future__ import annotations

import hashlib
from collections.abc import Iterator

import apsw
import pytest

from latticed.ledger import configs, migrations, plans, records
from latticed.model.errors import Problem


@pytest.fixture
def empty() -> Iterator[apsw.Connection]:
    connection = apsw.Connection(":memory:")
    yield connection
    connection.close()


def tables(connection: apsw.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}


def test_empty_database_is_migrated_to_latest_version(empty: apsw.Connection) -> None:
    """All steps are taken."""
    assert migrations.migrate(empty) == len(migrations.MIGRATIONS) == migrations.version_of(empty)
    assert {"records", "kv", "kv_usage", "audit", "heads", "revocations"} <= tables(empty)


def test_only_missing_migration_steps_are_taken(empty: apsw.Connection) -> None:
    """A ledger of an older version takes the later steps and keeps its rows."""
    first = "CREATE TABLE a (x INTEGER); CREATE TABLE b (x INTEGER)"
    migrations.migrate(empty, steps=(first,))
    empty.execute("INSERT INTO a VALUES (7)")
    assert migrations.migrate(empty, steps=(first, "ALTER TABLE a ADD COLUMN y INTEGER DEFAULT 5")) == 2
    assert empty.execute("SELECT x, y FROM a").fetchall() == [(7, 5)]


def test_failed_migration_step_is_rolled_back_to_previous_version(empty: apsw.Connection) -> None:
    """Each step is one transaction, and all are one for an empty file."""
    first, second, bad = "CREATE TABLE a (x)", "CREATE TABLE b (x)", "CREATE TABLE c (x); CREATE TABLE a (x)"
    with pytest.raises(apsw.SQLError):
        migrations.migrate(empty, steps=(first, second, bad))
    assert (migrations.version_of(empty), tables(empty)) == (0, set())
    migrations.migrate(empty, steps=(first,))
    with pytest.raises(apsw.SQLError):
        migrations.migrate(empty, steps=(first, second, bad))
    assert (migrations.version_of(empty), tables(empty)) == (2, {"a", "b"})


def test_newer_ledger_is_refused(empty: apsw.Connection) -> None:
    """It is not modified; the error names both versions."""
    empty.execute("PRAGMA user_version=99")
    with pytest.raises(Problem, match=r"or lower, found 99") as caught:
        migrations.migrate(empty)
    assert caught.value.code == "ledger_newer"


def test_record_from_before_terms_is_read_without_terms(empty: apsw.Connection) -> None:
    """The lifecycle then takes everything in its stored manifest as accepted."""
    before = migrations.MIGRATIONS.index(migrations._TERMS)
    migrations.migrate(empty, steps=migrations.MIGRATIONS[:before])
    columns = [name for name in records._COLUMNS if name not in {"interpreter", "terms", "unasked"}]
    texts = {"capabilities": '["kv:read"]', "masked": "[]", "hosts": "[]", "permits": "[]", "status": "active"}
    blobs = {"manifest": b"{}", "source": b"plugins/demo"}
    numbers = {"signed", "forgotten", *(name for name in columns if name.endswith("_at"))}
    row = [0 if name in numbers else blobs.get(name, texts.get(name, name)) for name in columns]
    marks = ", ".join("?" * len(columns))
    empty.execute(f"INSERT INTO records ({', '.join(columns)}) VALUES ({marks})", row)  # noqa: S608 - constants
    migrations.migrate(empty)
    (found,) = records.load_all(empty)
    assert (found.terms, found.facts.interpreter, found.facts.capabilities) == (None, "", ("kv:read",))


def test_plan_from_before_reports_is_read_with_its_state(empty: apsw.Connection) -> None:
    """It has no review yet, and nothing of the helper's chain counts as copied."""
    before = migrations.MIGRATIONS.index(migrations._PLAN_REPORTS)
    migrations.migrate(empty, steps=migrations.MIGRATIONS[:before])
    empty.execute("INSERT INTO plans VALUES (3, 'acme.guard', 'ab', 'nft', '{}', 'approved', 1, 2)")
    migrations.migrate(empty)
    (row,) = plans.page(empty)
    assert (row.number, row.state, row.review, row.code, row.reason) == (3, "approved", "", "", "")
    assert plans.steps_read(empty) == (0, "")


BEFORE_TWO_CHAINS = 12
"""The number of the schema with one audit chain and without terms."""


def test_migration_to_configurations_keeps_records_and_has_none(empty: apsw.Connection) -> None:
    """Plugins of before have nothing set; their rows are as they were."""
    before = migrations.MIGRATIONS.index(migrations._CONFIGS)
    migrations.migrate(empty, steps=migrations.MIGRATIONS[:before])
    empty.execute("INSERT INTO kv VALUES ('plugin:acme.demo', 'a', x'01')")
    assert migrations.migrate(empty) == len(migrations.MIGRATIONS)
    assert empty.execute("SELECT bucket, key, value FROM kv").fetchall() == [("plugin:acme.demo", "a", b"\x01")]
    assert configs.get(empty, "acme.demo") is None


def test_released_migration_steps_are_unchanged() -> None:
    """Otherwise two ledgers of the same version could differ."""
    taken = "\0".join(migrations.MIGRATIONS[:BEFORE_TWO_CHAINS])
    found = hashlib.sha256(taken.encode()).hexdigest()
    assert found == "852b232cafc27ac589e40690af77f611ec50ab65343fafdf10b94e400de3bc2c"


def test_migration_from_one_chain_keeps_every_row(empty: apsw.Connection) -> None:
    """One row per table of the old schema is equal, column by column, after the later steps."""
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
