"""Checks the audit chains while the daemon runs: in batches on a thread, starting at the last verified head.

Verified heads are kept in memory, and dropped when another connection has written to the database (`PRAGMA
data_version`). That does not show bytes changed in the file itself: only a check with `whole`, or the first one after a
start, finds those. No transaction stays open between batches, so other queries, retention and WAL checkpoints go on.
"""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.kit.value import Value
from latticed.ledger import audit as rows
from latticed.model import chain
from latticed.model.chain import CALLS, DECISIONS
from latticed.model.errors import Problem
from latticed.trust import audit_chain

if TYPE_CHECKING:
    from latticed.ledger import Connection, Ledger

BATCH: Final = 5_000
"""Events checked at a time: some 60 ms of a thread."""


class Progress(NamedTuple):
    """How far the running check is: event `seq` of `of` in `chain`."""

    chain: str = DECISIONS
    seq: int = 0
    of: int = 0


class VerifyRequest(Value, frozen=True, kw_only=True):
    """Which chains to check, and whether from their beginning instead of the last verified head."""

    chains: tuple[chain.Name, ...] = chain.NAMES
    whole: bool = False


Reports = dict[chain.Name, audit_chain.ChainCheck]


class Verifying:
    """Runs one check at a time; a concurrent caller waits, then starts at the head that the other check verified.

    `progress` is of the check that runs, or of the last one.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._key = audit_chain.public_key(ledger.public_key)
        self._turn = asyncio.Lock()
        self._sealed: Reports = {}
        self._written = -1
        self.progress = Progress()

    async def verify(self, wanted: VerifyRequest, *, closing: asyncio.Event) -> Reports:
        """Check `wanted.chains`; a report for each. Problems: ledger_unavailable, stopping (`closing` was set)."""
        async with self._turn:
            # data_version is per connection, so it must be read on the writing one: there only writes by others change
            # it. `essential` lets it pass while the disk is full; it writes nothing.
            written = await self._ledger.write(lambda tx: int(tx.execute("PRAGMA data_version").get), essential=True)
            if written != self._written or wanted.whole:
                self._sealed, self._written = {}, written
            return {name: await self._verify(name, closing) for name in wanted.chains}

    async def _verify(self, name: chain.Name, closing: asyncio.Event) -> audit_chain.ChainCheck:
        """Check one chain; the verified head is kept after each batch, so a cancelled check is not repeated."""
        walk = audit_chain.Walk(self._key, name, since=self._sealed.get(name))
        # Fixed at the start: events that are written meanwhile do not keep the check going.
        end = await self._ledger.read_slow(lambda db: rows.last_seq(db, name))
        while True:
            if closing.is_set():
                raise Problem("stopping", "the daemon is stopping", "ask again once it is back")
            self.progress = Progress(name, walk.seq, end)
            match await self._ledger.read_slow(lambda db, walk=walk: _batch(db, name, walk, end)):  # type: ignore[misc]
                case _Step.OVERTAKEN:
                    # Without a head: the walk starts over, at the checkpoint that retention has left.
                    walk = audit_chain.Walk(self._key, name)
                case _Step.DONE:
                    break
            self._keep(name, walk)
        self._keep(name, walk)
        return walk.report()

    def _keep(self, name: chain.Name, walk: audit_chain.Walk) -> None:
        """Keep the head at which the next check starts; none when the chain is broken, so that it starts over."""
        self._sealed.pop(name, None)
        if walk.sealed is not None and not walk.broken:
            self._sealed[name] = walk.sealed


class _Step(enum.Enum):
    """Outcome of a batch. `OVERTAKEN`: retention removed events ahead of the walk; start over at its checkpoint."""

    MORE = enum.auto()
    DONE = enum.auto()
    OVERTAKEN = enum.auto()


def _batch(db: Connection, name: chain.Name, walk: audit_chain.Walk, end: int) -> _Step:
    """Check up to BATCH events, none past `end`. Runs on a reader thread of the ledger."""
    # Read in the same snapshot as the events below, so that both are from before or from after a removal.
    begins = rows.checkpoint(db, chain=name)
    if begins is not None and begins["seq"] > walk.seq:
        if walk.seq:
            return _Step.OVERTAKEN
        walk.take({"checkpoint": begins})
    lines = rows.export_lines(db, name, after=walk.seq, upto=end, most=BATCH)
    for line in lines:
        walk.take(line)
    # A fault ends the walk: the report names the first broken event.
    if lines and not walk.broken:
        return _Step.MORE
    if begins is not None:
        walk.removed(begins)
    head = rows.newest_head(db, name)
    # A signed head beyond the last event shows that events were cut off the end.
    if head is not None and head["seq"] > rows.last_seq(db, name):
        walk.take({"head": head})
    walk.finish()
    return _Step.DONE


def described(reports: Reports, chains: tuple[chain.Name, ...]) -> dict[str, Any]:
    """The API's answer: the report of the first of `chains`, and under `calls` that of the second, if there is one.

    `ok` is for both; when only the second is broken, its first_bad_seq, reason and chain are at the top, too.
    """
    first, *others = (_plain(reports[name], name) for name in chains)
    if not others:
        return first
    # Never more than two chains, so exactly one is left.
    (calls,) = others
    worse = {} if calls["ok"] or not first["ok"] else {key: calls[key] for key in ("first_bad_seq", "reason", "chain")}
    return {**first, **worse, "ok": first["ok"] and calls["ok"], "calls": calls}


def _plain(report: audit_chain.ChainCheck, name: chain.Name) -> dict[str, Any]:
    """One report as the API's JSON; `chain` only for the host calls."""
    plain: dict[str, Any] = {
        "ok": report.ok,
        "events": report.events,
        "heads": report.heads,
        "signed_seq": report.signed_seq,
        "removed_seq": report.removed_seq,
        "head": {"seq": report.last_seq, "hash": report.last_hash},
    }
    if name == CALLS:
        plain["chain"] = name
    return plain if report.ok else {**plain, "first_bad_seq": report.bad_seq, "reason": report.problem}
