"""The two programs of `wasm_inside` as confined children: what they can see, and the status they report at the end.

The daemon never imports wasmtime: it only looks up its directory and version.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from latticed.kit import text
from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.sandbox import levels
from latticed.sandbox.spec import ChildRequest, Program

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.processes.exits import Exit
    from latticed.sandbox.rlimits import ResourceLimits

NEEDS: Final = frozenset({levels.THREADS})
"""The main thread runs the module; a second one is its watchdog (`wasm_inside.budget`)."""
INPUT, STATUS = 3, 4
"""The child's descriptors for its input and for its final status; the same as in wasm_inside.status."""
_WORDS_CHARACTERS: Final = 500
_STATUS_BYTES: Final = 4096  # more than wasm_inside.status writes, and written at once (PIPE_BUF)
_RUNNERS: Final = Path(__file__).resolve().parent
_HOUSE: Final = _RUNNERS.parent
_INSIDE: Final = _RUNNERS / "wasm_inside"
# Appended: nothing in these directories can take the place of a module of the standard library.
_LOADER: Final = (
    "import sys; sys.path += {paths}; from latticed.runners.wasm_inside import {name}; {name}.main(sys.argv[1])"
)

Name = Literal["run", "ahead"]
"""The program: `run` runs compiled code, `ahead` compiles."""
Code = Literal[
    "wasm_invalid",
    "wasm_import",
    "wasm_trap",
    "wasm_code",
    "wasm_host",
    "fuel_exhausted",
    "deadline_exceeded",
    "stack_overflow",
    "out_of_memory",
    "exited",
]


class _Said(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The report of `wasm_inside.status.end`; anything else that the child writes counts as no report."""

    code: Code
    message: str


class Package(Value, frozen=True, kw_only=True):
    """wasmtime as it is installed: `directory` is the package itself, `version` that of its distribution."""

    directory: Path
    version: str

    @classmethod
    def find(cls) -> Package:
        """Look it up without importing it. Problem("sandbox_unavailable") when it is not installed."""
        found = importlib.util.find_spec("wasmtime")  # finds without importing
        if found is None or not found.submodule_search_locations:
            hint = "install latticed with its dependencies, or set [runners] wasm to noop"
            raise Problem(levels.CODE, "needs the Python package wasmtime, found none", hint)
        from importlib import metadata  # 1 MiB of memory, for a host that has wasm plugins

        return cls(directory=Path(found.submodule_search_locations[0]), version=metadata.version("wasmtime"))


def request(
    name: Name,
    orders: Mapping[str, Any],
    *,
    package: Package,
    limits: ResourceLimits,
    given: Mapping[int, int],
    owner: str,
) -> ChildRequest:
    """How to start the program `name` with `orders` (JSON) as its argument and the descriptors `given` (number ->
    ours), for the plugin `owner`.

    It is the daemon's Python without site-packages; readable are it, wasmtime, wasm_inside.
    """
    # The directories on the way are only listed, which importing needs; of each package no more than these are read.
    site = package.directory.parent
    loader = _LOADER.format(paths=[str(_HOUSE.parent), str(site)], name=name)
    return ChildRequest(
        program=Program(path=os.path.realpath(sys.executable), args=("-ISB", "-c", loader)),
        args=(msgspec.json.encode(orders).decode(),),
        environment={"LC_ALL": "C.UTF-8"},
        limits=limits,
        binds=tuple(map(str, (package.directory, _INSIDE, _HOUSE / "__init__.py", _RUNNERS / "__init__.py"))),
        lists=tuple(map(str, dict.fromkeys((_HOUSE.parent, site, _HOUSE, _RUNNERS)))),
        given=given,
        owner=owner,
    )


class LastWord:
    """The pipe on which a child reports why it ends.

    `give` is the child's end. Call `given` once the child has it, or failed to start; call `take` when the child is
    gone, then `explain`.
    """

    def __init__(self) -> None:
        self._read, self.give = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._said = b""  # the report, once `take` has read it

    def given(self) -> None:
        """Close `give`, of which the child has a copy."""
        os.close(self.give)

    def take(self) -> None:
        """Read the report and close the pipe. For when the child is gone, or failed to start; only once."""
        try:
            self._said = os.read(self._read, _STATUS_BYTES)
        except BlockingIOError:  # a process that the child started holds it open: do not wait
            self._said = b""
        os.close(self._read)

    def explain(self, exit_: Exit | None = None) -> tuple[str, str] | None:
        """The report as (code, message), with a code from `Code` and a message that is safe to show.

        None when the report is missing or malformed: the module may control the child. `exit_` is not used: so this can
        be `StdioChildSpec.explain`.
        """
        del exit_
        try:
            said = msgspec.json.decode(self._said, type=_Said)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None
        return said.code, text.sanitise(said.message, _WORDS_CHARACTERS)


@functools.cache
def configuration() -> str:
    """A digest of the file with the engine's configuration: code compiled under another one would not load.

    Any edit of the file gives another digest; then modules are compiled once more.
    """
    return hashlib.sha256((_INSIDE / "engine.py").read_bytes()).hexdigest()


@functools.cache
def target() -> str:
    """This processor and its features, on which compiled code depends; a digest of what /proc/cpuinfo says."""
    lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    # `flags` on x86, `Features` on ARM. Of the first processor: all of them are taken to have the same.
    abilities = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {hashlib.sha256(abilities.encode()).hexdigest()}"
