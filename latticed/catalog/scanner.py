"""Lists a plugin directory, compares its bundles with what is known of them, and judges those that changed.

Everything here blocks on the file system and runs on worker threads.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Final

from latticed.bundle import read
from latticed.bundle.refusal import BundleRefused
from latticed.catalog import root as roots
from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.model.verdict import Code, Refused, Verdict, Verified
from latticed.trust import verify

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latticed.catalog.root import Root, RootId
    from latticed.catalog.watcher import Watcher
    from latticed.kit.clock import Clock
    from latticed.trust.policy import TrustPolicy

Fingerprint = bytes
"""Who may own the files, and what `lstat` says of manifest and artifact; packed, for there is one of each bundle."""

# bundle.read.Stamp: dev, inode, size, mode, mtime_ns, ctime_ns.
_STAMP: Final = struct.Struct("=QQqIqq")

_UNSETTLED: Final = frozenset({Code.UNREADABLE, Code.CHANGED_WHILE_READING})
"""Verdicts that may differ next time although the files' metadata is the same."""

_RACY_NS: Final = 100_000_000
"""A file that changed less than this before it was read, or since, may change again with the same times, as many file
systems keep them at the resolution of a kernel tick. Its entry is not compared: the next scan reads it again.
"""

_AHEAD_NS: Final = 60_000_000_000
"""So far ahead of ours may the clock be by which a file has its times, where another machine gives them."""


class DirectoryEntry(Value, frozen=True, kw_only=True):
    """One bundle as it was last judged.

    `fingerprint` None means that the next scan judges again. `artifact` is (SHA-256 hex, bytes) of what was hashed,
    where the verdict does not say it; `interpreter` what it is run by. `surplus`: it had no slot, and was not read.
    """

    verdict: Verdict
    fingerprint: Fingerprint | None = None
    artifact: tuple[str, int] | None = None
    interpreter: str = ""
    surplus: bool = False

    @property
    def hashed(self) -> tuple[str, int] | None:
        """(SHA-256 hex, bytes) of the artifact, if it was read; else None."""
        found = self.verdict
        return (found.artifact_sha256, found.artifact_bytes) if isinstance(found, Verified) else self.artifact


class KnownFiles(Value, frozen=True, kw_only=True):
    """A bundle's files, by `fingerprint`, and what of them needs not be read again: as in DirectoryEntry."""

    fingerprint: Fingerprint
    hashed: tuple[str, int]
    interpreter: str


class Listing(Value, frozen=True, kw_only=True):
    """The names in a directory that may be bundles; `unlisted` counts further ones, beyond the limit."""

    names: frozenset[str]
    unlisted: int


class Candidate(Value, frozen=True, kw_only=True):
    """What is known of a bundle directory without reading a file: its (dev, inode), the uid of its owner, and whether
    there is a manifest in it.
    """

    inode: RootId
    owner: int
    has_manifest: bool


class Judge(Value, frozen=True, kw_only=True):
    """Gives the verdict on a bundle directory (`judge`), on a worker thread.

    `policy` is called for each verdict, so a change of policy counts at once. `host_version` is what a manifest may ask
    for; `clock` is only compared with the time of a file's last change.
    """

    limits: read.ReadLimits
    policy: Callable[[], TrustPolicy]
    host_version: str
    clock: Clock

    def judge(
        self, name: str, root: Root, *, known: DirectoryEntry | KnownFiles | None = None, compare: bool = False
    ) -> DirectoryEntry:
        """The entry of the bundle directory `name`, as of now.

        The artifact is hashed, unless `known` was made from the very same files: then its hash is used. With `compare`
        the answer is `known` itself in that case. Never raises for a bad bundle.
        """
        # Before reading: what changes while it is read differs from this at the next comparison.
        began_us = self.clock.wall_us()
        stamps = read.fingerprint(name, beneath=root.fd)
        before = _packed(root, stamps)
        same = known is not None and known.fingerprint == before
        if compare and same and isinstance(known, DirectoryEntry):
            return known
        source: _Source | None = None
        try:
            with read.open_bundle(name, beneath=root.fd, limits=self.limits, owners=root.owners) as directory:
                source = _Source(directory, known if same else None)
                verdict = verify.verify(source, self.policy(), host_version=self.host_version)
        except BundleRefused as refused:
            verdict = refused.fault
        # An entry that may not be compared has no fingerprint: the next scan reads the bundle again.
        comparable = self._comparable(stamps, began_us) and not (
            isinstance(verdict, Refused) and verdict.code in _UNSETTLED
        )
        return DirectoryEntry(
            verdict=verdict,
            fingerprint=before if comparable else None,
            artifact=source.artifact if source is not None and isinstance(verdict, Refused) else None,
            interpreter=source.interpreter if source is not None else "",
        )

    def _comparable(self, found: tuple[read.Stamp | None, read.Stamp | None], began_us: int) -> bool:
        """Whether a later look that finds the same fingerprint finds the same bytes; all was read since `began_us`."""
        first_ns, last_ns = began_us * 1000 - _RACY_NS, self.clock.wall_us() * 1000 + _AHEAD_NS
        # By ctime, which unlike mtime nobody can set (utimensat(2)). Nor will one that is far ahead, as after the clock
        # was set back, be that of a change to come.
        return all(stamp is not None and not first_ns <= stamp[-1] <= last_ns for stamp in found)


