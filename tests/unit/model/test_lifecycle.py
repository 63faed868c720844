"""The table of transitions, and derived properties of records."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from latticed.model import verdict
from latticed.model.lifecycle import TRANSITIONS, Record, RecordFacts, Status

FACTS = RecordFacts(
    name="Demo",
    type="system",
    version="1.0.0",
    publisher="acme",
    signed=True,
    capabilities=("kv:read", "task:run"),
    identity="1" * 64,
    artifact_sha256="2" * 64,
    manifest=b"{}",
)


def test_lifecycle_transitions_equal_the_diagram():
    """verified → installed → active ⇄ disabled, installed → disabled; nothing else (architecture, Lifecycle)."""
    drawn = {
        ("verified", "installed"),
        ("installed", "active"),
        ("installed", "disabled"),
        ("active", "disabled"),
        ("disabled", "active"),
    }
    assert {(old.value, new.value) for old, after in TRANSITIONS.items() for new in after} == drawn
    assert set(TRANSITIONS) == set(Status)


def test_granted_capabilities_are_those_declared_and_not_masked():
    """A mask on a capability that is not declared grants nothing."""
    record = Record(
        id="acme.demo", status=Status.VERIFIED, facts=FACTS, source="s", masked=frozenset({"task:run", "kv:write"})
    )
    assert record.granted == ("kv:read",)


def test_verified_record_is_not_accepted():
    """Status `verified` comes from the disk, not from an operator."""
    accepted = {s for s in Status if Record(id="acme.demo", status=s, facts=FACTS, source="s").accepted}
    assert accepted == {Status.INSTALLED, Status.ACTIVE, Status.DISABLED}


def test_plugin_record_is_immutable():
    """A change of status is a new record."""
    record = Record(id="acme.demo", status=Status.VERIFIED, facts=FACTS, source="s")
    with pytest.raises(FrozenInstanceError):
        record.status = Status.ACTIVE  # type: ignore[misc]


def test_verdict_codes_are_in_the_order_of_the_contract():
    """The order decides which failure is reported; copied from contracts §5."""
    order = (
        "unreadable manifest_missing manifest_not_regular manifest_too_large foreign_owner manifest_invalid_json "
        "manifest_invalid unknown_capability duplicate_capability capability_not_allowed publisher_missing "
        "publisher_untrusted signature_missing signature_malformed digest_missing key_revoked plugin_revoked "
        "signature_invalid artifact_missing artifact_not_regular artifact_too_large changed_while_reading "
        "digest_mismatch digest_revoked host_incompatible publisher_changed duplicate_id"
    ).split()
    assert [code.value for code in verdict.Code] == order
