"""Threads that the event loop starts without waiting until they run."""

from __future__ import annotations

import threading
from typing import Any


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
