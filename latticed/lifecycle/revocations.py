"""Keeps revocations after the policy file no longer names them, until an operator lifts them (contracts §4).

They are stored in the ledger and in the signed floors file, with the versions and masks that losing the ledger must not
loosen (architecture, decision 3).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

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
V = TypeVar("V")

KINDS: Final[dict[str, rows.Kind]] = {"key": "keys", "digest": "digests", "plugin": "plugins"}
"""The kind as operators name it, and the name of its column in the ledger, the policy and the floors."""


def remembered(db: Connection) -> Revoked:
    """Every revocation in the ledger, to begin with at a start."""
    kept = rows.load(db)
    return Revoked(keys=kept.keys, digests=kept.digests, plugins=kept.plugins)


class RevocationKeeper:
    """Records what the policy revokes, lifts revocations for an operator, and writes the floors file."""

    def __init__(self, ledger: Ledger, policy: PolicyKeeper, clock: Clock) -> None:
        self._ledger = ledger
        self._policy = policy
        self._clock = clock
        self._turn = asyncio.Lock()
        """Held while floors are computed and written, so that older values never overwrite newer ones."""
        self._recording = asyncio.Lock()
        """Held while revocations are recorded or lifted, so that a lifted one is not recorded again by a call that read
        the policy before it was lifted."""

    async def remember(self) -> bool:
        """As `record`; False, and logged, if it fails: the poll of the policy tries again."""
        try:
            await self.record()
        except Problem as problem:
            log.error("revocations_not_recorded", code=problem.code)
            return False
        return True

    async def record(self) -> None:
        """Record new revocations, of sources too, and other changes of the policy file.

        Problem ledger_unavailable: revocations count all the same, and stay to be recorded.
        """
        async with self._recording:
            await self._record()

    async def _record(self) -> None:
        policy = self._policy
        told, own = policy.told, policy.own
        changed = changes.differences(told, own) if told is not None else ()
        # Before the wait: a second call meanwhile must not record the same changes again.
        policy.told = own
        # So that they count until they are on record, whatever the file says by then.
        policy.foresee("", own.revoked - policy.remembered)
        # The usual case: nothing to write.
        if not (policy.unrecorded or changed):
            return
        unrecorded, now_us, owner = policy.unrecorded, self._clock.wall_us(), f"uid:{policy.owner}"

        def change(tx: Transaction) -> None:
            for source, seen in unrecorded.items():
                fresh = rows.remember(tx, _rows_of(seen), now_us=now_us)
                by = {"market_source": source} if source else {"file_owner": owner}
                for kind in rows.KINDS:
                    for value in sorted(getattr(fresh, kind)):
                        detail: dict[str, str | int | bool] = {"kind": kind, **by}
                        tx.append_audit(Event(actor=str(DAEMON), action="trust.revoked", target=value, detail=detail))
            for one in changed:
                tx.append_audit(_told(one, owner))

        try:
            # Durable: after a power cut a revocation must not depend on the file any more. Essential: also on a full
            # disk.
            await self._ledger.write(change, durable=True, essential=True)
        except BaseException:
            # So that the next call finds the same changes again.
            policy.told = told
            raise
        policy.remember(self._ledger.read(remembered))

    def foresee(self, seen: rows.RevocationRows, source: str) -> None:
        """Have what a market source takes back count from now on, until it is lifted; `record` puts it on disk.

        Before it is recorded: stopping waits for no disk.
        """
        self._policy.foresee(source, Revoked(keys=seen.keys, digests=seen.digests, plugins=seen.plugins))

    async def lift(self, actor: Actor, kind: str, value: str) -> None:
        """Remove one revocation of this kind (`key`, `digest`, `plugin`) for an operator.

        Problems: still_revoked (the policy file names it), not_found, ledger_unavailable.
        """
        async with self._recording:
            # What is not on record yet would be recorded afterwards.
            await self._record()
            await self._lift(actor, kind, value)

    async def _lift(self, actor: Actor, kind: str, value: str) -> None:
        column = KINDS[kind]
        if value in getattr(self._policy.own.revoked, column):
            detail = f"{value[:100]} is still revoked by {self._policy.file.name}"
            raise Problem("still_revoked", detail, "take it out of the file first")
        event = Event(actor=str(actor), action="trust.lifted", target=value, decision="allow", detail={"kind": column})

        def change(tx: Transaction) -> bool:
            known = rows.lift(tx, column, value)
            if known:
                tx.append_audit(event)
            return known

        if value in getattr(self._ledger.read(rows.load), column):  # floors first, as in `before`
            await self._loosen_floors(column, value)
        if not await self._ledger.write(change, durable=True):
            raise Problem("not_found", f"{value[:100]} is not revoked", "latticectl trust")
        # From the ledger, not by subtraction: a revocation may have been recorded meanwhile.
        self._policy.remember(self._ledger.read(remembered))
        with contextlib.suppress(Problem):  # `write_floors` may have put it back meanwhile
            await self._loosen_floors(column, value)

    async def before(self, record: Record) -> None:
        """Loosen the floors as far as `record` needs; call it before `record` is written. Problem ledger_unavailable.

        A start tightens the ledger to its floors. So loosening is written to the floors first, and tightening to the
        ledger first: then a kill at any time keeps what was answered.
        """
        async with self._turn:
            if merge_after_loss.looser(kept := self._ledger.floors, record):
                await self._ledger.write_floors(_with(kept, record))

    async def _loosen_floors(self, column: rows.Kind, value: str) -> None:
        """Write the floors without this revocation, if they have it; everything else in them stays."""
        async with self._turn:
            kept = self._ledger.floors
            left = replace(kept.revoked, **{column: getattr(kept.revoked, column) - {value}})
            if left != kept.revoked:
                await self._ledger.write_floors(replace(kept, revoked=left))

    async def write_floors(self, records: Iterable[Record]) -> bool:
        """Write versions, masks, terms, pins and revocations to the floors file; False, and logged, if it fails.

        `records` are all records, tombstones included: the file is replaced as a whole.
        """
        try:
            async with self._turn:
                made = asyncio.to_thread(floors_of, list(records), self._policy.current.revoked)
                await self._ledger.write_floors(await made)
        except Problem as problem:
            log.error("floors_not_written", code=problem.code)
            return False
        return True


def _told(change: changes.Change, owner: str) -> Event:
    """The audit event of one change of the policy file; `owner` is the file's, its author as far as is known."""
    detail: dict[str, str | int | bool] = {change.what: change.value, "file_owner": owner}
    return Event(actor=str(DAEMON), action=f"trust.{change.kind}", target=change.target, detail=detail)


