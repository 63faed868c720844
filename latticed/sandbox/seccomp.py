"""Which system calls a confined child may make: ENOSYS unless named here, EPERM for those known to be dangerous.

Programs and C libraries fall back on ENOSYS; EPERM tells an author that a call is forbidden. The escapes that each
rule prevents are tried in tests/hostile/test_escapes.py.
"""

from __future__ import annotations

import errno
import functools
from typing import TYPE_CHECKING, Final

from latticed.sandbox import bpf
from latticed.sandbox.bpf import Argument, Secret, SyscallRule

if TYPE_CHECKING:
    from latticed.sandbox.syscalls import Machine

OWN_PID: Final = "own_pid"
EXEC_FD: Final = "exec_fd"
EXEC_KEY_LOW: Final = "exec_key_low"
EXEC_KEY_HIGH: Final = "exec_key_high"
"""Constants that the launcher fills in. The descriptor is above RLIMIT_NOFILE; the key is drawn for each child."""

# What any confined program may call, except where a rule below limits a call. Absent on purpose: clone3, whose flags
# are in memory that a filter cannot read (C libraries fall back on clone), and memfd_create, memory that RLIMIT_DATA
# does not count.
_BASE: Final = """
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 close close_range lseek open openat stat fstat
lstat newfstatat statx access faccessat faccessat2 readlink readlinkat getcwd chdir fchdir getdents getdents64 dup dup2
dup3 pipe pipe2 fadvise64 statfs fstatfs fsync fdatasync ftruncate fallocate umask
poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2
timerfd_create timerfd_settime timerfd_gettime signalfd signalfd4
munmap mprotect mremap madvise brk msync mincore membarrier futex set_robust_list rseq set_tid_address sched_yield
getpid gettid getppid getuid geteuid getgid getegid getgroups getresuid getresgid getpgrp getpgid getsid capget
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack pause restart_syscall
setitimer getitimer alarm timer_create timer_settime timer_gettime timer_getoverrun timer_delete nanosleep
clock_nanosleep clock_gettime clock_getres gettimeofday time times getrusage sysinfo uname getcpu getrandom arch_prctl
exit exit_group wait4 waitid sched_getaffinity sched_getparam sched_getscheduler sched_get_priority_max
sched_get_priority_min getrlimit setrlimit getpriority recvfrom shutdown getsockopt getsockname getpeername
"""
# Refused with EPERM unless a feature below allows the call.
_DANGEROUS: Final = """
ptrace process_vm_readv process_vm_writev kcmp pidfd_open pidfd_getfd pidfd_send_signal process_madvise process_mrelease
bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register keyctl add_key request_key seccomp
mount umount2 pivot_root chroot setns unshare open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr
reboot kexec_load kexec_file_load init_module finit_module delete_module swapon swapoff acct quotactl settimeofday
clock_settime clock_adjtime adjtimex syslog sethostname setdomainname iopl ioperm personality vhangup
socket connect bind listen accept accept4 setsockopt sendmsg recvmsg sendmmsg recvmmsg
shmget shmat shmctl shmdt msgget msgsnd msgrcv msgctl semget semop semctl semtimedop
mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr
setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset
chmod fchmod fchmodat fchmodat2 chown fchown lchown fchownat utime utimes utimensat futimesat truncate
setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr mknod mknodat
rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir link linkat symlink symlinkat
execve fork vfork setsid setpgid setpriority ioprio_set sched_setparam sched_setscheduler sched_setattr
rt_sigqueueinfo rt_tgsigqueueinfo vmsplice splice tee name_to_handle_at open_by_handle_at fanotify_init fanotify_mark
migrate_pages move_pages mbind set_mempolicy remap_file_pages flock
"""
# Changes to files, for a child that has a /scratch. Landlock allows them there only; what it does not know (chmod and
# the utime family) fails elsewhere because all other mounts are read-only.
_WORKDIR: Final = """
flock
chmod fchmod fchmodat fchmodat2 utime utimes utimensat futimesat truncate creat rename renameat renameat2 unlink
unlinkat mkdir mkdirat rmdir link linkat symlink symlinkat copy_file_range sendfile sync_file_range
"""
# What may be executed is left to Landlock. execveat stays limited by its rule where the pid namespace is shared.
_PROCESSES: Final = "execve execveat fork vfork setsid setpgid"
_OUTSIDE: Final = {
    "readlink": errno.EINVAL,  # "not a link": programs go on with the path they have
    "readlinkat": errno.EINVAL,
    "statfs": errno.ENOSYS,
    "capget": errno.EPERM,
}
"""Calls refused where the child shares the host's mount and pid namespaces."""
_OWN_NAMESPACE: Final = "kill tgkill tkill pidfd_open pidfd_send_signal"  # no other process has a pid in there
_NETWORK: Final = "bind connect listen accept accept4 setsockopt sendto sendmsg recvmsg sendmmsg recvmmsg"

