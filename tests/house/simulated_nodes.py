"""Nodes of a fleet without daemons, many in one process: the agent's own link, connection and judging, for real.

What is simulated is the host. It has a release `install_s` after it took it up and had its bundles (spread over once to
twice that), and is well then unless the identity of a plugin begins with `BAD`. Each node keeps its state in memory,
and tells what became of it by two events and a status, signed, as a real one.

    node = SimulatedNode(spec, servers, tls); await node.run()

As a program it is given a file that says what to be (`SimulatedProcess`), reads commands on stdin, and answers each by
a line: `simulated_fleets` asks them.
"""

from __future__ import annotations

import asyncio
import collections
import json
import logging
import os
import random
import secrets
import ssl
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Struct

from latticed.fleet import documents, judging, messages, subjects
from latticed.fleet.link import Link, LinkPeriods
from latticed.fleet.nats_connection import PAUSES, NatsConnection, NatsEndpoint
from latticed.fleet.nats_engine import NatsEngine
from latticed.fleet.spool import Spool
from latticed.kit import logs
from latticed.model.restart import Backoff

BAD = "bad"
"""What the identity of a plugin begins with that never is well."""
_BUNDLE_AGAIN_S = 0.2
_CONNECTING = 48
"""Nodes of one process that make their first connection at once."""


class NodeSpec(Struct, frozen=True, kw_only=True):
    """Who a node is: its credentials file, its document key (seed, hex) and what it remembers to begin with."""

    name: str
    credentials: str
    seed: str
    state: judging.NodeState


class SimulatedProcess(Struct, frozen=True, kw_only=True):
    """What a process of nodes is told first. `pauses_s`: between connections (first, longest), null for the agent's."""

    nodes: tuple[NodeSpec, ...]
    servers: tuple[str, ...]
    ca: str
    spool: str
    install_s: float = 2.0
    periods: dict[str, float] = {}
    pauses_s: tuple[float, float] | None = None


class Heard(Struct, frozen=True, kw_only=True):
    """When a node was handed a document that it took up, and when it had judged it (monotonic clock)."""

    generation: int
    intent: str
    received_s: float
    judged_s: float


