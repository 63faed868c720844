"""What the disk says of one plugin id, set against what is on record. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from latticed.host.permissions import Standing
from latticed.model.lifecycle import Facts, Record
from latticed.model.manifest import Manifest
from latticed.model.runtime import LastError
from latticed.model.verdict import Code, Refused, Verified
from latticed.runners.contract import Plugin
from latticed.trust.claims import Claim, Pin

if TYPE_CHECKING:
    from latticed.model.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """The bundle that may claim the id now, if any, and what is wrong when there is none.

    `stored` is what is wrong with the pair in the store, when the current policy no longer lets it run.
    """

    winner: Claim | None = None
    fault: LastError | None = None
    stored: LastError | None = None

    @property
    def available(self) -> bool:
        return self.winner is not None and self.stored is None

    @property
    def trouble(self) -> LastError | None:
        """Why it is not available, or None."""
        return self.stored or self.fault

    def candidate(self, record: Record) -> Verified | None:
        """Another identity than the accepted one, ready for an upgrade."""
        if not record.accepted or self.winner is None or self.winner.verdict.identity == record.facts.identity:
            return None
        return self.winner.verdict


def standing(record: Record, seen: Sight | None) -> Standing:
    """What decides whether something may be done for an active plugin; `seen`: None before the first look at disk."""
    if seen is None:
        return Standing(seen=False)
    fault = "" if seen.available else seen.trouble.code if seen.trouble else "not_available"
    return Standing(active=True, fault=fault, granted=frozenset(record.granted))


def pin_of(record: Record) -> Pin:
    """What a record demands of whoever claims its id."""
    facts = record.facts
    return Pin(publisher=facts.publisher, signed=facts.signed, identity=facts.identity, source=record.source)


def fault_at(found: Verdict | None, refused: Refused | None) -> LastError:
    """Why the bundle that a record came from does not verify any more.

    `found` is the verdict on what lies there, `refused` why it may not claim the id though it verifies.
    """
    verdict = refused or found
    match verdict:
        case Refused(code=code, reason=reason, hint=hint):
            return LastError(code=code.value, message=reason, hint=hint)
        case Verified(manifest=manifest):
            moved = f"expected the recorded id in this bundle, found {manifest.id}"
            return LastError(code=Code.MANIFEST_MISSING.value, message=moved)
        case _:
            return LastError(code=Code.MANIFEST_MISSING.value, message="its bundle is gone from the plugin directory")


def facts_of(verified: Verified, *, accepted: bool) -> Facts:
    """What a record keeps of a verified bundle; its manifest only once it is accepted (P8: there may be thousands)."""
    manifest = verified.manifest
    return Facts(
        name=manifest.name,
        type=manifest.type,
        version=manifest.version,
        publisher=manifest.publisher,
        signed=manifest.signed,
        capabilities=manifest.capabilities,
        identity=verified.identity,
        artifact_sha256=verified.artifact_sha256,
        manifest=msgspec.json.encode(manifest) if accepted else b"",
    )


def plugin_of(record: Record) -> Plugin:
    """What the supervisor needs to know to arm it."""
    manifest = msgspec.json.decode(record.facts.manifest, type=Manifest)
    return Plugin(id=record.id, identity=record.facts.identity, manifest=manifest)
