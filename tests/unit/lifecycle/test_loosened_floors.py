"""Before a record is written, the floors are loosened for it alone: what they have of other plugins stays."""

from __future__ import annotations

from dataclasses import replace

from latticed.lifecycle import merge_after_loss, revocations
from latticed.model.lifecycle import Record, Status
from latticed.trust.policy import Revoked
from tests.house import records


def held(plugin_id: str) -> Record:
    """An installed plugin that needs host calls, at version 2, with one capability masked."""
    found = records.claim(plugin_id, id=plugin_id, version="2.0.0", capabilities=["kv:read", "http:egress"])
    return replace(records.record(Status.INSTALLED, found), masked=frozenset({"http:egress"}))


def test_only_what_is_held_of_that_plugin_changes():
    one, other = held("acme.one"), held("acme.other")
    kept = revocations.floors_of([one, other], Revoked(keys=frozenset({"k"})))
    looser = replace(one, masked=frozenset(), floor="")
    assert merge_after_loss.looser(kept, looser)
    after = revocations._with(kept, looser)
    assert not merge_after_loss.looser(after, looser)
    assert after == replace(revocations.floors_of([looser, other], Revoked()), revoked=kept.revoked)
    assert kept == revocations.floors_of([one, other], Revoked(keys=frozenset({"k"})))


def test_plugin_that_was_not_known_is_added():
    one, other = held("acme.one"), held("acme.other")
    kept = revocations.floors_of([one], Revoked())
    assert revocations._with(kept, other) == revocations.floors_of([one, other], Revoked())
