"""A queue with few slots and round robin among owners, in which slow items do not delay quick ones. Pure.

Each owner has two lanes, quick and slow (what `ScheduledItem.slow` expects to take long). Slow items take at most half
of the owner's slots and half of all. When all slots are taken, an owner still gets one in each lane in which it runs
nothing: no owner waits for another, and at most `total` plus two per owner run.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class _Lanes(Generic[T]):
    """The waiting items of one owner, and how many run in each lane; `slow_next`: which lane `pop` looks at first."""

    waiting: dict[bool, deque[T]] = field(default_factory=lambda: {False: deque(), True: deque()})
    # Keys are `slow`: False is the quick lane.
    running: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    slow_next: bool = False

    @property
    def idle(self) -> bool:
        """Whether the owner has neither waiting nor running items."""
        return not any(self.waiting.values()) and not any(self.running.values())


class FairQueue(Generic[T]):
    """A queue of items of several owners, each with `push`, `pop`, `release` in this order.

    `total` slots for all owners and `per_owner` for each, both at least 2: half of them are for slow items.
    """

    def __init__(self, *, total: int, per_owner: int) -> None:
        self._total = total
        self._per_owner = per_owner
        self._lanes: dict[str, _Lanes[T]] = {}  # insertion order is the order of turns
        self._running = {False: 0, True: 0}

    def __len__(self) -> int:
        """The number of waiting items."""
        return sum(len(lane) for lanes in self._lanes.values() for lane in lanes.waiting.values())

    @property
    def running(self) -> int:
        """The number of items that were popped and not released yet; may exceed `total`, see the module."""
        return sum(self._running.values())

    def push(self, owner: str, item: T, *, slow: bool) -> None:
        """Queue `item` behind the others of this owner and lane. Starts nothing: the caller then pops."""
        self._lanes.setdefault(owner, _Lanes()).waiting[slow].append(item)

    def pop(self) -> tuple[T, bool] | None:
        """The next item and whether it is slow, in a slot until `release`; None when none may start."""
        # Changing the dict below is safe although it is iterated: each change is followed by a return.
        for owner, lanes in self._lanes.items():
            # Lanes of one owner take turns, so that neither a flood of quick items nor slow ones starve the other.
            for slow in (lanes.slow_next, not lanes.slow_next):
                if lanes.waiting[slow] and self._has_place(lanes, slow=slow):
                    lanes.slow_next = not slow
                    lanes.running[slow] += 1
                    self._running[slow] += 1
                    self._lanes[owner] = self._lanes.pop(owner)  # moves it to the end of the order
                    return lanes.waiting[slow].popleft(), slow
        return None

    def release(self, owner: str, *, slow: bool) -> None:
        """Free the slot of an item that was popped; `slow` as `pop` returned it."""
        lanes = self._lanes[owner]
        lanes.running[slow] -= 1
        self._running[slow] -= 1
        # Forgotten when idle: the dict would otherwise keep every owner there ever was.
        if lanes.idle:
            del self._lanes[owner]

    def _has_place(self, lanes: _Lanes[T], *, slow: bool) -> bool:
        """Whether an item of this owner may start now in this lane."""
        if sum(lanes.running.values()) >= self._per_owner:
            return False
        # Before the check of `total`: an owner that runs nothing in this lane waits for no other owner.
        if not lanes.running[slow]:
            return True
        if self.running >= self._total:
            return False
        # Half of the slots stay free of slow items, so that quick ones find a slot while every slow target hangs.
        return not slow or (lanes.running[True] < self._per_owner // 2 and self._running[True] < self._total // 2)
