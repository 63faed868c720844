"""How confined children are started, as host services need it."""

from __future__ import annotations

from typing import Any

from latticed.processes.child import Child
from latticed.runners.child_spawner import ChildSpawner
from latticed.settings import PluginLimitSettings, SandboxSettings
from tests.house import children


class Spawner(ChildSpawner):
    """`host.confinement.Spawner` on this machine, probed once. `spawned` counts what was begun."""

    def __init__(self, *, floor: str = "isolated") -> None:
        super().__init__(children.probed(), SandboxSettings(floor=floor), PluginLimitSettings())
        self.spawned = 0

    async def spawn(self, *what: Any, **how: Any) -> Child:
        self.spawned += 1
        return await super().spawn(*what, **how)
