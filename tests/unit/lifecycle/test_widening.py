"""What another version widens is not effective until it is accepted by name, field by field (contracts §13)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from latticed.catalog.builtins import Builtins
from latticed.ledger import floors as kept
from latticed.ledger import terms as texts
from latticed.ledger.floors import Floors
from latticed.lifecycle import advance, granting, merge_after_loss, presence
from latticed.lifecycle.advance import NO_CONSENT, UpgradeConsent
from latticed.lifecycle.granting import Regrant
from latticed.lifecycle.manifest_defaults import DEFAULTS
from latticed.lifecycle.revocations import floors_of
from latticed.model import accepted, consents
from latticed.model.errors import Problem
from latticed.model.lifecycle import Record, Status
from latticed.trust import policy
from latticed.trust.claims import IdClaim
from latticed.trust.policy import Revoked
from tests.house import builtins
from tests.house.records import claim, record

NOW = 5_000
PYTHON, SHELL = b"#!/usr/bin/env python3\n1", b"#!/bin/sh\n:"
SERVED = ["kv:read", "worker:route"]


def runtime(**fields: Any) -> dict[str, Any]:
    return {"runtime": fields}


MASKED = {
    "feature": (runtime(), runtime(sandbox={"features": ["workdir"]}), "feature=workdir"),
    "level": (
        runtime(sandbox={"level": "isolated"}),
        runtime(sandbox={"level": "filtered"}),
        "level=filtered",
    ),
    "level that was silent": (runtime(), runtime(sandbox={"level": "filtered"}), "level=filtered"),
    "level that falls silent": (runtime(sandbox={"level": "dedicated"}), runtime(), "level=default"),
    "prefix": ({}, {"routes": {"prefixes": ["/shop/"]}}, "prefix=/shop/"),
    "schedule": (
        {},
        {"schedules": [{"name": "disk", "every_s": 60, "action": "check"}]},
        "schedule=disk@every_s:60@check",
    ),
    "optional dependency": (
        {},
        {"dependencies": [{"id": "acme.base", "optional": True}]},
        "dependency=acme.base",
    ),
    **{
        f"limit {name}": (runtime(limits={name: low}), runtime(limits={name: high}), f"limit={name}:{high}")
        for name, low, high in [
            ("memory_mib", 64, 512),
            ("cpu_percent", 50, 200),
            ("processes", 2, 64),
            ("open_files", 32, 256),
            ("invoke_timeout_s", 5, 20),
            ("host_calls_per_s", 10, 5_000),
            ("stdout_kib", 64, 4_096),
            ("fuel", 1_000, 2_000),
        ]
    },
    "limit that was silent": (runtime(), runtime(limits={"memory_mib": 1_024}), "limit=memory_mib:1024"),
    "limit that falls silent": (runtime(limits={"cpu_percent": 50}), runtime(), "limit=cpu_percent:default"),
}
NEEDED = {
    "type": ({"type": "wasm"}, {"type": "system", **runtime(protocol="latticed-stdio-1")}, ("type=system",)),
    "protocol": (
        runtime(protocol="latticed-stdio-1"),
        runtime(protocol="stdio-json-v1"),
        ("protocol=stdio-json-v1",),
    ),
    "interpreter": ({"artifact": PYTHON}, {"artifact": SHELL}, ("interpreter=/bin/sh",)),
    "args": (runtime(args=["--a"]), runtime(args=["--a", "b c"]), ("args=--a 'b c'",)),
    "dependency": ({}, {"dependencies": [{"id": "acme.base"}]}, ("dependency=acme.base",)),
}


def upgraded(before: Record, consent: UpgradeConsent = NO_CONSENT, **fields: Any) -> Record | Problem:
    return advance.upgrade(before, claim(version="2.0.0", v2=True, **fields), consent, NOW)


def consenting(*words: str) -> UpgradeConsent:
    named = consents.parse(words)
    return UpgradeConsent(accept=frozenset(named.caps), hosts=named.hosts, permits=named.permits, terms=named.terms)


def runs(found: Record | Problem) -> Any:
    """The manifest that a record runs with: what is effective of the declared one."""
    assert isinstance(found, Record), found
    return presence.plugin_of(found, DEFAULTS).manifest


def whole(found: Record) -> Any:
    return presence.manifest_of(found.facts)


def comparable(manifest: Any) -> Any:
    return manifest.runtime, manifest.routes, manifest.dependencies, manifest.schedules


@pytest.mark.parametrize(("old", "new", "word"), MASKED.values(), ids=MASKED)
def test_widened_terms_are_withheld_until_named(old, new, word):
    """Until then the plugin runs with what was accepted before; terms are named at the upgrade or by a grant."""
    before = record(Status.ACTIVE, claim(v2=True, **old))
    plain = upgraded(before, **new)
    assert isinstance(plain, Record)
    assert comparable(runs(plain)) != comparable(whole(plain))
    assert granting.withheld(plain, DEFAULTS) == (word,)
    assert word in advance.changes(before.facts, plain.facts, DEFAULTS)[0]
    named = upgraded(before, consenting(word), **new)
    assert isinstance(named, Record)
    assert granting.withheld(named, DEFAULTS) == ()
    assert comparable(runs(named)) == comparable(whole(named))
    if not word.startswith("dependency"):
        wanted = Regrant(add=consents.parse([word], upgrading=False))
        granted = granting.regrant(plain, wanted, whole(plain), NOW)
        assert comparable(runs(granted)) == comparable(whole(plain))


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"every_s": 10}, "schedule=disk@every_s:10@check"),
        ({"every_s": 7200}, "schedule=disk@every_s:7200@check"),
        ({"every_s": None, "daily": "03:30"}, "schedule=disk@daily:03:30@check"),
        ({"action": "wipe"}, "schedule=disk@every_s:3600@wipe"),
        ({"payload": {"all": True}}, "schedule=disk@every_s:3600@check@d0fdc09655bf"),
    ],
)
def test_schedule_that_is_changed_in_any_way_must_be_named(more, word):
    """What was accepted is one time, action and payload; until the other is named, neither runs."""
    accepted_as = {"name": "disk", "every_s": 3600, "action": "check"}
    other = {name: value for name, value in {**accepted_as, **more}.items() if value is not None}
    before = record(Status.ACTIVE, claim(v2=True, schedules=[accepted_as]))
    plain = upgraded(before, schedules=[other])
    assert isinstance(plain, Record)
    assert granting.withheld(plain, DEFAULTS) == (word,)
    assert runs(plain).schedules == ()
    granted = granting.regrant(plain, Regrant(add=consents.parse([word], upgrading=False)), whole(plain), NOW)
    assert runs(granted).schedules == whole(plain).schedules
    trimmed = granting.regrant(granted, Regrant(remove=consents.parse([word], upgrading=False)), whole(plain), NOW)
    assert runs(trimmed).schedules == ()
    refused = granting.regrant(plain, Regrant(add=consents.parse([f"{word}x"], upgrading=False)), whole(plain), NOW)
    assert isinstance(refused, Problem)


@pytest.mark.parametrize(("old", "new", "word"), MASKED.values(), ids=MASKED)
def test_dropped_term_must_be_accepted_again(old, new, word):
    """One version drops it, and the next asks for it."""
    before = record(Status.ACTIVE, claim(v2=True, **new))
    between = upgraded(before, **old)
    assert isinstance(between, Record)
    assert granting.withheld(between, DEFAULTS) == ()
    assert word in advance.changes(before.facts, between.facts, DEFAULTS)[1]
    again = advance.upgrade(between, claim(version="3.0.0", v2=True, **new), UpgradeConsent(), NOW)
    assert isinstance(again, Record)
    assert granting.withheld(again, DEFAULTS) == (word,)


@pytest.mark.parametrize(("old", "new", "words"), NEEDED.values(), ids=NEEDED)
def test_required_term_needs_consent(old, new, words):
    """needs_consent lists all of it, with the command; a plugin that is not active is refused at activation."""
    before = record(Status.ACTIVE, claim(v2=True, **old))
    refused = upgraded(before, **new)
    assert isinstance(refused, Problem)
    assert refused.code == "needs_consent"
    assert all(word in refused.reason for word in words)
    assert refused.hint.startswith("latticectl upgrade acme.demo --accept ")
    other = claim(version="2.0.0", v2=True, **new)
    assert advance.must_name(before, other.verdict, DEFAULTS) == words
    named = upgraded(before, consenting(*words), **new)
    assert isinstance(named, Record)
    assert (named.status, granting.withheld(named, DEFAULTS)) == (Status.ACTIVE, ())
    resting = replace(before, status=Status.DISABLED)
    taken = upgraded(resting, **new)
    assert isinstance(taken, Record)
    late = advance.transition(taken, Status.ACTIVE, presence.Presence(winner=other), UpgradeConsent(), NOW)
    assert isinstance(late, Problem)
    assert (late.code, late.hint.split()[:2]) == ("needs_consent", ["latticectl", "activate"])
    active = advance.transition(taken, Status.ACTIVE, presence.Presence(winner=other), consenting(*words), NOW)
    assert isinstance(active, Record)


def test_first_install_accepts_what_the_manifest_asks_for():
    """Host-risk capabilities and hosts are excepted."""
    wants = {**runtime(limits={"memory_mib": 999}, sandbox={"level": "filtered", "features": ["threads"]}, args=["a"])}
    found = record(Status.ACTIVE, claim(v2=True, artifact=PYTHON, **wants))
    assert runs(found) == whole(found)
    assert granting.withheld(found, DEFAULTS) == ()
    assert found.terms is not None
    assert (found.terms.interpreter, found.terms.level) == ("/usr/bin/env python3", "filtered")


def test_v1_version_after_v2_gets_no_features_unnamed():
    """A v1 manifest cannot declare features and is given threads and processes: that widens too."""
    before = record(Status.ACTIVE, claim(v2=True, **runtime(protocol="stdio-json-v1")))
    new = claim(version="2.0.0")
    refused = advance.upgrade(before, new, UpgradeConsent(), NOW)
    assert isinstance(refused, Problem)
    assert "feature=threads" in refused.reason
    after = advance.upgrade(before, new, consenting("feature=threads"), NOW)
    assert isinstance(after, Record)
    assert presence.plugin_of(after, DEFAULTS).withheld == {"processes"}


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("limit=memory_mib:513", "at most limit=memory_mib:512"),
        ("level=filtered", "at least level=isolated"),
        ("type=worker", "expected type=system"),
        ("interpreter=/bin/bash", "expected interpreter="),
        ("args=--x", "expected args="),
        ("args='", "as in a shell"),
        ("dependency=acme.none", "that it depends on"),
        ("host=b.example.org:443", "that the manifest declares"),
        ("task:run", "that the manifest declares"),
        ("origin=http://169.254.169.254", "credentials"),
    ],
)
def test_undeclared_term_cannot_be_accepted(word, says):
    """It is probably a typing error."""
    before = record(Status.ACTIVE, claim(v2=True, egress={"hosts": ["a.example.org:443"]}))
    new = {"egress": {"hosts": ["a.example.org:443"]}, **runtime(limits={"memory_mib": 512})}
    refused = upgraded(before, consenting(word), **new)
    assert isinstance(refused, Problem)
    assert says in refused.reason


def test_a_private_address_is_told_to_be_bound_as_an_origin():
    before = record(Status.ACTIVE, claim(v2=True, egress={"hosts": ["a.example.org:443"]}))
    refused = upgraded(before, consenting("host=192.168.7.5:8080"), egress={"hosts": ["a.example.org:443"]})
    assert isinstance(refused, Problem)
    assert refused.hint.endswith("latticectl caps grant acme.demo origin=http://192.168.7.5:8080")
    other = upgraded(before, consenting("host=8.8.8.8:443"), egress={"hosts": ["a.example.org:443"]})
    assert isinstance(other, Problem)
    assert other.hint == ""


@pytest.mark.parametrize(
    ("granted", "left"),
    [
        ((), ("*.a.example:443", "b.example:8080")),
        (("x.a.example:443",), ("*.a.example:443", "b.example:8080")),
        (("*.a.example:443",), ("b.example:8080",)),
        (("*", "b.example:8080"), ()),
    ],
)
def test_declared_hosts_that_were_not_granted_are_named(granted, left):
    before = record(Status.ACTIVE, claim(v2=True, egress={"hosts": ["*.a.example:443", "b.example:8080"]}))
    assert granting.withheld_hosts(replace(before, hosts=granted), whole(before)) == left
    assert granting.withheld_hosts(before, None) == ()


def test_trim_lowers_a_limit_and_removes_a_feature():
    """They are named as in a grant (`limit=memory_mib:64`). A running instance is restarted; the scope host is not
    needed.
    """
    found = record(
        Status.ACTIVE, claim(v2=True, **runtime(limits={"memory_mib": 512}, sandbox={"features": ["threads"]}))
    )
    removed = consents.parse(["limit=memory_mib:64", "feature=threads", "level=dedicated"], upgrading=False)
    after = granting.regrant(found, Regrant(remove=removed), whole(found), NOW)
    assert isinstance(after, Record)
    assert granting.needs_restart(found, after, DEFAULTS)
    assert not granting.widens(found, after, DEFAULTS)
    assert runs(after).runtime.limits.memory_mib == 64
    assert (runs(after).runtime.sandbox.features, runs(after).runtime.sandbox.level) == ((), "dedicated")
    assert not Regrant(remove=removed).needs_host_scope


def test_undeclared_feature_is_granted_as_permit():
    """v1 manifests cannot declare features."""
    found = record(Status.ACTIVE, claim(v2=True))
    after = granting.regrant(found, Regrant(add=consents.parse(["feature=workdir"])), whole(found), NOW)
    assert isinstance(after, Record)
    assert after.permits == ("feature=workdir",)
    gone = granting.regrant(after, Regrant(remove=consents.parse(["feature=workdir"])), whole(found), NOW)
    assert isinstance(gone, Record)
    assert gone.permits == ()


# Hosts.


def hosted(*declared: str) -> dict[str, Any]:
    return {"egress": {"hosts": list(declared)}, "capabilities": ["http:egress"]}


def test_star_grants_hosts_declared_at_that_time():
    """It grants them on ports 80 and 443; hosts that an upgrade adds must be named."""
    before = record(Status.ACTIVE, claim(v2=True, **hosted("a.example.org:443", "a.example.org:8443")))
    given = granting.regrant(before, Regrant(hosts=("*",)), whole(before), NOW)
    assert isinstance(given, Record)
    assert given.hosts == ("a.example.org:443",)
    wider = upgraded(given, **hosted("a.example.org:443", "evil.example.net:443"))
    assert isinstance(wider, Record)
    assert wider.hosts == ("a.example.org:443",)
    assert "host=evil.example.net:443" in advance.changes(given.facts, wider.facts, DEFAULTS)[0]
    named = upgraded(given, consenting("host=EVIL.example.net.:443"), **hosted("*.example.net:443"))
    assert isinstance(named, Record)
    assert named.hosts == ("evil.example.net:443",)


def test_v1_star_is_narrowed_by_first_v2_manifest():
    """It allowed any host; the first manifest that declares hosts narrows it to those, permanently."""
    before = record(Status.ACTIVE, claim(capabilities=["http:egress"]))
    given = granting.regrant(before, Regrant(hosts=("*",)), whole(before), NOW)
    assert isinstance(given, Record)
    assert given.hosts == ("*",)
    words = ("protocol=latticed-stdio-1",)
    after = upgraded(given, consenting(*words), **hosted("a.example.org:443", "b.example.org:25"))
    assert isinstance(after, Record)
    assert after.hosts == ("a.example.org:443",)


def test_trimmed_star_removes_the_hosts_it_granted():
    """Hosts with other ports stay."""
    before = record(Status.ACTIVE, claim(v2=True, **hosted("a.example.org:443", "a.example.org:8443")))
    given = granting.regrant(before, Regrant(hosts=("*", "a.example.org:8443")), whole(before), NOW)
    assert isinstance(given, Record)
    after = granting.regrant(given, Regrant(remove=consents.parse(["host=*"])), whole(before), NOW)
    assert isinstance(after, Record)
    assert after.hosts == ("a.example.org:8443",)


def test_built_in_without_declared_hosts_is_granted_those_that_its_operator_names(tmp_path):
    """Sub-Store's subscriptions lie where the operator has them; a bundle of version 2 has to declare its hosts."""
    built_in = builtins.made(tmp_path, capabilities=["http:egress"])
    ((name, verdict),) = Builtins([built_in], version="1.0.0").verdicts(lambda: policy.NOBODY)
    mine = record(Status.ACTIVE, IdClaim(name=name, verdict=verdict))
    given = granting.regrant(mine, Regrant(hosts=("sub.example.org:8443", "*")), whole(mine), NOW)
    assert isinstance(given, Record)
    assert given.hosts == ("sub.example.org:8443", "*")
    assert presence.standing(given, whole(mine), None).declared_hosts is None
    trimmed = granting.regrant(given, Regrant(remove=consents.parse(["host=*"])), whole(mine), NOW)
    assert isinstance(trimmed, Record)
    assert trimmed.hosts == ("sub.example.org:8443",)
    other = record(Status.ACTIVE, claim(v2=True))
    assert not isinstance(granting.regrant(other, Regrant(hosts=("sub.example.org:8443",)), whole(other), NOW), Record)


