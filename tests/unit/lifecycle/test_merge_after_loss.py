"""Merging records and floors after a loss: the stricter value wins."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.ledger.floors import Floors, Pin, SeenIndex
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
def test_merged_floor_is_the_higher_or_the_trusted_if_incomparable(trusted, other, higher):
    assert merge_after_loss.higher_floor(trusted, other) == higher


def test_record_rebuilt_from_pair_is_verified_with_masks_and_floor():
    """Host risk is masked whatever was granted; trimmed capabilities stay trimmed; nothing is accepted."""
    pair = verified(version="1.2.0", capabilities=RISKY)
    kept = Floors(versions={ID: "1.5.0"}, masked={ID: frozenset({"kv:write"})}, pins={ID: pinned()})
    found = merge_after_loss.rebuilt(ID, [pair], kept, None, now_us=NOW)
    assert (found.status, found.forgotten, found.floor) == (Status.VERIFIED, False, "1.5.0")
    assert found.granted == ("kv:read",)
    assert found.facts == facts_of(pair, accepted=False)


def test_rebuilt_record_without_floors_has_its_version_as_floor():
    """The floor is the version of the bundle that is found."""
    found = merge_after_loss.rebuilt(ID, [verified(version="1.2.0")], Floors(), None, now_us=NOW)
    assert found.floor == "1.2.0"


def test_record_is_rebuilt_from_pinned_pair_or_highest_version():
    pairs = [verified(version=version) for version in ("1.9.0", "1.10.0", "1.2.0")]
    kept = Floors(pins={ID: pinned(identity=pairs[2].identity)})
    assert merge_after_loss.rebuilt(ID, pairs, kept, None, now_us=NOW).facts.version == "1.2.0"
    kept = Floors(pins={ID: pinned(identity="gone")})
    assert merge_after_loss.rebuilt(ID, pairs, kept, None, now_us=NOW).facts.version == "1.10.0"


@pytest.mark.parametrize("pin", [pinned("rival"), pinned(signed=False)])
def test_pair_of_other_publisher_gives_tombstone(pin):
    """The tombstone keeps the pin, so no other publisher can take the id."""
    kept = Floors(versions={ID: "1.0.0"}, pins={ID: pin})
    found = merge_after_loss.rebuilt(ID, [verified()], kept, None, now_us=NOW)
    assert (found.forgotten, found.floor) == (True, "1.0.0")
    resolved = claimants.resolve([claim()], pin_of(found))
    assert resolved.winner is None
    assert [one.code for one in resolved.refused.values()] == ["publisher_changed"]


def test_pairs_of_two_publishers_without_pin_give_tombstone():
    found = merge_after_loss.rebuilt(ID, [verified(), verified(by="rival")], Floors(), None, now_us=NOW)
    assert found.forgotten


def test_damaged_ledger_can_raise_floor_and_add_masks_only():
    """Its lower floor, fewer masks, or a publisher other than the pin do not count."""
    loose = replace(record(Status.ACTIVE, claim(by="rival")), floor="0.1.0", masked=frozenset())
    kept = Floors(versions={ID: "1.0.0"}, masked={ID: frozenset({"kv:read"})}, pins={ID: pinned()})
    found = merge_after_loss.rebuilt(ID, [verified()], kept, loose, now_us=NOW)
    assert (found.floor, found.facts.publisher, found.status) == ("1.0.0", "acme", Status.VERIFIED)
    assert "kv:read" in found.masked
    strict = replace(loose, floor="7.0.0", masked=frozenset({"log:write"}))
    found = merge_after_loss.rebuilt(ID, [verified()], kept, strict, now_us=NOW)
    assert (found.floor, found.granted) == ("7.0.0", ())


def test_id_known_only_to_damaged_ledger_is_pinned():
    found = merge_after_loss.rebuilt(ID, [], Floors(), record(Status.ACTIVE), now_us=NOW)
    assert (found.forgotten, found.facts.publisher, found.facts.signed) == (True, "acme", True)


def test_tombstone_masks_apply_to_next_bundle():
    """What was trimmed before the loss is masked at first sight after it, and still when the bundle changes."""
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


def test_upgrade_before_install_keeps_tombstone_masks():
    before = replace(record(found=claim(capabilities=RISKY)), masked=frozenset({"network:plan", "kv:write"}))
    after = advance.upgrade(before, claim(version="2.0.0", capabilities=RISKY), advance.NO_CONSENT, NOW)
    assert after.granted == ("kv:read",)


def test_restored_record_is_unchanged_when_floors_agree():
    before = record(Status.ACTIVE)
    assert merge_after_loss.restored(before, Floors(), now_us=NOW) is before
    assert merge_after_loss.restored(before, floors_of([before], Revoked()), now_us=NOW) is before


def test_restored_masks_and_floor_are_the_stricter():
    before = record(Status.ACTIVE, claim(version="1.0.0"))
    kept = Floors(versions={ID: "1.0.0"}, masked={ID: frozenset({"kv:read"})}, pins={ID: pinned(identity="x")})
    after = merge_after_loss.restored(before, kept, now_us=NOW)
    assert (after.status, after.granted) == (Status.ACTIVE, ("log:write",))


def test_restored_version_below_floor_falls_back_to_verified():
    """Installing it again is a downgrade."""
    found = claim(version="1.0.0", capabilities=RISKY)
    before = record(Status.ACTIVE, found)
    kept = Floors(versions={ID: "2.0.0"}, pins={ID: pinned(identity="of 2.0.0")})
    after = merge_after_loss.restored(before, kept, now_us=NOW)
    assert (after.status, after.floor) == (Status.VERIFIED, "2.0.0")
    assert "network:plan" in after.masked
    outcome = advance.transition(after, Status.INSTALLED, at(found), advance.NO_CONSENT, NOW)
    assert outcome.code == "version_downgrade"


def test_explicitly_accepted_downgrade_is_restored():
    """The floor is higher, but the pin names this identity as the last one accepted."""
    before = record(Status.ACTIVE, claim(version="1.0.0"))
    kept = Floors(versions={ID: "2.0.0"}, pins={ID: pinned(identity=before.facts.identity)})
    after = merge_after_loss.restored(before, kept, now_us=NOW)
    assert (after.status, after.floor) == (Status.ACTIVE, "2.0.0")


def test_id_taken_over_since_backup_gives_tombstone_of_new_publisher():
    kept = Floors(versions={ID: "3.0.0"}, pins={ID: pinned("rival")})
    after = merge_after_loss.restored(record(Status.ACTIVE), kept, now_us=NOW)
    assert (after.forgotten, after.facts.publisher, after.floor) == (True, "rival", "3.0.0")


versions = st.sampled_from(["", "0.9.0", "1.0.0", "1.2.0", "2.0.0", "spring"])
masks = st.frozensets(st.sampled_from(["kv:read", "kv:write", "log:write", "network:plan"]))
signers = st.sampled_from([None, ("acme", True), ("rival", True), ("", False)])


@given(
    mine=versions, theirs=versions, my_masks=masks, their_masks=masks, signer=signers, status=st.sampled_from(Status)
)
def test_merge_after_loss_never_loosens_a_record(mine, theirs, my_masks, their_masks, signer, status):
    """Any two sources give no further grant, no lower floor and no other publisher."""
    pins = {ID: Pin(publisher=signer[0], signed=signer[1], identity="x")} if signer else {}
    kept = Floors(versions={ID: mine} if mine else {}, masked={ID: my_masks}, pins=pins)
    other = replace(record(status, claim(version="1.0.0", capabilities=RISKY)), floor=theirs, masked=their_masks)
    for after in (
        merge_after_loss.restored(other, kept, now_us=NOW),
        merge_after_loss.rebuilt(ID, [verified(version="1.0.0", capabilities=RISKY)], kept, other, now_us=NOW),
    ):
        assert my_masks | their_masks <= after.masked
        assert merge_after_loss.higher_floor(mine, after.floor) == after.floor or after.floor == mine
        assert after.forgotten or signer in {None, (after.facts.publisher, after.facts.signed)}
        if mine and mine != after.floor:
            assert advance.is_downgrade(after.floor, mine)
    assert merge_after_loss.rebuilt(ID, [], kept, other, now_us=NOW).status is Status.VERIFIED


@pytest.mark.parametrize(
    ("present", "theirs", "kept"),
    [
        ((100, "old"), (150, "old"), (150, "old")),
        ((150, "old"), (100, "old"), (150, "old")),
        ((100, "old"), (150, "old", "new"), (150, "old", "new")),
        # A host that pins the new key alone would be held to nothing by a number under the old one.
        ((100, "new"), (150, "old"), (100, "new")),
        ((100, "new", "old"), (150, "old"), (100, "new", "old")),
    ],
)
def test_union_of_floors_loses_no_index_that_counts_for_pinned_keys(present, theirs, kept):
    one, other, both = (
        Floors(sources={"shop": SeenIndex(generated_at="", generated_s=at_s, sha256="", keys=tuple(keys))})
        for at_s, *keys in (present, theirs, kept)
    )
    assert merge_after_loss.union(one, other) == both
    assert merge_after_loss.union(one, Floors()) == merge_after_loss.union(Floors(), one) == one


def test_union_of_floors_keeps_the_stricter_of_each():
    """Masks and revocations of both, the higher versions; the present pins."""
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
