"""A running child: its pipes, its exit, and how it is ended with everything it started.

No thread: the exit is noticed on a pidfd. Signals go through that pidfd, so that a reused pid is never signalled;
the process group is signalled only while a process that cannot leave it has not been reaped, for the same reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.kit import logs
from latticed.model.errors import Problem
from latticed.processes import spawn as birth
from latticed.processes import tree, waiting
from latticed.processes.exits import Exit
from latticed.processes.pipes import PipeReader, PipeWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from latticed.processes.spawn import Spawn
    from latticed.sandbox.spec import ChildSpec

START_S: Final = 10.0
"""How long, in seconds, a child may take until its program is executed."""
LINGER_S: Final = 1.0
"""How long output is still read after the child ended, if another process holds its pipes open."""
UNKILLABLE_S: Final = 10.0
"""How long, in seconds, a killed process may take to end: one in an uninterruptible call dies only after it."""
FULL: Final = 0.9
"""A failed child counts as out of memory if its peak use was at least this share of its memory limit."""
log = logs.get_logger()


class Child:
    """One running child; made by `spawn`.

    `pid` is for display only: never signal it. `level` is what it is confined at. `inputs` are the pipes that the child
    reads, by its descriptor number. `exit` is None while the process lives.
    """

    def __init__(self, spec: ChildSpec, born: Spawn, on_exit: Callable[[Exit], None]) -> None:
        loop = asyncio.get_running_loop()
        self.pid = born.pid
        self.level = spec.level
        self.inputs: dict[int, PipeWriter] = {}
        self.exit: Exit | None = None
        self._exited = asyncio.Event()
        self._gone = asyncio.Event()
        self._own_pids = spec.own_pids
        self._memory_bytes = spec.limits.memory_bytes
        self._born = born
        self._on_exit = on_exit
        self._readers: dict[int, asyncio.ReadTransport] = {}
        self._open_outputs = 0
        self._outputs_closed = asyncio.Event()
        self._asked = False
        self._ended_cpu_s: float | None = None
        self._afterwards: list[Callable[[], None]] = []
        self._end: asyncio.Task[None] | None = None
        # A pidfd is readable once the process has ended (pidfd_open(2)).
        loop.add_reader(born.pidfd, self._reap)

    @property
    def stdin(self) -> PipeWriter:
        """The writer of the child's descriptor 0."""
        return self.inputs[0]

    @property
    def stdout(self) -> asyncio.ReadTransport:
        """The transport of the child's stdout, for pausing and resuming; what is read goes to the protocol given to
        `spawn`.
        """
        return self._readers[1]

    @property
    def stderr(self) -> asyncio.ReadTransport:
        """The transport of the child's stderr; see `stdout`."""
        return self._readers[2]

    async def exited(self) -> Exit:
        """How the process ended, as soon as it has; output may still be on its way."""
        await self._exited.wait()
        assert self.exit is not None  # noqa: S101 - set before the event
        return self.exit

    def when_gone(self, call: Callable[[], None]) -> None:
        """Have `call` called once the child's processes, pipes and group are gone, however it ended."""
        if self._gone.is_set():
            call()
        else:
            self._afterwards.append(call)

    async def gone(self) -> Exit:
        """Wait for the exit, until all output was delivered and processes, pipes and group are gone."""
        await self._gone.wait()
        return await self.exited()

    async def connect(self, outputs: dict[int, asyncio.Protocol]) -> None:
        """Attach our ends of the pipes; `outputs` are the protocols that read descriptors 1 and 2."""
        pipes = self._born.pipes
        self._open_outputs = len(outputs)
        for number in pipes.keys() - outputs.keys():  # inputs first: the last output's end may start the clean-up
            self.inputs[number] = await PipeWriter.connect(pipes[number].give_write())
        for number, heard_by in outputs.items():
            self._readers[number] = await PipeReader.connect(pipes[number].give_read(), heard_by, self._output_closed)

    async def stop(self, grace_s: float) -> Exit:
        """SIGTERM, then after `grace_s` seconds SIGKILL to the whole tree; nothing is left when this returns.

        The grace is skipped when SIGTERM has no effect. Cancelling kills at once. Problem("child_unkillable")
        when a process is still there UNKILLABLE_S after SIGKILL.
        """
        self._asked = True
        try:
            if self.exit is None and grace_s > 0 and self._listens():
                self._signal(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace_s):
                        await self._exited.wait()
        finally:
            self.kill()
            # Also when cancelled: the caller may rely on nothing being left once this has ended.
            await waiting.uncancelled(self._until_gone())
        return await self.exited()

    @property
    def roots(self) -> tuple[int, ...]:
        """The pids that all processes of its tree descend from: the child's and, if there is one, our process 1's."""
        return (self.pid,) if self._born.init is None else (self.pid, self._born.init)

    @property
    def cpu_s(self) -> float:
        """Seconds of processor time of its tree, so far; when it has ended, in all.

        Without a cgroup an ended one's is its own and that of what it waited for, as wait4(2) gives it.
        """
        if self._ended_cpu_s is not None:
            return self._ended_cpu_s
        counted = self._born.group.cpu_s() if self._born.group is not None else None
        return counted if counted is not None else tree.used(self.roots).cpu_s

    def kill(self) -> None:
        """SIGKILL to the whole tree, without waiting; await `gone` for its end. Does nothing once it has ended."""
        if self.exit is not None:
            return
        # The cgroup also holds what has left the process group, by setsid(2) for example.
        if self._born.group is not None:
            with contextlib.suppress(FileNotFoundError):
                self._born.group.kill()
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group that the child began in, and to the child; SIGKILL to process 1 if there
        is one.
        """
        with contextlib.suppress(ProcessLookupError):
            if self._born.init is not None and number == signal.SIGKILL:
                signal.pidfd_send_signal(self._born.init_pidfd, number)  # the kernel kills the rest of its namespace
                return
            # The child leads it, or process 1 is in it, which ignores all but SIGKILL and cannot leave it. Both are
            # unreaped: the id is still their own. Without one of them there is only the child.
            if grouped := self._born.init is not None or not self._own_pids:
                os.killpg(self._born.launcher, number)
            if not grouped or os.getpgid(self.pid) != self._born.launcher:
                signal.pidfd_send_signal(self._born.pidfd, number)

    def _listens(self) -> bool:
        """Whether SIGTERM can have an effect: process 1 of a namespace never dies of a signal it does not catch."""
        if not self._own_pids or self._born.init is not None:
            return True
        # A blocked signal counts too: the program may fetch it with sigwait(3). When in doubt the grace is given.
        try:
            rows = Path(f"/proc/{self.pid}/status").read_bytes().split(b"\n")  # bytes: the child chooses the name in it
        except OSError:
            return True
        masks = [row.partition(b":\t")[2] for row in rows if row.startswith((b"SigCgt:", b"SigBlk:"))]
        bit = 1 << (signal.SIGTERM - 1)
        return any(int(mask, 16) & bit for mask in masks)

    async def _until_gone(self) -> None:
        """Wait for `gone`; Problem("child_unkillable") when it does not come, whatever the reason."""
        try:
            # Removing the group, once the process has ended, has a limit of its own.
            async with asyncio.timeout(UNKILLABLE_S + birth.REMOVE_S):
                await self._gone.wait()
        except TimeoutError as error:
            detail = f"expected process {self.pid} to end when killed, found it there {UNKILLABLE_S:g} s later"
            raise Problem("child_unkillable", detail) from error

    def _reap(self) -> None:
        """The process ended (its pidfd is readable). Kill its group before reaping, while its id is still its own."""
        asyncio.get_running_loop().remove_reader(self._born.pidfd)
        # Asked now, since the clean-up removes the group.
        memory = self._born.group is not None and self._born.group.out_of_memory()
        counted = self._born.group.cpu_s() if self._born.group is not None else None
        if not self._own_pids:
            self._signal(signal.SIGKILL)
        # wait4(2) for the peak of memory. Unreaped until here: the pid cannot have been reused.
        _, status, usage = os.wait4(self.pid, 0)
        birth.OURS.discard(self.pid)
        self._ended_cpu_s = counted if counted is not None else usage.ru_utime + usage.ru_stime
        code = os.waitstatus_to_exitcode(status)
        self.exit = Exit(
            status=code if code >= 0 else None,
            killed_by=-code if code < 0 else None,
            # Without a cgroup this is an inference: it failed by itself, close to its limit. ru_maxrss is in KiB.
            out_of_memory=memory or (code != 0 and not self._asked and self._filled(usage.ru_maxrss << 10)),
            asked=self._asked,
        )
        with contextlib.suppress(ProcessLookupError):
            if self._born.init is not None:
                signal.pidfd_send_signal(self._born.init_pidfd, signal.SIGKILL)  # and with it the namespace
        self._exited.set()
        self._end = asyncio.create_task(self._clear_away(), name=f"child {self.pid} ended")

    def _filled(self, peak_bytes: int) -> bool:
        """Whether its peak came near its memory limit: without a cgroup only the child sees its ENOMEM.

        A peak no higher than the daemon's may be the daemon's: the stub shares its memory until exec, and exec keeps
        the peak of the process (exec_mmap in the kernel); only one forked later, as in a pid namespace, starts at 0.
        """
        ours = 0 if self._own_pids else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
        return peak_bytes >= FULL * self._memory_bytes and peak_bytes > ours

    async def _clear_away(self) -> None:
        """Read the remaining output, close the pipes, remove the group, then set `gone`."""
        try:
            await self._read_to_the_end()
        finally:  # whatever failed: who waits for `gone` must not wait for ever
            self._close()
            await asyncio.sleep(0)  # transports close their descriptors in the loop's next turn
            self._gone.set()
            for call in self._afterwards:
                call()
            if not self._asked and self.exit is not None:
                self._on_exit(self.exit)

    async def _read_to_the_end(self) -> None:
        """End what is left of the tree, then wait until its output was read, for LINGER_S at most."""
        # `discard` closes the group's descriptor: from here on the child has none.
        group, self._born.group = self._born.group, None
        # At the same time: what is left in the namespace may be in the group too. A failure of one must not stop the
        # other.
        for outcome in await asyncio.gather(self._born.end_init(), birth.discard(group), return_exceptions=True):
            if isinstance(outcome, Problem):
                log.error("child_group_left", error=outcome.reason)
            elif outcome is not None:
                raise outcome
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                await self._outputs_closed.wait()

    def _close(self) -> None:
        """Close all pipes and pidfds; what is still buffered for the child is dropped."""
        for writer in self.inputs.values():
            writer.abort()
        for reader in self._readers.values():
            reader.close()
        for pipe in self._born.pipes.values():
            pipe.close()
        for fd in (self._born.pidfd, self._born.init_pidfd):
            if fd >= 0:
                os.close(fd)

    def _output_closed(self) -> None:
        """One of stdout and stderr has been read to its end, or closed; the last one ends the wait for output."""
        self._open_outputs -= 1
        if self._open_outputs == 0:
            self._outputs_closed.set()


async def spawn(
    spec: ChildSpec,
    *,
    on_exit: Callable[[Exit], None],
    stdout: asyncio.Protocol,
    stderr: asyncio.Protocol,
    deadline_s: float = START_S,
) -> Child:
    """Start a child as `spec` says, from the main thread's event loop.

    `on_exit(exit)` is called once, on the loop, when the child ended without being stopped, all it wrote was delivered
    to `stdout` and `stderr`, and nothing is left of it. Problem("sandbox_failed") with `stage` and `errno` when a step
    of the confinement failed or takes longer than `deadline_s`; then, and when cancelled, nothing is left either.
    """
    born = birth.Spawn(spec)
    try:
        async with asyncio.timeout(deadline_s):
            born.begin()
            await born.complete()
        child = Child(spec, born, on_exit)
    except TimeoutError as error:
        await waiting.uncancelled(born.abandon())
        raise Problem("sandbox_failed", f"expected the child to be set up within {deadline_s:g} s") from error
    except OSError as error:
        await waiting.uncancelled(born.abandon())
        raise Problem("sandbox_failed", f"a child could not be started: {error.strerror or error}") from error
    except BaseException:
        await waiting.uncancelled(born.abandon())
        raise
    try:
        await child.connect({1: stdout, 2: stderr})
    except BaseException:
        # The child runs already, so it is ended like any other; `abandon` is for what comes before.
        await child.stop(0)
        raise
    return child
