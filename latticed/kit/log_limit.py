"""Limits log entries that untrusted input can cause: one of a kind per period, with a count of those left out."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

EVERY_S: Final = 10.0
"""Seconds between two entries of one kind."""
MOST_KINDS: Final = 1_024
"""How many kinds are remembered; what is in a kind may come from outside."""


class LogLimiter:
    """Which of many entries of the same kind to write: one every `every_s` seconds. The caller passes the monotonic
    time.

    Past MOST_KINDS kinds the one written longest ago is forgotten, so memory is bounded; its count is lost.
    """

    def __init__(self, *, every_s: float = EVERY_S) -> None:
        self._every_s = every_s
        self._kinds: OrderedDict[tuple[str, ...], tuple[float, int]] = OrderedDict()

    def take(self, kind: tuple[str, ...], now_s: float) -> int | None:
        """How many entries of this kind this one stands for, itself included; None when it is not to be written, only
        counted.

        `kind` is compared as a whole, such as `("denied", plugin_id)`; `now_s` is the monotonic time.
        """
        # A kind that is new counts as written long enough ago.
        written_s, left_out = self._kinds.get(kind, (now_s - self._every_s, 0))
        if now_s - written_s < self._every_s:
            self._kinds[kind] = (written_s, left_out + 1)
            return None
        self._kinds[kind] = (now_s, 0)
        self._kinds.move_to_end(kind)  # the order is that of the last writing, for the removal below
        if len(self._kinds) > MOST_KINDS:
            self._kinds.popitem(last=False)
        return left_out + 1
