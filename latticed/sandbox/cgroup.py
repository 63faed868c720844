"""Control groups for children: limits on memory, tasks and cpu of a whole tree, and its kill (cgroup-v2.rst).

    /sys/fs/cgroup/system.slice/latticed.service/   delegated to the daemon
        supervisor/                                 the daemon
        plugins/acme.demo/                          what a plugin uses is counted here
            child-4f…/                              one of its children, with limits

Only inside a version 2 group that was delegated to the daemon and is not the root. The daemon moves only itself; a
child moves itself. A group without controllers sets no limits, but can still kill the tree.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latticed.kit import text
from latticed.kit.value import Value
from latticed.sandbox.levels import CGROUP, Failure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.sandbox.rlimits import ResourceLimits

SUPERVISOR: Final = "supervisor"
"""The group of the daemon itself: a group with limits for its children may not hold processes."""
PLUGINS: Final = "plugins"
"""The group that has a group for each plugin with a child."""
_CHILD: Final = "child-"
RESOURCES: Final = ("cpu", "memory", "io")
"""What the kernel measures pressure of."""
_CONTROLLERS: Final = ("memory", "pids", "cpu")
_PERIOD_US: Final = 100_000  # the kernel's default period of cpu.max
# White space and backslashes are octal in mountinfo (proc_pid_mountinfo(5)).
_ESCAPED: Final = re.compile(rb"\\([0-7]{3})")
FIX: Final = "run it as a systemd unit with Delegate=cpu memory pids"


class Delegation(Value, frozen=True, kw_only=True):
    """A group that was delegated to the daemon. `base` is its directory; `controllers` are enabled for the groups made
    in it, none before `claim`.
    """

    base: Path
    controllers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The group of one child: its directory `path`, and `procs`, a descriptor of its cgroup.procs to which the child
    writes its pid. Made by `make`; the caller calls `close` and, once all its processes have ended, `remove`.
    """

    path: Path
    procs: int = field(repr=False)

    def kill(self) -> None:
        """SIGKILL to everything in it, including what is forked meanwhile (cgroup.kill). OSError when it is gone."""
        (self.path / "cgroup.kill").write_text("1")

    def cpu_s(self) -> float | None:
        """Seconds of processor time of everything that was ever in it; None when it is gone."""
        return cpu_s(self.path)

    def out_of_memory(self) -> bool:
        """Whether the kernel killed a process in it for its memory limit."""
        return _keyed(self.path / "memory.events").get("oom_kill", "0") != "0"

    def remove(self) -> bool:
        """Remove its directory, and its plugin's after the last child; True when it is gone, False while a process in
        it is still dying.
        """
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        if self.path.parent.parent.name == PLUGINS:
            with contextlib.suppress(OSError):  # EBUSY: it has other children
                self.path.parent.rmdir()
        return True

    def close(self) -> None:
        """Close `procs`; the group itself stays."""
        os.close(self.procs)


def own_group(proc: Path = Path("/proc/self")) -> Path | None:
    """The directory of the version 2 group that this process is in, None without such a hierarchy.

    Names in /proc are arbitrary bytes; the kernel escapes white space in them (proc_pid_mountinfo(5)).
    """
    # Fields 4 and 5 are root and mount point; the type of file system follows a "-" after optional fields.
    mounts = [line.split(b" ") for line in (proc / "mountinfo").read_bytes().split(b"\n") if line]
    place = next(((row[3], row[4]) for row in mounts if row[row.index(b"-") + 1] == b"cgroup2"), None)
    lines = (proc / "cgroup").read_bytes().split(b"\n")
    name = next((line[3:] for line in lines if line.startswith(b"0::")), None)
    if place is None or name is None:
        return None
    root, mount = (_ESCAPED.sub(lambda found: bytes([int(found[1], 8)]), path) for path in place)
    relative = os.path.relpath(name, root)
    return None if relative.startswith(b"..") else Path(os.fsdecode(os.path.normpath(mount + b"/" + relative)))


def find() -> Delegation | Failure:
    """Return the group that was delegated to the daemon, or why none was. Changes nothing."""
    own = own_group()
    if own is None:
        return Failure(token=CGROUP, step="no cgroup version 2 hierarchy", fix="mount cgroup2 at /sys/fs/cgroup")
    # Already below the delegated group: systemd started it there (DelegateSubgroup=), or `claim` has moved it.
    base = own.parent if own.name == SUPERVISOR else own
    if not (base / "cgroup.events").exists():  # every group has it but the root
        return Failure(token=CGROUP, step="the root group is nobody's to divide", fix=FIX)
    if not (base / "cgroup.kill").exists():
        return Failure(token=CGROUP, step="no cgroup.kill", fix="a kernel of 5.14 or newer")
    if not _delegated(base):
        return Failure(token=CGROUP, step=f"the group {text.sanitise(base.name, 80)} is not delegated", fix=FIX)
    if not all(os.access(path, os.W_OK) for path in (base, base / "cgroup.procs", base / "cgroup.subtree_control")):
        return Failure(
            token=CGROUP, step="the delegated group cannot be written", fix=f"{FIX}, and no ProtectControlGroups=yes"
        )
    return Delegation(base=base)


def claim(found: Delegation) -> Delegation:
    """Enable the available controllers for groups below `found`; return it with those that are enabled.

    Moves the daemon into `supervisor` if it is alone in the group, since a group that has controllers enabled for its
    children may hold no process. With other processes in it, or without controllers, the groups only serve to kill.
    OSError when the group's files cannot be read.
    """
    own = own_group()
    offered = set((found.base / "cgroup.controllers").read_text().split()) & set(_CONTROLLERS)
    # Other processes in the group are not moved; the writes below then fail with EBUSY.
    if offered and own == found.base and _members(found.base) == {os.getpid()}:
        leaf = found.base / SUPERVISOR
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text("0")
    for name in sorted(offered):
        # One at a time: a write that names several controllers enables all of them or none (cgroup-v2.rst).
        with contextlib.suppress(OSError):  # EBUSY: processes in the group
            (found.base / "cgroup.subtree_control").write_text(f"+{name}")
    enabled = set((found.base / "cgroup.subtree_control").read_text().split())
    return Delegation(base=found.base, controllers=frozenset(enabled & set(_CONTROLLERS)))


