"""The queue of notifications: accepted once committed, delivered at least once, kept for a while after they ended.

    queued ─► delivering ─► done
       ▲          ├───────► failed
       └──────────┘

`notification_usage` is updated in the same transaction as the rows, so that a quota check reads one row per plugin.
Times are microseconds since the epoch. How long an item has waited is counted separately, in seconds of the monotonic
clock (`notification_upkeep.age`), because the wall clock may jump.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final, Literal

from latticed.kit.value import Value
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Collection

    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction

Severity = Literal["info", "warning", "error", "critical"]
Status = Literal["queued", "delivering", "done", "failed"]

LONGEST_WAIT_US: Final = 6 * 3_600 * 1_000_000
"""Longest delay of a retry. A row with a later `next_at` was written before the clock was set back: it is due now."""

_ROW_BYTES: Final = 256
"""What a row counts for besides its texts, so that empty messages are not free."""
_OPEN: Final = "status IN ('queued', 'delivering')"
"""What counts against the quotas."""
_DUE: Final = "status = 'queued' AND (next_at <= ? OR next_at > ?)"
"""Bound to now and to now plus LONGEST_WAIT_US: a time beyond that was written before the clock was set back."""
COLUMNS: Final = (
    "seq, id, plugin_id, event, severity, title, body, status, attempts, next_at, code, reason, created_at, updated_at"
)
"""The columns of an Item, named as its fields."""
_USE: Final = """
INSERT INTO notification_usage (plugin_id, items, bytes) VALUES (?, ?, ?)
ON CONFLICT (plugin_id) DO UPDATE SET items = items + excluded.items, bytes = bytes + excluded.bytes
"""
"""Adds the differences (items, bytes) to what the plugin uses."""


class NotificationRow(Value, frozen=True, kw_only=True):
    """A message as submitted. `dedupe`: empty, or a key: a second message of the plugin with it is a duplicate."""

    title: str
    body: str = ""
    severity: Severity = "info"
    event: str = "message"
    dedupe: str = ""

    @property
    def size(self) -> int:
        """Bytes that it counts against quotas: its texts in UTF-8, and a constant for the row."""
        return sum(len(part.encode("utf-8")) for part in (self.title, self.body, self.event, self.dedupe)) + _ROW_BYTES


class NotificationQuota(Value, frozen=True, kw_only=True):
    """Limits of what is queued or being delivered: items and bytes of one plugin, and of all plugins together."""

    items: int
    total_bytes: int
    all_items: int
    all_bytes: int


class QueuedNotification(Value, frozen=True, kw_only=True):
    """The id of an accepted message; `duplicate`: it is that of an earlier one with the same dedupe key."""

    id: str
    duplicate: bool = False


class Item(Value, frozen=True, kw_only=True):
    """One row. `id` is stable over attempts and restarts, so receivers can drop duplicates.

    `next_at`: earliest time of the next attempt. `code` and `reason`: why the last attempt failed.
    """

    seq: int
    id: str
    plugin_id: str
    event: str
    severity: Severity
    title: str
    body: str
    status: Status
    attempts: int
    next_at: int
    code: str
    reason: str
    created_at: int
    updated_at: int


def accept(
    tx: Transaction, plugin_id: str, message: NotificationRow, quota: NotificationQuota, *, now_us: int
) -> QueuedNotification:
    """Queue `message`, unless a row with its dedupe key still exists (of any status); Problem quota_exceeded."""
    # Before the quota: a plugin that has as much as it may can still repeat a message.
    if message.dedupe:
        found = tx.execute(
            "SELECT id FROM notifications WHERE plugin_id = ? AND dedupe = ?", (plugin_id, message.dedupe)
        )
        if (row := found.fetchone()) is not None:
            return QueuedNotification(id=row[0], duplicate=True)
    _make_sure_of_room(tx, plugin_id, message.size, quota)
    # Random, so that receivers which drop duplicates by id never see an id twice, even from a new ledger.
    made = secrets.token_hex(16)
    tx.execute(
        "INSERT INTO notifications (id, plugin_id, dedupe, event, severity, title, body, size, status, next_at,"
        " created_at, updated_at) VALUES (?,?,?,?,?,?,?,?,'queued',?,?,?)",
        (
            made,
            plugin_id,
            message.dedupe,
            message.event,
            message.severity,
            message.title,
            message.body,
            message.size,
            now_us,
            now_us,
            now_us,
        ),
    )
    tx.execute(_USE, (plugin_id, 1, message.size))
    return QueuedNotification(id=made)


def senders(conn: RowReader) -> list[str]:
    """Ids of the plugins with queued or delivering items."""
    return [row[0] for row in conn.execute("SELECT plugin_id FROM notification_usage WHERE items > 0")]


def take(tx: Transaction, *, now_us: int, resting: Collection[str] = ()) -> Item | None:
    """Set the next due item to `delivering` and return it: round robin over plugins, first in first out within one.

    Plugins in `resting` are skipped. None when nothing is due.
    """
    plugins = tx.execute("SELECT plugin_id FROM notification_usage WHERE items > 0 ORDER BY served, plugin_id")
    # In the order of turns: the plugin served longest ago comes first, so a full queue of one does not delay others.
    for plugin_id in [row[0] for row in plugins.fetchall() if row[0] not in resting]:
        found = tx.execute(
            f"SELECT seq FROM notifications WHERE plugin_id = ? AND {_DUE} ORDER BY seq LIMIT 1",  # noqa: S608 - constants
            (plugin_id, now_us, now_us + LONGEST_WAIT_US),
        ).fetchone()
        if found is not None:
            tx.execute(
                "UPDATE notifications SET status = 'delivering', attempts = attempts + 1, updated_at = ? WHERE seq = ?",
                (now_us, found[0]),
            )
            # One more than the highest number: this plugin is the last in turn now.
            turn = "UPDATE notification_usage SET served = (SELECT max(served) + 1 FROM notification_usage)"
            tx.execute(f"{turn} WHERE plugin_id = ?", (plugin_id,))
            return _one(tx, "seq = ?", found[0])
    return None


def finish(tx: Transaction, item_id: str, status: Status, *, now_us: int, code: str = "", reason: str = "") -> bool:
    """Set an item to `done` or `failed`; False when it is unknown or had ended before.

    The body of a `done` item is erased; a `failed` one keeps it, for `reopen`.
    """
    item = _open_one(tx, item_id)
    if item is None:
        return False
    # Given back to the quota below, unless that has been done (`hand_over`); an Item does not have it.
    size, handed = tx.execute("SELECT size, handed FROM notifications WHERE seq = ?", (item.seq,)).get
    tx.execute(
        "UPDATE notifications SET status = ?, code = ?, reason = ?, updated_at = ?, body = ? WHERE seq = ?",
        (status, code, reason, now_us, "" if status == "done" else item.body, item.seq),
    )
    if not handed:
        tx.execute(_USE, (item.plugin_id, -1, -size))
    return True


def put_back(tx: Transaction, item_id: str, *, next_at: int, now_us: int, code: str, reason: str) -> bool:
    """Queue an item again for `next_at`, capped to LONGEST_WAIT_US; False when it is unknown or had ended before."""
    tx.execute(
        f"UPDATE notifications SET status = 'queued', next_at = ?, code = ?, reason = ?, updated_at = ?"  # noqa: S608
        f" WHERE id = ? AND {_OPEN}",
        (min(next_at, now_us + LONGEST_WAIT_US), code, reason, now_us, item_id),
    )
    return tx.changes() > 0


def recover(tx: Transaction) -> int:
    """At startup: queue again what was being delivered when the daemon stopped or crashed; returns how many.

    What was handed over to channels is left: it waits for them (`deliveries`).
    """
    # Whether it arrived is unknown: it is sent once more, with the same id (delivered at least once).
    tx.execute("UPDATE notifications SET status = 'queued' WHERE status = 'delivering' AND NOT handed")
    return tx.changes()


def hand_over(tx: Transaction, item_id: str) -> None:
    """From now on an item that is being delivered waits for its channels, and counts against no quota."""
    # A channel that is down for days must not use up what its sender may queue for others.
    row = tx.execute(f"SELECT plugin_id, size FROM notifications WHERE id = ? AND {_OPEN} AND NOT handed", (item_id,))  # noqa: S608
    if (found := row.fetchone()) is not None:
        tx.execute("UPDATE notifications SET status = 'delivering', handed = 1 WHERE id = ?", (item_id,))
        tx.execute(_USE, (found[0], -1, -found[1]))


def reopen(tx: Transaction, item_id: str, quota: NotificationQuota, *, now_us: int) -> bool:
    """Queue a failed item again, with attempts and waiting time at 0; False when no failed item has that id.

    Problem quota_exceeded: it counts against the quotas again.
    """
    found = tx.execute("SELECT plugin_id, size FROM notifications WHERE id = ? AND status = 'failed'", (item_id,))
    if (row := found.fetchone()) is None:
        return False
    _make_sure_of_room(tx, row[0], row[1], quota)
    tx.execute(
        "UPDATE notifications SET status = 'queued', attempts = 0, waited_s = 0, handed = 0, next_at = ?,"
        " updated_at = ? WHERE id = ?",
        (now_us, now_us, item_id),
    )
    tx.execute(_USE, (row[0], 1, row[1]))
    return True


def waited_s(conn: RowReader, item_id: str) -> int:
    """Seconds that an item has waited while the daemon ran; 0 for an unknown id."""
    row = conn.execute("SELECT waited_s FROM notifications WHERE id = ?", (item_id,)).fetchone()
    return 0 if row is None else int(row[0])


def next_due(conn: RowReader, *, now_us: int, resting: Collection[str] = ()) -> int | None:
    """When the next attempt is due, at most LONGEST_WAIT_US from now; None when nothing is queued.

    Plugins in `resting` are left out. A result in the past, or `now_us`, means at once.
    """
    others = f" AND plugin_id NOT IN ({', '.join('?' * len(resting))})" if resting else ""
    queued = f"FROM notifications WHERE status = 'queued'{others}"
    soonest = conn.execute(f"SELECT min(next_at) {queued}", tuple(resting)).get
    if soonest is None or soonest <= now_us:
        return None if soonest is None else int(soonest)
    # A time beyond the longest wait was written before the clock was set back, so that row is due now (`_DUE`).
    latest = conn.execute(f"SELECT max(next_at) {queued}", tuple(resting)).get
    return now_us if latest > now_us + LONGEST_WAIT_US else int(soonest)


def delivering(conn: RowReader) -> list[str]:
    """Ids of the notifications in status `delivering` that are not handed over to channels yet."""
    return [row[0] for row in conn.execute("SELECT id FROM notifications WHERE status = 'delivering' AND NOT handed")]


def usage(conn: RowReader, plugin_id: str | None = None) -> tuple[int, int]:
    """(items, bytes) queued or being delivered, of one plugin or of all."""
    chosen, values = ("WHERE plugin_id = ?", (plugin_id,)) if plugin_id is not None else ("", ())
    totals = f"SELECT coalesce(sum(items), 0), coalesce(sum(bytes), 0) FROM notification_usage {chosen}"  # noqa: S608
    items, size = conn.execute(totals, values).get
    return int(items), int(size)


def _make_sure_of_room(tx: Transaction, plugin_id: str, size: int, quota: NotificationQuota) -> None:
    """Problem quota_exceeded unless one more message of `size` bytes fits, for the plugin and for all."""
    items, used = usage(tx, plugin_id)
    all_items, all_used = usage(tx)
    for found, most, what in (
        (items + 1, quota.items, f"notifications of {plugin_id} waiting"),
        (used + size, quota.total_bytes, f"bytes of notifications of {plugin_id} waiting"),
        (all_items + 1, quota.all_items, "notifications waiting"),
        (all_used + size, quota.all_bytes, "bytes of notifications waiting"),
    ):
        if found > most:
            raise Problem(
                "quota_exceeded", f"expected at most {most} {what}, found {found}", "see: latticectl notify list"
            )


def _open_one(tx: Transaction, item_id: str) -> Item | None:
    """The item with this id, unless it has ended."""
    return _one(tx, f"{_OPEN} AND id = ?", item_id)


def _one(conn: RowReader, condition: str, value: Any) -> Item | None:
    """The first item that fulfils `condition`, which is SQL with one placeholder for `value`; None if there is none."""
    row = conn.execute(f"SELECT {COLUMNS} FROM notifications WHERE {condition}", (value,)).fetchone()  # noqa: S608
    return None if row is None else of_row(row)


def of_row(row: tuple[Any, ...]) -> Item:
    """The item of a row whose columns are `COLUMNS`."""
    return Item(**dict(zip(COLUMNS.split(", "), row, strict=True)))
