"""Dependencies and helpers that all handles share."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from latticed.broker.decide import Rights
from latticed.bundle.refusal import BundleRefused
from latticed.host.call import Caller
from latticed.host.kv import FOR_WORKERS
from latticed.kit import logs
from latticed.kit.tasks import fenced
from latticed.kit.wheel import Wheel
from latticed.model.errors import Problem
from latticed.model.verdict import Code, Refused
from latticed.runners.kept_copies import KeptCopies

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping

    from latticed.broker.gate import Broker, Gate
    from latticed.bundle.read import BundleDirectory
    from latticed.catalog.store import Store
    from latticed.kit.clock import Clock
    from latticed.kit.wheel import Ticket
    from latticed.model import restart
    from latticed.model.audit import Event as AuditEvent
    from latticed.model.verdict import Verdict
    from latticed.runners.contract import Instance, PluginToRun, Runner

log = logs.get_logger()

_LOG_EVENTS: Final = {"armed": "plugin_armed", "stopped": "plugin_stopped", "failed": "plugin_failed"}

STARTS: Final = 8
"""How many plugins are started at a time."""
TURN_S: Final = 1.0
"""How long one start may occupy a slot of STARTS."""
STOP_MARGIN_S: Final = 5.0
"""How much longer than its grace a plugin may take to end, before the handle stops waiting for it."""
# UNREADABLE is an I/O error of this moment: a retry may read the pair, so the plugin is not held for it.
_PAIR_CODES: Final = frozenset(code.value for code in Code) - {Code.UNREADABLE.value}
FINAL_CODES: Final = _PAIR_CODES | {
    "sandbox_unavailable",
    "source_blocked",
    "artifact_not_executable",
    "interpreter_not_allowed",
    "needs_config",
}
"""Failures that a retry does not help: the stored pair no longer verifies, or this host cannot run it. An I/O error may
pass, so it is not among them."""


async def _in_time(plugin_id: str, ending: Awaitable[None], grace_s: float) -> None:
    """Wait for `ending`, STOP_MARGIN_S longer than its grace; whatever goes wrong is logged, never raised."""
    try:
        # A stop that hangs must not keep the daemon from ending.
        async with asyncio.timeout(grace_s + STOP_MARGIN_S):
            await ending
    # A runner's bug must not leave the handle STOPPING for ever: it counts as stopped, and the log says why.
    except Exception:
        log.error("plugin_stop_failed", plugin_id=plugin_id, exc_info=True)


async def _nothing_set(_: PluginToRun) -> bytes:
    """For supervisors whose plugins are not configured."""
    return b"{}"


def _nothing_scheduled(_: str) -> None:
    """For supervisors without schedules."""


async def _nothing_to_drain(_: str) -> None:
    """For supervisors without host services."""


@dataclass(slots=True, kw_only=True)
class HandleDeps:
    """The dependencies of every handle; all share one object.

    `judge` verifies the stored pair of an identity under the current policy, without reading the artifact when its
    SHA-256 is given; `record` has an event written as soon as possible.
    """

    runners: Mapping[str, Runner]
    broker: Broker
    store: Store
    judge: Callable[[str, str | None], Awaitable[Verdict]]
    record: Callable[[AuditEvent], None]
    clock: Clock
    # From the settings of the start.
    start_deadline_s: float
    # Of the settings in force: a reload replaces them.
    restart: restart.RestartPolicy
    stop_grace_s: float
    wheel: Wheel = field(default_factory=Wheel)
    copies: KeptCopies = field(default_factory=KeptCopies)
    """The runners' copies of artifacts, which handles release."""
    roll: Callable[[], float] = random.random
    """A random number from 0 to 1, for jitter; tests replace it."""
    final_codes: frozenset[str] = FINAL_CODES
    refused: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    """Ids whose stored pair was refused at a start, for the lifecycle to read."""
    drained: Callable[[str], Awaitable[None]] = _nothing_to_drain
    """Returns once host services do nothing for a plugin that it may no longer have done."""
    configure: Callable[[PluginToRun], Awaitable[bytes]] = _nothing_set
    """The operator's configuration for a start, as a JSON object; Problem needs_config when it does not fit."""
    scheduled: Callable[[str], None] = _nothing_scheduled
    """Told the id of a plugin whose handle has changed (`Schedules.changed`)."""
    starts: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(STARTS))
    """The slots of starts (`_turn`)."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    """All tasks of handles that have not ended (`spawn`)."""

    def runner_name(self, plugin: PluginToRun) -> str:
        """The name of the runner for this plugin."""
        return self.runners[plugin.runner].name

    def gate(self, plugin: PluginToRun, granted: frozenset[str]) -> Gate:
        """A new Gate for one instance: what the manifest declares and `granted`, and the limits of this plugin."""
        rights = Rights(declared=frozenset(plugin.manifest.capabilities), granted=granted)
        # The manifest's own limit; the Gate takes it only where it is lower than that of the settings.
        own = plugin.manifest.runtime.limits.host_calls_per_s
        # Workers are templates, not code: besides their own bucket they may name the operators' `default`.
        buckets = FOR_WORKERS if plugin.manifest.type == "worker" else frozenset[str]()
        return self.broker.gate(Caller(plugin_id=plugin.id, buckets=buckets), rights, calls_per_s=own)

    async def admit(self, plugin: PluginToRun) -> None:
        """Problem when `plugin`, whose pair is stored, cannot be activated on this host (asks its runner)."""
        with self._opened(plugin) as pair:
            await self.runners[plugin.runner].admit(plugin, pair)

    async def start(self, plugin: PluginToRun, gate: Gate, on_exit: Callable[[str, str], None]) -> Instance:
        """Verify the stored pair again, then have its runner start it.

        `on_exit(code, message)` is called when the instance ends by itself. Problem (of the verdict, or of the runner),
        or TimeoutError. The deadline (`start_deadline_s`) begins once a slot of `starts` is free: else, of a thousand
        plugins starting at once, all would miss it, and again when they are retried.
        """
        async with self._turn():
            async with asyncio.timeout(self.start_deadline_s):
                return await self._start(plugin, gate, on_exit)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One slot of `starts`, released after TURN_S at the latest: one that hangs must not block other starts."""
        # Not `async with`: the timer may release the slot before the start ends, and it must be released once only.
        await self.starts.acquire()
        # `close` of an ExitStack runs its callbacks once: whichever comes first, timer or end, releases the slot.
        acquired = contextlib.ExitStack()
        acquired.callback(self.starts.release)
        over = asyncio.get_running_loop().call_later(TURN_S, acquired.close)
        try:
            yield
        finally:
            over.cancel()
            acquired.close()

    async def _start(self, plugin: PluginToRun, gate: Gate, on_exit: Callable[[str, str], None]) -> Instance:
        """Judge the stored pair, then have the runner start it; the caller bounds how long that takes."""
        runner = self.runners[plugin.runner]
        # A runner that hashes what it executes covers the bytes: hashing the stored file as well would add nothing.
        sha256 = plugin.manifest.digest_sha256.lower() if runner.hashes_artifact else None
        # The store is no trust anchor (architecture, decision 3): the pair may have changed since it was accepted.
        verdict = await self.judge(plugin.identity, sha256)
        if isinstance(verdict, Refused):
            # The lifecycle learns it by the queue, as the supervisor must not import it.
            self._report_refused(plugin, verdict.code.value)
            raise Problem.of(verdict)
        configured = replace(plugin, config=await self.configure(plugin))
        with self._opened(plugin) as pair:
            return await runner.start(configured, pair, gate, on_exit)

    async def end(self, plugin_id: str, living: Instance | None, *, at_once: bool, for_good: bool) -> None:
        """End the running instance and, `for_good`, what host services do for its plugin; never raises.

        `living` is None when there is no instance. `at_once`: without a grace period. Either wait is bounded
        (`_in_time`).
        """
        grace_s = 0.0 if at_once else self.stop_grace_s
        # First the process, then host services: what its last calls began is then ended as well.
        if living is not None:
            await _in_time(plugin_id, living.stop(grace_s), grace_s)
        # Not at a restart: monitors, tasks and the like of a plugin go on while it is replaced.
        if for_good:
            await _in_time(plugin_id, self.drained(plugin_id), grace_s)

    @contextlib.contextmanager
    def _opened(self, plugin: PluginToRun) -> Iterator[BundleDirectory]:
        """The stored pair; if it changed after it was judged, a Problem with the code of a verdict."""
        try:
            with self.store.open(plugin.identity) as pair:
                yield pair
        # The files may change between `judge` and this open; the code is one of a verdict, so that the plugin is held.
        except BundleRefused as refused:
            self._report_refused(plugin, refused.code)
            raise Problem.of(refused.fault) from refused
        except Problem as problem:
            self._report_refused(plugin, problem.code)
            raise

    def _report_refused(self, plugin: PluginToRun, code: str) -> None:
        """Put the id into `refused` if `code` is a fault of the stored pair."""
        if code in _PAIR_CODES:
            self.refused.put_nowait(plugin.id)

    def later(self, delay_s: float, call: Callable[[], None]) -> Ticket | asyncio.Handle:
        """Call by the timer wheel (50 ms resolution); without a delay, in the next iteration of the event loop."""
        # Not called at once: the caller is in the middle of `post`, and the call posts the next event.
        if delay_s <= 0:
            return asyncio.get_running_loop().call_soon(call)
        return self.wheel.add(delay_s, call)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` as a task; a failure is only logged. The supervisor waits for it when it closes."""
        task = fenced(work, lambda error: log.error("task_failed", task=name, error=repr(error)), name=name)
        # Awaited when the supervisor closes: no check or stop may outlive the ledger that records it.
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def note(self, event: AuditEvent) -> None:
        """Log an event of the runtime and have it recorded as soon as possible; waits for neither."""
        log.info(_LOG_EVENTS[str(event.detail["state"])], plugin_id=event.target, code=event.code, reason=event.reason)
        self.record(event)
