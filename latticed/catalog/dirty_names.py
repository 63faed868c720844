"""Names of bundles that something happened to, collected by watchdog's thread for the event loop, each name once."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

from latticed.kit.value import Value

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_NAMES: Final = 65_536
"""More names than this are replaced by a request to scan."""


class DirtyBatch(Value, frozen=True, kw_only=True):
    """What was collected since the last `take`. `scan`: everything has to be looked at.

    `events` and `overflows` (of the kernel's queue, inotify(7)) count, for health.
    """

    names: frozenset[str]
    scan: bool
    events: int
    overflows: int


class DirtyNames:
    """`note` is for any thread, `take` for the event loop; the first note after a `take` calls `wake`."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._scan = False
        self._events = 0
        self._overflows = 0

    def note(self, name: str | None = None, *, scan: bool = False, overflows: int = 0) -> None:
        """An event came: `name` has to be judged, or (`scan`) everything has to be looked at.

        `overflows` counts losses of the kernel's queue. May be called from any thread.
        """
        with self._lock:
            # One call of `wake` for each `take`, however many events: each call writes to the loop's wake-up socket.
            first = not self._names and not self._scan
            self._events += 1
            self._overflows += overflows
            self._scan |= scan
            if name is not None:
                self._names.add(name)
            if len(self._names) > MAX_NAMES:
                # A scan looks at every name anyway.
                self._names.clear()
                self._scan = True
        # After the lock is released: `wake` is foreign code.
        if first:
            self._wake()

    def take(self) -> DirtyBatch:
        """What was noted since the last call, which is then forgotten here."""
        with self._lock:
            batch = DirtyBatch(
                names=frozenset(self._names), scan=self._scan, events=self._events, overflows=self._overflows
            )
            self._names.clear()
            self._scan = False
            self._events = self._overflows = 0
        return batch
