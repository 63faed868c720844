"""Whether something may be done for a plugin right now: one rule, asked by everything that acts for one.

A service, a task, a monitor, a DNS record, a tunnel, a route, a notification, a published file: each is done in the
name of a plugin, after the call that asked for it has returned. All of them ask here, so that no two can differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from latticed.model import egress, permits
from latticed.model.egress import EgressRights
from latticed.model.errors import Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginStanding:
    """What of a plugin decides.

    `active`: an operator has it active, and it is not being handed over. `fault`: the code for which its bundle or
    its stored pair does not verify under the policy in force, or empty. `granted`: the capabilities that it holds,
    `permits`: what else it may (`model.permits`). `seen`: whether the disk has been looked at since the daemon
    started; until then nobody may do anything, and nobody has lost anything either. `hosts` are the egress patterns
    that the operator granted, `declared_hosts` those of its manifest (None: a v1 manifest, which declares none).
    """

    active: bool = False
    fault: str = ""
    granted: frozenset[str] = frozenset()
    permits: tuple[str, ...] = ()
    seen: bool = True
    hosts: tuple[str, ...] = ()
    declared_hosts: tuple[str, ...] | None = None
    publisher: str = ""


class PermissionRefused(Fault):
    """Why nothing may be done. `code`: `not_active`, `not_available`, `capability_not_granted`,
    `env_not_granted`, `origin_not_bound` or `not_seen`.
    """

    __slots__ = ()

    @property
    def distrusted(self) -> bool:
        """Whether what goes on is killed: who is not trusted is not asked to come to an end."""
        return self.code == "not_available"

    @property
    def lost(self) -> bool:
        """Whether it may have been otherwise before: not while nothing is known yet."""
        return self.code != "not_seen"


UNKNOWN: Final = PluginStanding()
"""That of a plugin which there is not, or which is not active."""
NOT_SEEN: Final = PluginStanding(seen=False)


def judge(standing: PluginStanding, *capabilities: str) -> PermissionRefused | None:
    """Why nothing may be done for a plugin that stands like this, or None: it holds one of `capabilities`."""
    if not standing.seen:
        return PermissionRefused("not_seen", "the plugin directory has not been looked at yet")
    if standing.fault:
        return PermissionRefused("not_available", f"its bundle does not verify: {standing.fault}")
    if not standing.active:
        return PermissionRefused("not_active", "it is not active")
    if standing.granted.isdisjoint(capabilities):
        return PermissionRefused("capability_not_granted", f"{' or '.join(capabilities)} is not granted")
    return None


@dataclass(slots=True)
class Permissions:
    """What each plugin may do at this moment: written by the lifecycle, read by whatever acts for plugins.

    Until `complete`, what is not in it yet is not known; from then on, it may nothing.
    """

    complete: bool = False
    _standings: dict[str, PluginStanding] = field(default_factory=dict)

    def update(self, plugin_id: str, standing: PluginStanding) -> bool:
        """Put down how a plugin stands now; whether that is a change of what it may do."""
        before = self._standings.get(plugin_id, UNKNOWN)
        if standing == UNKNOWN:  # not kept: there may be thousands
            self._standings.pop(plugin_id, None)
        else:
            self._standings[plugin_id] = standing
        return standing.seen and standing != before

    def standing(self, plugin_id: str) -> PluginStanding:
        return self._standings.get(plugin_id, UNKNOWN if self.complete else NOT_SEEN)

    def refusal(self, plugin_id: str, *capabilities: str) -> PermissionRefused | None:
        """Why nothing may be done for it that takes one of `capabilities`, or None."""
        return judge(self.standing(plugin_id), *capabilities)

    def may(self, plugin_id: str, *capabilities: str) -> bool:
        return self.refusal(plugin_id, *capabilities) is None

    def to(self, *capabilities: str) -> CapabilityPermissions:
        """The same, of these capabilities alone."""
        return CapabilityPermissions(self, capabilities)

    def publisher(self, plugin_id: str) -> str:
        """Who signed an active plugin; empty for nobody."""
        return self.standing(plugin_id).publisher

    def permits(self, plugin_id: str) -> tuple[str, ...]:
        """What an operator granted it beyond its capabilities, as `kind=value` (`model.permits`)."""
        return self.standing(plugin_id).permits

    def prefixes(self, plugin_id: str) -> frozenset[str]:
        """The prefixes of the HTTP listener that it may have besides its own."""
        return frozenset(permits.of_kind(self.permits(plugin_id), permits.PREFIX))

    def buckets(self, plugin_id: str) -> frozenset[str]:
        """The operator's buckets that a worker's template may name besides `default`."""
        return frozenset(permits.of_kind(self.permits(plugin_id), permits.BUCKET))

    def variables(self, plugin_id: str) -> frozenset[str]:
        """The names of environment variables that its programs may set."""
        return frozenset(permits.of_kind(self.permits(plugin_id), permits.ENV))

    def published(self, plugin_id: str) -> EgressRights:
        """Where its routes may lead to; an origin that is bound for its own requests is not thereby published."""
        found = permits.of_kind(self.permits(plugin_id), permits.PUBLISH)
        return EgressRights(origins=tuple(egress.origin(one) for one in found))

    def egress_rights(self, plugin_id: str) -> EgressRights:
        """Where it may connect to."""
        standing = self.standing(plugin_id)
        origins = permits.of_kind(standing.permits, permits.ORIGIN)
        return EgressRights(
            hosts=standing.hosts,
            declared=standing.declared_hosts,
            origins=tuple(egress.origin(one) for one in origins),
            owner=plugin_id,
        )

    def origins(self, plugin_id: str) -> tuple[egress.Origin, ...]:
        """The origins that are bound for its own requests."""
        return self.egress_rights(plugin_id).origins


@dataclass(frozen=True, slots=True)
class CapabilityPermissions:
    """What plugins may do that takes one of `capabilities`."""

    permissions: Permissions
    capabilities: tuple[str, ...]

    def refusal(self, plugin_id: str) -> PermissionRefused | None:
        """Why a plugin may not, or None."""
        return self.permissions.refusal(plugin_id, *self.capabilities)

    def may(self, plugin_id: str) -> bool:
        return self.refusal(plugin_id) is None

    def egress_rights(self, plugin_id: str) -> EgressRights | None:
        """Where a plugin may connect to for this; None: it may not do this now."""
        return self.permissions.egress_rights(plugin_id) if self.may(plugin_id) else None