@dataclass(slots=True, eq=False)
class _Source:
    """What `trust.verify` reads from: the bundle, except for an artifact whose hash is known already."""

    _directory: read.BundleDirectory
    _known: InitVar[DirectoryEntry | KnownFiles | None]
    artifact: tuple[str, int] | None = field(init=False, default=None)
    interpreter: str = field(init=False, default="")

    def __post_init__(self, _known: DirectoryEntry | KnownFiles | None) -> None:
        if _known is not None and _known.hashed is not None:
            self.artifact, self.interpreter = _known.hashed, _known.interpreter

    def manifest(self) -> bytes:
        """The bytes of the manifest, always read."""
        return self._directory.manifest()

    def hash_artifact(self) -> tuple[str, int]:
        """(SHA-256 hex, bytes) of the artifact, from before or hashed now."""
        if self.artifact is None:
            self.artifact = self._directory.hash_artifact()
            self.interpreter = self._directory.interpreter
        return self.artifact


def fingerprint(name: str, root: Root) -> Fingerprint:
    """The fingerprint of the bundle `name` in `root`: its files' metadata, without reading them.

    While it equals that of a DirectoryEntry, the entry's verdict was made from the same files.
    """
    return _packed(root, read.fingerprint(name, beneath=root.fd))


def has_changed(name: str, root: Root, known: Fingerprint) -> bool:
    """Whether the bundle's files are others than those of this fingerprint. A link in the place of its directory that
    leads to the very same files is no change: the watch of the plugin directory reports it.
    """
    return _packed(root, read.stamps(name, beneath=root.fd)) != known


def list_names(path: Path, *, watcher: Watcher, most: int) -> Listing:
    """Watch the plugin directory and list it, without looking at what it lists.

    Of more than `most` names those that readdir(3) returns first are taken. Problem directory_missing or
    directory_unreadable.
    """
    try:
        root = roots.open_root(path)
    except Problem as problem:
        if problem.code == "directory_missing":
            # The watches follow inodes: they would report what happens wherever the directory went.
            watcher.disarm_all()
        raise
    names: set[str] = set()
    unlisted = 0
    try:
        # Watch first, list then: what appears in between causes an event or is listed, or both.
        watcher.arm_root(root)
        os.stat(".", dir_fd=root.fd)  # fails where names can be listed and not looked at
        with os.scandir(root.fd) as entries:
            for entry in entries:
                if not roots.may_be_bundle(entry.name) or not _may_be_directory(entry):
                    continue
                if len(names) < most:
                    names.add(entry.name)
                else:
                    unlisted += 1
    except OSError as error:
        detail = f"expected to list the directory {path}, found: {error.strerror}"
        raise Problem("directory_unreadable", detail, "the daemon's user must be able to list and enter it") from error
    finally:
        root.close()
    return Listing(names=frozenset(names), unlisted=unlisted)


def candidate(name: str, root: Root) -> Candidate | None:
    """What `name` is; None when there is no directory of that name. OSError when it cannot be looked at."""
    try:
        found = os.stat(name, dir_fd=root.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if not stat.S_ISDIR(found.st_mode):
        return None
    try:
        # Two components, so a link in the place of `name` would be followed: this decides only which slots it needs.
        os.stat(f"{name}/{read.MANIFEST}", dir_fd=root.fd, follow_symlinks=False)
        has_manifest = True
    # Any other error is the caller's: it means that the bundle cannot be looked at.
    except FileNotFoundError:
        has_manifest = False
    return Candidate(inode=(found.st_dev, found.st_ino), owner=found.st_uid, has_manifest=has_manifest)


def _may_be_directory(entry: os.DirEntry[str]) -> bool:
    """Whether the listing says that it is a directory. True also if the listing does not say and the entry cannot be
    looked at.
    """
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return True


def _packed(root: Root, stamps: tuple[read.Stamp | None, read.Stamp | None]) -> Fingerprint:
    """Equal for equal owners and stamps, and for those only: a file's part has its length, a missing one's is empty."""
    owners = sorted(root.owners)
    parts = [_STAMP.pack(*stamp) if stamp is not None else b"" for stamp in stamps]
    return struct.pack(f"={3 + len(owners)}I", len(owners), *map(len, parts), *owners) + b"".join(parts)
