"""The catalog: what lies in the plugin directories and what latticed brings, as a view and a stream of changes."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from typing import TYPE_CHECKING, Final, Self, TypeVar

from latticed.bundle import read
from latticed.catalog import root as roots
from latticed.catalog.abandoning_threads import AbandoningThreads
from latticed.catalog.builtins import LABEL, Builtins
from latticed.catalog.coalescer import Coalescer, Sighting
from latticed.catalog.directory import Directory
from latticed.catalog.scanner import Judge
from latticed.model.errors import Problem
from latticed.settings import WatchSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping
    from pathlib import Path

    from latticed.catalog.store import Store
    from latticed.kit.clock import Clock
    from latticed.model.verdict import Verdict, Verified
    from latticed.trust.policy import TrustPolicy

__all__ = ["Catalog", "Sighting"]

# The default of the setting `limits.bundles`.
MAX_BUNDLES: Final = 20_000
# Bundles that `judge` and `keep` read at the same time; others wait. Scans have threads of their own.
_AT_ONCE: Final = 2
# Beyond bundle.read's own deadline: a read that is only slow ends with its own refusal, not abandoned.
_GRACE_S: Final = 1.0

T = TypeVar("T")


class Catalog:
    """An async context manager: entered, everything has been judged once; left, nothing is watched any more.

    `directories` maps a label to a plugin directory; a bundle's name is `<label>/<directory name>`. `policy` is asked
    at each judgement; call `rescan` when it changes. `store` is where `keep` puts verified pairs; its built-in plugins
    are seen as `system/<folder>`.
    """

    def __init__(
        self,
        directories: Mapping[str, Path],
        *,
        policy: Callable[[], TrustPolicy],
        host_version: str,
        clock: Clock,
        limits: read.ReadLimits | None = None,
        watch: WatchSettings | None = None,
        max_bundles: int = MAX_BUNDLES,
        store: Store | None = None,
    ) -> None:
        self.counters: Counter[str] = Counter(overflows=0, scans=0, events=0, judged=0, watcher_restarts=0)
        self._paths = dict(directories)
        self._store = store
        self._policy = policy
        self._builtins = store.builtins if store is not None else Builtins()
        self._limits = limits or read.ReadLimits()
        self._coalescer = Coalescer()
        # Each run is one job, so one thread each; `_AT_ONCE` bounds how many there are.
        self._pool = AbandoningThreads(threads=1, deadline_s=self._limits.deadline_s + _GRACE_S)
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        # These sets are shared with the directories, which read them: change them, never replace them.
        self._recorded: dict[str, set[str]] = {label: set() for label in self._paths}
        judge = Judge(limits=self._limits, policy=policy, host_version=host_version, clock=clock)
        self._directories = {
            label: Directory(
                path,
                judge=judge,
                watch=watch or WatchSettings(),
                max_bundles=max_bundles,
                recorded=self._recorded[label],
                post=self._poster(label),
                counters=self.counters,
            )
            for label, path in self._paths.items()
        }
        self._tasks: list[asyncio.Task[None]] = []
        self._failed: asyncio.Task[None] | None = None
        """The first task that ended with an exception; `changes` raises it."""
        self._read = False

    async def __aenter__(self) -> Self:
        self._post_builtins()
        try:
            await asyncio.gather(*(directory.start() for directory in self._directories.values()))
        except BaseException:
            # Python calls no __aexit__ when __aenter__ raises.
            await self._stop()
            raise
        # Only after all first scans: `changes` then begins with everything that is there.
        for label, directory in self._directories.items():
            for work, name in ((directory.run(), "catalog"), (directory.active_poll.run(), "active_poll")):
                task = asyncio.create_task(work, name=f"{name} {label}")
                task.add_done_callback(self._ended)
                self._tasks.append(task)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    def apply(self, watch: WatchSettings) -> None:
        """Have changes judged by these settings, from the next look at each directory on."""
        for directory in self._directories.values():
            directory.apply(watch)

    async def changes(self) -> AsyncIterator[tuple[Sighting, ...]]:
        """All changes, in batches, for one reader. The first batch is all that the first scan found, even if nothing.

        Later ones hold what changed since: another identity or artifact, another refusal, gone. A name that changes
        several times while the reader is busy is reported once, as it is now. Raises what ended the task of a
        directory; RuntimeError for a second reader.
        """
        if self._read:
            raise RuntimeError("the catalog's changes have one reader")
        self._read = True
        # Even when empty: the reader learns that the first scan is over.
        yield self._coalescer.take()
        while True:
            await self._coalescer.wait()
            if self._failed is not None:
                self._failed.result()
            # Empty when a change was undone before it was read.
            if batch := self._coalescer.take():
                yield batch

    def mark_recorded(self, name: str) -> None:
        """A record names this bundle: it is judged first, needs no slot, and is not delayed by others that hang."""
        label, _, bundle = name.partition("/")
        if label in self._recorded:
            self._recorded[label].add(bundle)

    def unmark_recorded(self, name: str) -> None:
        """No record names this bundle any more: it is judged like any other, and no longer polled."""
        label, _, bundle = name.partition("/")
        self._recorded.get(label, set()).discard(bundle)
        # Otherwise a bundle whose plugin is gone would be polled for ever.
        self.set_active(name, active=False)

    def rescan(self, *, rehash: bool = False) -> None:
        """Judge everything again, soon and under the policy of now (SIGHUP, changed policy or settings).

        Artifacts whose files have not changed are judged by the hash they had, unless `rehash`.
        """
        self._post_builtins()
        for directory in self._directories.values():
            directory.rescan(rehash=rehash)

    def set_active(self, name: str, *, active: bool) -> None:
        """Poll the bundle `name` every second, or no more; `active`: whether an active plugin comes from it."""
        label, _, bundle = name.partition("/")
        if (directory := self._directories.get(label)) is not None:
            directory.active_poll.set_active(bundle, active=active)

    async def judge(self, name: str) -> Verdict:
        """The verdict on one bundle, read and hashed now; nothing is remembered.

        `name` may leave the label out; then the first directory that has such a bundle counts. Problems: not_found when
        there is none, bad_request when it cannot be a name, deadline_exceeded.
        """
        for label, bundle in self._candidates(name):
            # With the label: a bundle that hangs in one directory must not stand for one of that name in another.
            judge_once = functools.partial(self._directories[label].judge_once, bundle)
            verdict = await self._do(("judge", f"{label}/{bundle}"), judge_once)
            if verdict is not None:
                return verdict
        raise Problem(
            "not_found", f"expected a bundle directory named {name!a}, found none", "see `latticectl rejected`"
        )

    async def keep(self, name: str, verified: Verified) -> None:
        """Copy the pair of this sighting into the store, if it is still what was verified; a built-in's is there.

        `name` has its label. BundleRefused when it is not (any more) what was verified; Problem store_unavailable when
        it cannot be written, deadline_exceeded when the disk does not answer.
        """
        store = self._store
        if store is None:
            raise RuntimeError("this catalog was given no store")
        if self._builtins.pair(verified.identity) is not None:
            return
        label, _, bundle = name.partition("/")
        path = self._paths[label]

        def copy() -> None:
            # On the worker thread: opening may hang as reading does.
            root = roots.open_root(path)
            try:
                with read.open_bundle(bundle, beneath=root.fd, limits=self._limits, owners=root.owners) as directory:
                    store.keep(directory, verified)
            finally:
                root.close()

        await self._do(("keep", name), copy)

    def problems(self) -> tuple[str, ...]:
        """Sentences for health: what keeps the catalog from seeing the directories as they are."""
        return tuple(problem for directory in self._directories.values() for problem in directory.problems())

    def _candidates(self, name: str) -> Iterable[tuple[str, str]]:
        """The labels of the directories that `name` may mean, each with the bundle's own name; Problem bad_request when
        it is no name.
        """
        label, slash, bundle = name.partition("/")
        found = [label] if slash and label in self._directories else []
        if not slash:
            found, bundle = list(self._directories), name
        if not bundle or "/" in bundle or "\0" in bundle or not roots.may_be_bundle(bundle) or not found:
            detail = f"expected a name within the plugin directory, found {name[:80]!a}"
            raise Problem("bad_request", detail, "give the bundle's directory name, as `latticectl rejected` shows it")
        return [(one, bundle) for one in found]

    async def _do(self, job: tuple[str, str], work: Callable[[], T]) -> T:
        """The result of `work`, which blocks, on a thread of its own; a few at once. Raises what `work` raises.

        `job` names it: one that still hangs is not begun again. Problem deadline_exceeded, also for that.
        """
        async with self._at_once:
            outcome = await self._pool.run([job], lambda _: work())
        if job in outcome.failed:
            raise outcome.failed[job]
        # By key, not by value: None is a result.
        if job not in outcome.done:
            detail = f"expected an answer within {self._limits.deadline_s:g} s, found none"
            raise Problem("deadline_exceeded", detail, "the disk or the file system does not answer")
        return outcome.done[job]

    def _post_builtins(self) -> None:
        self._coalescer.post((f"{LABEL}/{name}", verdict) for name, verdict in self._builtins.verdicts(self._policy))

    def _poster(self, label: str) -> Callable[[Iterable[tuple[str, Verdict | None]]], None]:
        """The `post` of a directory: it puts the label in front of each name."""

        def post(found: Iterable[tuple[str, Verdict | None]]) -> None:
            self._coalescer.post((f"{label}/{name}", verdict) for name, verdict in found)

        return post

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Called when a directory's task has ended; a failure ends the stream of `changes`.

        Without this, a directory whose task failed would look like one where nothing changes.
        """
        if not task.cancelled() and task.exception() is not None:
            self._failed = task
            self._coalescer.wake()

    async def _stop(self) -> None:
        # Before the directories stop: these tasks use descriptors that stopping closes.
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(directory.stop() for directory in self._directories.values()))
