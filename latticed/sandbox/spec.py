"""The complete plan for one child, made in the daemon and carried out by the stub.

`build` combines what the level guarantees: namespaces, Landlock, seccomp, limits, ids, environment. Either all of the
plan is carried out, or the child's program is never executed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal

from latticed.kit.value import Value
from latticed.model.errors import Problem
from latticed.sandbox import elf_programs, landlock, levels, namespaces, rlimits, seccomp, stub_calls
from latticed.sandbox import visible_paths as view
from latticed.sandbox.artifact import Artifact
from latticed.sandbox.levels import Level

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.sandbox.cgroup import Delegation
    from latticed.sandbox.host_facts import Probed
    from latticed.sandbox.levels import Chosen
    from latticed.sandbox.rlimits import ResourceLimits
    from latticed.sandbox.visible_paths import VisiblePaths

Network = Literal["none", "own", "host"]
"""`none`: no sockets at all; `own`: a namespace with nothing but a loopback device; `host`: the host's network."""
SCRIPT_FD: Final = 10
"""The number at which an interpreter finds the script, where there is no root of its own to copy it to."""
_EXEC_FD_FROM: Final = 128  # above the stub's own descriptors
_DOOR_TASKS: Final = 2  # the process that makes sockets, and the one that starts it
_OOM_SCORE: Final = 500  # of 1000 (proc_pid_oom_score_adj(5)): the kernel kills a child before the daemon
_READS_DESCRIPTOR: Final = {"node": ("--preserve-symlinks-main",)}  # else node resolves the memfd's name as a path
# Calls that the stub makes by number: C libraries have no wrapper for some, or only newer ones do.
_STUB_CALLS: Final = (
    "clone execveat pivot_root mount_setattr open_tree move_mount close_range landlock_create_ruleset"
    " landlock_add_rule landlock_restrict_self"
).split()


class Program(Value, frozen=True, kw_only=True):
    """A program of the host, to be confined like an artifact: `path` is absolute. It comes from the settings, never
    from a plugin.
    """

    path: str
    args: tuple[str, ...] = ()


