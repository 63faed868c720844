"""The lifecycle's rules hold for any order of operators' decisions and changes on disk."""

from __future__ import annotations

import functools
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from latticed.lifecycle import advance, granting, presence
from latticed.lifecycle.advance import UpgradeConsent
from latticed.lifecycle.granting import Regrant
from latticed.lifecycle.presence import Presence
from latticed.model import capability, semver_range
from latticed.model.errors import Problem
from latticed.model.fault import Fault
from latticed.model.lifecycle import TRANSITIONS, Record, Status
from latticed.trust import claims
from tests.house import claimants, records

NAMES = ("plugins/one", "plugins/two", "market/one")
CAPABILITIES = ("kv:read", "kv:write", "task:run", "node:admin")
VERSIONS = ("1.0.0", "1.1.0", "2.0.0-rc.1", "2.0.0", "spring", "")
HOSTS = ("a.example:443", "b.example:443")
CODES = {"invalid_transition", "not_available", "bad_request", "version_downgrade", "no_candidate", "dependency_unmet"}

bundles = st.fixed_dictionaries(
    {
        "by": st.sampled_from(["acme", "acme", "rival", None]),
        "version": st.sampled_from(VERSIONS),
        "capabilities": st.lists(st.sampled_from(CAPABILITIES), min_size=1, unique=True).map(tuple),
    }
)
consents = st.builds(
    UpgradeConsent,
    accept=st.frozensets(st.sampled_from((*CAPABILITIES, "no:such")), max_size=2),
    hosts=st.lists(st.sampled_from(HOSTS), max_size=1).map(tuple),
    allow_downgrade=st.booleans(),
)


@functools.cache
def verified(by: str | None, version: str, capabilities: tuple[str, ...]) -> Any:
    return records.verified(by=by, version=version or None, capabilities=list(capabilities))


