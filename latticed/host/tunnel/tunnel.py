"""One tunnel: the connector that serves it, one that a change is tried with, and one that was replaced and ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from latticed.host.tunnel import command, credentials, files
from latticed.host.tunnel import spec as specs
from latticed.host.tunnel.connector import Connector
from latticed.kit.clock import rfc3339
from latticed.processes import waiting

if TYPE_CHECKING:
    from latticed.host.program.supervised import SupervisedProgram
    from latticed.host.tunnel.command import TunnelDeps
    from latticed.host.tunnel.files import TunnelFiles
    from latticed.host.tunnel.spec import TunnelSpec

DRAIN_S: Final = 30.0
"""Seconds that a replaced connector has for the requests under way: cloudflared's own `--grace-period` by default."""


class KeptTunnel:
    """One tunnel, made stopped. `serving`: the connector that answers; `trying`: one beside it, while the task `trial`
    tries a change. One that was replaced finishes its requests; the next change waits for that (`drained`), so at most
    two have processes.
    """

    def __init__(self, plugin_id: str, name: str, spec: TunnelSpec, kept: TunnelFiles, deps: TunnelDeps) -> None:
        self.plugin_id = plugin_id
        self.name = name
        self.trial: asyncio.Task[None] | None = None
        self.trying: Connector | None = None
        self._leaving: Connector | None = None
        self._draining: asyncio.Task[None] | None = None
        self._made = 0
        self._stops = 0  # calls of `stop` under way
        self._error: tuple[str, str, int] | None = None  # of a change, as SupervisedProgram.error
        self._files = kept
        self._deps = deps
        self.serving = self._new(spec)

    @property
    def program(self) -> SupervisedProgram:
        """The process of the connector that serves."""
        return self.serving.program

    @property
    def wanted(self) -> TunnelSpec:
        """The spec that was put last, unless its trial has failed."""
        return (self.trying or self.serving).spec

    @property
    def error(self) -> tuple[str, str, int] | None:
        """The last error, of the process or of a change: (code, message, wall clock in µs)."""
        return max((one for one in (self._error, self.program.error) if one), key=lambda one: one[2], default=None)

    def note_error(self, code: str, message: str) -> None:
        """Note the failure of a change, with the current time."""
        self._error = (code, message, self._deps.program.clock.wall_us())

    def start(self) -> None:
        """Have it run; no effect while it is started, or while `stop` is under way."""
        if not self._stops:
            self.serving.start()

    def kill(self) -> None:
        """Kill all its processes without a grace period; `stop` must follow."""
        for one in self._connectors():
            one.kill()

    async def stop(self) -> None:
        """Stop it; its processes and their files are gone when this returns. A trial ends by that: its change is
        undone.
        """
        self._stops += 1
        try:
            # It has had its SIGTERM already.
            if self._leaving is not None:
                self._leaving.kill()
            await asyncio.gather(*(one.stop() for one in self._connectors()))
            await self.drained()
        finally:
            self._stops -= 1

    # A change, in the order in which the keeper calls these.

    async def validate(self, spec: TunnelSpec) -> None:
        """Have cloudflared validate a spec, without starting the tunnel and without network.

        Problem bad_params with the last line of cloudflared's output, credentials_unusable, or as `command.request`;
        HostError egress_blocked for a service that is not bound.
        """
        bound = specs.bound(spec, self._deps.origins(self.plugin_id))
        await asyncio.to_thread(credentials.load, self._deps.settings.credentials_dir, spec)  # raises if unusable
        candidate = self._files.of("candidate")
        config = files.render(spec, bound, candidate.credentials)
        try:
            # Uncancelled: a thread cannot be cancelled, and would write the file after it has been removed.
            await waiting.uncancelled(asyncio.to_thread(files.write, candidate.config, config))
            await command.validate(self._deps, candidate.config)
        finally:
            await asyncio.to_thread(candidate.remove)

    async def drained(self) -> None:
        """Wait until the connector that was replaced last has ended."""
        while self._draining is not None and not self._draining.done():
            await asyncio.wait({self._draining})

    def begin(self, spec: TunnelSpec) -> Connector:
        """A connector with another spec beside the one that serves, started unless the tunnel is being stopped."""
        self.trying = self._new(spec)
        if not self._stops:
            self.trying.start()
        return self.trying

    def replace(self) -> None:
        """The connector that was tried serves from now on; the one before finishes its requests, and ends."""
        if self.trying is None:
            return
        self._leaving, self.serving, self.trying = self.serving, self.trying, None
        self._error = None
        self._draining = asyncio.create_task(self._drain(self._leaving), name=f"drain {self.plugin_id}/{self.name}")

    async def undo(self) -> None:
        """Stop the connector that was tried, if there is one; the one that serves was never touched."""
        if (tried := self.trying) is not None:
            await tried.stop()
            self.trying = None

    async def stop_trial(self) -> None:
        """Cancel the trial, if there is one, and undo it; nothing is stored."""
        if (trial := self.trial) is not None:
            trial.cancel()
            await asyncio.gather(trial, return_exceptions=True)
            self.trial = None
        await self.undo()

    @property
    def has_unbound(self) -> bool:
        """Whether a connector besides the serving one leads to an origin that is not bound any more."""
        return bool(self._unbound())

    async def stop_unbound(self) -> None:
        """Kill those connectors besides the serving one that lead to an origin which is not bound any more."""
        unbound = self._unbound()
        for one in unbound:
            one.kill()
        await asyncio.gather(*(one.stop() for one in unbound))

    def view(self) -> dict[str, Any]:
        """The tunnel as JSON, for answers: the connector that serves, and whether a change is tried beside it."""
        plain = self.serving.view()
        if (error := self.error) is not None:
            plain["last_error"] = {"code": error[0], "message": error[1], "at": rfc3339(error[2])}
        return {"name": self.name, "tunnel": self.serving.spec.tunnel, "trying": self.trial is not None, **plain}

    def _new(self, spec: TunnelSpec) -> Connector:
        self._made += 1
        return Connector(self.plugin_id, self.name, spec, self._files.of(f"connector-{self._made}"), self._deps)

    def _connectors(self) -> list[Connector]:
        return [one for one in (self.serving, self.trying, self._leaving) if one is not None]

    def _unbound(self) -> list[Connector]:
        return [one for one in (self.trying, self._leaving) if one is not None and not one.is_bound]

    async def _drain(self, leaving: Connector) -> None:
        """Stop a replaced connector, with time for what it is answering."""
        await leaving.stop(grace_s=DRAIN_S)
        if self._leaving is leaving:
            self._leaving = None
