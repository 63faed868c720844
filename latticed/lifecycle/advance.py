"""Every rule of the lifecycle, as pure functions: the record after a decision, or the Problem that refuses it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from latticed.lifecycle.sight import facts_of
from latticed.model import capability, egress, permits, semver_range
from latticed.model.errors import Problem
from latticed.model.lifecycle import TRANSITIONS, Facts, Record, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.lifecycle.sight import Sight
    from latticed.model.manifest import Dependency
    from latticed.model.verdict import Verified
    from latticed.trust.claims import Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """What the operator agreed to by name. `publisher` lets another publisher take over the id."""

    accept: frozenset[str] = frozenset()
    hosts: tuple[str, ...] = ()
    allow_downgrade: bool = False
    publisher: str | None = None

    @property
    def needs_host_scope(self) -> bool:
        """Whether giving this consent takes the scope `host` (contracts §7)."""
        risky = any(capability.RISKS.get(name) is capability.Risk.HOST for name in self.accept)
        return bool(risky or self.hosts or self.allow_downgrade or self.publisher is not None)


UNVERSIONED: Final = "-"
"""The floor of what was accepted without a version."""

NO_CONSENT = Consent()


def first_seen(claim: Claim, now: int, tombstone: Record | None) -> Record:
    """The record of a bundle that verified: nothing decided yet; a tombstone's floor and masks live on."""
    facts = facts_of(claim.verdict, accepted=False)
    at_first = capability.host_risk(facts.capabilities)
    return Record(
        id=claim.verdict.manifest.id,
        status=Status.VERIFIED,
        facts=facts,
        source=claim.name,
        masked=at_first | tombstone.masked if tombstone else at_first,
        floor=tombstone.floor if tombstone else "",
        verified_at=now,
        created_at=tombstone.created_at if tombstone else now,
        updated_at=now,
    )


def follow(record: Record, claim: Claim, now: int) -> Record:
    """The record after the disk changed: a `verified` one follows it, any other only learns where its bundle lies."""
    if record.accepted:
        if claim.verdict.identity != record.facts.identity or claim.name == record.source:
            return record
        return replace(record, source=claim.name, updated_at=now)
    facts = facts_of(claim.verdict, accepted=False)
    if facts == record.facts:  # these facts share what the verdict holds; those from the ledger are a second copy
        moved = claim.name != record.source
        return replace(record, facts=facts, source=claim.name, updated_at=now if moved else record.updated_at)
    masked = _masked_at_first(record, facts)
    return replace(record, facts=facts, source=claim.name, masked=masked, verified_at=now, updated_at=now)


def transition(record: Record, wanted: Status, sight: Sight, consent: Consent, now: int) -> Record | Problem:
    """The record once `wanted` has been decided, or why it cannot be."""
    if wanted not in TRANSITIONS[record.status]:
        after = ", ".join(sorted(TRANSITIONS[record.status]))
        detail = f"cannot make {record.id} {wanted}: expected {after} after {record.status}"
        return Problem("invalid_transition", detail, _next_step(record))
    if wanted is not Status.DISABLED and not sight.available:
        return _not_available(record, wanted, sight)
    if fault := _undeclared(consent, record.facts):
        return fault
    if wanted is Status.INSTALLED and (fault := _downgrade(record, record.facts.version, consent)):
        return fault
    facts = record.facts
    if wanted is Status.INSTALLED and sight.winner is not None:
        facts = facts_of(sight.winner.verdict, accepted=True)
        if facts.identity != record.facts.identity:  # on disk there is another bundle than the operator was shown
            return _not_available(record, wanted, sight)
    stamped = _stamped(record, wanted, now)
    return replace(
        stamped,
        status=wanted,
        facts=facts,
        masked=record.masked - consent.accept,
        hosts=_joined(record.hosts, consent.hosts),
        floor=higher(record.floor, record.facts.version) if wanted is Status.INSTALLED else record.floor,
        updated_at=now,
    )


