"""Bundle names to judge, and the threads that judge them; a read that hangs in one queue delays no other queue."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from enum import IntEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping

    from latticed.catalog.abandoning_threads import AbandoningThreads, JobOutcome
    from latticed.catalog.scanner import DirectoryEntry

# Seconds, and names, of one slice: after it urgent names get their turn, however long the backlog is.
_SLICE_S: Final = 0.25
_SLICE_NAMES: Final = 4096
# When so many threads are stuck that none is started, all jobs come back at once: without a pause, in seconds, `run`
# would keep the processor busy.
_FULL_PAUSE_S: Final = 1.0


class JudgeMode(IntEnum):
    """How much is done for a name; a higher one covers the lower ones.

    COMPARE judges what changed; JUDGE all, with the known hash of an unchanged artifact; HASH hashes again.
    """

    COMPARE = 0
    JUDGE = 1
    HASH = 2


class JudgeQueue:
    """One task, `run`, judges the names given to `put`.

    `prepare(jobs)` is a context that gives the work on one name, which is done on the threads of `pool`.
    `report(outcome)` is called on the event loop with what has been found so far. `judging` are the jobs that the
    threads have now.
    """

    def __init__(
        self,
        pool: AbandoningThreads,
        *,
        prepare: Callable[
            [Mapping[str, JudgeMode]], contextlib.AbstractContextManager[Callable[[str], DirectoryEntry | None]]
        ],
        report: Callable[[JobOutcome[str, DirectoryEntry | None]], None],
    ) -> None:
        self.pool = pool
        self._prepare = prepare
        self._report_outcome = report
        self._urgent: dict[str, JudgeMode] = {}
        self._backlog: dict[str, JudgeMode] = {}
        self._turn_of_urgent = False
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._found = 0
        self.judging: Mapping[str, JudgeMode] = {}

    @property
    def waiting(self) -> list[str]:
        """The names that are queued."""
        return [*self._urgent, *self._backlog]

    def put(self, names: Iterable[str], mode: JudgeMode, *, urgent: bool = False) -> None:
        """Queue these names, or raise the mode of those that are queued; `urgent` ones do not wait for the backlog."""
        for name in names:
            # Out of both queues, so that a name is in one of them only.
            wanted = max(mode, self._backlog.pop(name, mode), self._urgent.pop(name, mode))
            (self._urgent if urgent else self._backlog)[name] = wanted
        if self._urgent or self._backlog:
            self._idle.clear()
            self._news.set()

    def retain(self, names: Container[str]) -> None:
        """Drop all queued names but these: the others are gone from the directory."""
        for waiting in (self._urgent, self._backlog):
            for name in [name for name in waiting if name not in names]:
                del waiting[name]

    async def run(self) -> None:
        """Judge the queued names, for at most _SLICE_S seconds at a time, until cancelled."""
        while True:
            jobs = self._take()
            if not jobs:
                # Set only here, not in __init__: `idle` cannot return before the names that were put first are judged.
                self._idle.set()
                self._news.clear()
                await self._news.wait()
                continue
            self.judging = jobs
            try:
                with self._prepare(jobs) as work:
                    outcome = await self.pool.run(jobs, work, slice_s=_SLICE_S, report=self._report)
            finally:
                self.judging = {}
            # Not begun: back into its queue, in a higher mode if one was asked for meanwhile.
            for name in outcome.left:
                waiting = self._urgent if name in self._urgent else self._backlog
                waiting[name] = max(jobs[name], waiting.get(name, jobs[name]))
            self._report(outcome)
            if self.pool.full:
                await asyncio.sleep(_FULL_PAUSE_S)

    async def idle(self, timeout_s: float | None = None) -> None:
        """Return when nothing waits, or (with `timeout_s`) when nothing was found for so many seconds.

        So a directory that hangs as a whole is waited for `timeout_s`, a large one until it is done.
        """
        while True:
            found = self._found
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._idle.wait()
                    return
            if found == self._found:
                return

    def _report(self, outcome: JobOutcome[str, DirectoryEntry | None]) -> None:
        """Pass an outcome on, and count what was found: `idle` waits only while that grows."""
        self._found += len(outcome.done) + len(outcome.failed) + len(outcome.stuck)
        self._report_outcome(outcome)

    def _take(self) -> dict[str, JudgeMode]:
        """Take out the next jobs, at most _SLICE_NAMES: alternately from the urgent ones and from the backlog, so that
        neither waits for ever.
        """
        self._turn_of_urgent = not self._turn_of_urgent
        first, other = (self._urgent, self._backlog) if self._turn_of_urgent else (self._backlog, self._urgent)
        waiting = first or other
        return {name: waiting.pop(name) for name in list(itertools.islice(waiting, _SLICE_NAMES))}
