"""task.*: a plugin submits a script; once an operator has approved exactly that one, it is run, once, confined.

A plugin cannot approve: no host call does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from msgspec import Meta

from latticed.host.call import Caller, Params, Served
from latticed.host.task import spec
from latticed.kit.clock import rfc3339
from latticed.model.audit import Actor
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.host.task.keeper import TaskKeeper
    from latticed.ledger.tasks import TaskRow as Row

State = Literal["submitted", "approved", "running", "done", "failed", "interrupted", "cancelled", "expired"]
MAX_PAGE: Final = 200
"""Tasks in one answer of task.list, without scripts and output."""


class TaskList(Params, frozen=True):
    """The caller's tasks, newest first; `after`: the `next` of the page before (0: the newest)."""

    state: State | None = None
    """Only tasks in this state."""
    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    """The `next` of the page before; 0: the newest."""
    before: Annotated[int, Meta(ge=0, le=2**53)] = 0
    """The name of `after` until 0.1, taken for one version more."""
    limit: Annotated[int, Meta(ge=1, le=MAX_PAGE)] = 50
    """Most tasks in the answer."""


class TaskId(Params, frozen=True):
    """Parameters of task.get and task.cancel."""

    id: str
    """Id of the task."""


class TaskCalls:
    """Serves task.submit, task.cancel, task.list and task.get. A plugin sees its own tasks only."""

    def __init__(self, tasks: TaskKeeper) -> None:
        self._tasks = tasks

    def calls(self) -> tuple[Served, ...]:
        """The calls with their parameters and handlers, for `host.call.table`."""
        return (
            Served(method="task.list", params=TaskList, serve=self._list),
            Served(method="task.get", params=TaskId, serve=self._get),
            Served(method="task.submit", params=spec.TaskSubmit, serve=self._submit),
            Served(method="task.cancel", params=TaskId, serve=self._cancel),
        )

    async def _list(self, caller: Caller, asked: TaskList) -> dict[str, Any]:
        """Serve task.list: a page of the caller's tasks, and the `after` of the next one or null."""
        states = (asked.state,) if asked.state else ()
        found = await self._tasks.page(
            states=states,
            plugin_id=caller.plugin_id,
            before_seq=asked.after or asked.before,
            # One more than asked for says whether there is a next page.
            limit=asked.limit + 1,
        )
        page = found[: asked.limit]
        return {"tasks": [summary(one) for one in page], "next": page[-1].seq if len(found) > len(page) else None}

    def _get(self, caller: Caller, asked: TaskId) -> dict[str, Any]:
        return full(self._tasks.get(asked.id, plugin_id=caller.plugin_id))

    async def _submit(self, caller: Caller, asked: spec.TaskSubmit) -> dict[str, Any]:
        """Serve task.submit. HostError bad_params, too_large; Problem as `TaskKeeper.submit`."""
        script = spec.checked(asked)
        made = await self._tasks.submit(caller.plugin_id, asked, script)
        return {"ok": True, "id": made.id, "sha256": made.sha256, "state": made.state}

    async def _cancel(self, caller: Caller, asked: TaskId) -> dict[str, Any]:
        """Serve task.cancel: `ok` is false when the task has ended otherwise. Problem not_found."""
        # Recorded as the plugin's own decision, apart from those of operators.
        by = str(Actor(kind="plugin", name=caller.plugin_id))
        try:
            after = await self._tasks.cancel(asked.id, by=by, plugin_id=caller.plugin_id)
        except Problem as problem:
            if problem.code == "invalid_transition":  # it has ended already
                return {"ok": False, "state": self._tasks.get(asked.id).state}
            raise
        # It may have ended by itself before the kill reached it.
        return {"ok": after.state == "cancelled", "state": after.state}


def summary(task: Row) -> dict[str, Any]:
    """One task as lists show it, without script and output. Times are RFC 3339, None when there is none yet."""
    return {
        "seq": task.seq,
        "id": task.id,
        "plugin": task.plugin_id,
        "name": task.name,
        "interpreter": task.interpreter,
        "sha256": task.sha256,
        "state": task.state,
        "code": task.outcome.code,
        "reason": task.outcome.reason,
        "exit_code": task.outcome.exit_code,
        "signal": task.outcome.signal,
        "created_at": rfc3339(task.created_at),
        "approved_at": _time(task.approved_at),
        "started_at": _time(task.started_at),
        "ended_at": _time(task.ended_at),
    }


def full(task: Row) -> dict[str, Any]:
    """As `summary`, with script, arguments, and the end of its output (`task.output_bytes` of each stream)."""
    outcome = task.outcome
    return {
        **summary(task),
        "script": task.script,
        "targets": list(task.targets),
        "timeout_s": task.timeout_s,
        "approved_by": task.approved_by,
        "run": task.run_id,
        "stdout": outcome.stdout,
        "stderr": outcome.stderr,
        "stdout_bytes": outcome.stdout_bytes,
        "stderr_bytes": outcome.stderr_bytes,
        "truncated": outcome.truncated,
    }


def _time(wall_us: int) -> str | None:
    """RFC 3339 of microseconds since the epoch; None for 0, which stands for a time that has not come."""
    return rfc3339(wall_us) if wall_us else None
