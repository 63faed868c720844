"""Schedules of plugins: since when each is in force, and how its last run ended.

`word` is the schedule as it was accepted (`model.schedule.word`). All times are microseconds since the epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.kit.value import Value

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction

_COLUMNS: Final = "plugin_id, name, word, since, began_at, ended_at, code, reason, runs, failures"


class ScheduleRow(Value, frozen=True, kw_only=True):
    """One schedule. `ended_at` 0 while its run goes on, or when the daemon was killed meanwhile.

    `code` of the last run that ended: empty for a success. `runs` and `failures` are counted since it is in force.
    """

    plugin_id: str
    name: str
    word: str
    since: int
    began_at: int = 0
    ended_at: int = 0
    code: str = ""
    reason: str = ""
    runs: int = 0
    failures: int = 0


def of(conn: RowReader, plugin_id: str) -> dict[str, ScheduleRow]:
    """The rows of one plugin by name."""
    found = conn.execute(f"SELECT {_COLUMNS} FROM schedules WHERE plugin_id = ?", (plugin_id,))  # noqa: S608 - constants
    return {row.name: row for row in map(_row, found)}


def put(tx: Transaction, row: ScheduleRow) -> None:
    """Keep a row in place of the one of that plugin and name."""
    marks = ", ".join("?" * len(_COLUMNS.split(", ")))
    tx.execute(
        f"INSERT OR REPLACE INTO schedules ({_COLUMNS}) VALUES ({marks})",  # noqa: S608 - constants
        tuple(getattr(row, name) for name in _COLUMNS.split(", ")),
    )


def enter(tx: Transaction, plugin_id: str, changed: list[ScheduleRow], names: frozenset[str]) -> None:
    """Keep the rows in `changed`, and remove those of this plugin whose name is not in `names`."""
    for name in of(tx, plugin_id).keys() - names:
        tx.execute("DELETE FROM schedules WHERE plugin_id = ? AND name = ?", (plugin_id, name))
    for row in changed:
        put(tx, row)


def finish(tx: Transaction, row: ScheduleRow) -> None:
    """Store how a run ended. Nothing if its row is gone (forgotten, another publisher), or of another run by now."""
    tx.execute(
        "UPDATE schedules SET ended_at = ?, code = ?, reason = ?, failures = ?"
        " WHERE plugin_id = ? AND name = ? AND word = ? AND began_at = ?",
        (row.ended_at, row.code, row.reason, row.failures, row.plugin_id, row.name, row.word, row.began_at),
    )


def clear(tx: Transaction, plugin_id: str) -> None:
    """Remove all rows of a plugin."""
    tx.execute("DELETE FROM schedules WHERE plugin_id = ?", (plugin_id,))


def _row(values: tuple[object, ...]) -> ScheduleRow:
    return ScheduleRow(**dict(zip(_COLUMNS.split(", "), values, strict=True)))  # type: ignore[arg-type]
