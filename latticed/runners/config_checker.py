"""Checks configurations against manifests' schemas, each in a confined child with limits of its own.

A schema of some kilobytes may double the work with each of its references, and a list of thousands of values is
compared with each item of a document: no bound on their sizes bounds the time. A thread could neither be ended nor
would it let the event loop run (docs/adr/0016).
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from latticed.bundle import config_schema
from latticed.host.last_output import LastOutput
from latticed.kit import files, logs, text
from latticed.model.errors import Problem
from latticed.model.fault import Fault
from latticed.runners.configuration import MAX_FAULTS, ConfigFault, ConfigInvalid
from latticed.sandbox import artifact, levels
from latticed.sandbox.rlimits import ResourceLimits
from latticed.sandbox.spec import ChildRequest, Program

if TYPE_CHECKING:
    from latticed.processes.child import Child
    from latticed.runners.child_spawner import ChildSpawner
    from latticed.runners.configuration import Configuration
    from latticed.sandbox.levels import Chosen

AT_ONCE: Final = 2
"""How many checks run at the same time, each with up to MEMORY_BYTES; further ones wait."""
CHECK_S: Final = 5.0
"""Seconds for one check; a schema that fits into a manifest can be made to take far longer."""
MEMORY_BYTES: Final = 256 << 20
"""What the child of one check may take."""
MAX_KNOWN: Final = 64
"""How many results are remembered, by the hashes of schema and document; each may take 40 KB."""
_INPUT: Final = 3  # the child's descriptor; the same as `config_inside.check.INPUT`
# What is kept of the child's stdout and stderr, and of each text in its answer.
_ANSWER_BYTES: Final = 256 << 10
_STDERR_BYTES: Final = 4 << 10
_WORD_CHARACTERS: Final = 600
_RUNNERS: Final = Path(__file__).resolve().parent
_PACKAGE: Final = _RUNNERS.parent
_INSIDE: Final = _RUNNERS / "config_inside"
# Appended: nothing in these directories can take the place of a module of the standard library.
_LOADER: Final = "import sys; sys.path += {paths}; from latticed.runners.config_inside import check; check.main()"

log = logs.get_logger()


class _Found(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault as the child reports it; the fields are those of ConfigFault."""

    path: tuple[str | int, ...]
    expected: str
    found: str
    kind: str


