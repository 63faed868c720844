"""Reading the audit chains: filtered pages, and everything for export.

Verification is in trust, which may import this package (never the other way round); callers combine the two:
`await ledger.read_slow(lambda db: audit_chain.verify(audit.export_lines(db, name, ...), key=...))`.
"""

from __future__ import annotations

import heapq
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.kit.clock import rfc3339
from latticed.model import chain
from latticed.model.chain import BEGINNING, CALLS, DECISIONS, Position

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from latticed.ledger.connection import RowReader

FIELDS: Final = ("seq", "ts", "actor", "action", "target", "decision", "code", "reason", "detail", "prev", "hash")
"""Fields of an event, in the order of its columns (contracts §11)."""
HEAD_FIELDS: Final = ("seq", "hash", "ts", "signature")
"""Fields of heads and of checkpoints."""
MAX_PAGE: Final = 1_000
"""Most events that one query returns; `rpc.audit` has the same bound for the API."""
SPAN: Final = 50_000
"""Most rows that one query scans (about 50 ms); longer scans are split, so that other queries get their turn."""


class Tables(NamedTuple):
    """Names of the tables of one chain: its events, its signed heads, and the checkpoints that retention left."""

    events: str
    heads: str
    checkpoints: str


TABLES: Final[Mapping[chain.Name, Tables]] = {
    DECISIONS: Tables("audit", "heads", "checkpoints"),
    CALLS: Tables("calls", "call_heads", "call_checkpoints"),
}


def query(  # noqa: PLR0913 - one keyword per filter of the API
    conn: RowReader,
    *,
    chain: chain.Name = DECISIONS,
    after: int = 0,
    limit: int = 100,
    within: tuple[int, int] | None = None,
    actor: str | None = None,
    action: str | None = None,
    other_than: str | None = None,
    target: str | None = None,
    decision: str | None = None,
    since_us: int | None = None,
    newest_first: bool = False,
) -> list[dict[str, Any]]:
    """At most `limit` (1,000 at most) events of one chain as contracts §11 shows them, oldest first or, with
    `newest_first`, newest first.

    `after` is a cursor: seqs greater than it, or with `newest_first` less than it (0: from the newest). `actor`,
    `action`, `target` and `decision` must equal the whole field; `other_than` is an action that is left out; `since_us`
    is microseconds since the epoch. Without `within` (first and last seq, both included) this may read the whole table:
    `query_in_parts` does that in parts.
    """
    conditions: list[str] = []
    values: list[str | int] = []
    if after:
        conditions.append("seq < ?" if newest_first else "seq > ?")
        values.append(after)
    if within is not None:
        conditions.append("seq BETWEEN ? AND ?")
        values += within
    if since_us is not None:
        conditions.append("ts >= ?")  # RFC 3339 UTC of one width sorts as time does
        values.append(rfc3339(since_us))
    if other_than is not None:
        conditions.append("action <> ?")
        values.append(other_than)
    if decision == "deny":
        conditions.append("decision = 'deny'")  # a literal: SQLite uses no partial index for a parameter
    for column, wanted in (("actor", actor), ("action", action), ("target", target), ("decision", decision)):
        if wanted is not None and (column, wanted) != ("decision", "deny"):
            conditions.append(f"{column} = ?")
            values.append(wanted)
    # Only column names and constants are in the text of the statement; what callers ask for is bound.
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = " ORDER BY seq DESC LIMIT ?" if newest_first else " ORDER BY seq LIMIT ?"
    # At least 0, as SQLite takes a negative LIMIT for none.
    rows = conn.execute(_select(chain) + where + order, (*values, max(0, min(limit, MAX_PAGE))))
    return [_event(row, chain) for row in rows]


async def query_in_parts(
    read: Callable[[Callable[[RowReader], Any]], Awaitable[Any]],
    *,
    chains: Sequence[chain.Name],
    after: Position = BEGINNING,
    limit: int = 100,
    newest_first: bool = False,
    **filters: Any,
) -> list[dict[str, Any]]:
    """At most `limit` events of `chains`, merged by time, asked for by `read` in spans of `SPAN` rows.

    `read` is `Ledger.read_slow` or one like it; `filters` are those of `query`. Within a chain the order is that of
    seqs, whatever the clock did: so `after.past(events)` goes on where this ends.
    """
    # `limit` from each chain: all events of the page may turn out to be of the same one.
    found = [
        await _query_chain_in_parts(read, name, after.of(name), limit=limit, newest_first=newest_first, **filters)
        for name in chains
    ]
    return merged(found, newest_first=newest_first)[:limit]


