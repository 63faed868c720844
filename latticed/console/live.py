"""What happens at the daemon, told to every open page: that something changed, never what.

One stream of the daemon for all tabs, read by a thread. A page that hears of a change asks for itself again, so that a
million events cost a page no more memory than one.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST_TARGETS: Final = 32
"""Beyond, a page is told that anything may have changed."""
MOST_LISTENERS: Final = 32


class PageListener:
    """One open page. `take` is what it has not been told yet; `gone`: whether its connection was closed meanwhile."""

    def __init__(self, gone: Callable[[], bool]) -> None:
        self.gone = gone
        self.ready = asyncio.Event()
        self._targets: set[str] = set()
        self._everything = False
        self._daemon = ""

    def put(self, targets: set[str], daemon: str) -> None:
        """Remember that these changed, and what became of the daemon (`gone`, `back`, or empty)."""
        self._targets |= targets
        self._everything = self._everything or len(self._targets) > MOST_TARGETS
        if self._everything:
            self._targets.clear()
        self._daemon = daemon or self._daemon
        self.ready.set()

    def take(self) -> dict[str, object]:
        """Everything since the last time: `{"targets": […] or null for anything, "daemon": "gone|back|"}`."""
        told: dict[str, object] = {
            "targets": None if self._everything else sorted(self._targets),
            "daemon": self._daemon,
        }
        self._targets, self._everything, self._daemon = set(), False, ""
        self.ready.clear()
        return told


class LiveHub:
    """Reads `changes`, once the first page listens, and for as long as the process runs."""

    def __init__(self, changes: Callable[[], Iterator[str]]) -> None:
        self._changes = changes
        self._loop = asyncio.get_running_loop()
        self._listeners: set[PageListener] = set()
        self._lock = threading.Lock()
        self._targets: set[str] = set()
        self._daemon = ""
        self._scheduled = False
        self._thread: threading.Thread | None = None

    def listen(self, gone: Callable[[], bool] = lambda: False) -> PageListener | None:
        """A new listener; None when there are too many."""
        if len(self._listeners) >= MOST_LISTENERS:
            # Their streams hear of it with the next line only.
            self._listeners = {one for one in self._listeners if not one.gone()}
        if len(self._listeners) >= MOST_LISTENERS:
            return None
        if self._thread is None:
            # A daemon thread: it waits at a socket, and ends with the process.
            self._thread = threading.Thread(target=self._read, name="console-live", daemon=True)
            self._thread.start()
        found = PageListener(gone)
        self._listeners.add(found)
        return found

    def wake(self) -> None:
        """Have every page's stream look whether its session goes on."""
        for one in self._listeners:
            one.ready.set()

    def leave(self, listener: PageListener) -> None:
        """The page is closed."""
        self._listeners.discard(listener)

    def _read(self) -> None:
        for change in self._changes():
            with self._lock:
                if change in {"gone", "back"}:
                    self._daemon = change
                elif len(self._targets) <= MOST_TARGETS:
                    self._targets.add(change)
                if self._scheduled:
                    continue
                self._scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._tell)
            except RuntimeError:  # the loop was closed: the process ends
                return

    def _tell(self) -> None:
        with self._lock:
            targets, daemon = self._targets, self._daemon
            self._targets, self._daemon, self._scheduled = set(), "", False
        for one in self._listeners:
            one.put(targets, daemon)