class _Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line of the child. `fits`: the document fits, and `faults` is empty; `all`: whether `faults` are all."""

    fits: bool
    faults: tuple[_Found, ...]
    all: bool


class ConfigChecker:
    """Checks configurations, AT_ONCE at a time, and remembers the last MAX_KNOWN results. The daemon has one."""

    def __init__(self, spawner: ChildSpawner, *, check_s: float = CHECK_S, memory_bytes: int = MEMORY_BYTES) -> None:
        self._spawner = spawner
        self._check_s = check_s
        self._memory_bytes = memory_bytes
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._known: OrderedDict[tuple[str, str], ConfigInvalid | None] = OrderedDict()

    async def check(self, schema: Configuration, document: Configuration) -> None:
        """Return when `document` fits `schema`; raise ConfigInvalid, which lists what does not fit, otherwise.

        Problems: deadline_exceeded and out_of_memory when the check takes more than `check_s` seconds or
        `memory_bytes`, sandbox_unavailable.
        """
        key = (schema.sha256, document.sha256)
        if key not in self._known:
            async with self._turns:
                invalid = await self._ask(schema, document)
            # Only answers are remembered, no Problem: a limit that was reached once may not be reached next time.
            self._known[key] = invalid
            while len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        self._known.move_to_end(key)
        if (invalid := self._known[key]) is not None:
            raise ConfigInvalid(invalid.faults, whole=invalid.whole)

    async def _ask(self, schema: Configuration, document: Configuration) -> ConfigInvalid | None:
        """Check in a child: None when the document fits, else the faults. Raises the Problems of `check`."""
        # A memfd, as the input may be larger than a pipe holds, and the child starts only afterwards.
        fd = artifact.memory()
        try:
            # Schema and document are JSON already: put together as bytes, not decoded and encoded again.
            parts = (b'{"schema":', schema.data, b',"document":', document.data)
            limit = config_schema.pattern_bytes(msgspec.json.decode(schema.data))
            files.write_all(fd, b"".join((*parts, b',"pattern_bytes":%d,"faults":%d}' % (limit, MAX_FAULTS))))
            answer, ended_by = await self._run(fd)
        finally:
            os.close(fd)
        # An answer counts even if the child was ended for a limit: its first line has a fault that is certain.
        said = _decoded(answer)
        if said is None:
            raise ended_by or Problem("sandbox_failed", "the configuration could not be checked: see the daemon's log")
        if said.fits:
            return None
        found = (ConfigFault(**msgspec.structs.asdict(_clipped(one))) for one in said.faults[:MAX_FAULTS])
        return ConfigInvalid(tuple(found), whole=said.all)

    async def _run(self, fd: int) -> tuple[bytes, Problem | None]:
        """Run the child with its input at `fd`: its stdout, and the Problem if it was ended for a limit, else None.

        Other failures of it are logged. Problem sandbox_unavailable, and as `ChildSpawner.spawn`. No process is left.
        """
        out, err = _Taken(_ANSWER_BYTES), LastOutput(_STDERR_BYTES)
        child = await self._spawner.spawn(
            self._request(fd), self._choose(), on_exit=lambda _: None, stdout=out, stderr=err
        )
        out.child = child  # not of `err`, which says nothing about the answer; a flood there is read slowly
        late: Problem | None = None
        try:
            async with asyncio.timeout(self._check_s):
                ended = await child.gone()
        except TimeoutError:
            late = _beyond("deadline_exceeded", f"within {self._check_s:g} s", "still being checked")
        finally:
            # Also when cancelled: no check may go on without a caller.
            ended = await child.stop(0)
        if late is None and ended.status != 0:
            words = err.data().decode("utf-8", "replace")
            # With a cgroup the kernel says so. With RLIMIT_DATA alone the allocation fails: Rust aborts with this
            # message, Python raises MemoryError.
            if ended.out_of_memory or "memory allocation of" in words or "MemoryError" in words:
                late = _beyond("out_of_memory", f"with {self._memory_bytes >> 20} MiB", "that it takes more")
            else:
                log.error("config_check_failed", message=ended.message, stderr=text.sanitise(words[-500:], 500))
        return bytes(out.data), late

    def _choose(self) -> Chosen:
        """The host's highest level, without features: the check needs nothing else. Problem sandbox_unavailable."""
        chosen = levels.decide(levels.Required(level=levels.Level.FILTERED), self._spawner.probed.provided)
        if isinstance(chosen, Fault):
            raise Problem.of(chosen)
        return chosen

    def _request(self, fd: int) -> ChildRequest:
        """The daemon's Python without site-packages; it can read jsonschema_rs and `config_inside`, nothing else."""
        found = importlib.util.find_spec("jsonschema_rs")  # finds without importing
        if found is None or not found.submodule_search_locations:
            hint = "install latticed with its dependencies"
            raise Problem(levels.CODE, "needs the Python package jsonschema_rs, found none", hint)
        package = Path(found.submodule_search_locations[0])
        paths = [str(_PACKAGE.parent), str(package.parent)]
        return ChildRequest(
            program=Program(path=os.path.realpath(sys.executable), args=("-ISB", "-c", _LOADER.format(paths=paths))),
            environment={"LC_ALL": "C.UTF-8"},
            limits=ResourceLimits(memory_bytes=self._memory_bytes, tasks=4),
            binds=tuple(map(str, (package, _INSIDE, _PACKAGE / "__init__.py", _RUNNERS / "__init__.py"))),
            lists=tuple(map(str, dict.fromkeys((_PACKAGE.parent, package.parent, _PACKAGE, _RUNNERS)))),
            given={_INPUT: fd},
        )


def _decoded(answer: bytes) -> _Answer | None:
    """The last line that is an answer, as lines before it say less; None without one. The child is not trusted."""
    lines = answer.split(b"\n")[:-1]
    for line in reversed(lines):
        try:
            return msgspec.json.decode(line, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return None


def _clipped(found: _Found) -> _Found:
    """The fault with its texts escaped and cut: the child writes them."""
    expected, shown, kind = (text.sanitise(one, _WORD_CHARACTERS) for one in (found.expected, found.found, found.kind))
    return _Found(path=found.path, expected=expected, found=shown, kind=kind)


def _beyond(code: str, limit: str, found: str) -> Problem:
    """The Problem `code` for a check that went beyond `limit`; both texts are parts of its sentence."""
    detail = f"expected the configuration to be checked against its schema {limit}, found {found}"
    return Problem(code, detail, "a schema that takes this long is made to, or the document is far larger than meant")


class _Taken(asyncio.Protocol):
    """The protocol of one output: keeps the first `most_bytes` in `data`, and kills `child`, where it is set, once so
    much has come.
    """

    def __init__(self, most_bytes: int) -> None:
        self.data = bytearray()
        self.child: Child | None = None
        self._most_bytes = most_bytes

    def data_received(self, data: bytes) -> None:
        self.data += data[: self._most_bytes - len(self.data)]
        if len(self.data) >= self._most_bytes and self.child is not None:
            self.child.kill()
