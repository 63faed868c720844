from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from latticed.ledger import Ledger, audit, floors, kv, records, revocations
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.model.lifecycle import Record, RecordFacts, Status

Make = Callable[..., Event]
Open = Callable[[], AbstractAsyncContextManager[Ledger]]

QUOTA = kv.KvQuota(value_bytes=8, keys=3, total_bytes=20)

RECORD = Record(
    id="acme.demo",
    status=Status.ACTIVE,
    facts=RecordFacts(
        name="Demo ☂",
        type="system",
        version="1.2.3",
        publisher="acme",
        signed=True,
        capabilities=("kv:read", "http:egress"),
        identity="ab" * 32,
        artifact_sha256="cd" * 32,
        manifest=b'{"id": "acme.demo"}\n',
    ),
    source="caf\udce9",
    masked=frozenset({"http:egress"}),
    hosts=("b.example:443", "a.example:443"),
    floor="1.2.3",
    verified_at=1,
    installed_at=2,
    activated_at=3,
    disabled_at=0,
    created_at=1,
    updated_at=3,
)


async def test_plugin_record_round_trips(ledger: Ledger) -> None:
    """Every field, with a directory name that is not UTF-8; a later put replaces the row."""
    forgotten = replace(RECORD, id="acme.gone", forgotten=True, status=Status.DISABLED)
    for record in (forgotten, replace(RECORD, status=Status.INSTALLED), RECORD):
        await ledger.write(lambda tx, record=record: records.put(tx, record), durable=True)  # type: ignore[misc]
    assert ledger.read(records.load_all) == (RECORD, forgotten)


async def test_plugin_record_with_unknown_status_is_ledger_damaged(ledger: Ledger) -> None:
    """Its meaning is not guessed."""
    await ledger.write(lambda tx: records.put(tx, RECORD))
    await ledger.write(lambda tx: tx.execute("UPDATE records SET status = 'sleeping'"))
    with pytest.raises(Problem, match=r"acme\.demo") as caught:
        ledger.read(records.load_all)
    assert caught.value.code == "ledger_damaged"


async def test_kv_stores_values_and_counts_usage(ledger: Ledger) -> None:
    """Get, replace and delete; usage is the number of keys, and the bytes of keys and values."""
    await ledger.write(lambda tx: kv.put(tx, "b", "é", b"1234", QUOTA))
    await ledger.write(lambda tx: kv.put(tx, "b", "k", b"", QUOTA))
    assert ledger.read(lambda db: kv.usage(db, "b")) == (2, 7)
    await ledger.write(lambda tx: kv.put(tx, "b", "é", b"12", QUOTA))
    assert ledger.read(lambda db: kv.get(db, "b", "é")) == b"12"
    assert ledger.read(lambda db: kv.get(db, "b", "k")) == b""
    assert ledger.read(lambda db: kv.get(db, "other", "k")) is None
    assert await ledger.write(lambda tx: kv.delete(tx, "b", "é")) is True
    assert await ledger.write(lambda tx: kv.delete(tx, "b", "é")) is False
    assert ledger.read(lambda db: kv.usage(db, "b")) == (1, 1)
    assert await ledger.write(lambda tx: kv.clear(tx, "b")) == 1
    assert ledger.read(lambda db: kv.usage(db, "b")) == (0, 0)


@pytest.mark.parametrize(
    ("key", "value", "room"),
    [("v", b"123456789", False), ("fourth", b"", True), ("a", b"12345678", True)],
    ids=["value too large", "too many keys", "too many bytes"],
)
async def test_kv_put_beyond_quota_is_refused(ledger: Ledger, key: str, value: bytes, *, room: bool) -> None:
    """It changes nothing. To delete something is advised where that makes room."""
    for name in ("a", "b", "c"):
        await ledger.write(lambda tx, name=name: kv.put(tx, "b", name, b"12345", QUOTA))  # type: ignore[misc]
    with pytest.raises(Problem) as caught:
        await ledger.write(lambda tx: kv.put(tx, "b", key, value, QUOTA))
    assert (caught.value.code, bool(caught.value.hint)) == ("quota_exceeded", room)
    assert ledger.read(lambda db: kv.usage(db, "b")) == (3, 18)
    assert ledger.read(lambda db: kv.get(db, "b", "a")) == b"12345"


async def test_kv_bucket_above_lowered_quota_can_shrink(ledger: Ledger) -> None:
    """Replacing a value by a smaller one is allowed."""
    await ledger.write(lambda tx: kv.put(tx, "b", "a", b"12345678", QUOTA))
    tight = kv.KvQuota(value_bytes=8, keys=0, total_bytes=1)
    await ledger.write(lambda tx: kv.put(tx, "b", "a", b"1234", tight))
    assert ledger.read(lambda db: kv.usage(db, "b")) == (1, 5)


