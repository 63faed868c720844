"""Old events go, up to a signed head; what is left still verifies, from a signed checkpoint."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.ledger import Ledger, audit
from latticed.ledger.retention import Retention
from latticed.model.audit import Event
from latticed.trust import audit_chain
from tests.house import exports

DAY_S = 86_400
Open = Callable[[], AbstractAsyncContextManager[Ledger]]


async def grow(house: Ledger, count: int, **fields: Any) -> None:
    """`count` events and a head over them."""
    for number in range(count):
        await house.record(Event(**{"actor": "a", "action": "b", "target": f"t{number}", **fields}))
    await house.sign_head()


async def lines(house: Ledger) -> list[Any]:
    """The export, as it would be read from a file."""
    found = await house.read_slow(lambda db: list(exports.export(db)))
    return [json.loads(json.dumps(line)) for line in found]


def check(house: Ledger, found: list[Any], **more: Any) -> audit_chain.ChainCheck:
    return audit_chain.verify(found, key=audit_chain.public_key(house.public_key), **more)


def bytes_of(found: list[Any]) -> int:
    return sum(len(audit_chain.canonical(line)) for line in found if "seq" in line)


async def test_without_a_wish_everything_is_kept(house: Ledger) -> None:
    await grow(house, 50)
    assert await house.remove_old(by_age=True) == 0
    assert len([line for line in await lines(house) if "seq" in line]) == 50


async def test_past_max_bytes_the_oldest_go(house: Ledger) -> None:
    """Down to nine tenths, up to a head; the checkpoint comes first, the removal is an event, the chain verifies."""
    for _ in range(20):
        await grow(house, 20)
    house.retention = Retention(max_bytes=30_000)
    assert bytes_of(await lines(house)) > 60_000
    removed = await house.remove_old(by_age=False)
    found = await lines(house)
    report = check(house, found)
    assert report.ok, report.problem
    assert (report.removed_seq, found[0]["checkpoint"]["seq"]) == (removed, removed)
    assert removed % 20 == 0
    assert 20_000 < bytes_of(found) <= 30_000
    event = next(line for line in found if line.get("action") == "audit.removed")
    assert event["detail"] == {"first": 1, "last": removed, "removed": removed, "hash": found[0]["checkpoint"]["hash"]}


async def test_the_size_is_known_after_a_restart(opened: Open) -> None:
    """What counts as size survives: nothing is removed that fits, and growth goes on being counted."""
    async with opened() as house:
        await grow(house, 100)
        whole = bytes_of(await lines(house))
    async with opened() as house:
        house.retention = Retention(max_bytes=whole)
        assert await house.remove_old(by_age=False) == 0
        await grow(house, 20)
        assert await house.remove_old(by_age=False) == 100
        left = bytes_of(await lines(house))
    async with opened() as house:
        house.retention = Retention(max_bytes=left)
        assert await house.remove_old(by_age=False) == 0


async def test_retention_by_age_removes_one_day_per_check(house: Ledger, clock: Any) -> None:
    """Ten days of events, four to keep: each look removes the oldest day, until the rest is young enough."""
    for _ in range(10):
        await grow(house, 10)
        clock.advance(DAY_S)
    house.retention = Retention(keep_days=4)
    assert await house.remove_old(by_age=False) == 0
    removed = [await house.remove_old(by_age=True) for _ in range(8)]
    assert removed == [10, 10, 10, 10, 10, 10, 0, 0]
    report = check(house, await lines(house))
    assert (report.ok, report.removed_seq) == (True, 60), report.problem


async def test_a_clock_jump_removes_at_most_a_day_per_check(house: Ledger, clock: Any) -> None:
    """A century ahead for a moment: one day of events is gone, not all of them."""
    for _ in range(5):
        await grow(house, 10)
        clock.advance(DAY_S)
    house.retention = Retention(keep_days=30)
    clock.advance(36_500 * DAY_S)
    assert await house.remove_old(by_age=True) == 10
    clock.advance(-36_500 * DAY_S)
    assert await house.remove_old(by_age=True) == 0


async def test_a_clock_that_was_behind_removes_nothing(house: Ledger, clock: Any) -> None:
    """Events dated 1970 in the middle do not make what came before them old."""
    await grow(house, 10)
    now_us, clock.now_us = clock.now_us, 1
    await grow(house, 10)
    clock.now_us = now_us
    await grow(house, 10)
    house.retention = Retention(keep_days=30)
    assert await house.remove_old(by_age=True) == 0


async def test_the_newest_event_stays(house: Ledger, clock: Any) -> None:
    """However old or large: the chain goes on from something."""
    await grow(house, 10)
    clock.advance(400 * DAY_S)
    house.retention = Retention(keep_days=1, max_bytes=1)
    for _ in range(3):
        await house.remove_old(by_age=True)
    assert check(house, await lines(house)).ok
    assert house.read(audit.last_seq) == 10
    await grow(house, 1)
    await house.remove_old(by_age=True)
    report = check(house, await lines(house))
    assert (report.ok, report.removed_seq, report.last_seq) == (True, 10, 12)


async def test_only_what_a_head_vouches_for_is_removed(house: Ledger) -> None:
    """Events after the last head stay, however little is to be kept."""
    await grow(house, 10)
    for _ in range(5):
        await house.record(Event(actor="a", action="b", target="c"))
    house.retention = Retention(max_bytes=1)
    assert await house.remove_old(by_age=False) == 10


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE audit SET hash = 'ab' WHERE seq = 10",
        "UPDATE heads SET hash = 'ab'",
        "UPDATE heads SET signature = 'AAAA'",
    ],
)
async def test_a_changed_chain_is_not_tidied_away(house: Ledger, harm: str) -> None:
    """What somebody tampered with is evidence: retention leaves it and verify goes on naming it."""
    await grow(house, 10)
    await house.write(lambda tx: tx.execute(harm))
    await grow(house, 10)
    house.retention = Retention(max_bytes=1)
    assert await house.remove_old(by_age=False) == 0
    assert not check(house, await lines(house)).ok


async def test_a_long_past_goes_in_slices(house: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice has its own checkpoint and event; others write in between."""
    monkeypatch.setattr("latticed.ledger.retention.SLICE", 25)
    for _ in range(10):
        await grow(house, 10)
    house.retention = Retention(max_bytes=5_000)
    removed = await house.remove_old(by_age=False)
    found = await lines(house)
    slices = [line["detail"] for line in found if line.get("action") == "audit.removed"]
    assert len(slices) == removed // 20 or len(slices) == removed // 20 + 1
    assert sum(one["removed"] for one in slices) == removed
    assert check(house, found).ok


