"""How much of the audit chain is kept, and removing the rest: only up to a signed head, leaving a signed checkpoint.

Events go from the beginning, a slice at a time, so that nobody who records waits long for it. The newest event is
never removed. Space in the file is used again by what comes later; the file itself does not shrink.

The clock may jump. Age is therefore taken from the beginning on (a head of another century in the middle keeps what
follows it), and one look by age removes no more than the oldest day: hours pass before a clock that is ahead has cost
much, and `removed` in the chain and a growing checkpoint show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from latticed.kit.clock import rfc3339
from latticed.model.audit import DAEMON, Event
from latticed.model.chain import Head

if TYPE_CHECKING:
    from latticed.ledger.writer import Transaction

SLICE: Final = 5_000
"""Events removed in one transaction: some 20 ms of the writer's time."""

_DAY_US: Final = 86_400_000_000
_FIELDS: Final = "seq, hash, ts, signature, size"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept at least and at most; 0 keeps all. `max_bytes` counts events as an export does, without hashes.

    Past `max_bytes` a tenth of it is removed, so that it does not happen at every look.
    """

    keep_days: int = 0
    max_bytes: int = 0


KEEP_ALL: Final = Retention()


def by_size(tx: Transaction, wanted: Retention) -> int:
    """Up to which seq to remove so that the rest fits; 0 for nothing."""
    gone = int(tx.execute("SELECT coalesce(max(size), 0) FROM checkpoints").get)
    tip = tx.chain.tip
    if not wanted.max_bytes or tip.size - gone <= wanted.max_bytes:
        return 0
    keep = wanted.max_bytes - wanted.max_bytes // 10
    found = tx.execute("SELECT min(seq) FROM heads WHERE size >= ? AND seq < ?", (tip.size - keep, tip.seq)).get
    if found is None:  # the newest events alone are too many: what is signed before them can go
        found = tx.execute("SELECT max(seq) FROM heads WHERE seq < ?", (tip.seq,)).get
    return found or 0


def by_age(tx: Transaction, wanted: Retention, *, now_us: int) -> int:
    """Up to which seq to remove so that nothing is older than wanted, the oldest day at most; 0 for nothing."""
    if not wanted.keep_days:
        return 0
    oldest = tx.execute("SELECT ts FROM audit ORDER BY seq LIMIT 1").get
    if oldest is None:
        return 0
    cutoff = min(rfc3339(max(0, now_us - wanted.keep_days * _DAY_US)), _next_day(oldest))
    young = tx.execute("SELECT min(seq) FROM heads WHERE ts >= ?", (cutoff,)).get
    before = min(young or tx.chain.tip.seq, tx.chain.tip.seq)
    return int(tx.execute("SELECT coalesce(max(seq), 0) FROM heads WHERE seq < ?", (before,)).get)


def remove(tx: Transaction, upto: int) -> int:
    """Remove one slice of the events up to `upto`; how many went.

    None go when the head they would be removed under is not ours or does not fit its event: then somebody has changed
    the chain, and what is left of it is evidence.
    """
    first = tx.execute("SELECT min(seq) FROM audit").get
    if first is None or first > upto:
        return 0
    head, size = _head(tx, first, upto)
    if head is None:
        return 0
    found = tx.execute("SELECT hash FROM audit WHERE seq = ?", (head.seq,)).get
    if found != head.hash or not tx.chain.genuine(head):
        return 0
    tx.chain.attest(head, size=size)
    tx.execute("DELETE FROM audit WHERE seq <= ?", (head.seq,))
    removed = tx.changes()
    tx.execute("DELETE FROM heads WHERE seq <= ?", (head.seq,))
    detail: dict[str, str | int | bool] = {"first": first, "last": head.seq, "removed": removed, "hash": head.hash}
    tx.append_audit(Event(actor=str(DAEMON), action="audit.removed", target="audit", detail=detail))
    return removed


def _head(tx: Transaction, first: int, upto: int) -> tuple[Head | None, int]:
    """The last head of a slice that begins with `first`; when the slice has none, the next one."""
    latest = f"SELECT {_FIELDS} FROM heads WHERE seq BETWEEN ? AND ? ORDER BY seq DESC, id LIMIT 1"  # noqa: S608
    row = tx.execute(latest, (first, min(upto, first + SLICE - 1))).get
    if row is None:
        row = tx.execute(latest.replace("DESC", "ASC"), (first, upto)).get
    if row is None:
        return None, 0
    seq, found, ts, signature, size = row
    return Head(seq=seq, hash=found, ts=ts, signature=signature), size


def _next_day(ts: str) -> str:
    """A day after `ts`; for what is no time, the end of time, so that it decides nothing."""
    try:
        return (datetime.fromisoformat(ts) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (ValueError, OverflowError):
        return "9999"
