"""What follows from the root helper's report for our rows and our audit chain: pure.

The helper decides about plans; here its words are only repeated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from latticed.ledger.plans import Reported, StepsRead
from latticed.model import chain
from latticed.model.audit import DAEMON, Event
from latticed.model.plan import PlanState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed.ledger.plans import PlanRow
    from latticed.plans.protocol import Observed, PlanView, Step

CHAIN: Final = "plan.chain"
"""Action of the events that say what is wrong with the helper's chain."""
FINAL_CODES: Final = frozenset({"intent_refused", "bad_request", "too_large"})
"""Codes by which a plan can never be applied, however often it is offered."""
_FORGOTTEN: Final = "the root helper does not keep this plan any more"


class Copied(NamedTuple):
    """The events to append, and how far the helper's chain is copied then."""

    events: tuple[Event, ...]
    read: StepsRead


def copies(read: StepsRead, observed: Observed) -> Copied:
    """Our events for the steps that were not copied yet.

    A chain that does not go on where it was left (the helper's state was removed, replaced or changed) is an event of
    its own, `plan.chain`; then copying goes on from what there is.
    """
    events: list[Event] = []
    if observed.last_step < read.seq:
        events.append(_broken("chain_lost", f"it ends at step {observed.last_step}, but {read.seq} were copied"))
        # From the beginning, at the next report: the steps of this one were asked for after `read.seq`.
        return Copied(tuple(events), StepsRead())
    for step in observed.steps:
        if step.seq <= read.seq:
            continue
        if step.seq != read.seq + 1:
            events.append(_broken("steps_missing", f"step {read.seq + 1} is expected, {step.seq} is the next there is"))
        elif step.prev != (read.hash or chain.GENESIS):
            events.append(_broken("chain_broken", f"step {step.seq} does not follow the step that was copied last"))
        if not _is_whole(step):
            events.append(_broken("chain_broken", f"the hash of step {step.seq} is not that of its content"))
        events.append(_event(step))
        read = StepsRead(step.seq, step.hash)
    return Copied(tuple(events), read)


def reports(rows: Iterable[PlanRow], observed: Observed) -> dict[str, Reported]:
    """What to write into the rows, by the plans' sha256.

    Every plan of the helper is in it. One of `rows`, which are open or applied, that the helper does not know is stale,
    unless it is planned: then it is offered again (`unknown`).
    """
    found = {one.plan: _reported(one) for one in observed.plans}
    for row in rows:
        if row.sha256 not in found and row.state is not PlanState.PLANNED:
            found[row.sha256] = Reported(PlanState.STALE, reason=_FORGOTTEN)
    return found


def unknown(rows: Iterable[PlanRow], observed: Observed) -> list[PlanRow]:
    """The planned rows that the helper does not keep, newest first, a plan once: to be offered again."""
    known = {one.plan for one in observed.plans}
    missing = {
        row.sha256: row
        for row in rows
        if row.state is PlanState.PLANNED and row.sha256 not in known and row.code not in FINAL_CODES
    }
    return sorted(missing.values(), key=lambda row: -row.number)


def _reported(view: PlanView) -> Reported:
    return Reported(view.state, review=view.review, reason=view.message)


def _event(step: Step) -> Event:
    """Our copy of a step: who, what and when as the helper recorded it."""
    action = step.action if step.action.startswith("plan.") else f"plan.{step.action}"
    origin: dict[str, str | int | bool] = {"step": step.seq, "step_hash": step.hash, "at": step.ts}
    return Event(
        actor=step.actor,
        action=action,
        target=step.target,
        decision="allow" if step.decision == "allow" else "deny" if step.decision == "deny" else "-",
        code=step.code,
        reason=step.reason,
        detail={**step.detail, **origin},
    )


def _is_whole(step: Step) -> bool:
    """Whether the step's hash is that of its fields and of the step before."""
    try:
        return step.hash == chain.link(step.prev, msgspec.to_builtins(step))
    except ValueError:  # `prev` is no hexadecimal
        return False


def _broken(code: str, reason: str) -> Event:
    return Event(
        actor=str(DAEMON),
        action=CHAIN,
        target="latticed-apply",
        decision="deny",
        code=code,
        reason=f"the chain of its steps: {reason}",
    )
