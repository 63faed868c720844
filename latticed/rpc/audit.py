"""Handlers for the audit chain: query by filter and cursor, verify the whole."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta

from latticed.ledger import audit as rows
from latticed.model.errors import Problem
from latticed.rpc.api import Query
from latticed.trust import audit_chain

if TYPE_CHECKING:
    from latticed.rpc.answers import ChainReport
    from latticed.rpc.api import Ask

MAX_PAGE = 1_000
_EPOCH = datetime.fromtimestamp(0, tz=UTC)


class Filter(Query, frozen=True):
    """Which events: those that match every field given. `after` is a cursor, `since` an RFC 3339 time with its zone."""

    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 100
    actor: str = ""
    action: str = ""
    target: str = ""
    decision: str = ""
    since: str = ""
    newest: Literal["0", "1"] = "0"
    heads: Literal["0", "1"] = "0"


async def query(ask: Ask) -> dict[str, Any]:
    """Events after a cursor, oldest first; `newest` counts from the end instead.

    `heads` adds signed heads, and the checkpoint that the chain begins with once retention has removed something.
    """
    asked = ask.query(Filter)
    after, limit, newest = asked.after, asked.limit, asked.newest == "1"
    filters = {name: getattr(asked, name) or None for name in ("actor", "action", "target", "decision")}
    since_us = _microseconds(asked.since) if asked.since else None
    events = await ask.api.ledger.read_slow(
        lambda db: rows.query(db, after=after, limit=limit, since_us=since_us, newest_first=newest, **filters)
    )
    more = len(events) == limit and not newest
    answer = {"events": events, "next": events[-1]["seq"] if more else None}
    if asked.heads != "1" or not events:
        return answer
    if not more:  # so that the end of an export is under a signature too
        await ask.api.ledger.sign_head()
    first, last = events[0]["seq"], events[-1]["seq"]
    heads = await ask.api.ledger.read_slow(lambda db: rows.heads(db, first, last))
    begins = ask.api.ledger.read(rows.checkpoint)
    return {**answer, "heads": heads, "checkpoint": begins if begins and begins["seq"] == first - 1 else None}


async def verify(ask: Ask) -> ChainReport:
    """Recompute the chain from its beginning."""
    ledger = ask.api.ledger
    key = audit_chain.public_key(ledger.public_key)
    report = await ledger.read_slow(lambda db: audit_chain.verify(rows.export(db), key=key))
    answer: ChainReport = {
        "ok": report.ok,
        "events": report.events,
        "heads": report.heads,
        "signed_seq": report.signed_seq,
        "removed_seq": report.removed_seq,
        "head": {"seq": report.last_seq, "hash": report.last_hash},
    }
    return answer if report.ok else {**answer, "first_bad_seq": report.bad_seq, "reason": report.problem}


def _microseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            raise Problem("bad_request", f"since: expected a time with its zone, found {text[:40]!r}")
        since = moment.astimezone(UTC) - _EPOCH
    except (ValueError, OverflowError) as error:  # the latter for a zone that leads out of the calendar
        raise Problem("bad_request", f"since: expected an RFC 3339 time, found {text[:40]!r}") from error
    return max(0, since // timedelta(microseconds=1))
