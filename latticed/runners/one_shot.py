"""The instance of a stdio-json-v1 plugin: one process per invocation, none in between."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, cast

from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.model.runtime import Health
from latticed.runners import replies, stdio_json
from latticed.runners.contract import Checkup
from latticed.runners.cpu import CpuWatch
from latticed.runners.unrepresentable import Unrepresentable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from latticed.broker.gate import Gate
    from latticed.processes.child import Child
    from latticed.processes.exits import Exit
    from latticed.processes.pipes import PipeWriter
    from latticed.runners.child_spawner import Invoking
    from latticed.runners.output import Outputs, Stderr
    from latticed.sandbox.artifact import Artifact

    Spawn = Callable[[asyncio.Protocol, asyncio.Protocol, Callable[[Exit], None]], Awaitable[Child]]

RESPONSE_FD: Final = 3
"""The child's descriptor on which it reads the answers to its host calls."""
ENVIRONMENT: Final = {"LATTICE_HOST_RESPONSE_FD": str(RESPONSE_FD)}
TERM_S: Final = 3.0
"""How long, in seconds, a process may take to end after SIGTERM (contracts §10)."""
LINGER_S: Final = 0.5
"""How long, in seconds, a process that has replied may take to exit by itself before SIGTERM."""


class OneShotSpec(Value, frozen=True, kw_only=True):
    """What every invocation of a plugin needs; `program` is closed with the instance. `sandbox` is for display.

    `cpu_percent` is the share of one core to enforce, None where there is no limit or a cgroup enforces it.
    """

    plugin_id: str
    gate: Gate
    invoking: Invoking
    outputs: Outputs
    sandbox: str
    spawn: Spawn
    program: Artifact
    cpu_percent: int | None = None


