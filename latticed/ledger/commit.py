"""One batch of changes as one transaction; the writer's thread calls it.

What is essential (a stop, a revocation) is written from the reserve when the disk is full; everything else is refused
until the reserve could be made again.
"""

from __future__ import annotations

import contextlib
import errno
from typing import TYPE_CHECKING, Any, Final

import apsw

from latticed.ledger.connection import STORAGE_ERRORS, unavailable
from latticed.model.audit import HOST_CALL, Event
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.ledger.chain import Chain, Chains
    from latticed.ledger.reserve import Reserve
    from latticed.ledger.state import StateDir
    from latticed.ledger.transaction import Transaction, WriteJob
    from latticed.model.chain import Head

HEAD_EVERY: Final = 1_000
"""Events after which a head is signed without being asked."""


class Committer:
    """Commits batches into the state that was entered; every job gets its result or its error.

    None is told that it is done while what it is written into is not what the next start will find.
    """

    def __init__(self, entered: StateDir, transaction: Transaction, reserve: Reserve) -> None:
        self._connection = entered.writer
        self._place = entered.identity
        self._transaction = transaction
        self._reserve = reserve
        self._synchronous = "normal"
        reserve.held()  # from the start on, not from the first write

    def perform(self, batch: list[WriteJob]) -> list[Head]:
        """Perform `batch`; the heads that were signed with it. Never raises."""
        if (fault := self._place.fault()) is not None:
            _fail(batch, fault)
            return []
        heads = self._perform(batch)
        self._place.written()
        if (fault := self._place.fault()) is not None:
            _fail([job for job in batch if job.error is None], fault)
            return []
        return heads

    def _perform(self, batch: list[WriteJob]) -> list[Head]:
        scarce = not self._reserve.held()
        if scarce:
            _fail([job for job in batch if not job.essential], OSError(errno.ENOSPC, "the disk is full"))
            batch = [job for job in batch if job.essential]
        try:
            heads = self._commit(batch) if batch else []
            if scarce:
                self._fold()
            return heads
        except STORAGE_ERRORS as error:
            return self._again(batch, error)
        except BaseException as error:  # noqa: BLE001 - a waiter must hear of it, and the thread must go on
            _fail(batch, error)
            return []

    def _again(self, batch: list[WriteJob], error: BaseException) -> list[Head]:
        """The disk would not take it: what is essential once more, with the reserve given up for it."""
        _fail([job for job in batch if not job.essential], error)
        essential = [job for job in batch if job.essential]
        if not essential:
            return []
        self._reserve.give_up()
        self._fold()
        try:
            heads = self._commit(essential)
            self._fold()
            return heads
        except BaseException as still:  # noqa: BLE001 - as above
            _fail(essential, still)
            return []

    def _fold(self) -> None:
        """Put the WAL into the database, so that it is used again from its start: a commit costs ten times its size."""
        with contextlib.suppress(apsw.Error):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _commit(self, batch: list[WriteJob]) -> list[Head]:
        """`batch` as one transaction; raises, with everything rolled back, when the disk would not take it."""
        connection, chains = self._connection, self._transaction.chains
        before = chains.state
        due = _due(batch, chains)
        try:
            # A head goes into the journal, which may outlive a power cut: what it speaks of must be on disk first.
            self._synchronise(fully=bool(due) or any(job.durable for job in batch))
            connection.execute("BEGIN IMMEDIATE")
            chains.begin()
            for job in batch:
                if isinstance(job.change, Event):
                    _append(job, job.change, chains)
                else:
                    self._change(job, job.change)
            chains.flush()
            for chain in due:
                chain.sign()
            connection.execute("COMMIT")
        except BaseException:
            chains.restore(before)
            if connection.in_transaction:
                with contextlib.suppress(apsw.Error):
                    connection.execute("ROLLBACK")
            raise
        signed = zip(chains.all, before, strict=True)
        return [one.head for one, (_, seq) in signed if one.signed_seq != seq and one.head is not None]

    def _synchronise(self, *, fully: bool) -> None:
        wanted = "full" if fully else "normal"
        if wanted != self._synchronous:  # possible only outside a transaction
            self._connection.execute(f"PRAGMA synchronous={wanted}")
            self._synchronous = wanted

    def _change(self, job: WriteJob, change: Callable[[Transaction], Any]) -> None:
        """Run one change; its own exception stays with it, the disk's fails the batch."""
        connection, chains = self._connection, self._transaction.chains
        chains.flush()
        before = chains.state
        connection.execute("SAVEPOINT change")
        try:
            job.result = change(self._transaction)
            chains.flush()
        except STORAGE_ERRORS:
            raise
        except BaseException as error:  # noqa: BLE001 - handed to the one who asked for the change
            job.error = error
            connection.execute("ROLLBACK TO change")
            chains.restore(before)
        connection.execute("RELEASE change")


def _due(batch: list[WriteJob], chains: Chains) -> list[Chain]:
    """The chains that get a head with this batch, supposing that each of its jobs appends one event."""
    calls = sum(isinstance(job.change, Event) and job.change.action == HOST_CALL for job in batch)
    more = ((chains.decisions, len(batch) - calls), (chains.calls, calls))
    return [chain for chain, count in more if count and chain.tip.seq + count - chain.signed_seq >= HEAD_EVERY]


def _append(job: WriteJob, event: Event, chains: Chains) -> None:
    try:
        job.result = chains.append(event)
    except Exception as error:  # noqa: BLE001 - a caller's wrong type is his alone
        job.error = error


def _fail(jobs: list[WriteJob], error: BaseException) -> None:
    for job in jobs:
        job.error = unavailable(error)
        if isinstance(error, Problem):
            job.error = Problem(job.error.code, f"the ledger cannot be written: {error.reason}", error.hint)
        job.error.__cause__ = error
