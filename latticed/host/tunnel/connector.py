"""One connector, as cloudflared calls it: a cloudflared process that is kept running with one spec of a tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from latticed.host.call import HostError
from latticed.host.program.rules import RestartRules
from latticed.host.program.supervised import Ready, SupervisedProgram
from latticed.host.tunnel import command, credentials, ends, files
from latticed.host.tunnel import readiness as ready
from latticed.host.tunnel import spec as specs
from latticed.kit import logs
from latticed.model.errors import Problem
from latticed.processes import waiting

if TYPE_CHECKING:
    from latticed.host.tunnel.command import TunnelDeps
    from latticed.host.tunnel.files import ConnectorFiles
    from latticed.host.tunnel.spec import TunnelSpec
    from latticed.model.egress import Origin

POLL_S: Final = 0.2
"""Seconds between questions whether it is connected, while it is not."""
log = logs.get_logger()


class Connector:
    """One cloudflared of a tunnel, made stopped. Several of one tunnel may run beside each other.

    `connected`: cloudflared's `/ready` says that the provider's edge accepts it. `version`: what the program last
    started said it is, or empty. `settings`: program and directory of credentials that it was last started with; None
    before the first start.
    """

    def __init__(self, plugin_id: str, name: str, spec: TunnelSpec, kept: ConnectorFiles, deps: TunnelDeps) -> None:
        self.plugin_id = plugin_id
        self.name = name
        self.spec = spec
        self.connected = False
        self.version = ""
        self.settings: tuple[str, str] | None = None
        self._files = kept
        self._deps = deps
        self._bound: dict[str, Origin] | None = None  # what it leads to while it is started
        self._port = 0  # of /ready on loopback; a new one at each start
        self._checks: asyncio.Task[None] | None = None
        self._stops = 0  # calls of `stop` under way; `start` does nothing while there are any
        policy = replace(deps.policy, breaker_failures=sys.maxsize)  # an outage may last
        self.program = SupervisedProgram(
            f"tunnel {plugin_id}/{name}",
            deps.program,
            self._prepare,
            RestartRules(restart="always", policy=policy, hopeless=frozenset({ends.REFUSED})),
            output_bytes=command.OUTPUT_BYTES,
            named=ends.named,
        )

    @property
    def is_bound(self) -> bool:
        """Whether every origin that its rules lead to is bound to the plugin now, and to the address that a started
        cloudflared knows.
        """
        try:
            now = specs.bound(self.spec, self._deps.origins(self.plugin_id))
        except HostError:
            return False
        return self._bound is None or self._bound == now

    def start(self) -> None:
        """Have it run; no effect while it is started, or while `stop` is under way."""
        # A recheck may come while `stop` awaits: started then, it would run beside the files that are being removed.
        if self._stops:
            return
        self.program.start()
        if self._checks is None or self._checks.done():
            self._checks = asyncio.create_task(self._keep_checking(), name=f"tunnel {self.plugin_id}/{self.name}")

    def kill(self) -> None:
        """Kill its processes without a grace period; `stop` must follow."""
        self.program.kill()

    async def stop(self, *, grace_s: float | None = None) -> None:
        """Stop it (`SupervisedProgram.stop`); its processes and its files are gone when this returns."""
        self._stops += 1
        try:
            # The checks first: one may call `program.fail`, which would overlap with `program.stop`.
            if self._checks is not None:
                self._checks.cancel()
                await asyncio.gather(self._checks, return_exceptions=True)
            self.connected = False
            await self.program.stop(grace_s=grace_s)
            self._bound = None
            # After the program has ended, which may read the files again until then.
            await waiting.uncancelled(asyncio.to_thread(self._files.remove))
        finally:
            self._stops -= 1

    async def settled(self) -> bool:
        """Wait until it is connected or can no longer be, at most `tunnel.ready_s`. Returns whether it is connected."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._deps.settings.ready_s):
                while not self.connected and self.program.state not in {"failed", "ended", "stopped"}:  # noqa: ASYNC110 - `connected` is polled, too
                    await asyncio.sleep(POLL_S)
        return self.connected

    def view(self) -> dict[str, Any]:
        """It as JSON, for answers; the state `running` is shown as `connected` or `connecting`."""
        plain = self.program.view()
        # That the process runs says nothing: cloudflared goes on trying while it cannot connect.
        if plain["state"] == "running":
            plain["state"] = "connected" if self.connected else "connecting"
        return {**plain, "version": self.version or None}

    # The program.

    async def _prepare(self) -> Ready:
        """Write configuration and credentials, and return what to start; called before each start.

        Problem egress_blocked when an origin is not bound any more, credentials_unusable, service_unavailable. Each
        counts as a failed start.
        """
        kept, settings = self._files, self._deps.settings
        try:
            bound = specs.bound(self.spec, self._deps.origins(self.plugin_id))
        except HostError as error:
            raise Problem(error.code.value, error.reason) from error
        # Read again at each start: the operator may have replaced the file.
        found = await asyncio.to_thread(credentials.load, settings.credentials_dir, self.spec)
        # Uncancelled: a thread cannot be cancelled, and would write the file after `stop` has removed it.
        await waiting.uncancelled(asyncio.to_thread(files.write, kept.credentials, found.encode()))
        config = files.render(self.spec, bound, kept.credentials)
        await waiting.uncancelled(asyncio.to_thread(files.write, kept.config, config))
        self.version = await command.version(self._deps)
        # A new port at each start: another process may have taken the previous one by now.
        self._port = ready.free_port()
        self.connected = False
        self._bound, self.settings = bound, (settings.program, settings.credentials_dir)
        metrics = f"{ready.ADDRESS}:{self._port}"
        # --no-autoupdate: what runs is the program that the operator installed, in the version that was installed.
        args = ("tunnel", "--config", str(kept.config), "--no-autoupdate", "--metrics", metrics, "run")
        return await command.request(self._deps, args, (kept.config, kept.credentials), "host", owner=self.plugin_id)

    # Whether it is connected.

    async def _keep_checking(self) -> None:
        """Set `connected`: ask /ready every POLL_S until it is connected, then every `tunnel.check_s`. Note it as an
        error once cloudflared has run for `tunnel.ready_s` without being connected.
        """
        clock, alone_since_s = self._deps.program.clock, None
        while True:
            # `_port` is passed, and compared afterwards: a restart meanwhile has another port, not connected yet.
            self.connected = self.program.state == "running" and await self._is_connected(self._port)
            if self.connected or self.program.state != "running":
                alone_since_s = None
            elif alone_since_s is None:
                alone_since_s = clock.monotonic_s()
            elif alone_since_s != float("inf") and clock.monotonic_s() - alone_since_s >= self._deps.settings.ready_s:
                alone_since_s = float("inf")  # noted once
                self.program.note_error(
                    "edge_unreachable", f"it runs, but was not connected for {self._deps.settings.ready_s:g} s"
                )
            await asyncio.sleep(self._deps.settings.check_s if self.connected else POLL_S)

    async def _is_connected(self, port: int) -> bool:
        """Whether the cloudflared that was started with this port is connected. If its rules come from the provider, it
        is stopped for good (`failed`).
        """
        # /config is asked only once it is ready: rules of the provider come over that connection.
        if not await ready.is_ready(port):
            return False
        if await ready.is_managed_elsewhere(port):
            await self.program.fail("remotely_managed", "its rules come from the provider, not from here")
            log.error("tunnel_remotely_managed", plugin_id=self.plugin_id, name=self.name)
        return self._port == port and self.program.state == "running"
