"""Whether something may be done for a plugin right now: one rule, asked by everything that acts for one.

A service, a task, a monitor, a DNS record, a tunnel, a route, a notification, a published file: each is done in the
name of a plugin, after the call that asked for it has returned. All of them ask here, so that no two can differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginStanding:
    """What of a plugin decides.

    `active`: an operator has it active, and it is not being handed over. `fault`: the code for which its bundle or
    its stored pair does not verify under the policy in force, or empty. `granted`: the capabilities that it holds.
    `seen`: whether the disk has been looked at since the daemon
    started; until then nobody may do anything, and nobody has lost anything either.
    """

    active: bool = False
    fault: str = ""
    granted: frozenset[str] = frozenset()
    seen: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PermissionRefused:
    """Why nothing may be done. `code`: `not_active`, `not_available`, `capability_not_granted`,
    `env_not_granted`, or `not_seen`.
    """

    code: str
    reason: str

    @property
    def distrusted(self) -> bool:
        """Whether what goes on is killed: who is not trusted is not asked to come to an end."""
        return self.code == "not_available"

    @property
    def lost(self) -> bool:
        """Whether it may have been otherwise before: not while nothing is known yet."""
        return self.code != "not_seen"


UNKNOWN: Final = PluginStanding()
"""That of a plugin which there is not."""


def judge(standing: PluginStanding, *capabilities: str) -> PermissionRefused | None:
    """Why nothing may be done for a plugin that stands like this, or None: it holds one of `capabilities`."""
    if not standing.seen:
        return PermissionRefused(code="not_seen", reason="the plugin directory has not been looked at yet")
    if standing.fault:
        return PermissionRefused(code="not_available", reason=f"its bundle does not verify: {standing.fault}")
    if not standing.active:
        return PermissionRefused(code="not_active", reason="it is not active")
    if standing.granted.isdisjoint(capabilities):
        return PermissionRefused(code="capability_not_granted", reason=f"{' or '.join(capabilities)} is not granted")
    return None


class Permissions:
    """Answers for every plugin, by how it stands at that moment. Until `follow` nothing is known of any."""

    def __init__(self) -> None:
        self._standing: Callable[[str], PluginStanding] = lambda _: PluginStanding(seen=False)
        self._told: dict[str, PluginStanding] = {}

    def follow(self, standing: Callable[[str], PluginStanding]) -> None:
        """Ask `standing` from now on."""
        self._standing = standing

    def refusal(self, plugin_id: str, *capabilities: str) -> PermissionRefused | None:
        """Why nothing may be done for it that takes one of `capabilities`, or None."""
        return judge(self._standing(plugin_id), *capabilities)

    def may(self, plugin_id: str, *capabilities: str) -> bool:
        return self.refusal(plugin_id, *capabilities) is None

    def changed(self, plugin_id: str) -> bool:
        """Whether it stands otherwise than when this was asked last."""
        now = self._standing(plugin_id)
        if not now.seen or self._told.get(plugin_id, UNKNOWN) == now:
            return False
        if now == UNKNOWN:
            del self._told[plugin_id]
        else:
            self._told[plugin_id] = now
        return True
