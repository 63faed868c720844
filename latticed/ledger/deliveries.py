"""What becomes of queued notifications at the channels: one row for each item and channel, and the state of channels.

    waiting ─► done
       └─────► failed

One message may stand for several rows of a channel: the `message` of a row names it, from its first attempt on, so that
a repeated attempt sends the same rows under the same id. Times are microseconds since the epoch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from latticed.ledger import notifications

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed.ledger.connection import RowReader
    from latticed.ledger.notifications import Item
    from latticed.ledger.transaction import Transaction

State = Literal["waiting", "done", "failed"]

LONGEST_HOLD_US: Final = 25 * 3_600 * 1_000_000
"""Longest time that a row is held back. A later `next_at` was written before the clock was set back: it is due now."""
MOST_WINDOWS: Final = 10_000
"""The newest ones are kept. A repeat whose window is gone is sent at once."""
_DUE: Final = "(next_at <= ? OR next_at > ?)"
"""Bound to now and to now plus LONGEST_HOLD_US."""
_SURPLUS: Final = """
SELECT item FROM (
    SELECT item, urgent, deliveries.seq AS seq,
        row_number() OVER (PARTITION BY plugin_id ORDER BY urgent DESC, deliveries.seq DESC) AS place
    FROM deliveries JOIN notifications ON id = item WHERE state = 'waiting' AND channel = ?
) ORDER BY place DESC, urgent, seq LIMIT ?
"""
"""Which rows of a channel go first; bound to the channel and to how many. `place`: 1 for the newest of its sender, and
so on: by that a sender pushes out its own alone, however many it has and whatever severity it gives them.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One channel of an item. `bundle`: rows of one bundle may become one message; within `window_us` after a message
    of that bundle they are held back for the next one. `hold_us`: how long the row is held back in any case.
    """

    channel: str
    bundle: str = ""
    window_us: int = 0
    hold_us: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryRow:
    """One item at one channel. `code` and `reason`: why the last attempt failed."""

    item: str
    channel: str
    state: State
    attempts: int
    next_at: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """The state of one channel, as its last deliveries left it.

    `paused_until`: no message is sent before. `crowded`: what waits goes together into one message. `failures` in a row
    since `failing_since` (0: the last one succeeded). `degraded`: it fails for good, or has for long; `told_at`: when
    that was last told. `last_success`: 0 for never.
    """

    name: str
    paused_until: int = 0
    crowded: bool = False
    failures: int = 0
    failing_since: int = 0
    degraded: bool = False
    told_at: int = 0
    code: str = ""
    reason: str = ""
    last_success: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What is sent to a channel at once: `items`, oldest first, under `id`, which no attempt changes.

    `attempts`: with this one. `channel` is the state before.
    """

    id: str
    channel: Channel
    items: tuple[Item, ...]
    attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelView:
    """A channel with how many rows wait for it, and when the oldest of them was accepted (0: none waits)."""

    channel: Channel
    waiting: int
    oldest_at: int


_CHANNEL: Final = ", ".join(one.name for one in fields(Channel))
_ROW: Final = ", ".join(one.name for one in fields(DeliveryRow))


def plan(tx: Transaction, item: Item, channels: Iterable[Planned], *, now_us: int) -> int:
    """Have `item`, which is being delivered, wait for these channels; returns how many it waits for.

    A channel that had it keeps that: so a failed item that was reopened goes to the others alone. The item no longer
    counts against the quotas of its sender. One that has ended meanwhile, or was removed, waits for none.
    """
    if tx.execute("SELECT 1 FROM notifications WHERE id = ? AND status = 'delivering'", (item.id,)).fetchone() is None:
        return 0
    for one in channels:
        tx.execute("INSERT OR IGNORE INTO channels (name) VALUES (?)", (one.channel,))
        next_at = max(now_us + one.hold_us, _window_end(tx, one, now_us))
        tx.execute(
            "INSERT INTO deliveries (item, channel, seq, urgent, next_at, bundle) VALUES (?,?,?,?,?,?)"
            " ON CONFLICT (item, channel) DO UPDATE SET state = 'waiting', attempts = 0, next_at = ?, code = '',"
            " reason = '', message = '' WHERE state = 'failed'",
            # An operator has asked for it to be tried again: not held back.
            (item.id, one.channel, item.seq, item.severity == "critical", next_at, one.bundle, now_us),
        )
    notifications.hand_over(tx, item.id)
    return _settle(tx, item.id, now_us)


