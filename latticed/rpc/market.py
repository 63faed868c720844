"""Handlers for the marketplace: sources and their indexes, taking a bundle, holds. See `market_offers` too."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, cast

from aiohttp import web

from latticed.bundle.refusal import ARTIFACT, MANIFEST
from latticed.kit.clock import rfc3339
from latticed.ledger import market as rows
from latticed.model.errors import Problem
from latticed.rpc.access import Scope
from latticed.rpc.backup import WRITE_S
from latticed.rpc.market_offers import SLACK_S, wanted_release
from latticed.rpc.market_shapes import MarketChoice, MarketImport, MarketInstall, RefreshSource
from latticed.rpc.plugins import Nothing

if TYPE_CHECKING:
    from pathlib import Path

    from latticed.market.install import Underway
    from latticed.market.market import Market
    from latticed.market.sources import MarketSource
    from latticed.rpc.api import Ask
    from latticed.rpc.connection import ControlConnection
    from latticed.rpc.market_shapes import HoldSet, MarketGlance, SourceRow, StepRow, TakenRow, TakingRow


async def glance(ask: Ask) -> MarketGlance:
    """Every source with its last index, what is being taken, and holds. Asks no source."""
    market = ask.api.market()
    found = [await _source_row(ask, market, name, one) for name, one in sorted(market.sources().items())]
    taking: list[TakingRow] = [
        {
            "id": one.id,
            "version": one.version,
            "source": one.source_name,
            "file": one.progress.what,
            "bytes": one.progress.size,
            "steps": cast("list[StepRow]", list(one.steps)),
        }
        for one in market.installer.takings.values()
    ]
    return {"sources": found, "taking": taking, "held": sorted(ask.api.ledger.read(rows.held))}


async def refresh(ask: Ask) -> MarketGlance:
    """Fetch the indexes of one source, or of all; of several each is tried, and the first failure answered."""
    body = await ask.body(RefreshSource)
    market = ask.api.market()
    names = [body.source] if body.source else sorted(market.sources())
    # Each source has its index and what it takes back, and a repository the metadata of both.
    ask.may_take(4 * len(names) * ask.api.settings.market.fetch_s + SLACK_S)
    failed: Problem | None = None
    for name in names:
        try:
            await market.refresh(name, ask.actor)
        except Problem as problem:
            failed = failed or Problem(problem.code, f"{name}: {problem.reason}", problem.hint)
    if failed is not None:
        raise failed
    return await glance(ask)


async def install(ask: Ask) -> TakenRow:
    """Take a bundle into the market's directory once every step is passed; it is then verified, and nothing more."""
    body = await ask.body(MarketInstall)
    # What an operator decided otherwise takes who may grant host risk, as a downgrade does everywhere.
    if body.accept_age or body.accept_held or body.allow_downgrade or body.accept or body.accept_hosts:
        ask.need(Scope.HOST)
    ask.may_take(4 * ask.api.settings.market.fetch_s + SLACK_S)
    from latticed.market.rules import WantedRelease

    wanted = WantedRelease(
        id=body.id,
        source=body.source,
        version=body.version,
        channel=body.channel,
        accept=(*body.accept, *(f"host={one}" for one in body.accept_hosts)),
        accept_age=body.accept_age,
        accept_held=body.accept_held,
        allow_downgrade=body.allow_downgrade,
    )
    return _taken(await ask.api.market().installer.install(wanted, ask.actor))


async def take_in(ask: Ask) -> TakenRow:
    """Take a bundle of a file in `market.import_dir`, through every step of an install but the index's."""
    body = await ask.body(MarketImport)
    if body.accept_held or body.allow_downgrade or body.accept or body.accept_hosts:
        ask.need(Scope.HOST)
    ask.may_take(4 * ask.api.settings.limits.read_deadline_s + SLACK_S)
    from latticed.market.rules import WantedImport

    wanted = WantedImport(
        name=body.name,
        sha256=body.sha256,
        identity=body.identity,
        id=body.id,
        publisher=body.publisher,
        versions=_range(body.versions),
        accept=(*body.accept, *(f"host={one}" for one in body.accept_hosts)),
        accept_held=body.accept_held,
        allow_downgrade=body.allow_downgrade,
    )
    return _taken(await ask.api.market().importer.take(wanted, ask.actor))


def _range(text: str) -> str:
    """`text`, a range of versions or empty; Problem bad_request."""
    from latticed.model import semver_range

    try:
        if text:
            semver_range.check(text)
    except semver_range.InvalidRange as error:
        raise Problem("bad_request", f"versions: {error}", "say a range such as ^1.2") from error
    return text


