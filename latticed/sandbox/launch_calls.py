"""A plan as a list of system calls: what the launch stub does, in the same order and for the same reasons (`stub`,
`stub_root`), without an interpreter in the new process.

The list is made once for all plans that differ in nothing but ids, sizes, arguments and environment.
"""

from __future__ import annotations

import errno
import functools
import itertools
import marshal
import os
import secrets
import struct
from typing import TYPE_CHECKING, Any, Final

from latticed.sandbox import call_program, stub_calls, syscalls
from latticed.sandbox.call_program import ANY, Calls, Cell
from latticed.sandbox.launch_root import O_CLOEXEC, build_root, write_to

if TYPE_CHECKING:
    from collections.abc import Mapping

    from latticed.sandbox.call_program import CallProgram
    from latticed.sandbox.syscalls import Machine

Plan = dict[str, Any]
# From linux/sched.h, prctl.h, capability.h, close_range.h, sockios.h, if.h, poll.h.
_CLONE_PARENT, _SIGKILL, _SIGCHLD, _POLLIN = 0x8000, 9, 17, 1
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _FILTER, _CAPBSET_DROP = 1, 4, 22, 2, 24
_SET_NO_NEW_PRIVS, _CAP_AMBIENT, _CLEAR_ALL, _LAST_CAP = 38, 47, 4, 63
_CAPABILITY_VERSION_3: Final = 0x20080522
_CLOSE_RANGE_CLOEXEC, _NO_FD, _SIOCSIFFLAGS, _UP_RUNNING = 4, 0xFFFFFFFF, 0x8914, 0x41
_MAP: Final = b"%10d %10d 1"  # of equal length for all
# What plans of one kind differ in, besides the sizes of their file systems.
_OWN: Final = ("argv", "env", "ids", "tree")
_SIZES: Final = ("bytes", "scratch")
_MOST_UID: Final = (1 << 31) - 1  # the program looks at the signs of words


def executable(plan: Mapping[str, Any]) -> tuple[bytes, CallProgram] | None:
    """The ELF file that carries out the plan when it is executed, and how to read its report; None where only the stub
    can: with a door, with files of its own, on another machine.
    """
    machine = syscalls.machine()
    if machine is None or not possible(plan):
        return None
    tree, ids = plan["tree"], plan["ids"]
    shape = {name: part for name, part in plan.items() if name not in _OWN}
    shape |= {"ids": bool(ids), "tree": tree and {name: part for name, part in tree.items() if name not in _SIZES}}
    shape["scratch"] = bool(tree and tree["scratch"])
    # Format 2: the same bytes for equal values, however often each is referred to.
    made = _made(machine, marshal.dumps(shape, 2))
    given: dict[str, Any] = {
        "argv": [os.fsencode(word) for word in plan["argv"]],
        "env": [os.fsencode(word) for word in plan["env"]],
        # Two words of 31 bits: the program looks at the signs of words.
        "exec_key": secrets.randbits(31) << 32 | secrets.randbits(31),
    }
    if ids:
        given |= {"uid": ids[0], "gid": ids[1]}
    mapped = ids if plan["ids_first"] else (os.getuid(), os.getgid())
    given |= {name: _MAP % (number, number) for name, number in zip(("uid_map", "gid_map"), mapped, strict=True)}
    if tree:
        given["root"] = f"mode=0755,size={tree['bytes']},nr_inodes={tree['inodes']}".encode()
        given["scratch"] = tree["scratch"].encode()
    return made.elf(machine, given), made


def possible(plan: Mapping[str, Any]) -> bool:
    """Whether a list of calls can carry the plan out, on a machine that there is code for."""
    tree, ids = plan["tree"], plan["ids"]
    return not plan["door"] and not (tree and tree["files"]) and max(ids or (0,)) <= _MOST_UID


@functools.lru_cache(maxsize=64)
def _made(machine: Machine, shape: bytes) -> CallProgram:
    """The program for all plans of this shape."""
    plan = marshal.loads(shape)  # noqa: S302 - our own, from above
    calls = Calls(machine)
    calls.begin("plan")
    calls.call("umask", 0o022)  # the child's uid must be able to enter the root's directories
    if plan["cgroup"]:
        calls.begin("cgroup")
        calls.call("write", stub_calls.CGROUP, b"0", 1)  # before memory is charged to the daemon's group
    calls.begin("oom_score_adj")
    score = str(plan["oom_score_adj"]).encode()
    write_to(calls, b"/proc/self/oom_score_adj", score, len(score))
    if plan["tree"] and plan["tree"]["data"]:
        calls.begin("data")
        calls.call("chdir", os.fsencode(plan["tree"]["data"]))
    _enter_namespaces(calls, plan)
    if plan["tree"]:
        build_root(calls, plan["tree"], scratch=plan["scratch"])
    if plan["own_pids"]:
        _enter_pid_namespace(calls, plan)
    else:
        _become_child(calls, plan, calls.parameter("argv"), calls.parameter("env"))
    return calls.program()


