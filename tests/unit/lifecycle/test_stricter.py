"""Of two memories the stricter one counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.ledger.floors import Floors, Pin
from latticed.ledger.revocations import RevocationRows
from latticed.lifecycle import advance, merge_after_loss
from latticed.lifecycle.presence import facts_of, pin_of
from latticed.lifecycle.revocations import floors_of
from latticed.model.lifecycle import Status
from latticed.trust.policy import Revoked
from tests.house import claimants
from tests.house.records import at, claim, decided, record, verified

NOW = 9_000
ID = "acme.demo"
RISKY = ["kv:read", "kv:write", "network:plan"]


def pinned(publisher: str = "acme", *, signed: bool = True, identity: str = "") -> Pin:
    return Pin(publisher=publisher, signed=signed, identity=identity)


@pytest.mark.parametrize(
    ("trusted", "other", "higher"),
    [
        ("", "", ""),
        ("", "1.0.0", "1.0.0"),
        ("1.0.0", "", "1.0.0"),
        ("1.0.0", "2.0.0", "2.0.0"),
        ("2.0.0", "1.0.0", "2.0.0"),
        ("1.0.0", "spring", "1.0.0"),
        ("spring", "1.0.0", "spring"),
        ("1.0.0-rc.1", "1.0.0", "1.0.0"),
    ],
)
def test_of_two_floors_the_higher_counts_and_without_an_order_the_trusted_one(trusted, other, higher):
    assert merge_after_loss.higher_floor(trusted, other) == higher


def test_a_pair_comes_back_as_verified_with_masks_and_floor():
    """Host risk is masked whatever was granted; what was trimmed stays trimmed; nothing is accepted."""
    pair = verified(version="1.2.0", capabilities=RISKY)
    kept = Floors(versions={ID: "1.5.0"}, masked={ID: frozenset({"kv:write"})}, pins={ID: pinned()})
    found = merge_after_loss.rebuilt(ID, [pair], kept, None, now_us=NOW)
    assert (found.status, found.forgotten, found.floor) == (Status.VERIFIED, False, "1.5.0")
    assert found.granted == ("kv:read",)
    assert found.facts == facts_of(pair, accepted=False)


def test_without_floors_the_pairs_own_version_is_the_floor():
    found = merge_after_loss.rebuilt(ID, [verified(version="1.2.0")], Floors(), None, now_us=NOW)
    assert found.floor == "1.2.0"


def test_the_pinned_pair_is_chosen_else_the_highest_version():
    pairs = [verified(version=version) for version in ("1.9.0", "1.10.0", "1.2.0")]
    kept = Floors(pins={ID: pinned(identity=pairs[2].identity)})
    assert merge_after_loss.rebuilt(ID, pairs, kept, None, now_us=NOW).facts.version == "1.2.0"
    kept = Floors(pins={ID: pinned(identity="gone")})
    assert merge_after_loss.rebuilt(ID, pairs, kept, None, now_us=NOW).facts.version == "1.10.0"


@pytest.mark.parametrize("pin", [pinned("rival"), pinned(signed=False)])
def test_a_pair_of_another_hand_does_not_stand_for_the_id(pin):
    """What is left is a tombstone that keeps everybody else out."""
    kept = Floors(versions={ID: "1.0.0"}, pins={ID: pin})
    found = merge_after_loss.rebuilt(ID, [verified()], kept, None, now_us=NOW)
    assert (found.forgotten, found.floor) == (True, "1.0.0")
    resolved = claimants.resolve([claim()], pin_of(found))
    assert resolved.winner is None
    assert [one.code for one in resolved.refused.values()] == ["publisher_changed"]


def test_two_publishers_pairs_without_a_pin_are_nobodys():
    found = merge_after_loss.rebuilt(ID, [verified(), verified(by="rival")], Floors(), None, now_us=NOW)
    assert found.forgotten


def test_what_the_damaged_ledger_says_only_adds():
    """Masks and a higher floor count; a lower floor, fewer masks, another publisher than the floors' do not."""
    loose = replace(record(Status.ACTIVE, claim(by="rival")), floor="0.1.0", masked=frozenset())
    kept = Floors(versions={ID: "1.0.0"}, masked={ID: frozenset({"kv:read"})}, pins={ID: pinned()})
    found = merge_after_loss.rebuilt(ID, [verified()], kept, loose, now_us=NOW)
    assert (found.floor, found.facts.publisher, found.status) == ("1.0.0", "acme", Status.VERIFIED)
    assert "kv:read" in found.masked
    strict = replace(loose, floor="7.0.0", masked=frozenset({"log:write"}))
    found = merge_after_loss.rebuilt(ID, [verified()], kept, strict, now_us=NOW)
    assert (found.floor, found.granted) == ("7.0.0", ())


