"""Threads for what blocks, which nobody waits for at the end: they are at a socket, and go with the process."""

from __future__ import annotations

import functools
import threading
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class WaitingThreads(Executor):
    """`count` daemon threads. Those of ThreadPoolExecutor are joined when the interpreter ends: Ctrl-C would wait for
    logs that are followed.
    """

    def __init__(self, count: int) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        for number in range(count):
            threading.Thread(target=self._work, name=f"console-{number}", daemon=True).start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Carry out a call on the next thread that is free."""
        future: Future[Any] = Future()
        self._calls.put((future, functools.partial(fn, *args, **kwargs)))
        return future

    def _work(self) -> None:
        while True:
            future, call = self._calls.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 - raised again by whoever waits for it
                future.set_exception(error)
            else:
                future.set_result(result)
