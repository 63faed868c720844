"""The policy: what no child may call, whatever it asked for; what depends on arguments; the same for both machines."""

from __future__ import annotations

import errno
import itertools

import pytest

from latticed.sandbox import bpf, levels, seccomp, syscalls
from tests.house import bpf_machine

MACHINES = pytest.mark.parametrize("machine", syscalls.MACHINES.values(), ids=lambda machine: machine.name)
BLANKS = {"own_pid": 4242, "exec_fd": 4096, "exec_key_low": 0x1000, "exec_key_high": 0x7F}
CHOICES = ("processes", "threads", "workdir", "network")
EVERY = [frozenset(some) for count in range(5) for some in itertools.combinations(CHOICES, count)]
NEVER = """
ptrace process_vm_readv process_vm_writev bpf perf_event_open userfaultfd io_uring_setup io_uring_enter keyctl add_key
mount umount2 pivot_root chroot setns unshare open_tree move_mount fsopen mount_setattr reboot kexec_load init_module
finit_module settimeofday clock_settime sethostname personality shmget msgget semget mq_open setuid setresuid setgroups
capset chown fchownat setxattr fsetxattr mknod mknodat setpriority rt_sigqueueinfo vmsplice splice tee pidfd_getfd
name_to_handle_at open_by_handle_at fanotify_init seccomp memfd_create memfd_secret clone3 landlock_create_ruleset
""".split()


def ask(machine, name, arguments=(), features=frozenset(), *, own_pids=True):
    program = seccomp.program(machine, frozenset(features), own_pids=own_pids)
    return bpf_machine.answer(
        program, arch=machine.audit, number=machine.numbers[name], arguments=arguments, blanks=BLANKS
    )


@MACHINES
@pytest.mark.parametrize("features", EVERY, ids=lambda some: "+".join(sorted(some)) or "none")
def test_forbidden_calls_are_refused_with_any_features(machine, features):
    """A pid namespace of the child's own makes no difference."""
    for own_pids, name in itertools.product((True, False), NEVER):
        if name in machine.numbers:
            assert ask(machine, name, features=features, own_pids=own_pids) & ~0xFFFF == bpf.ERRNO, name


def test_every_named_system_call_has_a_number():
    """A misspelt name would allow a call, or refuse one that programs need."""
    texts = (
        seccomp._BASE,
        seccomp._DANGEROUS,
        seccomp._WORKDIR,
        seccomp._PROCESSES,
        seccomp._OWN_NAMESPACE,
        seccomp._NETWORK,
    )
    named = {name for text in texts for name in text.split()}
    named |= set(seccomp._rules(frozenset(CHOICES)))
    assert named <= set().union(*(machine.numbers for machine in syscalls.MACHINES.values()))
    assert not set(seccomp._BASE.split()) & set(seccomp._DANGEROUS.split())


@MACHINES
def test_clone_makes_only_threads_or_processes_that_were_asked_for(machine):
    """It never makes a namespace or a sibling."""
    thread, process, namespace, sibling = 0x3D0F00, 17, 0x10000000, 0x8000
    assert ask(machine, "clone", [thread]) == bpf.ERRNO | errno.EPERM
    assert ask(machine, "clone", [thread], {"threads"}) == bpf.ALLOW
    assert ask(machine, "clone", [process], {"threads"}) == bpf.ERRNO | errno.EPERM
    assert ask(machine, "clone", [process], {"processes"}) == bpf.ALLOW
    assert ask(machine, "clone", [thread], {"processes"}) == bpf.ERRNO | errno.EPERM
    for flag in (namespace, sibling, 0x20000, 0x02000000, 0x04000000, 0x08000000, 0x20000000, 0x40000000, 0x2000):
        assert ask(machine, "clone", [process | flag], {"processes", "threads"}) == bpf.ERRNO | errno.EPERM
    assert ask(machine, "clone3", features={"processes", "threads"}) == bpf.ERRNO | errno.ENOSYS


