from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import apsw
import pytest

from latticed.ledger import Connection, Ledger, Transaction, audit, kv, open_ledger
from latticed.ledger import ledger as ledger_module
from latticed.model.audit import Event
from latticed.model.chain import Head
from latticed.model.errors import Problem
from latticed.trust import audit_chain
from tests.house import exports

Open = Callable[[], AbstractAsyncContextManager[Ledger]]
Make = Callable[..., Event]

ROOMY = kv.KvQuota(value_bytes=1 << 20, keys=1_000, total_bytes=1 << 24)


def all_keys(ledger: Ledger) -> list[str]:
    return ledger.read(lambda db: kv.keys(db, "default"))


async def test_concurrent_event_writers_get_gapless_seqs(ledger: Ledger, event: Make) -> None:
    """64 callers: each gets the seq of its own event, with no gap and no duplicate."""

    async def caller(name: int) -> list[tuple[int, str]]:
        return [(await ledger.record(event(target=f"{name}/{turn}")), f"{name}/{turn}") for turn in range(20)]

    answers = [answer for answers in await asyncio.gather(*map(caller, range(64))) for answer in answers]
    stored = await ledger.read_slow(lambda db: db.execute("SELECT seq, target FROM audit ORDER BY seq").fetchall())
    assert sorted(answers) == stored
    assert [seq for seq, _ in stored] == list(range(1, 64 * 20 + 1))


async def test_ledger_change_that_fails_is_rolled_back_alone(ledger: Ledger, event: Make) -> None:
    """The other changes of its batch are committed, and the chain verifies."""
    gate = threading.Event()

    def fail(tx: Transaction) -> None:
        kv.put(tx, "default", "lost", b"1", ROOMY)
        tx.append_audit(event(target="lost"))
        raise RuntimeError("changed my mind")

    hold = asyncio.ensure_future(ledger.write(lambda _: gate.wait(10)))  # so that the rest queues up as one batch
    waiting = asyncio.gather(
        ledger.write(lambda tx: kv.put(tx, "default", "a", b"1", ROOMY)),
        ledger.record(event(target="first")),
        ledger.write(fail),
        ledger.record(event(target="second")),
        ledger.write(lambda tx: kv.put(tx, "default", "b", b"1", ROOMY), durable=True),
        return_exceptions=True,
    )
    await asyncio.sleep(0)
    gate.set()
    results = await waiting
    assert await hold
    assert isinstance(results[2], RuntimeError)
    assert [results[0], results[1], results[3], results[4]] == [1, 1, 2, 2]
    assert all_keys(ledger) == ["a", "b"]
    assert (await ledger.read_slow(lambda db: audit_chain.verify(exports.export(db)))).ok


@pytest.mark.parametrize("error", [StopIteration("x"), SystemExit(3), apsw.ConstraintError("x"), Problem("a", "b")])
async def test_any_exception_of_a_ledger_change_reaches_its_caller(ledger: Ledger, error: BaseException) -> None:
    """StopIteration and BaseException too; the writer continues."""

    def fail(_: Transaction) -> None:
        raise error

    expected = RuntimeError if isinstance(error, StopIteration) else type(error)
    future = ledger._writer.submit(fail)
    await asyncio.wait([future])
    assert isinstance(future.exception(), expected)
    assert await ledger.write(lambda _: 5) == 5


async def test_cancelling_the_caller_does_not_cancel_the_write(ledger: Ledger, event: Make) -> None:
    """The caller gets CancelledError; its write is committed."""
    gate = threading.Event()
    hold = asyncio.ensure_future(ledger.write(lambda _: gate.wait(10)))
    recording = asyncio.ensure_future(ledger.record(event(target="mine")))
    await asyncio.sleep(0)
    recording.cancel()
    with pytest.raises(asyncio.CancelledError):
        await recording
    gate.set()
    await hold
    await ledger.write(lambda _: None)
    assert [row["target"] for row in ledger.read(audit.query)] == ["mine"]


async def test_ledger_change_can_read_events_it_appended(ledger: Ledger, event: Make) -> None:
    """It reads them within the same transaction."""

    def change(tx: Transaction) -> list[int]:
        tx.append_audit(event())
        tx.append_audit(event())
        return [seq for (seq,) in tx.execute("SELECT seq FROM audit")]

    assert await ledger.write(change) == [1, 2]


