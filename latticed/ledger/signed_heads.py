"""Signed heads on their way to the journal, which may outlive a power cut: what they speak of must be on disk first.

A thread of its own has it fsynced meanwhile, so that no host call waits for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from latticed.kit import files
from latticed.kit.threads import UnawaitedThread
from latticed.ledger.threads import joined

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latticed.model.chain import Head


class SignedHeads:
    """Calls `tell` with heads that were committed, in their order, once the write-ahead log `wal` is fsynced.

    Belongs to the event loop it was made in. Heads whose fsync fails are not told; the next durable commit fails too.
    """

    def __init__(self, wal: Path, tell: Callable[[list[Head]], None]) -> None:
        self._wal = wal
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Head] = []
        self._thread: UnawaitedThread | None = None

    def put(self, heads: list[Head], durable: bool) -> None:  # noqa: FBT001 - of a batch, with it
        """Take the heads of a batch. `durable`: it was fsynced, and so all before it."""
        self._waiting += heads
        if self._thread is not None:  # these are told after those that it is for
            return
        if durable:
            told, self._waiting = self._waiting, []
            self._tell(told)
        else:
            self._begin()

    async def close(self) -> None:
        """Return once all heads were told."""
        while self._thread is not None:
            await joined(self._thread)
            await asyncio.sleep(0)  # `_done` runs

    def _begin(self) -> None:
        """Have the log fsynced for the heads that wait."""
        heads, self._waiting = self._waiting, []
        thread = UnawaitedThread(target=self._run, args=(heads,), name="ledger-heads", daemon=False)
        thread.start()
        self._thread = thread

    def _run(self, heads: list[Head]) -> None:
        """The thread."""
        try:
            # A descriptor of its own, as that of SQLite belongs to the writer. It has no locks on this file to lose.
            with files.closing(os.open(self._wal, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)) as fd:
                os.fdatasync(fd)
        except FileNotFoundError:
            pass  # SQLite has folded it into the database and removed it, fsynced both times: the ledger is closed
        except OSError:
            heads = []
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._done, heads)

    def _done(self, heads: list[Head]) -> None:
        """The fsync is over: tell `heads`, and go on with those that came meanwhile."""
        self._thread = None
        if heads:
            self._tell(heads)
        if self._waiting:
            self._begin()
