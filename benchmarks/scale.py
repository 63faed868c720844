"""10,000 bundles: first scan, restart, memory, and a burst of 2,000 changes, seen through the control socket."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from benchmarks import daemon, many, processes, rows
from benchmarks.bench import say
from latticed.system.registry import BUILTINS

if TYPE_CHECKING:
    from benchmarks.bench import Bench

BURST: Final = 2_000
MAX_MIB: Final = 150
RESTART_S: Final = 2.5
SETTINGS: Final = '[runners]\nsystem = "noop"\n'
"""Plugins that are active take no process here: what is measured is the daemon."""
LISTING: Final = "/api/plugins/lifecycle"
STATUS: Final = "/api/status"


def measure(bench: Bench) -> list[rows.Row]:
    count = bench.some(10_000, 2_000)
    burst = min(BURST, count // 2)
    with bench.scratch() as place:
        ours = daemon.Place(home=place, programs=bench.ours())
        ours.prepare(SETTINGS)
        say(f"SCALE: writing {count} bundles")
        many.write(ours.plugins, count)
        with daemon.running(ours) as first:
            first_s = first.start_s
            known = len(first.get(LISTING))
            fresh_mib = processes.memory_mib(first.process.pid)
        with daemon.running(ours) as again:
            again_s = again.start_s
            before_mib = processes.memory_mib(again.process.pid)
            burst_s, slowest_s = _burst(again, ours, count, burst)
            listing_s = _timed(lambda: again.get(LISTING))
            after_mib = processes.memory_mib(again.process.pid)
            peak_mib = processes.memory_mib(again.process.pid, "VmHWM")
            # Of those that the burst left as they were.
            active = [one["id"] for one in again.get(LISTING) if one["available"]][: count // 2]
            say(f"SCALE: activating {len(active)} plugins")
            for plugin_id in active:
                again.decide(plugin_id, "installed")
                again.decide(plugin_id, "active")
        with daemon.running(ours) as half:
            half_s = half.start_s
            began_s = time.perf_counter()
            # Seldom: each answer counts all plugins.
            processes.until(
                lambda: half.get(STATUS)["runtime"].get("armed", 0) == len(active), "all to be armed", pause_s=0.5
            )
            armed_s = half_s + time.perf_counter() - began_s
    if known != count + len(BUILTINS):
        raise RuntimeError(f"expected {count} plugins on record beside {len(BUILTINS)} built-in, found {known}")
    return [
        rows.Row(
            target="SCALE", what=f"{count:,} new bundles: start to READY=1, all on record", ours=rows.seconds(first_s)
        ),
        rows.Row(target="SCALE", what="restart with all on record", ours=rows.seconds(again_s)),
        rows.Row(
            target="P1",
            what=f"restart with {count:,} on record, {len(active):,} of them active",
            ours=f"{rows.seconds(half_s)}, all started after {rows.seconds(armed_s)}",
            wanted=f"≤ {RESTART_S:g} s",
            met=half_s <= RESTART_S,
        ),
        rows.Row(
            target="SCALE",
            what=f"burst of {burst:,} changed bundles until all are seen",
            ours=rows.seconds(burst_s),
            reference=f"slowest /api/health meanwhile {rows.seconds(slowest_s)}",
            wanted="nothing lost",
            met=True,
        ),
        rows.Row(target="SCALE", what=f"listing all {count:,}", ours=rows.seconds(listing_s)),
        rows.Row(
            target="SCALE",
            what="resident memory: first start, restart, after the burst and a listing (peak)",
            ours=f"{fresh_mib:.0f}, {before_mib:.0f}, {after_mib:.0f} ({peak_mib:.0f}) MiB",
            wanted=f"< {MAX_MIB} MB",
            met=max(fresh_mib, after_mib, peak_mib) * 1.048576 < MAX_MIB,
        ),
    ]


def _burst(running: daemon.Daemon, ours: daemon.Place, count: int, burst: int) -> tuple[float, float]:
    """Change `burst` artifacts so that they no longer verify; (seconds until all are rejected, slowest health)."""
    began_s, slowest_s = time.perf_counter(), 0.0
    for number in range(0, burst * (count // burst), count // burst):
        with (ours.plugins / many.plugin_id(number) / "artifact").open("ab") as artifact:
            artifact.write(b"# changed\n")
    while True:
        slowest_s = max(slowest_s, _timed(lambda: running.get("/api/health")))
        if running.get(STATUS)["rejected"] >= burst:
            return time.perf_counter() - began_s, slowest_s
        if time.perf_counter() - began_s > 120:
            raise TimeoutError(f"expected {burst} rejected bundles, found {running.get(STATUS)['rejected']}")
        time.sleep(0.01)


def _timed(ask: object) -> float:
    assert callable(ask)
    began_s = time.perf_counter()
    ask()
    return time.perf_counter() - began_s
