"""Handlers for the marketplace: sources and their indexes, what they offer, taking a bundle, holds."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Annotated, Any, Final, TypedDict, cast

from aiohttp import web
from msgspec import Meta

from latticed.bundle.refusal import ARTIFACT, MANIFEST
from latticed.kit.clock import rfc3339
from latticed.ledger import market as rows
from latticed.model import semver_range
from latticed.model.errors import Problem
from latticed.rpc.access import Scope
from latticed.rpc.api import Body, QueryParams
from latticed.rpc.backup import WRITE_S

if TYPE_CHECKING:
    from pathlib import Path

    from latticed.market.market import Market, Shelved, Taking
    from latticed.market.rules import WantedRelease
    from latticed.market.sources import MarketSource
    from latticed.model.lifecycle import Record
    from latticed.rpc.api import Ask
    from latticed.rpc.connection import ControlConnection
    from latticed.trust.index import IndexEntry, Release

_SLACK_S: Final = 60.0
"""Beside the fetches: hashing, and asking whether this host can run it."""

Text = Annotated[str, Meta(max_length=256)]


class RefreshSource(Body, frozen=True):
    """`source`: this one; all of them when it is empty."""

    source: Text = ""


class MarketSearch(QueryParams, frozen=True):
    """Plugins whose id, name or summary has `text`, sorted by id; `after`: the `next` of the previous page."""

    text: Text = ""
    source: Text = ""
    after: Text = ""
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class MarketChoice(QueryParams, frozen=True):
    """Which release: a version, or a channel's newest (the stable one where neither is named). `accept`: what is
    consented to by name, separated by spaces (contracts §8).
    """

    source: Text = ""
    version: Text = ""
    channel: Text = ""
    accept: Annotated[str, Meta(max_length=16_384)] = ""
    accept_age: Text = ""
    accept_held: bool = False


class MarketInstall(Body, frozen=True):
    """`accept` has capabilities and hosts (`host=…`) that are consented to by name; `accept_age` names the version that
    is taken before its age, `accept_held` takes one of a held plugin.
    """

    id: Text
    source: Text = ""
    version: Text = ""
    channel: Text = ""
    accept: Annotated[tuple[Text, ...], Meta(max_length=256)] = ()
    accept_hosts: Annotated[tuple[Text, ...], Meta(max_length=256)] = ()
    accept_age: Text = ""
    accept_held: bool = False
    allow_downgrade: bool = False


class SourceRow(TypedDict):
    """A source of the settings and its last index. `usable`: plugins can be installed from it; otherwise `code` and
    `reason` say why not. `trouble`: why the last refresh failed. `keys`: fingerprints of those that are pinned.
    """

    name: str
    format: str
    url: str
    keys: list[str]
    usable: bool
    code: str
    reason: str
    trouble: str
    generated_at: str | None
    expires_at: str | None
    plugins: int
    refused: list[str]


class TakingRow(TypedDict):
    """A bundle that is being taken: how many bytes of which file are here."""

    id: str
    version: str
    source: str
    file: str
    bytes: int


class MarketGlance(TypedDict):
    """The sources, what is being taken, and which plugins are held."""

    sources: list[SourceRow]
    taking: list[TakingRow]
    held: list[str]


class OfferRow(TypedDict):
    """One plugin of an index. `unsupported` says why none of it can be taken; `installed` what this host has of it."""

    id: str
    name: str
    publisher: str
    type: str
    summary: str
    source: str
    channels: dict[str, str]
    installed: str | None
    unsupported: str


class OfferPage(TypedDict):
    """`next` is what `after` must be for the following page, null on the last."""

    plugins: list[OfferRow]
    next: str | None


class ReleaseRow(TypedDict):
    """One release. `first_seen`: when this host read of it first; `unsupported` says why it cannot be taken."""

    version: str
    channel: str
    capabilities: list[str]
    artifact_sha256: str
    first_seen: str | None
    unsupported: str


class OfferedManifest(TypedDict):
    """What the signed manifest of a release says, once it is verified; `must_accept`: what takes consent by name.

    `adds` and `drops` against what this host has of the plugin: capabilities, and hosts as `host=…`.
    """

    version: str
    identity: str
    description: str
    homepage: str
    license: str
    capabilities: list[str]
    hosts: list[str]
    requires_host: str
    must_accept: list[str]
    adds: list[str]
    drops: list[str]


class MarketOffer(OfferRow):
    """A plugin with its releases. `manifest`: of the release that an install would take; `problem`: why it is null."""

    releases: list[ReleaseRow]
    manifest: OfferedManifest | None
    problem: str
    held: bool


class StepRow(TypedDict):
    """One step that was passed."""

    step: str
    detail: str


class TakenRow(TypedDict):
    """A bundle that was taken: it is verified, and neither installed nor granted anything."""

    id: str
    version: str
    source: str
    identity: str
    steps: list[StepRow]


class OutdatedRow(TypedDict):
    """A plugin of this host for which its source has a newer release; or one that its source has no more (`gone`)."""

    id: str
    installed: str
    offered: str
    source: str
    held: bool
    gone: bool


class OutdatedList(TypedDict):
    plugins: list[OutdatedRow]


class HoldSet(TypedDict):
    """`changed`: it was not so already."""

    id: str
    held: bool
    changed: bool


async def glance(ask: Ask) -> MarketGlance:
    """Every source with its last index, what is being taken, and holds. Asks no source."""
    market = ask.api.market()
    found = [await _source_row(ask, market, name, one) for name, one in sorted(market.sources().items())]
    taking: list[TakingRow] = [
        {
            "id": one.wanted.id,
            "version": one.release.version,
            "source": one.source.name,
            "file": one.progress.what,
            "bytes": one.progress.size,
        }
        for one in market.takings.values()
    ]
    return {"sources": found, "taking": taking, "held": sorted(ask.api.ledger.read(rows.held))}


async def refresh(ask: Ask) -> MarketGlance:
    """Fetch the indexes of one source, or of all; of several each is tried, and the first failure answered."""
    body = await ask.body(RefreshSource)
    market = ask.api.market()
    names = [body.source] if body.source else sorted(market.sources())
    # Each source has two files: its index, and what it takes back.
    ask.may_take(2 * len(names) * ask.api.settings.market.fetch_s + _SLACK_S)
    failed: Problem | None = None
    for name in names:
        try:
            await market.refresh(name, ask.actor)
        except Problem as problem:
            failed = failed or Problem(problem.code, f"{name}: {problem.reason}", problem.hint)
    if failed is not None:
        raise failed
    return await glance(ask)


async def search(ask: Ask) -> OfferPage:
    """Plugins of all indexes, or of one source's. Asks no source."""
    wanted = ask.query(MarketSearch)
    market = ask.api.market()
    if wanted.source:
        shelved = [await market.shelved(market.source(wanted.source))]
    else:
        shelved = await market.all_shelved()
    words = wanted.text.casefold()

    def found() -> list[tuple[str, Shelved, IndexEntry]]:
        return sorted(
            (
                (entry.id, one, entry)
                for one in shelved
                for entry in one.index.entries.values()
                if entry.id > wanted.after and words in f"{entry.id} {entry.name} {entry.summary}".casefold()
            ),
            key=lambda row: (row[0], row[1].source.name),
        )

    # Off the loop: an index may have a hundred thousand plugins.
    matching = await asyncio.to_thread(found)
    page = matching[: wanted.limit]
    # The whole of an id that several sources have.
    while len(page) < len(matching) and page and matching[len(page)][0] == page[-1][0]:
        page.append(matching[len(page)])
    last = page[-1][0] if len(matching) > len(page) else None
    return {"plugins": [_offer_row(ask, one, entry) for _, one, entry in page], "next": last}


