"""A million host calls through the Gate of one armed plugin, to find leaks of memory, descriptors and threads."""

from __future__ import annotations

import asyncio
import gc
import os
import time
from typing import TYPE_CHECKING, Final

from benchmarks import processes, rows
from benchmarks.bench import say
from tests.house import in_process

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.bench import Bench
    from tests.house.runners import DrivenInstance

CALLERS: Final = 64
GROWTH_MIB: Final = 8.0
"""What still counts as flat: caches that fill and allocators that round, not a leak of 10 bytes a call."""
SETTINGS: Final = "[host_calls]\nper_second = 1000000\nburst = 1000000\n"


def measure(bench: Bench) -> list[rows.Row]:
    count = bench.some(1_000_000, 60_000)
    with bench.scratch() as place:
        return asyncio.run(_measure(place, count))


async def _measure(place: Path, count: int) -> list[rows.Row]:
    async with in_process.opened(place, toml=SETTINGS) as home:
        home.drop("demo", id="acme.demo", capabilities=["kv:read", "kv:write"])
        instance = await home.armed("acme.demo")
        await instance.call("kv.put", key="a", value="1")
        await call(instance, max(20_000, count // 10))  # until caches are full
        before, began_s = _held(), time.perf_counter()
        for part in range(10):
            await call(instance, count // 10)
            say(f"CALLS: {(part + 1) * count // 10:,} calls, {_held()[0]:.1f} MiB")
        took_s, after = time.perf_counter() - began_s, _held()
        recorded = home.mark().calls
    grown = after[0] - before[0]
    return [
        rows.Row(
            target="CALLS",
            what=f"{count:,} audited host calls, {CALLERS} at once: RSS, fds, threads",
            ours=f"{before[0]:.1f} → {after[0]:.1f} MiB, {before[1]} → {after[1]}, {before[2]} → {after[2]}",
            reference=f"{count / took_s:,.0f} calls/s, {recorded:,} events on record",
            wanted=f"flat (≤ {GROWTH_MIB:.0f} MiB)",
            met=grown <= GROWTH_MIB and after[1:] == before[1:],
        )
    ]


async def call(instance: DrivenInstance, count: int) -> None:
    """`count` calls by `CALLERS` callers at once."""

    async def caller() -> None:
        for _ in range(count // CALLERS):
            await instance.call("kv.get", key="a")

    await asyncio.gather(*(caller() for _ in range(CALLERS)))


def _held() -> tuple[float, int, int]:
    """(resident MiB, descriptors, threads) of this process."""
    gc.collect()
    own = os.getpid()
    return processes.memory_mib(own), processes.descriptors(own), processes.threads(own)
