"""Merging records and floors after a loss, as pure functions: the stricter value wins (architecture, decision 3)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from latticed.ledger.floors import Floors
from latticed.ledger.revocations import KINDS, RevocationRows
from latticed.lifecycle import advance, granting, manifest_defaults
from latticed.lifecycle.presence import facts_of, manifest_of, migrated
from latticed.model import capability, semver_range
from latticed.model.accepted import meet
from latticed.model.lifecycle import Record, RecordFacts, Status
from latticed.model.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from latticed.ledger.floors import Pin
    from latticed.model.accepted import Accepted
    from latticed.model.verdict import Verified


def higher_floor(trusted: str, other: str) -> str:
    """The higher of two versions; `trusted` when they are not comparable, unless it is empty."""
    # None when one of them is no SemVer version: there is no order, so the untrusted one must not win.
    order = semver_range.compare(trusted, other)
    return other if not trusted or (order is not None and order < 0) else trusted


def both(trusted: Accepted | None, other: Accepted | None) -> Accepted | None:
    """The terms that `trusted` and `other` both accept; when one is None, the other.

    Omitted values are compared by the default settings, which here only decide which one is stricter.
    """
    if trusted is None or other is None:
        return trusted or other
    return meet(trusted, other, manifest_defaults.DEFAULTS)


def rebuilt(
    plugin_id: str, pairs: Sequence[Verified], floors: Floors, remembered: Record | None, *, now_us: int
) -> Record:
    """The record of an id whose own was lost: `verified` when a stored pair can be used, else a tombstone.

    `pairs` are those of this id that verify under the current policy. `remembered` was read from the damaged ledger and
    is not trusted: it may add masks, raise the floor, and pin the publisher of an id that the floors do not know.
    """
    # What the signed floors say counts; the damaged ledger may only add to it.
    pin = floors.pins.get(plugin_id)
    masked = floors.masked.get(plugin_id, frozenset())
    terms = floors.terms.get(plugin_id)
    floor = floors.versions.get(plugin_id, "")
    if remembered is not None:
        masked |= remembered.masked
        terms = both(terms, remembered.terms)
        floor = higher_floor(floor, remembered.floor)
    # Whose id it is, and which of the stored pairs can be its plugin.
    hand = _hand(pin, remembered)
    pair = _choose(pairs, hand, pin.identity if pin else "")
    if pair is None:
        # Nothing to run: pin, masks and floor are kept, so that a bundle which comes later is held to them.
        publisher, signed = hand or ("", False)
        gone = tombstone(plugin_id, publisher, signed=signed, masked=masked, floor=floor, now_us=now_us)
        return replace(gone, terms=terms)
    # Never accepted: no plugin comes back active, the operator decides again.
    facts = facts_of(pair, accepted=False)
    return Record(
        id=plugin_id,
        status=Status.VERIFIED,
        facts=facts,
        source="",  # set by the next catalog scan
        masked=capability.host_risk(facts.capabilities) | masked,
        terms=terms,
        floor=higher_floor(floor, facts.version),
        verified_at=now_us,
        created_at=now_us,
        updated_at=now_us,
    )


def restored(record: Record, floors: Floors, *, now_us: int) -> Record:
    """A backup's record, merged with the floors of the state it replaces; `record` itself when nothing changes.

    If another publisher has taken over the id since, a tombstone of that publisher. If its version is below the floor
    (unless that downgrade was explicit), or it could not start with the terms accepted now, it falls back to `verified`
    and must be installed again.
    """
    pin = floors.pins.get(record.id)
    masked = record.masked | floors.masked.get(record.id, frozenset())
    floor = higher_floor(floors.versions.get(record.id, ""), record.floor)
    facts = record.facts
    # Another publisher holds the id by now: of the backup's record only masks and floor are left.
    if pin is not None and (pin.publisher, pin.signed) != (facts.publisher, facts.signed):
        gone = tombstone(record.id, pin.publisher, signed=pin.signed, masked=masked, floor=floor, now_us=now_us)
        return replace(gone, terms=floors.terms.get(record.id))
    # Masks, terms and version floor: the stricter of both. Without terms in the floors the record's stay as they are.
    kept = floors.terms.get(record.id)
    terms = both(kept, migrated(record).terms) if kept is not None else record.terms
    # What the floors mask may have been granted and taken back since the backup.
    unasked = record.unasked - floors.masked.get(record.id, frozenset())
    after = replace(record, masked=masked, unasked=unasked, terms=terms, floor=floor, updated_at=now_us)
    # Does the accepted version still stand under the merged terms and floor?
    unfit = record.accepted and granting.needs_consent(after, manifest_of(facts), "activate") is not None
    chosen = pin is not None and pin.identity == facts.identity  # accepted last, so a lower version was explicit
    if unfit or (
        record.accepted and floor != record.floor and not chosen and advance.is_downgrade(floor, facts.version)
    ):
        # As if first seen: host-risk capabilities have to be granted again.
        masked |= capability.host_risk(facts.capabilities)
        return replace(after, status=Status.VERIFIED, facts=replace(facts, manifest=b""), masked=masked)
    # `updated_at` alone is no change: callers recognize an unchanged record by identity (`is`).
    return after if after != replace(record, updated_at=now_us) else record


def held_to(before: Mapping[str, Record], floors: Floors, *, now_us: int, replaced: bool) -> list[Record]:
    """The records that change when a ledger is merged with `floors`, and tombstones for ids that only floors know.

    `before` are the ledger's records by id. `replaced`: the floors were not written for this ledger last, so `restored`
    applies. Otherwise the ledger may be slightly newer than the floors: masks, terms and version floors apply, but not
    pins, which may have changed since.
    """
    known = {*floors.pins, *floors.versions, *floors.masked}.difference(before)
    changed = []
    for record in before.values():
        after = restored(record, floors, now_us=now_us) if replaced else _tightened(record, floors, now_us=now_us)
        if after is not record:
            changed.append(after)
    return changed + [rebuilt(one, (), floors, None, now_us=now_us) for one in sorted(known)]


def looser(written: Floors, record: Record) -> bool:
    """Whether `record` allows more than the floors `written` last, so that the next start would tighten it again."""
    floor = higher_floor(written.versions.get(record.id, ""), record.floor)
    return bool(_missing(written, record)) or floor != record.floor or _terms(written, record) != record.terms


def _tightened(record: Record, floors: Floors, *, now_us: int) -> Record:
    """`record` with the floors applied (version, masks, terms); `record` itself when it allows no more than they do."""
    if not looser(floors, record):
        return record
    floor = higher_floor(floors.versions.get(record.id, ""), record.floor)
    masked = record.masked | _missing(floors, record)
    return replace(record, masked=masked, terms=_terms(floors, record), floor=floor, updated_at=now_us)


def _terms(floors: Floors, record: Record) -> Accepted | None:
    """What both accept; a record from before there were terms keeps None."""
    kept = floors.terms.get(record.id)
    return record.terms if record.terms is None or kept in {None, record.terms} else both(kept, record.terms)


def _missing(floors: Floors, record: Record) -> frozenset[str]:
    """Capabilities that the record declares and grants though the floors mask them."""
    return (floors.masked.get(record.id, frozenset()) - record.masked).intersection(record.facts.capabilities)


def union(present: Floors, theirs: Floors) -> Floors:
    """The stricter of two floors, for a restore; where they pin an id to different publishers, `present` wins."""
    versions = dict(theirs.versions)
    for plugin, version in present.versions.items():
        versions[plugin] = higher_floor(version, versions.get(plugin, ""))
    masked = dict(theirs.masked)
    for plugin, names in present.masked.items():
        masked[plugin] = masked.get(plugin, frozenset()) | names
    terms = dict(theirs.terms)
    for plugin, accepted in present.terms.items():
        # `both` is never None here; `or` is for the type checker.
        terms[plugin] = both(accepted, terms.get(plugin)) or accepted
    revoked = {kind: getattr(present.revoked, kind) | getattr(theirs.revoked, kind) for kind in KINDS}
    sources = dict(theirs.sources)
    for name, seen in present.sources.items():
        other = sources.get(name, seen)
        # What held under other keys may count for nothing with those that are pinned now (docs/adr/0028), so it never
        # takes the place of what counts. Theirs counts by their ledger, which comes with it.
        higher = other.generated_s > seen.generated_s and set(seen.keys) <= set(other.keys)
        sources[name] = other if higher else seen
    return Floors(
        versions=versions,
        masked=masked,
        terms=terms,
        pins={**theirs.pins, **present.pins},
        revoked=RevocationRows(**revoked),
        sources=sources,
        replaced=(*present.replaced, *theirs.replaced),
    )


def tombstone(
    plugin_id: str, publisher: str, *, signed: bool, masked: frozenset[str], floor: str, now_us: int
) -> Record:
    """The record of an id of which only pin, floor and masks are known; its facts are placeholders.

    A bundle of `publisher` that verifies replaces them, keeping masks, terms and floor (`advance.first_seen`).
    """
    # Type and name are placeholders: they have to be valid, and nothing is ever run from them.
    manifest = Manifest(id=plugin_id, name=plugin_id, type="worker", capabilities=(), publisher=publisher)
    facts = RecordFacts(
        name=plugin_id,
        type="worker",
        version="",
        publisher=publisher,
        signed=signed,
        capabilities=(),
        identity="",
        artifact_sha256="",
        manifest=msgspec.json.encode(manifest),
    )
    return Record(
        id=plugin_id,
        status=Status.VERIFIED,
        facts=facts,
        source="",
        masked=masked,
        floor=floor,
        forgotten=True,
        created_at=now_us,
        updated_at=now_us,
    )


def _hand(pin: Pin | None, remembered: Record | None) -> tuple[str, bool] | None:
    """(publisher, signed) that the id is pinned to; None when nothing pins it."""
    if pin is not None:
        return pin.publisher, pin.signed
    return (remembered.facts.publisher, remembered.facts.signed) if remembered is not None else None


def _choose(pairs: Sequence[Verified], hand: tuple[str, bool] | None, identity: str) -> Verified | None:
    """The pair to rebuild a record from: the pinned identity, else the pinned publisher's highest version.

    `hand` is (publisher, signed) of the pin, `identity` its identity, empty if unknown. None when no pair fits; without
    a pin also when the pairs come from different publishers, as nothing says which of them holds the id.
    """
    hands = {(pair.manifest.publisher, pair.manifest.signed) for pair in pairs}
    if hand is None and len(hands) != 1:
        return None
    wanted = hand or hands.pop()
    fitting = [pair for pair in pairs if (pair.manifest.publisher, pair.manifest.signed) == wanted]
    best: Verified | None = None
    for pair in fitting:
        if pair.identity == identity:
            return pair
        if best is None or higher_floor(best.manifest.version, pair.manifest.version) != best.manifest.version:
            best = pair
    return best
