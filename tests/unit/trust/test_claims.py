"""Dropping a bundle can never stop, replace or spoof another plugin."""

from __future__ import annotations

import itertools

import pytest

from latticed.model.manifest import Manifest
from latticed.model.verdict import Verified
from latticed.trust import claims
from tests.house import claimants


def _claim(name, *, identity="one", publisher="acme", signed=True):
    manifest = Manifest(
        id="acme.demo",
        name="Demo",
        type="system",
        capabilities=("kv:read",),
        publisher=publisher,
        signature_ed25519="signature" if signed else "",
    )
    verdict = Verified(manifest=manifest, identity=identity, artifact_sha256="ab" * 32, artifact_bytes=1, key="")
    return claims.IdClaim(name=name, verdict=verdict)


PIN = claims.ClaimPin(publisher="acme", signed=True, identity="one", source="plugins/demo")


def _resolve(found, pin=PIN):
    """The winner's name and the codes of refusals; asserts that the order of claims does not matter."""
    outcomes = []
    for order in itertools.permutations(found):
        settled = claimants.resolve(order, pin)
        winner = settled.winner.name if settled.winner else None
        codes = {name: refused.code.value for name, refused in settled.refused.items()}
        assert set(codes) | ({winner} - {None}) == {claim.name for claim in found}
        outcomes.append((winner, codes))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    return outcomes[0]


def test_single_claim_to_an_id_wins():
    """It wins with or without a record, from any source; whether a new identity may run is up to the lifecycle."""
    assert _resolve([_claim("plugins/demo")], pin=None) == ("plugins/demo", {})
    assert _resolve([_claim("plugins/elsewhere", identity="two")]) == ("plugins/elsewhere", {})
    assert claimants.resolve([], PIN) == (None, {})


def test_all_claimants_of_one_id_without_a_record_are_refused():
    """There is no way to know which one is meant, not even for two copies of the same bundle."""
    twice = {"plugins/a": "duplicate_id", "plugins/b": "duplicate_id"}
    assert _resolve([_claim("plugins/a"), _claim("plugins/b")], pin=None) == (None, twice)
    assert _resolve([_claim("plugins/a"), _claim("plugins/b", publisher="evil")], pin=None) == (None, twice)


@pytest.mark.parametrize("other", [{"publisher": "evil"}, {"publisher": "", "signed": False}, {"signed": False}])
def test_claim_of_other_publisher_or_unsigned_is_refused(other):
    """It is alone or beside the pinned bundle."""
    assert _resolve([_claim("plugins/x", **other)]) == (None, {"plugins/x": "publisher_changed"})
    assert _resolve([_claim("plugins/demo"), _claim("plugins/x", **other)]) == (
        "plugins/demo",
        {"plugins/x": "publisher_changed"},
    )


def test_signed_claim_to_unsigned_plugin_is_refused():
    """The pin of signedness holds in both directions."""
    pin = claims.ClaimPin(publisher="", signed=False, identity="one", source="plugins/demo")
    assert _resolve([_claim("plugins/demo", publisher="", signed=False), _claim("plugins/x")], pin) == (
        "plugins/demo",
        {"plugins/x": "publisher_changed"},
    )


def test_claim_matching_the_record_wins():
    """It wins against a newly signed manifest of the same publisher and against copies of itself."""
    wider, copy = _claim("plugins/x", identity="two"), _claim("plugins/copy")
    assert _resolve([_claim("plugins/demo"), wider]) == ("plugins/demo", {"plugins/x": "duplicate_id"})
    assert _resolve([_claim("plugins/demo"), copy]) == ("plugins/demo", {"plugins/copy": "duplicate_id"})
    assert _resolve([_claim("plugins/demo"), wider, copy]) == (
        "plugins/demo",
        {"plugins/x": "duplicate_id", "plugins/copy": "duplicate_id"},
    )


def test_renamed_bundle_wins_over_newcomer_at_its_source():
    """The pinned identity takes precedence over the pinned source."""
    assert _resolve([_claim("plugins/demo", identity="two"), _claim("plugins/moved")]) == (
        "plugins/moved",
        {"plugins/demo": "duplicate_id"},
    )


def test_upgrade_at_pinned_source_wins_over_newcomers():
    """No claim has the pinned identity any more."""
    assert _resolve([_claim("plugins/demo", identity="two"), _claim("plugins/x", identity="three")]) == (
        "plugins/demo",
        {"plugins/x": "duplicate_id"},
    )


def test_ambiguous_claims_to_an_id_are_all_refused():
    """Two unpinned sources, without the pinned identity or with two copies of it."""
    assert _resolve([_claim("plugins/x", identity="two"), _claim("plugins/y", identity="three")])[0] is None
    assert _resolve([_claim("plugins/x"), _claim("plugins/y")])[0] is None
