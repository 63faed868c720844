"""What is told of a trust policy that says something else than before."""

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


def test_keys_come_and_go_by_fingerprint():
    """A whole publisher is the keys that it has."""
    old, new = trusting(acme=Publisher(keys=(ONE,))), trusting(acme=Publisher(keys=(TWO,)))
    added = Change(kind="added", target="acme", what="key", value=keys.fingerprint(TWO))
    removed = Change(kind="removed", target="acme", what="key", value=keys.fingerprint(ONE))
    assert differences(old, new) == (removed, added)
    assert differences(NOBODY, new) == (added,)
    assert differences(old, NOBODY) == (removed,)
    assert differences(old, old) == ()
    assert len(keys.fingerprint(ONE)) == 16


def test_changes_of_ids_risk_and_switches_are_named():
    """What a publisher may sign, and the two switches; revocations are told of where they are remembered."""
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
