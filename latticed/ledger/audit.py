"""Reading the audit chain: filtered pages, and everything for export.

Checking a chain is pure and belongs to trust, which may import this room and not the other way round:
`await ledger.read_slow(lambda db: audit_chain.verify(audit.export(db), public_key=ledger.public_key))`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from latticed.kit.clock import rfc3339
from latticed.model import chain

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.ledger.connection import Reader

FIELDS: Final = ("seq", "ts", "actor", "action", "target", "decision", "code", "reason", "detail", "prev", "hash")
HEAD_FIELDS: Final = ("seq", "hash", "ts", "signature")
"""Of heads and of checkpoints."""
MAX_PAGE: Final = 1_000

_SELECT: Final = f"SELECT {', '.join(FIELDS)} FROM audit"  # noqa: S608 - constants


def query(  # noqa: PLR0913 - one keyword per filter of the API
    conn: Reader,
    *,
    after: int = 0,
    limit: int = 100,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    decision: str | None = None,
    since_us: int | None = None,
    newest_first: bool = False,
) -> list[dict[str, Any]]:
    """At most `limit` (1,000 at most) events as contracts §11 shows them; filters match whole fields.

    `after` is a cursor: seqs greater than it, or with `newest_first` lesser than it (0: from the newest). `since_us`
    is microseconds since the epoch. Without an index on the filters this may read the whole table: use `read_slow`.
    """
    conditions: list[str] = []
    values: list[str | int] = []
    if after:
        conditions.append("seq < ?" if newest_first else "seq > ?")
        values.append(after)
    if since_us is not None:
        conditions.append("ts >= ?")  # RFC 3339 UTC of one width sorts as time does
        values.append(rfc3339(since_us))
    for column, wanted in (("actor", actor), ("action", action), ("target", target), ("decision", decision)):
        if wanted is not None:
            conditions.append(f"{column} = ?")
            values.append(wanted)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = " ORDER BY seq DESC LIMIT ?" if newest_first else " ORDER BY seq LIMIT ?"
    rows = conn.execute(_SELECT + where + order, (*values, max(0, min(limit, MAX_PAGE))))
    return [_event(row) for row in rows]


def export(conn: Reader) -> Iterator[dict[str, Any]]:
    """All events in order, and after the event it signs each head as `{"head": {...}}`: the lines of an export.

    What retention left begins with `{"checkpoint": {...}}`. Heads of events that are gone come first or last.
    """
    if (begins := checkpoint(conn)) is not None:
        yield {"checkpoint": begins}
    heads = conn.execute(f"SELECT {', '.join(HEAD_FIELDS)} FROM heads ORDER BY seq, id")  # noqa: S608 - constants
    head = next(heads, None)
    for row in conn.execute(_SELECT + " ORDER BY seq"):
        while head is not None and head[0] < row[0]:
            yield _head(head)
            head = next(heads, None)
        yield _event(row)
    while head is not None:
        yield _head(head)
        head = next(heads, None)


def heads(conn: Reader, first: int, last: int) -> list[dict[str, Any]]:
    """The signed heads of events `first` to `last`, in order."""
    statement = f"SELECT {', '.join(HEAD_FIELDS)} FROM heads WHERE seq BETWEEN ? AND ? ORDER BY seq, id"  # noqa: S608
    return [dict(zip(HEAD_FIELDS, row, strict=True)) for row in conn.execute(statement, (first, last))]


def checkpoint(conn: Reader) -> dict[str, Any] | None:
    """The signed statement of what retention removed; None while the chain is whole."""
    statement = f"SELECT {', '.join(HEAD_FIELDS)} FROM checkpoints ORDER BY seq DESC LIMIT 1"  # noqa: S608 - constants
    row = conn.execute(statement).fetchone()
    return None if row is None else dict(zip(HEAD_FIELDS, row, strict=True))


def size_after(conn: Reader, seq: int) -> int:
    """Bytes of the canonical form of the events after `seq`; reads them all."""
    found = conn.execute(_SELECT + " WHERE seq > ? ORDER BY seq", (seq,))
    return sum(len(chain.canonical(_event(row))) for row in found)


def last_seq(conn: Reader) -> int:
    """The seq of the newest event (retention never removes it), 0 before the first."""
    return int(conn.execute("SELECT coalesce(max(seq), 0) FROM audit").get)


def _event(row: tuple[Any, ...]) -> dict[str, Any]:
    event = dict(zip(FIELDS, row, strict=True))
    event["detail"] = _detail(event["detail"])
    return event


def _detail(stored: str) -> Any:
    """The object; what somebody else wrote over it comes out as text, for verify to find."""
    try:
        return json.loads(stored)
    except ValueError:
        return stored


def _head(row: tuple[Any, ...]) -> dict[str, Any]:
    return {"head": dict(zip(HEAD_FIELDS, row, strict=True))}
