"""The marketplace: sources and their indexes, what they take back, and what is taken of them (`install.py`).

One refresh of a source goes on at a time; everything that blocks is done on threads.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from latticed.kit import logs
from latticed.ledger import market as rows
from latticed.market import sources
from latticed.market.fetch import Fetcher
from latticed.market.imports import BundleImporter
from latticed.market.install import BundleInstaller
from latticed.market.remembered import RememberedSources
from latticed.market.revocations import SourceRevocations
from latticed.market.shelved import Shelved
from latticed.market.static import StaticFormat
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.model.ids import is_valid

if TYPE_CHECKING:
    from latticed.market.deps import MarketDeps
    from latticed.market.formats import SourceFormat
    from latticed.market.rules import WantedRelease
    from latticed.market.sources import MarketSource
    from latticed.model.audit import Actor
    from latticed.trust.index import Index

log = logs.get_logger()

_KEEP_S: Final = 60.0
"""How long an index that was read stays in memory after it was asked for last."""
_AT_ONCE: Final = 1_000
"""Releases noted in one transaction: other writers get their turn between two."""


class Market:
    """See the module. `troubles`: why a source's last refresh failed. `installer` takes bundles by the indexes here,
    `importer` those that lie in a directory.
    """

    def __init__(self, deps: MarketDeps) -> None:
        self.deps = deps
        self.troubles: dict[str, Problem] = {}
        self._remembered = RememberedSources(deps.ledger)
        self._fetcher = Fetcher(self._limit_s)
        self._formats: dict[str, SourceFormat] = {}
        self._shelved: dict[str, Shelved] = {}
        self._revised: Counter[str] = Counter()  # by source, how often what it takes back was read anew
        self._forgetting: dict[str, asyncio.TimerHandle] = {}
        self._refreshing: dict[str, asyncio.Lock] = {}
        self.revocations = SourceRevocations(deps)
        self.installer = BundleInstaller(deps, find=self.find, format_of=self._format, revocations=self.revocations)
        self.importer = BundleImporter(self.installer)

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
                await self.deps.audit(actor, "market.refreshed", name, problem=problem)
                raise
            self.troubles.pop(name, None)
            return fresh

    def _format(self, source: MarketSource) -> SourceFormat:
        """That of the source, made when one has it. Problem tuf_missing."""
        if source.format not in self._formats:
            self._formats[source.format] = self._made(source.format)
        return self._formats[source.format]

    def _made(self, name: str) -> SourceFormat:
        shelf, fetcher, seen = self.deps.shelf, self._fetcher, self._remembered
        if name == "static":
            return StaticFormat(shelf=shelf, fetcher=fetcher, seen=seen, index_bytes=self._index_bytes)
        from latticed.market.tuf import TufFormat  # few hosts have such a source

        return TufFormat(
            shelf=shelf,
            fetcher=fetcher,
            seen=seen,
            index_bytes=self._index_bytes,
            limit_s=self._limit_s,
            now_s=self.deps.now_s,
        )

    def _index_bytes(self) -> int:
        return self.deps.settings().index_bytes

    def _limit_s(self) -> float:
        return self.deps.settings().fetch_s

    async def _refreshed(self, source: MarketSource, actor: Actor) -> Shelved:
        now_us = self.deps.clock.wall_us()  # one moment for all that is judged, however long the fetch takes
        fresh = await self._format(source).refresh(source, now_us // 1_000_000)
        # The file first, then what is remembered of it: a kill in between leaves a newer file, which is judged again.
        if source.name in await self._remembered.keep(fresh.seen):
            index = fresh.seen[source.name]
            detail: dict[str, str | int | bool] = {"generated_at": index.generated_at, "sha256": index.sha256}
            await self.deps.audit(actor, "market.refreshed", source.name, detail=detail)
        if not fresh.judged.browse_only:
            await self._note_releases(source.name, fresh.index, now_us)
            await self._take_back(source, now_us)
        return await self.shelved(source, now_us // 1_000_000)

    async def _take_back(self, source: MarketSource, now_us: int) -> None:
        """Fetch what the source takes back, and have it reach what came from there.

        A source that never had any may have none. Once there were, their absence or a broken file is a problem; what is
        known stays in force all the same.
        """
        fresh = await self._format(source).revocations(source, now_us // 1_000_000)
        if fresh is None:
            return
        for reason in fresh.refused:
            log.warning("market_revocation_refused", reason=f"{source.name}: {reason}")
        await self.revocations.apply(source.name, fresh.found, now_us)
        # After what it takes back: after a kill in between the same file is taken once more.
        await self._remembered.keep(fresh.seen)
        self._revised[source.name] += 1

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

    async def shelved(self, source: MarketSource, now_s: int | None = None) -> Shelved:
        """The last index of a source, judged anew; Problem index_missing, and index_… for a file that was changed.

        `now_s`: the moment by which it is judged, None for this one.
        """
        form = self._format(source)
        stamp = await asyncio.to_thread(form.stamp, source)
        if stamp:
            stamp = (*stamp, self._revised[source.name])
        else:
            hint = f"latticectl market refresh {source.name}"
            raise Problem("index_missing", f"expected an index of the source {source.name}, found none yet", hint)
        kept = self._shelved.get(source.name)
        if kept is None or (kept.stamp, kept.source) != (stamp, source):
            kept = Shelved(
                source=source, found=await form.read(source, self.deps.now_s() if now_s is None else now_s), stamp=stamp
            )
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

    async def find(self, wanted: WantedRelease) -> Shelved:
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

    async def hold(self, plugin_id: str, actor: Actor, *, on: bool) -> bool:
        """Keep a plugin at its version, or no more; False when that was so already.

        Problem not_found for an id that is neither on record, nor in an index, nor held: it is a slip of the pen.
        """
        if not is_valid(plugin_id):
            raise Problem("not_found", f"expected the id of a plugin, found {plugin_id[:80]!a}")
        if self.deps.record(plugin_id) is None and plugin_id not in self.deps.ledger.read(rows.held):
            offered = await self.all_shelved()
            if not any(plugin_id in one.index.entries for one in offered):
                reason = f"expected a plugin that is here or in an index, found {plugin_id!r}"
                raise Problem("not_found", reason, "latticectl list, or latticectl market search")
        now_us, by = self.deps.clock.wall_us(), str(actor)
        event = Event(actor=by, action="market.held", target=plugin_id, decision="allow", detail={"on": on})

        def change(tx: Any) -> bool:
            done = rows.hold(tx, plugin_id, by=by, now_us=now_us) if on else rows.release_hold(tx, plugin_id)
            if done:
                tx.append_audit(event)
            return done

        return await self.deps.ledger.write(change, durable=True)
