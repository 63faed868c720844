"""Controllers of a fleet on real nats-servers, and nodes that judge, take up and report as real ones do.

async with running(servers, place, operator=Operator("home")) as controlled, node(servers, controlled, "n1") as node:
    await controlled.leads()
    await controlled.roll(await controlled.give(controlled.operator.intent()))
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from latticed.fleet import controller_view as view
from latticed.fleet import deployment, documents, judging
from latticed.fleet.controller.database import ControllerDatabase
from latticed.fleet.controller.leader import ControllerPeriods
from latticed.fleet.controller.lease import LeasePeriods
from latticed.fleet.controller.operations import FleetOperations
from latticed.fleet.controller.running import RunningController
from latticed.fleet.controller.settings import ControllerSettings, EngineSettings, GateSettings
from latticed.fleet.engine import EngineUnavailable, QuotaExceeded
from latticed.fleet.nats_engine import NatsEngine
from latticed.model.errors import Problem
from tests.house import fleets, nats_servers

LEASE = LeasePeriods(ttl_s=2, renew_s=0.4, margin_s=0.5, look_s=0.2)
PERIODS = ControllerPeriods(
    tick_s=0.2, renew_s=1.0, assert_s=1.0, turn_s=1.0, thin_s=0.5, shared_s=0.3, present_s=0.3, look_s=0.5
)
GATE = GateSettings(sizes=(2, 3, 10), settle_s=0.0, patience_s=30.0)
PATIENCE_S = 90.0
"""A safety net: a machine under load takes its time."""
WANTED = fleets.plugin()


class Operator:
    """The operator's key, and documents by it. Generations and serials grow."""

    def __init__(self, fleet: str, key: Ed25519PrivateKey = fleets.OPERATOR) -> None:
        self.fleet, self.key = fleet, key
        self.public = fleets.public(key)
        self._numbers = itertools.count(1)

    def intent(self, *, back_to: tuple[str, ...] = (), **fields: Any) -> bytes:
        now_s = int(time.time())
        plain: dict[str, Any] = {
            "fleet": self.fleet,
            "generation": next(self._numbers),
            "selector": documents.Selector(labels={"role": "web"}, nodes=()),
            "plugins": (WANTED,),
            "back_to": back_to,
            "expires": now_s + 30 * fleets.DAY,
        }
        return documents.sign(documents.Intent(**{**plain, **fields}), self.key)

    def controller(self, key: str, name: str = "c1", *, life_s: int = 7 * fleets.DAY, epoch: int = 1) -> bytes:
        made = documents.ControllerCertificate(
            fleet=self.fleet, controller=name, controller_key=key, epoch=epoch, expires=int(time.time()) + life_s
        )
        return documents.sign(made, self.key)

    def node(self, name: str, key: str, *, labels: dict[str, str] | None = None) -> bytes:
        made = documents.NodeCertificate(
            fleet=self.fleet, node=name, node_key=key, labels=labels or {"role": "web"}, serial=next(self._numbers)
        )
        return documents.sign(made, self.key)

    def revocations(self, *keys: str, intents: tuple[str, ...] = ()) -> bytes:
        made = documents.Revocations(fleet=self.fleet, serial=next(self._numbers), keys=keys, intents=intents)
        return documents.sign(made, self.key)

    def users(self, servers: nats_servers.Fleet, *users: str, account: str = "") -> bytes:
        """The list of users who may connect no more, with the token of NODES that says so, or another one."""
        serial = next(self._numbers)
        identities = servers.identities
        tokens = deployment.account_tokens(
            identities,
            now_s=int(time.time()) + serial,  # each after the one before, though of one second
            revoked=dict.fromkeys(users, deployment.FOR_GOOD),
            sizes=servers.sizes,
        )
        made = documents.UserRevocations(
            fleet=self.fleet, serial=serial, users=users, account=account or tokens[identities.nodes.public]
        )
        return documents.sign(made, self.key)


class Controlled:
    """One controller that runs in this process."""

    def __init__(self, running: RunningController, operator: Operator) -> None:
        self.running, self.operator = running, operator
        self.core, self.leader = running.core, running.leader
        self.operations = FleetOperations(running)

    async def leads(self) -> None:
        """Returns once it acts."""
        await until(lambda: self.leader.acts, lambda: f"lead: {self.leader.troubles}")

    async def give(self, envelope: bytes) -> str:
        """Have it take a document; its SHA-256."""
        return (await self.operations.take_document(envelope)).sha256

    async def certified(self) -> None:
        await self.give(self.operator.controller(self.core.signer, self.core.controller))

    async def roll(self, intent: str, **fields: Any) -> str:
        """Begin a rollout; its name."""
        return (await self.operations.begin(view.RolloutWanted(intent=intent, **fields))).name

    def rollout(self, name: str) -> view.RolloutView:
        return self.operations.rollout_view(self.core.rollouts[name])

    async def reaches(self, name: str, state: str) -> view.RolloutView:
        """The rollout once it is in that state."""
        await until(lambda: self.rollout(name).state == state, lambda: f"{state}: {self.rollout(name)}")
        return self.rollout(name)

    def alarms(self) -> set[str]:
        return {code for code, _ in self.core.alarms}


