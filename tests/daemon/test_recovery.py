"""A damaged ledger: the daemon refuses it, `--recover` makes a new one, which grants nothing more than before."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys

import pytest

from latticed.ledger import migrations
from tests.house import bundles, damage, faults, older_ledgers, used_states

pytestmark = pytest.mark.daemon


@pytest.fixture(scope="module")
def acme():
    return bundles.author("acme")


@pytest.fixture(scope="module")
def past(acme):
    with used_states.used(acme) as place:
        yield place


@pytest.fixture
def used(place, past):
    """A copy of the used place for each test."""
    return used_states.copy(past, place)


def restarted_refuses(place):
    ran = place.once()
    assert ran.returncode == 74, ran
    assert ran.stderr.startswith("latticed: ledger_damaged: "), ran.stderr
    assert ran.stderr.count("\n") == 1
    return ran.stderr


@pytest.mark.parametrize("kind", damage.AT_ONCE)
def test_damaged_ledger_is_refused_and_recovered(used, kind):
    """One line and exit 74; `--recover` sets it aside, and its plugins are back as verified, with no looser grants."""
    damage.AT_ONCE[kind](used.state)
    found = used.state / "ledger.sqlite3"
    before = hashlib.sha256(found.read_bytes()).hexdigest() if found.exists() else ""
    complaint = restarted_refuses(used)
    assert "--recover" in complaint
    assert (hashlib.sha256(found.read_bytes()).hexdigest() if found.exists() else "") == before
    ran = used.once("--recover")
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    with used.running() as daemon:
        record = daemon.plugin("acme.demo")
        assert (record["status"], record["available"], record["runtime"]["state"]) == ("verified", True, "stopped")
        first = daemon.events()[0]
        assert (first["seq"], first["action"]) == (1, "ledger.recovered")
        assert first["detail"]["verified"] == 1
        assert first["detail"]["sha256"] == before
        if before:
            assert (used.state / first["detail"]["set_aside"]).is_file()
        assert daemon.get("/api/audit/verify").json()["ok"] is True
        assert "acme.bad@*" in daemon.get("/api/trust").json()["revoked"]["plugins"]
        assert daemon.activate("acme.demo")["granted"] == ["kv:read", "log:write"]
        assert daemon.stop() == 0


def test_revocations_and_floors_survive_loss_of_ledger_and_policy(used, acme):
    """The policy no longer has the revocation, the directory has an older version: both still count."""
    damage.truncated(used.state)
    used.trust_us(acme)
    used.drop("old", author=acme, id="acme.old", version="2.0.0")
    assert used.once("--recover").returncode == 0
    with used.running() as daemon:
        assert "acme.bad@*" in daemon.get("/api/trust").json()["revoked"]["plugins"]
        daemon.until(lambda: daemon.plugin("acme.old"), "acme.old")
        refused = daemon.set_status("installed", "acme.old")
        assert (refused.status, refused.json()["code"]) == (409, "version_downgrade")


def test_publisher_stays_pinned_after_recovery(used, acme):
    """Another trusted publisher cannot take the id of a lost record."""
    damage.gone(used.state)
    other = bundles.author("other")
    used.trust_us(acme, other)
    for path in (used.plugins / "demo").iterdir():
        path.unlink()
    (used.plugins / "demo").rmdir()
    used.drop("theirs", author=other, id="acme.demo")
    used.drop("theirs-too", author=other, id="acme.old")
    assert used.once("--recover").returncode == 0
    with used.running() as daemon:
        daemon.until_rejected("theirs", "publisher_changed")
        daemon.until_rejected("theirs-too", "publisher_changed")


def test_stored_pair_that_no_longer_verifies_is_not_recovered(used, acme):
    """The present policy counts; the id keeps its tombstone."""
    damage.header(used.state)
    used.trust_us(bundles.author("other"))
    ran = used.once("--recover")
    assert ran.returncode == 0
    assert "verified, to be installed again: 0" in ran.stdout
    with used.running() as daemon:
        assert daemon.get("/api/plugins").json() == []


def test_recover_refuses_an_intact_ledger(used):
    before = sorted(path.name for path in used.state.iterdir())
    ran = used.once("--recover")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("latticed: ledger_sound: ")
    assert ran.stderr.count("\n") == 1
    after = {path.name for path in used.state.iterdir()} - {"ledger.sqlite3-wal", "ledger.sqlite3-shm"}
    assert after == set(before)
    with used.running() as daemon:
        assert daemon.plugin("acme.demo")["status"] == "active"


def test_recover_refuses_an_intact_ledger_of_an_older_version(used):
    """As after an upgrade of the package, before the first start."""
    older_ledgers.rewrite(used.state / "ledger.sqlite3", len(migrations.MIGRATIONS) - 1)
    ran = used.once("--recover")
    assert (ran.returncode, ran.stdout) == (1, "")
    assert ran.stderr.startswith("latticed: ledger_sound: ")
    with used.running() as daemon:
        assert daemon.plugin("acme.demo")["status"] == "active"


def test_damaged_ledger_of_an_older_version_is_recovered_with_what_was_masked(used):
    """What can be read of it counts, also where the floors are lost."""
    older_ledgers.rewrite(used.state / "ledger.sqlite3", len(migrations.MIGRATIONS) - 1)
    damage.trigger(used.state)
    (used.state / "floors.json").unlink()
    assert used.once("--recover", "--without-floors").returncode == 0
    with used.running() as daemon:
        record = daemon.activate("acme.demo", accept=["network:plan"])
        assert record["granted"] == ["kv:read", "log:write", "network:plan"]


def test_ledger_of_a_newer_version_is_not_treated_as_damaged(used):
    """Neither a start nor --recover changes it."""
    damage.newer(used.state)
    for arguments in ((), ("--recover",)):
        ran = used.once(*arguments)
        assert ran.returncode == 74
        assert ran.stderr.startswith("latticed: ledger_newer: ")


def test_ledger_with_a_foreign_trigger_is_damaged(used):
    """It would run within latticed's statements, and latticed creates none."""
    damage.trigger(used.state)
    assert used.once("--recover").returncode == 0


