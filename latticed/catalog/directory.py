"""One plugin directory, kept up to date: hints settle, scans correct them, the judge is asked, changes are posted."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from typing import TYPE_CHECKING, Final

from latticed.catalog import reasons, scanner
from latticed.catalog import root as roots
from latticed.catalog.abandoning_threads import AbandoningThreads
from latticed.catalog.hints import Inbox
from latticed.catalog.judge_queue import JudgeQueue, Look
from latticed.catalog.mounts import MountTable
from latticed.catalog.patrol import Patrol
from latticed.catalog.settle import Settle
from latticed.catalog.stat_check import Looker
from latticed.catalog.timetable import Timetable
from latticed.catalog.watcher import Watcher
from latticed.model.errors import Problem
from latticed.model.verdict import Code, Refused, Verdict, Verified

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from latticed.catalog.abandoning_threads import JobOutcome
    from latticed.catalog.scanner import DirectoryEntry, Judge, Listing
    from latticed.settings import WatchSettings

THREADS: Final = max(2, min(8, os.cpu_count() or 2))
"""Hashing and Ed25519 release the GIL, the rest does not: more threads than processors only get in each other's way."""
LISTED_PER_BUNDLE: Final = 8
"""So many names for each bundle that there may be are taken down from a listing; the rest is said in health."""
PATIENCE_S: Final = 5.0
"""How long a start waits while nothing is found out about bundles that no record names."""
ACTIVE_LONGEST_S: Final = 1.0
"""What is active and written to without end is judged after so long, whatever the settings say."""
_GRACE_S: Final = 1.0


