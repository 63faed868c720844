"""From a module to loadable code: from the cache, or by a child that compiles it and never runs it.

Compiling a module of some kilobytes can take gigabytes and minutes. So each compilation has a child, a memory limit
and a time limit of its own, and only a few run at a time.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

from latticed.kit import files, logs
from latticed.kit.tasks import in_thread
from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.runners import wasm_children
from latticed.runners.wasm_cache import Cache, Subject
from latticed.runners.wasm_children import INPUT, STATUS, LastWord
from latticed.sandbox import artifact
from latticed.sandbox.rlimits import ResourceLimits

if TYPE_CHECKING:
    from latticed.processes.child import Child
    from latticed.processes.exits import Exit
    from latticed.runners.child_spawner import ChildSpawner
    from latticed.runners.output import Stderr
    from latticed.runners.wasm_children import Package
    from latticed.sandbox.levels import Chosen

AT_ONCE: Final = 2
"""How many modules are compiled at the same time: each may take a core and `Bounds.memory_bytes`."""
_RUST_OUT_OF_MEMORY: Final = "memory allocation of"  # "… N bytes failed", what Rust prints before it aborts

log = logs.get_logger()


class Bounds(Value, frozen=True, kw_only=True):
    """Limits on compiling one module: memory of the compiler, time in seconds, size of the compiled code."""

    memory_bytes: int = 512 << 20
    time_s: float = 8.0
    code_bytes: int = 128 << 20


class Module(Value, frozen=True, kw_only=True):
    """Verified bytes at `fd` with the digest `sha256` (lowercase hex); `fuel`: compile it so that fuel is counted;
    `owner`: the id of the plugin for which it is compiled.
    """

    fd: int
    sha256: str
    fuel: bool
    owner: str


class Compiler:
    """The compiler that all plugins share; at most AT_ONCE modules are compiled at a time."""

    def __init__(self, spawner: ChildSpawner, cache: Cache, bounds: Bounds) -> None:
        self._spawner = spawner
        self._cache = cache
        self._bounds = bounds
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def code(self, module: Module, package: Package, chosen: Chosen, stderr: Stderr) -> int:
        """The compiled code in a sealed memfd, which the caller closes; from the cache, or compiled now.

        `chosen` is what the compiling child runs with, `stderr` reads its output. Problem: `wasm_invalid`,
        `wasm_import`, `out_of_memory`, `deadline_exceeded`, `wasm_compiler`, or why a child could not be started.
        """
        found = await in_thread(lambda: self._cache.find(self._subject(module, package)), _close)
        if found is not None:
            return found
        # Look again once it is our turn: another start of the same module may have compiled it meanwhile.
        async with self._turns:
            found = await in_thread(lambda: self._cache.find(self._subject(module, package)), _close)
            return found if found is not None else await self._make(module, package, chosen, stderr)

    async def anew(self, module: Module, package: Package, chosen: Chosen, stderr: Stderr) -> int:
        """As `code`, without what the cache has: that is deleted."""
        await in_thread(lambda: self._cache.discard(self._subject(module, package)))
        return await self.code(module, package, chosen, stderr)

    async def _make(self, module: Module, package: Package, chosen: Chosen, stderr: Stderr) -> int:
        """Compile the module and store the code in the cache. Returns the sealed memfd of the code, which the caller
        closes.
        """
        fd = artifact.memory()
        try:
            await self._compile(module, package, chosen, _Taken(fd, self._bounds.code_bytes), stderr)
            artifact.close_for_good(fd)  # before it is kept: the MAC is over the bytes that can no longer change
            await in_thread(lambda: self._keep(self._subject(module, package), fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    async def _compile(self, module: Module, package: Package, chosen: Chosen, taken: _Taken, stderr: Stderr) -> None:
        """Run the compiling child, whose stdout goes to `taken`. No process is left.

        Problem deadline_exceeded, as `_judge`, or why the child could not be started.
        """
        bounds, last_word = self._bounds, LastWord()
        request = wasm_children.request(
            "ahead",
            {"fuel": int(module.fuel)},
            package=package,
            limits=ResourceLimits(memory_bytes=bounds.memory_bytes, tasks=4),
            given={INPUT: module.fd, STATUS: last_word.give},
            owner=module.owner,
        )
        try:
            # `on_exit` is not needed: `gone` below gives the same exit.
            child = await self._spawner.spawn(request, chosen, on_exit=lambda _: None, stdout=taken, stderr=stderr)
        except BaseException:
            last_word.take()
            raise
        finally:
            last_word.given()
        child.when_gone(last_word.take)
        taken.child = child  # which it kills when there is too much output
        try:
            async with asyncio.timeout(bounds.time_s):
                ended = await child.gone()
        except TimeoutError as error:
            hint = "a module that takes this long is too large, or made to take long"
            detail = f"expected the module to be compiled within {bounds.time_s:g} s, found it still compiling"
            raise Problem("deadline_exceeded", detail, hint) from error
        finally:
            await child.stop(0)  # also when cancelled: no compiler goes on without its caller
        self._judge(ended, taken, last_word, stderr)

    def _judge(self, ended: Exit, taken: _Taken, last_word: LastWord, stderr: Stderr) -> None:
        """Raise Problem unless the child, which `ended` so, compiled the module.

        The Problem is the one that it reported itself (`last_word`), else out_of_memory or wasm_compiler.
        """
        if taken.too_large:  # first: the child was killed for it, and reports nothing
            detail = f"expected at most {self._bounds.code_bytes} bytes of compiled code, found more"
            raise Problem("out_of_memory", detail)
        if (said := last_word.explain()) is not None:
            raise Problem(*said)
        if ended.status == 0:
            return
        if ended.out_of_memory or _RUST_OUT_OF_MEMORY in stderr.last:
            limit = self._bounds.memory_bytes >> 20
            raise Problem(
                "out_of_memory", f"expected the module to be compiled within {limit} MiB, found it needs more"
            )
        raise Problem("wasm_compiler", f"the compiler failed: {ended.message}{stderr.words()}")

    def _keep(self, subject: Subject, fd: int) -> None:
        """Store the code, if possible: without a cache it is compiled again at the next start."""
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            self._cache.keep(subject, fd)
        except OSError as error:
            log.warning("wasm_cache_failed", error=error.strerror or str(error))

    def _subject(self, module: Module, package: Package) -> Subject:
        """What the code in the cache must have been compiled from and for. Blocks: it reads files at its first call."""
        return Subject(
            sha256=module.sha256,
            engine=f"wasmtime {package.version}",
            flags=f"fuel={int(module.fuel)} {wasm_children.configuration()}",
            target=wasm_children.target(),
        )


class _Taken(asyncio.Protocol):
    """Writes the compiler's stdout into the memfd `fd`, up to `most_bytes`; beyond it kills `child` and sets
    `too_large`.
    """

    def __init__(self, fd: int, most_bytes: int) -> None:
        self.child: Child | None = None
        self.too_large = False
        self._fd = fd
        self._left_bytes = most_bytes

    def data_received(self, data: bytes) -> None:
        self._left_bytes -= len(data)
        if self._left_bytes >= 0:
            files.write_all(self._fd, data)  # into memory, so this does not block the loop
        else:
            self.too_large = True
            # None: it came before the start was finished; `_judge` refuses it then.
            if self.child is not None:
                self.child.kill()


def _close(fd: int | None) -> None:
    """Undo `Cache.find` when its caller was cancelled."""
    if fd is not None:
        os.close(fd)
