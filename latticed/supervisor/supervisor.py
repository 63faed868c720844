"""All handles, the timer wheel that they share, and their shutdown."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self

from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.model.runtime import Runtime
from latticed.supervisor import decide as rules
from latticed.supervisor.handle import Handle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.broker.gate import Count
    from latticed.model.fault import Fault
    from latticed.model.restart import RestartPolicy
    from latticed.runners.contract import PluginToRun
    from latticed.supervisor.deps import HandleDeps
    from latticed.system.plugin import Measure


_NOT_RUNNING: Final = Runtime()


class Watched(Value, frozen=True, kw_only=True):
    """How a version that replaced another one is: the state of its handle, its invocations since it is in charge, and
    all host calls of its plugin; `before`: the phase of the other one.
    """

    state: rules.HandleState
    invoked: Count
    called: Count
    before: rules.Phase


class Supervisor:
    """Runs the plugins that are armed, one handle for each.

    An async context manager: entered it runs the timers, left it stops all plugins and waits for them. All methods are
    for the event loop; those that are not coroutines return at once, and what they ask for goes on in the handles.
    """

    def __init__(self, tools: HandleDeps, handles: dict[str, Handle]) -> None:
        """`handles` is empty; host services share it to see which plugins run."""
        self._tools = tools
        self._handles = handles
        self._behind: dict[str, Handle] = {}  # versions that stand by, while those that replaced them are watched
        self._given_up: set[str] = set()  # ids of which the version in charge was killed, until the other one is
        self._wheel: asyncio.Task[None] | None = None
        self._closing = False
        self.refused = tools.refused
        """Ids whose stored pair was refused at a start; the lifecycle reads them."""

    async def __aenter__(self) -> Self:
        self._wheel = asyncio.create_task(self._tools.wheel.run(), name="timer wheel")
        return self

    async def __aexit__(self, *_: object) -> None:
        # First: the lifecycle or a request may still ask for a start while all are being stopped.
        self._closing = True
        every = [*self._handles.values(), *self._behind.values()]
        for handle in every:
            # All are asked to stop before any is awaited, so that their graces run side by side.
            handle.post(rules.Disarm())
        await asyncio.gather(*(handle.settled() for handle in every))
        if self._wheel is not None:
            self._wheel.cancel()
            await asyncio.gather(self._wheel, return_exceptions=True)
        # A loop: a task that ends may have started another.
        while self._tools.tasks:
            await asyncio.gather(*self._tools.tasks, return_exceptions=True)

    def arm(self, plugin: PluginToRun, granted: frozenset[str], *, afresh: bool = False) -> None:
        """Have `plugin` running with these capabilities (`granted`); nothing after the shutdown has begun.

        A running instance of another identity is replaced. `afresh` replaces any, and closes the breaker.
        """
        if self._closing:
            return
        if plugin.id in self._behind:  # it was disarmed with the other one
            self._behind[plugin.id].post(rules.Arm())
        if plugin.id in self._given_up:
            return
        handle = self._handle(plugin)
        # Compared before the handle's plugin is replaced.
        afresh = afresh or handle.plugin.identity != plugin.identity
        handle.plugin = plugin
        handle.regrant(granted)
        handle.post(rules.Arm(afresh=afresh))
        # Also of one that goes on running: its schedules may have been accepted, or not any more.
        self._tools.scheduled(plugin.id)

    def disarm(self, plugin: PluginToRun, fault: Fault | None = None) -> None:
        """Have `plugin` stopped; `fault` says why, unless the operator asked for it.

        With a fault it is killed without a grace period.
        """
        # With a fault a handle is made even for what never ran, so that `runtime` shows why; else thousands of inactive
        # plugins would each get one.
        if fault is not None or plugin.id in self._handles:
            self._handle(plugin).post(rules.Disarm(fault))
        if plugin.id in self._behind:
            self._behind[plugin.id].post(rules.Disarm(fault))

    def apply(self, policy: RestartPolicy, *, stop_grace_s: float, kept_bytes: int) -> None:
        """Have these hold for each stop and failure from now on; `kept_bytes` of artifacts are kept for restarts."""
        self._tools.restart, self._tools.stop_grace_s = policy, stop_grace_s
        self._tools.copies.allow(kept_bytes)

    def drop(self, plugin_id: str) -> None:
        """Forget the handle of a plugin that has stopped; nothing happens while it has not."""
        handle = self._handles.get(plugin_id)
        # Any other phase has an instance, a timer or a task, which would go on without an owner.
        if handle is not None and handle.state.phase in {rules.Phase.STOPPED, rules.Phase.REFUSED}:
            del self._handles[plugin_id]
            self._tools.broker.forget(plugin_id)

    def regrant(self, plugin_id: str, granted: frozenset[str]) -> None:
        """Have the Gate of a plugin allow these capabilities, at once; nothing when it has no handle."""
        if handle := self._handles.get(plugin_id):
            if (before := self._behind.get(plugin_id)) is not None:
                before.regrant(before.granted - (handle.granted - granted))  # what is taken back counts for both
            handle.regrant(granted)

    def renew(self, plugin: PluginToRun) -> None:
        """Restart a running plugin that has lost what it was started with (a permission that is fixed at its start)."""
        self._renew(self._handles.get(plugin.id), plugin)

    def renew_behind(self, plugin: PluginToRun) -> None:
        """As `renew`, of the version that stands by."""
        self._renew(self._behind.get(plugin.id), plugin)

    def _renew(self, handle: Handle | None, plugin: PluginToRun) -> None:
        # Also of one that waits for a retry: its next start must use the narrower terms.
        if handle is not None:
            handle.plugin = plugin
        # Not WAITING or BROKEN: `afresh` would start these at once and close the breaker.
        if handle is not None and handle.state.phase in {rules.Phase.STARTING, rules.Phase.ARMED}:
            handle.post(rules.Arm(afresh=True))

    # Two versions of one plugin.

    def stand_by(self, plugin_id: str, number: int) -> None:
        """Have a plugin's version stand by as the kept version `number` (`Handle.stand_by`), from when the ledger has
        that; 0: it is in charge after all.
        """
        handle = self._handles[plugin_id]
        handle.stand_by(number) if number else handle.take_charge()

    def put_in_charge(self, plugin: PluginToRun, granted: frozenset[str]) -> None:
        """Start another version beside the one that runs, which is to stand by (`stand_by`)."""
        before = self._behind[plugin.id] = self._handles.pop(plugin.id)
        self._handle(plugin).behind = before
        self.arm(plugin, granted)

    def resume(self, before: PluginToRun, granted: frozenset[str], number: int, plugin: PluginToRun) -> None:
        """Have `before` stand by as the kept version `number` beside `plugin`; both start when `plugin` is armed."""
        handle = self._behind[plugin.id] = Handle(before, self._tools)
        handle.regrant(granted)
        handle.stand_by(number)
        self._handle(plugin).behind = handle

    def watched(self, plugin_id: str) -> Watched | None:
        """How a version that replaced another one is; None when there is no other one."""
        before, handle = self._behind.get(plugin_id), self._handles.get(plugin_id)
        if before is None or handle is None:
            return None
        called = replace(self._tools.broker.count(plugin_id))
        return Watched(state=handle.state, invoked=replace(handle.invoked), called=called, before=before.state.phase)

    def invoked(self, plugin_id: str) -> Count:
        """The invocations of the version in charge, and how many of them failed."""
        return replace(self._handles[plugin_id].invoked)

    async def ask_health(self, plugin_id: str) -> None:
        """Have an armed plugin asked for its health now."""
        if (handle := self._handles.get(plugin_id)) is not None:
            await handle.ask_health()

    async def give_up(self, plugin_id: str, fault: Fault) -> None:
        """Kill the version in charge, for `fault`; the other one answers from now on, and stands by until `fall_back`.

        Returns once nothing is left of it.
        """
        handle = self._handles[plugin_id]
        self._given_up.add(plugin_id)
        handle.post(rules.Disarm(fault))
        await handle.settled()

    def fall_back(self, plugin_id: str) -> None:
        """Put the version that stands by in charge again, without a start; the other one was given up."""
        handle = self._handles[plugin_id] = self._behind.pop(plugin_id)
        self._given_up.discard(plugin_id)
        handle.take_charge()
        # Its phase stays as it is, but its schedules are in force again, not the other one's.
        self._tools.scheduled(plugin_id)

    def refuse_behind(self, plugin_id: str, fault: Fault) -> None:
        """Kill the version that stands by: it may not run any more."""
        if (handle := self._behind.get(plugin_id)) is not None:
            handle.post(rules.Disarm(fault))

    def retire(self, plugin_id: str) -> None:
        """The version in charge stays: stop the one that stands by."""
        if (before := self._behind.pop(plugin_id, None)) is not None:
            self._given_up.discard(plugin_id)
            self._handles[plugin_id].behind = None
            before.post(rules.Disarm())

    # Queries and calls.

    def runtime(self, plugin_id: str) -> Runtime:
        """The running state of a plugin; a stopped one when there is no handle."""
        handle = self._handles.get(plugin_id)
        return handle.runtime() if handle else _NOT_RUNNING

    def answers(self, plugin_id: str) -> bool:
        """Whether the plugin can be invoked: it is armed, or the version that stands by answers."""
        handle = self._handles.get(plugin_id)
        return handle is not None and handle.armed

    async def admit(self, plugin: PluginToRun) -> None:
        """Problem when `plugin` cannot be activated on this host (`sandbox_unavailable`, `source_blocked`, …)."""
        await self._tools.admit(plugin)

    async def settled(self, plugin_id: str, *, within_s: float) -> None:
        """Return once the plugin is armed, stopped or failed, or `within_s` seconds have passed; raises neither way."""
        if handle := self._handles.get(plugin_id):
            try:
                await asyncio.wait_for(handle.settled(), within_s)
            except TimeoutError:
                return

    async def invoke(self, plugin_id: str, action: str, payload: Any, *, by_outsider: bool = False) -> dict[str, Any]:
        """Have an armed plugin carry out `action` with a JSON `payload`; its reply.

        `by_outsider`: the payload does not come from an operator, so later failures do not count for the breaker.
        Problem not_armed, or what the instance raises.
        """
        return await self._known(plugin_id).invoke(action, payload, by_outsider=by_outsider)

    async def call(self, plugin_id: str, method: str, params: dict[str, Any]) -> Any:
        """The result of a host call for an armed plugin, through its Gate. Problem not_armed, or HostError."""
        return await self._known(plugin_id).call(method, params)

    def ids(self) -> list[str]:
        """Ids of all plugins that have a handle."""
        return list(self._handles)

    @property
    def kept_artifact_bytes(self) -> int:
        """How much memory holds artifacts of plugins for their next start."""
        return self._tools.copies.bytes

    def calls(self) -> Mapping[str, Count]:
        """Counts of host calls by plugin id, since the daemon started."""
        return self._tools.broker.counts

    def measures(self) -> list[Measure]:
        """What built-in plugins that run show in `/metrics`."""
        return [one for handle in self._handles.values() for one in handle.measures()]

    def _known(self, plugin_id: str) -> Handle:
        """The handle of a plugin, or Problem not_armed."""
        if (handle := self._handles.get(plugin_id)) is None:
            raise Problem("not_armed", f"{plugin_id} is not armed", f"latticectl explain {plugin_id}")
        return handle

    def _handle(self, plugin: PluginToRun) -> Handle:
        """The handle of a plugin, made if there is none."""
        if plugin.id not in self._handles:
            self._handles[plugin.id] = Handle(plugin, self._tools)
        return self._handles[plugin.id]
