"""Sources of the format `tuf`: a repository of The Update Framework, whose targets are index, revocations and bundles.

    <url>/metadata/…                    roles, as `tuf_metadata` judges them from the pinned root on
    <url>/targets/plugins.json          the index
    <url>/targets/revocations.json      what the source takes back, if anything
    <url>/targets/acme.demo/1.0.0/…     what the index names as https://HOST/…/targets/acme.demo/1.0.0/…

Files are fetched from this source alone, whatever host the index names, so that a mirror is a copy of a repository.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from latticed.kit import files, tasks, trusted_files
from latticed.kit.clock import rfc3339
from latticed.ledger.floors import SeenIndex
from latticed.market import remembered
from latticed.market.formats import JudgedSource, TakenBack
from latticed.market.shelf import INDEX, METADATA, stamp_of
from latticed.market.static import MAX_BYTES
from latticed.model.errors import Problem
from latticed.trust import index as indexes
from latticed.trust import index_revocations, signed_document

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from latticed.market.fetch import Fetched, Fetcher, FetchProgress
    from latticed.market.remembered import RememberedSources
    from latticed.market.shelf import MarketShelf
    from latticed.market.sources import MarketSource
    from latticed.market.tuf_metadata import TufRepository, TufRole, TufTarget
    from latticed.trust.index import Index

REVOCATIONS: Final = "revocations.json"
_TARGETS: Final = "/targets/"
_ROOT_BYTES: Final = 256 << 10
_KEPT_BYTES: Final = 64 << 20
"""Of all metadata on the shelf, as it is written there."""
_FETCHED_BYTES: Final = 16 << 20
"""Of all metadata that one call fetches: read, it takes ten times as much memory."""
T = TypeVar("T")


class TufFormat:
    """A `SourceFormat`. `index_bytes`, `limit_s` (of all metadata of one call) and `now_s` are asked at each use.

    Problem tuf_missing where python-tuf is not installed.
    """

    def __init__(
        self,
        *,
        shelf: MarketShelf,
        fetcher: Fetcher,
        seen: RememberedSources,
        index_bytes: Callable[[], int],
        limit_s: Callable[[], float],
        now_s: Callable[[], int],
    ) -> None:
        try:
            # Megabytes that only hosts with such a source need.
            from latticed.market import tuf_metadata
        except ModuleNotFoundError as error:
            raise Problem(
                "tuf_missing",
                f"expected python-tuf for a source of the format tuf, found no module {error.name}",
                "install it beside latticed: pip install 'latticed[tuf]'",
            ) from error
        self._metadata = tuf_metadata
        self._shelf = shelf
        self._fetcher = fetcher
        self._seen = seen
        self._index_bytes = index_bytes
        self._limit_s = limit_s
        self._now_s = now_s
        # Metadata and index are read, and put in place, together.
        self._swapping = threading.Lock()

    async def refresh(self, source: MarketSource, now_s: int) -> JudgedSource:
        """See `SourceFormat`. Roles that are not younger than those seen before are refused, too."""
        root = await asyncio.to_thread(_pinned, source)
        kept = await asyncio.to_thread(_kept, self._shelf.repository(source.name) / METADATA)

        def look(answers: Mapping[str, bytes | None]) -> tuple[TufRepository, TufTarget, TufTarget | None]:
            repository = self._metadata.TufRepository(root, kept, answers, now_s=now_s)
            found = _found(repository.target(INDEX), INDEX)
            return repository, found, repository.target(REVOCATIONS)

        repository, target, taken_back = await self._asked(source, look)
        _check_timestamp(source, repository.roles["timestamp"], now_s)
        self._check_roles(source, repository)
        staged = await asyncio.to_thread(self._shelf.stage_repository, source.name)
        try:
            await self._fetch_target(source, target, staged / INDEX, max_bytes=self._index_bytes())
            index = await asyncio.to_thread(lambda: indexes.decode(_read_index(staged / INDEX)))
            found = self._judged(source, repository, index, now_s)
            if taken_back is not None:
                # Or somebody who withholds this file alone could have a host install what was taken back, for good:
                # without it the last repository stays, whose timestamp expires.
                await self._fetch_target(source, taken_back, staged / REVOCATIONS, max_bytes=self._index_bytes())
            await tasks.in_thread(lambda: self._put(staged, _encoded(repository.kept())))
        finally:
            await asyncio.to_thread(self._shelf.unstage, staged)
        return found

    def _put(self, staged: Path, metadata: bytes) -> None:
        with self._swapping:
            self._shelf.put_repository(staged, metadata)

    async def read(self, source: MarketSource, now_s: int) -> JudgedSource:
        """See `SourceFormat`."""
        return await asyncio.to_thread(self._read, source, now_s)

    def _read(self, source: MarketSource, now_s: int) -> JudgedSource:
        """The repository on the shelf, from the pinned root on; blocks."""
        place = self._shelf.repository(source.name)
        root = _pinned(source)
        with self._swapping:
            kept, data = _kept(place / METADATA), _read_index(place / INDEX)
        try:
            repository = self._metadata.TufRepository(root, kept, {}, now_s=None, offline=True)
            target = _found(repository.target(INDEX), INDEX)
        except self._metadata.Wanted as wanted:
            raise Problem(
                "index_invalid",
                f"expected the metadata of the source {source.name} on disk, found no {wanted.name[:80]!a}",
                f"latticectl market refresh {source.name}",
            ) from wanted
        self._check_roles(source, repository)
        target.check(io.BytesIO(data))
        return self._judged(source, repository, indexes.decode(data), now_s)

    def stamp(self, source: MarketSource) -> tuple[int, ...]:
        """See `SourceFormat`."""
        place = self._shelf.repository(source.name)
        return stamp_of(Path(source.root), place / METADATA, place / INDEX)

    async def revocations(self, source: MarketSource, now_s: int) -> TakenBack | None:
        """See `SourceFormat`. Once there were any, their absence is a problem."""
        name = f"{source.name}/revocations"
        repository, target = await self._target(source, REVOCATIONS, now_s)
        allowed = repository.roles["targets"].allowed
        seen = self._seen.document(name, allowed)
        if target is None and seen is None:
            return None
        target, place = _found(target, REVOCATIONS), self._shelf.repository(source.name) / REVOCATIONS
        data = await asyncio.to_thread(_checked, target, place)
        document, found, refused = await asyncio.to_thread(index_revocations.decode, data)
        fresh = signed_document.judge(
            document, holding=repository.roles["targets"].signers, pinned=allowed, seen=seen, now_s=now_s
        )
        return TakenBack(found=found, refused=refused, seen={name: remembered.kept(fresh)})

    async def fetch(
        self, source: MarketSource, url: str, to: Path, *, max_bytes: int, progress: FetchProgress | None = None
    ) -> Fetched:
        """See `SourceFormat`."""
        path = url.partition(_TARGETS)[2]
        if not path or (fault := indexes.url_fault(url)):
            expected = "expected the URL of a target of the repository, with /targets/ and its path"
            raise Problem("fetch_blocked", f"{expected}, found {url[:80]!a}" if not path else fault)
        _, target = await self._target(source, path, self._now_s())
        return await self._fetch_target(source, _found(target, path), to, max_bytes=max_bytes, progress=progress)

    async def _target(self, source: MarketSource, path: str, now_s: int) -> tuple[TufRepository, TufTarget | None]:
        """The repository on the shelf, and what it has at `path`; roles that say so are fetched if need be."""
        root = await asyncio.to_thread(_pinned, source)
        kept = await asyncio.to_thread(_kept, self._shelf.repository(source.name) / METADATA)

        def look(answers: Mapping[str, bytes | None]) -> tuple[TufRepository, TufTarget | None]:
            repository = self._metadata.TufRepository(root, kept, answers, now_s=now_s, offline=True)
            return repository, repository.target(path)

        found = await self._asked(source, look)
        self._check_roles(source, found[0])
        return found

    async def _asked(self, source: MarketSource, look: Callable[[Mapping[str, bytes | None]], T]) -> T:
        """What `look` returns once it has all the metadata that it wants; Problems fetch_…, and those of `look`."""
        answers: dict[str, bytes | None] = {}
        left = _FETCHED_BYTES
        try:
            async with asyncio.timeout(self._limit_s()):
                while True:
                    try:
                        return await asyncio.to_thread(look, answers)
                    except self._metadata.Wanted as wanted:
                        url, limit = f"{source.base}metadata/{wanted.name}", min(wanted.max_bytes, left)
                        answers[wanted.name] = data = await self._fetcher.small(source, url, max_bytes=limit)
                        left -= len(data or b"")
        except TimeoutError as error:
            raise Problem("fetch_failed", "expected the source's metadata in time, found it still coming") from error

    async def _fetch_target(
        self,
        source: MarketSource,
        target: TufTarget,
        to: Path,
        *,
        max_bytes: int,
        progress: FetchProgress | None = None,
    ) -> Fetched:
        """Write the new file `to` with a target. Problems as `fetch`."""
        if target.length > max_bytes:
            raise Problem("fetch_too_large", f"expected at most {max_bytes} bytes, found {target.length} announced")
        url = f"{source.base}targets/{target.name}"
        what = target.path.rpartition("/")[2]
        fetched = await self._fetcher.fetch(source, url, to, max_bytes=target.length, progress=progress, what=what)
        try:
            await asyncio.to_thread(_check, target, to)
        except BaseException:
            await asyncio.to_thread(to.unlink, missing_ok=True)
            raise
        return fetched

    def _judged(self, source: MarketSource, repository: TufRepository, index: Index, now_s: int) -> JudgedSource:
        """What the index of a repository is worth, whose roles hold; Problem index_…."""
        targets = repository.roles["targets"]
        seen = self._seen.document(source.name, targets.allowed)
        fresh = signed_document.judge(
            index.document, holding=targets.signers, pinned=targets.allowed, seen=seen, now_s=now_s
        )
        browse_only = "" if index.status == "official" else f"its status is {index.status}, not official"
        return JudgedSource(
            index=index,
            judged=indexes.JudgedIndex(browse_only=browse_only, seen=fresh),
            expires={f"{name} role": role.expires_s for name, role in repository.roles.items()},
            seen={
                source.name: remembered.kept(fresh),
                **{f"{source.name}/{name}": _seen(name, role) for name, role in repository.roles.items()},
            },
        )

    def _check_roles(self, source: MarketSource, repository: TufRepository) -> None:
        """Problem index_rolled_back for a role below one seen before, index_changed for another of the same version.

        python-tuf compares with the metadata on disk; this with what outlives it.
        """
        for name, role in repository.roles.items():
            seen = self._seen.newest(f"{source.name}/{name}", role.allowed)
            if seen is None or role.version > seen.generated_s or role.sha256 == seen.sha256:
                continue
            if role.version == seen.generated_s:
                code, found = "index_changed", "another of the same version"
            else:
                code, found = "index_rolled_back", f"version {role.version}"
            raise Problem(
                code,
                f"expected the {name} role of the source {source.name} from version {seen.generated_s} on, as it was "
                f"seen before, found {found}",
                "somebody serves old metadata; the newer stays in use",
            )


def _pinned(source: MarketSource) -> bytes:
    """The root that the operator pinned; Problem source_invalid. Blocks."""
    try:
        return trusted_files.read(Path(source.root), _ROOT_BYTES, owners=frozenset({0, os.geteuid()}))
    except (OSError, ValueError, trusted_files.ForeignFile) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise Problem(
            "source_invalid",
            f"market.sources.{source.name}.root: expected a file that root or latticed's user alone can change, "
            f"found: {reason}",
            "put the repository's root there; see docs/operate/market.md",
        ) from error


def _kept(path: Path) -> dict[str, bytes]:
    """The metadata on the shelf by name; empty when there is none, or none that can be read. Blocks."""
    try:
        found = json.loads(files.read_at_most(path, _KEPT_BYTES))
        return {name: data.encode() for name, data in found.items()}
    except (OSError, ValueError, AttributeError):
        # What was seen of it is remembered elsewhere, so another copy is as good.
        return {}


def _encoded(kept: Mapping[str, bytes]) -> bytes:
    """Metadata as it is written to the shelf; it is JSON, so it is UTF-8. Problem fetch_too_large."""
    plain: dict[str, Any] = {name: data.decode() for name, data in kept.items()}
    written = json.dumps(plain).encode()
    if len(written) > _KEPT_BYTES:  # `_kept` would read nothing of it
        raise Problem("fetch_too_large", f"expected at most {_KEPT_BYTES} bytes of metadata, found {len(written)}")
    return written


def _read_index(path: Path) -> bytes:
    """The bytes of an index; Problem index_invalid. Blocks."""
    try:
        return files.read_at_most(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise Problem("index_invalid", f"cannot read {path.name}: {error}") from error


def _found(target: TufTarget | None, path: str) -> TufTarget:
    """The target; Problem fetch_missing for none."""
    if target is None:
        raise Problem("fetch_missing", f"expected {path[-80:]!a} among the targets of the repository, found none")
    return target


def _check(target: TufTarget, path: Path) -> None:
    """Problem digest_mismatch unless the file is the target. Blocks."""
    with path.open("rb") as file:
        target.check(file)


def _checked(target: TufTarget, path: Path) -> bytes:
    """The bytes of a target on the shelf; Problems index_invalid, digest_mismatch. Blocks."""
    data = _read_index(path)
    target.check(io.BytesIO(data))
    return data


def _check_timestamp(source: MarketSource, role: TufRole, now_s: int) -> None:
    """Problem index_invalid for a timestamp that holds for longer than the source's indexes may be old.

    While it holds nobody can tell that newer metadata is withheld.
    """
    if role.expires_s > now_s + source.max_age_s:
        days = source.max_age_s // 86_400
        raise Problem(
            "index_invalid",
            f"expected the timestamp role of the source {source.name} to expire within {days} days, "
            f"found {(role.expires_s - now_s) // 86_400}",
            f"set market.sources.{source.name}.max_age_days if that is meant",
        )


def _seen(name: str, role: TufRole) -> SeenIndex:
    """What is remembered of a role: of root all keys of its line, so that an older one of it never counts again.

    Its version takes the place of a moment; `generated_at` is until when it holds, which health tells.
    """
    return SeenIndex(
        generated_at=f"{rfc3339(role.expires_s * 1_000_000)[:19]}Z",
        generated_s=role.version,
        sha256=role.sha256,
        keys=tuple(sorted(role.allowed if name == "root" else role.signers)),
    )
