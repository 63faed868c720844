"""The states of a task and the steps between them. Pure.

    submitted ─► approved ─► running ─► done │ failed
        │            │          ├─────► interrupted   (the daemon ended meanwhile; it is never run again)
        └────────────┴──────────┴─────► cancelled
        └────────────┴────────────────► expired
        └────────────┴────────────────► failed        (the script is no longer what was submitted or approved)
    approved ─► submitted   (its plugin may not have tasks run any more: it needs approval again)

Only `approved` leads to `running`, and nothing leads back: so a task is run once at most.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, assert_never

from latticed.kit.value import Value
from latticed.model.fault import Fault

if TYPE_CHECKING:
    from latticed.ledger.tasks import State

Verb = Literal["approve", "withdraw", "begin", "finish", "fail", "cancel", "expire", "recover"]

# (state before, verb): state after. What is not here is refused.
_NEXT: Final = MappingProxyType(
    {
        ("submitted", "approve"): "approved",
        ("submitted", "fail"): "failed",
        ("submitted", "cancel"): "cancelled",
        ("submitted", "expire"): "expired",
        ("approved", "withdraw"): "submitted",
        ("approved", "begin"): "running",
        ("approved", "fail"): "failed",
        ("approved", "cancel"): "cancelled",
        ("approved", "expire"): "expired",
        ("running", "finish"): "done",
        ("running", "fail"): "failed",
        ("running", "cancel"): "cancelled",
        ("running", "recover"): "interrupted",
    }
)
ENDS: Final = frozenset({"done", "failed", "interrupted", "cancelled", "expired"})
"""States that no step leads out of."""


class TaskStatus(Value, frozen=True, kw_only=True):
    """What decides about a step: the state, the digests of the script as submitted and as approved, the run."""

    state: State
    sha256: str
    approved_sha256: str = ""
    run_id: str = ""


class Step(Value, frozen=True, kw_only=True):
    """One step. `sha256`: digest of the script that is approved or about to be run (approve, begin); `run_id`: the run
    that is meant (begin, finish).
    """

    verb: Verb
    sha256: str = ""
    run_id: str = ""


def decide(before: TaskStatus, step: Step) -> TaskStatus | Fault:
    """The status after `step`, or a Fault: `invalid_transition`, or `digest_mismatch` for another script."""
    state = _NEXT.get((before.state, step.verb))
    if state is None:
        return Fault("invalid_transition", f"expected a task that one can {step.verb}, found it {before.state}")
    match step.verb:
        case "approve":
            if step.sha256 != before.sha256:
                return _mismatch("approval of", before.sha256, step.sha256)
            return _with(before, "approved", approved_sha256=step.sha256)
        case "withdraw":
            return _with(before, "submitted", approved_sha256="")
        case "begin":
            # Both: the script must be the one that was submitted, and the one that the operator saw.
            for meant in (before.approved_sha256, before.sha256):
                if step.sha256 != meant:
                    return _mismatch("to run", meant, step.sha256)
            return _with(before, "running", run_id=step.run_id)
        case "finish":
            # A late report of an earlier run must not end this one.
            if step.run_id != before.run_id:
                return Fault("invalid_transition", "it is another run's end")
            return _with(before, "done")
        case "fail" | "cancel" | "expire" | "recover":
            return _with(before, state)  # type: ignore[arg-type]
        case _:
            assert_never(step.verb)


def _with(
    before: TaskStatus, state: State, *, approved_sha256: str | None = None, run_id: str | None = None
) -> TaskStatus:
    """`before` with another state, and with those of the other arguments that are not None."""
    return TaskStatus(
        state=state,
        sha256=before.sha256,
        approved_sha256=before.approved_sha256 if approved_sha256 is None else approved_sha256,
        run_id=before.run_id if run_id is None else run_id,
    )


def _mismatch(what: str, expected: str, found: str) -> Fault:
    reason = f"expected {what} the script with sha256 {expected}, found {found or 'none'}"
    return Fault("digest_mismatch", reason)
