"""kit.hands: the loop's executor, whose threads hold up no end."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from latticed.kit import executor


def test_a_call_that_hangs_does_not_delay_shutdown():
    """What returns at once does; what stands still is left to itself, and other work goes on beside it."""
    go_on = threading.Event()

    async def main():
        asyncio.get_running_loop().set_default_executor(executor.DaemonThreadExecutor())
        stuck = [asyncio.ensure_future(asyncio.to_thread(go_on.wait)) for _ in range(executor.MOST - 1)]
        assert await asyncio.gather(*(asyncio.to_thread(int, str(number)) for number in range(200))) == [*range(200)]
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        for one in stuck:
            one.cancel()

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 5.0
    go_on.set()


def test_what_is_cancelled_before_its_turn_is_not_done():
    """As with the standard one."""
    pool, go_on, done = executor.DaemonThreadExecutor(), threading.Event(), []
    busy = [pool.submit(go_on.wait) for _ in range(executor.MOST)]
    waiting = pool.submit(done.append, "too late")
    assert waiting.cancel()
    go_on.set()
    assert all(one.result(5) for one in busy)
    pool.shutdown()
    assert done == []
    with pytest.raises(RuntimeError):
        pool.submit(int)


def test_a_thread_that_cannot_be_started_is_an_error_and_costs_no_place(monkeypatch):
    """Where the number of threads is limited: whoever asked hears of it, and later work is done."""
    pool, done = executor.DaemonThreadExecutor(), []

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refused)
        for _ in range(executor.MOST + 1):
            with pytest.raises(RuntimeError, match="can't start"):
                pool.submit(done.append, "never")
    assert pool.submit(int, "7").result(5) == 7
    pool.shutdown()
    assert done == []
