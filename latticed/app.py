"""Wiring: makes every part of the daemon from the settings, opens them in order, closes in reverse.

No lower module imports this one. What a lower part must learn from a higher one goes through an object that both are
given here: `Permissions` (the lifecycle writes, host services read) and the table of handles (the supervisor writes).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from typing import TYPE_CHECKING, Self

import latticed
from latticed.broker.gate import Broker
from latticed.bundle import read
from latticed.catalog.builtins import Builtins
from latticed.catalog.catalog import Catalog
from latticed.catalog.pair_judge import PairJudge
from latticed.catalog.store import Store
from latticed.host.notify.rules import FANOUT
from latticed.host.permissions import Permissions
from latticed.host.services import HostServices, restart_policy
from latticed.ingress.deliverer import Deliverer
from latticed.ingress.ingress import DRAIN_S, Ingress
from latticed.ingress.upstream_listener import UpstreamIngress
from latticed.kit import logs, struct_types
from latticed.kit.clock import SystemClock
from latticed.kit.wheel import Wheel
from latticed.kit.zone import HostZone
from latticed.ledger import open_ledger, records
from latticed.lifecycle import journalled_heads, manifest_defaults, revocations, startup_merge
from latticed.lifecycle.backup import Backups
from latticed.lifecycle.configurations import Configurations
from latticed.lifecycle.deps import LifecycleDeps
from latticed.lifecycle.lifecycle import Lifecycle
from latticed.lifecycle.policy import PolicyKeeper
from latticed.market.shelf import MarketShelf
from latticed.model.chain import DECISIONS
from latticed.model.errors import Problem
from latticed.model.runtime import RuntimeState
from latticed.reload import Reloader, gate_limits, resolved, set_retention
from latticed.rpc.api import Api
from latticed.rpc.control_socket import RuntimeDirectory
from latticed.rpc.server import Server
from latticed.runners import choice
from latticed.runners.child_spawner import ChildSpawner
from latticed.runners.choice import RunnerDeps
from latticed.runners.config_checker import ConfigChecker
from latticed.runners.kept_copies import KeptCopies
from latticed.runners.output import Outputs
from latticed.sandbox import cgroup, probe
from latticed.supervisor.deps import HandleDeps
from latticed.supervisor.history import History
from latticed.supervisor.schedules import Schedules
from latticed.supervisor.supervisor import Supervisor
from latticed.system.registry import BUILTINS

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger
    from latticed.ledger.revocations import RevocationRows
    from latticed.market.market import Market
    from latticed.model.chain import Head
    from latticed.model.manifest import Manifest
    from latticed.runners.contract import Runner
    from latticed.sandbox.host_facts import Probed
    from latticed.settings import Settings
    from latticed.supervisor.handle import Handle
    from latticed.system.builtin import Builtin

log = logs.get_logger()


class App:
    """One running daemon, an async context manager: entered, its state is loaded and the control socket is served.

    `config` is the settings file named on the command line, for reloads; `inherited` a listening socket that the
    service manager passed; `accept_rollback` goes on with a ledger that is older than what was decided. `runners` (by
    plugin type) replaces the choice that the settings make, `clock` the system's. `builtins` are the plugins that
    latticed brings, `version` its own. Entering raises the Problems of its parts; what was open by then is closed
    again.
    """

    def __init__(
        self,
        config: Path | None,
        settings: Settings,
        *,
        inherited: socket.socket | None = None,
        accept_rollback: bool = False,
        runners: Mapping[str, Runner] | None = None,
        builtins: tuple[Builtin, ...] = BUILTINS,
        version: str = "",
        clock: Clock | None = None,
    ) -> None:
        self._config = config
        self._settings = settings
        self._inherited = inherited
        self._accept_rollback = accept_rollback
        self._runners = runners
        self._clock = clock or SystemClock()
        self._packages = builtins
        self._version = version or latticed.__version__
        self._wheel = Wheel()
        self._shelf = MarketShelf(settings.state_dir)
        self._stack = contextlib.AsyncExitStack()
        self._drained_by_s = 0.0
        # Made by __aenter__:
        self.services: HostServices
        self.broker: Broker
        self.api: Api
        self.reloader: Reloader

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._open(stack)
            # Only now: until here, leaving the block closes what is open.
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        # One span of time for all that is under way, whatever asked for it.
        self._drained_by_s = asyncio.get_running_loop().time() + self.api.settings.supervision.drain_s
        await self._stack.aclose()

    def _left_s(self) -> float:
        """What is left of `supervision.drain_s` while the daemon stops."""
        return max(self._drained_by_s - asyncio.get_running_loop().time(), 0.0)

    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        """Open each part after those it depends on; the control socket last.

        `stack` gets what is open, and closes it in reverse. Sets `services`, `broker`, `api` and `reloader`. Raises the
        Problems of the parts.
        """
        # Before the first thread: those of the catalog decode manifests beside each other.
        struct_types.prepare()
        settings, clock = self._settings, self._clock
        # A file or directory service that hangs must not block the loop: SIGTERM has to work during the start.
        allowed, gid = await asyncio.to_thread(resolved, settings)
        for sentence in allowed.without_effect:
            log.warning("access_without_effect", reason=sentence)
        # Locks the state directory: a second daemon on it ends here.
        ledger = await stack.enter_async_context(self._open_ledger())
        set_retention(ledger, settings)
        # Where the sockets are, and credentials of tunnels while they run. Locked as well: daemons with different state
        # directories may be set to the same one.
        directory = stack.enter_context(RuntimeDirectory(settings.runtime_dir))
        # The policy needs the ledger, for the revocations that its file no longer names.
        policy, kept_revocations = await self._open_policy(ledger)
        # Whatever starts a process gets this one spawner; `outputs` keeps what plugins write for `latticectl logs`.
        spawner, outputs = _child_spawner(settings), Outputs(clock, logs.plugin_line)
        # What plugins' calls are served by, before any plugin can be started. The supervisor fills `handles`, and the
        # lifecycle the permissions: services must not import either, so both sides get the same object.
        handles: dict[str, Handle] = {}
        services = self.services = HostServices(
            settings,
            ledger,
            clock=clock,
            wheel=self._wheel,
            spawner=spawner,
            permissions=Permissions(),
            handles=handles,
        )
        builtins = await asyncio.to_thread(Builtins, self._packages, version=self._version)
        # Shared by the runners, which take from it, and the handles, which let go; it is empty when all have stopped.
        copies = stack.enter_context(contextlib.closing(KeptCopies(settings.supervision.kept_artifact_bytes)))
        runners = self._runners
        if runners is None:
            runners = self._make_runners(spawner, outputs, copies, builtins)
        # Services carry out calls; the broker decides and records them, and gives each plugin its Gate.
        emit = functools.partial(_log_line, outputs)
        self.broker = Broker(services.table(emit), record=ledger.note, clock=clock, gate_limits=gate_limits(settings))
        # Nothing is done for a plugin yet: before the lifecycle's first scan each counts as `permissions.NOT_SEEN`.
        await stack.enter_async_context(services)
        # What is on disk. `judge` reads the policy at each call, so that a change counts at once.
        store = Store(settings.state_dir / "store", limits=self._read_limits(), builtins=builtins)

        judge = PairJudge(store, lambda: policy.current, host_version=self._version)
        await asyncio.to_thread(self._shelf.clear)  # before the market's directory is watched
        catalog = self._make_catalog(policy, store)
        # Before the first scan, which then judges bundles of installed plugins first.
        for source in ledger.read(records.accepted_sources):
            catalog.mark_recorded(source)
        # Judges every bundle once. The lifecycle reads the result as the first batch of changes.
        await stack.enter_async_context(catalog)
        # A start reads its plugin's configuration; a decision to change one has it checked in a confined child.
        configurations = Configurations(ledger, ConfigChecker(spawner))
        # What runs plugins. Entered before the lifecycle, it is closed after it: then all plugins stop.
        zone = HostZone()
        await asyncio.to_thread(zone.refresh)
        schedules = Schedules(ledger, handles, clock=clock, wheel=self._wheel, zone=zone)
        # Closed after the supervisor: runs end with their plugins.
        stack.push_async_callback(schedules.close)
        handle_deps = HandleDeps(
            runners=runners,
            broker=self.broker,
            store=store,
            judge=judge,
            record=ledger.record_later,
            clock=clock,
            restart=restart_policy(settings.supervision),
            start_deadline_s=settings.supervision.start_deadline_s,
            stop_grace_s=settings.supervision.stop_grace_s,
            wheel=self._wheel,
            copies=copies,
            drained=services.drained,
            configure=configurations.for_start,
            scheduled=schedules.changed,
        )
        supervisor = await stack.enter_async_context(Supervisor(handle_deps, handles))
        counts, used = self.broker.counts, spawner.usage.sample
        history = stack.enter_context(History(handles, counts, used, clock=clock, wheel=self._wheel))
        # What the operator decided. Only made here; entered below, which arms the active plugins.
        lifecycle = Lifecycle(
            LifecycleDeps(
                ledger=ledger,
                catalog=catalog,
                supervisor=supervisor,
                services=services,
                clock=clock,
                judge=judge,
                store=store,
                configurations=configurations,
                policy=policy,
                revocations=kept_revocations,
                defaults=manifest_defaults.of(settings),
                gate_s=settings.upgrade.gate_s,
            )
        )
        # Before the lifecycle, which arms plugins and so brings routes to serve.
        listeners = await self._open_ingress(stack, ledger)
        await stack.enter_async_context(lifecycle)
        # Before the plugins are stopped.
        stack.push_async_callback(self._drain, schedules)
        # After the plugins, so that it is closed before them: what it is delivering is waited for, as all that plugins
        # do, and sent again later where that takes too long.
        deliverer = await stack.enter_async_context(self._make_deliverer(supervisor))
        # Last what is reached from outside: nothing is asked before everything can answer.
        api = self.api = Api(
            lifecycle=lifecycle,
            backups=Backups(lifecycle, settings.state_dir, version=self._version),
            supervisor=supervisor,
            catalog=catalog,
            ledger=ledger,
            policy=policy,
            revocations=kept_revocations,
            clock=clock,
            settings=settings,
            access=allowed,
            runners=runners,
            spawner=spawner,
            outputs=outputs,
            secrets=services.secrets,
            notifications=services.notifications,
            channels=services.channels,
            test_channel=deliverer.test,
            undelivered=deliverer.notes,
            tasks=services.tasks,
            plans=services.plans,
            market=functools.cache(lambda: self._make_market(lifecycle, runners, policy)),
            ddns=services.ddns,
            monitors=services.monitors,
            programs=services.programs,
            tunnels=services.tunnels,
            routes=services.routes,
            schedules=schedules,
            history=history,
            version=self._version,
            started_at=clock.wall_us(),
            started_s=clock.monotonic_s(),
        )
        # Binds the socket only when it is entered, below: before that no request can come.
        server = Server(api, settings.control_socket, directory=directory, gid=gid, inherited=self._inherited)
        await stack.enter_async_context(server)
        # First of all when it stops: while requests under way get their time, no run begins.
        stack.callback(schedules.begin_none)
        stack.callback(deliverer.begin_none)
        self.reloader = Reloader(self._config, api, server, broker=self.broker, services=services, listeners=listeners)
        # Set afterwards, since the reloader needs the API that shows its troubles.
        api.around = self.reloader.troubles

    async def _drain(self, schedules: Schedules) -> None:
        await schedules.drain(self._left_s())

    @contextlib.asynccontextmanager
    async def _open_ledger(self) -> AsyncIterator[Ledger]:
        """The ledger, merged with the signed floors and the journal (`startup_merge`)."""
        accept = self._accept_rollback
        opening = open_ledger(self._settings.state_dir, clock=self._clock, on_head=_log_head, accept_rollback=accept)
        async with opening as ledger:
            journalled = functools.partial(journalled_heads.newest, self._settings)
            await startup_merge.merge(ledger, self._clock, accept=accept, journalled=journalled)
            yield ledger

    async def _open_policy(self, ledger: Ledger) -> tuple[PolicyKeeper, revocations.RevocationKeeper]:
        """The policy in force, read once, and the keeper of its revocations, which records new ones at once."""
        remembered = ledger.read(revocations.remembered)
        policy = PolicyKeeper(self._settings.trust, owners=frozenset({0, os.geteuid()}), remembered=remembered)
        await asyncio.to_thread(policy.look, always=True)  # reads a file, which may be on a mount that hangs
        kept = revocations.RevocationKeeper(ledger, policy, self._clock)
        # A failure does not prevent the start: it is logged, and the poll of the policy tries again.
        await kept.remember()
        return policy, kept

    async def _open_ingress(self, stack: contextlib.AsyncExitStack, ledger: Ledger) -> tuple[Ingress, ...]:
        """Enter the listeners for plugins' routes on `stack`, and return them; each binds only while there are
        routes.
        """
        services, http = self.services, self._settings.http
        # Its answers are made by plugins, as those of invocations; streams of the proxy could go on for ever.
        pages = Ingress(services.pages, http, clock=self._clock, drain_s=lambda: max(self._left_s(), DRAIN_S))
        await stack.enter_async_context(pages)
        proxy = UpstreamIngress(
            services.upstreams,
            http,
            secret=services.secrets.value_for,
            record=ledger.record_later,
            clock=self._clock,
        )
        await stack.enter_async_context(proxy)
        return pages, proxy

    def _make_deliverer(self, supervisor: Supervisor) -> Deliverer:
        """What hands queued notifications to the plugin that delivers them."""

        def running() -> int:
            runtime = supervisor.runtime(FANOUT)
            return runtime.started_at if runtime.state is RuntimeState.ARMED else 0

        def active() -> bool | None:
            standing = services.permissions.standing(FANOUT)
            return standing.active if standing.seen else None

        services = self.services
        return Deliverer(
            services.notifications,
            services.channels,
            invoke=functools.partial(supervisor.invoke, FANOUT),
            running=running,
            active=active,
            clock=self._clock,
            state_dir=self._settings.state_dir,
            drain_s=self._left_s,
        )

    def _make_runners(
        self, spawner: ChildSpawner, outputs: Outputs, copies: KeptCopies, builtins: Builtins
    ) -> Mapping[str, Runner]:
        """A runner for each plugin type and for built-ins, as the settings choose."""
        wanted, services = self._settings.runners, self.services
        deps = RunnerDeps(
            spawner=spawner,
            outputs=outputs,
            copies=copies,
            routes=services.pages,
            state_dir=self._settings.state_dir,
            start_deadline_s=self._settings.supervision.start_deadline_s,
            permits=services.permissions.permits,
            prefixes=services.permissions.prefixes,
            builtins=builtins,
            secrets_of=services.secrets.for_plugin,
        )
        return choice.choose({"system": wanted.system, "wasm": wanted.wasm, "worker": wanted.worker}, deps)

    def _make_catalog(self, policy: PolicyKeeper, store: Store) -> Catalog:
        """The catalog of the operator's plugin directory and the market's."""
        settings = self._settings
        return Catalog(
            {"plugins": settings.plugin_dir, "market": _market_dir(settings)},
            # Asked at each judgement: it changes while the daemon runs.
            policy=lambda: policy.current,
            host_version=self._version,
            clock=self._clock,
            limits=self._read_limits(),
            watch=settings.watch,
            max_bundles=settings.limits.bundles,
            store=store,
        )

    def _make_market(self, lifecycle: Lifecycle, runners: Mapping[str, Runner], policy: PolicyKeeper) -> Market:
        """The marketplace, made when it is first asked for: most daemons never are."""
        from latticed.market.deps import MarketDeps
        from latticed.market.market import Market
        from latticed.runners.contract import PluginToRun, runner_key

        async def admit(manifest: Manifest, identity: str, pair: read.BundleDirectory) -> None:
            plugin = PluginToRun(id=manifest.id, identity=identity, manifest=manifest)
            await runners[runner_key(plugin.id, manifest.type)].admit(plugin, pair)

        async def revoke(seen: RevocationRows, source: str) -> None:
            kept = lifecycle.deps.revocations
            kept.foresee(seen, source)
            await lifecycle.policy_changed()
            await kept.record()

        return Market(
            MarketDeps(
                ledger=lifecycle.deps.ledger,
                shelf=self._shelf,
                clock=self._clock,
                settings=lambda: self.api.settings.market,
                policy=lambda: policy.current,
                record=lifecycle.records.get,
                bad=lambda plugin_id: lifecycle.state.bad.get(plugin_id, {}),
                admit=admit,
                revoke=revoke,
                host_version=self._version,
                limits=self._read_limits(),
            )
        )

    def _read_limits(self) -> read.ReadLimits:
        """How much of a bundle is read, by the settings."""
        limits = self._settings.limits
        return read.ReadLimits(
            manifest_bytes=limits.manifest_bytes,
            artifact_bytes=limits.artifact_bytes,
            deadline_s=limits.read_deadline_s,
        )


def _market_dir(settings: Settings) -> Path:
    """The market's directory below the state directory, made when it is not there; Problem("state_unusable")."""
    bundles = settings.state_dir / "bundles"
    try:
        bundles.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        detail = f"cannot make the directory {bundles}: {error.strerror or error}"
        raise Problem("state_unusable", detail, "the state directory must be writable, with free space") from error
    return bundles


