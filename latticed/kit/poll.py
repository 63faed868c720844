"""Looking again and again at something outside, each thing on its own: one that does not answer holds up no other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from latticed.kit import logs
from latticed.kit.tasks import fenced

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STALLED_S: Final = 3.0
"""After how long without an answer something is said to stand still."""

log = logs.get_logger()


class Poll:
    """`look(always)` is one look, never two at a time; with `always` nothing counts as unchanged."""

    def __init__(self, name: str, look: Callable[[bool], Awaitable[None]]) -> None:
        self.name = name
        self._look = look
        self._again = False
        self._began_s = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def under_way_s(self) -> float:
        """For how long the look under way has been; 0 without one."""
        under_way = self._task is not None and not self._task.done()
        return asyncio.get_running_loop().time() - self._began_s if under_way else 0.0

    def go(self, *, always: bool = False) -> asyncio.Task[None]:
        """Look, unless a look is under way; with `always` there is another one after that."""
        if self._task is None or self._task.done():
            self._began_s = asyncio.get_running_loop().time()
            failed = lambda error: log.error("look_failed", task=self.name, error=repr(error))  # noqa: E731
            self._task = fenced(self._run(always=always), failed, name=f"look at {self.name}")
        else:
            self._again = self._again or always
        return self._task

    async def end(self, within_s: float) -> None:
        """Let a look finish that began just now, and leave one alone that stands still."""
        if self._task is not None and not self._task.done():
            await asyncio.wait({self._task}, timeout=within_s if self.under_way_s < within_s else 0)
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self, *, always: bool) -> None:
        await self._look(always)
        while self._again:
            self._again = False
            await self._look(True)