class Ids(Value, frozen=True, kw_only=True):
    """The uid and gid of a child, where the daemon may change them: never 0; at `dedicated` no other child has them."""

    uid: int
    gid: int

    def __post_init__(self) -> None:
        if self.uid < 1 or self.gid < 1:
            raise ValueError(f"expected a child to be anyone but root, found uid {self.uid}, gid {self.gid}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """How to make one child; made by `build`, carried out by the stub.

    `plan` is what the stub reads; `artifact_fd` belongs to the Artifact it was made from, which must stay open until
    the child was started. `own_pids`: the child has a pid namespace, and the end of process 1 kills its tree. `init`:
    process 1 is not the child but `elf_programs.reaps`, which reaps orphans, since the child may start processes.
    `delegation`: where it gets a cgroup, in that of `owner`.
    """

    level: Level
    features: frozenset[str]
    limits: ResourceLimits
    plan: Mapping[str, Any] = field(repr=False)
    artifact_fd: int | None = None
    door_fd: int | None = None
    own_pids: bool = False
    init: bool = False
    descriptors: tuple[int, ...] = ()
    given: Mapping[int, int] = field(default_factory=dict)
    delegation: Delegation | None = None
    owner: str = ""


class DataDirectory(Value, frozen=True, kw_only=True):
    """A directory of the host that the child may change, at `namespaces.DATA` in its own root: its absolute `path`, and
    `file_bytes`: the largest file in it.
    """

    path: str
    file_bytes: int


class DoorRequest(Value, frozen=True, kw_only=True):
    """A way for the daemon into the network `own` of a child (`stub_door`): it gets sockets of there by `fd`.

    `fd`: one end of a pair of sockets (SOCK_SEQPACKET), which must stay open until the child runs. `listen`: IPv4
    addresses and ports at which the daemon listens in there. `names`: host names and what they resolve to in there.
    """

    fd: int
    listen: tuple[tuple[str, int], ...] = ()
    names: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRequest:
    """What to run and how; see `build`.

    `interpreters` maps names to paths. `binds`: files and directories to read besides the system's own, at the same
    place inside; `lists`: directories whose names alone may be read. `descriptors`: numbers above 2 that the child is
    to have open (its standard ones it always has); `given`: more of them -> descriptors of ours, which the child gets
    copies of and which must stay open until it runs. `environment` is all the child gets. `data` takes a root of its
    own and the feature `workdir`, `door` the network `own`. `owner`: the id of the plugin whose child it is, or empty.
    """

    program: Artifact | Program
    args: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    limits: ResourceLimits = field(default_factory=rlimits.ResourceLimits)
    ids: Ids | None = None
    interpreters: Mapping[str, str] = field(default_factory=dict)
    binds: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    descriptors: tuple[int, ...] = ()
    given: Mapping[int, int] = field(default_factory=dict)
    network: Network = "none"
    data: DataDirectory | None = None
    door: DoorRequest | None = None
    owner: str = ""


def build(request: ChildRequest, chosen: Chosen, probed: Probed) -> ChildSpec:
    """The spec for `request` at the level `chosen` on the host as `probed`. Starts nothing and leaves nothing open.

    Problem: `sandbox_unavailable` when a program in memory may not be executed and there is nowhere to copy it,
    `interpreter_not_allowed` when the interpreter of a script is not there or is no program. ValueError: a caller's
    mistake, such as a child that would be root.
    """
    _check(request, chosen, probed)
    shape = _shape(request, chosen, probed)
    if shape.init:  # our processes count as tasks of the same uid or group, and must not take any of the child's
        ours = 1 if request.door is None else _DOOR_TASKS + 1
        request = replace(request, limits=replace(request.limits, tasks=request.limits.tasks + ours))
    plan = {
        "numbers": {name: probed.machine.numbers[name] for name in _STUB_CALLS},
        "cgroup": probed.delegation is not None,
        "oom_score_adj": max(_OOM_SCORE, probed.standing.oom_score_adj),  # lowering it needs powers
        "cwd": namespaces.SCRATCH if shape.workdir else "/",
        "argv": shape.argv,
        "env": [f"{name}={value}" for name, value in request.environment.items()],
        "blocked": (),  # no signal; `namespaces.first` blocks one for process 1
        **_identity(request, chosen, probed, shape),
        **_surroundings(request, probed, shape),
        **_walls(request, chosen, probed, shape),
        "init": namespaces.first(probed.machine) if shape.init else None,
    }
    # What the daemon itself needs to start and watch the child is beside the plan, which only the stub reads.
    return ChildSpec(
        level=chosen.level,
        features=shape.features,
        limits=request.limits,
        plan=plan,
        artifact_fd=shape.artifact.fd if shape.artifact else None,
        door_fd=request.door.fd if request.door is not None else None,
        own_pids=shape.own_root,
        init=shape.init,
        descriptors=request.descriptors,
        given=request.given,
        delegation=probed.delegation,
        owner=request.owner,
    )


class _Shape(Value, frozen=True, kw_only=True):
    """What follows from the request and the level, computed once for all parts of the plan.

    `own_user`: in a user namespace of its own, which is needed for the others when the daemon is not an admin. `init`:
    see ChildSpec. `script`: the artifact needs an interpreter. `copied`: the artifact is copied into the child's own
    root. `path`: the host program to execute, None for the artifact itself.
    """

    features: frozenset[str]
    own_root: bool
    own_user: bool
    init: bool
    workdir: bool
    artifact: Artifact | None
    script: bool
    copied: bool
    path: str | None
    argv: list[str]
    seen: VisiblePaths


def _shape(request: ChildRequest, chosen: Chosen, probed: Probed) -> _Shape:
    """What follows from these three, see _Shape; Problem interpreter_not_allowed."""
    own_root = chosen.level >= Level.ISOLATED
    network = {levels.NETWORK} if request.network != "none" else set()
    artifact = request.program if isinstance(request.program, Artifact) else None
    script = artifact is not None and artifact.interpreter is not None
    path, argv = _command(request, own_root=own_root)
    return _Shape(
        features=chosen.features | network,
        own_root=own_root,
        own_user=own_root and not probed.standing.admin,
        init=own_root and levels.PROCESSES in chosen.features,
        workdir=own_root and levels.WORKDIR in chosen.features,
        artifact=artifact,
        script=script,
        # A script is opened by path, and in its own root there is no /proc with a path for a descriptor. A program is
        # executed by descriptor, unless the kernel forbids that for memory.
        copied=artifact is not None and own_root and (script or not artifact.executable),
        path=path,
        argv=argv,
        seen=view.view(
            path,
            binds=request.binds,
            lists=request.lists,
            processes=levels.PROCESSES in chosen.features,
            network=bool(network),
            names=request.network == "host",
        ),
    )


def _door(asked: DoorRequest, probed: Probed) -> dict[str, Any]:
    """The entry of the plan for a door, as `stub_door` reads it."""
    program = seccomp.door_program(probed.machine)
    return {"listen": list(asked.listen), "seccomp": {"code": program.code, "blanks": program.blanks}}


def _name_files(door: DoorRequest | None) -> tuple[tuple[str, str], ...]:
    """The files of the resolver in a network of one's own: only what is in `hosts` has an address."""
    names = [("localhost", "127.0.0.1"), ("localhost", "::1"), *(door.names if door is not None else ())]
    hosts = "".join(f"{address} {name}\n" for name, address in names)
    # With an empty resolv.conf a C library asks 127.0.0.1, where nobody answers: it fails at once.
    return (("/etc/hosts", hosts), ("/etc/nsswitch.conf", "hosts: files\n"), ("/etc/resolv.conf", ""))


def _identity(request: ChildRequest, chosen: Chosen, probed: Probed, shape: _Shape) -> dict[str, Any]:
    """The entries of the plan for uid, gid and rlimits."""
    ids = request.ids
    # RLIMIT_FSIZE, in bytes: without a work directory there is no file that the child may write, so 0.
    file_bytes = None if chosen.level is Level.OPEN else request.limits.scratch_bytes if shape.workdir else 0
    if request.data is not None and file_bytes is not None:
        file_bytes = max(file_bytes, request.data.file_bytes)  # /scratch has a size of its own besides
    return {
        "ids": (ids.uid, ids.gid) if ids else None,
        "ids_first": ids is not None and shape.own_user,
        "rlimits": rlimits.table(
            request.limits,
            counted_alone=shape.own_user or ids is not None,
            memory_group=probed.delegation is not None and "memory" in probed.delegation.controllers,
            file_bytes=file_bytes,
        ),
    }


def _surroundings(request: ChildRequest, probed: Probed, shape: _Shape) -> dict[str, Any]:
    """The entries of the plan for namespaces, the file tree of the root, and the program to execute."""
    here = probed.standing
    tree = namespaces.tree(
        shape.seen,
        limits=request.limits,
        workdir=shape.workdir,
        data=request.data.path if request.data is not None else "",
        owner=(request.ids.uid, request.ids.gid) if request.ids else (here.uid, here.gid),
        artifact_bytes=shape.artifact.size if shape.artifact is not None and shape.copied else 0,
        executable=not shape.script,
        init=elf_programs.reaps(probed.machine) if shape.init else b"",
    )
    names = _name_files(request.door) if request.network == "own" else ()
    unshared = namespaces.unshared(own_user=shape.own_user, own_net=request.network != "host")
    return {
        "unshare": unshared if shape.own_root else [],
        "try_unshare": namespaces.OPTIONAL if shape.own_root else (),
        # The names under which the stub reports the pids, in the order in which it makes the processes.
        "own_pids": (("init", "pid") if shape.init else ("pid",)) if shape.own_root else (),
        "loopback": request.network == "own",
        "door": _door(request.door, probed) if request.door is not None else None,
        "tree": {**tree, "files": names} if shape.own_root else None,
        "program": namespaces.ARTIFACT if shape.copied and not shape.script else shape.path or stub_calls.ARTIFACT,
    }


def _walls(request: ChildRequest, chosen: Chosen, probed: Probed, shape: _Shape) -> dict[str, Any]:
    """The plan's descriptors, Landlock ruleset and seccomp filter."""
    # The interpreter opens the script through this descriptor, so it must survive exec.
    script = {SCRIPT_FD} if shape.script and not shape.own_root else set()
    kept = {0, 1, 2, *request.descriptors, *request.given, *script}
    walls: dict[str, Any] = {
        "keep": sorted(kept),
        # The filter allows execveat with this number only. RLIMIT_NOFILE keeps the child from ever getting it again.
        "exec_fd": max(request.limits.open_files, _EXEC_FD_FROM),
        "landlock": None,
        "seccomp": None,
    }
    if chosen.level >= Level.FILTERED:
        network = levels.NETWORK in shape.features
        walls["landlock"] = landlock.plan(
            shape.seen,
            abi=probed.landlock,
            own_root=shape.own_root,
            workdir=shape.workdir,
            data=request.data is not None,
            network=network,
        )
        # A cgroup changes no system call: left out, so that one cached program serves with and without it.
        program = seccomp.program(probed.machine, shape.features - {levels.CGROUP}, own_pids=shape.own_root)
        walls["seccomp"] = {"code": program.code, "blanks": program.blanks}
    return walls


def _command(request: ChildRequest, *, own_root: bool) -> tuple[str | None, list[str]]:
    """The host program to execute (None: the artifact itself) and its arguments, the first of which is its own name.

    Problem interpreter_not_allowed for a script whose interpreter is not there or is no program.
    """
    artifact = request.program
    if isinstance(artifact, Program):
        return artifact.path, [artifact.path, *artifact.args, *request.args]
    # An executable artifact; its first argument is for display, since the program is executed by descriptor.
    if artifact.interpreter is None:
        return None, [namespaces.ARTIFACT, *request.args]
    # The operator's path for this name; the path in the script's first line does not count.
    path = request.interpreters.get(artifact.interpreter, "")
    if not _is_program(path):
        raise Problem(
            "interpreter_not_allowed",
            f"expected the interpreter {artifact.interpreter} to be an executable program on this host, found none",
            "name its absolute path in the settings; a wrapper script is no interpreter",
        )
    # Without a root of its own the child sees the host's /proc, and opens the memory by it.
    script = namespaces.ARTIFACT if own_root else f"/proc/self/fd/{SCRIPT_FD}"
    options = () if own_root else _READS_DESCRIPTOR.get(artifact.interpreter, ())
    return path, [path, *options, *artifact.interpreter_args, script, *request.args]


def _is_program(path: str) -> bool:
    """Whether the absolute `path` is an ELF file that the daemon may read."""
    try:
        with open(path, "rb") as source:
            return os.path.isabs(path) and source.read(4) == b"\x7fELF"
    except OSError:
        return False


def _check(request: ChildRequest, chosen: Chosen, probed: Probed) -> None:
    """Raise for what must never be started, as `build`: ValueError, Problem sandbox_unavailable."""
    if request.ids is None and probed.standing.uid == 0:
        raise ValueError("expected ids for the child: a child is never uid 0")
    if chosen.level is Level.FILTERED and levels.PROCESSES in chosen.features and probed.delegation is None:
        raise ValueError("expected a way to end the whole tree of a child with processes: isolated, or a cgroup")
    # From SCRIPT_FD on the stub and the launcher place their own.
    numbers = (*request.descriptors, *request.given)
    if any(not 2 < fd < SCRIPT_FD for fd in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(f"expected descriptors 3 to {SCRIPT_FD - 1}, each once, found {numbers}")
    if request.network != "none" and chosen.level < Level.ISOLATED:
        raise ValueError(
            "expected a level of isolated or more for a child with a network: it would see our directories"
        )
    if request.door is not None and request.network != "own":
        raise ValueError(f"expected the network own for a door, found {request.network}")
    if request.data is not None and (chosen.level < Level.ISOLATED or levels.WORKDIR not in chosen.features):
        raise Problem(
            levels.CODE,
            "expected a root directory of the child's own for its data, found that this host gives none",
            "latticectl health shows what this host gives and why no more",
        )
    artifact = request.program
    # Scripts are not meant: their interpreter is a file, and only reads the memory.
    in_memory = isinstance(artifact, Artifact) and artifact.interpreter is None and not artifact.executable
    if in_memory and chosen.level < Level.ISOLATED:
        raise Problem(
            levels.CODE,
            "expected to execute a program in memory, found that sysctl vm.memfd_noexec=2 forbids it",
            "set it to 1 or less, or let user namespaces be: then the program is copied into the child's own root",
        )
