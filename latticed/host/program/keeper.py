"""The services of all plugins: on record, running while their owner may have them, ended at once when it may not."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import msgspec

from latticed.host import confinement as confining
from latticed.host.permissions import PermissionRefused
from latticed.host.program import spec as specs
from latticed.host.program.rules import RestartRules
from latticed.host.program.supervised import ProgramDeps, Ready, SupervisedProgram
from latticed.kit import logs
from latticed.ledger import programs as rows
from latticed.ledger.quota import RowQuota
from latticed.model.errors import Problem
from latticed.sandbox import rlimits
from latticed.sandbox.spec import ChildRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from latticed.host.confinement import Spawner
    from latticed.host.program.spec import ProgramSpec
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger
    from latticed.model.restart import RestartPolicy
    from latticed.settings.programs import ServiceSettings as Settings

T = TypeVar("T")

LOOK_S: Final = 0.5
"""At least so often somebody looks whether what runs still may."""
_MIB: Final = 1 << 20
log = logs.get_logger()


@dataclass(slots=True, kw_only=True, eq=False)
class KeptProgram:
    """One service."""

    plugin_id: str
    name: str
    spec: ProgramSpec
    life: SupervisedProgram


class ProgramKeeper:
    """An async context manager: entered, every service on record runs as soon as its owner may have it.

    `refusal(plugin_id)`: why it may not have services run now, or None. `variables(plugin_id)`: the names that their
    environment may have.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Clock,
        spawner: Spawner,
        settings: Callable[[], Settings],
        refusal: Callable[[str], PermissionRefused | None],
        policy: Callable[[], RestartPolicy],
        variables: Callable[[str], frozenset[str]] = lambda _: frozenset(),
        roll: Callable[[], float] = random.random,
    ) -> None:
        self._ledger = ledger
        self._tools = ProgramDeps(spawner=spawner, clock=clock, roll=roll)
        self._settings = settings
        self._refusal = refusal
        self._policy = policy
        self._variables = variables
        self._kept: dict[tuple[str, str], KeptProgram] = {}
        self._changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)  # by plugin
        self._changes: set[asyncio.Task[Any]] = set()
        self._wanted = asyncio.Event()
        self._server: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        for row in await self._ledger.read_slow(lambda db: rows.load_all(db, "service")):
            try:
                spec = specs.decode(row.spec)
            except msgspec.MsgspecError as error:  # written by another version; it is kept, and put anew by its owner
                log.error("service_unreadable", plugin_id=row.plugin_id, name=row.name, reason=str(error))
                continue
            self._keep(row.plugin_id, row.name, spec)
        self._server = asyncio.create_task(self._serve(), name="services")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._server is not None:
            self._server.cancel()
            await asyncio.gather(self._server, return_exceptions=True)
        await asyncio.gather(*self._changes, return_exceptions=True)
        await asyncio.gather(*(one.life.end() for one in self._kept.values()))
        self._kept.clear()

    def recheck(self, plugin_id: str) -> None:
        """Have what may run of one plugin run; what may not is being ended when this returns, and killed if it must."""
        self._recheck(self.of(plugin_id))

    def visited(self, plugin_id: str) -> None:
        """A visitor is connected to a service of this plugin; which of its programs that is, nobody knows."""
        for one in self.of(plugin_id):
            one.life.visit()

    async def drained(self, plugin_id: str) -> None:
        """Return once nothing of one plugin runs that may not."""
        await asyncio.gather(*(one.life.end() for one in self.of(plugin_id) if self._why_not(one) is not None))

    # What plugins change. A caller that is cancelled leaves no half of a change behind.

    async def put(self, plugin_id: str, name: str, spec: ProgramSpec) -> KeptProgram:
        """Keep `spec` running, in place of what had that name. Problems: quota_exceeded, ledger_unavailable.

        To put the same again changes nothing, unless it has failed or ended: then it is started afresh.
        """
        return await self._whole(self._put(plugin_id, name, spec))

    async def delete(self, plugin_id: str, name: str) -> bool:
        """End it and forget it; False when there was none."""
        return await self._whole(self._delete(plugin_id, name))

    async def forget(self, plugin_id: str) -> int:
        """Delete all of one plugin; how many there were."""
        return await self._whole(self._forget(plugin_id))

    def every(self) -> list[KeptProgram]:
        """All, of every plugin."""
        return list(self._kept.values())

    def of(self, plugin_id: str) -> list[KeptProgram]:
        """Those of one plugin, by name."""
        return [self._kept[key] for key in sorted(key for key in self._kept if key[0] == plugin_id)]

    async def _put(self, plugin_id: str, name: str, spec: ProgramSpec) -> KeptProgram:
        async with self._changing[plugin_id]:
            before = self._kept.get((plugin_id, name))
            if before is not None and before.spec == spec and before.life.state not in {"ended", "failed"}:
                return before
            settings, now_us, text = self._settings(), self._tools.clock.wall_us(), specs.encode(spec)
            quota = RowQuota(plugin=settings.plugin_services, total=settings.total_services)
            await self._ledger.write(
                lambda tx: rows.put(tx, plugin_id, "service", name, text, quota, now_us=now_us), durable=True
            )
            if before is not None:
                await before.life.end()
            made = self._keep(plugin_id, name, spec)
            if self._why_not(made) is None:
                made.life.begin()
            return made

    async def _delete(self, plugin_id: str, name: str) -> bool:
        async with self._changing[plugin_id]:
            existed = await self._ledger.write(lambda tx: rows.delete(tx, plugin_id, "service", name), durable=True)
            if (found := self._kept.pop((plugin_id, name), None)) is not None:
                await found.life.end()
            return existed

    async def _forget(self, plugin_id: str) -> int:
        async with self._changing[plugin_id]:
            mine = [self._kept.pop((plugin_id, one.name)) for one in self.of(plugin_id)]
            await asyncio.gather(*(one.life.end() for one in mine))
            return await self._ledger.write(lambda tx: rows.clear(tx, plugin_id, "service"), durable=True)

    async def _whole(self, change: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        task.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())  # heard, whoever waits
        return await asyncio.shield(task)

    # Running.

    async def _serve(self) -> None:
        while True:
            self._wanted.clear()
            try:
                self._recheck(self._kept.values())
            except Exception:
                log.error("services_failed", exc_info=True)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._wanted.wait()

    def _why_not(self, one: KeptProgram) -> PermissionRefused | None:
        """Why it may not run now, or None."""
        if (refusal := self._refusal(one.plugin_id)) is not None:
            return refusal
        taken = one.spec.environment.keys() - self._variables(one.plugin_id)
        return PermissionRefused(code="env_not_granted", reason=f"{min(taken)} is not granted") if taken else None

    def _recheck(self, kept: Iterable[KeptProgram]) -> None:
        """Begin what may run, end what may not."""
        for one in kept:
            refusal = self._why_not(one)
            if refusal is None:
                one.life.begin()
                continue
            if refusal.distrusted:
                one.life.kill()
            if one.life.begun and not one.life.ending:
                log.info("service_stopped", plugin_id=one.plugin_id, name=one.name, code=refusal.code)
                one.life.ending = True
                ending = asyncio.create_task(one.life.end())  # one that takes its time holds up no other
                self._changes.add(ending)
                ending.add_done_callback(self._changes.discard)
                ending.add_done_callback(lambda _: self._wanted.set())  # it may run again by now

    def _keep(self, plugin_id: str, name: str, spec: ProgramSpec) -> KeptProgram:
        settings = self._settings()
        life = SupervisedProgram(
            f"{plugin_id}/{name}",
            self._tools,
            lambda: self._ready(spec),
            RestartRules(restart=spec.restart, policy=self._policy()),
            output_bytes=settings.output_bytes,
        )
        made = self._kept[plugin_id, name] = KeptProgram(plugin_id=plugin_id, name=name, spec=spec, life=life)
        return made

    async def _ready(self, spec: ProgramSpec) -> Ready:
        """What to start, as the operator's list is now."""
        settings, spawner = self._settings(), self._tools.spawner
        path = settings.programs.get(spec.program)
        if path is None:
            raise Problem("program_unusable", f"the operator's list has no program {spec.program} any more")
        if spec.network == "host" and spec.program not in settings.host_network:
            raise Problem(
                "egress_blocked", f"the operator does not let {spec.program} have the host's network any more"
            )
        chosen = confining.choose(spawner, network=spec.network != "none")
        program = await confining.program(path, spawner.interpreters)
        request = ChildRequest(
            program=program,
            args=spec.args,
            environment=confining.environment(chosen, spec.environment),
            limits=rlimits.ResourceLimits(
                memory_bytes=settings.memory_mib * _MIB, tasks=settings.processes, open_files=settings.open_files
            ),
            binds=tuple(filter(None, [settings.reads.get(spec.program)])),
            network=spec.network,
        )
        return Ready(request=request, chosen=chosen, close=lambda: confining.close(program))
