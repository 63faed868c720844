"""What each half of the agent can no longer do, once it has begun: kept by the kernel, whatever its code does.

    node   no network: of sockets only those of this host
    link   no socket of this host, so neither the daemon's; of files only what `readable` and `writable` name
    both   no other program, no signal to, trace of or memory of another process, no way back

Both are processes of one user. `seccomp` (the filter is compiled by `sandbox.bpf`) and Landlock take no privilege.
Sources: Documentation/userspace-api/seccomp_filter.rst and landlock.rst; prctl(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Final

from latticed.model.errors import Problem
from latticed.sandbox import bpf, syscalls
from latticed.sandbox.bpf import Argument, SyscallRule

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from latticed.sandbox.syscalls import Machine

_DENIED: Final = frozenset(
    """
ptrace process_vm_readv process_vm_writev kcmp pidfd_open pidfd_getfd pidfd_send_signal process_madvise process_mrelease
bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key
mount umount2 pivot_root chroot setns unshare open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr
reboot kexec_load kexec_file_load init_module finit_module delete_module swapon swapoff acct quotactl settimeofday
clock_settime clock_adjtime adjtimex syslog sethostname setdomainname iopl ioperm personality vhangup
setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset
chown fchown lchown fchownat setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr mknod mknodat
execve execveat fork vfork setpriority ioprio_set sched_setparam sched_setscheduler sched_setattr sched_setaffinity
rt_sigqueueinfo rt_tgsigqueueinfo name_to_handle_at open_by_handle_at fanotify_init fanotify_mark
migrate_pages move_pages mbind set_mempolicy shmget shmat shmctl shmdt msgget msgsnd msgrcv msgctl semget semop semctl
mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr listen accept accept4
""".split()
)
"""System calls that neither half needs. What the table in `sandbox.syscalls` does not name fails too (ENOSYS)."""
_NETLINK_ROUTE: Final = 0
_SOCK_FLAGS: Final = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
_CLONE_THREAD: Final = 0x00010000
_CLONE_NEW: Final = 0x7E020080  # CLONE_NEWTIME and all other namespaces

# From linux/prctl.h, seccomp.h and landlock.h.
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 15, 22, 38
_SECCOMP_MODE_FILTER, _SIGKILL = 2, 9
_READ_FILE, _READ_DIR, _WRITE_FILE, _REMOVE_FILE, _MAKE_REG, _REFER, _TRUNCATE = (
    1 << bit for bit in (2, 3, 1, 5, 8, 13, 14)
)
_FIRST_ABI: Final = (1 << 13) - 1
_READ: Final = _READ_FILE | _READ_DIR
_WORK: Final = _READ | _WRITE_FILE | _REMOVE_FILE | _MAKE_REG | _TRUNCATE
_OF_FILES: Final = _READ_FILE | _WRITE_FILE | _TRUNCATE
_RULE_PATH_BENEATH, _ASK_VERSION = 1, 1
_SCOPES: Final = 3  # abstract unix sockets and signals


def begin(name: str, parent: int | None = None) -> None:
    """Have this process be called `name`, and be no other's to look into (proc(5), ptrace(2)); end with the one that
    forked it, when that is given. For both halves, before anything else.
    """
    if parent is not None:
        _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
        if os.getppid() != parent:  # it ended before that
            os._exit(1)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NAME, ctypes.c_char_p(name.encode()[:15]), 0, 0, 0)
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def confine_node() -> None:
    """No socket but those of this host from now on; Problem not_confined where the kernel cannot hold it."""
    _filter(SyscallRule(((Argument(0, (socket.AF_UNIX,)),),), errno.EPERM))


def confine_link(*, readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Sockets of IPv4 and IPv6 alone, and no file but those beneath these directories, from now on; Problem
    not_confined. A directory that is not there is passed over.
    """
    _restrict_paths([*((one, _READ) for one in readable), *((one, _WORK) for one in writable)])
    network = (Argument(0, (socket.AF_INET, socket.AF_INET6)),)
    # getaddrinfo(3) asks which kinds of addresses the host has.
    routes = (Argument(0, (socket.AF_NETLINK,)), Argument(2, (_NETLINK_ROUTE,)))
    _filter(SyscallRule((network, routes), errno.EPERM))


