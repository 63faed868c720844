"""From a spec to a process that executes it: pipes, group, stub, its report; or nothing at all.

Until the stub has said that it succeeded, everything it is made of is unreaped and in its process group: whatever
goes wrong, that group is ended and waited for before anything else happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem
from latticed.processes import waiting
from latticed.processes.pipes import Pipe
from latticed.sandbox import cgroup, launch

if TYPE_CHECKING:
    from latticed.sandbox.cgroup import Group
    from latticed.sandbox.launch import Launched
    from latticed.sandbox.spec import Spec

_PAUSE_S: Final = 0.002
REMOVE_S: Final = 5.0
"""How long the last processes of a killed group may take to be gone."""


class Birth:
    """What exists of a child before it lives. `begin`, then `complete`; on any failure `abandon`."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._started: Launched | None = None
        self.group: Group | None = None
        self.pipes: dict[int, Pipe] = {}
        self.pid = 0
        self.pidfd = -1

    def begin(self) -> None:
        """Start the stub; OSError when not even that is possible."""
        spec = self._spec
        if spec.delegation is not None:
            self.group = cgroup.make(spec.delegation, spec.limits)
        outputs = {1, 2}
        for number in sorted({0, 1, 2, *spec.descriptors}):
            self.pipes[number] = Pipe.make()
        theirs = {number: pipe.write if number in outputs else pipe.read for number, pipe in self.pipes.items()}
        descriptors = {number: fd for number, fd in theirs.items() if fd is not None}
        self._started = launch.launch(spec, descriptors, cgroup=self.group.procs if self.group else None)
        for number, pipe in self.pipes.items():
            os.close(pipe.give_write() if number in outputs else pipe.give_read())

    async def complete(self) -> None:
        """Until the program is executed; StageFailed when a step before it failed."""
        assert self._started is not None  # noqa: S101 - `begin` came first
        said = b""
        while (more := launch.read_status(self._started.status)) != b"":
            if more is None:
                await waiting.readable(self._started.status)
            else:
                said += more
                if not more.endswith(b"\n"):
                    continue
        report = launch.read_report(said)
        if report.stage is not None:
            raise launch.failed(report)
        if self._spec.own_pids and report.pid is None:
            raise launch.failed(launch.Report(stage="stub (it ended without a word)"))
        self.pid = report.pid or self._started.pid
        self.pidfd = os.pidfd_open(self.pid)
        if report.pid is not None:
            await self._reap(only=self._started.pid)
        os.close(self._started.status)
        self._started = None

    async def abandon(self) -> None:
        """Kill what there is, wait until it is gone, close everything."""
        if self._started is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._started.pid, signal.SIGKILL)  # its leader, or a member, is our unreaped child
            await self._reap_group(self._started.pid)
            os.close(self._started.status)
            self._started = None
        elif self.pid:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            await self._reap(only=self.pid)
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        for pipe in self.pipes.values():
            pipe.close()
        if self.group is not None:
            await discard(self.group)

    async def _reap(self, *, only: int) -> None:
        while _ended(os.P_PID, only) is None:  # noqa: ASYNC110 - there is no event for a stub
            await asyncio.sleep(_PAUSE_S)  # it has closed its descriptors: it is ending right now

    async def _reap_group(self, leader: int) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                if _ended(os.P_PGID, leader) is None:
                    await asyncio.sleep(_PAUSE_S)


def _ended(kind: int, number: int) -> os.waitid_result | None:
    """Reap a child that has ended; None when none has, ChildProcessError when there is none at all."""
    return os.waitid(kind, number, os.WEXITED | os.WNOHANG)


async def discard(group: Group) -> None:
    """Kill and remove `group`; Problem when something in it does not die."""
    group.close()
    with contextlib.suppress(FileNotFoundError):
        group.kill()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + REMOVE_S
    while not group.remove():
        if loop.time() > deadline:
            raise Problem(
                "child_unkillable", f"expected the child's group to be empty, found it alive for {REMOVE_S:g} s"
            )
        await asyncio.sleep(_PAUSE_S)
