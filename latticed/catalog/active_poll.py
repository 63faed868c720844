"""Polls the bundles of active plugins every second, for changes that inotify does not report.

inotify is silent about a write through a hard link elsewhere or through a mapping, and about another machine's write on
a network file system. Two calls of stat(2) for each bundle find those, off the event loop.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import TYPE_CHECKING, Final

from latticed.catalog import root as roots
from latticed.catalog import scanner
from latticed.catalog.abandoning_threads import AbandoningThreads
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from latticed.catalog.scanner import DirectoryEntry, Fingerprint
    from latticed.catalog.watcher import Watcher

POLL_S: Final = 1.0
"""Seconds from the beginning of one poll of all bundles to that of the next."""
STUCK_S: Final = 0.5
"""A job that takes longer, in seconds, is abandoned; its names get a job each from then on."""
# Bundles in one job: opening the plugin directory and handing over a job are paid for once for all of them. Few enough
# for a job to be quick (`AbandoningThreads`): a second thread only makes it slower.
TOGETHER: Final = 64
_THREADS: Final = 2

Job = tuple[str, ...]


class ActivePoll:
    """Compares the bundles of active plugins with their last verdicts; calls `note(name)` for each that differs.

    `entries` are those of the directory, read only; `watcher.active` has the names.
    """

    def __init__(
        self, path: Path, *, watcher: Watcher, entries: Mapping[str, DirectoryEntry], note: Callable[[str], None]
    ) -> None:
        self._path = path
        self._watcher = watcher
        self._entries = entries
        self._note = note
        self._pool = AbandoningThreads(threads=_THREADS, deadline_s=STUCK_S)
        self._every_write: set[str] = set()  # inotify reports each write to these, not only the last
        self._alone: set[str] = set()  # a stat of them, or of one beside them, did not return
        self._noted: dict[str, Fingerprint] = {}

    def set_active(self, name: str, *, active: bool) -> None:
        """Begin or stop to poll this bundle.

        While it is polled, inotify reports each write to it, too, from the next `Watcher.arm` on.
        """
        if active:
            self._watcher.active.add(name)
        else:
            for names in (self._watcher.active, self._every_write, self._alone):
                names.discard(name)
            self._noted.pop(name, None)

    async def run(self) -> None:
        """Poll the bundles of all active plugins every POLL_S seconds, until cancelled."""
        while True:
            began_s = time.monotonic()
            if self._watcher.active:
                await self.check_all()
            took_s = time.monotonic() - began_s
            # Where thousands are started, a poll takes longer than its second, and would hold them up without a pause.
            await asyncio.sleep(max(POLL_S - took_s, min(took_s, POLL_S)))

    async def check_all(self) -> None:
        """Compare all of them once. A bundle whose file system does not answer delays the others once, by STUCK_S."""
        outcome = await self._pool.run(self._jobs(), self._changed)
        # By what is in `active` now: a name may have been taken out while its job was stuck.
        self._alone.update(self._watcher.active.intersection(itertools.chain.from_iterable(outcome.stuck)))
        for name in itertools.chain.from_iterable(outcome.done.values()):
            self._note(name)

    def _jobs(self) -> Iterator[Job]:
        """Batches of names that answered so far, and a batch for each that did not."""
        together = sorted(self._watcher.active - self._alone)
        for first in range(0, len(together), TOGETHER):
            yield tuple(together[first : first + TOGETHER])
        yield from ((name,) for name in sorted(self._alone))

    # On a worker thread.

    def _changed(self, job: Job) -> list[str]:
        """Those names of `job` whose files differ from their last verdict. Blocks as long as the disk does."""
        try:
            root = roots.open_root(self._path)
        except Problem:  # a scan says what that means
            return []
        try:
            return [name for name in job if self._has_changed(name, root)]
        finally:
            root.close()

    def _has_changed(self, name: str, root: roots.Root) -> bool:
        """Whether the files of `name` are others than its entry was made from; also arms its watch."""
        if name not in self._every_write:
            self._watcher.arm(name, root)  # first, so that no change falls between the comparison and the watch
            self._every_write.add(name)
        entry = self._entries.get(name)
        # Not judged yet, or never read: there is nothing to compare with.
        if entry is None or entry.surplus:
            return False
        if entry.fingerprint is not None:
            return scanner.has_changed(name, root, entry.fingerprint)
        # Judged too soon after a change for the times to tell another one, or while it changed: once more.
        now = scanner.fingerprint(name, root)
        again = self._noted.get(name) != now
        self._noted[name] = now
        return again
