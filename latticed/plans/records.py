"""What the helper keeps of plans and targets, as frozen structs; `store` reads and writes them as JSON."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from latticed.model.plan import PlanState
from latticed.plans.protocol import Finding


class PlanRecord(Struct, frozen=True, kw_only=True):
    """A plan that was offered. Times are microseconds since the epoch and decide nothing but the order of removal.

    `macs`: for each secret's reference the HMAC of its value. `state` is that of a plan which is neither armed nor
    confirmed: `decide.state_of` has the state to show. `review`: the approved one, empty for none. `source`: the
    address that its approver came from; `overridden`: the findings in spite of which it is approved. `undone_by`: why
    it was rolled back (`deadline`, `boot`, `operator`, `self_check`), empty otherwise.
    """

    plan: str
    kind: str
    intent: dict[str, Any]
    macs: dict[str, str]
    state: PlanState
    review: str = ""
    source: str = ""
    overridden: tuple[Finding, ...] = ()
    message: str = ""
    undone_by: str = ""
    offered_us: int
    updated_us: int
    reviewed: bool = False


class Bound(Struct, frozen=True, kw_only=True):
    """The intent that an operator approved last, from the address `source`: what narrows it needs no approval."""

    plan: str
    intent: dict[str, Any]
    macs: dict[str, str]
    source: str = ""


class Armed(Struct, frozen=True, kw_only=True):
    """A change that is undone at its deadline: written before the commit, removed by confirming or undoing.

    `apply_id` names the files of snapshot and rendering. `deadline_ns`: CLOCK_BOOTTIME of the boot `boot_id`; of any
    other boot it has passed. `committed`: commit and self-check are done, it waits for confirmation. `narrows`: nobody
    has to confirm it. `undoing`: why it is being undone (as `PlanRecord.undone_by`), from the first attempt that failed
    on; empty before.
    """

    apply_id: str
    plan: str
    intent: dict[str, Any]
    macs: dict[str, str]
    boot_id: str
    deadline_ns: int
    narrows: bool
    committed: bool = False
    undoing: str = ""


class Target(Struct, frozen=True, kw_only=True):
    """What one kind's target holds.

    `confirmed`: the plan that is kept; `macs`: of its secrets; `rendering`: the apply_id that its rendering is held by.
    """

    kind: str
    bound: Bound | None = None
    confirmed: str = ""
    macs: dict[str, str] = {}
    rendering: str = ""
    armed: Armed | None = None