_CLONE_THREAD: Final = 0x00010000
# From linux/sched.h. CLONE_NEWTIME is missing: clone cannot take it, its bit belongs to the exit signal there.
_CLONE_NAMESPACES: Final = 0x7E020000  # NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_CLONE_FOREIGN: Final = _CLONE_NAMESPACES | 0x00808000 | 0x2000  # and UNTRACED, PARENT, PTRACE
_MAP_SHARED, _MAP_ANONYMOUS, _MAP_GROWSDOWN = 0x01, 0x20, 0x100
_AT_EMPTY_PATH: Final = 0x1000
_SOCK_FLAGS: Final = 0x80800  # SOCK_CLOEXEC, SOCK_NONBLOCK
# F_DUPFD to F_SETFL, F_DUPFD_CLOEXEC, F_GETPIPE_SZ, F_GET_SEALS. Never F_SETOWN, F_SETSIG and their kind: they send
# signals to anyone; nor F_SETPIPE_SZ, which takes kernel memory.
_FCNTL: Final = (0, 1, 2, 3, 4, 1030, 1032, 1034)
_FCNTL_LOCKS: Final = (5, 6, 7, 36, 37, 38)  # F_GETLK to F_SETLKW, F_OFD_*: all who can read a file share its locks
_O_PATH: Final = 0x200000
_NEGATIVE: Final = 0x80000000  # the sign of a 32-bit number
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX. Never TIOCSTI, FIOSETOWN, …
_IOCTL: Final = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# PR_GET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_NAME, PR_GET_NAME, PR_GET_SECCOMP, PR_CAPBSET_READ, PR_GET_TIMERSLACK,
# PR_GET_NO_NEW_PRIVS, PR_SET_VMA (names of mappings). Never PR_SET_PDEATHSIG: a child must die with the daemon.
_PRCTL: Final = (2, 3, 15, 16, 21, 23, 30, 39, 0x53564D41)


@functools.cache
def program(machine: Machine, features: frozenset[str], *, own_pids: bool) -> bpf.BpfProgram:
    """The filter for a child with `features` (names in `levels.FEATURES`); `own_pids`: it has its own pid namespace.

    Compiled once for each combination; the launcher fills in the constants above.
    """
    allowed = set(_BASE.split())
    rules = _rules(features)
    for feature, names in (("workdir", _WORKDIR), ("processes", _PROCESSES), ("network", _NETWORK)):
        if feature in features:
            allowed |= set(names.split())
    errnos = dict.fromkeys(_DANGEROUS.split(), errno.EPERM)
    if own_pids and "processes" in features:
        allowed |= set(_OWN_NAMESPACE.split())
    if not own_pids:
        # Rules win over features here: without its own namespaces nothing is allowed outright that a rule limits.
        rules |= _among_others()
        allowed -= {*rules, *_OUTSIDE}
        errnos |= _OUTSIDE
    for name in allowed & rules.keys():  # allowed outright: by a feature
        del rules[name]
    errnos = {name: error for name, error in errnos.items() if name not in allowed}
    return bpf.compile_program(machine, allowed=allowed, rules=rules, errnos=errnos, default=errno.ENOSYS)


def _among_others() -> dict[str, SyscallRule]:
    """Rules for calls that reveal the host's files and processes, where the child shares its namespaces.

    sched_getaffinity is lost for the child's own threads too: C libraries cope with ENOSYS. A negative clock id is the
    cpu time of another process; O_PATH opens files that may not be read.
    """
    # For these calls 0 means the caller.
    oneself = Argument(0, (0, OWN_PID))
    own_clock = SyscallRule(((Argument(0, (0,), mask=_NEGATIVE),),), errno.EINVAL)
    rules = dict.fromkeys(
        ("getpgid", "getsid", "sched_getparam", "sched_getscheduler"), SyscallRule(((oneself,),), errno.EPERM)
    )
    rules |= dict.fromkeys(("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create"), own_clock)
    return rules | {
        "sched_getaffinity": SyscallRule(((oneself,),), errno.ENOSYS),
        "getpriority": SyscallRule(((Argument(0, (0,)), Argument(1, (0, OWN_PID))),), errno.EPERM),
        "open": SyscallRule(((Argument(1, (0,), mask=_O_PATH),),), errno.EPERM),
        "openat": SyscallRule(((Argument(2, (0,), mask=_O_PATH),),), errno.EPERM),
    }


