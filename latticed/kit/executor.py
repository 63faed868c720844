"""The event loop's own executor: threads that the end of the process does not wait for.

The standard one joins its threads when the loop closes and again when Python ends. One of them may be in a system call
that never returns (a dead network mount, a directory service that does not answer), and must not delay stopping.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

from latticed.kit.threads import UnawaitedThread

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MOST: Final = 64
"""Calls that run at a time: many more than asyncio's default, so that a few that hang do not delay the others."""
END_S: Final = 0.5
"""How long, in seconds, `shutdown` waits for running calls, which nearly always end by then."""


class DaemonThreadExecutor(ThreadPoolExecutor):
    """Runs calls in daemon threads, MOST at a time; further calls wait for a thread. A thread without work ends.

    It is a ThreadPoolExecutor because `loop.set_default_executor` insists on that type.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)  # never used: its threads are the ones that are waited for
        self._free = threading.BoundedSemaphore(MOST)  # one for each thread that may still be started
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._ended = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """As the standard executor's: a future of `fn(*args, **kwargs)`. RuntimeError after `shutdown`, or when no
        thread can be started for it.
        """
        if self._ended:
            raise RuntimeError("the executor is shut down")
        future: Future[T] = Future()
        job = (future, lambda: fn(*args, **kwargs))
        with self._lock:
            self._waiting.append(job)
        if self._free.acquire(blocking=False):
            try:
                UnawaitedThread(target=self._work, name="latticed-executor", daemon=True).start()
            except RuntimeError:  # no further thread may be started here
                self._free.release()
                with self._lock:
                    if job in self._waiting:  # else a thread that works already has it
                        self._waiting.remove(job)
                        raise
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - inherited
        """Take no more work; with `wait`, what is under way gets END_S. Threads that still run then are left behind."""
        del cancel_futures
        self._ended = True
        deadline = time.monotonic() + (END_S if wait else 0)
        # Each thread holds one of the MOST slots until it finds no waiting call: with all taken here, no call runs.
        for _ in range(MOST):
            if not self._free.acquire(timeout=max(deadline - time.monotonic(), 0)):
                return

    def _work(self) -> None:
        """Run queued calls on this thread until none waits, and set the result or exception of each on its future."""
        while (job := self._next()) is not None:
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001 - the waiter's
                    future.set_exception(error)

    def _next(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        """The next queued call; None when there is none, and then this thread's slot is free: it must end."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._free.release()  # within the lock, so that a call submitted after this check starts a thread
            return None
