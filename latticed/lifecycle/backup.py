"""Backups while the daemon runs, one at a time; `backup_staging` makes each."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
from typing import TYPE_CHECKING

from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from latticed.lifecycle.backup_staging import Backup
    from latticed.lifecycle.lifecycle import Lifecycle
    from latticed.settings import Settings


class Backups:
    """Makes backups of one state directory while the daemon runs, one at a time."""

    def __init__(self, lifecycle: Lifecycle, state_dir: Path, *, version: str) -> None:
        self._lifecycle = lifecycle
        self._directory = state_dir
        self._version = version
        self._busy = asyncio.Lock()

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