@pytest.mark.parametrize(
    ("word", "normal"),
    [
        ("host=API.Example.ORG.:443", "api.example.org:443"),
        ("host=https://api.example.org", "api.example.org:443"),
        ("host=http://api.example.org/", "api.example.org:80"),
        ("host=https://api.example.org:8443", "api.example.org:8443"),
        ("host=bücher.example:443", "xn--bcher-kva.example:443"),
        ("host=*.bücher.example:443", "*.xn--bcher-kva.example:443"),
        ("host=[2606:4700:0:0::1111]:443", "[2606:4700::1111]:443"),
        ("host=_srv.example.org:443", "_srv.example.org:443"),
    ],
)
def test_granted_hosts_may_have_every_form_of_http_do(word, normal):
    """They are stored in normal form; a URL without a port gets that of its scheme."""
    assert consents.parse([word]).hosts == (normal,)
    found = record(Status.ACTIVE)
    after = granting.regrant(found, Regrant(hosts=(word.removeprefix("host="),)), whole(found), NOW)
    assert isinstance(after, Record)
    assert after.hosts == (normal,)


@pytest.mark.parametrize(
    "origin", ["http://169.254.169.254", "http://[fd00:ec2::254]", "http://m.lan:80=100.100.100.200"]
)
def test_grant_of_cloud_metadata_origin_needs_force(origin):
    """It needs it once: origins granted already are not asked about again."""
    found = record(Status.ACTIVE)
    word = f"origin={origin}"
    refused = granting.regrant(found, Regrant(add=consents.parse([word])), whole(found), NOW)
    assert isinstance(refused, Problem)
    assert (refused.code, refused.hint.endswith("--force")) == ("metadata_origin", True)
    after = granting.regrant(found, Regrant(add=consents.parse([word]), force=True), whole(found), NOW)
    assert isinstance(after, Record)
    kept_on = granting.regrant(after, Regrant(permits=after.permits), whole(found), NOW)
    assert isinstance(kept_on, Record)
    assert kept_on.permits == (word,)


