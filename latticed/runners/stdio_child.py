"""The instance of a plugin that speaks latticed-stdio-1 on its stdin and stdout: a process plugin or a wasm one."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

import msgspec

from latticed.host.call import HostError
from latticed.kit.tasks import fenced
from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from latticed.runners import replies
from latticed.runners.cpu import CpuWatch, OvertimeWatch
from latticed.runners.jsonrpc import JsonRpcSession
from latticed.runners.unrepresentable import Unrepresentable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from latticed.broker.gate import Answer, Gate
    from latticed.processes.child import Child
    from latticed.processes.exits import Exit
    from latticed.processes.pipes import PipeWriter
    from latticed.runners.child_spawner import Invoking
    from latticed.runners.contract import Checkup, PluginToRun
    from latticed.runners.output import Stderr

    Spawn = Callable[[asyncio.Protocol, asyncio.Protocol, Callable[[Exit], None]], Awaitable[Child]]
    """Starts the child with the protocols of its stdout and stderr, and a callback for its end."""

PROTOCOL: Final = "latticed-stdio-1"
HANGUP_S: Final = 1.0
"""How long a child that closed its stdin or stdout may take to exit before that counts as a fault."""
_OVERTIME: Final = 2
"""How much more than `computes_s` for each message counts: it does not include what a child's own host takes."""


class StdioChildSpec(Value, frozen=True, kw_only=True):
    """What a StdioChild needs. `sandbox` is its confinement for display. `explain` turns an exit into (code, message),
    or None for the default message.

    `cpu_percent` of one core is enforced by `CpuWatch`, if given. `computes_s`: a child that ends by itself when it
    computes for longer than that over one message; one that computes far longer after an invocation was over its time,
    and answers nothing, is ended here.
    """

    plugin: PluginToRun
    gate: Gate
    invoking: Invoking
    stderr: Stderr
    sandbox: str
    cpu_percent: int | None = None
    computes_s: float | None = None
    explain: Callable[[Exit], tuple[str, str] | None] = lambda _: None


async def begin(spec: StdioChildSpec, spawn: Spawn, on_exit: Callable[[str, str], None]) -> StdioChild:
    """Start the child and send `initialize`; return the instance once it has answered.

    `spawn(stdout, stderr, ended)` starts it: two protocols for its output, and what to call at its end. Problem when it
    cannot be started, answers with an error or ends first. When that or a cancellation happens, nothing is left.
    `on_exit(code, message)` is called only for an end after a successful start.
    """
    instance = StdioChild(spec, on_exit)
    child = await spawn(instance.reader, spec.stderr, instance.ended)
    try:
        instance.attach(child)
        await instance.shake_hands()
    except BaseException:
        await instance.abandon()
        raise
    return instance


