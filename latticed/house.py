"""The rooms of one running daemon, opened in order on one stack and closed in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import os
from importlib import metadata
from typing import TYPE_CHECKING, Self

from latticed.bundle import read
from latticed.catalog.catalog import Catalog
from latticed.catalog.store import Store
from latticed.engine import Engine
from latticed.ingress.ingress import Ingress
from latticed.ingress.service_listener import ServiceIngress
from latticed.kit import logs
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger, records
from latticed.lifecycle import manifest_defaults as usual
from latticed.lifecycle import revocations
from latticed.lifecycle import startup_merge as holding
from latticed.lifecycle.backup import Backups
from latticed.lifecycle.deps import LifecycleDeps
from latticed.lifecycle.lifecycle import Lifecycle
from latticed.lifecycle.policy import PolicyKeeper
from latticed.model.chain import DECISIONS
from latticed.model.errors import Problem
from latticed.reload import Reloader, fingerprint, keep, resolved
from latticed.rpc.api import Api
from latticed.rpc.control_socket import RuntimeDirectory
from latticed.rpc.server import Server
from latticed.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger
    from latticed.model.chain import Head
    from latticed.model.verdict import Verdict
    from latticed.runners.contract import Runner
    from latticed.settings import Settings

log = logs.get_logger()


class House:
    """An async context manager: entered, everything is recovered and the control socket is served.

    `runners` (by plugin type) replaces the choice that the settings make.
    """

    def __init__(
        self,
        config: Path | None,
        settings: Settings,
        *,
        inherited: socket.socket | None = None,
        accept_rollback: bool = False,
        runners: Mapping[str, Runner] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._config = config
        self._settings = settings
        self._inherited = inherited
        self._accept_rollback = accept_rollback
        self._runners = runners
        self._clock = clock or SystemClock()
        self._stack = contextlib.AsyncExitStack()
        self.api: Api
        self._engine: Engine
        self.watch: Reloader
        """What is looked at while the house is open."""

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            self.api = await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _open(self, stack: contextlib.AsyncExitStack) -> Api:
        """Every room on the one below it; the control socket last."""
        settings, clock, version = self._settings, self._clock, metadata.version("latticed")
        seen = await asyncio.to_thread(fingerprint, settings.config_file)
        allowed, gid = await asyncio.to_thread(resolved, settings)
        ledger = await stack.enter_async_context(self._open_ledger())
        keep(ledger, settings)
        directory = stack.enter_context(RuntimeDirectory(settings.runtime_dir))
        policy, kept = await self._open_policy(ledger)
        engine = self._engine = await stack.enter_async_context(Engine(settings, ledger, clock, self._runners))
        rooms = await self._rooms(stack, engine, policy, kept)
        lifecycle = Lifecycle(rooms)
        engine.services.follow(lifecycle, rooms.supervisor)
        await self._open_ingress(stack, engine)
        await stack.enter_async_context(lifecycle)
        api = Api(
            lifecycle=lifecycle,
            backups=Backups(lifecycle, settings.state_dir, version=version, settings=lambda: self.api.settings),
            supervisor=rooms.supervisor,
            catalog=rooms.catalog,
            ledger=ledger,
            policy=policy,
            revocations=kept,
            clock=clock,
            settings=settings,
            access=allowed,
            runners=engine.runners,
            ground=engine.ground,
            outputs=engine.outputs,
            secrets=engine.services.secrets,
            notifications=engine.services.notifications,
            tasks=engine.services.tasks,
            ddns=engine.services.ddns,
            monitors=engine.services.monitors,
            programs=engine.services.programs,
            route=engine.services.route,
            version=version,
            started_at=clock.wall_us(),
            started_s=clock.monotonic_s(),
        )
        server = Server(api, settings.control_socket, directory=directory, gid=gid, inherited=self._inherited)
        await stack.enter_async_context(server)
        self.watch = Reloader(self._config, api, engine, server, settings_seen=seen)
        api.around = self.watch.troubles
        return api

    @contextlib.asynccontextmanager
    async def _open_ledger(self) -> AsyncIterator[Ledger]:
        """The ledger, at least as strict as what is known from outside it."""
        accept = self._accept_rollback
        opening = open_ledger(self._settings.state_dir, clock=self._clock, on_head=_tell_head, accept_rollback=accept)
        async with opening as ledger:
            await holding.hold(ledger, self._clock, accept=accept)
            yield ledger

    async def _rooms(
        self, stack: contextlib.AsyncExitStack, engine: Engine, policy: PolicyKeeper, kept: revocations.RevocationKeeper
    ) -> LifecycleDeps:
        """What the lifecycle stands on: the disk below it, and what is alive."""
        version = metadata.version("latticed")
        store = Store(self._settings.state_dir / "store", limits=self._read_limits())

        async def judge(identity: str, sha256: str | None = None) -> Verdict:
            return await asyncio.to_thread(store.verify, identity, policy.current, host_version=version, sha256=sha256)

        catalog = self._catalog(policy, store, version)
        for source in engine.ledger.read(records.accepted_sources):
            catalog.hold(source)
        await stack.enter_async_context(catalog)
        return LifecycleDeps(
            ledger=engine.ledger,
            catalog=catalog,
            supervisor=await stack.enter_async_context(Supervisor(engine.tools(store, judge))),
            clock=self._clock,
            judge=judge,
            store=store,
            revocations=kept,
            static=engine.services.static,
            glance=judge,
            policy=lambda: policy.current,
            tell_changed=engine.services.changed,
            drained=engine.services.drained,
            usual=usual.of(self._settings),
            tell_gone=engine.services.forgotten,
        )

    async def _open_ingress(self, stack: contextlib.AsyncExitStack, engine: Engine) -> None:
        """Where plugins' routes are served, once there are any."""
        services, http = engine.services, self._settings.http
        await stack.enter_async_context(Ingress(services.routes, http, clock=self._clock))
        proxy = ServiceIngress(
            services.service_routes,
            http,
            secret=services.secrets.value_for,
            record=engine.ledger.record_later,
            clock=self._clock,
        )
        await stack.enter_async_context(proxy)

    async def _open_policy(self, ledger: Ledger) -> tuple[PolicyKeeper, revocations.RevocationKeeper]:
        remembered = ledger.read(revocations.remembered)
        policy = PolicyKeeper(self._settings.trust, owners=frozenset({0, os.geteuid()}), remembered=remembered)
        await asyncio.to_thread(policy.look, always=True)
        kept = revocations.RevocationKeeper(ledger, policy, self._clock)
        await kept.remember()
        return policy, kept

    def _catalog(self, policy: PolicyKeeper, store: Store, version: str) -> Catalog:
        settings = self._settings
        return Catalog(
            {"plugins": settings.plugin_dir, "market": self._market()},
            policy=lambda: policy.current,
            host_version=version,
            clock=self._clock,
            limits=self._read_limits(),
            watch=settings.watch,
            max_bundles=settings.limits.bundles,
            store=store,
        )

    def _market(self) -> Path:
        """The market's directory: ours, so it is made when it is not there."""
        bundles = self._settings.state_dir / "bundles"
        try:
            bundles.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            detail = f"cannot make the directory {bundles}: {error.strerror or error}"
            raise Problem("state_unusable", detail, "the state directory must be writable, with free space") from error
        return bundles

    def _read_limits(self) -> read.ReadLimits:
        limits = self._settings.limits
        return read.ReadLimits(
            manifest_bytes=limits.manifest_bytes,
            artifact_bytes=limits.artifact_bytes,
            deadline_s=limits.read_deadline_s,
        )


def _tell_head(head: Head) -> None:
    """Repeat a signed head where cutting the ledger's tail does not reach."""
    named = {} if head.chain == DECISIONS else {"chain": head.chain}
    log.info("audit_head_signed", seq=head.seq, hash=head.hash, signed_at=head.ts, signature=head.signature, **named)
