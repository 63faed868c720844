"""Handlers for tasks, scripts that plugins submit: operators list and read them, approve one by digest, or cancel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, TypedDict, cast

from msgspec import Meta

from latticed.host.task import calls as host
from latticed.rpc.api import Body, QueryParams
from latticed.rpc.plugins import Nothing
from latticed.rpc.running import known

if TYPE_CHECKING:
    from latticed.host.task.keeper import TaskKeeper
    from latticed.rpc.api import Ask

State = Literal["submitted", "approved", "running", "done", "failed", "interrupted", "cancelled", "expired"]


class Sought(QueryParams, frozen=True):
    """Selects at most `limit` tasks by state and plugin, newest first; `after`: the `next` of the previous page.

    `before`: the name of `after` until 0.1, still accepted for one version.
    """

    state: State | None = None
    plugin: str | None = None
    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    before: Annotated[int, Meta(ge=0, le=2**53)] = 0
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class Approval(Body, frozen=True):
    """`sha256`: of the script that is approved, 64 hex digits; the one that the task has, or it is refused."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-fA-F]{64}$")]


class TaskRow(TypedDict):
    """A script that a plugin submitted, and how it ended.

    `exit_code` or `signal`, once it ran to an end; `code` and `reason` say why it did not succeed.
    """

    seq: int
    id: str
    plugin: str
    name: str
    interpreter: str
    sha256: str
    state: str
    code: str
    reason: str
    exit_code: int | None
    signal: int | None
    created_at: str
    approved_at: str | None
    started_at: str | None
    ended_at: str | None


class TaskWhole(TaskRow):
    """`stdout` and `stderr` are the last of what it wrote; `*_bytes` count all, `truncated`: the beginning is gone."""

    script: str
    targets: list[str]
    timeout_s: int
    approved_by: str
    run: str
    stdout: str
    stderr: str
    stdout_bytes: int
    stderr_bytes: int
    truncated: bool


class TaskPage(TypedDict):
    """`next` is what `after` must be for the following page, null on the last."""

    tasks: list[TaskRow]
    next: int | None


class TasksCancelled(TypedDict):
    """How many were cancelled."""

    cancelled: int


async def listing(ask: Ask) -> TaskPage:
    """Tasks by state and plugin, newest first, without script and output."""
    wanted = ask.query(Sought)
    found = await _tasks(ask).page(
        states=(wanted.state,) if wanted.state else (),
        plugin_id=wanted.plugin,
        before_seq=wanted.after or wanted.before,
        # One more than is shown, which tells whether another page follows.
        limit=wanted.limit + 1,
    )
    # Those of a plugin that is gone from the records are still shown.
    if wanted.plugin is not None and not found:
        known(ask, wanted.plugin, forgotten=True)
    page = found[: wanted.limit]
    rows = [cast("TaskRow", host.summary(one)) for one in page]
    return {"tasks": rows, "next": page[-1].seq if len(found) > len(page) else None}


async def show(ask: Ask) -> TaskWhole:
    """One task, with its script and what it wrote."""
    return cast("TaskWhole", host.full(_tasks(ask).get(ask.part("task"))))


async def approve(ask: Ask) -> TaskRow:
    """Approve a task by the digest of its script; it then runs once."""
    body = await ask.body(Approval)
    task = await _tasks(ask).approve(ask.part("task"), sha256=body.sha256, by=str(ask.actor))
    return cast("TaskRow", host.summary(task))


async def cancel(ask: Ask) -> TaskRow:
    """Cancel a task that has not ended; all processes of a running one are killed."""
    await ask.body(Nothing)
    task = await _tasks(ask).cancel(ask.part("task"), by=str(ask.actor))
    return cast("TaskRow", host.summary(task))


async def cancel_all(ask: Ask) -> TasksCancelled:
    """Cancel every task that has not ended, of all plugins."""
    await ask.body(Nothing)
    return {"cancelled": await _tasks(ask).cancel_all(by=str(ask.actor))}


def _tasks(ask: Ask) -> TaskKeeper:
    """The component that keeps and runs tasks."""
    return ask.api.tasks
