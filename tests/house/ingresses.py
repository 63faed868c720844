"""Workers as HTTP clients see them: the real Worker, Gate, ledger and Ingress, on a port that the kernel chose.

async with ingresses.opened(tmp_path) as outside:
    await outside.arm(b"hello {{path}}", id="acme.demo")
    answer = await outside.get("/acme.demo/x")
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latticed.broker.decide import Rights
from latticed.broker.gate import Broker, GateLimits
from latticed.bundle import decode, read
from latticed.host import call as service
from latticed.host.call import Caller
from latticed.host.kv import FOR_WORKERS, KvCalls
from latticed.host.route.table import RouteRequest, RouteResponse, RouteTable
from latticed.ingress.ingress import Ingress
from latticed.kit.clock import SystemClock
from latticed.ledger import Ledger, open_ledger
from latticed.ledger import audit as events
from latticed.ledger import kv as rows
from latticed.runners.contract import PluginToRun
from latticed.runners.worker import Serving, WorkerRunner
from latticed.settings import HttpSettings
from tests.house import bundles, processes, raw_http, supervisors
from tests.house.clocks import ManualClock

PATIENCE_S = processes.PATIENCE_S
ROOM = rows.KvQuota(value_bytes=1 << 20, keys=10_000, total_bytes=1 << 24)
EVERYTHING = frozenset({"worker:route", "kv:read", "static:read"})
AUTHOR = bundles.author()


@dataclass(slots=True, kw_only=True)
class Outside:
    """One ingress, the workers behind it, and clients' connections to it."""

    root: Path
    routes: RouteTable
    worker: WorkerRunner
    ledger: Ledger
    broker: Broker
    clock: ManualClock
    ingress: Ingress
    readable: dict[str, frozenset[str]]  # buckets that an operator lets a plugin read
    instances: dict[str, Serving] = field(default_factory=dict)

    # Inside.

    def plugin(self, template: bytes, **fields: Any) -> tuple[PluginToRun, Path]:
        """A worker's bundle on disk, as it would be stored."""
        wanted = {"id": "acme.demo", "type": "worker", "capabilities": ["worker:route", "kv:read"], "v2": True}
        bundle = bundles.drop(
            self.root, f"b{time.monotonic_ns()}", author=AUTHOR, artifact=template, **{**wanted, **fields}
        )
        _, manifest = decode.decode(bundle.manifest_path.read_bytes())
        return PluginToRun(id=bundle.id, identity="1" * 64, manifest=manifest), bundle.path

    async def admit(self, template: bytes, **fields: Any) -> None:
        plugin, path = self.plugin(template, **fields)
        with read.open_bundle(path, limits=read.ReadLimits(), owners=supervisors.owners()) as pair:
            await self.worker.admit(plugin, pair)

    async def arm(self, template: bytes, *, granted: frozenset[str] = EVERYTHING, **fields: Any) -> Serving:
        """Start a worker, as the supervisor does."""
        plugin, path = self.plugin(template, **fields)
        caller = Caller(plugin_id=plugin.id, buckets=FOR_WORKERS)
        gate = self.broker.gate(caller, Rights(declared=frozenset(plugin.manifest.capabilities), granted=granted))
        with read.open_bundle(path, limits=read.ReadLimits(), owners=supervisors.owners()) as pair:
            instance = await self.worker.start(plugin, pair, gate, _never)
        self.instances[plugin.id] = instance
        return instance

    async def put(self, bucket: str, key: str, value: bytes) -> None:
        await self.ledger.write(lambda tx: rows.put(tx, bucket, key, value, ROOM))

    def calls(self) -> list[tuple[str, str]]:
        """(decision, code) of each audited host call, oldest first."""
        found = self.ledger.read(lambda db: events.query(db, chain="calls", limit=1000, action="host.call"))
        return [(event["decision"], event["code"]) for event in found]

    # Outside.

    @property
    def port(self) -> int:
        return int(self.routes.listener.url.rpartition(":")[2])

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def send(self, data: bytes) -> list[raw_http.Answer]:
        """Everything that is answered to `data` until the other side closes."""
        reader, writer = await self.connect()
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
            received = await until_closed(reader)
        finally:
            await gone(writer)
        return raw_http.parsed(received, first_method=data.partition(b" ")[0].decode("latin-1"))

    async def ask(self, method: str, target: str, *fields: str, host: str | None = None) -> raw_http.Answer:
        """One request on a connection of its own; `fields` are further header lines."""
        head = [
            f"{method} {target} HTTP/1.1",
            f"Host: {host or f'127.0.0.1:{self.port}'}",
            "Connection: close",
            *fields,
        ]
        (answer,) = await self.send("\r\n".join([*head, "", ""]).encode("utf-8", "surrogateescape"))
        return answer

    async def get(self, target: str) -> raw_http.Answer:
        return await self.ask("GET", target)


@dataclass(slots=True)
class Echo:
    """A target that answers with the request; `held` makes it wait."""

    methods: frozenset[str] = frozenset({"GET", "HEAD", "POST"})
    held: asyncio.Event | None = None
    asked: list[RouteRequest] = field(default_factory=list)

    async def serve(self, request: RouteRequest) -> RouteResponse:
        self.asked.append(request)
        if self.held is not None:
            await self.held.wait()
        plain = {"method": request.method, "path": request.path, "query": request.query, "body": len(request.body)}
        return RouteResponse(body=json.dumps(plain).encode(), content_type="text/plain; charset=utf-8")


@contextlib.asynccontextmanager
async def opened(root: Path, *, listen: str = "127.0.0.1:0", hosts: tuple[str, ...] = ()) -> AsyncIterator[Outside]:
    """An ingress without routes; all workers are stopped in the end. Its clock is moved by the test."""
    clock, routes = ManualClock(), RouteTable()
    async with open_ledger(root / "state", clock=SystemClock()) as ledger:
        readable: dict[str, frozenset[str]] = {}
        kv = KvCalls(ledger, quota=ROOM, granted=lambda reader: readable.get(reader, frozenset()))
        broker = Broker(service.table(kv.calls()), record=ledger.note, clock=SystemClock(), gate_limits=GateLimits())
        async with Ingress(routes, HttpSettings(listen=listen, hosts=hosts), clock=clock) as ingress:
            outside = Outside(
                root=root,
                routes=routes,
                worker=WorkerRunner(routes),
                ledger=ledger,
                broker=broker,
                clock=clock,
                ingress=ingress,
                readable=readable,
            )
            yield outside
            for instance in outside.instances.values():
                await instance.stop(1.0)


async def until(condition: Any, what: str) -> None:
    """Wait for `condition()`; fail when it does not hold in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"never came true: {what}"
        await asyncio.sleep(0.005)


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    """All that arrives until the other side closes or resets the connection."""
    received = bytearray()
    async with asyncio.timeout(PATIENCE_S):
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                received += chunk
    return bytes(received)


async def gone(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def _never(code: str, message: str) -> None:
    raise AssertionError(f"a worker ended by itself: {code} {message}")
