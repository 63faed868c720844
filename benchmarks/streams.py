"""What event streams cost host calls: the calls per second of one plugin beside 0, 8 and 32 of them."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Final

from benchmarks import rows, stream_readers
from benchmarks.host_calls import SETTINGS, call
from tests.house import in_process

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.bench import Bench
    from tests.house.in_process import Home

BESIDE: Final = ((8, False), (32, False), (8, True), (32, True))
"""How many streams there are, and whether they show host calls; those that do not are idle."""
MOST_COST: Final = 0.1


def measure(bench: Bench) -> list[rows.Row]:
    with bench.scratch() as place:
        return asyncio.run(_measure(place, bench))


async def _measure(place: Path, bench: Bench) -> list[rows.Row]:
    count = bench.some(20_000, 4_000)
    found: dict[tuple[int, bool], tuple[list[float], list[float]]] = {which: ([], []) for which in BESIDE}
    async with in_process.opened(place, toml=SETTINGS) as home:
        home.drop("demo", id="acme.demo", capabilities=["kv:read", "kv:write"])
        instance = await home.armed("acme.demo")
        await instance.call("kv.put", key="a", value="1")
        await call(instance, count)  # until caches are full
        for pair in range(bench.pairs):
            for which in BESIDE:
                # Who goes first changes from pair to pair.
                for number in (0, 1) if pair % 2 else (1, 0):
                    found[which][number].append(await _rate(home, which if number == 0 else (0, False), count))
    return [_row(which, *found[which]) for which in BESIDE]


async def _rate(home: Home, which: tuple[int, bool], count: int) -> float:
    """Calls per second beside these streams."""
    instance, path = home.driven.only("acme.demo"), home.app.api.settings.control_socket
    readers = stream_readers.reading(path, which[0], host_calls=which[1])
    await asyncio.to_thread(readers.__enter__)
    try:
        began_s = time.perf_counter()
        await call(instance, count)
        return count / (time.perf_counter() - began_s)
    finally:
        await asyncio.to_thread(readers.__exit__, None, None, None)


def _row(which: tuple[int, bool], ours: list[float], alone: list[float]) -> rows.Row:
    number, shown = which
    ratio = rows.spread([our / other for our, other in zip(ours, alone, strict=True)])
    promised = which == (32, False)
    return rows.Row(
        target="STREAMS",
        what=f"audited host calls, 64 at once, beside {number} streams that {'show them all' if shown else 'are idle'}",
        ours=f"{statistics.median(ours):,.0f}/s",
        reference=f"{statistics.median(alone):,.0f}/s without streams",
        ratio=ratio,
        wanted=f"≥ {1 - MOST_COST:.2f} ×" if promised else "-",
        met=ratio.median >= 1 - MOST_COST if promised else None,
        samples={"ours": ours, "reference": alone},
    )