def test_recover_under_a_running_daemon_is_refused(used):
    with used.running():
        ran = used.once("--recover")
        assert (ran.returncode, ran.stderr.startswith("latticed: state_in_use: ")) == (75, True), ran


@pytest.mark.parametrize("harm", ["edited", "gone", "key"])
def test_recover_without_genuine_floors_needs_the_option(used, harm):
    """They are missing or of another key: exit 74 with what to do; --without-floors continues, and is audited."""
    damage.truncated(used.state)
    floors = used.state / "floors.json"
    match harm:
        case "edited":
            plain = json.loads(floors.read_bytes())
            floors.write_text(json.dumps({**plain, "masked": {}}))
        case "gone":
            floors.unlink()
        case _:
            damage.key_of_another_kind(used.state)
    ran = used.once("--recover")
    assert ran.returncode == 74
    assert ran.stderr.startswith("latticed: floors_invalid: ")
    assert "--without-floors" in ran.stderr
    assert (used.state / "ledger.sqlite3").exists()
    assert used.once("--recover", "--without-floors").returncode == 0
    assert json.loads(floors.read_bytes())["pins"]["acme.demo"][:2] == ["acme", True]
    with used.running() as daemon:
        assert daemon.events()[0]["detail"]["without_floors"] is True
        assert daemon.plugin("acme.demo")["granted"].count("network:plan") == 0
        assert daemon.get("/api/audit/verify").json()["ok"] is True
    assert sorted(path.name.split(".damaged-")[0] for path in used.state.glob("*.damaged-*"))


def test_genuine_floors_count_despite_without_floors(used):
    """The option is for floors that do not verify."""
    damage.truncated(used.state)
    assert used.once("--recover", "--without-floors").returncode == 0
    with used.running() as daemon:
        assert daemon.events()[0]["detail"]["without_floors"] is False
        assert "acme.bad@*" in daemon.get("/api/trust").json()["revoked"]["plugins"]


def test_interrupted_recovery_can_be_repeated(used):
    """It is killed between its two renames: a host key without a ledger is not taken for a first start."""
    damage.header(used.state)
    (used.state / "ledger.sqlite3").rename(used.state / "ledger.sqlite3.damaged-before")
    (used.state / "ledger.sqlite3.fresh").write_bytes(b"half of one")
    used.own(used.state / "ledger.sqlite3.fresh")
    restarted_refuses(used)
    assert used.once("--recover").returncode == 0
    with used.running() as daemon:
        assert daemon.plugin("acme.demo")["status"] == "verified"


@pytest.mark.parametrize(
    "words",
    ["--without-floors", "--public-key x", "--recover --public-key x", "--recover --restore f", "--restore"],
)
def test_options_that_do_not_go_together_exit_with_2(place, words):
    """Some exclude or need another one, one lacks its value; the state directory stays empty."""
    ran = place.once(*words.split())
    assert (ran.returncode, list(place.state.iterdir())) == (2, []), ran


def test_recover_refuses_an_empty_state_directory(place):
    """A first start makes that, and nothing is damaged."""
    ran = place.once("--recover")
    assert (ran.returncode, ran.stderr.startswith("latticed: not_found: ")) == (1, True), ran


@pytest.mark.root
def test_recover_by_root_makes_files_of_the_daemons_user(used):
    """The daemon could not use files of root's."""
    damage.truncated(used.state)
    config = used.home.parent / "root.toml"  # what root reads, only root may be able to change
    config.write_bytes(used.config.read_bytes())
    command = [sys.executable, "-P", "-m", "latticed.daemon", "--config", str(config), "--recover"]
    ran = subprocess.run(command, env=used.environment(), capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert {path.stat().st_uid for path in used.state.iterdir()} == {used.uid}
    with used.running() as daemon:
        assert daemon.plugin("acme.demo")["status"] == "verified"


@pytest.mark.root
def test_stop_is_recorded_while_the_disk_is_full(place, acme):
    """It is written at once, to the reserved space, with its runtime event; it is still known after kill -9 and a
    start.
    """
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
