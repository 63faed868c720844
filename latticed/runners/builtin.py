"""The runner of built-in plugins: their code runs on the daemon's event loop, behind a fence.

Nothing that such a plugin raises, cancels or leaves hanging reaches anything but its handle; its host calls go through
its Gate. What a fence cannot stop is code that does not give the event loop back: built-ins are latticed's own
(architecture, decision 9), and must not block.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.host.call import HostError
from latticed.host.secret import typed
from latticed.kit import logs, text
from latticed.kit.log_limit import LogLimiter
from latticed.model.errors import Problem
from latticed.model.runtime import Health
from latticed.runners import internal_errors, lines, replies
from latticed.runners.contract import Checkup
from latticed.sdk import base
from latticed.sdk.calls import HostError as PluginHostError
from latticed.system.host import Host
from latticed.system.plugin import SecretReply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latticed.broker.gate import Gate
    from latticed.bundle.read import BundleDirectory
    from latticed.catalog.builtins import Builtins
    from latticed.host.secret.references import PluginSecrets
    from latticed.model.manifest import Manifest
    from latticed.runners.child_spawner import Invoking
    from latticed.runners.contract import PluginToRun
    from latticed.runners.output import Outputs
    from latticed.system.plugin import Measure, SystemPlugin

RESULT_BYTES: Final = 1 << 20
"""Longest result of an action as JSON, as for other plugins (`jsonrpc.MAX_LINE_BYTES`)."""
CANCEL_S: Final = 0.1
"""Least time that cancelled work gets to end, when there is no grace: one turn of the event loop is what it needs."""
_HINT: Final = "systemctl restart latticed, so that what runs is what is installed"

_FAILURES: Final = LogLimiter()

log = logs.get_logger()


class BuiltinRunner:
    """See `runners.contract.Runner`. `invoking` gives limits of an invocation, `secrets_of(id)` a plugin's secrets."""

    name = "builtin"
    hashes_artifact = True

    def __init__(
        self,
        builtins: Builtins,
        outputs: Outputs,
        invoking: Callable[[Manifest], Invoking],
        secrets_of: Callable[[str], PluginSecrets],
    ) -> None:
        self._builtins = builtins
        self._secrets_of = secrets_of
        self._outputs = outputs
        self._invoking = invoking
        self._loaded: dict[str, type[SystemPlugin]] = {}

    async def admit(self, plugin: PluginToRun, pair: BundleDirectory) -> None:
        """A built-in runs wherever latticed does; what it needs of the host its health says."""

    async def start(
        self, plugin: PluginToRun, pair: BundleDirectory, gate: Gate, on_exit: Callable[[str, str], None]
    ) -> BuiltinInstance:
        if plugin.id not in self._loaded:
            self._loaded[plugin.id] = await asyncio.to_thread(self._load, plugin, pair)
        limits = self._invoking(plugin.manifest)
        instance = BuiltinInstance(plugin, gate, limits, self._outputs, on_exit, secrets_of=self._secrets_of)
        await instance.begin(self._loaded[plugin.id])
        return instance

    def _load(self, plugin: PluginToRun, pair: BundleDirectory) -> type[SystemPlugin]:
        """Import its code, once; an update of latticed's files under a running daemon must not mix two versions."""
        found, _ = pair.hash_artifact()
        if found != plugin.manifest.digest_sha256:
            expected = plugin.manifest.digest_sha256
            reason = f"the plugin's files have changed since latticed was started (expected {expected[:12]}…, found "
            raise Problem("digest_mismatch", f"{reason}{found[:12]}…): restart latticed", _HINT)
        try:
            return self._builtins.load(plugin.id)
        except Exception as error:
            log.error("builtin_not_loaded", plugin_id=plugin.id, exc_info=True)
            raise Problem("plugin_error", f"its code cannot be loaded: {type(error).__name__}: {error}") from error


