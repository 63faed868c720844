"""Handlers for what the marketplace offers: search, show, what is outdated. Only `show` asks a source."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from latticed.kit.clock import rfc3339
from latticed.ledger import market as rows
from latticed.model import capability, semver_range
from latticed.model.errors import Problem
from latticed.rpc.market_shapes import MarketChoice, MarketSearch

if TYPE_CHECKING:
    from latticed.market.install import Taking
    from latticed.market.market import Market
    from latticed.market.rules import WantedRelease
    from latticed.market.shelved import Shelved
    from latticed.model.lifecycle import Record
    from latticed.rpc.api import Ask
    from latticed.rpc.market_shapes import (
        MarketOffer,
        OfferedManifest,
        OfferPage,
        OfferRow,
        OutdatedList,
        OutdatedRow,
        ReleaseRow,
    )
    from latticed.trust.index import IndexEntry, Release

SLACK_S: Final = 60.0
"""Beside the fetches: hashing, and asking whether this host can run it."""


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
    market, wanted = ask.api.market(), wanted_release(ask.part("id"), ask.query(MarketChoice))
    ask.may_take(2 * ask.api.settings.market.fetch_s + SLACK_S)
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


def _newest(entry: IndexEntry, version: str) -> str:
    """The version that the channel of `version` has now, if that is a newer one; empty otherwise."""
    mine = entry.release(version)
    offered = entry.channels.get(mine.channel if mine else "stable", "")
    order = semver_range.compare(offered, version) if offered else None
    return offered if order is not None and order > 0 else ""


async def _manifest(ask: Ask, market: Market, shelved: Shelved, wanted: WantedRelease) -> OfferedManifest:
    """The manifest of the release that is meant, fetched and verified; Problem of the step that fails."""
    taking: Taking = await market.installer.looked_at(shelved, wanted)
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
        "risk": max(capability.RISKS[one] for one in manifest.capabilities).word,
        "risk_here": max(capability.RISKS[one] for one in record.facts.capabilities).word if record and has else None,
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


def wanted_release(plugin_id: str, query: MarketChoice) -> WantedRelease:
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
        "artifact_bytes": one.artifact_bytes or None,
        "changelog_url": one.changelog_url or None,
        "first_seen": rfc3339(seen) if seen else None,
        "unsupported": one.unsupported,
    }