def merged(parts: Sequence[list[dict[str, Any]]], *, newest_first: bool = False) -> list[dict[str, Any]]:
    """Events of several chains in one order, by time; each chain's own order is kept."""
    # Those of one transaction have the same time, and the other order in the other direction.
    ordered = reversed(parts) if newest_first else parts
    return list(heapq.merge(*ordered, key=lambda event: str(event["ts"]), reverse=newest_first))


async def last_calls(
    read: Callable[[Callable[[RowReader], Any]], Awaitable[Any]], *, actor: str, calls: frozenset[str]
) -> dict[str, str]:
    """The decision ("allow" or "deny") on the newest of each of `calls` that `actor` made, by name of the call.

    Calls that it never made are left out. One scan of the host calls, newest first, which ends once all are found.
    """
    first, last = await read(lambda db: ends(db, CALLS))
    found: dict[str, str] = {}
    while first <= last and (missing := sorted(calls - found.keys())):
        # The newest span first, and only for the calls that are still missing.
        start = max(first, last - SPAN + 1)
        statement = (
            f"SELECT target, decision, max(seq) FROM {TABLES[CALLS].events} WHERE seq BETWEEN ? AND ? AND actor = ?"
            f" AND action = 'host.call' AND target IN ({', '.join('?' * len(missing))}) GROUP BY target"
        )  # SQLite takes `decision` from the row that has the maximum
        values = (start, last, actor, *missing)
        rows = await read(lambda db, statement=statement, values=values: db.execute(statement, values).fetchall())  # type: ignore[misc]
        found |= {target: decision for target, decision, _ in rows}
        last = start - 1
    return found


async def _query_chain_in_parts(
    read: Callable[[Callable[[RowReader], Any]], Awaitable[Any]],
    name: chain.Name,
    after: int,
    *,
    limit: int,
    newest_first: bool,
    **filters: Any,
) -> list[dict[str, Any]]:
    """At most `limit` events of one chain, read in spans from the end at which the query begins."""
    # Taken once: events that are recorded while this reads are for the next page.
    first, last = await read(lambda db: ends(db, name))
    if newest_first:
        last = min(last, after - 1) if after else last
    else:
        first = max(first, after + 1)
    # What an index answers is asked for at once: at a million events, spans are 20 threads and connections (100 ms).
    rows = max(last - first + 1, 1) if _is_indexed(filters) else SPAN
    found: list[dict[str, Any]] = []
    while first <= last and len(found) < limit:
        span = (max(first, last - rows + 1), last) if newest_first else (first, min(last, first + rows - 1))
        rest = limit - len(found)
        # Each span is a query of its own, so `read` may give its thread to others in between.
        found += await read(
            lambda db, span=span, rest=rest: query(  # type: ignore[misc]
                db, chain=name, within=span, limit=rest, newest_first=newest_first, **filters
            )
        )
        first, last = (first, span[0] - 1) if newest_first else (span[1] + 1, last)
    return found


def _is_indexed(filters: Mapping[str, Any]) -> bool:
    """Whether these are the denials of one actor and nothing else, of which a partial index has just those rows."""
    asked = {name for name, value in filters.items() if value is not None}
    return asked == {"actor", "decision"} and filters["decision"] == "deny"


def export_lines(conn: RowReader, chain: chain.Name, *, after: int, upto: int, most: int) -> list[dict[str, Any]]:
    """Lines of an export: the next `most` events with a seq over `after` and up to `upto` (included), each followed by
    the heads that sign it.

    A head is `{"head": {...}}`; lines of calls carry `"chain": "calls"` besides. Fewer than `most` events: the end.
    """
    rows = conn.execute(_select(chain) + " WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?", (after, upto, most))
    found = rows.fetchall()
    # Heads only up to the last event here: a head of a later event belongs behind that, in the next part.
    last = found[-1][0] if found else after
    statement = f"SELECT {_HEAD} FROM {TABLES[chain].heads} WHERE seq > ? AND seq <= ? ORDER BY seq, id"
    return list(_interleaved(iter(found), conn.execute(statement, (after, last)), chain))


def newest_head(conn: RowReader, chain: chain.Name) -> dict[str, Any] | None:
    """The signed head with the highest seq, by the names of `HEAD_FIELDS`; None while nothing was signed."""
    statement = f"SELECT {_HEAD} FROM {TABLES[chain].heads} ORDER BY seq DESC, id DESC LIMIT 1"
    row = conn.execute(statement).fetchone()
    return None if row is None else dict(zip(HEAD_FIELDS, row, strict=True))


