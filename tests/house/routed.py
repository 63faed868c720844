"""route.* as plugins and HTTP clients see it: the real service, ledger, secrets, and both listeners.

async with routed.opened(tmp_path) as world:
    await world.put("acme.demo", path="/acme.demo/", target="template", template="hello")
    answer = await world.get(world.pages, "/acme.demo/")
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from latticed.host.call import Caller, HostError
from latticed.host.route.calls import RouteCalls
from latticed.host.route.keeper import RouteDeps, RouteKeeper
from latticed.host.route.table import RouteTable
from latticed.host.route.upstreams import UpstreamTable
from latticed.host.secret.keeper import SecretKeeper
from latticed.host.secret.key import KeyLocation
from latticed.host.static.calls import StaticCalls
from latticed.ingress.ingress import Ingress
from latticed.ingress.proxy import ProxyLimits
from latticed.ingress.upstream_listener import UpstreamIngress
from latticed.kit import passwords
from latticed.kit.wheel import Wheel
from latticed.ledger import Ledger, open_ledger
from latticed.ledger import routes as rows
from latticed.model.audit import Event
from latticed.model.egress import EgressRights, origin
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from latticed.settings import HttpSettings
from latticed.settings.shapes import StaticSettings
from tests.house import ingresses, raw_http
from tests.house.clocks import ManualClock

ID = "acme.demo"
PASSWORD = "correct horse"
KEPT = passwords.make_hash(PASSWORD, ln=10)  # cheap: hundreds of tests log in
HOST = "127.0.0.1"


@dataclass(slots=True, kw_only=True)
class SimulatedPlugins:
    """Stands in for `Permissions` and the table of handles: who is running, what was granted, what plugins answer.
    Outlives one `World`.
    """

    live: set[str] = field(default_factory=lambda: {ID, "acme.other"})
    granted_prefixes: dict[str, frozenset[str]] = field(default_factory=dict)
    origins: dict[str, tuple[str, ...]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str, Any]] = field(default_factory=list)
    reply: Any = None
    hold: asyncio.Event | None = None
    called: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    denial: Denial | None = None
    reached: Callable[[str], None] = lambda _: None
    shares: set[tuple[str, str]] = field(default_factory=set)
    doors: Callable[[str, str, Any], Awaitable[socket.socket]] | None = None
    networks: Callable[[str, str], bool] = lambda *_: False

    async def call(self, plugin_id: str, method: str, params: dict[str, Any]) -> Any:
        self.called.append((plugin_id, method, params))
        if self.denial is not None:
            raise HostError(self.denial, "denied")
        value = self.values.get(f"{params['bucket']}/{params['key']}")
        return {"ok": value is not None, "value": value, "value_base64": None}

    async def invoke(self, plugin_id: str, action: str, payload: Any) -> dict[str, Any]:
        self.asked.append((plugin_id, action, payload))
        if self.hold is not None:
            await self.hold.wait()
        if isinstance(self.reply, Problem):
            raise self.reply
        return self.reply or {"ok": True, "message": "", "result": {"body": "hi"}, "error": None}

    def visited(self, plugin_id: str) -> None:
        self.reached(plugin_id)

    async def inside(self, plugin_id: str, service: str, address: Any) -> socket.socket:
        if self.doors is None:
            raise Problem("service_unavailable", "no service runs")
        return await self.doors(plugin_id, service, address)

    def has_network(self, plugin_id: str, service: str) -> bool:
        return self.networks(plugin_id, service)

    def may(self, plugin_id: str, capability: str) -> bool:
        return plugin_id in self.live and capability == "worker:route"

    def may_read(self, reader: str, owner: str) -> bool:
        return {reader, owner} <= self.live and (reader == owner or (reader, owner) in self.shares)

    def prefixes(self, plugin_id: str) -> frozenset[str]:
        return self.granted_prefixes.get(plugin_id, frozenset())

    def get(self, plugin_id: str) -> RunningPlugin:
        return RunningPlugin(self, plugin_id)

    def published(self, plugin_id: str) -> EgressRights:
        return EgressRights(origins=tuple(origin(one) for one in self.origins.get(plugin_id, ())))


@dataclass(slots=True)
class RunningPlugin:
    """Stands in for the supervisor's handle of one plugin."""

    plugins: SimulatedPlugins
    plugin_id: str

    @property
    def armed(self) -> bool:
        return self.plugin_id in self.plugins.live

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        return await self.plugins.call(self.plugin_id, method, params)

    async def invoke(self, action: str, payload: Any, *, by_outsider: bool) -> dict[str, Any]:
        assert by_outsider, "clients of a route are no operators"
        return await self.plugins.invoke(self.plugin_id, action, payload)