async def show(ask: Ask) -> MarketOffer:
    """One plugin: its releases, and the signed manifest of the one that an install would take, which is fetched now."""
    market, wanted = ask.api.market(), _wanted(ask.part("id"), ask.query(MarketChoice))
    ask.may_take(ask.api.settings.market.fetch_s + _SLACK_S)
    shelved = await market.find(wanted)
    entry = shelved.index.entries.get(wanted.id)
    if entry is None:
        raise Problem(
            "not_found", f"expected {wanted.id[:128]} in the index, found no such plugin", "latticectl market search"
        )
    known = ask.api.ledger.read(lambda db: rows.first_seen(db, shelved.source.name, entry.id))
    manifest, problem = None, ""
    try:
        manifest = await _manifest(ask, market, shelved, wanted)
    except Problem as error:
        problem = str(error)
    return {
        **_offer_row(ask, shelved, entry),
        "releases": [_release_row(one, known) for one in entry.releases],
        "manifest": manifest,
        "problem": problem,
        "held": entry.id in ask.api.ledger.read(rows.held),
    }


async def install(ask: Ask) -> TakenRow:
    """Take a bundle into the market's directory once every step is passed; it is then verified, and nothing more."""
    body = await ask.body(MarketInstall)
    # What an operator decided otherwise takes who may grant host risk, as a downgrade does everywhere.
    if body.accept_age or body.accept_held or body.allow_downgrade or body.accept or body.accept_hosts:
        ask.need(Scope.HOST)
    ask.may_take(2 * ask.api.settings.market.fetch_s + _SLACK_S)
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
    taking = await ask.api.market().install(wanted, ask.actor)
    return {
        "id": taking.entry.id,
        "version": taking.release.version,
        "source": taking.source.name,
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
    wanted = _wanted(ask.part("id"), query)
    async with ask.api.market().taken(wanted, ask.actor, "market.fetched") as (_, staged):
        answer = web.StreamResponse(headers={"Content-Type": "application/x-tar"})
        sizes = await asyncio.to_thread(lambda: {name: (staged / name).stat().st_size for name in (MANIFEST, ARTIFACT)})
        answer.content_length = len(tar.END) + sum(tar.BLOCK + size + tar.padding(size) for size in sizes.values())
        await answer.prepare(ask.request)
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


async def outdated(ask: Ask) -> OutdatedList:
    """Plugins of this host that came from a source which has a newer release of their channel, or none any more."""
    market, ledger = ask.api.market(), ask.api.ledger
    held = ledger.read(rows.held)
    shelved = {one.source.name: one for one in await market.all_shelved()}
    found: list[OutdatedRow] = []
    for taken in ledger.read(rows.taken).values():
        record, one = ask.api.lifecycle.records.get(taken.id), shelved.get(taken.source)
        if record is None or record.forgotten or one is None:
            continue
        entry = one.index.entries.get(taken.id)
        offered = _newest(entry, record.facts.version) if entry is not None else ""
        if offered in {bad.version for bad in ask.api.lifecycle.state.bad.get(taken.id, {}).values()}:
            offered = ""  # an upgrade to it was given up
        gone = entry is None or entry.release(record.facts.version) is None
        if offered or gone:
            row: OutdatedRow = {
                "id": taken.id,
                "installed": record.facts.version,
                "offered": offered,
                "source": taken.source,
                "held": taken.id in held,
                "gone": gone,
            }
            found.append(row)
    return {"plugins": found}


async def hold(ask: Ask) -> HoldSet:
    """Keep a plugin at the version that it has: no other is taken until this is undone."""
    return await _hold(ask, on=True)


async def release(ask: Ask) -> HoldSet:
    """Hold a plugin no more."""
    return await _hold(ask, on=False)


async def _hold(ask: Ask, *, on: bool) -> HoldSet:
    changed = await ask.api.market().hold(ask.part("id"), ask.actor, on=on)
    return {"id": ask.part("id"), "held": on, "changed": changed}


def _newest(entry: IndexEntry, version: str) -> str:
    """The version that the channel of `version` has now, if that is a newer one; empty otherwise."""
    mine = entry.release(version)
    offered = entry.channels.get(mine.channel if mine else "stable", "")
    order = semver_range.compare(offered, version) if offered else None
    return offered if order is not None and order > 0 else ""


def _wanted(plugin_id: str, query: MarketChoice) -> WantedRelease:
    from latticed.market.rules import WantedRelease

    return WantedRelease(
        id=plugin_id,
        source=query.source,
        version=query.version,
        channel=query.channel,
        accept=tuple(query.accept.split()),
        accept_age=query.accept_age,
        accept_held=query.accept_held,
    )


async def _manifest(ask: Ask, market: Market, shelved: Shelved, wanted: WantedRelease) -> OfferedManifest:
    """The manifest of the release that is meant, fetched and verified; Problem of the step that fails."""
    taking: Taking = await market.looked_at(shelved, wanted)
    from latticed.market import rules

    if taking.verified is None:
        raise Problem("internal", "expected a verdict")
    manifest, record = taking.verified.manifest, ask.api.lifecycle.records.get(wanted.id)
    hosts = tuple(manifest.declared_hosts or ())
    asked = {*manifest.capabilities, *(f"host={one}" for one in hosts)}
    has = _has(record)
    return {
        "version": manifest.version,
        "identity": taking.verified.identity,
        "description": manifest.description,
        "homepage": manifest.homepage,
        "license": manifest.license,
        "capabilities": list(manifest.capabilities),
        "hosts": list(hosts),
        "requires_host": manifest.requires_host,
        "must_accept": list(rules.needed(manifest)),
        "adds": sorted(asked - has) if record else [],
        "drops": sorted(has - asked) if record else [],
    }


def _has(record: Record | None) -> set[str]:
    """What the bundle on record declares: capabilities, and hosts as `host=…`."""
    if record is None or record.forgotten:
        return set()
    from latticed.lifecycle import presence

    manifest = presence.manifest_of(record.facts)
    hosts = (manifest.declared_hosts or ()) if manifest is not None else ()
    return {*record.facts.capabilities, *(f"host={one}" for one in hosts)}


async def _source_row(ask: Ask, market: Market, name: str, found: MarketSource | Problem) -> SourceRow:
    given = ask.api.settings.market.sources[name]
    trouble = market.troubles.get(name)
    row: SourceRow = {
        "name": name,
        "format": given.format,
        "url": given.url,
        "keys": [],
        "usable": False,
        "code": "",
        "reason": "",
        "trouble": str(trouble) if trouble else "",
        "generated_at": None,
        "expires_at": None,
        "plugins": 0,
        "refused": [],
    }
    if isinstance(found, Problem):
        return {**row, "code": found.code, "reason": found.reason}
    from latticed.market import sources

    row["keys"] = sources.fingerprints(found)
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
        "generated_at": document.generated_at,
        "expires_at": rfc3339((document.generated_s + found.max_age_s) * 1_000_000),
        "plugins": len(shelved.index.entries),
        "refused": list(shelved.index.refused[:20]),
    }


def _offer_row(ask: Ask, shelved: Shelved, entry: IndexEntry) -> OfferRow:
    record = ask.api.lifecycle.records.get(entry.id)
    return {
        "id": entry.id,
        "name": entry.name,
        "publisher": entry.publisher,
        "type": entry.type,
        "summary": entry.summary,
        "source": shelved.source.name,
        "channels": dict(entry.channels),
        "installed": record.facts.version if record is not None and not record.forgotten else None,
        "unsupported": entry.unsupported,
    }


def _release_row(one: Release, known: dict[tuple[str, str], int]) -> ReleaseRow:
    seen: Any = known.get((one.version, one.sha256))
    return {
        "version": one.version,
        "channel": one.channel,
        "capabilities": list(one.capabilities),
        "artifact_sha256": one.artifact_sha256,
        "first_seen": rfc3339(seen) if seen else None,
        "unsupported": one.unsupported,
    }