@MACHINES
def test_signals_are_limited_to_own_processes(machine):
    """In a shared pid namespace they reach the child's own pid; in its own one, with processes, any process there."""
    assert ask(machine, "kill", [4242, 15], own_pids=False) == bpf.ALLOW
    for stranger in (1, 0, 2**64 - 1, 4243):
        assert ask(machine, "kill", [stranger, 15], {"processes"}, own_pids=False) == bpf.ERRNO | errno.EPERM
        assert ask(machine, "kill", [stranger, 15], {"processes"}, own_pids=True) == bpf.ALLOW
    assert ask(machine, "tgkill", [4242, 1, 6]) == bpf.ALLOW
    assert ask(machine, "tgkill", [1, 1, 6]) == bpf.ERRNO | errno.EPERM
    assert ask(machine, "prlimit64", [0, 7]) == bpf.ALLOW
    assert ask(machine, "prlimit64", [1, 7]) == bpf.ERRNO | errno.EPERM


@MACHINES
def test_dangerous_fcntl_ioctl_and_prctl_commands_are_refused(machine):
    """Examples are F_SETOWN(_EX), F_SETSIG, TIOCSTI, PR_SET_PDEATHSIG and PR_SET_MM."""
    for command in (8, 10, 15, 1024, 1026, 1031, 1033):
        assert ask(machine, "fcntl", [0, command]) == bpf.ERRNO | errno.EPERM
    for command in (0x5412, 0x8901, 0x5402, 0x541D):
        assert ask(machine, "ioctl", [0, command]) == bpf.ERRNO | errno.EPERM
    for option in (1, 4, 22, 24, 35, 36, 38):
        assert ask(machine, "prctl", [option]) == bpf.ERRNO | errno.EPERM
    # The kernel looks at 32 bits of a command: more of them change nothing.
    assert ask(machine, "ioctl", [0, 0x5412 | 1 << 32]) == bpf.ERRNO | errno.EPERM
    assert ask(machine, "fcntl", [0, 3 | 1 << 32]) == bpf.ALLOW


@MACHINES
def test_memory_that_no_limit_counts_is_refused(machine):
    """Shared anonymous mappings and stacks that grow; private ones and shared files are allowed."""
    assert ask(machine, "mmap", [0, 4096, 3, 0x21]) == bpf.ERRNO | errno.EPERM
    assert ask(machine, "mmap", [0, 4096, 3, 0x23]) == bpf.ERRNO | errno.EPERM
    assert ask(machine, "mmap", [0, 4096, 3, 0x122]) == bpf.ERRNO | errno.EPERM
    assert ask(machine, "mmap", [0, 4096, 3, 0x22]) == bpf.ALLOW
    assert ask(machine, "mmap", [0, 4096, 1, 0x01]) == bpf.ALLOW


@MACHINES
def test_sockets_need_the_network_feature(machine):
    """A plugin without it gets only a pair of streams; with it TCP and UDP, never raw, packet, vsock, MPTCP."""
    assert ask(machine, "socketpair", [1, 1 | 0x80800, 0]) == bpf.ALLOW
    for family, kind in ((1, 2), (1, 5), (2, 1), (10, 1)):
        assert ask(machine, "socketpair", [family, kind, 0]) == bpf.ERRNO | errno.EPERM
    assert ask(machine, "sendto", [3, 0, 0, 0, 0, 0]) == bpf.ALLOW
    assert ask(machine, "sendto", [3, 0, 0, 0, 1 << 32, 16]) == bpf.ERRNO | errno.EPERM
    assert ask(machine, "socket", [2, 1, 0]) == bpf.ERRNO | errno.EPERM
    for family, kind, protocol in ((2, 1, 0), (10, 2 | 0x80000, 17), (16, 3, 0)):
        assert ask(machine, "socket", [family, kind, protocol], {"network"}) == bpf.ALLOW
    for family, kind, protocol in ((1, 1, 0), (2, 3, 1), (2, 1, 262), (17, 3, 0), (40, 1, 0), (16, 3, 9), (38, 5, 0)):
        assert ask(machine, "socket", [family, kind, protocol], {"network"}) == bpf.ERRNO | errno.EPERM


