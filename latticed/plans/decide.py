"""What the root helper decides, over frozen values: who may ask what, what may be applied, what has expired.

No I/O, no clock: moments are passed in.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from latticed.kit.peers import NOBODY
from latticed.model.fault import Fault
from latticed.model.plan import PlanState
from latticed.plans import protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from latticed.kit.peers import Peer
    from latticed.plans.kind import Intent
    from latticed.plans.records import Armed, Bound, PlanRecord, Target

REVIEWED_KEPT: Final = 8
"""So many reviewed plans, the newest, are not removed for new offers: an operator is reading them."""


class Role(Enum):
    """What a peer is to the helper."""

    STRANGER = auto()
    DAEMON = auto()
    APPROVER = auto()
    ROOT = auto()


MAY: Final[Mapping[Role, frozenset[type[protocol.Request]]]] = {
    Role.STRANGER: frozenset(),
    Role.DAEMON: frozenset({protocol.Offer, protocol.Observe, protocol.Apply}),
    Role.APPROVER: frozenset(protocol.ANSWERS) - {protocol.Boot},
    Role.ROOT: frozenset(protocol.ANSWERS),
}
"""The requests that each role may make."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Approvers:
    """Who may ask, by number, resolved when the helper starts. `daemon_uid` -1: there is no such user."""

    daemon_uid: int
    uids: frozenset[int] = frozenset()
    gids: frozenset[int] = frozenset()
    names: Mapping[int, str]

    def role(self, peer: Peer) -> Role:
        """The daemon's user is that and nothing more, even where it, or a group of it, is named as an approver."""
        # The overflow uid stands for every uid that has no mapping here (user_namespaces(7)).
        if peer.uid == NOBODY:
            return Role.STRANGER
        if peer.uid == 0:
            return Role.ROOT
        if peer.uid == self.daemon_uid:
            return Role.DAEMON
        if peer.uid in self.uids or self.gids & {peer.gid, *peer.groups}:
            return Role.APPROVER
        return Role.STRANGER


def state_of(plan: PlanRecord, target: Target) -> PlanState:
    """The state of a plan: the target's word first, which is written in one piece with what it says."""
    if target.armed is not None and target.armed.plan == plan.plan:
        return PlanState.UNCONFIRMED if target.armed.committed else PlanState.APPLYING
    # With another value of a secret it would be another rendering.
    if target.confirmed == plan.plan and target.macs == plan.macs:
        return PlanState.APPLIED
    return plan.state


def is_expired(armed: Armed, *, boot_id: str, now_ns: int) -> bool:
    """Whether a change has to be undone: its deadline passed, undoing it was begun, or the machine was started anew.

    `now_ns` is of CLOCK_BOOTTIME, so setting the clock changes nothing, and time asleep counts.
    """
    return armed.boot_id != boot_id or bool(armed.undoing) or now_ns >= armed.deadline_ns


def left_s(armed: Armed, *, boot_id: str, now_ns: int) -> float:
    """Seconds until the deadline, at least 0."""
    return 0.0 if is_expired(armed, boot_id=boot_id, now_ns=now_ns) else (armed.deadline_ns - now_ns) / 1e9


def narrows(
    bound: Bound | None, intent: Intent, macs: Mapping[str, str], of_kind: Callable[[Intent, Intent], bool]
) -> bool:
    """Whether an intent may be applied without approval: it only takes away from the one approved last.

    Its secrets must be among those of the approved one, with the same values: another value is another review.
    """
    if bound is None or not macs.items() <= bound.macs.items():
        return False
    return of_kind(bound.intent, intent)


class Way(Enum):
    """How a plan may be applied."""

    REVIEWED = auto()
    """As approved, if the review is still the same."""
    NARROWS = auto()
    """Without approval."""
    ALREADY = auto()
    """Not at all: it is what the target holds."""


