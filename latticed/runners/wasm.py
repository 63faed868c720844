"""The wasm runner: a module in wasmtime, in a confined child of its own (contracts §3; docs/write/wasm.md)."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latticed.kit.value import Value, field
from latticed.model.errors import Problem
from latticed.runners import child_spawner, stdio_child, wasm_children
from latticed.runners.wasm_cache import Cache
from latticed.runners.wasm_children import INPUT, STATUS, LastWord, Package
from latticed.runners.wasm_compiler import Bounds, Compiler, Module

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from pathlib import Path

    from latticed.broker.gate import Gate
    from latticed.bundle.read import BundleDirectory
    from latticed.model.manifest import Manifest
    from latticed.processes.child import Child
    from latticed.processes.exits import Exit
    from latticed.runners.child_spawner import ChildSpawner
    from latticed.runners.contract import Instance, PluginToRun
    from latticed.runners.kept_copies import KeptCopies
    from latticed.runners.output import Outputs
    from latticed.sandbox.levels import Chosen
    from latticed.sandbox.rlimits import ResourceLimits

OVERHEAD_BYTES: Final = 64 << 20
"""Memory that Python and wasmtime need in the child, besides the module's memory and compiled code."""
_CODE_COPIES: Final = 3  # of the compiled code, which Python reads and wasmtime loads (docs/write/wasm.md)
_TASKS: Final = 4  # two threads are used, see wasm_children.NEEDS
_OPEN_FILES: Final = 32


class Caps(Value, frozen=True, kw_only=True):
    """Limits that no manifest sets. `start_s`: how long, in seconds, a module may compute before it first waits for
    input; `table_elements`: of each of its tables; `cache_bytes`: of all compiled code on disk.
    """

    compile: Bounds = field(default_factory=Bounds)
    cache_bytes: int = 256 << 20
    start_s: float = 5.0
    table_elements: int = 100_000


class WasmRunner:
    """Runs modules; see `runners.contract.Runner`. Keeps compiled code below `state_dir`/cache/wasm, and the key for it
    in `state_dir`/wasm-cache.key.
    """

    name = "wasm"
    hashes_artifact = True

    def __init__(
        self,
        spawner: ChildSpawner,
        outputs: Outputs,
        copies: KeptCopies,
        state_dir: Path,
        *,
        caps: Caps | None = None,
    ) -> None:
        self._spawner = spawner
        self._copies = copies
        self._outputs = outputs
        self._caps = caps or Caps()
        places = (state_dir / "cache" / "wasm", state_dir / "wasm-cache.key")
        self._compiler = Compiler(spawner, Cache(*places, most_bytes=self._caps.cache_bytes), self._caps.compile)

    async def admit(self, plugin: PluginToRun, pair: BundleDirectory) -> None:
        """Problem("sandbox_unavailable") without wasmtime or the level it needs, ("protocol_unsupported") for another
        protocol.

        The module itself is judged at the start, by the compiler.
        """
        del pair
        Package.find()
        self._choose(plugin.manifest)

    async def start(
        self, plugin: PluginToRun, pair: BundleDirectory, gate: Gate, on_exit: Callable[[str, str], None]
    ) -> Instance:
        """See `Runner.start`. Problem also with codes of docs/write/wasm.md, such as `wasm_invalid`."""
        chosen, package = self._choose(plugin.manifest), Package.find()
        sha256 = plugin.manifest.digest_sha256.lower()
        # Sealed and hashed before anything reads it; the compiler gets this copy.
        copy = await self._copies.sealed(plugin.identity, pair, sha256=sha256)
        try:
            fuel = plugin.manifest.runtime.limits.fuel is not None
            module = Module(fd=copy.fd, sha256=sha256, fuel=fuel, owner=plugin.id)
            code = await self._compiler.code(module, package, chosen, self._outputs.stderr(plugin.id))
            try:
                return await self._begin(plugin, gate, _Code(fd=code, package=package), chosen, on_exit)
            except Problem as problem:
                # Kept by this daemon, and for another engine all the same: else it would fail each start.
                if problem.code != "wasm_code":
                    raise
            finally:
                os.close(code)  # the child has its own copy
            code = await self._compiler.anew(module, package, chosen, self._outputs.stderr(plugin.id))
        finally:
            copy.let_go()  # the module itself: only the compiled code is run
        try:
            return await self._begin(plugin, gate, _Code(fd=code, package=package), chosen, on_exit)
        finally:
            os.close(code)

    def _choose(self, manifest: Manifest) -> Chosen:
        """Level and features for the children of a plugin; Problem protocol_unsupported, sandbox_unavailable."""
        protocol = manifest.runtime.protocol
        if protocol not in {None, stdio_child.PROTOCOL}:
            hint = "leave runtime.protocol out: a wasm plugin is long-lived"
            raise Problem("protocol_unsupported", f"expected {stdio_child.PROTOCOL}, found {protocol}", hint)
        return self._spawner.choose(manifest, needs=wasm_children.NEEDS)

    async def _begin(
        self, plugin: PluginToRun, gate: Gate, code: _Code, chosen: Chosen, on_exit: Callable[[str, str], None]
    ) -> Instance:
        """Start the child that runs the compiled code, and return its instance once it has answered `initialize`.

        Problem as `stdio_child.begin`; no process is left then. `code` stays open, the caller closes it.
        """
        last_word = LastWord()
        invoking = self._spawner.invoking(plugin.manifest)
        limits = self._spawner.limits(plugin.manifest)
        orders = {
            "fuel": plugin.manifest.runtime.limits.fuel or 0,
            # Never more than for a message: the child's watchdog relies on deadlines that only move later.
            "start_s": min(self._caps.start_s, invoking.timeout_s),
            "message_s": invoking.timeout_s,
            "memory_bytes": limits.memory_bytes,
            "table_elements": self._caps.table_elements,
            "arguments": [plugin.id, *plugin.manifest.runtime.args],
        }
        request = wasm_children.request(
            "run",
            orders,
            package=code.package,
            limits=_limits(limits, os.fstat(code.fd).st_size),
            given={INPUT: code.fd, STATUS: last_word.give},
            owner=plugin.id,
        )

        async def spawn(stdout: asyncio.Protocol, stderr: asyncio.Protocol, ended: Callable[[Exit], None]) -> Child:
            try:
                child = await self._spawner.spawn(request, chosen, on_exit=ended, stdout=stdout, stderr=stderr)
            except BaseException:
                last_word.take()
                raise
            finally:
                last_word.given()  # while we hold the child's end, the pipe has no end of file
            child.when_gone(last_word.take)
            return child

        spec = stdio_child.StdioChildSpec(
            plugin=plugin,
            gate=gate,
            invoking=invoking,
            stderr=self._outputs.stderr(plugin.id),
            sandbox=child_spawner.reached(chosen, self._spawner.probed),
            cpu_percent=self._spawner.cpu_to_watch(limits),
            computes_s=invoking.timeout_s,
            explain=last_word.explain,
        )
        return await stdio_child.begin(spec, spawn, on_exit)


class _Code(Value, frozen=True, kw_only=True):
    """Compiled code at the descriptor `fd`, and the wasmtime that it was compiled with."""

    fd: int
    package: Package


def _limits(limits: ResourceLimits, code_bytes: int) -> ResourceLimits:
    """The child's limits: the manifest's memory for the module, plus what Python and wasmtime need."""
    memory = limits.memory_bytes + OVERHEAD_BYTES + _CODE_COPIES * code_bytes
    return replace(limits, memory_bytes=memory, tasks=_TASKS, open_files=_OPEN_FILES)
