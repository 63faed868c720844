"""The launch stub: applies a plan to itself, step by step, then executes the child's program.

`launch` runs it, compiled, as `python -ISEB` after `stub_calls`, `stub_root` and `stub_door` in one namespace, then
`main(plan)`. Where `launch_calls` can, the same steps are made without it: what is changed here is changed there.
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
    from latticed.sandbox.stub_calls import (  # noqa: TC004
        AT_EMPTY_PATH,
        CGROUP,
        DAEMON,
        DOOR,
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
    from latticed.sandbox.stub_door import hand_out_listeners, make_sockets  # noqa: TC004
    from latticed.sandbox.stub_root import build_tree  # noqa: TC004

# Numbers from linux/sched.h, signal.h, poll.h, prctl.h, capability.h, close_range.h, sockios.h and if.h; all of them
# are the same on both machines. The modules signal and socket would cost time at each spawn.
CLONE_PARENT, SIGKILL, SIGPIPE, SIGCHLD, SIGXFSZ, POLLIN = 0x8000, 9, 13, 17, 25, 1
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 1, 4, 15, 22, 2
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 24, 38, 47, 4
# Version 3 has two words of 32 capabilities each, so 63 is the last that any kernel can have.
CAPABILITY_VERSION_3, LAST_CAP = 0x20080522, 63
CLOSE_RANGE_CLOEXEC, NO_FD, SIOCSIFFLAGS, IFF_UP_RUNNING = 4, 0xFFFFFFFF, 0x8914, 0x41


def change_ids(ids: tuple[int, int]) -> None:
    """Set groups, gid and uid, which is never 0."""
    uid, gid = ids
    # Groups, then gid, then uid: changing the uid from 0 takes away the powers for the other two (capabilities(7)).
    begin("setgroups")
    os.setgroups([])
    begin("setresgid")
    os.setresgid(gid, gid, gid)
    begin("setresuid")
    os.setresuid(uid, uid, uid)


def enter_namespaces(plan: Plan) -> None:
    """Unshare the plan's namespaces, each optional one if the host allows it, and bring up the loopback device."""
    if plan["ids_first"]:  # root without CAP_SYS_ADMIN: an ordinary user may still unshare a user namespace
        change_ids(plan["ids"])
    # Before unsharing: without a map every id is the overflow id, 65534.
    uid, gid = os.getuid(), os.getgid()
    for token, flag in plan["unshare"]:
        begin(f"unshare({token})")
        check(libc.unshare(flag))
        if token == "user":  # noqa: S105
            # Else /proc/self/uid_map belongs to root, after a change of ids.
            prctl(PR_SET_DUMPABLE, 1)
            # user_namespaces(7): without privileges gid_map can be written only after setgroups was set to "deny".
            for name, text in (("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1"), ("uid_map", f"{uid} {uid} 1")):
                begin(name if name != "setgroups" else "setgroups_deny")
                write_to(f"/proc/self/{name}", text)
    for flag in plan["try_unshare"]:
        libc.unshare(flag)  # unchecked: no level depends on them
    if plan["loopback"]:
        begin("loopback")
        # A new network namespace has its loopback device down (network_namespaces(7)). Any socket will do: AF_INET,
        # datagrams.
        sock = check(libc.socket(2, 2, 0))  # closed with all others when the program is executed
        check(libc.ioctl(sock, ctypes.c_ulong(SIOCSIFFLAGS), struct.pack("16sh22x", b"lo", IFF_UP_RUNNING)))


def enter_pid_namespace(names: tuple[str, ...]) -> str:
    """Fork (CLONE_PARENT) into the new pid namespace and exit; the children go on, as children of the daemon.

    One child for each of `names`, the first is process 1. Returns the name of the child that goes on.
    """
    begin("clone")
    # unshare(CLONE_NEWPID) affects only processes made afterwards. With CLONE_PARENT they are siblings of this stub:
    # the kernel reports their end to the daemon itself.
    wait, go = os.pipe()
    for name in names:
        pid = call("clone", CLONE_PARENT | SIGCHLD)
        if not pid:
            os.close(go)
            # The daemon must know the pids before anything can fail. End of file: the stub has died.
            if os.read(wait, 1) != b"1":
                os._exit(127)
            os.close(wait)
            return name
        tell(f"{name} {pid}")
    # One byte for each child: all pids have been told by now, so any of them may fail or exit.
    os.write(go, b"1" * len(names))
    os._exit(0)


