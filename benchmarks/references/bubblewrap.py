"""bubblewrap, where it is installed: a program in the same namespaces behind the same filter of system calls.

What it does not do: a uid of its own, limits, Landlock, a cgroup, a program that is executed from verified memory.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING, Final

from latticed.sandbox import levels, seccomp

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from latticed.sandbox.syscalls import Machine

_FILTER: Final = 10  # the descriptor that it reads the filter from
_NAMESPACES: Final = ("--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")
# One bind for all that the host's programs and libraries need; ours has some ten.
_ROOT: Final = ("--ro-bind", "/usr", "/usr", "--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64")


def living(program: Path, machine: Machine) -> Callable[[], float] | None:
    """Seconds from a start of `program` in bubblewrap until it has ended; None where there is no bubblewrap."""
    found = shutil.which("bwrap")
    if found is None:
        return None
    # With execve, which bubblewrap calls behind the filter. The constants that our stub would fill in stay 0.
    features = frozenset({levels.THREADS, levels.WORKDIR, levels.PROCESSES})
    memory = os.memfd_create("filter", os.MFD_CLOEXEC)
    os.write(memory, seccomp.program(machine, features, own_pids=True).code)
    user = () if os.geteuid() == 0 else ("--unshare-user",)
    inside = ("--dev", "/dev", "--tmpfs", "/scratch", "--ro-bind", str(program), "/artifact", "--remount-ro", "/")
    safe = ("--cap-drop", "ALL", "--clearenv", "--new-session", "--die-with-parent", "--seccomp", str(_FILTER))
    command = [found, *user, *_NAMESPACES, *_ROOT, *inside, *safe, "/artifact"]

    def live() -> float:
        os.lseek(memory, 0, os.SEEK_SET)
        began_s = time.perf_counter()
        pid = os.posix_spawn(found, command, {}, file_actions=[(os.POSIX_SPAWN_DUP2, memory, _FILTER)])
        _, status = os.waitpid(pid, 0)
        took_s = time.perf_counter() - began_s
        if os.waitstatus_to_exitcode(status) != 42:
            raise RuntimeError(f"bubblewrap ended with {os.waitstatus_to_exitcode(status)}, expected 42")
        return took_s

    return live
