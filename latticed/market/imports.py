"""Taking a bundle from a file that lies in `market.import_dir`: every step of an install but the index.

The file is a tar of `manifest.json` and then `artifact`, nothing else. It is read once, from one descriptor, and what
is judged is the copy: whoever may write there meanwhile can only have it refused. What blocks is done on threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latticed.bundle.refusal import ARTIFACT, MANIFEST
from latticed.kit import files, tar, tasks, text
from latticed.ledger import market as rows
from latticed.market import rules
from latticed.market.fetch import FileCopy, not_written
from latticed.market.install import Underway
from latticed.model import semver_range
from latticed.model.errors import Problem
from latticed.model.ids import is_reserved_plugin
from latticed.model.verdict import Refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from latticed.market.fetch import FetchProgress
    from latticed.market.install import BundleInstaller
    from latticed.model.audit import Actor
    from latticed.model.verdict import Verified

_NAME_BYTES: Final = 255
_PIECE_BYTES: Final = 1 << 20
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_AROUND: Final = 80 * tar.BLOCK
"""Of a tar beside its files' bytes: two headers, two paddings, its end, and what tools fill up with."""
_HOW: Final = "make it by: tar -cf NAME.tar -C BUNDLE manifest.json artifact"


@dataclass(slots=True, kw_only=True)
class Import(Underway):
    """One whose file is here; `id` is empty until its manifest is read.

    Its steps: `file` in place of a source's `index`, and then those of `install.STEPS`.
    """

    wanted: rules.WantedImport


