"""Starts a child from a spec: pipes, cgroup, launcher, its report. On failure nothing is left.

The launcher is what `sandbox.launch` starts: a program that makes the plan's system calls, or the stub. Until it has
reported success, all its processes are unreaped and in its process group: on any failure that group is killed and
waited for first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Final, cast

from latticed.model.errors import Problem
from latticed.processes import waiting
from latticed.processes.pipes import Pipe
from latticed.sandbox import cgroup, launch
from latticed.sandbox.launch import LaunchReport

if TYPE_CHECKING:
    from latticed.sandbox.cgroup import Group
    from latticed.sandbox.launch import Launched
    from latticed.sandbox.spec import ChildSpec

_PAUSE_S: Final = 0.002  # between two looks, where the kernel offers no event to wait for
_OUTPUTS: Final = frozenset({1, 2})  # the child's descriptors that it writes
REMOVE_S: Final = 5.0
"""How long, in seconds, the processes of a killed group may take to end."""
OURS: Final[set[int]] = set()
"""Pids of children that the daemon waits for; `orphans` must not reap them."""
BEGUN: Final[set[Spawn]] = set()
"""Starts whose launcher has not yet reported the pids of its children; `orphans` reaps nothing meanwhile."""


class Spawn:
    """What exists of a child before its program is executed. Call `begin`, then `complete`; on any failure `abandon`.

    `pipes`: the child's descriptor number -> pipe; `pid` and `pidfd` are the child's, 0 and -1 until `complete` is
    done; `group` is its cgroup, if it has one. `Child` takes them over.
    """

    def __init__(self, spec: ChildSpec) -> None:
        self._spec = spec
        self._started: Launched | None = None
        self.launcher = 0
        """The launcher's pid, and the process group that all its processes begin in."""
        self.group: Group | None = None
        self.pipes: dict[int, Pipe] = {}
        self.pid = 0
        self.pidfd = -1
        self.init: int | None = None
        """Process 1 of the child's pid namespace, if that is not the child itself; `init_pidfd` is its pidfd."""
        self.init_pidfd = -1
        self._said = b""

    def begin(self) -> None:
        """Make cgroup and pipes and start the launcher; OSError when that fails. Does not wait: nothing can cancel it
        midway.
        """
        spec = self._spec
        # What exists when a later step fails is in the attributes by then, for `abandon` to release.
        if spec.delegation is not None:
            self.group = cgroup.make(spec.delegation, spec.limits, owner=spec.owner)
        for number in sorted({0, 1, 2, *spec.descriptors}):
            self.pipes[number] = Pipe.make()
        self._started = launch.launch(spec, self._theirs(), cgroup=self._procs())
        # No await between the start and this: `orphans.reap` runs on the same loop, and must not reap the launcher.
        BEGUN.add(self)
        OURS.add(self._started.pid)
        self.launcher = self._started.pid
        # It has the child's ends of the pipes; close ours: while we hold them, neither side would see end of file.
        for number, pipe in self.pipes.items():
            os.close(pipe.give_write() if number in _OUTPUTS else pipe.give_read())

    def _theirs(self) -> dict[int, int]:
        """The child's ends of the pipes, by its descriptor numbers."""
        ends = {number: pipe.write if number in _OUTPUTS else pipe.read for number, pipe in self.pipes.items()}
        return {number: fd for number, fd in ends.items() if fd is not None}

    def _procs(self) -> int | None:
        return self.group.procs if self.group else None

    async def complete(self) -> None:
        """Wait until the program is executed; then `pid`, `pidfd` and `init` are known, and the launcher is reaped.

        StageFailed when a step of it failed, OSError for lack of descriptors. Sets no time limit.
        """
        started = cast("Launched", self._started)
        while more := await _more(started.status):
            self._said += more
        report = started.report(self._said)
        if report.stage is not None:
            raise launch.failed(report)
        # Something killed the launcher: end of file without the report that a child in a pid namespace begins with.
        if (self._spec.own_pids and report.pid is None) or (self._spec.init and report.init is None):
            raise launch.failed(LaunchReport(stage="launch (it ended without a word)"))
        self.pid = report.pid or started.pid
        OURS.update({self.pid, report.init or self.pid})  # first, or `orphans` could reap them
        BEGUN.discard(self)
        self.pidfd = os.pidfd_open(self.pid)
        if report.init is not None:
            self.init, self.init_pidfd = report.init, os.pidfd_open(report.init)
        # The launcher ended when it had made the child, which goes on in its place.
        if self.pid != started.pid:
            await _reaped(started.pid)
            OURS.discard(started.pid)
        os.close(started.status)
        self._started = None

    async def abandon(self) -> None:
        """Kill the launcher's processes, wait until they are gone, close all descriptors. Problem("child_unkillable")
        when something in the child's namespace or group does not die.
        """
        if self._started is not None:  # `complete` has not finished: the launcher's processes are unreaped
            await self._end_launcher(self._started)
            os.close(self._started.status)
            self._started = None
        elif self.pid:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            await waiting.readable(self.pidfd)
            _ended(os.P_PID, self.pid)
            await self.end_init()
        for fd in (self.pidfd, self.init_pidfd):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self.init_pidfd = -1
        OURS.difference_update({self.pid, self.launcher})
        BEGUN.discard(self)
        for pipe in self.pipes.values():
            pipe.close()
        await discard(self.group)

    async def end_init(self) -> None:
        """End process 1 and all that is left in its namespace; the child itself must have been reaped.

        Problem("child_unkillable") when something in there does not die.
        """
        if self.init is None:
            return
        init, self.init = self.init, None
        signal.pidfd_send_signal(self.init_pidfd, signal.SIGKILL)
        try:
            async with asyncio.timeout(REMOVE_S):
                await waiting.readable(self.init_pidfd)
            _ended(os.P_PID, init)
        except TimeoutError as error:
            raise _unkillable() from error
        finally:
            OURS.discard(init)  # if it is still dying, `orphans` reaps it later

    async def _end_launcher(self, started: Launched) -> None:
        """Kill and reap the launcher, its group, and a child that has left that (it may, once executed).

        Reaped in turn, not one by one: process 1 of a namespace ends only after the others in it have been reaped.
        """
        launcher = started.pid
        # Unreaped: neither its pid nor, as it alone could lead one, a group of that number is anybody else's.
        os.kill(launcher, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher, signal.SIGKILL)
        report = started.report(self._said + (launch.read_status(started.status) or b""))
        left = [(os.P_PID, launcher), (os.P_PGID, launcher)]
        for pid in (report.pid, report.init):
            if pid is not None and _remains(os.P_PID, pid):
                os.kill(pid, signal.SIGKILL)  # unreaped: the pid cannot have been reused
                left.append((os.P_PID, pid))
        while left := [one for one in left if _remains(*one)]:  # noqa: ASYNC110 - there is no event for all of them
            await asyncio.sleep(_PAUSE_S)
        OURS.difference_update({report.pid, report.init})


