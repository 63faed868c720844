"""Every rule of supervision, as one pure function: the next state of a handle, and the actions to take."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from latticed.kit.value import Value, field
from latticed.model import restart
from latticed.model.fault import Fault
from latticed.model.runtime import Health


class Phase(StrEnum):
    """Where a handle is between stopped and armed. All but STARTING and STOPPING are settled (`SETTLED`)."""

    STOPPED = "stopped"
    STARTING = "starting"
    ARMED = "armed"
    STOPPING = "stopping"
    WAITING = "waiting"  # failed, will be started again
    BROKEN = "broken"  # failed too often in a row: the breaker is open until an operator restarts it
    REFUSED = "refused"  # failed for a reason that a retry cannot mend: its bundle no longer verifies


EXCUSED = frozenset({"message_too_large"})
"""Failure codes that do not count for the breaker: anyone who supplies data that a plugin sends back can cause them."""

SETTLED = frozenset({Phase.STOPPED, Phase.ARMED, Phase.WAITING, Phase.BROKEN, Phase.REFUSED})
"""Phases that last until the next event from outside; waiters are answered in them."""


_RESTARTS = frozenset({Phase.STARTING, Phase.ARMED, Phase.STOPPING, Phase.WAITING})
"""Phases that a start may follow without anybody's decision."""


class HandleState(Value, frozen=True, kw_only=True):
    """One handle. `wanted`: the lifecycle has it armed.

    `failures` count for backoff and breaker, `bad_checks` are the unhealthy ones in a row. `fault` is the last error,
    `pending` the failure to count once it has stopped. `restarts` counts the starts after the last one from STOPPED or
    REFUSED.
    """

    phase: Phase = Phase.STOPPED
    wanted: bool = False
    failures: restart.Failures = field(default_factory=restart.Failures)
    bad_checks: int = 0
    health: Health = Health.UNKNOWN
    message: str = ""
    fault: Fault | None = None
    restarts: int = 0
    pending: InstanceFailed | None = None


# Events.


class Arm(Value, frozen=True):
    """The plugin is to run; `afresh` replaces a running instance (another identity, or an operator's restart)."""

    afresh: bool = False


class Disarm(Value, frozen=True):
    """The plugin is to stop; `fault` says why, unless the operator decided it."""

    fault: Fault | None = None


class Started(Value, frozen=True):
    """The runner has returned an instance; `message` is what the runner says of it."""

    message: str = ""


class InstanceFailed(Value, frozen=True):
    """It could not start, or ended by itself after `uptime_s`; `final` when a retry cannot help.

    `visited`: a request from outside had reached this instance, and may have caused the failure even if it was
    answered: then the retry delay grows, but the failure does not count for the breaker.
    """

    code: str
    message: str
    uptime_s: float = 0.0
    final: bool = False
    visited: bool = False


class Checked(Value, frozen=True):
    """What a health check found; `visited` as in InstanceFailed: outsiders can keep a plugin too busy to answer."""

    health: Health
    message: str = ""
    uptime_s: float = 0.0
    visited: bool = False


class RetryDue(Value, frozen=True):
    pass  # the delay that RETRY asked for has passed


class Stopped(Value, frozen=True):
    pass  # what STOP asked for is done: nothing of the instance is left


Event = Arm | Disarm | Started | InstanceFailed | Checked | RetryDue | Stopped


class HandleAction(StrEnum):
    """What the handle is to do. How long RETRY waits is computed from the state's `failures`."""

    START = "start"
    STOP = "stop"
    RETRY = "retry"
    CANCEL_RETRY = "cancel_retry"


class SupervisionRules(Value, frozen=True, kw_only=True):
    """`restart`: backoff and breaker. `bad_checks`: so many unhealthy checks in a row count as a failure."""

    restart: restart.RestartPolicy
    bad_checks: int


Next = tuple[HandleState, tuple[HandleAction, ...]]
"""The state after an event, and the actions in their order."""


def decide(state: HandleState, event: Event, rules: SupervisionRules) -> Next:
    """The state after `event`, and the actions to take, in their order.

    Pure, and total: an event that does not fit the phase (a late exit, a stale timer) changes nothing.
    """
    match event:
        case Arm(afresh=afresh):
            return _arm(state, rules, afresh=afresh)
        case Disarm(fault=fault):
            return _disarm(state, fault)
        case Started(message=message):
            return _started(state, message)
        case InstanceFailed():
            return _failed(state, event, rules)
        case Checked():
            return _checked(state, event, rules)
        case RetryDue():
            return _start(state, restarts=state.restarts + 1) if state.phase is Phase.WAITING else (state, ())
        case Stopped():
            return _stopped(state, rules)


def may_restart(state: HandleState) -> bool:
    """Whether it may be started again by itself: what its next start can use is kept as long, and no longer."""
    return state.wanted and state.phase in _RESTARTS


def _start(state: HandleState, *, restarts: int) -> Next:
    """`state` as it is while a start is under way, with the action START; `restarts` is the new count of restarts."""
    after = replace(state, phase=Phase.STARTING, wanted=True, bad_checks=0, health=Health.UNKNOWN, restarts=restarts)
    return after, (HandleAction.START,)