class _ToNode:
    """The link's writer: what it sends is the node's at once."""

    def __init__(self, take: Any) -> None:
        self._decoder = messages.Decoder(messages.ToNode)
        self._take = take

    def write(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            self._take(message)

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def wait_closed(self) -> None:
        pass


class SimulatedNode:
    """See the module. `heard`, `refused` and `connected_s` are what came of it so far."""

    def __init__(
        self,
        spec: NodeSpec,
        servers: tuple[str, ...],
        tls: ssl.SSLContext,
        spool: Path,
        *,
        install_s: float = 0.0,
        periods: LinkPeriods | None = None,
        pauses: Backoff = PAUSES,
    ) -> None:
        self.spec = spec
        self.state = spec.state
        self.heard: list[Heard] = []
        self.refused: collections.Counter[str] = collections.Counter()
        self.connected_s: list[float] = []
        self.link_state: messages.LinkState | None = None
        self.now_s = time.time
        self._key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(spec.seed))
        self._install_s = install_s
        self._periods = periods
        self._settling: asyncio.TimerHandle | None = None
        self._needed: set[str] = set()
        self._events: dict[int, messages.NewEvent] = {}
        self._to_link = asyncio.StreamReader()
        self._spool = Spool(spool, most_bytes=64 << 20, bundle_bytes=32 << 20)
        endpoint = NatsEndpoint(
            servers=servers,
            tls=tls,
            credentials=Path(spec.credentials),
            name=spec.name,
            inbox=subjects.inbox(spec.name),
        )
        self._link: Link | None = None
        self.connection = NatsConnection(endpoint, pauses=pauses, on_change=self._changed)

    async def run(self) -> None:
        """Be the node, until cancelled."""
        stream: Any = (self._to_link, _ToNode(self._take))
        async with self.connection:
            engine = NatsEngine(self.connection, self.spec.name)
            async with Link(self.connection, engine, self._spool, stream, periods=self._periods) as link:
                self._link = link
                try:
                    await link.ended()
                finally:
                    if self._settling is not None:
                        self._settling.cancel()

    def _changed(self, up: bool, reason: str) -> None:  # noqa: FBT001 - what a connection calls
        if up:
            self.connected_s.append(time.monotonic())
        if self._link is not None:
            self._link.connection_changed(up, reason)

    def _say(self, message: Any) -> None:
        self._to_link.feed_data(messages.encode(message))

    def _take(self, message: Any) -> None:
        match message:
            case messages.NewDesired():
                self._judge(message.document)
            case messages.BundleHere():
                self._needed.discard(message.sha256)
                self._say(messages.BundlesKept(sha256s=tuple(sorted(self._needed))))
                self._install()
            case messages.BundleMissing():
                asyncio.get_running_loop().call_later(_BUNDLE_AGAIN_S, self._need)
            case messages.EventTaken():
                self._events.pop(message.number, None)
            case messages.LinkState():
                self.link_state = message
                if message.up:
                    for event in self._events.values():
                        self._say(event)

    def _judge(self, document: bytes) -> None:
        received_s = time.monotonic()
        self.state, verdict = judging.judge(self.state, document, now_s=int(self.now_s()))
        match verdict:
            case judging.TakenUp():
                intent = self.state.present.intent
                self.heard.append(
                    Heard(
                        generation=verdict.generation,
                        intent=intent,
                        received_s=received_s,
                        judged_s=time.monotonic(),
                    )
                )
                self._needed = {one.sha256 for one in self.state.present.bundles}
                self._need()
                self._install()
            case judging.Refusal():
                self.refused[verdict.code] += 1
                self._tell(verdict.code)

    def _need(self) -> None:
        for sha256 in self._needed:
            self._say(messages.BundleNeeded(sha256=sha256))

    def _install(self) -> None:
        if self._settling is not None:
            self._settling.cancel()
        if not self._needed:
            delay_s = self._install_s * random.uniform(1, 2)
            self._settling = asyncio.get_running_loop().call_later(delay_s, self._settle)

    def _settle(self) -> None:
        present = self.state.present
        self.state = msgspec.structs.replace(self.state, settled=frozenset(one.id for one in present.plugins))
        self._event("fleet.taken_up", present.intent)
        self._event("fleet.settled", present.intent)
        self._tell("")

    def _event(self, action: str, target: str) -> None:
        number = self.state.events + 1
        event = documents.NodeEvent(
            fleet=self.state.fleet,
            node=self.state.node,
            number=number,
            prev=self.state.head,
            at=int(self.now_s()),
            seq=0,
            actor="",
            decision="-",
            action=action,
            target=target,
            code="",
            reason="",
        )
        self.state = msgspec.structs.replace(self.state, events=number, head=documents.name_of(event))
        made = messages.NewEvent(
            number=number, message_id=secrets.token_hex(16), document=documents.sign(event, self._key)
        )
        self._events[number] = made
        self._say(made)

    def _tell(self, refused: str) -> None:
        state, present = self.state, self.state.present
        plugins = present.plugins if present else ()
        status = documents.NodeStatus(
            fleet=state.fleet,
            node=state.node,
            at=int(self.now_s()),
            epoch=state.epoch,
            generation=state.generation,
            intent=present.intent if present else "",
            settled=bool(plugins) and {one.id for one in plugins} <= state.settled and not _bad(plugins),
            refused=refused,
            reason="",
            plugins=tuple(_plugin_status(one) for one in plugins if one.id in state.settled),
            plans=(),
            events=state.events,
            head=state.head,
            lists=state.lists,
        )
        self._say(messages.NewStatus(document=documents.sign(status, self._key)))


def _bad(plugins: tuple[documents.WantedPlugin, ...]) -> bool:
    return any(_is_bad(one) for one in plugins)


