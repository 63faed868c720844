"""P4: audit events per second, each recorded before its caller is answered."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

import apsw

from benchmarks import rows
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger
from latticed.ledger.audit import position
from latticed.model.audit import AllowedCall, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from benchmarks.bench import Bench

CALLERS = 64
ALONE, TOGETHER = 0.25, 0.5
"""Of what SQLite itself takes: asked by 64 callers, and as 64 calls that one turn of the loop brings."""
_EVENT = Event(
    actor="plugin:acme.demo",
    action="host.call",
    target="kv.get",
    decision="allow",
    detail={"bytes": 17, "sha256": "9" * 64},
)
_CALL = AllowedCall("plugin:acme.demo", "kv.get", 17, "9" * 64)
"""The same, as the Gate has it recorded."""
_INSERT = "INSERT INTO audit VALUES (?,?,?,?,?,?,?,?,?,?,?)"
_BARE_ROW = ("2026-01-01T00:00:00.000000Z", "plugin:acme.demo", "host.call", "kv.get", "allow", "", "", "{}")


def measure(bench: Bench) -> list[rows.Row]:
    count = bench.some(200_000, 30_000)
    with bench.scratch() as place:

        def against_bare(ours: Callable[[Path, int], Coroutine[Any, Any, float]]) -> rows.Pairs:
            return rows.interleave(
                lambda: asyncio.run(ours(place / "ours", count)),
                lambda: _bare(place / "bare.sqlite3", count),
                count=bench.pairs,
            )

        asked = against_bare(lambda state, many: _record(state, CALLERS, many))
        together = against_bare(_together)
        alone_s = [1 / asyncio.run(_record(place / "ours", 1, bench.some(5_000, 1_000))) for _ in range(bench.pairs)]
    return [
        _row(f"audit events/s, {CALLERS} callers: chained, committed, answered", asked, ALONE),
        _row(f"... {CALLERS} calls of one turn at a time: chained, committed, called back", together, TOGETHER),
        rows.Row(target="P4", what="one caller alone, per event", ours=rows.seconds(statistics.median(alone_s))),
    ]


def _row(what: str, rates: rows.Pairs, share: float) -> rows.Row:
    ratio = rows.spread(rates.ratios)
    return rows.Row(
        target="P4",
        what=what,
        ours=f"{rates.our_median:,.0f}/s ({min(rates.ours):,.0f}–{max(rates.ours):,.0f})",
        reference=f"{rates.their_median:,.0f}/s bare apsw, rows of {CALLERS} a transaction",
        ratio=ratio,
        wanted=f"≥ {share:g}×",
        met=ratio.median >= share,
        samples=rows.samples(rates),
    )


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


async def _together(state: Path, count: int) -> float:
    """Events per second, as host calls come: many in one turn of the loop, the next when all of these are answered."""
    async with open_ledger(state, clock=SystemClock()) as ledger:
        loop = asyncio.get_running_loop()
        began_s = time.perf_counter()
        for _ in range(count // CALLERS):
            answered = loop.create_future()
            left = CALLERS

            def done(_: object, error: BaseException | None, answered: asyncio.Future[None] = answered) -> None:
                nonlocal left
                left -= 1
                if error is not None:
                    answered.set_exception(error)
                elif not left:
                    answered.set_result(None)

            for _ in range(CALLERS):
                ledger.note(_CALL, done)
            await answered
        return count // CALLERS * CALLERS / (time.perf_counter() - began_s)


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
