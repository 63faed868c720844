"""What plugins live from, put together from the settings: ground, runners, the Gate, host services."""

from __future__ import annotations

import contextlib
import functools
from typing import TYPE_CHECKING, Final, Self

from latticed.broker.gate import Broker, GateLimits
from latticed.kit import logs
from latticed.kit.token_bucket import Rate
from latticed.kit.wheel import Wheel
from latticed.runners import choice
from latticed.runners.child_spawner import ChildSpawner
from latticed.runners.choice import RunnerDeps
from latticed.runners.output import Outputs
from latticed.sandbox import cgroup, probe
from latticed.services import Services, restart_policy
from latticed.supervisor.deps import HandleDeps

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from latticed.catalog.store import Store
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger
    from latticed.model.verdict import Verdict
    from latticed.runners.contract import Runner
    from latticed.sandbox.host_facts import Probed
    from latticed.settings import Settings

log: Final = logs.get_logger()


class Engine:
    """One for the daemon, an async context manager: host services live within it.

    `runners` (by plugin type) replaces the choice that the settings make.
    """

    def __init__(
        self, settings: Settings, ledger: Ledger, clock: Clock, runners: Mapping[str, Runner] | None = None
    ) -> None:
        self.ground = _ground(settings)
        self.outputs = Outputs(clock, logs.plugin_line)
        self._settings = settings
        self.ledger = ledger
        self._clock = clock
        self._wheel = Wheel()
        self._stack = contextlib.AsyncExitStack()
        self.services = Services(lambda: self._settings, ledger, clock=clock, wheel=self._wheel, spawner=self.ground)
        self.runners = runners if runners is not None else self._runners()
        self._broker = Broker(
            self.services.table(self._said), record=ledger.record, clock=clock, gate_limits=_gate_limits(settings)
        )

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.services)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def tools(self, store: Store, judge: Callable[[str], Awaitable[Verdict]]) -> HandleDeps:
        """What the supervisor works with."""
        return HandleDeps(
            runners=self.runners,
            broker=self._broker,
            store=store,
            judge=judge,
            record=self.ledger.record_later,
            clock=self._clock,
            restart=restart_policy(self._settings.supervision),
            start_deadline_s=self._settings.supervision.start_deadline_s,
            stop_grace_s=self._settings.supervision.stop_grace_s,
            wheel=self._wheel,
            drained=self.services.drained,
        )

    def apply(self, settings: Settings) -> None:
        """Take up what a reload changed."""
        self._settings = settings
        self._broker.limits = _gate_limits(settings)
        self.services.secrets.forget_key()

    def _runners(self) -> Mapping[str, Runner]:
        wanted, services = self._settings.runners, self.services
        footing = RunnerDeps(
            ground=self.ground,
            outputs=self.outputs,
            routes=services.routes,
            state_dir=self._settings.state_dir,
            start_deadline_s=self._settings.supervision.start_deadline_s,
            permits=services.permits,
            prefixes=services.prefixes,
        )
        return choice.choose({"system": wanted.system, "wasm": wanted.wasm, "worker": wanted.worker}, footing)

    def _said(self, level: str, plugin_id: str, message: str, fields: dict[str, str]) -> None:
        """A line of log.write: into the daemon's log, and beside what the plugin says on stderr."""
        write = {"debug": log.debug, "warning": log.warning, "error": log.error}.get(level, log.info)
        write("plugin_said", plugin_id=plugin_id, message=message, fields=fields)
        more = "".join(f" {name}={value}" for name, value in fields.items())
        self.outputs.say(plugin_id, "log", f"{level}: {message}{more}")


def _ground(settings: Settings) -> ChildSpawner:
    """Look at what this host gives to confine children with, and clear away what an earlier life left."""
    probed = _probed()
    if probed.delegation is not None:
        cgroup.sweep(probed.delegation)
    return ChildSpawner(probed, settings.sandbox, settings.plugin_limits)


@functools.cache
def _probed() -> Probed:
    """Once for this process: throw-away children at every level."""
    return probe.probe()


def _gate_limits(settings: Settings) -> GateLimits:
    limits = settings.host_calls
    return GateLimits(
        rate=Rate(per_second=limits.per_second, burst=limits.burst),
        of_call={"log.write": Rate(per_second=limits.log_per_second, burst=2 * limits.log_per_second)},
        request_bytes=limits.request_bytes,
        deadline_s=limits.deadline_s,
    )
