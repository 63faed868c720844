"""What a controller knows, in memory as in its database: each change is on disk first.

Changes are made one after the other (`changing`): each is decided over what is here, committed, and then here. What has
to be on disk before anything follows from it (documents, generations, rollouts, used tokens) is synced.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING, Final

from latticed.fleet import documents, enrolment
from latticed.fleet.controller import assigning, chains, holding, observing, records, shelf, store
from latticed.fleet.controller.assigning import FleetNodeKey, KeptAssignment, Turn
from latticed.fleet.controller.lease import boottime_s
from latticed.fleet.controller.observing import HeardStatus, Hearing, NotBelieved
from latticed.fleet.controller.records import JoinedRecord, RolloutRecord
from latticed.fleet.controller.shelf import DocumentShelf, KeptDocument
from latticed.fleet.controller.store import KeptAlarm
from latticed.fleet.documents import Assignment, BundleSource, Malformed, NodeStatus
from latticed.kit import logs
from latticed.kit.text import sanitise
from latticed.model.errors import Problem
from latticed.trust import key_files

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.fleet.controller.chains import ChainHead
    from latticed.fleet.controller.database import Connection, ControllerDatabase
    from latticed.fleet.controller.observing import SeenStatus
    from latticed.fleet.controller.store import KeptFleet
    from latticed.fleet.engine import Stored

MOST_GENERATION: Final = 2**53 - 2
"""The last one that another can follow in its epoch."""
NO_TURN: Final[Turn] = (0, 0)
_MOST_LEARNT: Final = 100_000
"""Envelopes that were judged already, by their digest."""
ALARM_S: Final = 7 * 86_400
"""How long what happened once is shown."""

log = logs.get_logger()


class FleetCore:
    """See the module. `key` signs assignments; `fleet`, `controller`: names."""

    def __init__(
        self,
        database: ControllerDatabase,
        kept: KeptFleet,
        *,
        fleet: str,
        controller: str,
        operators: tuple[str, ...],
        key: Ed25519PrivateKey,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.database = database
        self.fleet, self.controller, self.key = fleet, controller, key
        self.signer = key_files.public_text(key)
        self.clock = clock
        self.shelf = DocumentShelf(fleet=fleet, operators=operators)
        self.revoked_since = kept.revoked
        """When each revoked key was revoked first, as far as it was here."""
        self.users_came = asyncio.Event()
        """There is another list of users who may connect no more."""
        for one in kept.documents:
            self.shelf = self.shelf.taking(one)
            self._said(one, one.received)
        self.nodes, self.tokens, self.floors = kept.nodes, kept.tokens, kept.floors
        self.assignments, self.sources, self.rollouts = kept.assignments, kept.sources, kept.rollouts
        self.seen, self.heads, self.bundles, self.alarms = kept.statuses, kept.heads, kept.bundles, kept.alarms
        self.statuses: dict[str, NodeStatus] = {}
        for node, seen in kept.statuses.items():
            self.statuses[node] = documents.read(seen.envelope, NodeStatus).document
        self.heard: dict[str, HeardStatus] = {}
        self.hears_since_s: float | None = None
        """Since when there is the connection by which nodes are heard (`boottime_s`); None while there is none."""
        self.present: frozenset[str] = frozenset()
        self.rebuilt = ""
        """What was not known when this began with an empty database; empty otherwise."""
        self.full = ""
        """Why the disk did not take the last change; empty when it did."""
        self._learnt: set[bytes] = set()
        self.changing = asyncio.Lock()
        self.work = asyncio.Event()
        """Something may follow from what is here now."""
        self.events_came = asyncio.Event()
        self.newcomers: set[str] = set()
        """Nodes that were not known here until now: what they have said before was not taken."""
        self.newcomers_came = asyncio.Event()
        self.touched: set[str] = set()
        """Nodes whose desired document may be another one now."""

    def now_s(self) -> int:
        """Whole seconds since 1970."""
        return int(self.clock())

    def hearing(self) -> Hearing:
        """For how long nodes could be heard."""
        now_s = boottime_s()
        return Hearing(since_s=now_s if self.hears_since_s is None else self.hears_since_s, now_s=now_s)

    async def write(self, change: Callable[[Connection], None], *, durable: bool = True) -> None:
        """Commit a change; Problem store_unavailable."""
        try:
            await self.database.write(change, durable=durable)
        except Problem as problem:
            if self.full != problem.reason:
                log.error("store_unavailable", reason=problem.reason)
            self.full = problem.reason
            raise
        self.full = ""

    # Documents that operators signed.

    async def take_document(self, envelope: bytes) -> tuple[KeptDocument, bool, tuple[str, ...]]:
        """Keep a document: itself, whether it is new, and what is worth knowing of it. Problem as `shelf.judged`."""
        kept = await asyncio.to_thread(shelf.judged, self.shelf, envelope)
        async with self.changing:
            if self.shelf.has(kept):
                return kept, False, ()
            taken = self.shelf.taking(kept)
            if taken is self.shelf:
                found = kept.signed.document
                what = f"a certificate of {found.node}" if kept.kind == "node" else "a list of users"
                expected = f"expected {what} with a serial above the last one's"
                hint = "latticectl fleet sign (or revoke) makes one with the next serial"
                raise Problem("document_old", f"{expected}, found {found.serial}", hint)
            now_s = self.now_s()
            holders, alarms = self._holders(self._about(kept), taken)

            revoked = {key: self.revoked_since.get(key, now_s) for key in _keys_of(kept)}

            def change(connection: Connection) -> None:
                store.put_document(connection, kept, now_s=now_s)
                if kept.kind == "revocations":
                    store.keep_lists(connection, taken.lists, revoked)
                store.put_nodes(connection, holders)
                store.put_alarms(connection, alarms)

            await self.write(change)
            before, self.shelf = self.shelf, taken
            self._said(kept, now_s)
            self._held(holders, alarms)
        if kept.kind in {"revocations", "controller"}:
            self.touched.update(self.assignments)
        self.work.set()
        log.info("document_taken", kind=kept.kind, sha256=kept.signed.sha256, operator=kept.signed.key)
        return kept, True, shelf.notes(self.shelf, kept, before)

    def _said(self, kept: KeptDocument, now_s: int) -> None:
        """Remember when a key was first revoked, and have a new list of users handed to the servers."""
        for key in _keys_of(kept):
            self.revoked_since.setdefault(key, now_s)
        if kept.kind == "users":
            self.users_came.set()

    def _about(self, kept: KeptDocument) -> set[str]:
        """Names that another host may have by this document."""
        if kept.kind == "node":
            return {kept.signed.document.node}
        keys = set(_keys_of(kept))
        return {one.name for one in self.nodes.values() if one.key in keys} if keys else set()

    def _holders(
        self, names: set[str], known: DocumentShelf, *more: JoinedRecord
    ) -> tuple[list[FleetNodeKey], list[KeptAlarm]]:
        """Who has these names by the documents `known`, where that is another one or has other labels."""
        joined: dict[str, list[JoinedRecord]] = {name: [] for name in names}
        for one in (*self.tokens.values(), *more) if names else ():
            if one.node in joined:
                joined[one.node].append(one)
        holders, alarms = [], []
        for name in sorted(names):
            before, certificate = self.nodes.get(name), known.nodes.get(name)
            certified = certificate.document if certificate is not None else None
            found = holding.holder(before, certified, joined[name], revoked=known.revoked, now_s=self.now_s())
            if found is None or found == before:
                continue
            holders.append(found)
            if before is not None and before.key != found.key and found.key not in known.revoked:
                reason = f"expected {name} to have the key {before.key}, found {found.key}"
                hint = "revoke the key before, if that host is gone (latticectl fleet revoke)"
                told = "" if before.key in known.revoked else hint
                alarms.append(self.alarm("node_key_changed", reason, node=name, hint=told))
        return holders, alarms

    def _held(self, holders: list[FleetNodeKey], alarms: list[KeptAlarm]) -> None:
        """From now on; on disk already."""
        for one in holders:
            before = self.nodes.get(one.name)
            if before is not None and before.key != one.key:
                self.seen.pop(one.name, None)
                self.statuses.pop(one.name, None)
            self.nodes[one.name] = one
            self.touched.add(one.name)
            if before is None or before.key != one.key:
                self._came(one.name)
        self._alarmed(alarms)

    def _came(self, node: str) -> None:
        self.newcomers.add(node)
        self.newcomers_came.set()

    async def join(self, joined: JoinedRecord) -> None:
        """Keep that a token was used, and by whom; on disk when this returns. Problem store_unavailable."""
        async with self.changing:
            if joined.token in self.tokens:
                return
            holders, alarms = self._holders({joined.node}, self.shelf, joined)

            def change(connection: Connection) -> None:
                store.put_token(connection, joined)
                store.put_nodes(connection, holders)
                store.put_alarms(connection, alarms)

            await self.write(change)
            self.tokens[joined.token] = joined
            self._held(holders, alarms)
        self.touched.add(joined.node)
        self.work.set()

    # What is in the engine, which anybody may have written there.

    async def learn(self, node: str, data: bytes) -> bool:
        """Take what a desired document has that is newer than what is here; whether it is the one of this controller's
        making, or of another's that counts.
        """
        found = await asyncio.to_thread(self._unpacked, node, data)
        if found is None:
            return False
        desired, assignment = found
        for envelope in (desired.revocations, desired.controller, desired.intent, desired.node):
            if envelope is not None:
                await self.learn_document(envelope)
        certificate = self.shelf.certificate(assignment.signer, assignment.epoch)
        if certificate is None:
            return False
        kept = self.assignments.get(node)
        if self.now_s() >= certificate.document.expires and kept is not None and kept.envelope != assignment.envelope:
            # Nodes take nothing of that controller any more: by its key nobody uses up generations, or has another
            # controller sign what he likes. Where nothing is known it says at least what was.
            return False
        await self._adopt(assignment)
        return True

    async def forget_intents(self, intents: Collection[str]) -> None:
        """Keep these no longer; called with `changing` held. Problem store_unavailable."""
        await self.write(lambda connection: store.drop_intents(connection, intents))
        self.shelf = self.shelf.without(intents)
        for one in intents:
            self.sources.pop(one, None)

    async def learn_document(self, envelope: bytes) -> None:
        """Keep a document if an operator of this fleet signed it."""
        digest = hashlib.sha256(envelope).digest()
        if digest in self._learnt:
            return
        if len(self._learnt) >= _MOST_LEARNT:
            self._learnt.clear()
        try:
            await self.take_document(envelope)
            self._learnt.add(digest)
        except Problem as problem:
            if problem.code == "store_unavailable":
                raise
            if problem.code == "document_old":
                self._learnt.add(digest)
            log.debug("document_refused", code=problem.code, reason=problem.reason)

    def _unpacked(self, node: str, data: bytes) -> tuple[documents.DesiredDocument, KeptAssignment] | None:
        try:
            found = documents.unpack(data, most=len(data))
            signed = documents.read(found.assignment, Assignment)
        except Malformed:
            return None
        document: Assignment = signed.document
        if document.fleet != self.fleet or document.node != node:
            return None
        return found, KeptAssignment(
            node=node,
            epoch=document.epoch,
            generation=document.generation,
            intent=document.intent,
            key=document.node_key,
            signer=signed.key,
            expires=document.expires,
            made=self.now_s(),
            envelope=found.assignment,
        )

    async def _adopt(self, assignment: KeptAssignment) -> None:
        """Another controller's assignment that is newer than what is here. Its number counts as used in any case."""
        async with self.changing:
            node, kept = assignment.node, self.assignments.get(assignment.node)
            # Of two with one number the engine's was published, and ours not: whoever lost the lease has made it.
            known, place = self.nodes.get(node), (node, assignment.key)

            def rank(one: KeptAssignment) -> tuple[bool, Turn]:
                # Another host of this name begins anew, whatever was said of the one before.
                return known is not None and one.key == known.key, one.turn

            newer = kept is None or (rank(assignment) >= rank(kept) and assignment.envelope != kept.envelope)
            unknown = known is None and assignment.intent in self.shelf.intents
            if not newer and assignment.turn <= self.floors.get(place, NO_TURN) and not unknown:
                return
            fresh = FleetNodeKey(name=node, key=assignment.key, labels={}, serial=0, since=self.now_s())
            sources = documents.read(assignment.envelope, Assignment).document.bundles
            learnt = sources if sources and assignment.intent not in self.sources else None

            def change(connection: Connection) -> None:
                store.raise_floors(connection, {place: assignment.turn})
                if newer:
                    store.put_assignments(connection, [assignment])
                if known is None:
                    store.put_nodes(connection, [fresh])
                if learnt is not None:
                    store.put_sources(connection, assignment.intent, learnt)

            await self.write(change)
            self.floors[place] = max(self.floors.get(place, NO_TURN), assignment.turn)
            if newer:
                self.assignments[node] = assignment
            if known is None:
                self.nodes[node] = fresh
                self._came(node)
            if learnt is not None:
                self.sources[assignment.intent] = learnt
        self.touched.add(node)

    async def learn_record(self, data: bytes, key: str) -> bool:
        """Take another controller's record, found under `key`, if it is newer; whether it is one that counts."""
        try:
            found = await asyncio.to_thread(records.found, data, self.shelf)
            if records.name_of(found) != key:
                raise Malformed(f"expected the record {key}, found {records.name_of(found)} in its place")
        except Malformed as error:
            log.debug("record_refused", reason=str(error))
            return False
        if isinstance(found, JoinedRecord):
            await self.join(found)
            return True
        if self.rebuilt and found.name not in self.rollouts:
            # It may be an older one that somebody shows again: nothing here can tell.
            found = records.halted(
                found, "the controller's state was lost: an operator has to look", now_s=self.now_s()
            )
        async with self.changing:
            kept = self.rollouts.get(found.name)
            if kept is None or (found.step >= kept.step and found != kept):
                await self.write(lambda connection: store.put_rollout(connection, found))
                self.rollouts[found.name] = found
                if found.sources and found.release not in self.sources:
                    self.sources[found.release] = found.sources
        self.work.set()
        return True

    # What nodes say.

    async def take_statuses(
        self, batch: Sequence[Stored], names: Mapping[str, str], *, read_before: int = 0, late: bool = False
    ) -> None:
        """Take statuses as they came, by `names` of their subjects; what does not count raises an alarm. Up to the
        revision `read_before` they may be old ones that are read again. `late`: they came before their nodes were
        known, and may be of who had the name then.
        """
        read, alarms = await asyncio.to_thread(self._read_statuses, batch, names)
        if late:
            alarms = []
        async with self.changing:
            fresh: dict[str, SeenStatus] = {}
            heard: dict[str, HeardStatus] = {}
            found: dict[str, NodeStatus] = {}
            floors: dict[tuple[str, str], Turn] = {}
            for node, key, data, status, revision in read:
                if self.nodes[node].key != key:
                    continue  # another host has the name since
                last = fresh.get(node) or self.seen.get(node)
                previous = found.get(node) or self.statuses.get(node)
                if previous is not None and self.nodes[node].since > (last.received if last else 0):
                    last = previous = None  # of another host of this name
                try:
                    seen = observing.taken(last, data, status, previous=previous, now_s=self.now_s())
                except NotBelieved as error:
                    if revision > read_before:
                        alarms.append(self.alarm(error.code, error.reason, node=node))
                    continue
                if seen is None:
                    continue
                fresh[node], found[node] = seen, status
                before = heard.get(node) or self.heard.get(node)
                heard[node] = observing.heard(before, seen, now_s=self.now_s(), steady_s=boottime_s())
                turn = (status.epoch, status.generation)
                if turn > self.floors.get((node, key), NO_TURN) and self._believable(turn):
                    floors[node, key] = turn

            def change(connection: Connection) -> None:
                store.put_statuses(connection, fresh)
                store.raise_floors(connection, floors)
                store.put_alarms(connection, alarms)

            if fresh or alarms:
                await self.write(change, durable=False)
            self.seen.update(fresh)
            self.heard.update(heard)
            self.statuses.update(found)
            self.floors.update(floors)
            self._alarmed(alarms)
        if fresh:
            self.work.set()

    def _read_statuses(
        self, batch: Sequence[Stored], names: Mapping[str, str]
    ) -> tuple[list[tuple[str, str, bytes, NodeStatus, int]], list[KeptAlarm]]:
        read, alarms = [], []
        for one in batch:
            name = names.get(one.subject, "")
            node, last = self.nodes.get(name), self.seen.get(name)
            if node is None or (last is not None and last.envelope == one.data):
                continue
            try:
                status = observing.read(one.data, node, fleet=self.fleet)
                read.append((name, node.key, one.data, status, one.revision))
            except NotBelieved as error:
                alarms += self._forged(error, name)
        return read, alarms

    async def take_events(self, batch: Sequence[Stored], names: Mapping[str, str], *, late: bool = False) -> None:
        """Keep events as they came, each once; what does not follow raises an alarm. Those of a node that was not known
        when this was called are not taken. `late` as of statuses.
        """
        known = {name: node for name in names.values() if (node := self.nodes.get(name)) is not None}
        read, alarms = await asyncio.to_thread(self._read_events, batch, names, known)
        if late:
            alarms = []
        async with self.changing:
            heads: dict[str, ChainHead] = {}

            def change(connection: Connection) -> None:
                heads.clear()
                for came in read:
                    node = came.event.node
                    kept = store.event_hash(connection, node, came.key, came.event.number)
                    found = chains.linked(heads.get(node) or self.heads.get(node), came, kept)
                    if found is None:
                        continue
                    heads[node] = found.head
                    store.put_event(connection, found.event, found.head)
                    if found.forked:
                        alarms.append(self.alarm("chain_forked", found.forked, node=node))
                    if found.missed:
                        reason = f"expected every event, found {found.missed} missing before {came.event.number}"
                        alarms.append(self.alarm("events_missed", reason, node=node))
                for node in heads:
                    store.drop_events(connection, node)
                store.put_alarms(connection, alarms)

            if read or alarms:
                # Synced: what is kept here may be dropped from the engine.
                await self.write(change)
            self.heads.update(heads)
            self._alarmed(alarms)
        if heads:
            came, self.events_came = self.events_came, asyncio.Event()
            came.set()

    def _read_events(
        self, batch: Sequence[Stored], names: Mapping[str, str], known: Mapping[str, FleetNodeKey]
    ) -> tuple[list[chains.KeptEvent], list[KeptAlarm]]:
        read, alarms, now_s = [], [], self.now_s()
        for one in batch:
            node = known.get(names.get(one.subject, ""))
            if node is None:
                continue
            try:
                read.append(chains.read(one.data, node, fleet=self.fleet, now_s=now_s))
            except NotBelieved as error:
                alarms += self._forged(error, node.name)
        return read, alarms

    def _forged(self, error: NotBelieved, node: str) -> list[KeptAlarm]:
        """The alarm of what a node did not say. What is by a revoked key counts no more, and is no reason for one: it
        is left of the host that had the name before, and is read again at each connection.
        """
        return [] if error.key in self.shelf.revoked else [self.alarm(error.code, error.reason, node=node)]

    # What follows.

    async def keep(
        self,
        made: Iterable[KeptAssignment] = (),
        rollouts: Iterable[RolloutRecord] = (),
        sources: Mapping[str, tuple[BundleSource, ...]] | None = None,
    ) -> None:
        """Have assignments and rollouts on disk, in one transaction; before that nobody is told of them. The caller
        holds `changing`.
        """
        made, rollouts, sources = list(made), list(rollouts), sources or {}

        def change(connection: Connection) -> None:
            store.put_assignments(connection, made)
            for record in rollouts:
                store.put_rollout(connection, record)
            for intent, found in sources.items():
                store.put_sources(connection, intent, found)

        await self.write(change)
        for one in made:
            self.assignments[one.node] = one
            place = (one.node, one.key)
            self.floors[place] = max(self.floors.get(place, NO_TURN), one.turn)
            self.touched.add(one.node)
        self.rollouts.update({one.name: one for one in rollouts})
        self.sources.update(sources)

    async def raise_alarms(self, alarms: list[KeptAlarm]) -> None:
        """Keep what happened, if the disk takes it."""
        fresh = [one for one in alarms if (one.code, one.node) not in self.alarms]
        if fresh:
            self._alarmed(fresh)
            await self.write(lambda connection: store.put_alarms(connection, fresh), durable=False)

    async def forget_alarms(self) -> None:
        """Those of more than a week ago."""
        before_s = self.now_s() - ALARM_S
        old = [place for place, one in self.alarms.items() if one.since < before_s]
        if old:
            await self.write(lambda connection: store.drop_alarms(connection, before_s=before_s), durable=False)
            for place in old:
                self.alarms.pop(place, None)

    def alarm(self, code: str, reason: str, *, node: str = "", hint: str = "") -> KeptAlarm:
        """What happened, as of now."""
        return KeptAlarm(code=code, reason=sanitise(reason, 400), hint=hint, node=node, since=self.now_s())

    def _alarmed(self, alarms: Iterable[KeptAlarm]) -> None:
        for one in alarms:
            if (one.code, one.node) not in self.alarms:
                self.alarms[one.code, one.node] = one
                log.warning("fleet_alarm", code=one.code, node=one.node, reason=one.reason)

    def epoch(self) -> int:
        """The epoch that this controller is certified for; 0 when it is not."""
        certificate = self.shelf.certificate(self.signer)
        return int(certificate.document.epoch) if certificate is not None else 0

    def _believable(self, turn: Turn) -> bool:
        """Whether a node can have taken up an assignment of that epoch and generation: an operator certified some
        controller for it.
        """
        return any(one.document.epoch == turn[0] for one in self.shelf.certificates.values())

    def floor(self, node: str) -> Turn:
        """The last turn that was reserved for the host that has this name, or heard of from it."""
        return self.floors.get((node, self.nodes[node].key), NO_TURN)

    def next_turn(self, node: str) -> Turn | None:
        """What the next assignment of a node has; None when nothing of this controller's would come after what was
        there before for this host.
        """
        epoch, (last_epoch, last) = self.epoch(), self.floor(node)
        if epoch < last_epoch or (epoch == last_epoch and last > MOST_GENERATION):
            return None
        return epoch, last + 1 if last <= MOST_GENERATION else 1

    def selected(self, intent: str, nodes: Iterable[str] | None = None) -> list[str]:
        """Nodes that an intent's selector means, by name."""
        signed = self.shelf.intents[intent]
        asked = None if nodes is None else frozenset(nodes)
        return sorted(
            node.name
            for node in self.nodes.values()
            if (asked is None or node.name in asked)
            and node.key not in self.shelf.revoked
            and signed.document.selector.selects(node.name, node.labels)
        )

    def gone(self, wanted: Mapping[str, str]) -> frozenset[str]:
        """Those of the nodes in {node: intent} that were revoked, or decline this intent."""
        return frozenset(name for name, intent in wanted.items() if self._revoked(name) or self.declines(name, intent))

    def declines(self, name: str, intent: str) -> bool:
        """Whether a node would refuse an intent by the labels that an operator has certified of it since."""
        node, signed = self.nodes.get(name), self.shelf.intents.get(intent)
        if node is None or signed is None or not (node.labels or node.serial):  # labels that are not known here
            return False
        return not signed.document.selector.selects(name, node.labels)

    def way_back(self, name: str, release: str, before: str, *, now_s: int) -> bool:
        """Whether a node that has `release` takes `before` again."""
        return assigning.way_back(self.shelf, release, before, now_s=now_s) and not self.declines(name, before)

    def _revoked(self, name: str) -> bool:
        node = self.nodes.get(name)
        return node is not None and node.key in self.shelf.revoked

    def users_of(self, key: str) -> frozenset[str]:
        """With which keys the node of this key has joined, to connect by them."""
        return frozenset(
            enrolment.user_of(one.request) for one in self.tokens.values() if one.key == key and one.request
        )

    def sources_for(self, intent: str) -> tuple[BundleSource, ...]:
        """Where the bundles of an intent are."""
        named = self.sources.get(intent, ())
        return assigning.sources_of(self.shelf.intents[intent].document, self.bundles.values(), named)


def _keys_of(kept: KeptDocument) -> tuple[str, ...]:
    """The keys that a document revokes."""
    return tuple(kept.signed.document.keys) if kept.kind == "revocations" else ()
