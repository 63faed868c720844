"""When a name that was touched is judged (architecture, decision 5): after a time without events, or a longest wait.

Pure arithmetic over times that are passed in (seconds of a clock that only grows); both operations cost the same for
one name as for twenty thousand.
"""

from __future__ import annotations


class Settle:
    """Names that were marked, each due `quiet_s` after its last mark and at most `longest_s` after its first.

    Both may be changed at any time, and count for names that are marked already.
    """

    def __init__(self, *, quiet_s: float, longest_s: float) -> None:
        self.quiet_s = quiet_s
        self.longest_s = longest_s
        # Both are ordered by their times: insertion order is time order, because the clock only grows.
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._first)

    def mark(self, name: str, now_s: float) -> None:
        """An event for `name` at `now_s`: it is due `quiet_s` later, unless another follows."""
        self._first.setdefault(name, now_s)
        # Assigning to an existing key keeps its place: take it out, so that it goes to the end.
        self._last.pop(name, None)
        self._last[name] = now_s

    def forget(self, name: str) -> None:
        """Take out `name`, marked or not: it needs no judgement any more."""
        self._first.pop(name, None)
        self._last.pop(name, None)

    def next_due_s(self) -> float | None:
        """The time at which the first name is due; None when no name is marked."""
        if not self._first:
            return None
        # The first of each: both dicts are in the order of their times.
        return min(next(iter(self._last.values())) + self.quiet_s, next(iter(self._first.values())) + self.longest_s)

    def due(self, now_s: float) -> list[str]:
        """Take out and return the names that are due at `now_s`."""
        found: list[str] = []
        while (moment := self.next_due_s()) is not None and moment <= now_s:
            quiet, quiet_since = next(iter(self._last.items()))
            oldest, _ = next(iter(self._first.items()))
            # Else it is the oldest that is due, for one of both is.
            name = quiet if quiet_since + self.quiet_s <= now_s else oldest
            self.forget(name)
            found.append(name)
        return found
