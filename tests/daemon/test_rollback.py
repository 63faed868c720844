"""An old ledger in place of the newest is refused, or, if the operator accepts it, the newer floors apply.

The state after a power cut must not be taken for a rollback.
"""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from tests.house import bundles, daemons, faults, used_states

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
    """A copy of the used place: acme.demo active, network:plan granted, kv:write trimmed, acme.bad revoked."""
    return used_states.copy(past, place)


GRANTS = "/api/plugins/by-id/acme.demo/grants"


def kept(place: daemons.Place) -> dict[str, bytes]:
    """A copy of the ledger's files."""
    return {path.name: path.read_bytes() for path in place.state.glob("ledger.sqlite3*")}


def put_back(place: daemons.Place, files: dict[str, bytes]) -> None:
    for path in place.state.glob("ledger.sqlite3*"):
        path.unlink()
    for name, data in files.items():
        place.write(place.state / name, data)


def floors(place: daemons.Place) -> dict:
    return json.loads((place.state / "floors.json").read_bytes())


@pytest.fixture
def rolled_back(used, acme):
    """The place with the files of `kept` put back, after network:plan was trimmed, acme.worse revoked and version 1.3.0
    accepted.
    """
    old = kept(used)
    used.trust_us(acme, revoked={**used_states.REVOKED, "plugins": ["acme.bad@*", "acme.worse@*"]})
    with used.running() as daemon:
        daemon.until_state("armed")
        assert daemon.ask("PUT", GRANTS, {"trim": ["network:plan"]}).status == 200
        used.drop("demo", author=acme, version="1.3.0", capabilities=used_states.CAPABILITIES)
        daemon.until(lambda: daemon.plugin().get("candidate"), "candidate")
        assert daemon.post("/api/plugins/by-id/acme.demo/upgrade", {}).status == 200
        assert daemon.stop() == 0
    put_back(used, old)
    used.trust_us(acme)  # the file forgets the revocation, the daemon must not
    return used


def test_old_ledger_is_refused_and_nothing_is_overwritten(rolled_back):
    """Exit 74 with what to do; ledger and floors are unchanged."""
    before = (kept(rolled_back), floors(rolled_back))
    ran = rolled_back.once()
    assert ran.returncode == 74, ran.stderr
    assert ran.stderr.startswith("latticed: ledger_rolled_back: ")
    assert "expected event" in ran.stderr
    assert "--accept-rollback" in ran.stderr
    assert floors(rolled_back) == before[1]
    assert {"ledger.sqlite3"} <= set(before[0])


def test_accepted_old_ledger_is_bound_by_the_newer_floors(rolled_back):
    """Masks, revocations and version floor of the newer ledger count; audited, and later starts need no option."""
    strict = floors(rolled_back)
    with rolled_back.running(options=("--accept-rollback",)) as daemon:
        (event,) = daemon.events(action="ledger.rollback_accepted")
        assert (event["decision"], event["detail"]["revocations"]) == ("allow", 1)
        assert event["reason"].startswith("expected event")
        revoked = daemon.get("/api/trust").json()["revoked"]["plugins"]
        assert {"acme.bad@*", "acme.worse@*"} <= set(revoked)
        assert "network:plan" not in daemon.get(GRANTS).json()["granted"]
        assert daemon.get("/api/audit/verify").json()["ok"]
        assert daemon.stop() == 0
    now = floors(rolled_back)
    assert now["versions"]["acme.demo"] == strict["versions"]["acme.demo"] == "1.3.0"
    assert set(strict["masked"]["acme.demo"]) <= set(now["masked"]["acme.demo"])
    assert set(strict["revoked"]["plugins"]) <= set(now["revoked"]["plugins"])
    with rolled_back.running() as daemon:
        assert len(daemon.events(action="ledger.rollback_accepted")) == 1
        assert daemon.stop() == 0


def test_ledger_of_the_same_length_with_other_events_is_refused(used):
    """It is refused by its hash, even if the old ledger has grown since it was put back."""
    old = kept(used)
    with used.running() as daemon:
        assert daemon.ask("PUT", "/api/kv/default/a", b"1").status == 200
        assert daemon.stop() == 0
    signed = (used.state / "floors.json").read_bytes()
    put_back(used, old)
    (used.state / "floors.json").unlink()
    with used.running(options=("--accept-rollback",)) as daemon:
        (event,) = daemon.events(action="ledger.rollback_accepted")
        assert "found none" in event["reason"]
        for value in (b"2", b"3", b"4"):
            assert daemon.ask("PUT", "/api/kv/default/a", value).status == 200
        assert daemon.stop() == 0
    used.write(used.state / "floors.json", signed)
    ran = used.once()
    assert (ran.returncode, "found another" in ran.stderr) == (74, True), ran.stderr


