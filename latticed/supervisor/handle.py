"""One plugin's handle: performs what `decide` returns, in a task that exists only while there is something to do."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from latticed.broker.gate import Count
from latticed.kit import logs
from latticed.model import hostcall
from latticed.model.audit import DAEMON
from latticed.model.audit import Event as AuditEvent
from latticed.model.errors import Problem
from latticed.model.fault import Fault
from latticed.model.runtime import STARTING, Health, Runtime, RuntimeState
from latticed.runners.builtin import BuiltinInstance
from latticed.runners.contract import Checkup, ClaimsRoutes
from latticed.supervisor import decide as rules
from latticed.supervisor.decide import HandleAction, Phase

if TYPE_CHECKING:
    from latticed.broker.gate import Gate
    from latticed.kit.wheel import Ticket
    from latticed.runners.contract import Instance, PluginToRun
    from latticed.supervisor.deps import HandleDeps
    from latticed.system.plugin import Measure

FIRST_CHECK_S: Final = 1.0
"""Longest delay of the first health check after a start; later ones follow the manifest's interval."""

_NOT_ITS_FAULT: Final = frozenset({"bad_request", "busy", "not_armed", "stopping", "too_large"})
"""Codes of invocations that say nothing of the plugin."""

log = logs.get_logger()

_STATE_OF = {
    Phase.STOPPED: RuntimeState.STOPPED,
    # Until the runner returns there is no instance that could be called.
    Phase.STARTING: RuntimeState.STOPPED,
    Phase.ARMED: RuntimeState.ARMED,
    # It may still run for its grace, so it is not reported as stopped before it has ended.
    Phase.STOPPING: RuntimeState.ARMED,
    Phase.WAITING: RuntimeState.FAILED,
    Phase.BROKEN: RuntimeState.FAILED,
    Phase.REFUSED: RuntimeState.FAILED,
}