async def test_revocations_are_remembered_until_lifted(ledger: Ledger) -> None:
    """Only new ones are returned; lifting removes one."""
    first = revocations.RevocationRows(keys=frozenset({"k1"}), plugins=frozenset({"a@*"}))
    second = revocations.RevocationRows(keys=frozenset({"k1", "k2"}), digests=frozenset({"d"}))
    assert await ledger.write(lambda tx: revocations.remember(tx, first, now_us=1)) == first
    fresh = await ledger.write(lambda tx: revocations.remember(tx, second, now_us=2))
    assert fresh == revocations.RevocationRows(keys=frozenset({"k2"}), digests=frozenset({"d"}))
    assert await ledger.write(lambda tx: revocations.lift(tx, "keys", "k1")) is True
    assert await ledger.write(lambda tx: revocations.lift(tx, "keys", "k1")) is False
    assert ledger.read(revocations.load) == revocations.RevocationRows(
        keys=frozenset({"k2"}), digests=frozenset({"d"}), plugins=frozenset({"a@*"})
    )


FLOORS = floors.Floors(
    versions={"acme.demo": "1.2.3"},
    masked={"acme.demo": frozenset({"http:egress", "task:run"})},
    revoked=revocations.RevocationRows(digests=frozenset({"d"})),
)


async def test_floors_round_trip(opened: Open, state_dir: Path, event: Make) -> None:
    """Empty at first; the file has mode 0600 and names heads that are on disk."""
    async with opened() as ledger:
        assert ledger.floors == floors.Floors()
        await ledger.record(event())
        await ledger.record(event(action="host.call"))
        await ledger.write_floors(FLOORS)
        heads = {
            name: ledger.read(lambda db, name=name: audit.newest_head(db, name)) for name in ("decisions", "calls")
        }
    assert (state_dir / floors.FILE).stat().st_mode & 0o777 == 0o600
    async with opened() as ledger:
        expected = {name: (head["seq"], head["hash"]) for name, head in heads.items()}
        assert ledger.floors == replace(FLOORS, heads=expected)
        assert expected["decisions"][0] == expected["calls"][0] == 1


async def test_source_that_is_remembered_meanwhile_takes_back_no_floors(opened: Open) -> None:
    """A market that is refreshed while a revocation is written: the file has both."""
    seen = floors.SeenIndex(generated_at="2026-01-01T00:00:00Z", generated_s=1, sha256="ab", keys=("k",))
    async with opened() as ledger:
        await asyncio.gather(ledger.write_floors(FLOORS), ledger.remember_sources({"hub": seen}))
    async with opened() as ledger:
        assert ledger.floors == replace(
            FLOORS, heads=ledger.floors.heads, accepted_at=ledger.floors.accepted_at, sources={"hub": seen}
        )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"1.2.3"', b'"1.0.0"'),
        (b"http:egress", b"kv:read"),
        (b"{", b"["),
        (b'"signature":"', b'"signature":"A'),
        (b'"signature":"', b'"signature":7,"x":"'),
        (b'"signature"', b'"signatur"'),
    ],
)
async def test_floors_with_invalid_signature_are_refused(opened: Open, state_dir: Path, old: bytes, new: bytes) -> None:
    """A Problem at the next start, never empty floors."""
    async with opened() as ledger:
        await ledger.write_floors(FLOORS)
    path = state_dir / floors.FILE
    path.write_bytes(path.read_bytes().replace(old, new, 1))
    with pytest.raises(Problem) as caught:
        async with opened():
            pass
    assert caught.value.code == "floors_invalid"
    assert "--accept-rollback" in caught.value.hint


async def test_audit_query_filters_and_pages(ledger: Ledger, clock: object, event: Make) -> None:
    """Filters match whole fields, `after` is a cursor in both directions, `since_us` a time."""
    for number in range(6):
        decision = "deny" if number % 2 else "allow"
        await ledger.record(event(target=f"t{number % 3}", decision=decision, actor="x" if number == 5 else "y"))
        clock.advance(1)  # type: ignore[attr-defined]

    def seqs(**filters: object) -> list[int]:
        return [row["seq"] for row in ledger.read(lambda db: audit.query(db, **filters))]  # type: ignore[arg-type]

    assert seqs() == [1, 2, 3, 4, 5, 6]
    assert seqs(after=2, limit=2) == [3, 4]
    assert seqs(newest_first=True, limit=2) == [6, 5]
    assert seqs(newest_first=True, after=3) == [2, 1]
    assert seqs(target="t1") == [2, 5]
    assert seqs(decision="deny", newest_first=True) == [6, 4, 2]
    assert seqs(actor="x", action="plugin.invoke") == [6]
    assert seqs(since_us=clock.wall_us() - 2_000_000) == [5, 6]  # type: ignore[attr-defined]
    assert seqs(action="host") == []
    assert seqs(limit=-1) == []