def due(conn: RowReader, *, now_us: int) -> list[tuple[str, int]]:
    """(channel, when its next message may be sent) of each channel that something waits for; past times: at once."""
    found = []
    channels: list[Any] = conn.execute("SELECT name, paused_until FROM channels ORDER BY name").fetchall()
    for name, paused in channels:
        # Two look-ups in the index each, however many rows wait.
        soonest: list[int | None] = [
            conn.execute(
                "SELECT min(next_at) FROM deliveries WHERE state = 'waiting' AND channel = ? AND urgent = ?",
                (name, urgent),
            ).get
            for urgent in (0, 1)
        ]
        times = [_sane(one, now_us) for one in soonest if one is not None]
        if times:
            found.append((str(name), max(min(times), _sane(paused, now_us))))
    return found


def take(tx: Transaction, name: str, *, now_us: int, most: int) -> Message | None:
    """The next message of a channel, with this attempt counted; None when nothing is due.

    What is critical comes first. Where the channel is crowded, all that is due goes together, else what is of the same
    bundle; at most `most` items, and one where the channel is degraded: that attempt is likely to fail.
    """
    channel = get(tx, name)
    first = _first_due(tx, name, now_us)
    if first is None or _sane(channel.paused_until, now_us) > now_us:
        return None
    item, message, bundle = first
    if message:
        members = _column(
            tx,
            "SELECT item FROM deliveries WHERE state = 'waiting' AND channel = ? AND message = ? ORDER BY seq",
            (name, message),
        )
    else:
        members = [item] if channel.degraded else _together(tx, channel, item, bundle, now_us=now_us, most=most)
        message = members[0] if len(members) == 1 else _name_of(members)
        _open_window(tx, name, bundle, now_us)
    marks = ", ".join("?" * len(members))
    tx.execute(
        f"UPDATE deliveries SET attempts = attempts + 1, message = ? WHERE channel = ? AND item IN ({marks})",  # noqa: S608
        (message, name, *members),
    )
    attempts = tx.execute(
        "SELECT max(attempts) FROM deliveries WHERE state = 'waiting' AND channel = ? AND message = ?", (name, message)
    ).get
    statement = f"SELECT {notifications.COLUMNS} FROM notifications WHERE id IN ({marks}) ORDER BY seq"  # noqa: S608
    items = tuple(notifications.of_row(row) for row in tx.execute(statement, tuple(members)).fetchall())
    return Message(id=message, channel=channel, items=items, attempts=attempts)


def end(
    tx: Transaction,
    message: Message,
    state: Literal["done", "failed"],
    *,
    now_us: int,
    code: str = "",
    reason: str = "",
) -> None:
    """End the rows of a message; items that wait for no other channel end with it."""
    for item in message.items:
        _end(tx, item.id, message.channel.name, state, now_us=now_us, code=code, reason=reason)


def put_back(tx: Transaction, message: Message, *, next_at: int, code: str, reason: str) -> None:
    """Have a message wait until `next_at` for its next attempt; others go before it then, critical or not."""
    # Else one that the other side cannot take would be tried first each time, and keep the channel for itself.
    tx.execute(
        "UPDATE deliveries SET urgent = 0, next_at = ?, code = ?, reason = ?"
        " WHERE state = 'waiting' AND channel = ? AND message = ?",
        (next_at, code, reason, message.channel.name, message.id),
    )


def resume(tx: Transaction, name: str, *, now_us: int) -> None:
    """Have what was tried before, and waits for a channel's pause to end, be due now; not what was never tried."""
    tx.execute(
        "UPDATE deliveries SET next_at = ? WHERE state = 'waiting' AND channel = ? AND message <> '' AND next_at > ?",
        (now_us, name, now_us),
    )


