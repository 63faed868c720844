"""Changes on disk or in the trust policy take effect automatically, with a reason; reverting them reverts it."""

from __future__ import annotations

import base64
import json
import os
import signal

import pytest

from tests.house import bundles

pytestmark = pytest.mark.daemon


@pytest.fixture
def bundle(place, acme):
    return place.drop(author=acme)


@pytest.fixture
def active(bundle, place):
    """A daemon with acme.demo armed."""
    with place.running() as daemon:
        daemon.activate()
        yield daemon


def _stopped(daemon, code):
    """The record once it has failed with `code`: the decision is kept, the reason shown in list, info and audit."""
    record = daemon.until_state("failed", code=code)
    assert (record["status"], record["available"]) == ("active", False)
    assert record["runtime"]["last_error"]["message"]
    verdict = daemon.get("/api/plugins/by-id/acme.demo").json()["verdict"]
    assert (verdict["ok"], verdict["code"]) == (False, code)
    assert daemon.until(
        lambda: [one for one in daemon.events(target="acme.demo", action="plugin.runtime") if one["code"] == code],
        "the stop to be on record",
    )
    return record


def _armed_again(daemon):
    record = daemon.until_state("armed")
    assert (record["status"], record["available"]) == ("active", True)
    assert "last_error" not in record["runtime"]
    return record


def test_changed_artifact_stops_the_plugin_and_repairing_arms_it(active, bundle):
    """One bit is changed; with the same identity again the plugin is armed at once, without backoff or a command."""
    before = bundles.tamper(bundle.artifact_path)
    _stopped(active, "digest_mismatch")
    assert active.rejected() == {"demo": "digest_mismatch"}
    assert active.set_status("installed").status == 409
    bundle.artifact_path.write_bytes(before)
    _armed_again(active)
    assert active.rejected() == {}


def test_changed_manifest_stops_the_plugin_and_repairing_arms_it(active, bundle):
    """Its signature no longer verifies."""
    before = bundle.manifest_path.read_bytes()
    bundle.manifest_path.write_bytes(before.replace(b'"Demo"', b'"Dem0"'))
    _stopped(active, "signature_invalid")
    bundle.manifest_path.write_bytes(before)
    _armed_again(active)


def test_removed_bundle_stops_the_plugin_and_restoring_arms_it(active, bundle, place):
    bundle.path.rename(place.home / "aside")
    _stopped(active, "manifest_missing")
    (place.home / "aside").rename(bundle.path)
    _armed_again(active)


def test_plugin_of_a_renamed_bundle_keeps_running(active, bundle, place):
    """Id and identity count, not the directory's name; there is never a second record."""
    bundle.path.rename(place.plugins / "renamed")
    active.until(lambda: active.post("/api/plugins/verify", {"name": "renamed"}).json().get("ok"), "the new name")
    active.until(lambda: active.get("/api/plugins/by-id/acme.demo").json()["verdict"]["ok"], "the record to follow")
    _armed_again(active)
    assert len(active.get("/api/plugins").json()) == 1


