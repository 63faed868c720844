"""The marketplace: asks sources for their indexes, and takes bundles from them, each step judged before the next.

One refresh of a source and one taking of a plugin go on at a time; everything that blocks is done on threads.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from latticed.bundle import decode, read
from latticed.bundle.refusal import ARTIFACT, MANIFEST, BundleRefused
from latticed.kit import files, logs
from latticed.kit.clock import rfc3339
from latticed.ledger import market as rows
from latticed.ledger.revocations import RevocationRows
from latticed.market import rules, sources
from latticed.market.fetch import Fetcher, FetchProgress
from latticed.market.remembered import RememberedSources
from latticed.market.static import StaticFormat
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.model.ids import is_valid
from latticed.model.verdict import Refused, Verified
from latticed.trust import index as indexes
from latticed.trust import verify

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from pathlib import Path

    from latticed.bundle.read import BundleDirectory, ReadLimits
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger
    from latticed.ledger.versions import BadVersion
    from latticed.market.formats import JudgedSource, SourceFormat
    from latticed.market.shelf import MarketShelf
    from latticed.market.sources import MarketSource
    from latticed.model.audit import Actor
    from latticed.model.lifecycle import Record
    from latticed.model.manifest import Manifest
    from latticed.settings.market import MarketSettings
    from latticed.trust.index import Index, IndexEntry, JudgedIndex, Release
    from latticed.trust.index_revocations import SourceRevocation
    from latticed.trust.policy import TrustPolicy

log = logs.get_logger()

STEPS: Final = ("index", "publisher", "manifest", "consent", "artifact", "sandbox", "placed")
"""What a taking goes through, in this order; the artifact is not asked for before all in front of it holds."""
_PUBLISHER_CODES: Final = frozenset({"publisher_missing", "publisher_untrusted", "capability_not_allowed"})
_KEEP_S: Final = 60.0
"""How long an index that was read stays in memory after it was asked for last."""
_AT_ONCE: Final = 1_000
"""Releases noted in one transaction: other writers get their turn between two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketDeps:
    """What the market works with. `settings`, `policy` and `record` are asked at each use.

    `bad(plugin_id)`: versions that were given up, by identity. `admit(manifest, identity, pair)`: Problem when this
    host cannot run it. `revoke(rows, source)` stops what a source has taken back, for good; all of it before a write.
    """

    ledger: Ledger
    shelf: MarketShelf
    clock: Clock
    settings: Callable[[], MarketSettings]
    policy: Callable[[], TrustPolicy]
    record: Callable[[str], Record | None]
    bad: Callable[[str], Mapping[str, BadVersion]]
    admit: Callable[[Manifest, str, BundleDirectory], Awaitable[None]]
    revoke: Callable[[RevocationRows, str], Awaitable[None]]
    host_version: str
    limits: ReadLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Shelved:
    """A source's last index, as it is judged now; `stamp` tells whether the file is still the one that was read."""

    source: MarketSource
    found: JudgedSource
    stamp: tuple[int, ...]

    @property
    def index(self) -> Index:
        """What it says."""
        return self.found.index

    @property
    def judged(self) -> JudgedIndex:
        """What it is worth."""
        return self.found.judged

    def fault(self, now_s: int) -> Problem | None:
        """Why nothing of it can be installed now; None when it can."""
        document = self.index.document
        if self.judged.browse_only:
            return Problem(
                "index_browse_only",
                f"expected an official index, signed by a pinned key, of the source {self.source.name}, "
                f"found that {self.judged.browse_only}",
                "it can be searched and shown, not installed from",
            )
        hint = f"latticectl market refresh {self.source.name}; what is installed keeps running"
        if indexes.too_old(document, max_age_s=self.source.index_age_s, now_s=now_s):
            return Problem(
                "index_expired",
                f"expected an index of the source {self.source.name} that is at most "
                f"{self.source.index_age_s // 86_400} days old, found one of {document.generated_at}",
                hint,
            )
        for what, at_s in self.found.expires.items():
            if at_s < now_s:
                expected = f"expected that the {what} of the source {self.source.name} still holds"
                return Problem(
                    "index_expired", f"{expected}, found that it did until {rfc3339(at_s * 1_000_000)}", hint
                )
        return None