class BundleImporter:
    """See the module. It shares steps, and the rule of one taking of a plugin at a time, with the `installer`."""

    def __init__(self, installer: BundleInstaller) -> None:
        self._deps = installer.deps
        self._installer = installer

    async def take(self, wanted: rules.WantedImport, actor: Actor) -> Import:
        """Take the bundle into the market's directory, where the catalog finds it; grants and starts nothing.

        Problems import_off, import_invalid, import_mismatch, not_found, and those of each step; `busy` while another
        taking of this plugin goes on. What is refused is on record, and nothing changed.
        """
        taking = Import(id="", version="", source_name="", wanted=wanted)
        try:
            async with self._installer.staging() as staged:
                await self._go(taking, staged, actor)
        except Problem as problem:
            if problem.code != "busy":
                target = taking.id or text.sanitise(wanted.name, 100)
                await self._deps.audit(actor, "market.imported", target, detail=_detail(taking), problem=problem)
            raise
        finally:
            if self._installer.takings.get(taking.id) is taking:
                del self._installer.takings[taking.id]
        return taking

    async def _go(self, taking: Import, staged: Path, actor: Actor) -> None:
        """All steps; Problem of the first that fails."""
        deps, wanted, installer = self._deps, taking.wanted, self._installer
        # A cancellation waits for the thread: the descriptor that it reads is closed then, and may be another's soon.
        archive = await tasks.in_thread(lambda: self._open(wanted.name), undo=lambda one: one.close())
        try:
            await tasks.in_thread(lambda: archive.take(MANIFEST, staged, deps.limits.manifest_bytes, taking.progress))
            taking.passed("file", text.sanitise(wanted.name, 100))
            verdict = await installer.judge_manifest(staged / MANIFEST)
            if isinstance(verdict, Refused):
                raise Problem.of(verdict)
            self._known(taking, verdict)
            manifest = verdict.manifest
            rules.check_record(deps.record(taking.id), manifest, wanted)
            rules.check_bad(
                deps.bad(taking.id), verdict, named=bool(wanted.identity), how="its identity to the request"
            )
            installer.check_held(taking.id, accepted=wanted.accept_held)
            rules.check_consent(manifest, wanted.accept)
            taking.passed("consent", ", ".join(rules.needed(manifest)) or "nothing of host risk")
            await tasks.in_thread(lambda: archive.take(ARTIFACT, staged, deps.limits.artifact_bytes, taking.progress))
            sha256 = await tasks.in_thread(archive.end)
        finally:
            await asyncio.to_thread(archive.close)
        if wanted.sha256 and sha256 != wanted.sha256:
            raise _invalid(wanted.name, f"expected its SHA-256 to be {wanted.sha256}, found {sha256}")
        # As the scanner will: both files read again, from the copy, under the policy of now.
        whole = await asyncio.to_thread(installer.verdict, staged)
        if isinstance(whole, Refused):
            raise Problem.of(whole)
        taking.verified = whole
        taking.passed("artifact", f"SHA-256 {manifest.digest_sha256.lower()}")
        await installer.admit(whole, staged)
        taking.passed("sandbox", "this host can confine it")
        await deps.audit(actor, "market.imported", taking.id, detail=_detail(taking))
        made = rows.Taken(
            id=taking.id,
            source="",
            version=taking.version,
            sha256=manifest.digest_sha256.lower(),
            at=deps.clock.wall_us(),
        )
        async with installer.revocations.placing:
            installer.check_held(taking.id, accepted=wanted.accept_held)
            # First that it came from no source: none calls itself its origin any more.
            await deps.ledger.write(lambda tx: rows.note_taken(tx, made), durable=True)
            await tasks.in_thread(lambda: deps.shelf.place(staged, taking.id))
        taking.passed("placed", "verified, not installed")

    def _known(self, taking: Import, verdict: Verified) -> None:
        """What is taken is known now: nothing else of this plugin is taken meanwhile. Problem busy, import_mismatch."""
        manifest, takings = verdict.manifest, self._installer.takings
        if is_reserved_plugin(manifest.id):
            raise Problem("import_invalid", f"expected a plugin of somebody else, found {manifest.id}")
        taking.id, taking.version, taking.verified = manifest.id, manifest.version, verdict
        _check_meant(taking.wanted, verdict)
        if manifest.id in takings:
            raise Problem(
                "busy", f"expected one install of {manifest.id} at a time, found another going on", "try again"
            )
        takings[manifest.id] = taking
        taking.passed("publisher", manifest.publisher or "nobody, unsigned")
        taking.passed("manifest", f"{manifest.id} {manifest.version}, identity {verdict.identity}")

    def _open(self, name: str) -> _Archive:
        """The file of this name; Problem import_off, bad_request, not_found, import_invalid, foreign_owner. Blocks."""
        place = self._deps.settings().import_dir
        if not place:
            raise Problem(
                "import_off", "expected market.import_dir in the settings, found none", "set it to a directory"
            )
        # Names that begin with a dot are what others are still writing.
        if not name or name.startswith(".") or "/" in name or "\0" in name or len(os.fsencode(name)) > _NAME_BYTES:
            raise Problem("bad_request", f"expected the plain name of a file in market.import_dir, found {name[:80]!a}")
        try:
            with files.closing(files.open_directory(place)) as directory:
                owner = os.fstat(directory).st_uid
                fd = files.open_file(name, beneath=directory)
        except FileNotFoundError as error:
            raise Problem("not_found", f"expected {name[:80]!a} in market.import_dir, found no such file") from error
        except OSError as error:
            raise _invalid(name, f"cannot open it: {error.strerror}") from error
        limits = self._deps.limits
        archive = _Archive(
            fd, name, limit=limits.manifest_bytes + limits.artifact_bytes + _AROUND, deadline_s=limits.deadline_s
        )
        try:
            archive.check(frozenset({0, os.geteuid(), owner}))
        except BaseException:
            archive.close()
            raise
        return archive


