"""The host services together: what a Gate can answer, and what of it has a life of its own."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, Final, Self

from latticed.host import secret_key, service
from latticed.host.audit import Audit
from latticed.host.ddns import Ddns
from latticed.host.ddns_records.cloudflare import Cloudflare
from latticed.host.ddns_records.providers import Providers
from latticed.host.ddns_records.rfc2136 import Rfc2136
from latticed.host.ddns_records.schedule import Records
from latticed.host.egress.client import Client
from latticed.host.egress.guard import Guard
from latticed.host.http import Http
from latticed.host.kv import Kv, quota_of
from latticed.host.log import Log
from latticed.host.mail import Mail
from latticed.host.monitor import Monitor
from latticed.host.monitors.probes import Probes
from latticed.host.monitors.schedule import Monitors
from latticed.host.node import Node
from latticed.host.notify import Notify
from latticed.host.notify_queue import NotifyQueue
from latticed.host.routes import Routes
from latticed.host.secrets import Secrets
from latticed.host.smtp import Smtp
from latticed.host.static import Static
from latticed.kit import logs
from latticed.kit.tasks import fenced
from latticed.ledger import contacts
from latticed.model import egress, permits
from latticed.model.egress import EgressRights
from latticed.model.lifecycle import Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from latticed.host.service import Caller, Served
    from latticed.kit.clock import Clock
    from latticed.kit.wheel import Wheel
    from latticed.ledger import Ledger
    from latticed.model.lifecycle import Record
    from latticed.runners.contract import Plugin
    from latticed.settings import Settings

    Say = Callable[[str, str, str, dict[str, str]], None]


log: Final = logs.get_logger()

NOTED_S: Final = 60.0
NOTED: Final = 10_000


class Services:
    """An async context manager, open as long as plugins live. `settings` answers with those in force.

    `records` and `plugins` are the lifecycle's, by id, from `follow` on: what a plugin may is looked up there.
    """

    def __init__(self, settings: Callable[[], Settings], ledger: Ledger, *, clock: Clock, wheel: Wheel) -> None:
        here = settings()
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._records: Mapping[str, Record] = {}
        self._plugins: Mapping[str, Plugin] = {}
        self._noted: dict[tuple[str, str], float] = {}
        self._stack = contextlib.AsyncExitStack()
        self.routes = Routes()
        self.secrets = Secrets(ledger, secret_key.place(here, os.environ), clock=clock)
        self.notifications = NotifyQueue(ledger, clock=clock, settings=lambda: settings().notify)
        self.static = Static(here.state_dir / "static", limits=lambda: settings().static)
        guard = Guard()
        self._client = Client(guard)
        self.ddns = Records(
            ledger=ledger,
            wheel=wheel,
            clock=clock,
            providers=Providers(cloudflare=Cloudflare(self._client), rfc2136=Rfc2136(guard), lend=self.secrets.loan),
            rights=lambda plugin_id: self._rights_while(plugin_id, "ddns:admin"),
            settings=lambda: settings().ddns,
        )
        self._smtp = Smtp(guard)
        self.monitors = Monitors(
            ledger=ledger,
            queue=self.notifications,
            wheel=wheel,
            clock=clock,
            check=Probes(guard).check,
            rights=lambda plugin_id: self._rights_while(plugin_id, "monitor:admin"),
            settings=lambda: settings().monitor,
        )

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            for room in (self._client, self.notifications, self.monitors, self.ddns):
                await stack.enter_async_context(room)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def follow(self, records: Mapping[str, Record], plugins: Mapping[str, Plugin]) -> None:
        """Look up here from now on what operators decided."""
        self._records, self._plugins = records, plugins

    def table(self, say: Say) -> Mapping[str, Served]:
        """Every call that is answered; `say` takes the lines of log.write."""
        kv = Kv(self._ledger, quota=lambda: quota_of(self._settings().host_calls), granted=self.buckets)
        node = Node(self._ledger, settings=self._settings, may=self._may, clock=self._clock)
        rooms = (
            kv,
            Log(say),
            Audit(self._ledger),
            Http(
                self._client,
                rights_of=lambda caller: self.rights(caller.plugin_id),
                lend=self.secrets.loan,
                contacted=self._contacted,
            ),
            Notify(self.notifications),
            Monitor(self.monitors, settings=lambda: self._settings().monitor),
            Ddns(self.ddns, settings=lambda: self._settings().ddns, lend=self.secrets.loan),
            Mail(self._smtp, settings=lambda: self._settings().mail, clock=self._clock, lend=self.secrets.loan),
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
        )

    def _may(self, caller: Caller, capability: str) -> bool:
        record = self._records.get(caller.plugin_id)
        return record is not None and record.status is Status.ACTIVE and capability in record.granted

    def _rights_while(self, plugin_id: str, capability: str) -> EgressRights | None:
        """Where a plugin may connect to while it is active and holds `capability`; None: what it wanted rests."""
        record = self._records.get(plugin_id)
        at_work = record is not None and record.status is Status.ACTIVE and capability in record.granted
        return self.rights(plugin_id) if at_work else None

    def _contacted(self, caller: Caller, host: str) -> None:
        """Remember where a plugin went, each place once in a while."""
        key, now_s = (caller.plugin_id, host), self._clock.monotonic_s()
        if now_s - self._noted.get(key, -NOTED_S) < NOTED_S:
            return
        if len(self._noted) >= NOTED:
            self._noted.clear()
        self._noted[key] = now_s
        now_us = self._clock.wall_us()
        work = self._ledger.write(lambda tx: contacts.note(tx, caller.plugin_id, host, now_us=now_us))
        fenced(_done(work), lambda error: log.error("contact_not_noted", error=repr(error)), name="contact")

    # When an id is forgotten, or comes into other hands.

    async def forgotten(self, plugin_id: str) -> None:
        """Stop what went on for it."""
        await self.monitors.forget(plugin_id)
        await self.ddns.forget(plugin_id)

    async def handed_over(self, plugin_id: str, old: str, new: str) -> None:
        """The same, and its files are set aside under the old publisher's name; the new one's come back.

        What is in the ledger changes hands in the transaction that decides it (`lifecycle.decisions`).
        """
        await self.monitors.forget(plugin_id)
        await self.ddns.forget(plugin_id)
        await self.static.rename(plugin_id, f"{plugin_id}@{old}")
        await self.static.rename(f"{plugin_id}@{new}", plugin_id)


async def _done(work: Awaitable[Any]) -> None:
    await work
