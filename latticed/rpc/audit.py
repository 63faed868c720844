"""Handlers for the audit chain: query by filter and cursor, verify the whole."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from latticed.ledger import audit as rows
from latticed.model.errors import Problem
from latticed.rpc.api import integer
from latticed.trust import audit_chain

if TYPE_CHECKING:
    from latticed.rpc.api import Ask

MAX_PAGE = 1_000


async def query(ask: Ask) -> dict[str, Any]:
    """Events after a cursor, oldest first; `newest` counts from the end instead, `heads` adds signed heads."""
    asked = ask.query(
        after="0", limit="100", actor="", action="", target="", decision="", since="", newest="", heads=""
    )
    limit = integer(asked["limit"], "limit", low=1, high=MAX_PAGE)
    after = integer(asked["after"], "after", low=0, high=2**53)
    filters = {name: asked[name] or None for name in ("actor", "action", "target", "decision")}
    since_us = _microseconds(asked["since"]) if asked["since"] else None
    newest = bool(asked["newest"])
    events = await ask.api.ledger.read_slow(
        lambda db: rows.query(db, after=after, limit=limit, since_us=since_us, newest_first=newest, **filters)
    )
    more = len(events) == limit and not newest
    answer = {"events": events, "next": events[-1]["seq"] if more else None}
    if not asked["heads"] or not events:
        return answer
    if not more:  # so that the end of an export is under a signature too
        await ask.api.ledger.sign_head()
    first, last = events[0]["seq"], events[-1]["seq"]
    heads = await ask.api.ledger.read_slow(lambda db: rows.heads(db, first, last))
    return {**answer, "heads": heads}


async def verify(ask: Ask) -> dict[str, Any]:
    """Recompute the chain from its beginning."""
    ask.query()
    ledger = ask.api.ledger
    key = audit_chain.public_key(ledger.public_key)
    report = await ledger.read_slow(lambda db: audit_chain.verify(rows.export(db), key=key))
    answer = {
        "ok": report.ok,
        "events": report.events,
        "heads": report.heads,
        "signed_seq": report.signed_seq,
        "head": {"seq": report.last_seq, "hash": report.last_hash},
    }
    return answer if report.ok else {**answer, "first_bad_seq": report.bad_seq, "reason": report.problem}


def _microseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Problem("bad_request", f"since: expected an RFC 3339 time, found {text[:40]!r}") from error
    if moment.tzinfo is None:
        raise Problem("bad_request", f"since: expected a time with its zone, found {text[:40]!r}")
    return int(moment.timestamp() * 1_000_000)