@pytest.mark.parametrize("harm", ["missing", "edited"])
def test_start_without_genuine_floors_needs_the_option(used, harm):
    """Otherwise removing the file would help an attacker: exit 74."""
    path = used.state / "floors.json"
    if harm == "missing":
        path.unlink()
    else:
        used.write(path, path.read_bytes().replace(b'"masked"', b'"masker"'))
    ran = used.once()
    assert ran.returncode == 74
    assert ran.stderr.startswith("latticed: floors_invalid: ")
    assert "--accept-rollback" in ran.stderr


def test_ledger_rows_edited_to_be_looser_than_the_floors_have_no_effect(used):
    """The floors count, which is audited; the start needs no option."""
    import sqlite3

    database = sqlite3.connect(used.state / "ledger.sqlite3")
    with database:
        database.execute("UPDATE records SET masked = '[]', floor = '0.0.1' WHERE id = 'acme.demo'")
        database.execute("DELETE FROM revocations")
    database.close()
    for path in used.state.glob("ledger.sqlite3*"):
        used.own(path)
    with used.running() as daemon:
        (event,) = daemon.events(action="ledger.held_to_floors")
        assert (event["detail"]["ids"], event["detail"]["revocations"]) == ("acme.demo", 1)
        assert "kv:write" not in daemon.get(GRANTS).json()["granted"]
        assert "acme.bad@*" in daemon.get("/api/trust").json()["revoked"]["plugins"]
        assert daemon.stop() == 0
    assert floors(used)["versions"]["acme.demo"] == "1.2.0"


def test_grants_and_lifts_survive_kill_9(used, acme):
    """Floors that lag behind would undo them: what loosens is written to the floors first."""
    used.trust_us(acme)
    with used.running() as daemon:
        daemon.until_state("armed")
        assert daemon.ask("PUT", GRANTS, {"grant": ["kv:write"]}).status == 200
        lifted = daemon.post("/api/trust/lift", {"kind": "plugin", "value": "acme.bad@*"})
        assert lifted.status == 200, lifted
        daemon.kill()
    with used.running() as daemon:
        assert daemon.events(action="ledger.held_to_floors") == []
        assert "kv:write" in daemon.get(GRANTS).json()["granted"]
        assert "acme.bad@*" not in daemon.get("/api/trust").json()["revoked"]["plugins"]


def test_power_cut_is_not_taken_for_a_rollback(used, sick):
    """It loses unsynced writes, floors included: the floors never name an event that is not on disk."""
    with used.running() as daemon:
        daemon.until_state("armed")
        # That it is armed is on record by then: else the change below would be in one transaction with it, and fail.
        daemon.until(
            lambda: floors(used)["heads"].get("decisions", [0])[0] == daemon.get("/api/status").json()["audit"]["seq"],
            "floors with the newest event",
        )
        before = kept(used)  # all of this is on disk: the head that the floors name was synced
        named = floors(used)["heads"]["decisions"]
        with sick.failing(errno.EIO, faults.SYNC, below=used.state / "ledger.sqlite3"):
            assert daemon.ask("PUT", GRANTS, {"trim": ["log:write"]}).status == 200
            daemon.until(lambda: daemon.log("floors_not_written"), "floors that wait for the ledger")
            assert floors(used)["heads"]["decisions"] == named
        daemon.kill()
    put_back(used, before)
    with used.running() as again:
        assert again.events(action="ledger.rollback_accepted") == []
        assert again.stop() == 0


def test_restored_backup_starts_without_an_option(used, tmp_path: Path):
    """--restore says that the older state is wanted."""
    archive = used.home / "backup.tar"
    with used.running() as daemon:
        used.write(archive, daemon.get("/api/backup").body)
        for number in range(5):
            assert daemon.ask("PUT", "/api/kv/default/a", str(number).encode()).status == 200
        assert daemon.stop() == 0
    ran = used.once("--restore", str(archive))
    assert ran.returncode == 0, ran.stderr
    shutil.copy(used.state / "floors.json", tmp_path / "floors.json")
    for _ in range(2):
        with used.running() as daemon:
            assert daemon.events(action="ledger.rollback_accepted") == []
            assert daemon.stop() == 0
