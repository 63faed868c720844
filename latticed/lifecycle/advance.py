"""Every rule of the lifecycle, as pure functions: the record after a decision, or the Problem that refuses it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latticed.kit.value import Value
from latticed.lifecycle import granting, presence
from latticed.lifecycle.manifest_defaults import DEFAULTS
from latticed.lifecycle.presence import facts_of
from latticed.model import accepted, capability, egress, semver_range
from latticed.model.consents import Named
from latticed.model.errors import Problem
from latticed.model.fault import Fault
from latticed.model.lifecycle import TRANSITIONS, Record, RecordFacts, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from latticed.ledger.versions import BadVersion, KeptVersion
    from latticed.lifecycle.presence import Presence
    from latticed.model.accepted import Accepted, Usual
    from latticed.model.manifest import Dependency, Manifest
    from latticed.model.verdict import Verified
    from latticed.trust.claims import IdClaim


class UpgradeConsent(Value, frozen=True, kw_only=True):
    """What an operator consents to by name when installing, activating or upgrading.

    `accept` are capabilities, `hosts` egress patterns, `permits` are `kind=value`, `terms` (kind, value) pairs
    (`model.consents`). `allow_downgrade` accepts a version below the floor. `publisher` lets that other publisher take
    over the id. `retry` takes a version that was given up before.

    `identity` is that of the version he saw: no other one is taken. `already_so`: what holds already is no refusal.
    """

    accept: frozenset[str] = frozenset()
    hosts: tuple[str, ...] = ()
    permits: tuple[str, ...] = ()
    terms: tuple[tuple[str, str], ...] = ()
    allow_downgrade: bool = False
    publisher: str | None = None
    retry: bool = False
    identity: str | None = None
    already_so: bool = False

    @property
    def needs_host_scope(self) -> bool:
        """Whether the caller needs the scope `host` to give this consent (contracts §7)."""
        risky = any(capability.RISKS.get(name) is capability.Risk.HOST for name in self.accept)
        named = self.named.needs_host_scope
        return bool(risky or named or self.allow_downgrade or self.publisher is not None)

    @property
    def named(self) -> Named:
        """All that is granted by name, in the form of `model.consents`."""
        return Named(caps=tuple(sorted(self.accept)), hosts=self.hosts, permits=self.permits, terms=self.terms)


UNVERSIONED: Final = "-"
"""The version floor after a manifest without a version was accepted."""

NO_CONSENT = UpgradeConsent()
"""For decisions that nothing was accepted with."""


def first_seen(claim: IdClaim, now: int, tombstone: Record | None) -> Record:
    """The initial `verified` record of a bundle that claims an id; `now` in microseconds since the epoch.

    Keeps floor, masks and terms of a `tombstone` of the same id. Host-risk capabilities are masked.
    """
    facts = facts_of(claim.verdict, accepted=False)
    at_first = capability.host_risk(facts.capabilities)
    return Record(
        id=claim.verdict.manifest.id,
        status=Status.VERIFIED,
        facts=facts,
        source=claim.name,
        masked=at_first | tombstone.masked if tombstone else at_first,
        terms=tombstone.terms if tombstone else None,
        floor=tombstone.floor if tombstone else "",
        verified_at=now,
        created_at=tombstone.created_at if tombstone else now,
        updated_at=now,
    )


def follow(record: Record, claim: IdClaim, now: int) -> Record:
    """`record` after a rescan that found its plugin in `claim`; `record` itself when nothing changed.

    A `verified` one takes the bundle's facts. An accepted one takes only its new name, and only if the identity is the
    accepted one: another version has to be accepted first.
    """
    if record.accepted:
        if claim.verdict.identity != record.facts.identity or claim.name == record.source:
            return record
        return replace(record, source=claim.name, updated_at=now)
    facts = facts_of(claim.verdict, accepted=False)
    if facts == record.facts:  # the new object shares memory with the verdict, the old one is a copy
        moved = claim.name != record.source
        return replace(record, facts=facts, source=claim.name, updated_at=now if moved else record.updated_at)
    masked = _masked_at_first(record, facts)
    return replace(record, facts=facts, source=claim.name, masked=masked, verified_at=now, updated_at=now)


def follows_latticed(record: Record, claim: IdClaim) -> bool:
    """Whether it is an accepted built-in plugin of which latticed now brings other code."""
    return record.builtin and record.accepted and claim.verdict.identity != record.facts.identity


def not_followed(record: Record, claim: IdClaim, problem: Problem) -> Fault:
    """Why a built-in plugin does not follow latticed by itself, with what an operator can do about it."""
    had, brings = record.facts.version, claim.verdict.manifest.version
    reason = f"{record.id} {had} was accepted, this latticed brings {brings}: {problem.reason}"
    if problem.code == "version_downgrade":
        again = f"run latticed {had} or newer again, or latticectl upgrade {record.id} --allow-downgrade"
        return Fault(problem.code, reason, again)
    return Fault(problem.code, reason, problem.hint)


def transition(
    record: Record, wanted: Status, seen: Presence, consent: UpgradeConsent, now: int, usual: Usual = DEFAULTS
) -> Record | Problem:
    """The record in status `wanted`, or the Problem that refuses it.

    `seen` is what the disk says of it, `now` microseconds since the epoch, `usual` the settings' values for what a
    manifest leaves out. Installing takes over the facts and, the first time, all terms of the bundle on disk.
    Dependencies are not looked at (`unmet`). Problems: invalid_transition, not_available, identity_mismatch,
    version_downgrade, bad_request, metadata_origin, needs_consent.
    """
    if wanted is not Status.DISABLED and (fault := _other(record.id, record.facts.identity, consent)):
        return fault
    # Is it allowed now? Disabling always must be, whatever is on disk.
    if wanted not in TRANSITIONS[record.status]:
        allowed = ", ".join(sorted(TRANSITIONS[record.status]))
        detail = f"cannot make {record.id} {wanted}: expected {allowed} after {record.status}"
        return Problem("invalid_transition", detail, next_step(record, wanted))
    if wanted is not Status.DISABLED and not seen.available:
        return _not_available(record, wanted, seen)
    if wanted is Status.INSTALLED and (fault := _downgrade(record, record.facts.version, consent)):
        return fault
    # The facts that are accepted with it, and what is granted besides.
    facts = record.facts
    if wanted is Status.INSTALLED and seen.winner is not None:
        facts = facts_of(seen.winner.verdict, accepted=True)
        if facts.identity != record.facts.identity:  # changed on disk since the operator saw the record
            return _not_available(record, wanted, seen)
    manifest = presence.manifest_of(facts)
    base = replace(record, facts=facts, terms=record.terms or presence.asked(facts))  # a first install accepts all
    after = granting.widened(base, manifest, consent.named, usual)
    if isinstance(after, Problem):
        return after
    # An installed plugin may lack what it needs; it only must not be started so.
    if wanted is Status.ACTIVE and (fault := granting.needs_consent(after, manifest, "activate")):
        return fault
    floor = higher(record.floor, record.facts.version) if wanted is Status.INSTALLED else record.floor
    return replace(_stamped(after, wanted, now), status=wanted, floor=floor, updated_at=now)


def holds(record: Record, wanted: Status, consent: UpgradeConsent) -> bool:
    """Whether what is wanted is so already, and that is success for who asks."""
    if not consent.already_so or consent.identity not in {None, record.facts.identity}:
        return False
    return record.accepted if wanted is Status.INSTALLED else record.status is wanted


def is_up_to_date(record: Record, seen: Presence, consent: UpgradeConsent) -> bool:
    """Whether there is nothing to upgrade to, and that is success for who asks: what was accepted is there."""
    if not consent.already_so or consent.identity not in {None, record.facts.identity}:
        return False
    return record.accepted and consent.publisher is None and seen.available and seen.candidate(record) is None


def upgrade(
    record: Record, claim: IdClaim | None, consent: UpgradeConsent, now: int, usual: Usual = DEFAULTS
) -> Record | Problem:
    """The record with the candidate's facts, or the Problem that refuses it; the status stays.

    `claim` is the candidate, None when there is none. Capabilities that were not granted before stay masked, and
    another publisher inherits no grants. Of a tombstone it makes a `verified` record. Problems: no_candidate,
    identity_mismatch, version_downgrade, bad_request, metadata_origin, needs_consent.
    """
    if claim is None or claim.verdict.identity == record.facts.identity:
        return Problem(
            "no_candidate",
            f"cannot upgrade {record.id}: expected another verified version in the plugin directory, found none",
            "put the new bundle in place; `latticectl rejected` shows bundles that do not verify",
        )
    facts = facts_of(claim.verdict, accepted=record.accepted)
    if fault := _other(record.id, facts.identity, consent):
        return fault
    # May this version be taken?
    if fault := _downgrade(record, facts.version, consent):
        return fault
    if record.forgotten:
        return first_seen(claim, now, record)
    # What was granted before and is still asked for stays; what is new has to be named.
    same_hand = facts.publisher == record.facts.publisher  # another publisher inherits no grants
    granted = frozenset(record.granted) if same_hand else frozenset[str]()
    masked = frozenset(facts.capabilities) - granted
    if not record.accepted:  # nothing granted yet: mask as in `first_seen`
        masked = _masked_at_first(record, facts)
    # Of these an operator took nothing back: the version before did not ask for them, or nobody has answered since.
    new = (masked - frozenset(record.facts.capabilities)) | (masked & record.unasked)
    manifest = claim.verdict.manifest
    base = replace(
        record,
        facts=facts,
        masked=masked,
        unasked=new if same_hand and record.accepted else frozenset(),
        hosts=granting.hosts_after(record, manifest) if same_hand else (),
        permits=record.permits if same_hand else (),
        terms=_kept(record, accepted.asked(manifest, facts.interpreter), usual),
    )
    # Then what the operator names now; an active plugin must be able to start with the result.
    after = granting.widened(base, manifest, consent.named, usual)
    if isinstance(after, Problem):
        return after
    if record.status is Status.ACTIVE and (fault := granting.needs_consent(after, manifest, "upgrade")):
        return fault
    return replace(
        after,
        source=claim.name,
        floor=higher(record.floor, facts.version) if record.accepted else record.floor,
        verified_at=now,
        updated_at=now,
    )


def bad_candidate(outcome: Record | Problem, bad: Mapping[str, BadVersion], consent: UpgradeConsent) -> Problem | None:
    """Problem candidate_bad when an upgrade leads to a version that was given up before; `bad` is by identity."""
    if isinstance(outcome, Problem) or consent.retry or outcome.facts.identity not in bad:
        return None
    found = bad[outcome.facts.identity]
    detail = f"version {found.version or UNVERSIONED} was given up before: {found.code}: {found.reason}"
    return Problem("candidate_bad", detail, f"latticectl upgrade {outcome.id} --retry")


def kept_version(
    record: Record, kept: Sequence[KeptVersion], bad: Mapping[str, BadVersion], to: str | None
) -> KeptVersion | Problem:
    """The version that a rollback returns to: the newest called `to`, by default the newest that is not bad.

    Problems: invalid_transition of what was never accepted, not_found.
    """
    if not record.accepted:
        return Problem("invalid_transition", f"cannot roll back {record.id}: it is {record.status}")
    others = [one for one in kept if one.identity != record.facts.identity]
    fitting = [one for one in others if (one.version == to if to is not None else one.identity not in bad)]
    if fitting:
        return fitting[-1]
    names = ", ".join(one.version or UNVERSIONED for one in others) or "none"
    wanted = f"version {to[:64]!r}" if to is not None else "a version that was not left for being bad"
    hint = f"latticectl rollback {record.id} --to VERSION" if others else ""
    return Problem(
        "not_found", f"cannot roll back {record.id}: expected {wanted} among those kept, found {names}", hint
    )


def rolled_back(
    record: Record,
    target: Record,
    newer: Sequence[Record],
    consent: UpgradeConsent,
    now: int,
    usual: Usual = DEFAULTS,
) -> Record | Problem:
    """The record with the version of `target`, one that it had before; `newer` are those it had since, oldest first.

    Status and floor stay: a version that was accepted before needs no consent to a downgrade. What was granted to it is
    granted again, without what was taken back since; `consent` may name that. Problems: not_found (it is of another
    publisher), bad_request, metadata_origin, needs_consent.
    """
    if target.facts.publisher != record.facts.publisher:
        detail = f"cannot roll back {record.id}: expected a version of {record.facts.publisher or 'no publisher'}"
        return Problem("not_found", f"{detail}, found one of {target.facts.publisher or 'no publisher'}")
    back = regained(target, (*newer, record), usual)
    after = replace(
        record,
        facts=back.facts,
        masked=back.masked,
        unasked=back.unasked,
        hosts=back.hosts,
        permits=back.permits,
        terms=back.terms,
        verified_at=now,
        updated_at=now,
    )
    manifest = presence.manifest_of(after.facts)
    named = granting.widened(after, manifest, consent.named, usual)
    if isinstance(named, Problem) or record.status is not Status.ACTIVE:
        return named
    return granting.needs_consent(named, manifest, "rollback") or named


def regained(target: Record, newer: Iterable[Record], usual: Usual = DEFAULTS) -> Record:
    """`target`, an earlier version, without what an operator took back from one of the `newer` ones.

    What a newer version did not ask for was dropped by that version, not taken back by an operator: it stays. So does a
    capability that a still newer one asked for again, as long as nobody has answered that.
    """
    taken, hosts, permits, terms = frozenset[str](), target.hosts, target.permits, target.terms
    for one in newer:
        taken |= one.masked - one.unasked
        permits = tuple(permit for permit in permits if permit in one.permits)
        manifest = presence.manifest_of(one.facts)
        if manifest is None or one.terms is None:
            continue
        left = [_hosts_left(replace(target, hosts=(host,)), one, manifest) for host in hosts]
        hosts = tuple(dict.fromkeys(itertools.chain(*left)))
        asked = accepted.asked(manifest, one.facts.interpreter)
        if terms is not None and (narrower := accepted.meet(terms, asked, usual)) != accepted.meet(
            narrower, one.terms, usual
        ):
            terms = accepted.meet(terms, one.terms, usual)
    masked = (target.masked | taken) & frozenset(target.facts.capabilities)
    unasked = target.unasked - taken
    return replace(target, masked=masked, unasked=unasked, hosts=hosts, permits=permits, terms=terms)


def _hosts_left(target: Record, newer: Record, manifest: Manifest) -> tuple[str, ...]:
    """The one host of `target` if `newer`, of that `manifest`, has all of it that it asked for; else what it has of it.

    What was taken back may be a part of what a pattern covers, and no pattern leaves out a part.
    """
    passed_on = granting.hosts_after(target, manifest)
    if all(one in newer.hosts or one in egress.meet(newer.hosts, (one,)) for one in passed_on):
        return target.hosts
    return egress.meet(target.hosts, newer.hosts)


def forget(record: Record, seen: Presence, now: int) -> Record | Problem:
    """The tombstone of a record: publisher pin and floor stay, grants and terms go.

    Problem invalid_transition while it is active, and while a bundle that nobody decided about is on disk: that would
    only make a new record.
    """
    if record.status is Status.ACTIVE:
        hint = f"latticectl disable {record.id}"
        return Problem("invalid_transition", f"cannot forget {record.id}: it is active", hint)
    if record.status is Status.VERIFIED and seen.available:
        where = "it is a part of latticed" if record.builtin else "its bundle is in the plugin directory"
        detail = f"cannot forget {record.id}: {where} and nothing was decided about it"
        return Problem("invalid_transition", detail, "" if record.builtin else "remove the bundle")
    facts = replace(record.facts, manifest=b"")
    return replace(
        record,
        status=Status.VERIFIED,
        facts=facts,
        forgotten=True,
        masked=frozenset(),
        hosts=(),
        permits=(),
        terms=None,
        updated_at=now,
    )


def unmet(needed: tuple[Dependency, ...], records: Mapping[str, Record]) -> Problem | None:
    """Problem dependency_unmet for the first required dependency that is not active in a matching version, or None.

    `records` are all by id. Optional dependencies are never unmet. The hint is the command that helps.
    """
    for dependency in needed:
        other = records.get(dependency.id)
        found = f"{other.status} {other.facts.version}".strip() if other and not other.forgotten else "nothing"
        fits = other is not None and semver_range.contains(dependency.version, other.facts.version)
        if not dependency.optional and (other is None or other.status is not Status.ACTIVE or not fits):
            detail = f"needs {dependency.id} {dependency.version} active, found {found}"
            return Problem("dependency_unmet", detail, _meeting(dependency, other, fits=fits))
    return None


def _meeting(dependency: Dependency, other: Record | None, *, fits: bool) -> str:
    """The command that satisfies `dependency`, provided its bundle is in the plugin directory.

    `other` is the record of that id, `fits` whether its version matches.
    """
    if other is None or other.status is Status.VERIFIED:
        return f"latticectl install {dependency.id} && latticectl activate {dependency.id}"
    return f"latticectl {'activate' if fits else 'upgrade'} {dependency.id}"


def is_downgrade(floor: str, version: str) -> bool:
    """Whether `version` is below `floor` or not comparable to it; an empty `floor` means none was accepted yet."""
    label = version or UNVERSIONED
    # The same version again is no downgrade, even one that has no order.
    if not floor or label == floor:
        return False
    order = semver_range.compare(floor, label)
    return order is None or order > 0


def needs_downgrade(record: Record, version: str) -> bool:
    """Whether moving to `version` takes --allow-downgrade: below the floor, or not comparable to the present one."""
    # Between versions without an order nothing says which is newer: any change needs the operator's consent.
    label, current = version or UNVERSIONED, record.facts.version or UNVERSIONED
    changes_without_order = record.accepted and label != current and semver_range.compare(current, label) is None
    return changes_without_order or is_downgrade(record.floor, version)


def higher(floor: str, version: str) -> str:
    """The floor after `version` is accepted: a SemVer floor only rises, any other is replaced."""
    label = version or UNVERSIONED
    if not semver_range.is_version(floor):
        return label
    order = semver_range.compare(floor, label)
    return label if order is not None and order < 0 else floor


def _masked_at_first(record: Record, facts: RecordFacts) -> frozenset[str]:
    """Masks of a record that is not accepted: host-risk capabilities, and any others that were masked before.

    The latter were trimmed by an operator or restored by recovery.
    """
    beyond = record.masked - capability.host_risk(record.facts.capabilities)
    return capability.host_risk(facts.capabilities) | beyond


def _downgrade(record: Record, version: str, consent: UpgradeConsent) -> Problem | None:
    """Problem version_downgrade, unless `version` may be taken without consent or with this one."""
    if consent.allow_downgrade or not needs_downgrade(record, version):
        return None
    detail = f"version {version or '(none)'} is not known to be newer than {record.floor}, which was accepted before"
    return Problem("version_downgrade", detail, "if that is what you want, add --allow-downgrade")


def _other(plugin_id: str, found: str, consent: UpgradeConsent) -> Problem | None:
    """Problem identity_mismatch when the operator named another version than the one that would be taken."""
    if consent.identity in {None, found}:
        return None
    detail = f"expected {plugin_id} with the identity {str(consent.identity)[:64]!r}, found {found}"
    return Problem("identity_mismatch", detail, f"latticectl info {plugin_id}")


def _not_available(record: Record, wanted: Status, seen: Presence) -> Problem:
    """Problem not_available, with what the disk has instead."""
    trouble = seen.trouble
    other = "another bundle than the record shows" if seen.winner else "nothing"
    found = f"{trouble.code}: {trouble.reason}" if trouble else other
    detail = f"cannot make {record.id} {wanted}: expected a bundle that verifies, found {found}"
    return Problem("not_available", detail, f"latticectl info {record.id}")


def next_step(record: Record, wanted: Status) -> str:
    """The latticectl command that brings a record nearer to `wanted`; where none does, the one that shows it."""
    verb = "info"
    if wanted is Status.ACTIVE and record.status is not Status.ACTIVE:
        verb = "activate" if record.accepted else "install"
    return f"latticectl {verb} {record.id}"


def _stamped(record: Record, wanted: Status, now: int) -> Record:
    """`record` with `now` as the time at which it got the status `wanted`."""
    match wanted:
        case Status.INSTALLED:
            return replace(record, installed_at=now)
        case Status.ACTIVE:
            return replace(record, activated_at=now)
        case Status.DISABLED:
            return replace(record, disabled_at=now)
        case Status.VERIFIED:
            return replace(record, verified_at=now)


def _kept(record: Record, asked: Accepted, usual: Usual) -> Accepted | None:
    """Of the accepted terms, those that the new version still asks for; dropped ones must be accepted again later."""
    return accepted.meet(record.terms, asked, usual) if record.terms is not None else None


def upgrade_changes(
    record: Record, candidate: Verified, usual: Usual = DEFAULTS
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what an upgrade to `candidate` adds to the record, what it drops), in the form of `changes`."""
    return changes(record.facts, facts_of(candidate, accepted=True), usual)


