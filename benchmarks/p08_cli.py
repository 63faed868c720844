"""P8: CPU of one `latticectl status` from a wheel, beside `supervisorctl status`; same interpreter, one venv each."""

from __future__ import annotations

import contextlib
import statistics
from typing import TYPE_CHECKING

from benchmarks import daemon, processes, rows
from benchmarks.references import supervisord

if TYPE_CHECKING:
    from benchmarks.bench import Bench

RUNS = 3


def measure(bench: Bench) -> list[rows.Row]:
    with bench.scratch() as place, contextlib.ExitStack() as stack:
        home = place / "s"
        settings = supervisord.prepare(home)
        supervisord.program(home, "demo", autostart=True)
        stack.enter_context(supervisord.running(bench.supervisor(), home))
        (place / "d").mkdir()
        ours = daemon.Place(home=place / "d", programs=bench.ours())
        ours.prepare()
        stack.enter_context(daemon.running(ours))
        mine = [str(ours.programs / "latticectl"), "status"]
        theirs = [str(bench.supervisor() / "supervisorctl"), "-c", str(settings), "status"]
        env = {"LATTICED_SOCKET": str(ours.socket)}
        pairs = rows.interleave(lambda: _cpu_s(mine, env), lambda: _cpu_s(theirs, {}), count=bench.pairs)
    ratio, met = rows.at_most(pairs, 0.4)
    return [
        rows.Row(
            target="P8",
            what=f"CPU of one status command from a wheel, median of {RUNS}",
            ours=rows.seconds(pairs.our_median),
            reference=f"{rows.seconds(pairs.their_median)} supervisorctl status",
            ratio=ratio,
            wanted="≤ 0.4×",
            met=met,
            samples=rows.samples(pairs),
        )
    ]


def _cpu_s(command: list[str], env: dict[str, str]) -> float:
    return statistics.median(processes.child_cpu_s(command, env) for _ in range(RUNS))
