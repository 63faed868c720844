"""Which namespaces and which root directory a child gets (a plan for the stub; namespaces(7)).

The root is a small tmpfs, read-only once it is filled: read-only clones of the paths of `visible_paths.view`, the
writable `/scratch`, the plugin's script. There is no /proc, no /sys, no home, no file of the daemon.
"""

from __future__ import annotations

import resource
import signal
from typing import TYPE_CHECKING, Any, Final

from latticed.sandbox import rlimits, seccomp, stub_calls
from latticed.sandbox import visible_paths as view

if TYPE_CHECKING:
    from latticed.sandbox.rlimits import ResourceLimits
    from latticed.sandbox.syscalls import Machine
    from latticed.sandbox.visible_paths import VisiblePaths

# Paths in the child's own root: its work directory, what is kept of it, and its artifact where that is copied.
SCRATCH: Final = "/scratch"
DATA: Final = "/data"
ARTIFACT: Final = "/artifact"
# Name for messages, and flag (CLONE_NEW* in linux/sched.h).
USER: Final = ("user", 0x10000000)
MOUNT: Final = ("mnt", 0x00020000)
PID: Final = ("pid", 0x20000000)
NET: Final = ("net", 0x40000000)
IPC: Final = ("ipc", 0x08000000)
OPTIONAL: Final = (0x04000000, 0x02000000)  # CLONE_NEWUTS, CLONE_NEWCGROUP
"""Optional namespaces: unshared if the host allows it; no guarantee depends on them."""
_MOUNTPOINTS: Final = ("/tmp", "/run", "/var", "/usr")  # noqa: S108 - any directory will do, in one's own namespace
# Room for mount points, links and the program of process 1; the artifact's size is added where it is copied.
_ROOT_BYTES: Final = 1 << 20
_ROOT_INODES: Final = 1024
_ZERO_BYTES: Final = 1 << 60  # sparse: reading never comes to its end, and it takes no memory


def unshared(*, own_user: bool, own_net: bool) -> list[tuple[str, int]]:
    """(name, flag) in the order in which to unshare them.

    The user namespace is first: it gives the capabilities that the others need. `own_user`: unshare one at all;
    `own_net`: False for a child that uses the host's network.
    """
    kinds = [USER] if own_user else []
    return [*kinds, MOUNT, PID, *([NET] if own_net else []), IPC]


def tree(
    seen: VisiblePaths,
    *,
    limits: ResourceLimits,
    workdir: bool,
    data: str,
    owner: tuple[int, int],
    artifact_bytes: int,
    executable: bool,
    init: bytes,
) -> dict[str, Any]:
    """The root to build for a child with the paths `seen`, as `stub_root.build_tree` reads it.

    `workdir`: with a /scratch, of the size in `limits`, which belongs to `owner` (uid, gid). `data`: the directory of
    the host that it may change as /data, "" for none. `artifact_bytes` is the size of what to copy into the root, 0 for
    none. `executable`: the copy is executed, not read by an interpreter. `init` is the program of process 1, b"" where
    that is the child itself. The caller adds `files`: path and text of what is made for this child.
    """
    # One inode more than the plugin may use: the root of a tmpfs takes one.
    scratch = (
        f"mode=0700,uid={owner[0]},gid={owner[1]},size={limits.scratch_bytes},nr_inodes={limits.scratch_inodes + 1}"
    )
    return {
        "mountpoints": _MOUNTPOINTS,
        "bytes": _ROOT_BYTES + artifact_bytes,
        "inodes": _ROOT_INODES,
        "binds": [(path, False) for path in seen.read] + [(path, True) for path in view.DEVICES],
        "needed": seen.needed,
        # Not above the daemon's own hard limit: truncate(2) to more ends the process (SIGXFSZ).
        "zero": (view.ZERO, rlimits.least(_ZERO_BYTES, resource.getrlimit(resource.RLIMIT_FSIZE)[1])),
        "links": seen.links,
        "scratch": scratch if workdir else "",
        "data": data,
        "artifact": ARTIFACT if artifact_bytes else "",
        "artifact_mode": 0o555 if executable else 0o444,
        "init": init,
    }


def first(machine: Machine) -> dict[str, Any]:
    """The plan's overrides for process 1, where that is not the child itself but `elf_programs.reaps`.

    It keeps no descriptors, else the child's pipes would not reach end of file while it lives, and may only wait.
    """
    program = seccomp.init_program(machine)
    return {
        "program": stub_calls.INIT,
        "argv": ["latticed-init"],
        "env": [],
        "cwd": "/",
        # It waits for the signal with rt_sigtimedwait, which takes signals that are blocked (sigwaitinfo(2)).
        "blocked": (int(signal.SIGCHLD),),
        "keep": [],
        "landlock": None,  # it can open nothing
        "seccomp": {"code": program.code, "blanks": program.blanks},
    }
