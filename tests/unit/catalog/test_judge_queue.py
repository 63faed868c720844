"""Names that wait to be judged, and those that no thread has begun in time."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from latticed.catalog.abandoning_threads import JobOutcome
from latticed.catalog.judge_queue import JudgeMode, JudgeQueue
from tests.house import processes


class Busy:
    """Threads that are all busy in the first turn, so that nothing is begun; `queue` gets another look meanwhile."""

    full = False

    def __init__(self, *, urgent):
        self.urgent = urgent
        self.queue = JudgeQueue(self, prepare=lambda _: contextlib.nullcontext(lambda _: None), report=lambda _: None)
        self.turns = []
        self.twice = asyncio.Event()

    async def run(self, jobs, *_, **__):
        self.turns.append(dict(jobs))
        if len(self.turns) == 1:
            self.queue.put(["a"], JudgeMode.COMPARE, urgent=self.urgent)
            return JobOutcome(done={}, failed={}, stuck=(), left=tuple(jobs))
        self.twice.set()
        return JobOutcome(done=dict.fromkeys(jobs), failed={}, stuck=(), left=())


@pytest.mark.parametrize("urgent", [False, True])
async def test_name_not_begun_in_time_keeps_the_higher_mode(urgent):
    """A request for the lower mode meanwhile does not replace the higher one, in whichever queue the name waits."""
    threads = Busy(urgent=urgent)
    threads.queue.put(["a"], JudgeMode.HASH)
    running = asyncio.create_task(threads.queue.run())
    async with asyncio.timeout(processes.PATIENCE_S):
        await threads.twice.wait()
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert threads.turns == [{"a": JudgeMode.HASH}, {"a": JudgeMode.HASH}]
