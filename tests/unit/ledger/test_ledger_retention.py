"""Old events are removed up to a signed head; the rest verifies from a signed checkpoint."""

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


async def grow(ledger: Ledger, count: int, **fields: Any) -> None:
    """Append `count` events and sign a head."""
    for number in range(count):
        await ledger.record(Event(**{"actor": "a", "action": "b", "target": f"t{number}", **fields}))
    await ledger.sign_head()


async def lines(ledger: Ledger) -> list[Any]:
    """The export as lines of a file."""
    found = await ledger.read_slow(lambda db: list(exports.export(db)))
    return [json.loads(json.dumps(line)) for line in found]


def check(ledger: Ledger, found: list[Any], **more: Any) -> audit_chain.ChainCheck:
    return audit_chain.verify(found, key=audit_chain.public_key(ledger.public_key), **more)


def bytes_of(found: list[Any]) -> int:
    return sum(len(audit_chain.canonical(line)) for line in found if "seq" in line)


async def test_default_retention_keeps_everything(ledger: Ledger) -> None:
    await grow(ledger, 50)
    assert await ledger.remove_old(by_age=True) == 0
    assert len([line for line in await lines(ledger) if "seq" in line]) == 50


async def test_oldest_events_beyond_max_bytes_are_removed(ledger: Ledger) -> None:
    """Down to nine tenths, up to a signed head; the removal is an event, and the chain verifies."""
    for _ in range(20):
        await grow(ledger, 20)
    ledger.retention = Retention(max_bytes=30_000)
    assert bytes_of(await lines(ledger)) > 60_000
    removed = await ledger.remove_old(by_age=False)
    found = await lines(ledger)
    report = check(ledger, found)
    assert report.ok, report.problem
    assert (report.removed_seq, found[0]["checkpoint"]["seq"]) == (removed, removed)
    assert removed % 20 == 0
    assert 20_000 < bytes_of(found) <= 30_000
    event = next(line for line in found if line.get("action") == "audit.removed")
    assert event["detail"] == {"first": 1, "last": removed, "removed": removed, "hash": found[0]["checkpoint"]["hash"]}


async def test_chain_size_survives_restart(opened: Open) -> None:
    """Nothing that fits is removed, and growth is counted from there."""
    async with opened() as ledger:
        await grow(ledger, 100)
        whole = bytes_of(await lines(ledger))
    async with opened() as ledger:
        ledger.retention = Retention(max_bytes=whole)
        assert await ledger.remove_old(by_age=False) == 0
        await grow(ledger, 20)
        assert await ledger.remove_old(by_age=False) == 100
        left = bytes_of(await lines(ledger))
    async with opened() as ledger:
        ledger.retention = Retention(max_bytes=left)
        assert await ledger.remove_old(by_age=False) == 0


async def test_retention_by_age_removes_one_day_per_check(ledger: Ledger, clock: Any) -> None:
    """Ten days of events, four to keep: each check removes the oldest day, until the rest is young enough."""
    for _ in range(10):
        await grow(ledger, 10)
        clock.advance(DAY_S)
    ledger.retention = Retention(keep_days=4)
    assert await ledger.remove_old(by_age=False) == 0
    removed = [await ledger.remove_old(by_age=True) for _ in range(8)]
    assert removed == [10, 10, 10, 10, 10, 10, 0, 0]
    report = check(ledger, await lines(ledger))
    assert (report.ok, report.removed_seq) == (True, 60), report.problem


async def test_clock_jump_removes_at_most_one_day_per_check(ledger: Ledger, clock: Any) -> None:
    """A clock that is a century ahead for a moment costs one day of events."""
    for _ in range(5):
        await grow(ledger, 10)
        clock.advance(DAY_S)
    ledger.retention = Retention(keep_days=30)
    clock.advance(36_500 * DAY_S)
    assert await ledger.remove_old(by_age=True) == 10
    clock.advance(-36_500 * DAY_S)
    assert await ledger.remove_old(by_age=True) == 0


async def test_events_dated_in_the_past_do_not_age_earlier_ones(ledger: Ledger, clock: Any) -> None:
    """Events dated 1970 in the middle of the chain remove nothing before them."""
    await grow(ledger, 10)
    now_us, clock.now_us = clock.now_us, 1
    await grow(ledger, 10)
    clock.now_us = now_us
    await grow(ledger, 10)
    ledger.retention = Retention(keep_days=30)
    assert await ledger.remove_old(by_age=True) == 0


