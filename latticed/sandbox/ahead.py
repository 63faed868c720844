"""The daemon's side of a stub that is started ahead of the children (`stub_ahead`): starting it, sending it a plan.

It costs the interpreter's start once, not for each child; `processes.ahead` decides when there is one.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from latticed.sandbox import launch, stub_calls

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from latticed.sandbox.spec import ChildSpec

_MODULES: Final = (*launch.MODULES, launch.AHEAD)
_LIMITS: Final = tuple(number for name, number in vars(resource).items() if name.startswith("RLIMIT_"))
# Namespaces that are made with the child itself, so that no process is left in between: it is process 1 of the second,
# and only the first lets an ordinary user make it. The others are made by the child once it is in its cgroup, which
# their memory is charged to.
_WITH_THE_CHILD: Final = frozenset({"user", "pid"})


class StubAhead:
    """A running stub; `pidfd` is readable once it has ended. `close` it.

    Not for a thread: it, and so its children, ends with the thread that started it (`launch.launch`).
    """

    def __init__(self, pid: int, ours: socket.socket) -> None:
        self._socket = ours
        self.pid = pid  # for display only
        self.pidfd = os.pidfd_open(pid)
        self._inherited = inherited()

    @classmethod
    def start(cls, plan: Mapping[str, Any]) -> Self:
        """Start it, with what `plan` has in common with all others of this host; OSError when that fails."""
        launch.in_main_thread()
        opened: list[int] = []
        # Each message is one child (SOCK_SEQPACKET in unix(7)): none is split or joined.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            opened.append(null := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            given = {name: plan[name] for name in ("numbers", "oom_score_adj")}
            by_number = {**dict.fromkeys((0, 1, 2), null), stub_calls.SOCKET: theirs.fileno()}
            return cls(launch.start(by_number, _MODULES, "serve", given, opened), ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            for fd in opened:
                os.close(fd)

    def send(self, spec: ChildSpec, by_number: Mapping[int, int]) -> None:
        """Have a child made for `spec`, with copies of these descriptors at these numbers. OSError when it cannot be
        sent now, or never again: the stub has ended or is behind with its work. Does not wait.
        """
        head = struct.pack(f"=q{len(by_number)}i", _kinds(spec), *by_number)
        socket.send_fds(self._socket, [head], list(by_number.values()))

    @property
    def fds(self) -> tuple[int, int]:
        """The daemon's descriptors of it."""
        return self._socket.fileno(), self.pidfd

    def ended(self) -> bool:
        """Whether it has ended; it is reaped then, if nothing else has done that."""
        looked = select.poll()  # not select(2), which takes no descriptor above 1023
        looked.register(self.pidfd, select.POLLIN)
        if not looked.poll(0):
            return False
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PIDFD, self.pidfd, os.WEXITED | os.WNOHANG)
        return True

    def outdated(self) -> bool:
        """Whether its children would inherit something else than those that the daemon starts itself."""
        return self._inherited != inherited()

    def stopped(self) -> bool:
        """Whether it is stopped (SIGSTOP), so that it makes nothing until somebody lets it go on."""
        if self.pidfd < 0:
            return False
        with contextlib.suppress(ChildProcessError):  # it has ended, and is reaped
            return os.waitid(os.P_PIDFD, self.pidfd, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        return False

    def kill(self) -> None:
        """SIGKILL, without waiting: what it has not made by then is not made. Nothing once it is closed."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Give up its descriptors: then it ends by itself, once it has made what it was sent."""
        self._socket.close()
        os.close(self.pidfd)
        self.pidfd = -1


def inherited() -> tuple[object, ...]:
    """What a child has of the daemon where no plan sets it: limits, processors, nice value, cgroup. All can be changed
    from outside while the daemon runs (prlimit(2), sched_setaffinity(2), setpriority(2), cgroup.procs).

    A hard limit that was raised would even be refused to a child of the stub, whose own stays what it was.
    """
    limits = (resource.getrlimit(number) for number in _LIMITS)
    group = b""
    with contextlib.suppress(OSError):
        group = Path("/proc/self/cgroup").read_bytes()
    return (*limits, os.sched_getaffinity(0), os.getpriority(os.PRIO_PROCESS, 0), group)


def _kinds(spec: ChildSpec) -> int:
    """The flags for clone(2) of the namespaces to make with the child; 0 where a process in between has to be.

    With `init` there are two children, and process 1 of a namespace cannot make a sibling (clone(2), CLONE_PARENT).
    `ids_first`: the ids are changed before the namespaces are made.
    """
    if not spec.own_pids or spec.init or spec.plan["ids_first"]:
        return 0
    return sum(flag for name, flag in spec.plan["unshare"] if name in _WITH_THE_CHILD)
