"""The state of every plugin in memory; one object that the parts of the lifecycle share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from latticed.host.permissions import UNKNOWN
from latticed.lifecycle import presence
from latticed.lifecycle.presence import Presence
from latticed.model.lifecycle import Status

if TYPE_CHECKING:
    from latticed.host.permissions import PluginStanding
    from latticed.ledger.versions import BadVersion, KeptVersion
    from latticed.model.fault import Fault
    from latticed.model.lifecycle import Record
    from latticed.runners.contract import PluginToRun


@dataclass(slots=True, eq=False)
class LifecycleState:
    """What is known of every plugin, read by all parts of the lifecycle; only the event loop's thread uses it.

    `registry` writes records and presences, `pairs` writes faults, `decisions` writes the rest.
    """

    records: dict[str, Record] = field(default_factory=dict)
    """By id, tombstones too."""
    active: set[str] = field(default_factory=set)
    """Ids of the records whose status is active."""
    plugins: dict[str, PluginToRun] = field(default_factory=dict)
    """By id, what the supervisor needs of each accepted plugin."""
    presences: dict[str, Presence] = field(default_factory=dict)
    """By id, what the disk says; empty until the first scan."""
    pair_faults: dict[str, Fault] = field(default_factory=dict)
    """By identity, why a stored pair may not run; absent if it verified when last judged."""
    busy: set[str] = field(default_factory=set)
    """Ids with a decision under way: only that decision changes their records."""
    in_handover: set[str] = field(default_factory=set)
    """Ids that another publisher is taking over: host services do nothing for them."""
    being_stored: dict[str, str] = field(default_factory=dict)
    """By id, identity of the pair that a decision is storing: not collected before a record names it."""
    being_kept: dict[str, str] = field(default_factory=dict)
    """By id, identity of the pair that a decision is replacing: not collected before `kept` has it."""

    kept: dict[str, tuple[KeptVersion, ...]] = field(default_factory=dict)
    """By id, the earlier versions that can be returned to, oldest first."""
    bad: dict[str, dict[str, BadVersion]] = field(default_factory=dict)
    """By id and identity, the versions that are not offered any more."""

    def in_use(self) -> set[str]:
        """The identities of all pairs that have to stay in the store."""
        present = {record.facts.identity for record in self.records.values() if record.accepted}
        kept = {one.identity for versions in self.kept.values() for one in versions}
        # A pair that a decision is storing is in use before a record names it, and one that it replaces still is.
        return present | kept | set(self.being_stored.values()) | set(self.being_kept.values())

    def presence(self, plugin_id: str) -> Presence:
        """What the disk says of an id right now; an empty Presence, which is not available, if it says nothing."""
        return self.presences.get(plugin_id, Presence())

    def known(self) -> list[Record]:
        """Every record that is not a tombstone, sorted by id."""
        return sorted((r for r in self.records.values() if not r.forgotten), key=lambda record: record.id)

    def accepted(self) -> list[str]:
        """The ids of plugins whose pair is in the store."""
        return [record.id for record in self.records.values() if record.accepted]

    def pair_fault(self, record: Record) -> Fault | None:
        """Why the stored pair of an accepted plugin may not run, or None."""
        return self.pair_faults.get(record.facts.identity) if record.accepted else None

    def standing(self, plugin_id: str) -> PluginStanding:
        """What host services may do for a plugin now."""
        record = self.records.get(plugin_id)
        if record is None:
            # There is no plugin of this id.
            return UNKNOWN
        if record.status is not Status.ACTIVE:  # a runner asks for its permits before it is activated
            return replace(UNKNOWN, permits=record.permits)
        # During a handover `not_active`, not `not_available`: its processes are to end, with their grace.
        found = presence.standing(record, self.plugins[plugin_id].manifest, self.presences.get(plugin_id))
        return replace(found, active=False, fault="", seen=True) if plugin_id in self.in_handover else found