def _taken(taking: Underway) -> TakenRow:
    return {
        "id": taking.id,
        "version": taking.version,
        "source": taking.source_name,
        "identity": taking.verified.identity if taking.verified else "",
        "steps": cast("list[StepRow]", taking.steps),
    }


async def download(ask: Ask) -> web.StreamResponse:
    """A verified bundle as a tar of its two files, for a directory that the daemon cannot write; nothing is kept."""
    query = ask.query(MarketChoice)
    if query.accept_age or query.accept_held or query.accept:
        ask.need(Scope.HOST)
    from latticed.kit import tar  # it imports `tarfile`, which a start does without

    if ask.headers_only:
        return web.Response(content_type="application/x-tar")
    connection = cast("ControlConnection", ask.request.protocol)
    if not connection.stream():
        raise Problem("too_many_streams", "expected fewer streams of one user at once", "close some of them")
    wanted = wanted_release(ask.part("id"), query)
    async with ask.api.market().installer.taken(wanted, ask.actor, "market.fetched") as (_, staged):
        answer = web.StreamResponse(headers={"Content-Type": "application/x-tar"})
        sizes = await asyncio.to_thread(lambda: {name: (staged / name).stat().st_size for name in (MANIFEST, ARTIFACT)})
        answer.content_length = len(tar.END) + sum(tar.BLOCK + size + tar.padding(size) for size in sizes.values())
        await connection.begin(answer, ask.request)
        with contextlib.suppress(OSError):  # a reader that has gone sees that it is cut short
            await _send(ask, staged, sizes, answer)
    answer.force_close()
    return answer


async def _send(ask: Ask, staged: Path, sizes: dict[str, int], answer: web.StreamResponse) -> None:
    """Write the archive; TimeoutError when the reader takes nothing for `WRITE_S`."""
    from latticed.kit import tar

    for name, size in sizes.items():
        blocks = [tar.header(name, size, mode=0o644, mtime_s=0)]
        with (staged / name).open("rb") as file:
            while blocks or (blocks := [piece] if (piece := await asyncio.to_thread(file.read, 1 << 20)) else []):
                if ask.api.closing.is_set():
                    raise ConnectionAbortedError
                async with asyncio.timeout(WRITE_S):
                    await answer.write(blocks.pop())
        await answer.write(bytes(tar.padding(size)))
    await answer.write(tar.END)


async def hold(ask: Ask) -> HoldSet:
    """Keep a plugin at the version that it has: no other is taken until this is undone."""
    return await _hold(ask, on=True)


async def release(ask: Ask) -> HoldSet:
    """Hold a plugin no more."""
    return await _hold(ask, on=False)


async def _hold(ask: Ask, *, on: bool) -> HoldSet:
    await ask.body(Nothing)
    changed = await ask.api.market().hold(ask.part("id"), ask.actor, on=on)
    return {"id": ask.part("id"), "held": on, "changed": changed}


async def _source_row(ask: Ask, market: Market, name: str, found: MarketSource | Problem) -> SourceRow:
    given = ask.api.settings.market.sources[name]
    trouble = market.troubles.get(name)
    row: SourceRow = {
        "name": name,
        "format": given.format,
        "url": given.url,
        "keys": [],
        "signed_by": [],
        "usable": False,
        "code": "",
        "reason": "",
        "trouble": str(trouble) if trouble else "",
        "generated_at": None,
        "expires": {},
        "expires_at": None,
        "plugins": 0,
        "refused": [],
    }
    if isinstance(found, Problem):
        return {**row, "code": found.code, "reason": found.reason}
    from latticed.market import sources

    row["keys"] = sources.short(found.keys)
    try:
        shelved = await market.shelved(found)
    except Problem as problem:
        return {**row, "code": problem.code, "reason": problem.reason}
    document = shelved.index.document
    fault = shelved.fault(ask.api.clock.wall_us() // 1_000_000)
    return {
        **row,
        "usable": fault is None,
        "code": fault.code if fault else "",
        "reason": fault.reason if fault else "",
        "signed_by": sources.short(shelved.judged.seen.keys if shelved.judged.seen else ()),
        "generated_at": document.generated_at,
        "expires": {what: rfc3339(at_s * 1_000_000) for what, at_s in shelved.found.expires.items()},
        "expires_at": rfc3339(min(shelved.found.expires.values()) * 1_000_000),
        "plugins": len(shelved.index.entries),
        "refused": list(shelved.index.refused[:20]),
    }
