"""The runner that executes nothing: its plugins become armed, and their Gate is open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from latticed.model.errors import Problem
from latticed.model.runtime import Health
from latticed.runners.contract import Checkup

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.broker.gate import Gate
    from latticed.bundle.read import BundleDirectory
    from latticed.runners.contract import PluginToRun


class NoopRunner:
    """Arms plugins without executing their artifact. `reason` says why artifacts of this type are not executed."""

    name = "noop"
    hashes_artifact = False

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def admit(self, plugin: PluginToRun, pair: BundleDirectory) -> None:
        """Any plugin can be armed without being executed."""

    async def start(
        self, plugin: PluginToRun, pair: BundleDirectory, gate: Gate, on_exit: Callable[[str, str], None]
    ) -> NoopInstance:
        """An instance whose message is the reason; it cannot fail."""
        del plugin, pair, gate, on_exit
        return NoopInstance(self._reason)


class NoopInstance:
    """An armed plugin that does nothing."""

    pid = 0
    sandbox = ""

    def __init__(self, message: str) -> None:
        self.message = message

    async def check(self) -> Checkup:
        """Health unknown, with the reason why nothing is executed."""
        return Checkup(health=Health.UNKNOWN, message=self.message)

    async def invoke(self, action: str, payload: Any) -> dict[str, Any]:
        """Always Problem("service_unavailable"), with the reason why nothing is executed."""
        del action, payload
        raise Problem("service_unavailable", f"the plugin cannot be invoked: {self.message}")

    async def stop(self, grace_s: float) -> None:
        """Nothing runs, so nothing needs to end."""
