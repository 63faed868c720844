"""One tunnel: its configuration, a change on trial, and its cloudflared process."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from latticed.host import confinement
from latticed.host.call import HostError
from latticed.host.last_output import LastOutput, last_words
from latticed.host.program.rules import RestartRules
from latticed.host.program.supervised import ProgramDeps, Ready, SupervisedProgram
from latticed.host.tunnel import credentials
from latticed.host.tunnel import readiness as ready
from latticed.host.tunnel import spec as specs
from latticed.host.tunnel.files import TunnelFiles, render
from latticed.kit import logs
from latticed.model.errors import Problem
from latticed.processes import waiting
from latticed.sandbox import rlimits
from latticed.sandbox.spec import ChildRequest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latticed.host.tunnel.spec import TunnelSpec
    from latticed.model.egress import Origin
    from latticed.model.restart import RestartPolicy
    from latticed.processes.exits import Exit
    from latticed.sandbox.spec import Network
    from latticed.settings.programs import TunnelSettings as Settings

BAD_TOKEN: Final = 255
"""The exit code for a refused token, after which a restart is no use; 1 (no name service, no route) may pass."""
POLL_S: Final = 0.2
"""Seconds between questions whether it is connected, while it is not."""
VALIDATE_S: Final = 8.0
"""Seconds for cloudflared's own validation: the plugin waits for it, as tunnel.put answers afterwards."""
OUTPUT_BYTES: Final = 64 << 10
"""How much of stdout and of stderr is kept."""
_LIMITS: Final = rlimits.ResourceLimits(memory_bytes=1 << 30, tasks=256, open_files=4_096)
log = logs.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorDeps:
    """What tunnels are run with. `origins(plugin_id)`: the origins that are bound to it now; `policy`: backoff of
    restarts, whose breaker is not used.
    """

    program: ProgramDeps
    settings: Settings
    origins: Callable[[str], tuple[Origin, ...]]
    policy: RestartPolicy