def upgrade(record: Record, claim: Claim | None, consent: Consent, now: int) -> Record | Problem:
    """The record once the candidate has replaced the installed identity; what it widens stays masked."""
    if claim is None or claim.verdict.identity == record.facts.identity:
        return Problem(
            "no_candidate",
            f"cannot upgrade {record.id}: expected another verified version in the plugin directory, found none",
            "put the new bundle in place; `latticectl rejected` shows bundles that do not verify",
        )
    facts = facts_of(claim.verdict, accepted=record.accepted)
    if fault := _undeclared(consent, facts) or _downgrade(record, facts.version, consent):
        return fault
    if record.forgotten:
        return first_seen(claim, now, record)
    same_hand = facts.publisher == record.facts.publisher  # another one inherits nothing
    granted = frozenset(record.granted) if same_hand else frozenset[str]()
    masked = frozenset(facts.capabilities) - granted - consent.accept
    if not record.accepted:  # nothing had been granted yet: as at first sight
        masked = _masked_at_first(record, facts) - consent.accept
    return replace(
        record,
        facts=facts,
        source=claim.name,
        masked=masked,
        hosts=_joined(record.hosts if same_hand else (), consent.hosts),
        permits=record.permits if same_hand else (),
        floor=higher(record.floor, facts.version) if record.accepted else record.floor,
        verified_at=now,
        updated_at=now,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrant:
    """A change of what is granted: capabilities to unmask and to mask, accepted hosts and permits when they change."""

    grant: frozenset[str] = frozenset()
    trim: frozenset[str] = frozenset()
    hosts: tuple[str, ...] | None = None
    permits: tuple[str, ...] | None = None

    @property
    def needs_host_scope(self) -> bool:
        """Whether this takes the scope `host` (contracts §7)."""
        return Consent(accept=self.grant, hosts=self.hosts or ()).needs_host_scope or bool(self.permits)


def regrant(record: Record, wanted: Regrant, now: int) -> Record | Problem:
    """The record with other grants."""
    if fault := _undeclared(Consent(accept=wanted.grant | wanted.trim, hosts=wanted.hosts or ()), record.facts):
        return fault
    for permit in wanted.permits or ():
        if unfit := permits.fault(permit):
            return Problem("bad_request", unfit)
    masked = (record.masked - wanted.grant) | wanted.trim
    hosts = record.hosts if wanted.hosts is None else _joined((), wanted.hosts)
    allowed = record.permits if wanted.permits is None else _joined((), wanted.permits)
    return replace(record, masked=masked, hosts=hosts, permits=allowed, updated_at=now)


def widens(before: Record, after: Record) -> bool:
    """Whether `after` grants anything that `before` does not."""
    fewer = before.masked <= after.masked and set(after.hosts) <= set(before.hosts)
    return not (fewer and set(after.permits) <= set(before.permits))


def forget(record: Record, sight: Sight, now: int) -> Record | Problem:
    """The tombstone of a record: pin and floor stay."""
    if record.status is Status.ACTIVE:
        hint = f"latticectl disable {record.id}"
        return Problem("invalid_transition", f"cannot forget {record.id}: it is active", hint)
    if record.status is Status.VERIFIED and sight.available:
        detail = f"cannot forget {record.id}: its bundle is in the plugin directory and nothing was decided about it"
        return Problem("invalid_transition", detail, "remove the bundle")
    facts = replace(record.facts, manifest=b"")
    return replace(
        record,
        status=Status.VERIFIED,
        facts=facts,
        forgotten=True,
        masked=frozenset(),
        hosts=(),
        permits=(),
        updated_at=now,
    )


def unmet(needed: tuple[Dependency, ...], records: Mapping[str, Record]) -> Problem | None:
    """The first required dependency that is not active in a fitting version, as a Problem."""
    for dependency in needed:
        other = records.get(dependency.id)
        found = f"{other.status} {other.facts.version}".strip() if other and not other.forgotten else "nothing"
        fits = other is not None and semver_range.contains(dependency.version, other.facts.version)
        if not dependency.optional and (other is None or other.status is not Status.ACTIVE or not fits):
            detail = f"needs {dependency.id} {dependency.version} active, found {found}"
            return Problem("dependency_unmet", detail, f"latticectl activate {dependency.id}")
    return None


def is_downgrade(floor: str, version: str) -> bool:
    """Whether `version` is lower than the `floor` ever accepted, or without an order to it; "" means none was."""
    label = version or UNVERSIONED
    if not floor or label == floor:
        return False
    order = semver_range.compare(floor, label)
    return order is None or order > 0


def needs_downgrade(record: Record, version: str) -> bool:
    """Whether going to `version` takes --allow-downgrade: below the floor, or a change without an order."""
    label, current = version or UNVERSIONED, record.facts.version or UNVERSIONED
    changes_without_order = record.accepted and label != current and semver_range.compare(current, label) is None
    return changes_without_order or is_downgrade(record.floor, version)


def higher(floor: str, version: str) -> str:
    """The floor once `version` is accepted: a SemVer floor never sinks, any other follows the decision."""
    label = version or UNVERSIONED
    if not semver_range.is_version(floor):
        return label
    order = semver_range.compare(floor, label)
    return label if order is not None and order < 0 else floor


def _masked_at_first(record: Record, facts: Facts) -> frozenset[str]:
    """What stays masked of a record that is not accepted: host risk, and what was masked beyond that before.

    The latter is what an operator trimmed, or what recovery brought back.
    """
    beyond = record.masked - capability.host_risk(record.facts.capabilities)
    return capability.host_risk(facts.capabilities) | beyond


def _downgrade(record: Record, version: str, consent: Consent) -> Problem | None:
    if consent.allow_downgrade or not needs_downgrade(record, version):
        return None
    detail = f"version {version or '(none)'} is not known to be newer than {record.floor}, which was accepted before"
    return Problem("version_downgrade", detail, "if that is what you want, add --allow-downgrade")


def _undeclared(consent: Consent, facts: Facts) -> Problem | None:
    for host in consent.hosts:
        if not egress.is_consent(host):
            expected = "a host such as api.example.org:443, *.example.org:443 or *"
            return Problem("bad_request", f"expected {expected}, found {host[:80]!r}")
    extra = sorted(consent.accept - set(facts.capabilities))
    if not extra:
        return None
    declared = ", ".join(facts.capabilities)
    return Problem("bad_request", f"expected capabilities that the manifest declares ({declared}), found {extra[0]}")


def _not_available(record: Record, wanted: Status, sight: Sight) -> Problem:
    trouble = sight.trouble
    other = "another bundle than the record shows" if sight.winner else "nothing"
    found = f"{trouble.code}: {trouble.message}" if trouble else other
    detail = f"cannot make {record.id} {wanted}: expected a bundle that verifies, found {found}"
    return Problem("not_available", detail, f"latticectl info {record.id}")


def _next_step(record: Record) -> str:
    verb = {Status.VERIFIED: "install", Status.INSTALLED: "activate", Status.DISABLED: "activate"}.get(record.status)
    return f"latticectl {verb or 'disable'} {record.id}"


def _stamped(record: Record, wanted: Status, now: int) -> Record:
    match wanted:
        case Status.INSTALLED:
            return replace(record, installed_at=now)
        case Status.ACTIVE:
            return replace(record, activated_at=now)
        case Status.DISABLED:
            return replace(record, disabled_at=now)
        case Status.VERIFIED:
            return replace(record, verified_at=now)


def _joined(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*old, *new)))


def upgrade_changes(record: Record, candidate: Verified) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(capabilities the candidate adds, capabilities it drops)."""
    old, new = record.facts.capabilities, candidate.manifest.capabilities
    return tuple(c for c in new if c not in old), tuple(c for c in old if c not in new)
