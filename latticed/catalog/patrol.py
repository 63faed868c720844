"""The bundles of what is active, looked at every second: what inotify does not tell of them is seen all the same.

A write through a hard link elsewhere or through a mapping, another machine's write on a network file system: nobody is
told of those. Three calls of stat(2) a bundle tell, off the loop, a few hundred bundles to a job.
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

LOOK_S: Final = 1.0
STUCK_S: Final = 0.5
"""A job that takes longer is left behind; its names are looked at one by one from then on."""
TOGETHER: Final = 256
_THREADS: Final = 2

Job = tuple[str, ...]


class Patrol:
    """Looks at the names in `watcher.active`; `note(name)` is called for each that is not as it was judged last."""

    def __init__(
        self, path: Path, *, watcher: Watcher, entries: Mapping[str, DirectoryEntry], note: Callable[[str], None]
    ) -> None:
        self._path = path
        self._watcher = watcher
        self._entries = entries
        self._note = note
        self._crew = AbandoningThreads(threads=_THREADS, deadline_s=STUCK_S)
        self._close: set[str] = set()  # watched for every write
        self._alone: set[str] = set()  # a stat of them, or of one beside them, did not return
        self._noted: dict[str, Fingerprint] = {}

    def attend(self, name: str, *, active: bool) -> None:
        """Look at this bundle from now on, or no more."""
        if active:
            self._watcher.active.add(name)
        else:
            for names in (self._watcher.active, self._close, self._alone):
                names.discard(name)
            self._noted.pop(name, None)

    async def run(self) -> None:
        """Look every second, until cancelled."""
        while True:
            began_s = time.monotonic()
            if self._watcher.active:
                await self.look()
            await asyncio.sleep(max(0.0, LOOK_S - (time.monotonic() - began_s)))

    async def look(self) -> None:
        """Look at all of them once. What does not answer holds up the others for STUCK_S, and that once."""
        outcome = await self._crew.run(self._jobs(), self._changed)
        self._alone.update(self._watcher.active.intersection(itertools.chain.from_iterable(outcome.stuck)))
        for name in itertools.chain.from_iterable(outcome.done.values()):
            self._note(name)

    def _jobs(self) -> Iterator[Job]:
        together = sorted(self._watcher.active - self._alone)
        for first in range(0, len(together), TOGETHER):
            yield tuple(together[first : first + TOGETHER])
        yield from ((name,) for name in sorted(self._alone))

    # On a thread of the crew.

    def _changed(self, job: Job) -> list[str]:
        try:
            root = roots.look_at(self._path)
        except Problem:  # a scan says what that means
            return []
        try:
            return [name for name in job if self._has_changed(name, root)]
        finally:
            root.close()

    def _has_changed(self, name: str, root: roots.Root) -> bool:
        if name not in self._close:
            self._watcher.arm(name, root)  # first, so that nothing happens between the look and the watch
            self._close.add(name)
        now, entry = scanner.fingerprint(name, root), self._entries.get(name)
        if entry is None or entry.surplus:
            return False
        if entry.fingerprint is not None:
            return entry.fingerprint != now
        # Judged too soon after a change for the times to tell another one, or while it changed: once more.
        again = self._noted.get(name) != now
        self._noted[name] = now
        return again
