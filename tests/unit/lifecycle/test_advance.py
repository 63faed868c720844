"""Every rule of the lifecycle: the record after a decision, or the refusal."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from latticed.ledger import records as record_rows
from latticed.ledger.floors import Floors
from latticed.lifecycle import advance, granting, merge_after_loss, presence
from latticed.lifecycle.advance import NO_CONSENT, UpgradeConsent
from latticed.lifecycle.granting import Regrant
from latticed.lifecycle.manifest_defaults import DEFAULTS
from latticed.lifecycle.presence import Presence, facts_of
from latticed.model.errors import Problem
from latticed.model.fault import Fault
from latticed.model.lifecycle import TRANSITIONS, Record, Status
from latticed.model.manifest import Dependency
from tests.house import records
from tests.house.records import at, claim, decided, record

NOW = 5_000
STAMP = {Status.INSTALLED: "installed_at", Status.ACTIVE: "activated_at", Status.DISABLED: "disabled_at"}


def refused(outcome: Record | Problem, code: str) -> Problem:
    assert isinstance(outcome, Problem), outcome
    assert outcome.code == code
    return outcome


def _regranted(before: Record, wanted: Regrant, now: int) -> Record | Problem:
    return granting.regrant(before, wanted, presence.manifest_of(before.facts), now)


@pytest.mark.parametrize(("old", "new"), list(product(Status, Status)))
def test_transition_follows_the_table(old, new):
    """A transition in the table sets the new status and its time; any other one is invalid_transition."""
    found = claim()
    before = record(old, found)
    outcome = advance.transition(before, new, at(found), NO_CONSENT, NOW)
    if new not in TRANSITIONS[old]:
        problem = refused(outcome, "invalid_transition")
        assert before.id in problem.reason
        assert "latticectl" in problem.hint
        return
    assert isinstance(outcome, Record)
    assert outcome.status is new
    assert getattr(outcome, STAMP[new]) == NOW
    assert outcome.updated_at == NOW
    others = {name: getattr(before, name) for status, name in STAMP.items() if status is not new}
    assert {name: getattr(outcome, name) for name in others} == others
    assert outcome.created_at == before.created_at


@pytest.mark.parametrize(("old", "new"), [(o, n) for o in Status for n in TRANSITIONS[o]])
@pytest.mark.parametrize(
    "seen",
    [
        records.GONE,
        Presence(),
        Presence(winner=claim(), stored=Fault("key_revoked", "the key was revoked")),
    ],
    ids=["gone", "never seen", "stored pair refused"],
)
def test_plugin_without_verified_bundle_can_only_be_disabled(old, new, seen):
    """A record whose bundle no longer verifies can be disabled, not installed or activated."""
    outcome = advance.transition(record(old), new, seen, NO_CONSENT, NOW)
    if new is Status.DISABLED:
        assert isinstance(outcome, Record)
        return
    problem = refused(outcome, "not_available")
    assert (seen.trouble.code if seen.trouble else "nothing") in problem.reason


def test_host_risk_stays_masked_at_install_until_named():
    """Installing grants capabilities of read and write risk; those of host risk must be named."""
    found = claim(capabilities=["kv:read", "kv:write", "task:run", "node:admin"])
    plain = decided(record(found=found), Status.INSTALLED, at(found))
    assert plain.granted == ("kv:read", "kv:write")
    named = decided(record(found=found), Status.INSTALLED, at(found), accept=frozenset({"task:run"}))
    assert named.granted == ("kv:read", "kv:write", "task:run")
    assert named.masked == {"node:admin"}


def test_consent_to_undeclared_capability_is_refused():
    """It is probably a typing error."""
    outcome = advance.transition(
        record(), Status.INSTALLED, at(claim()), UpgradeConsent(accept=frozenset({"task:run", "nonsense"})), NOW
    )
    assert "nonsense" in refused(outcome, "bad_request").reason


def test_hosts_accepted_one_after_another_add_up_in_order():
    """Each is kept once."""
    found = claim()
    installed = decided(record(found=found), Status.INSTALLED, at(found), hosts=("b.x:1", "a.x:1"))
    assert decided(installed, Status.ACTIVE, at(found), hosts=("a.x:1", "c.x:1")).hosts == (
        "b.x:1",
        "a.x:1",
        "c.x:1",
    )


@pytest.mark.parametrize(
    ("consent", "needs"),
    [
        (UpgradeConsent(), False),
        (UpgradeConsent(accept=frozenset({"kv:read", "kv:write"})), False),
        (UpgradeConsent(accept=frozenset({"kv:read", "task:run"})), True),
        (UpgradeConsent(accept=frozenset({"no:such"})), False),
        (UpgradeConsent(hosts=("a:1",)), True),
        (UpgradeConsent(allow_downgrade=True), True),
        (UpgradeConsent(publisher="rival"), True),
        (UpgradeConsent(publisher=""), True),
    ],
)
def test_risky_consent_needs_scope_host(consent, needs):
    """Host risk, hosts, downgrade and another publisher (contracts §7)."""
    assert consent.needs_host_scope is needs


# Changes on disk.


def test_verified_record_follows_the_disk():
    """While nothing was decided the newest bundle is the plugin; its host risk is masked again."""
    other = claim("plugins/new", version="2.0.0", capabilities=["kv:read", "task:run"])
    after = advance.follow(record(), other, NOW)
    assert (after.facts.version, after.source, after.masked) == ("2.0.0", "plugins/new", {"task:run"})
    assert (after.verified_at, after.created_at) == (NOW, 1_000)


@pytest.mark.parametrize("status", [Status.INSTALLED, Status.ACTIVE, Status.DISABLED])
def test_accepted_record_does_not_follow_the_disk(status):
    """Another identity is a candidate; the record stays what the operator accepted."""
    before = record(status)
    assert advance.follow(before, claim(version="2.0.0"), NOW) is before
    assert advance.follow(before, claim("plugins/other", version="2.0.0"), NOW) is before


@pytest.mark.parametrize("status", list(Status))
def test_renamed_bundle_directory_changes_only_its_source(status):
    before = record(status)
    after = advance.follow(before, claim("market/elsewhere"), NOW)
    assert after == replace(before, source="market/elsewhere", updated_at=NOW)
    assert advance.follow(before, claim(), NOW) == before


def test_only_accepted_record_keeps_its_manifest():
    """It is kept from install until forget; there may be thousands of bundles that are not installed."""
    before = record()
    installed = decided(before, Status.INSTALLED, at(claim()))
    assert (before.facts.manifest, installed.facts) == (b"", facts_of(claim().verdict, accepted=True))
    assert installed.facts.manifest
    gone = advance.forget(installed, Presence(), NOW)
    assert isinstance(gone, Record)
    assert gone.facts == before.facts


def test_install_refuses_bundle_that_differs_from_record():
    """A bundle replaced since the last scan must not be installed unseen."""
    outcome = advance.transition(record(), Status.INSTALLED, at(claim(version="2.0.0")), UpgradeConsent(), NOW)
    assert isinstance(outcome, Problem)
    assert outcome.code == "not_available"
    assert "another bundle" in outcome.reason


# Upgrade.


def upgraded(before: Record, found: records.Claim | None, now: int = NOW, **consent: object) -> Record | Problem:
    return advance.upgrade(before, found, UpgradeConsent(**consent), now)  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [Status.INSTALLED, Status.ACTIVE, Status.DISABLED])
def test_upgrade_changes_identity_and_keeps_status(status):
    """The new pair replaces the old one."""
    before, found = record(status), claim("plugins/new", version="1.1.0", artifact=b"two")
    after = upgraded(before, found)
    assert isinstance(after, Record)
    assert after.status is status
    assert after.facts.identity == found.verdict.identity
    assert (after.source, after.floor, after.verified_at) == ("plugins/new", "1.1.0", NOW)


@pytest.mark.parametrize("found", [None, claim()], ids=["nothing", "the same identity"])
def test_upgrade_without_candidate_is_refused(found):
    """A candidate is another verified identity."""
    refused(upgraded(record(Status.ACTIVE), found), "no_candidate")


def test_upgrade_masks_new_capabilities_of_any_risk():
    """Even a new read capability must be named; what was granted stays granted."""
    wider = claim(version="1.1.0", capabilities=["kv:read", "log:write", "audit:read", "task:run"])
    after = upgraded(record(Status.ACTIVE), wider)
    assert isinstance(after, Record)
    assert after.granted == ("kv:read", "log:write")
    named = upgraded(record(Status.ACTIVE), wider, accept=frozenset({"audit:read"}))
    assert isinstance(named, Record)
    assert named.granted == ("kv:read", "log:write", "audit:read")


def test_upgrade_keeps_trimmed_capabilities_masked():
    """An upgrade grants nothing by itself."""
    trimmed = _regranted(record(Status.ACTIVE), Regrant(trim=frozenset({"log:write"})), NOW)
    assert isinstance(trimmed, Record)
    after = upgraded(trimmed, claim(version="1.1.0"))
    assert isinstance(after, Record)
    assert after.granted == ("kv:read",)


def test_capability_dropped_and_declared_again_is_masked():
    """One version drops it and the next declares it again: that widens."""
    narrow = upgraded(record(Status.ACTIVE), claim(version="1.1.0", capabilities=["kv:read"]))
    assert isinstance(narrow, Record)
    again = upgraded(narrow, claim(version="1.2.0"))
    assert isinstance(again, Record)
    assert again.granted == ("kv:read",)


def test_rollback_regains_what_a_version_dropped_but_nothing_that_was_taken_back_since():
    """Not even what only the floors know of: the ledger was restored from before that was taken back."""
    before = record(Status.ACTIVE)
    narrow = upgraded(before, claim(version="1.1.0", capabilities=["kv:read"]))
    assert isinstance(narrow, Record)
    assert advance.regained(before, (narrow,)).granted == ("kv:read", "log:write")
    floors = Floors(masked={before.id: frozenset({"log:write"})})
    held = merge_after_loss.restored(narrow, floors, now_us=NOW)
    assert held.status is Status.ACTIVE
    assert advance.regained(before, (held,)).granted == ("kv:read",)


def test_rollback_regains_what_a_later_version_asked_for_again_unless_that_was_answered():
    """1.0.0 had it, 1.1.0 dropped it, 1.2.0 is not granted it: nobody took it back from 1.0.0."""
    before = record(Status.ACTIVE)
    narrow = upgraded(before, claim(version="1.1.0", capabilities=["kv:read"]))
    again = upgraded(narrow, claim(version="1.2.0"))
    assert again.granted == ("kv:read",)
    assert advance.regained(before, (narrow, again)).granted == ("kv:read", "log:write")
    # Still so in a version after it, and in the row of the ledger.
    later = record_rows.decode(record_rows.encode(upgraded(again, claim(version="1.3.0"))))
    assert (later.granted, later.unasked) == (("kv:read",), {"log:write"})
    assert advance.regained(before, (narrow, again, later)).granted == ("kv:read", "log:write")
    # Answered: trimmed, or granted and then taken back.
    trim, grant = Regrant(trim=frozenset({"log:write"})), Regrant(grant=frozenset({"log:write"}))
    for answers in ((trim,), (grant, trim)):
        answered = later
        for answer in answers:
            answered = _regranted(answered, answer, NOW)
        assert advance.regained(before, (narrow, again, answered)).granted == ("kv:read",)
    # After a loss: what the floors mask may have been answered since.
    held = merge_after_loss.restored(again, Floors(masked={before.id: frozenset({"log:write"})}), now_us=NOW)
    assert advance.regained(before, (narrow, held)).granted == ("kv:read",)
    # A record of before there was this field: what was masked counts as taken back.
    old = replace(later, unasked=frozenset())
    assert advance.regained(before, (narrow, again, old)).granted == ("kv:read",)


@pytest.mark.parametrize(
    ("granted", "declared", "left", "expected"),
    [
        # None of it, all of it, and a part of it was taken back; then what no newer version asked for.
        ("*.x.net:443", ["a.x.net:443"], (), ()),
        ("*.x.net:443", ["a.x.net:443"], ("a.x.net:443",), ("*.x.net:443",)),
        ("*.x.net:443", ["a.x.net:443", "b.x.net:443"], ("b.x.net:443",), ("b.x.net:443",)),
        ("*.x.net:443", ["*.x.net:443"], ("a.x.net:443",), ("a.x.net:443",)),
        ("*.x.net:443", ["b.y.net:443"], (), ("*.x.net:443",)),
        ("a.x.net:443", ["*.x.net:443"], (), ()),
        ("*", ["a.x.net:443"], (), ()),
        ("*", ["a.x.net:443"], ("a.x.net:443",), ("*",)),
        ("*", ["a.x.net:8443"], (), ("*",)),
        # A newer version that leaves hosts to the operator, who may have put others there.
        ("*", None, (), ()),
        ("*", None, ("*",), ("*",)),
        ("*", None, ("a.x.net:443",), ("a.x.net:443",)),
        ("a.x.net:443", None, ("*",), ("a.x.net:443",)),
        ("a.x.net:8443", None, ("*",), ()),
    ],
)
def test_rollback_regains_no_host_of_which_anything_was_taken_back(granted, declared, left, expected):
    """A pattern covers hosts that the newer version declares by name, and the other way round."""
    fields = {"type": "system", "capabilities": ["http:egress"]}
    found = claim(**fields)
    before = decided(record(found=found), Status.INSTALLED, at(found), accept=frozenset({"http:egress"}))
    before = _regranted(before, Regrant(hosts=(granted,)), NOW)
    more = {"v2": True, "egress": {"hosts": declared}} if declared else {}
    newer = upgraded(before, claim(version="2.0.0", **fields, **more))
    newer = _regranted(newer, Regrant(hosts=left), NOW)
    assert newer.hosts == left
    assert advance.regained(before, (newer,)).hosts == expected


def test_other_publisher_inherits_no_grants():
    """It has no capability and no host that the old publisher was granted."""
    found = claim()
    before = decided(record(found=found), Status.INSTALLED, at(found), hosts=("api.example.org:443",))
    after = upgraded(before, claim("plugins/rival", by="rival", version="1.1.0"), publisher="rival")
    assert isinstance(after, Record)
    assert (after.granted, after.hosts, after.facts.publisher) == ((), (), "rival")


def test_other_publisher_before_install_masks_only_host_risk():
    """Nothing was decided yet, so it is judged as at first sight."""
    rival = claim("plugins/rival", by="rival", capabilities=["kv:read", "task:run"])
    after = upgraded(record(), rival, publisher="rival")
    assert isinstance(after, Record)
    assert (after.status, after.granted, after.floor) == (Status.VERIFIED, ("kv:read",), "")


def test_upgrade_refuses_consent_to_what_candidate_does_not_declare():
    """The candidate's manifest counts, not the installed one's."""
    found = claim(version="1.1.0", capabilities=["kv:read"])
    refused(upgraded(record(Status.ACTIVE), found, accept=frozenset({"log:write"})), "bad_request")


# Versions.


@pytest.mark.parametrize(
    ("old", "new", "needed"),
    [
        ("1.0.0", "1.0.1", False),
        ("1.0.0", "1.0.0", False),
        ("1.0.0+one", "1.0.0+two", False),
        ("1.0.0-rc.1", "1.0.0", False),
        ("1.0.0", "1.0.0-rc.1", True),
        ("1.10.0", "1.9.0", True),
        ("2024-01", "2024-01", False),
        ("2024-01", "2024-02", True),
        ("1.0.0", "2024-02", True),
        ("2024-02", "9.0.0", True),
        ("1.0.0", "", True),
        ("", "1.0.0", False),
        (advance.UNVERSIONED, "1.0.0", True),
        (advance.UNVERSIONED, "", False),
    ],
)
def test_lower_or_incomparable_version_needs_consent(old, new, needed):
    """A lower SemVer does; versions that are not comparable always do; a first one never."""
    assert advance.is_downgrade(old, new) is needed


@pytest.mark.parametrize(
    ("floor", "version", "after"),
    [
        ("", "1.0.0", "1.0.0"),
        ("1.0.0", "2.0.0", "2.0.0"),
        ("2.0.0", "1.0.0", "2.0.0"),
        ("2.0.0", "", "2.0.0"),
        ("2.0.0", "banana", "2.0.0"),
        ("", "", advance.UNVERSIONED),
        (advance.UNVERSIONED, "0.1.0", "0.1.0"),
        ("2024-01", "2024-02", "2024-02"),
    ],
)
def test_semver_floor_never_falls(floor, version, after):
    """Any lower version may be accepted with consent: the highest stays the floor."""
    assert advance.higher(floor, version) == after


def test_incomparable_version_needs_consent_even_above_floor():
    """The record's version is no SemVer, so no other is known to be higher, whatever the floor is."""
    installed = replace(record(Status.INSTALLED, claim(version="banana")), floor="1.0.0")
    assert advance.needs_downgrade(installed, "9.0.0")


