"""P9: the daemon from start to ready, and its memory then: with its own plugins alone, and with eight built-in ones."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import TYPE_CHECKING

from benchmarks import daemon, processes, rows
from benchmarks.references import supervisord
from latticed.system.registry import BUILTINS

if TYPE_CHECKING:
    from benchmarks.bench import Bench

MAX_MB = 66
FACTOR = 1.2


def measure(bench: Bench) -> list[rows.Row]:
    """Each start has a fresh directory; supervisord is ready when its socket accepts.

    In a directory that it was started in before, supervisord finds its socket and sleeps for 0.3 s (supervisor 4.3,
    http.py), which nobody would want to be measured against.
    """
    return [*_measured(bench, "", "no plugins"), *_measured(bench, "listed", "eight built-in plugins listed")]


def _measured(bench: Bench, builtins: str, what: str) -> list[rows.Row]:
    memory: list[float] = []
    with bench.scratch() as place:
        numbers = itertools.count()

        def start() -> float:
            home = place / f"d{next(numbers)}"
            home.mkdir()
            ours = daemon.Place(home=home, programs=bench.ours(), builtins=builtins)
            ours.prepare()
            with daemon.running(ours) as running:
                ours_answers = running.get("/api/health")["status"]
                listed = len(running.get("/api/plugins"))
                time.sleep(0.3)  # what starts late belongs to its memory too
                memory.append(processes.memory_mib(running.process.pid))
                if ours_answers != "ok" or listed != (8 if builtins else len(BUILTINS)):
                    raise RuntimeError(f"expected a healthy daemon with {what}, found {ours_answers}, {listed} plugins")
                return running.start_s

        def their_start() -> float:
            home = place / f"s{next(numbers)}"
            supervisord.prepare(home)
            with supervisord.running(bench.supervisor(), home) as running:
                return running.start_s

        start()
        their_start()
        memory.clear()
        pairs = rows.interleave(start, their_start, count=bench.pairs)
    ratio, met = rows.at_most(pairs, FACTOR)
    mib = statistics.median(memory)
    return [
        rows.Row(
            target="P9",
            what=f"start to READY=1, {what}",
            ours=rows.seconds(pairs.our_median),
            reference=f"{rows.seconds(pairs.their_median)} supervisord accepts",
            ratio=ratio,
            wanted=f"≤ {FACTOR:g}×",
            met=met,
            samples=rows.samples(pairs),
        ),
        rows.Row(
            target="P9",
            what=f"resident memory once ready, {what}",
            ours=f"{mib:.1f} MiB ({min(memory):.1f}–{max(memory):.1f})",
            wanted=f"≤ {MAX_MB} MB",
            met=mib * 1.048576 <= MAX_MB,
            samples={"mib": memory},
        ),
    ]
