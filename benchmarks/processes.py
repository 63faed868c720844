"""Processes under measurement: started, waited for until they answer, looked at in /proc, ended."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

START_S: Final = 120.0
ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


class UnixHttp(HTTPConnection):
    """One kept-alive HTTP connection over a unix socket; the same client for every server measured."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30.0)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
        """The body of the answer; RuntimeError unless its status is 200."""
        self.request(method, path, body=body, headers=headers)
        answer = self.getresponse()
        found = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"expected 200 from {method} {path}, found {answer.status}: {found[:300]!r}")
        return found


@contextlib.contextmanager
def running(command: list[str], log: Path, *, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process of ours in the background, its output in `log`; asked to end, then made to."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd="/", env={**ENVIRONMENT, **(env or {})}
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(condition: Callable[[], object], what: str, *, pause_s: float = 0.0005, deadline_s: float = START_S) -> None:
    """Wait for `condition`; TimeoutError says `what` never came."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"never came: {what}")
        time.sleep(pause_s)


def accepts(path: Path) -> bool:
    """Whether somebody listens at the unix socket `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def cpu_s(pid: int) -> float:
    """Seconds of CPU that all its threads have used, to the nanosecond (proc_pid_schedstat)."""
    used = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as f:
            used += int(f.read().split()[0])
    return used / 1e9


def memory_mib(pid: int, field: str = "VmRSS") -> float:
    """Resident memory in MiB; `field` VmHWM is its highest so far."""
    with open(f"/proc/{pid}/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def child_cpu_s(command: list[str], env: dict[str, str]) -> float:
    """Seconds of CPU of one run of `command`; RuntimeError when it fails."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/", env={**ENVIRONMENT, **env}
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"expected {command[0]} to succeed, found exit code {process.returncode}")
    return used.ru_utime + used.ru_stime
