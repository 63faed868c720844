"""The rooms of one running daemon, opened in order on one stack and closed in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, Self

from latticed import settings as settings_room
from latticed.bundle import read
from latticed.catalog.catalog import Catalog
from latticed.catalog.store import Store
from latticed.engine import Engine
from latticed.ingress.ingress import Ingress
from latticed.ingress.services import ServiceIngress
from latticed.kit import logs
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger, records
from latticed.ledger.retention import Retention
from latticed.lifecycle import revocations
from latticed.lifecycle.backup import Backups
from latticed.lifecycle.lifecycle import Lifecycle
from latticed.lifecycle.policy import PolicyKeeper
from latticed.lifecycle.rooms import Rooms
from latticed.model.chain import DECISIONS
from latticed.model.errors import Problem
from latticed.rpc import access
from latticed.rpc.api import Api
from latticed.rpc.server import Server
from latticed.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping
    from pathlib import Path

    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger
    from latticed.model.chain import Head
    from latticed.model.verdict import Verdict
    from latticed.runners.contract import Runner
    from latticed.settings import Settings

LIVE: Final = ("log", "access", "host_calls", "trust", "audit")
"""Settings that a reload applies; the others wait for a restart."""

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
        runners: Mapping[str, Runner] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._config = config
        self._settings = settings
        self._inherited = inherited
        self._runners = runners
        self._clock = clock or SystemClock()
        self._stack = contextlib.AsyncExitStack()
        self._settings_seen = self._settings_fingerprint()
        self.api: Api
        self._engine: Engine

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
        allowed = access.resolve(settings.access, own_uid=os.geteuid())
        ledger = await stack.enter_async_context(open_ledger(settings.state_dir, clock=clock, on_head=_tell_head))
        _keep(ledger, settings)
        policy, kept = await self._open_policy(ledger)
        engine = self._engine = await stack.enter_async_context(Engine(settings, ledger, clock, self._runners))
        rooms = await self._rooms(stack, engine, policy, kept)
        lifecycle = Lifecycle(rooms)
        engine.services.follow(lifecycle, rooms.supervisor)
        await self._open_ingress(stack, engine)
        await stack.enter_async_context(lifecycle)
        api = Api(
            lifecycle=lifecycle,
            backups=Backups(lifecycle, settings.state_dir, version=version),
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
            version=version,
            started_at=clock.wall_us(),
            started_s=clock.monotonic_s(),
        )
        gid = access.socket_gid(settings.access.socket_group)
        await stack.enter_async_context(Server(api, settings.control_socket, gid=gid, inherited=self._inherited))
        return api

    async def _rooms(
        self, stack: contextlib.AsyncExitStack, engine: Engine, policy: PolicyKeeper, kept: revocations.Revocations
    ) -> Rooms:
        """What the lifecycle stands on: the disk below it, and what is alive."""
        version = metadata.version("latticed")
        store = Store(self._settings.state_dir / "store", limits=self._read_limits())

        async def judge(identity: str, sha256: str | None = None) -> Verdict:
            return await asyncio.to_thread(store.verify, identity, policy.current, host_version=version, sha256=sha256)

        catalog = self._catalog(policy, store, version)
        for source in engine.ledger.read(records.accepted_sources):
            catalog.hold(source)
        await stack.enter_async_context(catalog)
        return Rooms(
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
            quiet=engine.services.quiet,
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

    async def _open_policy(self, ledger: Ledger) -> tuple[PolicyKeeper, revocations.Revocations]:
        remembered = ledger.read(revocations.remembered)
        policy = PolicyKeeper(self._settings.trust, owners=frozenset({0, os.geteuid()}), remembered=remembered)
        policy.look(always=True)
        kept = revocations.Revocations(ledger, policy, self._clock)
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

    def _read_limits(self) -> read.Limits:
        limits = self._settings.limits
        return read.Limits(
            manifest_bytes=limits.manifest_bytes,
            artifact_bytes=limits.artifact_bytes,
            deadline_s=limits.read_deadline_s,
        )

    # What changes while it runs.

    async def look(self) -> None:
        """Take up a changed trust policy or settings file."""
        if (seen := self._settings_fingerprint()) != self._settings_seen:
            self._settings_seen = seen
            await self._reload_settings()
        if await asyncio.to_thread(self.api.policy.look):
            await self._policy_changed()
        elif self.api.policy.remembered != self.api.policy.current.revoked:
            await self.api.revocations.remember()

    async def reload(self) -> None:
        """SIGHUP: read settings and policy again, judge every bundle again, whatever seems to have changed."""
        await self._reload_settings()
        await asyncio.to_thread(self.api.policy.look, always=True)
        await self._policy_changed()

    async def _policy_changed(self) -> None:
        policy = self.api.policy
        if policy.problem is not None:
            log.error("trust_policy_refused", code=policy.problem.code, reason=policy.problem.detail)
        else:
            log.info("trust_policy_loaded", publishers=len(policy.current.publishers))
        await self.api.lifecycle.policy_changed()

    def _read_settings(self) -> tuple[Settings, access.Access]:
        fresh = settings_room.load(self._config, os.environ, os.geteuid())
        return fresh, access.resolve(fresh.access, own_uid=os.geteuid())

    async def _reload_settings(self) -> None:
        """Apply what can be applied; a bad file keeps the old settings and shows in health."""
        try:
            fresh, allowed = await asyncio.to_thread(self._read_settings)
        except Problem as problem:
            if problem.detail not in [known.detail for known in self.api.trouble]:
                log.error("settings_refused", reason=problem.detail, hint=problem.hint)
            self.api.trouble = [problem]
            self._settings_seen = ()  # the disk may mend without the file looking any different
            return
        live: dict[str, Any] = {name: getattr(fresh, name) for name in LIVE}
        applied = replace(self._settings, **live)
        if waiting := _differences(applied, fresh):
            log.warning("settings_need_restart", keys=",".join(waiting))
        self._settings = self.api.settings = applied
        self.api.access, self.api.trouble = allowed, []
        self._engine.apply(applied)
        _keep(self.api.ledger, applied)
        self.api.policy.file = applied.trust
        logs.configure(applied.log.level, form=applied.log.format)
        log.info("settings_loaded")

    def _settings_fingerprint(self) -> tuple[int, ...] | None:
        file = self._settings.config_file or self._config
        try:
            found = file.stat() if file else None
        except OSError:
            return None
        return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns) if found else None


def _keep(ledger: Ledger, settings: Settings) -> None:
    """How much of the audit chains is kept from now on."""
    wanted = settings.audit
    ledger.retention = Retention(keep_days=wanted.keep_days, max_bytes=wanted.max_bytes)
    ledger.calls_retention = Retention(keep_days=wanted.calls.keep_days, max_bytes=wanted.calls.max_bytes)


def _differences(applied: Settings, fresh: Settings) -> list[str]:
    old = {key: value for key, value, _ in settings_room.describe(applied)}
    return [key for key, value, _ in settings_room.describe(fresh) if old[key] != value]


def _tell_head(head: Head) -> None:
    """Repeat a signed head where cutting the ledger's tail does not reach."""
    named = {} if head.chain == DECISIONS else {"chain": head.chain}
    log.info("audit_head_signed", seq=head.seq, hash=head.hash, signed_at=head.ts, signature=head.signature, **named)