def test_an_id_that_only_the_damaged_ledger_knows_is_pinned():
    found = merge_after_loss.rebuilt(ID, [], Floors(), record(Status.ACTIVE), now_us=NOW)
    assert (found.forgotten, found.facts.publisher, found.facts.signed) == (True, "acme", True)


def test_a_tombstones_masks_live_on_in_the_bundle_that_comes():
    """Trimmed before the loss, masked at first sight after it, and still when the bundle changes."""
    buried = merge_after_loss.tombstone(
        ID, "acme", signed=True, masked=frozenset({"kv:write"}), floor="1.0.0", now_us=NOW
    )
    first = advance.first_seen(claim(version="1.0.0", capabilities=["kv:read", "kv:write"]), NOW, buried)
    assert first.granted == ("kv:read",)
    found = claim(version="1.1.0", capabilities=RISKY)
    then = advance.follow(first, found, NOW)
    assert then.granted == ("kv:read",)
    installed = decided(then, Status.INSTALLED, at(found))
    assert installed.granted == ("kv:read",)
    assert decided(then, Status.INSTALLED, at(found), accept=frozenset({"kv:write"})).granted == ("kv:read", "kv:write")


def test_a_candidate_taken_before_installing_keeps_them_too():
    before = replace(record(found=claim(capabilities=RISKY)), masked=frozenset({"network:plan", "kv:write"}))
    after = advance.upgrade(before, claim(version="2.0.0", capabilities=RISKY), advance.NO_CONSENT, NOW)
    assert after.granted == ("kv:read",)


def test_a_record_that_the_floors_do_not_contradict_is_restored_as_it_is():
    before = record(Status.ACTIVE)
    assert merge_after_loss.restored(before, Floors(), now_us=NOW) is before
    assert merge_after_loss.restored(before, floors_of([before], Revoked()), now_us=NOW) is before


def test_restored_masks_and_floors_are_the_stricter():
    before = record(Status.ACTIVE, claim(version="1.0.0"))
    kept = Floors(versions={ID: "1.0.0"}, masked={ID: frozenset({"kv:read"})}, pins={ID: pinned(identity="x")})
    after = merge_after_loss.restored(before, kept, now_us=NOW)
    assert (after.status, after.granted) == (Status.ACTIVE, ("log:write",))


def test_a_version_below_what_was_accepted_since_is_not_installed_by_a_restore():
    """It comes back as verified, and installing it is the downgrade that it is."""
    found = claim(version="1.0.0", capabilities=RISKY)
    before = record(Status.ACTIVE, found)
    kept = Floors(versions={ID: "2.0.0"}, pins={ID: pinned(identity="of 2.0.0")})
    after = merge_after_loss.restored(before, kept, now_us=NOW)
    assert (after.status, after.floor) == (Status.VERIFIED, "2.0.0")
    assert "network:plan" in after.masked
    outcome = advance.transition(after, Status.INSTALLED, at(found), advance.NO_CONSENT, NOW)
    assert outcome.code == "version_downgrade"


