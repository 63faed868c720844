"""Whether an upgraded version stays, as one pure function: the next state of its gate, and what to do.

Example with a gate of 60 s: the new version is armed at 100 s, so it stays if it is armed and healthy at 160 s; one
that ends by itself at 130 s is given up at 130 s.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Final

from latticed.kit.value import Value
from latticed.model.fault import Fault
from latticed.model.runtime import Health

LEAST: Final = 3
"""So many bad ones, or more, can be a jump: fewer say nothing."""
FACTOR, MARGIN = 2.0, 0.05
"""A share of bad ones is a jump when it exceeds FACTOR times the earlier share by more than MARGIN."""


class Tally(Value, frozen=True, kw_only=True):
    """How many there were, and how many of them were bad."""

    total: int = 0
    bad: int = 0

    def since(self, earlier: Tally) -> Tally:
        """What came after `earlier` was taken."""
        return Tally(total=max(self.total - earlier.total, 0), bad=max(self.bad - earlier.bad, 0))

    @property
    def share(self) -> float:
        """The share of bad ones; 0 of none."""
        return self.bad / self.total if self.total else 0.0


class Baseline(Value, frozen=True, kw_only=True):
    """What the version before did: its host calls and denials, its invocations and errors, and its last health."""

    calls: Tally = Tally()
    invocations: Tally = Tally()
    health: Health = Health.UNKNOWN


class Condition(StrEnum):
    """How the new version is, as far as the gate is concerned."""

    STARTING = "starting"
    ARMED = "armed"
    FAILED = "failed"  # it ended, could not start, or was unhealthy too often; not by what visitors sent it
    AWAY = "away"  # its bundle is not available: neither version runs


class GateLook(Value, frozen=True, kw_only=True):
    """One look. `calls` and `invocations` are those since the gate was opened; `fault`: of a FAILED one.

    `can_return`: whether the version before may still run under the policy in force.
    """

    condition: Condition
    health: Health = Health.UNKNOWN
    calls: Tally = Tally()
    invocations: Tally = Tally()
    fault: Fault | None = None
    can_return: bool = True


class HealthGate(Value, frozen=True, kw_only=True):
    """The state of one gate: `until_s` (monotonic) once the new version was armed, `checked` once it was asked for its
    health at the end.
    """

    baseline: Baseline
    until_s: float | None = None
    checked: bool = False


class GateStep(StrEnum):
    """What to do. `CHECK`: ask for its health now, then decide again."""

    WAIT = "wait"
    CHECK = "check"
    COMMIT = "commit"
    RETURN = "return"


class GateDecision(Value, frozen=True):
    """The gate's next state, and what to do; `fault` says why, of RETURN and of a COMMIT that proves nothing."""

    gate: HealthGate
    step: GateStep
    fault: Fault | None = None


def decide(gate: HealthGate, seen: GateLook, now_s: float, *, gate_s: float) -> GateDecision:
    """What becomes of an upgrade, `now_s` by the monotonic clock. Pure; total over all values."""
    # Its time begins anew once it can be watched again.
    if seen.condition is Condition.AWAY:
        return GateDecision(replace(gate, until_s=None, checked=False), GateStep.WAIT)
    # With nothing to return to, a failure is handled like that of any plugin.
    if not seen.can_return:
        return GateDecision(gate, GateStep.COMMIT, Fault("no_return", "the version before may not run any more"))
    if fault := _fault(gate.baseline, seen):
        return GateDecision(gate, GateStep.RETURN, fault)
    if gate.until_s is None:
        armed = seen.condition is Condition.ARMED
        return GateDecision(replace(gate, until_s=now_s + gate_s) if armed else gate, GateStep.WAIT)
    if now_s < gate.until_s:
        return GateDecision(gate, GateStep.WAIT)
    if seen.condition is not Condition.ARMED:
        return GateDecision(gate, GateStep.RETURN, Fault("not_armed", "it was not armed when the gate ended"))
    # The last answer may be as old as the manifest's interval: it may hang by now.
    if not gate.checked:
        return GateDecision(replace(gate, checked=True), GateStep.CHECK)
    if seen.health is Health.UNHEALTHY or _worse(seen.health, gate.baseline.health):
        return GateDecision(gate, GateStep.RETURN, Fault("unhealthy", f"it was {seen.health} when the gate ended"))
    return GateDecision(gate, GateStep.COMMIT)


def _fault(before: Baseline, seen: GateLook) -> Fault | None:
    """Why it is given up before the gate ends, or None."""
    if seen.condition is Condition.FAILED:
        return seen.fault or Fault("failed", "it failed")
    if jumped(before.calls, seen.calls):
        return Fault("denials_jumped", _counts("host calls were denied", before.calls, seen.calls))
    if jumped(before.invocations, seen.invocations):
        return Fault("errors_jumped", _counts("invocations failed", before.invocations, seen.invocations))
    return None


def jumped(before: Tally, now: Tally) -> bool:
    """Whether so many more are bad than before that the upgrade is the likely cause."""
    return now.bad >= LEAST and now.share > FACTOR * before.share + MARGIN


def _worse(now: Health, before: Health) -> bool:
    """Whether it is degraded though the version before was healthy."""
    return now is Health.DEGRADED and before is Health.HEALTHY


def _counts(what: str, before: Tally, now: Tally) -> str:
    return f"{now.bad} of {now.total} {what}, {before.bad} of {before.total} of the version before"
