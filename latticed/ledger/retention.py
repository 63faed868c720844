"""How much of an audit chain is kept, and removing the rest: only up to a signed head, leaving a signed checkpoint.

Events go from the beginning, a slice at a time, so that recording waits only briefly for it. The newest event is
never removed. Space in the file is used again by what comes later; the file itself does not shrink.

The clock may jump. Removal by age therefore goes from the beginning and stops at the first head that is recent enough,
and one check removes no more than the oldest day: a clock that is ahead loses little in the hours before somebody sees
the events of removal in the chain.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from latticed.kit.clock import rfc3339
from latticed.kit.value import Value
from latticed.model import chain
from latticed.model.audit import DAEMON, Event
from latticed.model.chain import Head

if TYPE_CHECKING:
    from latticed.ledger.transaction import Transaction

SLICE: Final = 5_000
"""Events removed in one transaction: some 20 ms of the writer's time."""

_DAY_US: Final = 86_400_000_000
_FIELDS: Final = "seq, hash, ts, signature, size"


class Retention(Value, frozen=True, kw_only=True):
    """How much of a chain is kept: `keep_days` days, and about `max_bytes` bytes; 0 sets no limit.

    `max_bytes` counts events as an export does, without hashes. Past it a tenth of it is removed, so that not every
    check has to remove something.
    """

    keep_days: int = 0
    max_bytes: int = 0


KEEP_ALL: Final = Retention()


class Old:
    """Finds and removes the old events of one chain, within a transaction.

    `by_size` and `by_age` give the seq up to which to remove; `remove` removes a slice of the events up to it.
    """

    def __init__(self, tx: Transaction, name: chain.Name) -> None:
        self._tx = tx
        self._chain = tx.chains.calls if name == chain.CALLS else tx.chains.decisions
        self._events, self._heads, self._checkpoints = self._chain.tables

    def by_size(self, wanted: Retention) -> int:
        """The seq up to which to remove (included) so that the rest fits `max_bytes`; 0 for nothing."""
        gone = int(self._ask(f"SELECT coalesce(max(size), 0) FROM {self._checkpoints}"))
        tip = self._chain.tip
        if not wanted.max_bytes or tip.size - gone <= wanted.max_bytes:
            return 0
        keep = wanted.max_bytes - wanted.max_bytes // 10
        # `size` counts from the first event ever: what follows a head has `tip.size` minus the size at that head.
        young = f"SELECT min(seq) FROM {self._heads} WHERE size >= ? AND seq < ?"
        found = self._ask(young, tip.size - keep, tip.seq)
        if found is None:  # the newest events alone exceed the limit: remove up to the last head before them
            found = self._ask(f"SELECT max(seq) FROM {self._heads} WHERE seq < ?", tip.seq)
        return found or 0

    def by_age(self, wanted: Retention, *, now_us: int) -> int:
        """The seq up to which to remove so that nothing is older than `keep_days`; 0 for nothing.

        At most the events of one day, counted from the oldest event.
        """
        if not wanted.keep_days:
            return 0
        oldest = self._ask(f"SELECT ts FROM {self._events} ORDER BY seq LIMIT 1")
        if oldest is None:
            return 0
        # One day past the oldest event at most: a clock that jumped ahead would otherwise remove the whole chain at
        # once.
        cutoff = min(rfc3339(max(0, now_us - wanted.keep_days * _DAY_US)), _next_day(oldest))
        # The first head that is recent enough stops the removal, even if events after it carry older times.
        young = self._ask(f"SELECT min(seq) FROM {self._heads} WHERE ts >= ?", cutoff)
        # The newest event is never removed; without a recent head the end is the last head before it.
        before = min(young or self._chain.tip.seq, self._chain.tip.seq)
        return int(self._ask(f"SELECT coalesce(max(seq), 0) FROM {self._heads} WHERE seq < ?", before))

    def remove(self, upto: int) -> int:
        """Remove one slice of the events up to `upto`, never beyond a signed head; returns how many events went.

        Nothing is removed when the head at the end of the slice is not signed by this host or does not match its event:
        then the chain was tampered with, and is evidence. The removal is recorded in the same chain, so that removing
        calls does not make decisions grow.
        """
        first = self._ask(f"SELECT min(seq) FROM {self._events}")
        if first is None or first > upto:
            return 0
        # Up to a signed head only: the checkpoint repeats its hash.
        head, size = self._head(first, upto)
        if head is None:
            return 0
        # A chain that somebody changed is kept as evidence.
        found = self._ask(f"SELECT hash FROM {self._events} WHERE seq = ?", head.seq)
        if found != head.hash or not self._chain.genuine(head):
            return 0
        # The checkpoint is in the same transaction as the removal: without it the chain would not verify.
        self._chain.attest(head, size=size)
        self._tx.execute(f"DELETE FROM {self._events} WHERE seq <= ?", (head.seq,))
        removed = self._tx.changes()
        self._tx.execute(f"DELETE FROM {self._heads} WHERE seq <= ?", (head.seq,))
        detail: dict[str, str | int | bool] = {"first": first, "last": head.seq, "removed": removed, "hash": head.hash}
        self._chain.append(Event(actor=str(DAEMON), action="audit.removed", target="audit", detail=detail))
        return removed

    def _head(self, first: int, upto: int) -> tuple[Head | None, int]:
        """The last head in the slice that begins with `first`, else the next one up to `upto`; with the chain's size in
        bytes at it. (None, 0) without one.
        """
        latest = f"SELECT {_FIELDS} FROM {self._heads} WHERE seq BETWEEN ? AND ? ORDER BY seq DESC, id LIMIT 1"
        row = self._ask(latest, first, min(upto, first + SLICE - 1))
        if row is None:
            row = self._ask(latest.replace("DESC", "ASC"), first, upto)
        if row is None:
            return None, 0
        seq, found, ts, signature, size = row
        return Head(seq=seq, hash=found, ts=ts, signature=signature, chain=self._chain.name), size

    def _ask(self, question: str, *bindings: Any) -> Any:
        """The first row of the answer: its value if it has one column, else a tuple; None without a row."""
        return self._tx.execute(question, bindings).get


def _next_day(ts: str) -> str:
    """`ts` plus a day; for text that is no time, the latest time, so that it does not limit anything."""
    try:
        return (datetime.fromisoformat(ts) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except (ValueError, OverflowError):
        return "9999"
