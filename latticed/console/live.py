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
        """Remember that these changed, and what became of the daemon (`gone`, `back`, `denied`, or empty)."""
        self._targets |= targets
        self._everything = self._everything or len(self._targets) > MOST_TARGETS
        if self._everything:
            self._targets.clear()
        self._daemon = daemon or self._daemon
        self.ready.set()

    def take(self) -> dict[str, object]:
        """Everything since the last time: `{"targets": […] or null for anything, "daemon": "gone|back|denied|"}`."""
        told: dict[str, object] = {
            "targets": None if self._everything else sorted(self._targets),
            "daemon": self._daemon,
        }
        self._targets, self._everything, self._daemon = set(), False, ""
        self.ready.clear()
        return told


class LiveHub:
    """Reads `changes` (see `Operator.changes`) while pages listen; what has ended is read anew for the next one.

    `forget` is called before pages hear of a change: what was kept of before is not what they ask for.
    """

    def __init__(
        self, changes: Callable[[Callable[[], bool]], Iterator[str]], forget: Callable[[], None] = lambda: None
    ) -> None:
        self._changes = changes
        self._forget = forget
        self._loop = asyncio.get_running_loop()
        self._listeners: set[PageListener] = set()
        self._lock = threading.Lock()
        self._targets: set[str] = set()
        self._daemon = ""
        self._scheduled = False
        self._reading = False

    def listen(self, gone: Callable[[], bool] = lambda: False) -> PageListener | None:
        """A new listener; None when there are too many."""
        if len(self._listeners) >= MOST_LISTENERS:
            # Their streams hear of it with the next line only.
            self._listeners = {one for one in self._listeners if not one.gone()}
        if len(self._listeners) >= MOST_LISTENERS:
            return None
        found = PageListener(gone)
        with self._lock:
            self._listeners.add(found)
            if not self._reading:
                self._reading = True
                # A daemon thread: it waits at a socket, and ends with the process.
                threading.Thread(target=self._read, name="console-live", daemon=True).start()
        return found

    def wake(self) -> None:
        """Have every page's stream look whether its session goes on."""
        for one in self._listeners:
            one.ready.set()

    def leave(self, listener: PageListener) -> None:
        """The page is closed."""
        self._listeners.discard(listener)

    def _read(self) -> None:
        for change in self._changes(self._wanted):
            with self._lock:
                if change in {"gone", "back", "denied"}:
                    self._daemon = change
                elif len(self._targets) <= MOST_TARGETS:
                    self._targets.add(change)
                # The next page that listens has it asked anew, by another thread.
                if change == "denied":
                    self._reading = False
                if self._scheduled:
                    continue
                self._scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._tell)
            except RuntimeError:  # the loop was closed: the process ends
                return

    def _wanted(self) -> bool:
        """Whether any page listens; else this thread ends, and the next page starts another."""
        with self._lock:
            self._reading = bool(self._listeners)
            return self._reading

    def _tell(self) -> None:
        with self._lock:
            targets, daemon = self._targets, self._daemon
            self._targets, self._daemon, self._scheduled = set(), "", False
        self._forget()
        for one in self._listeners:
            one.put(targets, daemon)
