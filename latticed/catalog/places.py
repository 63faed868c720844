"""Who may have a bundle in a directory when there are more than the settings allow: shared by owner (uid).

Bundles that records name never need a place. Of what is left each owner may have as much as any other: one that has
less than the one with the most takes a place from that one. Within an owner those who came first stay.
"""

from __future__ import annotations

import threading


class Places:
    """`most` places for names, each of an owner. Used from several threads."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._owners: dict[str, int] = {}
        self._names: dict[int, dict[str, None]] = {}
        self._evicted: list[str] = []

    def __len__(self) -> int:
        return len(self._owners)

    def take(self, name: str, owner: int) -> bool:
        """Have a place for `name`, or keep it; False when there is none for this owner."""
        with self._lock:
            if name in self._owners:
                if self._owners[name] == owner:
                    return True
                self._drop(name)
            if len(self._owners) >= self.most and not self._make_room(owner):
                return False
            self._owners[name] = owner
            self._names.setdefault(owner, {})[name] = None
            return True

    def give_back(self, name: str) -> None:
        """`name` needs no place any more."""
        with self._lock:
            self._drop(name)

    def evicted(self) -> list[str]:
        """The names that have lost their places since this was last asked."""
        with self._lock:
            found, self._evicted = self._evicted, []
            return found

    def _make_room(self, owner: int) -> bool:
        if not self._names:
            return False
        richest = max(self._names, key=lambda one: len(self._names[one]))
        if len(self._names[richest]) <= len(self._names.get(owner, ())) + 1:
            return False
        name = next(reversed(self._names[richest]))
        self._drop(name)
        self._evicted.append(name)
        return True

    def _drop(self, name: str) -> None:
        owner = self._owners.pop(name, None)
        if owner is None:
            return
        del self._names[owner][name]
        if not self._names[owner]:
            del self._names[owner]
