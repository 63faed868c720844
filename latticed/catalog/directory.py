"""One plugin directory, kept up to date: hints settle, scans correct them, the judge is asked, changes are posted."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
from typing import TYPE_CHECKING, Final

from latticed.catalog import reasons, scanner
from latticed.catalog import root as roots
from latticed.catalog.crew import Crew
from latticed.catalog.hints import Inbox
from latticed.catalog.mounts import MountTable
from latticed.catalog.settle import Settle
from latticed.catalog.timetable import Timetable
from latticed.catalog.watcher import Watcher
from latticed.model.errors import Problem
from latticed.model.verdict import Code, Refused, Verdict

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from latticed.catalog.crew import Outcome
    from latticed.catalog.scanner import Entry, Judge, Listing
    from latticed.settings import Watch

THREADS: Final = max(2, min(8, os.cpu_count() or 2))
"""Hashing and Ed25519 release the GIL, the rest does not: more threads than processors only get in each other's way."""
_SLICE_S: Final = 0.25
_BACKLOG_SLICE: Final = 4096
_GRACE_S: Final = 1.0
_SELF: Final = "."


class Directory:
    """The bundles of one directory as they are now. Run `start` once, then `run` until cancelled, then `stop`.

    `post` is called with (name, verdict; None for gone) of whatever was judged; it decides what is news.
    """

    def __init__(
        self,
        path: Path,
        *,
        judge: Judge,
        watch: Watch,
        max_bundles: int,
        post: Callable[[Iterable[tuple[str, Verdict | None]]], None],
        counters: Counter[str],
    ) -> None:
        self._path = path
        self._judge = judge
        self._watch = watch
        self._max_bundles = max_bundles
        self._post = post
        self._counters = counters
        self._now = judge.clock.monotonic_s
        deadline_s = judge.limits.deadline_s + _GRACE_S
        self._crew = Crew(threads=THREADS, deadline_s=deadline_s)
        self._errands = Crew(threads=1, deadline_s=deadline_s)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._inbox = Inbox(self._wake)
        self._watcher = Watcher(path, inbox=self._inbox)
        self._mounts = MountTable()
        self._settle = Settle(quiet_s=watch.quiet_s, longest_s=watch.longest_s)
        self._entries: dict[str, Entry] = {}
        self._surplus: set[str] = set()
        self._backlog: dict[str, bool] = {}  # name -> hash the artifact whatever its fingerprint says
        self._judging: frozenset[str] = frozenset()
        self._problem = ""
        self._uncounted = 0
        self._times = Timetable(rescan_s=watch.rescan_s, now_s=self._now())

    @property
    def entries(self) -> Mapping[str, Entry]:
        """What was judged last, by name."""
        return self._entries

    def problems(self) -> tuple[str, ...]:
        """What keeps this directory from being seen as it is, in words for a person."""
        found = [self._problem, self._watcher.failure and f"{self._watcher.failure}; looked at by timed scans instead"]
        surplus = len(self._surplus) + self._uncounted
        if surplus:
            found.append(f"expected at most {self._max_bundles} bundles, found {surplus} more, which are refused")
        if self._crew.abandoned:
            found.append(f"{self._crew.abandoned} reads of bundles do not return")
        return tuple(problem for problem in found if problem)

    def rescan(self, *, rehash: bool) -> None:
        """Judge everything again, soon: the policy may have changed.

        An artifact whose file has not changed is not hashed again, unless `rehash`.
        """
        for name in (*self._entries, *self._judging):
            self._backlog[name] = rehash or self._backlog.get(name, False)
        self._times.want_scan_now(self._now())
        self._news.set()

    async def start(self) -> None:
        """Begin to watch, and judge all there is."""
        self._loop = asyncio.get_running_loop()
        await self._errands.run([_SELF], lambda _: self._watcher.start())
        await self._scan()
        while self._backlog:
            await self._judge_some(self._from_backlog())

    async def run(self) -> None:
        """Follow what happens, until cancelled."""
        while True:
            await self._pause()
            self._read_hints()
            if self._times.tick_due_s() <= self._now():
                await self._check_watch()
            if self._times.scan_due_s(watched=not self._watcher.failure) <= self._now():
                await self._scan()
            await self._judge_some(self._settled())
            await self._judge_some(self._from_backlog())

    async def stop(self) -> None:
        """Stop watching; waits for watchdog's thread, off the loop."""
        self._mounts.close()
        await self._errands.run(["stop"], lambda _: self._watcher.close())

    def look(self, name: str) -> Verdict | None:
        """Judge one bundle afresh, for whoever asks, and remember nothing; None when there is none. Blocks."""
        try:
            root = roots.look_at(self._path)
        except Problem as problem:
            if problem.code == "directory_missing":
                return None
            return Refused(code=Code.UNREADABLE, reason=problem.detail, hint=problem.hint)
        try:
            entry = self._judge.judge(name, root, known=None)
        except OSError as error:
            entry = reasons.failed(error)
        finally:
            root.close()
        return entry.verdict if entry is not None else None

    def _wake(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody is interested any more
                self._loop.call_soon_threadsafe(self._news.set)

    async def _pause(self) -> None:
        """Until there is news or something is due."""
        due_s = [self._times.tick_due_s(), self._times.scan_due_s(watched=not self._watcher.failure)]
        settles_s = self._settle.next_due_s()
        if settles_s is not None:
            due_s.append(settles_s)
        wait_s = 0.0 if self._backlog else max(0.0, min(due_s) - self._now())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
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
            self._settle.mark(name, now_s)

    async def _check_watch(self) -> None:
        """Whether the path still means what is watched, the watcher lives, and nothing was mounted."""
        self._times.ticked(self._now())
        if not self._watcher.alive:
            self._counters["watcher_restarts"] += 1
            await self._errands.run([_SELF], lambda _: self._restart_watcher())
            self._times.want_scan()
        outcome = await self._errands.run([_SELF], lambda _: roots.identify(self._path))
        moved = outcome.done.get(_SELF) != self._watcher.watched_root
        if self._mounts.changed() or moved:
            self._times.want_scan()

    def _restart_watcher(self) -> None:
        self._watcher.stop()
        self._watcher.start()

    async def _scan(self) -> None:
        """List the directory and compare; what changed goes into the backlog, what is gone is posted."""
        self._times.scan_began()
        began_s = self._now()
        known = dict(self._entries)
        look = functools.partial(
            scanner.list_bundles, watcher=self._watcher, known=known, max_bundles=self._max_bundles
        )
        outcome = await self._errands.run([_SELF], lambda _: look(self._path))
        self._counters["scans"] += 1
        self._times.scan_ended(began_s=began_s, now_s=self._now())
        listing = outcome.done.get(_SELF)
        if listing is not None:
            self._accept(listing)
        else:
            self._cannot_list(outcome.failed.get(_SELF))

    def _accept(self, listing: Listing) -> None:
        self._problem = ""
        self._uncounted = listing.uncounted
        there = listing.names.union(listing.surplus)
        self._record({name: None for name in self._entries if name not in there})
        self._backlog = {name: rehash for name, rehash in self._backlog.items() if name in listing.names}
        for name in listing.changed:
            self._backlog.setdefault(name, False)
        self._record(dict.fromkeys(listing.surplus, reasons.surplus(self._max_bundles)))

    def _cannot_list(self, error: Exception | None) -> None:
        """A directory that is missing has no bundles; one that cannot be read has bundles that cannot be read."""
        self._problem = reasons.directory(self._path, error)
        self._backlog.clear()
        if isinstance(error, Problem) and error.code == "directory_missing":
            self._uncounted = 0
            self._record(dict.fromkeys(self._entries))
        else:
            self._record(dict.fromkeys(self._entries, reasons.in_unreadable_directory()))

    def _settled(self) -> dict[str, bool]:
        """The names that have been quiet long enough; one that there may be no room for is left to a scan."""
        due: dict[str, bool] = {}
        for name in self._settle.due(self._now()):
            entry = self._entries.get(name)
            room = entry is not None or len(self._entries) < self._max_bundles
            if room and not (entry is not None and entry.surplus):
                due[name] = True
                self._backlog.pop(name, None)
            else:
                self._times.want_scan()
        return due

    def _from_backlog(self) -> dict[str, bool]:
        names = list(itertools.islice(self._backlog, _BACKLOG_SLICE))
        return {name: self._backlog.pop(name) for name in names}

    async def _judge_some(self, jobs: dict[str, bool]) -> None:
        """Judge `jobs` (name -> hash again) for a while; what was not begun goes back to the backlog."""
        if not jobs:
            return
        self._judging = frozenset(jobs)
        known = {name: None if rehash else self._entries.get(name) for name, rehash in jobs.items()}
        work = functools.partial(self._judge_one, shared=roots.Shared(self._path), known=known)
        try:
            outcome = await self._crew.run(jobs, work, slice_s=_SLICE_S)
        finally:
            self._judging = frozenset()
        lost = [name for name, error in outcome.failed.items() if isinstance(error, Problem)]
        for name in (*outcome.left, *lost):
            self._backlog.setdefault(name, jobs[name])
        self._counters["judged"] += len(outcome.done)
        self._record(self._findings(outcome))
        if lost:  # the directory itself is the problem: a scan says which, and forgets what is not there
            await self._scan()

    def _judge_one(self, name: str, *, shared: roots.Shared, known: Mapping[str, Entry | None]) -> Entry | None:
        with shared as root:
            return self._judge.judge(name, root, known=known[name], watcher=self._watcher)

    def _findings(self, outcome: Outcome[str, Entry | None]) -> dict[str, Entry | None]:
        failed = {name: error for name, error in outcome.failed.items() if not isinstance(error, Problem)}
        found = dict(outcome.done)
        found.update({name: reasons.failed(error) for name, error in failed.items()})
        found.update(dict.fromkeys(outcome.stuck, reasons.no_answer(self._judge.limits.deadline_s)))
        return found

    def _record(self, found: Mapping[str, Entry | None]) -> None:
        """Make what was found the truth, and post it."""
        made_room = False
        for name, entry in found.items():
            if entry is not None:
                self._entries[name] = entry
            elif (old := self._entries.pop(name, None)) is not None and not old.surplus:
                made_room = True
            (self._surplus.add if entry is not None and entry.surplus else self._surplus.discard)(name)
        if made_room and self._surplus:
            self._times.want_scan()
        self._post((name, entry.verdict if entry is not None else None) for name, entry in found.items())
