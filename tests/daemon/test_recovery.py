"""A damaged ledger: the daemon refuses it, `--recover` makes a new one, which grants nothing more than before."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest

from tests.house import bundles, damage, faults, lives

pytestmark = pytest.mark.daemon


@pytest.fixture(scope="module")
def acme():
    return bundles.author("acme")


@pytest.fixture(scope="module")
def past(acme):
    with lives.lived(acme) as place:
        yield place


@pytest.fixture
def lived(place, past):
    """A place of its own with a past."""
    return lives.copy(past, place)


def restarted_refuses(place):
    ran = place.once()
    assert ran.returncode == 74, ran
    assert ran.stderr.startswith("latticed: ledger_damaged: "), ran.stderr
    assert ran.stderr.count("\n") == 1
    return ran.stderr


@pytest.mark.parametrize("kind", damage.AT_ONCE)
def test_a_damaged_ledger_is_refused_and_recovered(lived, kind):
    """One line and 74; `--recover` sets it aside, and what was trusted comes back, as verified, not looser."""
    damage.AT_ONCE[kind](lived.state)
    found = lived.state / "ledger.sqlite3"
    before = hashlib.sha256(found.read_bytes()).hexdigest() if found.exists() else ""
    complaint = restarted_refuses(lived)
    assert "--recover" in complaint
    assert (hashlib.sha256(found.read_bytes()).hexdigest() if found.exists() else "") == before
    ran = lived.once("--recover")
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    with lived.running() as daemon:
        record = daemon.plugin("acme.demo")
        assert (record["status"], record["available"], record["runtime"]["state"]) == ("verified", True, "stopped")
        first = daemon.events()[0]
        assert (first["seq"], first["action"]) == (1, "ledger.recovered")
        assert first["detail"]["verified"] == 1
        assert first["detail"]["sha256"] == before
        if before:
            assert (lived.state / first["detail"]["set_aside"]).is_file()
        assert daemon.get("/api/audit/verify").json()["ok"] is True
        assert "acme.bad@*" in daemon.get("/api/trust").json()["revoked"]["plugins"]
        assert daemon.activate("acme.demo")["granted"] == ["kv:read", "log:write"]
        assert daemon.stop() == 0


def test_revocations_and_floors_outlive_ledger_and_policy(lived, acme):
    """The policy no longer names the revocation, the directory has an older version: both still count."""
    damage.truncated(lived.state)
    lived.trust_us(acme)
    lived.drop("old", author=acme, id="acme.old", version="2.0.0")
    assert lived.once("--recover").returncode == 0
    with lived.running() as daemon:
        assert "acme.bad@*" in daemon.get("/api/trust").json()["revoked"]["plugins"]
        daemon.until(lambda: daemon.plugin("acme.old"), "acme.old")
        refused = daemon.set_status("installed", "acme.old")
        assert (refused.status, refused.json()["code"]) == (409, "version_downgrade")


def test_the_publisher_stays_pinned(lived, acme):
    """Somebody else who is trusted too cannot take the id of a lost record."""
    damage.gone(lived.state)
    other = bundles.author("other")
    lived.trust_us(acme, other)
    for path in (lived.plugins / "demo").iterdir():
        path.unlink()
    (lived.plugins / "demo").rmdir()
    lived.drop("theirs", author=other, id="acme.demo")
    lived.drop("theirs-too", author=other, id="acme.old")
    assert lived.once("--recover").returncode == 0
    with lived.running() as daemon:
        daemon.until_rejected("theirs", "publisher_changed")
        daemon.until_rejected("theirs-too", "publisher_changed")


def test_a_stored_pair_that_no_longer_verifies_does_not_come_back(lived, acme):
    """The store is judged by the policy of now; the id keeps its tombstone."""
    damage.header(lived.state)
    lived.trust_us(bundles.author("other"))
    ran = lived.once("--recover")
    assert ran.returncode == 0
    assert "verified, to be installed again: 0" in ran.stdout
    with lived.running() as daemon:
        assert daemon.get("/api/plugins").json() == []


def test_recover_leaves_an_intact_ledger_alone(lived):
    """--recover is for damage."""
    before = sorted(path.name for path in lived.state.iterdir())
    ran = lived.once("--recover")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("latticed: ledger_sound: ")
    assert ran.stderr.count("\n") == 1
    after = {path.name for path in lived.state.iterdir()} - {"ledger.sqlite3-wal", "ledger.sqlite3-shm"}
    assert after == set(before)
    with lived.running() as daemon:
        assert daemon.plugin("acme.demo")["status"] == "active"


def test_a_newer_ledger_is_not_damaged(lived):
    """Neither a start nor --recover touches what a later latticed wrote."""
    damage.newer(lived.state)
    for arguments in ((), ("--recover",)):
        ran = lived.once(*arguments)
        assert ran.returncode == 74
        assert ran.stderr.startswith("latticed: ledger_newer: ")


def test_a_foreign_trigger_in_the_ledger_is_damage(lived):
    """A trigger would run within latticed's statements, and latticed creates none."""
    damage.trigger(lived.state)
    assert lived.once("--recover").returncode == 0


def test_recover_needs_the_lock(lived):
    """Never under a running daemon."""
    with lived.running():
        ran = lived.once("--recover")
        assert (ran.returncode, ran.stderr.startswith("latticed: state_in_use: ")) == (75, True), ran


