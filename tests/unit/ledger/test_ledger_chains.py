"""The chains of decisions and of host calls: events of one are not accepted in the other, nor removed for it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import apsw
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.ledger import Ledger, audit, contacts, floors, migrations, rebuild
from latticed.ledger.retention import Retention
from latticed.model import chain
from latticed.model.audit import Event
from latticed.trust import audit_chain
from tests.house import exports

Open = Callable[[], AbstractAsyncContextManager[Ledger]]
CALL = Event(actor="plugin:acme.demo", action="host.call", target="kv.get", decision="allow")
ACT = Event(actor="uid:0", action="plugin.status", target="acme.demo", decision="allow")
KEY = Ed25519PrivateKey.from_private_bytes(b"\7" * 32)
BEFORE_CALLS = next(n for n, step in enumerate(migrations.MIGRATIONS) if "CREATE TABLE calls" in step)


async def mixed(ledger: Ledger, decisions: int, calls: int) -> None:
    """Alternating decisions and calls, both chains signed at the end."""
    for number in range(max(decisions, calls)):
        if number < decisions:
            await ledger.record(ACT)
        if number < calls:
            await ledger.record(CALL)
    await ledger.sign_head()


async def exported(ledger: Ledger) -> list[Any]:
    found = await ledger.read_slow(lambda db: list(exports.export(db)))
    return [json.loads(json.dumps(line)) for line in found]


def check(ledger: Ledger, lines: list[Any]) -> audit_chain.ChainCheck:
    return audit_chain.verify(lines, key=audit_chain.public_key(ledger.public_key))


async def test_host_calls_go_to_calls_chain(ledger: Ledger) -> None:
    """That chain has seqs and heads of its own; export lines name their chain, and both verify."""
    await mixed(ledger, 3, 5)
    assert ledger.read(audit.position) == (3, 5)
    lines = await exported(ledger)
    assert [line.get("chain") for line in lines] == [None] * 4 + ["calls"] * 6
    report = check(ledger, lines)
    assert (report.ok, report.events, report.signed_seq) == (True, 3, 3)
    assert report.calls is not None
    assert (report.calls.ok, report.calls.events, report.calls.signed_seq) == (True, 5, 5)


async def test_both_audit_chains_continue_after_restart(opened: Open) -> None:
    async with opened() as ledger:
        await mixed(ledger, 2, 3)
    async with opened() as ledger:
        await mixed(ledger, 2, 3)
        assert ledger.read(audit.position) == (4, 6)
        assert check(ledger, await exported(ledger)).ok


@pytest.mark.parametrize("of", ["decisions", "calls"])
async def test_head_of_one_chain_is_rejected_in_the_other(ledger: Ledger, of: str) -> None:
    """Checkpoints too: the signature covers the chain's name."""
    await mixed(ledger, 3, 3)
    lines = await exported(ledger)
    (head,) = [line["head"] for line in lines if "head" in line and line.get("chain", "decisions") == of]
    other = [line for line in lines if "seq" in line and line.get("chain", "decisions") != of]
    named = {"chain": "calls"} if of == "decisions" else {}
    report = check(ledger, [*other, {"head": head, **named}])
    found = report.calls if named else report
    assert found is not None
    assert "not signed by this host's key" in found.problem


async def test_unknown_name_of_audit_chain_is_rejected(ledger: Ledger) -> None:
    await mixed(ledger, 1, 1)
    lines = [{**line, "chain": "other"} if "seq" in line else line for line in await exported(ledger)]
    assert "none of ours" in check(ledger, lines).problem


async def test_retention_of_calls_removes_no_decisions(ledger: Ledger) -> None:
    """The removal is recorded as an event of the calls."""
    for _ in range(10):
        await mixed(ledger, 2, 50)
    ledger.calls_retention = Retention(max_bytes=50_000)
    removed = await ledger.remove_old(by_age=False)
    assert removed > 100
    assert ledger.read(lambda db: len(audit.query(db, limit=1000))) == 20
    assert ledger.read(audit.checkpoint) is None
    (event,) = ledger.read(lambda db: audit.query(db, chain="calls", action="audit.removed"))
    assert event["detail"]["removed"] == removed
    report = check(ledger, await exported(ledger))
    assert report.ok
    assert report.calls is not None
    assert report.calls.removed_seq == removed


async def test_retention_of_decisions_uses_its_own_limit(ledger: Ledger) -> None:
    for _ in range(10):
        await mixed(ledger, 50, 2)
    ledger.retention = Retention(max_bytes=50_000)
    assert await ledger.remove_old(by_age=False) > 100
    assert ledger.read(lambda db: len(audit.query(db, chain="calls"))) == 20
    assert check(ledger, await exported(ledger)).ok


async def test_heads_are_signed_by_the_count_of_their_chain(state_dir: Path, clock: Any, opened: Open) -> None:
    """2,500 calls cause heads of the calls, none of the decisions."""
    async with opened() as ledger:
        await ledger.record(ACT)
        for _ in range(5):
            futures = [ledger.record(CALL) for _ in range(500)]
            for one in futures:
                await one
        assert ledger.read(lambda db: len(audit.heads(db, 1, 9_999, chain="calls"))) >= 2
        assert ledger.read(lambda db: audit.heads(db, 1, 9_999)) == []