async def test_only_durable_changes_use_synchronous_full(ledger: Ledger) -> None:
    """PRAGMA synchronous is FULL (2) for the batch of a durable change, NORMAL (1) before and after."""
    synchronous = "PRAGMA synchronous"
    found = [
        await ledger.write(lambda tx: tx.execute(synchronous).get, durable=durable) for durable in (False, True, False)
    ]
    assert found == [1, 2, 1]


async def test_cancelled_slow_read_of_ledger_is_interrupted(ledger: Ledger) -> None:
    """The next one does not wait for it."""
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    started = threading.Event()

    def question(db: Connection) -> object:
        started.set()
        return db.execute(endless).fetchall()

    reading = asyncio.ensure_future(ledger.read_slow(question))
    await until(started.is_set)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert await ledger.read_slow(audit.last_seq) == 0


async def test_event_with_wrong_types_fails_alone(ledger: Ledger, event: Make) -> None:
    """A Problem for its caller; other events of the batch are recorded."""
    results = await asyncio.gather(
        ledger.record(event()), ledger.record(event(actor=None)), ledger.record(event()), return_exceptions=True
    )
    assert [results[0], results[2]] == [1, 2]
    assert isinstance(results[1], Problem)
    assert results[1].code == "audit_unavailable"


async def test_read_connections_are_read_only(ledger: Ledger) -> None:
    with pytest.raises(Problem) as caught:
        ledger.read(lambda db: db.execute("DELETE FROM audit"))
    assert caught.value.code == "ledger_unavailable"
    with pytest.raises(Problem):
        await ledger.read_slow(lambda db: db.execute("DELETE FROM audit"))


async def test_slow_read_sees_one_snapshot_off_the_loop(ledger: Ledger, event: Make) -> None:
    """It does not see concurrent writes, and does not block the event loop."""
    started, go_on = threading.Event(), threading.Event()

    def question(db: Connection) -> tuple[int, int]:
        before = audit.last_seq(db)
        started.set()
        go_on.wait(10)
        return before, audit.last_seq(db)

    await ledger.record(event())
    reading = asyncio.ensure_future(ledger.read_slow(question))
    await until(started.is_set)
    assert await ledger.record(event()) == 2
    go_on.set()
    assert await reading == (1, 1)


async def test_closing_ledger_interrupts_slow_read(opened: Open) -> None:
    """An endless query does not delay shutdown."""
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
    started = threading.Event()

    def question(db: Connection) -> object:
        started.set()
        return db.execute(endless).fetchall()

    async with opened() as ledger:
        reading = asyncio.ensure_future(ledger.read_slow(question))
        await until(started.is_set)
    with pytest.raises(Problem):
        await reading


async def test_ledger_calls_after_closing_raise_problem(opened: Open, event: Make) -> None:
    """None of them hangs."""
    async with opened() as ledger:
        pass
    with pytest.raises(Problem, match="closed"):
        await ledger.write(lambda _: None)
    with pytest.raises(Problem, match="closed"):
        await ledger.record(event())
    with pytest.raises(Problem, match="closed"):
        ledger.read(audit.last_seq)
    with pytest.raises(Problem, match="closed"):
        await ledger.read_slow(audit.last_seq)


async def test_closing_ledger_commits_queued_writes(opened: Open, event: Make) -> None:
    async with opened() as ledger:
        waiting = [asyncio.ensure_future(ledger.record(event())) for _ in range(100)]
        await asyncio.sleep(0)
    assert await asyncio.gather(*waiting) == list(range(1, 101))
    async with opened() as ledger:
        assert ledger.read(audit.last_seq) == 100


async def test_heads_are_signed_every_thousand_events_and_at_close(state_dir: Path, clock: Any, event: Make) -> None:
    """`on_head` gets each head, after its event is on disk."""
    heads: list[Head] = []
    async with open_ledger(state_dir, clock=clock, on_head=heads.append) as ledger:
        await asyncio.gather(*(ledger.record(event()) for _ in range(2_500)))
        await ledger.record(event())
        (signed,) = await ledger.sign_head()
        # One from among the 2,500 events may still be on its way to the disk: those after it are told after it.
        await until(lambda: heads[-1:] == [signed])
        assert await ledger.sign_head() == []
        await ledger.record(event())
        key = audit_chain.public_key(ledger.public_key)
    assert [head.seq for head in heads][-2:] == [2_501, 2_502]
    assert len(heads) >= 3
    async with open_ledger(state_dir, clock=clock) as ledger:
        report = await ledger.read_slow(lambda db: audit_chain.verify(exports.export(db), heads=heads, key=key))
    assert report.ok, report.problem
    assert report.signed_seq == report.last_seq == report.events == 2_502


