"""The lifecycle as a whole: running plugins follow the disk and the decisions. Real bundles, real daemon."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from latticed.ledger import records as rows
from tests.house import bundles, in_process

ID = "acme.demo"
ACME, RIVAL = bundles.author("acme"), bundles.author("rival")
URL = f"/api/plugins/by-id/{ID}"


@pytest.fixture
async def home():
    async with in_process.opened(author=ACME, policy=bundles.policy_bytes(ACME, RIVAL)) as found:
        yield found


def refusals(home, after=0):
    return [
        (e["code"], e["detail"]["wanted"]) for e in home.events(after=after, action="plugin.status", decision="deny")
    ]


def changes(home, after=0):
    return [
        (e["detail"]["from"], e["detail"]["to"])
        for e in home.events(after=after, action="plugin.status", decision="allow")
    ]


async def rejected(home, name):
    await in_process.until(lambda: f"plugins/{name}" in home.app.api.lifecycle.rejected(), f"{name} rejected")
    return home.app.api.lifecycle.rejected()[f"plugins/{name}"].code.value


async def test_plugin_passes_through_every_status(home):
    """verified → installed → active → disabled → active, each step with its time and its event."""
    home.drop()
    await home.seen(ID)
    assert (await home.plugin(ID))["status"] == "verified"
    for status in ("installed", "active", "disabled", "active"):
        answer = await home.decide(ID, status)
        assert (answer.status, answer["status"]) == (200, status)
        assert answer["runtime"]["state"] == ("armed" if status == "active" else "stopped")
    view = await home.plugin(ID)
    assert view["verified_at"] <= view["installed_at"] <= view["disabled_at"] <= view["activated_at"]
    assert changes(home) == [
        ("verified", "installed"),
        ("installed", "active"),
        ("active", "disabled"),
        ("disabled", "active"),
    ]


@pytest.mark.parametrize(
    ("given", "wanted", "verb"),
    [
        ([], "active", "install"),
        ([], "disabled", "info"),
        (["installed"], "installed", "info"),
        (["installed", "active"], "installed", "info"),
        (["installed", "active"], "active", "info"),
        (["installed", "disabled"], "installed", "info"),
        (["installed", "disabled"], "disabled", "info"),
    ],
)
async def test_invalid_transition_is_refused(home, given, wanted, verb):
    """409 with its code, audited, and nothing changed. The hint leads to what is wanted, and away from nothing."""
    home.drop()
    await home.seen(ID)
    for status in given:
        await home.decide(ID, status)
    before = await home.plugin(ID)
    answer = await home.decide(ID, wanted)
    assert (answer.status, answer.code) == (409, "invalid_transition")
    assert answer["hint"] == f"latticectl {verb} {ID}"
    assert await home.plugin(ID) == before
    assert refusals(home) == [("invalid_transition", wanted)]


async def test_unknown_plugin_is_not_found(home):
    """Every request gets 404."""
    for answer in (
        await home.decide("acme.none", "installed"),
        await home.ask("GET", "/api/plugins/by-id/acme.none"),
        *[
            await home.ask("POST", f"/api/plugins/by-id/acme.none/{verb}", {})
            for verb in ("upgrade", "restart", "forget")
        ],
        await home.ask("PUT", "/api/plugins/by-id/acme.none/grants", {"trim": ["kv:read"]}),
    ):
        assert (answer.status, answer.code) == (404, "not_found")


async def test_tampered_bundle_cannot_be_activated(home):
    """not_available, its reason names the verdict's code; disabling still works."""
    bundle = home.drop()
    await home.seen(ID)
    await home.decide(ID, "installed")
    bundles.tamper(bundle.artifact_path)
    await home.until_plugin(ID, lambda view: not view["available"])
    answer = await home.decide(ID, "active")
    assert (answer.status, answer.code) == (409, "not_available")
    assert "digest_mismatch" in answer["detail"]
    assert home.driven.attempts[ID] == 0
    assert (await home.decide(ID, "disabled")).status == 200


