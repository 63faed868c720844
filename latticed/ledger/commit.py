"""Commits one batch of changes as one transaction, on the writer's thread.

On a full disk the reserve file is given up for essential jobs (a stop, a revocation); all others are refused until the
reserve has been allocated again.
"""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING, Any, Final

import apsw

from latticed.ledger.connection import STORAGE_ERRORS, unavailable
from latticed.model.audit import HOST_CALL, AllowedCall, Event
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.ledger.chain import Chain, Chains
    from latticed.ledger.reserve import Reserve
    from latticed.ledger.state import StateDir
    from latticed.ledger.transaction import Transaction, WriteJob
    from latticed.model.chain import Head

LOOK_S: Final = 0.05
"""How long the state directory is taken for what it was just found to be."""
HEAD_EVERY: Final = 1_000
"""A chain gets a head with the batch that makes it this many events past its last one."""
_EVENTS: Final = (AllowedCall, Event)


class Committer:
    """Commits batches to an open state directory; every job gets its result or its error.

    A batch fails if the directory's files are not those that were opened (`DirectoryIdentity`): a commit into a
    replaced or removed file would be lost at the next start. They are looked at after each commit and before each one,
    which events alone do without when that was just now: what was tried may be on record though it is refused.

    `refused`: why the disk did not take the last batch, None once it has; what is essential does not count, as it may
    be from the reserve. `changes`: how many jobs were carried out that were no events.
    """

    def __init__(self, entered: StateDir, transaction: Transaction, reserve: Reserve) -> None:
        self._connection = entered.writer
        self._place = entered.identity
        self._transaction = transaction
        self._reserve = reserve
        self.refused: Problem | None = None
        self.changes = 0
        self._looked_s = 0.0
        self._synchronous = "normal"
        reserve.held()  # allocates it now: at the first write the disk may be full already

    def perform(self, batch: list[WriteJob]) -> list[Head]:
        """Commit `batch` and return the heads signed with it. Never raises: errors are set on the jobs."""
        # Before the commit, so that nothing is written into a file that the next start will not find, and no refused
        # change is there once the files are back.
        if self._unlooked(batch) and (fault := self._place.fault()) is not None:
            self._fail(batch, fault)
            return []
        heads = self._perform(batch)
        self._place.written()
        # Afterwards, which is what counts: the files may have been replaced meanwhile. Jobs that failed keep their own
        # error.
        if (fault := self._place.fault()) is not None:
            self._looked_s = 0.0
            self._fail([job for job in batch if job.error is None], fault)
            return []
        self._looked_s = time.monotonic()
        return heads

    def _unlooked(self, batch: list[WriteJob]) -> bool:
        """Whether the directory is to be looked at before this batch."""
        return time.monotonic() - self._looked_s > LOOK_S or any(not isinstance(job.change, _EVENTS) for job in batch)

    def _perform(self, batch: list[WriteJob]) -> list[Head]:
        """Commit the batch, or on a full disk the essential jobs of it."""
        # The reserve is not held when it was given up, or when the disk was too full for it from the start.
        scarce = not self._reserve.held()
        if scarce:
            self._fail([job for job in batch if not job.essential], OSError(errno.ENOSPC, "the disk is full"))
            batch = [job for job in batch if job.essential]
        try:
            heads = self._commit(batch) if batch else []
            if scarce:
                self._fold()
            else:
                self.refused = None
            return heads
        # `_commit` has rolled back, so nothing of the batch is on disk and its essential jobs may run a second time.
        except STORAGE_ERRORS as error:
            return self._again(batch, error)
        except BaseException as error:  # noqa: BLE001 - set on the jobs, for their futures; the thread must go on
            self._fail(batch, error)
            return []

    def _again(self, batch: list[WriteJob], error: BaseException) -> list[Head]:
        """After a storage error: give up the reserve and retry the essential jobs; the others fail with `error`."""
        self._fail([job for job in batch if not job.essential], error)
        essential = [job for job in batch if job.essential]
        if not essential:
            return []
        # The space must be free before the WAL is checkpointed: folding it may need room in the database file.
        self._reserve.give_up()
        self._fold()
        try:
            heads = self._commit(essential)
            self._fold()
            return heads
        except BaseException as still:  # noqa: BLE001 - as above
            self._fail(essential, still)
            return []

    def _fail(self, jobs: list[WriteJob], error: BaseException) -> None:
        """Set Problem ledger_unavailable, caused by `error`, on each job."""
        for job in jobs:
            # One exception per job: each is raised in another caller, and a traceback grows with each raise.
            problem = unavailable(error)
            if isinstance(error, Problem):
                problem = Problem(problem.code, f"the ledger cannot be written: {error.reason}", error.hint)
            problem.__cause__ = error
            job.error = unrecorded(problem) if isinstance(job.change, _EVENTS) else problem
            if not job.essential:
                self.refused = problem

    def _fold(self) -> None:
        """Checkpoint the WAL, so that it is overwritten from its start instead of growing on a full disk.

        A commit writes about ten times the size of its rows to the WAL.
        """
        # PASSIVE waits for no reader. That it fails or leaves frames only costs space; the rows are in the WAL already.
        with contextlib.suppress(apsw.Error):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def _commit(self, batch: list[WriteJob]) -> list[Head]:
        """Commit `batch` as one transaction and return the new heads; on a storage error roll back and raise."""
        connection, chains = self._connection, self._transaction.chains
        # Tips live in memory and are changed by `append`: what a rollback must restore is taken before the transaction.
        before = chains.state
        due = _due(batch, chains)
        # One event alone is one statement, which is a transaction of its own.
        alone = len(batch) == 1 and not due and isinstance(batch[0].change, _EVENTS)
        try:
            self._synchronise(fully=any(job.durable for job in batch))
            # IMMEDIATE takes the write lock here; otherwise a busy database would fail within a job.
            if not alone:
                connection.execute("BEGIN IMMEDIATE")
            chains.begin()
            for job in batch:
                if isinstance(job.change, _EVENTS):
                    _append(job, job.change, chains)
                else:
                    self._change(job, job.change)
            chains.flush()
            # After the flush, when the tips are final: a head must be of the last event of this transaction.
            for chain in due:
                chain.sign()
            if not alone:
                connection.execute("COMMIT")
        except BaseException:
            # Restored first: if ROLLBACK fails as well, the tips must not count events that were not committed.
            chains.restore(before)
            # On some errors (disk full, I/O) SQLite has rolled back itself; ROLLBACK would then be an error.
            if connection.in_transaction:
                with contextlib.suppress(apsw.Error):
                    connection.execute("ROLLBACK")
            raise
        # Heads of this transaction only; a `sign` whose savepoint was rolled back has restored `signed_seq`.
        signed = zip(chains.all, before, strict=True)
        return [one.head for one, (_, seq) in signed if one.signed_seq != seq and one.head is not None]

    def _synchronise(self, *, fully: bool) -> None:
        """Have the next commit fsynced (`full`) or only written (`normal`).

        A power cut may lose what was only written, kill -9 neither.
        """
        wanted = "full" if fully else "normal"
        if wanted != self._synchronous:  # SQLite ignores this pragma within a transaction
            self._connection.execute(f"PRAGMA synchronous={wanted}")
            self._synchronous = wanted

    def _change(self, job: WriteJob, change: Callable[[Transaction], Any]) -> None:
        """Run one change in a savepoint; its own exception undoes it alone, a storage error fails the whole batch."""
        connection, chains = self._connection, self._transaction.chains
        # Events of earlier jobs must be inserted outside the savepoint, or its rollback would take them along.
        chains.flush()
        before = chains.state
        self.changes += 1
        connection.execute("SAVEPOINT change")
        try:
            job.result = change(self._transaction)
            # Within the savepoint, so that an event which cannot be inserted fails its own change.
            chains.flush()
        # SQLite may have ended the transaction and the savepoint with it, so the other jobs cannot go on.
        except STORAGE_ERRORS:
            raise
        except BaseException as error:  # noqa: BLE001 - set on the job, for its caller
            job.error = error
            connection.execute("ROLLBACK TO change")
            chains.restore(before)
        # ROLLBACK TO leaves the savepoint open (sqlite.org/lang_savepoint.html), so it is released in both cases.
        connection.execute("RELEASE change")


