"""Which hosts a plugin has reached: what an operator may hold against what was granted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latticed.kit.clock import rfc3339

if TYPE_CHECKING:
    from latticed.ledger.connection import Reader
    from latticed.ledger.writer import Transaction

MOST: Final = 1_000
"""Hosts that are remembered of one plugin; the one that was not seen for longest makes room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """How often one host call was made and refused in some time; `last_at` is RFC 3339, or empty."""

    call: str
    allowed: int
    denied: int
    last_at: str


def note(tx: Transaction, plugin_id: str, host: str, *, now_us: int) -> None:
    """`plugin_id` has just reached `host` (host:port)."""
    tx.execute(
        "INSERT INTO contacts (plugin_id, host, last_at) VALUES (?,?,?)"
        " ON CONFLICT (plugin_id, host) DO UPDATE SET last_at = excluded.last_at",
        (plugin_id, host, now_us),
    )
    tx.execute(
        "DELETE FROM contacts WHERE plugin_id = ? AND host NOT IN"
        " (SELECT host FROM contacts WHERE plugin_id = ? ORDER BY last_at DESC LIMIT ?)",
        (plugin_id, plugin_id, MOST),
    )


def clear(tx: Transaction, plugin_id: str) -> None:
    """Forget where a plugin went."""
    tx.execute("DELETE FROM contacts WHERE plugin_id = ?", (plugin_id,))


def since(conn: Reader, plugin_id: str, since_us: int) -> list[tuple[str, int]]:
    """(host, last time in microseconds since the epoch) of what was reached since then, the latest first."""
    statement = "SELECT host, last_at FROM contacts WHERE plugin_id = ? AND last_at >= ? ORDER BY last_at DESC"
    return [(str(host), int(at)) for host, at in conn.execute(statement, (plugin_id, since_us))]


def used(conn: Reader, actor: str, since_us: int) -> list[Used]:
    """The host calls of an actor since then by name, from the audit record; reads much of it: use `read_slow`.

    Denials that were coalesced count once.
    """
    statement = (
        "SELECT target, sum(decision = 'allow'), sum(decision = 'deny'), max(ts) FROM audit"
        " WHERE actor = ? AND action = 'host.call' AND ts >= ? GROUP BY target ORDER BY target"
    )
    rows = conn.execute(statement, (actor, rfc3339(since_us)))
    return [Used(call=str(call), allowed=int(yes), denied=int(no), last_at=str(last)) for call, yes, no, last in rows]