@contextlib.asynccontextmanager
async def running(
    servers: nats_servers.Fleet,
    place: Path,
    *,
    operator: Operator,
    name: str = "c1",
    certify: bool = True,
    lease: LeasePeriods = LEASE,
    periods: ControllerPeriods = PERIODS,
    gate: GateSettings = GATE,
    **fields: Any,
) -> AsyncIterator[Controlled]:
    """A controller of `operator`'s fleet with its state beneath `place`."""
    async with RunningController(
        settings_of(servers, place, operator=operator, name=name, gate=gate, **fields),
        lease=lease,
        periods=periods,
        pauses=nats_servers.QUICK,
    ) as made:
        controlled = Controlled(made, operator)
        if certify:
            await controlled.certified()
        yield controlled


def settings_of(
    servers: nats_servers.Fleet,
    place: Path,
    *,
    operator: Operator,
    name: str = "c1",
    gate: GateSettings = GATE,
    cuts_off: bool = False,
    **fields: Any,
) -> ControllerSettings:
    return ControllerSettings(
        fleet=operator.fleet,
        controller=name,
        operators=(operator.public,),
        engine=EngineSettings(
            servers=servers.urls,
            ca=str(servers.ca),
            credentials=str(servers.controller),
            revoking=str(servers.revoking(name) if cuts_off else place / "none"),
            replicas=3 if len(servers.servers) == 3 else 1,
            nodes=servers.sizes.nodes,
            bundles_bytes=servers.sizes.bundles_bytes,
        ),
        key=str(place / "no-key"),
        state_dir=str(place / name),
        runtime_dir=str(place / f"run-{name}"),
        rollout=gate,
        **fields,
    )


