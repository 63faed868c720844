"""How long a module may compute: a clock that runs only while it does, and ends it through the engine's epoch.

Waiting costs nothing: the clock stands still while the module waits for its host. It starts afresh with each message
that the module is given. One thread watches; it sleeps until the earliest moment at which there can be anything to do,
and for good while nothing is in flight, so that an idle plugin never wakes anybody.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Budget:
    """Calls `expire` once, from its own thread, when `limit_s` seconds of computing are used up.

    `with budget:` is a time of waiting.
    """

    def __init__(self, expire: Callable[[], None]) -> None:
        self._expire = expire
        self._lock = threading.Lock()
        self._parked = threading.Semaphore(0)
        self._is_parked = False
        self._ends_s: float | None = None
        self._left_s = 0.0
        threading.Thread(target=self._watch, name="budget", daemon=True).start()

    def renew(self, limit_s: float) -> None:
        """From now on it may compute for `limit_s` seconds."""
        with self._lock:
            self._ends_s = time.monotonic() + limit_s
            self._unpark()

    def stop(self) -> None:
        """Nothing is in flight."""
        with self._lock:
            self._ends_s = None
            self._left_s = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if self._ends_s is not None:
                self._left_s = self._ends_s - time.monotonic()
                self._ends_s = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            if self._left_s:
                self._ends_s = time.monotonic() + self._left_s
                self._left_s = 0.0
                self._unpark()

    def _unpark(self) -> None:
        if self._is_parked:
            self._is_parked = False
            self._parked.release()

    def _watch(self) -> None:
        while True:
            with self._lock:
                left_s = None if self._ends_s is None else self._ends_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    self._expire()  # under the lock: never after the module has begun to wait
                    return
                self._is_parked = left_s is None
            if left_s is None:
                self._parked.acquire()
            else:
                time.sleep(left_s)
