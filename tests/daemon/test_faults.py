"""Full, broken and read-only disks under the real process.

On every write path: a named error, nothing acknowledged is lost, nothing is half done, recovery is automatic once the
fault is over; and stopping works throughout.
"""

from __future__ import annotations

import errno
import json

import pytest

from tests.house import bundles, faults, long

pytestmark = pytest.mark.daemon

named = pytest.mark.parametrize("error", faults.DISK_ERRORS, ids=errno.errorcode.get)


def _recorded(daemon, plugin_id, status):
    """Whether the decision is in the chain."""
    found = daemon.events(action="plugin.status", target=plugin_id, decision="allow")
    return bool(found) and found[-1]["detail"]["to"] == status


def _ledger(place):
    return place.state / "ledger.sqlite3"


def _refused(answer, *codes):
    """A problem document of one of `codes`: 503, as a later request may succeed."""
    assert (answer.status, answer.code in codes) == (503, True), answer
    assert answer.json()["detail"]


# The ledger.


@named
@pytest.mark.parametrize("halves", [True, *long.only(False)], ids=["halves", "whole"][: 1 + long.LONG])
def test_failed_ledger_write_is_503_ledger_unavailable(place, acme, sick, error, halves):
    """The old value stays; the next write after the fault succeeds, and the chain verifies."""
    with place.running() as daemon:
        assert faults.kv(daemon, "key", b"old").status == 200
        with sick.failing(error, faults.WRITES, below=_ledger(place), halves=halves):
            for _ in range(3):
                _refused(faults.kv(daemon, "key", b"new"), "ledger_unavailable")
            _refused(daemon.ask("DELETE", "/api/kv/default/key"), "ledger_unavailable")
            assert faults.kv(daemon, "key").body == b"old"
            assert daemon.get("/api/plugins").status == 200
        assert faults.kv(daemon, "key").body == b"old"
        assert faults.kv(daemon, "key", b"new").status == 200
        daemon.kill()
    with place.running() as again:
        assert faults.kv(again, "key").body == b"new"
        faults.chain_holds(again)


@named
def test_disk_faults_refuse_decisions_but_not_stopping(place, acme, sick, error):
    """Activate, grant and restart are refused and change nothing. Disable, trim and tamper-stop act at once and are
    recorded later.
    """
    for name in ("installed", "active", "tampered"):
        place.drop(name, author=acme, id=f"acme.{name}")
    with place.running() as daemon:
        daemon.activate("acme.active")
        daemon.activate("acme.tampered")
        assert daemon.set_status("installed", "acme.installed").status == 200
        before = daemon.plugin("acme.installed")
        with sick.failing(error, faults.WRITES, below=_ledger(place)):
            _refused(daemon.set_status("active", "acme.installed"), "ledger_unavailable")
            grants = "/api/plugins/by-id/acme.installed/grants"
            _refused(daemon.ask("PUT", grants, {"grant": ["kv:read"]}), "ledger_unavailable")
            _refused(daemon.post("/api/plugins/by-id/acme.active/restart"), "audit_unavailable", "ledger_unavailable")
            assert daemon.plugin("acme.installed") == before
            assert daemon.plugin("acme.active")["runtime"]["state"] == "armed"

            trimmed = daemon.ask("PUT", grants.replace("installed", "active"), {"trim": ["kv:read"]})
            assert (trimmed.status, trimmed.json()["granted"]) == (200, ["log:write"])
            disabled = daemon.set_status("disabled", "acme.active")
            assert (disabled.status, disabled.json()["runtime"]["state"]) == (200, "stopped")
            bundles.tamper(place.plugins / "tampered" / "artifact")
            daemon.until_state("failed", "acme.tampered", code="digest_mismatch")
        daemon.until(lambda: _recorded(daemon, "acme.active", "disabled"), "the stop to be recorded")
        assert daemon.set_status("active", "acme.installed").status == 200
        daemon.until(lambda: daemon.get("/api/health").status == 200, "health to be good again")
        daemon.kill()
    with place.running() as again:
        states = {one["id"]: one["status"] for one in again.get("/api/plugins").json()}
        assert states == {"acme.installed": "active", "acme.active": "disabled", "acme.tampered": "active"}
        assert again.plugin("acme.active")["runtime"]["state"] == "stopped"
        assert again.plugin("acme.active")["granted"] == ["log:write"]
        assert again.plugin("acme.installed")["granted"] == ["kv:read", "log:write"]
        faults.chain_holds(again)


