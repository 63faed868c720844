"""Quick calls run one after the other, slow ones hold up no other."""

from __future__ import annotations

import asyncio
import threading

import pytest

from latticed.kit.one_by_one import OneByOne


async def test_calls_that_wait_for_each_other_run_side_by_side() -> None:
    """Five only return together."""
    together, calls = threading.Barrier(5), OneByOne()
    assert len(await asyncio.gather(*(calls.run(lambda: together.wait(60)) for _ in range(5)))) == 5


async def test_what_a_call_raises_reaches_who_asked_and_the_next_one_has_its_turn() -> None:
    calls = OneByOne()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await calls.run(lambda: 1 / 0)
    assert await calls.run(lambda: 1) == 1
    assert not calls._turn.locked()


async def test_call_that_is_cancelled_leaves_its_turn_to_the_next() -> None:
    """While it waits, and while it runs."""
    calls, release = OneByOne(), threading.Event()
    first = asyncio.create_task(calls.run(release.wait))
    waiting = asyncio.create_task(calls.run(lambda: 2))
    await asyncio.sleep(0)
    waiting.cancel()
    first.cancel()
    await asyncio.gather(first, waiting, return_exceptions=True)
    release.set()
    assert await calls.run(lambda: 3) == 3
    assert not calls._turn.locked()
