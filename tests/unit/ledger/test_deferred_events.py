"""Deferred events are kept until the ledger takes them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from latticed.ledger import Ledger, audit, deferred_events
from latticed.model.audit import Event
from latticed.model.errors import Problem
from tests.house import processes

FULL = Problem("ledger_unavailable", "the disk is full")


def stopped(number: int) -> Event:
    return Event(actor="latticed", action="plugin.runtime", target=f"acme.n{number}", detail={"state": "stopped"})


async def recorded(ledger: Ledger, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + processes.PATIENCE_S
    while len(found := ledger.read(lambda db: audit.query(db, limit=1000))) < count:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.005)
    return found


async def nothing_waits(ledger: Ledger) -> None:
    deadline = time.monotonic() + processes.PATIENCE_S
    while ledger._deferred.waiting:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


class Disk:
    """A writer whose disk can be made full."""

    def __init__(self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.tried = asyncio.Event()
        self._submit = ledger._writer.submit
        monkeypatch.setattr(ledger._writer, "submit", self.submit)

    def submit(self, change: Any, **how: Any) -> asyncio.Future[Any]:
        if not self.full:
            return self._submit(change, **how)
        refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        refused.set_exception(FULL)
        self.tried.set()
        return refused


async def test_deferred_events_are_recorded_in_order_without_waiting(ledger: Ledger) -> None:
    for number in range(1_200):
        ledger.record_later(stopped(number))
    assert ledger._deferred.waiting == 1_200
    found = ledger.read(lambda db: audit.query(db, limit=1000))
    assert found == []
    await recorded(ledger, 1_000)
    await nothing_waits(ledger)
    found = ledger.read(lambda db: audit.query(db, after=1_000, limit=1000))
    assert [row["target"] for row in found] == [f"acme.n{number}" for number in range(1_000, 1_200)]
    assert "at" not in found[0]["detail"]


async def test_event_refused_by_full_disk_is_written_later_with_its_time(
    ledger: Ledger, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`at` in the detail says when it happened."""
    monkeypatch.setattr(deferred_events, "AGAIN_S", 0.01)
    disk = Disk(ledger, monkeypatch)
    disk.full = True
    ledger.record_later(stopped(1))
    await disk.tried.wait()
    clock.advance(60)
    ledger.record_later(stopped(2))
    assert ledger._deferred.waiting == 2
    disk.full = False
    first, second = await recorded(ledger, 2)
    assert first["detail"] == {"at": "2026-01-02T03:04:05.000000Z", "state": "stopped"}
    assert (first["ts"], second["detail"]) == ("2026-01-02T03:05:05.000000Z", {"state": "stopped"})
    await nothing_waits(ledger)


async def test_deferred_events_beyond_the_limit_are_only_counted(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred_events, "AGAIN_S", 0.01)
    monkeypatch.setattr(deferred_events, "MAX", 5)
    disk = Disk(ledger, monkeypatch)
    disk.full = True
    for number in range(12):
        ledger.record_later(stopped(number))
    assert ledger._deferred.waiting == 12
    disk.full = False
    found = await recorded(ledger, 6)
    assert [row["target"] for row in found[:5]] == [f"acme.n{number}" for number in range(5)]
    assert (found[5]["action"], found[5]["detail"]) == ("audit.lost", {"count": 7})


async def test_closing_ledger_writes_deferred_events(opened: Any) -> None:
    async with opened() as ledger:
        for number in range(3):
            ledger.record_later(stopped(number))
    async with opened() as ledger:
        assert ledger.read(audit.last_seq) == 3


async def test_closing_during_a_write_records_each_deferred_event_once(opened: Any) -> None:
    """It is closed at each step of the write."""
    total = 0
    for pauses in range(6):
        async with opened() as ledger:
            for number in range(700):
                ledger.record_later(stopped(number))
            total += 700
            for _ in range(pauses):
                await asyncio.sleep(0)
        async with opened() as ledger:
            assert ledger.read(audit.last_seq) == total


async def test_refused_count_has_only_events_that_the_disk_refused(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Health reports `refused`; events that are merely queued must not degrade it."""
    disk = Disk(ledger, monkeypatch)
    ledger.record_later(stopped(1))
    assert (ledger._deferred.waiting, ledger.refused) == (1, 0)
    await nothing_waits(ledger)
    disk.full = True
    ledger.record_later(stopped(2))
    deadline = time.monotonic() + processes.PATIENCE_S
    while ledger.refused != 1:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)
    disk.full = False
    await nothing_waits(ledger)
    assert ledger.refused == 0
