"""One look at one name in a plugin directory: whether it has a place, whether it changed, what the judge says of it.

Everything here blocks on the file system and runs on the crews' threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.catalog import reasons, scanner
from latticed.catalog import root as roots
from latticed.catalog.judge_queue import Look
from latticed.catalog.places import Places

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

    from latticed.catalog.scanner import Candidate, DirectoryEntry, Judge
    from latticed.catalog.watcher import Watcher


class Looker:
    """Shared by the lanes of one directory. `held` are the names that need no place."""

    def __init__(self, path: Path, *, judge: Judge, watcher: Watcher, held: Collection[str], max_bundles: int) -> None:
        self._path = path
        self._judge = judge
        self._watcher = watcher
        self._held = held
        self._max_bundles = max_bundles
        self._places = Places(max_bundles)
        self._bare_places = Places(max_bundles)

    def batch(
        self, jobs: Mapping[str, Look], entries: Mapping[str, DirectoryEntry]
    ) -> Callable[[str], DirectoryEntry | None]:
        """The look at one of `jobs`, whose plugin directory is opened once for all of them."""
        known = {name: entries.get(name) if how < Look.HASH else None for name, how in jobs.items()}
        held = frozenset(name for name in jobs if name in self._held)
        shared = roots.Shared(self._path)
        self._places.most = max(0, self._max_bundles - len(self._held))

        def look(name: str) -> DirectoryEntry | None:
            with shared as root:
                candidate = scanner.look_at(name, root)
                if candidate is None:
                    return None
                if name in held:
                    self.give_back(name)
                elif not self._has_place(name, candidate):
                    return reasons.surplus(self._max_bundles)
                self._watcher.arm(name, root, candidate.inode)
                before = known[name]
                compare = jobs[name] is Look.COMPARE and before is not None and not before.surplus
                return self._judge.judge(name, root, known=before, compare=compare)

        return look

    def give_back(self, name: str) -> None:
        """`name` needs no place any more."""
        self._places.give_back(name)
        self._bare_places.give_back(name)

    def evicted(self) -> list[str]:
        """The names that have lost their places since this was last asked."""
        return [*self._places.evicted(), *self._bare_places.evicted()]

    def _has_place(self, name: str, candidate: Candidate) -> bool:
        """Bundles count, and so many directories without a manifest are shown: neither pushes the other out."""
        mine, other = self._places, self._bare_places
        if not candidate.has_manifest:
            mine, other = other, mine
        other.give_back(name)
        return mine.take(name, candidate.owner)
