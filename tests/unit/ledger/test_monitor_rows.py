"""ledger.monitors: rows of monitors, their state and newest results."""

from __future__ import annotations

import pytest

from latticed.ledger import Ledger
from latticed.ledger import monitors as rows
from latticed.ledger.monitors import Result
from latticed.ledger.quota import RowQuota
from latticed.model.errors import Problem

WIDE = RowQuota(plugin=10, total=100)
A, B = "acme.a", "acme.b"


async def put(ledger: Ledger, plugin_id: str = A, name: str = "web", *, spec="{}", anew=True, quota=WIDE, now=5):
    return await ledger.write(lambda tx: rows.put(tx, plugin_id, name, spec, quota, now_us=now, anew=anew))


async def keep(ledger: Ledger, key: int, *, state="up", against=0, since=7, most=500, **fields):
    result = Result(**{"outcome": "up", **fields})
    return await ledger.write(
        lambda tx: rows.keep(tx, key, result, state=state, against=against, since=since, most=most)
    )


async def test_monitor_and_results_round_trip(ledger):
    """Spec, state and every field of the latest result; results are numbered per monitor."""
    row = await put(ledger, spec='{"kind":"tcp"}')
    full = {"at": 9, "outcome": "down", "code": "c", "reason": "r", "took_us": 3, "http_status": 500, "expires_at": 8}
    await keep(ledger, row.key)
    kept = await keep(ledger, row.key, state="down", against=1, since=9, **full)
    assert kept == Result(number=2, **full)
    ((found, last),) = ledger.read(rows.load_all)
    assert (found.spec, found.state, found.against, found.since, found.checks) == ('{"kind":"tcp"}', "down", 1, 9, 2)
    assert last == kept


async def test_only_the_newest_monitor_results_are_kept(ledger):
    """As many are kept as asked for, oldest first; a lower limit takes effect with the next result."""
    row = await put(ledger)
    for number in range(1, 31):
        await keep(ledger, row.key, at=number, most=20)
    found = ledger.read(lambda db: rows.results(db, row.key))
    assert [one.number for one in found] == list(range(11, 31))
    assert [one.number for one in ledger.read(lambda db: rows.results(db, row.key, after=25, limit=3))] == [28, 29, 30]
    await keep(ledger, row.key, most=2)
    assert [one.number for one in ledger.read(lambda db: rows.results(db, row.key))] == [30, 31]


async def test_monitor_with_new_target_loses_results_and_changed_spec_keeps_them(ledger):
    """A changed spec keeps the row; a new target gets a new key, and late results for the old key are dropped."""
    first = await put(ledger)
    await keep(ledger, first.key, state="down")
    same = await put(ledger, spec='{"a":1}', anew=False, now=6)
    assert (same.key, same.state, same.created_at, same.updated_at) == (first.key, "down", 5, 6)
    other = await put(ledger, spec='{"a":2}', anew=True, now=7)
    assert (other.key > first.key, other.state, other.checks, other.created_at) == (True, "unknown", 0, 5)
    assert await keep(ledger, first.key) is None
    assert ledger.read(lambda db: rows.results(db, first.key)) == []
    assert await ledger.write(lambda tx: rows.delete(tx, A, "web"))
    assert not await ledger.write(lambda tx: rows.delete(tx, A, "web"))
    assert (await put(ledger)).key > other.key


async def test_quotas_refuse_new_monitors_but_not_replacements(ledger):
    """They are per plugin and in total; a refused put changes nothing."""
    tight = RowQuota(plugin=2, total=3)
    for plugin_id, name in ((A, "1"), (A, "2"), (B, "1")):
        await put(ledger, plugin_id, name, quota=tight)
    with pytest.raises(Problem, match=r"at most 2 monitors of acme\.a, found 3") as caught:
        await put(ledger, A, "3", quota=tight)
    assert caught.value.code == "quota_exceeded"
    with pytest.raises(Problem, match="at most 3 monitors, found 4"):
        await put(ledger, B, "2", quota=tight)
    await put(ledger, A, "2", spec='{"b":1}', anew=True, quota=tight)
    await put(ledger, A, "2", spec='{"b":2}', anew=False, quota=tight)
    assert len(ledger.read(rows.load_all)) == 3


async def test_clear_removes_all_monitors_of_one_plugin(ledger):
    """Their results are removed, too; those of others stay."""
    mine, theirs = await put(ledger, A, "1"), await put(ledger, B, "1")
    await put(ledger, A, "2")
    for row in (mine, theirs):
        await keep(ledger, row.key)
    assert await ledger.write(lambda tx: rows.clear(tx, A)) == 2
    assert ledger.read(lambda db: rows.results(db, mine.key)) == []
    assert [row.plugin_id for row, _ in ledger.read(rows.load_all)] == [B]
    assert len(ledger.read(lambda db: rows.results(db, theirs.key))) == 1
