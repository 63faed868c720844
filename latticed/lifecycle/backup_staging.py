"""Stages a backup in a directory below the state directory, and streams it as one tar of known length.

The ledger is a consistent snapshot. Stored pairs are hard links: a pair never changes, and the link outlives its
removal from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latticed.bundle.read import ARTIFACT
from latticed.bundle.read import MANIFEST as PLUGIN_MANIFEST
from latticed.kit import tar
from latticed.kit.clock import rfc3339
from latticed.ledger import floors, migrations, rebuild, state
from latticed.ledger.connection import RECOVER_HINT
from latticed.lifecycle import archive, restore_needs, service_archive
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator
    from pathlib import Path

    from latticed.lifecycle.lifecycle import Lifecycle
    from latticed.settings import Settings

STAGING: Final = ".backup-"
"""Prefix of the staging directory's name, below the state directory; a random part follows."""
# Bytes read at a time: large enough that switching to a thread for each costs little.
CHUNK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A staged backup; valid within the block of `backup.Backups.made`.

    `manifest` is the signed `manifest.json`, `entries` the files that follow it in the tar, `size` the size of the tar
    in bytes, `made_s` the time in Unix seconds.
    """

    directory: Path
    manifest: bytes
    entries: tuple[archive.ArchiveEntry, ...]
    size: int
    made_s: int

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes of the tar, `size` of them, in chunks of at most 1 MiB; files are read off the event loop."""
        yield self._header(archive.MANIFEST, len(self.manifest)) + self.manifest
        yield bytes(tar.padding(len(self.manifest)))
        for entry in self.entries:
            yield self._header(entry.name, entry.size)
            with (self.directory / entry.name).open("rb") as file:
                # In a thread: the disk may be slow, and a ledger is large.
                while chunk := await asyncio.to_thread(file.read, CHUNK):
                    yield chunk
            yield bytes(tar.padding(entry.size))
        yield tar.END

    def _header(self, name: str, size: int) -> bytes:
        return tar.header(name, size, mode=0o600, mtime_s=self.made_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stager:
    """Makes the files of a backup of `state_dir`; `version` is latticed's own."""

    lifecycle: Lifecycle
    state_dir: Path
    version: str

    async def stage(self, staging: Path, settings: Settings) -> Backup:
        """Stage all files of a backup, so that none of those that the ledger's snapshot names is missing.

        The floors are written first, to hold all decisions so far. Pairs are linked before and after the snapshot.
        """
        if not await self.lifecycle.deps.revocations.write_floors(self.lifecycle.records.values()):
            raise Problem("store_unavailable", f"{floors.FILE} cannot be written", "free some space")
        await asyncio.to_thread(self._begin, staging)
        await self.lifecycle.deps.ledger.snapshot(staging / state.DATABASE)
        return await asyncio.to_thread(self._complete, staging, settings)

    def _begin(self, staging: Path) -> None:
        """Make the staging directory, with links to all stored pairs."""
        for left in self.state_dir.glob(f"{STAGING}*"):  # left by a killed daemon
            shutil.rmtree(left, ignore_errors=True)
        staging.mkdir(mode=0o700)
        # Before the snapshot: a pair that its records name may be removed from the store meanwhile, but its link stays.
        self._link_pairs(staging)

    def _complete(self, staging: Path, settings: Settings) -> Backup:
        """Add the remaining files to the staging directory, check the ledger, and sign the manifest."""
        self._link_pairs(staging)  # pairs stored since; unused ones are left out
        # Links suffice: both files are replaced by renaming, never written in place.
        for name in (floors.FILE, state.HOST_KEY):
            os.link(self.state_dir / name, staging / name)
        # Checked now: a backup that cannot be restored would be noticed only when it is needed.
        if fault := rebuild.diagnosis(staging):
            raise Problem("ledger_damaged", f"expected a ledger that can be restored, found: {fault}", RECOVER_HINT)
        # Read from the snapshot, not from memory: the manifest must describe the ledger that is in the archive.
        found = rebuild.read_damaged(staging / state.DATABASE)
        in_use = found.kept | {record.facts.identity for record in found.records if record.accepted}
        # Last of the staged files, since it takes longest and is as of its own moment in any case.
        kept = service_archive.stage(self.state_dir, staging, data_bytes=settings.service.data_bytes)
        names = [*archive.NEEDED, *_pairs(staging, in_use), *kept]
        entries = tuple(_entry(staging, name) for name in names)
        key = state.load_key(staging)
        now_us = self.lifecycle.deps.clock.wall_us()
        manifest = archive.ArchiveManifest(
            created_at=rfc3339(now_us),
            version=self.version,
            ledger_version=len(migrations.MIGRATIONS),
            public_key=state.public_half(key),
            last_seq=found.last_seq,
            last_hash=found.last_hash,
            calls_seq=found.calls_seq,
            calls_hash=found.calls_hash,
            entries=entries,
            settings=restore_needs.chosen(settings),
        )
        data = archive.encode_manifest(manifest, key)
        size = _size(data, entries)
        return Backup(directory=staging, manifest=data, entries=entries, size=size, made_s=now_us // 1_000_000)

    def _link_pairs(self, staging: Path) -> None:
        """Hard-link all stored pairs into the staging directory; what is there already stays.

        A pair may vanish while it is linked, since the store removes unused ones meanwhile.
        """
        # Before the first plugin is installed there is no store.
        with contextlib.suppress(FileNotFoundError):
            for identity in os.listdir(self.state_dir / "store"):
                for name in (PLUGIN_MANIFEST, ARTIFACT):
                    target = staging / "store" / identity / name
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    # Removed meanwhile, linked by the first round, or no pair at all (a file directly in the store).
                    with contextlib.suppress(FileNotFoundError, FileExistsError, NotADirectoryError):
                        os.link(self.state_dir / "store" / identity / name, target, follow_symlinks=False)


def _pairs(staging: Path, in_use: Collection[str]) -> Iterator[str]:
    """The files of complete pairs; after a restore, a plugin without its pair waits for its bundle."""
    for identity in sorted(in_use):
        names = [f"store/{identity}/{name}" for name in (PLUGIN_MANIFEST, ARTIFACT)]
        if all((staging / name).is_file() for name in names):
            yield from names


def _entry(staging: Path, name: str) -> archive.ArchiveEntry:
    """A staged file as the manifest lists it."""
    path = staging / name
    return archive.ArchiveEntry(name=name, size=path.stat().st_size, sha256=rebuild.fingerprint(path))


def _size(manifest: bytes, entries: Collection[archive.ArchiveEntry]) -> int:
    """The size of the tar in bytes, needed before it is sent (Content-Length)."""
    sizes = [len(manifest), *(entry.size for entry in entries)]
    # Each file: a header block, its bytes, zeros up to a whole block.
    return sum(tar.BLOCK + size + tar.padding(size) for size in sizes) + len(tar.END)
