"""Threads that the event loop starts without waiting until they run, and what a thread has the loop do."""

from __future__ import annotations

import asyncio
import collections
import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class _NotWaitedFor(threading.Event):
    """The event by which a new thread says that it runs; whoever waits for it goes on at once."""

    def wait(self, timeout: float | None = None) -> bool:
        del timeout
        return True


class UnawaitedThread(threading.Thread):
    """A thread whose `start` returns at once. RuntimeError when the system has no thread to give, as of any other.

    `Thread.start` waits until the new thread has said that it runs, for which that needs the interpreter lock: while
    others compute, this has been up to 173 ms of the event loop.
    """

    def __init__(self, **named: Any) -> None:
        super().__init__(**named)
        # Python's own attribute (3.11 to 3.14). Were it called otherwise, `start` would wait as that of any thread.
        self._started = _NotWaitedFor()
        self._launched = False

    def start(self) -> None:
        """Have the thread begin; it may not run yet when this returns."""
        super().start()
        self._launched = True

    def is_alive(self) -> bool:
        """Whether it is not over: from `start` on, also before it runs."""
        return (self._launched and not self._started.is_set()) or super().is_alive()


class LoopCalls:
    """Has the event loop make calls, in the order in which threads `put` them, as `call_soon_threadsafe` does.

    A tenth of a host call's time cheaper: an eventfd (eventfd(2)) is one system call for either side. Made on the loop;
    `close` it there, once no thread calls `put` any more.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: collections.deque[tuple[Callable[..., object], tuple[Any, ...]]] = collections.deque()
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop.add_reader(self._fd, self._woken)

    def put(self, function: Callable[..., object], *arguments: Any) -> None:
        """Have the loop call `function`; any thread, never blocks."""
        self._calls.append((function, arguments))
        os.eventfd_write(self._fd, 1)

    def make(self) -> None:
        """Make the calls that were put by now; an exception goes to the loop's exception handler."""
        while self._calls:
            function, arguments = self._calls.popleft()
            try:
                function(*arguments)
            except Exception as error:  # noqa: BLE001 - of one call, and others wait
                self._loop.call_exception_handler({"message": f"{function!r} failed", "exception": error})

    def close(self) -> None:
        """Make the calls that are left, and let go of the descriptor."""
        self.make()
        self._loop.remove_reader(self._fd)
        os.close(self._fd)

    def _woken(self) -> None:
        os.eventfd_read(self._fd)
        self.make()
