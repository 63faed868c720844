"""One long-lived program: started, restarted as its rules say, stopped with everything it started."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from latticed.host.last_output import LastOutput, last_words
from latticed.host.program.rules import ProgramEnded, ProgramRefused, RestartAfter, after
from latticed.kit import logs
from latticed.kit.clock import rfc3339
from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.model.restart import Failures
from latticed.processes import waiting

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from latticed.host.confinement import Spawner
    from latticed.host.program.rules import RestartRules, State
    from latticed.kit.clock import Clock
    from latticed.processes.child import Child
    from latticed.sandbox.levels import Chosen
    from latticed.sandbox.spec import ChildRequest, Ids

# Seconds between SIGTERM and SIGKILL.
GRACE_S: Final = 5.0
log = logs.get_logger()


class Ready(Value, frozen=True, kw_only=True):
    """What to start, made anew for each start. `request`: program, arguments, limits; `chosen`: the confinement;
    `on_ids`: see `confinement.Spawner`; `close` is called after the start, also when it failed, and releases what
    `request` has open. `beside(child)` runs as long as the program does: once it returns, the program is killed, and
    has ended in that way.
    """

    request: ChildRequest
    chosen: Chosen
    close: Callable[[], None]
    on_ids: Callable[[Ids | None], Awaitable[None]] | None = None
    beside: Callable[[Child], Awaitable[ProgramEnded]] | None = None


class ProgramDeps(Value, frozen=True, kw_only=True):
    """What programs are started with. `clock`: wall clock for what is shown, monotonic for uptimes; `roll` gives a
    random number in [0, 1) for the backoff.
    """

    spawner: Spawner
    clock: Clock
    roll: Callable[[], float]


class SupervisedProgram:
    """A program that is kept running between `start` and `stop`, restarted by its rules.

    `prepare` is awaited before each start and gives what to start; a Problem from it counts as a failed start.
    `output_bytes` of stdout and of stderr are kept. `named` gives an end a code of its own, where the program tells why
    it ended.

    Attributes: `error`: the last one, as (code, message, wall clock in µs); `restarts`: since it was made; `level`: the
    confinement of the last start; `started_at`, `next_at` (the next restart): wall clock in µs, 0 for none; `stopping`:
    also set by a keeper that is about to call `stop`.
    """

    def __init__(
        self,
        name: str,
        deps: ProgramDeps,
        prepare: Callable[[], Awaitable[Ready]],
        rules: RestartRules,
        *,
        output_bytes: int,
        named: Callable[[ProgramEnded], ProgramEnded] = lambda ended: ended,
    ) -> None:
        self.name = name
        self.state: State = "stopped"
        self.pid: int | None = None
        self.restarts = 0
        self.error: tuple[str, str, int] | None = None
        self.level = ""
        self.started_at = 0
        self.next_at = 0
        self.stopping = False
        self._child: Child | None = None
        self._visited = False  # since the last start
        self._grace_s = GRACE_S
        self._deps = deps
        self._prepare = prepare
        self._rules = rules
        self._named = named
        self._output_bytes = output_bytes
        self._out, self._err = LastOutput(output_bytes), LastOutput(output_bytes)
        self._task: asyncio.Task[None] | None = None

    @property
    def started(self) -> bool:
        """True from `start` until `stop` returns, also while it waits for a restart or has failed."""
        return self._task is not None

    def start(self) -> None:
        """Start it, as a task; no effect while it is started. Returns at once."""
        if self._task is None:
            # `kill` may have set it to 0 for the run before.
            self._grace_s = GRACE_S
            self._set("starting")
            self._task = asyncio.create_task(self._keep_running(), name=f"program {self.name}")

    async def stop(self, *, grace_s: float | None = None) -> None:
        """Stop it, with `grace_s` (None: GRACE_S) between SIGTERM and SIGKILL; none of its processes is left when this
        returns. No effect if it is not started. Concurrent callers all wait, and the first one's grace counts.
        """
        task = self._task
        if task is None:
            return
        if grace_s is not None and not self.stopping:
            self._grace_s = grace_s
        self.stopping = True
        task.cancel()
        # asyncio.wait, not `await task`: it does not raise the task's CancelledError, and a cancelled caller of `stop`
        # leaves the task ending.
        await asyncio.wait({task})
        if self._task is task:  # else a concurrent `stop` was first, and it may be started again by now
            self._task, self.stopping = None, False
            self._set("stopped")
            # Retrieved and logged: else asyncio reports "exception was never retrieved" when the task is collected.
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("program_left", program=self.name, error=str(error))

    def kill(self) -> None:
        """Kill its processes without a grace period. Returns at once; `stop` must follow, or it is restarted."""
        # For the `child.stop` of `_run_once` that is still to come.
        self._grace_s = 0.0
        if self._child is not None:
            self._child.kill()

    async def fail(self, code: str, message: str) -> None:
        """Stop it with state `failed` and this error; it is not started again before `stop` and `start`. No effect if
        it is not started.
        """
        if self._task is not None:
            self._task.cancel()
            # The task is kept, unlike in `stop`: `started` stays true, so that rechecks do not start it again.
            await asyncio.wait({self._task})
            self.note_error(code, message)
            self._set("failed")

    def note_visitor(self) -> None:
        """Note that a visitor has connected to it: the end of this run then does not count for the breaker
        (`ProgramEnded.visited`). No effect while it does not run.
        """
        if self._child is not None:
            self._visited = True

    def note_error(self, code: str, message: str) -> None:
        """Set its last error, with the current time."""
        self.error = (code, message, self._deps.clock.wall_us())

    @property
    def error_code(self) -> str:
        """The code of its last error, or empty."""
        return self.error[0] if self.error is not None else ""

    def output(self) -> dict[str, str]:
        """The end of its output since the last start, escaped: `stdout` and `stderr`."""
        return {"stdout": self._out.shown(), "stderr": self._err.shown()}

    def view(self) -> dict[str, Any]:
        """Its state as JSON, for answers: never paths, arguments or environment."""
        code, message, at = self.error or ("", "", 0)
        return {
            "state": self.state,
            "pid": self.pid,
            "sandbox": self.level or None,
            "restarts": self.restarts,
            "started_at": rfc3339(self.started_at) if self.started_at else None,
            "next_retry_at": rfc3339(self.next_at) if self.next_at else None,
            "last_error": {"code": code, "message": message, "at": rfc3339(at)} if code else None,
        }

    async def _keep_running(self) -> None:
        """Run it again and again until the rules say no; cancelling this stops it."""
        failures, clock = Failures(), self._deps.clock
        while True:
            self._set("starting")
            started_s = clock.monotonic_s()
            ended = self._named(await self._run_once())
            # None (a signal, or no start at all) is an error, too.
            if ended.status != 0:
                self.note_error(ended.code, ended.shown_message)
            # Monotonic for the uptime, since the wall clock may be set; wall clock below, for `next_retry_at`.
            next_ = after(
                failures, ended, self._rules, uptime_s=clock.monotonic_s() - started_s, roll=self._deps.roll()
            )
            if not isinstance(next_, RestartAfter):
                if next_.code:
                    self.note_error(next_.code, next_.message)
                self._set(next_.state)
                log.warning("program_over", program=self.name, state=next_.state, code=next_.code)
                return
            failures = next_.failures
            self._set("waiting", next_at=clock.wall_us() + round(next_.delay_s * 1_000_000))
            await asyncio.sleep(next_.delay_s)
            self.restarts += 1

    async def _run_once(self) -> ProgramEnded:
        """Start it and wait for its end; failed starts are an end, too. Cancelling this stops it."""
        try:
            ready = await self._prepare()
            try:
                child = await self._spawn(ready)
            finally:
                # Also after a failed start: the opened program would otherwise leak a descriptor at each retry.
                ready.close()
        except ProgramRefused as refused:
            return refused.ended
        except Problem as problem:
            return ProgramEnded(code=problem.code, message=problem.reason)
        # A fault of ours counts as a failed start, so that the backoff bounds how often it is met.
        except Exception as error:
            log.error("program_failed", program=self.name, exc_info=True)
            return ProgramEnded(code="internal", message=f"a fault of latticed: {type(error).__name__}")
        self._child, self._visited = child, False
        beside, gone = asyncio.ensure_future(_beside(ready, child)), asyncio.ensure_future(child.gone())
        try:
            # End of file at once: nothing will be written to it.
            child.stdin.close()
            self.pid, self.level, self.started_at = child.pid, child.level.token, self._deps.clock.wall_us()
            self._set("running")
            await asyncio.wait({gone, beside}, return_when=asyncio.FIRST_COMPLETED)
            # Not once it has ended by itself: what is beside it may end with it.
            stopped = beside.result() if beside.done() and child.exit is None else None
            if stopped is not None:
                child.kill()
            exit_ = await gone
        finally:
            beside.cancel()
            # Uncancelled: `stop` may return only when no process is left. As one piece: a second `stop` cancels again.
            await waiting.uncancelled(self._end(child, beside, gone))
        if stopped is not None:
            return stopped
        # Read after the child has gone, when all of its output has been delivered.
        last_line = last_words(self._err.data() or self._out.data()) if exit_.status != 0 else ""
        return ProgramEnded(
            code=exit_.code, message=exit_.message + last_line, status=exit_.status, visited=self._visited
        )

    async def _end(self, child: Child, *watching: asyncio.Future[Any]) -> None:
        """Stop the child, wait for what watches it, and forget its pid."""
        await child.stop(self._grace_s)
        await asyncio.gather(*watching, return_exceptions=True)
        self.pid = self._child = None

    async def _spawn(self, ready: Ready) -> Child:
        """Start the child, with empty buffers for its stdout and stderr."""
        self._out, self._err = LastOutput(self._output_bytes), LastOutput(self._output_bytes)
        return await self._deps.spawner.spawn(
            ready.request,
            ready.chosen,
            # Its end is awaited in `_run_once` (`Child.gone`).
            on_exit=lambda _: None,
            stdout=self._out,
            stderr=self._err,
            on_ids=ready.on_ids,
        )

    def _set(self, state: State, *, next_at: int = 0) -> None:
        """Set the state; `next_at` is 0 in all but `waiting`."""
        self.state, self.next_at = state, next_at


async def _beside(ready: Ready, child: Child) -> ProgramEnded:
    """What runs beside the program; a fault of it ends the program, which it was to watch."""
    if ready.beside is None:
        never: asyncio.Future[ProgramEnded] = asyncio.get_running_loop().create_future()
        return await never  # until it is cancelled
    try:
        return await ready.beside(child)
    except Problem as problem:
        return ProgramEnded(code=problem.code, message=problem.reason)
    except Exception as error:
        log.error("program_unwatched", exc_info=True)
        return ProgramEnded(code="internal", message=f"a fault of latticed: {type(error).__name__}")
