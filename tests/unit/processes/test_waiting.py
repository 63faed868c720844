"""`uncancelled` finishes its work when the caller is cancelled; `readable`."""

from __future__ import annotations

import asyncio
import os

import pytest

from latticed.processes import waiting


async def test_uncancelled_work_finishes_despite_cancellation():
    """It is cancelled twice; after the work the cancellation is passed on."""
    go, done = asyncio.Event(), []

    async def work() -> None:
        await go.wait()
        done.append(True)

    task = asyncio.create_task(waiting.uncancelled(work()))
    for _ in range(2):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not done
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [True]


async def test_uncancelled_passes_results_and_exceptions_on():
    async def answer() -> int:
        return 42

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    assert await waiting.uncancelled(answer()) == 42
    with pytest.raises(ValueError, match="no"):
        await waiting.uncancelled(fail())


async def test_readable_returns_at_end_of_file():
    """It waits until the other end of the pipe is closed."""
    read, write = os.pipe()
    task = asyncio.create_task(waiting.readable(read))
    await asyncio.sleep(0)
    assert not task.done()
    os.close(write)
    await task
    os.close(read)
