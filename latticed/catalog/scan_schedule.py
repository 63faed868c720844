"""When to scan a directory: on request, by the timer, more often while it cannot be watched, with pauses between."""

from __future__ import annotations

from typing import Final

TICK_S: Final = 1.0
"""How often it is asked whether the path still means the directory that is watched."""
FALLBACK_S: Final = 2.0
"""How often everything is looked at while not everything can be watched."""
# Least pause between two scans, also of a small directory.
_PAUSE_S: Final = 0.1
_SHARE: Final = 4  # pauses of four times a scan's own duration: at most a fifth of the time goes into scans


class ScanSchedule:
    """When to scan a directory. Pure arithmetic; times are seconds of a clock that only grows.

    The first scan is due at once; `rescan_s` is the setting of that name, which may be changed at any time.
    """

    def __init__(self, *, rescan_s: float, now_s: float) -> None:
        self.rescan_s = rescan_s
        self._scanned_s = self._allowed_s = self._ticked_s = now_s
        self._wanted = True

    def want_scan(self) -> None:
        """Have the directory scanned after the pause: only a scan can say what has changed."""
        self._wanted = True

    def want_scan_now(self, now_s: float) -> None:
        """Have the directory scanned at once, without the pause: an operator asked for it."""
        self._wanted = True
        self._allowed_s = now_s

    def scan_due_s(self, *, watched: bool) -> float:
        """When the next scan is due, as a time of the clock. `watched`: every change to a bundle causes an event, so
        scans may be rare.
        """
        if self._wanted:
            return self._allowed_s
        # Never less often than the settings ask for.
        every_s = self.rescan_s if watched else min(FALLBACK_S, self.rescan_s)
        return max(self._scanned_s + every_s, self._allowed_s)

    def scan_began(self) -> None:
        """Call it before listing: a request that comes from then on leads to another scan."""
        self._wanted = False

    def scan_ended(self, *, began_s: float, now_s: float) -> None:
        """A scan that began at `began_s` has ended now. The next one waits for the pause or the timer."""
        self._scanned_s = now_s
        # By this scan's duration: a slow directory is scanned less often, whatever asks for scans.
        self._allowed_s = now_s + max(_PAUSE_S, _SHARE * (now_s - began_s))

    def tick_due_s(self) -> float:
        """When to check next, as a time of the clock, that the watched directory is still the one at its path."""
        return self._ticked_s + TICK_S

    def ticked(self, now_s: float) -> None:
        """Call it when the check of `tick_due_s` is made."""
        self._ticked_s = now_s
