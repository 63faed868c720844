"""The pairs that runners start from: manifest and artifact as they were verified, by identity (decision 2).

`<store>/<identity>/manifest.json` and `artifact`: directories 0700, files 0400. A pair appears whole, by a rename, or
not at all. The store is no trust anchor: who starts something from it verifies it again first. The pairs of built-in
plugins are found here too, though they lie in latticed's own packages: whoever judges, opens or keeps a pair need not
know which of both it is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import threading
from typing import TYPE_CHECKING, Final

from latticed.bundle import decode, read
from latticed.bundle.refusal import BundleRefused
from latticed.catalog.builtins import Builtins
from latticed.kit import files
from latticed.model.errors import Problem
from latticed.model.verdict import Code, Refused, Verdict, Verified
from latticed.trust import payload, verify

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from latticed.bundle.read import BundleDirectory, Stamp
    from latticed.trust.policy import TrustPolicy

_IDENTITY: Final = re.compile(r"[0-9a-f]{64}")
# Prefix of names that are not complete pairs yet, or no longer.
_TEMPORARY: Final = ".tmp-"
_REMEMBERED: Final = 64
"""Of how many pairs it is known that their stored artifact was hashed and has not been touched since."""
_HINT_AGAIN: Final = "the bundle changed meanwhile: look at it again, and install what it is now"


class Store:
    """Verified pairs beneath `directory`, and those of `builtins`.

    All methods block; `keep` and `collect` may run beside each other.
    """

    def __init__(
        self, directory: Path, *, limits: read.ReadLimits | None = None, builtins: Builtins | None = None
    ) -> None:
        self.builtins = builtins or Builtins()
        self._directory = directory
        self._limits = limits or read.ReadLimits()
        # The store is private: unlike in a plugin directory, not even root's files are expected here.
        self._owners = frozenset({os.geteuid()})
        self._busy: set[str] = set()
        self._kept: set[str] = set()
        self._hashed: dict[str, Stamp] = {}  # of the last pairs: the stamp of the stored artifact when it was hashed
        self._lock = threading.Lock()  # a pair is either kept or taken away, never both at once

    def keep(self, source: BundleDirectory, verified: Verified) -> None:
        """Copy the pair that was `verified` from `source`; one that is stored already, and intact, is left alone.

        Where only its signature is another one, the manifest alone is replaced, in one step: a start meanwhile finds
        the old or the new one, whole.

        BundleRefused (digest_mismatch, changed_while_reading, …) when `source` no longer holds what was verified;
        Problem("store_unavailable") when it cannot be written. Either way nothing of it stays behind.
        """
        with self._lock:
            # Before the stored pair is looked at: a `collect` in between must not take away what is found intact.
            self._kept.add(verified.identity)
        # A damaged pair is replaced while its bundle verifies.
        stored = self._stored_signature(verified)
        if stored == verified.manifest.signature_ed25519:
            return
        # In the store itself: rename(2) does not work across file systems.
        temporary = f"{_TEMPORARY}{secrets.token_hex(8)}"
        # Before it exists: `collect` would take it for the rest of an interrupted write.
        self._busy.add(temporary)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if stored is not None:
                self._replace_manifest(self._directory / temporary, source, verified)
            else:
                self._write(self._directory / temporary, source, verified)
                self._put_in_place(temporary, verified.identity)
        except OSError as error:
            detail = f"expected to store a verified pair, found: {error.strerror or error}"
            hint = "free some space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "check the state directory"
            raise Problem("store_unavailable", detail, hint) from error
        finally:
            # What cannot be removed now (the disk may be the trouble) the next `collect` removes.
            shutil.rmtree(self._directory / temporary, ignore_errors=True)
            self._busy.discard(temporary)

    def open(self, identity: str) -> BundleDirectory:
        """The pair, to be read; BundleRefused when there is none. Of stored ones only our own user's files count."""
        if (pair := self.builtins.pair(identity)) is not None:
            return pair
        return read.open_bundle(self.path(identity), limits=self._limits, owners=self._owners)

    def path(self, identity: str) -> Path:
        """Where the pair of `identity` (64 lowercase hex digits) is, or would be."""
        if _IDENTITY.fullmatch(identity) is None:
            raise ValueError(f"expected 64 hex digits, found {identity[:80]!r}")
        return self._directory / identity

    def verify(self, identity: str, policy: TrustPolicy, *, host_version: str, sha256: str | None = None) -> Verdict:
        """The verdict on the pair of `identity`, judged anew under `policy`; digest_mismatch if the pair has another
        identity.

        `sha256`: the artifact's hash, known already. The artifact is then not read, so what the policy refuses is found
        sooner. The files of built-ins are those of the start; a runner compares them once more before it loads them.
        """
        if (found := self.builtins.verify(identity, policy)) is not None:
            return found
        try:
            with self.open(identity) as directory:
                source = directory if sha256 is None else _HashedCopy(directory, sha256)
                verdict = verify.verify(source, policy, host_version=host_version)
        except BundleRefused as refused:
            return refused.fault
        if sha256 is None and isinstance(verdict, Refused):
            # Bytes can change under the same stamp (a page mapped for writing, a failing disk): `keep` is to look.
            self._note_hashed(identity, None)
        if isinstance(verdict, Verified) and verdict.identity != identity:
            return Refused(
                code=Code.DIGEST_MISMATCH,
                reason=f"expected the stored pair to have the identity {identity}, found {verdict.identity}",
                hint="somebody changed the store: install the plugin again",
                manifest=verdict.manifest,
            )
        return verdict

    def identities(self) -> list[str]:
        """The identities of all pairs, stored or built in, sorted, whether they verify or not."""
        found = self.builtins.identities()
        with contextlib.suppress(FileNotFoundError):
            found += [name for name in os.listdir(self._directory) if _IDENTITY.fullmatch(name)]
        return sorted(found)

    def mark(self) -> None:
        """Call it where `in_use` is read, before `collect`: what is kept from here on, `collect` leaves alone."""
        self._kept = set()  # no lock: the loop must not wait for a disk, and a keep under way is known to be in use

    def collect(self, in_use: Collection[str]) -> int:
        """Remove pairs that are neither `in_use` nor kept since `mark`, and what interrupted writes left; how many."""
        wanted = frozenset(in_use)
        removed = 0
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._directory):
                if _IDENTITY.fullmatch(name) is not None and name not in wanted:
                    removed += self._take_away(name)
                # Left by a daemon that was killed, or by a removal that failed; not what a `keep` is writing now.
                elif name.startswith(_TEMPORARY) and name not in self._busy:
                    shutil.rmtree(self._directory / name, ignore_errors=True)
                    removed += 1
            if removed:
                files.sync_directory(self._directory)
        return removed

    def _take_away(self, name: str) -> bool:
        """Remove one pair, unless it was kept meanwhile; in one step, so that no reader finds half of it."""
        aside = self._directory / f"{_TEMPORARY}{secrets.token_hex(8)}"
        with self._lock:
            if name in self._kept:
                return False
            try:
                # With the lock held only for the rename; removing the files may take long, and `keep` would wait.
                os.rename(self._directory / name, aside)
            except OSError:  # the next call tries again
                return False
        shutil.rmtree(aside, ignore_errors=True)
        return True

    def _stored_signature(self, verified: Verified) -> str | None:
        """The signature of the stored pair; None unless all else of it is, byte for byte, what was verified."""
        try:
            with self.open(verified.identity) as directory:
                manifest = directory.manifest()
                # Hashed once: between install and activate nothing wrote to it, and a start hashes what it runs.
                if (known := self._hashed.get(verified.identity)) is None or known != directory.artifact_stamp():
                    if directory.hash_artifact() != (verified.artifact_sha256, verified.artifact_bytes):
                        return None
                    self._note_hashed(verified.identity, directory.read_as)
                if _identity(manifest) != verified.identity:
                    return None
        except BundleRefused:
            return None
        return decode.decode(manifest)[1].signature_ed25519

    def _note_hashed(self, identity: str, stamp: Stamp | None) -> None:
        """Remember the stamp that the stored artifact of this identity had when its hash was the right one."""
        with self._lock:
            self._hashed.pop(identity, None)
            if stamp is not None:
                self._hashed[identity] = stamp
            while len(self._hashed) > _REMEMBERED:
                del self._hashed[next(iter(self._hashed))]

    def _replace_manifest(self, aside: Path, source: BundleDirectory, verified: Verified) -> None:
        """Put the manifest of `source`, which has another signature, into the stored pair in one step."""
        target = self.path(verified.identity)
        self._write_manifest(aside, source, verified)
        # Its bytes were synced in _write_manifest: after a power cut the name leads to the old or the new file, whole.
        os.rename(aside / read.MANIFEST, target / read.MANIFEST)
        # The rename is durable only now (fsync(2): syncing a file does not sync its directory entry).
        files.sync_directory(target)

    def _write_manifest(self, target: Path, source: BundleDirectory, verified: Verified) -> None:
        """Make the directory `target` with the manifest, fsynced; BundleRefused if it is not what was verified."""
        target.mkdir(mode=0o700)
        manifest = source.manifest()
        # The source may have changed since it was verified: what is written is checked, not what was read then.
        found = _identity(manifest)
        if found != verified.identity or decode.decode(manifest)[1] != verified.manifest:
            raise BundleRefused(
                Code.CHANGED_WHILE_READING,
                f"expected the manifest of the identity {verified.identity} as it was verified, found {found}",
                _HINT_AGAIN,
            )
        with files.closing(_create(target / read.MANIFEST)) as fd:
            files.write_all(fd, manifest)
            os.fsync(fd)

    def _write(self, target: Path, source: BundleDirectory, verified: Verified) -> None:
        """Make the directory `target` with the whole pair, fsynced; BundleRefused if it is not what was verified."""
        self._write_manifest(target, source, verified)
        with files.closing(_create(target / read.ARTIFACT)) as fd:
            sha256, _ = source.hash_artifact(copy_to=fd)
            if sha256 != verified.artifact_sha256:
                reason = f"expected the artifact's SHA-256 to be {verified.artifact_sha256}, found {sha256}"
                raise BundleRefused(Code.DIGEST_MISMATCH, reason, _HINT_AGAIN)
            os.fsync(fd)
            self._note_hashed(verified.identity, read.stamp_of(os.fstat(fd)))
        # Both entries on the disk before the pair gets its name: a pair that is there after a power cut is whole.
        files.sync_directory(target)

    def _put_in_place(self, temporary: str, identity: str) -> None:
        """Rename onto the identity; a damaged pair of that name is moved aside first, for `keep` never trusts it."""
        target = self.path(identity)
        try:
            os.rename(self._directory / temporary, target)
        except OSError as error:
            # rename(2): the first two for a directory that is not empty, the third for a file or link.
            if error.errno not in {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}:
                raise
            damaged = self._directory / f"{_TEMPORARY}{secrets.token_hex(8)}"
            os.rename(target, damaged)
            os.rename(self._directory / temporary, target)
            # rmtree refuses files and links.
            if damaged.is_dir() and not damaged.is_symlink():
                shutil.rmtree(damaged, ignore_errors=True)
            else:
                damaged.unlink()
        files.sync_directory(self._directory)


class _HashedCopy:
    """A pair whose artifact's hash is known already; its size is not, nor what it is run by."""

    interpreter = ""

    def __init__(self, directory: BundleDirectory, sha256: str) -> None:
        self._directory = directory
        self._sha256 = sha256

    def manifest(self) -> bytes:
        return self._directory.manifest()

    def hash_artifact(self) -> tuple[str, int]:
        return self._sha256, 0


def _create(path: Path) -> int:
    """The descriptor of a new file, open for writing, never through a link. Mode 0400: nothing writes to a stored pair
    again.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)


def _identity(manifest: bytes) -> str:
    """The identity of a manifest: the hash of what its signature covers."""
    raw, decoded = decode.decode(manifest)
    return payload.identity(payload.signing_payload(raw, decoded))
