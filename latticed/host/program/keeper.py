"""Programs that plugins keep running (`service.*`): stored in the ledger, running while their owner may act."""

from __future__ import annotations

import asyncio
import functools
import os
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from latticed.host import confinement
from latticed.host.permissions import PermissionRefused
from latticed.host.program import hosts as reachable
from latticed.host.program import saved, surroundings
from latticed.host.program import spec as specs
from latticed.host.program.data import UNSIGNED
from latticed.host.program.data_tree import DataUse
from latticed.host.program.door import Door
from latticed.host.program.rules import RestartRules
from latticed.host.program.supervised import ProgramDeps, Ready, SupervisedProgram
from latticed.host.program.supervised_keeper import SupervisedKeeper
from latticed.host.program.way_out import WayOut
from latticed.kit import descriptors
from latticed.kit.value import Value
from latticed.ledger import programs as rows
from latticed.ledger.quota import RowQuota
from latticed.model.errors import Problem
from latticed.sandbox import rlimits
from latticed.sandbox.spec import ChildRequest

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from latticed.host.confinement import Spawner
    from latticed.host.program.data import KeptDirectory, ServiceData
    from latticed.host.program.saved import Copy
    from latticed.host.program.spec import ProgramSpec
    from latticed.host.program.way_out import WayOutDeps
    from latticed.kit.clock import Clock
    from latticed.ledger import Ledger
    from latticed.model.addresses import Address
    from latticed.model.egress import EgressRights
    from latticed.model.restart import RestartPolicy
    from latticed.settings.programs import ServiceSettings as Settings

Done = TypeVar("Done")
_MIB: Final = 1 << 20
_NAMED: Final = 8
"""Most services that the message of a refusal names."""
_PART_FOR_HOSTS: Final = 8  # of the daemon's descriptors an eighth at most listens for hosts of services


@dataclass(slots=True, kw_only=True, eq=False)
class KeptProgram:
    """One program of a plugin: what is stored of it, and what runs for it."""

    plugin_id: str
    name: str
    spec: ProgramSpec
    program: SupervisedProgram
    reverting: bool = False
    """While its files are exchanged nothing may run."""
    kept: KeptDirectory | None = None
    """Its directory, from its first start on, if it has one."""
    door: Door | None = None
    """The way into its own network, from its first start on, if it has one; lost while it does not run."""
    way_out: WayOut | None = None
    """The way out of it, if it has one."""

    def start(self) -> None:
        """Have it run; no effect while it is started."""
        self.program.start()

    def kill(self) -> None:
        """Kill its processes without a grace period; `stop` must follow."""
        self.program.kill()

    async def stop(self) -> None:
        """Stop it; none of its processes is left when this returns."""
        await self.program.stop()


class ProgramRights(Value, frozen=True, kw_only=True):
    """What a plugin may have its programs do, by its id, asked each time.

    `refusal`: why it may have none run, or None; `variables`: the names that their environment may set; `publisher`:
    whose plugin it is, empty when it is unsigned; `way_out`: how they connect to others, None where they cannot.
    """

    refusal: Callable[[str], PermissionRefused | None]
    variables: Callable[[str], frozenset[str]] = lambda _: frozenset()
    publisher: Callable[[str], str] = lambda _: ""
    way_out: WayOutDeps | None = None

    def egress(self, plugin_id: str) -> EgressRights | None:
        """Where its programs may connect to from networks of their own; None while they may not."""
        return self.way_out.rights(plugin_id) if self.way_out is not None else None


