"""What operators ask of a controller: documents, bundles, rollouts, invocations. What is answered is on disk before.

Of rollouts the other controllers were told before, too: who takes over goes on from what an operator was answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import time
from typing import TYPE_CHECKING, Final

from latticed.fleet import controller_view as view
from latticed.fleet import documents, rollout
from latticed.fleet.controller import assigning, bundle_files, records, store, views
from latticed.fleet.controller.assigning import AssigningKey
from latticed.fleet.documents import BundleSource, Invocation, InvocationResult, Malformed
from latticed.fleet.engine import Conflict, EngineUnavailable
from latticed.fleet.rollout import GatePolicy, RolloutState
from latticed.kit import tasks
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterable

    from latticed.fleet.controller.assigning import KeptBundle
    from latticed.fleet.controller.records import RolloutRecord
    from latticed.fleet.controller.running import RunningController
    from latticed.fleet.rollout import Rollout

_ANSWER_S: Final = 35.0
"""For a node to answer an invocation; its agent gives up after 30 s."""
_PAUSES_S: Final = (0.05, 0.1, 0.2, 0.4, 0.8, *(1.0,) * 8)
"""Between two tries to share what others have replaced, or are about to: ten seconds in all."""
_URL: Final = re.compile(r"https://[^\s\\]{1,480}")
_WHY: Final = {
    "intent_unknown": "expected an intent that was given to this controller, found none of this name",
    "intent_revoked": "expected an intent that is not revoked, found one that is",
    "operator_revoked": "expected an intent by an operator who is not revoked, found one of a revoked key",
    "intent_expired": "expected an intent that has not expired, found one that has",
    "controller_revoked": "expected this controller's key not to be revoked, found that it is",
    "controller_uncertified": "expected a certificate of this controller's key, found none",
    "controller_expired": "expected a certificate of this controller that has not expired, found one that has",
}
_SIGN: Final = "latticectl fleet sign makes another one, with the operator's key"


class FleetOperations:
    """Of one running controller."""

    def __init__(self, running: RunningController) -> None:
        self._running = running
        self._core, self._leader = running.core, running.leader
        self._coming = bundle_files.Coming(running.settings.engine.bundles_bytes)

    def check_leader(self) -> None:
        """Problem not_leader: another controller decides, or none does."""
        if self._leader.acts:
            return
        seen = self._running.lease.seen
        # Its own lease has ended, or is not seen any more.
        holder = seen.holder if seen is not None and seen.holder != self._core.controller else ""
        if self._running.lease.held:
            raise Problem("not_leader", "expected this controller to have taken over, found it at it", "ask again")
        hint = f"ask the controller {holder}" if holder else "ask again once the message system can be reached"
        raise Problem(
            "not_leader", f"expected the controller that holds the lease, found {holder or 'none'} there", hint
        )

    async def take_document(self, envelope: bytes) -> view.DocumentTaken:
        """Keep a document that an operator signed. Problem as `shelf.judged`, too_large, document_old."""
        kept, new, notes = await self._core.take_document(envelope)
        return view.DocumentTaken(
            kind=kept.kind, sha256=kept.signed.sha256, new=new, operator=kept.signed.key, notes=notes
        )

    async def bundles(self) -> view.BundlesPage:
        """All that were handed over, and whether their files are here."""
        kept = sorted(self._core.bundles.values(), key=lambda one: (one.plugin, one.version, one.sha256))
        here = await self._here(kept)
        return view.BundlesPage(bundles=tuple(views.bundle(one, here=one.sha256 in here) for one in kept))

    async def take_bundle(self, sha256: str, body: AsyncIterator[bytes]) -> view.BundleView:
        """Keep a bundle's file, and have the engine keep it. Problem bundle_invalid, bundle_mismatch, too_large,
        quota_exceeded, store_unavailable, engine_unavailable: then it is kept here, and put there later.
        """
        self.check_leader()
        kept = self._core.bundles.get(sha256)
        new = kept is None
        if kept is None or not await self._here((kept,)):
            kept = await self._received(sha256, body)
        try:
            await self._leader.put_bundle(sha256, kept.size)
        except EngineUnavailable as error:
            hint = "it is kept here, and put into the message system once that can be reached"
            raise Problem("engine_unavailable", f"the message system does not take it: {error}", hint) from error
        except Conflict as error:
            raise Problem(
                "bundle_mismatch", str(error), "the message system has other bytes under this name"
            ) from error
        except OSError as error:
            raise Problem(
                "store_unavailable", f"the bundle cannot be read: {error.strerror or error}", _READ
            ) from error
        return views.bundle(kept, new=new, here=True)

    async def _here(self, bundles: Collection[KeptBundle]) -> set[str]:
        return await tasks.in_thread(lambda: bundle_files.here(self._running.settings.bundles, bundles))

    async def _received(self, sha256: str, body: AsyncIterator[bytes]) -> KeptBundle:
        settings, core = self._running.settings, self._core

        def others() -> int:
            return sum(one.size for one in core.bundles.values() if one.sha256 != sha256)

        with self._coming.one() as arrived:
            found = await bundle_files.received(
                settings.bundles,
                sha256,
                self._coming.within(body, arrived, kept=others),
                most=view.MOST_BUNDLE_BYTES,
                now_s=core.now_s(),
            )
            async with core.changing:
                await core.write(lambda connection: store.put_bundle(connection, found))
                core.bundles[sha256] = found
        return found

    async def begin(self, wanted: view.RolloutWanted) -> view.RolloutView:
        """Begin a rollout. Problem intent_*, controller_*, rollout_empty, rollout_running, exists,
        too_large, engine_unavailable.
        """
        core = self._core
        async with core.changing:
            self.check_leader()
            now_s = core.now_s()
            self.check_counts(wanted.intent, now_s)
            if trouble := self._leader.may_sign(now_s):
                raise Problem(trouble, _WHY[trouble], _SIGN)
            named = sources(wanted.sources)
            nodes = self.targets(wanted.intent)
            if not nodes:
                hint = "latticectl fleet nodes shows their labels, and what each has"
                raise Problem("rollout_empty", "expected nodes that it selects and that lack it, found none", hint)
            name = wanted.name or self.name_for(wanted.intent)
            if name in core.rollouts:
                raise Problem("exists", f"expected a new name, found a rollout {name}", "choose another name")
            defaults = self._running.settings.rollout
            record = records.begun(
                name,
                tuple(nodes),
                release=wanted.intent,
                has=self.ways_back(wanted.intent, nodes, now_s),
                policy=_policy(wanted.policy) if wanted.policy is not None else defaults.policy,
                sizes=wanted.sizes or defaults.sizes,
                sources=assigning.sources_of(core.shelf.intents[wanted.intent].document, core.bundles.values(), named),
                now_s=now_s,
            )
            self._check_size(record)
            ended = self._superseding(record, now_s)
            await core.keep(rollouts=[*ended, record], sources={wanted.intent: record.sources})
        return await self._told(*ended, record)

    async def act(self, name: str, what: str, reason: str) -> view.RolloutView:
        """Halt, resume or take back a rollout (`what`: halt, resume, back). Problem not_found, invalid_transition,
        no_way_back; engine_unavailable: it is kept, and others may not know of it.
        """
        core = self._core
        async with core.changing:
            self.check_leader()
            record = core.rollouts.get(name)
            if record is None:
                raise Problem("not_found", f"expected a rollout, found none of the name {name}", _LIST)
            now_s = core.now_s()
            if record.closed or (what == "back" and records.overtaken_by(record, core.rollouts.values(), now_s)):
                reason = f"expected a rollout whose nodes it has still, found {name} ended"
                raise Problem("invalid_transition", reason, _LIST)
            plain = record.rollout()
            if what == "back" and not any(plain.back(node) for node in plain.touched):
                hint = "sign an intent whose back_to names what they had (latticectl fleet sign), and roll that"
                raise Problem("no_way_back", f"expected nodes that can go back from {name}, found none", hint)
            after = _ACTS[what](plain, reason, float(now_s))
            if after == plain:
                raise Problem(
                    "invalid_transition", f"expected a rollout that can {what}, found it {plain.state}", _LIST
                )
            fresh = record.having(after, now_s=now_s)
            await core.keep(rollouts=[fresh])
        return await self._told(fresh)

    async def _told(self, *kept: RolloutRecord) -> view.RolloutView:
        """The last of these once the other controllers find them all. Problem engine_unavailable, controller_*."""
        core = self._core
        try:
            if (code := self._leader.may_sign(core.now_s())) not in {"", "controller_expired"}:
                raise Problem(code, f"{_WHY[code]}: it is kept here, and no other controller believes it", _SIGN)
            for closed in kept[:-1]:
                with contextlib.suppress(Malformed):  # the leader's next round says so, and the last one goes on
                    await self._share(closed)
            await self._share(kept[-1])
        except (EngineUnavailable, Conflict) as error:
            reason = f"the message system does not take it: {error}; it is kept here, and others may not know of it"
            hint = "a controller that takes over goes on without it: latticectl fleet status there, then ask again"
            raise Problem("engine_unavailable", reason, hint) from error
        except Malformed as error:  # a reason, or ways back that are lost, have made it larger than when it began
            reason = f"expected a rollout that other controllers can be told of: {error}; it is kept here"
            raise Problem("too_large", reason, _LIST) from error
        finally:
            core.work.set()
        return self.rollout_view(core.rollouts.get(kept[-1].name, kept[-1]))

    async def _share(self, record: RolloutRecord) -> None:
        """Have the other controllers find the newest of a record. EngineUnavailable, Malformed; Conflict in the end.

        While three servers have not agreed yet on what the leader's own round put there, they refuse this one and show
        what was there before, so that no try but a later one can be right.
        """
        for pause_s in _PAUSES_S:
            with contextlib.suppress(Conflict):  # what is there was learnt: perhaps this one, by the leader's own round
                await self._leader.share_rollout(self._core.rollouts.get(record.name, record))
                return
            await asyncio.sleep(pause_s)
        raise Conflict(f"expected to put {record.name} there, found others who do, again and again")

    def rollout_view(self, record: RolloutRecord) -> view.RolloutView:
        """As the API shows it, with the nodes as they are now."""
        leader = self._leader
        gone = self._core.gone(rollout.wanted(record.rollout()))
        return views.rollout_view(record, leader.reports(record.nodes), waited_s=leader.waited_s(record), gone=gone)

    def targets(self, intent: str, nodes: Iterable[str] | None = None) -> list[str]:
        """Nodes that the intent selects and that are not assigned it."""
        kept = self._core.assignments
        return [
            node
            for node in self._core.selected(intent, nodes)
            if node not in kept or kept[node].intent != intent or kept[node].key != self._core.nodes[node].key
        ]

    def ways_back(self, intent: str, nodes: Iterable[str], now_s: int) -> dict[str, str]:
        """What each node would go back to; those that could not are left out."""
        core = self._core
        found = {}
        for node in nodes:
            kept = core.assignments.get(node)
            if kept is not None and core.way_back(node, intent, kept.intent, now_s=now_s):
                found[node] = kept.intent
        return found

    def sources_with(self, intent: str, named: tuple[BundleSource, ...]) -> tuple[BundleSource, ...]:
        """Where the bundles of an intent would be, with what is named."""
        core = self._core
        return assigning.sources_of(core.shelf.intents[intent].document, core.bundles.values(), named)

    def name_for(self, intent: str) -> str:
        """A name that no rollout has: of the intent's generation."""
        plain = f"g{self._core.shelf.intents[intent].document.generation}"
        number, name = 1, plain
        while name in self._core.rollouts:
            number += 1
            name = f"{plain}-{number}"
        return name

    def check_counts(self, intent: str, now_s: int) -> None:
        """Problem for an intent that nodes would not take up."""
        if trouble := self._core.shelf.counts(intent, now_s=now_s):
            raise Problem("not_found" if trouble == "intent_unknown" else trouble, _WHY[trouble], _SIGN)

    async def invoke(self, envelope: bytes) -> view.InvocationAnswer:
        """Have a node carry out an invocation that an operator signed. Problem document_malformed, operator_unknown,
        operator_revoked, not_found, other_node, invocation_expired, engine_unavailable, answer_forged.
        """
        core = self._core
        try:
            signed = documents.read(envelope, Invocation)
        except Malformed as error:
            reason = f"expected an invocation that an operator signed: {error}"
            raise Problem("document_malformed", reason, _INVOKE) from error
        wanted: Invocation = signed.document
        if signed.key not in core.shelf.operators or wanted.fleet != core.fleet:
            raise Problem(
                "operator_unknown", "expected an invocation by an operator of this fleet, found another", _WHO
            )
        if signed.key in core.shelf.revoked:
            raise Problem("operator_revoked", "expected an operator who is not revoked, found one who is", _WHO)
        node = core.nodes.get(wanted.node)
        if node is None:
            raise Problem("not_found", f"expected a node of this fleet, found none that is {wanted.node}", _NODES)
        if node.key != wanted.node_key:
            reason = f"expected an invocation for the key {node.key}, found {wanted.node_key}"
            raise Problem("other_node", reason, f"latticectl fleet node {wanted.node} shows its key; sign another one")
        if wanted.expires <= core.now_s():
            reason = f"expected an invocation that is valid now, found {wanted.expires}"
            raise Problem("invocation_expired", reason, _INVOKE)
        try:
            answer = await self._running.engine.invoke(wanted.node, envelope, _ANSWER_S)
        except (EngineUnavailable, ValueError) as error:
            hint = "it may have been carried out: latticectl fleet events shows it"
            raise Problem("engine_unavailable", f"{wanted.node} did not answer: {error}", hint) from error
        try:
            found = documents.read(answer, InvocationResult)
        except Malformed as error:
            reason = f"expected an answer that {wanted.node} signed: {error}"
            raise Problem("answer_forged", reason, _FORGED) from error
        result: InvocationResult = found.document
        if found.key != node.key or (result.node, result.nonce) != (wanted.node, wanted.nonce):
            reason = f"expected the answer of {wanted.node} to this question, found another"
            raise Problem("answer_forged", reason, _FORGED)
        return view.InvocationAnswer(
            node=result.node,
            nonce=result.nonce,
            code=result.code,
            reason=result.reason,
            answer=result.answer,
            envelope=answer.decode("ascii", "replace"),
        )

    async def backup(self, wanted: view.BackupWanted) -> view.BackupDone:
        """Write a verified copy of the database. Problem exists, store_unavailable."""
        directory = self._running.settings.backups
        name = wanted.name or f"controller-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(2)}.db"
        target = directory / name
        try:
            await tasks.in_thread(lambda: directory.mkdir(mode=0o700, parents=True, exist_ok=True))
        except OSError as error:
            hint = "backup_dir in the settings names another directory; systemctl restart latticed-controller"
            raise Problem("store_unavailable", f"cannot write into {directory}: {error.strerror}", hint) from error
        size, sha256 = await self._core.database.backup(target)
        return view.BackupDone(path=os.fspath(target), size=size, sha256=sha256)

    def _check_size(self, record: RolloutRecord) -> None:
        """Problem too_large where an assignment would not be taken by any node, or the record by no controller;
        engine_unavailable.
        """
        fewer = "sign an intent for fewer nodes at a time: its selector names labels, or nodes"
        if len(record.nodes) > records.MOST_NODES:
            reason = f"expected a rollout over at most {records.MOST_NODES} nodes, found {len(record.nodes)}"
            raise Problem("too_large", reason, fewer)
        try:
            size = len(self._leader.sealed(record)[1])
            if size > records.BEGUN_BYTES:
                raise Malformed(f"expected at most {records.BEGUN_BYTES} bytes, found {size}")
        except EngineUnavailable as error:
            raise Problem("engine_unavailable", str(error), "ask again") from error
        except Malformed as error:
            reason = (
                f"expected a rollout that other controllers can be told of, found {len(record.nodes)} nodes: {error}"
            )
            raise Problem("too_large", reason, fewer) from error
        key = AssigningKey(private=self._core.key, public=self._core.signer, epoch=1, life_s=1)
        node = self._core.nodes[record.nodes[0]]
        try:
            assigning.made(
                self._core.shelf, node, record.release, generation=2**53 - 1, sources=record.sources, key=key, now_s=0
            )
        except Malformed as error:
            reason = f"expected bundles and addresses that fit into an assignment, found: {error}"
            raise Problem("too_large", reason, "name fewer addresses") from error

    def _superseding(self, record: RolloutRecord, now_s: int) -> list[RolloutRecord]:
        """Rollouts that are closed as another one has their nodes; Problem rollout_running for one that still runs.

        Those that are done, too: by a clock that was set since they may have begun later than the other one.
        """
        nodes, ended = set(record.nodes), []
        for one in self._core.rollouts.values():
            if one.closed or nodes.isdisjoint(one.nodes):
                continue
            if one.state is RolloutState.RUNNING:
                hint = f"latticectl fleet halt {one.name}, or wait for its end"
                raise Problem("rollout_running", f"expected nodes of no other rollout, found {one.name} running", hint)
            ended.append(records.superseded(one, record.name, now_s=now_s))
        return ended


