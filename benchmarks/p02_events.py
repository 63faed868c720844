"""P2: from a change on disk to the daemon's event loop, beside raw inotify; and a flood without a lost change."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import many, rows
from benchmarks.bench import Bench, say
from benchmarks.references import raw_inotify
from latticed.bundle.read import ARTIFACT
from latticed.catalog import Catalog
from latticed.catalog import root as roots
from latticed.catalog.dirty_names import DirtyNames
from latticed.catalog.watcher import Watcher
from latticed.kit.clock import SystemClock
from latticed.model.verdict import Verified
from latticed.trust import policy as policies
from tests.house import catalogs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from latticed.model.verdict import Verdict

CHANGES = 200
FLOOD_FILES = 20_000
STALL_S = 0.9
PAUSE_S = 0.001
STRANGER = Path(__file__).with_name("stranger.py")
_HOLDING_THE_GIL = ctypes.PyDLL(None)  # its calls keep the GIL, so that no thread of this process runs


def measure(bench: Bench) -> list[rows.Row]:
    """Thread beside thread (ours notes the name, the reference has read the event), then loop beside loop."""
    with bench.scratch() as place:
        many.write(place / "plugins", 1)
        bundle = place / "plugins" / many.plugin_id(0)
        with asyncio.Runner() as runner, _stranger(bundle) as touch:

            def ours(which: int) -> float:
                return runner.run(_watcher(place / "plugins", bundle, touch))[which]

            noted = rows.interleave(lambda: ours(0), lambda: _raw(bundle, touch), count=bench.pairs)
            heard = rows.interleave(lambda: ours(1), lambda: runner.run(_raw_in_loop(bundle, touch)), count=bench.pairs)
    return [
        _row(f"a file's close elsewhere to our note of it, p50 of {CHANGES}", "raw inotify, a blocking thread", noted),
        _row("... to our event loop", "raw inotify in an event loop", heard),
        flood(bench),
    ]


def _row(what: str, reference: str, pairs: rows.Pairs) -> rows.Row:
    ratio, met = rows.at_most(pairs, 3.0)
    return rows.Row(
        target="P2",
        what=what,
        ours=rows.seconds(pairs.our_median),
        reference=f"{rows.seconds(pairs.their_median)} {reference}",
        ratio=ratio,
        wanted="≤ 3×",
        met=met,
        samples=rows.samples(pairs),
    )


class Touch:
    """Has another process write to the artifact, at once; `moment_s` is when it closed it, as perf_counter."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def start(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"!")

    def moment_s(self) -> float:
        assert self._process.stdout is not None
        (moment,) = struct.unpack("d", self._process.stdout.read(8))
        return float(moment)


