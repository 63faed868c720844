"""Combines the records with what the disk says, and applies the result.

Records and presences change only in `put` and `refresh`. Both update synchronously, in this order: host services, the
audit chain, the supervisor. The record itself is written later (`write_behind`), so that stopping never waits for the
ledger.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from latticed.kit import logs
from latticed.lifecycle import advance, granting, presence, recording, verdicts
from latticed.lifecycle.presence import Presence
from latticed.lifecycle.refused_log import RefusedLog
from latticed.model.audit import DAEMON
from latticed.model.errors import Problem
from latticed.model.lifecycle import Status
from latticed.model.verdict import Refused, Verified
from latticed.trust import claims
from latticed.trust.claims import Claimants

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from latticed.catalog.catalog import Catalog, Sighting
    from latticed.host.services import HostServices
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger
    from latticed.lifecycle.state import LifecycleState
    from latticed.lifecycle.write_behind import WriteBehind
    from latticed.model.accepted import Usual
    from latticed.model.fault import Fault
    from latticed.model.lifecycle import Record
    from latticed.model.verdict import Verdict
    from latticed.supervisor.supervisor import Supervisor

log = logs.get_logger()

ENTERED: Final = 1_000
REFRESHED: Final = 50
"""Verdicts entered, and ids refreshed, before others get their turn: 5 to 10 ms of the event loop."""
T = TypeVar("T")


@dataclass(kw_only=True, eq=False)
class Registry:
    """Which bundle is which plugin, and what follows from it: permissions, audit events, arming and disarming.

    All of it runs on the event loop without waiting. `defaults` are the settings' values for what a manifest leaves
    out. Once `closed`, `refresh` does nothing.
    """

    state: LifecycleState
    ledger: Ledger
    catalog: Catalog
    supervisor: Supervisor
    services: HostServices
    write_behind: WriteBehind
    clock: Clock
    defaults: Usual
    closed: bool = False
    _verdicts: dict[str, Verdict] = field(default_factory=dict)  # by bundle name
    _claimants: dict[str, Claimants] = field(default_factory=dict)  # bundles that verify, by the id they claim
    _contested: set[str] = field(default_factory=set)  # ids of which some claimant is refused
    _sources: dict[str, str] = field(default_factory=dict)  # ids of records, by the bundle name they came from
    _critical: set[str] = field(default_factory=set)
    _refused_log: RefusedLog = field(init=False)

    def __post_init__(self) -> None:
        self._refused_log = RefusedLog(log, self.ledger.record_limited)

    # Queries.

    def critical(self) -> list[Record]:
        """Active plugins whose manifest says `critical`: while one does not run, the daemon is not healthy."""
        found = [self.state.records[plugin_id] for plugin_id in sorted(self._critical)]
        return [record for record in found if record.status is Status.ACTIVE]

    def rejected(self) -> dict[str, Refused]:
        """Every bundle on disk that may not run, by name: it does not verify, or may not claim its id.

        Computed at each call: only ids with a refused claimant are looked at.
        """
        found = {name: verdict for name, verdict in self._verdicts.items() if isinstance(verdict, Refused)}
        for plugin_id in self._contested:
            for claim in self._claimants[plugin_id]:
                if (refused := self._refusal(plugin_id, claim.name)) is not None:
                    found[claim.name] = refused
        return found

    def claimant(self, plugin_id: str, publisher: str) -> claims.IdClaim | None:
        """The one bundle of `publisher` that verifies and was refused only because another publisher holds the id.

        None when there is none, or more than one: then nothing says which of them an operator means.
        """
        found = [c for c in self._claimants.get(plugin_id, ()) if c.verdict.manifest.publisher == publisher]
        fitting = [claim for claim in found if self._refusal(plugin_id, claim.name) is not None]
        return fitting[0] if len(fitting) == 1 else None

    # Changes on disk, from the catalog.

    def take(self, batch: Iterable[Sighting], touched: set[str]) -> Iterator[tuple[str, ...]]:
        """Apply a batch of verdicts: refresh the ids they affect and those in `touched`. Iterate to its end.

        Yields after each slice, with the ids refreshed in it, for the caller to give others their turn. All verdicts
        are entered before the first refresh, so that a bundle which was renamed is not taken for gone.
        """
        with self._refused_log.bounded():
            # What verifies first, what is gone last: whoever looks between two slices finds a renamed bundle twice, not
            # gone. That is for batches of thousands only.
            for part in _slices(sorted(batch, key=_arrivals_first), ENTERED):
                for seen in part:
                    touched |= self._enter(seen)
                yield ()
            # What runs first: it may have to be stopped.
            for ids in _slices(sorted(touched, key=self._active_first), REFRESHED):
                for plugin_id in ids:
                    self.refresh(plugin_id)
                yield ids

    def _active_first(self, plugin_id: str) -> bool:
        """The key that sorts active plugins before others."""
        record = self.state.records.get(plugin_id)
        return record is None or record.status is not Status.ACTIVE

    def _enter(self, seen: Sighting) -> set[str]:
        """Store the verdict of one sighting; returns the ids that it affects, at most three."""
        # Up to three ids: the record's that came from this bundle, the one it claimed before, the one it claims now.
        touched = {self._sources[seen.name]} if seen.name in self._sources else set()
        before = self._verdicts.pop(seen.name, None)
        if isinstance(before, Verified):
            self._disclaim(before.manifest.id, seen.name)
            touched.add(before.manifest.id)
        # Shown with its new words by `rejected`, but neither recorded nor logged again.
        told = verdicts.is_told(before, seen.verdict)
        if seen.name not in self._sources and not told:  # otherwise `refresh` records an event of the plugin
            self._record_unclaimed(seen, before if isinstance(before, Refused) else None)
        match seen.verdict:
            case Verified() as verdict:
                self._verdicts[seen.name] = verdict
                claimants = self._claimants.setdefault(verdict.manifest.id, Claimants())
                claimants.put(claims.IdClaim(name=seen.name, verdict=verdict))
                self._refused_log.newcomer(verdict.manifest.id, seen.name)
                touched.add(verdict.manifest.id)
            case Refused() as verdict:
                self._verdicts[seen.name] = verdict
                if not told:
                    self._refused_log.tell(bundle=seen.name, code=verdict.code, reason=verdict.reason)
            # The bundle is gone: taking out the old verdict, above, was all.
            case None:
                pass
        return touched

    def _record_unclaimed(self, seen: Sighting, before: Refused | None) -> None:
        """Record a changed verdict on a bundle that no record came from; none when the bundle is gone."""
        refused = seen.verdict if isinstance(seen.verdict, Refused) else None
        if seen.verdict is not None and (event := verdicts.of_bundle(seen.name, before, refused)) is not None:
            self.ledger.record_limited(event)

    def _disclaim(self, plugin_id: str, name: str) -> None:
        """The bundle `name` claims this id no longer; an id that nobody claims keeps no entry."""
        claimants = self._claimants[plugin_id]
        claimants.drop(name)
        if not claimants:
            del self._claimants[plugin_id]

    def refresh(self, plugin_id: str) -> None:
        """Recompute which bundle is the plugin, and apply that. On return, whatever may not run is being stopped.

        Call it whenever a verdict, a record or the fault of a stored pair has changed.
        """
        if self.closed:
            return
        state = self.state
        record = state.records.get(plugin_id)
        # Which bundle is the plugin; if none, why the one that the record came from is not.
        winner = self._resolve(plugin_id, record)
        fault = None
        if record is not None and winner is not None:
            record, fault = self._follow_latticed(record, winner)
        left = winner is None and record is not None and self._is_left_revoked(record)
        if winner is None and record is not None and not left:
            fault = self._fault(record)
        stored = state.pair_fault(record) if record is not None else None
        seen = Presence(winner=winner, fault=fault, stored=stored, left_revoked=left)
        before = state.presences.get(plugin_id)
        state.presences[plugin_id] = seen
        # Host services first: nothing new may begin for a plugin that is being stopped.
        self.update_permissions(plugin_id)
        if record is not None and (event := verdicts.of_plugin(record, before, seen)) is not None:
            # Accepted plugins have quotas of their own: other bundles in the directory cannot use theirs up.
            self.ledger.record_limited(event, group=plugin_id if record.accepted else "")
        # The record follows the disk, unless a decision is changing it: that refreshes again at its end.
        if winner is not None and plugin_id not in state.busy:
            now_us = self.clock.wall_us()
            if record is None or record.forgotten:
                self.put_later(advance.first_seen(winner, now_us, record))
            else:
                self.put_later(advance.follow(record, winner, now_us))
        self._run(plugin_id)

    def _is_left_revoked(self, record: Record) -> bool:
        return presence.is_left_revoked(record, self._verdicts.get(record.source), self.state.bad.get(record.id, {}))

    def _fault(self, record: Record) -> Fault:
        """Why nothing on disk is the plugin of this record."""
        found = self._verdicts.get(record.source)
        if record.builtin and found is None:
            return presence.not_brought(record)
        return presence.fault_at(found, self._refusal(record.id, record.source))

    def _follow_latticed(self, record: Record, winner: claims.IdClaim) -> tuple[Record, Fault | None]:
        """The record of a built-in plugin after latticed itself was exchanged, or why it stays as it is.

        There is no choice for an operator in it: the code that was accepted is gone with the latticed that brought it.
        """
        if not advance.follows_latticed(record, winner) or record.id in self.state.busy:
            return record, None
        outcome = advance.upgrade(record, winner, advance.NO_CONSENT, self.clock.wall_us(), self.defaults)
        if isinstance(outcome, Problem):
            return record, advance.not_followed(record, winner, outcome)
        self.put(outcome)
        withheld = granting.withheld(outcome, self.defaults)
        self.write_behind.save(record.id, recording.status_event(DAEMON, record, outcome, withheld))
        self.write_behind.tidy()  # the floors too: a higher version, and masks
        return outcome, None

    def _resolve(self, plugin_id: str, record: Record | None) -> claims.IdClaim | None:
        """Which bundle is the plugin. Logs newcomers and a former winner that are refused; copies are logged once."""
        claimants = self._claimants.get(plugin_id, Claimants())
        winner = claimants.winner(presence.pin_of(record) if record else None)
        # Contested: there are more claims than the winning one, so `rejected` has to look at this id.
        (self._contested.add if len(claimants) > (winner is not None) else self._contested.discard)(plugin_id)
        former = self.state.presence(plugin_id).winner
        former_name = former.name if former is not None and former != winner else None
        self._refused_log.update(plugin_id, former_name, lambda name: self._refusal(plugin_id, name))
        return winner

    def _refusal(self, plugin_id: str, name: str) -> Refused | None:
        """Why the bundle of this name, which verifies, is not the plugin; None when it is, or claims another id."""
        record = self.state.records.get(plugin_id)
        claimants = self._claimants.get(plugin_id)
        return claimants.refusal(name, presence.pin_of(record) if record else None) if claimants else None

    def _run(self, plugin_id: str) -> None:
        """Arm the plugin if it is active and available, else disarm it; nothing for one that was never installed."""
        record = self.state.records.get(plugin_id)
        if record is None or not record.accepted:
            return
        seen, plugin = self.state.presence(plugin_id), self.state.plugins[plugin_id]
        if record.status is not Status.ACTIVE:
            self.supervisor.disarm(plugin)
        elif not seen.available:
            self.supervisor.disarm(plugin, seen.trouble)
        elif plugin_id not in self.state.busy:  # otherwise `_deciding` refreshes at its end
            self.supervisor.arm(plugin, frozenset(record.granted))

    def update_permissions(self, plugin_id: str) -> None:
        """Update what host services may do for a plugin; on return, what they no longer may is being stopped."""
        self.services.update(plugin_id, self.state.standing(plugin_id))

    # Changes of records.

    def put(self, record: Record) -> None:
        """Make `record` the current one, for host services and the catalog too; the caller writes it to the ledger."""
        state = self.state
        before = state.records.get(record.id)
        # The record may have come from another bundle before: that one is no longer judged first.
        if before is not None and self._sources.get(before.source) == record.id:
            del self._sources[before.source]
            self.catalog.unmark_recorded(before.source)
        if not record.accepted:  # there may be thousands: keep no second copy of their manifests
            state.plugins.pop(record.id, None)
            self._critical.discard(record.id)
        elif (
            record.id not in state.plugins
            or before is None
            or (before.facts, before.terms) != (record.facts, record.terms)
        ):
            plugin = state.plugins[record.id] = presence.plugin_of(record, self.defaults)
            (self._critical.add if plugin.manifest.critical else self._critical.discard)(record.id)
        state.records[record.id] = record
        active = record.status is Status.ACTIVE
        (state.active.add if active else state.active.discard)(record.id)
        self._sources[record.source] = record.id
        if record.accepted:
            self.catalog.mark_recorded(record.source)
        self.catalog.set_active(record.source, active=active)
        self.update_permissions(record.id)

    def put_later(self, record: Record) -> None:
        """As `put`, and have it written soon; an equal record is only replaced in memory."""
        if self.state.records.get(record.id) == record:
            self.state.records[record.id] = record  # equal, but shares memory with the verdict
        else:
            self.put(record)
            self.write_behind.save(record.id)


def _slices(items: Sequence[T], most: int) -> Iterator[tuple[T, ...]]:
    """`items` in their order, `most` at a time."""
    for start in range(0, len(items), most):
        yield tuple(items[start : start + most])


def _arrivals_first(seen: Sighting) -> int:
    """The key that sorts bundles that verify before those that are refused, and these before those that are gone."""
    return 0 if isinstance(seen.verdict, Verified) else 1 if seen.verdict is not None else 2