def test_downgrade_needs_consent_and_keeps_floor():
    """The floor is the highest version ever accepted: each downgrade needs consent again."""
    high = record(Status.ACTIVE, claim(version="2.0.0"))
    low = claim(version="1.0.0")
    assert "2.0.0" in refused(upgraded(high, low), "version_downgrade").reason
    after = upgraded(high, low, allow_downgrade=True)
    assert isinstance(after, Record)
    assert (after.facts.version, after.floor) == ("1.0.0", "2.0.0")
    refused(upgraded(after, claim(version="1.5.0")), "version_downgrade")


def test_incomparable_versions_need_consent_each_time():
    """The version accepted last becomes the floor."""
    before = record(Status.ACTIVE, claim(version="spring"))
    refused(upgraded(before, claim(version="summer")), "version_downgrade")
    after = upgraded(before, claim(version="summer"), allow_downgrade=True)
    assert isinstance(after, Record)
    assert after.floor == "summer"
    refused(upgraded(after, claim(version="1.0.0")), "version_downgrade")


def test_version_floor_survives_forget():
    """Forgetting a plugin and adding an older bundle does not bypass the floor."""
    old = record(Status.DISABLED, claim(version="2.0.0"))
    tomb = advance.forget(old, records.GONE, NOW)
    assert isinstance(tomb, Record)
    assert (tomb.forgotten, tomb.floor, tomb.facts.publisher) == (True, "2.0.0", "acme")
    low = claim(version="1.0.0")
    again = advance.first_seen(low, NOW, tomb)
    assert (again.forgotten, again.status, again.floor) == (False, Status.VERIFIED, "2.0.0")
    assert again.created_at == old.created_at
    refused(advance.transition(again, Status.INSTALLED, at(low), NO_CONSENT, NOW), "version_downgrade")
    accepted = decided(again, Status.INSTALLED, at(low), allow_downgrade=True)
    assert accepted.floor == "2.0.0"


