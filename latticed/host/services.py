"""All host services: the table of host calls, and what runs between calls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from latticed.host import call
from latticed.host.audit import AuditCalls
from latticed.host.call import Caller
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
from latticed.host.network.apply_client import ApplyHelper
from latticed.host.network.calls import NetworkCalls
from latticed.host.network.keeper import PlanKeeper
from latticed.host.node.calls import NodeCalls
from latticed.host.notify.calls import NotifyCalls
from latticed.host.notify.channels import ChannelKeeper
from latticed.host.notify.keeper import NotificationQueue
from latticed.host.notify.rules import SENDER
from latticed.host.program.calls import ProgramCalls
from latticed.host.program.data import ServiceData
from latticed.host.program.keeper import ProgramKeeper, ProgramRights
from latticed.host.program.save_calls import SaveCalls
from latticed.host.program.supervised import ProgramDeps
from latticed.host.program.way_out import WayOutDeps
from latticed.host.route.calls import RouteCalls
from latticed.host.route.keeper import RouteDeps, RouteKeeper
from latticed.host.route.table import RouteTable
from latticed.host.route.upstreams import UpstreamTable
from latticed.host.secret import key as secret_key
from latticed.host.secret.keeper import SecretKeeper
from latticed.host.static.calls import StaticCalls
from latticed.host.task.calls import TaskCalls
from latticed.host.task.keeper import TaskKeeper
from latticed.host.tunnel.calls import TunnelCalls
from latticed.host.tunnel.command import TunnelDeps
from latticed.host.tunnel.keeper import TunnelKeeper
from latticed.model.restart import RestartPolicy
from latticed.plans import kinds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from latticed.host.call import Served
    from latticed.host.confinement import Spawner
    from latticed.host.permissions import Permissions, PluginStanding
    from latticed.host.route.keeper import PluginHandle
    from latticed.kit.clock import Clock
    from latticed.kit.wheel import Wheel
    from latticed.ledger import Ledger
    from latticed.settings import Settings, SupervisionSettings

    LogEmitter = Callable[[str, str, str, dict[str, str]], None]


SENDS: Final = ("notify:send", "monitor:admin")
"""Either capability lets a notification be delivered: a call or a monitor of the plugin may have sent it."""


class HostServices:
    """All host services; an async context manager, entered before the first plugin starts and left after the last.

    `permissions` are written by the lifecycle and `handles` (by plugin id) by the supervisor, both made later: here
    they are only read, at the time of each call. `spawner` starts the programs of services, tasks and tunnels.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        *,
        clock: Clock,
        wheel: Wheel,
        spawner: Spawner,
        permissions: Permissions,
        handles: Mapping[str, PluginHandle],
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self.permissions = permissions
        self._contacts = Contacts(ledger, clock)
        self._stack = contextlib.AsyncExitStack()
        # The tables in which the two listeners look paths up: `pages` the routes', `upstreams` the proxied services'.
        self.pages = RouteTable()
        self.upstreams = UpstreamTable(enabled=bool(settings.http.service_listen))
        # What plugins keep here. Secrets come first, as most services below replace references to them.
        self.secrets = SecretKeeper(ledger, secret_key.place(settings, os.environ), clock=clock)
        self.kv = KvCalls(ledger, quota=quota_of(settings.host_calls), granted=permissions.buckets)
        self.notifications = NotificationQueue(
            ledger,
            clock=clock,
            settings=settings.notify,
            may=lambda sender: sender == SENDER or permissions.may(sender, *SENDS),
        )
        self.channels = ChannelKeeper(ledger, self.notifications, clock=clock)
        self.static = StaticCalls(
            settings.state_dir / "static",
            limits=settings.static,
            publisher=permissions.publisher,
            may_read=permissions.may_read,
            shares=permissions.shares,
        )
        # One guard for all services, so that no service has rules of its own for where a connection may go.
        guard = Guard()
        self._client = EgressClient(guard)
        self._smtp = Smtp(guard)
        self._mail = MailCalls(self._smtp, settings=settings.mail, clock=clock, secrets_of=self.secrets.for_plugin)
        self._node = NodeCalls(ledger, settings=settings, may=permissions.may, clock=clock)
        # DNS records and monitors, due by the timer wheel. `rights` is called before each run, since grants change;
        # while it gives None, nothing is run for that plugin.
        self.ddns = DdnsKeeper(
            ledger=ledger,
            wheel=wheel,
            clock=clock,
            providers=Providers(
                cloudflare=CloudflareProvider(self._client),
                rfc2136=Rfc2136Provider(guard),
                secrets_of=self.secrets.for_plugin,
            ),
            rights=permissions.to("ddns:admin").egress_rights,
            settings=settings.ddns,
        )
        self.monitors = MonitorKeeper(
            ledger=ledger,
            queue=self.notifications,
            wheel=wheel,
            clock=clock,
            check=Probes(guard).check,
            rights=permissions.to("monitor:admin").egress_rights,
            settings=settings.monitor,
        )
        # Before the routes, which report visitors to `programs`.
        self._make_programs(spawner, guard)
        self.plans = PlanKeeper(
            ledger,
            ApplyHelper(Path(settings.apply.socket)),
            clock=clock,
            secrets_of=self.secrets.for_plugin,
            may_plan=permissions.to("network:plan").may,
            may_apply=permissions.to("network:apply").may,
            kinds=kinds.configured(settings),
        )
        self.plans.call_s = settings.host_calls.deadline_s
        # Routes last: they claim paths in both tables and lead to plugins (`handles`) and to upstreams.
        route_deps = RouteDeps(
            permissions=permissions,
            handles=handles,
            secret=self.secrets.value_for,
            visited=self.programs.visited,
            inside=self.programs.inside,
            has_network=self.programs.has_network,
            files=self.static,
        )
        self.routes = RouteKeeper(
            ledger,
            pages=self.pages,
            upstreams=self.upstreams,
            deps=route_deps,
            clock=clock,
            wheel=wheel,
        )

    def _make_programs(self, spawner: Spawner, guard: Guard) -> None:
        """Make the keepers of what is run as a process for plugins: `tasks`, `programs` and `tunnels`."""
        settings, ledger, clock, permissions = self._settings, self._ledger, self._clock, self.permissions
        policy = restart_policy(settings.supervision)
        # Tasks and services need the same capability, see `model.hostcall`.
        to_run = permissions.to("task:run")
        self.tasks = TaskKeeper(ledger, clock=clock, spawner=spawner, settings=settings.task, refusal=to_run.refusal)
        self.programs = ProgramKeeper(
            ledger,
            clock=clock,
            spawner=spawner,
            settings=settings.service,
            rights=ProgramRights(
                refusal=to_run.refusal,
                variables=permissions.variables,
                publisher=permissions.publisher,
                way_out=WayOutDeps(
                    guard=guard,
                    rights=permissions.to("http:egress").egress_rights,
                    record=ledger.record,
                    contacted=lambda plugin_id, host: self._contacts.note(Caller(plugin_id=plugin_id), host),
                    clock=clock,
                ),
            ),
            policy=policy,
            data=ServiceData(settings.state_dir / "services"),
        )
        tunnel_deps = TunnelDeps(
            program=ProgramDeps(spawner=spawner, clock=clock, roll=random.random),
            settings=settings.tunnel,
            origins=permissions.origins,
            policy=policy,
        )
        self.tunnels = TunnelKeeper(
            ledger,
            tunnel_deps,
            refusal=permissions.to("tunnel:admin").refusal,
            state_dir=settings.state_dir,
            runtime_dir=settings.runtime_dir,
        )

    def apply(self, settings: Settings) -> None:
        """Have these settings hold from now on, as far as they can change (`settings.live`)."""
        policy = restart_policy(settings.supervision)
        self.kv.quota = quota_of(settings.host_calls)
        self.plans.call_s = settings.host_calls.deadline_s
        self.tasks.settings = settings.task
        self.programs.settings, self.programs.policy = settings.service, policy
        self.tunnels.restart_by(policy)
        self.tunnels.settings = settings.tunnel
        self.notifications.settings = settings.notify
        self.monitors.settings = settings.monitor
        self.ddns.settings = settings.ddns
        self.static.limits = settings.static
        self._mail.settings = settings.mail
        self._node.settings = settings
        self.secrets.forget_key()

    async def __aenter__(self) -> Self:
        # If one of them fails to start, those that were entered before it are left again, in reverse.
        async with contextlib.AsyncExitStack() as stack:
            for one in self._running():
                await stack.enter_async_context(one)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def _running(self) -> tuple[contextlib.AbstractAsyncContextManager[Any], ...]:
        """The context managers of what runs between calls, in the order of their start."""
        # The order is that of dependence: monitors write notifications, records use the client; left in reverse, each
        # still finds open what it uses.
        watching = (self._client, self.notifications, self.monitors, self.ddns, self.plans)
        return (*watching, self.tasks, self.programs, self.tunnels, self.routes)

    def table(self, emit: LogEmitter) -> Mapping[str, Served]:
        """The host calls by method; `emit(level, plugin_id, message, fields)` gets the lines of log.write."""
        # Calls without work of their own between calls are made here; the others were made in `__init__`.
        permissions = self.permissions
        served = (
            self.kv,
            LogCalls(emit),
            AuditCalls(self._ledger),
            HttpCalls(
                self._client,
                rights_of=permissions.egress_rights,
                secrets_of=self.secrets.for_plugin,
                contacted=self._contacts.note,
                inside=self.programs.inside,
            ),
            NotifyCalls(self.notifications),
            MonitorCalls(self.monitors),
            DdnsCalls(self.ddns, secrets_of=self.secrets.for_plugin),
            self._mail,
            TaskCalls(self.tasks),
            ProgramCalls(self.programs),
            SaveCalls(self.programs),
            TunnelCalls(self.tunnels, origins=permissions.origins),
            RouteCalls(self.routes),
            NetworkCalls(self.plans, clock=self._clock),
            self.static,
            self._node,
        )
        return call.table(one for service in served for one in service.calls())

    # Changes of permissions; ids that are forgotten or taken over by another publisher.

    def update(self, plugin_id: str, standing: PluginStanding) -> None:
        """Store the standing of a plugin, begin to stop what it may no longer do, and start what it may do again.

        Returns at once; see `drained`.
        """
        if self.permissions.update(plugin_id, standing):
            # Routes first: visitors are refused before the services and tunnels that they lead to are stopped.
            self.routes.recheck(plugin_id)
            for keeper in self._keepers():
                keeper.recheck(plugin_id)
            self.notifications.wake()

    async def drained(self, plugin_id: str) -> None:
        """Return once nothing runs for a plugin that it may not do; without a deadline."""
        await asyncio.gather(*(keeper.drained(plugin_id) for keeper in self._keepers()))

    async def forget(self, plugin_id: str) -> None:
        """Stop what runs for a plugin and delete its rows of the keepers; `lifecycle.handover` handles its other rows.

        Problem ledger_unavailable; what runs has been stopped of each keeper that was reached.
        """
        for keeper in (*self._keepers(), self.routes):
            await keeper.forget(plugin_id)

    def _keepers(self) -> tuple[MonitorKeeper, DdnsKeeper, TaskKeeper, ProgramKeeper, TunnelKeeper]:
        """The keepers of what goes on between calls, but for routes, which have nothing to wait for (`drained`)."""
        return self.monitors, self.ddns, self.tasks, self.programs, self.tunnels


def restart_policy(wanted: SupervisionSettings) -> RestartPolicy:
    """The backoff and breaker of restarts, from the settings."""
    return RestartPolicy(
        base_s=wanted.backoff_base_s,
        ceiling_s=wanted.backoff_ceiling_s,
        healthy_s=wanted.healthy_after_s,
        breaker_failures=wanted.breaker_failures,
    )
