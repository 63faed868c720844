"""kit.tasks: a task's failure stays its own."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from latticed.kit import tasks


async def _fail(error: BaseException) -> None:
    raise error


async def test_a_failure_is_reported_and_siblings_live_on():
    """In a TaskGroup, one fenced task's exception reaches its report; the others finish, the group raises nothing."""
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


async def test_cancelling_passes_through():
    """A fenced task that is cancelled is cancelled, and that is no error."""
    reported: list[BaseException] = []
    task = tasks.fenced(asyncio.Event().wait(), reported.append, name="waits")
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert reported == []


async def test_an_unrequested_cancellation_is_reported():
    """Work that ends by somebody else's CancelledError would otherwise be gone without a word."""
    reported: list[BaseException] = []
    inner = asyncio.get_running_loop().create_future()
    inner.cancel()

    async def work() -> None:
        await inner

    task = tasks.fenced(work(), reported.append)
    await asyncio.wait([task])
    assert task.cancelled()
    assert [type(error) for error in reported] == [asyncio.CancelledError]


async def test_a_broken_report_does_not_break_the_fence(capsys):
    """When reporting itself fails, the task still ends quietly; the failure is logged."""

    def report(error: BaseException) -> None:
        raise ValueError("report broke")

    task = tasks.fenced(_fail(RuntimeError("x")), report)
    await task
    assert "error_report_failed" in capsys.readouterr().out


async def test_an_unreferenced_task_is_not_garbage_collected():
    """The loop's references are weak; the fence keeps its task until it is done."""
    import gc

    done = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done.set()

    tasks.fenced(work(), lambda _: None)
    gc.collect()
    async with asyncio.timeout(5):
        await done.wait()


async def test_cancelled_before_it_began_leaves_no_coroutine_behind():
    """Nobody awaits its work then: it is closed, not complained about."""
    work = _fail(ValueError("never"))
    task = tasks.fenced(work, lambda _: None)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    await asyncio.sleep(0)
    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_the_end_of_the_process_is_not_fenced(error):
    """SystemExit and KeyboardInterrupt pass through and are not reported as a task's failure."""
    reported: list[BaseException] = []

    async def main() -> None:
        await tasks.fenced(_fail(error), reported.append)

    with pytest.raises(type(error)):
        asyncio.run(main())
    assert reported == []
