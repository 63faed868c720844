"""Taking one bundle of a source: each step judged before the next, then placed by one rename.

One taking of a plugin goes on at a time; everything that blocks is done on threads.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from latticed.bundle import decode, read
from latticed.bundle.refusal import ARTIFACT, MANIFEST, BundleRefused
from latticed.kit import files, tasks
from latticed.ledger import market as rows
from latticed.market import rules
from latticed.market.fetch import FetchProgress
from latticed.model.errors import Problem
from latticed.model.ids import is_valid
from latticed.model.verdict import Refused, Verified
from latticed.trust import index as indexes
from latticed.trust import verify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from latticed.market.deps import MarketDeps
    from latticed.market.formats import SourceFormat
    from latticed.market.revocations import SourceRevocations
    from latticed.market.shelved import Shelved
    from latticed.market.sources import MarketSource
    from latticed.model.audit import Actor
    from latticed.model.manifest import Manifest
    from latticed.trust.index import IndexEntry, Release

STEPS: Final = ("index", "publisher", "manifest", "consent", "artifact", "sandbox", "placed")
"""What a taking goes through, in this order; the artifact is not asked for before all in front of it holds."""
_PUBLISHER_CODES: Final = frozenset({"publisher_missing", "publisher_untrusted", "capability_not_allowed"})


@dataclass(slots=True, kw_only=True)
class Underway:
    """A bundle on its way: which steps are behind it, and what is known of it; `source_name` is empty for none."""

    id: str
    version: str
    source_name: str
    steps: list[dict[str, str]] = field(default_factory=list)
    progress: FetchProgress = field(default_factory=FetchProgress)
    verified: Verified | None = None

    def passed(self, step: str, detail: str) -> None:
        self.steps.append({"step": step, "detail": detail})


@dataclass(slots=True, kw_only=True)
class Taking(Underway):
    """One that is taken of a source."""

    wanted: rules.WantedRelease
    source: MarketSource
    entry: IndexEntry
    release: Release


class BundleInstaller:
    """See the module. `takings` are those that go on, imports too, by plugin id; `find` returns the index that has a
    release.
    """

    def __init__(
        self,
        deps: MarketDeps,
        *,
        find: Callable[[rules.WantedRelease], Awaitable[Shelved]],
        format_of: Callable[[MarketSource], SourceFormat],
        revocations: SourceRevocations,
    ) -> None:
        self.deps = deps
        self.takings: dict[str, Underway] = {}
        self._find = find
        self._format_of = format_of
        self.revocations = revocations

    async def install(self, wanted: rules.WantedRelease, actor: Actor) -> Taking:
        """Take a bundle into the market's directory, where the catalog finds it; grants and starts nothing.

        Problems of each step (docs/operate/market.md), `busy` while another one of this id goes on; nothing changed.
        """
        async with self.taken(wanted, actor, "market.installed") as (taking, staged):
            release, now_us = taking.release, self.deps.clock.wall_us()
            made = rows.Taken(
                id=wanted.id,
                source=taking.source.name,
                version=release.version,
                sha256=release.artifact_sha256,
                at=now_us,
            )
            async with self.revocations.placing:
                # Again: the fetch may have taken minutes.
                self.check_held(wanted.id, accepted=wanted.accept_held)
                self.revocations.check(taking.source.name, taking.entry.id, taking.release)
                # First that it is known from where it came: revocations of its source must reach it.
                await self.deps.ledger.write(lambda tx: rows.note_taken(tx, made), durable=True)
                await tasks.in_thread(lambda: self.deps.shelf.place(staged, wanted.id))
            taking.passed("placed", "verified, not installed")
            return taking

    async def looked_at(self, shelved: Shelved, wanted: rules.WantedRelease) -> Taking:
        """A release with its manifest, fetched and judged as an install would, and nothing kept; Problem otherwise."""
        entry, release = rules.choose(shelved.index, wanted)
        taking = _taking(wanted, shelved.source, entry, release)
        async with self.staging() as staged:
            limit = self.deps.limits.manifest_bytes
            await self._format_of(shelved.source).fetch(
                shelved.source, release.manifest_url, staged / MANIFEST, max_bytes=limit
            )
            await self.check_manifest(taking, staged / MANIFEST)
        return taking

    @contextlib.asynccontextmanager
    async def taken(self, wanted: rules.WantedRelease, actor: Actor, action: str) -> AsyncIterator[tuple[Taking, Path]]:
        """A verified bundle in a directory that is removed at the end of the block, unless the block places it.

        What is refused is on record, and what is taken too, with what was overridden, before the block.
        """
        if wanted.id in self.takings:
            raise Problem("busy", f"expected one install of {wanted.id} at a time, found another going on", "try again")
        if not is_valid(wanted.id):
            raise Problem("not_found", f"expected the id of a plugin, found {wanted.id[:80]!a}")
        found: Taking | None = None
        try:
            shelved = await self._find(wanted)
            if wanted.id in self.takings:
                raise Problem(
                    "busy", f"expected one install of {wanted.id} at a time, found another going on", "try again"
                )
            entry, release = rules.choose(shelved.index, wanted)
            found = self.takings[wanted.id] = _taking(wanted, shelved.source, entry, release)
            async with self.staging() as staged:
                await self._go(found, shelved, staged)
                await self.deps.audit(actor, action, wanted.id, detail=_detail(found))
                yield found, staged
        except Problem as problem:
            if problem.code != "busy":
                await self.deps.audit(actor, action, wanted.id, detail=_detail(found), problem=problem)
            raise
        finally:
            if found is not None:
                del self.takings[wanted.id]

    @contextlib.asynccontextmanager
    async def staging(self) -> AsyncIterator[Path]:
        """A directory for a bundle, gone at the end of the block unless the block placed it."""
        place = await asyncio.to_thread(self.deps.shelf.stage)
        try:
            yield place
        finally:
            await asyncio.to_thread(self.deps.shelf.unstage, place)

    async def _go(self, taking: Taking, shelved: Shelved, staged: Path) -> None:
        """Every step but the last; Problem of the first that fails."""
        deps, source, entry, release = self.deps, taking.source, taking.entry, taking.release
        fetch = self._format_of(source).fetch
        self._check_index(taking, shelved)
        await fetch(
            source,
            release.manifest_url,
            staged / MANIFEST,
            max_bytes=deps.limits.manifest_bytes,
            progress=taking.progress,
        )
        manifest = await self.check_manifest(taking, staged / MANIFEST)
        rules.check_record(deps.record(entry.id), manifest, taking.wanted)
        if taking.verified is not None:
            named = taking.wanted.version == taking.verified.manifest.version
            rules.check_bad(deps.bad(entry.id), taking.verified, named=named, how="--version {version}")
        rules.check_consent(manifest, taking.wanted.accept)
        taking.passed("consent", ", ".join(rules.needed(manifest)) or "nothing of host risk")
        got = await fetch(
            source,
            release.artifact_url,
            staged / ARTIFACT,
            max_bytes=deps.limits.artifact_bytes,
            progress=taking.progress,
        )
        if got.sha256 != release.artifact_sha256:
            raise Problem(
                "digest_mismatch",
                f"expected the artifact's SHA-256 to be {release.artifact_sha256}, found {got.sha256}",
                "the file was changed after the index was signed: tell the source",
            )
        # As the scanner will: both files read again, from disk, under the policy of now.
        verdict = await asyncio.to_thread(self.verdict, staged)
        if isinstance(verdict, Refused):
            raise Problem.of(verdict)
        taking.verified = verdict
        taking.passed("artifact", f"{got.size} bytes, SHA-256 {got.sha256}")
        await self.admit(verdict, staged)
        taking.passed("sandbox", "this host can confine it")

    def _check_index(self, taking: Taking, shelved: Shelved) -> None:
        """Signature, age and status of the index; how long the release is known; whether its plugin is held."""
        now_us, wanted, release = self.deps.clock.wall_us(), taking.wanted, taking.release
        if fault := shelved.fault(now_us // 1_000_000):
            raise fault
        known = self.deps.ledger.read(lambda db: rows.first_seen(db, shelved.source.name, wanted.id))
        seen_us = known.get((release.version, release.sha256), now_us)
        days = self.deps.settings().min_release_age_days
        rules.check_age(wanted, release, seen_us=seen_us, now_us=now_us, min_days=days)
        self.check_held(wanted.id, accepted=wanted.accept_held)
        self.revocations.check(taking.source.name, taking.entry.id, taking.release)
        document = shelved.index.document
        signers = len(shelved.judged.seen.keys) if shelved.judged.seen else 0
        taking.passed("index", f"{shelved.source.name}, generated {document.generated_at}, {signers} pinned key(s)")

    def check_held(self, plugin_id: str, *, accepted: bool) -> None:
        """Problem held, unless that is `accepted`."""
        if plugin_id in self.deps.ledger.read(rows.held) and not accepted:
            hint = f"latticectl market hold --off {plugin_id}, or add --accept-held"
            raise Problem("held", f"expected a plugin that is not held, found {plugin_id} held by an operator", hint)

    async def check_manifest(self, taking: Taking, path: Path) -> Manifest:
        """The manifest in a file, once publisher, signature and identity hold; the artifact is taken on its word."""
        verdict = await self.judge_manifest(path)
        if isinstance(verdict, Refused):
            if verdict.code.value not in _PUBLISHER_CODES:
                taking.passed("publisher", taking.entry.publisher)
            raise Problem.of(verdict)
        taking.passed("publisher", verdict.manifest.publisher)
        indexes.check_manifest(verdict.manifest, taking.entry, taking.release)
        taking.verified = verdict
        taking.passed("manifest", f"{verdict.manifest.id} {verdict.manifest.version}, identity {verdict.identity}")
        return verdict.manifest

    async def judge_manifest(self, path: Path) -> Verified | Refused:
        """The verdict on the manifest in a file, as if its artifact were here."""
        return await asyncio.to_thread(
            lambda: verify.verify(
                _Manifest(path, self.deps.limits.manifest_bytes),
                self.deps.policy(),
                host_version=self.deps.host_version,
            )
        )

    def verdict(self, staged: Path) -> Verified | Refused:
        """The verdict on a bundle that was fetched, read from disk under the policy of now. Blocks."""
        try:
            with read.open_bundle(staged, limits=self.deps.limits, owners=read_owners()) as pair:
                return verify.verify(pair, self.deps.policy(), host_version=self.deps.host_version)
        except BundleRefused as refused:
            return refused.fault

    async def admit(self, verified: Verified, staged: Path) -> None:
        """Problem sandbox_unavailable, source_blocked, … when this host could not run it."""
        pair = await asyncio.to_thread(read.open_bundle, staged, limits=self.deps.limits, owners=read_owners())
        with pair:
            await self.deps.admit(verified.manifest, verified.identity, pair)


class _Manifest:
    """A manifest whose artifact is not here yet: its digest counts as if it were, everything else is judged."""

    interpreter = ""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._digest = ""

    def manifest(self) -> bytes:
        data = files.read_at_most(self._path, self._limit)
        with contextlib.suppress(BundleRefused):
            self._digest = decode.decode(data)[1].digest_sha256.lower()
        return data

    def hash_artifact(self) -> tuple[str, int]:
        return self._digest, 0


def _taking(wanted: rules.WantedRelease, source: MarketSource, entry: IndexEntry, release: Release) -> Taking:
    return Taking(
        id=wanted.id,
        version=release.version,
        source_name=source.name,
        wanted=wanted,
        source=source,
        entry=entry,
        release=release,
    )


def read_owners() -> frozenset[int]:
    """Who the files of a bundle that was just fetched belong to."""
    import os

    return frozenset({os.geteuid()})


def _detail(taking: Taking | None) -> dict[str, str | int | bool]:
    """What goes on record of a taking; overrides by name."""
    if taking is None:
        return {}
    wanted = taking.wanted
    found: dict[str, str | int | bool] = {
        "source": taking.source.name,
        "version": taking.release.version,
        "sha256": taking.release.artifact_sha256,
    }
    if taking.verified is not None:
        found["identity"] = taking.verified.identity
    overrides: dict[str, str | bool] = {
        "accepted": " ".join(wanted.accept),
        "accept_age": wanted.accept_age,
        "accept_held": wanted.accept_held,
        "allow_downgrade": wanted.allow_downgrade,
    }
    found |= {name: value for name, value in overrides.items() if value}
    return found
