"""What the disk says of one plugin id, compared with its record. Pure."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import msgspec

from latticed.host.permissions import NOT_SEEN, PluginStanding
from latticed.kit.value import Value
from latticed.model import accepted, egress
from latticed.model.fault import Fault
from latticed.model.lifecycle import Record, RecordFacts, Status
from latticed.model.manifest import Manifest
from latticed.model.verdict import Code, Refused, Verified
from latticed.runners.contract import PluginToRun
from latticed.trust.claims import ClaimPin, IdClaim

if TYPE_CHECKING:
    from collections.abc import Collection

    from latticed.model.accepted import Accepted, Usual
    from latticed.model.verdict import Verdict


REVOCATIONS: Final = frozenset({Code.KEY_REVOKED, Code.PLUGIN_REVOKED, Code.DIGEST_REVOKED})
"""Codes of what was trusted before and is not any more."""


class Presence(Value, frozen=True, kw_only=True):
    """What the disk says of one plugin id now.

    `winner` is the verified bundle that is the plugin, if there is one; else `fault` says why not. `stored` says why
    the stored pair may not run under the current policy; it can be set while a bundle on disk verifies, and the other
    way round. `left_revoked`: on disk is a version that was given up for the accepted one, and that is revoked.
    """

    winner: IdClaim | None = None
    fault: Fault | None = None
    stored: Fault | None = None
    left_revoked: bool = False

    @property
    def available(self) -> bool:
        """Whether a bundle on disk verifies as this plugin, and its stored pair may run too.

        That a version is revoked which was given up before counts for nothing: else nobody could leave a revoked
        version without removing its bundle first.
        """
        there = self.winner is not None or self.left_revoked
        return there and self.fault is None and self.stored is None

    @property
    def trouble(self) -> Fault | None:
        """Why it is not available: the fault of the stored pair, else of the bundle; None if it is available."""
        # That a pair is not in the store says less than what the disk says, if that has a fault, too.
        is_missing = self.stored is not None and self.stored.code == Code.MANIFEST_MISSING
        # Otherwise the pair first: it is what would run, and a good bundle on disk can replace it (`pairs`).
        return (self.fault if is_missing else None) or self.stored or self.fault

    def candidate(self, record: Record) -> Verified | None:
        """The verified bundle that an upgrade would take: its identity differs from the accepted one."""
        if not record.accepted or self.winner is None or self.winner.verdict.identity == record.facts.identity:
            # The accepted version itself, perhaps under another name.
            return None
        return self.winner.verdict


def standing(record: Record, manifest: Manifest, seen: Presence | None) -> PluginStanding:
    """What an active plugin may do, for host services; only for a record whose status is active.

    `manifest` is the effective one. `seen` is None before the first scan of the disk: then the plugin may do nothing
    yet.
    """
    # None leaves the operator's grants as the only bound.
    declared = manifest.declared_hosts
    if seen is None:
        # Not seen counts as no loss of a permission: what goes on for the plugin waits, and is not stopped.
        return replace(NOT_SEEN, permits=record.permits, hosts=record.hosts, declared_hosts=declared)
    fault = "" if seen.available else seen.trouble.code if seen.trouble else "not_available"
    return _active(fault, record.granted, record.permits, record.hosts, declared, record.facts.publisher)


# Tuples because arguments of a cached function must be hashable. Bounded, since grants change while it runs.
@functools.lru_cache(maxsize=1_024)
def _active(
    fault: str,
    granted: tuple[str, ...],
    permits: tuple[str, ...],
    hosts: tuple[str, ...],
    declared_hosts: tuple[str, ...] | None,
    publisher: str,
) -> PluginStanding:
    """Cached, since thousands of plugins may have the same standing: they share one object."""
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
    """What decides which bundle may claim the id of `record`: publisher, signedness, identity, source."""
    facts = record.facts
    return ClaimPin(publisher=facts.publisher, signed=facts.signed, identity=facts.identity, source=record.source)


def not_brought(record: Record) -> Fault:
    """Why there is nothing to run of a built-in plugin that this latticed does not bring."""
    last = f"latticectl forget {record.id}"
    return Fault(
        Code.MANIFEST_MISSING.value,
        f"expected {record.id} among the built-in plugins of this version of latticed, found none of that id",
        f"run a latticed that brings it, such as {record.facts.version}, or let it go: "
        + (f"latticectl disable {record.id} && {last}" if record.status is Status.ACTIVE else last),
    )


def fault_at(found: Verdict | None, refused: Refused | None) -> Fault:
    """Why the bundle that a record came from (`Record.source`) cannot be its plugin any more.

    `found` is the verdict on that bundle, None when it is gone. `refused` says why it may not claim the id although it
    verifies; it takes precedence. A verified bundle without `refused` claims another id by now.
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


def is_left_revoked(record: Record, found: Verdict | None, bad: Collection[str]) -> bool:
    """Whether `found`, the verdict on the bundle that an accepted record came from, is that a version is revoked which
    was given up before; `bad` are the identities of those.

    By identity, which covers id, publisher and digest: any other refused bundle in that place stops the plugin.
    """
    if not isinstance(found, Refused) or found.code not in REVOCATIONS or not record.accepted:
        return False
    return found.identity in bad and found.identity != record.facts.identity


def facts_of(verified: Verified, *, accepted: bool) -> RecordFacts:
    """What a record keeps of a verified bundle.

    The manifest is kept only if `accepted`: bundles that nobody installed may be thousands, and follow the disk anyway.
    """
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
    """The manifest as it was verified; None when the record keeps none (never accepted, or forgotten)."""
    return msgspec.json.decode(facts.manifest, type=Manifest) if facts.manifest else None


def asked(facts: RecordFacts) -> Accepted | None:
    """All that an accepted plugin's manifest asks for (`model.accepted`); None when no manifest is kept."""
    manifest = manifest_of(facts)
    return accepted.asked(manifest, facts.interpreter) if manifest is not None else None


def plugin_of(record: Record, usual: Usual) -> PluginToRun:
    """What the supervisor runs: the stored manifest, reduced to what the operator accepted.

    `record` must be accepted, for only then is there a manifest. `usual` are the settings' values for what it leaves
    out.
    """
    manifest = msgspec.json.decode(record.facts.manifest, type=Manifest)
    # A record from before there were terms: everything that its manifest asks for counts as accepted.
    terms = record.terms or accepted.asked(manifest, record.facts.interpreter)
    return PluginToRun(
        id=record.id,
        identity=record.facts.identity,
        manifest=accepted.effective(manifest, terms, usual),
        withheld=accepted.withheld(manifest, terms),
    )


def migrated(record: Record) -> Record:
    """`record` with terms, if it was written before there were any; else `record` itself.

    All that its manifest asks for counts as accepted. A granted `*` becomes the hosts that a v2 manifest declares, so
    that hosts which a later version declares are not covered by it.
    """
    manifest = manifest_of(record.facts)
    if not record.accepted or record.terms is not None or manifest is None:
        return record
    hosts = record.hosts
    # Each once, in the order in which they were granted.
    if manifest.declared_hosts is not None and egress.ANY in hosts:
        hosts = tuple(dict.fromkeys((*(one for one in hosts if one != egress.ANY), *manifest.declared_hosts)))
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
