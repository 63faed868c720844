"""Whether a plugin may act now: the one rule for everything that is done for it after its call was answered.

Services, tasks, monitors, DNS records, tunnels, routes, notifications and published files all ask here, so that they
cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from latticed.kit.value import Value
from latticed.model import egress, permits
from latticed.model.egress import EgressRights
from latticed.model.fault import Fault


class PluginStanding(Value, frozen=True, kw_only=True):
    """What decides whether a plugin may act.

    `active`: an operator has it active, and it is not being handed over to another publisher. `fault`: the code for
    which its bundle or stored pair does not verify under the policy in force, else empty. `granted`: the capabilities
    that the operator granted; `permits`: further grants (`model.permits`). `seen`: the plugin directory was scanned
    since the daemon started; until then nothing may be done, which counts as no loss of permission. `hosts`: egress
    patterns that the operator granted; `declared_hosts`: those of the manifest (None: a v1 manifest declares none).
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
    """Why a plugin may not act; a value, not an exception. `code`: `not_active`, `not_available`,
    `capability_not_granted`, `env_not_granted`, `origin_not_bound`, `program_not_allowed`, `switched_off` or
    `not_seen`.
    """

    __slots__ = ()

    @property
    def distrusted(self) -> bool:
        """Whether its processes are killed without a grace period: its bundle no longer verifies."""
        return self.code == "not_available"

    @property
    def of_item(self) -> bool:
        """Whether it is about this one thing, not about the plugin: then it is shown as the thing's last error."""
        return self.code in {"env_not_granted", "origin_not_bound", "program_not_allowed"}

    @property
    def lost(self) -> bool:
        """Whether a permission may have been lost; not before the first scan, when nothing is known."""
        return self.code != "not_seen"


UNKNOWN: Final = PluginStanding()
"""The standing of a plugin that does not exist or is not active."""
NOT_SEEN: Final = PluginStanding(seen=False)
"""The standing of any plugin before the first scan of the plugin directories."""


def judge(standing: PluginStanding, *capabilities: str) -> PermissionRefused | None:
    """Why a plugin with this standing may not act, or None. One of `capabilities` is enough."""
    # The order matters to callers: `not_seen` says nothing about the plugin, and `not_available` must win over
    # `not_active`, since only it has processes killed without a grace period.
    if not standing.seen:
        return PermissionRefused("not_seen", "the plugin directory has not been looked at yet")
    if standing.fault:
        return PermissionRefused("not_available", f"its bundle does not verify: {standing.fault}")
    if not standing.active:
        return PermissionRefused("not_active", "it is not active")
    # Also without capabilities: `judge(standing)` refuses, so that a forgotten argument does not permit anything.
    if standing.granted.isdisjoint(capabilities):
        return PermissionRefused("capability_not_granted", f"{' or '.join(capabilities)} is not granted")
    return None


@dataclass(slots=True)
class Permissions:
    """The standing of each plugin: written by the lifecycle, read by everything that acts for plugins.

    A plugin that is not in it is `NOT_SEEN` until `complete` is set, and `UNKNOWN` from then on.
    """

    complete: bool = False
    _standings: dict[str, PluginStanding] = field(default_factory=dict)

    def update(self, plugin_id: str, standing: PluginStanding) -> bool:
        """Store the standing of a plugin; True if that may change what it may do."""
        before = self._standings.get(plugin_id, UNKNOWN)
        if standing == UNKNOWN:  # the default; not stored, as there may be thousands of inactive plugins
            self._standings.pop(plugin_id, None)
        else:
            self._standings[plugin_id] = standing
        # Not seen yet counts as no loss of permission (see `PluginStanding`), so nothing has to be stopped.
        return standing.seen and standing != before

    def standing(self, plugin_id: str) -> PluginStanding:
        """The standing of a plugin. Any id has one: `NOT_SEEN` or `UNKNOWN` when none is stored."""
        return self._standings.get(plugin_id, UNKNOWN if self.complete else NOT_SEEN)

    def refusal(self, plugin_id: str, *capabilities: str) -> PermissionRefused | None:
        """Why it may not act with any of `capabilities`, or None. Judged at each call; nothing is cached."""
        return judge(self.standing(plugin_id), *capabilities)

    def may(self, plugin_id: str, *capabilities: str) -> bool:
        """Whether it may act with one of `capabilities`."""
        return self.refusal(plugin_id, *capabilities) is None

    def to(self, *capabilities: str) -> CapabilityPermissions:
        """The permissions for these capabilities alone, which a host service gets instead of all."""
        return CapabilityPermissions(self, capabilities)

    def publisher(self, plugin_id: str) -> str:
        """The publisher of an active plugin; empty when it is unsigned or not active."""
        return self.standing(plugin_id).publisher

    def permits(self, plugin_id: str) -> tuple[str, ...]:
        """What the operator granted besides capabilities (`kind=value`, `model.permits`), even while it may not act."""
        return self.standing(plugin_id).permits

    def prefixes(self, plugin_id: str) -> frozenset[str]:
        """The granted prefixes of the HTTP listener, besides its own."""
        return frozenset(permits.of_kind(self.permits(plugin_id), permits.PREFIX))

    def buckets(self, plugin_id: str) -> frozenset[str]:
        """The buckets that it may read besides its own, and besides `default` for a worker's template."""
        return frozenset(permits.of_kind(self.permits(plugin_id), permits.BUCKET))

    def variables(self, plugin_id: str) -> frozenset[str]:
        """The names of environment variables that its programs may set."""
        return frozenset(permits.of_kind(self.permits(plugin_id), permits.ENV))

    def may_read(self, reader: str, owner: str) -> bool:
        """Whether `reader` may now read, or serve at a route of its own, the files that `owner` publishes."""
        if not self.may(owner, "static:write"):
            return False
        if reader == owner:
            return True
        return self.shares(reader, owner) and self.may(reader, "static:read")

    def shares(self, reader: str, owner: str) -> bool:
        """Whether the files of `owner` are granted to `reader`."""
        return owner in permits.of_kind(self.permits(reader), permits.SHARE)

    def published(self, plugin_id: str) -> EgressRights:
        """Where its routes may lead to. Origins bound for its own requests are not included."""
        found = permits.of_kind(self.permits(plugin_id), permits.PUBLISH)
        return EgressRights(origins=tuple(egress.origin(one) for one in found))

    def egress_rights(self, plugin_id: str) -> EgressRights:
        """Where it may connect to, even while it may not act; see `CapabilityPermissions.egress_rights`."""
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


class CapabilityPermissions(Value, frozen=True):
    """Permissions to act with one of `capabilities`; reads `permissions` at each call."""

    permissions: Permissions
    capabilities: tuple[str, ...]

    def refusal(self, plugin_id: str) -> PermissionRefused | None:
        """Why a plugin may not act, or None."""
        return self.permissions.refusal(plugin_id, *self.capabilities)

    def may(self, plugin_id: str) -> bool:
        """Whether a plugin may act."""
        return self.refusal(plugin_id) is None

    def egress_rights(self, plugin_id: str) -> EgressRights | None:
        """Where a plugin may connect to; None while it may not act."""
        return self.permissions.egress_rights(plugin_id) if self.may(plugin_id) else None