# What outlives the ledger.


def test_migrated_record_accepts_its_manifest():
    """Its `*` becomes the declared hosts; the interpreter is added when its pair is judged."""
    new = record(Status.ACTIVE, claim(v2=True, artifact=PYTHON, **hosted("a.example.org:443", "a.example.org:25")))
    old = replace(new, terms=None, hosts=("*",), facts=replace(new.facts, interpreter=""))
    found = presence.migrated(old)
    assert found.hosts == ("a.example.org:443", "a.example.org:25")
    assert found.terms == replace(new.terms, interpreter="")  # type: ignore[type-var]
    known = presence.with_interpreter(found, new.facts.interpreter)
    assert (known.terms, known.facts) == (new.terms, new.facts)
    assert presence.migrated(new) is new
    assert presence.with_interpreter(new, "/bin/sh") is new


def test_floors_file_keeps_accepted_terms(tmp_path):
    """A file from before there were terms can be read too."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    found = record(Status.ACTIVE, claim(v2=True, **runtime(limits={"memory_mib": 64}, args=["x"])))
    written = floors_of([found], Revoked())
    kept.write(tmp_path, written, key)
    assert kept.read(tmp_path, key.public_key()).terms == {"acme.demo": found.terms} == written.terms
    kept.write(tmp_path, Floors(), key)
    assert kept.read(tmp_path, key.public_key()).terms == {}
    assert texts.decode(texts.encode(found.terms)) == found.terms


@pytest.mark.parametrize("text", ['{"type": 3}', "{", "[]", '{"type": "system", "level": "loose"}'])
def test_malformed_accepted_terms_raise_value_error(text):
    """The ledger reports such a row as damage."""
    with pytest.raises(ValueError, match="terms"):
        texts.decode(text)


def test_accepted_terms_survive_a_lost_ledger():
    """The plugin is back as verified; installed again, it has what was accepted, and no more."""
    before = record(Status.ACTIVE, claim(v2=True, **runtime(limits={"memory_mib": 64})))
    new = claim(version="2.0.0", v2=True, **runtime(limits={"memory_mib": 512}))
    after = advance.upgrade(before, new, UpgradeConsent(), NOW)
    assert isinstance(after, Record)
    found = merge_after_loss.rebuilt(after.id, [new.verdict], floors_of([after], Revoked()), None, now_us=NOW)
    installed = advance.transition(found, Status.INSTALLED, presence.Presence(winner=new), UpgradeConsent(), NOW)
    assert isinstance(installed, Record)
    assert granting.withheld(installed, DEFAULTS) == ("limit=memory_mib:512",)
    gone = merge_after_loss.rebuilt(after.id, [], floors_of([after], Revoked()), None, now_us=NOW)
    assert advance.first_seen(new, NOW, gone).terms == after.terms


def test_restored_backup_keeps_terms_taken_away_since():
    """It gets the stricter of backup and floors; a plugin that could not start then must be installed again."""
    then = record(Status.ACTIVE, claim(v2=True, artifact=PYTHON, **runtime(limits={"memory_mib": 512})))
    lowered = Regrant(remove=consents.parse(["limit=memory_mib:64"]))
    now = granting.regrant(then, lowered, whole(then), NOW)
    assert isinstance(now, Record)
    back = merge_after_loss.restored(then, floors_of([now], Revoked()), now_us=NOW)
    assert (back.status, runs(back).runtime.limits.memory_mib) == (Status.ACTIVE, 64)
    assert merge_after_loss.restored(then, floors_of([then], Revoked()), now_us=NOW) is then
    other = replace(then, terms=replace(then.terms, interpreter="/bin/sh"))  # type: ignore[type-var]
    assert merge_after_loss.restored(then, floors_of([other], Revoked()), now_us=NOW).status is Status.VERIFIED


def test_union_of_floors_keeps_stricter_terms():
    wide = record(Status.ACTIVE, claim(v2=True, **runtime(sandbox={"features": ["threads", "workdir"]})))
    narrow = replace(wide, terms=replace(wide.terms, features=frozenset({"workdir"})))  # type: ignore[type-var]
    union = merge_after_loss.union(floors_of([wide], Revoked()), floors_of([narrow], Revoked()))
    assert union.terms["acme.demo"] == narrow.terms


def test_forget_removes_accepted_terms():
    """A later install accepts terms anew, as the first one does."""
    found = replace(record(Status.ACTIVE), status=Status.DISABLED)
    gone = advance.forget(found, presence.Presence(), NOW)
    assert isinstance(gone, Record)
    assert gone.terms is None


def test_takeover_keeps_accepted_terms_but_no_grants():
    """What it widens is withheld as in any upgrade."""
    before = record(Status.ACTIVE, claim(v2=True, **hosted("a.example.org:443")))
    given = granting.regrant(before, Regrant(hosts=("*",)), whole(before), NOW)
    assert isinstance(given, Record)
    wants = {**hosted("a.example.org:443"), **runtime(limits={"memory_mib": 1_024})}
    other = claim(version="2.0.0", v2=True, by="rival", publisher="rival", **wants)
    after = advance.upgrade(given, other, UpgradeConsent(publisher="rival"), NOW)
    assert isinstance(after, Record)
    assert (after.granted, after.hosts) == ((), ())
    assert granting.withheld(after, DEFAULTS) == ("limit=memory_mib:1024",)


@pytest.mark.parametrize(
    ("head", "interpreter"),
    [
        (b"\x7fELF\x02", accepted.ELF),
        (b"#!/usr/bin/env python3\nprint()", "/usr/bin/env python3"),
        (b"#! /bin/sh\t -e \n", "/bin/sh -e"),
        (b"#!/bin/sh", "/bin/sh"),
        (b"#!/bin/\xff\x1b\n", "/bin/\\xff\\x1b"),
        (b"\0asm", ""),
        (b"", ""),
    ],
)
def test_interpreter_is_read_from_artifact(head, interpreter):
    """ELF, or the words of its first line."""
    assert accepted.interpreter_of(head) == interpreter