@functools.cache
def init_program(machine: Machine) -> bpf.BpfProgram:
    """The filter for process 1 (`elf_programs.reaps`): it may be executed, wait, report a failure, and exit.

    `write` and `exit_group` are the stub's, for when the exec fails.
    """
    allowed = ("wait4", "rt_sigtimedwait", "write", "exit_group")
    rules = {"execveat": _rules(frozenset())["execveat"]}
    return bpf.compile_program(machine, allowed=allowed, rules=rules, errnos={}, default=errno.EPERM)


@functools.cache
def door_program(machine: Machine) -> bpf.BpfProgram:
    """The filter for the process that makes sockets for the daemon (`stub_door`): it may do that, send them, and exit.

    Of the rest only what Python needs for memory. `write` is the stub's, for when a step after it fails.
    """
    allowed = "recvfrom sendmsg close close_range exit_group write brk mmap munmap mremap madvise futex rt_sigreturn"
    stream = Argument(1, (1,), mask=bpf.WORD ^ _SOCK_FLAGS)
    rules = {"socket": SyscallRule(((Argument(0, (2, 10)), stream, Argument(2, (0,))),), errno.EPERM)}
    return bpf.compile_program(machine, allowed=allowed.split(), rules=rules, errnos={}, default=errno.EPERM)


def _rules(features: frozenset[str]) -> dict[str, SyscallRule]:
    """Calls that depend on their arguments; all refusals are EPERM."""
    oneself = Argument(0, (OWN_PID,))
    stream = Argument(1, (1,), mask=bpf.WORD ^ _SOCK_FLAGS)
    ways: dict[str, tuple[tuple[bpf.Test, ...], ...]] = {
        "kill": ((oneself,),),
        "tgkill": ((oneself,),),
        "tkill": ((oneself,),),
        "prlimit64": ((Argument(0, (0, OWN_PID)),),),
        "sched_setaffinity": ((Argument(0, (0, OWN_PID)),),),
        "fcntl": ((Argument(1, _FCNTL + (_FCNTL_LOCKS if "workdir" in features else ())),),),
        "ioctl": ((Argument(1, _IOCTL),),),
        "prctl": ((Argument(0, _PRCTL),),),
        # AF_UNIX, SOCK_STREAM, no protocol: both ends are the child's own.
        "socketpair": ((Argument(0, (1,)), stream, Argument(2, (0,))),),
        # Only without an address, as send(3) calls it.
        "sendto": ((Argument(4, (0,)), Argument(4, (0,), high=True)),),
        # Shared anonymous memory and stacks that grow down escape RLIMIT_DATA.
        "mmap": ((Argument(3, (0, _MAP_SHARED, _MAP_ANONYMOUS), mask=_MAP_SHARED | _MAP_ANONYMOUS | _MAP_GROWSDOWN),),),
        # One exec only, the launcher's: it passes a number that nobody else knows as a sixth argument, which the kernel
        # ignores. What it executes finds that number nowhere: the launcher's memory and registers are gone. That the
        # descriptor is closed by then is not enough: of an absolute path the kernel does not look at it.
        "execveat": (
            (Argument(0, (EXEC_FD,)), Argument(4, (_AT_EMPTY_PATH,)), Secret(5, EXEC_KEY_LOW, EXEC_KEY_HIGH)),
        ),
        "clone": _clone(features),
    }
    if "network" in features:
        ways["socket"] = _socket()
    return {name: SyscallRule(way, errno.EPERM) for name, way in ways.items()}


def _clone(features: frozenset[str]) -> tuple[tuple[Argument, ...], ...]:
    """Threads and processes as the features allow; never a new namespace, and never a process that is not a child."""
    ways = []
    if "threads" in features:
        ways.append((Argument(0, (_CLONE_THREAD,), mask=_CLONE_THREAD | _CLONE_FOREIGN),))
    if "processes" in features:
        ways.append((Argument(0, (0,), mask=_CLONE_THREAD | _CLONE_FOREIGN),))
    return tuple(ways)


def _socket() -> tuple[tuple[Argument, ...], ...]:
    """TCP and UDP over IPv4 and IPv6, and routing netlink, which getaddrinfo(3) asks; no MPTCP, no raw sockets."""
    # SOCK_STREAM and SOCK_DGRAM of AF_INET and AF_INET6 (2, 10), with protocol 0, TCP or UDP; SOCK_RAW of AF_NETLINK
    # (16) with NETLINK_ROUTE (0).
    kind = Argument(1, (1, 2), mask=bpf.WORD ^ _SOCK_FLAGS)
    raw = Argument(1, (3,), mask=bpf.WORD ^ _SOCK_FLAGS)
    return ((Argument(0, (2, 10)), kind, Argument(2, (0, 6, 17))), (Argument(0, (16,)), raw, Argument(2, (0,))))
