"""The host services together: what a Gate can answer, and what of it has a life of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from typing import TYPE_CHECKING, Any, Final, Self

from latticed.host import call as service
from latticed.host.audit import AuditCalls
from latticed.host.contacts import Contacts
from latticed.host.ddns.calls import DdnsCalls
from latticed.host.ddns.cloudflare import CloudflareProvider
from latticed.host.ddns.keeper import DdnsKeeper
from latticed.host.ddns.providers import Providers
from latticed.host.ddns.rfc2136 import Rfc2136Provider
from latticed.host.egress.client import EgressClient
from latticed.host.egress.guard import Guard
from latticed.host.http.calls import HttpCalls
from latticed.host.kv import KvCalls, quota_of
from latticed.host.log import LogCalls
from latticed.host.mail.calls import MailCalls
from latticed.host.mail.smtp import Smtp
from latticed.host.monitor.calls import MonitorCalls
from latticed.host.monitor.keeper import MonitorKeeper
from latticed.host.monitor.probes import Probes
from latticed.host.network.calls import NetworkCalls
from latticed.host.node.calls import NodeCalls
from latticed.host.notify.calls import NotifyCalls
from latticed.host.notify.keeper import NotificationQueue
from latticed.host.permissions import Permissions
from latticed.host.program.calls import ProgramCalls
from latticed.host.program.keeper import ProgramKeeper
from latticed.host.program.supervised import ProgramDeps
from latticed.host.route.calls import Doors, RouteCalls
from latticed.host.route.table import RouteTable
from latticed.host.route.upstreams import UpstreamTable
from latticed.host.secret import key as secret_key
from latticed.host.secret.keeper import SecretKeeper
from latticed.host.static.calls import StaticCalls
from latticed.host.task.calls import TaskCalls
from latticed.host.task.keeper import TaskKeeper
from latticed.host.tunnel.calls import TunnelCalls
from latticed.host.tunnel.connector import ConnectorDeps as TunnelHouse
from latticed.host.tunnel.keeper import TunnelKeeper
from latticed.model import egress, permits, restart
from latticed.model.egress import EgressRights
from latticed.model.errors import Problem
from latticed.model.runtime import RuntimeState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from latticed.host.call import Caller, Served
    from latticed.host.confinement import Spawner
    from latticed.host.permissions import PermissionRefused
    from latticed.kit.clock import Clock
    from latticed.kit.wheel import Wheel
    from latticed.ledger import Ledger
    from latticed.lifecycle.lifecycle import Lifecycle
    from latticed.model.lifecycle import Record
    from latticed.runners.contract import PluginToRun
    from latticed.settings import Settings, SupervisionSettings
    from latticed.supervisor.supervisor import Supervisor

    Say = Callable[[str, str, str, dict[str, str]], None]


ROUTE: Final = "worker:route"
SENDS: Final = ("notify:send", "monitor:admin")
"""What a waiting notification was sent by: a plugin itself, or one of its monitors."""


class Services:
    """An async context manager, open as long as plugins live. `settings` answers with those in force.

    From `follow` on, what a plugin may is looked up in the lifecycle; `permissions` answers for all of them.
    """

    def __init__(
        self, settings: Callable[[], Settings], ledger: Ledger, *, clock: Clock, wheel: Wheel, spawner: Spawner
    ) -> None:
        here = settings()
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._records: Mapping[str, Record] = {}
        self._plugins: Mapping[str, PluginToRun] = {}
        self._supervisor: Supervisor | None = None
        self.permissions = Permissions()
        self._contacts = Contacts(ledger, clock)
        self._stack = contextlib.AsyncExitStack()
        self.routes = RouteTable()
        self.secrets = SecretKeeper(ledger, secret_key.place(here, os.environ), clock=clock)
        self.notifications = NotificationQueue(
            ledger,
            clock=clock,
            settings=lambda: settings().notify,
            may=lambda plugin_id: self.permissions.may(plugin_id, *SENDS),
        )
        self.static = StaticCalls(
            here.state_dir / "static",
            limits=lambda: settings().static,
            publisher=self._publisher,
            published=lambda plugin_id: self.permissions.may(plugin_id, "static:write"),
        )
        guard = Guard()
        self._client = EgressClient(guard)
        self.ddns = DdnsKeeper(
            ledger=ledger,
            wheel=wheel,
            clock=clock,
            providers=Providers(
                cloudflare=CloudflareProvider(self._client),
                rfc2136=Rfc2136Provider(guard),
                secrets_of=self.secrets.for_plugin,
            ),
            rights=lambda plugin_id: self._rights_while(plugin_id, "ddns:admin"),
            settings=lambda: settings().ddns,
        )
        self._smtp = Smtp(guard)
        self._make_programs(here, spawner)
        self.service_routes = UpstreamTable(on=bool(here.http.service_listen))
        self.network = NetworkCalls(ledger, clock=clock, secrets_of=self.secrets.for_plugin)
        doors = Doors(
            may=lambda plugin_id: self.permissions.may(plugin_id, ROUTE),
            live=self._serves,
            call=lambda plugin_id, method, params: self._alive().call(plugin_id, method, params),
            invoke=self._invoked,
            prefixes=self.prefixes,
            published=self.published,
            secret=self.secrets.value_for,
            visited=self.programs.visited,
        )
        self.route = RouteCalls(
            ledger, pages=self.routes, services=self.service_routes, doors=doors, clock=clock, wheel=wheel
        )
        self.monitors = MonitorKeeper(
            ledger=ledger,
            queue=self.notifications,
            wheel=wheel,
            clock=clock,
            check=Probes(guard).check,
            rights=lambda plugin_id: self._rights_while(plugin_id, "monitor:admin"),
            settings=lambda: settings().monitor,
        )

    def _make_programs(self, here: Settings, spawner: Spawner) -> None:
        """What runs programs of the host's own for plugins."""
        settings, ledger, clock = self._settings, self._ledger, self._clock

        def policy() -> restart.RestartPolicy:
            return restart_policy(settings().supervision)

        def may_run(plugin_id: str) -> PermissionRefused | None:
            return self.permissions.refusal(plugin_id, "task:run")

        self.tasks = TaskKeeper(ledger, clock=clock, spawner=spawner, settings=lambda: settings().task, refusal=may_run)
        self.programs = ProgramKeeper(
            ledger,
            clock=clock,
            spawner=spawner,
            settings=lambda: settings().service,
            refusal=may_run,
            policy=policy,
            variables=self.variables,
        )
        tunnels = TunnelHouse(
            tools=ProgramDeps(spawner=spawner, clock=clock, roll=random.random),
            settings=lambda: settings().tunnel,
            origins=lambda plugin_id: self.rights(plugin_id).origins,
            policy=policy,
        )
        self.tunnels = TunnelKeeper(
            ledger,
            tunnels,
            refusal=lambda plugin_id: self.permissions.refusal(plugin_id, "tunnel:admin"),
            state_dir=here.state_dir,
            runtime_dir=here.runtime_dir,
        )

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            for room in self._rooms():
                await stack.enter_async_context(room)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _rooms(self) -> tuple[contextlib.AbstractAsyncContextManager[Any], ...]:
        """What has a life of its own, in the order in which it begins."""
        watching = (self._client, self.notifications, self.monitors, self.ddns)
        return (*watching, self.tasks, self.programs, self.tunnels, self.route)

    def follow(self, lifecycle: Lifecycle, supervisor: Supervisor) -> None:
        """Look up here from now on what operators decided, and what is alive."""
        self._records, self._plugins, self._supervisor = lifecycle.records, lifecycle.plugins, supervisor
        self.permissions.follow(lifecycle.standing)

    def table(self, say: Say) -> Mapping[str, Served]:
        """Every call that is answered; `say` takes the lines of log.write."""
        kv = KvCalls(self._ledger, quota=lambda: quota_of(self._settings().host_calls), granted=self.buckets)
        node = NodeCalls(self._ledger, settings=self._settings, may=self._may, clock=self._clock)
        rooms = (
            kv,
            LogCalls(say),
            AuditCalls(self._ledger),
            HttpCalls(
                self._client,
                rights_of=lambda caller: self.rights(caller.plugin_id),
                secrets_of=self.secrets.for_plugin,
                contacted=self._contacts.note,
            ),
            NotifyCalls(self.notifications),
            MonitorCalls(self.monitors, settings=lambda: self._settings().monitor),
            DdnsCalls(self.ddns, settings=lambda: self._settings().ddns, secrets_of=self.secrets.for_plugin),
            MailCalls(
                self._smtp,
                settings=lambda: self._settings().mail,
                clock=self._clock,
                secrets_of=self.secrets.for_plugin,
            ),
            TaskCalls(self.tasks),
            ProgramCalls(self.programs, settings=lambda: self._settings().service, variables=self.variables),
            TunnelCalls(self.tunnels, origins=lambda plugin_id: self.rights(plugin_id).origins),
            self.route,
            self.network,
            self.static,
            node,
        )
        return service.table(call for room in rooms for call in room.calls())

    # What a plugin may.

    def permits(self, plugin_id: str) -> tuple[str, ...]:
        """What an operator permits it beyond its capabilities."""
        record = self._records.get(plugin_id)
        return record.permits if record is not None else ()

    def prefixes(self, plugin_id: str) -> frozenset[str]:
        """The prefixes of the HTTP listener that it may have besides its own."""
        return frozenset(permits.of_kind(self.permits(plugin_id), permits.PREFIX))

    def buckets(self, plugin_id: str) -> frozenset[str]:
        """The buckets of operators that a worker's template may name besides `default`."""
        return frozenset(permits.of_kind(self.permits(plugin_id), permits.BUCKET))

    def variables(self, plugin_id: str) -> frozenset[str]:
        """The names of environment variables that its services may set."""
        return frozenset(permits.of_kind(self.permits(plugin_id), permits.ENV))

    def published(self, plugin_id: str) -> EgressRights:
        """Where its routes may lead to; an origin that is bound for its own requests is not thereby published."""
        found = permits.of_kind(self.permits(plugin_id), permits.PUBLISH)
        return EgressRights(origins=tuple(egress.origin(one) for one in found))

    def rights(self, plugin_id: str) -> EgressRights:
        """Where it may connect to."""
        record, plugin = self._records.get(plugin_id), self._plugins.get(plugin_id)
        if record is None or plugin is None:
            return EgressRights()
        origins = permits.of_kind(record.permits, permits.ORIGIN)
        return EgressRights(
            hosts=record.hosts,
            declared=plugin.manifest.egress.hosts if plugin.manifest.is_v2 else None,
            origins=tuple(egress.origin(one) for one in origins),
            owner=plugin_id,
        )

    def _publisher(self, plugin_id: str) -> str:
        record = self._records.get(plugin_id)
        return record.facts.publisher if record is not None else ""

    def _may(self, caller: Caller, capability: str) -> bool:
        return self.permissions.may(caller.plugin_id, capability)

    def _serves(self, plugin_id: str) -> bool:
        """Whether routes of a plugin may answer, and it is alive to do so."""
        alive = self._supervisor is not None and self._supervisor.runtime(plugin_id).state is RuntimeState.ARMED
        return alive and self.permissions.may(plugin_id, ROUTE)

    async def _invoked(self, plugin_id: str, action: str, payload: Any) -> dict[str, Any]:
        """An action that a visitor of a route wants carried out."""
        return await self._alive().invoke(plugin_id, action, payload, by_outsider=True)

    def _alive(self) -> Supervisor:
        if self._supervisor is None:
            raise Problem("not_armed", "plugins are not started yet")
        return self._supervisor

    def _rights_while(self, plugin_id: str, capability: str) -> EgressRights | None:
        """Where a plugin may connect to while it may do what takes `capability`; None: what it wanted rests."""
        return self.rights(plugin_id) if self.permissions.may(plugin_id, capability) else None

    # When it may no longer, or its id is forgotten, or comes into other hands.

    def changed(self, plugin_id: str) -> None:
        """What a plugin may can have changed: what it may no longer do is being stopped when this returns."""
        if self.permissions.changed(plugin_id):
            self.route.look(plugin_id)
            for room in self._keepers():
                room.recheck(plugin_id)
            self.notifications.wake()

    async def drained(self, plugin_id: str) -> None:
        """Return once nothing goes on for a plugin that it may not have done."""
        await asyncio.gather(*(room.drained(plugin_id) for room in self._keepers()))

    def _keepers(self) -> tuple[MonitorKeeper, DdnsKeeper, TaskKeeper, ProgramKeeper, TunnelKeeper]:
        return self.monitors, self.ddns, self.tasks, self.programs, self.tunnels

    async def forgotten(self, plugin_id: str) -> None:
        """Stop what went on for it, and keep nothing of that; what is on record goes with the decision itself."""
        for room in (*self._keepers(), self.route):
            await room.forget(plugin_id)


def restart_policy(wanted: SupervisionSettings) -> restart.RestartPolicy:
    """How failures are answered, from the settings."""
    return restart.RestartPolicy(
        base_s=wanted.backoff_base_s,
        ceiling_s=wanted.backoff_ceiling_s,
        healthy_s=wanted.healthy_after_s,
        breaker_failures=wanted.breaker_failures,
    )
