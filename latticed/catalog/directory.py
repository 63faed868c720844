"""One plugin directory, kept up to date: dirty names settle and are judged, scans find what events missed."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from typing import TYPE_CHECKING, Final

from latticed.catalog import refusals as reasons
from latticed.catalog import root as roots
from latticed.catalog import scanner
from latticed.catalog.abandoning_threads import AbandoningThreads
from latticed.catalog.active_poll import ActivePoll
from latticed.catalog.ahead import Ahead
from latticed.catalog.dirty_names import DirtyNames
from latticed.catalog.judge_queue import JudgeMode, JudgeQueue
from latticed.catalog.mounts import MountTable
from latticed.catalog.scan_schedule import ScanSchedule
from latticed.catalog.settle import Settle
from latticed.catalog.stat_check import BundleChecker
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
"""A listing is read up to so many names for each bundle that there may be; health says how many more there are."""
START_WAIT_S: Final = 5.0
"""How long a start waits while nothing is found out about bundles that no record names; of a directory that does not
answer, or of too many bundles that do not, about the others too."""
STOP_WAIT_S: Final = 5.0
"""How long a stop waits for watchdog's thread, which may be in a call that hangs."""
ACTIVE_LONGEST_S: Final = 1.0
"""What is active and written to without end is judged after so long, whatever the settings say."""
# Beyond the deadline that bundle.read keeps itself, so that a read that is only slow gets its own, exact refusal.
_GRACE_S: Final = 1.0


