"""One run of one approved script: confined, bounded in time and output; no process of it is left at its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Final

from latticed.host import confinement
from latticed.host.last_output import LastOutput, last_words
from latticed.host.task import spec
from latticed.kit import files
from latticed.ledger.tasks import TaskOutcome
from latticed.model.errors import Problem
from latticed.processes import waiting
from latticed.sandbox import artifact, rlimits
from latticed.sandbox.artifact import Artifact
from latticed.sandbox.spec import ChildRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.host.confinement import Spawner
    from latticed.ledger.tasks import TaskRow
    from latticed.processes.child import Child
    from latticed.processes.exits import Exit
    from latticed.settings.programs import TaskSettings as Settings

# For a script's own cleanup after a timeout; one that is stopped on purpose gets none.
GRACE_S: Final = 2.0
_MIB: Final = 1 << 20
# Fixed, not the daemon's PATH, so that the environment of the daemon does not choose the interpreter.
_DIRECTORIES: Final = ("/usr/bin", "/bin", "/usr/local/bin")


class TaskRun:
    """One run of `task`, whose `approved_sha256` and `run_id` are set; used once.

    `outcome` runs it to its end; `stop`, called during it, makes the outcome a cancellation. An outcome without a code
    is a script that ended by itself with exit code 0.
    """

    def __init__(self, task: TaskRow, spawner: Spawner, settings: Settings) -> None:
        self._task = task
        self._spawner = spawner
        self._settings = settings
        self._stopped = asyncio.Event()
        self._why = ""
        self.gone = asyncio.Event()
        """Set by the keeper once no process of it is left."""
        self.over = asyncio.Event()
        """Set by the keeper once its end is on record."""
        self._out = LastOutput(settings.output_bytes)
        self._err = LastOutput(settings.output_bytes)

    def stop(self, why: str) -> None:
        """Kill it, or do not start it; returns at once. The outcome has the reason `why`."""
        # The first reason is the cause; `recheck` calls this again every half second until it has ended.
        self._why = self._why or why
        self._stopped.set()

    async def outcome(self) -> TaskOutcome:
        """Run the script and return how it ended; all its processes have ended then, also when this is cancelled.

        Problems when it could not be started: digest_mismatch, sandbox_unavailable, and those of `Spawner.spawn`.
        """
        if self._stopped.is_set():
            return TaskOutcome(code="cancelled", reason=f"{self._why} before it began")
        with _sealed(self._task) as program:
            if program.sha256 != self._task.approved_sha256:  # of the bytes that will be executed
                raise Problem(
                    "digest_mismatch", f"expected to run {self._task.approved_sha256}, found {program.sha256}"
                )
            # Within `with`: the child has the memfd open by then, and the daemon's own descriptor can be closed.
            child = await self._spawn(program)
        try:
            # End of file at once: a script that reads standard input would otherwise wait until its timeout.
            child.stdin.close()
            timed_out = await self._wait(child)
        finally:
            # Uncancelled, since no process of a run may outlive it; `stop` does nothing more once all have gone.
            await waiting.uncancelled(child.stop(0 if self._stopped.is_set() else GRACE_S))
        # After `stop`, which returns once everything has ended, so this does not wait.
        ended = await child.exited()
        # Before the test for a stop: a stop during the grace period does not change that its time was over.
        if timed_out:
            return self._outcome("timeout", f"expected an end within {self._task.timeout_s} s", ended)
        if self._stopped.is_set():
            return self._outcome("cancelled", self._why, ended)
        if ended.status == 0:
            return self._outcome("", "", ended)
        return self._outcome(ended.code, ended.message + last_words(self._err.data()), ended)

    async def _spawn(self, program: Artifact) -> Child:
        """Start the confined child at the highest level of this host; its output goes to `_out` and `_err`."""
        # Without a network: a script's targets are arguments, not places that it may reach.
        chosen = confinement.choose(self._spawner)
        # These two, and the targets as arguments, are all that the script is told of its task.
        names = {"LATTICED_TASK": self._task.id, "LATTICED_RUN": self._task.run_id}
        request = ChildRequest(
            program=program,
            args=self._task.targets,
            environment=confinement.environment(chosen, names),
            interpreters=interpreters(self._spawner.interpreters),
            limits=rlimits.ResourceLimits(
                memory_bytes=self._settings.memory_mib * _MIB, tasks=self._settings.processes, open_files=256
            ),
            owner=self._task.plugin_id,
        )
        return await self._spawner.spawn(request, chosen, on_exit=lambda _: None, stdout=self._out, stderr=self._err)

    async def _wait(self, child: Child) -> bool:
        """Wait until it has ended or is to be stopped; True when its time was over before that."""
        waits = [asyncio.ensure_future(child.gone()), asyncio.ensure_future(self._stopped.wait())]
        try:
            # asyncio.wait neither raises at the timeout nor cancels what it waits for; `done` tells the ends apart.
            done, _ = await asyncio.wait(waits, timeout=self._task.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            return not done
        finally:
            for one in waits:
                one.cancel()
            # Awaited, so that no cancelled future is left pending when the run ends.
            await asyncio.gather(*waits, return_exceptions=True)

    def _outcome(self, code: str, reason: str, ended: Exit) -> TaskOutcome:
        """The outcome with what the child wrote and how it ended; `code` is empty for exit code 0."""
        return TaskOutcome(
            code=code,
            reason=reason,
            exit_code=ended.status,
            signal=ended.killed_by,
            stdout=self._out.shown(),
            stderr=self._err.shown(),
            stdout_bytes=self._out.total,
            stderr_bytes=self._err.total,
            truncated=self._out.truncated or self._err.truncated,
        )


def interpreters(named: Mapping[str, str]) -> dict[str, str]:
    """Paths by name, for the names of spec.INTERPRETERS.

    From `named` (the settings, not checked here), else the first executable ELF file of that name in _DIRECTORIES.
    Names that are not found are left out. Opens files: blocks shortly.
    """
    found = {name: path for name in spec.INTERPRETERS if (path := _find(name)) is not None}
    return {**found, **{name: path for name, path in named.items() if name in spec.INTERPRETERS}}


def _find(name: str) -> str | None:
    """The path of the first executable ELF file of this name in _DIRECTORIES, or None."""
    for directory in _DIRECTORIES:
        path = f"{directory}/{name}"
        with contextlib.suppress(OSError), open(path, "rb") as source:
            # ELF only: a wrapper script would need an interpreter of its own inside the sandbox.
            if os.access(path, os.X_OK) and source.read(4) == b"\x7fELF":
                return path
    return None


def _sealed(task: TaskRow) -> Artifact:
    """The script in a sealed (immutable) memfd (memfd_create(2), F_ADD_SEALS of fcntl(2)), and the digest of its
    contents. The caller closes it.
    """
    data = task.script.encode("utf-8")
    fd = artifact.memory()
    try:
        files.write_all(fd, data)
        # Sealed before the digest is taken: the bytes that are compared are those that will be executed.
        artifact.close_for_good(fd)
        # One more byte than was written, so that a longer file cannot pass as the same.
        kept = os.pread(fd, len(data) + 1, 0)
        return Artifact(fd=fd, size=len(kept), sha256=spec.sha256(kept), executable=False, interpreter=task.interpreter)
    except BaseException:
        os.close(fd)
        raise
