"""Read connections: short queries inline on the event loop, long ones on a thread each."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, TypeVar

import apsw

from latticed.kit.threads import UnawaitedThread
from latticed.ledger import connection
from latticed.ledger.threads import joined
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")


class Readers:
    """One read-only connection for short queries on the event loop; slow ones get a thread and connection each.

    One slow query runs at a time. Problem ledger_unavailable when the database cannot be opened.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        try:
            self._inline = connection.open_reader(database)
        except apsw.Error as error:
            raise _unreadable(error) from error
        # One slow query at a time: each has a thread, a connection and a snapshot that holds up the WAL.
        self._turn = asyncio.Lock()
        self._stop = threading.Event()
        self._closed = False

    def ask(self, question: Callable[[connection.Connection], T]) -> T:
        """Run `question` inline, on what is committed; Problem ledger_unavailable on a storage error or when closed.

        Blocks the event loop: for queries of a few rows only.
        """
        if self._closed:
            raise _closed()
        try:
            return question(self._inline)
        except apsw.Error as error:
            raise _unreadable(error) from error

    async def ask_slowly(self, question: Callable[[connection.Connection], T]) -> T:
        """Run `question` on a thread and on one snapshot; queued behind others. Cancelling interrupts it.

        Problem ledger_unavailable on a storage error or when closed; other exceptions of `question` come back as they
        are.
        """
        # Taking the turn waits for the query that runs; those queued behind it find `_closed`.
        async with self._turn:
            if self._closed:
                raise _closed()
            loop = asyncio.get_running_loop()
            # Not `asyncio.to_thread`: a cancelled caller must be able to stop the query and wait for its thread to end.
            answer: asyncio.Future[T] = loop.create_future()
            self._stop = stop = threading.Event()

            def run() -> None:
                outcome = _ask_apart(self._database, question, stop)
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(_resolve, answer, outcome)

            thread = UnawaitedThread(target=run, name="ledger-reader", daemon=False)
            thread.start()
            try:
                return await answer
            finally:
                # Nothing of the thread may run on when the caller goes on to close the database.
                stop.set()
                await joined(thread)

    async def close(self) -> None:
        """Interrupt a slow query, wait for its end and close the connections.

        Queued queries get Problem ledger_unavailable.
        """
        # The event ends the query that runs; those queued behind it make events of their own, and find `_closed`.
        self._closed = True
        self._stop.set()
        try:
            async with self._turn:
                pass
        finally:
            self._inline.close()


def _ask_apart(
    database: Path, question: Callable[[connection.Connection], Any], stop: threading.Event
) -> tuple[Any, BaseException | None]:
    """Ask `question` on a connection of its own, on one snapshot: (answer, None), or (None, exception). Runs on the
    thread; `stop` ends it.
    """
    try:
        # A connection of its own: one is used by one thread at a time, and the inline one belongs to the event loop.
        apart = connection.open_reader(database)
        try:
            # Called every 10,000 instructions of the SQLite virtual machine.
            apart.set_progress_handler(stop.is_set, 10_000)  # true ends the statement with InterruptError
            apart.execute("BEGIN")  # one snapshot; closing ends it
            return question(apart), None
        finally:
            apart.close()
    except apsw.Error as error:
        failure = _unreadable(error)
        # Set by hand: `raise ... from` is not possible here, as the exception is raised by the waiting future.
        failure.__cause__ = error
        return None, failure
    except BaseException as error:  # noqa: BLE001 - raised in the caller
        # Future.set_exception refuses StopIteration (TypeError), and the caller would wait for ever.
        return None, RuntimeError(repr(error)) if isinstance(error, StopIteration) else error


def _resolve(future: asyncio.Future[Any], outcome: tuple[Any, BaseException | None]) -> None:
    """Set the outcome of a slow query on its future; runs on the event loop."""
    if future.done():  # the caller was cancelled
        return
    result, error = outcome
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _closed() -> Problem:
    """The Problem for a question after `close`."""
    return Problem("ledger_unavailable", "the ledger is closed")


def _unreadable(error: apsw.Error) -> Problem:
    """The Problem for a storage error while reading."""
    return Problem("ledger_unavailable", f"the ledger cannot be read: {error}")
