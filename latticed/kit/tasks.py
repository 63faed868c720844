"""Tasks whose failure stays their own, and work in threads that a cancellation waits for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, TypeVar

from latticed.kit import logs

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

log = logs.get_logger()
T = TypeVar("T")
_running: Final[set[asyncio.Task[None]]] = set()  # the loop itself holds tasks only weakly


def fenced(
    work: Coroutine[Any, Any, None],
    on_error: Callable[[BaseException], None],
    *,
    name: str | None = None,
    group: asyncio.TaskGroup | None = None,
) -> asyncio.Task[None]:
    """Run `work` as a task; when it raises, call `on_error(error)` instead of letting the exception go further.

    In a `group`, the other tasks go on. When the task is cancelled, CancelledError passes through. When it is not,
    but `work` awaited something that was, that is reported too: otherwise `work` would have ended without a trace.
    SystemExit and KeyboardInterrupt pass through. The task is kept from being garbage collected while it runs.
    """
    task = (group or asyncio.get_running_loop()).create_task(_fence(work, on_error), name=name)
    _running.add(task)
    task.add_done_callback(_running.discard)
    task.add_done_callback(lambda _: work.close())  # cancelled before it began: `work` is never awaited
    return task


@contextlib.contextmanager
def first_error() -> Iterator[None]:
    """Around a whole `asyncio.TaskGroup`: of the errors of its tasks the first is raised, as it is.

    Before Python 3.13 a group that failed leaves the caller counted as cancelled (`Task.cancelling`), by which 3.11's
    `asyncio.timeout` lets out CancelledError in place of TimeoutError: the caller would end without a trace.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0
    try:
        yield
    except ExceptionGroup as several:
        while task is not None and task.cancelling() > before:
            task.uncancel()
        raise several.exceptions[0] from None


class BackgroundTasks:
    """Tasks of one owner, which go on when whoever began them is cancelled; the owner awaits `ended` at its end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()  # the loop holds tasks only weakly

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` as a task. Its exception is retrieved here, as a cancelled caller does not."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())
        return task

    async def whole(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, which goes on to its end when the caller is cancelled."""
        return await asyncio.shield(self.start(work))

    async def ended(self) -> None:
        """Wait for all of them; their exceptions are their own."""
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _fence(work: Coroutine[Any, Any, None], on_error: Callable[[BaseException], None]) -> None:
    """Await `work` as `fenced` says."""
    task = asyncio.current_task()
    try:
        await work
    except asyncio.CancelledError as error:
        # This task was not cancelled (Task.cancelling): the error comes from something that it awaited.
        if task is not None and task.cancelling() == 0:
            _report(error, on_error)
        raise
    except Exception as error:  # noqa: BLE001 - this is the fence
        _report(error, on_error)


def _report(error: BaseException, on_error: Callable[[BaseException], None]) -> None:
    """Call `on_error`; what it raises itself is only logged."""
    try:
        on_error(error)
    except Exception:
        log.error("error_report_failed", error=repr(error), exc_info=True)


async def in_thread(work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
    """The result of `work`, called in a thread of the default executor.

    A thread cannot be cancelled, and `work` may use descriptors that the caller closes when it is cancelled. So a
    cancellation waits until `work` has returned, calls `undo` with its result (to close what it opened), and then
    raises CancelledError; an exception of `work` is dropped in that case.
    """
    working = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            # A further cancellation changes nothing: one is raised below, once the thread is done.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({working})
        # `exception()` also marks it as retrieved, else asyncio logs "exception was never retrieved".
        if not working.cancelled() and working.exception() is None and undo is not None:
            undo(working.result())
        raise
