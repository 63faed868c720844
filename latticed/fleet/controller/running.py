"""One controller while it runs: everything is made in order, and ended in the reverse.

async with RunningController(settings) as running: await running.ended()
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import msgspec

from latticed.fleet import deployment, documents, subjects
from latticed.fleet.controller import bundle_files, database, retention, store
from latticed.fleet.controller import settings as settings_of
from latticed.fleet.controller.core import FleetCore
from latticed.fleet.controller.cutting_off import CuttingOff
from latticed.fleet.controller.joining import Joining, NodeSigner
from latticed.fleet.controller.leader import ControllerPeriods, Leader
from latticed.fleet.controller.lease import Lease, boottime_s
from latticed.fleet.controller.readers import NodeReaders
from latticed.fleet.controller.views import LinkFacts
from latticed.fleet.engine import Conflict, EngineUnavailable
from latticed.fleet.nats_connection import PAUSES, NatsConnection, NatsEndpoint
from latticed.fleet.nats_engine import NatsControllerEngine
from latticed.kit import files, logs
from latticed.model.errors import Problem
from latticed.trust import key_files

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from latticed.fleet.controller.lease import LeasePeriods
    from latticed.fleet.controller.settings import ControllerSettings
    from latticed.model.restart import Backoff

KEY: Final = "key"
_FORGET_S: Final = 3_600.0
_CERTIFY_S: Final = 60.0
_LOST: Final = (
    "the database was empty: documents and assignments are learnt from what the message system has; events of before, "
    "and documents that were never shared, are not known"
)

log = logs.get_logger()


class RunningController:
    """See the module. Entering raises the Problems of settings, key and database; what fails later ends `ended`."""

    def __init__(
        self,
        settings: ControllerSettings,
        *,
        lease: LeasePeriods | None = None,
        periods: ControllerPeriods | None = None,
        pauses: Backoff = PAUSES,
    ) -> None:
        self.settings = settings
        self.periods = periods or ControllerPeriods()
        self._lease_periods, self._pauses = lease, pauses
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._lost_s = time.monotonic()
        self._not_certified = ""

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._enter(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def ended(self) -> None:
        """Returns never; raises what ended one of the tasks."""
        done, _ = await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    async def _enter(self, stack: contextlib.AsyncExitStack) -> None:
        settings = self.settings
        state = Path(settings.state_dir)
        try:
            tls = ssl.create_default_context(cafile=settings_of.secret(settings.engine.ca))
        except OSError as error:
            hint = "latticectl fleet init writes it: controllers/NAME/ca.pem of the fleet's directory"
            raise Problem("settings_invalid", f"engine.ca: {settings.engine.ca}: {error}", hint) from error
        base = await stack.enter_async_context(database.opened(state))
        key = await asyncio.to_thread(_own_key, settings_of.secret(settings.key), state / KEY)
        credentials = await asyncio.to_thread(settings_of.secret, settings.engine.credentials)
        await asyncio.to_thread(bundle_files.opened, settings.bundles)
        try:
            kept = await base.read(store.load)
        except (documents.Malformed, msgspec.ValidationError, msgspec.DecodeError, ValueError) as error:
            raise Problem("store_damaged", f"expected rows of a controller, found: {error}", _REBUILD) from error
        self.core = FleetCore(
            base,
            kept,
            fleet=settings.fleet,
            controller=settings.controller,
            operators=settings.operators,
            key=key,
        )
        if base.fresh:
            self.core.rebuilt = _LOST
        endpoint = NatsEndpoint(
            servers=settings.engine.servers,
            tls=tls,
            credentials=credentials,
            name=settings.controller,
            inbox=subjects.inbox(settings.controller),
        )
        self.connection = NatsConnection(endpoint, on_change=self._connection_changed, pauses=self._pauses)
        self.engine = NatsControllerEngine(self.connection)
        self.lease = Lease(self.engine, settings.controller, periods=self._lease_periods, changed=self._lease_changed)
        sizes = deployment.Sizes(nodes=settings.engine.nodes, bundles_bytes=settings.engine.bundles_bytes)
        self.leader = Leader(
            self.core,
            self.connection,
            self.engine,
            self.lease,
            streams=deployment.streams(sizes, replicas=settings.engine.replicas) if settings.engine.provide else (),
            bundles=settings.bundles,
            assignment_s=settings.assignment_s,
            periods=self.periods,
        )
        self.readers = NodeReaders(
            self.core, self.connection, self.engine, self.leader, present_s=self.periods.present_s
        )
        signer = await asyncio.to_thread(NodeSigner.read, settings.enrolment)
        # Apart from the one that leads: what hosts ask comes through no stream, and one may ask without end.
        asked = NatsConnection(endpoint, pauses=self._pauses)
        self.joining = Joining(self.core, asked, self.leader, signer, life_s=settings.enrolment.credentials_s)
        of_system = await asyncio.to_thread(self._of_system, tls)
        self.cutting_off = CuttingOff(
            self.core,
            of_system,
            account=settings.enrolment.account,
            servers=settings.engine.replicas,
            look_s=self.periods.look_s,
        )
        # Before it acts: one that was certified while it was not there need not wait.
        certified = await self._certified("")
        if signer is not None:
            await stack.enter_async_context(asked)
        if of_system is not None:
            await stack.enter_async_context(of_system)
        await stack.enter_async_context(self.connection)
        stack.push_async_callback(self.lease.release)
        work = (self.lease.keep, self.leader.lead, self.readers.read, self.joining.serve, self.cutting_off.keep)
        self._tasks = [asyncio.create_task(one(), name=f"controller {one.__name__}") for one in work]
        self._tasks.append(asyncio.create_task(self._certify(certified), name="controller certify"))
        self._tasks.append(asyncio.create_task(self._forget(), name="controller forget"))
        stack.push_async_callback(self._end_tasks)

    def facts(self) -> LinkFacts:
        """What is known of the connection and the lease."""
        now_s, lease = time.monotonic(), self.lease
        return LinkFacts(
            connected=self.connection.up,
            reason=self.connection.reason,
            away_s=0.0 if self.connection.up else now_s - self._lost_s,
            leader=self.leader.acts,
            held=lease.held,
            lost=lease.lost,
            seen=lease.seen,
            unseen_s=boottime_s() - lease.seen_s,
            troubles=dict(self.leader.troubles),
            cuts_off=self.cutting_off.able,
            not_cut_off=self.cutting_off.trouble,
            credentials_s=self.settings.enrolment.credentials_s,
        )

    def _of_system(self, tls: ssl.SSLContext) -> NatsConnection | None:
        """By which nodes that are revoked are cut off; None where nobody gave credentials for that. Blocks."""
        path = settings_of.secret(self.settings.engine.revoking)
        if not settings_of.is_there(path):
            return None
        endpoint = NatsEndpoint(
            servers=self.settings.engine.servers,
            tls=tls,
            credentials=path,
            name=self.settings.controller,
            inbox=subjects.inbox(self.settings.controller),
        )
        return NatsConnection(endpoint, pauses=self._pauses)

    def _connection_changed(self, up: bool, reason: str) -> None:  # noqa: FBT001 - what a connection calls
        self._lost_s = time.monotonic()
        self.core.hears_since_s = boottime_s() if up else None
        log.info("connected" if up else "connection_lost", reason=reason)

    def _lease_changed(self) -> None:
        self.leader.lease_changed()

    async def _certify(self, seen: str) -> None:
        """Take the operator's certificate again whenever its file is another one."""
        while True:
            await asyncio.sleep(_CERTIFY_S)
            seen = await self._certified(seen)

    async def _certified(self, seen: str) -> str:
        """Take the certificate in the file unless it is the one that was `seen`; its SHA-256, empty for none."""
        path = await asyncio.to_thread(settings_of.secret, self.settings.certificate)
        if not await asyncio.to_thread(settings_of.is_there, path):
            return ""
        try:
            data = (await asyncio.to_thread(files.read_at_most, path, documents.MAX_BYTES)).strip()
            if (found := hashlib.sha256(data).hexdigest()) != seen:
                await self.core.take_document(data)
        except (OSError, ValueError, Problem) as error:
            # As without one: an alarm says that there is none that counts.
            if (reason := str(error)) != self._not_certified:
                log.warning("certificate_not_taken", path=str(path), reason=reason)
            self._not_certified = reason
            return ""
        self._not_certified = ""
        return found

    async def _forget(self) -> None:
        while True:
            await asyncio.sleep(_FORGET_S)
            # What fails comes again at the next look.
            with contextlib.suppress(Problem, EngineUnavailable, Conflict, OSError):
                await self.forget()

    async def forget(self) -> None:
        """Drop what need not be kept any more. Problem, EngineUnavailable, Conflict, OSError."""
        await self.core.forget_alarms()
        await retention.drop_intents(self.core, keep_s=self.settings.keep_s)
        if self.leader.acts:
            await retention.drop(self.core, self.leader, self.settings.bundles, keep_s=self.settings.keep_s)

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


_REBUILD: Final = "restore a backup, or have it made anew from what the fleet has: latticed-controller --rebuild"


def _own_key(given: Path, own: Path) -> Ed25519PrivateKey:
    """The key that signs assignments: the one that is given, or its own, made at the first start."""
    for path in (given, own):
        if settings_of.is_there(path):
            return key_files.read(path)
    key = key_files.generate()
    key_files.create(own, key)
    log.info("controller_key_made", key=key_files.public_text(key))
    return key
