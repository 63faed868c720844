"""What the controller does that holds the lease: decide, have it on disk, and fill the message system with it.

    take over: make streams, learn what another controller left, take up statuses
    then, again and again: rollouts decide ──► new assignments, on disk ──► what is published, by compare-and-set

The database is the truth. What the engine has lost, or somebody else put there, is put again; what another controller
that counts has put there since is learnt first. Nothing is published without the lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from latticed.fleet import chunks, documents, rollout, subjects
from latticed.fleet.controller import assigning, observing, records, shelf
from latticed.fleet.controller.lease import boottime_s
from latticed.fleet.deployment import HEADER_BYTES
from latticed.fleet.documents import Malformed, SharedRecord
from latticed.fleet.engine import CHUNK_BYTES, Conflict, EngineUnavailable
from latticed.fleet.rollout import RolloutState
from latticed.kit import logs, tasks
from latticed.kit.text import sanitise
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from latticed.fleet.controller.assigning import KeptAssignment
    from latticed.fleet.controller.core import FleetCore
    from latticed.fleet.controller.lease import Lease
    from latticed.fleet.controller.records import JoinedRecord, RolloutRecord
    from latticed.fleet.documents import Signed
    from latticed.fleet.engine import Stored
    from latticed.fleet.nats_connection import NatsConnection
    from latticed.fleet.nats_engine import NatsControllerEngine
    from latticed.fleet.rollout import NodeReport

_AT_ONCE: Final = 32
_DOCUMENT: Final = "doc-"
_CERTIFICATE: Final = "cert-"
_NAME_DIGITS: Final = 40
_EVENTS_KEPT: Final = 128
"""Of a node's events in the engine, so that another controller finds the last ones; its quota is 256."""
_EVENTS_THINNED: Final = 160
"""From so many on the oldest go."""
_TOGETHER_S: Final = 0.05
"""For what comes close behind to be decided together."""
_OF_NODES: Final = ("epoch", "assignment")
"""Why a node is not assigned what it should be; of each node in turn."""
_FAILURES: Final = 3
"""Rounds that failed one after the other, after which everything in the engine is looked at anew."""
_GONE_S: Final = 60
"""How long the engine has the word that a record is there no more."""
_AHEAD_S: Final = 60
"""Between two assignments of a node that says it has taken up something else: it may say so as often as it likes."""

log = logs.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerPeriods:
    """Seconds between two looks of each kind."""

    tick_s: float = 1.0
    """Decisions, although nothing came: gates open by time."""
    renew_s: float = 30.0
    """All assignments are looked at: some may expire."""
    assert_s: float = 300.0
    """All that is in the engine is compared with what is to be there."""
    turn_s: float = 90.0
    """Where there are several lists of revocations, each node gets the next that it does not say it has learnt: longer
    than it takes to look, and to say so.
    """
    thin_s: float = 30.0
    shared_s: float = 15.0
    """What the others share, by one who does not hold the lease."""
    present_s: float = 10.0
    look_s: float = 60.0
    """Servers are asked whether they still refuse who was revoked."""


