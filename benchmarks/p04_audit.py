"""P4: audit events per second, each recorded before its caller is answered."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING

import apsw

from benchmarks import rows
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger
from latticed.ledger.audit import position
from latticed.model.audit import Event

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.bench import Bench

CALLERS = 64
WANTED_PER_S = 100_000
_EVENT = Event(
    actor="plugin:acme.demo",
    action="host.call",
    target="kv.get",
    decision="allow",
    detail={"bytes": 17, "sha256": "9" * 64},
)
_INSERT = "INSERT INTO audit VALUES (?,?,?,?,?,?,?,?,?,?,?)"
_BARE_ROW = ("2026-01-01T00:00:00.000000Z", "plugin:acme.demo", "host.call", "kv.get", "allow", "", "", "{}")


def measure(bench: Bench) -> list[rows.Row]:
    count = bench.some(200_000, 30_000)
    with bench.scratch() as place:
        pairs = rows.interleave(
            lambda: asyncio.run(_record(place / "ours", CALLERS, count)),
            lambda: _bare(place / "bare.sqlite3", count),
            count=bench.pairs,
        )
        alone_s = [1 / asyncio.run(_record(place / "ours", 1, bench.some(5_000, 1_000))) for _ in range(bench.pairs)]
    rates = rows.Pairs(ours=pairs.ours, theirs=pairs.theirs)
    return [
        rows.Row(
            target="P4",
            what=f"audit events/s, {CALLERS} callers: chained, committed, answered",
            ours=f"{rates.our_median:,.0f}/s ({min(rates.ours):,.0f}–{max(rates.ours):,.0f})",
            reference=f"{rates.their_median:,.0f}/s bare apsw, rows of 64 a transaction",
            ratio=rows.spread(rates.ratios),
            wanted=f"≥ {WANTED_PER_S:,}/s",
            met=rates.our_median >= WANTED_PER_S,
            samples=rows.samples(rates),
        ),
        rows.Row(target="P4", what="one caller alone, per event", ours=rows.seconds(statistics.median(alone_s))),
    ]


async def _record(state: Path, callers: int, count: int) -> float:
    """Events per second; every caller waits for one answer before it asks again."""
    async with open_ledger(state, clock=SystemClock()) as ledger:
        before = ledger.read(position).calls

        async def call() -> None:
            for _ in range(count // callers):
                await ledger.record(_EVENT)

        began_s = time.perf_counter()
        await asyncio.gather(*(call() for _ in range(callers)))
        took_s = time.perf_counter() - began_s
        if ledger.read(position).calls - before != count // callers * callers:
            raise RuntimeError("events are missing")
    return count // callers * callers / took_s


def _bare(path: Path, count: int) -> float:
    """Rows of the same shape per second, without chain, threads or callers: what SQLite itself takes."""
    connection = apsw.Connection(str(path))
    connection.execute("PRAGMA journal_mode=WAL").fetchall()
    connection.execute("PRAGMA synchronous=NORMAL")
    columns = ",".join("seq ts actor action target decision code reason detail prev hash".split()[1:])
    connection.execute(f"CREATE TABLE IF NOT EXISTS audit (seq INTEGER PRIMARY KEY, {columns})")
    began_s = time.perf_counter()
    for _ in range(count // CALLERS):
        with connection:
            connection.executemany(_INSERT, [(None, *_BARE_ROW, "9" * 64, "9" * 64)] * CALLERS)
    took_s = time.perf_counter() - began_s
    connection.close()
    return count // CALLERS * CALLERS / took_s
