"""Monitors of plugins with their state and latest results. `spec` is opaque here: host.monitor parses it.

All times are microseconds since the epoch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.kit.value import Value
from latticed.ledger import quota as quotas

if TYPE_CHECKING:
    from latticed.ledger.connection import RowReader
    from latticed.ledger.quota import RowQuota
    from latticed.ledger.transaction import Transaction

_COLUMNS: Final = "key, plugin_id, name, spec, state, against, since, checks, created_at, updated_at"
_RESULT: Final = "number, at, outcome, code, reason, took_us, http_status, expires_at"


class MonitorRow(Value, frozen=True, kw_only=True):
    """One monitor. `state` since `since`, with `against` results in a row that spoke against it; `checks` made so far.

    `key` is never used again: a monitor that is deleted and made again, or gets another target, has another one.
    """

    key: int
    plugin_id: str
    name: str
    spec: str
    state: str
    against: int
    since: int
    checks: int
    created_at: int
    updated_at: int


class Result(Value, frozen=True, kw_only=True):
    """One check, the `number`-th of its monitor (0: not kept yet), made `at`, which took `took_us` microseconds.

    `http_status` and `expires_at` (of a certificate): 0 when unknown.
    """

    number: int = 0
    at: int = 0
    outcome: str
    code: str = ""
    reason: str = ""
    took_us: int = 0
    http_status: int = 0
    expires_at: int = 0


def put(
    tx: Transaction, plugin_id: str, name: str, spec: str, quota: RowQuota, *, now_us: int, anew: bool
) -> MonitorRow:
    """Make a monitor or change its spec, and return its row; Problem quota_exceeded.

    With `anew` its state and results are forgotten and it gets another `key`; only `created_at` stays.
    """
    found = get(tx, plugin_id, name)
    # Before the quota is checked, so that replacing one is possible for a plugin that has as many as it may.
    if found is not None and anew:
        delete(tx, plugin_id, name)
    if found is None or anew:
        quotas.check_one_more(tx, "monitors", plugin_id, quota, what="monitors{whose}")
        created = now_us if found is None else found.created_at
        tx.execute(
            "INSERT INTO monitors (plugin_id, name, spec, since, created_at, updated_at) VALUES (?,?,?,?,?,?)",
            (plugin_id, name, spec, now_us, created, now_us),
        )
    else:
        tx.execute("UPDATE monitors SET spec = ?, updated_at = ? WHERE key = ?", (spec, now_us, found.key))
    row = get(tx, plugin_id, name)
    assert row is not None  # noqa: S101 - put in just now
    return row


def keep(
    tx: Transaction, key: int, result: Result, *, state: str, against: int, since: int, most: int
) -> Result | None:
    """Add a result, of which the newest `most` are kept, and set the monitor's state.

    Returns the result with its number; None, and nothing is kept, when the monitor is gone (removed during the check).
    """
    tx.execute(
        "UPDATE monitors SET checks = checks + 1, state = ?, against = ?, since = ? WHERE key = ?",
        (state, against, since, key),
    )
    if not tx.changes():
        return None
    # The count that was increased above is the number of this result.
    number = int(tx.execute("SELECT checks FROM monitors WHERE key = ?", (key,)).get)
    rest = (result.at, result.outcome, result.code, result.reason, result.took_us, result.http_status)
    tx.execute("INSERT INTO monitor_results VALUES (?,?,?,?,?,?,?,?,?)", (key, number, *rest, result.expires_at))
    # Numbers have no gaps, so the newest `most` are known without counting.
    tx.execute("DELETE FROM monitor_results WHERE monitor = ? AND number <= ?", (key, number - most))
    return Result(number=number, **{name: getattr(result, name) for name in _RESULT.split(", ")[1:]})


def delete(tx: Transaction, plugin_id: str, name: str) -> bool:
    """Remove a monitor and its results; False when there was none."""
    found = get(tx, plugin_id, name)
    if found is None:
        return False
    tx.execute("DELETE FROM monitor_results WHERE monitor = ?", (found.key,))
    tx.execute("DELETE FROM monitors WHERE key = ?", (found.key,))
    return True


def clear(tx: Transaction, plugin_id: str) -> int:
    """Remove all monitors of one plugin; returns how many there were."""
    mine = "SELECT key FROM monitors WHERE plugin_id = ?"
    tx.execute(f"DELETE FROM monitor_results WHERE monitor IN ({mine})", (plugin_id,))  # noqa: S608 - constants
    tx.execute("DELETE FROM monitors WHERE plugin_id = ?", (plugin_id,))
    return tx.changes()


def get(conn: RowReader, plugin_id: str, name: str) -> MonitorRow | None:
    """One monitor of the plugin, or None."""
    statement = f"SELECT {_COLUMNS} FROM monitors WHERE plugin_id = ? AND name = ?"  # noqa: S608 - constants
    row = conn.execute(statement, (plugin_id, name)).fetchone()
    return None if row is None else _row(row)


def load_all(conn: RowReader) -> list[tuple[MonitorRow, Result | None]]:
    """Every monitor with its latest result, by plugin and name."""
    # The newest result of a monitor is the one whose number is `checks`; without any the joined columns are NULL.
    columns = ", ".join(f"monitors.{name}" for name in _COLUMNS.split(", "))
    statement = (
        f"SELECT {columns}, {_RESULT} FROM monitors"  # noqa: S608 - constants
        " LEFT JOIN monitor_results ON monitor = key AND number = checks ORDER BY plugin_id, name"
    )
    width = len(_COLUMNS.split(", "))
    return [(_row(row[:width]), _result(row[width:])) for row in conn.execute(statement)]


def results(conn: RowReader, key: int, *, after: int = 0, limit: int = 500) -> list[Result]:
    """The newest `limit` results with a number beyond `after`, oldest first."""
    statement = f"SELECT {_RESULT} FROM monitor_results WHERE monitor = ? AND number > ? ORDER BY number DESC LIMIT ?"  # noqa: S608
    newest_first = [_result(row) for row in conn.execute(statement, (key, after, limit))]
    return [one for one in reversed(newest_first) if one is not None]


def _row(row: tuple[Any, ...]) -> MonitorRow:
    return MonitorRow(**dict(zip(_COLUMNS.split(", "), row, strict=True)))


def _result(row: tuple[Any, ...]) -> Result | None:
    """The result in a joined row; None where the monitor has none."""
    return None if row[0] is None else Result(**dict(zip(_RESULT.split(", "), row, strict=True)))