def drop_privileges(plan: Plan) -> None:
    """Set limits, drop the bounding set, change ids, drop all capabilities; StageError if a uid is 0 afterwards."""
    for which, value in plan["rlimits"]:
        begin(f"rlimit({which})")
        check(libc.setrlimit(which, struct.pack("qq", value, value)))  # -1: none
    # Before the ids: dropping needs CAP_SETPCAP, which changing the uid from 0 takes away.
    begin("bounding_set")
    for capability in range(LAST_CAP + 1):
        if libc.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) == -1:
            if ctypes.get_errno() not in {errno.EINVAL, errno.EPERM}:
                raise StageError(stage, ctypes.get_errno())
            break  # past the kernel's last capability; or an ordinary user, who has none
    if plan["ids"] and not plan["ids_first"]:
        change_ids(plan["ids"])
    # A change of uid clears capabilities only if the old one is 0 (capabilities(7)). In a user namespace of its own the
    # child's uid was never 0, so it still has all of that namespace. Ambient ones would even survive exec.
    begin("capset")
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    # Two words each for effective, permitted and inheritable (capget(2), version 3): none is left.
    check(libc.capset(struct.pack("Ii", CAPABILITY_VERSION_3, 0), struct.pack("6I", 0, 0, 0, 0, 0, 0)))
    begin("uid")
    # Whatever the plan said: no child has uid 0, not even as its saved one.
    if 0 in os.getresuid():
        raise StageError(stage, errno.EPERM)


def tie_to_daemon() -> None:
    """Have the kernel kill this process when the daemon ends (PR_SET_PDEATHSIG); StageError when it has ended already.

    After the ids: changing them clears the setting (prctl(2)).
    """
    begin("pdeathsig")
    prctl(PR_SET_PDEATHSIG, SIGKILL)
    begin("daemon_gone")
    # Asked after the setting: a daemon that ended before it sends no signal. DAEMON is its pidfd, readable at its end.
    if check(libc.poll(struct.pack("ihh", DAEMON, POLLIN, 0), ctypes.c_ulong(1), 0)):
        raise StageError(stage, errno.ESRCH)


def restrict_paths(plan: Plan) -> None:
    """Make the Landlock ruleset and apply it to this process; what it executes inherits it."""
    begin("landlock_create_ruleset")
    attributes = bytes.fromhex(plan["attributes"])
    ruleset = call("landlock_create_ruleset", attributes, len(attributes), 0)
    begin("landlock_add_rule")
    for path, for_directory, for_file in plan["rules"]:
        if not os.path.exists(path):  # a path that does not exist needs no rule
            continue
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        # The kernel refuses a rule for a file that has rights for directories (EINVAL). 1: LANDLOCK_RULE_PATH_BENEATH.
        if access := for_directory if stat.S_ISDIR(os.fstat(fd).st_mode) else for_file:
            call("landlock_add_rule", ruleset, 1, struct.pack("=Qi", access, fd), 0)
        os.close(fd)  # the limit on descriptors is in force: many rules must not use it up
    begin("landlock_restrict_self")
    call("landlock_restrict_self", ruleset, 0)


def close_others(keep: list[int]) -> None:
    """Set close-on-exec on every descriptor that the plan does not give to the child.

    They are not closed yet: STATUS has to report a failed exec, and `exec_fd` is what is executed.
    """
    begin("close_range")
    edges = [-1, *sorted(keep), NO_FD + 1]
    for low, high in itertools.pairwise(edges):
        if low + 1 < high:
            call("close_range", low + 1, high - 1, CLOSE_RANGE_CLOEXEC)


def filter_calls(plan: Plan, key: int) -> None:
    """Fill in the filter's blanks and load it; `key` is what execveat will be called with."""
    begin("seccomp")
    code = bytearray(plan["seccomp"]["code"])
    # Known only here: the pid in the child's namespace, and the number that makes execveat this process's own.
    high, low = divmod(key, 1 << 32)
    known = {"own_pid": os.getpid(), "exec_fd": plan["exec_fd"], "exec_key_low": low, "exec_key_high": high}
    for index, name in plan["seccomp"]["blanks"]:
        struct.pack_into("<I", code, 8 * index + 4, known[name])  # struct sock_filter is 8 bytes, its constant at 4
    buffer = ctypes.create_string_buffer(bytes(code), len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)  # not seccomp(2): some units forbid it