def _child_spawner(settings: Settings) -> ChildSpawner:
    """The spawner of confined children for this host, after probing which confinement the host has. Removes the cgroups
    that an earlier daemon left. Blocks the first time, as the probe starts child processes.
    """
    probed = _probed()
    if probed.delegation is not None:
        cgroup.sweep(probed.delegation)
    return ChildSpawner(probed, settings.sandbox, settings.plugin_limits)


@functools.cache
def _probed() -> Probed:
    """What this host can confine with.

    Cached for the process, as the probe starts throw-away children at every confinement level.
    """
    return probe.probe()


def _log_line(outputs: Outputs, level: str, plugin_id: str, message: str, fields: dict[str, str]) -> None:
    """Write a plugin's log.write line to the daemon's log and, with its `fields` appended, to the plugin's own output.

    `level`: as in `host.log`; one that is not known here is logged as info.
    """
    write = {"debug": log.debug, "warning": log.warning, "error": log.error}.get(level, log.info)
    write("plugin_said", plugin_id=plugin_id, message=message, fields=fields)
    more = "".join(f" {name}={value}" for name, value in fields.items())
    outputs.say(plugin_id, "log", f"{level}: {message}{more}")


def _log_head(head: Head) -> None:
    """Repeat a signed head of an audit chain in the log, which outlives a ledger whose tail was cut off."""
    named = {} if head.chain == DECISIONS else {"chain": head.chain}
    log.info("audit_head_signed", seq=head.seq, hash=head.hash, signed_at=head.ts, signature=head.signature, **named)