class BuiltinInstance:
    """See `runners.contract.Instance`."""

    pid = 0
    sandbox = ""
    message = "runs in the daemon's process"

    def __init__(
        self,
        plugin: PluginToRun,
        gate: Gate,
        invoking: Invoking,
        outputs: Outputs,
        on_exit: Callable[[str, str], None],
        *,
        secrets_of: Callable[[str], PluginSecrets],
    ) -> None:
        self._plugin_id = plugin.id
        self._secrets_of = secrets_of
        self._config: dict[str, Any] = msgspec.json.decode(plugin.config)
        self._gate = gate
        self._invoking = invoking
        self._outputs = outputs
        self._on_exit = on_exit
        self._work: set[asyncio.Task[Any]] = set()
        self._checking: asyncio.Task[Any] | None = None
        self._invocations = 0
        self._stopping = False
        self._fault: tuple[str, str] | None = None
        self._plugin: SystemPlugin

    async def begin(self, kind: type[SystemPlugin]) -> None:
        """Make the plugin, call `started` and begin its background task; Problem("plugin_error") when it raises."""
        capabilities = tuple(self._gate.capabilities())
        make = functools.partial(
            kind, Host(self._call), id=self._plugin_id, capabilities=capabilities, config=self._config
        )
        try:
            self._plugin = await self._result(self._fenced(functools.partial(_started, make), "start"))
        except _Failed as failed:
            raise Problem("plugin_error", self._told(failed, "it does not start")) from failed
        except BaseException:
            await self.stop(0.0)
            raise
        self._fenced(self._plugin.run, "run").add_done_callback(self._ended)

    async def check(self) -> Checkup:
        if self._checking is not None and not self._checking.done():
            return Checkup(health=Health.UNHEALTHY, message="the health check before has not ended yet")
        self._checking = self._fenced(self._plugin.check, "check")
        try:
            found = await self._result(self._checking)
        except _Failed as failed:
            return Checkup(health=Health.UNHEALTHY, message=self._told(failed, "the health check failed"))
        said = {"status": getattr(found, "status", None), "message": getattr(found, "message", "")}
        return replies.checkup(said)

    async def invoke(self, action: str, payload: Any) -> dict[str, Any]:
        limits = self._invoking
        if self._is_over():
            raise self._gone()
        if self._invocations >= limits.at_once:
            raise Problem("busy", f"expected at most {limits.at_once} invocations at a time", "try again in a moment")
        self._invocations += 1
        try:
            async with asyncio.timeout(limits.timeout_s):
                work = functools.partial(self._plugin.invoke, action, payload)
                return await self._reply(await self._result(self._fenced(work, "invoke")))
        except TimeoutError as error:
            raise replies.too_late(limits.timeout_s) from error
        except _Failed as failed:
            if failed.error is None and self._is_over():
                raise self._gone() from failed
            if isinstance(failed.error, base.PluginError | PluginHostError):
                return replies.reply(base.failed(str(failed.error)))
            return replies.reply(base.failed(self._told(failed, f"the action {action[:100]} failed")))
        finally:
            self._invocations -= 1

    def measures(self) -> tuple[Measure, ...]:
        """What `/metrics` shows of the plugin; nothing when it cannot say."""
        try:
            return () if self._is_over() else tuple(self._plugin.measures())
        except Exception as error:  # noqa: BLE001 - as the fence
            self._told(_Failed(error), "it cannot be measured")
            return ()

    async def stop(self, grace_s: float) -> None:
        """Cancel all it does. What does not end within the grace is left behind: its Gate is closed already."""
        self._stopping = True
        for task in self._work:
            task.cancel()
        if self._work:
            await asyncio.wait(set(self._work), timeout=max(grace_s, CANCEL_S))
        left = [task for task in self._work if not task.done()]
        for task in left:
            task.cancel()
        if left:
            names = sorted(task.get_name() for task in left)
            log.error("builtin_left_behind", plugin_id=self._plugin_id, tasks=names)
            self._outputs.say(self._plugin_id, "daemon", f"does not end though cancelled: {', '.join(names)}")

    async def _call(self, method: str, params: dict[str, Any]) -> Any:
        """One host call through the Gate; the result is the plugin's own, as if it had come over a pipe."""
        try:
            return msgspec.json.decode(msgspec.json.encode(await self._gate.call(method, params)))
        except HostError as error:
            raise PluginHostError(error.code.value, error.reason) from error
        except Exception as error:
            found = internal_errors.report(method, error)
            raise PluginHostError(found.code.value, found.reason) from error

    def _fenced(self, work: Callable[[], Awaitable[Any]], what: str) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(_fence(work), name=f"{self._plugin_id} {what}")
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return task

    async def _result(self, task: asyncio.Task[Any]) -> Any:
        """What the task returns, or _Failed. When cancelled it is cancelled too, and not waited for: it may hang."""
        try:
            await asyncio.wait({task})
        finally:
            task.cancel()  # nothing, if it is done
        if task.cancelled():
            raise _Failed(None)
        outcome = task.result()
        if isinstance(outcome, _Failed):
            raise outcome
        return outcome

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """The background task is over: unless that was asked for, the plugin has failed."""
        if self._stopping:
            return
        self._stopping = True
        for other in self._work:
            other.cancel()
        outcome = None if task.cancelled() else task.result()
        if isinstance(outcome, _Failed):
            self._fault = "plugin_error", self._told(outcome, "its background task failed")
        else:
            found = "it cancelled itself" if task.cancelled() else "it returned"
            self._fault = "exited", f"expected its background task to go on, {found}"
        self._on_exit(*self._fault)

    async def _reply(self, found: Any) -> dict[str, Any]:
        """The reply of an action that returned `found`, with the secrets in place that it asks for."""
        reply = _reply(found)
        if not isinstance(found, SecretReply) or not reply["ok"]:
            return reply
        secrets = self._secrets_of(self._plugin_id)
        try:
            if found.encode is None:
                return {**reply, "result": typed.filled(reply["result"], self._plugin_id, found.forms, secrets)}
            values = typed.values(self._plugin_id, found.forms, secrets)
        except HostError as error:
            return replies.reply(base.failed(f"{error.code.value}: {error.reason}"))
        try:
            made = await asyncio.to_thread(found.encode, values)
        except Exception as error:  # noqa: BLE001 - its words may hold a value
            return replies.reply(base.failed(f"the reply cannot be made of its secrets: {type(error).__name__}"))
        return _reply(base.Reply(made, message=found.message))

    def _is_over(self) -> bool:
        return self._stopping

    def _gone(self) -> Problem:
        """Why an action cannot be carried out any more: how the instance ended."""
        code, message = self._fault or ("plugin_gone", "it was stopped meanwhile")
        return Problem(code, message if self._fault is None else f"the plugin ended: {message}")

    def _told(self, failed: _Failed, what: str) -> str:
        """One line of why, after its traceback went to the log."""
        error = failed.error
        kind = type(error).__name__
        words = "it cancelled itself" if error is None else f"{kind}: {error}"
        said = text.clip(f"{what}: {words}", replies.MESSAGE_CHARACTERS)
        # A visitor's requests may fail as often as they like.
        count = _FAILURES.take((self._plugin_id, kind), asyncio.get_running_loop().time())
        if count is not None:
            log.error("builtin_failed", plugin_id=self._plugin_id, reason=said, count=count, exc_info=error)
        self._outputs.say(self._plugin_id, "daemon", said)
        return said