async def test_missing_bundle_stops_plugin_and_returned_bundle_arms_it(home):
    """The status is the operator's: it stays active throughout."""
    bundle = home.drop()
    await home.armed(ID)
    away = home.root / "away"
    bundle.path.rename(away)
    view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "failed")
    assert (view["status"], view["available"]) == ("active", False)
    assert view["runtime"]["last_error"]["code"] == "manifest_missing"
    assert not +home.driven.running
    away.rename(bundle.path)
    view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
    assert view["available"]
    assert home.driven.most[ID] == 1


async def test_new_identity_is_candidate_while_old_one_runs(home):
    """The old one runs from the store, though its bundle is gone; upgrade switches, and what it widens must be granted
    by name.
    """
    home.drop(artifact=b"one")
    old = await home.armed(ID)
    home.drop(artifact=b"two", version="1.1.0", capabilities=["kv:read", "log:write", "audit:read"])
    view = await home.until_plugin(ID, lambda view: "candidate" in view)
    assert view["candidate"]["adds"] == ["audit:read"]
    assert (view["version"], view["available"], view["runtime"]["state"]) == ("1.0.0", True, "armed")
    assert old.alive
    answer = await home.ask("POST", f"{URL}/upgrade", {})
    assert (answer.status, answer["version"], answer["granted"]) == (200, "1.1.0", ["kv:read", "log:write"])
    assert "candidate" not in answer
    new = home.driven.of(ID)[-1]
    assert (old.alive, new.alive) == (True, True)  # the old one stands by while the new one is watched
    assert new.artifact_sha256 == answer["artifact_sha256"] != old.artifact_sha256
    again = await home.ask("POST", f"{URL}/upgrade", {})
    assert (again.status, again.code) == (409, "no_candidate")


async def test_downgrade_needs_explicit_consent(home):
    """Without it the answer is 409 version_downgrade."""
    home.drop(version="2.0.0")
    await home.armed(ID)
    home.drop(version="1.0.0")
    view = await home.until_plugin(ID, lambda view: "candidate" in view)
    assert view["candidate"]["needs_downgrade"]
    answer = await home.ask("POST", f"{URL}/upgrade", {})
    assert (answer.status, answer.code) == (409, "version_downgrade")
    answer = await home.ask("POST", f"{URL}/upgrade", {"allow_downgrade": True})
    assert (answer.status, answer["version"]) == (200, "1.0.0")


@pytest.mark.parametrize(
    ("twin", "code"),
    [
        ({"author": ACME}, "duplicate_id"),
        ({"author": ACME, "version": "9.0.0", "capabilities": ["kv:read", "task:run"]}, "duplicate_id"),
        ({"author": RIVAL}, "publisher_changed"),
    ],
    ids=["copy", "wider", "another publisher"],
)
async def test_second_bundle_of_an_id_does_not_stop_the_plugin(home, twin, code):
    """The second claimant of the id is refused; the plugin keeps running."""
    home.drop()
    instance = await home.armed(ID)
    home.drop("aaa-first-by-name", id=ID, **twin)
    assert await rejected(home, "aaa-first-by-name") == code
    view = await home.plugin(ID)
    assert (view["available"], view["runtime"]["state"], "candidate" in view) == (True, "armed", False)
    assert instance.alive
    assert home.driven.attempts[ID] == 1


async def test_two_bundles_of_a_new_id_are_both_refused(tmp_path):
    """Neither can be preferred; once one is removed, the other is the plugin."""
    (tmp_path / "plugins").mkdir()
    for name, version in (("one", "1.0.0"), ("two", "2.0.0")):
        bundles.drop(tmp_path / "plugins", name, author=ACME, id=ID, version=version)
    async with in_process.opened(tmp_path, author=ACME) as home:
        for name in ("one", "two"):
            assert await rejected(home, name) == "duplicate_id"
        assert (await home.ask("GET", URL)).status == 404
        (tmp_path / "plugins/one").rename(tmp_path / "away")
        await home.seen(ID)
        assert (await home.plugin(ID))["version"] == "2.0.0"