class Handle:
    """Keeps one plugin in the state that is wanted. `post` takes every event; all runs on the event loop.

    `plugin` and `granted` are what the next start uses; the supervisor replaces them. Failures never leave the handle:
    they become events.
    """

    def __init__(self, plugin: PluginToRun, tools: HandleDeps) -> None:
        self.behind: Handle | None = None
        """The version that this one replaced, as long as this one may be given up: it answers while this one is not
        armed.
        """
        self.invoked = Count()
        """Its invocations, and how many of them it did not answer as asked."""
        self._plugin = plugin
        self.granted: frozenset[str] = frozenset()
        self.state = rules.HandleState()
        self._tools = tools
        self._todo: list[HandleAction] = []
        self._task: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[Instance] | None = None
        self._instance: Instance | None = None
        self._gate: Gate | None = None
        self._retry: Ticket | asyncio.Handle | None = None
        self._tick: Ticket | None = None
        self._checking: asyncio.Task[None] | None = None
        self._settled: list[asyncio.Future[None]] = []
        self._early: rules.InstanceFailed | None = None  # the instance ended before `Runner.start` returned it
        self._instance_no = 0
        self._standby = 0  # its number as a kept version, while another one is in charge
        self._lending = False  # that one is not armed, and this one answers
        self._visited = False  # an outside request has reached the current instance
        self._since_s = 0.0
        self._seen = Runtime()

    @property
    def plugin(self) -> PluginToRun:
        """What the next start runs."""
        return self._plugin

    @plugin.setter
    def plugin(self, plugin: PluginToRun) -> None:
        if plugin.identity != self._plugin.identity:
            self._tools.copies.release(self._plugin.identity)
        self._plugin = plugin

    # Queries and calls.

    def runtime(self) -> Runtime:
        """The running state, as of the last event; a value that does not change."""
        return self._seen

    async def settled(self) -> None:
        """Return once it is armed, stopped or failed; without a time limit."""
        # A loop: between the future's result and this task's next step the phase may have changed again.
        while self.state.phase not in rules.SETTLED:
            waiter = asyncio.get_running_loop().create_future()
            self._settled.append(waiter)
            await waiter

    def instance(self) -> Instance:
        """The running instance; Problem not_armed when there is none."""
        if self._instance is None or self.state.phase is not Phase.ARMED:
            raise Problem("not_armed", f"{self.plugin.id} is not armed (it is {self.state.phase})")
        return self._instance

    def _lender(self) -> Handle | None:
        """The version before, while that answers instead of this one."""
        return self.behind if self._instance is None or self.state.phase is not Phase.ARMED else None

    def visit(self) -> Instance:
        """The running instance for an outside request, or Problem; its failures no longer count for the breaker."""
        instance = self.instance()
        # Before the request is sent: the instance may fail while it reads it (docs/adr/0015).
        self._visited = True
        return instance

    @property
    def answers(self) -> bool:
        """Whether an instance runs that can be asked now; one that is being stopped cannot."""
        return self.state.phase is Phase.ARMED

    @property
    def distrusted(self) -> bool:
        """Whether it ends for a fault of its bundle: then it is killed without grace, and its answers are dropped."""
        return not self.state.wanted and self.state.fault is not None

    @property
    def armed(self) -> bool:
        """Whether an instance is running, as `runtime` says; one that is being stopped counts until it has ended. Also
        while the version before it answers.
        """
        return self._seen.state is RuntimeState.ARMED or (self.behind is not None and self.behind.armed)

    def measures(self) -> tuple[Measure, ...]:
        """What the instance shows in `/metrics`, when it is a built-in's that runs."""
        instance = self._instance
        return instance.measures() if isinstance(instance, BuiltinInstance) and self.armed else ()

    async def invoke(self, action: str, payload: Any, *, by_outsider: bool) -> dict[str, Any]:
        """Have the running instance carry out `action`; its reply.

        `by_outsider` as in `visit`. Problem not_armed when there is no instance, or its bundle failed meanwhile; others
        from the instance itself.
        """
        if (lender := self._lender()) is not None:
            return await lender.invoke(action, payload, by_outsider=by_outsider)
        instance = self.visit() if by_outsider else self.instance()
        self.invoked.calls += 1
        try:
            reply = await instance.invoke(action, payload)
        except Problem as problem:
            self.invoked.denied += problem.code not in _NOT_ITS_FAULT
            raise
        self.invoked.denied += reply.get("ok") is not True
        # Asked again after the wait: an answer of code that is being stopped for its bundle must not be used.
        if self.distrusted:
            raise Problem("not_armed", f"{self.plugin.id} was stopped meanwhile: its bundle does not verify")
        return reply

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """The result of a host call by the running instance, through its Gate. Problem not_armed, or HostError."""
        if (lender := self._lender()) is not None:
            return await lender.call(method, params)
        self.instance()
        assert self._gate is not None  # noqa: S101 - an armed one has its Gate
        return await self._gate.call(method, params)

    def regrant(self, granted: frozenset[str]) -> None:
        """Have its Gate, and that of the next start, allow these capabilities."""
        # Kept even without a Gate: the next start makes its Gate with it.
        self.granted = granted
        if self._gate is not None:
            self._gate.regrant(granted)

    # Beside another version.

    def stand_by(self, number: int) -> None:
        """Another version is about to be in charge; this one, kept as `number`, stays armed and answers until then."""
        self._standby = number
        self.lend(lending=True)

    def lend(self, *, lending: bool) -> None:
        """Whether it answers while the one in charge is not armed: it may then make the calls that an answer needs."""
        self._lending = lending
        if self._gate is not None and self._standby:
            self._gate.stand_by(hostcall.LENDING if lending else hostcall.IDLE, self._standby)

    def take_charge(self) -> None:
        """This version is in charge from now on, without a start."""
        self._standby = 0
        if self._gate is not None:
            self._gate.stand_by(None, 0)
        claimant: object = self._instance
        if isinstance(claimant, ClaimsRoutes):
            claimant.claim_again()

    async def ask_health(self) -> None:
        """Ask for its health now, within the manifest's time limit; the answer is in `state` on return."""
        self._cancel_checks()
        self._check_now()
        if self._checking is not None:
            await asyncio.wait({self._checking})

    # Events.

    def post(self, event: rules.Event) -> None:
        """Take one event: the next state by `decide.decide`, the runtime from it, then the actions."""
        before = self.state
        self.state, actions = rules.decide(before, event, self._rules())
        if self.state.phase is not before.phase:
            if self.state.phase is Phase.STARTING:
                # Per instance: late exits and checks of an earlier one carry its number and are ignored.
                self._instance_no, self._early, self._visited = self._instance_no + 1, None, False
            self._changed(before.phase)
            if self.behind is not None:
                self.behind.lend(lending=self.state.phase is not Phase.ARMED)
        for action in actions:
            self._act(action)
        # Last: it is stopped already, whatever the kernel takes to free what is large.
        if not rules.may_restart(self.state):
            self._tools.copies.release(self.plugin.identity)
        self._note()

    def _rules(self) -> rules.SupervisionRules:
        """The rules for this plugin: the settings' backoff and breaker, the manifest's health checks."""
        return rules.SupervisionRules(
            restart=self._tools.restart, bad_checks=self.plugin.manifest.runtime.health.failures
        )

    def _act(self, action: HandleAction) -> None:
        """Perform one action: timers at once, START and STOP by `_work`."""
        match action:
            case HandleAction.RETRY:
                delay_s = self.state.failures.delay_s(self._tools.restart, self._tools.roll())
                # `RetryDue` is ignored unless WAITING, so a retry that fires while it is being cancelled does no harm.
                self._retry = self._tools.later(delay_s, lambda: self.post(rules.RetryDue()))
                self._seen = replace(self._seen, next_retry_at=self._now_us() + int(delay_s * 1e6))
            case HandleAction.CANCEL_RETRY:
                self._cancel_retry()
            case HandleAction.START | HandleAction.STOP:
                if action is HandleAction.STOP:
                    self._close_gate()  # no host calls from here on, however long stopping takes
                    # Else the stop would wait behind a start that may take until its deadline.
                    if self._starting is not None:
                        self._starting.cancel()
                # Queued, not run at once: a START that follows a STOP waits until the old instance has ended.
                self._todo.append(action)
                # One task at a time keeps the order; it exists only while there is work (docs/adr/0004).
                if self._task is None:
                    self._task = self._tools.spawn(self._work(), f"handle {self.plugin.id}")

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._retry = None

    async def _work(self) -> None:
        """Start and stop, in the order asked for, until there is nothing left to do."""
        try:
            while self._todo:
                if self._todo.pop(0) is HandleAction.START:
                    await self._start()
                else:
                    await self._stop()
        finally:
            # No await between the loop's last check and this: an action queued by `post` finds a task or makes one.
            self._task = None

    async def _start(self) -> None:
        """Perform START: a new Gate, the runner, then the event of how it went."""
        self._retry = None
        # It was disarmed while this START was queued.
        if self.state.phase is not Phase.STARTING:
            return
        # Bound now: when the callback comes, `_instance_no` may be that of a later instance.
        instance_no = self._instance_no
        self._gate = self._tools.gate(self.plugin, self.granted)
        self.lend(lending=self._lending)
        attempt = self._tools.start(
            self.plugin, self._gate, lambda code, message: self._exited(instance_no, code, message)
        )
        # A task of its own, so that STOP can cancel the start without cancelling `_work`, which must go on to stop.
        self._starting = asyncio.ensure_future(attempt)
        failed = await self._started(self._starting)
        self._starting = None
        if failed is not None:
            self._fail(failed)
        elif self._instance is not None:
            # Monotonic: an adjusted wall clock must neither reset the backoff nor open the breaker.
            self._since_s = self._tools.clock.monotonic_s()
            self.post(rules.Started(message=self._instance.message))
            # ARMED first, then failed: so it counts as a failure of an instance, and `stopped_at` is set.
            if self._early is not None:
                self._instance = None
                self._fail(self._early)

    async def _started(self, starting: asyncio.Task[Instance]) -> rules.InstanceFailed | None:
        """Wait for the runner; the failure, or None, also when it was stopped while starting."""
        try:
            self._instance = await starting
        except TimeoutError:
            return rules.InstanceFailed(
                code="start_timeout", message=f"not started within {self._tools.start_deadline_s:g} s"
            )
        except asyncio.CancelledError:
            if not starting.cancelled():
                raise  # this task itself is being cancelled
            if self.state.phase is Phase.STOPPING:
                return None
            # Cancelled though nobody here asked for it: as a failure it is retried, and the handle does not hang.
            return rules.InstanceFailed(code="internal", message="the runner gave up starting it")
        except Problem as problem:
            return rules.InstanceFailed(
                code=problem.code, message=problem.reason, final=problem.code in self._tools.final_codes
            )
        except Exception as error:
            # The traceback goes to the log only: an exception's text may name paths, and operators see the reason.
            log.error("plugin_start_failed", plugin_id=self.plugin.id, exc_info=True)
            return rules.InstanceFailed(code="internal", message=f"the runner failed: {type(error).__name__}")
        return None

    async def _stop(self) -> None:
        """Perform STOP: end the instance, if there is one, and post Stopped. Never fails (`HandleDeps.end`)."""
        # Taken before the wait: an exit reported while it stops must find no instance to fail.
        instance, self._instance = self._instance, None
        self._close_gate()
        # Without grace when distrusted: code whose bundle no longer verifies gets no time to act.
        await self._tools.end(self.plugin.id, instance, at_once=self.distrusted, for_good=not self.state.wanted)
        self.post(rules.Stopped())

    def _exited(self, instance_no: int, code: str, message: str) -> None:
        """The instance ended by itself; an exit that belongs to an earlier instance is ignored."""
        if instance_no != self._instance_no:
            return
        # Not posted yet: `_start` still waits for the runner and would take the dead instance for a running one.
        if self.state.phase is Phase.STARTING:  # it ended before the runner returned it
            self._early = rules.InstanceFailed(code=code, message=message)
        elif self.state.phase is Phase.ARMED:
            uptime_s = self._tools.clock.monotonic_s() - self._since_s
            self._instance = None
            self._fail(rules.InstanceFailed(code=code, message=message, uptime_s=uptime_s, visited=self._visited))

    def _fail(self, failed: rules.InstanceFailed) -> None:
        """The instance has ended or could not start: close its Gate, then post the failure."""
        # Before the event: no call of what has ended may still be under way when it is started again.
        self._close_gate()
        self.post(failed)

    def _close_gate(self) -> None:
        """Close the Gate, if there is one: calls under way are cancelled, later ones refused."""
        if self._gate is not None:
            self._gate.close()
        self._gate = None

    # Health.

    def _check_later(self, within_s: float = math.inf) -> None:
        """Have the next check made after the manifest's interval, within `within_s` at most."""
        # Spread by a tenth either way: plugins started together would otherwise all be checked in one moment.
        interval_s = min(self.plugin.manifest.runtime.health.interval_s, within_s)
        self._tick = self._tools.wheel.add(interval_s * (0.9 + 0.2 * self._tools.roll()), self._check_now)

    def _check_now(self) -> None:
        """Called by the timer: begin a health check in a task of its own, if an instance is armed."""
        # A task per check, not in the timer's call: one that hangs must not delay the wheel, which all handles share.
        if self.state.phase is Phase.ARMED and self._instance is not None:
            work = self._check(self._instance, self._instance_no)
            self._checking = self._tools.spawn(work, f"check {self.plugin.id}")

    def _cancel_checks(self) -> None:
        """No check from now on, until the next instance is armed."""
        if self._tick is not None:
            self._tick.cancel()
        if self._checking is not None:  # its answer no longer matters, and its time limit may be long
            self._checking.cancel()
        self._tick = self._checking = None

    async def _check(self, instance: Instance, instance_no: int) -> None:
        """Make one check within the manifest's timeout, post what it found, and arrange for the next."""
        timeout_s = self.plugin.manifest.runtime.health.timeout_s
        try:
            async with asyncio.timeout(timeout_s):  # not wait_for: on 3.11 it loses what a cancelled check raises
                found = await instance.check()
        except TimeoutError:
            found = Checkup(health=Health.UNHEALTHY, message=f"no answer within {timeout_s} s")
        except Exception as error:  # noqa: BLE001 - any exception is a bad check
            found = Checkup(health=Health.UNHEALTHY, message=str(error) or type(error).__name__)
        # Asked again after the wait: another instance may run by now, for which this answer says nothing.
        if instance_no != self._instance_no or self.state.phase is not Phase.ARMED:
            return
        self._checking = None
        # None: it could not be asked now, which counts neither as healthy nor as unhealthy.
        if found is not None:
            uptime_s = self._tools.clock.monotonic_s() - self._since_s
            self.post(rules.Checked(found.health, found.message, uptime_s, visited=self._visited))
        # Asked once more: the finding may have begun a stop, which cancels checks.
        if self.state.phase is Phase.ARMED:
            self._check_later()

    # Runtime and audit.

    def _now_us(self) -> int:
        return self._tools.clock.wall_us()

    def _changed(self, before: Phase) -> None:
        """Handle a new phase: times, health checks, audit event, waiters of `settled`."""
        now, phase = self._now_us(), self.state.phase
        self._tools.scheduled(self.plugin.id)
        if phase is Phase.ARMED:
            self._seen = replace(self._seen, started_at=now)
            self._check_later(FIRST_CHECK_S)
        else:
            self._cancel_checks()
        # Before RETRY is performed, which sets it: `post` calls this first, then acts.
        if phase not in {Phase.WAITING, Phase.BROKEN}:
            self._seen = replace(self._seen, next_retry_at=0)
        if before in {Phase.ARMED, Phase.STOPPING} and phase in rules.SETTLED:
            self._seen = replace(self._seen, stopped_at=now)
        self._seen = replace(self._seen, updated_at=now)
        if phase in rules.SETTLED:
            # Settled phases only: what passes (starting, stopping) would double the events of every restart.
            self._record(phase)
            waiting, self._settled = self._settled, []
            for waiter in waiting:
                # Cancelled when its caller gave up waiting; set_result would raise InvalidStateError.
                if not waiter.done():
                    waiter.set_result(None)

    def _record(self, phase: Phase) -> None:
        """Log and record that it has settled in `phase`."""
        fault = self.state.fault or Fault("", "")
        detail: dict[str, str | int | bool] = {"state": _STATE_OF[phase].value, "identity": self.plugin.identity}
        if phase is Phase.BROKEN:
            detail["breaker"] = True  # else the same as a failure after which it is started again
        self._tools.note(
            AuditEvent(
                actor=str(DAEMON),
                action="plugin.runtime",
                target=self.plugin.id,
                code=fault.code,
                reason=fault.reason,
                detail=detail,
            )
        )

    def _note(self) -> None:
        """Bring the runtime that operators see up to date with the state."""
        instance = self._instance if self.state.phase is Phase.ARMED else None
        self._seen = replace(
            self._seen,
            state=_STATE_OF[self.state.phase],
            runner=self._tools.runner_name(self.plugin),
            health=self.state.health,
            message=STARTING if self.state.phase is Phase.STARTING else self.state.message,
            pid=instance.pid if instance else 0,
            sandbox=instance.sandbox if instance else "",
            restart_count=self.state.restarts,
            # While it stops for a bad check the failure is only pending: the last error stays what it was.
            last_error=self._seen.last_error if self.state.phase is Phase.STOPPING else self.state.fault,
        )
