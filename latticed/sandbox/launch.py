"""Starting what carries a plan out: a program that makes its system calls, else the stub; its descriptors, and parsing
its report.

`processes.child` watches and ends what is started here; the probe blocks until it ends.
"""

from __future__ import annotations

import fcntl
import functools
import marshal
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.sandbox import artifact, call_program, launch_calls, stub_calls
from latticed.sandbox.spec import SCRIPT_FD

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import CodeType

    from latticed.sandbox.call_program import CallProgram
    from latticed.sandbox.spec import ChildSpec

# Code and plan arrive as one marshal stream: the child reads no file of latticed and compiles nothing.
_LOADER: Final = (
    f"import marshal\n*m, p = marshal.load(open({stub_calls.PLAN}, 'rb'))\nfor one in m: exec(one)\nmain(p)"
)
MODULES: Final = ("stub_calls", "stub_root", "stub_door", "stub")
"""The stub's code, in the order in which it is executed."""
# Read now, as files: all but stub_calls run in the child alone, so the daemon does not import them. When the first
# child is started, perhaps days later, an upgrade may have replaced them: modules of two versions do not go together.
_SOURCES: Final = {name: Path(__file__).with_name(f"{name}.py").read_bytes() for name in MODULES}
# Descriptors are moved above this before the low numbers are assigned, all of which are below 107 (`stub_calls`).
_ABOVE: Final = 256
# An ignored signal stays ignored across execve(2), so all are set back. The kernel refuses that for these two.
_SIGNALS: Final = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}


class Launched(Value, frozen=True, kw_only=True):
    """A started launcher: `pid` leads a session and a process group of its own; `status` is our end of the pipe of its
    report, non-blocking. The caller reaps `pid` and closes `status`.

    `calls` is the program that was started, None for the stub.
    """

    pid: int
    status: int
    calls: CallProgram | None = None

    def report(self, received: bytes) -> LaunchReport:
        """The report so far; `received` is everything that was read of `status`."""
        if self.calls is None:
            return read_report(received)
        found: dict[str, Any] = {}
        for kind, step, value in self.calls.report(received):
            if kind == call_program.FAILED:
                found |= {"stage": step, "errno": value}
            else:
                found["init" if kind == call_program.INIT else "pid"] = value
        return LaunchReport(**found)


class LaunchReport(Value, frozen=True, kw_only=True):
    """A launcher's report so far: the child's `pid` if that is another process, or the `stage` that failed and its
    `errno` (0: none). `init` is process 1 of the child's namespace, when that is not the child itself.
    """

    pid: int | None = None
    init: int | None = None
    stage: str | None = None
    errno: int = 0