class _Archive:
    """The open file: its two members in their order, each once, hashed as a whole. All of it blocks."""

    def __init__(self, fd: int, name: str, *, limit: int, deadline_s: float) -> None:
        self._fd = fd
        self._name = name
        self._limit = limit
        self._until_s = time.monotonic() + deadline_s
        self._size = 0
        self._hash = hashlib.sha256()
        self._reader = tar.TarReader(self)
        self._before: tuple[int, ...] = ()

    def check(self, owners: frozenset[int]) -> None:
        """Problem import_invalid, foreign_owner unless it is a regular file of one of these users."""
        found = os.fstat(self._fd)
        if not stat.S_ISREG(found.st_mode):
            raise _invalid(self._name, f"expected a regular file, found {stat.filemode(found.st_mode)}")
        if found.st_uid not in owners:
            raise Problem(
                "foreign_owner",
                f"expected {self._name[:80]!a} to belong to uid {' or '.join(map(str, sorted(owners)))}, "
                f"found uid {found.st_uid}",
                "have whoever owns market.import_dir put it there",
            )
        if found.st_size > self._limit:
            raise _invalid(self._name, f"expected at most {self._limit} bytes, found {found.st_size}")
        self._before = _moment(found)

    def read(self, size: int, /) -> bytes:
        """The next bytes, for the reader of the tar. Problem import_invalid once it is too long or too slow."""
        try:
            data = os.read(self._fd, min(size, _PIECE_BYTES))
        except OSError as error:
            raise _invalid(self._name, f"cannot read it: {error.strerror}") from error
        self._size += len(data)
        if self._size > self._limit:
            raise _invalid(self._name, f"expected at most {self._limit} bytes, found more")
        if time.monotonic() > self._until_s:
            raise _invalid(self._name, "expected it to be read in time (limits.read_deadline_s), found it still coming")
        self._hash.update(data)
        return data

    def take(self, name: str, staged: Path, limit: int, progress: FetchProgress) -> None:
        """Write the next member, which has to be `name`, below `staged`; synced. Problem import_invalid,
        store_unavailable.
        """
        with self._judged():
            member = self._reader.next()
            if member is None or member.name != name:
                found = "its end" if member is None else repr(text.sanitise(member.name, 80))
                raise _invalid(self._name, f"expected {name} next, found {found}")
            if member.size > limit:
                raise _invalid(self._name, f"expected {name} of at most {limit} bytes, found {member.size}")
            progress.what, progress.size = name, 0
            try:
                copy = FileCopy(os.open(staged / name, _NEW, 0o600), progress)
                try:
                    for piece in self._reader.chunks():
                        copy.write(piece)
                    copy.sync()
                finally:
                    copy.close()
            except OSError as error:  # of writing: reading has a Problem of its own
                raise not_written(error) from error

    def end(self) -> str:
        """The SHA-256 of the file, once it ends here and nobody changed it meanwhile. Problem."""
        with self._judged():
            if (more := self._reader.next()) is not None:
                raise _invalid(self._name, f"expected two files and no more, found {text.sanitise(more.name, 80)!r}")
        if _moment(os.fstat(self._fd)) != self._before:
            raise Problem(
                "changed_while_reading",
                f"expected {self._name[:80]!a} to stay as it is while it is read, found it changed",
                "write it under a name that begins with a dot, and rename it when it is whole",
            )
        return self._hash.hexdigest()

    def close(self) -> None:
        files.close_read(self._fd)

    @contextlib.contextmanager
    def _judged(self) -> Iterator[None]:
        try:
            yield
        except tar.BadTar as error:
            raise _invalid(self._name, str(error)) from error


def _moment(found: os.stat_result) -> tuple[int, ...]:
    """At least one of these changes when a file is written to."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _invalid(name: str, found: str) -> Problem:
    return Problem("import_invalid", f"cannot import {text.sanitise(name, 80)!r}: {found}", _HOW)


def _check_meant(wanted: rules.WantedImport, verdict: Verified) -> None:
    """Problem import_mismatch unless the bundle is the one that the request says, as far as it says which."""
    manifest = verdict.manifest
    for what, expected, found in (
        ("the id", wanted.id, manifest.id),
        ("the publisher", wanted.publisher, manifest.publisher),
        ("the identity", wanted.identity, verdict.identity),
    ):
        if expected and found != expected:
            raise _mismatch(what, expected, found)
    if wanted.versions and not semver_range.contains(wanted.versions, manifest.version):
        raise _mismatch("the version", wanted.versions, manifest.version)


def _mismatch(what: str, expected: str, found: str) -> Problem:
    return Problem(
        "import_mismatch",
        f"expected {what} to be {expected[:64]}, found {found or 'none'}",
        "name the file of that bundle",
    )


def _detail(taking: Import) -> dict[str, str | int | bool]:
    """What goes on record of an import; overrides by name."""
    wanted = taking.wanted
    found: dict[str, str | int | bool] = {"file": text.sanitise(wanted.name, 100)}
    if taking.verified is not None:
        manifest = taking.verified.manifest
        found |= {"version": manifest.version, "sha256": manifest.digest_sha256.lower()}
        found["identity"] = taking.verified.identity
    overrides: dict[str, str | bool] = {
        "accepted": " ".join(wanted.accept),
        "accept_held": wanted.accept_held,
        "allow_downgrade": wanted.allow_downgrade,
    }
    return found | {name: value for name, value in overrides.items() if value}
