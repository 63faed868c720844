"""Starting the stub: one posix_spawn, its descriptors, and parsing its report.

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem
from latticed.sandbox import stub, stub_calls, stub_root
from latticed.sandbox.spec import SCRIPT_FD

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import CodeType

    from latticed.sandbox.spec import ChildSpec

_LOADER: Final = (
    f"import marshal; a, b, c, p = marshal.load(open({stub_calls.PLAN}, 'rb')); exec(a); exec(b); exec(c); main(p)"
)
_ABOVE: Final = 256  # descriptors are moved above this before the low numbers are assigned
_SIGNALS: Final = frozenset(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A started stub: `pid` leads a session and a process group; `status` is the pipe of its report."""

    pid: int
    status: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchReport:
    """The stub's report so far: the child's `pid` if that is another process, or the `stage` that failed.

    `init` is process 1 of the child's namespace, when that is not the child itself.
    """

    pid: int | None = None
    init: int | None = None
    stage: str | None = None
    errno: int = 0


def launch(spec: ChildSpec, descriptors: Mapping[int, int], *, cgroup: int | None = None) -> Launched:
    """Start the stub with `descriptors` (the child's number -> ours; at least 0, 1 and 2). OSError when that fails.

    From the main thread only: a child is told to die when the thread that started it ends (prctl(2), PDEATHSIG).
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children are started from the main thread: they end with the thread that started them")
    opened: list[int] = []
    try:
        status, status_out = os.pipe()
        opened.append(status_out)
        pid = -1
        try:
            by_number = {**spec.given, **descriptors, stub_calls.STATUS: status_out}
            by_number[stub_calls.PLAN] = _plan(spec, opened)
            by_number[stub_calls.DAEMON] = _opened(os.pidfd_open(os.getpid()), opened)
            if spec.artifact_fd is not None:
                by_number[stub_calls.ARTIFACT] = by_number[SCRIPT_FD] = spec.artifact_fd
            if cgroup is not None:
                by_number[stub_calls.CGROUP] = cgroup
            pid = _spawn(by_number, opened)
        finally:
            if pid < 0:
                os.close(status)
        # Only our end: `read_status` returns what is there instead of blocking the event loop.
        os.set_blocking(status, False)
        return Launched(pid=pid, status=status)
    finally:
        for fd in opened:
            os.close(fd)


def read_status(fd: int) -> bytes | None:
    """Read the available part of the stub's report: b"" at its end, None when nothing is available yet."""
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
    """The Problem for a failed stage."""
    error = os.strerror(report.errno) if report.errno else "no errno"
    return StageFailed(
        report.stage or "stub", report.errno, f"the sandbox could not be set up: {report.stage}: {error}"
    )


class StageFailed(Problem):
    """A step of the stub failed; nothing of the child's program was executed."""

    def __init__(self, stage: str, error: int, detail: str) -> None:
        super().__init__("sandbox_failed", detail, "latticectl health shows what this host gives")
        self.stage = stage
        self.errno = error


def _plan(spec: ChildSpec, opened: list[int]) -> int:
    fd = _opened(os.memfd_create("plan", os.MFD_CLOEXEC), opened)
    os.write(fd, marshal.dumps((*_compiled_stub(), dict(spec.plan))))
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


@functools.cache
def _compiled_stub() -> list[CodeType]:
    """The stub, compiled once: compiling takes a fifth of a child's start."""
    files = [Path(module.__file__ or "") for module in (stub_calls, stub_root, stub)]
    return [compile(file.read_bytes(), file.stem, "exec", dont_inherit=True) for file in files]


def _spawn(by_number: Mapping[int, int], opened: list[int]) -> int:
    """Every source is moved up first, so that no dup2 overwrites a descriptor that is still needed."""
    high = {}
    for number, fd in by_number.items():
        high[number] = _opened(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE), opened)
    return os.posix_spawn(
        sys.executable,
        [sys.executable, "-ISEB", "-c", _LOADER],
        {},
        file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in high.items()],
        setsid=True,
        setsigmask=(),
        setsigdef=_SIGNALS,
    )


def _opened(fd: int, opened: list[int]) -> int:
    opened.append(fd)
    return fd