@pytest.mark.parametrize("harm", ["edited", "gone", "key"])
def test_without_genuine_floors_recover_needs_the_option(lived, harm):
    """Floors that are lost or not ours: 74 and what to do; with --without-floors it goes on and is on record."""
    damage.truncated(lived.state)
    floors = lived.state / "floors.json"
    match harm:
        case "edited":
            plain = json.loads(floors.read_bytes())
            floors.write_text(json.dumps({**plain, "masked": {}}))
        case "gone":
            floors.unlink()
        case _:
            damage.key_of_another_kind(lived.state)
    ran = lived.once("--recover")
    assert ran.returncode == 74
    assert ran.stderr.startswith("latticed: floors_invalid: ")
    assert "--without-floors" in ran.stderr
    assert (lived.state / "ledger.sqlite3").exists()
    assert lived.once("--recover", "--without-floors").returncode == 0
    assert json.loads(floors.read_bytes())["pins"]["acme.demo"][:2] == ["acme", True]
    with lived.running() as daemon:
        assert daemon.events()[0]["detail"]["without_floors"] is True
        assert daemon.plugin("acme.demo")["granted"].count("network:plan") == 0
        assert daemon.get("/api/audit/verify").json()["ok"] is True
    assert sorted(path.name.split(".damaged-")[0] for path in lived.state.glob("*.damaged-*"))


def test_genuine_floors_count_despite_without_floors(lived):
    """--without-floors is for floors that do not verify; it never overrides genuine ones."""
    damage.truncated(lived.state)
    assert lived.once("--recover", "--without-floors").returncode == 0
    with lived.running() as daemon:
        assert daemon.events()[0]["detail"]["without_floors"] is False
        assert "acme.bad@*" in daemon.get("/api/trust").json()["revoked"]["plugins"]


def test_an_interrupted_recovery_is_done_again(lived):
    """Killed between the two renames: a host key without a ledger is no new beginning, and --recover goes on."""
    damage.header(lived.state)
    (lived.state / "ledger.sqlite3").rename(lived.state / "ledger.sqlite3.damaged-before")
    (lived.state / "ledger.sqlite3.fresh").write_bytes(b"half of one")
    lived.own(lived.state / "ledger.sqlite3.fresh")
    restarted_refuses(lived)
    assert lived.once("--recover").returncode == 0
    with lived.running() as daemon:
        assert daemon.plugin("acme.demo")["status"] == "verified"


@pytest.mark.parametrize(
    "words",
    ["--without-floors", "--public-key x", "--recover --public-key x", "--recover --restore f", "--restore"],
)
def test_options_that_exclude_each_other_are_wrong_usage(place, words):
    """Exit status 2, and nothing is touched: least of all a daemon started by mistake."""
    ran = place.once(*words.split())
    assert (ran.returncode, list(place.state.iterdir())) == (2, []), ran


def test_recover_refuses_an_empty_state_directory(place):
    """An empty state directory is a new beginning, not damage."""
    ran = place.once("--recover")
    assert (ran.returncode, ran.stderr.startswith("latticed: not_found: ")) == (1, True), ran


@pytest.mark.root
def test_root_recovers_as_the_owner(lived):
    """Files that root made would be of no use to the daemon."""
    damage.truncated(lived.state)
    config = lived.home.parent / "root.toml"  # what root reads, only root may be able to change
    config.write_bytes(lived.config.read_bytes())
    command = [sys.executable, "-P", "-m", "latticed.daemon", "--config", str(config), "--recover"]
    ran = subprocess.run(command, env=lived.environment(), capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert {path.stat().st_uid for path in lived.state.iterdir()} == {lived.uid}
    with lived.running() as daemon:
        assert daemon.plugin("acme.demo")["status"] == "verified"


@pytest.mark.root
def test_a_stop_is_recorded_while_the_disk_is_full(place, acme):
    """From the reserve, at once, with its runtime event; a daemon that is killed and started there knows of it."""
    place.drop(author=acme)
    with faults.small_disk(place.state, kib=8 << 10, uid=place.uid), place.running() as daemon:
        daemon.activate()
        faults.fill(place.state / "ballast")
        for number in range(200):
            if daemon.ask("PUT", f"/api/kv/default/k{number}", b"x" * 60_000).status != 200:
                break
        faults.fill(place.state / "more")
        assert daemon.ask("PUT", "/api/kv/default/last", b"x").status == 503
        assert daemon.set_status("disabled").json()["runtime"]["state"] == "stopped"
        decided = daemon.events(action="plugin.status", target="acme.demo")[-1]
        assert decided["detail"]["to"] == "disabled"
        daemon.until(
            lambda: daemon.events(action="plugin.runtime", target="acme.demo")[-1]["detail"]["state"] == "stopped",
            "its runtime event",
        )
        assert daemon.ask("PUT", "/api/kv/default/last", b"x").status == 503
        daemon.kill()
        with place.running() as again:
            assert again.plugin()["status"] == "disabled"
            assert again.get("/api/audit/verify").json()["ok"] is True
            (place.state / "ballast").unlink()
            (place.state / "more").unlink()
            again.until(lambda: again.ask("PUT", "/api/kv/default/last", b"x").status == 200, "space to be used again")