class Directory:
    """The bundles of one directory as they are now. Run `start` once, then `run` until cancelled, then `stop`.

    `recorded` are the bundles that records name: they are judged first, in a queue with threads of its own, so that no
    other bundle delays them. `post` is called with (name, verdict) of whatever was judged, None for a bundle that is
    gone; it has to drop what is no change.
    """

    def __init__(
        self,
        path: Path,
        *,
        judge: Judge,
        watch: WatchSettings,
        max_bundles: int,
        recorded: set[str],
        post: Callable[[Iterable[tuple[str, Verdict | None]]], None],
        counters: Counter[str],
    ) -> None:
        self._path = path
        self._judge = judge
        self._max_bundles = max_bundles
        self._recorded = recorded
        self._post = post
        self._counters = counters
        self._now = judge.clock.monotonic_s
        self._deadline_s = judge.limits.deadline_s + _GRACE_S
        # Each batch here is a single job.
        self._blocking = AbandoningThreads(threads=1, deadline_s=self._deadline_s)
        self._stopping = AbandoningThreads(threads=1, deadline_s=STOP_WAIT_S)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._dirty = DirtyNames(self._wake)
        self._watcher = Watcher(path, dirty=self._dirty)
        self._ahead = Ahead(path, judge)
        self._checker = BundleChecker(
            path,
            judge=judge,
            watcher=self._watcher,
            recorded=recorded,
            max_bundles=max_bundles,
            ahead=self._ahead,
        )
        # Threads of its own for each: reads that hang in one queue take no thread from the other.
        self._recorded_queue, self._other_queue = (
            JudgeQueue(
                AbandoningThreads(threads=THREADS, deadline_s=self._deadline_s),
                prepare=lambda jobs: self._checker.batch(jobs, self._entries),
                report=self._take_outcome,
            )
            for _ in range(2)
        )
        self._mounts = MountTable()
        self._settle = Settle(quiet_s=watch.quiet_s, longest_s=watch.max_wait_s)
        self._settle_active = Settle(quiet_s=watch.quiet_s, longest_s=min(watch.max_wait_s, ACTIVE_LONGEST_S))
        self._entries: dict[str, DirectoryEntry] = {}
        self.active_poll = ActivePoll(path, watcher=self._watcher, entries=self._entries, note=self._dirty.note)
        self._surplus: set[str] = set()
        """Names without a slot that are in the entries, as refused."""
        self._uncounted: set[str] = set()
        """Names without a slot that are not even in the entries, which would grow without bound."""
        self._unlisted = 0
        """How many names a listing left out, beyond its limit."""
        self._problem = ""
        """Why the directory itself cannot be listed; empty when it can."""
        self._schedule = ScanSchedule(rescan_s=watch.rescan_s, now_s=self._now())
        self._tasks: list[asyncio.Task[None]] = []

    def apply(self, watch: WatchSettings) -> None:
        """Go by these settings from the next look on, which comes within TICK_S."""
        self._settle.quiet_s, self._settle.longest_s = watch.quiet_s, watch.max_wait_s
        self._settle_active.quiet_s = watch.quiet_s
        self._settle_active.longest_s = min(watch.max_wait_s, ACTIVE_LONGEST_S)
        self._schedule.rescan_s = watch.rescan_s

    @property
    def entries(self) -> Mapping[str, DirectoryEntry]:
        """What was judged last, by the bundle's directory name: a live view."""
        return self._entries

    def problems(self) -> tuple[str, ...]:
        """Sentences for health: what keeps this directory from being seen as it is."""
        found = [self._problem, self._watcher.failure and f"{self._watcher.failure}; looked at by timed scans instead"]
        surplus = len(self._surplus) + len(self._uncounted) + self._unlisted
        if surplus:
            found.append(f"expected at most {self._max_bundles} bundles, found {surplus} more, which are refused")
        abandoned = self._recorded_queue.pool.abandoned + self._other_queue.pool.abandoned
        if abandoned:
            found.append(f"{abandoned} reads of bundles do not return")
        return tuple(problem for problem in found if problem)

    def rescan(self, *, rehash: bool) -> None:
        """Judge everything again, soon: the policy may have changed.

        An artifact whose file has not changed is not hashed again, unless `rehash`.
        """
        # Those that are being judged too: their verdict may still be by the previous policy, and be no entry yet.
        names = {*self._entries, *self._recorded_queue.judging, *self._other_queue.judging}
        self._enqueue(names, JudgeMode.HASH if rehash else JudgeMode.JUDGE)
        self._schedule.want_scan_now(self._now())
        # `run` sleeps until a time that it computed before this request.
        self._news.set()

    async def start(self) -> None:
        """Begin to watch, and judge all there is; a bundle that hangs is waited for only if a record names it, and its
        directory answers.
        """
        self._loop = asyncio.get_running_loop()
        await self._blocking.run(["watcher"], lambda _: self._watcher.start())
        # Before the queues run, so that `idle` below cannot find them empty because nothing was listed yet.
        answered = await self._scan()
        self._ahead.start(sorted({*self._recorded_queue.waiting, *self._other_queue.waiting}))
        self._tasks = [
            asyncio.create_task(queue.run(), name="catalog queue")
            for queue in (self._recorded_queue, self._other_queue)
        ]
        for task in self._tasks:
            # Until `stop`, a queue's task ends only by failing: wake `run`, which raises that.
            task.add_done_callback(lambda _: self._news.set())
        await self._recorded_queue.idle(START_WAIT_S + (self._deadline_s if answered else 0))
        # What was not waited for is not gone.
        missed = {*self._recorded_queue.waiting, *self._recorded_queue.judging}.difference(self._entries)
        self._record(dict.fromkeys(missed, reasons.no_answer(self._judge.limits.deadline_s)))
        await self._other_queue.idle(START_WAIT_S)
        self._ahead.stop()

    async def run(self) -> None:
        """Follow events, timers and mounts, until cancelled; raises what ended one of its queues."""
        while True:
            await self._pause()
            for task in self._tasks:
                if task.done():
                    # Raises what ended it; the catalog raises that in its stream of changes.
                    task.result()
            self._take_dirty()
            if self._schedule.tick_due_s() <= self._now():
                await self._check_watch()
            if self._schedule.scan_due_s(watched=self._watched()) <= self._now():
                await self._scan()
            # After the scan, which takes time: what has settled meanwhile is judged now.
            now_s = self._now()
            self._enqueue([*self._settle_active.due(now_s), *self._settle.due(now_s)], JudgeMode.HASH, urgent=True)

    async def stop(self) -> None:
        """Stop watching and wait for watchdog's thread, off the event loop. Call it after `run` was cancelled."""
        self._ahead.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._mounts.close()
        # On a thread: closing joins watchdog's thread, which may be inside a call to a slow file system.
        await self._stopping.run(["stop"], lambda _: self._watcher.close())

    def judge_once(self, name: str) -> Verdict | None:
        """The verdict on one bundle, read and hashed now, without remembering it; None when there is none. Blocks."""
        try:
            root = roots.open_root(self._path)
        except Problem as problem:
            if problem.code == "directory_missing":
                return None
            return Refused(Code.UNREADABLE, problem.reason, problem.hint)
        try:
            return self._judge.judge(name, root).verdict if scanner.candidate(name, root) is not None else None
        except OSError as error:
            return reasons.failed(error).verdict
        finally:
            root.close()

    def _wake(self) -> None:
        """Wake `run`, from any thread."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is to be woken
                self._loop.call_soon_threadsafe(self._news.set)

    def _watched(self) -> bool:
        """Whether every change to a bundle that verifies causes an event."""
        mounted = (self._entries.get(name) for name in self._watcher.mounted)
        return not self._watcher.failure and not any(e is not None and isinstance(e.verdict, Verified) for e in mounted)

    async def _pause(self) -> None:
        """Return when something may have changed, or a check, scan or judgement is due."""
        due_s = [self._schedule.tick_due_s(), self._schedule.scan_due_s(watched=self._watched())]
        settles_s = (self._settle.next_due_s(), self._settle_active.next_due_s())
        due_s.extend(moment for moment in settles_s if moment is not None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, min(due_s) - self._now())):
                await self._news.wait()
        # Cleared before anything is looked at: what comes from here on ends the next pause at once.
        self._news.clear()

    def _take_dirty(self) -> None:
        """Take over what watchdog's thread has marked: names settle, and a lost event asks for a scan."""
        batch = self._dirty.take()
        self._counters["events"] += batch.events
        self._counters["overflows"] += batch.overflows
        if batch.scan:
            self._schedule.want_scan()
        now_s = self._now()
        for name in batch.names:
            (self._settle_active if name in self._watcher.active else self._settle).mark(name, now_s)

    async def _check_watch(self) -> None:
        """Start the watcher again if its thread has ended, and ask for a scan if the path or a mount has changed."""
        self._schedule.ticked(self._now())
        if not self._watcher.alive:
            self._counters["watcher_restarts"] += 1
            await self._blocking.run(["watcher"], lambda _: self._restart_watcher())
            self._schedule.want_scan()
        outcome = await self._blocking.run(["root"], lambda _: roots.identify(self._path))
        # While something is watched, no answer in time counts as moved: the scan then says what is wrong.
        moved = outcome.done.get("root") != self._watcher.watched_root
        if self._mounts.changed() or moved:
            self._schedule.want_scan()

    def _restart_watcher(self) -> None:
        """Replace the inotify instance; its watches are lost until the next scan. Blocks."""
        self._watcher.stop()
        self._watcher.start()

    async def _scan(self) -> bool:
        """List the directory; what is gone is posted, everything else is looked at. Whether it answered in time."""
        # Before listing: a request that comes during the scan may be about what the scan has already passed.
        self._schedule.scan_began()
        began_s = self._now()
        work = functools.partial(scanner.list_names, watcher=self._watcher, most=LISTED_PER_BUNDLE * self._max_bundles)
        outcome = await self._blocking.run(["list"], lambda _: work(self._path))
        self._counters["scans"] += 1
        self._schedule.scan_ended(began_s=began_s, now_s=self._now())
        listing = outcome.done.get("list")
        if listing is not None:
            names = self._apply_listing(listing)
            # On a thread, as it waits for a watch that is being made, and only now: of a listing that was given up and
            # ends late nothing counts.
            await self._blocking.run(["retain"], lambda _: self._watcher.retain(names))
        else:
            self._cannot_list(outcome.failed.get("list"))
        return not outcome.stuck

    def _apply_listing(self, listing: Listing) -> frozenset[str]:
        """Take in what is in the directory: what is gone is posted, all else queued to be compared. The names that may
        be there.
        """
        self._problem = ""
        # A listing that was cut says nothing of who is gone: names known from before are looked at one by one.
        names = listing.names if not listing.unlisted else listing.names.union(self._entries, self._recorded)
        self._unlisted = max(0, listing.unlisted - len(names.difference(listing.names)))
        # Names that are gone need no judgement.
        self._recorded_queue.retain(names)
        self._other_queue.retain(names)
        self._uncounted &= names
        # What is gone first: that frees slots for the new names below.
        self._record({name: None for name in self._entries if name not in names})
        known = [name for name, entry in self._entries.items() if not entry.surplus]
        # Known ones before new ones, which are sorted: which find no slot must not depend on the order of readdir(3).
        self._enqueue(known, JudgeMode.COMPARE)
        self._enqueue(sorted(names.difference(known)), JudgeMode.COMPARE)
        return names

    def _cannot_list(self, error: Exception | None) -> None:
        """A missing directory has no bundles; in one that cannot be listed, those known by name are looked at."""
        self._problem = reasons.directory(self._path, error)
        if isinstance(error, Problem) and error.code == "directory_missing":
            self._unlisted = 0
            self._uncounted.clear()
            self._record(dict.fromkeys(self._entries))
        else:
            self._enqueue({*self._entries, *self._recorded}, JudgeMode.COMPARE)

    def _enqueue(self, names: Iterable[str], mode: JudgeMode, *, urgent: bool = False) -> None:
        """Queue these names to be judged; those that records name have a queue of their own."""
        names = list(names)
        self._recorded_queue.put((name for name in names if name in self._recorded), mode, urgent=urgent)
        self._other_queue.put((name for name in names if name not in self._recorded), mode, urgent=urgent)

    def _take_outcome(self, outcome: JobOutcome[str, DirectoryEntry | None]) -> None:
        """Record what a queue has found. A problem of the directory itself is one of this bundle too."""
        found: dict[str, DirectoryEntry | None] = {}
        for name, entry in outcome.done.items():
            # An unchanged bundle's comparison returns the entry itself: neither counted nor posted.
            if entry is None or entry is not self._entries.get(name):
                found[name] = entry
                self._counters["judged"] += entry is not None and not entry.surplus
        for name, error in outcome.failed.items():
            if not isinstance(error, Problem):
                found[name] = reasons.failed(error)
                continue
            found[name] = None if error.code == "directory_missing" else reasons.in_unreadable_directory()
            self._problem = reasons.directory(self._path, error)
            # The directory failed, not this bundle: a scan finds out about all the others.
            self._schedule.want_scan()
        found.update(dict.fromkeys(outcome.stuck, reasons.no_answer(self._judge.limits.deadline_s)))
        found.update(dict.fromkeys(self._checker.evicted(), reasons.surplus(self._max_bundles)))
        self._record(found)

    def _record(self, found: Mapping[str, DirectoryEntry | None]) -> None:
        """Make `found` the current entries, and post it. At most `max_bundles` surplus ones become entries."""
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
                self._checker.release(name)
            (self._surplus.add if entry is not None and entry.surplus else self._surplus.discard)(name)
            posted.append((name, entry.verdict if entry is not None else None))
        # Nothing else would look again at a refused surplus bundle whose files do not change.
        if made_room and self._surplus:
            self._schedule.want_scan()
            self._news.set()
        self._post(posted)