def test_only_install_checks_the_version_floor():
    """An installed plugin may be disabled and activated again, whatever the floor is."""
    found = claim(version="1.0.0")
    before = replace(record(Status.DISABLED, found), floor="2.0.0")
    assert decided(before, Status.ACTIVE, at(found)).floor == "2.0.0"


# Grants.


def test_grant_and_trim_unmask_and_mask_capabilities():
    """Trim masks, grant unmasks; the rest is unchanged."""
    before = record(Status.ACTIVE, claim(capabilities=["kv:read", "kv:write", "task:run"]))
    after = _regranted(before, Regrant(grant=frozenset({"task:run"}), trim=frozenset({"kv:read"})), NOW)
    assert isinstance(after, Record)
    assert after.granted == ("kv:write", "task:run")
    assert after.updated_at == NOW
    assert replace(after, masked=before.masked, updated_at=before.updated_at) == before


@pytest.mark.parametrize(("grant", "trim"), [({"audit:read"}, set()), (set(), {"audit:read"})])
def test_grant_or_trim_of_undeclared_capability_is_refused(grant, trim):
    """Trim too: it would be remembered for an upgrade that declares the capability."""
    wanted = Regrant(grant=frozenset(grant), trim=frozenset(trim))
    refused(_regranted(record(Status.ACTIVE), wanted, NOW), "bad_request")


