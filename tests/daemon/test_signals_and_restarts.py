"""Signals, crashes and recovery of the real process: decisions survive, plugins are verified again at each start."""

from __future__ import annotations

import signal
import sqlite3

import pytest

from tests.house import bundles, raw_http

pytestmark = pytest.mark.daemon

TIMES = ("verified_at", "installed_at", "activated_at", "created_at", "updated_at")


def _verified_chain(daemon):
    report = daemon.get("/api/audit/verify").json()
    assert report["ok"] is True, report
    return report


def test_sigterm_stops_the_daemon_cleanly(place, acme):
    """STOPPING=1, exit status 0, the socket is removed, and the last audit event is under a signed head."""
    place.drop(author=acme)
    with place.running() as daemon:
        daemon.activate()
        assert daemon.stop() == 0
        daemon.expect_notice("STOPPING=1")
        assert not place.socket.exists()
        assert len(daemon.log("daemon_stopped")) == 1
        assert [entry for entry in daemon.log() if entry["level"] in {"error", "critical"}] == []
    with sqlite3.connect(place.state / "ledger.sqlite3") as ledger:
        (last,) = ledger.execute("SELECT max(seq) FROM audit").fetchone()
    ledger.close()
    signed = daemon.log("audit_head_signed")
    assert signed[-1]["seq"] == last
    with place.running() as again:
        assert _verified_chain(again)["signed_seq"] >= last


def test_request_in_progress_is_answered_after_sigterm(place, acme):
    """Its body arrives while the daemon is stopping."""
    with place.running() as daemon, raw_http.connected(place.socket) as sock:
        body = b'{"name": "nothing"}'
        whole = raw_http.request("POST", "/api/plugins/verify", body)
        sock.sendall(whole[:-5])
        daemon.until(lambda: daemon.get("/api/health").status == 200, "the half request to be taken in")
        daemon.signal(signal.SIGTERM)
        daemon.expect_notice("STOPPING=1")
        sock.sendall(whole[-5:])
        assert raw_http.receive(sock).status == 404
        assert daemon.ended() == 0


def test_second_sigterm_forces_the_exit(place):
    """A stalled client delays the first; the second ends the daemon at once, with an exit status other than 0."""
    with place.running() as daemon, raw_http.connected(place.socket) as sock:
        sock.sendall(raw_http.request("POST", "/api/plugins/verify", b'{"name": "nothing"}')[:-5])
        daemon.until(lambda: daemon.get("/api/health").status == 200, "the half request to be taken in")
        daemon.signal(signal.SIGTERM)
        daemon.expect_notice("STOPPING=1")
        daemon.signal(signal.SIGTERM)
        assert daemon.ended() == 1
        assert len(daemon.log("daemon_forced")) == 1


def test_sigterm_with_idle_clients_does_not_wait_for_them(place):
    """Keep-alive connections are closed, not waited for."""
    with place.running() as daemon:
        idle = [raw_http.connected(place.socket) for _ in range(10)]
        try:
            for sock in idle[:5]:
                sock.sendall(raw_http.GOOD)
                assert raw_http.receive(sock).status == 200
            assert daemon.stop() == 0
        finally:
            for sock in idle:
                sock.close()


def test_sighup_rereads_policy_settings_and_bundles(place, acme):
    """RELOADING=1, then READY=1; the new publisher is trusted, and the new scopes apply."""
    other = bundles.author("other")
    place.drop("other", author=other, id="other.demo")
    with place.running() as daemon:
        assert daemon.rejected() == {"other": "publisher_untrusted"}
        place.trust_us(acme, other)
        place.set('[log]\nlevel = "debug"')
        daemon.signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in daemon.expect_notice("RELOADING=1")
        daemon.expect_notice("READY=1")
        daemon.until(lambda: daemon.plugin("other.demo"), "the newly trusted bundle")
        assert daemon.rejected() == {}


def test_bad_settings_on_reload_keep_the_old_ones(place):
    """Health reports them until they are fixed."""
    with place.running() as daemon:
        place.set("[watch]\nno_such_key = 1")
        daemon.signal(signal.SIGHUP)
        daemon.expect_notice("RELOADING=1")
        daemon.expect_notice("READY=1")
        health = daemon.get("/api/health")
        assert (health.status, health.json()["problems"][0]["code"]) == (503, "settings_invalid")
        place.set()
        daemon.until(lambda: daemon.get("/api/health").status == 200, "mended settings to be read without a word")


def test_kill_9_loses_no_decision(place, acme):
    """Active plugins are armed again, disabled ones not; times and kv are unchanged; the chain verifies."""
    for name in ("active", "disabled", "installed", "verified"):
        place.drop(name, author=acme, id=f"acme.{name}")
    with place.running() as daemon:
        daemon.activate("acme.active")
        daemon.activate("acme.disabled")
        daemon.set_status("disabled", "acme.disabled")
        daemon.set_status("installed", "acme.installed")
        daemon.ask("PUT", "/api/kv/default/key", b"value")
        before = {one["id"]: one for one in daemon.get("/api/plugins").json()}
        daemon.kill()
    with place.running() as daemon:
        daemon.until_state("armed", "acme.active")
        after = {one["id"]: one for one in daemon.get("/api/plugins").json()}
        for plugin_id, record in before.items():
            assert after[plugin_id]["status"] == record["status"]
            assert [after[plugin_id].get(name) for name in TIMES] == [record.get(name) for name in TIMES]
            assert after[plugin_id]["available"] is True
        assert after["acme.disabled"]["disabled_at"] == before["acme.disabled"]["disabled_at"]
        assert after["acme.disabled"]["runtime"]["state"] == "stopped"
        assert daemon.get("/api/kv/default/key").body == b"value"
        _verified_chain(daemon)