def _filter(sockets: SyscallRule) -> None:
    """Load the filter (seccomp(2)); it cannot be taken off."""
    machine = syscalls.machine()
    if machine is None:
        raise _not_confined(f"system calls of {os.uname().machine} are not known")
    code = _program(machine, sockets, os.getpid())
    held = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: unsigned short, padding, pointer.
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(program), 0, 0) == -1:
        raise _not_confined(f"seccomp: {os.strerror(ctypes.get_errno())}")


def _program(machine: Machine, sockets: SyscallRule, pid: int) -> bytes:
    own, stream = Argument(0, (pid,)), Argument(1, (socket.SOCK_STREAM,), mask=bpf.WORD ^ _SOCK_FLAGS)
    rules = {
        "socket": sockets,
        # A pair of datagram sockets could be sent from to any of this host's.
        "socketpair": SyscallRule(((stream,),), errno.EPERM),
        "kill": SyscallRule(((own,),), errno.EPERM),
        "tgkill": SyscallRule(((own,),), errno.EPERM),
        "tkill": SyscallRule(((own,),), errno.EPERM),
        "prlimit64": SyscallRule(((Argument(0, (0, pid)),),), errno.EPERM),
        # Threads alone; of clone3 the flags cannot be seen, C libraries fall back on this one.
        "clone": SyscallRule(((Argument(0, (_CLONE_THREAD,), mask=_CLONE_THREAD | _CLONE_NEW),),), errno.EPERM),
    }
    allowed = machine.numbers.keys() - _DENIED - rules.keys() - {"clone3"}
    denied = dict.fromkeys(_DENIED, errno.EPERM)
    return bpf.compile_program(machine, allowed=allowed, rules=rules, errnos=denied, default=errno.ENOSYS).code


def _restrict_paths(grants: Iterable[tuple[Path, int]]) -> None:
    """Deny every file but these (landlock(7)); Problem not_confined."""
    machine = syscalls.machine()
    if machine is None:
        raise _not_confined(f"system calls of {os.uname().machine} are not known")
    create, add, restrict = (
        machine.numbers[f"landlock_{name}"] for name in ("create_ruleset", "add_rule", "restrict_self")
    )
    abi = _call(create, None, 0, _ASK_VERSION)
    known = _FIRST_ABI | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    attributes = struct.pack("<Q", known)
    if abi >= 6:
        attributes += struct.pack("<QQ", 0, _SCOPES)
    ruleset = _call(create, ctypes.c_char_p(attributes), len(attributes), 0)
    try:
        for path, access in grants:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    wanted = access & known & (-1 if os.path.isdir(path) else _OF_FILES)
                    _call(add, ruleset, _RULE_PATH_BENEATH, ctypes.c_char_p(struct.pack("<Qi", wanted, beneath)), 0)
                finally:
                    os.close(beneath)
        _call(restrict, ruleset, 0)
    finally:
        os.close(ruleset)


def _call(number: int, *arguments: object) -> int:
    """A system call by its number; Problem not_confined."""
    libc = ctypes.CDLL(None, use_errno=True)
    plain = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    found: int = libc.syscall(ctypes.c_long(number), *plain)
    if found < 0:
        raise _not_confined(f"Landlock: {os.strerror(ctypes.get_errno())}")
    return found


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) == -1:
        raise _not_confined(f"prctl({option}): {os.strerror(ctypes.get_errno())}")


def _not_confined(found: str) -> Problem:
    return Problem(
        "not_confined",
        f"expected a kernel that confines the agent's halves (seccomp, Landlock), found: {found}",
        "Linux 5.13 with Landlock among its security modules, as Debian 12 has it, is enough",
    )