class Connector:
    """One tunnel, made stopped. `spec` is what runs, `recorded` what is stored; they differ while the task `trial`
    tries a change.

    `connected`: cloudflared's `/ready` says that the provider's edge accepts it. `program` is another one after
    `switch`.
    """

    def __init__(self, plugin_id: str, name: str, spec: TunnelSpec, files: TunnelFiles, deps: ConnectorDeps) -> None:
        self.plugin_id = plugin_id
        self.name = name
        self.spec = self.recorded = spec
        self.connected = False
        self.trial: asyncio.Task[None] | None = None
        self._files = files
        self._deps = deps
        self._port = 0  # of /ready on loopback; a new one at each start
        self._checks: asyncio.Task[None] | None = None
        self._stops = 0  # calls of `stop` and `switch` under way; `start` does nothing while there are any
        self.program = self._new_program()

    @property
    def is_bound(self) -> bool:
        """Whether every origin that its rules lead to is bound to the plugin now."""
        try:
            specs.bound(self.spec, self._deps.origins(self.plugin_id))
        except HostError:
            return False
        return True

    @property
    def trying(self) -> bool:
        """Whether `spec` is a change that may still be undone."""
        return self.trial is not None

    def start(self) -> None:
        """Have it run; no effect while it is started, or while `stop` or `switch` is under way."""
        # A recheck may come while `stop` awaits: started then, it would run beside the files that are being removed.
        if self._stops:
            return
        self.program.start()
        if self._checks is None or self._checks.done():
            self._checks = asyncio.create_task(self._keep_checking(), name=f"tunnel {self.plugin_id}/{self.name}")

    async def stop(self) -> None:
        """Stop it; its processes and its credentials file are gone when this returns. A trial goes on: see
        `stop_trial`.
        """
        self._stops += 1
        try:
            # The checks first: one may call `program.fail`, which would overlap with `program.stop`.
            if self._checks is not None:
                self._checks.cancel()
                await asyncio.gather(self._checks, return_exceptions=True)
            await self.program.stop()
            self.connected = False
            # After the program has ended, which may read the file again until then.
            await asyncio.to_thread(self._files.remove, self._files.credentials)
        finally:
            self._stops -= 1

    async def switch(self, spec: TunnelSpec) -> None:
        """Stop it; the next `start` runs `spec`. `recorded` and the trial stay as they are."""
        self._stops += 1
        try:
            # `_stops` is 2 within, so that no recheck starts the old program between `stop` and the new spec.
            await self.stop()
            self.spec = spec
            self.program = self._new_program()
        finally:
            self._stops -= 1

    async def stop_trial(self) -> None:
        """Cancel the trial, if there is one; the spec that it tried keeps running, and is not stored."""
        if (trial := self.trial) is not None:
            trial.cancel()
            await asyncio.gather(trial, return_exceptions=True)
            self.trial = None

    async def settled(self) -> bool:
        """Wait until it is connected or can no longer be, at most `tunnel.ready_s`. Returns whether it is connected."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._deps.settings.ready_s):
                while not self.connected and self.program.state not in {"failed", "ended"}:  # noqa: ASYNC110 - `connected` is polled, too
                    await asyncio.sleep(POLL_S)
        return self.connected

    async def validate(self, spec: TunnelSpec) -> None:
        """Have cloudflared validate a spec, without starting the tunnel and without network.

        Problem bad_params with the last line of cloudflared's output, credentials_unusable, or as `confinement.choose`;
        HostError egress_blocked for a service that is not bound.
        """
        files, bound = self._files, specs.bound(spec, self._deps.origins(self.plugin_id))
        await asyncio.to_thread(credentials.load, self._deps.settings.credentials_dir, spec)  # raises if unusable
        await asyncio.to_thread(files.write, files.candidate, render(spec, bound, files.credentials))
        try:
            # In a file of its own: the running tunnel may read config.yml again when it is restarted.
            code, last_line = await self._run_to_end("tunnel", "--config", str(files.candidate), "ingress", "validate")
        finally:
            await asyncio.to_thread(files.remove, files.candidate)
        if code != 0:
            raise Problem(
                "bad_params", f"ingress: expected rules that cloudflared takes, it ended with {code}{last_line}"
            )

    def view(self) -> dict[str, Any]:
        """The tunnel as JSON, for answers; the state `running` is shown as `connected` or `connecting`."""
        plain = self.program.view()
        # That the process runs says nothing: cloudflared goes on trying while it cannot connect.
        if plain["state"] == "running":
            plain["state"] = "connected" if self.connected else "connecting"
        return {"name": self.name, "tunnel": self.spec.tunnel, "trying": self.trying, **plain}

    # The program.

    def _new_program(self) -> SupervisedProgram:
        """A program, not started, that is restarted without end, unless its credentials are refused."""
        policy = replace(self._deps.policy, breaker_failures=sys.maxsize)  # an outage may last
        rules = RestartRules(restart="always", policy=policy, hopeless=frozenset({BAD_TOKEN}))
        name = f"tunnel {self.plugin_id}/{self.name}"
        return SupervisedProgram(name, self._deps.program, self._prepare, rules, output_bytes=OUTPUT_BYTES)

    async def _prepare(self) -> Ready:
        """Write configuration and credentials, and return what to start; called before each start.

        Problem egress_blocked when an origin is not bound any more, credentials_unusable, service_unavailable. Each
        counts as a failed start.
        """
        files = self._files
        try:
            bound = specs.bound(self.spec, self._deps.origins(self.plugin_id))
        except HostError as error:
            raise Problem(error.code.value, error.reason) from error
        # Read again at each start: the operator may have replaced the file.
        kept = await asyncio.to_thread(credentials.load, self._deps.settings.credentials_dir, self.spec)
        # Uncancelled: a thread cannot be cancelled, and would write the file after `stop` has removed it.
        await waiting.uncancelled(asyncio.to_thread(files.write, files.credentials, kept.encode()))
        config = render(self.spec, bound, files.credentials)
        await waiting.uncancelled(asyncio.to_thread(files.write, files.config, config))
        # A new port at each start: another process may have taken the previous one by now.
        self._port = ready.free_port()
        self.connected = False
        metrics = f"{ready.ADDRESS}:{self._port}"
        # --no-autoupdate: what runs is the program that the operator installed, in the version that was installed.
        args = ("tunnel", "--config", str(files.config), "--no-autoupdate", "--metrics", metrics, "run")
        return await self._request(args, (files.config, files.credentials), "host")

    async def _request(self, args: tuple[str, ...], paths: tuple[Path, ...], network: Network) -> Ready:
        """A request for cloudflared with these arguments, which can read these files; `Ready.close` must be called."""
        spawner, path = self._deps.program.spawner, self._deps.settings.program
        if not path:
            raise Problem("service_unavailable", "the operator has named no cloudflared", "set tunnel.program")
        chosen = confinement.choose(spawner, network=network != "none")
        # Last, as it opens a descriptor that only `Ready.close` closes.
        program = await confinement.program(path, spawner.interpreters)
        request = ChildRequest(
            program=program,
            args=args,
            environment=confinement.environment(chosen),
            limits=_LIMITS,
            binds=tuple(map(str, paths)),
            network=network,
        )
        return Ready(
            request=request,
            chosen=chosen,
            close=lambda: confinement.close(program),
            on_ids=lambda ids: self._files.hand_over(paths, ids),
        )

    async def _run_to_end(self, *args: str) -> tuple[int | None, str]:
        """Run cloudflared to its end, without network. Returns (exit code, last line of its output); the code is None
        when a signal ended it or it took longer than VALIDATE_S.
        """
        made = await self._request(args, (self._files.candidate,), "none")
        out, err = LastOutput(OUTPUT_BYTES), LastOutput(OUTPUT_BYTES)
        ended: Exit | None = None
        try:
            child = await self._deps.program.spawner.spawn(
                made.request, made.chosen, on_exit=lambda _: None, stdout=out, stderr=err, on_ids=made.on_ids
            )
        finally:
            # Also after a failed start: the opened program would leak a descriptor.
            made.close()
        try:
            child.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(VALIDATE_S):
                    ended = await child.gone()
        finally:
            # No grace: a validation that takes too long, or is not wanted any more, has nothing to clean up.
            await waiting.uncancelled(child.stop(0))
        return (ended.status if ended else None), last_words(err.data() or out.data())

    # Whether it is connected.

    async def _keep_checking(self) -> None:
        """Set `connected`: ask /ready every POLL_S until it is connected, then every `tunnel.check_s`."""
        while True:
            # `_port` is passed, and compared afterwards: a restart meanwhile has another port, not connected yet.
            self.connected = self.program.state == "running" and await self._is_connected(self._port)
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