async def test_flood_of_denials_is_recorded_with_its_count(ledger: Ledger, event: Make, opened: Open) -> None:
    """Allows and other actors are not coalesced; the counts add up to all denials."""
    flood = event(decision="deny", code="capability_denied", detail={})
    seqs = [await ledger.record(flood) for _ in range(100)]
    assert seqs[:20] == list(range(1, 21))
    assert set(seqs[20:]) == {20}
    assert await ledger.record(event(decision="deny", actor="plugin:other.one", code="capability_denied")) == 21
    assert await ledger.record(event()) == 22
    await ledger._finish()
    rows = ledger.read(audit.query)
    assert [row["detail"] for row in rows[22:]] == [{"count": 80}]


async def test_counts_and_heads_are_written_by_timer(
    opened: Open, clock: Any, event: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count of a flood after a second, a head after a minute."""
    monkeypatch.setattr(ledger_module, "EVERY_S", 0.001)
    denied = event(decision="deny", detail={})
    async with opened() as ledger:
        for _ in range(25):
            await ledger.record(denied)
        assert ledger.read(audit.last_seq) == 20
        clock.advance(1)
        await until(lambda: ledger.read(audit.last_seq) == 21)
        assert ledger.read(lambda db: audit.query(db, after=20))[0]["detail"] == {"count": 5}
        clock.advance(60)
        await until(lambda: ledger.read(lambda db: db.execute("SELECT max(seq) FROM heads").get) == 21)


async def test_tampering_with_rows_is_found(opened: Open, state_dir: Path, event: Make) -> None:
    """Rows edited, deleted or broken in the database file fail verification."""
    async with opened() as ledger:
        for _ in range(5):
            await ledger.record(event())
        key = audit_chain.public_key(ledger.public_key)
    for statement, seq in (
        ("UPDATE audit SET detail = '{oops' WHERE seq = 4", 4),
        ("UPDATE audit SET decision = 'deny' WHERE seq = 3", 3),
        ("DELETE FROM audit WHERE seq = 2", 2),
        ("DELETE FROM audit", 1),
    ):
        connection = apsw.Connection(str(state_dir / "ledger.sqlite3"))
        connection.execute(statement)
        connection.close()
        async with opened() as ledger:
            report = await ledger.read_slow(lambda db: audit_chain.verify(exports.export(db), key=key))
        assert report.bad_seq == seq, report.problem


async def test_truncation_of_a_chain_is_still_found_after_more_writes(
    opened: Open, state_dir: Path, event: Make
) -> None:
    """The old head refers to an event that is missing."""
    async with opened() as ledger:
        for _ in range(5):
            await ledger.record(event())
    connection = apsw.Connection(str(state_dir / "ledger.sqlite3"))
    connection.execute("DELETE FROM audit WHERE seq > 3")
    connection.close()
    async with opened() as ledger:
        assert await ledger.record(event(target="after")) == 4
        assert await ledger.record(event(target="after")) == 5
    async with opened() as ledger:
        report = await ledger.read_slow(lambda db: audit_chain.verify(exports.export(db)))
    assert report.bad_seq == 5
    assert "not the one that was signed" in report.problem


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds; the test's timeout is the deadline."""
    while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread
        await asyncio.sleep(0.001)


async def test_jobs_of_one_turn_are_committed_together_and_called_back_in_order(ledger: Ledger, event: Make) -> None:
    """Also when a callback fails: that is reported, and the others are called."""
    called: list[tuple[int, str]] = []
    reported: list[BaseException] = []
    batches: list[int] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
    writer = ledger._writer
    deliver = writer._deliver
    writer._deliver = lambda batch, *rest: (batches.append(len(batch)), deliver(batch, *rest))[1]  # type: ignore[method-assign]

    def done(name: str) -> Callable[[Any, BaseException | None], None]:
        def tell(seq: int, error: BaseException | None) -> None:
            assert error is None
            called.append((seq, name))
            if name == "b":
                raise ZeroDivisionError

        return tell

    for name in "abc":
        ledger.note(event(target=name), done(name))
    assert await ledger.write(lambda tx: [row[0] for row in tx.execute("SELECT target FROM audit")]) == ["a", "b", "c"]
    assert called == [(1, "a"), (2, "b"), (3, "c")]
    assert [type(error) for error in reported] == [ZeroDivisionError]
    assert batches == [4]