def _change_ids(calls: Calls) -> None:
    uid, gid = calls.parameter("uid"), calls.parameter("gid")
    calls.begin("setgroups")
    calls.call("setgroups", 0, 0)
    calls.begin("setresgid")
    calls.call("setresgid", gid, gid, gid)
    calls.begin("setresuid")
    calls.call("setresuid", uid, uid, uid)


def _enter_namespaces(calls: Calls, plan: Plan) -> None:
    if plan["ids_first"]:
        _change_ids(calls)
    for token, flag in plan["unshare"]:
        calls.begin(f"unshare({token})")
        calls.call("unshare", flag)
        if token == "user":  # noqa: S105
            # Else /proc/self/uid_map belongs to root, after a change of ids.
            calls.call("prctl", _SET_DUMPABLE, 1)
            calls.begin("setgroups_deny")
            write_to(calls, b"/proc/self/setgroups", b"deny", len(b"deny"))
            for name in ("gid_map", "uid_map"):
                calls.begin(name)
                write_to(calls, f"/proc/self/{name}".encode(), calls.parameter(name), len(_MAP % (0, 0)))
    for flag in plan["try_unshare"]:
        calls.call("unshare", flag, errors=ANY)
    if plan["loopback"]:
        calls.begin("loopback")
        sock = calls.room(b"")
        calls.call("socket", 2, 2, 0, into=sock)
        device = calls.room(struct.pack("16sh22x", b"lo", _UP_RUNNING))
        calls.call("ioctl", sock, _SIOCSIFFLAGS, calls.constant(device.address))


def _enter_pid_namespace(calls: Calls, plan: Plan) -> None:
    """One child for each name, as siblings; this process reports their pids and ends."""
    calls.begin("clone")
    pair, heard = calls.room(b""), calls.room(b"")
    calls.call("pipe2", calls.constant(pair.address), 0)
    # The two numbers have 32 bits each, in one word: they get cells of their own.
    wait, go = calls.room(b""), calls.room(b"")
    for number, cell in ((pair, wait), (pair.after(4), go)):
        calls.look(number, into=cell)
    branches = []
    for name in plan["own_pids"]:
        kind = call_program.INIT if name == "init" else call_program.PID
        record, label = calls.record(kind), calls.label()
        calls.call("clone", _CLONE_PARENT | _SIGCHLD, into=record.after(8), on_zero=label)
        # The daemon must know the pids before anything can fail.
        calls.call("write", stub_calls.STATUS, calls.constant(record.address), 16)
        branches.append((name, label))
    calls.call("write", go, b"1" * len(branches), len(branches))
    calls.call("exit_group", 0)
    for name, label in branches:
        calls.place(label)
        told, mute = calls.label(), calls.label()
        calls.begin("clone")
        calls.call("close", go)
        calls.call("read", wait, calls.constant(heard.address), 1, on_zero=mute, on_more=told)
        calls.place(mute)  # end of file: the process that makes these has died
        calls.call("exit_group", 127)
        calls.place(told)
        calls.call("close", wait)
        if name == "init":
            own = {**plan, **plan["init"]}
            argv, env = (calls.words([os.fsencode(word) for word in own[part]]) for part in ("argv", "env"))
            _become_child(calls, own, argv, env)
        else:
            _become_child(calls, plan, calls.parameter("argv"), calls.parameter("env"))


def _become_child(calls: Calls, plan: Plan, argv: Cell, env: Cell) -> None:
    calls.begin("exec_fd")
    calls.call("chdir", os.fsencode(plan["cwd"]))
    program: Any = plan["program"]
    if isinstance(program, str):
        path, program = os.fsencode(program), calls.room(b"")
        calls.call("openat", stub_calls.AT_FDCWD, path, os.O_PATH | O_CLOEXEC, into=program)
    calls.call("dup3", program, plan["exec_fd"], O_CLOEXEC)
    calls.call("umask", 0o077)
    _drop_privileges(calls, plan)
    _tie_to_daemon(calls)
    _execute(calls, plan, argv, env)