@pytest.mark.parametrize(
    ("wanted", "widens"),
    [
        (Regrant(), False),
        (Regrant(grant=frozenset({"log:write"})), False),
        (Regrant(grant=frozenset({"task:run"})), True),
        (Regrant(trim=frozenset({"log:write"})), False),
        (Regrant(hosts=("a.example:443",)), False),
        (Regrant(hosts=("c.example:443",)), True),
        (Regrant(permits=()), False),
        (Regrant(permits=("bucket=two",)), False),
        (Regrant(permits=("bucket=two", "bucket=three")), True),
    ],
)
def test_grant_change_widens_only_if_more_is_granted_after_it(wanted, widens):
    """A change that names only what is granted already does not widen."""
    found = claim(capabilities=["log:write", "task:run"])
    before = replace(
        record(Status.ACTIVE, found),
        masked=frozenset({"task:run"}),
        hosts=("a.example:443", "b.example:443"),
        permits=("bucket=one", "bucket=two"),
    )
    after = _regranted(before, wanted, NOW)
    assert isinstance(after, Record)
    assert granting.widens(before, after, DEFAULTS) is widens


def test_grant_change_replaces_hosts_it_names():
    """None keeps them, an empty list removes all; an invalid host is refused."""
    found = claim()
    before = decided(record(found=found), Status.INSTALLED, at(found), hosts=("a.example:443",))
    for hosts, expected in ((None, ("a.example:443",)), ((), ()), (("b.example:1", "*", "*"), ("b.example:1", "*"))):
        after = _regranted(before, Regrant(hosts=hosts), NOW)
        assert isinstance(after, Record)
        assert after.hosts == expected
    refused(_regranted(before, Regrant(hosts=("not a host",)), NOW), "bad_request")


