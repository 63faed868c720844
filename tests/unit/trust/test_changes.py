"""Differences between two trust policies, as they are audited."""

from __future__ import annotations

import dataclasses

from latticed.model.capability import Risk
from latticed.trust import keys
from latticed.trust.changes import Change, differences
from latticed.trust.policy import NOBODY, Publisher, Revoked, TrustPolicy
from tests.house import bundles

ONE, TWO = bundles.author("acme", seed=b"1" * 32).public, bundles.author("acme", seed=b"2" * 32).public


def trusting(**publishers: Publisher) -> TrustPolicy:
    return dataclasses.replace(NOBODY, publishers=publishers)


def test_added_and_removed_policy_keys_are_reported_by_fingerprint():
    """A publisher that is added or removed is reported as its keys."""
    old, new = trusting(acme=Publisher(keys=(ONE,))), trusting(acme=Publisher(keys=(TWO,)))
    added = Change(kind="added", target="acme", what="key", value=keys.fingerprint(TWO))
    removed = Change(kind="removed", target="acme", what="key", value=keys.fingerprint(ONE))
    assert differences(old, new) == (removed, added)
    assert differences(NOBODY, new) == (added,)
    assert differences(old, NOBODY) == (removed,)
    assert differences(old, old) == ()
    assert len(keys.fingerprint(ONE)) == 16


def test_policy_changes_of_ids_risk_and_switches_are_reported():
    """Revocations are not: they are audited when they are first remembered."""
    old = trusting(acme=Publisher(keys=(ONE,)))
    new = dataclasses.replace(
        trusting(acme=Publisher(keys=(ONE,), ids=("acme.*",), max_risk=Risk.WRITE)),
        require_signature=False,
        revoked=Revoked(plugins=frozenset({"acme.demo@*"})),
    )
    found = [(one.target, one.what, one.value) for one in differences(old, new)]
    assert found == [
        ("acme", "ids", "acme.*"),
        ("acme", "max_risk", "write"),
        ("require_signature", "switch", "false"),
    ]
    back = [(one.what, one.value) for one in differences(new, old)]
    assert back == [("ids", "any"), ("max_risk", "any"), ("switch", "true")]
