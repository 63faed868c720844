"""The process runner: a system plugin's artifact as a confined child, under either protocol of contracts §10."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from latticed.model import accepted
from latticed.runners import child_spawner, one_shot, stdio_child
from latticed.sandbox import artifact, levels, namespaces
from latticed.sandbox.spec import ChildRequest

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from latticed.broker.gate import Gate
    from latticed.bundle.read import BundleDirectory
    from latticed.processes.child import Child
    from latticed.processes.exits import Exit
    from latticed.runners.child_spawner import ChildSpawner
    from latticed.runners.contract import Instance, PluginToRun
    from latticed.runners.kept_copies import KeptCopies
    from latticed.runners.output import Outputs
    from latticed.sandbox.artifact import Artifact
    from latticed.sandbox.levels import Chosen

PYTHON: Final = "python3"
_V1_NEEDS: Final = frozenset({levels.THREADS})
_V1_OPTIONAL: Final = frozenset({levels.PROCESSES})
"""A v1 manifest cannot ask for features: its program gets threads, and processes where all of them can be ended."""


class ProcessRunner:
    """Runs programs and scripts; see `runners.contract.Runner`. Which protocol they speak is the manifest's."""

    name = "process"
    hashes_artifact = True

    def __init__(
        self,
        spawner: ChildSpawner,
        outputs: Outputs,
        copies: KeptCopies,
        permits: Callable[[str], tuple[str, ...]] = lambda _: (),
    ) -> None:
        """`permits(id)` returns what the operator granted to the plugin beyond its capabilities."""
        self._spawner = spawner
        self._outputs = outputs
        self._copies = copies
        self._permits = permits

    async def admit(self, plugin: PluginToRun, pair: BundleDirectory) -> None:
        """Problem("sandbox_unavailable") when this host does not give the level or a feature. The artifact is not
        looked at.
        """
        del pair
        self._choose(plugin)

    async def start(
        self, plugin: PluginToRun, pair: BundleDirectory, gate: Gate, on_exit: Callable[[str, str], None]
    ) -> Instance:
        """See `Runner.start`. Problem also with the codes of `sandbox.artifact`: `seal`, `program`."""
        chosen = self._choose(plugin)
        copy = await self._copies.sealed(plugin.identity, pair, sha256=plugin.manifest.digest_sha256.lower())
        program = artifact.program(copy, self._spawner.interpreters)
        try:
            # A long-lived child takes a copy of the descriptor; one_shot starts the program again and again.
            if accepted.protocol_of(plugin.manifest) == stdio_child.PROTOCOL:
                return await self._start_stdio_child(plugin, gate, program, chosen, on_exit)
            instance = await self._start_one_shot(plugin, gate, program, chosen)
        except BaseException:
            program.let_go()
            raise
        return instance

    def _choose(self, plugin: PluginToRun) -> Chosen:
        """Level and features for `plugin`; Problem as `ChildSpawner.choose`."""
        permits = self._permits(plugin.id)
        if plugin.manifest.is_v2:
            return self._spawner.choose(plugin.manifest, permits=permits)
        optional = _V1_OPTIONAL - plugin.withheld  # less what the operator has taken away
        return self._spawner.choose(plugin.manifest, needs=_V1_NEEDS, optional=optional, permits=permits)

    async def _start_stdio_child(
        self, plugin: PluginToRun, gate: Gate, program: Artifact, chosen: Chosen, on_exit: Callable[[str, str], None]
    ) -> Instance:
        """Start the child of a latticed-stdio-1 plugin. It keeps running, so `program` is closed."""
        request = self._request(plugin, program, chosen)

        async def spawn(stdout: asyncio.Protocol, stderr: asyncio.Protocol, ended: Callable[[Exit], None]) -> Child:
            return await self._spawner.spawn(request, chosen, on_exit=ended, stdout=stdout, stderr=stderr)

        spec = stdio_child.StdioChildSpec(
            plugin=plugin,
            gate=gate,
            invoking=self._spawner.invoking(plugin.manifest),
            stderr=self._outputs.stderr(plugin.id),
            sandbox=child_spawner.reached(chosen, self._spawner.probed),
            cpu_percent=self._spawner.cpu_to_watch(request.limits),
        )
        instance = await stdio_child.begin(spec, spawn, on_exit)
        program.let_go()  # the child has its own copy of the descriptor
        return instance

    async def _start_one_shot(self, plugin: PluginToRun, gate: Gate, program: Artifact, chosen: Chosen) -> Instance:
        """An instance of a stdio-json-v1 plugin, after its `describe` call; it keeps `program` for its invocations."""
        request = self._request(plugin, program, chosen, one_shot.RESPONSE_FD, **one_shot.ENVIRONMENT)

        async def spawn(stdout: asyncio.Protocol, stderr: asyncio.Protocol, ended: Callable[[Exit], None]) -> Child:
            return await self._spawner.spawn(request, chosen, on_exit=ended, stdout=stdout, stderr=stderr)

        spec = one_shot.OneShotSpec(
            plugin_id=plugin.id,
            gate=gate,
            invoking=self._spawner.invoking(plugin.manifest),
            outputs=self._outputs,
            sandbox=child_spawner.reached(chosen, self._spawner.probed),
            cpu_percent=self._spawner.cpu_to_watch(request.limits),
            spawn=spawn,
            program=program,
        )
        instance = one_shot.OneShot(spec)
        try:
            await instance.describe()
        except BaseException:
            await instance.halt()  # not `stop`, which would close the program that `start` closes
            raise
        return instance

    def _request(
        self, plugin: PluginToRun, program: Artifact, chosen: Chosen, *descriptors: int, **environment: str
    ) -> ChildRequest:
        """What to run: `descriptors` are further ones of the child, `environment` further variables."""
        # Elsewhere there is no directory that it may write to.
        if levels.WORKDIR in chosen.features:
            environment["TMPDIR"] = namespaces.SCRATCH
        request = ChildRequest(
            program=program,
            args=plugin.manifest.runtime.args,
            environment={"PATH": child_spawner.PATH, **environment},
            limits=self._spawner.limits(plugin.manifest),
            descriptors=descriptors,
            owner=plugin.id,
        )
        return child_spawner.for_python(request) if program.interpreter == PYTHON else request
