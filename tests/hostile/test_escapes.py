"""The escape list: each attempt at each level, as root's child and as an ordinary user's.

Every attempt is also made at `open`, where most succeed: so the sandbox is why they fail at other levels.
"""

from __future__ import annotations

import functools
import os

import pytest

from tests.house import confined, processes

ARGUMENTS = ["{parent}", "{ledger}", "{tcp}", "{udp}", "{abstract}", "{socket}", "{path}"]
ALL_FEATURES = ("processes", "threads", "workdir")

WORKS_AT_OPEN = """
read_passwd read_ledger write_ledger create_beside_ledger read_sys read_proc stat_ledger chmod_ledger
chmod_ledger_by_path_fd truncate_ledger touch_ledger chown_ledger rename_ledger tcp udp netlink unix_abstract unix_path
unix_dgram socketpair_dgram pass_descriptor kill_parent tgkill_parent tkill_parent queue_to_parent setown_parent
setown_ex_parent limit_parent pin_parent nice_parent fork thread exec_shell exec_memory outlive_parent personality
shared_memory stack_memory memfd pipe_memory gift_memory read_link open_path exists enter_directory stat_fs
group_of_parent session_of_parent affinity_of_parent scheduler_of_parent scheduling_of_parent priority_of_parent
capabilities_of_parent time_of_parent lock_shared see_locks
""".split()
"""For an ordinary user, whatever the machine's settings."""

ATTEMPTS = [
    *WORKS_AT_OPEN,
    *"""
inherited_descriptors read_shadow read_kmsg read_parent_memory write_own_program write_own_artifact write_system
write_cgroup chmodat2_ledger xattr_ledger xattr_ledger_by_path_fd hardlink_ledger mkdir_beside mkfifo_beside
unlink_beside symlink_out dns mptcp raw vsock packet alg environment kill_everyone pidfd_parent trace_parent
read_parent_by_vm ioprio_parent kcmp_parent clone3 session exec_setuid exec_again exec_by_path exec_scratch
user_namespace new_net mount remount unmount chroot enter_namespace become_root raise_capabilities raise_limit io_uring
bpf add_key keyctl perf_event userfault handle fanotify seccomp hostname set_time shm msg sem mqueue shared_file_memory
type_ahead zero_memory
""".split(),
]
LETHAL = ["int80", "x32"]

PASSES = {
    # Neither Landlock nor a filter of calls can hide names, sizes and times; named in the docs.
    ("filtered", ()): {"stat_ledger", "exists", "enter_directory"},
    ("isolated", ()): set(),
    ("dedicated", ()): set(),
    # Asked for, and harmless in a namespace of one's own: programs of the system, and what belongs to a process tree.
    ("isolated", ALL_FEATURES): {"fork", "thread", "session", "exec_shell", "exec_setuid", "exec_again"}
    | {"exec_by_path"}
    | {"lock_shared", "see_locks"},  # a workdir needs locks, and the system's files are everybody's; named in the docs
}
BLOCKED = {"EPERM", "EACCES", "ENOSYS", "ENOENT", "ESRCH", "EROFS"}
ALSO_BLOCKED = {
    "time_of_parent": {"EINVAL"},
    "read_link": {"EINVAL"},
    "write_own_program": {"ETXTBSY"},
    "inherited_descriptors": {"EBADF"},
    "raise_limit": {"EINVAL"},
    "zero_memory": {"ENOSPC"},
}

USERS = {"root": None, "ordinary": processes.STRANGER}


@functools.cache
def outcomes(
    who: str, level: str, features: tuple[str, ...], names: tuple[str, ...] = (), **how: bool
) -> dict[str, str]:
    """The outcome of each attempt; an attempt that ended the process is "killed by …". `how`: see `confined.run`."""
    user = USERS[who]
    if os.getuid() != 0 and user is not None:
        pytest.skip("running a process under another uid needs uid 0")
    if os.getuid() != 0 and who == "root":
        pytest.skip("root's children need uid 0")
    # At `dedicated` a child is what it is at `isolated`, with a uid that is nobody else's.
    order = {"level": level, "features": features, "args": [*ARGUMENTS, *names], "uid": 65503}
    found = confined.run(confined.compiled("escapes"), [order], user=user, **how)
    (result,) = found["results"]
    if names:
        return dict.fromkeys(names, result["message"])
    assert result["message"] == "exited 0", result
    return dict(line.split(": ", 1) for line in result["stdout"].splitlines() if ": " in line)


def cases() -> list[tuple[str, str, tuple[str, ...]]]:
    return [
        (who, level, features)
        for who in USERS
        for level, features in PASSES
        if not (who == "ordinary" and level == "dedicated")
    ]


@pytest.mark.root
@pytest.mark.parametrize(
    ("who", "level", "features"),
    cases(),
    ids=lambda value: "+".join(value) or "-" if isinstance(value, tuple) else value,
)
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_escape_attempts_fail_except_those_listed(attempt, who, level, features):
    """Those listed in PASSES do succeed, so the list stays true."""
    found = outcomes(who, level, features)[attempt]
    if attempt in PASSES[level, features]:
        assert found == "through"
    else:
        assert found in BLOCKED | ALSO_BLOCKED.get(attempt, set())


@pytest.mark.root
@pytest.mark.parametrize("who", USERS)
@pytest.mark.parametrize("level", ["filtered", "isolated"])
@pytest.mark.parametrize("attempt", LETHAL)
def test_foreign_abi_calls_end_the_process(attempt, level, who):
    """int 0x80 and x32 numbers reach no system call; kernels without them end the process by themselves."""
    assert outcomes(who, level, (), (attempt,))[attempt].startswith(("killed by SIGSYS", "killed by SIGSEGV"))


@pytest.mark.root
@pytest.mark.parametrize("attempt", WORKS_AT_OPEN)
def test_escape_attempts_succeed_without_the_sandbox(attempt):
    """They run at `open`, as an ordinary user with the daemon's uid: so the attempts themselves work."""
    assert outcomes("ordinary", "open", ())[attempt] == "through"


@pytest.mark.root
@pytest.mark.parametrize(
    ("who", "level", "features"),
    [("root", "filtered", ()), ("ordinary", "filtered", ()), ("ordinary", "isolated", ALL_FEATURES)],
)
def test_escape_attempts_end_alike_by_the_stub(who, level, features):
    """Which starts children where no program in memory may be executed."""
    assert outcomes(who, level, features, stub=True) == outcomes(who, level, features)


def test_every_attempt_of_the_program_has_a_row():
    source = (confined.HERE / "escapes.c").read_text()
    import re

    assert set(re.findall(r"\bX\((\w+), ", source)) == set(ATTEMPTS)
