"""P6: from a plugin's exit to its restart, beside a bare asyncio loop and supervisord."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import living, rows
from benchmarks.references import supervisord
from latticed.sandbox.levels import Level

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from benchmarks.bench import Bench

DEATHS: Final = 5
ID: Final = "acme.crash"
SETTINGS: Final = "[supervision]\nbackoff_base_s = 0\nbreaker_failures = 1000\n"
MAX_S: Final = 0.006
SUPERVISORD: Final = 150.0
_GREETING: Final = b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{}}\n'


def measure(bench: Bench) -> list[rows.Row]:
    """Killed by SIGKILL; restarted when it has answered once. supervisord counts as soon as it has a process."""
    numbers = itertools.count()
    with bench.scratch() as place, asyncio.Runner() as runner, contextlib.ExitStack() as stack:

        def entered(opened: Any) -> Any:
            found = runner.run(opened.__aenter__())
            stack.callback(lambda: runner.run(opened.__aexit__(None, None, None)))
            return found

        def ours(level: Level | None) -> tuple[str, Callable[[], float]]:
            home = entered(living.opened(place / f"h{next(numbers)}", SETTINGS, level=level))
            runner.run(home.activate(ID, living.ANSWERING))
            return home.sandbox, lambda: statistics.median(runner.run(living.crash(home, ID)) for _ in range(DEATHS))

        bare = entered(_bare(place / "program"))

        def bare_s() -> float:
            return statistics.median(float(runner.run(bare())) for _ in range(DEATHS))

        highest, highest_s = ours(None)
        lower, lower_s = ours(Level.FILTERED)
        high = rows.interleave(highest_s, bare_s, count=bench.pairs)
        low = rows.interleave(lower_s, bare_s, count=bench.pairs)
        with _supervised(bench, place / "s") as theirs_s:
            theirs = rows.interleave(highest_s, theirs_s, count=bench.pairs)
    return [
        _row(highest, high, "bare asyncio loop, no sandbox", _within(high), f"≤ {rows.seconds(MAX_S)}"),
        _row(lower, low, "bare asyncio loop, no sandbox", _within(low), f"≤ {rows.seconds(MAX_S)}"),
        _row(
            highest,
            theirs,
            "supervisord",
            rows.times_faster(theirs, SUPERVISORD),
            f"≥ {SUPERVISORD:g}× faster",
        ),
    ]


def _within(pairs: rows.Pairs) -> tuple[rows.Ratio, bool]:
    return rows.spread(pairs.ratios), pairs.our_median <= MAX_S


def _row(level: str, pairs: rows.Pairs, reference: str, found: tuple[rows.Ratio, bool], wanted: str) -> rows.Row:
    return rows.Row(
        target="P6",
        what=f"killed to verified, started ({level}) and answering, backoff 0",
        ours=rows.seconds(pairs.our_median),
        reference=f"{rows.seconds(pairs.their_median)} {reference}",
        ratio=found[0],
        wanted=wanted,
        met=found[1],
        samples=rows.samples(pairs),
    )


@contextlib.asynccontextmanager
async def _bare(program: Path) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """A loop that starts its child anew whenever that has ended, and nothing else."""
    _watch_by_pidfd()
    program.write_bytes(living.ANSWERING)
    program.chmod(0o755)
    alive = asyncio.Event()
    pids: list[int] = []

    async def supervise() -> None:
        pipe = asyncio.subprocess.PIPE
        while True:
            process = await asyncio.create_subprocess_exec(program, stdin=pipe, stdout=pipe, stderr=pipe)
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(_GREETING)
                await process.stdout.readline()
                pids.append(process.pid)
                alive.set()
            finally:
                await process.wait()

    async def crash() -> float:
        alive.clear()
        began_s = time.perf_counter()
        os.kill(pids[-1], signal.SIGKILL)
        await asyncio.wait_for(alive.wait(), 10)
        return time.perf_counter() - began_s

    loop = asyncio.create_task(supervise())
    await asyncio.wait_for(alive.wait(), 10)
    try:
        yield crash
    finally:
        loop.cancel()
        os.kill(pids[-1], signal.SIGKILL)
        await asyncio.gather(loop, return_exceptions=True)


def _watch_by_pidfd() -> None:
    """As Python 3.12 does by itself: no thread for each child."""
    if sys.version_info < (3, 12):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            watcher = asyncio.PidfdChildWatcher()
            watcher.attach_loop(asyncio.get_running_loop())
            asyncio.set_child_watcher(watcher)


@contextlib.contextmanager
def _supervised(bench: Bench, home: Path) -> Iterator[Callable[[], float]]:
    supervisord.prepare(home)
    supervisord.program(home, "crash", autostart=True)
    with supervisord.running(bench.supervisor(), home) as running:
        own = running.process.pid
        children = Path(f"/proc/{own}/task/{own}/children")

        def until(gone: str) -> str:
            """The one child there is besides `gone`; not asked for by RPC, which would wake it up to work."""
            while not (found := children.read_text().replace(gone, "").split()):
                time.sleep(0.0005)
            return found[0]

        def crash() -> float:
            pid = until("-")
            began_s = time.perf_counter()
            os.kill(int(pid), signal.SIGKILL)
            until(pid)
            return time.perf_counter() - began_s

        yield crash
