"""Approvals of tasks: given by operators, withdrawn when the plugin may no longer have tasks run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.host.task import steps
from latticed.ledger import tasks as rows
from latticed.model.audit import Event
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.host.permissions import PermissionRefused
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger
    from latticed.ledger.tasks import TaskRow


class Approvals:
    """Gives and withdraws approvals. `refusal(plugin_id)`: why a plugin may not have tasks run now, or None."""

    def __init__(self, ledger: Ledger, clock: Clock, refusal: Callable[[str], PermissionRefused | None]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._refusal = refusal
        self._lapsed: dict[str, PermissionRefused] = {}  # by plugin id, until `withdraw` has recorded it
        self._approving = 0  # calls of `approve` under way, which may write after `withdraw` has read the rows

    async def approve(self, task_id: str, *, sha256: str, by: str) -> TaskRow:
        """Let a task run once, if its script has the digest `sha256` and its plugin may have it run; returns the task.

        `by`: who approves it, for the audit record, in which refusals are too. Problems: not_found, not_available,
        digest_mismatch, invalid_transition.
        """
        now_us, digest = self._clock.wall_us(), sha256.lower()
        # Counted before the first await: a `withdraw` that runs meanwhile writes even if it sees no approved row.
        self._approving += 1
        try:
            self._check_owner(self._ledger.read(lambda db: rows.get(db, task_id)))
            # First: a lapse that is not yet recorded would otherwise take back this new approval as well.
            await self.withdraw()
            return await self._ledger.write(
                lambda tx: steps.approve(tx, task_id, sha256=digest, by=by, now_us=now_us), durable=True
            )
        except Problem as problem:
            # Refusals are audited: a wrong digest here may be an attempt to have another script approved.
            event = Event(
                actor=by, action="task.approve", target=task_id[:80], decision="deny", code=problem.code,
                reason=problem.reason, detail={"sha256": digest[:64]},
            )  # fmt: skip
            await self._ledger.record(event)
            raise
        finally:
            self._approving -= 1

    def valid(self, plugin_id: str) -> bool:
        """Whether approved tasks of a plugin may be started; if it may not act, its approvals lapse."""
        refusal = self._refusal(plugin_id)
        if refusal is not None:
            # Also noted here, in case `recheck` was missed: a plugin that lost permission needs approval anew,
            # even if it has got it back.
            self.lapse(plugin_id, refusal)
        # A lapse that is not on disk yet counts: the rows still say `approved`.
        return refusal is None and plugin_id not in self._lapsed

    def lapse(self, plugin_id: str, refusal: PermissionRefused) -> None:
        """Start none of its approved tasks from now on, because of `refusal`; `withdraw` records that later."""
        # Before the first scan every plugin is refused; that must not undo approvals at each start of the daemon.
        if refusal.lost:
            self._lapsed[plugin_id] = refusal

    async def withdraw(self) -> None:
        """Record lapsed approvals as withdrawn; until then no such task is started. Problem ledger_unavailable."""
        # A copy: `lapse` may add to the dict during the write.
        for plugin_id, refusal in list(self._lapsed.items()):
            # Without an approved task there is nothing to record; this saves an fsync.
            if self._approving or any(task.plugin_id == plugin_id for task in self._approved()):
                await self._ledger.write(
                    lambda tx, one=plugin_id, why=refusal.reason: steps.withdraw(tx, one, reason=why),  # type: ignore[misc]
                    # Essential: taking an approval back must be possible on a full disk, and is written from the
                    # reserve (`Ledger.write`).
                    durable=True,
                    essential=True,
                )
            if self._lapsed.get(plugin_id) is refusal:  # else it lapsed again during the write
                del self._lapsed[plugin_id]

    def _approved(self) -> list[TaskRow]:
        return self._ledger.read(lambda db: rows.of_state(db, "approved"))

    def _check_owner(self, task: TaskRow | None) -> None:
        """Problem not_available when the plugin may not have this task run. `steps.approve` reports a missing task."""
        if task is not None and (refusal := self._refusal(task.plugin_id)) is not None:
            detail = f"expected {task.plugin_id} to be one that may have tasks run, found: {refusal.reason}"
            raise Problem("not_available", detail, f"latticectl explain {task.plugin_id}")