async def test_named_publisher_takes_over_id(home):
    """What was granted to the old one is not granted to the new one."""
    home.drop()
    await home.armed(ID)
    home.drop("theirs", author=RIVAL, id=ID, version="1.1.0")
    await rejected(home, "theirs")
    answer = await home.ask("POST", f"{URL}/upgrade", {"accept_publisher": "nobody.known"})
    assert (answer.status, answer.code) == (409, "no_candidate")
    answer = await home.ask("POST", f"{URL}/upgrade", {"accept_publisher": "rival"})
    assert (answer.status, answer["publisher"], answer["granted"]) == (200, "rival", [])
    assert await rejected(home, "demo") == "publisher_changed"


async def test_takeover_stops_old_publishers_code_first(home):
    """Otherwise it could access the new publisher's data. While the disk is slow, nothing starts it again."""
    home.drop()
    instance = await home.armed(ID)
    home.drop("theirs", author=RIVAL, id=ID, version="1.1.0")
    await rejected(home, "theirs")
    held_by = []

    async def stopping(grace_s):
        del grace_s
        held_by.append(home.app.api.lifecycle.records[ID].facts.publisher)
        home.app.api.lifecycle.registry.refresh(ID)  # as after a change on disk

    instance.stopping = stopping
    assert (await home.ask("POST", f"{URL}/upgrade", {"accept_publisher": "rival"})).status == 200
    assert held_by == ["acme"]
    assert [one.plugin.manifest.publisher for one in home.driven.of(ID)] == ["acme", "rival"]


async def test_named_publisher_takes_over_forgotten_id(home):
    """The tombstone keeps the pin; the operator names the new publisher."""
    bundle = home.drop()
    await home.armed(ID)
    await home.decide(ID, "disabled")
    bundle.path.rename(home.root / "away")
    await home.until_plugin(ID, lambda view: not view["available"])
    assert (await home.ask("POST", f"{URL}/forget", {})).status == 200
    assert (await home.ask("GET", URL)).status == 404
    home.drop("theirs", author=RIVAL, id=ID)
    assert await rejected(home, "theirs") == "publisher_changed"
    answer = await home.ask("POST", f"{URL}/upgrade", {"accept_publisher": "rival"})
    assert (answer.status, answer.get("publisher"), answer.get("status")) == (200, "rival", "verified"), answer


async def test_forget_keeps_version_floor(home):
    """Installing an older version still needs consent to the downgrade."""
    bundle = home.drop(version="2.0.0")
    await home.seen(ID)
    await home.decide(ID, "installed")
    bundle.path.rename(home.root / "away")
    await home.until_plugin(ID, lambda view: not view["available"])
    assert (await home.ask("POST", f"{URL}/forget", {}))["forgotten"]
    home.drop("again", id=ID, version="1.0.0")
    await home.seen(ID)
    answer = await home.decide(ID, "installed")
    assert (answer.status, answer.code) == (409, "version_downgrade")
    assert (await home.decide(ID, "installed", allow_downgrade=True)).status == 200


async def test_forget_of_active_plugin_is_refused(home):
    """It must be disabled first."""
    home.drop()
    await home.armed(ID)
    answer = await home.ask("POST", f"{URL}/forget", {})
    assert (answer.status, answer.code) == (409, "invalid_transition")
    assert home.driven.only(ID)


async def test_restart_starts_new_instance(home):
    """Only an active plugin can be restarted."""
    home.drop()
    await home.seen(ID)
    await home.decide(ID, "installed")
    refused = await home.ask("POST", f"{URL}/restart", {})
    assert (refused.code, refused["hint"]) == ("invalid_transition", f"latticectl activate {ID}")
    await home.decide(ID, "active")
    first = home.driven.only(ID)
    answer = await home.ask("POST", f"{URL}/restart", {})
    assert (answer.status, answer["runtime"]["state"]) == (200, "armed")
    assert home.driven.only(ID) is not first
    assert home.driven.most[ID] == 1


