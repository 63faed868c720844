"""The only thread that writes: it commits all queued changes as one transaction, then calls back who made them.

What is made in one turn of the event loop is queued together, in its order, and so committed together.

A change that fails is rolled back alone; a commit that fails fails the whole batch, and the next batch tries again.
Who made the jobs of a batch is called back in their order, over several turns of the loop where that takes long.
Cancelling a waiting caller changes nothing about its write.
"""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

from latticed.kit.sliced_calls import SlicedCalls
from latticed.kit.threads import LoopCalls
from latticed.ledger import state
from latticed.ledger.chain import Chains
from latticed.ledger.commit import Committer
from latticed.ledger.reserve import Reserve
from latticed.ledger.signed_heads import SignedHeads
from latticed.ledger.threads import joined
from latticed.ledger.transaction import Transaction, WriteJob
from latticed.model.chain import Position
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latticed.kit.clock import Clock
    from latticed.model.audit import AllowedCall, Event
    from latticed.model.chain import Head

T = TypeVar("T")

# Bounds one transaction, give or take one turn's jobs, and so how long the first caller of a batch waits for the last.
MAX_BATCH: Final = 4_096
SLICE_S: Final = 0.005
"""How long callers are called back in one turn of the loop."""


class LedgerWriter:
    """The thread and its queue; every public method belongs to the event loop it was made in."""

    def __init__(
        self, directory: Path, *, clock: Clock, on_head: Callable[[Head], None], accept_rollback: bool = False
    ) -> None:
        self._directory = directory
        self._accept_rollback = accept_rollback
        self._clock = clock
        self._on_head = on_head
        self._loop = asyncio.get_running_loop()
        # Unbounded: `put` never blocks the event loop. None asks the thread to stop.
        self._queue: queue.SimpleQueue[list[WriteJob] | None] = queue.SimpleQueue()
        self._staged: list[WriteJob] = []  # the jobs of this turn
        self._ready: asyncio.Future[state.StateDir] = self._loop.create_future()
        self._told = LoopCalls()
        # Not a daemon thread: the interpreter would end it in the middle of a commit at exit.
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=False)
        self._open = False
        self._calls = SlicedCalls(SLICE_S)
        self._heads = SignedHeads(directory / f"{state.DATABASE}-wal", self._tell_heads)
        self._waiting: list[asyncio.Future[None]] = []
        self._waiting_for_calls: list[asyncio.Future[None]] = []
        self.tip = Position()
        """The newest events that this process has committed, and whose callers were all called back."""
        self.refused: Problem | None = None
        """Why the disk did not take the last batch; None where it did."""
        self.changes = 0
        """A number that is another one after a commit of anything but events."""

    async def start(self) -> state.StateDir:
        """Enter the state directory on the thread; raises the Problems of `state.enter`."""
        self._thread.start()
        try:
            # Shielded: the thread resolves this future; a cancellation of `start` must not cancel it under the thread.
            entered = await asyncio.shield(self._ready)
        except BaseException:
            # The thread may still be opening the database: it must have released the lock when `start` returns.
            await self.stop()
            raise
        self._open = True
        return entered

    async def wait_for_events(self, seen: Position, *, calls: bool) -> None:
        """Return once there is an event after `seen` in the decisions or, with `calls`, in either chain.

        Returns at once if there is. Without `calls`, host calls do not wake the waiter, so that idle streams cost them
        nothing.
        """
        # A loop: a waiter is woken for either chain and may find that the event it wants has not come.
        while self.tip.decisions <= seen.decisions and not (calls and self.tip.calls > seen.calls):
            waiter = self._loop.create_future()
            (self._waiting_for_calls if calls else self._waiting).append(waiter)
            await waiter

    def submit(
        self, change: Callable[[Transaction], T], *, durable: bool = False, essential: bool = False
    ) -> asyncio.Future[T]:
        """Queue `change`; the future gets its result once committed (fsynced when `durable`), or its exception.

        What is `essential` may be run twice, on a full disk from the reserve: it may change only rows and events,
        nothing else. Problem ledger_unavailable is raised when closed, and set on the future when the disk would not
        take it.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        self._put(WriteJob(change, functools.partial(resolve, future), durable, essential))
        return future

    def append(self, event: Event | AllowedCall, done: Callable[[Any, BaseException | None], None]) -> None:
        """Queue one event; `done(seq, None)` is called once it is committed, `done(None, error)` if it cannot be.

        Problem ledger_unavailable when closed.
        """
        self._put(WriteJob(event, done))

    def _put(self, job: WriteJob) -> None:
        """Queue a job with the others of this turn; Problem ledger_unavailable when closed."""
        # After `stop` has queued None no job is taken any more: nobody would ever call it back.
        if not self._open:
            raise Problem("ledger_unavailable", "the ledger is closed")
        if not self._staged:
            self._loop.call_soon(self._hand_over)
        self._staged.append(job)

    def _hand_over(self) -> None:
        """Give the jobs of this turn to the thread."""
        staged, self._staged = self._staged, []
        if staged:
            self._queue.put(staged)

    async def stop(self) -> None:
        """Commit queued jobs, close the database, release the lock, end the thread and call back every caller."""
        # Closed before None is queued, so that no job can come to stand behind it.
        self._open = False
        self._hand_over()
        self._queue.put(None)
        await joined(self._thread)
        self._told.close()  # what the thread told the loop last is done before this goes on
        await self._called_back()
        await self._heads.close()
        await self._called_back()

    async def _called_back(self) -> None:
        """Return once everybody was called back who is to be by now."""
        called_back = self._loop.create_future()
        self._calls.put([(resolve, (called_back, None, None))])
        await called_back

    # Everything below runs on the thread.

    def _run(self) -> None:
        """The thread: enter the state directory, commit jobs until `stop`, leave it."""
        try:
            with state.enter(self._directory, accept_rollback=self._accept_rollback) as entered:
                chains = Chains(entered.writer, key=entered.key, now=self._clock)
                committer = Committer(entered, Transaction(entered.writer, chains), Reserve(self._directory))
                # Only once chains and reserve are ready: the first write may come as soon as the loop sees this.
                self._told.put(resolve, self._ready, entered, None)
                self._serve(committer, chains)
        except BaseException as error:  # noqa: BLE001 - `start` raises it; an exception of the thread itself would be lost
            self._told.put(resolve, self._ready, None, error)

    def _serve(self, committer: Committer, chains: Chains) -> None:
        """Commit batch by batch until `stop` has queued None."""
        going = True
        while going:
            batch: list[WriteJob] = []
            going = self._take(batch)
            if batch:
                heads = committer.perform(batch)
                # Told of the whole batch at once, so the loop is woken once and not for every job.
                self._told.put(self._deliver, batch, heads, chains.position, committer.refused, committer.changes)

    def _take(self, batch: list[WriteJob]) -> bool:
        """Fill `batch` with queued jobs, blocking for the first; False when the writer is to stop after it."""
        jobs = self._queue.get()
        while jobs is not None:
            batch += jobs
            if len(batch) >= MAX_BATCH or self._queue.empty():  # no other thread takes jobs, so get() will not block
                return True
            jobs = self._queue.get()
        return False

    def _deliver(
        self, batch: list[WriteJob], heads: list[Head], tip: Position, refused: Problem | None, changes: int
    ) -> None:
        """On the event loop: have who made a batch's jobs called back, then waiters woken, its heads handed over."""
        # In slices: a host call is made when it is called back, which takes a millisecond for a large answer, and a
        # batch may be of 1,500.
        self.refused, self.changes = refused, changes
        called_back = [(job.done, (job.result, job.error)) for job in batch]
        self._calls.put([*called_back, (self._advance, (tip,))])
        if heads:
            self._calls.put([(self._heads.put, (heads, any(job.durable for job in batch)))])

    def _tell_heads(self, heads: list[Head]) -> None:
        """Hand over heads; a failure of one holds no other up."""
        self._calls.put([(self._on_head, (head,)) for head in heads])

    def _advance(self, tip: Position) -> None:
        """Set the tip and wake who waits for such events, once those who made them know."""
        # The tip is set before waiters are woken, so that a waiter which looks again sees the new events.
        decided, self.tip = tip.decisions != self.tip.decisions, tip
        waiting, self._waiting_for_calls = self._waiting_for_calls, []
        if decided:
            waiting += self._waiting
            self._waiting = []
        for waiter in waiting:
            resolve(waiter, None, None)


def resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    """Set the result or, if there is one, the error on a future, unless its caller was cancelled."""
    if future.done():  # the caller was cancelled
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):  # Future.set_exception refuses it: the caller would hang
        future.set_exception(RuntimeError(f"a change raised {error!r}"))
    else:
        future.set_exception(error)
