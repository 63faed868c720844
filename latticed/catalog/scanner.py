"""Looking at a plugin directory: which bundles there are, which changed, and what the judge says of each.

Everything here blocks on the file system and runs on the crew's threads.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from latticed.bundle import read
from latticed.bundle.refusal import ReadRefused
from latticed.catalog import root as roots
from latticed.model.errors import Problem
from latticed.model.verdict import Code, Refused, Verdict, Verified
from latticed.trust import verify

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from latticed.catalog.root import Root, RootId
    from latticed.catalog.watcher import Watcher
    from latticed.kit.clock import Clock
    from latticed.trust.policy import TrustPolicy

Fingerprint = bytes
"""Who may own the files, and what `lstat` says of manifest and artifact; packed, for there is one of each bundle."""

_STAMP: Final = struct.Struct("=QQqIqq")

_UNSETTLED: Final = frozenset({Code.UNREADABLE, Code.CHANGED_WHILE_READING})
"""What may look different next time although the files tell no change."""

_RACY_NS: Final = 100_000_000
"""A file that changed this shortly before it was read may change again without its times telling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One bundle as it was last judged.

    `fingerprint` None means that the next scan judges again; `artifact` is (SHA-256 hex, bytes) of what was hashed,
    where the verdict does not say it. `surplus`: one more than the settings allow, not looked at.
    """

    verdict: Verdict
    fingerprint: Fingerprint | None = None
    artifact: tuple[str, int] | None = None
    surplus: bool = False

    @property
    def hashed(self) -> tuple[str, int] | None:
        """What is known of the artifact that was read, if it was."""
        found = self.verdict
        return (found.artifact_sha256, found.artifact_bytes) if isinstance(found, Verified) else self.artifact


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The bundles of one directory: all `names` that may be judged, those that `changed`, and those too many."""

    names: frozenset[str]
    changed: tuple[str, ...]
    surplus: tuple[str, ...]
    uncounted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """How bundles are judged: limits of reading, the policy of this very moment, our own version."""

    limits: read.Limits
    policy: Callable[[], TrustPolicy]
    host_version: str
    clock: Clock

    def judge(self, name: str, root: Root, *, known: Entry | None, watcher: Watcher | None = None) -> Entry | None:
        """What is to be said of the bundle `name` now; None when there is no directory of that name.

        The artifact is hashed, unless `known` was made from the very same files. A watch is armed before looking.
        """
        inode = _directory(name, root)
        if inode is None:
            return None
        if watcher is not None:
            watcher.arm(name, root, inode)
        stamps = read.fingerprint(name, beneath=root.fd)
        before = _packed(root, stamps)
        same = known is not None and known.fingerprint == before
        source: _Source | None = None
        try:
            with read.open_bundle(name, beneath=root.fd, limits=self.limits, owners=root.owners) as directory:
                source = _Source(directory, known.hashed if known is not None and same else None)
                verdict = verify.verify(source, self.policy(), host_version=self.host_version)
        except ReadRefused as refused:
            verdict = Refused(code=refused.code, reason=refused.reason, hint=refused.hint)
        telling = self._tells_changes(stamps) and not (isinstance(verdict, Refused) and verdict.code in _UNSETTLED)
        return Entry(
            verdict=verdict,
            fingerprint=before if telling else None,
            artifact=source.artifact if source is not None and isinstance(verdict, Refused) else None,
        )

    def _tells_changes(self, found: tuple[read.Stamp | None, read.Stamp | None]) -> bool:
        """Whether a later look that finds the same fingerprint finds the same bytes."""
        now_ns = self.clock.wall_us() * 1000
        return all(stamp is not None and now_ns - stamp[-1] > _RACY_NS for stamp in found)


@dataclass(slots=True, eq=False)
class _Source:
    """What `trust.verify` reads from: the bundle, except for an artifact whose hash is known already."""

    _directory: read.BundleDirectory
    artifact: tuple[str, int] | None = field(default=None)

    def manifest(self) -> bytes:
        return self._directory.manifest()

    def hash_artifact(self) -> tuple[str, int]:
        if self.artifact is None:
            self.artifact = self._directory.hash_artifact()
        return self.artifact


def list_bundles(path: Path, *, watcher: Watcher, known: Mapping[str, Entry], max_bundles: int) -> Listing:
    """List the plugin directory, watch what is in it, and compare fingerprints; Problem when it cannot be listed.

    Where there are too many, those already judged keep their places: whoever drops more bundles pushes nobody out.
    """
    try:
        root = roots.look_at(path)
    except Problem as problem:
        if problem.code == "directory_missing":
            watcher.disarm_all()
        raise
    try:
        watcher.arm_root(root)
        found = _directories(root, path)
        names = sorted(found, key=lambda name: (name not in known or known[name].surplus, name))
        admitted = frozenset(names[:max_bundles])
        watcher.retain(admitted)
        changed: list[str] = []
        for name in names[:max_bundles]:
            watcher.arm(name, root, found[name])
            entry = known.get(name)
            if entry is None or entry.surplus or not _same(entry, _fingerprint(name, root)):
                changed.append(name)
    finally:
        root.close()
    return Listing(
        names=admitted,
        changed=tuple(changed),
        surplus=tuple(names[max_bundles : 2 * max_bundles]),
        uncounted=max(0, len(names) - 2 * max_bundles),
    )


def _fingerprint(name: str, root: Root) -> Fingerprint:
    return _packed(root, read.fingerprint(name, beneath=root.fd))


def _packed(root: Root, stamps: tuple[read.Stamp | None, read.Stamp | None]) -> Fingerprint:
    """Equal for equal owners and stamps, and for those only: a file's part has its length, a missing one's is empty."""
    owners = sorted(root.owners)
    parts = [_STAMP.pack(*stamp) if stamp is not None else b"" for stamp in stamps]
    return struct.pack(f"={3 + len(owners)}I", len(owners), *map(len, parts), *owners) + b"".join(parts)


def _same(entry: Entry, now: Fingerprint) -> bool:
    return entry.fingerprint is not None and entry.fingerprint == now


def _directories(root: Root, path: Path) -> dict[str, RootId]:
    """Every name that may be a bundle, with (dev, inode); links, files, hidden names and leftovers are none."""
    found: dict[str, RootId] = {}
    try:
        with os.scandir(root.fd) as entries:
            for entry in entries:
                if not roots.may_be_bundle(entry.name) or not entry.is_dir(follow_symlinks=False):
                    continue
                inode = _directory(entry.name, root)
                if inode is not None:
                    found[entry.name] = inode
    except OSError as error:
        detail = f"expected to list the directory {path}, found: {error.strerror}"
        raise Problem("directory_unreadable", detail, "the daemon's user must be able to list and enter it") from error
    return found


def _directory(name: str, root: Root) -> RootId | None:
    """(dev, inode) of the directory `name`; None when there is none, or something else has that name."""
    try:
        found = os.stat(name, dir_fd=root.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISDIR(found.st_mode) else None
