"""Long-running work on the ledger: snapshots, retention, and the rest of the integrity check of a large file."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from typing import TYPE_CHECKING, Final

import apsw

from latticed.kit import files, logs
from latticed.ledger import connection, integrity, retention
from latticed.ledger.reader import Readers
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from latticed.kit.clock import Clock
    from latticed.ledger.retention import Retention
    from latticed.ledger.transaction import Transaction
    from latticed.ledger.writer import LedgerWriter
    from latticed.model import chain

CHECK_S: Final = 60.0
"""How often retention checks the size."""

CHECKS_PER_ROUND: Final = 60
"""Retention by age runs once in this many checks of the size, so every hour."""

UNREAD_S: Final = 3_600.0
"""After a check that could not read the whole file, until the next one."""

PAGES: Final = 1_000
"""Pages (of 4 KiB, SQLite's default) that a snapshot copies between two checks whether it was cancelled."""

log = logs.get_logger()


async def remove_old(
    writer: LedgerWriter, wanted: Mapping[chain.Name, Retention], clock: Clock, *, by_age: bool
) -> int:
    """Remove what `wanted` does not keep, slice by slice; returns how many events. Problem ledger_unavailable."""
    return sum([await _remove_old(writer, name, kept, clock, by_age=by_age) for name, kept in wanted.items()])


async def _remove_old(writer: LedgerWriter, name: chain.Name, wanted: Retention, clock: Clock, *, by_age: bool) -> int:
    """As `remove_old`, for one chain; returns how many events were removed."""
    now_us = clock.wall_us()

    def due(tx: Transaction) -> int:
        old = retention.Old(tx, name)
        aged = old.by_age(wanted, now_us=now_us) if by_age else 0
        return max(aged, old.by_size(wanted))

    if not wanted.keep_days and not wanted.max_bytes:
        return 0
    # Found once, so that events recorded while slices are removed cannot keep this going.
    upto = await writer.submit(due)
    total = 0
    while upto:
        # A slice for each transaction, so that recording waits only briefly.
        removed = await writer.submit(lambda tx: retention.Old(tx, name).remove(upto), durable=True)
        if not removed:
            break
        total += removed
    if total:
        log.info("audit_removed", chain=name, events=total)
    return total


async def snapshot(database: Path, target: Path) -> None:
    """Copy `database` with SQLite's online backup, from one read snapshot, to the new file `target`, fsynced.

    Cancelling ends the copy between two steps and leaves an incomplete file.
    """
    unwanted = threading.Event()
    readers = Readers(database)
    copying = asyncio.ensure_future(readers.ask_slowly(lambda source: _copy(source, target, unwanted)))
    try:
        # Shielded, so that the copy sees `unwanted` between two steps and closes its file before this returns.
        await asyncio.shield(copying)
    except asyncio.CancelledError:
        unwanted.set()
        # Its InterruptedError is expected.
        await asyncio.gather(copying, return_exceptions=True)
        raise
    finally:
        await readers.close()


async def check_rest(database: Path) -> Problem | None:
    """Check the whole file; damage is noted beside it and returned as a Problem, None when it is sound.

    Problem ledger_unavailable when it cannot be read to its end. That is logged and not noted: it may pass.
    """
    try:
        readers = Readers(database)
        try:
            finding = await readers.ask_slowly(_whole)
        finally:
            await readers.close()
    except Problem as problem:
        log.error("ledger_unchecked", reason=problem.reason)
        raise
    if not finding:
        return None
    log.critical("ledger_damaged", finding=finding)
    with contextlib.suppress(OSError):  # the next start will check again
        integrity.note(database.parent, finding)
    return connection.damaged(f"expected a sound database, found: {finding}")


def _whole(source: connection.Connection) -> str:
    """What is wrong with the whole file, empty for nothing; an error of class DAMAGE is a finding too."""
    try:
        return integrity.check(source, whole=True)
    except connection.DAMAGE as error:
        return str(error)


def _copy(source: connection.Connection, target: Path, unwanted: threading.Event) -> None:
    """Copy the database behind `source` to the new file `target`; InterruptedError once `unwanted` is set."""
    source.execute("SELECT count(*) FROM sqlite_schema").fetchall()  # the snapshot begins here
    # Made here for its mode and for EXCL: SQLite would open an existing file, and follow a link.
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    copy = apsw.Connection(os.fspath(target), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        copy.pragma("synchronous", "off")  # synced below, once
        with copy.backup("main", source, "main") as backup:
            while not backup.done and not unwanted.is_set():
                backup.step(PAGES)
    finally:
        copy.close()
    if unwanted.is_set():
        # The incomplete file is left: the caller removes what it did not get.
        raise InterruptedError("the snapshot is not wanted any more")
    # Also for a descriptor opened for reading fsync(2) writes out the whole file.
    with files.closing(os.open(target, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)
