"""Sources of the format `static`: one signed plugins.json, and files whose hashes it has, at any address it names."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latticed.kit import files
from latticed.market import remembered
from latticed.market.formats import REVOCATIONS, JudgedSource, TakenBack
from latticed.market.shelf import INDEX, stamp_of
from latticed.model.errors import Problem
from latticed.trust import index as indexes
from latticed.trust import index_revocations, signed_document

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latticed.market.fetch import Fetched, Fetcher, FetchProgress
    from latticed.market.remembered import RememberedSources
    from latticed.market.shelf import MarketShelf
    from latticed.market.sources import MarketSource

MAX_BYTES: Final = 16 << 20
"""Of an index or revocations on disk: what `market.index_bytes` may be set to."""


class StaticFormat:
    """A `SourceFormat`. `index_bytes` is asked at each use."""

    def __init__(
        self, *, shelf: MarketShelf, fetcher: Fetcher, seen: RememberedSources, index_bytes: Callable[[], int]
    ) -> None:
        self._shelf = shelf
        self._fetcher = fetcher
        self._seen = seen
        self._index_bytes = index_bytes

    async def refresh(self, source: MarketSource, now_s: int) -> JudgedSource:
        """See `SourceFormat`."""
        partial = await asyncio.to_thread(self._shelf.partial, source.name)
        try:
            await self._fetcher.fetch(source, source.url, partial, max_bytes=self._index_bytes())
            found = await self._read(partial, source, now_s)
            await asyncio.to_thread(self._shelf.put_index, partial)
        finally:
            await asyncio.to_thread(partial.unlink, missing_ok=True)
        return found

    async def read(self, source: MarketSource, now_s: int) -> JudgedSource:
        """See `SourceFormat`."""
        path = await asyncio.to_thread(self._shelf.source, source.name)
        return await self._read(path / INDEX, source, now_s)

    async def _read(self, path: Path, source: MarketSource, now_s: int) -> JudgedSource:
        """The index in a file, with what else of the source ends."""
        seen = self._seen.document(source.name, source.keys)
        # Somebody who may withhold files may withhold what is taken back, too: also that has to be young.
        revocations = self._seen.document(_revocations_of(source), source.keys)
        found = await asyncio.to_thread(_read, path, source, seen, now_s)
        if revocations is None:
            return found
        ends_s = revocations.generated_s + source.index_age_s
        return replace(found, expires={**found.expires, REVOCATIONS: ends_s})

    def stamp(self, source: MarketSource) -> tuple[int, ...]:
        """See `SourceFormat`."""
        return stamp_of(self._shelf.source(source.name) / INDEX)

    async def revocations(self, source: MarketSource, now_s: int) -> TakenBack | None:
        """See `SourceFormat`. Once there were any, their absence is a problem."""
        name = _revocations_of(source)
        seen = self._seen.document(name, source.keys)
        partial = await asyncio.to_thread(self._shelf.partial, source.name)
        try:
            url = f"{source.base}revocations.json"
            await self._fetcher.fetch(source, url, partial, max_bytes=self._index_bytes())
            return await asyncio.to_thread(_read_revocations, partial, source, name, seen, now_s)
        except Problem as problem:
            if problem.code == "fetch_missing" and seen is None:
                return None
            raise
        finally:
            await asyncio.to_thread(partial.unlink, missing_ok=True)

    async def fetch(
        self, source: MarketSource, url: str, to: Path, *, max_bytes: int, progress: FetchProgress | None = None
    ) -> Fetched:
        """See `SourceFormat`."""
        return await self._fetcher.fetch(source, url, to, max_bytes=max_bytes, progress=progress)


def _revocations_of(source: MarketSource) -> str:
    """The name under which a source's revocations are remembered."""
    return f"{source.name}/{REVOCATIONS}"


def _read(path: Path, source: MarketSource, seen: signed_document.SeenDocument | None, now_s: int) -> JudgedSource:
    """Decode and judge a file; Problem index_…. Blocks, and takes seconds for a large one."""
    try:
        data = files.read_at_most(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise Problem("index_invalid", f"cannot read the index of {source.name}: {error}") from error
    index = indexes.decode(data)
    judged = indexes.judge(index, pinned=source.keys, threshold=source.threshold, seen=seen, now_s=now_s)
    return JudgedSource(
        index=index,
        judged=judged,
        expires={"index": index.document.generated_s + source.index_age_s},
        seen={} if judged.seen is None else {source.name: remembered.kept(judged.seen)},
    )


def _read_revocations(
    path: Path, source: MarketSource, name: str, seen: signed_document.SeenDocument | None, now_s: int
) -> TakenBack:
    """Decode and judge a file as `_read`; signed it has to be, always."""
    document, found, refused = index_revocations.decode(files.read_at_most(path, MAX_BYTES))
    holding = index_revocations.holding(document, pinned=source.keys, threshold=source.threshold, source=source.name)
    fresh = signed_document.judge(document, holding=holding, pinned=source.keys, seen=seen, now_s=now_s)
    return TakenBack(found=found, refused=refused, seen={name: remembered.kept(fresh)})
