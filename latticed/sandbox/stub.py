"""The launch stub: applies a plan to itself, step by step, then executes the child's program.

`launch` runs it, compiled, as `python -ISEB` after `stub_calls` and `stub_root` in one namespace, then `main(plan)`.
Messages go to STATUS, a line each: `pid N` when the child has its own pid namespace, `init N` when it is not process 1
of it, `failed ERRNO STAGE` when a step failed (then nothing was executed). End of file without a failure: the child is
running. Comments give the reasons for the order of the steps.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import stat
import struct

TYPE_CHECKING = False  # the module typing is not imported, to save time at each spawn
if TYPE_CHECKING:  # executed before this, in the same namespace
    from typing import Any

    from latticed.sandbox.stub_calls import (  # noqa: TC004
        AT_EMPTY_PATH,
        CGROUP,
        DAEMON,
        Plan,
        StageError,
        begin,
        call,
        check,
        libc,
        numbers,
        prctl,
        stage,
        tell,
        write_to,
    )
    from latticed.sandbox.stub_root import build_tree  # noqa: TC004

CLONE_PARENT, SIGKILL, SIGPIPE, SIGCHLD, SIGXFSZ, POLLIN = 0x8000, 9, 13, 17, 25, 1
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 4, 22, 2
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
CAPABILITY_VERSION_3, LAST_CAP = 0x20080522, 63
CLOSE_RANGE_CLOEXEC, NO_FD, SIOCSIFFLAGS, IFF_UP_RUNNING = 4, 0xFFFFFFFF, 0x8914, 0x41


def change_ids(ids: tuple[int, int]) -> None:
    """Set groups, gid and uid, which is never 0."""
    uid, gid = ids
    begin("setgroups")
    os.setgroups([])
    begin("setresgid")
    os.setresgid(gid, gid, gid)
    begin("setresuid")
    os.setresuid(uid, uid, uid)


def enter_namespaces(plan: Plan) -> None:
    if plan["ids_first"]:  # root without CAP_SYS_ADMIN: an ordinary user may still unshare a user namespace
        change_ids(plan["ids"])
        prctl(PR_SET_DUMPABLE, 1)  # else /proc/self/uid_map belongs to root
    uid, gid = os.getuid(), os.getgid()
    for token, flag in plan["unshare"]:
        begin(f"unshare({token})")
        check(libc.unshare(flag))
        if token == "user":  # noqa: S105
            # user_namespaces(7): without privileges gid_map can be written only after setgroups was set to "deny".
            for name, text in (("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1"), ("uid_map", f"{uid} {uid} 1")):
                begin(name if name != "setgroups" else "setgroups_deny")
                write_to(f"/proc/self/{name}", text)
    for flag in plan["try_unshare"]:
        libc.unshare(flag)  # optional: no level depends on them
    if plan["loopback"]:
        begin("loopback")
        sock = check(libc.socket(2, 2, 0))  # closed with all others when the program is executed
        check(libc.ioctl(sock, ctypes.c_ulong(SIOCSIFFLAGS), struct.pack("16sh22x", b"lo", IFF_UP_RUNNING)))


def enter_pid_namespace(names: tuple[str, ...]) -> str:
    """Fork (CLONE_PARENT) into the new pid namespace and exit; the children go on, as children of the daemon.

    One child for each of `names`, the first is process 1. Returns the name of the child that goes on.
    """
    begin("clone")
    wait, go = os.pipe()
    for name in names:
        pid = call("clone", CLONE_PARENT | SIGCHLD)
        if not pid:
            os.close(go)
            if os.read(wait, 1) != b"1":  # the daemon must know the pids before anything can fail
                os._exit(127)
            os.close(wait)
            return name
        tell(f"{name} {pid}")
    # One byte for each child: all pids have been told by now, so any of them may fail or exit.
    os.write(go, b"1" * len(names))
    os._exit(0)


def drop_privileges(plan: Plan) -> None:
    for which, value in plan["rlimits"]:
        begin(f"rlimit({which})")
        check(libc.setrlimit(which, struct.pack("qq", value, value)))  # -1: none
    begin("bounding_set")
    for capability in range(LAST_CAP + 1):
        if libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) == -1:
            if ctypes.get_errno() not in {errno.EINVAL, errno.EPERM}:
                raise StageError(stage, ctypes.get_errno())
            break  # past the kernel's last capability; or an ordinary user, who has none
    if plan["ids"] and not plan["ids_first"]:
        change_ids(plan["ids"])
    begin("capset")
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    check(libc.capset(struct.pack("Ii", CAPABILITY_VERSION_3, 0), struct.pack("6I", 0, 0, 0, 0, 0, 0)))
    begin("uid")
    if 0 in os.getresuid():
        raise StageError(stage, errno.EPERM)


def tie_to_daemon() -> None:
    """Set PDEATHSIG, after the ids (changing them clears it); then check whether the daemon has died already."""
    begin("pdeathsig")
    prctl(PR_SET_PDEATHSIG, SIGKILL)
    begin("daemon_gone")
    if check(libc.poll(struct.pack("ihh", DAEMON, POLLIN, 0), ctypes.c_ulong(1), 0)):
        raise StageError(stage, errno.ESRCH)


def restrict_paths(plan: Plan) -> None:
    begin("landlock_create_ruleset")
    attributes = bytes.fromhex(plan["attributes"])
    ruleset = call("landlock_create_ruleset", attributes, len(attributes), 0)
    begin("landlock_add_rule")
    for path, for_directory, for_file in plan["rules"]:
        if not os.path.exists(path):  # a path that does not exist needs no rule
            continue
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if access := for_directory if stat.S_ISDIR(os.fstat(fd).st_mode) else for_file:
            call("landlock_add_rule", ruleset, 1, struct.pack("=Qi", access, fd), 0)
        os.close(fd)
    begin("landlock_restrict_self")
    call("landlock_restrict_self", ruleset, 0)


def close_others(keep: list[int]) -> None:
    """Set close-on-exec on every descriptor that the plan does not give to the child."""
    begin("close_range")
    edges = [-1, *sorted(keep), NO_FD + 1]
    for low, high in itertools.pairwise(edges):
        if low + 1 < high:
            call("close_range", low + 1, high - 1, CLOSE_RANGE_CLOEXEC)


def filter_calls(plan: Plan, path: Any) -> None:
    begin("seccomp")
    code = bytearray(plan["seccomp"]["code"])
    high, low = divmod(ctypes.addressof(path), 1 << 32)
    known = {"own_pid": os.getpid(), "exec_fd": plan["exec_fd"], "path_low": low, "path_high": high}
    for index, name in plan["seccomp"]["blanks"]:
        struct.pack_into("<I", code, 8 * index + 4, known[name])
    buffer = ctypes.create_string_buffer(bytes(code), len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)  # not seccomp(2): some units forbid it


def execute(plan: Plan) -> None:
    words = [[os.fsencode(word) for word in plan[name]] for name in ("argv", "env")]
    argv, env = ((ctypes.c_char_p * (len(row) + 1))(*row, None) for row in words)
    path = ctypes.create_string_buffer(b"")
    for number in (SIGPIPE, SIGXFSZ):  # Python ignores these, and exec keeps that
        libc.signal(number, None)
    libc.sigprocmask(0, struct.pack("16Q", sum(1 << number - 1 for number in plan["blocked"]), *[0] * 15), None)
    begin("no_new_privs")
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if plan["landlock"]:
        restrict_paths(plan["landlock"])
    close_others(plan["keep"])
    if plan["seccomp"]:
        filter_calls(plan, path)
    begin("execveat")
    call("execveat", plan["exec_fd"], path, argv, env, AT_EMPTY_PATH)


def carry_out(plan: Plan) -> None:
    os.umask(0o022)  # the child's uid must be able to enter the root's directories
    if plan["cgroup"]:
        begin("cgroup")
        os.write(CGROUP, b"0")  # this process, before memory is charged to the daemon's group
    begin("oom_score_adj")
    write_to("/proc/self/oom_score_adj", str(plan["oom_score_adj"]))
    enter_namespaces(plan)
    if plan["tree"]:
        build_tree(plan["tree"])
    if plan["own_pids"] and enter_pid_namespace(plan["own_pids"]) == "init":
        plan = {**plan, **plan["init"]}
    begin("exec_fd")
    os.chdir(plan["cwd"])
    program = plan["program"]
    if isinstance(program, str):
        program = os.open(program, os.O_PATH | os.O_CLOEXEC)
    os.dup2(program, plan["exec_fd"], inheritable=False)  # above the limit to come: no descriptor of the child's
    os.umask(0o077)
    drop_privileges(plan)
    tie_to_daemon()
    execute(plan)


def main(plan: Plan) -> None:
    """Carry out the plan and execute the program, or report the failure and exit; never returns."""
    try:
        numbers.update(plan["numbers"])
        carry_out(plan)
    except StageError as failed:
        tell(f"failed {failed.args[1]} {failed.args[0]}")
    except OSError as error:
        tell(f"failed {error.errno or 0} {stage}")
    except BaseException as error:  # noqa: BLE001 - any failure must be reported, and nothing executed
        tell(f"failed 0 {stage}: {type(error).__name__}")
    os._exit(127)