def _due(batch: list[WriteJob], chains: Chains) -> list[Chain]:
    """The chains that get a head with this batch; a job that is no event is counted as one decision."""
    # Before the jobs run, so an estimate: a change may append no event or several. Then a head comes a little early or
    # late.
    if all(one.seq + len(batch) - one.signed_seq < HEAD_EVERY for one in chains.all):  # nearly all batches
        return []
    calls = sum(isinstance(job.change, _EVENTS) and job.change.action == HOST_CALL for job in batch)
    more = ((chains.decisions, len(batch) - calls), (chains.calls, calls))
    return [chain for chain, count in more if count and chain.seq + count - chain.signed_seq >= HEAD_EVERY]


def _append(job: WriteJob, event: Event | AllowedCall, chains: Chains) -> None:
    """Append one event; its seq, or what was raised, is set on its job, and no other job fails."""
    try:
        job.result = chains.append(event)
    except Exception as error:  # noqa: BLE001 - a field of a wrong type fails this job only
        job.error = unrecorded(error)


def unrecorded(error: BaseException) -> Problem:
    """Why an event is not on record, with the code that callers answer with: what is not recorded is not done."""
    # Anything else than a Problem is unexpected; callers rely on a record or a Problem, nothing else.
    reason, hint = (error.reason, error.hint) if isinstance(error, Problem) else (repr(error), "")
    problem = Problem("audit_unavailable", f"the event cannot be recorded: {reason}", hint)
    problem.__cause__ = error
    return problem
