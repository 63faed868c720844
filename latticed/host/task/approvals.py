"""Approvals of tasks: given by operators, withdrawn once the plugin may not have tasks run."""

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
    """`refusal(plugin_id)`: why it may not have tasks run now, or None."""

    def __init__(self, ledger: Ledger, clock: Clock, refusal: Callable[[str], PermissionRefused | None]) -> None:
        self._ledger = ledger
        self._clock = clock
        self._refusal = refusal
        self._lapsed: dict[str, PermissionRefused] = {}
        self._under_way = 0

    async def approve(self, task_id: str, *, sha256: str, by: str) -> TaskRow:
        """Let one run once, if its script has that digest and its plugin may have it run; a refusal is on record.

        Problems: not_found, not_available, digest_mismatch, invalid_transition.
        """
        now_us, meant = self._clock.wall_us(), sha256.lower()
        self._under_way += 1
        try:
            self._check_owner(self._ledger.read(lambda db: rows.get(db, task_id)))
            await self.withdraw()
            return await self._ledger.write(
                lambda tx: steps.approve(tx, task_id, sha256=meant, by=by, now_us=now_us), durable=True
            )
        except Problem as problem:
            denied = Event(
                actor=by, action="task.approve", target=task_id[:80], decision="deny", code=problem.code,
                reason=problem.reason, detail={"sha256": meant[:64]},
            )  # fmt: skip
            await self._ledger.record(denied)
            raise
        finally:
            self._under_way -= 1

    def counts(self, plugin_id: str) -> bool:
        """Whether what was approved of a plugin may begin; where it lost the right to, that ends every approval."""
        refusal = self._refusal(plugin_id)
        if refusal is not None:
            self.lapse(plugin_id, refusal)
        return refusal is None and plugin_id not in self._lapsed

    def lapse(self, plugin_id: str, refusal: PermissionRefused) -> None:
        """What was approved of it, and has not begun, needs approval anew."""
        if refusal.lost:
            self._lapsed[plugin_id] = refusal

    async def withdraw(self) -> None:
        """Have that on record; until it is, nothing of such a plugin begins. Problem ledger_unavailable."""
        for plugin_id, refusal in list(self._lapsed.items()):
            if self._under_way or any(task.plugin_id == plugin_id for task in self._approved()):
                await self._ledger.write(
                    lambda tx, one=plugin_id, why=refusal.reason: steps.withdraw(tx, one, reason=why),  # type: ignore[misc]
                    durable=True,
                    essential=True,
                )
            if self._lapsed.get(plugin_id) is refusal:
                del self._lapsed[plugin_id]

    def _approved(self) -> list[TaskRow]:
        return self._ledger.read(lambda db: rows.of_state(db, "approved"))

    def _check_owner(self, task: TaskRow | None) -> None:
        if task is not None and (refusal := self._refusal(task.plugin_id)) is not None:
            detail = f"expected {task.plugin_id} to be one that may have tasks run, found: {refusal.reason}"
            raise Problem("not_available", detail, f"latticectl explain {task.plugin_id}")
