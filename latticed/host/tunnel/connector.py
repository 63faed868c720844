"""One tunnel: the configuration in force, the one that is being tried in its place, and the program that runs it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from latticed.host import confinement as confining
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
    from latticed.sandbox.spec import Ids, Network
    from latticed.settings.programs import TunnelSettings as Settings

BAD_TOKEN: Final = 255
"""The exit code after which the provider would say the same again; 1 (no name service, no route) may pass."""
POLL_S: Final = 0.2
VALIDATE_S: Final = 8.0
OUTPUT_BYTES: Final = 64 << 10
_LIMITS: Final = rlimits.ResourceLimits(memory_bytes=1 << 30, tasks=256, open_files=4_096)
log = logs.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorDeps:
    """What tunnels are made with. `origins` of a plugin are what the operator bound to it, as of now."""

    tools: ProgramDeps
    settings: Callable[[], Settings]
    origins: Callable[[str], tuple[Origin, ...]]
    policy: Callable[[], RestartPolicy]


class Connector:
    """`spec` is what runs. `connected`: the provider's edge has it, by `/ready`."""

    def __init__(self, plugin_id: str, name: str, spec: TunnelSpec, place: TunnelFiles, house: ConnectorDeps) -> None:
        self.plugin_id = plugin_id
        self.name = name
        self.spec = spec
        self.connected = False
        self.trying = False
        self._place = place
        self._house = house
        self._port = 0
        self._watch: asyncio.Task[None] | None = None
        self._ending = 0
        self.life = self._new_life()

    @property
    def is_bound(self) -> bool:
        """Whether the operator still binds all that it leads to."""
        try:
            specs.bound(self.spec, self._house.origins(self.plugin_id))
        except HostError:
            return False
        return True

    def begin(self) -> None:
        """Have it run, unless somebody is just ending it."""
        if self._ending:
            return
        self.life.begin()
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._look_after(), name=f"tunnel {self.plugin_id}/{self.name}")

    async def end(self) -> None:
        """Stop it; nothing of it is left, and no credentials, when this returns."""
        self._ending += 1
        try:
            if self._watch is not None:
                self._watch.cancel()
                await asyncio.gather(self._watch, return_exceptions=True)
            await self.life.end()
            self.connected = False
            await asyncio.to_thread(self._place.discard, self._place.credentials)
        finally:
            self._ending -= 1

    async def take(self, spec: TunnelSpec) -> None:
        """Run `spec` instead, from now on."""
        self._ending += 1
        try:
            await self.end()
            self.spec = spec
            self.life = self._new_life()
        finally:
            self._ending -= 1

    async def settled(self) -> bool:
        """Whether it has become ready, within the time that the settings give it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._house.settings().ready_s):
                while not self.connected and self.life.state not in {"failed", "ended"}:  # noqa: ASYNC110 - its own loop sees it
                    await asyncio.sleep(POLL_S)
        return self.connected

    async def validate(self, spec: TunnelSpec) -> None:
        """Have the program itself judge a spec that is to be taken; Problem bad_params with its words."""
        place, bound = self._place, specs.bound(spec, self._house.origins(self.plugin_id))
        kept = await asyncio.to_thread(credentials.load, self._house.settings().credentials_dir, spec)
        del kept  # it is there and sound; what is judged here are the rules
        await asyncio.to_thread(place.write, place.candidate, render(spec, bound, place.credentials))
        try:
            code, words = await self._ask("tunnel", "--config", str(place.candidate), "ingress", "validate")
        finally:
            await asyncio.to_thread(place.discard, place.candidate)
        if code != 0:
            raise Problem("bad_params", f"ingress: expected rules that cloudflared takes, it ended with {code}{words}")

    def view(self) -> dict[str, Any]:
        """How it is, for answers."""
        plain = self.life.view()
        if plain["state"] == "running":
            plain["state"] = "connected" if self.connected else "connecting"
        return {"name": self.name, "tunnel": self.spec.tunnel, "trying": self.trying, **plain}

    # The program.

    def _new_life(self) -> SupervisedProgram:
        policy = replace(self._house.policy(), breaker_failures=sys.maxsize)  # an outage may last
        rules = RestartRules(restart="always", policy=policy, hopeless=frozenset({BAD_TOKEN}))
        name = f"tunnel {self.plugin_id}/{self.name}"
        return SupervisedProgram(name, self._house.tools, self._prepare, rules, output_bytes=OUTPUT_BYTES)

    async def _prepare(self) -> Ready:
        place = self._place
        try:
            bound = specs.bound(self.spec, self._house.origins(self.plugin_id))
        except HostError as error:
            raise Problem(error.code.value, error.message) from error
        kept = await asyncio.to_thread(credentials.load, self._house.settings().credentials_dir, self.spec)
        # To the end, even when cancelled: what is written after its removal would stay.
        await waiting.uncancelled(asyncio.to_thread(place.write, place.credentials, kept.encode()))
        config = render(self.spec, bound, place.credentials)
        await waiting.uncancelled(asyncio.to_thread(place.write, place.config, config))
        self._port = ready.free_port()
        self.connected = False
        metrics = f"{ready.ADDRESS}:{self._port}"
        args = ("tunnel", "--config", str(place.config), "--no-autoupdate", "--metrics", metrics, "run")
        binds = (str(place.config), str(place.credentials))
        return await self._request(args, binds, "host", lambda ids: place.lend((place.config, place.credentials), ids))

    async def _request(
        self, args: tuple[str, ...], binds: tuple[str, ...], network: Network, lent: Callable[[Ids | None], None]
    ) -> Ready:
        spawner, path = self._house.tools.spawner, self._house.settings().program
        if not path:
            raise Problem("service_unavailable", "the operator has named no cloudflared", "set tunnel.program")
        chosen = confining.choose(spawner, network=network != "none")
        program = await confining.program(path, spawner.interpreters)
        request = ChildRequest(
            program=program,
            args=args,
            environment=confining.environment(chosen),
            limits=_LIMITS,
            binds=binds,
            network=network,
        )
        return Ready(request=request, chosen=chosen, close=lambda: confining.close(program), lent=lent)

    async def _ask(self, *args: str) -> tuple[int | None, str]:
        """Run the program to its end, without any network: its exit code and last words."""
        candidate: Path = self._place.candidate
        made = await self._request(args, (str(candidate),), "none", lambda ids: self._place.lend((candidate,), ids))
        out, err = LastOutput(OUTPUT_BYTES), LastOutput(OUTPUT_BYTES)
        ended: Exit | None = None
        try:
            child = await self._house.tools.spawner.spawn(
                made.request, made.chosen, on_exit=lambda _: None, stdout=out, stderr=err, lent=made.lent
            )
        finally:
            made.close()
        try:
            child.stdin.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(VALIDATE_S):
                    ended = await child.gone()
        finally:
            await waiting.uncancelled(child.stop(0))
        return (ended.status if ended else None), last_words(err.data() or out.data())

    # How it is.

    async def _look_after(self) -> None:
        """Ask it how it is, often until it is connected; end it when its rules come from elsewhere."""
        while True:
            self.connected = self.life.state == "running" and await self._is_connected(self._port)
            await asyncio.sleep(self._house.settings().check_s if self.connected else POLL_S)

    async def _is_connected(self, port: int) -> bool:
        if not await ready.is_ready(port):
            return False
        if await ready.is_managed_elsewhere(port):
            await self.life.give_up("remotely_managed", "its rules come from the provider, not from here")
            log.error("tunnel_remotely_managed", plugin_id=self.plugin_id, name=self.name)
        return self._port == port and self.life.state == "running"