class Leader:
    """`lead` runs for as long as the process, and acts while the lease is held."""

    def __init__(
        self,
        core: FleetCore,
        connection: NatsConnection,
        engine: NatsControllerEngine,
        lease: Lease,
        *,
        streams: Sequence[dict[str, Any]],
        bundles: Path,
        assignment_s: int,
        periods: ControllerPeriods | None = None,
    ) -> None:
        self._core, self._connection, self._engine, self._lease = core, connection, engine, lease
        self._streams, self._bundles = streams, bundles
        self._life_s = assignment_s
        self._periods = periods or ControllerPeriods()
        self._engine_has: dict[str, tuple[int, bytes]] = {}
        self._shared: dict[str, tuple[int, bytes]] = {}
        self._shared_steps: dict[str, int] = {}
        self._unsharable: dict[str, int] = {}
        """Steps of records that are too large: nothing is tried with them again at this connection, with this lease."""
        self._taken_over: tuple[int, int] | None = None
        self._due = dict.fromkeys(("renew", "assert", "turn", "thin"), 0.0)
        self._turn = 0
        self._told: object = None
        self._waits: dict[str, tuple[tuple[int, float], float]] = {}
        """Of rollouts by name: the wave that is waited for, and since when (`boottime_s`)."""
        self._shelf_shared: object = None
        self._failed = 0
        self._lease_changed = asyncio.Event()
        self.events_read = 0
        """Up to which revision events are kept here (`events` of `readers`)."""
        self.troubles: dict[str, str] = {}
        """What could not be done, by what it is about; for alarms."""

    @property
    def acts(self) -> bool:
        """Whether this controller decides and publishes now."""
        return self._lease.held and self._taken_over == (self._lease.epoch, self._connection.connections)

    def lease_changed(self) -> None:
        """The lease was taken, or lost."""
        self._lease_changed.set()
        self._core.work.set()

    async def lead(self) -> None:
        """Take over when the lease is held, then decide and publish; until cancelled."""
        while True:
            self._lease_changed.clear()
            try:
                if self._lease.held and self._connection.up:
                    if not self.acts:
                        await self._take_over()
                    await self.tick()
                    self._tell("engine")
                    self._tell("store")
                elif self._connection.up:
                    await self._make_streams()
                    if self._lease.other_lives:
                        self._core.rebuilt = ""
                    await self._follow()
                    self.troubles.clear()  # what is left to do is the other's
                self._failed = 0
            except (EngineUnavailable, KeyError) as error:  # KeyError: a stream that was deleted
                self._tell("engine", str(error))
                self._failed += 1
                if self._failed >= _FAILURES:
                    self._taken_over = None  # its streams may be gone
            except Problem as problem:  # the disk does not take it: nothing was published
                self._tell("store", problem.reason)
            except Conflict:
                pass  # the next round reads what is there
            await self._pause()

    async def tick(self) -> None:
        """One round."""
        if not self.acts:
            return
        self._core.work.clear()
        self._look_at_clock()
        await self.decide()
        # Before any node is given something: who takes over from here on must not begin an earlier wave.
        await self._publish_shared()
        await self._publish_desired()
        if self._is_due("assert", self._periods.assert_s):
            await self._compare()
        if self._is_due("thin", self._periods.thin_s):
            await self._thin_events()

    def _tell(self, about: str, reason: str = "") -> None:
        """Say that something could not be done; without a reason, that it could, or has not to be done any more."""
        if reason:
            self.troubles[about] = sanitise(reason, 200)
        else:
            self.troubles.pop(about, None)

    async def decide(self) -> None:
        """Have rollouts decide and assignments made, and both on disk."""
        core = self._core
        everyone = self._is_due("renew", self._periods.renew_s)
        async with core.changing:
            now_s = core.now_s()
            may_sign = self.may_sign(now_s)
            changed, wanted = self._decided(now_s, may_sign=may_sign)
            looked_at = set(wanted) | (set(core.assignments) if everyone else core.touched & core.assignments.keys())
            due = {node: wanted.get(node) or core.assignments[node].intent for node in looked_at}
            made = [] if may_sign else await asyncio.to_thread(self._made, due, now_s, everyone=everyone)
            if not (made or changed) or not self._lease.held:
                return
            await core.keep(made, changed)
        for record in changed:
            log.info("rollout_changed", name=record.name, state=str(record.state), wave=record.wave)

    def _made(self, due: Mapping[str, str], now_s: int, *, everyone: bool) -> list[KeptAssignment]:
        troubles: dict[str, str] = {}
        made = [
            one for node, intent in due.items() if (one := self._another(node, intent, now_s, troubles)) is not None
        ]
        for about in list(self.troubles):
            kind, _, node = about.partition(" of ")
            if kind in _OF_NODES and about not in troubles and (everyone or node in due):
                self._tell(about)
        for about, reason in troubles.items():
            self._tell(about, reason)
        return made

    def may_sign(self, now_s: int) -> str:
        """Why nodes would not take up what this controller signs; empty when they would."""
        core = self._core
        if core.signer in core.shelf.revoked:
            return "controller_revoked"
        certificate = core.shelf.certificate(core.signer)
        if certificate is None:
            return "controller_uncertified"
        return "controller_expired" if now_s >= certificate.document.expires else ""

    def _decided(self, now_s: int, *, may_sign: str) -> tuple[list[RolloutRecord], dict[str, str]]:
        """The records that change, and what each node of a rollout is to have."""
        core = self._core
        changed, wanted = [], {}
        active = [one for one in core.rollouts.values() if not one.over]
        for record in sorted(active, key=lambda one: (one.began, one.name)):
            plain = record.rollout()
            plain = rollout.without_way_back(
                plain,
                [
                    node
                    for node in plain.touched
                    if (back := plain.back(node)) and not core.way_back(node, record.release, back, now_s=now_s)
                ],
            )
            trouble = may_sign or core.shelf.counts(record.release, now_s=now_s)
            if trouble and plain.state is RolloutState.RUNNING:
                plain = rollout.halted(plain, f"nodes would not take it up: {trouble}")
            after, given = rollout.decide(
                plain,
                self.reports(plain.touched),
                now_s=float(now_s),
                waited_s=self.waited_s(record),
                gone=core.gone(rollout.wanted(plain)),
            )
            fresh = record.having(after, now_s=now_s)
            if fresh is not record:
                changed.append(fresh)
            wanted.update(given)
        return changed, wanted

    def waited_s(self, record: RolloutRecord) -> float:
        """For how long a rollout's present wave has been waited for by this controller, since it took over."""
        if not (self.acts and self._connection.up):
            return 0.0
        wave, now_s = (record.wave, record.wave_began_s), boottime_s()
        if self._waits.get(record.name, (wave, 0.0))[0] != wave:
            del self._waits[record.name]
        return now_s - self._waits.setdefault(record.name, (wave, now_s))[1]

    def reports(self, nodes: Iterable[str]) -> dict[str, NodeReport]:
        """What gates look at, of these nodes."""
        core = self._core
        hearing, now_s = core.hearing(), core.now_s()
        found = {}
        for node in nodes:
            report = observing.report(
                core.seen.get(node),
                core.statuses.get(node),
                core.heard.get(node),
                present=node in core.present,
                hearing=hearing,
                now_s=now_s,
            )
            if report is not None:
                found[node] = report
        return found

    def _another(self, name: str, intent: str, now_s: int, troubles: dict[str, str]) -> KeptAssignment | None:
        """Another assignment for a node, if it needs one and would take it up. Why there is none goes to `troubles`."""
        core = self._core
        node, kept, status = core.nodes.get(name), core.assignments.get(name), core.statuses.get(name)
        if node is None or node.key in core.shelf.revoked or core.shelf.counts(intent, now_s=now_s):
            return None
        key = assigning.AssigningKey(private=core.key, public=core.signer, epoch=core.epoch(), life_s=self._life_s)
        why = assigning.why_another(kept, intent, node, status, shelf=core.shelf, key=key, now_s=now_s)
        if not why or (why == "another intent" and core.declines(name, intent)):
            return None
        if why == "the node is ahead" and kept is not None and now_s - kept.made < _AHEAD_S:
            return None
        turn = core.next_turn(name)
        if turn is None:
            last = core.floor(name)
            troubles[f"epoch of {name}"] = f"it has epoch {last[0]}, generation {last[1]}: nothing of ours follows"
            return None
        try:
            return assigning.made(
                core.shelf, node, intent, generation=turn[1], sources=core.sources_for(intent), key=key, now_s=now_s
            )
        except Malformed as error:  # too many bundles with too many addresses
            troubles[f"assignment of {name}"] = str(error)
            return None

    # Taking over, and following.

    async def _take_over(self) -> None:
        """Everything that has to be known before this controller decides anything."""
        epoch, connected = self._lease.epoch, self._connection.connections
        if self._streams:
            await self._engine.provide(self._streams)
        # What is there as it was is known already: nothing is judged anew because of another connection.
        await self._follow()
        await self._close_overtaken()
        self._shelf_shared = None
        self._unsharable.clear()  # who led meanwhile had its own troubles, and another server may take larger messages
        await self._learn_desired()
        async for batch in self._engine.all_statuses():
            await self._core.take_statuses(batch, names(batch), read_before=batch[-1].revision)
        if not self._core.assignments:
            self._core.rebuilt = ""  # it is the fleet that is new
        self._core.touched.update(self._core.assignments)
        self._due = dict.fromkeys(self._due, 0.0)
        self._waits = {}
        self._taken_over = (epoch, connected)
        if self.acts:
            log.info("lead_taken", nodes=len(self._core.nodes), assignments=len(self._core.assignments))
            await self._publish_shared()
            await self._put_bundles()
            # Not before: after a Conflict above the next tick compares all.
            self._due["assert"] = time.monotonic() + self._periods.assert_s

    async def _close_overtaken(self) -> None:
        """End rollouts whose nodes another one has since: of one that began here and was told to nobody, whoever led
        meanwhile did not know.
        """
        core = self._core
        async with core.changing:
            rollouts, now_s = list(core.rollouts.values()), core.now_s()
            ended = [
                records.superseded(one, later.name, now_s=now_s)
                for one in rollouts
                if not one.over and (later := records.overtaken_by(one, rollouts, now_s))
            ]
            if ended:
                await core.keep(rollouts=ended)

    async def _make_streams(self) -> None:
        """Without them there is no lease to be had."""
        try:
            await self._engine.position(subjects.FLEET_STREAM)
        except KeyError:
            if self._streams:
                await self._engine.provide(self._streams)
            else:
                raise EngineUnavailable(f"expected the stream {subjects.FLEET_STREAM}, found none") from None

    async def _follow(self) -> None:
        """Learn what controllers share."""
        found: dict[str, tuple[int, bytes]] = {}
        async for batch in self._engine.all_shared():
            for one in batch:
                if one.data:
                    found[one.subject.rpartition(".")[2]] = (one.revision, one.data)
        # Revocations first: what they revoke is not believed any more.
        for key in sorted(found, key=lambda one: (not one.startswith(_DOCUMENT), one)):
            revision, data = found[key]
            if self._shared.get(key) == (revision, data):
                continue
            if key.startswith(records.ROLLOUT) and self._core.rebuilt and not self._lease.held:
                # With an empty database, and nobody who is seen to lead, an operator has to say whether it goes on.
                found[key] = (0, data)
                continue
            await self._learn_shared(key, data)
        self._shared = found
        self._shared_steps = {key: step for key, step in self._shared_steps.items() if key in found}

    async def _learn_shared(self, key: str, data: bytes) -> None:
        if key.startswith((_DOCUMENT, _CERTIFICATE)):
            await self._core.learn_document(data)
        elif key.startswith((records.ROLLOUT, records.JOINED)) and await self._core.learn_record(data, key):
            with contextlib.suppress(Malformed):
                self._shared_steps[key] = documents.read(data, SharedRecord).document.step

    async def _learn_desired(self) -> None:
        """Look at every desired document of the engine; those that are not what they should be are put again."""
        newest: dict[str, Stored] = {}
        async for batch in self._engine.all_desired():
            for one in batch:
                newest[one.subject.rpartition(".")[2]] = one
        core = self._core
        for node, stored in newest.items():
            digest = hashlib.sha256(stored.data).digest()
            if self._engine_has.get(node, (0, b"")) == (stored.revision, digest):
                continue
            self._engine_has[node] = (stored.revision, digest)
            if stored.data != self._wanted(node) and not await core.learn(node, stored.data) and node in core.nodes:
                reason = "expected the desired document that a controller put there, found another one"
                await core.raise_alarms([core.alarm("desired_foreign", reason, node=node)])
            core.touched.add(node)
        for node in self._engine_has.keys() - newest.keys():
            del self._engine_has[node]
            core.touched.add(node)

    async def _compare(self) -> None:
        """Put again what the engine has lost."""
        if self._streams:
            await self._engine.provide(self._streams)
        before = self._shared
        await self._follow()
        if before.keys() - self._shared.keys():
            self._shelf_shared = None
            await self._publish_shared()
        await self._learn_desired()
        await self._publish_desired()
        await self._put_bundles()

    # Publishing.

    async def _publish_shared(self) -> None:
        """Have the other controllers find documents, rollouts and used tokens."""
        core = self._core
        if (present := core.shelf) is not self._shelf_shared:
            for kind, signed in list(present.envelopes()):
                await self._share_document(kind, signed)
            self._shelf_shared = present
        # Nobody believes a record of a controller that no operator certified.
        if self.may_sign(core.now_s()) not in {"", "controller_expired"}:
            return
        due: list[RolloutRecord | JoinedRecord] = [*core.tokens.values(), *core.rollouts.values()]
        for record in due:
            key = records.name_of(record)
            if self._shared_steps.get(key, 0) < record.step and self._unsharable.get(key) != record.step:
                try:
                    await self.share(record)
                except Malformed as error:  # the others know it as it was before
                    self._unsharable[key] = record.step
                    self._tell(f"sharing {key}", str(error))

    async def _share_document(self, kind: str, signed: Signed) -> None:
        key = _shared_name(kind, signed)
        if self._shared.get(key, (0, b""))[1] != signed.envelope:
            await self._share(key, signed.envelope)

    async def share_rollout(self, record: RolloutRecord) -> None:
        """Have the other controllers find a rollout, and its intent before. As `share`."""
        if (intent := self._core.shelf.intents.get(record.release)) is not None:
            await self._share_document("intent", intent)
        await self.share(record)

    async def share(self, record: RolloutRecord | JoinedRecord) -> None:
        """Have the other controllers find a record. EngineUnavailable; Conflict where another one has left its own
        since, which is learnt; Malformed for one that is too large.
        """
        # In a thread: of a rollout over 20,000 nodes it takes a third of a second.
        key, envelope = await asyncio.to_thread(self.sealed, record)
        await self._share(key, envelope)
        self._shared_steps[key] = record.step
        self._tell(f"sharing {key}")

    def sealed(self, record: RolloutRecord | JoinedRecord) -> tuple[str, bytes]:
        """The name and the envelope of a record. Malformed for what is too large; EngineUnavailable."""
        core = self._core
        key, envelope = records.shared(
            record, core.key, fleet=core.fleet, controller=core.controller, now_s=core.now_s()
        )
        _, most = self._connection.server
        if len(envelope) + HEADER_BYTES > most:
            raise Malformed(f"expected a message of {most} bytes (max_payload of nats-server), found {len(envelope)}")
        return key, envelope

    async def _share(self, key: str, data: bytes) -> None:
        if not self._lease.held:
            raise EngineUnavailable("the lease is not held any more")
        try:
            revision = await self._engine.put(key, data, self._shared.get(key, (0, b""))[0])
        except Conflict:
            # Somebody put something there: it is read before it is replaced.
            kept = await self._engine.get(key)
            if kept is None:
                self._shared.pop(key, None)
            else:
                self._shared[key] = (kept.revision, kept.data)
                await self._learn_shared(key, kept.data)
            raise
        self._shared[key] = (revision, data)

    async def _publish_desired(self) -> None:
        """Put the documents that may be others than the engine has."""
        core = self._core
        nodes, core.touched = core.touched, set()
        waiting = [node for node in sorted(nodes) if node in core.assignments]
        limit = asyncio.Semaphore(_AT_ONCE)

        async def put(node: str) -> None:
            async with limit:
                if await self._put(node):
                    nodes.discard(node)

        try:
            with tasks.first_error():
                async with asyncio.TaskGroup() as group:
                    for node in waiting:
                        group.create_task(put(node))
        finally:
            core.touched |= nodes & core.assignments.keys()

    async def _put(self, node: str) -> bool:
        """Put one document; False when it is to be tried again."""
        data = self._wanted(node)
        about = f"desired {node}"
        if data is None:
            self._tell(about)
            return True
        revision, kept = self._engine_has.get(node, (0, b""))
        if hashlib.sha256(data).digest() == kept:
            self._tell(about)
            return True
        if not self._lease.held:
            raise EngineUnavailable("the lease is not held any more")
        try:
            fresh = await self._engine.put_desired(node, data, revision)
        except ValueError as error:
            self._tell(about, str(error))
            return True
        except Conflict:
            found = await self._engine.desired(node)
            if found is None:
                self._engine_has.pop(node, None)
            else:
                self._engine_has[node] = (found.revision, hashlib.sha256(found.data).digest())
                await self._core.learn(node, found.data)
            return False
        self._engine_has[node] = (fresh, hashlib.sha256(data).digest())
        self._tell(about)
        return True

    def _wanted(self, node: str) -> bytes | None:
        kept = self._core.assignments.get(node)
        if kept is None:
            return None
        return assigning.desired(self._core.shelf, kept, status=self._core.statuses.get(node), turn=self._turn)

    async def put_bundle(self, sha256: str, size: int) -> None:
        """Have the engine keep a bundle's chunks, unless it has all. EngineUnavailable, Conflict, OSError."""
        if await self._engine.chunks_kept(sha256) < size // CHUNK_BYTES + 1:
            await chunks.put(self._engine, self._bundles / f"{sha256}.tar")
        self._tell(f"bundle {sha256}")

    async def forget(self, shared: Iterable[str], bundles: Iterable[str]) -> None:
        """Have the engine keep these records and bundles no longer. EngineUnavailable, Conflict."""
        for key in shared:
            revision, _ = self._shared.pop(key, (0, b""))
            self._shared_steps.pop(key, None)
            self._tell(f"sharing {key}")
            if revision and self._lease.held:
                await self._take_back(key, revision)
        for sha256 in bundles:
            self._tell(f"bundle {sha256}")
            if self._lease.held:
                await self._engine.forget_bundle(sha256)

    async def _take_back(self, key: str, revision: int) -> None:
        """Have the engine keep nothing under `key` any more. EngineUnavailable, Conflict."""
        try:
            await self._engine.put(key, b"", revision, ttl_s=_GONE_S)
        except Conflict:
            # A round of ours has shared it meanwhile. Left there, it would come back at the next controller.
            kept = await self._engine.get(key)
            if kept is not None and kept.data:
                await self._engine.put(key, b"", kept.revision, ttl_s=_GONE_S)

    async def forget_documents(self, *, before_s: int) -> None:
        """Have the engine keep those no longer that are not kept here any more: `shelf.superseded`. As `forget`."""
        kept = {_shared_name(kind, signed) for kind, signed in self._core.shelf.envelopes()}
        others = {one: data for one, (_, data) in self._shared.items() if one.startswith(_DOCUMENT) and one not in kept}
        present = self._core.shelf

        def found() -> list[str]:
            return [one for one, data in others.items() if shelf.superseded(present, data, before_s=before_s)]

        await self.forget(await asyncio.to_thread(found), ())

    async def _put_bundles(self) -> None:
        for bundle in list(self._core.bundles.values()):
            if not self._lease.held:
                return
            try:
                await self.put_bundle(bundle.sha256, bundle.size)
            except (OSError, Conflict) as error:
                self._tell(f"bundle {bundle.sha256}", str(error))

    async def _thin_events(self) -> None:
        """Make room for nodes' next events, of those that are kept here."""
        position = await self._engine.position(subjects.EVENTS_STREAM)
        counts = await self._engine.event_counts()
        if position.last > self.events_read:
            self._due["thin"] = 0.0  # not all of them are kept yet: again at the next round
            return
        for node, count in counts.items():
            if count > _EVENTS_THINNED and self._lease.held:
                await self._engine.thin_events(node, _EVENTS_KEPT)

    # Time.

    def _look_at_clock(self) -> None:
        if self._told is not (told := self._core.shelf.told):
            # What was revoked last is told first.
            self._told, self._turn = told, 0
            self._due["turn"] = time.monotonic() + self._periods.turn_s
            # Whom a list touched that came in the middle of a round was told another one in that round.
            self._core.touched.update(self._core.assignments)
        core = self._core
        if len(core.shelf.told) > 1 and self._is_due("turn", self._periods.turn_s):
            self._turn += 1
            core.touched |= {one for one in core.assignments if assigning.unheard(core.shelf, core.statuses.get(one))}

    def _is_due(self, what: str, every_s: float) -> bool:
        now_s = time.monotonic()
        if now_s < self._due[what]:
            return False
        self._due[what] = now_s + every_s
        return True

    async def _pause(self) -> None:
        """Until something may follow, or it is time to look."""
        if not self._lease.held:
            await _wait(self._lease_changed, self._periods.shared_s)
        elif self._core.work.is_set():
            await asyncio.sleep(min(self._periods.tick_s, _TOGETHER_S))
        else:
            await _wait(self._core.work, self._periods.tick_s)


def _shared_name(kind: str, signed: Signed) -> str:
    """Under which the other controllers find a document: of some the newest alone."""
    match kind:
        case "node":
            return f"{_CERTIFICATE}{hashlib.sha256(signed.document.node.encode()).hexdigest()[:_NAME_DIGITS]}"
        case "users":
            return f"{_DOCUMENT}users"
        case _:
            return f"{_DOCUMENT}{signed.sha256[:_NAME_DIGITS]}"


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def names(batch: Sequence[Stored]) -> dict[str, str]:
    """The node of each subject in a batch; others are left out."""
    found = {}
    for one in batch:
        with contextlib.suppress(Problem):
            found[one.subject] = subjects.node_of(one.subject)
    return found