def apply(plan: PlanRecord, target: Target, *, is_narrow: bool) -> Way | Fault:
    """Whether the plan may be applied now, and how."""
    short = plan.plan[:12]
    state = state_of(plan, target)
    if target.armed is not None:
        detail = f"{plan.kind} has an unconfirmed change of plan {target.armed.plan[:12]}"
        return Fault("target_busy", detail, f"latticectl plan confirm|rollback {target.armed.plan[:12]}")
    if state is PlanState.REFUSED:
        return Fault("not_approved", f"the plan {short} was refused")
    if state is PlanState.APPLIED:
        return Way.ALREADY
    if state is PlanState.APPROVED:
        return Way.REVIEWED
    if is_narrow:
        return Way.NARROWS
    return Fault(
        "not_approved",
        f"the plan {short} is {state}, and it does more than take away from what was approved last",
        f"latticectl plan show {short}, then approve it",
    )


_APPROVABLE: Final = frozenset(
    {PlanState.PLANNED, PlanState.APPROVED, PlanState.ROLLED_BACK, PlanState.FAILED, PlanState.STALE}
)


def approve(plan: PlanRecord, target: Target) -> Fault | None:
    """Why the plan cannot be approved in its state; None when it can."""
    return _unless(plan, state_of(plan, target), _APPROVABLE, "approved")


def refuse(plan: PlanRecord, target: Target) -> Fault | None:
    """Why the plan cannot be refused in its state; None when it can."""
    return _unless(plan, state_of(plan, target), _APPROVABLE | {PlanState.REFUSED}, "refused")


def confirm(plan: PlanRecord, target: Target, *, boot_id: str, now_ns: int) -> Fault | None:
    """Why the plan cannot be confirmed; None when it can. `expired` after its deadline, also once it was undone."""
    armed = target.armed
    if armed is not None and armed.plan == plan.plan and armed.committed:
        if not is_expired(armed, boot_id=boot_id, now_ns=now_ns):
            return None
        return _expired(plan)
    if plan.undone_by in {"deadline", "boot"} and state_of(plan, target) is PlanState.ROLLED_BACK:
        return _expired(plan)
    return _unless(plan, state_of(plan, target), frozenset({PlanState.UNCONFIRMED}), "confirmed")


def rollback(plan: PlanRecord, target: Target) -> Fault | None:
    """Why there is nothing of the plan to undo; None when there is."""
    wanted = frozenset({PlanState.UNCONFIRMED, PlanState.APPLYING})
    return _unless(plan, state_of(plan, target), wanted, "rolled back")


def evicted(kept: Iterable[PlanRecord], targets: Mapping[str, Target]) -> PlanRecord | None:
    """The plan that makes room for a new offer; None when all are needed.

    Never one that is armed or confirmed, nor one of the REVIEWED_KEPT that were reviewed last: a daemon that offers
    without end cannot take from an operator what is being read. Refused ones after others: forgotten, they could be
    offered again. Approved ones last, the oldest first: never applied, they pile up over months, and would otherwise
    keep out every ban. A flood takes one of them at most, since what it offered itself goes before the next.
    """
    known = list(kept)
    reading = sorted((one for one in known if one.reviewed), key=lambda one: one.updated_us)[-REVIEWED_KEPT:]
    busy = {PlanState.APPLYING, PlanState.UNCONFIRMED, PlanState.APPLIED}
    free = [one for one in known if state_of(one, targets[one.kind]) not in busy and one not in reading]
    return min(
        free,
        key=lambda one: (one.state is PlanState.APPROVED, one.state is PlanState.REFUSED, one.updated_us),
        default=None,
    )


def _unless(plan: PlanRecord, state: PlanState, wanted: frozenset[PlanState], word: str) -> Fault | None:
    if state in wanted:
        return None
    return Fault("invalid_transition", f"the plan {plan.plan[:12]} is {state}, so it cannot be {word}")


def _expired(plan: PlanRecord) -> Fault:
    detail = f"the plan {plan.plan[:12]} was not confirmed in time and has been undone"
    return Fault("expired", detail, f"latticectl plan show {plan.plan[:12]}, then approve and apply it again")
