"""kit.threads: a thread is started without waiting until it runs, and has the loop make calls."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator

import pytest

from latticed.kit.threads import LoopCalls, UnawaitedThread


@pytest.fixture
def no_turns() -> Iterator[None]:
    """Nobody else gets the interpreter lock unless it is given up: as beside threads that compute."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1_000)
    yield
    sys.setswitchinterval(before)


def test_start_returns_before_the_thread_runs(no_turns: None) -> None:
    """It counts as alive from the start on, and can be joined once it has run."""
    ran = threading.Event()
    thread = UnawaitedThread(target=ran.set, daemon=True)
    assert not thread.is_alive()
    thread.start()
    assert (ran.is_set(), thread.is_alive()) == (False, True)
    assert ran.wait(30)
    while thread.is_alive():
        ran.wait(0)
    thread.join()
    assert not thread.is_alive()


def test_thread_that_cannot_be_had_raises_and_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    for name in ("_start_new_thread", "_start_joinable_thread"):  # before 3.13, and since
        monkeypatch.setattr(threading, name, refused, raising=False)
    thread = UnawaitedThread(target=print, daemon=True)
    with pytest.raises(RuntimeError, match="can't start"):
        thread.start()
    assert not thread.is_alive()
    assert thread not in threading.enumerate()


async def test_loop_makes_the_calls_of_threads_in_order_and_those_left_at_the_close() -> None:
    """A failing one goes to the loop's handler and holds no other up."""
    loop = asyncio.get_running_loop()
    faults: list[object] = []
    loop.set_exception_handler(lambda _, context: faults.append(type(context["exception"])))
    calls, enough = LoopCalls(), asyncio.Event()
    made: list[int] = []

    def thread() -> None:
        for number in range(1_000):
            calls.put(made.append, number)
        calls.put([].pop)
        calls.put(enough.set)

    worker = threading.Thread(target=thread)
    worker.start()
    await enough.wait()
    worker.join()
    assert (made, faults) == (list(range(1_000)), [IndexError])
    calls.put(made.append, 1_000)
    calls.close()
    assert made[-1] == 1_000