class OneShot:
    """A stdio-json-v1 plugin, which has a process during an invocation only; see `runners.contract.Instance`."""

    pid = 0
    message = "a process for each invocation"

    def __init__(self, spec: OneShotSpec) -> None:
        self.sandbox = spec.sandbox
        self._spec = spec
        self._running: set[asyncio.Task[Any]] = set()  # what is under way, health checks too, each with its process
        self._invocations = 0  # of these, those that count for how many there may be
        self._described = False  # it has started
        self._stopped = False
        self._grace_s = TERM_S  # between SIGTERM and SIGKILL; `stop` may shorten it

    async def describe(self) -> None:
        """Check by a `describe` call that it starts and speaks the protocol; Problem if not. The reply is ignored.

        When cancelled the process is killed without a grace period: its plugin may have been revoked meanwhile.
        """
        with contextlib.suppress(Unrepresentable):  # it has replied, which is all that is asked for
            await self._in_time("describe", None)
        self._described = True

    async def check(self) -> Checkup:
        """Ask by a `health` invocation, also while others are under way: each has a process of its own."""
        try:
            answer = await self._in_time("health", None)
        except Unrepresentable as problem:
            return replies.unreadable_checkup(problem)
        # A status is optional in this protocol: without one `ok` decides.
        result = answer["result"]
        if answer["ok"] and isinstance(result, dict) and "status" in result:
            return replies.checkup({"message": answer["message"], **result})
        message = answer["message"] or answer["error"] or ""
        return Checkup(health=Health.HEALTHY if answer["ok"] else Health.UNHEALTHY, message=message)

    async def invoke(self, action: str, payload: Any) -> dict[str, Any]:
        """See `Instance.invoke`. Problem: `busy`, `not_armed`, or the outcome of `stdio_json.Invocation`."""
        limits = self._spec.invoking
        if self._invocations >= limits.at_once:
            raise Problem("busy", f"expected at most {limits.at_once} invocations at a time", "try again in a moment")
        self._invocations += 1
        try:
            return await self._in_time(action, payload)
        finally:
            self._invocations -= 1

    async def stop(self, grace_s: float) -> None:
        """End the invocations under way: SIGTERM, and SIGKILL after TERM_S or `grace_s`, whichever is shorter. Nothing
        is left.
        """
        if self._stopped:  # a second call: the program is closed, or about to be
            return
        self._grace_s = min(grace_s, TERM_S)
        try:
            await self.halt()
        finally:
            self._spec.program.let_go()

    async def halt(self) -> None:
        """End the invocations under way and refuse new ones; their callers get Problem("plugin_gone"). No process is
        left.
        """
        self._stopped = True
        running = list(self._running)
        for task in running:
            task.cancel()  # it ends its process before it ends itself (`_carry_out`)
        await asyncio.gather(*running, return_exceptions=True)

    async def _in_time(self, action: str, payload: Any) -> dict[str, Any]:
        """Carry out one action in its own task, so that cancelling the caller leaves no process behind."""
        if self._stopped:
            raise Problem("not_armed", f"{self._spec.plugin_id} is being stopped")
        task = asyncio.create_task(self._carry_out(action, payload), name=f"invocation of {self._spec.plugin_id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        # When this caller is cancelled, asyncio cancels the task and waits for it before it raises here.
        try:
            return await task
        except asyncio.CancelledError:  # of the task by `halt`, or of this caller
            if self._stopped:
                raise Problem("plugin_gone", "the plugin was stopped meanwhile") from None
            raise

    async def _carry_out(self, action: str, payload: Any) -> dict[str, Any]:
        """Start a process, have it carry out one action, and end it; returns its reply."""
        spec, limits = self._spec, self._spec.invoking
        stderr = spec.outputs.stderr_of_call(spec.plugin_id, whole_bytes=limits.stderr_bytes)
        call = _Call(spec, stderr)
        child = await spec.spawn(call, stderr, call.ended)
        try:
            call.begin(child, stdio_json.request(action, payload))
            with self._cpu_watched(child, call):
                try:
                    async with asyncio.timeout(limits.timeout_s):
                        answer = await call.conversation.outcome
                except TimeoutError as error:
                    raise replies.too_late(limits.timeout_s) from error
            # A process that ends by itself can finish what it does; `stop` below would interrupt it with SIGTERM.
            with contextlib.suppress(TimeoutError):  # the reply counts, however the process ends
                async with asyncio.timeout(LINGER_S):
                    await child.exited()
            return answer
        except asyncio.CancelledError:
            if not self._described:
                self._grace_s = 0.0
            raise
        finally:
            # The process first: its host calls are only cancelled once it can make no more.
            try:
                await child.stop(self._grace_s)
            finally:  # also when stopped meanwhile: cancel its host calls
                await call.conversation.close()

    @contextlib.contextmanager
    def _cpu_watched(self, child: Child, call: _Call) -> Iterator[None]:
        """Within it, fail the invocation with cpu_exceeded once the child uses more than its share of a core. Does
        nothing without a share.
        """
        percent = self._spec.cpu_percent
        if percent is None:
            yield
            return
        with contextlib.closing(CpuWatch(child, percent, lambda why: call.conversation.fail("cpu_exceeded", why))):
            yield


class _Call(asyncio.Protocol):
    """One process and its invocation: its stdout feeds `conversation`, answers are written to its descriptor 3."""

    def __init__(self, spec: OneShotSpec, stderr: Stderr) -> None:
        self._stderr = stderr
        self._child: Child | None = None
        self._early = bytearray()
        self._stdout: asyncio.ReadTransport | None = None
        self.conversation = stdio_json.Invocation(
            answer=self._answer,
            serve=spec.gate.call_raw,
            refuse=spec.gate.refuse_raw,
            max_line_bytes=spec.invoking.line_bytes,
            max_host_calls=spec.invoking.host_calls,
            flow=self._flow,
            drain=self._drain,
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._stdout = cast("asyncio.ReadTransport", transport)

    def begin(self, child: Child, request: bytes) -> None:
        """Write the request, and handle what the process has written so far."""
        self._child = child
        with contextlib.suppress(BrokenPipeError):  # it may have ended already; `ended` reports that
            child.stdin.write(request)
            # End of file after the one request: a program may read its stdin to the end.
            child.stdin.close()
        self._catch_up()

    def data_received(self, data: bytes) -> None:
        if self._child is None:  # answers cannot be written yet
            self._early += data
        else:
            self.conversation.feed(data)

    def ended(self, exit_: Exit) -> None:
        """The process exited by itself, and all its output was delivered."""
        self._catch_up()  # it may have ended before `begin`
        self.conversation.ended(exit_.code, f"ended without a reply: {exit_.message}{self._stderr.words()}")

    def _catch_up(self) -> None:
        """Hand over the output that came before `begin`: then answers to its calls could not be written."""
        early, self._early = bytes(self._early), bytearray()
        self.conversation.feed(early)

    def _answer(self, line: bytes) -> None:
        self._answers().write(line)

    def _flow(self, on: bool) -> None:  # noqa: FBT001 - the conversation's contract
        if self._stdout is not None and not self._stdout.is_closing():
            self._stdout.resume_reading() if on else self._stdout.pause_reading()

    async def _drain(self) -> None:
        await self._answers().drain()

    def _answers(self) -> PipeWriter:
        """The pipe to descriptor 3 of the process; BrokenPipeError before `begin`."""
        if self._child is None:
            raise BrokenPipeError("it is not there yet to be answered")
        return self._child.inputs[RESPONSE_FD]
