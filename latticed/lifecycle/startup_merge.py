"""At every start: merge ledger, signed floors and journalled heads, strictest first (architecture, decision 3).

A ledger that is older than what this host has signed since is refused unless the operator accepts it; then it is merged
like a restored one. Otherwise floors only take away, so that editing rows of the ledger by hand grants nothing.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from latticed.kit import logs
from latticed.ledger import records as rows
from latticed.ledger import revocations, rollback
from latticed.lifecycle import handover, merge_after_loss
from latticed.lifecycle.revocations import floors_of
from latticed.model.audit import DAEMON, Event
from latticed.model.errors import Problem
from latticed.trust.policy import Revoked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger, Transaction
    from latticed.model import chain
    from latticed.model.lifecycle import Record

log = logs.get_logger()


async def merge(
    ledger: Ledger, clock: Clock, *, accept: bool, journalled: Callable[[], Awaitable[list[chain.Head]]]
) -> None:
    """Refuse a ledger that was rolled back, unless `accept`; tighten it to the floors and record what that changed.

    Called at each start, before anything reads records. `journalled` gives heads as `journalled_heads.newest`.
    Problems: ledger_rolled_back, ledger_unavailable.
    """
    # Opening compared it with the heads in the floors file; the journal may hold newer ones.
    heads = await journalled()
    behind = ledger.behind or _behind_journal(ledger, heads)
    if behind and not accept:
        raise rollback.problem_of(behind)
    # What would change: records that are looser than the floors, revocations that the ledger lacks.
    now_us, kept = clock.wall_us(), ledger.floors
    before = {record.id: record for record in ledger.read(rows.load_all)}
    changed = merge_after_loss.held_to(before, kept, now_us=now_us, replaced=bool(behind))
    known = ledger.read(revocations.load)
    forgotten = sum(len(getattr(kept.revoked, kind) - getattr(known, kind)) for kind in revocations.KINDS)
    # The usual start: nothing is written, so that no event is recorded and no fsync is paid for.
    if not changed and not forgotten and not behind:
        return

    def change(tx: Transaction) -> None:
        tx.append_audit(_event(changed, forgotten, behind))
        for record in changed:
            rows.put(tx, record)
            handover.set_aside_lost(tx, before.get(record.id), record)
        if behind:
            handover.withdraw_approvals(tx)
        revocations.remember(tx, kept.revoked, now_us=now_us)

    # Essential: tightening must not fail because the disk is full.
    await ledger.write(change, durable=True, essential=True)
    log.warning("ledger_held_to_floors", records=len(changed), revocations=forgotten, reason=behind)
    if behind:
        # Heads signed before now belong to the ledger that was lost: the next start must not compare with them.
        ledger.accept(heads)
    # Floors of the merged state, so that a start which follows finds nothing to tighten.
    everything = {**before, **{record.id: record for record in changed}}
    known = ledger.read(revocations.load)
    revoked = Revoked(**{kind: getattr(known, kind) for kind in revocations.KINDS})
    with contextlib.suppress(Problem):  # disk full: the old floors are as strict, and are rewritten later
        await ledger.write_floors(floors_of(everything.values(), revoked))


def _event(changed: list[Record], forgotten: int, behind: str) -> Event:
    """Audit event of what was tightened; `behind` is set when the operator accepted an older ledger."""
    # Ten ids at most, so that the event stays short; `records` says how many there were.
    detail: dict[str, str | int | bool] = {
        "records": len(changed),
        "ids": ",".join(record.id for record in changed[:10]),
        "revocations": forgotten,
    }
    action = "ledger.rollback_accepted" if behind else "ledger.held_to_floors"
    return Event(
        actor=str(DAEMON),
        action=action,
        target="ledger",
        decision="allow" if behind else "-",
        reason=behind or "the signed floors were stricter than the ledger",
        detail=detail,
    )


def _behind_journal(ledger: Ledger, heads: list[chain.Head]) -> str:
    """What the journal's newest heads of this host show that the ledger lacks; empty for none."""
    newest: dict[chain.Name, chain.Head] = {}
    replaced = frozenset(ledger.floors.replaced)
    for head in ledger.genuine(heads):
        if head.hash in replaced:
            newest.pop(head.chain, None)  # of a ledger that was replaced, as are those before it
        elif head.ts > ledger.floors.accepted_at:
            newest[head.chain] = head  # by journal order, not timestamp: clocks can be set back
    return ledger.read(lambda db: rollback.behind_heads(db, newest.values()))