class Lifecycle(RuleBasedStateMachine):
    """One plugin id: up to three bundles on disk, a store that may refuse its pair, an operator, a record."""

    def __init__(self) -> None:
        super().__init__()
        self.disk: dict[str, claims.IdClaim] = {}
        self.stored: Fault | None = None
        self.record: Record | None = None
        self.now = 1
        self.named: set[str] = set()  # capabilities an operator has granted by name, of the present publisher
        self.trimmed: set[str] = set()
        self.floors: list[str] = []

    @property
    def sight(self) -> Presence:
        pin = presence.pin_of(self.record) if self.record else None
        found = claimants.resolve(list(self.disk.values()), pin)
        fault = Fault("manifest_missing", "gone") if found.winner is None else None
        return Presence(winner=found.winner, fault=fault, stored=self.stored)

    def look(self) -> None:
        """What the lifecycle does after each change."""
        winner = self.sight.winner
        if winner is None:
            return
        before = self.record
        if before is None or before.forgotten:
            self.record = advance.first_seen(winner, self.now, before)
            self.named = set()
        else:
            self.record = advance.follow(before, winner, self.now)
            assert self.record.status is before.status, "the disk decides nothing"
            if before.accepted:
                assert self.record.facts == before.facts, "the disk replaces nothing that was accepted"
                assert self.record.masked == before.masked
            elif self.record.facts != before.facts:
                self.named = set()

    def settle(self, outcome: Record | Problem, *, before: Record) -> bool:
        self.now += 1
        if isinstance(outcome, Problem):
            assert outcome.code in CODES
            assert outcome.reason
            self.record = before
        else:
            self.record = outcome
        return isinstance(outcome, Record)

    @initialize(found=bundles)
    def first(self, found: dict[str, Any]) -> None:
        self.drop(NAMES[0], found)

    # The disk.

    @rule(name=st.sampled_from(NAMES), found=bundles)
    def drop(self, name: str, found: dict[str, Any]) -> None:
        self.now += 1
        self.disk[name] = claims.IdClaim(name=name, verdict=verified(**found))
        self.look()

    @rule(name=st.sampled_from(NAMES))
    def lose(self, name: str) -> None:
        self.now += 1
        self.disk.pop(name, None)
        self.look()

    @rule(refused=st.booleans())
    def judge_stored(self, *, refused: bool) -> None:
        self.stored = Fault("key_revoked", "revoked") if refused else None

    # The operator.

    @rule(wanted=st.sampled_from(Status), consent=consents)
    def decide(self, wanted: Status, consent: UpgradeConsent) -> None:
        before = self.record
        if before is None or before.forgotten:
            return
        seen = self.sight
        if self.settle(advance.transition(before, wanted, seen, consent, self.now), before=before):
            assert wanted in TRANSITIONS[before.status]
            assert wanted is Status.DISABLED or seen.available, "armed or installed what does not verify"
            self.named |= consent.accept
            self.trimmed -= consent.accept
            if wanted is Status.INSTALLED:
                assert consent.allow_downgrade or not advance.is_downgrade(before.floor, before.facts.version)
        self.look()

    @rule(consent=consents)
    def upgrade(self, consent: UpgradeConsent) -> None:
        before = self.record
        if before is None or before.forgotten:
            return
        if self.settle(advance.upgrade(before, self.sight.winner, consent, self.now), before=before):
            after = self.record
            assert after is not None
            assert after.status is before.status
            assert after.facts.publisher == before.facts.publisher, "another publisher without a word"
            widened = set(after.granted) - set(before.granted)
            assert widened <= consent.accept, "an upgrade granted something"
            assert consent.allow_downgrade or not advance.is_downgrade(before.floor, after.facts.version)
            self.named |= consent.accept
            self.trimmed -= consent.accept
        self.look()

    @rule(publisher=st.sampled_from(["acme", "rival", ""]), consent=consents)
    def accept_publisher(self, publisher: str, consent: UpgradeConsent) -> None:
        before = self.record
        if before is None or publisher == before.facts.publisher:
            return
        refused = claimants.resolve(list(self.disk.values()), presence.pin_of(before)).refused
        theirs = [c for n, c in self.disk.items() if n in refused and c.verdict.manifest.publisher == publisher]
        found = theirs[0] if len(theirs) == 1 else None
        if self.settle(advance.upgrade(before, found, consent, self.now), before=before):
            after = self.record
            assert after is not None
            if before.accepted:
                assert set(after.granted) <= consent.accept, "another publisher inherited a capability"
                assert set(after.hosts) <= set(consent.hosts), "another publisher inherited a host"
            self.named = set(consent.accept)
            self.trimmed -= consent.accept
        self.look()

    @rule(
        grant=st.frozensets(st.sampled_from(CAPABILITIES), max_size=2),
        trim=st.frozensets(st.sampled_from(CAPABILITIES), max_size=2),
    )
    def regrant(self, grant: frozenset[str], trim: frozenset[str]) -> None:
        before = self.record
        if before is None or before.forgotten or grant & trim:
            return
        if self.settle(granting.regrant(before, Regrant(grant=grant, trim=trim), None, self.now), before=before):
            self.named = (self.named | grant) - trim
            self.trimmed = (self.trimmed | trim) - grant
            assert self.record is not None
            assert not trim & set(self.record.granted)
            assert grant <= set(self.record.granted)

    @rule()
    def forget(self) -> None:
        before = self.record
        if before is None or before.forgotten:
            return
        if self.settle(advance.forget(before, self.sight, self.now), before=before):
            assert before.status is not Status.ACTIVE
            self.named, self.trimmed = set(), set()
        self.look()

    # What always holds.

    @invariant()
    def host_risk_is_granted_only_by_name(self) -> None:
        """The name was given for the plugin of the same publisher."""
        if self.record is not None and not self.record.forgotten:
            risky = set(self.record.granted) & capability.host_risk(CAPABILITIES)
            assert risky <= self.named

    @invariant()
    def version_floor_never_falls(self) -> None:
        """SemVer floors only rise; an incomparable one is replaced by consent only, which `upgrade` checks."""
        floor = self.record.floor if self.record else ""
        if self.floors:
            order = semver_range.compare(self.floors[-1], floor)
            assert order is None or order <= 0
        self.floors.append(floor)

    @invariant()
    def trimmed_capability_stays_masked(self) -> None:
        """It does until it is granted by name, whatever disk, upgrade or publisher follows."""
        if self.record is not None and not self.record.forgotten:
            assert not self.trimmed & set(self.record.granted)

    @invariant()
    def record_times_never_go_back(self) -> None:
        if self.record is not None:
            assert self.record.created_at <= self.record.updated_at <= self.now


TestLifecycleInvariants = Lifecycle.TestCase
TestLifecycleInvariants.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
