"""A few threads for work on files that may hang: what takes too long is abandoned, never waited for.

Threads cannot be cancelled, and an executor waits for its threads at exit. So each batch starts its own daemon threads,
which end with the batch. A worker that is stuck (a dead NFS server, a broken disk) past the deadline is abandoned: its
job has no result, another worker takes its place, and should the read return later, the thread ends and its result is
dropped. A job that is still stuck is not begun again, so there are never more such threads than jobs that hang. Beyond
`abandoned_max` of them no thread is started and no other job is begun, as it might hang too.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from latticed.kit.threads import UnawaitedThread

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable

# How often, in seconds, it is looked for jobs that are past their deadline, and whether more threads would help.
_CHECK_S: Final = 0.25
_GROW_S: Final = 0.02
_SLOW_S: Final = 0.003
"""Jobs that take longer wait for a disk or hash much, and threads do that side by side. Quicker ones, such as bundles
of 64 KiB in the page cache (0.3 ms, two dozen system calls each), take two threads twice as long as one: at each call
they hand the interpreter's lock over.
"""

J = TypeVar("J", bound="Hashable")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome(Generic[J, R]):
    """What became of a batch: each job is in one of the four.

    `done`: its result. `failed`: what it raised. `stuck`: it took longer than its deadline. `left`: never begun, for
    lack of time or of threads.
    """

    done: dict[J, R]
    failed: dict[J, Exception]
    stuck: tuple[J, ...]
    left: tuple[J, ...]


@dataclass(slots=True, eq=False)
class _Worker(Generic[J]):
    """One thread. `since_s`: when its job began; `busy`: it is doing one; `abandoned`: it is no longer waited for."""

    job: J | None = None
    since_s: float = 0.0
    busy: bool = False
    abandoned: bool = False
    ended: bool = False


@dataclass(slots=True, eq=False)
class _Batch(Generic[J, R]):
    """The jobs of one `run`, what was found of them and not reported yet, and the workers on them."""

    todo: deque[J]
    work: Callable[[J], R]
    until_s: float
    wake: Callable[[], None]
    done: dict[J, R] = field(default_factory=dict)
    failed: dict[J, Exception] = field(default_factory=dict)
    stuck: list[J] = field(default_factory=list)
    workers: list[_Worker[J]] = field(default_factory=list)
    jobs: int = 0
    jobs_s: float = 0.0
    """How many were done, and the seconds that they took together."""

    def is_slow(self, now_s: float) -> bool:
        """Whether the jobs take long: those done on average, or all that are under way, one of which may hang."""
        under_way = [now_s - worker.since_s for worker in self.workers if worker.busy and not worker.abandoned]
        return self.jobs_s > _SLOW_S * self.jobs or (bool(under_way) and min(under_way) > _GROW_S)


class AbandoningThreads:
    """Runs batches of jobs on up to `threads` threads each; a job has `deadline_s` seconds.

    A batch begins with one thread, or with as many as the last one had when its jobs took long, and gets more while its
    jobs take longer than _SLOW_S.

    Call `run` on the event loop; several at a time are separate, except for the number of stuck threads.
    """

    def __init__(self, *, threads: int, deadline_s: float, abandoned_max: int = 32) -> None:
        self._threads = threads
        self._deadline_s = deadline_s
        self._abandoned_max = abandoned_max
        self._abandoned: set[_Worker[Any]] = set()
        self._lock = threading.Lock()
        self._begin_with = 1

    @property
    def abandoned(self) -> int:
        """How many threads are stuck right now: abandoned, and their job has not returned yet."""
        return len(self._abandoned)

    @property
    def full(self) -> bool:
        """Whether so many threads are stuck that no other is started."""
        return self.abandoned >= self._abandoned_max

    async def run(
        self,
        jobs: Iterable[J],
        work: Callable[[J], R],
        *,
        slice_s: float = float("inf"),
        report: Callable[[JobOutcome[J, R]], None] | None = None,
    ) -> JobOutcome[J, R]:
        """Do `work(job)` for each of `jobs` on threads; none is begun once `slice_s` seconds have passed.

        What `work` raises is in the outcome (`failed`), not raised here. While some job takes long, `report` is called
        with what has ended since its last call; the returned outcome holds the rest. When cancelled, no further job is
        begun.
        """
        loop = asyncio.get_running_loop()
        news = asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(news.set)
            except RuntimeError:  # the loop has been closed while this thread was stuck
                return

        with self._lock:
            # With the lock: a thread whose job returns takes itself out of the set meanwhile.
            hanging = {worker.job for worker in self._abandoned}
        batch: _Batch[J, R] = _Batch(todo=deque(), work=work, until_s=time.monotonic() + slice_s, wake=wake)
        for job in jobs:
            (batch.stuck if job in hanging else batch.todo).append(job)
        try:
            for _ in range(min(self._begin_with, len(batch.todo))):
                self._add_worker(batch)
            if batch.todo and not batch.workers:
                await asyncio.sleep(_CHECK_S)  # so that a caller that tries again at once leaves time to other tasks
            while not all(worker.ended or worker.abandoned for worker in batch.workers):
                await _wait(news, _GROW_S if self._may_grow(batch) else _CHECK_S)
                self._abandon_late(batch)
                if self._may_grow(batch) and batch.is_slow(time.monotonic()):
                    self._add_worker(batch)
                if report is not None:
                    report(self._outcome(batch))
        finally:
            # Also when cancelled: a worker that finds nothing to do ends after its present job.
            left = _drain(batch.todo)
        self._begin_with = min(self._threads, max(1, len(batch.workers))) if batch.is_slow(time.monotonic()) else 1
        return self._outcome(batch, left)

    def _may_grow(self, batch: _Batch[J, R]) -> bool:
        """Whether there are jobs for one more thread, time left to begin them, and fewer threads than `threads`."""
        going = sum(not worker.ended and not worker.abandoned for worker in batch.workers)
        return len(batch.todo) > 0 and time.monotonic() < batch.until_s and 0 < going < self._threads

    def _outcome(self, batch: _Batch[J, R], left: Iterable[J] = ()) -> JobOutcome[J, R]:
        """What ended since the last report, with the jobs in `left` as never begun. Clears it in the batch; an
        abandoned worker does not add to it any more (`_do`).
        """
        with self._lock:
            outcome = JobOutcome(done=batch.done, failed=batch.failed, stuck=tuple(batch.stuck), left=tuple(left))
            batch.done, batch.failed, batch.stuck = {}, {}, []
        return outcome

    def _add_worker(self, batch: _Batch[J, R]) -> None:
        """Start one more worker thread, unless too many are stuck or the system gives no thread."""
        if self.full:
            return
        worker: _Worker[J] = _Worker()
        with contextlib.suppress(RuntimeError):  # the system has no thread to give: what is left is asked for again
            UnawaitedThread(target=self._work, args=(batch, worker), name="latticed-scan", daemon=True).start()
            batch.workers.append(worker)

    def _work(self, batch: _Batch[J, R], worker: _Worker[J]) -> None:
        """On a worker's thread: do jobs until there are none, the time is up, or it was abandoned."""
        while time.monotonic() < batch.until_s and not worker.abandoned:
            try:
                job = batch.todo.popleft()
            except IndexError:
                break
            # `busy` last (targets are assigned from left to right): _abandon_late, on the event loop's thread, must not
            # see it together with the `since_s` of the previous job.
            worker.job, worker.since_s, worker.busy = job, time.monotonic(), True
            self._do(batch, worker, job)
        with self._lock:
            worker.ended = True
            self._abandoned.discard(worker)
        batch.wake()

    def _do(self, batch: _Batch[J, R], worker: _Worker[J], job: J) -> None:
        """On a worker's thread: do one job and keep its result, unless the worker was abandoned meanwhile."""
        result: R | None = None
        failure: Exception | None = None
        try:
            result = batch.work(job)
        except Exception as error:  # noqa: BLE001 - kept for the outcome; it must not end the thread
            failure = error
        with self._lock:
            # Under the same lock as the check of `abandoned`: a job is either done or stuck, never both.
            worker.busy = False
            batch.jobs += 1
            batch.jobs_s += time.monotonic() - worker.since_s
            if worker.abandoned:
                return
            if failure is not None:
                batch.failed[job] = failure
            else:
                batch.done[job] = cast("R", result)

    def _abandon_late(self, batch: _Batch[J, R]) -> None:
        """Abandon workers that are stuck, and replace them while there are jobs and few are stuck."""
        now_s = time.monotonic()
        for worker in list(batch.workers):
            with self._lock:
                # With the lock, so that a job which ends right now is not called stuck too (_do).
                late = worker.busy and not worker.abandoned and now_s - worker.since_s > self._deadline_s
                if not late:
                    continue
                worker.abandoned = True
                self._abandoned.add(worker)
                batch.stuck.append(cast("J", worker.job))
            if batch.todo:
                self._add_worker(batch)


async def _wait(news: asyncio.Event, timeout_s: float) -> None:
    """Wait for `news`, `timeout_s` seconds at most, and clear it."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await news.wait()
    news.clear()


def _drain(todo: deque[J]) -> list[J]:
    """Take out the jobs that were not begun, while workers may be taking jobs too."""
    # popleft of a deque is atomic: each job goes either here or to one worker.
    found: list[J] = []
    while True:
        try:
            found.append(todo.popleft())
        except IndexError:
            return found
