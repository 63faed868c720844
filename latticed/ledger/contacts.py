"""Which hosts a plugin has reached, for an operator to compare with the hosts that are granted."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from latticed.kit.clock import rfc3339
from latticed.kit.value import Value
from latticed.ledger import audit
from latticed.model import chain

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latticed.ledger.connection import RowReader
    from latticed.ledger.transaction import Transaction

MOST: Final = 1_000
"""Hosts kept for one plugin; a new one replaces the one whose last contact is oldest."""


_DECISIONS: Final = 200
"""Newest decisions on a plugin that are searched for the last one that widened its permissions."""


class Used(Value, frozen=True, kw_only=True):
    """How often an actor made one host call, and how often it was refused, in the time asked about.

    `last_at` (RFC 3339): the latest of these, made or refused.
    """

    call: str
    allowed: int
    denied: int
    last_at: str


def note(tx: Transaction, plugin_id: str, host: str, *, now_us: int) -> None:
    """Record that `plugin_id` has just connected to `host` (host:port)."""
    tx.execute(
        "INSERT INTO contacts (plugin_id, host, last_at) VALUES (?,?,?)"
        " ON CONFLICT (plugin_id, host) DO UPDATE SET last_at = excluded.last_at",
        (plugin_id, host, now_us),
    )
    # All go but the MOST hosts that were connected to last.
    tx.execute(
        "DELETE FROM contacts WHERE plugin_id = ? AND host NOT IN"
        " (SELECT host FROM contacts WHERE plugin_id = ? ORDER BY last_at DESC LIMIT ?)",
        (plugin_id, plugin_id, MOST),
    )


def clear(tx: Transaction, plugin_id: str) -> None:
    """Remove all hosts recorded for a plugin, which does not change what it may reach."""
    tx.execute("DELETE FROM contacts WHERE plugin_id = ?", (plugin_id,))


def since(conn: RowReader, plugin_id: str, since_us: int) -> list[tuple[str, int]]:
    """(host, last time in microseconds since the epoch) of what was reached at `since_us` or later, latest first."""
    statement = "SELECT host, last_at FROM contacts WHERE plugin_id = ? AND last_at >= ? ORDER BY last_at DESC"
    return [(str(host), int(at)) for host, at in conn.execute(statement, (plugin_id, since_us))]


async def watched_since(read: Callable[[Callable[[RowReader], Any]], Awaitable[Any]], plugin_id: str) -> str:
    """Since when the audit record shows what a plugin does with its present permissions (RFC 3339).

    The later of the last decision that widened them and the last removal of calls by retention; empty without either.
    Searches the newest `_DECISIONS` decisions on the plugin only.
    """
    decided = await audit.query_in_parts(
        read, chains=(chain.DECISIONS,), target=plugin_id, decision="allow", newest_first=True, limit=_DECISIONS
    )
    given = next((str(row["ts"]) for row in decided if _gives(row)), "")
    removed = await read(lambda db: audit.checkpoint(db, chain=chain.CALLS))
    # RFC 3339 in UTC and of one width: comparing the texts compares the times.
    return max(given, str(removed["ts"])) if removed is not None else given


def _gives(row: dict[str, Any]) -> bool:
    """Whether a decision may have widened what a plugin may do: all do but those that only narrow it."""
    # One that only trimmed narrows. One that did neither changed hosts or permits, which may widen.
    if row["action"] == "plugin.grants":
        return bool(row["detail"].get("granted")) or not row["detail"].get("trimmed")
    return bool(row["action"] == "plugin.status")


async def used(read: Callable[[Callable[[RowReader], Any]], Awaitable[Any]], actor: str, since_us: int) -> list[Used]:
    """The host calls of an actor (as events name it) since `since_us`, by name, read from the audit record in spans.

    Denials that were coalesced count once. Calls of before host calls had a chain of their own count too.
    """
    found: dict[str, Used] = {}
    # Both chains: ledgers of before `calls` existed keep their host calls among the decisions (`docs/adr/0011`).
    for name in chain.NAMES:
        first, last = await read(functools.partial(audit.ends, name=name))
        for start in range(first, last + 1, audit.SPAN):
            span = (start, start + audit.SPAN - 1)
            asked = functools.partial(_used, name=name, actor=actor, since_us=since_us, span=span)
            for one in await read(asked):
                found[one.call] = _both(found.get(one.call), one)
    return [found[call] for call in sorted(found)]


def _used(conn: RowReader, *, name: chain.Name, actor: str, since_us: int, span: tuple[int, int]) -> list[Used]:
    """The host calls of `actor` since `since_us` (wall clock, µs) within the seqs of `span`, both included, counted by
    name.
    """
    # A comparison is 1 or 0 in SQLite, so the sums count.
    statement = (
        f"SELECT target, sum(decision = 'allow'), sum(decision = 'deny'), max(ts) FROM {audit.TABLES[name].events}"  # noqa: S608 - constants
        " WHERE seq BETWEEN ? AND ? AND actor = ? AND action = 'host.call' AND ts >= ? GROUP BY target"
    )
    rows = conn.execute(statement, (*span, actor, rfc3339(since_us)))
    return [Used(call=str(call), allowed=int(yes), denied=int(no), last_at=str(last)) for call, yes, no, last in rows]


def _both(one: Used | None, other: Used) -> Used:
    """The sum of two counts of the same call."""
    if one is None:
        return other
    return Used(
        call=one.call,
        allowed=one.allowed + other.allowed,
        denied=one.denied + other.denied,
        last_at=max(one.last_at, other.last_at),
    )