def _drop_privileges(calls: Calls, plan: Plan) -> None:
    for which, value in plan["rlimits"]:
        calls.begin(f"rlimit({which})")
        calls.call("prlimit64", 0, which, struct.pack("<qq", value, value))
    calls.begin("bounding_set")
    dropped = calls.label()
    for capability in range(_LAST_CAP + 1):
        # Past the kernel's last one; or an ordinary user, who has none.
        calls.call("prctl", _CAPBSET_DROP, capability, errors={errno.EINVAL, errno.EPERM}, on_error=dropped)
    calls.place(dropped)
    if plan["ids"] and not plan["ids_first"]:
        _change_ids(calls)
    calls.begin("capset")
    calls.call("prctl", _CAP_AMBIENT, _CLEAR_ALL)
    calls.call("capset", struct.pack("<Ii", _CAPABILITY_VERSION_3, 0), struct.pack("<6I", *[0] * 6))
    calls.begin("uid")
    found = [calls.room(b"") for _ in range(3)]
    calls.call("getresuid", *(calls.constant(one.address) for one in found))
    root, fine = calls.label(), calls.label()
    for one in found[:-1]:
        calls.look(one, on_zero=root)
    calls.look(found[-1], on_zero=root, on_more=fine)
    calls.place(root)
    calls.fail(errno.EPERM)
    calls.place(fine)


def _tie_to_daemon(calls: Calls) -> None:
    calls.begin("pdeathsig")
    calls.call("prctl", _SET_PDEATHSIG, _SIGKILL)
    calls.begin("daemon_gone")
    alive, now = calls.label(), calls.room(bytes(16))
    asked = calls.room(struct.pack("<ihh", stub_calls.DAEMON, _POLLIN, 0))
    calls.call("ppoll", calls.constant(asked.address), 1, calls.constant(now.address), 0, 8, on_zero=alive)
    calls.fail(errno.ESRCH)
    calls.place(alive)


def _execute(calls: Calls, plan: Plan, argv: Cell, env: Cell) -> None:
    if blocked := sum(1 << number - 1 for number in plan["blocked"]):
        calls.call("rt_sigprocmask", 0, struct.pack("<Q", blocked), 0, 8)  # 0: SIG_BLOCK
    calls.begin("no_new_privs")
    calls.call("prctl", _SET_NO_NEW_PRIVS, 1)
    if plan["landlock"]:
        _restrict_paths(calls, plan["landlock"])
    calls.begin("close_range")
    for low, high in itertools.pairwise([-1, *sorted(plan["keep"]), _NO_FD + 1]):
        if low + 1 < high:
            calls.call("close_range", low + 1, high - 1, _CLOSE_RANGE_CLOEXEC)
    key = calls.parameter("exec_key")
    if plan["seccomp"]:
        _filter_calls(calls, plan, key)
    calls.begin("execveat")
    calls.call("execveat", plan["exec_fd"], b"", argv, env, stub_calls.AT_EMPTY_PATH, key)


def _restrict_paths(calls: Calls, plan: Plan) -> None:
    calls.begin("landlock_create_ruleset")
    attributes, ruleset = bytes.fromhex(plan["attributes"]), calls.room(b"")
    calls.call("landlock_create_ruleset", attributes, len(attributes), 0, into=ruleset)
    calls.begin("landlock_add_rule")
    for path, for_directory, for_file in plan["rules"]:
        name, other, done = os.fsencode(path), calls.label(), calls.label()
        # What cannot be opened gets no rule.
        for access, kind in ((for_directory, os.O_DIRECTORY), (for_file, 0)):
            rule, missing = calls.room(struct.pack("<Qq", access, 0)), other if kind else done
            flags = os.O_PATH | O_CLOEXEC | kind
            calls.call("openat", stub_calls.AT_FDCWD, name, flags, into=rule.after(8), errors=ANY, on_error=missing)
            if access:
                calls.call("landlock_add_rule", ruleset, 1, calls.constant(rule.address), 0)
            after = done if kind else None
            calls.call("close", rule.after(8), on_zero=after)
            if kind:
                calls.place(other)
        calls.place(done)
    calls.begin("landlock_restrict_self")
    calls.call("landlock_restrict_self", ruleset, 0)


def _filter_calls(calls: Calls, plan: Plan, key: Cell) -> None:
    calls.begin("seccomp")
    filled = calls.room(plan["seccomp"]["code"])
    for index, name in plan["seccomp"]["blanks"]:
        blank = filled.after(8 * index + 4)  # the constant of a struct sock_filter
        match name:
            case "own_pid":
                calls.call("getpid", into=blank)
            case "exec_fd":
                calls.look(calls.constant(plan["exec_fd"]), into=blank)
            case _:
                calls.look(key if name == "exec_key_low" else key.after(4), into=blank)
    program = calls.room(struct.pack("<HxxxxxxQ", len(plan["seccomp"]["code"]) // 8, filled.address))
    calls.call("prctl", _SET_SECCOMP, _FILTER, calls.constant(program.address))
