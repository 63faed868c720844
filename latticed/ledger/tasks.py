"""Scripts that plugins submitted, with the state and the outcome of each. host.task.rules says which step is allowed.

All times are microseconds since the epoch; 0: never.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, Literal

from latticed.ledger import quota as quotas

if TYPE_CHECKING:
    from collections.abc import Collection

    from latticed.ledger.connection import RowReader
    from latticed.ledger.quota import RowQuota
    from latticed.ledger.transaction import Transaction

State = Literal["submitted", "approved", "running", "done", "failed", "interrupted", "cancelled", "expired"]
OPEN: Final = ("submitted", "approved", "running")
"""States of tasks that have not ended."""
_IS_OPEN: Final = "state IN ('submitted', 'approved', 'running')"
"""As the partial index `tasks_open` has it: SQLite uses that only where a statement repeats its condition."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOutcome:
    """How a task ended. `exit_code` or `signal` when it ran to an end; `code` and `reason` say why it did not succeed.

    `stdout` and `stderr` are the last of what it wrote, ready to be shown; `truncated`: there was more. `*_bytes`: all
    that it wrote.
    """

    code: str = ""
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    stdout: str = ""
    stderr: str = ""
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One task. `sha256` is that of the script as submitted, `approved_sha256` that of what an operator approved.

    `run_id` names its one run, and is set before that begins. Other fields: as in `TaskOutcome`.
    """

    seq: int
    id: str
    plugin_id: str
    name: str
    interpreter: str
    script: str
    sha256: str
    targets: tuple[str, ...]
    timeout_s: int
    state: State
    approved_sha256: str
    approved_by: str
    run_id: str
    created_at: int
    approved_at: int
    started_at: int
    ended_at: int
    outcome: TaskOutcome


_OUTCOME: Final = tuple(field.name for field in fields(TaskOutcome))
_OWN: Final = tuple(field.name for field in fields(TaskRow) if field.name != "outcome")
"""Columns of a task besides its outcome."""
_COLUMNS: Final = ", ".join((*_OWN, *_OUTCOME))
_HEAVY: Final = ("script", "stdout", "stderr")
"""Columns that may hold long texts; `_GLANCE` leaves them empty."""
_GLANCE: Final = ", ".join(f"'' AS {name}" if name in _HEAVY else name for name in (*_OWN, *_OUTCOME))
"""All columns, with the long ones (script, output) empty."""


def submit(tx: Transaction, task: TaskRow, quota: RowQuota) -> TaskRow:
    """Keep a new task and return it with the `seq` given to it; Problem quota_exceeded.

    The quota counts tasks that have not ended.
    """
    what, hint = "tasks{whose} that have not ended", "latticectl task list"
    quotas.check_one_more(tx, "tasks", task.plugin_id, quota, what=what, where=_IS_OPEN, hint=hint)
    # The database gives the seq (AUTOINCREMENT), so that it is never used again.
    names = tuple(name for name in _OWN if name != "seq")
    values = [getattr(task, name) for name in names]
    values[names.index("targets")] = json.dumps(task.targets)
    marks = ", ".join("?" * len(names))
    tx.execute(f"INSERT INTO tasks ({', '.join(names)}) VALUES ({marks})", tuple(values))  # noqa: S608 - constants
    made = get(tx, task.id)
    assert made is not None  # noqa: S101 - put in just now
    return made


def approve(tx: Transaction, task_id: str, *, sha256: str, by: str, now_us: int) -> None:
    """Set a task to approved; the caller has checked that it may be, and that `sha256` is that of the script."""
    tx.execute(
        "UPDATE tasks SET state = 'approved', approved_sha256 = ?, approved_by = ?, approved_at = ? WHERE id = ?",
        (sha256, by, now_us, task_id),
    )


def withdraw(tx: Transaction, task_id: str) -> None:
    """Set a task back to submitted and remove its approval."""
    tx.execute(
        "UPDATE tasks SET state = 'submitted', approved_sha256 = '', approved_by = '', approved_at = 0 WHERE id = ?",
        (task_id,),
    )


def begin(tx: Transaction, task_id: str, *, run_id: str, now_us: int) -> None:
    """Set a task to running, before its only run begins: after a crash it is known that it may have run."""
    tx.execute("UPDATE tasks SET state = 'running', run_id = ?, started_at = ? WHERE id = ?", (run_id, now_us, task_id))


def end(tx: Transaction, task_id: str, state: State, outcome: TaskOutcome, *, now_us: int) -> None:
    """Set a task to one of the states that are no longer open, with its outcome."""
    sets = ", ".join(f"{name} = ?" for name in _OUTCOME)
    values = tuple(int(value) if isinstance(value, bool) else value for value in _values(outcome))
    tx.execute(
        f"UPDATE tasks SET state = ?, ended_at = ?, {sets} WHERE id = ?",  # noqa: S608 - constants
        (state, now_us, *values, task_id),
    )


def get(conn: RowReader, task_id: str) -> TaskRow | None:
    """One task with its script and output, or None."""
    row = conn.execute(f"SELECT {_COLUMNS} FROM tasks WHERE id = ?", (task_id,)).fetchone()  # noqa: S608
    return None if row is None else _task(row)


def last_seq(conn: RowReader) -> int:
    """The highest seq of all tasks; 0 without any."""
    return int(conn.execute("SELECT coalesce(max(seq), 0) FROM tasks").get)


def of_state(conn: RowReader, *states: State) -> list[TaskRow]:
    """All tasks in one of these open states, without script and output.

    Those approved longest ago come first; tasks without an approval before them, as they were submitted.
    """
    # `_IS_OPEN` selects no fewer rows. SQLite uses the partial index `tasks_open` only for a statement that repeats its
    # condition (sqlite.org/partialindex.html).
    marks = ", ".join("?" * len(states))
    statement = f"SELECT {_GLANCE} FROM tasks WHERE {_IS_OPEN} AND state IN ({marks}) ORDER BY approved_at, seq"  # noqa: S608
    return [_task(row) for row in conn.execute(statement, states)]


def page(
    conn: RowReader,
    *,
    states: Collection[str] = (),
    plugin_id: str | None = None,
    before_seq: int = 0,
    limit: int = 100,
) -> list[TaskRow]:
    """At most `limit` tasks, newest first, without script and output; the next page has `before_seq` of the last one.

    `states`: none for all. `plugin_id`: None for all.
    """
    # "1" is true for every row, so that the conditions can be joined with AND.
    wheres: list[str] = ["1"]
    values: list[Any] = []
    if states:
        wheres.append(f"state IN ({', '.join('?' * len(states))})")
        values += states
    if plugin_id is not None:
        wheres.append("plugin_id = ?")
        values.append(plugin_id)
    if before_seq:
        wheres.append("seq < ?")
        values.append(before_seq)
    statement = f"SELECT {_GLANCE} FROM tasks WHERE {' AND '.join(wheres)} ORDER BY seq DESC LIMIT ?"  # noqa: S608
    return [_task(row) for row in conn.execute(statement, (*values, limit))]


def overdue(conn: RowReader, *, before_us: int) -> list[TaskRow]:
    """Tasks that wait for approval, or approved for their turn, since before `before_us`; without script and output."""
    statement = (
        f"SELECT {_GLANCE} FROM tasks WHERE {_IS_OPEN} AND "  # noqa: S608 - constants
        "((state = 'submitted' AND created_at < ?) OR (state = 'approved' AND approved_at < ?))"
    )
    return [_task(row) for row in conn.execute(statement, (before_us, before_us))]


def retain(tx: Transaction, *, before_us: int, most: int) -> int:
    """Remove tasks that ended before `before_us`, and as `trim`; returns how many."""
    # `ended_at` is 0 while a task has not ended, so open ones are never removed.
    tx.execute("DELETE FROM tasks WHERE ended_at > 0 AND ended_at < ?", (before_us,))
    return tx.changes() + trim(tx, most=most)


def trim(tx: Transaction, *, most: int, slack: int = 0) -> int:
    """Where more than `most + slack` tasks have ended, remove all but `most`: of the plugin with the most, the one that
    ended first; returns how many.
    """
    over = int(tx.execute("SELECT count(*) FROM tasks WHERE ended_at > 0").get) - most
    if over <= slack:
        return 0
    tx.execute(
        "DELETE FROM tasks WHERE seq IN (SELECT seq FROM (SELECT seq, ended_at,"
        # `place` is 1 for the newest of its plugin, so that one with many pushes out its own alone.
        " row_number() OVER (PARTITION BY plugin_id ORDER BY ended_at DESC, seq DESC) AS place"
        " FROM tasks WHERE ended_at > 0) ORDER BY place DESC, ended_at, seq LIMIT ?)",
        (over,),
    )
    return tx.changes()


def clear(tx: Transaction, plugin_id: str) -> int:
    """Remove all tasks of one plugin; returns how many there were."""
    tx.execute("DELETE FROM tasks WHERE plugin_id = ?", (plugin_id,))
    return tx.changes()


def _values(outcome: TaskOutcome) -> tuple[Any, ...]:
    """The fields of an outcome, in the order of `_OUTCOME`."""
    return tuple(getattr(outcome, name) for name in _OUTCOME)


def _task(row: tuple[Any, ...]) -> TaskRow:
    # Not strict: the row goes on with the columns of the outcome.
    own = dict(zip(_OWN, row, strict=False))
    own["targets"] = tuple(json.loads(own["targets"]))
    told = dict(zip(_OUTCOME, row[len(_OWN) :], strict=True))
    return TaskRow(**own, outcome=TaskOutcome(**{**told, "truncated": bool(told["truncated"])}))
