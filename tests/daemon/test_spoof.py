"""A bundle dropped by anyone can never stop, replace or spoof another plugin of a running daemon."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.house import bundles

pytestmark = pytest.mark.daemon


@pytest.fixture
def active(place, acme):
    """A daemon with acme.demo armed, from the bundle `demo`."""
    place.drop("demo", author=acme)
    with place.running() as daemon:
        daemon.activate()
        yield daemon


def _undisturbed(daemon, before):
    """Check that the record is unchanged: same pair, same start, no restart, no runtime event."""
    after = daemon.plugin()
    for name in ("version", "publisher", "artifact_sha256", "capabilities", "granted", "status", "available"):
        assert after[name] == before[name], name
    assert after["runtime"]["state"] == "armed"
    assert after["runtime"]["started_at"] == before["runtime"]["started_at"]
    assert len(daemon.get("/api/plugins").json()) == 1


def _twin(how, place, acme):
    path = place.plugins / "intruder"
    match how:
        case "copy":
            shutil.copytree(place.plugins / "demo", place.home / "copy")
            (place.home / "copy").rename(path)
        case "newer":
            place.drop("intruder", author=acme, version="9.9.9")
        case "wider":
            place.drop("intruder", author=acme, capabilities=["kv:read", "log:write", "http:egress"])
        case "stranger":
            place.drop("intruder", author=bundles.author("acme"))
        case "unsigned":
            place.drop("intruder", author=None)
        case "unsigned-with-name":
            place.drop("intruder", author=None, publisher="acme")
        case "stolen-signature":
            raw = json.loads((place.plugins / "demo/manifest.json").read_bytes())
            bundles.write(path, {**raw, "capabilities": [*raw["capabilities"], "http:egress"]})
        case "other-publisher":
            place.drop("intruder", author=bundles.author("other"))
        case _:
            raise AssertionError(how)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("copy", "duplicate_id"),
        ("newer", "duplicate_id"),
        ("wider", "duplicate_id"),
        ("stranger", "signature_invalid"),
        ("unsigned", "publisher_missing"),
        ("unsigned-with-name", "signature_missing"),
        ("stolen-signature", "signature_invalid"),
        ("other-publisher", "publisher_untrusted"),
    ],
)
def test_bundle_with_the_id_of_another_plugin_is_refused(active, place, acme, how, code):
    """It is, whoever signed it; the original runs also after a restart, and after the second bundle is removed."""
    before = active.plugin()
    _twin(how, place, acme)
    active.until_rejected("intruder", code)
    _undisturbed(active, before)
    active.kill()
    with place.running() as again:
        again.until_state("armed")
        assert again.rejected() == {"intruder": code}
        assert again.plugin()["artifact_sha256"] == before["artifact_sha256"]
        assert again.plugin()["granted"] == before["granted"]
        shutil.rmtree(place.plugins / "intruder")
        again.until(lambda: again.rejected() == {}, "the intruder to be gone")
        again.until_state("armed")


def test_unsigned_bundle_of_a_signed_plugins_id_is_publisher_changed(active, place, acme):
    """The policy allows unsigned bundles, but the record pins that the plugin is signed."""
    before = active.plugin()
    place.trust_us(acme, require_signature=False)
    place.drop("intruder", author=None)
    active.until_rejected("intruder", "publisher_changed")
    _undisturbed(active, before)


def test_bundle_of_another_trusted_publisher_is_publisher_changed(active, place, acme):
    """It is trusted for its own plugins, not for this one."""
    other = bundles.author("other")
    place.trust_us(acme, other)
    before = active.plugin()
    place.drop("intruder", author=other, version="2.0.0")
    active.until_rejected("intruder", "publisher_changed")
    _undisturbed(active, before)


def test_publisher_restricted_to_its_ids_cannot_claim_others(place, acme):
    """`ids` in the policy restricts it."""
    other = bundles.author("other")
    publishers = {"acme": acme.public, "other": {"keys": [other.public], "ids": ["other.*"], "max_risk": "write"}}
    place.write(place.trust, json.dumps({"trusted_publishers": publishers}).encode())
    place.drop("fine", author=other, id="other.fine")
    place.drop("claims", author=other, id="acme.demo")
    place.drop("risky", author=other, id="other.risky", capabilities=["http:egress"])
    with place.running() as daemon:
        assert [one["id"] for one in daemon.get("/api/plugins").json()] == ["other.fine"]
        assert set(daemon.rejected()) == {"claims", "risky"}


def test_two_undecided_bundles_with_one_id_are_both_refused(place, acme):
    """Neither can be preferred; once one is removed, the other is accepted."""
    place.drop("one", author=acme)
    place.drop("two", author=acme, version="2.0.0")
    with place.running() as daemon:
        assert daemon.rejected() == {"one": "duplicate_id", "two": "duplicate_id"}
        assert daemon.get("/api/plugins").json() == []
        shutil.rmtree(place.plugins / "one")
        assert daemon.until(daemon.plugin, "the remaining one")["version"] == "2.0.0"
        assert daemon.rejected() == {}


def test_second_bundle_is_a_candidate_only_once_the_first_is_gone(active, place, acme):
    """Until then it is refused; what runs is still the stored pair."""
    place.drop("later", author=acme, version="2.0.0")
    active.until_rejected("later", "duplicate_id")
    shutil.rmtree(place.plugins / "demo")
    record = active.until(lambda: (one := active.plugin()).get("candidate") and one, "the candidate")
    assert (record["version"], record["candidate"]["version"]) == ("1.0.0", "2.0.0")
    assert active.until_state("armed")["version"] == "1.0.0"


def test_reserved_plugin_ids_are_refused(daemon, place, acme):
    place.drop("reserved", author=acme, id="latticed.kv")
    daemon.until_rejected("reserved", "manifest_invalid")


def test_ids_are_unique_across_plugin_and_market_directories(active, place, acme):
    before = active.plugin()
    bundles.drop(place.state / "bundles", "market", author=acme, version="9.0.0")
    active.until_rejected("market", "duplicate_id")
    _undisturbed(active, before)