async def test_audit_query_merges_chains_by_time_and_pages_by_cursor(ledger: Ledger, clock: Any) -> None:
    """No event comes twice or is missing, also when the clock jumps back in between."""
    for number in range(10):
        await ledger.record(ACT if number % 3 else CALL)
        clock.advance(1 if number != 5 else -100)
    everything = await audit.query_in_parts(ledger.read_slow, chains=chain.NAMES, limit=1000)
    assert len(everything) == 10
    at, seen = chain.Position(), []
    while page := await audit.query_in_parts(ledger.read_slow, chains=chain.NAMES, after=at, limit=3):
        seen += page
        at = at.past(page)
    assert seen == everything
    assert at == (6, 4)
    newest = await audit.query_in_parts(ledger.read_slow, chains=chain.NAMES, newest_first=True, limit=1000)
    assert {(event["seq"], event.get("chain")) for event in newest} == {
        (event["seq"], event.get("chain")) for event in everything
    }


async def test_long_audit_query_is_split_into_spans(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter that matches nothing must not occupy the reader for a scan of all rows."""
    monkeypatch.setattr("latticed.ledger.audit.SPAN", 7)
    await mixed(ledger, 30, 0)
    asked = 0

    async def read(question: Callable[[Any], Any]) -> Any:
        nonlocal asked
        asked += 1
        return await ledger.read_slow(question)

    for newest_first in (False, True):
        asked = 0
        assert await audit.query_in_parts(read, chains=("decisions",), target="x", newest_first=newest_first) == []
        assert asked == 1 + 5
    found = await audit.query_in_parts(read, chains=("decisions",), newest_first=True, limit=9)
    assert [event["seq"] for event in found] == list(range(30, 21, -1))


async def test_usage_counts_calls_in_both_chains(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls recorded before they had a chain of their own count, too."""
    monkeypatch.setattr("latticed.ledger.audit.SPAN", 3)
    await ledger.write(lambda tx: [tx.chains.decisions.append(CALL) for _ in range(4)])
    await mixed(ledger, 1, 5)
    (one,) = await contacts.used(ledger.read_slow, "plugin:acme.demo", 0)
    assert (one.call, one.allowed, one.denied) == ("kv.get", 9, 0)


def older(directory: Path, events: list[Event]) -> str:
    """A ledger as the previous version wrote it, with one chain, and the hash of its last event."""
    directory.mkdir(mode=0o700)
    connection = apsw.Connection(str(directory / "ledger.sqlite3"))
    connection.pragma("journal_mode", "wal")
    migrations.migrate(connection, steps=migrations.MIGRATIONS[:BEFORE_CALLS])
    prev = chain.GENESIS
    for seq, event in enumerate(events, 1):
        row = {"seq": seq, "ts": "2026-01-01T00:00:00.000000Z", "actor": event.actor, "action": event.action}
        row |= {"target": event.target, "decision": event.decision, "code": "", "reason": "", "detail": {}}
        prev = (row := {**row, "prev": prev, "hash": chain.link(prev, {**row, "prev": prev})})["hash"]
        values = [json.dumps(row[name]) if name == "detail" else row[name] for name in audit.FIELDS]
        connection.execute("INSERT INTO audit VALUES (?,?,?,?,?,?,?,?,?,?,?)", values)
    payload = chain.HEAD_DOMAIN + chain.encode({"seq": len(events), "ts": "t", "hash": prev}).encode()
    signature = base64.b64encode(KEY.sign(payload)).decode()
    connection.execute(
        "INSERT INTO heads (seq, hash, ts, signature, size) VALUES (?,?,?,?,0)", (len(events), prev, "t", signature)
    )
    connection.close()
    (directory / "host.key").write_bytes(b"\7" * 32)
    (directory / "host.key").chmod(0o600)
    floors.write(directory, floors.Floors(), KEY)  # as the version before: without heads
    return prev


async def test_migrated_ledger_keeps_old_calls_among_decisions(state_dir: Path, opened: Open) -> None:
    """Their hashes are unchanged; new calls go to the new chain."""
    last = older(state_dir, [ACT, CALL, CALL, ACT])
    async with opened() as ledger:
        (event,) = ledger.read(lambda db: audit.query(db, newest_first=True, limit=1))
        assert (event["seq"], event["hash"]) == (4, last)
        await mixed(ledger, 1, 2)
        assert ledger.read(audit.position) == (5, 2)
        report = check(ledger, await exported(ledger))
        assert (report.ok, report.signed_seq) == (True, 5), report.problem
    found = rebuild.read_damaged(state_dir / "ledger.sqlite3")
    assert (found.last_seq, found.calls_seq) == (5, 2)
    assert rebuild.diagnosis(state_dir) == ""