@MACHINES
def test_calls_about_other_processes_and_outside_paths_are_refused(machine):
    """Others' processes and paths can be named in them: only the child's own pid is accepted, and no path that it may
    not read.
    """
    refused = bpf.ERRNO | errno.EPERM

    def outside(name, *arguments):
        return ask(machine, name, arguments, {"threads"}, own_pids=False)

    for name in ("getpgid", "getsid", "sched_getparam", "sched_getscheduler"):
        assert [outside(name, pid) for pid in (0, 4242, 1)] == [bpf.ALLOW, bpf.ALLOW, refused]
        assert ask(machine, name, [1]) == bpf.ALLOW
    assert [outside("sched_getaffinity", pid) for pid in (0, 1)] == [bpf.ALLOW, bpf.ERRNO | errno.ENOSYS]
    assert [outside("getpriority", *who) for who in ((0, 0), (0, 4242), (0, 1), (1, 0))] == [bpf.ALLOW] * 2 + [
        refused
    ] * 2
    for name in ("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create"):
        assert [outside(name, clock & 2**64 - 1) for clock in (0, 11, ~1 << 3 | 2)] == [
            bpf.ALLOW,
            bpf.ALLOW,
            bpf.ERRNO | errno.EINVAL,
        ]
    assert [outside("openat", 0, 0, flags) for flags in (0x80000, 0x280000)] == [bpf.ALLOW, refused]
    assert outside("readlinkat") == bpf.ERRNO | errno.EINVAL
    assert outside("capget") == refused


@MACHINES
def test_file_locks_need_feature_workdir(machine):
    """Files of the system are shared with other plugins, and so are their locks."""
    for name, arguments in (("flock", [3, 2]), *(("fcntl", [3, command]) for command in (5, 6, 7, 36, 37, 38))):
        assert ask(machine, name, arguments) == bpf.ERRNO | errno.EPERM
        assert ask(machine, name, arguments, {"workdir"}) == bpf.ALLOW


@MACHINES
def test_execution_is_allowed_only_to_the_stub_or_with_processes(machine):
    """The launcher is known by its descriptor and a number; with feature processes, Landlock decides."""
    right = [4096, 0, 0, 0, 0x1000, 0x7F << 32 | 0x1000]
    assert ask(machine, "execveat", right) == bpf.ALLOW
    for position, wrong in ((0, 3), (4, 0), (5, 0), (5, 0x1000), (5, 0x7F << 32)):
        assert ask(machine, "execveat", [*right[:position], wrong, *right[position + 1 :]]) == bpf.ERRNO | errno.EPERM
    assert ask(machine, "execve") == bpf.ERRNO | errno.EPERM
    assert ask(machine, "execve", features={"processes"}) == bpf.ALLOW


def test_changing_files_needs_feature_workdir():
    """Names, modes and times of files can be changed with it only."""
    for name in ("chmod", "utimensat", "renameat2", "unlinkat", "mkdirat", "linkat", "truncate"):
        assert ask(syscalls.X86_64, name) == bpf.ERRNO | errno.EPERM
        assert ask(syscalls.X86_64, name, features={"workdir"}) == bpf.ALLOW


@MACHINES
@pytest.mark.parametrize("own_pids", [True, False])
def test_any_call_is_found_in_a_few_steps(machine, own_pids):
    """The kernel asks for all numbers at each start: in a chain of ranges that took up to 400 steps for each."""
    made = seccomp.program(machine, levels.FEATURES - {levels.CGROUP}, own_pids=own_pids)
    steps = [bpf_machine.run(made, arch=machine.audit, number=number, blanks=BLANKS)[1] for number in range(600)]
    assert max(steps) < 60
    assert sum(steps) / len(steps) < 20


def test_seccomp_programs_are_cached_per_machine_and_features():
    first = seccomp.program(syscalls.X86_64, frozenset({levels.THREADS}), own_pids=True)
    assert seccomp.program(syscalls.X86_64, frozenset({levels.THREADS}), own_pids=True) is first
    assert len(first.code) // 8 < 4096  # BPF_MAXINSNS
