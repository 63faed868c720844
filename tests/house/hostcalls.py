"""The table of host calls for tests: what makes each succeed and fail. A new service joins the rows, and nothing else.

async with hostcalls.standing() as stage:
    for method, row, caller in stage.each():
        await caller.call(method, **stage.fill(row.good))
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from latticed import journal
from latticed.broker.gate import Broker
from latticed.host.call import HostError
from latticed.host.node.journal_query import Sources
from latticed.kit import unix_listener
from latticed.model import capability
from latticed.model.errors import Problem
from tests.house import edges, hostcall_row, hostcall_rows_here, hostcall_rows_out, in_process, origins, relays
from tests.house.hostcall_row import Row
from tests.house.runners import DrivenInstance

ROWS: dict[str, Row] = {**hostcall_rows_here.ROWS, **hostcall_rows_out.ROWS}
EVERYTHING = sorted(capability.RISKS)
HOST_RISK = tuple(sorted(capability.host_risk(tuple(EVERYTHING))))
_LOG_LINE = "2026-01-02T03:04:05.000000+00:00 host sshd[7]: Accepted publickey for root from 192.0.2.1 port 22 ssh2\n"


@dataclass(slots=True)
class Caller:
    """A plugin that makes host calls, and its audited calls."""

    home: in_process.Home
    instance: DrivenInstance
    seen: int

    @classmethod
    def of(cls, home: in_process.Home, instance: DrivenInstance) -> Caller:
        return cls(home, instance, home.mark())

    @property
    def id(self) -> str:
        return self.instance.plugin.id

    async def call(self, method: str, /, **params: Any) -> Any:
        return await self.instance.call(method, **params)

    async def denied(self, method: str, /, **params: Any) -> str:
        """The code with which a call is refused."""
        with pytest.raises(HostError) as caught:
            await self.instance.call(method, **params)
        return caught.value.code.value

    async def outcome(self, method: str, /, **params: Any) -> str:
        """`ok`, or the code with which a call is refused."""
        try:
            await self.instance.call(method, **params)
        except HostError as error:
            return error.code.value
        return "ok"

    def recorded(self) -> list[tuple[str, str, str]]:
        """(call, decision, code) of each of its host calls committed since the last look."""
        found = self.home.events(after=self.seen, action="host.call", actor=f"plugin:{self.id}")
        self.seen = self.home.mark()
        return [(event["target"], event["decision"], event["code"]) for event in found]


async def caller(
    home: in_process.Home,
    *capabilities: str,
    accept: tuple[str, ...] = (),
    plugin_id: str = "acme.demo",
    name: str = "demo",
) -> Caller:
    """A plugin that declares these, armed; host risk is granted when it is in `accept`."""
    home.drop(name, id=plugin_id, capabilities=list(capabilities))
    return Caller.of(home, await home.armed(plugin_id, accept=accept))


@dataclass(slots=True, kw_only=True)
class Stage:
    """A whole daemon, the servers that its services need, and one plugin per service, whose floods affect no other."""

    home: in_process.Home
    port: int
    refusing: int
    last_id: str = ""
    callers: dict[str, Caller] = field(default_factory=dict)

    @property
    def broker(self) -> Broker:
        return self.home.app.broker

    def each(self) -> Iterator[tuple[str, Row, Caller]]:
        """Every call that is served, its row, and the plugin that makes it."""
        for method in sorted(self.broker.services):
            yield method, ROWS[method], self.callers[service_of(method)]

    def fill(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters, with the port of the target on loopback filled in."""
        return dict(json.loads(json.dumps(params).replace("PORT", str(self.port)).replace("LAST-ID", self.last_id)))

    async def prepare(self, row: Row, who: Caller) -> None:
        """Make the calls that a call needs before it; they are left out of `recorded`."""
        for method, params in row.before:
            self.last_id = (await who.call(method, **self.fill(params))).get("id", "")
        who.recorded()

    # What may be wrong with the house.

    @contextlib.contextmanager
    def down(self, what: str) -> Iterator[None]:
        """Take away what a service depends on, within the block."""
        with getattr(self, f"_no_{what}")():
            yield

    @contextlib.contextmanager
    def _no_ledger(self) -> Iterator[None]:
        """Writes fail as on a broken disk, except those of the audit, without which no call is answered."""

        def fail(*_: Any, **__: Any) -> Any:
            raise Problem("ledger_unavailable", "the ledger cannot be used: disk I/O error")

        async def fail_later(*_: Any, **__: Any) -> Any:
            fail()

        with pytest.MonkeyPatch.context() as patch:
            ledger = self.home.app.api.ledger
            patch.setattr(ledger, "read", fail)
            for name in ("write", "read_slow", "read_for_plugin"):
                patch.setattr(ledger, name, fail_later)
            yield

    @contextlib.contextmanager
    def _no_descriptors(self) -> Iterator[None]:
        with in_process.without_descriptors():
            yield

    @contextlib.contextmanager
    def _no_reader(self) -> Iterator[None]:
        """While the block lasts no journal reader runs."""
        path = self.home.root / "run/journal.sock"
        away = path.rename(path.with_name("away.sock"))
        try:
            yield
        finally:
            away.rename(path)

    @contextlib.contextmanager
    def _no_target(self) -> Iterator[None]:
        """The target refuses connections."""
        there, self.port = self.port, self.refusing
        try:
            yield
        finally:
            self.port = there

    @contextlib.contextmanager
    def _no_relay(self) -> Iterator[None]:
        """While the block lasts no mail relay is set."""
        mail = self.broker.services["mail.send"].serve.__self__
        before = mail.settings
        mail.settings = replace(before, relay="")
        try:
            yield
        finally:
            mail.settings = before

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While the block lasts no service answers; each is called as usual."""
        services = self.broker.services

        async def hold(*_: Any) -> None:
            await asyncio.Event().wait()

        self.broker.services = {name: replace(served, serve=hold) for name, served in services.items()}
        try:
            yield
        finally:
            self.broker.services = services


@contextlib.asynccontextmanager
async def standing(*, declares: Mapping[str, list[str]] | None = None) -> AsyncIterator[Stage]:
    """The stage. Its plugins declare and were granted everything; `declares` has other lists by service."""
    async with contextlib.AsyncExitStack() as stack:
        relay = await stack.enter_async_context(relays.serving())
        mail = f'relay = "smtp://127.0.0.1:{relay.port}"\n'
        tunnels = stack.enter_context(_tunnels())
        home = await stack.enter_async_context(in_process.opened(toml=hostcall_row.TOML + mail + tunnels))
        target = await stack.enter_async_context(origins.serving(origins.answer(b"hello")))
        await stack.enter_async_context(_journal_reader(home))
        stage = Stage(home=home, port=target.port, refusing=stack.enter_context(_refusing()))
        permits = [
            f"{kind}=http://127.0.0.1:{port}" for kind in ("origin", "publish") for port in (stage.port, stage.refusing)
        ]
        await home.ask("PUT", "/api/secrets/BOUND", b"value of a secret")
        services = sorted({service_of(method) for method in stage.broker.services})
        for service in services:
            wanted = EVERYTHING if declares is None else declares.get(service, EVERYTHING)
            home.drop(service, id=f"acme.{service}", capabilities=wanted)
        for service in services:
            granted = () if declares is not None and service in declares else HOST_RISK
            instance = await home.armed(f"acme.{service}", accept=granted)
            stage.callers[service] = Caller.of(home, instance)
            await home.ask("PUT", f"/api/plugins/by-id/acme.{service}/grants", {"permits": permits})
            await home.ask("PUT", f"/api/secrets/BOUND/plugins/acme.{service}", {})
        yield stage


@contextlib.contextmanager
def _refusing() -> Iterator[int]:
    """A port in use on which no connection is accepted."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@contextlib.contextmanager
def _tunnels() -> Iterator[str]:
    """Settings for tunnels that lead nowhere: the fake cloudflared, and credentials that it accepts."""
    with tempfile.TemporaryDirectory(prefix="tunnels-") as made:
        directory = Path(made)
        program, keys = edges.install(directory), edges.write_keys(directory / "keys")
        yield f'[tunnel]\nprogram = "{program}"\ncredentials_dir = "{keys}"\nplugin_tunnels = 1\n'


@contextlib.asynccontextmanager
async def _journal_reader(home: in_process.Home) -> AsyncIterator[None]:
    """The real one, with an auth.log to read."""
    log = home.root / "auth.log"
    log.write_text(_LOG_LINE)
    sources = Sources(units=(), auth_log=log, use_journald=False)
    reader = journal.JournalServer(sources, clients=lambda: journal.clients(home.app.api.settings))
    async with reader.serving(unix_listener.listen(home.root / "run/journal.sock")):
        yield


def service_of(method: str) -> str:
    return method.partition(".")[0]
