"""kit.tasks: a failing task does not affect others."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading

import pytest

from latticed.kit import tasks
from tests.house import processes


async def _fail(error: BaseException) -> None:
    raise error


async def test_failure_of_task_is_reported_and_siblings_continue():
    """In a TaskGroup the exception reaches `on_error`; the others finish and the group raises nothing."""
    reported: list[BaseException] = []
    finished = asyncio.Event()

    async def sibling() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        finished.set()

    error = RuntimeError("plugin broke")
    async with asyncio.TaskGroup() as group:
        tasks.fenced(_fail(error), reported.append, group=group)
        tasks.fenced(sibling(), reported.append, group=group)
    assert reported == [error]
    assert finished.is_set()


async def test_cancellation_of_task_passes_through():
    """It is not reported as an error."""
    reported: list[BaseException] = []
    task = tasks.fenced(asyncio.Event().wait(), reported.append, name="waits")
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert reported == []


async def test_unrequested_cancellation_of_a_task_is_reported():
    """Otherwise a CancelledError from something awaited would end the work silently."""
    reported: list[BaseException] = []
    inner = asyncio.get_running_loop().create_future()
    inner.cancel()

    async def work() -> None:
        await inner

    task = tasks.fenced(work(), reported.append)
    await asyncio.wait([task])
    assert task.cancelled()
    assert [type(error) for error in reported] == [asyncio.CancelledError]


async def test_exception_in_on_error_is_logged(capsys):
    """The task still ends without raising."""

    def report(error: BaseException) -> None:
        raise ValueError("report broke")

    task = tasks.fenced(_fail(RuntimeError("x")), report)
    await task
    assert "error_report_failed" in capsys.readouterr().out


async def test_first_error_of_a_group_is_raised_and_the_caller_is_not_left_cancelled():
    """What it waits for later ends by its time, as ever."""

    async def ask():
        async with asyncio.TaskGroup() as group:
            group.create_task(_fail(ValueError("first")))
            group.create_task(asyncio.sleep(60))

    with pytest.raises(ValueError, match="first"), tasks.first_error():
        await ask()
    assert asyncio.current_task().cancelling() == 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)


async def test_unreferenced_task_is_not_garbage_collected():
    """The loop has weak references only."""
    import gc

    done = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done.set()

    tasks.fenced(work(), lambda _: None)
    gc.collect()
    async with asyncio.timeout(processes.PATIENCE_S):
        await done.wait()


async def test_task_cancelled_before_start_closes_its_coroutine():
    """Otherwise Python warns that it was never awaited."""
    work = _fail(ValueError("never"))
    task = tasks.fenced(work, lambda _: None)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await asyncio.sleep(0)
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_system_exit_and_keyboard_interrupt_pass_through(error):
    """They are not reported as a failure of the task."""
    reported: list[BaseException] = []

    async def main() -> None:
        await tasks.fenced(_fail(error), reported.append)

    with pytest.raises(type(error)):
        asyncio.run(main())
    assert reported == []


async def test_cancelled_caller_waits_for_its_thread_and_undoes_the_result():
    """The thread may use what the caller closes next; what it opened is closed by `undo`."""
    begun, go_on, undone = threading.Event(), threading.Event(), []

    def work() -> str:
        begun.set()
        go_on.wait(20)
        return "opened"

    caller = asyncio.create_task(tasks.in_thread(work, undone.append))
    await asyncio.to_thread(begun.wait, 20)
    for _ in range(2):  # the second one comes while it waits for the thread
        caller.cancel()
        done, _ = await asyncio.wait({caller}, timeout=0.05)
        assert not done
    assert not undone
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert undone == ["opened"]


async def test_error_of_a_thread_whose_caller_was_cancelled_is_not_logged(caplog):
    """CancelledError takes precedence; asyncio would log the error as never retrieved."""
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(20)
        raise OSError("read failed")

    caller = asyncio.create_task(tasks.in_thread(work, lambda _: pytest.fail("there is nothing to undo")))
    await asyncio.to_thread(begun.wait, 20)
    caller.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    del caller
    gc.collect()
    assert not caplog.records