def test_decision_is_on_disk_before_it_is_answered(place, acme):
    """The daemon is killed right after the answer, repeatedly: the decision is still there."""
    place.drop(author=acme)
    wanted = ("installed", "active", "disabled", "active")
    for status in wanted:
        with place.running() as daemon:
            daemon.until(daemon.plugin, "the bundle")
            assert daemon.set_status(status).status == 200
            daemon.kill()
    with place.running() as daemon:
        assert daemon.plugin()["status"] == "active"
        decided = daemon.events(action="plugin.status", decision="allow")
        assert [one["detail"]["to"] for one in decided] == list(wanted)
        _verified_chain(daemon)


def test_changes_made_while_stopped_are_judged_at_start(place, acme):
    """A plugin is not armed if its bundle was tampered with (with a code) or removed, and armed if it was repaired."""
    tampered = place.drop("tampered", author=acme, id="acme.tampered")
    gone = place.drop("gone", author=acme, id="acme.gone")
    with place.running() as daemon:
        daemon.activate("acme.tampered")
        daemon.activate("acme.gone")
        daemon.kill()
    before = bundles.tamper(tampered.artifact_path)
    gone.path.rename(place.home / "aside")
    with place.running() as daemon:
        record = daemon.until_state("failed", "acme.tampered", code="digest_mismatch")
        assert (record["status"], record["available"]) == ("active", False)
        daemon.until_state("failed", "acme.gone", code="manifest_missing")
        tampered.artifact_path.write_bytes(before)
        (place.home / "aside").rename(gone.path)
        daemon.until_state("armed", "acme.tampered")
        daemon.until_state("armed", "acme.gone")


@pytest.mark.parametrize("part", ["artifact", "manifest.json", "whole"])
@pytest.mark.parametrize("bundle", ["intact", "gone"])
def test_damaged_stored_pair_is_never_run(place, acme, part, bundle):
    """It is altered while the daemon is down: it is restored from the same bundle, or not run."""
    dropped = place.drop(author=acme)
    with place.running() as daemon:
        daemon.activate()
        daemon.stop()
    (pair,) = (place.state / "store").iterdir()
    good = {file.name: file.read_bytes() for file in pair.iterdir()}
    pair.chmod(0o700)
    if part == "whole":
        for file in pair.iterdir():
            file.unlink()
        pair.rmdir()
    else:
        (pair / part).chmod(0o600)
        bundles.tamper(pair / part, offset=5)
    if bundle == "gone":
        dropped.path.rename(place.home / "aside")
    with place.running() as daemon:
        if bundle == "intact":
            daemon.until_state("armed")
            assert {file.name: file.read_bytes() for file in pair.iterdir()} == good
            assert [event["target"] for event in daemon.events(action="plugin.mended")] == ["acme.demo"]
            return
        record = daemon.until_state("failed")
        assert (record["status"], record["available"]) == ("active", False)
        assert record["runtime"]["last_error"]["code"]
        assert daemon.post("/api/plugins/by-id/acme.demo/restart").code == "not_available"


def test_suspended_daemon_catches_up_after_sigcont(place, acme):
    """It gets SIGSTOP while bundles are added and removed; afterwards it shows what is on disk."""
    place.drop("stays", author=acme, id="acme.stays")
    leaves = place.drop("leaves", author=acme, id="acme.leaves")
    with place.running() as daemon:
        daemon.until(lambda: daemon.plugin("acme.leaves"), "both bundles")
        daemon.signal(signal.SIGSTOP)
        leaves.path.rename(place.home / "aside")
        place.drop("comes", author=acme, id="acme.comes")
        daemon.signal(signal.SIGCONT)
        daemon.until(lambda: daemon.plugin("acme.comes"), "the new bundle")
        daemon.until(lambda: not daemon.plugin("acme.leaves")["available"], "the old one to be gone")
        assert daemon.plugin("acme.stays")["available"] is True


def test_sigterm_during_a_burst_of_bundles_ends_the_daemon(place, acme):
    """Hundreds of bundles arrive meanwhile: exit status 0, and the next start sees all of them."""
    first = bundles.signed(bundles.manifest_v1(id="acme.burst-0"), bundles.ARTIFACT, acme)
    bundles.write(place.plugins / "burst-0", first)
    with place.running() as daemon:
        for number in range(1, 300):
            place.drop(f"burst-{number}", author=acme, id=f"acme.burst-{number}")
            if number == 150:
                daemon.signal(signal.SIGTERM)
        assert daemon.ended() == 0
    with place.running() as again:
        assert len(again.get("/api/plugins").json()) == 300
        _verified_chain(again)
