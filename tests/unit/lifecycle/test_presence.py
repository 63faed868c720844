"""What the disk says of one id, compared with its record."""

from __future__ import annotations

import pytest

from latticed.lifecycle import presence
from latticed.lifecycle.manifest_defaults import DEFAULTS
from latticed.lifecycle.presence import Presence
from latticed.model.fault import Fault
from latticed.model.lifecycle import Status
from latticed.model.verdict import Code, Refused
from tests.house.records import claim, record, verified

FAULT = Fault("digest_mismatch", "expected 7f, found 91")
STORED = Fault("key_revoked", "revoked")


@pytest.mark.parametrize(
    ("seen", "available", "trouble"),
    [
        (Presence(), False, None),
        (Presence(winner=claim()), True, None),
        (Presence(fault=FAULT), False, FAULT),
        (Presence(winner=claim(), stored=STORED), False, STORED),
        (Presence(fault=FAULT, stored=STORED), False, STORED),
    ],
)
def test_plugin_is_available_only_with_verified_bundle_and_stored_pair(seen, available, trouble):
    """A fault of the stored pair is reported first: the pair is what runs."""
    assert seen.available is available
    assert seen.trouble == trouble


@pytest.mark.parametrize("status", list(Status))
def test_verified_bundle_of_other_identity_is_the_candidate(status):
    """A verified record has none: it follows the disk."""
    before, other = record(status), claim(version="2.0.0")
    found = Presence(winner=other).candidate(before)
    assert found == (other.verdict if status is not Status.VERIFIED else None)
    assert Presence(winner=claim()).candidate(before) is None
    assert Presence(fault=FAULT).candidate(before) is None


def test_pin_has_publisher_signature_identity_and_source_of_record():
    pin = presence.pin_of(record())
    assert (pin.publisher, pin.signed, pin.source) == ("acme", True, "plugins/demo")
    assert pin.identity == claim().verdict.identity


def test_fault_code_says_why_the_bundle_is_unavailable():
    """It is refused on its own, refused for another claimant, a bundle of another id now, or gone."""
    alone = Refused(code=Code.DIGEST_MISMATCH, reason="expected 7f, found 91")
    rival = Refused(code=Code.DUPLICATE_ID, reason="found 2")
    moved = verified(id="acme.other")
    assert presence.fault_at(alone, None) == FAULT
    assert presence.fault_at(moved, rival).code == "duplicate_id"
    found = presence.fault_at(moved, None)
    assert found.code == "manifest_missing"
    assert "acme.other" in found.reason
    assert presence.fault_at(None, None).code == "manifest_missing"


@pytest.mark.parametrize("v2", [False, True])
def test_record_preserves_its_manifest(v2):
    """What is armed after a restart equals what was verified, in every field."""
    extra = {"runtime": {"health": {"interval_s": 7}}, "critical": True} if v2 else {}
    found = claim(v2=v2, **extra)
    plugin = presence.plugin_of(record(Status.INSTALLED, found=found), DEFAULTS)
    assert plugin.manifest == found.verdict.manifest
    assert (plugin.id, plugin.identity) == ("acme.demo", found.verdict.identity)


def test_facts_of_record_say_whether_bundle_is_signed():
    """That is part of the pin."""
    assert not presence.facts_of(verified(by=None), accepted=False).signed
    assert presence.facts_of(verified(), accepted=False).signed
