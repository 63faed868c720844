"""Limits how long a module computes: its clock runs only meanwhile, and ends it through the engine's epoch.

The clock stops while the module waits for its host, and restarts at zero with each message. A watchdog thread sleeps
until the earliest possible deadline, and without a timeout while no message is in flight, so that an idle plugin
causes no wake-ups.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from latticed.runners.wasm_inside import status

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class Budget:
    """Calls `expire` once, from its own thread, when `limit_s` seconds of computing are used up.

    Inside `with budget:` the clock stops, as the module is waiting. A new budget is stopped; all other methods are
    called by the thread that runs the module, and raise GuestFailed("deadline_exceeded") once it has expired: the epoch
    ends only what is in wasm then, and no later call.
    """

    def __init__(self, expire: Callable[[], None]) -> None:
        self._expire = expire
        self._lock = threading.Lock()
        self._parked = threading.Semaphore(0)
        self._is_parked = False
        self._ends_s: float | None = None  # the deadline, on the monotonic clock; None while the clock stands still
        self._left_s: float | None = None  # seconds that were left when waiting began; None when the clock stood still
        self._expired = False
        threading.Thread(target=self._watch, name="budget", daemon=True).start()

    def renew(self, limit_s: float) -> None:
        """Restart the clock: the module may compute for `limit_s` seconds from now.

        Deadlines may only move later: the watchdog sleeps until the one it knows, and would notice an earlier one too
        late.
        """
        with self._lock:
            self._check()
            self._ends_s = time.monotonic() + limit_s
            self._unpark()

    def stop(self) -> None:
        """Stop the clock: no message is in flight. The next `renew` starts it again."""
        with self._lock:
            self._check()
            self._ends_s = self._left_s = None

    def __enter__(self) -> None:
        with self._lock:
            self._check()
            if self._ends_s is not None:
                self._left_s = self._ends_s - time.monotonic()
                self._ends_s = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._lock:
            if self._left_s is not None:
                self._ends_s = time.monotonic() + self._left_s
                self._left_s = None
                self._unpark()

    def _check(self) -> None:
        """GuestFailed once it has expired; the lock is held."""
        if self._expired:
            raise status.too_late()

    def _unpark(self) -> None:
        """Wake the watchdog if it waits for a deadline to be set; the lock is held."""
        if self._is_parked:
            self._is_parked = False
            self._parked.release()

    def _watch(self) -> None:
        """The watchdog's thread: sleep until a deadline, call `expire` once one has passed, then end."""
        while True:
            with self._lock:
                left_s = None if self._ends_s is None else self._ends_s - time.monotonic()
                if left_s is not None and left_s <= 0:
                    self._expired = True
                    self._expire()  # under the lock, so never after the module began to wait
                    return
                self._is_parked = left_s is None
            # Outside the lock. A deadline that is put off meanwhile is found after the sleep.
            if left_s is None:
                self._parked.acquire()
            else:
                time.sleep(left_s)
