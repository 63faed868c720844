"""Process 1 of a namespace whose child may make processes: it reaps orphans, and reports the child's own exit."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from pathlib import Path

import pytest

from latticed.model.errors import Problem
from latticed.processes import child, orphans
from latticed.processes import spawn as birth
from latticed.runners import cpu
from latticed.sandbox import rlimits
from tests.house import children, processes

pytestmark = pytest.mark.usefixtures("launcher")
DEADLINE_S = processes.PATIENCE_S
MAY_FORK = ("threads", "processes", "workdir")
FEATURES = {"open": MAY_FORK, "filtered": ("threads",), "isolated": MAY_FORK, "dedicated": MAY_FORK}
MOST_PRIVATE_BYTES = 2 << 20

ORPHANS = b"""#!/usr/bin/env python3
import os

for _ in range(40):
    if (pid := os.fork()) == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.waitpid(pid, 0)
print("no process too many", flush=True)
"""


class Started:
    def __init__(self) -> None:
        self.out, self.err = children.Heard(), children.Heard()
        self.ended: asyncio.Future[child.Exit] = asyncio.get_running_loop().create_future()

    async def hears(self, data: bytes) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while data not in self.out.data:
                self.out.any.clear()
                await self.out.any.wait()

    async def end(self) -> child.Exit:
        async with asyncio.timeout(DEADLINE_S):
            return await self.ended


async def start(program: bytes | str, *, level: str = "isolated", features=None, **more) -> Started:
    started = Started()
    wanted = FEATURES[level] if features is None else features
    with children.spec_of(program, level=level, features=wanted, **more) as spec:
        started.child = await child.spawn(
            spec, on_exit=started.ended.set_result, stdout=started.out, stderr=started.err
        )
    return started


def status_of(pid: int) -> dict[str, str]:
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (row.partition(":") for row in rows)}


@pytest.mark.parametrize("level", FEATURES)
@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("exit 0", "exited", "exited 0"),
        ("exit 7", "exited", "exited 7"),
        ("kill -9 $$; exit 0", "killed", "killed by SIGKILL (out of memory?)"),
        ("kill -TERM $$; exit 0", "killed", "killed by SIGTERM"),
        ("kill -SEGV $$; exit 0", "crashed", "killed by SIGSEGV (a memory access that is not allowed)"),
    ],
)
async def test_reported_exit_is_that_of_the_child(script, code, message, level):
    """An exit status stays a status and a signal a signal, at every level."""
    started = await start(script, level=level)
    ended = await started.end()
    assert (ended.code, ended.message) == (code, message)


@pytest.mark.parametrize("level", ["isolated", "dedicated"])
async def test_reaped_orphans_do_not_count_for_the_task_limit(level):
    """There are forty orphans, where eight tasks are allowed."""
    started = await start(ORPHANS, level=level, limits=rlimits.ResourceLimits(tasks=8))
    assert (await started.end()).message == "exited 0", started.err.data
    assert started.out.data == b"no process too many\n"


async def test_process_1_takes_little_private_memory():
    """The kernel counts it in smaps_rollup."""
    started = await start("echo ready; read x")
    await started.hears(b"ready")
    _, init = started.child.roots
    rows = [row.split() for row in Path(f"/proc/{init}/smaps_rollup").read_text().splitlines()]
    private = sum(int(row[1]) << 10 for row in rows if row[0].startswith("Private_"))
    await started.child.stop(0)
    assert 0 < private <= MOST_PRIVATE_BYTES


async def test_process_1_is_confined_like_the_child():
    """It has the same ids, no capability, no way to gain one, a seccomp filter, and no open descriptor."""
    started = await start("echo ready; read x")
    await started.hears(b"ready")
    pid, init = started.child.roots
    found, theirs = status_of(init), status_of(pid)
    held = os.listdir(f"/proc/{init}/fd")
    await started.child.stop(0)
    for name in ("Uid", "Gid", "Groups", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"):
        assert found[name] == theirs[name], name
    assert (found["Seccomp"], found["NoNewPrivs"], held) == ("2", "1", [])
    assert found["NSpid"].split()[-1] == "1"


async def test_child_that_cannot_fork_is_process_1_itself():
    """No extra process is started for it."""
    started = await start("echo $$; read x", features=("threads",))
    await started.hears(b"1\n")
    assert started.child.roots == (started.child.pid,)
    await started.child.stop(0)


async def test_child_process_1_and_descendants_end_together():
    """Either of the first two is killed."""
    for victim in (0, 1):
        started = await start("setsid sleep 1000 & echo ready; read x")
        await started.hears(b"ready")
        tree = children.descendants(os.getpid())
        assert len(tree) == 3
        os.kill(started.child.roots[victim], signal.SIGKILL)
        assert (await started.end()).killed_by == signal.SIGKILL
        processes.until(lambda tree=tree: not any(map(children.alive, tree)), what="the tree to be gone")


async def test_child_cannot_kill_or_stop_process_1():
    started = await start("kill -9 1; kill -STOP 1; kill -TERM 1; (sleep 0 &) ; echo ready; read x; exit 3")
    await started.hears(b"ready")
    processes.until(  # it may be at work for a moment: the signals wake it, the orphan is to be reaped
        lambda: status_of(started.child.roots[1])["State"].startswith("S"), what="process 1 to sleep, not stopped"
    )
    started.child.stdin.write(b"\n")
    assert (await started.end()).message == "exited 3"


async def test_sigterm_reaches_the_child_behind_process_1():
    """A child that does not catch it ends, long before its grace is over."""
    started = await start("echo ready; while :; do :; done")
    await started.hears(b"ready")
    async with asyncio.timeout(DEADLINE_S):
        assert (await started.child.stop(1000)).killed_by == signal.SIGTERM


@pytest.mark.parametrize("level", ["open", "isolated"])
async def test_sigterm_reaches_what_the_child_waits_for(level):
    """A shell runs its trap once the command that it waits for has ended."""
    program = "trap 'echo cleaned up; exit 5' TERM; sh -c 'echo ready; exec sleep 1000'; echo never"
    started = await start(program, level=level)
    await started.hears(b"ready")
    async with asyncio.timeout(DEADLINE_S):
        assert (await started.child.stop(1000)).message == "exited 5"
    assert started.out.data == b"ready\ncleaned up\n"


async def test_sigterm_reaches_a_child_that_has_left_its_group():
    started = await start("exec setsid sh -c 'echo ready; while :; do :; done'")
    await started.hears(b"ready")
    async with asyncio.timeout(DEADLINE_S):
        assert (await started.child.stop(1000)).killed_by == signal.SIGTERM


async def test_exit_is_reported_after_all_descendants_have_ended():
    """All output was delivered by then, also that of processes in other sessions."""
    started = await start("setsid sh -c 'trap \"\" TERM; while :; do echo x; done' & read x; exit 0")
    await started.hears(b"x\n")
    tree = children.descendants(os.getpid())
    started.child.stdin.write(b"\n")
    await started.end()
    assert started.out.over.is_set()
    assert not any(map(children.alive, tree))


async def test_processor_time_of_orphans_counts_for_the_limit():
    started = await start("(while :; do :; done &); echo ready; read x")
    await started.hears(b"ready")
    exceeded: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    watch = cpu.CpuWatch(started.child, 5, exceeded.set_result, window_s=0.3)
    async with asyncio.timeout(DEADLINE_S):
        assert "of a core" in await exceeded
    watch.close()
    await started.child.stop(0)


IGNORES = b"""#!/usr/bin/env python3
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(4):
    if (pid := os.fork()) == 0:
        while time.process_time() < 0.4: pass
        os._exit(0)
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass
print("ready", flush=True)
input()
"""


async def test_processor_time_is_counted_without_a_group_if_somebody_waited():
    """1.6 seconds that nobody waited for are missing; named in the docs."""
    alone = dataclasses.replace(children.probed(), delegation=None)
    started = await start(IGNORES, on=alone)
    await started.hears(b"ready")
    assert started.child.cpu_s < 1
    await started.child.stop(0)
    assert started.child.cpu_s < 1


OWN = Path("/proc/self")


async def test_start_that_fails_after_fork_forgets_the_pid(monkeypatch):
    """Otherwise an orphan that gets the same pid later would never be reaped."""
    real, before = os.pidfd_open, set(birth.OURS)

    def refused(pid: int) -> int:
        if pid == os.getpid():
            return real(pid)
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(birth.os, "pidfd_open", refused)
    with pytest.raises(Problem, match="Too many open files"):
        await start("exit 0")
    assert before == birth.OURS
    assert not [*orphans._children(OWN)]
