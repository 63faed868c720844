"""The daemon's ids and capabilities on this host, and the kernel settings that explain a failed step."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.kit.value import Value, field
from latticed.sandbox.levels import HostSupport

if TYPE_CHECKING:
    from latticed.sandbox.cgroup import Delegation
    from latticed.sandbox.levels import Provided
    from latticed.sandbox.syscalls import Machine

_SETGID, _SETUID, _SYS_ADMIN = 1 << 6, 1 << 7, 1 << 21  # bits of CAP_* (linux/capability.h)
_PR_SET_DUMPABLE: Final = 4
_SYSCTL: Final = Path("/proc/sys")


class HostFacts(Value, frozen=True, kw_only=True):
    """What the daemon is on this host: its ids, what its capabilities allow, and kernel settings.

    `admin`: may mount and unshare without a user namespace; `other_ids`: children may get another uid.
    """

    uid: int
    gid: int
    admin: bool
    other_ids: bool
    oom_score_adj: int = 0
    host: HostSupport = field(default_factory=HostSupport)


class Probed(Value, frozen=True, kw_only=True):
    """What confinement depends on at this host: the probe's result, and the input of `spec.build`.

    `landlock` is its ABI version, 0 for none; `delegation` is None where no cgroup was delegated.
    """

    machine: Machine
    standing: HostFacts
    landlock: int
    delegation: Delegation | None
    provided: Provided


def look() -> HostFacts:
    """Read the current state from /proc; what cannot be read counts as not given."""
    status = dict(line.split(":\t", 1) for line in _text(Path("/proc/self/status")).split("\n") if ":\t" in line)
    effective = int(status.get("CapEff", "0"), 16)
    return HostFacts(
        uid=os.geteuid(),
        gid=os.getegid(),
        admin=bool(effective & _SYS_ADMIN),
        other_ids=effective & (_SETUID | _SETGID) == _SETUID | _SETGID,
        oom_score_adj=int(_text(Path("/proc/self/oom_score_adj")) or 0),
        host=HostSupport(
            max_user_namespaces=_number("user/max_user_namespaces"),
            unprivileged_userns_clone=_number("kernel/unprivileged_userns_clone"),
            apparmor_restricts_userns=_number("kernel/apparmor_restrict_unprivileged_userns"),
            memfd_noexec=_number("vm/memfd_noexec"),
            # SECCOMP_MODE_FILTER (proc_pid_status(5)).
            filtered_already=status.get("Seccomp", "0").strip() == "2",
        ),
    )


def hide_memory() -> None:
    """Make this process undumpable: others of our uid cannot open its memory and descriptors (PR_SET_DUMPABLE).

    The daemon does this at boot, before the first child; a child that is executed is dumpable again. OSError when the
    kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(0), 0, 0, 0) == -1:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_DUMPABLE)")


def _number(name: str) -> int | None:
    """The sysctl `name` (a path below /proc/sys) as a number; None where there is no such setting."""
    text = _text(_SYSCTL / name).strip()
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    """The text of a file in /proc, "" when it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace")  # it contains the process's name, which is arbitrary bytes
    except OSError:
        return ""