class StdioChild:
    """A running plugin that speaks latticed-stdio-1; see `runners.contract.Instance`. Made by `begin`.

    `reader` is the protocol of the child's stdout, `session` the messages on it. The first fault that is noticed is the
    reason of its end: what follows from it (SIGKILL, a closed pipe) does not replace it.
    """

    message = ""

    def __init__(self, spec: StdioChildSpec, on_exit: Callable[[str, str], None]) -> None:
        self.sandbox = spec.sandbox
        self.reader = _Reader(self)
        self.session = JsonRpcSession(
            write=self._write,
            serve=self._serve,
            refuse=spec.gate.refuse,
            flow=self._flow,
            broken=self._kill,
            may_write=lambda: self._stdin().may_write,
            drain=lambda: self._stdin().drain(),
        )
        self._spec = spec
        self._on_exit = on_exit
        self._child: Child | None = None
        self._fault: tuple[str, str] | None = None  # (code, message) of why it ends; the first one counts
        self._ready = False  # it has answered `initialize`: from now on its end is reported by `on_exit`
        self._stopping = False
        self._over = False  # it has exited, or was stopped
        self._early = bytearray()  # output that came before `attach`
        self._hanging_up: asyncio.TimerHandle | None = None
        self._invocations = 0
        self._late_at = -1  # how much it had answered when an invocation was over its time
        self._checked_at = -1  # and at the last check
        self._cpu: CpuWatch | None = None
        self._overtime: OvertimeWatch | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """See `Instance.pid`."""
        return self._child.pid if self._child is not None else 0

    # Start and end.

    def attach(self, child: Child) -> None:
        """Take over the started child, and handle what it has written so far."""
        self._child = child
        if self._spec.cpu_percent is not None:
            self._cpu = CpuWatch(child, self._spec.cpu_percent, lambda reason: self._kill("cpu_exceeded", reason))
        child.stdin.on_lost = lambda: self.hung_up("stdin")
        if child.stdin.closed:  # before `on_lost` was set
            self.hung_up("stdin")
        early, self._early = bytes(self._early), bytearray()
        self.session.feed(early)

    async def shake_hands(self) -> None:
        """Send `initialize` and wait for its answer, whose value is not used. Problem when it is an error, or the child
        ends.
        """
        plugin, gate = self._spec.plugin, self._spec.gate
        answer = {"protocol": PROTOCOL, "id": plugin.id, "capabilities": gate.capabilities()}
        try:
            # Raw: the document goes into the message as it is kept, without being decoded here.
            await self.session.ask("initialize", {**answer, "config": msgspec.Raw(plugin.config)})
        except Unrepresentable:
            pass  # the answer's value is not used
        except Problem as problem:
            if problem.code != "plugin_gone":
                raise
            code, message = await self._why_gone()
            raise Problem(code, message) from problem
        if self._over:  # it answered and ended: `on_exit` was not called for that
            raise Problem(*await self._why_gone())
        self._ready = True

    async def check(self) -> Checkup | None:
        """Ask the plugin by `health`; None while it carries out an invocation. Problem as `JsonRpcSession.ask`."""
        # Many plugins do one thing at a time. Once an invocation was over its time, and nothing was answered since, nor
        # since the check before, it is asked in any case: with one invocation after the other a plugin that hangs would
        # never be.
        now = self.session.answers
        before, self._checked_at = self._checked_at, now
        if self._invocations and not self._late_at == now == before:
            return None
        try:
            return replies.checkup(await self.session.ask("health", {}))
        except Unrepresentable as problem:
            return replies.unreadable_checkup(problem)

    async def invoke(self, action: str, payload: Any) -> dict[str, Any]:
        """See `Instance.invoke`. Problem: `busy`, `deadline_exceeded`, `plugin_error`, `protocol_error`, or the code of
        the child's end.
        """
        limits = self._spec.invoking
        if self._invocations >= limits.at_once:
            raise Problem("busy", f"expected at most {limits.at_once} invocations at a time", "try again in a moment")
        self._invocations += 1
        try:
            async with asyncio.timeout(limits.timeout_s):
                return replies.reply(await self.session.ask("invoke", {"action": action, "payload": payload}))
        except TimeoutError as error:
            self._note_late()
            raise replies.too_late(limits.timeout_s, log_waits=self._spec.stderr.waits) from error
        except Problem as problem:
            if problem.code != "plugin_gone":
                raise
            # Why the session is over is known once the child has been reaped.
            code, message = await self._why_gone()
            raise Problem(code, f"the plugin ended: {message}") from problem
        finally:
            self._invocations -= 1

    async def stop(self, grace_s: float) -> None:
        """`shutdown`, then SIGTERM, then SIGKILL: half of the grace for each of the first two. Nothing is left
        afterwards.
        """
        if self._child is None:
            return
        self._stopping = True
        try:
            # A plugin with a fault is being killed already; asking it would only take time.
            if grace_s > 0 and not self._over and self._fault is None:
                with contextlib.suppress(TimeoutError, Problem):
                    async with asyncio.timeout(grace_s / 2):
                        await self.session.ask("shutdown", {})
                        self._child.stdin.close()  # end of file, for a program that reads on after its answer
                        await self._child.exited()
        finally:
            await self._child.stop(grace_s / 2)
            await self._end()

    async def abandon(self) -> None:
        """End the child after a failed start; nothing is left, and `on_exit` is not called."""
        if self._child is not None:
            await self._child.stop(0)
        await self._end()

    def ended(self, exit_: Exit) -> None:
        """The child exited by itself, or was killed for a fault. Called once all its output was delivered."""
        if self._fault is None:
            code, message = self._spec.explain(exit_) or (exit_.code, exit_.message)
            self._fault = (code, message + self._spec.stderr.words())
        self._over = True
        # In a task: this is a callback, and the session waits for its host calls to end.
        self._closing = fenced(self._end(), lambda _: None, name="session ends")
        if self._ready:
            self._on_exit(*self._fault)

    async def _why_gone(self) -> tuple[str, str]:
        """(code, message) of its end, once it has exited and its last line on stderr is known."""
        if self._child is not None:
            await self._child.gone()
        return self._fault or ("plugin_gone", "it was stopped meanwhile")

    async def _end(self) -> None:
        """Release what the daemon holds for it: the processor watch, the timer, the session with its host calls."""
        self._over = True
        for watch in (self._cpu, self._overtime):
            if watch is not None:
                watch.close()
        if self._hanging_up is not None:
            self._hanging_up.cancel()
        await self.session.close()

    def _note_late(self) -> None:
        """An invocation is over its time: until anything is answered `check` asks in any case, and a child that should
        have ended by itself is watched.
        """
        answers, limit_s = self.session.answers, self._spec.computes_s
        if self._late_at == answers:  # noted before
            return
        self._late_at = answers
        if limit_s is None or self._child is None or self._over:
            return
        if self._overtime is not None:
            self._overtime.close()
        reason = f"expected it to be done with a message within {limit_s:g} s, found it still computing"
        self._overtime = OvertimeWatch(
            self._child,
            _OVERTIME * limit_s * self._invocations,  # each message that it reads gives it that time
            lambda: self._kill("deadline_exceeded", reason),
            over=lambda: self.session.answers != answers,
        )

    def _kill(self, code: str, reason: str) -> None:
        """End it for the fault (code, reason), unless there is an earlier one."""
        if self._fault is None:
            self._fault = (code, reason)
        if self._child is not None:
            self._child.kill()

    # The session's transport.

    def data_received(self, data: bytes) -> None:
        """Take `data` from its stdout; kept until `attach`, since answers need its stdin."""
        if self._child is None:
            self._early += data
        else:
            self.session.feed(data)

    def hung_up(self, what: str) -> None:
        """It closed `what` (stdin or stdout). Usually it is exiting, so wait for the more telling exit status.

        If it has not exited HANGUP_S later, it is killed.
        """
        if self._stopping or self._over or self._hanging_up is not None:  # it ends anyway, or the timer runs
            return

        def kill() -> None:
            if self._child is not None and self._child.exit is None:
                self._kill("protocol_error", f"expected it to keep its {what} open, found it closed")

        self._hanging_up = asyncio.get_running_loop().call_later(HANGUP_S, kill)

    def _serve(self, method: str, params: bytes, answer: Answer) -> Coroutine[Any, Any, Any] | None:
        """Carry out one host call; see `JsonRpcSession`."""
        if self._stdin().closed:
            answer(None, HostError(Denial.SERVICE_UNAVAILABLE, "the plugin no longer reads"))
            return None
        return self._spec.gate.begin(method, params, answer)

    def _write(self, data: bytes) -> None:
        self._stdin().write(data)

    def _stdin(self) -> PipeWriter:
        """The pipe to the child's stdin."""
        assert self._child is not None  # noqa: S101 - set by `attach`, before anything is written
        return self._child.stdin

    def _flow(self, on: bool) -> None:  # noqa: FBT001 - the session's contract
        """Resume or pause the reading of stdout; see `JsonRpcSession`. Does nothing once the pipe is closed."""
        transport = self.reader.transport
        if transport is None or transport.is_closing():
            return
        if on:
            transport.resume_reading()
        else:
            transport.pause_reading()


class _Reader(asyncio.Protocol):
    """Passes the child's stdout on to the session."""

    def __init__(self, instance: StdioChild) -> None:
        self.transport: asyncio.ReadTransport | None = None
        self._instance = instance

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.ReadTransport)  # noqa: S101 - for the type
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._instance.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._instance.hung_up("stdout")
