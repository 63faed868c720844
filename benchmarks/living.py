"""A whole daemon with real runners and real children, in the bench's own process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks import many
from latticed import settings as settings_module
from latticed.app import App
from latticed.model.audit import DAEMON
from latticed.model.lifecycle import Status
from latticed.model.runtime import Runtime, RuntimeState
from latticed.sandbox import probe
from latticed.sandbox.levels import Level, Provided
from tests.house import bundles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from latticed.broker.gate import Gate
    from latticed.bundle.read import BundleDirectory
    from latticed.runners.contract import Instance, PluginToRun, Runner

SWIFT = "[watch]\nquiet_s = 0.02\n"
ANSWERING = bundles.ARTIFACT
"""A program that answers whatever it is asked; in sh."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """One running daemon. `started` is set whenever the process runner has started something."""

    place: Path
    app: App
    started: asyncio.Event

    @property
    def sandbox(self) -> str:
        """The sandbox level of children here, for the table."""
        probed = self.app.api.spawner.probed
        return probed.provided.level.token + ("+cgroup" if probed.delegation is not None else "")

    async def activate(self, plugin_id: str, artifact: bytes, **fields: Any) -> None:
        """Drop a signed bundle, install and activate it; returns once it is armed."""
        raw = bundles.signed(bundles.manifest_v2(id=plugin_id, **fields), artifact, many.AUTHOR)
        bundles.write(self.place / plugin_id, raw, artifact).rename(self.place / "plugins" / plugin_id)
        await _until(lambda: self.app.api.lifecycle.presence(plugin_id).available, f"{plugin_id} to be seen")
        for status in (Status.INSTALLED, Status.ACTIVE):
            await self.app.api.lifecycle.decisions.change(DAEMON, plugin_id, status)
        if self.runtime(plugin_id).state is not RuntimeState.ARMED:
            raise RuntimeError(f"expected {plugin_id} to be armed, found {self.runtime(plugin_id)}")

    def runtime(self, plugin_id: str) -> Runtime:
        return self.app.api.supervisor.runtime(plugin_id)

    async def invoke(self, plugin_id: str, action: str, payload: Any) -> Any:
        """The result of an action; RuntimeError when it failed."""
        answer = await self.app.api.supervisor.invoke(plugin_id, action, payload)
        if not answer["ok"]:
            raise RuntimeError(f"{action} failed: {answer['error']}")
        return answer["result"]


@contextlib.asynccontextmanager
async def opened(place: Path, toml: str = "", *, level: Level | None = None) -> AsyncIterator[Home]:
    """A daemon in `place`; its children run at `level`, by default the highest of this host."""
    (place / "plugins").mkdir(parents=True)
    (place / "trust.json").write_bytes(many.policy())
    paths = {"plugin_dir": "plugins", "state_dir": "state", "runtime_dir": "run", "trust": "trust.json"}
    head = "".join(f'{key} = "{place / name}"\n' for key, name in paths.items())
    floor = f'[sandbox]\nfloor = "{level.token}"\n' if level is not None else ""
    config = place / "latticed.toml"
    config.write_text(head + SWIFT + floor + toml)
    async with App(config, settings_module.load(config, {}, os.geteuid())) as app:
        if level is not None:
            _lower(app, level)
        started = asyncio.Event()
        runners: Any = app.api.runners
        runners["system"] = _Telling(runners["system"], started)
        yield Home(place=place, app=app, started=started)


async def crash(home: Home, plugin_id: str) -> float:
    """Kill a plugin; how many seconds later it was started again and has answered once."""
    home.started.clear()
    pid = home.runtime(plugin_id).pid
    began_s = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    await asyncio.wait_for(home.started.wait(), 10)
    took_s = time.perf_counter() - began_s
    await home.app.api.supervisor.settled(plugin_id, within_s=10)
    return took_s


def _lower(app: App, level: Level) -> None:
    """Make `level` the highest of this host."""
    spawner = app.api.spawner
    features = probe.features_at(level, whole_tree=spawner.probed.delegation is not None)
    spawner.probed = replace(spawner.probed, provided=Provided(level=level, features=features))


class _Telling:
    """A runner that notifies when it has started something, because polling would disturb the measurement."""

    def __init__(self, inner: Runner, started: asyncio.Event) -> None:
        self.name = inner.name
        self.hashes_artifact = inner.hashes_artifact
        self._inner = inner
        self._started = started

    async def admit(self, plugin: PluginToRun, pair: BundleDirectory) -> None:
        await self._inner.admit(plugin, pair)

    async def start(
        self, plugin: PluginToRun, pair: BundleDirectory, gate: Gate, on_exit: Callable[[str, str], None]
    ) -> Instance:
        living = await self._inner.start(plugin, pair, gate, on_exit)
        self._started.set()
        return living


async def _until(condition: Callable[[], object], what: str, *, deadline_s: float = 30.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"never came: {what}")
        await asyncio.sleep(0.002)