class _Failed(Exception):
    """What a plugin's code raised; None when it was cancelled."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__(error)
        self.error = error


async def _fence(work: Callable[[], Awaitable[Any]]) -> Any:
    """What `work` returns, or the _Failed of what it raises: a task that raises SystemExit would end the event loop."""
    try:
        return await work()
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - this is the fence
        return _Failed(error)


async def _started(make: Callable[[], SystemPlugin]) -> SystemPlugin:
    plugin = make()
    await plugin.started()
    return plugin


def _reply(found: Any) -> dict[str, Any]:
    """The reply of an action that returned `found`; one that JSON cannot carry is a failure."""
    reply = found if isinstance(found, base.Reply) else base.Reply(found)
    error = None if reply.ok else reply.message or "failed"
    try:
        data = msgspec.json.encode(reply.result)
    except (TypeError, ValueError, RecursionError) as unfit:
        return replies.reply(base.failed(f"expected a result that JSON can carry: {unfit}"))
    if len(data) > RESULT_BYTES:
        reason = f"expected a result of at most {RESULT_BYTES} bytes as JSON, found {len(data)}"
        return replies.reply(base.failed(reason))
    plain = msgspec.json.decode(data)
    if lines.too_many(data) or lines.too_deep(data, plain):
        reason = f"expected a result of at most {lines.MAX_VALUES} values, nested {lines.MAX_DEPTH} deep at most"
        return replies.reply(base.failed(reason))
    return replies.reply({"ok": reply.ok, "message": reply.message, "result": plain, "error": error})
