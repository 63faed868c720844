"""`latticed --restore FILE`: replace the state by that of a backup; the result is at least as strict as either.

The archive is unpacked into a staging directory and used only if all of it is valid. Every record is merged with the
present floors file (`merge_after_loss.restored`). The replaced state is moved to `replaced-<time>`. A crash during the
swap leaves a host key without a ledger, which a start refuses. Runs with the daemon stopped; blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from latticed.kit import files, tar
from latticed.kit.clock import rfc3339
from latticed.ledger import floors, integrity, rebuild, records, revocations, state
from latticed.ledger import secrets as sealed_values
from latticed.lifecycle import archive, handover, merge_after_loss, service_archive
from latticed.lifecycle import restore_needs as around
from latticed.lifecycle.revocations import floors_of
from latticed.model.audit import DAEMON, Event
from latticed.model.errors import Problem
from latticed.trust.policy import Revoked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from latticed.kit.clock import Clock
    from latticed.ledger import Transaction
    from latticed.lifecycle.recovery import RecoveryPlace
    from latticed.model.lifecycle import Record

STAGING: Final = ".restoring-"
"""Prefix of the staging directory's name. It is below the state directory: rename(2) works only within a file
system."""
STORE: Final = "store"
_KEPT: Final = "kept"  # in the staging directory: what services keep, unpacked
_NO_FLOORS: Final = (
    "keep a copy of the state directory; restore into an empty one, or, forgetting what was decided since the backup: "
    "latticed --restore FILE --without-floors"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreConsent:
    """What the operator accepts.

    `public_key`: a backup that this key of another host has signed. `without_floors`: the present floors are ignored
    when they are lost or not genuine.
    """

    public_key: str = ""
    without_floors: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreReport:
    """What was restored.

    `created_at` and `public_key` are the backup's; `records` and `pairs` are counts, `stricter` the ids of records that
    differ from those in the backup. `set_aside` names the directory with the replaced state, `placed` the bundle
    directories made. `restored`, `sealed`, `settings` are for `restore_needs.missing`.
    """

    created_at: str
    public_key: str
    records: int
    stricter: tuple[str, ...]
    pairs: int
    set_aside: str
    restored: tuple[Record, ...] = ()
    sealed: Mapping[str, int] = field(default_factory=dict)
    settings: tuple[tuple[str, str], ...] = ()
    placed: tuple[str, ...] = ()


class _HashedFile:
    """Hashes a source while it is read, so that standard input, too, is read once only.

    `hexdigest` is the archive's once it was read to its end.
    """

    def __init__(self, source: tar.TarSource) -> None:
        self._source = source
        self._digest = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        """As the source, and hash what was read."""
        chunk = self._source.read(size)
        self._digest.update(chunk)
        return chunk

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def restore(
    place: RecoveryPlace, backup: tar.TarSource, clock: Clock, consent: RestoreConsent = RestoreConsent()
) -> RestoreReport:
    """Replace the state by that of `backup`, read once from its beginning.

    Nothing of the present state is changed before the whole archive is unpacked and valid. Problems: backup_invalid,
    backup_foreign, floors_invalid, ledger_newer, state_in_use, state_unusable.
    """
    with state.locked(place.state_dir):
        staging = place.state_dir / f"{STAGING}{secrets.token_hex(6)}"
        try:
            # Safe to remove: the lock of the state directory is held, so no other restore is running.
            for left in place.state_dir.glob(f"{STAGING}*"):  # left by an interrupted restore
                shutil.rmtree(left, ignore_errors=True)
            staging.mkdir(mode=0o700)
            source = _HashedFile(backup)
            manifest = archive.unpack(source, staging, place.limits)
            return _Restore(place, staging, manifest, clock).perform(source.hexdigest(), consent)
        except OSError as error:
            detail = f"cannot restore into {place.state_dir}: {error.strerror or error}"
            raise Problem("state_unusable", detail, "nothing is lost: mend it and run this again") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)


class _Restore:
    """One restore: `staging` holds the unpacked archive, whose manifest is `manifest`."""

    def __init__(self, place: RecoveryPlace, staging: Path, manifest: archive.ArchiveManifest, clock: Clock) -> None:
        self._place = place
        self._state_dir = place.state_dir
        self._staging = staging
        self._manifest = manifest
        self._clock = clock
        self._now_us = clock.wall_us()

    def perform(self, sha256: str, consent: RestoreConsent) -> RestoreReport:
        """Make the unpacked state as strict as the present one, then swap them; `sha256` is the archive's."""
        theirs = self._theirs()
        try:
            service_archive.unpack(self._staging, self._staging / _KEPT)
        except (ValueError, TypeError, KeyError) as error:
            raise archive.invalid(f"what it has of services: {error}") from error
        report = self._amend(merge_after_loss.union(self._present(consent), theirs), sha256)
        # Bundles first: those of the swapped state must be on disk when a daemon starts. Taken back if the swap fails.
        made = around.put_bundles(self._place, self._staging / STORE, report.restored)
        try:
            self._swap(report.set_aside)
        except BaseException:
            around.take_back(made)
            raise
        return replace(report, placed=tuple(directory.name for directory in made))

    def _theirs(self) -> floors.Floors:
        """The backup's floors, once its key, ledger and floors fit together. Problem backup_invalid, ledger_newer."""
        try:
            key = state.load_key(self._staging)
            # The manifest is signed by the key that it names; here that key is found to be the state's own.
            if state.public_half(key) != self._manifest.public_key:
                raise archive.invalid("its host key is not the one that signed it")
            if found := rebuild.diagnosis(self._staging):
                raise archive.invalid(f"its ledger: {found}")
            return floors.read(self._staging, key.public_key())
        except Problem as problem:
            if problem.code not in {"ledger_damaged", "floors_invalid"}:
                raise
            raise archive.invalid(f"in it, {problem.reason}") from problem  # its hint is about a present state

    def _present(self, consent: RestoreConsent) -> floors.Floors:
        """Floors of the state to be replaced; none without a state. Problem floors_invalid, backup_foreign."""
        # A new machine has neither: nothing to be held to. A ledger alone means that both were removed.
        if not (self._state_dir / state.HOST_KEY).exists() and not floors.present(self._state_dir):
            if (self._state_dir / state.DATABASE).exists() and not consent.without_floors:
                raise Problem("floors_invalid", f"expected {state.HOST_KEY} and {floors.FILE}, found none", _NO_FLOORS)
            return floors.Floors()
        try:
            key = state.load_key(self._state_dir)
            found = rebuild.trusted_floors(self._state_dir, key)
        except Problem as problem:
            if consent.without_floors:
                return floors.Floors()
            raise Problem("floors_invalid", f"cannot restore: {problem.reason}", _NO_FLOORS) from problem
        if self._manifest.public_key not in {state.public_half(key), consent.public_key}:
            detail = f"this backup was signed by another host: {self._manifest.public_key}"
            hint = "if this host is to become that one: latticed --restore FILE --public-key KEY, with that key"
            raise Problem("backup_foreign", detail, hint)
        return found

    def _amend(self, kept: floors.Floors, sha256: str) -> RestoreReport:
        """Make the unpacked ledger as strict as `kept`, and write matching floors."""
        key = state.load_key(self._staging)
        database = self._staging / state.DATABASE
        # Read without opening it for writing; `_theirs` has checked that it is sound.
        before = {record.id: record for record in rebuild.read_damaged(database).records}
        changed = merge_after_loss.held_to(before, kept, now_us=self._now_us, replaced=True)
        report = RestoreReport(
            created_at=self._manifest.created_at,
            public_key=self._manifest.public_key,
            records=len(before),
            stricter=tuple(sorted(record.id for record in changed)),
            pairs=sum(entry.name.endswith("/artifact") for entry in self._manifest.entries),
            set_aside=f"replaced-{rfc3339(self._now_us).replace(':', '').replace('-', '')}",
        )
        present = rebuild.read_damaged(self._state_dir / state.DATABASE)
        revoked: list[revocations.RevocationRows] = []
        sealed: Counter[str] = Counter()

        # In the same transaction: the event, the stricter records, the approvals and revocations.
        def change(tx: Transaction) -> None:
            tx.append_audit(self._event(report, sha256, present))
            for record in changed:
                records.put(tx, record)
                handover.set_aside_lost(tx, before.get(record.id), record)
            handover.withdraw_approvals(tx)
            revocations.remember(tx, kept.revoked, now_us=self._now_us)
            revoked.append(revocations.load(tx))
            sealed.update(row.key_id for row in sealed_values.load_all(tx))

        head = rebuild.write(database, key, self._clock, change)
        everything = {**before, **{record.id: record for record in changed}}
        all_revoked = Revoked(**{kind: getattr(revoked[0], kind) for kind in revocations.KINDS})
        # Floors that fit the new ledger, with its head: the next start finds neither older than the other.
        wanted = replace(floors_of(everything.values(), all_revoked), sources=kept.sources)
        replaced = (*present.heads, *kept.replaced)
        floors.write(self._staging, floors.of_replaced(wanted, head, rfc3339(self._now_us), replaced), key)
        restored = tuple(everything[one] for one in sorted(everything))
        return replace(report, restored=restored, sealed=dict(sealed), settings=self._manifest.settings)

    def _event(self, report: RestoreReport, sha256: str, replaced: rebuild.RecoveredRows) -> Event:
        """The event of the restore: which archive, and where the chains of the replaced ledger ended."""
        return Event(
            actor=str(DAEMON),
            action="ledger.restored",
            target="ledger",
            detail={
                "created_at": report.created_at,
                "sha256": sha256,
                "records": report.records,
                "stricter": len(report.stricter),
                "set_aside": report.set_aside,
                "replaced_seq": replaced.last_seq,
                "replaced_hash": replaced.last_hash,
                "replaced_calls_seq": replaced.calls_seq,
                "replaced_calls_hash": replaced.calls_hash,
            },
        )

    def _swap(self, set_aside: str) -> None:
        """Swap the states: the old ledger is moved out first and the new one moved in last.

        So a crash at any point leaves no ledger beside the key or floors of another state.
        """
        directory, staging = self._state_dir, self._staging
        # The old ledger leaves first: from here a start finds a key without a ledger, and refuses.
        old = directory / set_aside
        old.mkdir(mode=0o700)
        for part in (*rebuild.PARTS, integrity.NOTE):
            name = part if part == integrity.NOTE else f"{state.DATABASE}{part}"
            with contextlib.suppress(FileNotFoundError):
                os.rename(directory / name, old / name)
        for name in (floors.FILE, state.HOST_KEY):
            with contextlib.suppress(FileNotFoundError):  # linked, not moved: a start refuses a key without ledger
                os.link(directory / name, old / name)
        for name in (STORE, service_archive.DIRECTORY):
            with contextlib.suppress(FileNotFoundError):
                os.rename(directory / name, old / name)
        # Durable before anything new moves in: after a power cut the two states must not be mixed.
        files.sync_directory(old)
        files.sync_directory(directory)
        # The new state moves in, its ledger last: with it the swap is complete.
        if (staging / STORE).exists():
            _sync_tree(staging / STORE)
            os.rename(staging / STORE, directory / STORE)
        if (staging / _KEPT).exists():
            os.rename(staging / _KEPT, directory / service_archive.DIRECTORY)
        for name in (state.HOST_KEY, floors.FILE):
            os.rename(staging / name, directory / name)
        files.sync_directory(directory)
        rebuild.put_in_place(directory, staging / state.DATABASE)


def _sync_tree(directory: Path) -> None:
    """Sync a directory and those in it: their entries (fsync(2)); `archive` has synced the files themselves."""
    for path in directory.iterdir():
        files.sync_directory(path)
    files.sync_directory(directory)
