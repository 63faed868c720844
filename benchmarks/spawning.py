"""What confinement costs a child's start: a program of three instructions at every level, beside posix_spawn, the stub
that does it where no program in memory may be executed, and bubblewrap.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final
from unittest import mock

from benchmarks import rows
from benchmarks.references import bubblewrap
from latticed.processes import child
from latticed.sandbox import artifact, elf_programs, launch_calls, levels, probe, rlimits, spec
from latticed.sandbox.levels import Level

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.bench import Bench
    from latticed.sandbox.host_facts import Probed
    from latticed.sandbox.spec import ChildSpec

TIMES: Final = 10
TOGETHER: Final = 20
BUBBLEWRAP: Final = 0.7


def measure(bench: Bench) -> list[rows.Row]:
    """A level that this host cannot provide has no row."""
    probed = probe.probe()
    data = elf_programs.exits_42(probed.machine)
    found = []
    with (
        bench.scratch() as place,
        asyncio.Runner() as runner,
        artifact.of_bytes(data) as program,
    ):
        bare = _bare(place / "tiny", data)
        given = [level for level in Level if level <= probed.provided.level]
        plans = {
            f"{level.token}{''.join(more)}{_groups(probed)}": _plan(program, level, probed, more)
            for level in given
            for more in (((), ("+processes",)) if level >= Level.ISOLATED else ((),))
        }
        for name, plan in plans.items():

            def one(plan: ChildSpec = plan) -> float:
                return statistics.median(runner.run(_live(plan)) for _ in range(TIMES))

            def by_stub(one: Callable[[], float] = one) -> float:
                with mock.patch.object(launch_calls, "possible", return_value=False):
                    return one()

            what = f"a child's start and end, {name}"
            found.append(_row(what, rows.interleave(one, bare, count=bench.pairs)))
            found.append(_row(what, rows.interleave(one, by_stub, count=bench.pairs), "by the stub"))
            wrapped = bubblewrap.living(place / "tiny", probed.machine)
            if wrapped is not None and name.startswith(Level.ISOLATED.token):

                def theirs(wrapped: Callable[[], float] = wrapped) -> float:
                    return statistics.median(wrapped() for _ in range(TIMES))

                beside = rows.interleave(one, theirs, count=bench.pairs)
                row = _row(what, beside, "bubblewrap, same namespaces and filter")
                # With `processes` we start two processes, one of which reaps orphans: promised is the plain child.
                if "+processes" not in name:
                    row = replace(row, wanted=f"≤ {BUBBLEWRAP:g}×", met=rows.at_most(beside, BUBBLEWRAP)[1])
                found.append(row)
        pairs = rows.interleave(lambda: runner.run(_together(plan)), lambda: TOGETHER * bare(), count=bench.pairs)
        found.append(_row(f"{TOGETHER} of the last kind at once, beside one after the other", pairs))
    return found


def _row(what: str, pairs: rows.Pairs, reference: str = "posix_spawn and wait") -> rows.Row:
    return rows.Row(
        target="SPAWN",
        what=what,
        ours=rows.seconds(pairs.our_median),
        reference=f"{rows.seconds(pairs.their_median)} {reference}",
        ratio=rows.spread(pairs.ratios),
        samples=rows.samples(pairs),
    )


def _groups(probed: Probed) -> str:
    return "+cgroup" if probed.delegation is not None else ""


def _plan(program: artifact.Artifact, level: Level, probed: Probed, more: tuple[str, ...]) -> ChildSpec:
    features = {levels.THREADS} | ({levels.WORKDIR} if level >= Level.ISOLATED else set())
    features |= {levels.PROCESSES} if more else set()
    ids = probe.PROBE_IDS if probed.standing.uid == 0 else None
    chosen = levels.Chosen(level=level, features=frozenset(features))
    # All have one uid, by which the kernel counts: TOGETHER of them, beside what else probes this host, may be more
    # than the default of one child.
    limits = rlimits.ResourceLimits(tasks=rlimits.SHARED_TASKS)
    return spec.build(spec.ChildRequest(program=program, ids=ids, limits=limits), chosen, probed)


async def _live(plan: ChildSpec) -> float:
    """Seconds from the start of a child until all of it is gone."""
    began_s = time.perf_counter()
    living = await child.spawn(plan, on_exit=lambda _: None, stdout=asyncio.Protocol(), stderr=asyncio.Protocol())
    await living.gone()
    return time.perf_counter() - began_s


async def _together(plan: ChildSpec) -> float:
    began_s = time.perf_counter()
    await asyncio.gather(*(_live(plan) for _ in range(TOGETHER)))
    return time.perf_counter() - began_s


def _bare(path: Path, data: bytes) -> Callable[[], float]:
    path.write_bytes(data)
    path.chmod(0o755)

    def live() -> float:
        began_s = time.perf_counter()
        os.waitpid(os.posix_spawn(path, [str(path)], {}), 0)
        return time.perf_counter() - began_s

    return lambda: statistics.median(live() for _ in range(TIMES))