def test_consent_to_invalid_host_is_refused():
    """A typing error is not stored as a grant."""
    found = claim()
    for host in ("a.example", "a.example:0", "a.example:99999", "http://a.example:443/x", ""):
        refused(
            advance.transition(record(found=found), Status.INSTALLED, at(found), UpgradeConsent(hosts=(host,)), NOW),
            "bad_request",
        )


# Forget.


@pytest.mark.parametrize(
    ("status", "seen", "code"),
    [
        (Status.ACTIVE, records.GONE, "invalid_transition"),
        (Status.ACTIVE, at(claim()), "invalid_transition"),
        (Status.VERIFIED, at(claim()), "invalid_transition"),
        (Status.VERIFIED, records.GONE, None),
        (Status.INSTALLED, at(claim()), None),
        (Status.DISABLED, records.GONE, None),
    ],
)
def test_only_inactive_plugin_can_be_forgotten(status, seen, code):
    """Nor can one be whose bundle is on disk and that nobody decided about: it would be back at once."""
    before = replace(record(status), hosts=("a:1",))
    outcome = advance.forget(before, seen, NOW)
    if code:
        refused(outcome, code)
        return
    assert isinstance(outcome, Record)
    assert outcome.forgotten
    assert (outcome.status, outcome.hosts, outcome.masked) == (Status.VERIFIED, (), frozenset())


