"""Revocations outlive the file that named them: what was revoked once stays so until somebody lifts it (contracts §4).

They are kept in the ledger and in the signed floors file, beside the versions and masks that a lost ledger must not
loosen (architecture decision 3).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latticed.kit import logs
from latticed.ledger import revocations as rows
from latticed.ledger.floors import Floors, Pin
from latticed.lifecycle import merge_after_loss
from latticed.model.audit import DAEMON, Event
from latticed.model.errors import Problem
from latticed.trust import changes
from latticed.trust.policy import Revoked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from latticed.kit.clock import Clock
    from latticed.ledger import Connection, Ledger, Transaction
    from latticed.lifecycle.policy import PolicyKeeper
    from latticed.model.audit import Actor
    from latticed.model.lifecycle import Record, RecordFacts

log = logs.get_logger()

KINDS: Final[dict[str, rows.Kind]] = {"key": "keys", "digest": "digests", "plugin": "plugins"}


def remembered(db: Connection) -> Revoked:
    """Every revocation on record."""
    kept = rows.load(db)
    return Revoked(keys=kept.keys, digests=kept.digests, plugins=kept.plugins)


class RevocationKeeper:
    """Writes down what the policy revokes, and lifts what an operator says is to be lifted."""

    def __init__(self, ledger: Ledger, policy: PolicyKeeper, clock: Clock) -> None:
        self._ledger = ledger
        self._policy = policy
        self._clock = clock
        self._turn = asyncio.Lock()
        """Held while floors are made and written: whoever asks what they say is told of the newest."""

    async def remember(self) -> bool:
        """Keep what the policy in force revokes, and tell what else its file says now; True when all is on record.

        It holds either way.
        """
        policy = self._policy
        wanted, told, own = policy.current.revoked, policy.told, policy.own
        changed = changes.differences(told, own) if told is not None else ()
        policy.told = own
        if wanted == policy.remembered and not changed:
            return True
        seen = rows.RevocationRows(keys=wanted.keys, digests=wanted.digests, plugins=wanted.plugins)
        now_us, owner = self._clock.wall_us(), f"uid:{policy.owner}"

        def change(tx: Transaction) -> None:
            fresh = rows.remember(tx, seen, now_us=now_us)
            for kind in rows.KINDS:
                for value in sorted(getattr(fresh, kind)):
                    detail: dict[str, str | int | bool] = {"kind": kind, "file_owner": owner}
                    tx.append_audit(Event(actor=str(DAEMON), action="trust.revoked", target=value, detail=detail))
            for one in changed:
                tx.append_audit(_told(one, owner))

        try:
            await self._ledger.write(change, durable=True, essential=True)
        except Problem as problem:
            log.error("revocations_not_recorded", code=problem.code)
            policy.told = told
            return False
        policy.remember(wanted)
        return True

    async def lift(self, actor: Actor, kind: str, value: str) -> None:
        """Forget one revocation; Problem when there is none, or the policy file still names it."""
        column = KINDS.get(kind)
        if column is None:
            raise Problem("bad_request", f"kind: expected one of {', '.join(KINDS)}, found {kind[:40]!r}")
        if value in getattr(self._policy.own.revoked, column):
            detail = f"{value[:100]} is still revoked by {self._policy.file.name}"
            raise Problem("still_revoked", detail, "take it out of the file first")
        event = Event(actor=str(actor), action="trust.lifted", target=value, decision="allow", detail={"kind": column})

        def change(tx: Transaction) -> bool:
            known = rows.lift(tx, column, value)
            if known:
                tx.append_audit(event)
            return known

        if value in getattr(self._ledger.read(rows.load), column):
            await self._loosen_floors(column, value)
        if not await self._ledger.write(change, durable=True):
            raise Problem("not_found", f"{value[:100]} is not revoked", "latticectl trust")
        self._policy.remember(self._ledger.read(remembered))
        with contextlib.suppress(Problem):  # in case they were written meanwhile from what was known before
            await self._loosen_floors(column, value)

    async def before(self, record: Record, records: Mapping[str, Record]) -> None:
        """Have the floors allow what `record` is about to allow; Problem ledger_unavailable when they cannot.

        Floors that are stricter than the ledger undo it at the next start. So what loosens is in them first, and what
        tightens in the ledger first: whenever a kill comes, what was answered holds.
        """
        async with self._turn:
            if merge_after_loss.looser(self._ledger.floors, record):
                wanted = {**records, record.id: record}
                await self._ledger.write_floors(floors_of(wanted.values(), self._policy.current.revoked))

    async def _loosen_floors(self, column: rows.Kind, value: str) -> None:
        async with self._turn:
            kept = self._ledger.floors
            left = replace(kept.revoked, **{column: getattr(kept.revoked, column) - {value}})
            if left != kept.revoked:
                await self._ledger.write_floors(replace(kept, revoked=left))

    async def write_floors(self, records: Iterable[Record]) -> bool:
        """Mirror floors, masks, pins and revocations outside the ledger; False, and logged, when it cannot be."""
        try:
            async with self._turn:
                made = asyncio.to_thread(floors_of, list(records), self._policy.current.revoked)
                await self._ledger.write_floors(await made)
        except Problem as problem:
            log.error("floors_not_written", code=problem.code)
            return False
        return True


def _told(change: changes.Change, owner: str) -> Event:
    detail: dict[str, str | int | bool] = {change.what: change.value, "file_owner": owner}
    return Event(actor=str(DAEMON), action=f"trust.{change.kind}", target=change.target, detail=detail)


def floors_of(records: Iterable[Record], revoked: Revoked) -> Floors:
    """What of `records` must outlive the ledger; of tombstones too."""
    kept = list(records)
    return Floors(
        versions={record.id: record.floor for record in kept if record.floor},
        masked={record.id: record.masked for record in kept if record.masked},
        terms={record.id: record.terms for record in kept if record.terms is not None},
        pins={record.id: _pin(record.facts) for record in kept},
        revoked=rows.RevocationRows(keys=revoked.keys, digests=revoked.digests, plugins=revoked.plugins),
    )


def _pin(facts: RecordFacts) -> Pin:
    return Pin(publisher=facts.publisher, signed=facts.signed, identity=facts.identity)
