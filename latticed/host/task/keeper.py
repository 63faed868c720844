"""The queue of tasks: submitted by plugins, approved by operators, each run at most once, a few at a time.

A task is recorded as running before its process starts. A task that is `running` in the ledger when the daemon starts
was interrupted: its process has ended with the previous daemon, and the task is never run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

from latticed.host.task import spec, steps
from latticed.host.task.approvals import Approvals
from latticed.host.task.rules import ENDS, Step
from latticed.host.task.run import TaskRun
from latticed.kit import logs
from latticed.ledger import tasks as rows
from latticed.ledger.quota import RowQuota
from latticed.ledger.tasks import TaskOutcome
from latticed.model.audit import DAEMON, Event
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from latticed.host.confinement import Spawner
    from latticed.host.permissions import PermissionRefused
    from latticed.host.task.rules import Verb
    from latticed.host.task.spec import TaskSubmit
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger, Transaction
    from latticed.ledger.tasks import TaskRow
    from latticed.settings.programs import TaskSettings as Settings

RECHECK_S: Final = 0.5
"""Seconds between rechecks of the queue, in case a call of `recheck` was missed."""
# Expiry and retention are in hours and days, so a minute late does not matter.
SWEEP_S: Final = 60.0
LEAST_SLACK: Final = 100
"""So many ended tasks, or a tenth of `task.keep_items`, may be too many until the next sweep: removing each by itself
would take longer.
"""
ERROR_PAUSE_S: Final = 2.0
"""Seconds until a write is tried again that a full or failing disk refused."""
SECOND_US: Final = 1_000_000
_NOT_PERMITTED: Final = "{} may not have tasks run any more"
log = logs.get_logger()


class TaskKeeper:
    """Keeps the queue and runs what is approved; an async context manager.

    `refusal(plugin_id)`: why it may not have tasks run now, or None. On exit runs are killed; their rows stay
    `running`, and the next start records them as interrupted.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Clock,
        spawner: Spawner,
        settings: Settings,
        refusal: Callable[[str], PermissionRefused | None],
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._spawner = spawner
        self.settings = settings
        self._refusal = refusal
        self._approvals = Approvals(ledger, clock, refusal)
        self._wanted = asyncio.Event()
        self._runs: dict[str, tuple[str, TaskRun]] = {}  # task id: (plugin id, run)
        self._running: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._interrupted = False  # the previous daemon left tasks as `running`, which is not recorded yet
        # So the first recheck sweeps: tasks may have expired while the daemon did not run.
        self._swept_s = float("-inf")

    async def __aenter__(self) -> Self:
        self._interrupted = bool(self._ledger.read(lambda db: rows.of_state(db, "running")))
        if self._interrupted:
            with contextlib.suppress(Problem):  # disk full or failing: tried again before anything is started
                await self._recover()
        self._loop = asyncio.create_task(self._keep_rechecking(), name="tasks")
        return self

    async def __aexit__(self, *_: object) -> None:
        # The loop is cancelled with the runs: it must not start another task while they end.
        ending = [*([self._loop] if self._loop else []), *self._running]
        for one in ending:
            one.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    def recheck(self, plugin_id: str) -> None:
        """Start what may run. If the plugin may not act, its runs are being killed when this returns (see `drained`).

        Its approved tasks that have not been started then need approval again.
        """
        refusal = self._refusal(plugin_id)
        if refusal is not None:
            self._approvals.lapse(plugin_id, refusal)
            for run in self._of(plugin_id):
                run.stop(f"{_NOT_PERMITTED.format(plugin_id)}: {refusal.reason}")
        self._wanted.set()

    async def drained(self, plugin_id: str) -> None:
        """Return once no run is left of a plugin that may not act, and the withdrawn approvals are recorded."""
        if self._refusal(plugin_id) is not None:
            # `gone`, not `over`: on a full disk the end may not be recorded, which must not delay the kill.
            await asyncio.gather(*(run.gone.wait() for run in self._of(plugin_id)))
            with contextlib.suppress(Problem):  # disk full or failing: `_recheck` tries again
                await self._approvals.withdraw()

    # Plugins.

    async def submit(self, plugin_id: str, asked: TaskSubmit, script: bytes) -> TaskRow:
        """Queue a task for approval; `script`: the bytes of its script, as `spec.checked` returns them.

        Problems: service_unavailable, quota_exceeded, ledger_unavailable.
        """
        settings = self.settings
        if not settings.enabled:
            raise Problem("service_unavailable", "the operator has switched tasks off")
        quota = RowQuota(plugin=settings.plugin_waiting, total=settings.total_waiting)
        task = steps.fresh(plugin_id, asked, spec.sha256(script), now_us=self._clock.wall_us())
        return await self._ledger.write(lambda tx: rows.submit(tx, task, quota), durable=True)

    # Operators and plugins.

    def get(self, task_id: str, *, plugin_id: str | None = None) -> TaskRow:
        """One task, of `plugin_id` if that is given; Problem not_found."""
        found = self._ledger.read(lambda db: rows.get(db, task_id))
        if found is None or plugin_id not in (None, found.plugin_id):
            raise Problem("not_found", f"there is no task {task_id[:80]!r}", "latticectl task list")
        return found

    async def page(
        self, *, states: Collection[str] = (), plugin_id: str | None = None, before_seq: int = 0, limit: int = 100
    ) -> list[TaskRow]:
        """At most `limit` tasks of `states` (empty: any) and of one plugin or all, newest first, without script and
        output. For the next page, pass the last `seq` as `before_seq`.
        """
        return await self._ledger.read_slow(
            lambda db: rows.page(db, states=states, plugin_id=plugin_id, before_seq=before_seq, limit=limit)
        )

    async def cancel(self, task_id: str, *, by: str, plugin_id: str | None = None) -> TaskRow:
        """Cancel a queued task, or kill all processes of a running one, and return it as it is then.

        `by`: who asked for it, for the audit record. With `plugin_id` only a task of that plugin. Problems: not_found,
        invalid_transition, ledger_unavailable.
        """
        task = self.get(task_id, plugin_id=plugin_id)
        if (running := self._runs.get(task_id)) is not None:
            running[1].stop(f"cancelled by {by}")
            # Its end is recorded by `_run_and_record`; a second write here would race with it.
            await running[1].over.wait()
            task = self.get(task_id)
            # Otherwise its begin was not recorded, and it is still approved: it is cancelled below.
            if task.state in ENDS:
                return task
        outcome = TaskOutcome(code="cancelled", reason=f"cancelled by {by}")
        now_us, most = self._clock.wall_us(), self.settings.keep_items

        def change(tx: Transaction) -> TaskRow:
            ended = steps.end(tx, task.id, Step(verb="cancel"), outcome, actor=by, now_us=now_us)
            # Not only at the next sweep: a plugin may submit and cancel without end.
            rows.trim(tx, most=most, slack=max(most // 10, LEAST_SLACK))
            return ended

        return await self._ledger.write(change, durable=True)

    async def approve(self, task_id: str, *, sha256: str, by: str) -> TaskRow:
        """See `Approvals.approve`; starts the task at once if there is a free slot."""
        approved = await self._approvals.approve(task_id, sha256=sha256, by=by)
        self._wanted.set()
        return approved

    async def cancel_all(self, *, by: str) -> int:
        """Cancel every task that has not ended; how many were. Problem audit_unavailable, and then nothing was done."""
        # Recorded before any task is stopped: if the audit cannot be written, nothing is done.
        await self._ledger.record(Event(actor=by, action="task.cancel", target="all", decision="allow"))
        count = 0
        for task in self._ledger.read(lambda db: rows.of_state(db, *rows.OPEN)):
            with contextlib.suppress(Problem):  # it has ended meanwhile
                await self.cancel(task.id, by=by)
                count += 1
        return count

    def last_seq(self) -> int:
        """The seq of the task that was submitted last, 0 without any; for `cancel_after`."""
        return self._ledger.read(rows.last_seq)

    async def cancel_after(self, plugin_id: str, seq: int, *, by: str) -> None:
        """Cancel all tasks of one plugin that were submitted after the one of this seq and have not ended. Problem
        ledger_unavailable.
        """
        # Read in the writer's turn: one that was submitted before may be waiting for the disk, its caller gone.
        for task in await self._ledger.write(lambda tx: rows.of_state(tx, *rows.OPEN)):
            if task.plugin_id == plugin_id and task.seq > seq:
                try:
                    await self.cancel(task.id, by=by)
                except Problem as problem:  # any other one: it has ended meanwhile
                    if problem.code == "ledger_unavailable":
                        raise

    async def forget(self, plugin_id: str) -> int:
        """Cancel and delete all tasks of one plugin; how many rows there were. Problem ledger_unavailable."""
        for task in self._ledger.read(lambda db: rows.of_state(db, *rows.OPEN)):
            if task.plugin_id == plugin_id:
                # It has ended meanwhile, or the ledger fails: then the delete below fails as well, and is reported.
                with contextlib.suppress(Problem):
                    await self.cancel(task.id, by=str(DAEMON))
        return await self._ledger.write(lambda tx: rows.clear(tx, plugin_id), durable=True)

    # Running.

    async def _keep_rechecking(self) -> None:
        """Recheck the queue for ever: when `_wanted` is set, and every RECHECK_S."""
        while True:
            # Before the recheck, not after: a change that comes during it has it run once more.
            self._wanted.clear()
            try:
                await self._recheck()
            except Problem as problem:  # disk full or failing: what cannot be recorded is not started
                log.error("tasks_stalled", code=problem.code, reason=problem.reason)
                await asyncio.sleep(ERROR_PAUSE_S)
            except Exception:
                log.error("tasks_failed", exc_info=True)
                await asyncio.sleep(ERROR_PAUSE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RECHECK_S):
                    await self._wanted.wait()

    async def _recover(self) -> None:
        """Record tasks of the previous daemon as interrupted, before any task is started."""
        now_us = self._clock.wall_us()
        count = await self._ledger.write(lambda tx: steps.recover(tx, now_us=now_us), durable=True)
        log.warning("tasks_interrupted", count=count)
        self._interrupted = False

    async def _recheck(self) -> None:
        """Stop runs that may not go on, withdraw approvals, expire tasks, start what may run. Problem of the ledger."""
        settings = self.settings
        # Retried at each recheck, before anything is started: a new run must not be taken for an old one.
        if self._interrupted:
            await self._recover()
        for plugin_id, run in self._runs.values():
            if not settings.enabled:
                run.stop("the operator switched tasks off")
            elif (refusal := self._refusal(plugin_id)) is not None:
                run.stop(f"{_NOT_PERMITTED.format(plugin_id)}: {refusal.reason}")
        # Before `_start_permitted`, which reads the approved rows.
        await self._approvals.withdraw()
        # The monotonic clock: setting the wall clock must not skip or repeat sweeps.
        if self._clock.monotonic_s() - self._swept_s >= SWEEP_S:
            await self.sweep()
        if settings.enabled:
            await self._start_permitted(settings)

    async def _start_permitted(self, settings: Settings) -> None:
        """Start approved tasks, oldest approval first, within `task.total_at_once` and `task.plugin_at_once`."""
        for task in self._ledger.read(lambda db: rows.of_state(db, "approved")):
            # Counted again for each task: `_begin` has added one.
            if len(self._runs) >= settings.total_at_once:
                return
            running = Counter(plugin_id for plugin_id, _ in self._runs.values())
            if self._approvals.valid(task.plugin_id) and running[task.plugin_id] < settings.plugin_at_once:
                # Read again: rows of `of_state` come without their scripts.
                await self._begin(replace(self.get(task.id), run_id=secrets.token_hex(16)), settings)

    def _of(self, plugin_id: str) -> list[TaskRun]:
        """The runs of one plugin that have not ended, or whose end is not on record yet."""
        return [run for owner, run in self._runs.values() if owner == plugin_id]

    async def _begin(self, task: TaskRow, settings: Settings) -> None:
        """Record the task as running, then run it."""
        run = TaskRun(task, self._spawner, settings)
        self._runs[task.id] = task.plugin_id, run  # before the write: `cancel` must find it meanwhile
        now_us = self._clock.wall_us()
        recorded = False
        try:
            recorded = await self._ledger.write(
                lambda tx: steps.begin(tx, task.id, run_id=task.run_id, now_us=now_us), durable=True
            )
        finally:
            # `drained` and `cancel` await these events: they would wait for ever for a run that never began.
            if not recorded:
                del self._runs[task.id]
                run.gone.set()
                run.over.set()
        if recorded:
            # Only after the fsync: after a power cut, a task that may have run is `running` and is not run again.
            running = asyncio.create_task(self._run_and_record(task, run), name=f"task {task.id}")
            self._running.add(running)
            running.add_done_callback(self._running.discard)

    async def _run_and_record(self, task: TaskRow, run: TaskRun) -> None:
        """Run a task and record its end; no exception but CancelledError escapes.

        When it is cancelled, as the daemon stops, no end is recorded: the row stays `running`, for `_recover`.
        """
        try:
            try:
                outcome = await self._outcome(task, run)
            finally:
                run.gone.set()
            # An empty code is an exit status of 0, see `TaskRun`.
            verb: Verb = "finish" if not outcome.code else "cancel" if outcome.code == "cancelled" else "fail"
            await self._record_end(task, Step(verb=verb, run_id=task.run_id), outcome)
        finally:
            # After the end is on record, so that no slot is free and no second `cancel` writes before that.
            self._runs.pop(task.id, None)
            run.over.set()
            self._wanted.set()

    async def _outcome(self, task: TaskRow, run: TaskRun) -> TaskOutcome:
        """How the run ended; failures to start it, and faults of latticed, are outcomes too."""
        try:
            return await run.outcome()
        except Problem as problem:
            return TaskOutcome(code=problem.code, reason=problem.reason)
        except Exception as error:
            log.error("task_failed", task=task.id, plugin_id=task.plugin_id, exc_info=True)
            return TaskOutcome(code="internal", reason=f"a fault of latticed: {type(error).__name__}")

    async def _record_end(self, task: TaskRow, step: Step, outcome: TaskOutcome) -> None:
        """Record the end of a run, retried until it is on disk; until then the run keeps its slot."""
        while True:
            now_us = self._clock.wall_us()
            try:
                await self._ledger.write(
                    lambda tx, at=now_us: steps.end(tx, task.id, step, outcome, actor=str(DAEMON), now_us=at),  # type: ignore[misc]
                    durable=True,
                )
            except Problem as problem:
                # Such as not_found, when the task was deleted meanwhile: no retry would change that.
                if problem.code != "ledger_unavailable":
                    log.error("task_end_lost", task=task.id, code=problem.code, reason=problem.reason)
                    return
                await asyncio.sleep(ERROR_PAUSE_S)
            else:
                return

    # Upkeep.

    async def sweep(self) -> None:
        """Expire tasks not approved or started within `task.expire_s`; remove those that ended long ago, or beyond
        `task.keep_items`. Problem ledger_unavailable.
        """
        settings, now_us = self.settings, self._clock.wall_us()
        late_us = now_us - settings.expire_s * SECOND_US

        def change(tx: Transaction) -> None:
            for task in rows.overdue(tx, before_us=late_us):
                if task.id not in self._runs:  # else it is just being started
                    reason = f"nobody had it run within {settings.expire_s / 3_600:g} h"
                    late = TaskOutcome(code="expired", reason=reason)
                    steps.end(tx, task.id, Step(verb="expire"), late, actor=str(DAEMON), now_us=now_us)
            rows.retain(tx, before_us=now_us - settings.keep_days * 86_400 * SECOND_US, most=settings.keep_items)

        await self._ledger.write(change)
        # After the write: a sweep that failed is tried again at the next recheck.
        self._swept_s = self._clock.monotonic_s()
