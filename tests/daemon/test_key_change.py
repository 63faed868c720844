"""A publisher changes its key: the same bundle signed by another trusted key is accepted without a stop."""

from __future__ import annotations

import json

import pytest

from latticed.trust import keys
from tests.house import bundles

pytestmark = pytest.mark.daemon


@pytest.fixture
def fresh(acme):
    """The same publisher's new key."""
    return bundles.author(acme.publisher)


def trust(place, *authors, **fields):
    """Write a policy with several keys of one publisher."""
    plain = {"trusted_publishers": {authors[0].publisher: [one.public for one in authors]}, **fields}
    place.write(place.trust, json.dumps(plain).encode())


def resigned(daemon, author):
    found = daemon.until(lambda: daemon.events(action="plugin.resigned"), "the signature to be taken up")
    assert [row["target"] for row in found] == ["acme.demo"]
    assert found[0]["detail"]["key"] == keys.fingerprint(author.public)
    return found[0]


def test_new_signature_before_the_revocation_avoids_a_stop(place, acme, fresh):
    """The next start does not stop it either. Added and removed keys are audited, with the policy file's owner."""
    place.drop(author=acme)
    with place.running() as daemon:
        daemon.activate()
        trust(place, acme, fresh)
        added = daemon.until(lambda: daemon.events(action="trust.added"), "the key to be on record")
        assert [(row["target"], row["detail"]["key"]) for row in added] == [("acme", keys.fingerprint(fresh.public))]
        assert added[0]["detail"]["file_owner"] == f"uid:{place.uid}"
        place.drop(author=fresh)
        resigned(daemon, fresh)
        trust(place, acme, fresh, revoked={"keys": [acme.public]})
        revoked = daemon.until(lambda: daemon.events(action="trust.revoked"), "the revocation to be on record")
        assert revoked[0]["detail"]["file_owner"] == f"uid:{place.uid}"
        trust(place, fresh, revoked={"keys": [acme.public]})
        removed = daemon.until(lambda: daemon.events(action="trust.removed"), "the removal to be on record")
        assert [(row["target"], row["detail"]["key"]) for row in removed] == [("acme", keys.fingerprint(acme.public))]
        found = daemon.plugin()
        assert (found["runtime"]["state"], found["available"]) == ("armed", True)
        states = [row["detail"]["state"] for row in daemon.events(action="plugin.runtime", target="acme.demo")]
        assert states == ["armed"]
        assert daemon.stop() == 0
    with place.running() as daemon:
        daemon.until_state("armed")
        assert len(daemon.events(action="plugin.resigned")) == 1


def test_plugin_of_revoked_key_runs_again_with_a_new_signature(place, acme, fresh):
    """It is stopped until the same bundle has a trusted signature."""
    place.drop(author=acme)
    with place.running() as daemon:
        daemon.activate()
        trust(place, acme, fresh, revoked={"keys": [acme.public]})
        daemon.until_state("failed", code="key_revoked")
        told = daemon.ctl("explain", "acme.demo")
        assert "latticectl trust add acme NEWKEY" in told.stdout
        place.drop(author=fresh)
        daemon.until_state("armed")
        assert resigned(daemon, fresh)["code"] == "key_revoked"


def test_revoke_lists_the_plugins_that_would_stop(place, acme, fresh):
    """It asks the daemon; without one latticectl says that it cannot know."""
    place.env["LATTICED_TRUST"] = str(place.trust)
    place.drop(author=acme)
    trust(place, acme, fresh)
    with place.running() as daemon:
        daemon.activate()
        for words, code in (
            (("revoke", "--key", acme.public), "key_revoked"),
            (("revoke", "--plugin", "acme.demo@1.0.0"), "plugin_revoked"),
            (("remove", "acme"), "publisher_untrusted"),
            (("remove", "acme", "--key", acme.public), "signature_invalid"),
        ):
            told = daemon.ctl("trust", *words, "--dry-run")
            assert told.returncode == 0
            assert f"stops: acme.demo 1.0.0 ({code})" in told.stderr
        assert "stops: no active plugin" in daemon.ctl("trust", "remove", "acme", "--key", fresh.public).stderr
        plain = json.loads(daemon.ctl("trust", "revoke", "--key", acme.public, "--dry-run", "--format", "json").stdout)
        assert [(one["id"], one["code"]) for one in plain["stops"]] == [("acme.demo", "key_revoked")]
        assert daemon.plugin()["runtime"]["state"] == "armed"
        told = daemon.ctl("trust", "revoke", "--key", acme.public)
        assert "stops: acme.demo 1.0.0 (key_revoked)" in told.stderr
        daemon.until_state("failed", code="key_revoked")
        assert daemon.stop() == 0
        told = daemon.ctl("trust", "revoke", "--plugin", "acme.demo@*", "--dry-run")
        assert "cannot be known: " in told.stderr
        assert "acme.demo@*" not in place.trust.read_text()