async def _more(status: int) -> bytes:
    """Wait for the next part of the report, b"" at its end."""
    while (more := launch.read_status(status)) is None:
        await waiting.readable(status)
    return more


async def _reaped(pid: int) -> None:
    """Wait until this child, which nothing has reaped yet, has ended, and reap it. OSError for lack of descriptors."""
    if _ended(os.P_PID, pid):
        return
    pidfd = os.pidfd_open(pid)
    try:
        await waiting.readable(pidfd)  # once the process has ended (pidfd_open(2))
    finally:
        os.close(pidfd)
    _ended(os.P_PID, pid)


def _ended(kind: int, number: int) -> os.waitid_result | None:
    """Reap one child that has ended, of those that `kind` and `number` mean (idtype and id of waitid(2)).

    None when none of them has ended, ChildProcessError when there is none at all.
    """
    return os.waitid(kind, number, os.WEXITED | os.WNOHANG)


def _remains(kind: int, number: int) -> bool:
    """Reap those of the children that `kind` and `number` mean that have ended; True while any of them has not."""
    with contextlib.suppress(ChildProcessError):
        while _ended(kind, number):
            pass
        return True
    return False


async def discard(group: Group | None) -> None:
    """Kill and remove `group`, if there is one; Problem("child_unkillable") when something in it does not die in
    REMOVE_S.
    """
    if group is None:
        return
    group.close()
    with contextlib.suppress(FileNotFoundError):  # the group was removed from outside
        group.kill()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + REMOVE_S
    # A killed process leaves its group only once it is dead; until then the directory is busy.
    while not group.remove():
        if loop.time() > deadline:
            raise _unkillable()
        await asyncio.sleep(_PAUSE_S)


def _unkillable() -> Problem:
    return Problem("child_unkillable", f"expected nothing of the child to be left, found it alive for {REMOVE_S:g} s")