def test_change_that_keeps_size_and_mtime_is_seen(active, bundle):
    """An attacker can restore size and mtime, but not ctime."""
    stamp = bundle.artifact_path.stat()
    before = bundles.tamper(bundle.artifact_path)
    os.utime(bundle.artifact_path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    _stopped(active, "digest_mismatch")
    bundle.artifact_path.write_bytes(before)
    _armed_again(active)


def test_change_through_a_hard_link_outside_is_seen(active, bundle, place):
    """inotify reports nothing: active bundles are checked every second; the repair is seen as well."""
    os.link(bundle.artifact_path, place.home / "outside")
    before = bundles.tamper(place.home / "outside")
    _stopped(active, "digest_mismatch")
    (place.home / "outside").write_bytes(before)
    _armed_again(active)


def test_repairing_does_not_arm_a_disabled_plugin(active, bundle):
    """A plugin whose bundle does not verify can be disabled."""
    before = bundles.tamper(bundle.artifact_path)
    _stopped(active, "digest_mismatch")
    assert active.set_status("disabled").json()["status"] == "disabled"
    assert active.set_status("active").code == "not_available"
    bundle.artifact_path.write_bytes(before)
    record = active.until(lambda: (one := active.plugin())["available"] and one, "the bundle to verify again")
    assert (record["status"], record["runtime"]["state"]) == ("disabled", "stopped")


@pytest.mark.parametrize("kind", ["key", "digest", "plugin"])
def test_revocation_stops_the_plugin_and_is_remembered(active, bundle, place, acme, kind):
    """It still counts when it is removed from the policy, also after a restart. Only an audited lift ends it."""
    value = {"key": acme.public, "digest": bundle.raw["digest_sha256"], "plugin": "acme.demo@*"}[kind]
    code = f"{kind}_revoked"
    place.trust_us(acme, revoked={f"{kind}s": [value]})
    _stopped(active, code)
    still = active.post("/api/trust/lift", {"kind": kind, "value": value})
    assert 400 <= still.status < 500, still  # the file still says so
    place.trust_us(acme)
    active.until(lambda: active.post("/api/trust/lift", {"kind": kind, "value": "x" * 8}).status == 404, "the new file")
    assert active.get("/api/trust").json()["revoked"][f"{kind}s"] == [value]
    assert active.plugin()["available"] is False
    active.stop()
    with place.running() as again:
        _stopped(again, code)
        assert again.events(action="trust.revoked", target=value)
        assert again.post("/api/trust/lift", {"kind": kind, "value": value}).status == 200
        _armed_again(again)
        lifted = again.events(action="trust.lifted")
        assert [(one["target"], one["decision"]) for one in lifted] == [(value, "allow")]
        assert again.post("/api/trust/lift", {"kind": kind, "value": value}).code == "not_found"


def test_key_revoked_in_another_spelling_is_revoked(active, place, acme):
    """The policy has it without padding and with white space around."""
    place.trust_us(acme, revoked={"keys": [f" {acme.public.rstrip('=')}\n"]})
    _stopped(active, "key_revoked")


@pytest.mark.parametrize("body", [{}, {"kind": "key"}, {"kind": "plugins", "value": "x"}, {"kind": 1, "value": 2}])
def test_trust_lift_with_invalid_body_is_bad_request(daemon, body):
    assert daemon.post("/api/trust/lift", body).code == "bad_request"


def test_kinds_of_revocations_that_openapi_names_are_those_that_can_be_lifted(daemon):
    kind = daemon.get("/openapi.json").json()["components"]["schemas"]["Lift"]["properties"]["kind"]
    assert set(kind["enum"]) == {"key", "digest", "plugin"}
    for one in kind["enum"]:
        assert daemon.post("/api/trust/lift", {"kind": one, "value": "x"}).code == "not_found"


def test_plugins_of_a_publisher_no_longer_trusted_are_stopped(active, place, acme):
    """They are armed again once the publisher is trusted again."""
    place.trust_us(bundles.author("other"))
    _stopped(active, "publisher_untrusted")
    place.trust_us(acme)
    _armed_again(active)


def test_plugin_of_a_key_removed_by_rotation_is_stopped(active, place, acme):
    """Stored pairs are judged again too."""
    place.trust_us(bundles.author("acme"))
    _stopped(active, "signature_invalid")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (None, "no such file"),
        (b"", "JSON"),
        (b"{}{}", "JSON"),
        (b'{"trusted_publishers": {"acme": "short"}}', "acme"),
        (b'{"trusted_publishers": {"acme": "' + base64.b64encode(bytes(32)) + b'"}}', "acme"),
        (b'{"trusted_publishers": {}, "surprise": 1}', "surprise"),
        (b'{"trusted_publishers": {}, "require_signature": "no"}', "require_signature"),
        (b'{"trusted_publishers": {"..": "x"}}', ".."),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_no_publisher_is_trusted_without_a_valid_policy_at_start(place, bundle, data, named):
    """Health is 503 and names file and fault; a valid file ends that automatically."""
    good = place.trust.read_bytes()
    place.trust.unlink()
    if data is not None:
        place.write(place.trust, data)
    with place.running() as daemon:
        health = daemon.get("/api/health")
        assert health.status == 503
        (problem,) = health.json()["problems"]
        assert problem["code"].startswith("policy_")
        assert named in problem["detail"], problem
        assert daemon.rejected() == {"demo": "publisher_untrusted"}
        assert daemon.get("/api/trust").json()["ok"] is False
        place.write(place.trust, good)
        daemon.until(daemon.plugin, "the bundle to verify")
        assert daemon.get("/api/health").status == 200


@pytest.mark.parametrize("how", ["bad", "missing", "writable"])
def test_invalid_policy_on_reload_keeps_the_old_one(active, place, how):
    """Plugins keep running; health is 503 until the file is valid again; the log names the fault."""
    good = place.trust.read_bytes()
    match how:
        case "bad":
            place.write(place.trust, b'{"trusted_publishers": 3}')
        case "missing":
            place.trust.unlink()
        case "writable":
            place.trust.chmod(0o666)
    active.until(lambda: active.get("/api/health").status == 503, "health to say so")
    assert active.get("/api/trust").json()["publishers"][0]["publisher"] == "acme"
    assert active.plugin()["runtime"]["state"] == "armed"
    assert active.logged("trust_policy_refused")
    place.write(place.trust, good)
    active.until(lambda: active.get("/api/health").status == 200, "health to be good again")
    assert active.plugin()["runtime"]["state"] == "armed"


def test_unsigned_bundles_run_only_without_require_signature(place):
    """They may have read and write risk only; host risk is always refused."""
    place.drop("plain", author=None, id="plain.demo", publisher=None)
    place.drop("risky", author=None, id="plain.risky", publisher=None, capabilities=["http:egress"])
    with place.running() as daemon:
        assert set(daemon.rejected()) == {"plain", "risky"}
        place.write(place.trust, json.dumps({"trusted_publishers": {}, "require_signature": False}).encode())
        daemon.until(lambda: daemon.plugin("plain.demo"), "the unsigned bundle to verify")
        record = daemon.activate("plain.demo")
        assert "publisher" not in record
        assert set(daemon.rejected()) == {"risky"}
        place.trust_us()
        daemon.until_state("failed", "plain.demo")


def test_slowly_copied_bundle_is_verified_once_complete(daemon, place, acme):
    """It comes in pieces with pauses between, the manifest first."""
    raw = bundles.signed(bundles.manifest_v1(), bundles.ARTIFACT, acme)
    path = bundles.write(place.plugins / "demo", raw, None)
    daemon.until_rejected("demo", "artifact_missing")
    with (path / "artifact").open("wb", buffering=0) as artifact:
        artifact.write(bundles.ARTIFACT[:5])
        daemon.until_rejected("demo", "digest_mismatch")
        artifact.write(bundles.ARTIFACT[5:])
    daemon.until(daemon.plugin, "the bundle to verify")
    assert daemon.rejected() == {}


def test_recreated_plugin_directory_is_watched_again(active, place, acme):
    """Plugins are stopped while it is gone, and armed when the same identity is there again."""
    place.plugins.rename(place.home / "old")
    _stopped(active, "manifest_missing")
    place.plugins.mkdir()
    place.own(place.plugins)
    bundles.write(place.plugins / "demo", json.loads((place.home / "old/demo/manifest.json").read_bytes()))
    _armed_again(active)
    bundle = place.drop("later", author=acme, id="acme.later")
    active.until(lambda: active.plugin("acme.later"), "new bundles to be seen in the new directory")
    bundles.tamper(bundle.artifact_path)
    active.until_rejected("later", "digest_mismatch")


@pytest.mark.root
def test_bundle_of_a_foreign_owner_is_refused(active, place, bundle):
    """Root, the daemon's user and the directory's owner are accepted."""
    os.chown(bundle.artifact_path, 65499, 65499)
    active.signal(signal.SIGHUP)
    _stopped(active, "foreign_owner")


def test_plugin_has_ended_when_latticectl_trust_revoke_returns(active, place, acme):
    """The policy file is edited with the caller's rights."""
    done = active.ctl("--config", str(place.config), "trust", "revoke", "--plugin", "acme.demo@1.0.0")
    assert (done.returncode, done.stderr) == (0, "stops: acme.demo 1.0.0 (plugin_revoked)\n"), done
    runtime = active.plugin()["runtime"]
    assert (runtime["state"], runtime["last_error"]["code"]) == ("failed", "plugin_revoked")
    _stopped(active, "plugin_revoked")
    assert json.loads(place.trust.read_bytes())["trusted_publishers"]["acme"]


def test_restart_is_not_advised_while_the_bundle_is_refused(active, place, acme):
    """It would be refused for that."""
    place.trust_us(acme, revoked={"plugins": ["acme.demo@*"]})
    _stopped(active, "plugin_revoked")
    said = active.ctl("activate", "acme.demo")
    assert (said.returncode, "error: acme.demo could not be armed: plugin_revoked" in said.stderr) == (1, True), said
    assert said.stderr.endswith("hint: latticectl explain acme.demo says what to do\n"), said
    refused = active.ctl("restart", "acme.demo")
    assert (refused.returncode, refused.stderr.splitlines()[1:]) == (1, ["hint: latticectl explain acme.demo"]), refused


@pytest.mark.parametrize("bounds", [("--max-risk", "read"), ("--ids", "acme.other")])
def test_plugin_has_ended_when_latticectl_trust_add_returns_that_bounds_its_publisher(place, acme, bounds):
    place.drop(author=acme, v2=True, capabilities=["kv:write"])
    with place.running() as daemon:
        daemon.activate()
        done = daemon.ctl("--config", str(place.config), "trust", "add", "acme", acme.public, *bounds)
        assert (done.returncode, done.stdout) == (0, "trusted: acme\n"), done
        assert done.stderr.startswith("stops: acme.demo"), done
        assert daemon.plugin()["runtime"]["state"] == "failed"