class Directory:
    """The bundles of one directory as they are now. Run `start` once, then `run` until cancelled, then `stop`.

    `held` are the names that records name: they are looked at first, whatever else there is or hangs, by threads of
    their own. `post` is called with (name, verdict; None for gone) of whatever was judged; it decides what is news.
    """

    def __init__(
        self,
        path: Path,
        *,
        judge: Judge,
        watch: WatchSettings,
        max_bundles: int,
        held: set[str],
        post: Callable[[Iterable[tuple[str, Verdict | None]]], None],
        counters: Counter[str],
    ) -> None:
        self._path = path
        self._judge = judge
        self._max_bundles = max_bundles
        self._held = held
        self._post = post
        self._counters = counters
        self._now = judge.clock.monotonic_s
        deadline_s = judge.limits.deadline_s + _GRACE_S
        self._errands = AbandoningThreads(threads=1, deadline_s=deadline_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._inbox = Inbox(self._wake)
        self._watcher = Watcher(path, inbox=self._inbox)
        self._looker = Looker(path, judge=judge, watcher=self._watcher, held=held, max_bundles=max_bundles)
        self._first, self._rest = (
            JudgeQueue(
                AbandoningThreads(threads=THREADS, deadline_s=deadline_s),
                prepare=lambda jobs: self._looker.batch(jobs, self._entries),
                tell=self._tell,
            )
            for _ in range(2)
        )
        self._mounts = MountTable()
        self._settle = Settle(quiet_s=watch.quiet_s, longest_s=watch.max_wait_s)
        self._settle_active = Settle(quiet_s=watch.quiet_s, longest_s=min(watch.max_wait_s, ACTIVE_LONGEST_S))
        self._entries: dict[str, DirectoryEntry] = {}
        self.patrol = Patrol(path, watcher=self._watcher, entries=self._entries, note=self._inbox.note)
        self._surplus: set[str] = set()
        self._uncounted: set[str] = set()
        self._unlisted = 0
        self._problem = ""
        self._times = Timetable(rescan_s=watch.rescan_s, now_s=self._now())
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def entries(self) -> Mapping[str, DirectoryEntry]:
        """What was judged last, by name."""
        return self._entries

    def problems(self) -> tuple[str, ...]:
        """What keeps this directory from being seen as it is, in words for a person."""
        found = [self._problem, self._watcher.failure and f"{self._watcher.failure}; looked at by timed scans instead"]
        surplus = len(self._surplus) + len(self._uncounted) + self._unlisted
        if surplus:
            found.append(f"expected at most {self._max_bundles} bundles, found {surplus} more, which are refused")
        abandoned = self._first.crew.abandoned + self._rest.crew.abandoned
        if abandoned:
            found.append(f"{abandoned} reads of bundles do not return")
        return tuple(problem for problem in found if problem)

    def rescan(self, *, rehash: bool) -> None:
        """Judge everything again, soon: the policy may have changed.

        An artifact whose file has not changed is not hashed again, unless `rehash`.
        """
        names = {*self._entries, *self._first.judging, *self._rest.judging}
        self._look(names, Look.HASH if rehash else Look.JUDGE)
        self._times.want_scan_now(self._now())
        self._news.set()

    async def start(self) -> None:
        """Begin to watch, and judge all there is; what hangs and is not held is not waited for."""
        self._loop = asyncio.get_running_loop()
        await self._errands.run(["watcher"], lambda _: self._watcher.start())
        await self._scan()
        self._tasks = [asyncio.create_task(lane.run(), name="catalog lane") for lane in (self._first, self._rest)]
        for task in self._tasks:
            task.add_done_callback(lambda _: self._news.set())
        await self._first.idle()
        await self._rest.idle(PATIENCE_S)

    async def run(self) -> None:
        """Follow what happens, until cancelled."""
        while True:
            await self._pause()
            for task in self._tasks:
                if task.done():
                    task.result()
            self._read_hints()
            if self._times.tick_due_s() <= self._now():
                await self._check_watch()
            if self._times.scan_due_s(watched=self._watched()) <= self._now():
                await self._scan()
            now_s = self._now()
            self._look([*self._settle_active.due(now_s), *self._settle.due(now_s)], Look.HASH, urgent=True)

    async def stop(self) -> None:
        """Stop watching; waits for watchdog's thread, off the loop."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._mounts.close()
        await self._errands.run(["stop"], lambda _: self._watcher.close())

    def look(self, name: str) -> Verdict | None:
        """Judge one bundle afresh, for whoever asks, and remember nothing; None when there is none. Blocks."""
        try:
            root = roots.look_at(self._path)
        except Problem as problem:
            if problem.code == "directory_missing":
                return None
            return Refused(Code.UNREADABLE, problem.reason, problem.hint)
        try:
            return self._judge.judge(name, root).verdict if scanner.look_at(name, root) is not None else None
        except OSError as error:
            return reasons.failed(error).verdict
        finally:
            root.close()

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody is interested any more
                self._loop.call_soon_threadsafe(self._news.set)

    def _watched(self) -> bool:
        """Whether events tell of every change to what verifies."""
        mounted = (self._entries.get(name) for name in self._watcher.mounted)
        return not self._watcher.failure and not any(e is not None and isinstance(e.verdict, Verified) for e in mounted)

    async def _pause(self) -> None:
        """Until there is news or something is due."""
        due_s = [self._times.tick_due_s(), self._times.scan_due_s(watched=self._watched())]
        settles_s = (self._settle.next_due_s(), self._settle_active.next_due_s())
        due_s.extend(moment for moment in settles_s if moment is not None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(due_s) - self._now())):
                await self._news.wait()
        self._news.clear()

    def _read_hints(self) -> None:
        hints = self._inbox.take()
        self._counters["events"] += hints.events
        self._counters["overflows"] += hints.overflows
        if hints.scan:
            self._times.want_scan()
        now_s = self._now()
        for name in hints.names:
            (self._settle_active if name in self._watcher.active else self._settle).mark(name, now_s)

    async def _check_watch(self) -> None:
        """Whether the path still means what is watched, the watcher lives, and nothing was mounted."""
        self._times.ticked(self._now())
        if not self._watcher.alive:
            self._counters["watcher_restarts"] += 1
            await self._errands.run(["watcher"], lambda _: self._restart_watcher())
            self._times.want_scan()
        outcome = await self._errands.run(["root"], lambda _: roots.identify(self._path))
        moved = outcome.done.get("root") != self._watcher.watched_root
        if self._mounts.changed() or moved:
            self._times.want_scan()

    def _restart_watcher(self) -> None:
        self._watcher.stop()
        self._watcher.start()

    async def _scan(self) -> None:
        """List the directory; what is gone is posted, everything else is looked at."""
        self._times.scan_began()
        began_s = self._now()
        work = functools.partial(scanner.list_names, watcher=self._watcher, most=LISTED_PER_BUNDLE * self._max_bundles)
        outcome = await self._errands.run(["list"], lambda _: work(self._path))
        self._counters["scans"] += 1
        self._times.scan_ended(began_s=began_s, now_s=self._now())
        listing = outcome.done.get("list")
        if listing is not None:
            self._accept(listing)
        else:
            self._cannot_list(outcome.failed.get("list"))

    def _accept(self, listing: Listing) -> None:
        self._problem = ""
        names = listing.names if not listing.unlisted else listing.names.union(self._entries, self._held)
        self._unlisted = max(0, listing.unlisted - len(names.difference(listing.names)))
        self._watcher.retain(names)
        self._first.retain(names)
        self._rest.retain(names)
        self._uncounted &= names
        self._record({name: None for name in self._entries if name not in names})
        known = [name for name, entry in self._entries.items() if not entry.surplus]
        self._look(known, Look.COMPARE)
        self._look(sorted(names.difference(known)), Look.COMPARE)

    def _cannot_list(self, error: Exception | None) -> None:
        """One that is missing has no bundles; in one that cannot be listed, those known by name are looked at."""
        self._problem = reasons.directory(self._path, error)
        if isinstance(error, Problem) and error.code == "directory_missing":
            self._unlisted = 0
            self._uncounted.clear()
            self._record(dict.fromkeys(self._entries))
        else:
            self._look({*self._entries, *self._held}, Look.COMPARE)

    def _look(self, names: Iterable[str], how: Look, *, urgent: bool = False) -> None:
        """Have these names looked at; those that records name in a lane of their own."""
        names = list(names)
        self._first.put((name for name in names if name in self._held), how, urgent=urgent)
        self._rest.put((name for name in names if name not in self._held), how, urgent=urgent)

    def _tell(self, outcome: JobOutcome[str, DirectoryEntry | None]) -> None:
        """Take down what a lane has found. A problem of the directory itself is one of this bundle too."""
        found: dict[str, DirectoryEntry | None] = {}
        for name, entry in outcome.done.items():
            if entry is None or entry is not self._entries.get(name):
                found[name] = entry
                self._counters["judged"] += entry is not None and not entry.surplus
        for name, error in outcome.failed.items():
            if not isinstance(error, Problem):
                found[name] = reasons.failed(error)
                continue
            found[name] = None if error.code == "directory_missing" else reasons.in_unreadable_directory()
            self._problem = reasons.directory(self._path, error)
            self._times.want_scan()
        found.update(dict.fromkeys(outcome.stuck, reasons.no_answer(self._judge.limits.deadline_s)))
        found.update(dict.fromkeys(self._looker.evicted(), reasons.surplus(self._max_bundles)))
        self._record(found)

    def _record(self, found: Mapping[str, DirectoryEntry | None]) -> None:
        """Make what was found the truth, and post it. Of bundles that are too many, as many as may be are named."""
        posted: list[tuple[str, Verdict | None]] = []
        made_room = False
        for name, entry in found.items():
            known = self._entries.get(name)
            if entry is not None and entry.surplus and known is None and len(self._surplus) >= self._max_bundles:
                self._uncounted.add(name)
                continue
            self._uncounted.discard(name)
            if entry is not None:
                self._entries[name] = entry
            else:
                made_room |= self._entries.pop(name, None) is not None and not (known and known.surplus)
                self._looker.give_back(name)
            (self._surplus.add if entry is not None and entry.surplus else self._surplus.discard)(name)
            posted.append((name, entry.verdict if entry is not None else None))
        if made_room and self._surplus:
            self._times.want_scan()
            self._news.set()
        self._post(posted)
