"""Slow reads of plugins queue behind each other, never in front of an operator's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from latticed.kit.clock import SystemClock
from latticed.ledger import Connection, Ledger, audit, open_ledger
from latticed.model import chain
from latticed.model.audit import Event


async def test_operator_read_does_not_wait_for_slow_plugin_read(tmp_path):
    """One plugin's query hangs and another waits behind it; the operator's is answered."""
    go_on = threading.Event()
    async with open_ledger(tmp_path / "state", clock=SystemClock()) as ledger:
        slow = asyncio.create_task(ledger.read_for_plugin(lambda _: go_on.wait(30)))
        behind = asyncio.create_task(ledger.read_for_plugin(audit.last_seq))
        assert await asyncio.wait_for(ledger.read_slow(audit.last_seq), 10) == 0
        assert not slow.done()
        assert not behind.done()
        go_on.set()
        assert (await slow, await behind) == (True, 0)


async def test_denials_of_an_actor_are_read_at_once_from_their_index(ledger: Ledger, monkeypatch: Any) -> None:
    """However many events there are: other filters read spans of them. The index covers actor and order."""
    for number in range(12):
        actor = f"plugin:acme.{number % 2}"
        await ledger.record(Event(actor=actor, action="host.call", target="kv.get", decision="deny", code=f"c{number}"))
    monkeypatch.setattr(audit, "SPAN", 3)
    asked = 0

    async def read(question: Callable[[Connection], Any]) -> Any:
        nonlocal asked
        asked += 1
        return await ledger.read_slow(question)

    of_one = {"chains": (chain.CALLS,), "actor": "plugin:acme.1", "newest_first": True}
    found = await audit.query_in_parts(read, decision="deny", limit=4, **of_one)
    assert ([event["code"] for event in found], asked) == (["c11", "c9", "c7", "c5"], 2)
    after = chain.Position(calls=found[-1]["seq"])
    rest = await audit.query_in_parts(read, decision="deny", limit=4, after=after, **of_one)
    assert ([event["code"] for event in rest], asked) == (["c3", "c1"], 4)
    assert await audit.query_in_parts(read, decision="deny", action="host.call", **of_one) == [*found, *rest]
    assert asked == 9  # the ends, and a span for each three
    statement = (
        "EXPLAIN QUERY PLAN SELECT seq FROM calls WHERE seq BETWEEN 1 AND 12 AND decision = 'deny' AND actor = 'a'"
    )
    plan = ledger.read(lambda db: [row[3] for row in db.execute(statement + " ORDER BY seq DESC LIMIT 4")])
    assert len(plan) == 1
    assert "INDEX calls_denied (actor=? AND seq>? AND seq<?)" in plan[0]
