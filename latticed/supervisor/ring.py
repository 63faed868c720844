"""What one plugin used and did lately, a value a minute for an hour and a quarter of an hour for a day. Pure.

    ring = HistoryRing()
    ring.take(1, Counters(cpu_ms=120, memory_kib=9_000, restarts=0, calls=4, denied=0))
    ring.hour()   # [HistoryStep(cpu_ms=120, memory_kib=9000, restarts=0, calls=4, denied=0)]

Ten thousand plugins have ten thousand of these, so a number takes 16 bits and a ring less than 2 KiB; that of a plugin
that did nothing takes none of it.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

MINUTES: Final = 60
QUARTERS: Final = 96
QUARTER: Final = 15
"""Minutes in a quarter of an hour."""

_MANTISSA: Final = 11
_MASK: Final = (1 << _MANTISSA) - 1
_GAP: Final = 0xFFFF
_MOST: Final = 0xFFFE


class Counters(NamedTuple):
    """What is counted of a plugin at some moment; all but `memory_kib` since its first start.

    `restarts` may begin at 0 again, as it does when an operator starts the plugin anew.
    """

    cpu_ms: int
    memory_kib: int
    restarts: int
    calls: int
    denied: int


class HistoryStep(NamedTuple):
    """What a plugin did within a minute or a quarter: the difference of its counters; of its memory the most that was
    seen.
    """

    cpu_ms: int
    memory_kib: int
    restarts: int
    calls: int
    denied: int


_NOTHING: Final = Counters(0, 0, 0, 0, 0)
_WIDTH: Final = len(HistoryStep._fields)
_CELLS: Final = (MINUTES + QUARTERS) * _WIDTH


class HistoryRing:
    """The last hour and the last day of one plugin. Minutes are numbered, and taken in rising order.

    A minute that was not taken, though one before and one after it were, is a gap: None in what is returned.
    """

    __slots__ = ("_cells", "_last", "_seen", "first")

    def __init__(self) -> None:
        self.first = 0
        """The first minute that was taken; meaningless before."""
        self._last = -1
        self._seen = _NOTHING
        # Made with the first number that is not 0: most of ten thousand plugins do nothing.
        self._cells: array[int] | None = None

    @property
    def last(self) -> int:
        """The last minute that was taken, -1 before the first."""
        return self._last

    def take(self, minute: int, now: Counters) -> None:
        """Keep what the plugin did since it was last looked at, as that of `minute`; one not after the last is left."""
        if minute <= self._last:
            return
        step = _between(self._seen, now)
        self._seen = now if any(now) else _NOTHING  # one tuple for all that do nothing
        if self._last < 0:
            self.first = minute
        elif self._cells is not None or minute > self._last + 1:
            self._close_up_to(minute)
        self._last = minute
        if self._cells is not None or any(step):
            self._put(minute % MINUTES, step)

    def hour(self) -> list[HistoryStep | None]:
        """The minutes up to the last one, oldest first, MINUTES at most."""
        return [self._minute(one) for one in self._minutes()]

    def day(self) -> list[HistoryStep | None]:
        """The quarters up to the one that the last minute is in, so far; oldest first, QUARTERS at most."""
        if self._last < 0:
            return []
        now = self._last // QUARTER
        closed = range(max(self.first // QUARTER, now - QUARTERS + 1), now)
        return [*(self._get(MINUTES + one % QUARTERS) for one in closed), self._sum(now)]

    def _minutes(self) -> range:
        return range(max(self.first, self._last - MINUTES + 1), self._last + 1) if self._last >= 0 else range(0)

    def _minute(self, number: int) -> HistoryStep | None:
        return self._get(number % MINUTES)

    def _close_up_to(self, minute: int) -> None:
        """Keep the quarters that have ended before `minute`, and mark what was left out between it and the last one."""
        ended, now = self._last // QUARTER, minute // QUARTER
        if ended < now:
            self._put(MINUTES + ended % QUARTERS, self._sum(ended))
        for quarter in range(max(ended + 1, now - QUARTERS + 1), now):
            self._put(MINUTES + quarter % QUARTERS, None)
        for missed in range(max(self._last + 1, minute - MINUTES + 1), minute):
            self._put(missed % MINUTES, None)

    def _sum(self, quarter: int) -> HistoryStep | None:
        """The minutes of a quarter together, which are all within the hour; None when none was taken."""
        minutes = range(max(quarter * QUARTER, self.first), min(quarter * QUARTER + QUARTER, self._last + 1))
        return _together(step for one in minutes if (step := self._minute(one)) is not None)

    def _put(self, slot: int, step: HistoryStep | None) -> None:
        if self._cells is None:
            self._cells = array("H", bytes(2 * _CELLS))
        at = slot * _WIDTH
        self._cells[at : at + _WIDTH] = array("H", [_GAP] * _WIDTH if step is None else map(packed, step))

    def _get(self, slot: int) -> HistoryStep | None:
        if self._cells is None:
            return HistoryStep(*_NOTHING)
        cells = self._cells[slot * _WIDTH : (slot + 1) * _WIDTH]
        return None if cells[0] == _GAP else HistoryStep(*map(unpacked, cells))


def packed(number: int) -> int:
    """A number from 0 on in 16 bits: exact below 2,048, then rounded down by less than 0.1 %, and at most 2**42."""
    shift = max(number.bit_length() - _MANTISSA, 0)
    return min(shift << _MANTISSA | number >> shift, _MOST) if number > 0 else 0


def unpacked(cell: int) -> int:
    """The number that `packed` made `cell` of."""
    return (cell & _MASK) << (cell >> _MANTISSA)


def _between(before: Counters, now: Counters) -> HistoryStep:
    """What was counted between two moments."""
    return HistoryStep(
        # No counter that begins again: without a control group that of a process that ended is estimated, and may come
        # out lower.
        max(now.cpu_ms - before.cpu_ms, 0),
        now.memory_kib,
        _more(before.restarts, now.restarts),
        _more(before.calls, now.calls),
        _more(before.denied, now.denied),
    )


def _more(before: int, now: int) -> int:
    """How much more was counted; a counter that is lower than before has begun at 0 again."""
    return now - before if now >= before else now


def _together(steps: Iterable[HistoryStep]) -> HistoryStep | None:
    """Several steps as one; None for none."""
    found = list(steps)
    if not found:
        return None
    total = HistoryStep(*map(sum, zip(*found, strict=True)))
    return total._replace(memory_kib=max(one.memory_kib for one in found))