async def test_crash_loop_opens_breaker_until_operator_restarts():
    """Removing the bundle and putting it back does not close it."""
    toml = "[supervision]\nbackoff_base_s = 0.0\nbreaker_failures = 2\n"
    async with in_process.opened(toml=toml) as home:
        bundle = home.drop()
        await home.armed(ID)
        for attempt in (1, 2):
            await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
            home.driven.only(ID).crash()
            assert home.driven.attempts[ID] == attempt
        view = await home.plugin(ID)
        assert (view["runtime"]["state"], "next_retry_at" in view["runtime"]) == ("failed", False)
        before = bundles.tamper(bundle.artifact_path)
        await home.until_plugin(ID, lambda view: not view["available"])
        bundle.artifact_path.write_bytes(before)
        view = await home.until_plugin(ID, lambda view: view["available"])
        assert (view["runtime"]["state"], view["runtime"]["last_error"]["code"]) == ("failed", "breaker_open")
        assert home.driven.attempts[ID] == 2
        answer = await home.ask("POST", f"{URL}/restart", {})
        assert answer["runtime"]["state"] == "armed"


async def test_activation_checks_dependencies(home):
    """dependency_unmet leaves the status unchanged; once its dependency is active, it starts."""
    needs = [{"id": "acme.base", "version": "^1.0.0"}]
    home.drop("demo", v2=True, id=ID, dependencies=needs)
    home.drop("base", id="acme.base", version="1.2.0")
    await home.seen("acme.base")
    await home.seen(ID)
    await home.decide(ID, "installed")
    answer = await home.decide(ID, "active")
    assert (answer.status, answer.code) == (409, "dependency_unmet")
    assert (await home.plugin(ID))["status"] == "installed"
    await home.armed("acme.base")
    assert (await home.decide(ID, "active"))["runtime"]["state"] == "armed"


async def test_decisions_about_one_id_are_serialised(home):
    """Of twelve concurrent activations one succeeds, and eleven find the plugin active already."""
    home.drop()
    await home.seen(ID)
    await home.decide(ID, "installed")
    answers = await asyncio.gather(*(home.decide(ID, "active") for _ in range(12)))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 11
    answers = await asyncio.gather(*(home.decide(ID, status) for status in ("disabled", "active") * 8))
    assert home.driven.most[ID] == 1
    steps = changes(home)
    for (_, reached), (start, _) in itertools.pairwise(steps):
        assert reached == start, "two decisions saw the same record"


async def test_pair_changed_while_copied_is_not_installed(home, monkeypatch):
    """The bytes that run are the bytes that were verified: otherwise refused with the code, and audited."""
    bundle = home.drop()
    await home.seen(ID)
    catalog = home.app.api.catalog
    real = catalog.keep

    async def keep(name, verified):
        bundles.tamper(bundle.artifact_path)
        return await real(name, verified)

    monkeypatch.setattr(catalog, "keep", keep)
    answer = await home.decide(ID, "installed")
    assert (answer.status, answer.code) == (409, "digest_mismatch")
    assert (await home.plugin(ID))["status"] == "verified"
    assert [code for code, _ in refusals(home)] == ["digest_mismatch"]


async def test_revoked_key_stops_its_plugins(home):
    """They stop at once, without a restart; lifting it takes the policy file and the operator."""
    home.drop()
    await home.armed(ID)
    revoked = {"keys": [ACME.public]}
    home.trust.write_bytes(bundles.policy_bytes(ACME, revoked=revoked))
    await home.look()
    view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "failed")
    assert (view["available"], view["runtime"]["last_error"]["code"]) == (False, "key_revoked")
    assert [e["target"] for e in home.events(action="trust.revoked")] == [ACME.public]
    lift = {"kind": "key", "value": ACME.public}
    answer = await home.ask("POST", "/api/trust/lift", lift)
    assert (answer.status, answer.code) == (409, "still_revoked")
    home.trust.write_bytes(bundles.policy_bytes(ACME))
    await home.look()
    assert not (await home.plugin(ID))["available"], "the file forgets, the daemon does not"
    assert (await home.ask("POST", "/api/trust/lift", lift)).status == 200
    await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
    assert (await home.ask("POST", "/api/trust/lift", lift)).status == 404


