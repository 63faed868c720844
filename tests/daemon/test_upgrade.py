"""Candidates and upgrades of a running daemon: the installed pair runs on until an operator says otherwise."""

from __future__ import annotations

import pytest

from tests.house import bundles

pytestmark = pytest.mark.daemon

UPGRADE = "/api/plugins/by-id/acme.demo/upgrade"


@pytest.fixture
def active(place, acme):
    """A daemon with acme.demo 1.0.0 armed."""
    place.drop(author=acme)
    with place.running() as daemon:
        daemon.activate()
        yield daemon


def _candidate(daemon, version):
    found = daemon.until(
        lambda: (one := daemon.plugin()).get("candidate", {}).get("version") == version and one, f"candidate {version}"
    )
    assert (found["runtime"]["state"], found["available"], found["status"]) == ("armed", True, "active")
    return found["candidate"]


def test_another_version_is_a_candidate_until_upgraded(active, place, acme):
    """The old pair keeps running, also over a restart; `upgrade` replaces it, and what it adds is masked."""
    old = active.plugin()
    new = place.drop(
        author=acme, version="1.1.0", artifact=bundles.ARTIFACT + b"# newer\n", capabilities=["kv:read", "kv:write"]
    )
    candidate = _candidate(active, "1.1.0")
    assert set(candidate) == {"version", "artifact_sha256", "identity", "adds", "drops", "needs_downgrade"}
    assert (candidate["adds"], candidate["drops"]) == (["kv:write"], ["log:write"])
    assert candidate["artifact_sha256"] == new.raw["digest_sha256"] != old["artifact_sha256"]
    assert candidate["needs_downgrade"] is False
    active.kill()
    with place.running() as daemon:
        assert daemon.until_state("armed")["version"] == "1.0.0"
        answer = daemon.post(UPGRADE)
        assert answer.status == 200
        record = answer.json()
        assert (record["version"], record["runtime"]["state"], record["status"]) == ("1.1.0", "armed", "active")
        assert (record["granted"], record["capabilities"]) == (["kv:read"], ["kv:read", "kv:write"])
        assert "candidate" not in record
        assert daemon.post(UPGRADE).code == "no_candidate"
        daemon.kill()
    with place.running() as daemon:
        record = daemon.until_state("armed")
        assert (record["version"], record["granted"]) == ("1.1.0", ["kv:read"])


def test_new_capabilities_of_an_upgrade_are_granted_by_name(active, place, acme):
    """Only what the candidate declares can be named; `accept` grants at once."""
    place.drop(author=acme, version="1.1.0", capabilities=["kv:read", "kv:write", "http:egress"])
    _candidate(active, "1.1.0")
    assert active.post(UPGRADE, {"accept": ["log:write"]}).code == "bad_request"
    record = active.post(UPGRADE, {"accept": ["http:egress"]}).json()
    assert record["granted"] == ["kv:read", "http:egress"]


def test_upgrade_to_a_lower_version_needs_allow_downgrade(active, place, acme):
    """409 without it; the floor is the highest ever accepted, also after a downgrade."""
    place.drop(author=acme, version="2.0.0")
    _candidate(active, "2.0.0")
    assert active.post(UPGRADE).status == 200
    place.drop(author=acme, version="1.5.0")
    assert _candidate(active, "1.5.0")["needs_downgrade"] is True
    answer = active.post(UPGRADE)
    assert (answer.status, answer.code) == (409, "version_downgrade")
    assert active.plugin()["version"] == "2.0.0"
    assert active.post(UPGRADE, {"allow_downgrade": True}).json()["version"] == "1.5.0"
    place.drop(author=acme, version="1.9.0")
    assert _candidate(active, "1.9.0")["needs_downgrade"] is True
    assert active.post(UPGRADE).code == "version_downgrade"


def test_upgrade_to_an_incomparable_version_needs_allow_downgrade(active, place, acme):
    """The old version is SemVer, the new one is not."""
    place.drop(author=acme, version="spring")
    assert _candidate(active, "spring")["needs_downgrade"] is True
    assert active.post(UPGRADE).code == "version_downgrade"


def test_tampered_candidate_stops_the_active_plugin(active, place, acme):
    """Its bundle does not verify, so it is treated as tampered."""
    new = place.drop(author=acme, version="1.1.0")
    _candidate(active, "1.1.0")
    bundles.tamper(new.artifact_path)
    active.until_rejected("demo", "digest_mismatch")
    assert active.post(UPGRADE).code == "no_candidate"


def test_version_floor_survives_forget(active, place, acme):
    """Forgotten and seen again, an older version still needs allow_downgrade."""
    place.drop(author=acme, version="3.0.0")
    _candidate(active, "3.0.0")
    assert active.post(UPGRADE).status == 200
    assert active.set_status("disabled").status == 200
    assert active.post("/api/plugins/by-id/acme.demo/forget").status == 200
    place.drop(author=acme, version="1.0.0")
    active.until(lambda: (one := active.plugin()) and one["version"] == "1.0.0", "the old version")
    assert active.set_status("installed").code == "version_downgrade"
    assert active.set_status("installed", allow_downgrade=True).status == 200


def test_another_publisher_is_accepted_only_by_name(active, place, acme):
    """It is refused as `publisher_changed` while the record stands; once accepted, it gets no grants or data of the old
    one.
    """
    other = bundles.author("other")
    place.trust_us(acme, other)
    active.ask("PUT", "/api/kv/plugin:acme.demo/secret", b"of acme")
    place.drop("second", author=other, version="9.0.0")
    active.until_rejected("second", "publisher_changed")
    assert active.plugin()["runtime"]["state"] == "armed"
    assert active.post(UPGRADE).code == "no_candidate"
    assert active.post(UPGRADE, {"accept_publisher": "nobody-else"}).code == "no_candidate"
    record = active.post(UPGRADE, {"accept_publisher": "other"}).json()
    assert (record["publisher"], record["version"], record["granted"]) == ("other", "9.0.0", [])
    assert active.get("/api/kv/plugin:acme.demo/secret").status == 404
    active.until_rejected("demo", "publisher_changed")
    back = active.post(UPGRADE, {"accept_publisher": "acme", "allow_downgrade": True})
    assert back.json()["publisher"] == "acme"
    assert active.get("/api/kv/plugin:acme.demo/secret").body == b"of acme"


def test_latticectl_upgrade_needs_allow_downgrade_too(active, place, acme):
    """The refusal has a hint at the option."""
    place.drop(author=acme, version="0.9.0")
    _candidate(active, "0.9.0")
    refused = active.ctl("upgrade", "acme.demo")
    assert (refused.returncode, "hint: " in refused.stderr) == (1, True), refused
    assert active.ctl("upgrade", "acme.demo", "--allow-downgrade").returncode == 0
    assert active.plugin()["version"] == "0.9.0"
