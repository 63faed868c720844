"""Processes of simulated nodes beside real nats-servers, and the documents that bring them from release to release.

async with simulated_fleets.running(fleet, 1000, place) as nodes:
    await nodes.all_up()
    release = nodes.intent(1)
    await nodes.assign(engine, release, generation=1)
    await nodes.all_have(1)
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.fleet import documents
from latticed.fleet.engine import Conflict, EngineUnavailable
from latticed.fleet.nats_engine import NatsControllerEngine
from tests.house import fleets, nats_servers, simulated_nodes

_LINE_BYTES = 64 << 20
_FIRST_KEY = 1_000
"""Of the nodes' document keys; lower ones are of who `fleets` names."""
AT_ONCE = 32
"""Documents that the controller has under way at once."""


@dataclass
class AskedProcesses:
    """Programs that answer each line of JSON by one."""

    processes: list[asyncio.subprocess.Process]
    names: list[str]
    """Of who is in them, in the order of their numbers."""

    async def ask(self, **command: Any) -> list[Any]:
        """What each process answers."""

        async def one(process: asyncio.subprocess.Process) -> Any:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(command).encode() + b"\n")
            line = await process.stdout.readline()
            assert line, f"a process ended with {await process.wait()}"
            return json.loads(line)

        return await asyncio.gather(*map(one, self.processes))

    async def total(self, **command: Any) -> int:
        return sum(await self.ask(**command))

    async def counted(self, **command: Any) -> collections.Counter[str]:
        return sum(map(collections.Counter, await self.ask(**command)), collections.Counter())

    async def listed(self, **command: Any) -> list[Any]:
        return [item for part in await self.ask(**command) for item in part]

    async def all_up(self, count: int | None = None) -> None:
        """Until so many (all) have a connection."""
        while await self.total(do="up") != (len(self.names) if count is None else count):  # noqa: ASYNC110
            await asyncio.sleep(0.2)

    async def end(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@dataclass
class SimulatedFleet(AskedProcesses):
    """Simulated nodes."""

    fleet: fleets.Fleet
    revisions: dict[str, int] = field(default_factory=dict)
    published_s: dict[str, float] = field(default_factory=dict)
    """When the last document of each node was given to the engine (monotonic)."""
    controller: Ed25519PrivateKey = fleets.CONTROLLER
    """Whose key assigns, under an operator's certificate."""
    revocations: bytes | None = None
    """What every document has besides."""
    _envelopes: dict[str, bytes] = field(default_factory=dict)

    async def all_have(self, generation: int, count: int | None = None) -> None:
        """Until so many nodes (all) have taken up an assignment of at least that generation."""
        wanted = len(self.names) if count is None else count
        while await self.total(do="count", generation=generation) < wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    # Documents.

    def intent(self, generation: int, *, bad: bool = False, **fields: Any) -> documents.Intent:
        identity = (simulated_nodes.BAD if bad else "0") + f"{generation:x}".rjust(60, "0")
        return self.fleet.intent(generation, plugins=(fleets.plugin(identity=identity.ljust(64, "0")),), **fields)

    def desired(self, number: int, intent: documents.Intent, generation: int, **assigned: Any) -> bytes:
        """The document of node `number`; the intent and the certificate are signed once."""
        node = _fleet_of(number, self.names[number], self.fleet.now)
        certificate = self.fleet.certificate(controller_key=fleets.public(self.controller))
        return fleets.packed(
            assignment=documents.sign(node.assignment(intent, generation, **assigned), self.controller),
            intent=self._signed(intent),
            controller=self._signed(certificate),
            **({} if self.revocations is None else {"revocations": self.revocations}),
        )

    def _signed(self, document: documents.FleetDocument) -> bytes:
        """By the operator, once."""
        name = documents.name_of(document)
        if name not in self._envelopes:
            self._envelopes[name] = documents.sign(document, fleets.OPERATOR)
        return self._envelopes[name]

    async def assign(
        self,
        engine: NatsControllerEngine,
        intent: documents.Intent,
        generation: int,
        numbers: Iterable[int] | None = None,
        *,
        every_s: float = 0.0,
    ) -> None:
        """Publish the documents of these nodes (all), made beforehand, one each `every_s`; again until the engine has
        each.
        """
        chosen = list(range(len(self.names)) if numbers is None else numbers)
        made = {number: self.desired(number, intent, generation) for number in chosen}
        limit = asyncio.Semaphore(AT_ONCE)

        async def one(place: int, number: int) -> None:
            await asyncio.sleep(place * every_s)
            async with limit:
                self.published_s[self.names[number]] = time.monotonic()
                await self.put(engine, self.names[number], made[number])

        await asyncio.gather(*(one(place, number) for place, number in enumerate(chosen)))

    async def put(self, engine: NatsControllerEngine, name: str, document: bytes) -> None:
        while True:
            try:
                self.revisions[name] = await engine.put_desired(name, document, self.revisions.get(name, 0))
                return
            except (EngineUnavailable, Conflict):  # the first may have been done, which the second tells
                await asyncio.sleep(0.1)
            with contextlib.suppress(EngineUnavailable):
                found = await engine.desired(name)
                self.revisions[name] = 0 if found is None else found.revision
                if found is not None and found.data == document:
                    return

    async def latencies(self, generation: int) -> tuple[list[float], list[float]]:
        """Seconds from the publication of each node's document to its arrival, and to the verdict."""
        heard = await self.listed(do="heard", generation=generation)
        received = [at - self.published_s[name] for name, at, _ in heard]
        judged = [at - self.published_s[name] for name, _, at in heard]
        return received, judged


def spec(fleet: nats_servers.Fleet, name: str, number: int, now: int) -> simulated_nodes.NodeSpec:
    """Node `number`, which fulfils what `fleets` selects by default."""
    made = _fleet_of(number, name, now)
    return simulated_nodes.NodeSpec(
        name=name,
        credentials=os.fspath(fleet.node(name)),
        seed=fleets.key(_FIRST_KEY + number).private_bytes_raw().hex(),
        state=made.state(),
    )


def key_of(number: int) -> str:
    """The public key of node `number`."""
    return fleets.public(fleets.key(_FIRST_KEY + number))


def now_s() -> int:
    return int(time.time())


def _fleet_of(number: int, name: str, now: int) -> fleets.Fleet:
    found = fleets.Fleet(now=now, node=name)
    found.node_key = key_of(number)
    return found


@contextlib.asynccontextmanager
async def running(
    fleet: nats_servers.Fleet,
    count: int,
    place: Path,
    *,
    processes: int = 2,
    prefix: str = "node",
    urls: tuple[str, ...] | None = None,
    **options: Any,
) -> AsyncIterator[SimulatedFleet]:
    """`count` nodes in so many processes, ended with the block; `options` as `SimulatedProcess` has them."""
    now = now_s()
    names = [f"{prefix}-{number}" for number in range(count)]
    (place / "spool").mkdir(parents=True, exist_ok=True)
    made = SimulatedFleet(names=names, fleet=fleets.Fleet(now=now), processes=[])
    specs = [spec(fleet, name, number, now) for number, name in enumerate(names)]
    try:
        for which in range(processes):
            told = simulated_nodes.SimulatedProcess(
                nodes=tuple(specs[which::processes]),
                servers=urls or fleet.urls,
                ca=os.fspath(fleet.ca),
                spool=os.fspath(place / "spool"),
                **options,
            )
            made.processes.append(await started(simulated_nodes.__file__, place / f"{prefix}-{which}.json", told))
        yield made
    finally:
        await made.end()


async def started(program: str, plan: Path, told: Any) -> asyncio.subprocess.Process:
    """A program that is told what to be by a file, and then asked by lines."""
    plan.write_bytes(msgspec.json.encode(told))
    plan.chmod(0o600)
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        program,
        os.fspath(plan),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=_LINE_BYTES,
    )