@dataclass(slots=True, kw_only=True)
class Taking:
    """A bundle on its way: what it is, and which steps are behind it."""

    wanted: rules.WantedRelease
    source: MarketSource
    entry: IndexEntry
    release: Release
    steps: list[dict[str, str]] = field(default_factory=list)
    progress: FetchProgress = field(default_factory=FetchProgress)
    verified: Verified | None = None

    def passed(self, step: str, detail: str) -> None:
        self.steps.append({"step": step, "detail": detail})


class Market:
    """See the module. `takings` are those that go on, by plugin id; `troubles` why a source's last refresh failed."""

    def __init__(self, deps: MarketDeps) -> None:
        self.deps = deps
        self.takings: dict[str, Taking] = {}
        self.troubles: dict[str, Problem] = {}
        self._remembered = RememberedSources(deps.ledger)
        self._fetcher = Fetcher(lambda: deps.settings().fetch_s)
        static = StaticFormat(
            shelf=deps.shelf, fetcher=self._fetcher, seen=self._remembered, index_bytes=self._index_bytes
        )
        self._formats: dict[str, SourceFormat] = {"static": static}
        self._shelved: dict[str, Shelved] = {}
        self._forgetting: dict[str, asyncio.TimerHandle] = {}
        self._refreshing: dict[str, asyncio.Lock] = {}
        # Placing a bundle and reaching what was placed exclude each other: what is revoked while it is fetched is
        # refused, and a fix that was just placed is not removed for what it mends.
        self._placing = asyncio.Lock()

    # Sources.

    def sources(self) -> dict[str, MarketSource | Problem]:
        """Those of the settings, each usable or with its problem."""
        return sources.of_settings(self.deps.settings().sources)

    def source(self, name: str) -> MarketSource:
        """One source; Problem not_found, source_invalid."""
        found = self.sources().get(name)
        if found is None:
            known = ", ".join(sorted(self.deps.settings().sources)) or "none"
            raise Problem("not_found", f"expected a source of the settings ({known}), found {name[:40]!r}")
        if isinstance(found, Problem):
            raise found
        return found

    async def refresh(self, name: str, actor: Actor) -> Shelved:
        """Fetch a source's index, and keep it if it may take the place of the last one.

        Problems source_invalid, fetch_…, index_…, store_unavailable, ledger_unavailable: the last one stays in use.
        """
        source = self.source(name)
        async with self._refreshing.setdefault(name, asyncio.Lock()):
            try:
                fresh = await self._refreshed(source, actor)
            except Problem as problem:
                self.troubles[name] = problem
                await self._record(actor, "market.refreshed", name, problem=problem)
                raise
            self.troubles.pop(name, None)
            return fresh

    def _format(self, source: MarketSource) -> SourceFormat:
        """That of the source."""
        return self._formats[source.format]

    def _index_bytes(self) -> int:
        return self.deps.settings().index_bytes

    async def _refreshed(self, source: MarketSource, actor: Actor) -> Shelved:
        now_us = self.deps.clock.wall_us()  # one moment for all that is judged, however long the fetch takes
        fresh = await self._format(source).refresh(source, now_us // 1_000_000)
        # The file first, then what is remembered of it: a kill in between leaves a newer file, which is judged again.
        if source.name in await self._remembered.keep(fresh.seen):
            index = fresh.seen[source.name]
            detail: dict[str, str | int | bool] = {"generated_at": index.generated_at, "sha256": index.sha256}
            await self._record(actor, "market.refreshed", source.name, detail=detail)
        if not fresh.judged.browse_only:
            await self._note_releases(source.name, fresh.index, now_us)
            await self._revocations(source, now_us)
        return await self.shelved(source)

    async def _revocations(self, source: MarketSource, now_us: int) -> None:
        """Fetch what the source takes back, and have it reach what came from there.

        A source that never had any may have none. Once there were, their absence or a broken file is a problem; what is
        known stays in force all the same.
        """
        ledger = self.deps.ledger
        fresh = await self._format(source).revocations(source, now_us // 1_000_000)
        if fresh is None:
            return
        for reason in fresh.refused:
            log.warning("market_revocation_refused", reason=f"{source.name}: {reason}")
        listed = [(one.kind, one.value, one.action, one.reason) for one in fresh.found]
        async with self._placing:
            known = {row[:3] for row in ledger.read(lambda db: rows.revocations(db, source.name))}
            # First what stops something; the disk may be full. Not again what an operator may have lifted since.
            await self._reach(
                source, tuple(one for one in fresh.found if (one.kind, one.value, one.action) not in known)
            )
            await ledger.write(
                lambda tx: rows.note_revocations(tx, source.name, listed, now_us=now_us), durable=True, essential=True
            )
        # After what it takes back: after a kill in between the same file is taken once more.
        await self._remembered.keep(fresh.seen)

    async def _reach(self, source: MarketSource, found: tuple[SourceRevocation, ...]) -> None:
        """Stop what was ever taken of `source` and is frozen or killed by it; a killed one's bundle is removed, too.

        What is kept for a rollback counts as well: a release that was taken back never starts again.
        """
        stopping = [one for one in found if one.action != "block-install"]
        taken = self.deps.ledger.read(lambda db: rows.taken_of(db, source.name)) if stopping else []
        # Off the loop: a source may take back 10,000 at once.
        hits = await asyncio.to_thread(
            lambda: [(one, it) for it in taken for one in stopping if one.covers(it.id, it.version, it.sha256)]
        )
        if not hits:
            return
        values = {kind: frozenset(one.value for one, _ in hits if one.kind == kind) for kind in ("plugins", "digests")}
        await self.deps.revoke(RevocationRows(**values), source.name)
        shelf = self.deps.shelf
        for one, it in hits:
            if one.action == "kill" and await asyncio.to_thread(shelf.digest, it.id) == it.sha256:
                await asyncio.to_thread(shelf.remove, it.id)

    async def _note_releases(self, source: str, index: Index, now_us: int) -> None:
        """Keep when releases were seen first."""
        ledger = self.deps.ledger

        def keys() -> list[rows.ReleaseKey]:
            return [
                (entry.id, release.version, release.sha256)
                for entry in index.entries.values()
                for release in entry.releases
                if not (entry.unsupported or release.unsupported)
            ]

        found = await asyncio.to_thread(keys)  # off the loop: there may be tens of thousands
        known = await ledger.read_slow(lambda db: rows.count_releases(db, source))
        if known > rows.MOST_RELEASES:
            await ledger.write(lambda tx: rows.forget_releases(tx, source, before_us=now_us))
        for start in range(0, len(found), _AT_ONCE):
            some = found[start : start + _AT_ONCE]
            await ledger.write(lambda tx, some=some: rows.note_releases(tx, source, some, now_us=now_us))  # type: ignore[misc]

    async def shelved(self, source: MarketSource) -> Shelved:
        """The last index of a source, judged anew; Problem index_missing, and index_… for a file that was changed."""
        form = self._format(source)
        stamp = await asyncio.to_thread(form.stamp, source)
        if not stamp:
            hint = f"latticectl market refresh {source.name}"
            raise Problem("index_missing", f"expected an index of the source {source.name}, found none yet", hint)
        kept = self._shelved.get(source.name)
        if kept is None or (kept.stamp, kept.source) != (stamp, source):
            kept = Shelved(source=source, found=await form.read(source, self._now_s()), stamp=stamp)
        self._keep(kept)
        return kept

    def _keep(self, kept: Shelved) -> None:
        """Keep an index in memory for a while: most commands come in company, and a large one takes seconds to read."""
        name = kept.source.name
        self._shelved[name] = kept
        if (timer := self._forgetting.pop(name, None)) is not None:
            timer.cancel()
        self._forgetting[name] = asyncio.get_running_loop().call_later(_KEEP_S, self._shelved.pop, name, None)

    async def all_shelved(self) -> list[Shelved]:
        """The indexes of all sources that have one that can be read."""
        found = []
        for source in self.sources().values():
            if isinstance(source, Problem):
                continue
            with contextlib.suppress(Problem):
                found.append(await self.shelved(source))
        return found

    async def find(self, wanted: rules.WantedRelease) -> Shelved:
        """The index that has the plugin; Problem not_found, or source_ambiguous when several have it."""
        if wanted.source:
            return await self.shelved(self.source(wanted.source))
        found = [one for one in await self.all_shelved() if wanted.id in one.index.entries]
        if not found:
            hint = "latticectl market refresh, then latticectl market search"
            raise Problem("not_found", f"expected {wanted.id[:128]} in an index, found no such plugin", hint)
        if len(found) > 1:
            names = ", ".join(one.source.name for one in found)
            raise Problem("source_ambiguous", f"expected one source of {wanted.id}, found {names}", "add --source NAME")
        return found[0]

    # Bundles.

    async def install(self, wanted: rules.WantedRelease, actor: Actor) -> Taking:
        """Take a bundle into the market's directory, where the catalog finds it; grants and starts nothing.

        Problems of each step (docs/market.md), `busy` while another one of this id goes on; then nothing has changed.
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
            async with self._placing:
                self._check_revoked(taking)
                # First that it is known from where it came: revocations of its source must reach it.
                await self.deps.ledger.write(lambda tx: rows.note_taken(tx, made), durable=True)
                await asyncio.to_thread(self.deps.shelf.place, staged, wanted.id)
            taking.passed("placed", "verified, not installed")
            return taking

    async def looked_at(self, shelved: Shelved, wanted: rules.WantedRelease) -> Taking:
        """A release with its manifest, fetched and judged as an install would, and nothing kept; Problem otherwise."""
        entry, release = rules.choose(shelved.index, wanted)
        taking = Taking(wanted=wanted, source=shelved.source, entry=entry, release=release)
        async with self._staging() as staged:
            limit = self.deps.limits.manifest_bytes
            await self._format(shelved.source).fetch(
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
            shelved = await self.find(wanted)
            if wanted.id in self.takings:
                raise Problem(
                    "busy", f"expected one install of {wanted.id} at a time, found another going on", "try again"
                )
            entry, release = rules.choose(shelved.index, wanted)
            found = self.takings[wanted.id] = Taking(wanted=wanted, source=shelved.source, entry=entry, release=release)
            async with self._staging() as staged:
                await self._go(found, shelved, staged)
                await self._record(actor, action, wanted.id, detail=_detail(found))
                yield found, staged
        except Problem as problem:
            if problem.code != "busy":
                await self._record(actor, action, wanted.id, detail=_detail(found), problem=problem)
            raise
        finally:
            if found is not None:
                del self.takings[wanted.id]

    @contextlib.asynccontextmanager
    async def _staging(self) -> AsyncIterator[Path]:
        """A directory for a bundle, gone at the end of the block unless the block placed it."""
        place = await asyncio.to_thread(self.deps.shelf.stage)
        try:
            yield place
        finally:
            await asyncio.to_thread(self.deps.shelf.unstage, place)

    async def _go(self, taking: Taking, shelved: Shelved, staged: Path) -> None:
        """Every step but the last; Problem of the first that fails."""
        deps, source, entry, release = self.deps, taking.source, taking.entry, taking.release
        fetch = self._format(source).fetch
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
            rules.check_bad(deps.bad(entry.id), taking.verified, taking.wanted)
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
        verdict = await asyncio.to_thread(self._verdict, staged)
        if isinstance(verdict, Refused):
            raise Problem.of(verdict)
        taking.verified = verdict
        taking.passed("artifact", f"{got.size} bytes, SHA-256 {got.sha256}")
        await self._admit(verdict, staged)
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
        if wanted.id in self.deps.ledger.read(rows.held) and not wanted.accept_held:
            hint = f"latticectl market hold --off {wanted.id}, or add --accept-held"
            raise Problem("held", f"expected a plugin that is not held, found {wanted.id} held by an operator", hint)
        self._check_revoked(taking)
        document = shelved.index.document
        signers = len(shelved.judged.seen.keys) if shelved.judged.seen else 0
        taking.passed("index", f"{shelved.source.name}, generated {document.generated_at}, {signers} pinned key(s)")

    def _check_revoked(self, taking: Taking) -> None:
        """Problem release_revoked."""
        found = self.deps.ledger.read(lambda db: rows.revocations(db, taking.source.name))
        rules.check_revoked(taking.release, taking.entry.id, found)

    async def check_manifest(self, taking: Taking, path: Path) -> Manifest:
        """The manifest in a file, once publisher, signature and identity hold; the artifact is taken on its word."""

        def judge() -> Verified | Refused:
            return verify.verify(
                _Manifest(path, self.deps.limits.manifest_bytes),
                self.deps.policy(),
                host_version=self.deps.host_version,
            )

        verdict = await asyncio.to_thread(judge)
        if isinstance(verdict, Refused):
            if verdict.code.value not in _PUBLISHER_CODES:
                taking.passed("publisher", taking.entry.publisher)
            raise Problem.of(verdict)
        taking.passed("publisher", verdict.manifest.publisher)
        indexes.check_manifest(verdict.manifest, taking.entry, taking.release)
        taking.verified = verdict
        taking.passed("manifest", f"{verdict.manifest.id} {verdict.manifest.version}, identity {verdict.identity}")
        return verdict.manifest

    def _verdict(self, staged: Path) -> Verified | Refused:
        try:
            with read.open_bundle(staged, limits=self.deps.limits, owners=read_owners()) as pair:
                return verify.verify(pair, self.deps.policy(), host_version=self.deps.host_version)
        except BundleRefused as refused:
            return refused.fault

    async def _admit(self, verified: Verified, staged: Path) -> None:
        """Problem sandbox_unavailable, source_blocked, … when this host could not run it."""
        pair = await asyncio.to_thread(read.open_bundle, staged, limits=self.deps.limits, owners=read_owners())
        with pair:
            await self.deps.admit(verified.manifest, verified.identity, pair)

    async def hold(self, plugin_id: str, actor: Actor, *, on: bool) -> bool:
        """Keep a plugin at its version, or no more; False when that was so already."""
        if not is_valid(plugin_id):
            raise Problem("not_found", f"expected the id of a plugin, found {plugin_id[:80]!a}")
        now_us, by = self.deps.clock.wall_us(), str(actor)
        event = Event(actor=by, action="market.held", target=plugin_id, decision="allow", detail={"on": on})

        def change(tx: Any) -> bool:
            done = rows.hold(tx, plugin_id, by=by, now_us=now_us) if on else rows.release_hold(tx, plugin_id)
            if done:
                tx.append_audit(event)
            return done

        return await self.deps.ledger.write(change, durable=True)

    def _now_s(self) -> int:
        return self.deps.clock.wall_us() // 1_000_000

    async def _record(
        self,
        actor: Actor,
        action: str,
        target: str,
        *,
        detail: dict[str, str | int | bool] | None = None,
        problem: Problem | None = None,
    ) -> None:
        """Put on record what was done or refused."""
        event = Event(actor=str(actor), action=action, target=target, decision="allow", detail=detail or {})
        if problem is not None:
            event = replace(event, decision="deny", code=problem.code, reason=problem.reason)
        await self.deps.ledger.record(event)


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