def test_bundle_changes_during_a_disk_fault_are_recorded_later(place, acme, sick):
    """New bundles are shown although they cannot be recorded, health says so, and all are recorded in the end."""
    with place.running() as daemon:
        with sick.failing(errno.EIO, faults.WRITES, below=_ledger(place)):
            for number in range(5):
                place.drop(f"p{number}", author=acme, id=f"acme.p{number}")
            daemon.until(lambda: len(daemon.get("/api/plugins").json()) == 5, "the bundles to be shown")
            health = daemon.until(lambda: faults.health_with(daemon, "ledger_unavailable"), "health to say so")
            assert health.status == 503
        daemon.until(lambda: daemon.get("/api/health").status == 200, "health to be good again")
        daemon.kill()
    for number in range(5):
        (place.plugins / f"p{number}").rename(place.home / f"gone{number}")
    with place.running() as again:
        assert {one["id"] for one in again.get("/api/plugins").json()} == {f"acme.p{number}" for number in range(5)}


# The store.


@named
def test_failed_store_write_leaves_the_plugin_not_installed(place, acme, sick, error):
    """503 store_unavailable whichever step fails; no partial files; later it can be installed."""
    place.drop(author=acme)
    store = place.state / "store"
    with place.running() as daemon:
        daemon.until(daemon.plugin, "the bundle")
        for step in (faults.MKDIR, faults.OPEN_WRITE, faults.WRITE, faults.SYNC, faults.RENAME):
            with sick.failing(error, step, below=store):
                _refused(daemon.set_status("installed"), "store_unavailable")
                assert daemon.plugin()["status"] == "verified"
        assert [path.name for path in store.glob(".tmp-*")] == []
        assert daemon.activate()["status"] == "active"
        assert len(list(store.iterdir())) == 1
        faults.chain_holds(daemon)


def test_half_written_pairs_are_removed_later(place, acme, sick):
    """If removing them fails too, a later cleanup removes them."""
    place.drop(author=acme)
    store = place.state / "store"
    with place.running() as daemon:
        daemon.until(daemon.plugin, "the bundle")
        with sick.failing(errno.EIO, faults.RENAME | faults.UNLINK, below=store):
            _refused(daemon.set_status("installed"), "store_unavailable")
        assert [path.name for path in store.iterdir()] != []
        daemon.activate()
        daemon.until(lambda: len(list(store.iterdir())) == 1, "the remains to be gone")


def test_unreadable_stored_pair_is_retried(place, acme, sick):
    """The plugin is not armed during the disk fault, but automatically afterwards; the clock may jump meanwhile."""
    place.set("[supervision]\nbackoff_base_s = 0.2\nbackoff_ceiling_s = 0.5\nbreaker_failures = 1000")
    place.drop(author=acme)
    with place.running() as daemon:
        daemon.activate()
        with sick.failing(errno.EIO, faults.OPEN_READ, below=place.state / "store"):
            assert daemon.post("/api/plugins/by-id/acme.demo/restart").status == 200
            record = daemon.until_state("failed", code="unreadable")
            assert record["runtime"]["next_retry_at"]
            sick.shift_clock(-5 * 365 * 86_400)
        daemon.until_state("armed")


# Floors and revocations, which are mirrored outside the ledger.


