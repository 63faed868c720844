"""A runner whose plugins a test controls: calls through their Gates, bad health, crashes, slow starts.

driven = Driven()  # then activate acme.demo
instance = driven.only("acme.demo")
await instance.call("kv.put", key="a", value="1")
instance.crash("exited", "status 3")
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from latticed.broker.gate import Gate
from latticed.bundle.read import BundleDirectory
from latticed.model.runtime import Health
from latticed.runners.contract import Checkup, PluginToRun


@dataclass(slots=True, eq=False)
class DrivenInstance:
    """One instance of a plugin. What a test sets here is how it behaves from then on."""

    runner: Driven
    plugin: PluginToRun
    gate: Gate
    on_exit: Callable[[str, str], None]
    artifact_sha256: str
    health: Checkup = field(default_factory=lambda: Checkup(health=Health.HEALTHY, message="well"))
    checking: Callable[[], Awaitable[Checkup]] | None = None
    stopping: Callable[[float], Awaitable[None]] | None = None
    invoking: Callable[[str, Any], Awaitable[dict[str, Any]]] | None = None
    pid: int = 0
    sandbox: str = ""
    message: str = "driven by a test"
    alive: bool = False
    checks: int = 0
    stops: int = 0

    async def check(self) -> Checkup:
        self.checks += 1
        return await self.checking() if self.checking else self.health

    async def invoke(self, action: str, payload: Any) -> dict[str, Any]:
        if self.invoking:
            return await self.invoking(action, payload)
        return {"ok": True, "message": action, "result": payload, "error": None}

    async def stop(self, grace_s: float) -> None:
        self.stops += 1
        try:
            if self.stopping:
                await self.stopping(grace_s)
        finally:
            self.end()

    async def call(self, method: str, /, **params: Any) -> Any:
        """One host call, as the plugin's code would make it."""
        return await self.gate.call(method, params)

    def crash(self, code: str = "exited", message: str = "ended by itself") -> None:
        """End without being asked to."""
        self.end()
        self.on_exit(code, message)

    def begin(self) -> None:
        """Count it as running."""
        self.alive = True
        self.runner.running[self.plugin.id] += 1
        self.runner.most[self.plugin.id] = max(self.runner.most[self.plugin.id], self.runner.running[self.plugin.id])

    def end(self) -> None:
        """Count it as ended."""
        self.runner.running[self.plugin.id] -= self.alive
        self.alive = False


class Driven:
    """The runner. `starting(instance)` is awaited within each start: it may wait, raise, or crash the instance.

    `admitting(plugin)` is awaited when it is asked whether a plugin can be activated.
    """

    name = "driven"
    hashes_artifact = False

    def __init__(self) -> None:
        self.instances: list[DrivenInstance] = []
        self.attempts: Counter[str] = Counter()
        self.cancelled: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.starting: Callable[[DrivenInstance], Awaitable[None]] | None = None
        self.admitting: Callable[[PluginToRun], Awaitable[None]] | None = None

    async def admit(self, plugin: PluginToRun, pair: BundleDirectory) -> None:
        if self.admitting:
            await self.admitting(plugin)

    async def start(
        self, plugin: PluginToRun, pair: BundleDirectory, gate: Gate, on_exit: Callable[[str, str], None]
    ) -> DrivenInstance:
        self.attempts[plugin.id] += 1
        sha256, _ = await asyncio.to_thread(pair.hash_artifact)
        instance = DrivenInstance(self, plugin, gate, on_exit, sha256)
        instance.begin()
        try:
            if self.starting:
                await self.starting(instance)
        except BaseException as error:
            self.cancelled[plugin.id] += isinstance(error, asyncio.CancelledError)
            instance.end()
            raise
        self.instances.append(instance)
        return instance

    def of(self, plugin_id: str) -> list[DrivenInstance]:
        """All instances that ever started, oldest first."""
        return [instance for instance in self.instances if instance.plugin.id == plugin_id]

    def only(self, plugin_id: str) -> DrivenInstance:
        """The only running instance."""
        (instance,) = [instance for instance in self.of(plugin_id) if instance.alive]
        return instance