@dataclass(slots=True, kw_only=True)
class World:
    plugins: SimulatedPlugins
    keeper: RouteKeeper
    files: StaticCalls
    pages: RouteTable
    services: UpstreamTable
    ledger: Ledger
    secrets: SecretKeeper
    clock: ManualClock
    wheel: Wheel
    ingress: UpstreamIngress
    events: list[Event]

    async def call(self, plugin_id: str, method: str, **params: Any) -> Any:
        """One host call, its parameters judged as a Gate does."""
        calls = (*RouteCalls(self.keeper).calls(), *self.files.calls())
        served = next(one for one in calls if one.method == method)
        return await served.answer(Caller(plugin_id=plugin_id), msgspec.convert(params, served.params, strict=True))

    async def put(self, plugin_id: str = ID, **params: Any) -> Any:
        return await self.call(plugin_id, "route.put", **params)

    async def refused(self, plugin_id: str = ID, **params: Any) -> HostError:
        try:
            await self.put(plugin_id, **params)
        except HostError as error:
            return error
        raise AssertionError("expected a refusal")

    async def serve(self, backend: Any, *, path: str = f"/{ID}/", **params: Any) -> None:
        """Have `backend` proxied for ID behind PASSWORD, with an open listener."""
        self.plugins.origins.setdefault(ID, (backend.origin,))
        await self.secrets.set("WEB", KEPT)
        await self.secrets.bind("WEB", ID)
        wanted = {"path": path, "target": "service", "origin": backend.origin, "login": "${secret:WEB}", **params}
        answer = await self.put(ID, **wanted)
        assert answer["url"], answer

    def pass_s(self, seconds: float) -> None:
        """Let time pass, and what is due on the wheel happen."""
        self.clock.advance(seconds)
        self.wheel.advance()

    def kept(self) -> list[rows.RouteRow]:
        return self.ledger.read(rows.load_all)

    # Outside.

    def port(self, table: RouteTable | None = None) -> int:
        return int((table or self.services).listener.url.rpartition(":")[2])

    async def send(self, data: bytes, table: RouteTable | None = None) -> list[raw_http.Answer]:
        """Everything that is answered to `data` until the other side closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port(table))
        try:
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()
            received = await ingresses.until_closed(reader)
        finally:
            await ingresses.gone(writer)
        return raw_http.parsed(received, first_method=data.partition(b" ")[0].decode("latin-1"))

    async def ask(
        self, method: str, target: str, *fields: str, body: bytes = b"", table: RouteTable | None = None
    ) -> raw_http.Answer:
        """One request on a connection of its own; `fields` are further header lines."""
        head = [f"{method} {target} HTTP/1.1", "Connection: close", *fields]
        if not any(one.lower().startswith("host:") for one in fields):
            head.append(f"Host: {HOST}:{self.port(table)}")
        if body or method in {"POST", "PUT", "PATCH"}:
            head.append(f"Content-Length: {len(body)}")
        data = "\r\n".join([*head, "", ""]).encode("utf-8", "surrogateescape") + body
        (answer,) = await self.send(data, table)
        return answer

    async def get(self, target: str, *fields: str, table: RouteTable | None = None) -> raw_http.Answer:
        return await self.ask("GET", target, *fields, table=table)

    @property
    def here(self) -> str:
        """The Origin of our own pages."""
        return f"Origin: http://{HOST}:{self.port()}"

    async def log_in(
        self, password: str = PASSWORD, *fields: str, to: str = f"/{ID}/", origin: str | None = None
    ) -> raw_http.Answer:
        """What the login page's form would send."""
        from urllib.parse import urlencode

        form = urlencode({"password": password, "to": to}).encode()
        kind = "Content-Type: application/x-www-form-urlencoded"
        return await self.ask("POST", "/.latticed/login", kind, origin or self.here, *fields, body=form)

    async def cookie(self, **options: Any) -> str:
        """The header line of a fresh session."""
        answer = await self.log_in(**options)
        assert answer.status == 303, answer
        return f"Cookie: {answer.headers['set-cookie'].partition(';')[0]}"


@contextlib.asynccontextmanager
async def opened(
    root: Path,
    *,
    plugins: SimulatedPlugins | None = None,
    on: bool = True,
    limits: ProxyLimits | None = None,
    **options: Any,
) -> AsyncIterator[World]:
    """Everything over the ledger in `root`; time passes only by the clock's `advance`."""
    clock, plugins, events = ManualClock(), plugins or SimulatedPlugins(), []
    pages, services, wheel = RouteTable(), UpstreamTable(enabled=on), Wheel(clock)
    settings = HttpSettings(listen="127.0.0.1:0", service_listen="127.0.0.1:0" if on else "", **options)
    files = StaticCalls(root / "static", limits=StaticSettings(), may_read=plugins.may_read)
    async with open_ledger(root / "state", clock=clock) as ledger:
        secrets = SecretKeeper(ledger, KeyLocation(path=root / "secrets.key", ours=True), clock=clock)
        async with (
            Ingress(pages, settings, clock=clock),
            UpstreamIngress(
                services, settings, secret=secrets.value_for, record=events.append, clock=clock, limits=limits
            ) as ingress,
            RouteKeeper(
                ledger,
                pages=pages,
                upstreams=services,
                deps=RouteDeps(
                    permissions=plugins,
                    handles=plugins,
                    secret=secrets.value_for,
                    visited=plugins.visited,
                    inside=plugins.inside,
                    has_network=plugins.has_network,
                    files=files,
                ),
                clock=clock,
                wheel=wheel,
            ) as keeper,
        ):
            yield World(
                plugins=plugins,
                keeper=keeper,
                files=files,
                pages=pages,
                services=services,
                ledger=ledger,
                secrets=secrets,
                clock=clock,
                wheel=wheel,
                ingress=ingress,
                events=events,
            )


def echoed(answer: raw_http.Answer) -> dict[str, Any]:
    """The request as the backend received it."""
    assert answer.status == 200, answer
    return dict(json.loads(answer.body))