def test_a_downgrade_by_explicit_word_is_restored():
    """The floor is higher, and yet this identity is the one that was chosen last."""
    before = record(Status.ACTIVE, claim(version="1.0.0"))
    kept = Floors(versions={ID: "2.0.0"}, pins={ID: pinned(identity=before.facts.identity)})
    after = merge_after_loss.restored(before, kept, now_us=NOW)
    assert (after.status, after.floor) == (Status.ACTIVE, "2.0.0")


def test_an_id_that_changed_hands_since_is_a_tombstone_of_the_present_hand():
    kept = Floors(versions={ID: "3.0.0"}, pins={ID: pinned("rival")})
    after = merge_after_loss.restored(record(Status.ACTIVE), kept, now_us=NOW)
    assert (after.forgotten, after.facts.publisher, after.floor) == (True, "rival", "3.0.0")


versions = st.sampled_from(["", "0.9.0", "1.0.0", "1.2.0", "2.0.0", "spring"])
masks = st.frozensets(st.sampled_from(["kv:read", "kv:write", "log:write", "network:plan"]))
hands = st.sampled_from([None, ("acme", True), ("rival", True), ("", False)])


@given(mine=versions, theirs=versions, my_masks=masks, their_masks=masks, hand=hands, status=st.sampled_from(Status))
def test_nothing_is_ever_looser(mine, theirs, my_masks, their_masks, hand, status):
    """Whatever the two memories hold: no grant, no lower floor and no other hand comes out of them."""
    pins = {ID: Pin(publisher=hand[0], signed=hand[1], identity="x")} if hand else {}
    kept = Floors(versions={ID: mine} if mine else {}, masked={ID: my_masks}, pins=pins)
    other = replace(record(status, claim(version="1.0.0", capabilities=RISKY)), floor=theirs, masked=their_masks)
    for after in (
        merge_after_loss.restored(other, kept, now_us=NOW),
        merge_after_loss.rebuilt(ID, [verified(version="1.0.0", capabilities=RISKY)], kept, other, now_us=NOW),
    ):
        assert my_masks | their_masks <= after.masked
        assert merge_after_loss.higher_floor(mine, after.floor) == after.floor or after.floor == mine
        assert after.forgotten or hand in {None, (after.facts.publisher, after.facts.signed)}
        if mine and mine != after.floor:
            assert advance.is_downgrade(after.floor, mine)
    assert merge_after_loss.rebuilt(ID, [], kept, other, now_us=NOW).status is Status.VERIFIED


def test_of_two_floors_files_everything_strict_counts():
    """Masks and revocations of both, the higher versions; whose an id is, the present one knows better."""
    present = Floors(
        versions={"a": "1.0.0", "b": "3.0.0", "d": "spring"},
        masked={"a": frozenset({"kv:read"})},
        pins={"a": pinned("rival")},
        revoked=RevocationRows(keys=frozenset({"k"}), plugins=frozenset({"a@*"})),
    )
    theirs = Floors(
        versions={"a": "2.0.0", "b": "2.0.0", "c": "1.0.0", "d": "autumn"},
        masked={"a": frozenset({"kv:write"}), "c": frozenset({"log:write"})},
        pins={"a": pinned("acme"), "c": pinned("acme")},
        revoked=RevocationRows(digests=frozenset({"d"}), plugins=frozenset({"b@*"})),
    )
    assert merge_after_loss.union(present, theirs) == Floors(
        versions={"a": "2.0.0", "b": "3.0.0", "c": "1.0.0", "d": "spring"},
        masked={"a": frozenset({"kv:read", "kv:write"}), "c": frozenset({"log:write"})},
        pins={"a": pinned("rival"), "c": pinned("acme")},
        revoked=RevocationRows(keys=frozenset({"k"}), digests=frozenset({"d"}), plugins=frozenset({"a@*", "b@*"})),
    )
