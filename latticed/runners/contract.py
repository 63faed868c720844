"""The interface between the supervisor and runners: Runner, and the Instance that it starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

from latticed.kit.value import Value
from latticed.model import ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.broker.gate import Gate
    from latticed.bundle.read import BundleDirectory
    from latticed.model.manifest import Manifest
    from latticed.model.runtime import Health


BUILTIN: Final = "builtin"
"""Key of the runner of built-in plugins, beside those of the plugin types."""


def runner_key(plugin_id: str, plugin_type: str) -> str:
    """Which of the runners takes a plugin: that of its type, or the one of built-in plugins."""
    return BUILTIN if ids.is_reserved_plugin(plugin_id) else plugin_type


class PluginToRun(Value, frozen=True, kw_only=True):
    """A verified plugin, ready to start: `id` is the plugin's, `identity` names its pair in the store.

    `manifest` is the effective one: less than the bundle's where the operator granted less. `withheld` are sandbox
    features that are declared and not granted. `config` is the operator's configuration as a JSON object that fits the
    manifest's schema: filled in for a start (`HandleDeps.configure`), `{}` otherwise. References to secrets in it are
    not expanded: a plugin never sees a value.
    """

    id: str
    identity: str
    manifest: Manifest
    withheld: frozenset[str] = frozenset()
    config: bytes = b"{}"

    @property
    def runner(self) -> str:
        """Key of its runner."""
        return runner_key(self.id, self.manifest.type)


class Checkup(Value, frozen=True, kw_only=True):
    """The result of a health check; `message` is for the operator."""

    health: Health
    message: str = ""


class Instance(Protocol):
    """A started plugin. Its methods are called on the event loop, `invoke` and `check` possibly several at a time."""

    @property
    def pid(self) -> int:
        """The child's process id, 0 when there is none."""
        ...

    @property
    def message(self) -> str:
        """A note for the operator about how this instance runs; may be empty."""
        ...

    @property
    def sandbox(self) -> str:
        """Its confinement for display (`isolated+cgroup`); empty when nothing is executed."""
        ...

    async def check(self) -> Checkup | None:
        """Check its health; None when it cannot be asked now, which counts neither as healthy nor as unhealthy.

        The supervisor sets the time limit.
        """
        ...

    async def invoke(self, action: str, payload: Any) -> dict[str, Any]:
        """Carry out `action`; return the plugin's reply `{ok, message, result, error}`, or raise Problem.

        `payload` is any JSON value. An error that the plugin reports itself is a reply with `ok` false, not a Problem.
        """
        ...

    async def stop(self, grace_s: float) -> None:
        """End it: a request to shut down, killed after `grace_s` seconds. Nothing is left when this returns."""
        ...


@runtime_checkable
class ClaimsRoutes(Protocol):
    """An Instance that claims routes when it starts."""

    def claim_again(self) -> None:
        """Claim them once more: another instance of the plugin, which has claimed them meanwhile, has ended."""
        ...


class Runner(Protocol):
    """Starts the plugins of one type."""

    @property
    def name(self) -> str:
        """The runner's name in the settings and in answers."""
        ...

    @property
    def hashes_artifact(self) -> bool:
        """Whether `start` itself compares the artifact with the manifest's digest, so that the caller need not.

        On a mismatch `start` raises Problem("digest_mismatch").
        """
        ...

    async def admit(self, plugin: PluginToRun, pair: BundleDirectory) -> None:
        """Problem when `plugin` cannot be activated on this host: `sandbox_unavailable`, `source_blocked`, …

        Asked before a decision is recorded; starts nothing and changes nothing.
        """
        ...

    async def start(
        self, plugin: PluginToRun, pair: BundleDirectory, gate: Gate, on_exit: Callable[[str, str], None]
    ) -> Instance:
        """Start `plugin` from its stored `pair`, or raise Problem.

        Later, if it ends by itself, `on_exit(code, message)` is called once, on the loop.
        The supervisor cancels a start that takes too long; no process or descriptor may be left then.
        """
        ...
