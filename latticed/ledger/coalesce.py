"""Denials of one actor beyond a quota become one event with a count (contracts §11). Pure; the clock is passed in.

The first `quota` denials of the same actor, action and code in a window are each recorded before they are answered.
Beyond it they are counted, and at most one event per `every_s` says how many: its `detail.count` are the denials
since the last event written, and its other fields those of the latest. What is only counted is in memory: kill -9 or a
power cut loses at most the counts of the last `every_s`, never a denial within the quota. An event of a chain cannot be
updated in place, so the only alternative is one event for each denial of a flood.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.model.audit import Event

QUOTA: Final = 20
"""Denials of one actor, action and code that are recorded one by one in a window."""
WINDOW_S: Final = 10.0
"""How long a window lasts, from its first denial."""
EVERY_S: Final = 1.0
"""Shortest time between two events with a count of the same window."""
MAX_WINDOWS: Final = 1_024
"""Bounds memory, as peers and plugins can cause denials without end. The oldest window is closed for a new one."""
COUNT: Final = "count"
"""The key of the count in `detail`."""

_Key = tuple[str, str, str, str]
"""(actor without pid, action, code, group)."""


@dataclass(slots=True)
class _Window:
    """Denials of one key since `started_s`; `counted` of them, up to `latest`, are not yet written."""

    started_s: float
    latest: Event
    written: int = 0
    written_s: float = 0.0
    counted: int = 0


class Denials:
    """Which denials to write now, and which only to count.

    `quota`: denials of one actor, action and code that are written within `window_s`; `every_s`: shortest time between
    two events with a count.
    """

    def __init__(self, *, quota: int = QUOTA, window_s: float = WINDOW_S, every_s: float = EVERY_S) -> None:
        self._quota = quota
        self._window_s = window_s
        self._every_s = every_s
        self._windows: OrderedDict[_Key, _Window] = OrderedDict()
        self._owed: list[Event] = []

    def take(self, event: Event, now_s: float, *, group: str = "") -> Event | None:
        """The event to write in place of this denial, or None when it was only counted.

        Each `group` is counted separately.
        """
        window = self._window(event, now_s, group)
        window.latest = event
        if window.written < self._quota:
            window.written += 1
            window.written_s = now_s
            return event
        window.counted += 1
        return _summary(window, now_s) if now_s - window.written_s >= self._every_s else None

    def due(self, now_s: float) -> list[Event]:
        """The events with counts that are due; call it every `every_s`. Drops windows that are over."""
        # Counts first: a window that is over is removed below, with what it has counted.
        self._write_ripe(now_s, lambda window: self._over(window, now_s) or now_s - window.written_s >= self._every_s)
        for key in [key for key, window in self._windows.items() if self._over(window, now_s)]:
            del self._windows[key]
        owed, self._owed = self._owed, []
        return owed

    def rest(self, now_s: float) -> list[Event]:
        """The events with all counts not yet written; call it before closing."""
        self._write_ripe(now_s, lambda _: True)
        owed, self._owed = self._owed, []
        return owed

    def put_back(self, event: Event) -> None:
        """Have `due` return `event` again, because it could not be written."""
        # Bounded: the ledger may refuse writes for hours. Counts beyond that are lost.
        if len(self._owed) < MAX_WINDOWS:
            self._owed.append(event)

    def _window(self, event: Event, now_s: float, group: str) -> _Window:
        """The window of this denial, begun anew when there is none or it is over."""
        key = (*_key(event), group)
        window = self._windows.get(key)
        if window is None or self._over(window, now_s):
            if window is not None:
                self._owe(window, now_s)
            elif len(self._windows) >= MAX_WINDOWS:
                self._owe(self._windows.popitem(last=False)[1], now_s)
            window = self._windows[key] = _Window(now_s, event)
            # A key that is assigned again keeps its place, and `popitem` above relies on the oldest window being first.
            self._windows.move_to_end(key)
        return window

    def _over(self, window: _Window, now_s: float) -> bool:
        """Whether the window is older than `window_s`; a further denial begins a new one."""
        return now_s - window.started_s >= self._window_s

    def _write_ripe(self, now_s: float, ripe: Callable[[_Window], bool]) -> None:
        """Queue the events of all windows for which `ripe` is true and that have denials not written yet."""
        for window in self._windows.values():
            if ripe(window):
                self._owe(window, now_s)

    def _owe(self, window: _Window, now_s: float) -> None:
        """Queue the event with the window's count, for `due` or `rest`; nothing when all was written."""
        if window.counted:
            self.put_back(_summary(window, now_s))


def _key(event: Event) -> tuple[str, str, str]:
    """(actor without pid, action, code): denials with equal ones are counted together."""
    actor = event.actor.partition(" pid:")[0]  # a peer that forks for every request is still one actor
    return actor, event.action, event.code


def _summary(window: _Window, now_s: float) -> Event:
    """The latest denial with the number of those not written yet, which is 0 from now on."""
    # The count comes first: recording caps the number of entries.
    detail = {COUNT: window.counted, **{key: value for key, value in window.latest.detail.items() if key != COUNT}}
    window.counted = 0
    window.written_s = now_s
    return replace(window.latest, detail=detail)
