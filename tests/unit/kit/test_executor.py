"""kit.executor: the event loop's executor, whose threads do not delay shutdown."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from latticed.kit import executor


def test_hanging_executor_call_does_not_delay_shutdown():
    """Calls that return finish; one that hangs is abandoned and does not delay others."""
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


def test_executor_call_cancelled_while_queued_is_not_run():
    """ThreadPoolExecutor behaves in the same way."""
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


def test_failure_to_start_a_thread_is_raised_and_frees_its_slot(monkeypatch):
    """The caller gets the error, and later calls are run."""
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