_READ: Final = "look at the disk of the controller's state directory, then hand it over again"
_LIST: Final = "latticectl fleet status shows rollouts"
_NODES: Final = "latticectl fleet nodes lists them"
_WHO: Final = "latticectl fleet status --format json shows the operators whom the controller believes"
_INVOKE: Final = "latticectl fleet invoke signs one and sends it at once"
_FORGED: Final = "somebody else answers for it: latticectl fleet events, and its agent's log, say what it did"
_ACTS: Final[dict[str, Callable[[Rollout, str, float], Rollout]]] = {
    "halt": lambda plain, reason, _: rollout.halted(plain, reason or "by an operator"),
    "resume": lambda plain, _, now_s: rollout.resumed(plain, now_s=now_s),
    "back": lambda plain, reason, _: rollout.returning(plain, reason or "by an operator"),
}


def sources(wanted: Iterable[view.SourceWanted]) -> tuple[BundleSource, ...]:
    """As assignments have them; Problem bad_request for an address that is none."""
    found = []
    for one in wanted:
        for url in one.urls:
            if not _URL.fullmatch(url):
                hint = "latticectl fleet roll --help"
                raise Problem("bad_request", f"expected an https address, found {url[:100]!r}", hint)
        found.append(BundleSource(id=one.id, sha256=one.sha256, urls=one.urls))
    return tuple(found)


def _policy(wanted: view.PolicyView) -> GatePolicy:
    return GatePolicy(
        unwell_share=wanted.unwell_share,
        away_share=wanted.away_share,
        settle_s=wanted.settle_s,
        patience_s=wanted.patience_s,
        denials_per_minute=wanted.denials_per_minute,
        restarts=wanted.restarts,
    )
