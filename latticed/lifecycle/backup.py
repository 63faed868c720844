"""Backups while the daemon runs, one at a time; `backup_staging` makes each."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from latticed.lifecycle.backup_staging import Backup
    from latticed.lifecycle.lifecycle import Lifecycle
    from latticed.settings import Settings

MARK: Final = "last-backup"
"""A file of the state directory, empty: its time is that of the last backup. No backup contains it."""


class Backups:
    """Makes backups of one state directory while the daemon runs, one at a time.

    `last_s`: when one was last read to its end, in seconds since 1970; 0 for never.
    """

    def __init__(self, lifecycle: Lifecycle, state_dir: Path, *, version: str) -> None:
        self._lifecycle = lifecycle
        self._directory = state_dir
        self._version = version
        self._busy = asyncio.Lock()
        self.last_s = _changed_s(state_dir / MARK)

    async def was_read(self, at_s: int) -> None:
        """A backup was read to its end just now. On a full disk this is forgotten at the end of the daemon."""
        self.last_s = at_s
        with contextlib.suppress(OSError):
            await asyncio.to_thread(_mark, self._directory / MARK, at_s)

    @contextlib.asynccontextmanager
    async def made(self, settings: Settings) -> AsyncIterator[Backup]:
        """A backup of the present state and of what `settings` chooses; removed when the block is left.

        Problems: backup_running, ledger_unavailable, ledger_damaged, and store_unavailable without space.
        ConnectionError and TimeoutError of the block itself pass through: they are about the client that reads the
        backup.
        """
        # Imported when it is needed: with tarfile and what reads damaged ledgers it takes 0.6 MiB.
        from latticed.lifecycle import backup_staging

        # No await between this check and taking the lock below: two callers cannot both pass.
        if self._busy.locked():
            raise Problem("backup_running", "another backup is being made", "wait for its end")
        stager = backup_staging.Stager(lifecycle=self._lifecycle, state_dir=self._directory, version=self._version)
        async with self._busy:
            staging = self._directory / f"{backup_staging.STAGING}{secrets.token_hex(6)}"
            try:
                yield await stager.stage(staging, settings)
            except OSError as error:
                # Both are subclasses of OSError, raised by the block: they say nothing about the disk.
                if isinstance(error, ConnectionError | TimeoutError):
                    raise
                detail = f"expected to stage a backup in the state directory, found: {error.strerror or error}"
                raise Problem("store_unavailable", detail, "free some space") from error
            finally:
                # The pairs in it are hard links: the store keeps its own.
                await asyncio.to_thread(shutil.rmtree, staging, ignore_errors=True)


def _changed_s(path: Path) -> int:
    """When a file was changed last, in seconds since 1970; 0 without it."""
    try:
        return int(path.lstat().st_mtime)
    except OSError:
        return 0


def _mark(path: Path, at_s: int) -> None:
    """Give a file, made when it is not there, this time. OSError."""
    path.touch(mode=0o600)
    os.utime(path, (at_s, at_s), follow_symlinks=False)