def make(delegation: Delegation, limits: ResourceLimits, *, owner: str = "") -> Group:
    """Make a group for one child and set its limits; OSError when that fails, and no child's group is left then.

    `owner`: the id of its plugin, in whose group it is; empty for a child of the daemon's own.
    """
    path = _parent(delegation, owner) / f"{_CHILD}{secrets.token_hex(8)}"
    path.mkdir()
    try:
        for name, value in limit_files(limits, delegation.controllers).items():
            if (path / name).exists():  # memory.swap.max only with swap accounting
                (path / name).write_text(value)
        procs = os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    except BaseException:
        path.rmdir()
        raise
    return Group(path=path, procs=procs)


def of_plugin(delegation: Delegation, plugin_id: str) -> Path:
    """The directory of a plugin's group, which is there while the plugin has a child."""
    path = delegation.base / PLUGINS / plugin_id
    # The kernel has files in each group, such as memory.max, and may get more; a plugin may be called like one.
    return path.with_name(f"_{plugin_id}") if path.is_file() else path


def cpu_s(path: Path) -> float | None:
    """Seconds of processor time of everything that was ever in the group at `path` or below it; None when it is gone.

    The kernel counts that without the cpu controller, too (cgroup-v2.rst, cpu.stat).
    """
    found = _keyed(path / "cpu.stat")
    return int(found["usage_usec"]) / 1_000_000 if "usage_usec" in found else None


def number(path: Path) -> int | None:
    """A file with one number, such as memory.current; None without it, as where its controller is not enabled."""
    try:
        return int(path.read_bytes())
    except (OSError, ValueError):
        return None


def pressure(path: Path) -> dict[str, float]:
    """Percent of the last ten seconds in which something in the group at `path` waited for `cpu`, `memory` or `io`.

    Without those that the kernel does not measure (Documentation/accounting/psi.rst; a boot parameter may turn it off).
    """
    found = {}
    for resource in RESOURCES:
        with contextlib.suppress(OSError, ValueError, IndexError):
            # "some avg10=0.12 avg60=0.03 avg300=0.00 total=5861"
            some = (path / f"{resource}.pressure").read_text().split()
            found[resource] = float(some[1].removeprefix("avg10="))
    return found


def limit_files(limits: ResourceLimits, controllers: frozenset[str]) -> Mapping[str, str]:
    """Control files and their values, such as `pids.max` and "32", for the `controllers` that are enabled."""
    files: dict[str, str] = {}
    if "memory" in controllers:
        # Without swap, else it would be slowed down instead of killed; and the whole group is killed, not one process.
        files |= {"memory.max": str(limits.memory_bytes), "memory.swap.max": "0", "memory.oom.group": "1"}
    if "pids" in controllers:
        files["pids.max"] = str(limits.tasks)
    if "cpu" in controllers and limits.cpu_percent is not None:
        files["cpu.max"] = f"{limits.cpu_percent * _PERIOD_US // 100} {_PERIOD_US}"
    return files


def sweep(delegation: Delegation) -> int:
    """Kill leftover children of an earlier daemon below `delegation`, remove their groups, return how many children's
    groups there were.

    Call it before the first child. Groups whose processes are still dying are removed by the next call.
    """
    plugins = [one for one in delegation.base.glob(f"{PLUGINS}/*") if one.is_dir()]
    found = [path for place in (delegation.base, *plugins) for path in place.glob(f"{_CHILD}*")]
    for path in found:
        # Any error: another process may have removed it, or its processes are still dying. No start fails for it.
        with contextlib.suppress(OSError):
            (path / "cgroup.kill").write_text("1")
    for path in (*found, *plugins):
        with contextlib.suppress(OSError):
            path.rmdir()
    return len(found)


def _parent(delegation: Delegation, owner: str) -> Path:
    """The group in which a child of `owner` gets its own: the plugin's, made where it is missing; or the delegated one.

    OSError when it cannot be made, or the controllers not be enabled in it.
    """
    if not owner:
        return delegation.base
    path = of_plugin(delegation, owner)
    for one in (path.parent, path):
        one.mkdir(exist_ok=True)
        # Each time: a group that an earlier daemon left may not have them enabled.
        if delegation.controllers:
            (one / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in sorted(delegation.controllers)))
    return path


def _keyed(path: Path) -> dict[str, str]:
    """A file of keys and values, one pair a line; empty when it is not there."""
    try:
        return dict(line.split(" ", 1) for line in path.read_text().splitlines())
    except (OSError, ValueError):
        return {}


def _delegated(base: Path) -> bool:
    """Whether the group was handed over to this daemon: by ownership (not root), by systemd's extended attribute, or as
    the top of a cgroup namespace.
    """
    # Not as root, who owns every group by default.
    if os.geteuid() != 0 and base.stat().st_uid == os.geteuid():
        return True
    # Both are set by systemd; reading the first one takes CAP_SYS_ADMIN (xattr(7)).
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(base, name) == b"1":
                return True
    return os.path.ismount(base)  # the caller excluded the root: a container's own hierarchy


def _members(path: Path) -> set[int]:
    """The pids of the processes in the group, without those in groups below it."""
    return {int(pid) for pid in (path / "cgroup.procs").read_text().split()}
