"""Which bundles are judged when a directory has more than the settings allow: slots, shared fairly by owner (uid).

Bundles that records name need no slot. When all slots are taken, an owner with fewer slots than the one with the most
takes one from that owner, who loses the latest. Within one owner, first come, first served.
"""

from __future__ import annotations

import threading


class BundleSlots:
    """`most` slots for names, each of an owner (uid). Used from several threads.

    `most` may be changed at any time; a lower one takes effect as names are released.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._owners: dict[str, int] = {}
        # A dict for its order: within one owner the latest name is evicted first.
        self._names: dict[int, dict[str, None]] = {}
        self._evicted: list[str] = []

    def __len__(self) -> int:
        return len(self._owners)

    def take(self, name: str, owner: int) -> bool:
        """Take a slot for `name`, or keep the one it has; False when there is none for this owner."""
        with self._lock:
            if name in self._owners:
                if self._owners[name] == owner:
                    return True
                self._drop(name)
            if len(self._owners) >= self.most and not self._evict_one(owner):
                return False
            self._owners[name] = owner
            self._names.setdefault(owner, {})[name] = None
            return True

    def release(self, name: str) -> None:
        """Free the slot of `name`, if it has one."""
        with self._lock:
            self._drop(name)

    def evicted(self) -> list[str]:
        """The names that have lost their slots to other owners since the last call."""
        with self._lock:
            found, self._evicted = self._evicted, []
            return found

    def _evict_one(self, owner: int) -> bool:
        """Take a slot for `owner` from the owner with the most; False when that would not be fair."""
        if not self._names:
            return False
        richest = max(self._names, key=lambda one: len(self._names[one]))
        # A difference of one is fair: without the + 1 two owners would take the same slot from each other for ever.
        if len(self._names[richest]) <= len(self._names.get(owner, ())) + 1:
            return False
        # The latest: a dict keeps the order of insertion.
        name = next(reversed(self._names[richest]))
        self._drop(name)
        self._evicted.append(name)
        return True

    def _drop(self, name: str) -> None:
        """Take a name out, if it is in; the lock is held."""
        owner = self._owners.pop(name, None)
        if owner is None:
            return
        del self._names[owner][name]
        if not self._names[owner]:
            del self._names[owner]
