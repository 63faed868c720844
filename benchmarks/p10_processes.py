"""P10: 500 process plugins, from the start of the daemon until all of them run, beside supervisord's programs."""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import daemon, living, many, processes, rows
from benchmarks.bench import say
from benchmarks.references import supervisord
from latticed.model.runtime import RuntimeState
from tests.house import bundles

if TYPE_CHECKING:
    from benchmarks.bench import Bench

FASTER: Final = 1.5
PAIRS: Final = 3
STATUS: Final = "/api/status"
_LOOK_S: Final = 0.02


def measure(bench: Bench) -> list[rows.Row]:
    """Ours verifies, confines and greets each; supervisord only starts `sleep`."""
    count = bench.some(500, 50)
    held: tuple[list[str], list[str]] = ([], [])
    with bench.scratch() as place:
        home = place / "d"
        home.mkdir()
        ours = daemon.Place(home=home, programs=bench.ours())
        ours.prepare()
        _fill(ours, count)
        homes = itertools.count()

        def start() -> float:
            with daemon.running(ours) as running:
                began_s = time.perf_counter() - running.start_s
                processes.until(lambda: _armed(running) == count, "all plugins to be armed", pause_s=_LOOK_S)
                took_s = time.perf_counter() - began_s
                held[0].append(_held(running.process.pid))
                return took_s

        def their_start() -> float:
            there = place / f"s{next(homes)}"
            supervisord.prepare(there, minfds=8 * count + 1_024)
            for number in range(count):
                supervisord.program(there, f"p{number}", autostart=True)
            with supervisord.running(bench.supervisor(), there) as running:
                began_s = time.perf_counter() - running.start_s
                own = running.process.pid
                children = Path(f"/proc/{own}/task/{own}/children")
                processes.until(lambda: len(children.read_text().split()) == count, "all programs", pause_s=_LOOK_S)
                took_s = time.perf_counter() - began_s
                held[1].append(_held(own))
                return took_s

        pairs = rows.interleave(start, their_start, count=min(bench.pairs, PAIRS))
    ratio, met = rows.times_faster(pairs, FASTER)
    return [
        rows.Row(
            target="P10",
            what=f"{count} process plugins, from the daemon's start until all answer",
            ours=rows.seconds(pairs.our_median),
            reference=f"{rows.seconds(pairs.their_median)} supervisord, {count} times sleep",
            ratio=ratio,
            wanted=f"≥ {FASTER:g}× faster",
            met=met,
            samples=rows.samples(pairs),
        ),
        rows.Row(
            target="P10",
            what="... the daemon then: resident memory, descriptors, threads",
            ours=statistics.mode(held[0]),
            reference=f"{statistics.mode(held[1])} supervisord",
        ),
    ]


def _fill(ours: daemon.Place, count: int) -> None:
    """Have the daemon install and activate all of them."""
    say(f"P10: activating {count} plugins")
    for number in range(count):
        raw = bundles.manifest_v2(id=many.plugin_id(number), capabilities=["kv:read"])
        signed = bundles.signed(raw, living.ANSWERING, many.AUTHOR)
        bundles.write(ours.plugins / many.plugin_id(number), signed, living.ANSWERING)
    with daemon.running(ours) as running:
        for number in range(count):
            running.decide(many.plugin_id(number), "installed")
            found = running.decide(many.plugin_id(number), "active")["runtime"]
            if found["state"] != RuntimeState.ARMED:
                raise RuntimeError(f"expected an armed plugin, found {found}")


def _armed(running: daemon.Daemon) -> int:
    states: dict[str, int] = running.get(STATUS)["runtime"]
    return states.get(RuntimeState.ARMED, 0)


def _held(pid: int) -> str:
    """(MiB, descriptors, threads) of a process."""
    return f"{processes.memory_mib(pid):.0f} MiB, {processes.descriptors(pid)}, {processes.threads(pid)}"
