"""P3: from a bundle's rename into the plugin directory to an armed plugin, beside supervisord's reread and add."""

from __future__ import annotations

import asyncio
import itertools
import os
import statistics
import time
from typing import TYPE_CHECKING

from benchmarks import rows
from benchmarks.references import supervisord
from latticed.model.audit import DAEMON
from latticed.model.lifecycle import Status
from latticed.model.runtime import RuntimeState
from latticed.runners.noop import NoopInstance, NoopRunner
from tests.house import bundles, in_process

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.bench import Bench
    from latticed.broker.gate import Gate
    from latticed.bundle.read import BundleDirectory
    from latticed.runners.contract import PluginToRun
    from tests.house.in_process import Home

QUIET_S = 0.02
DROPS = 12
BACK, NEW = 2.5, 1.0
"""So many times as fast as supervisord, which neither verifies nor stores."""
PAUSE_S = 0.2
"""Between drops: the audit of the stop and the tidying of the store are over by then."""


def measure(bench: Bench) -> list[rows.Row]:
    with bench.scratch() as place, asyncio.Runner() as runner:
        home = place / "supervisor"
        supervisord.prepare(home)
        signalling = Signalling()
        runners = dict.fromkeys(("system", "wasm", "worker"), signalling)
        opened = in_process.opened(_made(place / "h"), runners=runners)
        ours = runner.run(opened.__aenter__())
        numbers = itertools.count()
        try:
            with supervisord.running(bench.supervisor(), home) as theirs:

                def add() -> float:
                    return statistics.median(_added(theirs, home, next(numbers)) for _ in range(DROPS))

                again = rows.interleave(
                    lambda: runner.run(_back(ours, signalling, next(numbers))), add, count=bench.pairs
                )
                fresh = rows.interleave(lambda: runner.run(_fresh(ours, next(numbers))), add, count=bench.pairs)
        finally:
            runner.run(opened.__aexit__(None, None, None))
    return [
        _row("an active plugin's bundle comes back: rename to armed", again, BACK),
        _row("a new bundle: rename, install (fsync, stored), activate", fresh, NEW),
    ]


def _row(what: str, pairs: rows.Pairs, factor: float) -> rows.Row:
    ratio, met = rows.times_faster(pairs, factor)
    return rows.Row(
        target="P3",
        what=f"{what}, p50 of {DROPS}, settle excluded",
        ours=rows.seconds(pairs.our_median),
        reference=f"{rows.seconds(pairs.their_median)} supervisord reread + add",
        ratio=ratio,
        wanted=f"≥ {factor:g}× faster",
        met=met,
        samples=rows.samples(pairs),
    )


def _made(path: Path) -> Path:
    path.mkdir()
    return path


class Signalling(NoopRunner):
    """The noop runner, with a notification at each start, because polling would disturb the measurement."""

    def __init__(self) -> None:
        super().__init__("measured")
        self.started = asyncio.Event()

    async def start(
        self, plugin: PluginToRun, pair: BundleDirectory, gate: Gate, on_exit: Callable[[str, str], None]
    ) -> NoopInstance:
        self.started.set()
        return await super().start(plugin, pair, gate, on_exit)


async def _back(home: Home, runner: Signalling, number: int) -> float:
    """Take an active plugin's bundle away and put it back, some times: the median of the seconds until armed."""
    plugin_id, name = f"acme.back{number}", f"back{number}"
    home.drop(name, id=plugin_id, capabilities=["kv:read"])
    await _decide(home, plugin_id)
    aside, took_s = home.root / name, []
    for _ in range(DROPS):
        (home.plugin_dir / name).rename(aside)
        await in_process.until(lambda: _state(home, plugin_id) is RuntimeState.FAILED)
        await asyncio.sleep(PAUSE_S)
        runner.started.clear()
        began_s = time.perf_counter()
        aside.rename(home.plugin_dir / name)
        await asyncio.wait_for(runner.started.wait(), 10)
        await _armed(home, plugin_id)
        took_s.append(time.perf_counter() - began_s - QUIET_S)
    return statistics.median(took_s)


async def _fresh(home: Home, number: int) -> float:
    """Drop new bundles; install and activate each as soon as it is available."""
    registry, seen = home.app.api.lifecycle.registry, asyncio.Event()
    refresh, took_s = registry.refresh, []

    def refreshed(plugin_id: str) -> None:
        refresh(plugin_id)
        seen.set()

    registry.refresh = refreshed  # type: ignore[method-assign]
    for place in range(DROPS):
        plugin_id, name = f"acme.new{number}.{place}", f"new{number}.{place}"
        aside = home.root / name
        raw = bundles.signed(bundles.manifest_v1(id=plugin_id, capabilities=["kv:read"]), bundles.ARTIFACT, home.author)
        bundles.write(aside, raw)
        await asyncio.sleep(PAUSE_S)
        seen.clear()
        began_s = time.perf_counter()
        aside.rename(home.plugin_dir / name)
        await asyncio.wait_for(seen.wait(), 10)
        await _decide(home, plugin_id)
        took_s.append(time.perf_counter() - began_s - QUIET_S)
    registry.refresh = refresh  # type: ignore[method-assign]
    return statistics.median(took_s)


async def _decide(home: Home, plugin_id: str) -> None:
    """Install and activate, without the control socket in between; returns once it is armed."""
    await home.seen(plugin_id)
    for status in (Status.INSTALLED, Status.ACTIVE):
        await home.app.api.lifecycle.decisions.change(DAEMON, plugin_id, status)
    await _armed(home, plugin_id)


async def _armed(home: Home, plugin_id: str) -> None:
    await home.app.api.supervisor.settled(plugin_id, within_s=10)
    if _state(home, plugin_id) is not RuntimeState.ARMED:
        raise RuntimeError(f"expected {plugin_id} to be armed, found {_state(home, plugin_id)}")


def _state(home: Home, plugin_id: str) -> RuntimeState:
    return home.app.api.supervisor.runtime(plugin_id).state


def _added(theirs: supervisord.Supervisord, home: Path, number: int) -> float:
    name = f"p{number}-{time.monotonic_ns()}"
    supervisord.program(home, name, autostart=True)
    began_s = time.perf_counter()
    theirs.call("supervisor.reloadConfig")
    theirs.call("supervisor.addProcessGroup", name)
    while theirs.call("supervisor.getProcessInfo", name)["statename"] != "RUNNING":
        pass
    took_s = time.perf_counter() - began_s
    theirs.call("supervisor.stopProcess", name)
    theirs.call("supervisor.removeProcessGroup", name)
    os.unlink(home / "conf.d" / f"{name}.conf")
    return took_s