class SimulatedNode:
    """A node with its own key and connection: it judges what is desired as a real one does, and signs what it reports.

    `outcome(intent)` makes of a release what the host's daemon would: the statuses of its plugins.
    """

    def __init__(self, engine: NatsEngine, operator: Operator, name: str) -> None:
        self.engine, self.name = engine, name
        self.key = Ed25519PrivateKey.generate()
        self.public = fleets.public(self.key)
        self.state = judging.NodeState(
            fleet=operator.fleet,
            operators=(operator.public,),
            node=name,
            node_key=self.public,
            labels={"role": "web"},
        )
        self.refused = ""
        self.seen: list[tuple[int, str]] = []
        """Generations with the SHA-256 of their assignments, as they were taken up."""
        self.refusals: list[str] = []
        self.outcome: Callable[[judging.Present], tuple[documents.PluginStatus, ...]] = well
        self.settles = True
        self.head, self.number = documents.GENESIS, 0
        self.clock = time.time
        self._at = 0

    async def judge(self, data: bytes) -> None:
        """Take up a desired document, or refuse it, and report."""
        before, was_refused = self.state, self.refused
        self.state, verdict = judging.judge(before, data, now_s=int(self.clock()))
        if isinstance(verdict, judging.Refusal):
            self.refused = verdict.code
            self.refusals.append(verdict.code)
        else:
            self.refused = ""
            if isinstance(verdict, judging.TakenUp):
                self.seen.append((self.state.generation, self.state.assignment))
        if isinstance(verdict, judging.TakenUp) or self.refused != was_refused:
            await self.report()

    def status(self, **fields: Any) -> bytes:
        """A signed status as things are; no two of one second."""
        self._at = max(self._at + 1, int(self.clock()))
        present = self.state.present
        plain: dict[str, Any] = {
            "fleet": self.state.fleet,
            "node": self.name,
            "at": self._at,
            "epoch": self.state.epoch,
            "generation": self.state.generation,
            "intent": present.intent if present is not None else "",
            "settled": False,
            "refused": self.refused,
            "reason": self.refused,
            "plugins": self.outcome(present) if present is not None else (),
            "plans": (),
            "events": self.number,
            "head": self.head,
            "lists": self.state.lists,
        }
        plain["settled"] = self.settles and not any(one.code for one in plain["plugins"])
        return documents.sign(documents.NodeStatus(**{**plain, **fields}), self.key)

    async def report(self, **fields: Any) -> None:
        with contextlib.suppress(EngineUnavailable):
            await self.engine.publish_status(self.status(**fields))

    def event(self, **fields: Any) -> bytes:
        """The next event of the chain, signed."""
        self.number += 1
        plain: dict[str, Any] = {
            "fleet": self.state.fleet,
            "node": self.name,
            "number": self.number,
            "prev": self.head,
            "at": int(self.clock()),
            "seq": 0,
            "actor": "agent",
            "decision": "-",
            "action": "fleet.asked",
            "target": "acme.demo",
            "code": "",
            "reason": f"event {self.number}",
        }
        made = documents.NodeEvent(**{**plain, **fields})
        self.head = documents.name_of(made)
        return documents.sign(made, self.key)

    async def tell(self, data: bytes) -> None:
        """Publish an event, as often as it takes."""
        name = f"{self.name}-{time.monotonic_ns()}"
        while True:
            try:
                return await self.engine.publish_event(data, name)
            except QuotaExceeded:
                raise
            except EngineUnavailable:
                await asyncio.sleep(0.05)

    async def live(self) -> None:
        """Beat, look, take up what is pushed; until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            group.create_task(self._look())
            group.create_task(self._watch())

    async def _beat(self) -> None:
        while True:
            with contextlib.suppress(EngineUnavailable):
                await self.engine.beat(b"{}")
            await asyncio.sleep(0.5)

    async def _look(self) -> None:
        while True:
            with contextlib.suppress(EngineUnavailable):
                found = await self.engine.desired()
                if found is not None:
                    await self.judge(found)
            await asyncio.sleep(0.5)

    async def _watch(self) -> None:
        async for found in self.engine.watch_desired():
            await self.judge(found)


def plugin(**fields: Any) -> documents.PluginStatus:
    plain = {
        "id": "acme.demo",
        "version": "1.0.0",
        "identity": fleets.IDENTITY,
        "status": "active",
        "state": "armed",
        "health": "healthy",
        "restarts": 0,
        "denied": 0,
        "code": "",
        "reason": "",
    }
    return documents.PluginStatus(**{**plain, **fields})


def well(present: judging.Present) -> tuple[documents.PluginStatus, ...]:
    return tuple(plugin(id=one.id) for one in present.plugins)


def bad(*releases: str) -> Callable[[judging.Present], tuple[documents.PluginStatus, ...]]:
    """What becomes of a host whose daemon gives these releases up at its own gate."""

    def outcome(present: judging.Present) -> tuple[documents.PluginStatus, ...]:
        if present.intent in releases:
            return (plugin(code="candidate_bad", reason="given up on this host: unhealthy"),)
        return well(present)

    return outcome


@contextlib.asynccontextmanager
async def node(
    servers: nats_servers.Fleet, controlled: Controlled, name: str, *, live: bool = True, **fields: Any
) -> AsyncIterator[SimulatedNode]:
    """A node that the operator certified and the controller knows."""
    async with servers.connected(name) as connection:
        made = SimulatedNode(NatsEngine(connection, name), controlled.operator, name)
        for key, value in fields.items():
            setattr(made, key, value)
        await controlled.give(controlled.operator.node(name, made.public))
        living = asyncio.ensure_future(made.live()) if live else None
        try:
            yield made
        finally:
            if living is not None:
                living.cancel()
                await asyncio.wait({living})
                if not living.cancelled():
                    living.result()


@contextlib.asynccontextmanager
async def nodes(
    servers: nats_servers.Fleet, controlled: Controlled, names: list[str], **fields: Any
) -> AsyncIterator[dict[str, SimulatedNode]]:
    """Several, present."""
    async with contextlib.AsyncExitStack() as stack:
        made = {name: await stack.enter_async_context(node(servers, controlled, name, **fields)) for name in names}
        await until(lambda: set(names) <= controlled.core.present, lambda: f"present: {controlled.core.present}")
        yield made


@contextlib.asynccontextmanager
async def revived(
    servers: nats_servers.Fleet, kept: dict[str, SimulatedNode]
) -> AsyncIterator[dict[str, SimulatedNode]]:
    """The same nodes over other connections."""
    async with contextlib.AsyncExitStack() as stack:
        for name, one in kept.items():
            connection = await stack.enter_async_context(servers.connected(name))
            one.engine = NatsEngine(connection, name)
            living = asyncio.ensure_future(one.live())
            stack.push_async_callback(_ended, living)
        yield kept


async def _ended(living: asyncio.Future[None]) -> None:
    living.cancel()
    await asyncio.wait({living})


@contextlib.asynccontextmanager
async def full(base: ControllerDatabase) -> AsyncIterator[None]:
    """While the block runs the database takes nothing more: SQLite's own error of a full disk."""
    pages = await base.read(lambda one: one.execute("PRAGMA page_count").fetchone()[0])
    await base.read(lambda one: one.execute(f"PRAGMA max_page_count={pages}").fetchone())
    await fills(base)
    try:
        yield
    finally:
        await base.read(lambda one: one.execute("PRAGMA max_page_count=1073741823").fetchone())


async def fills(base):
    """Rows until no page is left that has room."""
    for size in (2_000, 200, 20):
        with contextlib.suppress(Problem):  # as many as fit
            for number in itertools.count():
                row = (f"{size}-{number}", b"x" * size)
                await base.write(lambda one: one.execute("INSERT INTO sources VALUES (?, ?)", row))  # noqa: B023


async def until(wanted: Callable[[], object], what: Callable[[], str] = lambda: "") -> None:
    """Ask again until it is so; the bound is a safety net."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not wanted():  # noqa: ASYNC110 - other processes and tasks change it
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"waited in vain: {what()}") from None