def changes(old: RecordFacts, new: RecordFacts, usual: Usual) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(what `new` adds to `old`, what it drops): capability names, then `kind=value` as `--accept` takes them."""
    return _added(old, new, usual), _added(new, old, usual)


def must_name(record: Record, candidate: Verified, usual: Usual = DEFAULTS) -> tuple[str, ...]:
    """What must be accepted by name before the upgraded plugin can start, as `kind=value`; empty for none."""
    if record.terms is None:
        return ()
    new = accepted.asked(candidate.manifest, candidate.interpreter)
    return accepted.needed(candidate.manifest, candidate.interpreter, accepted.meet(record.terms, new, usual))


def _added(old: RecordFacts, new: RecordFacts, usual: Usual) -> tuple[str, ...]:
    """What `new` asks for beyond `old`, as `changes` names it.

    Only capabilities when either lacks its manifest: a record keeps it only once it is accepted.
    """
    caps = tuple(one for one in new.capabilities if one not in old.capabilities)
    before, after = presence.manifest_of(old), presence.manifest_of(new)
    if before is None or after is None:  # only accepted records keep their manifest
        return caps
    hosts = tuple(f"host={one}" for one in after.egress.hosts if one not in before.egress.hosts)
    wants, had = accepted.asked(after, new.interpreter), accepted.asked(before, old.interpreter)
    return (*caps, *hosts, *accepted.beyond(wants, had, usual))
