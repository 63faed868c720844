"""Checks one name in a plugin directory: whether it gets a slot, whether it changed, and what the judge says of it.

Everything here blocks on the file system and runs on worker threads.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from latticed.catalog import refusals as reasons
from latticed.catalog import root as roots
from latticed.catalog import scanner
from latticed.catalog.judge_queue import JudgeMode
from latticed.catalog.slots import BundleSlots

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

    from latticed.catalog.ahead import Ahead
    from latticed.catalog.scanner import Candidate, DirectoryEntry, Judge
    from latticed.catalog.watcher import Watcher


class BundleChecker:
    """Checks single names of one directory; its queues share it.

    `recorded` are the names that need no slot, because a record names them; read on the event loop only.
    """

    def __init__(
        self,
        path: Path,
        *,
        judge: Judge,
        watcher: Watcher,
        recorded: Collection[str],
        max_bundles: int,
        ahead: Ahead,
    ) -> None:
        self._path = path
        self._judge = judge
        self._watcher = watcher
        self._recorded = recorded
        self._max_bundles = max_bundles
        self._ahead = ahead
        self._slots = BundleSlots(max_bundles)
        self._bare_slots = BundleSlots(max_bundles)

    @contextlib.contextmanager
    def batch(
        self, jobs: Mapping[str, JudgeMode], entries: Mapping[str, DirectoryEntry]
    ) -> Iterator[Callable[[str], DirectoryEntry | None]]:
        """The function that checks one of `jobs`, to be called on worker threads; None from it: no such bundle.

        `entries`: what was judged last, to compare with. The plugin directory is opened once for all of them. Problem
        when it cannot be.
        """
        # Taken on the event loop: worker threads must not read what the loop changes. Without an entry all is hashed.
        known = {name: entries.get(name) if mode < JudgeMode.HASH else None for name, mode in jobs.items()}
        # A copy, for the same reason.
        recorded = frozenset(name for name in jobs if name in self._recorded)
        shared = roots.Shared(self._path)
        # Bundles that records name count towards the limit, though they take no slot.
        self._slots.most = max(0, self._max_bundles - len(self._recorded))

        def check(name: str) -> DirectoryEntry | None:
            with shared as root:
                candidate = scanner.candidate(name, root)
                if candidate is None:
                    return None
                if name in recorded:
                    self.release(name)
                elif not self._has_slot(name, candidate):
                    return reasons.surplus(self._max_bundles)
                # Watch before reading: a change after the reading causes an event, one before it is read.
                self._watcher.arm(name, root, candidate.inode)
                before = known[name]
                if before is None and jobs[name] is JudgeMode.COMPARE:
                    return self._judge.judge(name, root, known=self._ahead.known(name))
                # The entry of a surplus bundle says nothing of its files: it was never read.
                compare = jobs[name] is JudgeMode.COMPARE and before is not None and not before.surplus
                return self._judge.judge(name, root, known=before, compare=compare)

        with contextlib.closing(shared):
            yield check

    def release(self, name: str) -> None:
        """Free the slot of `name`, if it has one: the bundle is gone, or a record names it now."""
        self._slots.release(name)
        self._bare_slots.release(name)

    def evicted(self) -> list[str]:
        """The names that have lost their slots to other owners since the last call."""
        return [*self._slots.evicted(), *self._bare_slots.evicted()]

    def _has_slot(self, name: str, candidate: Candidate) -> bool:
        """Take a slot for this name; False when there is none. Directories without a manifest have slots of their own,
        so that they take none from bundles.
        """
        mine, other = self._slots, self._bare_slots
        if not candidate.has_manifest:
            mine, other = other, mine
        other.release(name)
        return mine.take(name, candidate.owner)