def start_door(plan: Plan) -> None:
    """Start the process that makes sockets for the daemon; it is reaped by process 1, not by the child's program."""
    begin("door")
    between = os.fork()
    if between:
        os.waitpid(between, 0)
        return
    if not os.fork():
        os.setsid()  # out of the program's group: who asks that one to end needs the door until it has
        drop_privileges(plan)
        begin("door")
        prctl(PR_SET_NAME, b"latticed-door")
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        filter_calls({**plan, "seccomp": plan["door"]["seccomp"]}, 0)  # it executes nothing
        # STATUS too, and only now: the daemon takes the child for started once all copies of it are closed.
        for low, high in ((0, DOOR - 1), (DOOR + 1, NO_FD)):
            call("close_range", low, high, 0)
        make_sockets()
    os._exit(0)


def execute(plan: Plan) -> None:
    """Restrict this process and execute the program. A restriction comes when no later step needs what it forbids."""
    words = [[os.fsencode(word) for word in plan[name]] for name in ("argv", "env")]
    argv, env = ((ctypes.c_char_p * (len(row) + 1))(*row, None) for row in words)
    key = int.from_bytes(os.urandom(8), "little")
    for number in (SIGPIPE, SIGXFSZ):  # Python ignores these, and exec keeps that
        libc.signal(number, None)
    # 0: SIG_BLOCK. The mask was empty until here. 16 words are the C library's sigset_t of 128 bytes.
    libc.sigprocmask(0, struct.pack("16Q", sum(1 << number - 1 for number in plan["blocked"]), *[0] * 15), None)
    # Before the next two: without CAP_SYS_ADMIN the kernel accepts Landlock rules and filters only with it.
    begin("no_new_privs")
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if plan["landlock"]:
        restrict_paths(plan["landlock"])
    close_others(plan["keep"])
    # Last: the filter refuses calls that the steps before it make. The one exec that it allows is the one below.
    if plan["seccomp"]:
        filter_calls(plan, key)
    begin("execveat")
    call("execveat", plan["exec_fd"], b"", argv, env, AT_EMPTY_PATH, key)


def carry_out(plan: Plan) -> None:
    """Carry out all steps of the plan; returns only by an exception, as the last step executes the program."""
    numbers.update(plan["numbers"])
    os.umask(0o022)  # the child's uid must be able to enter the root's directories
    if plan["cgroup"]:
        begin("cgroup")
        os.write(CGROUP, b"0")  # this process, before memory is charged to the daemon's group
    begin("oom_score_adj")  # while the host's /proc is still there
    write_to("/proc/self/oom_score_adj", str(plan["oom_score_adj"]))
    if plan["tree"] and plan["tree"]["data"]:
        begin("data")
        os.chdir(plan["tree"]["data"])  # before another uid may no longer go there; unsharing mounts keeps it
    enter_namespaces(plan)
    if plan["door"]:
        hand_out_listeners(plan["door"])
    if plan["tree"]:
        build_tree(plan["tree"])
    # After the root was built, once for both children. From here on process 1 follows a plan of its own.
    name = "pid"
    if plan["own_pids"]:
        name = enter_pid_namespace(plan["own_pids"])
    if name == "init":
        plan = {**plan, **plan["init"]}
    elif plan["door"]:
        start_door(plan)
    begin("exec_fd")
    os.chdir(plan["cwd"])
    program = plan["program"]
    if isinstance(program, str):
        program = os.open(program, os.O_PATH | os.O_CLOEXEC)
    os.dup2(program, plan["exec_fd"], inheritable=False)  # above the limit to come: no descriptor of the child's
    os.umask(0o077)  # the child's own: what it creates is for its uid alone
    drop_privileges(plan)
    tie_to_daemon()
    execute(plan)


def main(plan: Plan) -> None:
    """Carry out the plan and execute the program, or report the failure and exit; never returns."""
    try:
        carry_out(plan)
    except StageError as failed:
        tell(f"failed {failed.args[1]} {failed.args[0]}")
    except OSError as error:
        tell(f"failed {error.errno or 0} {stage}")
    except BaseException as error:  # noqa: BLE001 - any failure must be reported, and nothing executed
        tell(f"failed 0 {stage}: {type(error).__name__}")
    finally:
        os._exit(127)  # also when nothing can be reported
