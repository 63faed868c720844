"""A fleet as its operator makes it, and a controller's half of enrolment over its real server.

with enrolling.opened(place) as fleet:          # latticectl fleet init; nats-server; answers at enrol.* and renew.*
    fleet.invitation("web-1")                   # latticectl fleet enroll
    fleet.office.joined["web-1"].node_key
    fleet.desire("web-1", intent, {"acme.demo": path})
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latticed.fleet import (
    chunks,
    deployment,
    documents,
    enrolment,
    fleet_directory,
    new_fleet,
)
from latticed.fleet.judging import Refusal
from latticed.fleet.nats_engine import NatsControllerEngine
from latticed.trust import key_files
from tests.house import nats_servers, ports

NAME = "home"
WAIT_S = 60
_CLONE_NEWNET = 0x40000000
SIZES = deployment.Sizes(nodes=20, bundles_bytes=64 << 20)


@dataclass
class Office:
    """What a controller knows of its nodes, and its answers. `life_s`: of the credentials that it gives; `silent`: it
    takes requests, and answers none.
    """

    directory: fleet_directory.FleetDirectory
    operator: Any
    life_s: int = enrolment.CREDENTIALS_S
    revoked: set[str] = field(default_factory=set)
    used: dict[str, str] = field(default_factory=dict)
    used_with: dict[str, str] = field(default_factory=dict)
    joined: dict[str, enrolment.Joined] = field(default_factory=dict)
    asked: int = 0
    renewals: int = 0
    silent: bool = False
    key: Any = field(default_factory=key_files.generate)

    def certificate(self) -> bytes:
        made = documents.ControllerCertificate(
            fleet=self.directory.facts.fleet,
            controller="c1",
            controller_key=key_files.public_text(self.key),
            epoch=1,
            expires=int(time.time()) + 86_400,
        )
        return documents.sign(made, self.operator)

    def enrolled(self, data: bytes, nonce: str) -> bytes:
        self.asked += 1
        asked = enrolment.read_request(data)
        if isinstance(asked, Refusal) or asked.document.token != nonce:
            return enrolment.refused(asked if isinstance(asked, Refusal) else _other_subject(nonce))
        token = asked.document
        holder = self.joined.get(token.node)
        known = enrolment.EnrolmentKnown(
            fleet=self.directory.facts.fleet,
            operators=self.directory.facts.operators,
            revoked=self.revoked,
            used_by=self.used.get(token.token),
            holder=holder.node_key if holder else None,
            used_with=self.used_with.get(token.token),
        )
        verdict = enrolment.decide(asked, known, now_s=int(time.time()))
        if isinstance(verdict, Refusal):
            return enrolment.refused(verdict)
        self.used[token.token], self.used_with[token.token] = verdict.node_key, verdict.user
        self.joined[token.node] = verdict
        return self._answer(verdict)

    def renewed(self, data: bytes, node: str) -> bytes:
        holder = self.joined.get(node)
        verdict = enrolment.decide_renewal(
            data,
            fleet=self.directory.facts.fleet,
            node=node,
            holder=holder.node_key if holder else None,
            revoked=self.revoked,
        )
        if isinstance(verdict, Refusal):
            return enrolment.refused(verdict)
        self.renewals += 1
        return self._answer(verdict)

    def _answer(self, verdict: enrolment.Joined | enrolment.Renewed) -> bytes:
        identities = self.directory.identities()
        return enrolment.answer(
            verdict,
            fleet=self.directory.facts.fleet,
            signer=identities.node_signer,
            account=identities.nodes.public,
            key=self.key,
            certificate=self.certificate(),
            now_s=int(time.time()),
            life_s=self.life_s,
        )


def _other_subject(nonce: str) -> Refusal:
    return Refusal(code="enrolment_invalid", expected=f"the token {nonce}", found="another")


class OperatedFleet:
    """See the module. What goes over the server is done on a thread of its own, where the office answers too."""

    def __init__(
        self,
        directory: fleet_directory.FleetDirectory,
        operator: Any,
        server: nats_servers.NatsServer,
        network: str | None,
    ) -> None:
        self.directory = directory
        self._network = network
        self.operator = operator
        self.server = server
        self.office = Office(directory, operator)
        self.servers = nats_servers.Fleet(
            directory.path, [server], directory.identities(), SIZES, directory.path / "ca.pem"
        )
        self.generations: dict[str, int] = {}
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._work)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Streams are there, and the office answers, while the block runs."""
        self._thread.start()
        try:
            assert self._ready.wait(WAIT_S), self.server.log[-3000:]
            yield
        finally:
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()
            self._loop.close()

    def done(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Its result, on the thread of the office."""
        found: concurrent.futures.Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return found.result(WAIT_S)

    def invitation(
        self, node: str, *, labels: dict[str, str] | None = None, life_s: int = 3_600, **fields: Any
    ) -> bytes:
        """The bytes of an invitation; `fields` of the token in place of the right ones."""
        key, now_s = key_files.generate(), int(time.time())
        plain = {
            "fleet": self.directory.facts.fleet,
            "token": enrolment.nonce_of(key_files.public_text(key)),
            "addresses": self.directory.facts.addresses,
            "certificates": self.directory.authority(),
            "operators": self.directory.facts.operators,
            "node": node,
            "labels": labels or {"role": "web"},
            "expires": now_s + life_s,
        }
        token = documents.EnrolmentToken(**{**plain, **fields})
        identities = self.directory.identities()
        credentials = deployment.invitation_credentials(
            identities.enrol_signer, identities.nodes.public, token.token, now_s=now_s, expires_s=now_s + life_s
        )
        return enrolment.invite(self.operator, token=token, key=key, credentials=credentials)

    def desire(self, node: str, intent: documents.Intent, bundles: dict[str, Path]) -> None:
        """Assign an intent to a node; `bundles` are {plugin: file}, put into the engine first."""
        self.done(self._desire(node, intent, bundles))

    async def _desire(self, node: str, intent: documents.Intent, bundles: dict[str, Path]) -> None:
        engine = NatsControllerEngine(self._controller)
        digests = {plugin: await chunks.put(engine, path) for plugin, path in bundles.items()}
        self.generations[node] = generation = self.generations.get(node, 0) + 1
        assignment = documents.Assignment(
            fleet=self.directory.facts.fleet,
            node=node,
            node_key=self.office.joined[node].node_key,
            epoch=1,
            generation=generation,
            intent=documents.name_of(intent),
            bundles=tuple(
                documents.BundleSource(id=plugin, sha256=sha256, urls=()) for plugin, sha256 in digests.items()
            ),
            expires=int(time.time()) + 3_600,
        )
        desired = documents.DesiredDocument(
            assignment=documents.sign(assignment, self.office.key),
            intent=documents.sign(intent, self.operator),
            controller=self.office.certificate(),
        )
        kept = await engine.desired(node)
        await engine.put_desired(node, documents.pack(desired), kept.revision if kept else 0)

    def cut_off(self, user: str) -> None:
        """Have the servers refuse what was signed for this public key of a user so far, and hang up on it."""
        self.done(self._cut_off(user))

    async def _cut_off(self, user: str) -> None:
        now_s = int(time.time())
        identities = self.directory.identities()
        tokens = deployment.account_tokens(identities, sizes=SIZES, now_s=now_s + 1, revoked={user: now_s + 1})
        async with self.servers.connected(
            "system", credentials=self.directory.path / "secret/system.creds"
        ) as connection:
            answer = await connection.request("$SYS.REQ.CLAIMS.UPDATE", tokens[identities.nodes.public].encode())
            assert b'"code":200' in answer.data, answer.data

    def status(self, node: str) -> documents.NodeStatus | None:
        """The newest status of a node, if its signature holds."""
        return self.done(self._status(node))

    async def _status(self, node: str) -> documents.NodeStatus | None:
        found = await NatsControllerEngine(self._controller)._leaders("STATUS", f"st.{node}")
        if found is None:
            return None
        signed = documents.read(found.data, documents.NodeStatus)
        assert signed.key == self.office.joined[node].node_key
        return signed.document

    def _work(self) -> None:
        if self._network is not None:
            _enter(self._network)
        self.server.start()
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())

    async def _serve(self) -> None:
        # One thread, from the beginning: a test that had another one made would seem to have left it.
        self._loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
        await asyncio.to_thread(int)
        async with self.servers.connected(
            "controller", credentials=self.directory.path / "controllers/c1/nats.creds"
        ) as connection:
            self._controller = connection
            await self.servers.provide(connection)
            tasks = [
                asyncio.create_task(self._answer(connection, "enrol.*", self.office.enrolled)),
                asyncio.create_task(self._answer(connection, "renew.*", self.office.renewed)),
            ]
            self._ready.set()
            await self._closing.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, connection: Any, subject: str, answer: Any) -> None:
        async with contextlib.aclosing(connection.messages(subject)) as messages:
            async for message in messages:
                reply = answer(message.data, message.subject.split(".")[1])
                if not self.office.silent:
                    await connection.publish(message.reply, reply)


def made(place: Path, *, port: int) -> tuple[fleet_directory.FleetDirectory, Any]:
    """The directory of a fleet with one server, at `place`, and its operator's key."""
    operator = key_files.generate()
    wanted = new_fleet.NewFleet(
        fleet=NAME,
        servers=(new_fleet.ServerAddress(host="127.0.0.1", port=port),),
        operators=(key_files.public_text(operator),),
        controllers=("c1",),
        sizes=SIZES,
        files_at=str(place / "servers"),
        data_at=str(place / "data"),
    )
    for one in new_fleet.files(wanted, now_s=int(time.time())):
        path = place / one.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(one.data)
        path.chmod(0o600 if one.secret else 0o644)
    return fleet_directory.opened(place), operator


def _enter(network: str) -> None:
    """Have this thread, and what it starts, be in that network namespace (setns(2))."""
    fd = os.open(network, os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert ctypes.CDLL(None, use_errno=True).setns(fd, _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened(place: Path, *, network: str | None = None) -> Iterator[OperatedFleet]:
    """A fleet whose server runs and whose office answers, until the end of the block; `network`: the namespace in
    which, as a path below /proc.
    """
    port = ports.free()
    directory, operator = made(place, port=port)
    data = place / "data/nats-1"
    data.mkdir(parents=True)
    files = place / "servers/nats-1"
    environment = (files / "nats-server.env").read_text()
    server = nats_servers.NatsServer("nats-1", port, data, files / "nats-server.conf", environment=environment)
    try:
        fleet = OperatedFleet(directory, operator, server, network)
        with fleet.working():
            yield fleet
    finally:
        server.stop()