def put(tx: Transaction, channel: Channel) -> None:
    """Keep the state of a channel."""
    values = tuple(getattr(channel, one.name) for one in fields(Channel))
    tx.execute(f"INSERT OR REPLACE INTO channels ({_CHANNEL}) VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608


def get(conn: RowReader, name: str) -> Channel:
    """The state of a channel; a fresh one for a name that was never used."""
    row = conn.execute(f"SELECT {_CHANNEL} FROM channels WHERE name = ?", (name,)).fetchone()  # noqa: S608
    return Channel(name=name) if row is None else _channel(row)


def degraded(conn: RowReader) -> dict[str, str]:
    """Why each degraded channel is that, by name."""
    found = conn.execute("SELECT name, code, reason FROM channels WHERE degraded ORDER BY name")
    return {name: f"{code}: {reason}" if reason else code for name, code, reason in found}


def view(conn: RowReader) -> list[ChannelView]:
    """Every channel that anything was ever sent to, with what waits for it."""
    waiting: dict[str, tuple[int, int]] = {
        name: (count, oldest)
        for name, count, oldest in conn.execute(
            "SELECT d.channel, count(*), min(n.created_at) FROM deliveries d JOIN notifications n ON n.id = d.item"
            " WHERE d.state = 'waiting' GROUP BY d.channel"
        )
    }
    rows: list[Any] = conn.execute(f"SELECT {_CHANNEL} FROM channels ORDER BY name").fetchall()  # noqa: S608
    return [
        ChannelView(channel=_channel(row), waiting=n, oldest_at=at)
        for row in rows
        for n, at in [waiting.get(row[0], (0, 0))]
    ]


def of_items(conn: RowReader, items: Iterable[str]) -> dict[str, list[DeliveryRow]]:
    """The rows of these items, by item."""
    wanted = tuple(items)
    found: dict[str, list[DeliveryRow]] = {one: [] for one in wanted}
    statement = f"SELECT {_ROW} FROM deliveries WHERE item IN ({', '.join('?' * len(wanted))}) ORDER BY channel"  # noqa: S608
    rows: list[Any] = conn.execute(statement, wanted).fetchall()
    for row in rows:
        found[row[0]].append(DeliveryRow(**dict(zip(_ROW.split(", "), row, strict=True))))
    return found


def give_up(tx: Transaction, limit_s: int, *, now_us: int) -> int:
    """Fail what has waited `limit_s` or longer; returns how many items."""
    old = _column(
        tx, "SELECT id FROM notifications WHERE status = 'delivering' AND handed AND waited_s >= ?", (limit_s,)
    )
    for item in old:
        for channel in _column(tx, "SELECT channel FROM deliveries WHERE item = ? AND state = 'waiting'", (item,)):
            _end(tx, item, channel, "failed", now_us=now_us, code="gave_up", reason="")
    return len(old)


def trim(tx: Transaction, most: int, *, now_us: int) -> dict[str, int]:
    """Fail some of what waits for a channel, where that is more than `most`; returns how many, by channel.

    What the sender with the most waiting there has goes first, its oldest first and what is critical last.
    """
    found: dict[str, int] = {}
    for name in _column(tx, "SELECT name FROM channels", ()):
        over = tx.execute("SELECT count(*) FROM deliveries WHERE state = 'waiting' AND channel = ?", (name,)).get - most
        if over > 0:
            for item in _column(tx, _SURPLUS, (name, over)):
                _end(
                    tx, item, name, "failed", now_us=now_us, code="overflow", reason="too many waited for this channel"
                )
            found[name] = over
    return found


def tidy(tx: Transaction, *, before_us: int, now_us: int) -> None:
    """Remove windows that cannot be open or are too many, and channels that nothing was sent to since `before_us`."""
    # One in the future was opened before the clock was set back.
    tx.execute(
        "DELETE FROM delivery_windows WHERE opened_at NOT BETWEEN ? AND ? OR opened_at <="
        " (SELECT opened_at FROM delivery_windows WHERE opened_at <= ? ORDER BY opened_at DESC LIMIT 1 OFFSET ?)",
        (now_us - LONGEST_HOLD_US, now_us, now_us, MOST_WINDOWS),
    )
    tx.execute(
        "DELETE FROM channels WHERE max(last_success, failing_since, told_at) < ?"
        " AND NOT EXISTS (SELECT 1 FROM deliveries WHERE channel = channels.name)",
        (before_us,),
    )


def events_read(conn: RowReader) -> int | None:
    """The seq of the last audit event that was looked at for a notification; None while none is."""
    row = conn.execute("SELECT seq FROM notified_events").fetchone()
    return None if row is None else int(row[0])


def set_events_read(tx: Transaction, seq: int | None) -> None:
    """Keep that seq; None: events are not looked at any more."""
    tx.execute("DELETE FROM notified_events")
    if seq is not None:
        tx.execute("INSERT INTO notified_events (id, seq) VALUES (1, ?)", (seq,))


def _window_end(tx: Transaction, one: Planned, now_us: int) -> int:
    """When the window of a bundle ends that is open now; opens one, and returns now, where there is none."""
    if not one.window_us:
        return now_us
    opened = tx.execute(
        "SELECT opened_at FROM delivery_windows WHERE channel = ? AND bundle = ?", (one.channel, one.bundle)
    ).get
    # One that begins in the future was opened before the clock was set back.
    if opened is not None and opened <= now_us < opened + one.window_us:
        return int(opened) + one.window_us
    _open_window(tx, one.channel, one.bundle, now_us)
    return now_us


def _open_window(tx: Transaction, channel: str, bundle: str, now_us: int) -> None:
    tx.execute("INSERT OR REPLACE INTO delivery_windows VALUES (?,?,?)", (channel, bundle, now_us))


def _first_due(tx: Transaction, name: str, now_us: int) -> tuple[str, str, str] | None:
    """(item, message, bundle) of the row that is due first, critical ones before others."""
    for urgent in (1, 0):
        statement = (
            "SELECT item, message, bundle FROM deliveries WHERE state = 'waiting' AND channel = ? AND urgent = ?"  # noqa: S608
            f" AND {_DUE} ORDER BY next_at, seq LIMIT 1"
        )
        row = tx.execute(statement, (name, urgent, now_us, now_us + LONGEST_HOLD_US)).fetchone()
        if row is not None:
            return str(row[0]), str(row[1]), str(row[2])
    return None


def _together(tx: Transaction, channel: Channel, item: str, bundle: str, *, now_us: int, most: int) -> list[str]:
    """The items that go into one message with `item`, in their order."""
    if not channel.crowded and not bundle:
        return [item]
    same = "" if channel.crowded else " AND bundle = ?"
    values: tuple[Any, ...] = (channel.name, now_us, now_us + LONGEST_HOLD_US, *([] if channel.crowded else [bundle]))
    statement = (
        f"SELECT item FROM deliveries WHERE state = 'waiting' AND channel = ? AND message = '' AND {_DUE}{same}"  # noqa: S608
        " ORDER BY urgent DESC, next_at, seq LIMIT ?"
    )
    return _column(tx, statement, (*values, most))


def _name_of(members: list[str]) -> str:
    """The id of a message of several items: the same items give the same id, also after a power cut."""
    return hashlib.sha256("\n".join(sorted(members)).encode("ascii")).hexdigest()[:32]


def _end(tx: Transaction, item: str, channel: str, state: State, *, now_us: int, code: str, reason: str) -> None:
    tx.execute(
        "UPDATE deliveries SET state = ?, code = ?, reason = ? WHERE item = ? AND channel = ? AND state = 'waiting'",
        (state, code, reason, item, channel),
    )
    _settle(tx, item, now_us)


def _settle(tx: Transaction, item: str, now_us: int) -> int:
    """End an item that waits for no channel: `failed` when one did not get it. Returns how many it waits for."""
    query = "SELECT state, channel, code, reason FROM deliveries WHERE item = ?"
    states: list[Any] = tx.execute(query, (item,)).fetchall()
    waiting: int = sum(state == "waiting" for state, *_ in states)
    failed = [(channel, code, reason) for state, channel, code, reason in states if state == "failed"]
    if waiting:
        return waiting
    if failed:
        channel, code, reason = failed[0]
        notifications.finish(tx, item, "failed", now_us=now_us, code=code, reason=f"{channel}: {reason}")
    else:
        code = "" if states else "no_channel"
        notifications.finish(tx, item, "done", now_us=now_us, code=code)
    return 0


def _sane(at: int, now_us: int) -> int:
    """A time as it counts now: one beyond LONGEST_HOLD_US was written before the clock was set back."""
    return now_us if at > now_us + LONGEST_HOLD_US else at


def _column(conn: RowReader, statement: str, values: tuple[Any, ...]) -> list[str]:
    rows: list[Any] = conn.execute(statement, values).fetchall()
    return [row[0] for row in rows]


def _channel(row: tuple[Any, ...]) -> Channel:
    found: dict[str, Any] = dict(zip(_CHANNEL.split(", "), row, strict=True))
    return Channel(**{**found, "crowded": bool(found["crowded"]), "degraded": bool(found["degraded"])})
