"""The queue of notifications as time and operators see it: ageing, giving up, listing, pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from latticed.ledger import notifications
from latticed.ledger.notifications import COLUMNS, Item, Status

if TYPE_CHECKING:
    from collections.abc import Collection

    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction

FINISHED: Final[tuple[Status, ...]] = ("done", "failed")
"""Statuses of items that ended; these can be removed without losing a message."""


def age(tx: Transaction, seconds: int) -> None:
    """Add `seconds` (of the monotonic clock) to the waiting time of everything queued or being delivered."""
    tx.execute("UPDATE notifications SET waited_s = waited_s + ? WHERE status IN ('queued', 'delivering')", (seconds,))


def give_up(tx: Transaction, limit_s: int, *, now_us: int) -> dict[str, int]:
    """Fail queued items that have waited `limit_s` or longer; returns how many by plugin id.

    What is being delivered is left: its attempt decides.
    """
    condition = "status = 'queued' AND waited_s >= ?"
    counted = f"SELECT plugin_id, count(*) FROM notifications WHERE {condition} GROUP BY plugin_id"  # noqa: S608
    found: list[Any] = tx.execute(counted, (limit_s,)).fetchall()
    # Counted before the update, after which the condition would match nothing.
    given_up: dict[str, int] = dict(found)
    if given_up:
        tx.execute(
            f"UPDATE notifications SET status = 'failed', code = 'gave_up', updated_at = ? WHERE {condition}",  # noqa: S608
            (now_us, limit_s),
        )
        _recount(tx)
    return given_up


def retain(tx: Transaction, *, before_us: int, most: int, room: int = 0) -> int:
    """Remove items that ended before `before_us`, and where more than `most` have ended all but `most - room`: of the
    sender with the most, its oldest first; returns how many.
    """
    tx.execute("DELETE FROM notifications WHERE status IN ('done', 'failed') AND updated_at < ?", (before_us,))
    removed = tx.changes()
    over = tx.execute("SELECT count(*) FROM notifications WHERE status IN ('done', 'failed')").get - most
    if over <= 0:
        return removed
    tx.execute(
        "DELETE FROM notifications WHERE seq IN (SELECT seq FROM (SELECT seq, updated_at,"
        # `place` is 1 for the newest of its sender, so that one with many pushes out its own alone.
        " row_number() OVER (PARTITION BY plugin_id ORDER BY updated_at DESC, seq DESC) AS place"
        " FROM notifications WHERE status IN ('done', 'failed')) ORDER BY place DESC, updated_at, seq LIMIT ?)",
        (over + room,),
    )
    return removed + tx.changes()


def prune(
    tx: Transaction, *, statuses: Collection[Status] = FINISHED, plugin_id: str | None = None, before_us: int = 0
) -> int:
    """Remove rows of these statuses, of one plugin or all, last changed before `before_us` (0: whenever).

    Queued items that are removed are never delivered. Returns how many were removed.
    """
    bounds, values = _chosen(statuses, plugin_id)
    if before_us:
        bounds, values = f"{bounds} AND updated_at < ?", (*values, before_us)
    tx.execute(f"DELETE FROM notifications WHERE {bounds}", values)  # noqa: S608 - constants
    removed = tx.changes()
    _recount(tx)
    return removed


def forget_words(tx: Transaction, plugin_id: str) -> None:
    """No later message of this id is a duplicate of one that is kept: it may be another publisher's."""
    tx.execute("UPDATE notifications SET dedupe = '' WHERE plugin_id = ? AND dedupe <> ''", (plugin_id,))


def page(
    conn: RowReader,
    *,
    statuses: Collection[Status] = (),
    plugin_id: str | None = None,
    before_seq: int = 0,
    limit: int = 100,
) -> list[Item]:
    """At most `limit` items, newest first; `before_seq` (0: from the newest on) goes on where the last page ended."""
    bounds, values = _chosen(statuses, plugin_id)
    if before_seq:
        bounds, values = f"{bounds} AND seq < ?", (*values, before_seq)
    statement = f"SELECT {COLUMNS} FROM notifications WHERE {bounds} ORDER BY seq DESC LIMIT ?"  # noqa: S608
    return [notifications.of_row(row) for row in conn.execute(statement, (*values, limit))]


def clear(tx: Transaction, plugin_id: str) -> None:
    """Remove all rows of one plugin, queued ones and its usage included."""
    tx.execute("DELETE FROM notifications WHERE plugin_id = ?", (plugin_id,))
    tx.execute("DELETE FROM notification_usage WHERE plugin_id = ?", (plugin_id,))


def count_of(conn: RowReader, plugin_id: str) -> int:
    """Number of rows of one plugin, of any status."""
    return int(conn.execute("SELECT count(*) FROM notifications WHERE plugin_id = ?", (plugin_id,)).get)


def counts(conn: RowReader) -> dict[Status, int]:
    """Number of rows by status."""
    found: dict[Status, int] = {"queued": 0, "delivering": 0, "done": 0, "failed": 0}
    found.update(dict(conn.execute("SELECT status, count(*) FROM notifications GROUP BY status")))
    return found


def _chosen(statuses: Collection[Status], plugin_id: str | None) -> tuple[str, tuple[Any, ...]]:
    """The condition and its values that select rows by status and plugin."""
    # "1" is true for every row, so that conditions can be appended with AND.
    bounds, values = "1", tuple[Any, ...]()
    if statuses:
        bounds, values = f"status IN ({', '.join('?' * len(statuses))})", tuple(sorted(statuses))
    if plugin_id is not None:
        bounds, values = f"{bounds} AND plugin_id = ?", (*values, plugin_id)
    return bounds, values


def _recount(tx: Transaction) -> None:
    """Recompute `notification_usage` after a change of many rows, keeping the order of turns."""
    # Rows are kept, not deleted: `served` is in them. Plugins without open items stay at 0.
    tx.execute("UPDATE notification_usage SET items = 0, bytes = 0")
    tx.execute(
        "INSERT INTO notification_usage (plugin_id, items, bytes) SELECT plugin_id, count(*), sum(size)"
        " FROM notifications WHERE status IN ('queued', 'delivering') AND NOT handed GROUP BY plugin_id"
        " ON CONFLICT (plugin_id) DO UPDATE SET items = excluded.items, bytes = excluded.bytes"
    )