# Dependencies.


@pytest.mark.parametrize(
    ("dependency", "met"),
    [
        (Dependency(id="acme.base"), True),
        (Dependency(id="acme.base", version="^1.0"), True),
        (Dependency(id="acme.base", version=">=2"), False),
        (Dependency(id="acme.base", version=">=2", optional=True), True),
        (Dependency(id="acme.off"), False),
        (Dependency(id="acme.off", optional=True), True),
        (Dependency(id="acme.none"), False),
        (Dependency(id="acme.gone"), False),
    ],
)
def test_dependency_must_be_active_in_matching_version(dependency, met):
    """This holds for required ones; optional ones may be missing."""
    known = {
        "acme.base": record(Status.ACTIVE, claim(id="acme.base", version="1.4.0")),
        "acme.off": record(Status.DISABLED, claim(id="acme.off")),
        "acme.gone": replace(record(found=claim(id="acme.gone")), forgotten=True),
    }
    problem = advance.unmet((dependency,), known)
    assert (problem is None) is met
    if problem:
        assert problem.code == "dependency_unmet"
        assert dependency.id in problem.reason


def test_refusal_names_the_first_unmet_dependency():
    problem = advance.unmet((Dependency(id="acme.one"), Dependency(id="acme.two")), {})
    assert problem is not None
    assert "acme.one" in problem.reason
    assert advance.unmet((), {}) is None


def test_upgrade_preview_lists_added_and_dropped_capabilities():
    """They are in the manifest's order."""
    before = record(Status.ACTIVE, claim(capabilities=["kv:read", "log:write"]))
    found = records.verified(capabilities=["task:run", "kv:read", "audit:read"])
    assert advance.upgrade_changes(before, found) == (("task:run", "audit:read"), ("log:write",))