def floors_of(records: Iterable[Record], revoked: Revoked) -> Floors:
    """The floors for these records (all of them, tombstones included) and revocations."""
    kept = list(records)
    return Floors(
        versions={record.id: record.floor for record in kept if record.floor},
        masked={record.id: record.masked for record in kept if record.masked},
        terms={record.id: record.terms for record in kept if record.terms is not None},
        pins={record.id: _pin(record.facts) for record in kept},
        revoked=_rows_of(revoked),
    )


def _rows_of(revoked: Revoked) -> rows.RevocationRows:
    return rows.RevocationRows(keys=revoked.keys, digests=revoked.digests, plugins=revoked.plugins)


def _with(kept: Floors, record: Record) -> Floors:
    """`kept` with what they have of this plugin replaced by `record`; a walk over all records blocks the event loop."""
    own = floors_of([record], Revoked())
    return replace(
        kept,
        versions=_replaced(kept.versions, own.versions, record.id),
        masked=_replaced(kept.masked, own.masked, record.id),
        terms=_replaced(kept.terms, own.terms, record.id),
        pins={**kept.pins, **own.pins},
    )


def _replaced(all_of: Mapping[str, V], own: Mapping[str, V], plugin_id: str) -> dict[str, V]:
    """`all_of` with the entry of `own` for this plugin, or without one if `own` has none."""
    found = {**all_of, **own}
    if plugin_id not in own:
        found.pop(plugin_id, None)
    return found


def _pin(facts: RecordFacts) -> Pin:
    return Pin(publisher=facts.publisher, signed=facts.signed, identity=facts.identity)
