"""What the supervisor asks of every runner and of the instances that it starts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.broker.gate import Gate
    from latticed.bundle.read import BundleDirectory
    from latticed.model.manifest import Manifest
    from latticed.model.runtime import Health


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginToRun:
    """A verified plugin, ready to start; `identity` names its pair in the store.

    `manifest` says what it may have, which is less than its bundle's where the operator accepted less; `withheld` are
    sandbox features that were not accepted.
    """

    id: str
    identity: str
    manifest: Manifest
    withheld: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """The answer to a health check."""

    health: Health
    message: str = ""


class Instance(Protocol):
    """A started plugin."""

    @property
    def pid(self) -> int:
        """The child's process id, 0 when there is none."""
        ...

    @property
    def message(self) -> str:
        """What an operator should know about how its plugins run, may be empty."""
        ...

    @property
    def sandbox(self) -> str:
        """How it is confined, as it is shown (`isolated+cgroup`); empty when nothing of it is executed."""
        ...

    async def check(self) -> Checkup | None:
        """How it is; None when it cannot be asked now: that counts neither for it nor against it.

        The supervisor sets the time limit.
        """
        ...

    async def invoke(self, action: str, payload: Any) -> dict[str, Any]:
        """Carry out `action`: `{ok, message, result, error}` as the plugin replied, or Problem."""
        ...

    async def stop(self, grace_s: float) -> None:
        """End it, asking politely for at most `grace_s` seconds; nothing is left when this returns."""
        ...


class Runner(Protocol):
    """Starts the plugins of one type."""

    @property
    def name(self) -> str: ...

    @property
    def hashes_artifact(self) -> bool:
        """Whether `start` compares the artifact's bytes with the manifest's digest: nobody hashes them before it then.

        Its Problem for other bytes is `digest_mismatch`.
        """
        ...

    async def admit(self, plugin: PluginToRun, pair: BundleDirectory) -> None:
        """Problem when `plugin` cannot be activated on this host: `sandbox_unavailable`, `source_blocked`, …"""
        ...

    async def start(
        self, plugin: PluginToRun, pair: BundleDirectory, gate: Gate, on_exit: Callable[[str, str], None]
    ) -> Instance:
        """Start `plugin` from its stored `pair`, or raise Problem.

        Later, if it ends by itself, `on_exit(code, message)` is called once, on the loop.
        Cancelled by the supervisor when the start takes too long; must leave nothing behind then.
        """
        ...
