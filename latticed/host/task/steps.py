"""Each step of a task as one transaction: decided by `rules`, written together with its audit event."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from latticed.host.task import spec
from latticed.host.task.rules import ENDS, Step, TaskStatus, decide
from latticed.ledger import tasks as rows
from latticed.ledger.tasks import TaskOutcome, TaskRow
from latticed.model.audit import DAEMON, Actor, Event
from latticed.model.errors import Problem
from latticed.model.fault import Fault

if TYPE_CHECKING:
    from latticed.host.task.spec import TaskSubmit
    from latticed.ledger import Transaction


def fresh(plugin_id: str, asked: TaskSubmit, sha256: str, *, now_us: int) -> TaskRow:
    """The row of a task that is submitted now; `seq` is given by the ledger. `sha256`: digest of the script's bytes."""
    return TaskRow(
        seq=0,
        # 64 random bits: ids are not guessable by other plugins and do not repeat after rows were removed.
        id=secrets.token_hex(8),
        plugin_id=plugin_id,
        name=asked.name,
        interpreter=asked.interpreter,
        script=asked.script,
        sha256=sha256,
        targets=asked.targets,
        timeout_s=asked.timeout_s,
        state="submitted",
        approved_sha256="",
        approved_by="",
        run_id="",
        created_at=now_us,
        approved_at=0,
        started_at=0,
        ended_at=0,
        outcome=TaskOutcome(),
    )


def approve(tx: Transaction, task_id: str, *, sha256: str, by: str, now_us: int) -> TaskRow:
    """Approve a submitted task whose script has the digest `sha256`, and audit it as done by `by`; the changed row.

    Problems: not_found, invalid_transition, digest_mismatch.
    """
    task = _found(tx, task_id)
    # Decided inside the transaction, from the row as it is now: two operators cannot both approve it.
    _decided(task, Step(verb="approve", sha256=sha256))
    rows.approve(tx, task_id, sha256=sha256, by=by, now_us=now_us)
    detail: dict[str, str | int | bool] = {"plugin": task.plugin_id, "sha256": sha256, "interpreter": task.interpreter}
    tx.append_audit(Event(actor=by, action="task.approve", target=task_id, decision="allow", detail=detail))
    return _found(tx, task_id)


def withdraw(tx: Transaction, plugin_id: str, *, reason: str) -> int:
    """Take back the approvals of a plugin's tasks that have not been started; how many there were."""
    waiting = [task for task in rows.of_state(tx, "approved") if task.plugin_id == plugin_id]
    for task in waiting:
        _decided(task, Step(verb="withdraw"))
        # Row and event in one transaction: a withdrawal that is on record has happened, and the other way round.
        rows.withdraw(tx, task.id)
        detail: dict[str, str | int | bool] = {"plugin": plugin_id, "sha256": task.sha256}
        tx.append_audit(Event(actor=str(DAEMON), action="task.withdraw", target=task.id, reason=reason, detail=detail))
    return len(waiting)


def begin(tx: Transaction, task_id: str, *, run_id: str, now_us: int) -> bool:
    """Record the task as running; False if it may not be started. If its script is not the approved one, it fails."""
    task = rows.get(tx, task_id)
    if task is None:
        return False
    # The digest is computed from the stored script, not read from its column: a changed row must not run.
    step = Step(verb="begin", sha256=spec.sha256(task.script.encode("utf-8")), run_id=run_id)
    after = decide(_status(task), step)
    if isinstance(after, Fault):
        # Ended, not left approved: otherwise it would be tried again at each recheck. Other faults mean that it was
        # cancelled or its approval withdrawn meanwhile.
        if after.code == "digest_mismatch":
            changed = TaskOutcome(code=after.code, reason=after.reason)
            end(tx, task_id, Step(verb="fail"), changed, actor=str(DAEMON), now_us=now_us)
        return False
    rows.begin(tx, task_id, run_id=run_id, now_us=now_us)
    detail: dict[str, str | int | bool] = {"plugin": task.plugin_id, "sha256": task.approved_sha256, "run": run_id}
    tx.append_audit(Event(actor=str(DAEMON), action="task.begin", target=task_id, detail=detail))
    return True


def end(tx: Transaction, task_id: str, step: Step, outcome: TaskOutcome, *, actor: str, now_us: int) -> TaskRow:
    """Record the step that ends a task, with its outcome, and audit it as done by `actor`; the changed row.

    Of a plugin that takes back what nobody had approved only its call is on record: it may submit and cancel without
    end, and decisions are kept for good.

    Problems: not_found, invalid_transition. ValueError for a step that does not end it.
    """
    task = _found(tx, task_id)
    after = _decided(task, step)
    if after.state not in ENDS:
        raise ValueError(f"expected a step that ends a task, found {step.verb}")
    rows.end(tx, task_id, after.state, outcome, now_us=now_us)
    if task.state == "submitted" and actor == str(Actor(kind="plugin", name=task.plugin_id)):
        return _found(tx, task_id)
    detail: dict[str, str | int | bool] = {"plugin": task.plugin_id, "sha256": task.sha256, "state": after.state}
    if task.run_id:
        detail["run"] = task.run_id
    if outcome.exit_code is not None:
        detail["exit_code"] = outcome.exit_code
    event = Event(
        actor=actor, action="task.end", target=task_id, code=outcome.code, reason=outcome.reason, detail=detail
    )
    tx.append_audit(event)
    return _found(tx, task_id)


def recover(tx: Transaction, *, now_us: int) -> int:
    """At the start of the daemon: end as interrupted what is `running`; how many there were."""
    interrupted = rows.of_state(tx, "running")
    for task in interrupted:
        outcome = TaskOutcome(code="interrupted", reason="latticed ended while it ran; it is not run again")
        end(tx, task.id, Step(verb="recover"), outcome, actor=str(DAEMON), now_us=now_us)
    return len(interrupted)


def _found(tx: Transaction, task_id: str) -> TaskRow:
    """The task with this id; Problem not_found."""
    task = rows.get(tx, task_id)
    if task is None:
        raise Problem("not_found", f"there is no task {task_id[:80]!r}", "latticectl task list")
    return task


def _status(task: TaskRow) -> TaskStatus:
    return TaskStatus(state=task.state, sha256=task.sha256, approved_sha256=task.approved_sha256, run_id=task.run_id)


def _decided(task: TaskRow, step: Step) -> TaskStatus:
    """The status after `step`, by `rules.decide`; a Fault of it is raised as Problem."""
    after = decide(_status(task), step)
    if isinstance(after, Fault):
        raise Problem(after.code, f"task {task.id}: {after.reason}", "latticectl task show says how it stands")
    return after