def heads(conn: RowReader, first: int, last: int, *, chain: chain.Name = DECISIONS) -> list[dict[str, Any]]:
    """The signed heads of events `first` to `last` (both included), in order, by the names of `HEAD_FIELDS`."""
    statement = f"SELECT {_HEAD} FROM {TABLES[chain].heads} WHERE seq BETWEEN ? AND ? ORDER BY seq, id"
    return [dict(zip(HEAD_FIELDS, row, strict=True)) for row in conn.execute(statement, (first, last))]


def checkpoint(conn: RowReader, *, chain: chain.Name = DECISIONS) -> dict[str, Any] | None:
    """The signed statement of what retention removed, by the names of `HEAD_FIELDS`; None while nothing was removed."""
    statement = f"SELECT {_HEAD} FROM {TABLES[chain].checkpoints} ORDER BY seq DESC LIMIT 1"
    row = conn.execute(statement).fetchone()
    return None if row is None else dict(zip(HEAD_FIELDS, row, strict=True))


def size_after(conn: RowReader, seq: int, *, chain: chain.Name = DECISIONS) -> int:
    """Bytes of the canonical form of the events after `seq`; reads them all."""
    found = conn.execute(_select(chain) + " WHERE seq > ? ORDER BY seq", (seq,))
    return sum(len(_canonical(_event(row, chain))) for row in found)


def last_seq(conn: RowReader, chain: chain.Name = DECISIONS) -> int:
    """The seq of the newest event (retention never removes it), 0 before the first."""
    return int(conn.execute(f"SELECT coalesce(max(seq), 0) FROM {TABLES[chain].events}").get)


def first_seq(conn: RowReader, chain: chain.Name = DECISIONS) -> int:
    """The seq of the oldest event that is left, 1 before the first."""
    return int(conn.execute(f"SELECT coalesce(min(seq), 1) FROM {TABLES[chain].events}").get)


def ends(conn: RowReader, name: chain.Name) -> tuple[int, int]:
    """The first and the last seq of what is left of a chain; (1, 0) before the first."""
    return first_seq(conn, name), last_seq(conn, name)


def position(conn: RowReader) -> Position:
    """The seqs of the newest events of both chains."""
    return Position(*(last_seq(conn, name) for name in chain.NAMES))


def before(conn: RowReader, ts: str, chain: chain.Name) -> int:
    """The seq of the last event of a chain recorded before `ts` (RFC 3339), as far as the clock did not jump.

    0, or the seq of the last event that was removed, when none is left from before.
    """
    low, high = first_seq(conn, chain), last_seq(conn, chain) + 1
    statement = f"SELECT ts >= ? FROM {TABLES[chain].events} WHERE seq = ?"
    # A binary search: `ts` has no index, and between the ends seqs have no gaps.
    while low < high:
        middle = (low + high) // 2
        if conn.execute(statement, (ts, middle)).get:
            high = middle
        else:
            low = middle + 1
    return low - 1


_HEAD: Final = ", ".join(HEAD_FIELDS)
_canonical: Final = chain.canonical


def _select(name: chain.Name) -> str:
    """The beginning of a statement that reads whole events of a chain."""
    return f"SELECT {', '.join(FIELDS)} FROM {TABLES[name].events}"


def _interleaved(
    rows: Iterator[tuple[Any, ...]], signed: Iterator[tuple[Any, ...]], name: chain.Name
) -> Iterator[dict[str, Any]]:
    """Events in order, each followed by the heads that sign it; both come sorted by seq."""
    head = next(signed, None)
    for row in rows:
        while head is not None and head[0] < row[0]:
            yield _head(head, name)
            head = next(signed, None)
        yield _event(row, name)
    while head is not None:
        yield _head(head, name)
        head = next(signed, None)


def _named(name: chain.Name) -> dict[str, Any]:
    """The members that name the chain in a line of an export: none for decisions."""
    return {} if name == DECISIONS else {"chain": name}


def _event(row: tuple[Any, ...], name: chain.Name) -> dict[str, Any]:
    """A row as an event of contracts §11."""
    event = dict(zip(FIELDS, row, strict=True))
    event["detail"] = _detail(event["detail"])
    return event if name == DECISIONS else {**event, "chain": name}


def _detail(stored: str) -> Any:
    """The decoded object; a value that was tampered with is returned as text, for verification to report."""
    try:
        return json.loads(stored)
    except ValueError:
        return stored


def _head(row: tuple[Any, ...], name: chain.Name) -> dict[str, Any]:
    """A row as a head's line of an export."""
    return {"head": dict(zip(HEAD_FIELDS, row, strict=True)), **_named(name)}
