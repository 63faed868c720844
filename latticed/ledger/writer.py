"""The one thread that writes: takes whatever is queued, commits it as one transaction, tells everybody at once.

A change that fails is rolled back alone; a commit that fails fails the whole batch, and the next batch tries again.
Whoever waits may be cancelled: the write happens, or not, exactly as if he had stayed.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import apsw

from latticed.ledger import state
from latticed.ledger.chain import Chain
from latticed.ledger.connection import STORAGE_ERRORS, Connection, unavailable
from latticed.ledger.threads import joined
from latticed.model.audit import Event
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latticed.kit.clock import Clock
    from latticed.model.chain import Head

T = TypeVar("T")

MAX_BATCH: Final = 4_096
HEAD_EVERY: Final = 1_000
"""Events after which a head is signed without being asked."""


class Transaction:
    """What a change may do: run statements and append audit events. Not to be kept after the change returns."""

    __slots__ = ("_connection", "chain")

    def __init__(self, connection: Connection, chain: Chain) -> None:
        self._connection = connection
        self.chain = chain

    def execute(self, statements: str, bindings: tuple[Any, ...] = (), /) -> apsw.Cursor:
        self.chain.flush()  # so that a change can read what it appended
        return self._connection.execute(statements, bindings)

    def changes(self) -> int:
        """How many rows the last statement inserted, updated or deleted."""
        return self._connection.changes()

    def append_audit(self, event: Event) -> int:
        """Chain `event` within this transaction and return its seq; it is rolled back with the transaction."""
        return self.chain.append(event)


@dataclass(slots=True)
class _Job:
    """One change, or one event to append (which needs no savepoint: it fails before it changes anything)."""

    change: Callable[[Transaction], Any] | Event
    future: asyncio.Future[Any]
    durable: bool
    result: Any = None
    error: BaseException | None = None


class Writer:
    """The thread and its queue; every public method belongs to the event loop it was made in."""

    def __init__(self, directory: Path, *, clock: Clock, on_head: Callable[[Head], None]) -> None:
        self._directory = directory
        self._clock = clock
        self._on_head = on_head
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ready: asyncio.Future[state.State] = self._loop.create_future()
        self._thread = threading.Thread(target=self._run, name="ledger-writer", daemon=False)
        self._synchronous = "normal"
        self._open = False
        self._waiting: list[asyncio.Future[None]] = []
        self.tip = 0
        """The seq of the newest event, as of the last commit of this life."""

    async def start(self) -> state.State:
        """Enter the state directory on the thread; raises the Problems of `state.enter`."""
        self._thread.start()
        try:
            entered = await asyncio.shield(self._ready)
        except BaseException:
            await self.stop()
            raise
        self._open = True
        return entered

    async def committed(self) -> None:
        """Return after the next commit."""
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def submit(self, change: Callable[[Transaction], T], *, durable: bool = False) -> asyncio.Future[T]:
        """Queue `change`; the future gets its result once committed (fsynced when `durable`), or its exception."""
        return self._put(change, durable=durable)

    def append(self, event: Event) -> asyncio.Future[int]:
        """Queue one event; the future gets its seq once committed."""
        return self._put(event, durable=False)

    def _put(self, change: Callable[[Transaction], Any] | Event, *, durable: bool) -> asyncio.Future[Any]:
        if not self._open:
            raise Problem("ledger_unavailable", "the ledger is closed")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._queue.put(_Job(change, future, durable))
        return future

    async def stop(self) -> None:
        """Commit what is queued, close the database, give the lock back, end the thread."""
        self._open = False
        self._queue.put(None)
        await joined(self._thread)

    # Everything below runs on the thread.

    def _run(self) -> None:
        try:
            with state.enter(self._directory) as entered:
                chain = Chain(entered.writer, key=entered.key, now=self._clock)
                self._tell(_resolve, self._ready, entered, None)
                self._serve(entered.writer, chain)
        except BaseException as error:  # noqa: BLE001 - the waiter gets it; nobody else looks at this thread
            self._tell(_resolve, self._ready, None, error)

    def _serve(self, connection: Connection, chain: Chain) -> None:
        transaction = Transaction(connection, chain)
        going = True
        while going:
            batch: list[_Job] = []
            going = self._take(batch)
            if not batch:
                continue
            head = None
            try:
                head = self._commit(batch, connection, transaction)
            except BaseException as error:  # noqa: BLE001 - a waiter must hear of it, and the thread must go on
                for job in batch:
                    job.error = unavailable(error)
                    job.error.__cause__ = error
            self._tell(self._deliver, batch, head, chain.tip.seq)

    def _take(self, batch: list[_Job]) -> bool:
        """Fill `batch` with what is queued, waiting for the first; False when that was the last."""
        job = self._queue.get()
        while job is not None:
            batch.append(job)
            if len(batch) == MAX_BATCH or self._queue.empty():  # nobody else takes, so not empty stays not empty
                return True
            job = self._queue.get()
        return False

    def _commit(self, batch: list[_Job], connection: Connection, transaction: Transaction) -> Head | None:
        """Perform `batch` as one transaction; raises, with everything rolled back, when the disk would not take it."""
        chain = transaction.chain
        before, signed_before = chain.tip, chain.signed_seq
        head_due = chain.tip.seq + len(batch) - chain.signed_seq >= HEAD_EVERY
        try:
            # A head goes into the journal, which may outlive a power cut: what it speaks of must be on disk first.
            self._synchronise(connection, fully=head_due or any(job.durable for job in batch))
            connection.execute("BEGIN IMMEDIATE")
            chain.begin()
            for job in batch:
                if isinstance(job.change, Event):
                    _append(job, job.change, chain)
                else:
                    _perform(job, job.change, connection, transaction)
            chain.flush()
            if head_due:
                chain.sign()
            connection.execute("COMMIT")
        except BaseException:
            chain.restore(before, signed_before)
            if connection.in_transaction:
                with contextlib.suppress(apsw.Error):
                    connection.execute("ROLLBACK")
            raise
        return chain.head if chain.signed_seq != signed_before else None

    def _synchronise(self, connection: Connection, *, fully: bool) -> None:
        wanted = "full" if fully else "normal"
        if wanted != self._synchronous:  # possible only outside a transaction
            connection.execute(f"PRAGMA synchronous={wanted}")
            self._synchronous = wanted

    def _deliver(self, batch: list[_Job], head: Head | None, tip: int) -> None:
        self.tip = tip
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            _resolve(waiter, None, None)
        for job in batch:
            _resolve(job.future, job.result, job.error)
        if head is not None:
            self._on_head(head)

    def _tell(self, callback: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(callback, *arguments)


def _append(job: _Job, event: Event, chain: Chain) -> None:
    try:
        job.result = chain.append(event)
    except Exception as error:  # noqa: BLE001 - a caller's wrong type is his alone
        job.error = error


def _perform(job: _Job, change: Callable[[Transaction], Any], connection: Connection, transaction: Transaction) -> None:
    """Run one change; its own exception stays with it, the disk's fails the batch."""
    chain = transaction.chain
    chain.flush()
    before, signed_before = chain.tip, chain.signed_seq
    connection.execute("SAVEPOINT change")
    try:
        job.result = change(transaction)
        chain.flush()
    except STORAGE_ERRORS:
        raise
    except BaseException as error:  # noqa: BLE001 - handed to the one who asked for the change
        job.error = error
        connection.execute("ROLLBACK TO change")
        chain.restore(before, signed_before)
    connection.execute("RELEASE change")


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():  # whoever waited was cancelled
        return
    if error is None:
        future.set_result(result)
    elif isinstance(error, StopIteration):  # asyncio refuses it, and the waiter would wait for ever
        future.set_exception(RuntimeError(f"a change raised {error!r}"))
    else:
        future.set_exception(error)
