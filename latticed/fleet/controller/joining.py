"""How hosts join by a controller, and have their credentials renewed: requests in, answers out; `enrolment` decides.

Only the controller that acts answers, and only one that holds the key which signs nodes' credentials. That a token was
used is shared with the other controllers, by compare-and-set, and on disk before anything is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from latticed.fleet import enrolment, nkeys, subjects
from latticed.fleet.controller import holding, settings
from latticed.fleet.controller.leader import names
from latticed.fleet.controller.records import JoinedRecord
from latticed.fleet.engine import Conflict, EngineUnavailable, Stored
from latticed.fleet.judging import Refusal
from latticed.kit import files, logs
from latticed.model.errors import Problem

if TYPE_CHECKING:
    from latticed.fleet.controller.core import FleetCore
    from latticed.fleet.controller.leader import Leader
    from latticed.fleet.controller.settings import EnrolmentSettings
    from latticed.fleet.nats_connection import NatsConnection

_WAITING: Final = 64
"""Requests that wait for their turn; of more the oldest are not answered, and come again."""
_SIGNER_BYTES: Final = 4 << 10

log = logs.get_logger()


class NodeSigner:
    """What signs nodes' credentials: the seed of the account's scoped signing key, and the account."""

    def __init__(self, key: nkeys.Key, account: str) -> None:
        self.key, self.account = key, account

    @staticmethod
    def read(wanted: EnrolmentSettings) -> NodeSigner | None:
        """From the file that the settings name, None when they name none; Problem settings_invalid."""
        if not (wanted.node_signer and wanted.account):
            return None
        path = settings.secret(wanted.node_signer)
        try:
            seed = files.read_at_most(path, _SIGNER_BYTES).decode("ascii").strip()
            nkeys.check_public(wanted.account, nkeys.KeyKind.ACCOUNT)
            return NodeSigner(nkeys.Key.from_seed(seed), wanted.account)
        except (OSError, ValueError) as error:
            hint = "latticectl fleet init writes it: controllers/NAME/node-signer of the fleet's directory"
            raise Problem("settings_invalid", f"enrolment.node_signer: {path}: {error}", hint) from error


class Joining:
    """`serve` runs for as long as the process."""

    def __init__(
        self, core: FleetCore, connection: NatsConnection, leader: Leader, signer: NodeSigner | None, *, life_s: int
    ) -> None:
        self._core, self._connection, self._leader = core, connection, leader
        self._signer, self._life_s = signer, life_s
        self._promised: dict[str, JoinedRecord] = {}
        """Tokens that are used where all controllers look, and that the disk did not take yet: nobody else's."""

    async def serve(self) -> None:
        """Answer hosts that ask to join and nodes that ask for credentials, until cancelled."""
        if self._signer is None:
            log.info("joining_off", reason="there is no file that signs nodes' credentials")
            await asyncio.Event().wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hear("enrol.*", renewing=False), name="fleet enrolments")
            group.create_task(self._hear("renew.*", renewing=True), name="fleet renewals")

    async def _hear(self, subject: str, *, renewing: bool) -> None:
        async with contextlib.aclosing(self._connection.messages(subject, most=_WAITING, one_each=True)) as messages:
            async for message in messages:
                # Another controller answers when this one does not act.
                if not message.reply or not self._leader.acts:
                    continue
                try:
                    granted = await (
                        self._renewed(message.subject, message.data)
                        if renewing
                        else self._joined(message.subject, message.data)
                    )
                    await self._connection.publish(message.reply, await asyncio.to_thread(self._answer, granted))
                except (EngineUnavailable, Conflict, Problem) as error:  # who asked asks again
                    log.info("joining_unanswered", reason=str(error)[:200])

    async def _joined(self, subject: str, data: bytes) -> enrolment.Joined | Refusal:
        """Whether a host may be a node; kept when it may."""
        core = self._core
        asked = await asyncio.to_thread(enrolment.read_request, data)
        if isinstance(asked, Refusal):
            return asked
        document = asked.document
        if subject != subjects.enrolment(document.token):  # a server lets each invitation ask at its own alone
            return Refusal(code="enrolment_invalid", expected="a request at its token's subject", found=subject[:100])
        used = core.tokens.get(document.token) or self._promised.get(document.token)
        holder, certified = core.nodes.get(document.node), core.shelf.nodes.get(document.node)
        known = enrolment.EnrolmentKnown(
            fleet=core.fleet,
            operators=core.shelf.operators,
            revoked=core.shelf.revoked,
            used_by=used.key if used is not None else None,
            holder=holder.key if holder is not None else None,
            used_with=enrolment.user_of(used.request) if used is not None and used.request else None,
            lasting=holding.lasting(
                document,
                asked.request.node_key,
                certified.document if certified is not None else None,
                core.tokens.values(),
            ),
        )
        decided = enrolment.decide(asked, known, now_s=core.now_s())
        if isinstance(decided, Refusal):
            log.info("joining_refused", node=document.node, code=decided.code)
            return decided
        if trouble := self._leader.may_sign(core.now_s()):
            return Refusal(code=trouble, expected="a controller that an operator has certified", found="none that is")
        if document.token not in core.tokens:
            joined = JoinedRecord(
                token=decided.token,
                node=decided.node,
                key=decided.node_key,
                labels=decided.labels,
                expires=decided.expires,
                request=data.decode(),
            )
            # First where all controllers look: of two that both act for a moment, one alone has it.
            await self._leader.share(joined)
            try:
                await core.join(joined)
            except Problem as problem:
                self._promised[joined.token] = joined
                return Refusal(code=problem.code, expected="a controller whose disk takes it", found=problem.reason)
            self._promised.pop(joined.token, None)
            log.info("node_joined", node=decided.node, key=decided.node_key)
        return decided

    async def _renewed(self, subject: str, data: bytes) -> enrolment.Renewed | Refusal:
        core = self._core
        node = names((Stored(subject=subject, data=b"", revision=0),)).get(subject, "")
        holder = core.nodes.get(node)
        if trouble := self._leader.may_sign(core.now_s()):
            return Refusal(code=trouble, expected="a controller that an operator has certified", found="none that is")
        return await asyncio.to_thread(
            enrolment.decide_renewal,
            data,
            fleet=core.fleet,
            node=node,
            holder=holder.key if holder is not None else None,
            revoked=core.shelf.revoked,
            users=core.users_of(holder.key) if holder is not None else (),
        )

    def _answer(self, granted: enrolment.Joined | enrolment.Renewed | Refusal) -> bytes:
        core, signer = self._core, self._signer
        certificate = core.shelf.certificate(core.signer)
        if isinstance(granted, Refusal):
            return enrolment.refused(granted)
        if signer is None or certificate is None:
            none = Refusal(code="controller_uncertified", expected="a controller that may answer", found="none")
            return enrolment.refused(none)
        return enrolment.answer(
            granted,
            fleet=core.fleet,
            signer=signer.key,
            account=signer.account,
            key=core.key,
            certificate=certificate.envelope,
            now_s=core.now_s(),
            life_s=self._life_s,
        )