async def test_invalid_policy_keeps_plugins_running(home):
    """Health reports the problem."""
    home.drop()
    instance = await home.armed(ID)
    home.trust.write_text("{")
    await home.look()
    health = await home.ask("GET", "/api/health")
    assert (health.status, health["problems"][0]["code"]) == (503, "policy_invalid")
    assert instance.alive
    home.trust.write_bytes(bundles.policy_bytes(ACME))
    await home.look()
    assert (await home.ask("GET", "/api/health")).status == 200


async def test_daemon_restart_restores_state(tmp_path):
    """Status, times, grants, kv; active plugins are verified and armed again."""
    async with in_process.opened(tmp_path, author=ACME) as home:
        home.drop(capabilities=["kv:read", "kv:write", "task:run"])
        instance = await home.armed(ID)
        await instance.call("kv.put", key="a", value="kept")
        await home.ask("PUT", f"{URL}/grants", {"trim": ["kv:read"]})
        home.drop("other", id="acme.off")
        await home.seen("acme.off")
        await home.decide("acme.off", "installed")
        before = {plugin_id: await home.plugin(plugin_id) for plugin_id in (ID, "acme.off")}
    async with in_process.opened(tmp_path, author=ACME) as home:
        after = {plugin_id: await home.plugin(plugin_id) for plugin_id in (ID, "acme.off")}
        for view in (*before.values(), *after.values()):
            del view["runtime"]
        assert after == before
        await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
        assert home.driven.attempts == {ID: 1}
        assert (await home.ask("GET", f"/api/kv/plugin:{ID}/a"))["raw"] == b"kept"
        assert (await home.ask("GET", "/api/audit/verify"))["ok"]


async def test_bundle_tampered_while_daemon_was_down_is_not_armed(tmp_path):
    """It is tampered in the plugin directory or in the store: active and failed, with the code, never started."""
    async with in_process.opened(tmp_path, author=ACME) as home:
        bundle = home.drop()
        other = home.drop("other", id="acme.stored")
        await home.armed(ID)
        await home.armed("acme.stored")
        (record,) = [r for r in home.app.api.ledger.read(rows.load_all) if r.id == "acme.stored"]
    bundles.tamper(bundle.artifact_path)
    other.path.rename(tmp_path / "aside")  # otherwise the stored pair would be replaced from it
    stored = tmp_path / "state/store" / record.facts.identity / "manifest.json"
    plain = json.loads(stored.read_bytes())
    stored.chmod(0o600)
    stored.write_text(json.dumps({**plain, "version": "6.6.6"}))
    async with in_process.opened(tmp_path, author=ACME) as home:
        for plugin_id, code in ((ID, "digest_mismatch"), ("acme.stored", "signature_invalid")):
            view = await home.until_plugin(plugin_id, lambda view: view["runtime"]["state"] == "failed")
            assert (view["status"], view["available"], view["runtime"]["last_error"]["code"]) == ("active", False, code)
        assert not home.driven.attempts


async def test_hosts_that_are_declared_and_not_granted_are_listed_before_the_install_too(home):
    home.drop(id=ID, v2=True, capabilities=["http:egress"], egress={"hosts": ["a.example:443", "b.example:443"]})
    await home.seen(ID)
    declared = ["a.example:443", "b.example:443"]
    assert (await home.ask("GET", f"{URL}/grants"))["withheld_hosts"] == declared
    # latticectl notes what the answer to a decision lists, with the command that grants it.
    foretold = await home.decide(ID, "installed", accept=["http:egress"], dry_run=True)
    assert foretold["withheld"] == ["host=a.example:443", "host=b.example:443"]
    installed = await home.decide(ID, "installed", accept=["http:egress", "host=a.example:443"])
    assert installed["withheld"] == ["host=b.example:443"]
    await home.ask("PUT", f"{URL}/grants", {"trim": ["host=a.example:443"]})
    assert (await home.ask("GET", f"{URL}/grants"))["withheld_hosts"] == declared
    found = await home.ask("PUT", f"{URL}/grants", {"grant": ["host=b.example:443"]})
    assert (found["hosts"], found["withheld_hosts"]) == (["b.example:443"], ["a.example:443"])
