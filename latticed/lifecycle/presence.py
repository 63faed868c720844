"""What the disk says of one plugin id, compared with its record. Pure."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from latticed.host.permissions import NOT_SEEN, PluginStanding
from latticed.model import accepted, egress
from latticed.model.errors import Fault
from latticed.model.lifecycle import Record, RecordFacts
from latticed.model.manifest import Manifest
from latticed.model.verdict import Code, Refused, Verified
from latticed.runners.contract import PluginToRun
from latticed.trust.claims import ClaimPin, IdClaim

if TYPE_CHECKING:
    from latticed.model.accepted import Accepted, Usual
    from latticed.model.verdict import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """`winner` is the bundle that is the plugin now, if any; `fault` says why there is none.

    `stored` says why the stored pair may not run under the current policy.
    """

    winner: IdClaim | None = None
    fault: Fault | None = None
    stored: Fault | None = None

    @property
    def available(self) -> bool:
        return self.winner is not None and self.stored is None

    @property
    def trouble(self) -> Fault | None:
        """Why it is not available, or None."""
        return self.stored or self.fault

    def candidate(self, record: Record) -> Verified | None:
        """The verified bundle that an upgrade would take: its identity differs from the accepted one."""
        if not record.accepted or self.winner is None or self.winner.verdict.identity == record.facts.identity:
            return None
        return self.winner.verdict


def standing(record: Record, manifest: Manifest, seen: Presence | None) -> PluginStanding:
    """What an active plugin may do, for host services; `seen` is None before the first scan of the disk."""
    declared = manifest.egress.hosts if manifest.is_v2 else None
    if seen is None:
        return replace(NOT_SEEN, permits=record.permits, hosts=record.hosts, declared_hosts=declared)
    fault = "" if seen.available else seen.trouble.code if seen.trouble else "not_available"
    return _active(fault, record.granted, record.permits, record.hosts, declared, record.facts.publisher)


@functools.lru_cache(maxsize=1_024)
def _active(
    fault: str,
    granted: tuple[str, ...],
    permits: tuple[str, ...],
    hosts: tuple[str, ...],
    declared_hosts: tuple[str, ...] | None,
    publisher: str,
) -> PluginStanding:
    """Cached: thousands of plugins with the same standing share one object."""
    return PluginStanding(
        active=True,
        fault=fault,
        granted=frozenset(granted),
        permits=permits,
        hosts=hosts,
        declared_hosts=declared_hosts,
        publisher=publisher,
    )


def pin_of(record: Record) -> ClaimPin:
    """What a bundle must match to claim the id of `record`."""
    facts = record.facts
    return ClaimPin(publisher=facts.publisher, signed=facts.signed, identity=facts.identity, source=record.source)


def fault_at(found: Verdict | None, refused: Refused | None) -> Fault:
    """Why the bundle that a record came from cannot be its plugin any more.

    `found` is the verdict on the bundle of that name, `refused` why it may not claim the id though it verifies.
    """
    verdict = refused or found
    match verdict:
        case Refused(code=code, reason=reason, hint=hint):
            return Fault(code.value, reason, hint)
        case Verified(manifest=manifest):
            moved = f"expected the recorded id in this bundle, found {manifest.id}"
            return Fault(Code.MANIFEST_MISSING.value, moved)
        case _:
            return Fault(Code.MANIFEST_MISSING.value, "its bundle is gone from the plugin directory")


def facts_of(verified: Verified, *, accepted: bool) -> RecordFacts:
    """What a record keeps of a verified bundle; its manifest only once it is accepted (P8: there may be thousands)."""
    manifest = verified.manifest
    return RecordFacts(
        name=manifest.name,
        type=manifest.type,
        version=manifest.version,
        publisher=manifest.publisher,
        signed=manifest.signed,
        capabilities=manifest.capabilities,
        identity=verified.identity,
        artifact_sha256=verified.artifact_sha256,
        manifest=msgspec.json.encode(manifest) if accepted else b"",
        interpreter=verified.interpreter,
    )


def manifest_of(facts: RecordFacts) -> Manifest | None:
    """The manifest as it was verified, of a plugin that was accepted."""
    return msgspec.json.decode(facts.manifest, type=Manifest) if facts.manifest else None


def asked(facts: RecordFacts) -> Accepted | None:
    """What an accepted plugin's manifest asks for."""
    manifest = manifest_of(facts)
    return accepted.asked(manifest, facts.interpreter) if manifest is not None else None


def plugin_of(record: Record, usual: Usual) -> PluginToRun:
    """What the supervisor runs: the manifest with the effective terms."""
    manifest = msgspec.json.decode(record.facts.manifest, type=Manifest)
    terms = record.terms or accepted.asked(manifest, record.facts.interpreter)
    return PluginToRun(
        id=record.id,
        identity=record.facts.identity,
        manifest=accepted.effective(manifest, terms, usual),
        withheld=accepted.withheld(manifest, terms),
    )


def migrated(record: Record) -> Record:
    """`record` with terms, if it has none yet: all its manifest asks for is accepted, `*` is the declared hosts."""
    manifest = manifest_of(record.facts)
    if not record.accepted or record.terms is not None or manifest is None:
        return record
    hosts = record.hosts
    if manifest.is_v2 and egress.ANY in hosts:
        hosts = tuple(dict.fromkeys((*(one for one in hosts if one != egress.ANY), *manifest.egress.hosts)))
    return replace(record, terms=accepted.asked(manifest, record.facts.interpreter), hosts=hosts)


def with_interpreter(record: Record, interpreter: str) -> Record:
    """`record` with `interpreter` added to its facts, and to its accepted terms unless they name one already.

    Unchanged when `interpreter` is empty, the facts already name one, the record has no terms, or it is not of type
    system.
    """
    if not interpreter or record.facts.interpreter or record.terms is None or record.facts.type != "system":
        return record
    terms = record.terms if record.terms.interpreter else replace(record.terms, interpreter=interpreter)
    return replace(record, facts=replace(record.facts, interpreter=interpreter), terms=terms)