async def test_newest_event_is_never_removed(ledger: Ledger, clock: Any) -> None:
    """Its age and size do not matter."""
    await grow(ledger, 10)
    clock.advance(400 * DAY_S)
    ledger.retention = Retention(keep_days=1, max_bytes=1)
    for _ in range(3):
        await ledger.remove_old(by_age=True)
    assert check(ledger, await lines(ledger)).ok
    assert ledger.read(audit.last_seq) == 10
    await grow(ledger, 1)
    await ledger.remove_old(by_age=True)
    report = check(ledger, await lines(ledger))
    assert (report.ok, report.removed_seq, report.last_seq) == (True, 10, 12)


async def test_events_after_last_head_are_kept(ledger: Ledger) -> None:
    """The retention settings would remove them."""
    await grow(ledger, 10)
    for _ in range(5):
        await ledger.record(Event(actor="a", action="b", target="c"))
    ledger.retention = Retention(max_bytes=1)
    assert await ledger.remove_old(by_age=False) == 10


@pytest.mark.parametrize(
    "harm",
    [
        "UPDATE audit SET hash = 'ab' WHERE seq = 10",
        "UPDATE heads SET hash = 'ab'",
        "UPDATE heads SET signature = 'AAAA'",
    ],
)
async def test_tampered_chain_is_not_removed(ledger: Ledger, harm: str) -> None:
    """Retention leaves it as evidence, and verification still reports it."""
    await grow(ledger, 10)
    await ledger.write(lambda tx: tx.execute(harm))
    await grow(ledger, 10)
    ledger.retention = Retention(max_bytes=1)
    assert await ledger.remove_old(by_age=False) == 0
    assert not check(ledger, await lines(ledger)).ok


async def test_long_chain_is_removed_in_slices(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slice has its own checkpoint and event; other writes run in between."""
    monkeypatch.setattr("latticed.ledger.retention.SLICE", 25)
    for _ in range(10):
        await grow(ledger, 10)
    ledger.retention = Retention(max_bytes=5_000)
    removed = await ledger.remove_old(by_age=False)
    found = await lines(ledger)
    slices = [line["detail"] for line in found if line.get("action") == "audit.removed"]
    assert len(slices) == removed // 20 or len(slices) == removed // 20 + 1
    assert sum(one["removed"] for one in slices) == removed
    assert check(ledger, found).ok


async def removed_past(ledger: Ledger) -> list[Any]:
    """An export that begins with a checkpoint at 20 and ends with a head."""
    await grow(ledger, 20)
    await grow(ledger, 20)
    ledger.retention = Retention(max_bytes=4_400)
    assert await ledger.remove_old(by_age=False) == 20
    await ledger.sign_head()
    return await lines(ledger)


async def test_chain_without_checkpoint_must_begin_with_event_1(ledger: Ledger) -> None:
    """A head in place of the checkpoint is not enough."""
    await grow(ledger, 20)
    whole = await lines(ledger)
    head = whole[-1]["head"]
    await grow(ledger, 20)
    cut = (await lines(ledger))[21:]
    assert check(ledger, cut).bad_seq == 1
    assert check(ledger, [{"head": head}, *cut]).bad_seq == 1
    assert check(ledger, [{"checkpoint": head}, *cut]).problem.endswith("was not signed by this host's key")


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
async def test_tampering_after_removal_is_found(
    ledger: Ledger, tamper: Callable[[list[Any]], object], says: str
) -> None:
    """An edit, a deletion, a reordering, a cut tail and a forged checkpoint are reported."""
    found = await removed_past(ledger)
    assert check(ledger, found).ok
    changed = copy.deepcopy(found)
    tamper(changed)
    report = check(ledger, changed)
    assert not report.ok
    assert says in report.problem


async def test_checkpoint_of_another_host_is_refused(ledger: Ledger) -> None:
    found = await removed_past(ledger)
    stranger = Ed25519PrivateKey.generate().public_key()
    assert "checkpoint" in audit_chain.verify(found, key=stranger).problem


async def test_journal_heads_of_removed_events_are_accepted(ledger: Ledger) -> None:
    """One that disagrees with the checkpoint is a fault."""
    await grow(ledger, 10)
    early = audit_chain.decode_head((await lines(ledger))[-1]["head"])
    await grow(ledger, 10)
    at = audit_chain.decode_head((await lines(ledger))[-1]["head"])
    await grow(ledger, 20)
    assert early is not None
    assert at is not None
    ledger.retention = Retention(max_bytes=4_400)
    assert await ledger.remove_old(by_age=False) == 20
    found = await lines(ledger)
    assert check(ledger, found, heads=[early, at]).ok
    found[0]["checkpoint"]["hash"] = "ab" * 32
    assert "event 20 is not the one" in audit_chain.verify(found, heads=[at]).problem