@contextlib.contextmanager
def _stranger(bundle: Path) -> Iterator[Touch]:
    command = [sys.executable, "-S", str(STRANGER), "touch", str(bundle / ARTIFACT)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        yield Touch(process)
        assert process.stdin is not None
        process.stdin.close()


async def _watcher(plugins: Path, bundle: Path, touch: Touch) -> tuple[float, float]:
    """Medians of the seconds from a close until the watcher's thread has noted it, and until the loop hears of it."""
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    noted_s: list[float] = []

    def wake() -> None:
        noted_s.append(time.perf_counter())
        loop.call_soon_threadsafe(heard.set)

    dirty = DirtyNames(wake)
    watcher = Watcher(plugins, dirty=dirty)
    watcher.start()
    root = roots.open_root(plugins)
    try:
        watcher.arm_root(root)
        found = bundle.stat()
        watcher.arm(bundle.name, root, (found.st_dev, found.st_ino))
        took_s: tuple[list[float], list[float]] = ([], [])
        for _ in range(CHANGES):
            noted_s.clear()
            touch.start()
            await asyncio.wait_for(heard.wait(), 5)
            heard_s = time.perf_counter()
            closed_s = touch.moment_s()
            took_s[0].append(noted_s[0] - closed_s)
            took_s[1].append(heard_s - closed_s)
            await asyncio.sleep(PAUSE_S)  # so that its after-effects are in no other sample
            heard.clear()
            dirty.take()
    finally:
        root.close()
        watcher.close()
    return statistics.median(took_s[0]), statistics.median(took_s[1])


async def _raw_in_loop(bundle: Path, touch: Touch) -> float:
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    fd = raw_inotify.watch(bundle)

    def readable() -> None:
        os.read(fd, 4096)
        heard.set()

    loop.add_reader(fd, readable)
    took_s = []
    for _ in range(CHANGES):
        touch.start()
        await asyncio.wait_for(heard.wait(), 5)
        heard_s = time.perf_counter()
        took_s.append(heard_s - touch.moment_s())
        await asyncio.sleep(PAUSE_S)
        heard.clear()
    loop.remove_reader(fd)
    os.close(fd)
    return statistics.median(took_s)


def _raw(bundle: Path, touch: Touch) -> float:
    with raw_inotify.RawInotify(bundle) as inotify:
        took_s = []
        for _ in range(CHANGES):
            touch.start()
            heard_s = inotify.wait()
            took_s.append(heard_s - touch.moment_s())
            time.sleep(PAUSE_S)
        return statistics.median(took_s)


def flood(bench: Bench) -> rows.Row:
    """Rewrite both files of many bundles while this process stands still; compare with who sees them afresh."""
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as limit:
        files = max(FLOOD_FILES, int(limit.read()) * 5 // 4)
    with bench.scratch() as place:
        say(f"P2: {files // 2} bundles to be flooded")
        many.write(place / "plugins", files // 2)
        lost, counters, took_s = asyncio.run(_flooded(place / "plugins"))
    return rows.Row(
        target="P2",
        what=f"{files:,} files rewritten while the reader stalls ≥ {STALL_S} s",
        ours=f"{lost} lost, {counters['overflows']} overflow counted, right after {took_s:.1f} s",
        wanted="none lost, overflow counted",
        met=lost == 0 and counters["overflows"] > 0,
    )


async def _flooded(plugins: Path) -> tuple[int, Mapping[str, int], float]:
    """(bundles seen wrongly in the end, the catalog's counters, seconds from the end of the stall)."""
    async with _catalog(plugins) as catalog:
        _stall_while_written(plugins)
        began_s = time.perf_counter()
        truth: Mapping[str, Verdict] = {}
        wrong = 1
        while wrong and time.perf_counter() - began_s < 120:
            await asyncio.sleep(0.05)
            bad = sum(not isinstance(verdict, Verified) for verdict in catalogs.verdicts(catalog).values())
            if not truth and bad < len(catalogs.verdicts(catalog)) // 2:
                continue
            truth = truth or await _fresh(plugins)
            wrong = _differences(catalogs.verdicts(catalog), truth)
        return wrong, dict(catalog.counters), time.perf_counter() - began_s


def _catalog(plugins: Path) -> Catalog:
    policy = policies.decode(many.policy())
    return Catalog({"plugins": plugins}, policy=lambda: policy, host_version="0.1.0", clock=SystemClock())


async def _fresh(plugins: Path) -> Mapping[str, Verdict]:
    async with _catalog(plugins) as catalog:
        return catalogs.verdicts(catalog)


def _differences(one: Mapping[str, Verdict], other: Mapping[str, Verdict]) -> int:
    def plain(verdict: Verdict | None) -> str | None:
        if verdict is None:
            return None
        return verdict.identity if isinstance(verdict, Verified) else verdict.code.value

    return sum(plain(one.get(name)) != plain(other.get(name)) for name in {*one, *other})


def _stall_while_written(plugins: Path) -> None:
    """No thread of this process runs until another process has written everything, and STALL_S have passed."""
    command = [sys.executable, "-S", str(STRANGER), "rewrite", str(plugins)]
    began_s = time.perf_counter()
    pid = os.posix_spawn(sys.executable, command, os.environ)
    status = ctypes.c_int(0)
    _HOLDING_THE_GIL.waitpid(pid, ctypes.byref(status), 0)
    if status.value:
        raise RuntimeError(f"the writer failed with status {status.value}")
    if (rest_s := STALL_S - (time.perf_counter() - began_s)) > 0:
        _HOLDING_THE_GIL.usleep(int(rest_s * 1e6))
