"""Polls something outside the process. Each poll has a task of its own, so that one that hangs delays no other."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from latticed.kit import logs
from latticed.kit.tasks import fenced

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

STALLED_S: Final = 3.0
"""A poll that takes longer is reported as stalled."""

log = logs.get_logger()


class Poll:
    """Looks at one thing, each time `start` is called. `check(always)` is one poll; no two run at
    a time.

    With `always` it must not skip what looks unchanged. A poll that raises is logged; the next one runs all the same.
    """

    def __init__(self, name: str, check: Callable[[bool], Awaitable[None]]) -> None:
        self.name = name
        self._check = check
        self._again = False
        self._began_s = 0.0
        self._task: asyncio.Task[None] | None = None

    @property
    def running_s(self) -> float:
        """Seconds since the running poll began; 0 when none runs."""
        running = self._task is not None and not self._task.done()
        return asyncio.get_running_loop().time() - self._began_s if running else 0.0

    def start(self, *, always: bool = False) -> asyncio.Task[None]:
        """Poll now, unless a poll is running; with `always` another one follows it. Returns the running poll's task."""
        if self._task is None or self._task.done():
            self._began_s = asyncio.get_running_loop().time()
            failed = lambda error: log.error("look_failed", task=self.name, error=repr(error))  # noqa: E731
            self._task = fenced(self._run(always=always), failed, name=f"poll {self.name}")
        else:
            self._again = self._again or always
        return self._task

    async def stop(self, within_s: float) -> None:
        """Wait for a running poll that began within the last `within_s` seconds; cancel it otherwise."""
        if self._task is not None and not self._task.done():
            # One that has run for longer already hangs, most likely; waiting would only delay the stop.
            await asyncio.wait({self._task}, timeout=within_s if self.running_s < within_s else 0)
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self, *, always: bool) -> None:
        """Poll, and again with `always` as long as that was asked for meanwhile."""
        await self._check(always)
        while self._again:  # asked for while it ran: it may have looked before what the caller knows of happened
            self._again = False
            await self._check(True)
