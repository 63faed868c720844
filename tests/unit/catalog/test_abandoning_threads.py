"""AbandoningThreads runs batches and abandons jobs that do not return."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from latticed.catalog.abandoning_threads import AbandoningThreads
from tests.house.catalogs import until


async def test_batch_ends_with_a_result_for_every_job() -> None:
    """A batch ends when all jobs are done; an exception fails its own job only."""
    pool = AbandoningThreads(threads=4, deadline_s=30)

    def half(number: int) -> float:
        return 10 / number

    outcome = await pool.run(range(100), half)
    assert outcome.done == {number: 10 / number for number in range(1, 100)}
    assert isinstance(outcome.failed[0], ZeroDivisionError)
    assert outcome.stuck == outcome.left == ()


async def test_empty_batch_of_jobs_ends_at_once() -> None:
    """It starts no thread."""
    outcome = await AbandoningThreads(threads=4, deadline_s=30).run([], str)
    assert outcome.done == {}


async def test_jobs_not_begun_within_the_slice_are_returned() -> None:
    """They were not run at all."""
    outcome = await AbandoningThreads(threads=2, deadline_s=30).run(range(10), str, slice_s=0.0)
    assert outcome.done == {}
    assert outcome.left == tuple(range(10))


async def test_stuck_jobs_are_abandoned_and_others_finish() -> None:
    """Two of six jobs hang: the batch ends without them, and they are not begun again while they hang."""
    pool = AbandoningThreads(threads=2, deadline_s=0.1)
    release = threading.Event()
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number < 2:
            release.wait()
        return number

    try:
        outcome = await pool.run(range(6), work)
        assert outcome.done == {2: 2, 3: 3, 4: 4, 5: 5}
        assert sorted(outcome.stuck) == [0, 1]
        assert pool.abandoned == 2
        again = await pool.run([0, 7], work)
        assert again.stuck == (0,)
        assert again.done == {7: 7}
        assert begun.count(0) == 1
    finally:
        release.set()
    await until(lambda: pool.abandoned == 0)
    assert (await pool.run([0], work)).done == {0: 0}


async def test_results_are_reported_while_another_job_hangs() -> None:
    """Each result is reported once, before the batch ends."""
    pool = AbandoningThreads(threads=2, deadline_s=30)
    release, told = threading.Event(), {}
    running = asyncio.create_task(
        pool.run(range(6), lambda number: number or release.wait(), report=lambda outcome: told.update(outcome.done))
    )
    try:
        await until(lambda: set(told) == {1, 2, 3, 4, 5})
        assert not running.done()
    finally:
        release.set()
    rest = (await running).done
    assert {**told, **rest} == {0: True, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5}


async def test_number_of_abandoned_threads_is_bounded() -> None:
    """When every job hangs, the batch ends with no more threads than allowed."""
    pool = AbandoningThreads(threads=4, deadline_s=0.05, abandoned_max=3)
    release = threading.Event()
    before = threading.active_count()
    try:
        outcome = await pool.run(range(50), lambda _: release.wait())
        assert sorted((*outcome.stuck, *outcome.left)) == list(range(50))
        assert 3 <= len(outcome.stuck) <= 3 + 4
        assert threading.active_count() - before <= 3 + 4  # those abandoned, and one batch's
        assert pool.abandoned >= 3
        assert pool.full
        assert (await pool.run([99], lambda _: True)).left == (99,), "what would not hang is not condemned"
    finally:
        release.set()
    await until(lambda: pool.abandoned == 0)


async def test_cancelled_batch_begins_no_further_job() -> None:
    """The running thread ends by itself."""
    pool = AbandoningThreads(threads=1, deadline_s=30)
    working, release = threading.Event(), threading.Event()
    begun: list[int] = []

    def work(number: int) -> None:
        begun.append(number)
        working.set()
        release.wait()

    task = asyncio.create_task(pool.run(range(5), work))
    await until(working.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    await until(lambda: not any(thread.name == "latticed-scan" for thread in threading.enumerate()))
    assert begun == [0]


async def test_jobs_are_returned_when_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not raise, which would end the caller's task; a later batch runs them."""
    pool = AbandoningThreads(threads=2, deadline_s=30)

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as scarce:
        scarce.setattr(threading.Thread, "start", refused)
        outcome = await pool.run(range(3), str)
    assert (outcome.done, outcome.left) == ({}, (0, 1, 2))
    assert (await pool.run(range(3), str)).done == {0: "0", 1: "1", 2: "2"}


async def test_jobs_that_wait_are_done_side_by_side() -> None:
    """Four wait for each other: they only end on four threads, although a batch begins with one."""
    together = threading.Barrier(4)
    outcome = await AbandoningThreads(threads=4, deadline_s=60).run(range(8), lambda _: together.wait(60))
    assert outcome.done.keys() == set(range(8))


async def test_quick_jobs_are_left_to_one_thread() -> None:
    """Eight would hand the interpreter's lock over at each system call. A second one may come on a busy machine."""
    threads: set[int] = set()
    outcome = await AbandoningThreads(threads=8, deadline_s=60).run(
        range(20_000), lambda _: threads.add(threading.get_ident())
    )
    assert len(outcome.done) == 20_000
    assert len(threads) <= 2


async def test_job_that_hangs_after_quick_ones_holds_up_no_other() -> None:
    """Another thread goes on long before the deadline of the one that hangs."""
    others = threading.Event()
    left = set(range(1_000)) - {500}

    def work(number: int) -> bool:
        if number == 500:
            return others.wait(60)
        left.discard(number)
        if not left:
            others.set()
        return True

    outcome = await AbandoningThreads(threads=4, deadline_s=120).run(range(1_000), work)
    assert all(outcome.done.values())


async def test_slices_that_end_in_the_middle_of_jobs_do_not_add_threads() -> None:
    """Of slow jobs one thread's ends before the other's: no third is started, in that slice or in a later one."""
    pool = AbandoningThreads(threads=2, deadline_s=60)
    lock = threading.Lock()
    now, most = 0, 0

    def work(number: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.05 if number % 2 else 0.08)
        with lock:
            now -= 1

    jobs: tuple[int, ...] = tuple(range(60))
    while jobs:
        jobs = (await pool.run(jobs, work, slice_s=0.1)).left
    assert most == 2