async def removed_past(house: Ledger) -> list[Any]:
    """An export that begins with a checkpoint at 20 and ends with a head."""
    await grow(house, 20)
    await grow(house, 20)
    house.retention = Retention(max_bytes=4_400)
    assert await house.remove_old(by_age=False) == 20
    await house.sign_head()
    return await lines(house)


async def test_a_head_alone_does_not_license_a_missing_beginning(house: Ledger) -> None:
    """Without the checkpoint, or with a head in its place, the beginning is missing."""
    await grow(house, 20)
    whole = await lines(house)
    head = whole[-1]["head"]
    await grow(house, 20)
    cut = (await lines(house))[21:]
    assert check(house, cut).bad_seq == 1
    assert check(house, [{"head": head}, *cut]).bad_seq == 1
    assert check(house, [{"checkpoint": head}, *cut]).problem.endswith("was not signed by this host's key")


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (lambda found: found.pop(1), "expected event 21, found event 22"),
        (lambda found: found.pop(5), "expected event 25, found event 26"),
        (lambda found: found[3].update(target="x"), "was changed"),
        (lambda found: found.__setitem__(slice(3, 5), [found[4], found[3]]), "reordered"),
        (lambda found: found.__delitem__(slice(-4, -1)), "tail was cut"),
        (lambda found: found[0]["checkpoint"].update(seq=21), "not signed"),
        (lambda found: found[0]["checkpoint"].update(hash="ab" * 32), "not signed"),
        (lambda found: found[0]["checkpoint"].update(more=1), "malformed"),
        (lambda found: found.insert(7, found[0]), "not at the beginning"),
        (lambda found: found.insert(0, found[0]), "not at the beginning"),
        (lambda found: found.pop(0), "expected event 1, found event 21"),
    ],
)
async def test_what_is_left_is_guarded_as_before(
    house: Ledger, tamper: Callable[[list[Any]], object], says: str
) -> None:
    """Edit, delete, reorder, cut tail and a forged checkpoint are named."""
    found = await removed_past(house)
    assert check(house, found).ok
    changed = copy.deepcopy(found)
    tamper(changed)
    report = check(house, changed)
    assert not report.ok
    assert says in report.problem


async def test_a_checkpoint_of_another_host_is_refused(house: Ledger) -> None:
    found = await removed_past(house)
    stranger = Ed25519PrivateKey.generate().public_key()
    assert "checkpoint" in audit_chain.verify(found, key=stranger).problem


async def test_heads_from_the_journal_reach_back_behind_the_checkpoint(house: Ledger) -> None:
    """Those of events that are gone are no fault; one that disagrees with the checkpoint is."""
    await grow(house, 10)
    early = audit_chain.decode_head((await lines(house))[-1]["head"])
    await grow(house, 10)
    at = audit_chain.decode_head((await lines(house))[-1]["head"])
    await grow(house, 20)
    assert early is not None
    assert at is not None
    house.retention = Retention(max_bytes=4_400)
    assert await house.remove_old(by_age=False) == 20
    found = await lines(house)
    assert check(house, found, heads=[early, at]).ok
    found[0]["checkpoint"]["hash"] = "ab" * 32
    assert "event 20 is not the one" in audit_chain.verify(found, heads=[at]).problem