class ProgramKeeper(SupervisedKeeper[KeptProgram]):
    """An async context manager: entered, every stored program runs while its owner may act; left, none does.

    `data`: what services keep. `policy`: backoff and breaker. `settings` are read at each use, so a reload may replace
    them. `roll` gives a random number in [0, 1).
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        clock: Clock,
        spawner: Spawner,
        settings: Settings,
        rights: ProgramRights,
        policy: RestartPolicy,
        data: ServiceData,
        roll: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(ledger, "service", refusal=rights.refusal)
        self._deps = ProgramDeps(spawner=spawner, clock=clock, roll=roll)
        self.settings = settings
        self.policy = policy
        self.data = data
        self.rights = rights

    async def _load(self) -> None:
        for row in await self._ledger.read_slow(lambda db: rows.load_all(db, "service")):
            if (spec := self._decoded(row, specs.decode)) is not None:
                self._keep(row.plugin_id, row.name, spec)

    def visited(self, plugin_id: str) -> None:
        """Note that a visitor has connected to an upstream of this plugin. Which program it reached is unknown, so all
        of them are marked (`SupervisedProgram.note_visitor`).
        """
        for one in self.of(plugin_id):
            one.program.note_visitor()

    async def remove_data(self, plugin_id: str, name: str) -> bool:
        """Remove what a service without a row has kept; False when there is nothing. Problem service_unavailable, also
        while there is such a service again.
        """

        async def removed() -> bool:
            if self.get(plugin_id, name) is not None:
                raise Problem("service_unavailable", f"the service {name} was put again meanwhile")
            return await self.data.remove(self._owner(plugin_id), name)

        return await self._change(plugin_id, removed)

    async def save(
        self, plugin_id: str, name: str, files: tuple[str, ...], *, keep: int, spare: str
    ) -> tuple[Copy, bool]:
        """As `saved.save`, of a service of the plugin. Problem not_found, not_saved, disk_full, service_unavailable."""
        service, now_us = self._service(plugin_id, name), self._deps.clock.wall_us()
        # What a service may keep bounds what is kept of it once more.
        most_bytes = self.settings.data_bytes
        save = functools.partial(saved.save, keep=keep, most_bytes=most_bytes, now_us=now_us, spare=spare)
        return await self._change(plugin_id, lambda: _on_disk(save, service, files))

    async def saved(self, plugin_id: str, name: str) -> list[Copy]:
        """The copies of one of the plugin's services, newest first. Problem service_unavailable."""
        return await _on_disk(saved.copies, self._service(plugin_id, name))

    async def revert(self, plugin_id: str, name: str, copy_id: str) -> None:
        """Have a service keep exactly what is in a copy: it is stopped, its directory is exchanged, and it is started
        again, also when that failed. Problem not_found, not_saved, service_unavailable: then it keeps what it had.
        """
        await self._change(plugin_id, lambda: self._revert(plugin_id, name, copy_id))

    async def _revert(self, plugin_id: str, name: str, copy_id: str) -> None:
        """As `revert`, after earlier changes of this plugin."""
        one, service = self.get(plugin_id, name), self._service(plugin_id, name)
        if one is None:
            raise Problem("not_found", "there is no such service")
        prepared = await _on_disk(saved.prepare, service, copy_id)
        # Else a recheck would start it again while nothing may run.
        one.reverting = True
        try:
            await one.stop()
            await _on_disk(saved.exchange, service, prepared)
        finally:
            one.reverting = False
            self._start_permitted(one)
        await _on_disk(saved.clear, service)

    async def put(self, plugin_id: str, name: str, spec: ProgramSpec) -> KeptProgram:
        """Keep `spec` running, in place of the plugin's program of that name. Returns the program once it is on disk;
        it is started afterwards.

        Putting an equal spec changes nothing, unless the program has failed or ended: then it is started again, with a
        closed breaker. Problems quota_exceeded, ledger_unavailable: then what had that name keeps running. What deleted
        services have kept counts for the quota.
        """
        return await self._change(plugin_id, lambda: self._put(plugin_id, name, spec))

    async def _put(self, plugin_id: str, name: str, spec: ProgramSpec) -> KeptProgram:
        """As `put`, after earlier changes of this plugin."""
        before = self.get(plugin_id, name)
        # A plugin may put its services each time it starts; that must not restart what runs.
        if before is not None and before.spec == spec and before.program.state not in {"ended", "failed"}:
            return before
        if spec.data is not None:
            await self._check_kept(plugin_id, name)
        settings, now_us, text = self.settings, self._deps.clock.wall_us(), specs.encode(spec)
        quota = RowQuota(plugin=settings.plugin_services, total=settings.total_services)
        # The row first: when it cannot be written (quota, disk), the previous program keeps running.
        await self._ledger.write(
            lambda tx: rows.put(tx, plugin_id, "service", name, text, quota, now_us=now_us), durable=True
        )
        # Stopped before the new one is started: both may need the same port or file.
        if before is not None:
            await before.stop()
        made = self._keep(plugin_id, name, spec)
        self._start_permitted(made)
        return made

    async def _check_kept(self, plugin_id: str, name: str) -> None:
        """Problem quota_exceeded when a service of this name would be one too many that keep something: else a plugin
        could fill the disk by deleting services and putting others, each with a quota of its own.
        """
        mine, most = self.of(plugin_id), self.settings.plugin_services
        left = await self.data.kept(self._owner(plugin_id))
        # Those that were not started yet have no directory.
        keeping = left | {one.name for one in mine if one.spec.data is not None}
        if name in keeping or len(keeping) < most:
            return
        deleted = ", ".join(sorted(left - {one.name for one in mine})[:_NAMED]) or "none"
        expected = f"expected at most {most} services of {plugin_id} with data, found {len(keeping) + 1}"
        hint = "service.delete with data removes what a service has kept"
        raise Problem("quota_exceeded", f"{expected}, of them deleted without their data: {deleted}", hint)

    def _keep(self, plugin_id: str, name: str, spec: ProgramSpec) -> KeptProgram:
        """Hold a new program in memory, not started, in place of the one of that name."""
        program = SupervisedProgram(
            f"{plugin_id}/{name}",
            self._deps,
            lambda: self._ready(made),
            RestartRules(restart=spec.restart, policy=self.policy),
            output_bytes=self.settings.output_bytes,
        )
        made = KeptProgram(plugin_id=plugin_id, name=name, spec=spec, program=program)
        self._kept[plugin_id, name] = made
        return made

    def _why_not(self, one: KeptProgram) -> PermissionRefused | None:
        """Why it may not run now, or None: its owner's refusal, or what the operator has taken from settings or grants
        since `put`.
        """
        if (refusal := self._refusal(one.plugin_id)) is not None:
            return refusal
        if one.reverting:
            return PermissionRefused("reverting", "its files are being exchanged")
        if (reason := specs.not_allowed(one.spec.program, one.spec.network, self.settings)) is not None:
            return PermissionRefused("program_not_allowed", reason)
        # Asked again after `put`: the operator may have withdrawn a variable since.
        missing = one.spec.environment.keys() - self.rights.variables(one.plugin_id)
        return PermissionRefused("env_not_granted", f"{min(missing)} is not granted") if missing else None

    async def _ready(self, one: KeptProgram) -> Ready:
        """What to start, by the operator's list of programs at this moment. Called before each start.

        Problem program_unusable, or as `confinement.choose`, `confinement.program` and `ServiceData.made`: counts as a
        failed start.
        """
        settings, spawner, spec = self.settings, self._deps.spawner, one.spec
        # Judged by `_why_not` before; but the settings may have changed in the same moment.
        if (reason := specs.not_allowed(spec.program, spec.network, settings)) is not None:
            raise Problem("program_unusable", reason)
        path, proxy = settings.programs[spec.program], reachable.environment() if spec.hosts else {}
        chosen = confinement.choose(spawner, network=spec.network != "none")
        one.kept = await self._made_directory(one)
        way_out = self._way_out(one)
        # Last, as it opens a descriptor that only `Ready.close` closes.
        program = await confinement.program(path, spawner.interpreters)
        request = ChildRequest(
            program=program,
            args=spec.args,
            environment=confinement.environment(chosen, {**proxy, **spec.environment}),
            limits=rlimits.ResourceLimits(
                memory_bytes=settings.memory_mib * _MIB, tasks=settings.processes, open_files=settings.open_files
            ),
            # What the operator lets this program read besides the system's files; often nothing.
            binds=tuple(filter(None, [settings.reads.get(spec.program)])),
            network=spec.network,
            owner=one.plugin_id,
        )
        # No await from here on: a door that is made is closed by `Ready.close`, or by the end of the child.
        one.way_out = way_out
        one.door = Door() if spec.network == "own" else None
        ready = Ready(request=request, chosen=chosen, close=lambda: confinement.close(program))
        return surroundings.added(ready, kept=one.kept, door=one.door, way_out=one.way_out)

    async def _made_directory(self, one: KeptProgram) -> KeptDirectory | None:
        """The directory of a program that is about to start, if it has one; Problem as `ServiceData.made`."""
        if (quota := one.spec.data) is None:
            return None
        settings = self.settings
        # The operator's bounds of now: those at `put` may have been higher.
        most = DataUse(bytes=min(quota.bytes, settings.data_bytes), files=min(quota.files, settings.data_files))
        return await self.data.made(self._owner(one.plugin_id), one.name, most)

    def _service(self, plugin_id: str, name: str) -> Path:
        """Where a service has its directory, and the copies of what is in it."""
        return self.data.place(self._owner(plugin_id), name).parent

    def _way_out(self, one: KeptProgram) -> WayOut | None:
        """The way out of a program that is about to start, if it has one. Problem service_unavailable when the programs
        that run listen for as many hosts as the daemon has descriptors for.
        """
        if not one.spec.hosts or self.rights.way_out is None:
            return None
        made = WayOut(
            one.plugin_id, one.name, one.spec.hosts, self.rights.way_out, may=lambda: self._why_not(one) is None
        )
        running = (other.way_out for other in self.every() if other is not one and other.program.started)
        taken = sum(len(other.layout.listen) for other in running if other is not None)
        if taken + len(made.layout.listen) > descriptors.limit() // _PART_FOR_HOSTS:
            raise Problem("service_unavailable", f"expected room for its hosts, found {taken} of other services")
        return made

    def _recheck(self, items: Iterable[KeptProgram]) -> None:
        """As in the base class; and cut what a program may no longer be connected to, also while it is stopped."""
        items = list(items)
        super()._recheck(items)
        for one in items:
            if one.way_out is not None:
                one.way_out.cut()

    def has_network(self, plugin_id: str, name: str) -> bool:
        """Whether a plugin keeps a program of this name in a network of its own, and may have programs run."""
        one = self.get(plugin_id, name)
        return one is not None and one.spec.network == "own" and self._refusal(plugin_id) is None

    async def inside(self, plugin_id: str, name: str, address: Address) -> socket.socket:
        """A socket in the own network of a plugin's program, for a connection to this address there; the caller closes
        it. Problem service_unavailable when there is no such network now, door_lost, busy.
        """
        one = self.get(plugin_id, name)
        if one is None or one.door is None or one.program.state != "running" or self._why_not(one) is not None:
            raise Problem("service_unavailable", f"the service {name} does not run in a network of its own")
        return await one.door.make(address)

    def _owner(self, plugin_id: str) -> str:
        """The owner of what a plugin's services keep, see `ServiceData`."""
        return f"{self.rights.publisher(plugin_id) or UNSIGNED}/{plugin_id}"


async def _on_disk(work: Callable[..., Done], *args: Any, **named: Any) -> Done:
    """What `work` returns, on a thread; Problem service_unavailable for a disk that fails, without a path."""
    try:
        return await asyncio.to_thread(work, *args, **named)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "the disk refused"
        raise Problem("service_unavailable", f"what the service keeps cannot be reached: {reason}") from error