@named
def test_failed_write_of_the_floors_file_is_retried(place, acme, sick, error):
    """A decision does not depend on it; it is written automatically later."""
    place.drop(author=acme, version="3.2.1")
    floors = place.state / "floors.json"
    with place.running() as daemon:
        with sick.failing(error, faults.WRITES, below=place.state / ".floors.json"):
            daemon.activate()
            daemon.until(lambda: daemon.log("floors_not_written"), "the failure to be logged")
        daemon.until(
            lambda: floors.exists() and json.loads(floors.read_bytes())["versions"] == {"acme.demo": "3.2.1"},
            "the floors to be written",
        )


def test_revocation_takes_effect_while_it_cannot_be_recorded(place, acme, sick):
    """The plugin stops at once; the revocation is recorded later, even if the policy no longer has it."""
    place.drop(author=acme, version="1.0.0")
    with place.running() as daemon:
        daemon.activate()
        with sick.failing(errno.ENOSPC, faults.WRITES, below=place.state):
            place.trust_us(acme, revoked={"keys": [], "digests": [], "plugins": ["acme.demo@*"]})
            daemon.until_state("failed", code="plugin_revoked")
        daemon.until(lambda: daemon.events(action="trust.revoked"), "the revocation to be recorded")
        place.trust_us(acme)
        daemon.until(lambda: len(daemon.log("trust_policy_loaded")) >= 2, "the new policy")
        assert daemon.plugin()["available"] is False
        daemon.kill()
    with place.running() as again:
        assert again.plugin()["available"] is False


# A disk that is really full.


@pytest.mark.root
def test_full_disk_refuses_decisions_and_recovers(place, acme):
    """The disk has not one free byte below the state directory: decisions are refused with a code, stopping works."""
    for name in ("one", "two", "three"):
        place.drop(name, author=acme, id=f"acme.{name}")
    with faults.small_disk(place.state, kib=6 << 10, uid=place.uid), place.running() as daemon:
        daemon.activate("acme.one")
        daemon.activate("acme.two")
        assert faults.kv(daemon, "key", b"old").status == 200
        ballast = place.state / "ballast"
        faults.fill(ballast)
        big = b"x" * 60_000
        answers = [faults.kv(daemon, f"key{number}", big) for number in range(80)]
        _refused(answers[-1], "ledger_unavailable")
        faults.fill(place.state / "more")  # what a log, or a reserve, gave back
        _refused(daemon.set_status("installed", "acme.three"), "store_unavailable", "ledger_unavailable")
        health = daemon.get("/api/health")
        assert (health.status, health.json()["status"]) == (503, "degraded")
        assert "ledger_unavailable" in [one["code"] for one in health.json()["problems"]]
        assert daemon.get("/api/status").json()["state"] == "degraded"
        assert daemon.set_status("disabled", "acme.one").json()["runtime"]["state"] == "stopped"
        bundles.tamper(place.plugins / "two" / "artifact")
        daemon.until_state("failed", "acme.two", code="digest_mismatch")
        assert faults.kv(daemon, "key").body == b"old"
        ballast.unlink()
        (place.state / "more").unlink()
        daemon.until(lambda: _recorded(daemon, "acme.one", "disabled"), "the stop to be recorded")
        daemon.until(lambda: daemon.set_status("installed", "acme.three").status in {200, 409}, "deciding to work")
        daemon.until(lambda: daemon.get("/api/health").status == 200, "health to be good again")
        daemon.kill()
        with place.running() as again:
            kept = [faults.kv(again, f"key{number}").status for number in range(80)]
            assert kept == [200 if answer.status == 200 else 404 for answer in answers]
            assert again.plugin("acme.one")["status"] == "disabled"
            assert again.plugin("acme.three")["status"] == "installed"
            faults.chain_holds(again)


def test_watchdog_is_fed_whatever_the_clock_is_set_to(place, sick):
    """systemd counts by CLOCK_MONOTONIC (sd_watchdog_enabled(3)), and so does what feeds it."""
    place.env["WATCHDOG_USEC"] = "1000000"
    with place.running() as daemon:
        for seconds in (-86_400, 365 * 86_400, 0):
            sick.shift_clock(seconds)
            # One may have been sent before the clock was set.
            for _ in range(3):
                daemon.expect_notice("WATCHDOG=1")