def _arm(state: HandleState, rules: SupervisionRules, *, afresh: bool) -> Next:
    """The plugin is wanted: start it unless it runs, is being started, or waits for its retry."""
    fresh = replace(state, wanted=True)
    if afresh:
        fresh = replace(fresh, failures=restart.Failures(), fault=None, pending=None)
    match state.phase:
        # REFUSED replaces BROKEN when the bundle is refused. The bundle may come back: that must not close the breaker,
        # which only an operator does.
        case Phase.REFUSED if fresh.failures.breaker_open(rules.restart):
            return _still_broken(fresh), ()
        # `failures` is kept: a bundle that is removed and put back does not reset the count.
        case Phase.STOPPED | Phase.REFUSED:
            return _start(replace(fresh, fault=None, message=""), restarts=0)
        # An operator's restart or another identity: neither waits for the backoff nor stays behind an open breaker.
        case Phase.WAITING | Phase.BROKEN if afresh:
            after, actions = _start(fresh, restarts=state.restarts + 1)
            return after, (HandleAction.CANCEL_RETRY, *actions)
        case Phase.STARTING | Phase.ARMED if afresh:
            return replace(fresh, phase=Phase.STOPPING), (HandleAction.STOP,)
        # STOPPING starts again by `_stopped`, since `wanted` is set.
        # Without `afresh` WAITING keeps its delay and BROKEN stays.
        case _:
            return fresh, ()


def _still_broken(state: HandleState) -> HandleState:
    """Its bundle went and came back; the breaker stays open until an operator restarts the plugin."""
    reason = f"failed {state.failures.counted} times in a row before, and waits for an operator to restart it"
    return replace(state, phase=Phase.BROKEN, fault=Fault("breaker_open", reason), message=reason)


def _disarm(state: HandleState, fault: Fault | None) -> Next:
    """The plugin is not wanted: stop it, or settle at once if nothing runs."""
    # `pending` is dropped: a plugin that is not to run any more does not count its bad health as a failure.
    unwanted = replace(state, wanted=False, pending=None, fault=fault)
    if fault is None:  # an operator's decision clears the failures
        unwanted = replace(unwanted, failures=restart.Failures())
    match state.phase:
        case Phase.STARTING | Phase.ARMED:
            return replace(unwanted, phase=Phase.STOPPING), (HandleAction.STOP,)
        # A stop is under way already; `_stopped` reads `wanted` and `fault` when it has ended.
        case Phase.STOPPING:
            return unwanted, ()
        case Phase.WAITING | Phase.BROKEN:
            return _not_wanted(unwanted), (HandleAction.CANCEL_RETRY,)
        case _:
            return _not_wanted(unwanted), ()


def _not_wanted(state: HandleState) -> HandleState:
    """Not wanted and not running: REFUSED if it has a fault, else STOPPED."""
    if state.fault is None:
        return replace(state, phase=Phase.STOPPED, health=Health.UNKNOWN, message="")
    return replace(state, phase=Phase.REFUSED, health=Health.UNKNOWN, message=state.fault.reason)


def _started(state: HandleState, message: str) -> Next:
    """The runner has returned an instance: the plugin is armed, unless it was disarmed meanwhile."""
    # It was disarmed while the runner returned the instance; the queued STOP ends that instance.
    if state.phase is not Phase.STARTING:
        return state, ()
    return replace(state, phase=Phase.ARMED, fault=None, message=message, bad_checks=0), ()


def _failed(state: HandleState, failed: InstanceFailed, rules: SupervisionRules) -> Next:
    """Count a failure: held if final, broken if it is one too many, else another start after a pause."""
    # A late event: what is being stopped ends anyway, and its end is not a failure.
    if state.phase not in {Phase.STARTING, Phase.ARMED}:
        return state, ()
    # Only of an armed one: no request reaches what is starting, so a failed start always counts (docs/adr/0015).
    may_be_theirs = state.phase is Phase.ARMED and failed.visited
    message = f"{failed.message} {restart.VISITED}" if may_be_theirs else failed.message
    fault = Fault(failed.code, message)
    down = replace(state, fault=fault, message=message, health=Health.UNKNOWN, bad_checks=0, pending=None)
    # Not wanted any more: REFUSED starts again only when the lifecycle arms it.
    if failed.final:
        return replace(down, phase=Phase.REFUSED, wanted=False), ()
    # Excused failures still lengthen the pause, up to a share of the ceiling (`RestartPolicy.excused_share`).
    excused = may_be_theirs or (state.phase is Phase.ARMED and failed.code in EXCUSED)
    failures = state.failures.after(failed.uptime_s, rules.restart, excused=excused)
    if failures.breaker_open(rules.restart):
        return replace(down, phase=Phase.BROKEN, failures=failures), ()
    return replace(down, phase=Phase.WAITING, failures=failures), (HandleAction.RETRY,)


def _checked(state: HandleState, checked: Checked, rules: SupervisionRules) -> Next:
    """Take in a health check; too many bad ones in a row stop the instance."""
    # The check was sent to an instance that has ended or is being stopped.
    if state.phase is not Phase.ARMED:
        return state, ()
    seen = replace(state, health=checked.health, message=checked.message)
    if checked.health is not Health.UNHEALTHY:
        return replace(seen, bad_checks=0), ()
    if state.bad_checks + 1 < rules.bad_checks:
        return replace(seen, bad_checks=state.bad_checks + 1), ()
    reason = f"unhealthy {rules.bad_checks} times in a row: {checked.message}".rstrip(": ")
    # Counted in `_stopped`, once it has ended: the pause before the next start begins then.
    pending = InstanceFailed(code="unhealthy", message=reason, uptime_s=checked.uptime_s, visited=checked.visited)
    return replace(seen, phase=Phase.STOPPING, pending=pending, bad_checks=0), (HandleAction.STOP,)


def _stopped(state: HandleState, rules: SupervisionRules) -> Next:
    """The instance has ended: settle, count the failure that it was stopped for, or start again."""
    if state.phase is not Phase.STOPPING:
        return state, ()
    if not state.wanted:
        return _not_wanted(state), ()
    if state.pending is not None:
        return _failed(replace(state, phase=Phase.ARMED), state.pending, rules)  # it ignores STOPPING
    return _start(state, restarts=state.restarts + 1)
