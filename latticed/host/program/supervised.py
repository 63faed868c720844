"""One long-lived program: started, watched, started again as its rules say, ended with everything it started."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.host.last_output import LastOutput, last_words
from latticed.host.program.rules import ProgramEnded, RestartAfter, after
from latticed.kit import logs
from latticed.kit.clock import rfc3339
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

GRACE_S: Final = 5.0
log = logs.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What is about to be started. `lent`: see `confining.Spawner`; `close` is called once it has been, or not."""

    request: ChildRequest
    chosen: Chosen
    close: Callable[[], None]
    lent: Callable[[Ids | None], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramDeps:
    """What lives are made with. `roll` gives the dice, in [0, 1)."""

    spawner: Spawner
    clock: Clock
    roll: Callable[[], float]


class SupervisedProgram:
    """`begin` and `end` it; in between it looks after itself. `prepare` says each time anew what is to be started.

    `state`, `pid`, `restarts`, `error` (code, message, when) tell how it is.
    """

    def __init__(
        self,
        name: str,
        tools: ProgramDeps,
        prepare: Callable[[], Awaitable[Ready]],
        rules: RestartRules,
        *,
        output_bytes: int,
    ) -> None:
        self.name = name
        self.state: State = "stopped"
        self.pid: int | None = None
        self.restarts = 0
        self.error: tuple[str, str, int] | None = None
        self.level = ""
        self.started_at = 0
        self.next_at = 0
        self.ending = False
        self._child: Child | None = None
        self._visited = False
        self._grace_s = GRACE_S
        self._tools = tools
        self._prepare = prepare
        self._rules = rules
        self._output_bytes = output_bytes
        self._out, self._err = LastOutput(output_bytes), LastOutput(output_bytes)
        self._task: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        """Whether somebody wanted it to run, and has not ended it since."""
        return self._task is not None

    def begin(self) -> None:
        """Have it run from now on."""
        if self._task is None:
            self._grace_s = GRACE_S
            self._set("starting")
            self._task = asyncio.create_task(self._live(), name=f"program {self.name}")

    async def end(self) -> None:
        """Stop it; nothing of it is left when this returns. Whoever calls it meanwhile waits too."""
        task = self._task
        if task is None:
            return
        self.ending = True
        task.cancel()
        await asyncio.wait({task})
        if self._task is task:
            self._task, self.ending = None, False
            self._set("stopped")
            if not task.cancelled() and (error := task.exception()) is not None:
                log.error("program_left", program=self.name, error=str(error))

    def kill(self) -> None:
        """Kill what runs, at once; call `end` then, and nothing of it is asked to come to an end."""
        self._grace_s = 0.0
        if self._child is not None:
            self._child.kill()

    async def give_up(self, code: str, message: str) -> None:
        """Stop it for good: it has failed, until somebody has it begin anew."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self.fault(code, message)
            self._set("failed")

    def visit(self) -> None:
        """A visitor's connection reaches what runs."""
        if self._child is not None:
            self._visited = True

    def fault(self, code: str, message: str) -> None:
        """Something went wrong with it."""
        self.error = (code, message, self._tools.clock.wall_us())

    def output(self) -> dict[str, str]:
        """The last of what it wrote."""
        return {"stdout": self._out.shown(), "stderr": self._err.shown()}

    def view(self) -> dict[str, Any]:
        """How it is, for answers: never paths, arguments, environment."""
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

    async def _live(self) -> None:
        failures, clock = Failures(), self._tools.clock
        while True:
            self._set("starting")
            begun_s = clock.monotonic_s()
            ended = await self._once()
            if ended.status != 0:
                self.fault(ended.code, ended.told)
            next_ = after(failures, ended, self._rules, uptime_s=clock.monotonic_s() - begun_s, roll=self._tools.roll())
            if not isinstance(next_, RestartAfter):
                if next_.code:
                    self.fault(next_.code, next_.message)
                self._set(next_.state)
                log.warning("program_over", program=self.name, state=next_.state, code=next_.code)
                return
            failures = next_.failures
            self._set("waiting", next_at=clock.wall_us() + round(next_.delay_s * 1_000_000))
            await asyncio.sleep(next_.delay_s)
            self.restarts += 1

    async def _once(self) -> ProgramEnded:
        """From one start to the end that follows; being cancelled stops what was started."""
        try:
            ready = await self._prepare()
            try:
                child = await self._spawn(ready)
            finally:
                ready.close()
        except Problem as problem:
            return ProgramEnded(code=problem.code, message=problem.detail)
        except Exception as error:
            log.error("program_failed", program=self.name, exc_info=True)
            return ProgramEnded(code="internal", message=f"a fault of latticed: {type(error).__name__}")
        self._child, self._visited = child, False
        try:
            child.stdin.close()
            self.pid, self.level, self.started_at = child.pid, child.level.token, self._tools.clock.wall_us()
            self._set("running")
            exit_ = await child.gone()
        finally:
            await waiting.uncancelled(child.stop(self._grace_s))
            self.pid = self._child = None
        words = last_words(self._err.data() or self._out.data()) if exit_.status != 0 else ""
        return ProgramEnded(code=exit_.code, message=exit_.message + words, status=exit_.status, visited=self._visited)

    async def _spawn(self, ready: Ready) -> Child:
        self._out, self._err = LastOutput(self._output_bytes), LastOutput(self._output_bytes)
        return await self._tools.spawner.spawn(
            ready.request,
            ready.chosen,
            on_exit=lambda _: None,
            stdout=self._out,
            stderr=self._err,
            lent=ready.lent,
        )

    def _set(self, state: State, *, next_at: int = 0) -> None:
        self.state, self.next_at = state, next_at