def _is_bad(plugin: documents.WantedPlugin) -> bool:
    return (plugin.identity or "").startswith(BAD)


def _plugin_status(wanted: documents.WantedPlugin) -> documents.PluginStatus:
    bad = _is_bad(wanted)
    return documents.PluginStatus(
        id=wanted.id,
        version="1.0.0",
        identity=wanted.identity or "",
        status=wanted.status,
        state="failed" if bad else "armed",
        health="unhealthy" if bad else "healthy",
        restarts=9 if bad else 0,
        denied=0,
        code="candidate_bad" if bad else "",  # as of a host whose daemon gave it up at its own gate
        reason="",
    )


class _Process:
    """The nodes of one process, and what it is asked of them."""

    def __init__(self, told: SimulatedProcess) -> None:
        tls = ssl.create_default_context(cafile=told.ca)
        pauses = PAUSES
        if told.pauses_s is not None:
            pauses = Backoff(base_s=told.pauses_s[0], ceiling_s=told.pauses_s[1], jitter=1.0)
        self._nodes = [
            SimulatedNode(
                one,
                told.servers,
                tls,
                Path(told.spool),
                install_s=told.install_s,
                periods=LinkPeriods(**told.periods),
                pauses=pauses,
            )
            for one in told.nodes
        ]

    async def run(self) -> None:
        commands = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._begin(group), name="begin")
            while line := await commands.readline():
                sys.stdout.write(json.dumps(self._answer(json.loads(line))) + "\n")
                sys.stdout.flush()
            os._exit(0)  # ten thousand connections take long to close, and nobody waits for it

    async def _begin(self, group: asyncio.TaskGroup) -> None:
        """Start them a few at a time: what is measured later is not how fast they come."""
        limit = asyncio.Semaphore(_CONNECTING)

        async def up(node: SimulatedNode) -> None:
            await node.connection.wait_up()
            limit.release()

        for node in self._nodes:
            await limit.acquire()
            group.create_task(node.run(), name=node.spec.name)
            group.create_task(up(node))

    def _answer(self, command: dict[str, Any]) -> Any:
        match command["do"]:
            case "up":
                return sum(one.connection.up for one in self._nodes)
            case "stuck":  # nodes whose client is closed although they take it for a connection
                clients = [one.connection._state.client for one in self._nodes]
                return sum(one is not None and one.is_closed for one in clients)
            case "count":  # nodes that have taken up this generation
                return sum(bool(one.heard) and one.heard[-1].generation >= command["generation"] for one in self._nodes)
            case "heard":
                found = (
                    (one.spec.name, heard)
                    for one in self._nodes
                    for heard in one.heard
                    if command["generation"] in {None, heard.generation}
                )
                return [(name, heard.received_s, heard.judged_s) for name, heard in found]
            case "have":  # how many nodes are at which intent
                return collections.Counter(one.state.present.intent for one in self._nodes if one.state.present)
            case "touched":  # which nodes ever took up this intent
                wanted = command["intent"]
                return [one.spec.name for one in self._nodes if any(h.intent == wanted for h in one.heard)]
            case "touched_s":  # when each node took up this intent first
                wanted = command["intent"]
                found = ((one.spec.name, [h.judged_s for h in one.heard if h.intent == wanted]) for one in self._nodes)
                return [(name, min(moments)) for name, moments in found if moments]
            case "connected":
                return [moment for one in self._nodes for moment in one.connected_s if moment >= command["since"]]
            case "refused":
                return sum((one.refused for one in self._nodes), collections.Counter())
            case _:
                raise ValueError(f"expected a command, found {command}")


def main() -> None:
    logs.configure("error", form="json", stream=sys.stderr)  # stdout has the answers
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each connection that a server closes
    told = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=SimulatedProcess)

    async def run() -> None:
        await _Process(told).run()

    asyncio.run(run())


if __name__ == "__main__":
    main()