def launch(
    spec: ChildSpec,
    descriptors: Mapping[int, int],
    *,
    cgroup: int | None = None,
) -> Launched:
    """Start a launcher for `spec` and return at once; the plan is carried out in the new process.

    `descriptors`: the child's number -> ours, for at least 0, 1 and 2; the child gets copies, ours stay open. `cgroup`:
    a descriptor of cgroup.procs of the child's group. OSError when no process can be started; no descriptor is left
    then. RuntimeError outside the main thread: a child is told to die when the thread that started it ends
    (PR_SET_PDEATHSIG in prctl(2)).
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children are started from the main thread: they end with the thread that started them")
    opened: list[int] = []
    try:
        status, status_out = os.pipe()
        opened.append(status_out)
        pid, calls = -1, None
        try:
            by_number = {**spec.given, **descriptors, stub_calls.STATUS: status_out}
            if spec.artifact_fd is not None:
                by_number[stub_calls.ARTIFACT] = by_number[SCRIPT_FD] = spec.artifact_fd
            if cgroup is not None:
                by_number[stub_calls.CGROUP] = cgroup
            if spec.door_fd is not None:
                by_number[stub_calls.DOOR] = spec.door_fd
            calls = _start_calls(by_number, spec, opened)
            pid = calls[0] if calls else _start_stub(by_number, spec, opened)
        finally:
            # The caller gets our end with `Launched`; without one nobody else would close it.
            if pid < 0:
                os.close(status)
        # Only our end: `read_status` returns what is there instead of blocking the event loop.
        os.set_blocking(status, False)
        return Launched(pid=pid, status=status, calls=calls[1] if calls else None)
    finally:
        for fd in opened:
            os.close(fd)


def read_status(fd: int) -> bytes | None:
    """Read the available part of the stub's report: b"" at its end, None when nothing is available yet.

    `fd` is non-blocking. The end comes when every copy of the writing end is closed: on exec, or with the stub.
    """
    received = b""
    try:
        while chunk := os.read(fd, 4096):
            received += chunk
    except BlockingIOError:
        return received or None
    return received


def read_report(lines: bytes) -> LaunchReport:
    """Parse the stub's report; `lines` is everything it wrote so far. What is not reported yet is None (`errno`: 0);
    unknown lines are ignored; ValueError when a number is malformed.
    """
    pid, init, stage, error = None, None, None, 0
    for line in lines.decode(errors="replace").splitlines():
        match line.split(" ", 2):
            case ["pid", number]:
                pid = int(number)
            case ["init", number]:
                init = int(number)
            case ["failed", number, step]:
                stage, error = step, int(number)
    return LaunchReport(pid=pid, init=init, stage=stage, errno=error)


def failed(report: LaunchReport) -> StageFailed:
    """The Problem for a report whose `stage` failed."""
    error = os.strerror(report.errno) if report.errno else "no errno"
    return StageFailed(
        report.stage or "stub", report.errno, f"the sandbox could not be set up: {report.stage}: {error}"
    )


class StageFailed(Problem):
    """Problem("sandbox_failed"): the stub's step `stage` failed with `errno` (0: none). Nothing of the child's program
    was executed.
    """

    def __init__(self, stage: str, error: int, detail: str) -> None:
        super().__init__("sandbox_failed", detail, "latticectl health shows what this host gives")
        self.stage = stage
        self.errno = error


def _start_stub(by_number: Mapping[int, int], spec: ChildSpec, opened: list[int]) -> int:
    """Start a Python with copies of `by_number`'s descriptors at those numbers, which executes the stub's modules and
    carries the plan out; its pid. Descriptors that were made for it are added to `opened`; OSError.
    """
    made = {**by_number, stub_calls.PLAN: _memory((*map(_compiled, MODULES), dict(spec.plan)), opened)}
    return _execute(sys.executable, [sys.executable, "-ISEB", "-c", _LOADER], made, opened)


def _start_calls(by_number: Mapping[int, int], spec: ChildSpec, opened: list[int]) -> tuple[int, CallProgram] | None:
    """As `_start_stub`, a program that makes the plan's system calls; None where only a stub can carry it out."""
    if (found := launch_calls.executable(spec.plan)) is None:
        return None
    data, program = found
    try:
        memory, may_be_executed = artifact.executable_memory("launch")
        high = fcntl.fcntl(_opened(memory, opened), fcntl.F_DUPFD_CLOEXEC, _ABOVE)
        os.write(_opened(high, opened), data)
        if not may_be_executed:
            return None
        return _execute(f"/proc/self/fd/{high}", ["latticed-launch"], by_number, opened), program
    except OSError:
        return None  # this host executes nothing in memory; what else it may be, the stub finds out too


def _execute(path: str, argv: list[str], by_number: Mapping[int, int], opened: list[int]) -> int:
    """Execute `path` in a new process, with copies of these descriptors at their numbers and the daemon's pidfd at
    DAEMON; its pid.
    """
    # DAEMON is polled: the daemon may have died before PDEATHSIG was set, and that signal is not sent afterwards.
    made = {**by_number, stub_calls.DAEMON: _opened(os.pidfd_open(os.getpid()), opened)}
    # Every source is moved up first, so that no dup2 overwrites a descriptor that is still needed.
    high = {}
    for number, fd in made.items():
        high[number] = _opened(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE), opened)
    # posix_spawn(3): nothing of this Python runs in the new process, and no memory is copied. The environment is empty,
    # so no PYTHON* or LD_* variable reaches the stub.
    return os.posix_spawn(
        path,
        argv,
        {},
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in high.items()],
        # Session and group of its own: no terminal, and one id for all that the stub starts.
        setsid=True,
        setsigmask=(),
        setsigdef=_SIGNALS,
    )


def _memory(value: Any, opened: list[int]) -> int:
    """A memfd with `value` as a marshal stream, ready to be read from its start.

    Not a pipe: writing more than it holds (64 KiB, pipe(7)) would block until the child reads.
    """
    fd = _opened(os.memfd_create("plan", os.MFD_CLOEXEC), opened)
    os.write(fd, marshal.dumps(value))
    # The child's copy shares this offset (dup(2)).
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


@functools.cache
def _compiled(module: str) -> CodeType:
    """A module of the stub, compiled once: compiling takes a fifth of a child's start."""
    return compile(_SOURCES[module], module, "exec", dont_inherit=True)


def _opened(fd: int, opened: list[int]) -> int:
    """Add `fd` to `opened`, which `launch` closes at its end; returns `fd`."""
    opened.append(fd)
    return fd
