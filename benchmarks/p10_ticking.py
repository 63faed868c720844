"""P10: what 10,000 armed handles cost while nothing happens but their health checks, beside a task for each."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks import processes, rows
from benchmarks.bench import REPOSITORY, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.bench import Bench
    from latticed.model.verdict import Refused
    from latticed.runners.contract import Instance, PluginToRun
    from latticed.supervisor.deps import HandleDeps
    from latticed.supervisor.handle import Handle

INTERVAL_S = 30
MAX_CPU = 0.01
MAX_BYTES = 4096
_WINDOW_S = 6.0


def measure(bench: Bench) -> list[rows.Row]:
    """Both live side by side in processes of their own, and each window looks at both."""
    count = bench.some(10_000, 2_000)
    command = [sys.executable, "-m", "benchmarks.p10_ticking"]
    with (
        subprocess.Popen([*command, "handles", str(count)], cwd=REPOSITORY, stdout=subprocess.PIPE) as ours,
        subprocess.Popen([*command, "tasks", str(count)], cwd=REPOSITORY, stdout=subprocess.PIPE) as theirs,
    ):
        try:
            assert ours.stdout is not None
            assert theirs.stdout is not None
            each = int(ours.stdout.readline())
            theirs_each = int(theirs.stdout.readline())
            say(f"P10: {count} handles armed; waiting for their first checks")
            time.sleep(INTERVAL_S * 1.1)
            samples = [_window(ours.pid, theirs.pid) for _ in range(bench.pairs)]
        finally:
            ours.kill()
            theirs.kill()
    pairs = rows.Pairs(ours=tuple(one for one, _ in samples), theirs=tuple(other for _, other in samples))
    return [
        rows.Row(
            target="P10",
            what=f"{count:,} handles ticking, a check every {INTERVAL_S} s each: CPU",
            ours=f"{pairs.our_median:.2%}",
            reference=f"{pairs.their_median:.2%} a task each",
            ratio=rows.spread(pairs.ratios),
            wanted=f"≤ {MAX_CPU:.1%}",
            met=pairs.our_median <= MAX_CPU,
            samples=rows.samples(pairs),
        ),
        rows.Row(
            target="P10",
            what="memory of one handle, plugin and manifest included",
            ours=f"{each:,} bytes",
            reference=f"{theirs_each:,} bytes a task",
            wanted=f"≤ {MAX_BYTES:,} bytes",
            met=each <= MAX_BYTES,
        ),
    ]


def _window(one: int, other: int) -> tuple[float, float]:
    """The share of a core that each of two processes used during one window."""
    before, began_s = (processes.cpu_s(one), processes.cpu_s(other)), time.perf_counter()
    time.sleep(_WINDOW_S)
    took_s = time.perf_counter() - began_s
    return (processes.cpu_s(one) - before[0]) / took_s, (processes.cpu_s(other) - before[1]) / took_s


# What runs in the two processes.


async def _handles(count: int) -> None:
    """The supervisor with `count` armed handles of the noop runner, and what looks at each once a minute."""
    from latticed.runners.usage import ChildUsage
    from latticed.supervisor.history import History
    from latticed.supervisor.supervisor import Supervisor

    tools = _tools()
    kept: dict[str, Handle] = {}
    history = History(kept, tools.broker.counts, ChildUsage(None).sample, clock=tools.clock, wheel=tools.wheel)
    async with Supervisor(tools, kept) as supervisor:
        history.__enter__()
        plugins = _plugins(count + 100)
        for plugin in plugins[:100]:  # the first ones load modules
            supervisor.arm(plugin, frozenset())
        await asyncio.sleep(0.5)
        before = _used()
        fresh = _plugins(count, first=100)
        for plugin in fresh:
            supervisor.arm(plugin, frozenset())
            await asyncio.sleep(0)
        del fresh, plugins
        await supervisor.settled(f"acme.p{count + 99:05d}", within_s=60)
        await asyncio.sleep(1)
        _report((_used() - before) // count)
        await asyncio.Event().wait()


async def _tasks(count: int) -> None:
    """A task each that sleeps, checks and goes on."""
    from latticed.runners.noop import NoopInstance

    async def live(held: NoopInstance) -> None:
        await asyncio.sleep(INTERVAL_S * random.random())
        while True:
            await asyncio.wait_for(held.check(), 5)
            await asyncio.sleep(INTERVAL_S * (0.9 + 0.2 * random.random()))

    before = _used()
    held = [asyncio.create_task(live(NoopInstance(""))) for _ in range(count)]
    await asyncio.sleep(1)
    _report((_used() - before) // count)
    await asyncio.gather(*held)


def _tools() -> HandleDeps:
    from pathlib import Path

    from latticed.broker.gate import Broker, Gate, GateLimits
    from latticed.catalog.store import Store
    from latticed.kit.clock import SystemClock
    from latticed.model import restart
    from latticed.runners.noop import NoopInstance, NoopRunner
    from latticed.supervisor.deps import HandleDeps

    def note(_: object) -> None:
        """Records nothing."""

    def record(_: object, done: Callable[[Any, BaseException | None], None]) -> None:
        done(0, None)

    async def judge(_: str, __: str | None) -> Refused:
        raise AssertionError("nothing is judged here")

    class Storeless(HandleDeps):
        """Starts without a stored pair: nothing but handles is measured."""

        async def start(self, plugin: PluginToRun, gate: Gate, on_exit: object) -> Instance:
            del plugin, gate, on_exit
            return NoopInstance("")

    runner = NoopRunner("")
    clock = SystemClock()
    return Storeless(
        runners={"system": runner, "wasm": runner, "worker": runner},
        broker=Broker({}, record=record, clock=clock, gate_limits=GateLimits()),
        store=Store(Path("/nonexistent")),
        judge=judge,
        record=note,
        clock=clock,
        restart=restart.RestartPolicy(),
        start_deadline_s=10,
        stop_grace_s=5,
    )


def _plugins(count: int, *, first: int = 0) -> list[PluginToRun]:
    import msgspec

    from latticed.model.manifest import Manifest
    from latticed.runners.contract import PluginToRun

    found = []
    for number in range(first, first + count):
        plain = {"id": f"acme.p{number:05d}", "name": f"Plugin {number}", "type": "system", "capabilities": ["kv:read"]}
        manifest = msgspec.convert(plain, Manifest)
        found.append(PluginToRun(id=manifest.id, identity=f"{number:064x}", manifest=manifest))
    return found


def _used() -> int:
    """Resident bytes after tidying up."""
    gc.collect()
    return int(processes.memory_mib(os.getpid()) * 1024 * 1024)


def _report(each: int) -> None:
    sys.stdout.write(f"{each}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    from latticed.kit import logs

    logs.configure("error", form="json")
    asyncio.run({"handles": _handles, "tasks": _tasks}[sys.argv[1]](int(sys.argv[2])))
