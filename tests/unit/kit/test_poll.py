"""kit.poll: each poll has a task of its own."""

from __future__ import annotations

import asyncio

from latticed.kit.poll import Poll
from tests.house import processes


async def test_poll_requested_while_running_runs_once_more_only_with_always():
    """Two requests during a poll; polls never overlap."""
    seen, go_on = [], asyncio.Event()

    async def look(always):
        seen.append(always)
        await go_on.wait()

    one = Poll("one", look)
    task = one.start()
    await asyncio.sleep(0)
    assert one.start() is task
    assert one.start(always=True) is task
    assert one.running_s > 0
    go_on.set()
    await task
    assert (seen, one.running_s) == ([False, True], 0.0)


async def test_stopping_waits_only_for_a_poll_that_began_recently():
    """One that has been running for longer is cancelled."""
    done = []

    async def short(_):
        await asyncio.sleep(0.01)
        done.append("short")

    async def for_ever(_):
        await asyncio.Event().wait()

    young, old = Poll("young", short), Poll("old", for_ever)
    old.start()
    await asyncio.sleep(0.02)
    young.start()
    await young.stop(processes.PATIENCE_S)
    async with asyncio.timeout(processes.PATIENCE_S):
        await old.stop(0.01)
    assert done == ["short"]


async def test_failed_poll_is_logged_and_does_not_stop_the_next():
    seen = []

    async def look(_):
        seen.append(1)
        raise OSError("gone")

    one = Poll("one", look)
    await one.start()
    await one.start()
    assert seen == [1, 1]
