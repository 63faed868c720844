"""The stub started ahead: its children, its end at every moment, and what nobody can do with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latticed.processes import ahead as keeping
from latticed.processes import child, orphans
from latticed.processes import spawn as birth
from latticed.processes.ahead import Ahead
from latticed.sandbox import ahead as starting
from latticed.sandbox import launch
from tests.house import children, long, processes

LEVELS = {"open": (), "filtered": ("threads",), "isolated": ("threads", "workdir")}
SHAPES = [*LEVELS.items(), ("isolated", ("threads", "workdir", "processes"))]
ROOT = Path(__file__).resolve().parents[3]

# Pieces of code executed in the stub after its own, before it serves: what happens to it, and when.
STOPS = """
_tie = tie_to_daemon
def tie_to_daemon():
    _tie()
    os.kill(os.getpid(), SIGNAL)
"""
AFTER_CLONE = """
_clone = clone
def clone(kinds):
    if pid := _clone(kinds):
        os.kill(os.getpid(), SIGNAL)
    return pid
"""
AFTER_GO = """
_write = os.write
def write(fd, data):
    _write(fd, data)
    if data.isdigit():
        os.kill(os.getpid(), SIGNAL)
os.write = write
"""
IN_THE_CHILD = """
_stub = os.getpid()
_carry_out = carry_out
def carry_out(plan):
    os.kill(_stub, SIGNAL)
    _carry_out(plan)
"""
DUMPABLE = """
_clone = clone
def clone(kinds):
    if prctl(3):  # PR_GET_DUMPABLE
        os._exit(1)
    return _clone(kinds)
"""
REFUSED = "def clone(kinds): return -1"
ASLEEP = """
def clone(kinds):
    import time
    time.sleep(1000)
"""


def injected(monkeypatch: pytest.MonkeyPatch, code: str, number: int = signal.SIGKILL) -> None:
    """Have stubs that are started ahead from now on execute this too."""
    more = compile(code.replace("SIGNAL", str(int(number))), "injected", "exec")
    real = launch._compiled
    monkeypatch.setattr(launch, "_compiled", lambda name: more if name == "injected" else real(name))
    monkeypatch.setattr(starting, "_MODULES", (*starting._MODULES, "injected"))


async def start(ahead: Ahead | None, program: str, level: str = "filtered", features=None, **more) -> tuple:
    """A child, its output, and the future of its exit."""
    ended = asyncio.get_running_loop().create_future()
    out = children.Heard()
    features = LEVELS[level] if features is None else features
    with children.spec_of(program, level=level, features=features, **more) as spec:
        started = await child.spawn(spec, on_exit=ended.set_result, stdout=out, stderr=children.Heard(), ahead=ahead)
    return started, out, ended


async def said(ahead: Ahead | None, program: str, *more, **others) -> bytes:
    """All that the child writes until it exits with 0."""
    _, out, ended = await start(ahead, program, *more, **others)
    async with asyncio.timeout(processes.PATIENCE_S):
        assert (await ended).message == "exited 0"
    return out.data


@pytest.mark.parametrize(("level", "features"), SHAPES)
async def test_children_are_the_daemons_own_and_have_no_process_in_between(ahead, level, features):
    """They are tied to it as the others are; the stub has no child at all."""
    started, _, _ = await start(ahead, "read x", level, features)
    parents = {int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]) for pid in started.roots}
    groups = {os.getpgid(pid) for pid in started.roots}
    assert parents == {os.getpid()}
    assert children.descendants(os.getpid()) == set(started.roots)
    assert children.stubs(os.getpid()) == {ahead.stub.pid}
    assert os.getpgid(ahead.stub.pid) not in groups
    assert os.getpgid(os.getpid()) not in groups
    await started.stop(0)


async def test_a_child_without_processes_leads_its_session_and_group(ahead):
    started, _, _ = await start(ahead, "read x", "isolated")
    assert os.getpgid(started.pid) == os.getsid(started.pid) == started.pid
    await started.stop(0)


@pytest.mark.parametrize(
    ("moment", "level"),
    [
        (AFTER_CLONE, "filtered"),
        (AFTER_CLONE, "isolated"),
        (AFTER_GO, "filtered"),
        (AFTER_GO, "isolated"),
        (IN_THE_CHILD, "filtered"),  # in a pid namespace of its own it could not
    ],
)
async def test_stub_that_is_killed_costs_no_start(ahead, monkeypatch, moment, level):
    """After the clone, once it has its pid, and while the plan is carried out: the child is there once, never twice."""
    injected(monkeypatch, moment)
    assert await said(ahead, "echo once", level) == b"once\n"
    assert ahead.stub.ended() or children.stubs(os.getpid()) == {ahead.stub.pid}
    processes.until(lambda: nothing_left(ahead), what="a clone that did nothing to be reaped")


async def test_stub_that_is_killed_before_it_takes_the_message_costs_no_start(ahead, monkeypatch):
    """So do all the starts that it has not come to."""
    assert await said(ahead, "echo first") == b"first\n"
    os.kill(ahead.stub.pid, signal.SIGSTOP)
    under_way = [asyncio.create_task(said(ahead, f"echo {one}")) for one in range(5)]
    await asyncio.sleep(0)
    os.kill(ahead.stub.pid, signal.SIGKILL)
    assert await asyncio.gather(*under_way) == [b"%d\n" % one for one in range(5)]
    assert await said(ahead, "echo next") == b"next\n"
    assert not ahead.stub.ended()


async def test_stub_that_is_killed_between_two_starts_is_started_again(ahead):
    assert await said(ahead, "echo first") == b"first\n"
    first = ahead.stub.pid
    os.kill(first, signal.SIGKILL)
    assert await said(ahead, "echo second") == b"second\n"
    assert await said(ahead, "echo third") == b"third\n"
    assert ahead.stub.pid != first


async def test_stub_that_is_started_beside_many_descriptors_serves(ahead):
    """Its pidfd is above 1023 then, the last that select(2) takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    try:
        with contextlib.ExitStack() as many:
            for _ in range(1024):
                many.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            assert await said(ahead, "echo first") == b"first\n"
            assert await said(ahead, "echo second") == b"second\n"
            assert min(ahead.stub.fds) > 1023
            os.kill(ahead.stub.pid, signal.SIGKILL)
            assert await said(ahead, "echo third") == b"third\n"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_stub_that_keeps_ending_is_given_up(ahead, monkeypatch):
    """With one warning; starts go on as before."""
    told = []
    monkeypatch.setattr(keeping, "WITHIN_S", 1000.0)  # however slow this machine is
    monkeypatch.setattr(keeping.log, "warning", lambda event, **fields: told.append((event, fields)))
    injected(monkeypatch, "os._exit(1)")
    for _ in range(2 * keeping.ENDS + 2):
        assert await said(ahead, "echo here") == b"here\n"
        if ahead.stub is not None:
            processes.until(ahead.stub.ended, what="the stub to end")
    assert ahead.stub is None
    assert told == [("stub_given_up", {"ends": 3, "within_s": 1000})]


async def test_ends_that_are_far_apart_are_no_reason_to_give_up(ahead, monkeypatch):
    monkeypatch.setattr(keeping, "WITHIN_S", -1.0)
    injected(monkeypatch, "os._exit(1)")
    for _ in range(2 * keeping.ENDS):
        assert await said(ahead, "echo here") == b"here\n"
        processes.until(ahead.stub.ended, what="the stub to end")
    assert ahead.stub is not None


@pytest.mark.parametrize("code", [STOPS, AFTER_CLONE])
async def test_stub_that_stops_is_killed_and_the_child_started_without(ahead, monkeypatch, code):
    """Before it takes the message, and with a clone that waits for its pid. At once, not after what a slow one has."""
    monkeypatch.setattr(birth, "TOLD_S", 10 * processes.PATIENCE_S)
    injected(monkeypatch, code, signal.SIGSTOP)
    assert await said(ahead, "echo here", "isolated") == b"here\n"
    processes.until(ahead.stub.ended, what="the stub to be gone")
    processes.until(lambda: nothing_left(ahead), what="a clone that did nothing to be reaped")


async def test_stub_that_is_too_slow_is_killed_and_the_child_started_without(ahead, monkeypatch):
    monkeypatch.setattr(birth, "TOLD_S", 0.3)
    injected(monkeypatch, ASLEEP)
    assert await said(ahead, "echo here", "isolated") == b"here\n"
    processes.until(ahead.stub.ended, what="the stub to be gone")


@pytest.mark.parametrize("code", [STOPS, AFTER_CLONE, AFTER_GO])
async def test_start_that_is_cancelled_leaves_nothing(ahead, monkeypatch, code):
    """While the stub is stopped: a revocation does not wait for it, as it does for a slow one (PATIENCE_S is less)."""
    monkeypatch.setattr(birth, "TOLD_S", 10 * processes.PATIENCE_S)
    injected(monkeypatch, code, signal.SIGSTOP)
    task = asyncio.create_task(start(ahead, "sleep 1000", "isolated"))
    await asyncio.sleep(0.1)
    task.cancel()
    async with asyncio.timeout(processes.PATIENCE_S):
        await asyncio.wait({task})
    if not task.cancelled():  # it was quicker
        await task.result()[0].stop(0)
    processes.until(lambda: nothing_left(ahead), what="nothing to be left")


async def test_starts_that_are_cancelled_at_any_moment_leave_nothing(ahead):
    """The fixtures look for processes and descriptors."""
    assert await said(ahead, "echo warm") == b"warm\n"
    chance = random.Random(17)
    for _ in range(long.times(20, 300)):
        task = asyncio.create_task(start(ahead, "sleep 1000", *chance.choice(SHAPES)))
        await asyncio.sleep(chance.uniform(0, 0.02))
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            await task.result()[0].stop(0)
        assert not children.descendants(os.getpid())


@contextlib.contextmanager
def another_limit():
    """The soft one of resident memory, which no plan sets and the kernel ignores."""
    soft, hard = resource.getrlimit(resource.RLIMIT_RSS)
    resource.setrlimit(resource.RLIMIT_RSS, (123 << 20, hard))
    yield f"{123 << 10}\n".encode()
    resource.setrlimit(resource.RLIMIT_RSS, (soft, hard))


@contextlib.contextmanager
def another_processor():
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    yield f"{max(before)}\n".encode()
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("changed", "program"),
    [
        (another_limit, "ulimit -m"),
        (
            another_processor,
            "while read -r a b; do [ $a = Cpus_allowed_list: ] && echo $b; done < /proc/self/status; true",
        ),
    ],
)
async def test_children_have_the_limits_that_the_daemon_has_now(ahead, changed, program):
    """Not those that it had when the stub was started; starts under way at that moment go on."""
    first = await said(ahead, program, "open")
    stub = ahead.stub.pid
    assert await said(ahead, program, "open") == first
    assert ahead.stub.pid == stub
    under_way = asyncio.create_task(said(ahead, "echo here", "open"))
    await asyncio.sleep(0)
    with changed() as expected:
        assert await said(ahead, program, "open") == expected != first
    assert await under_way == b"here\n"
    assert await said(ahead, program, "open") == first
    processes.until(lambda: nothing_left(ahead), what="the stubs of before to be gone")


async def test_stub_has_one_thread_and_is_started_by_the_main_one(ahead):
    """A clone of several threads could find a lock taken for ever; and the stub ends with the one that started it."""
    await said(ahead, "echo first")
    await asyncio.gather(*(said(ahead, "echo next", *shape) for shape in SHAPES))
    assert os.listdir(f"/proc/{ahead.stub.pid}/task") == [str(ahead.stub.pid)]
    with children.spec_of("echo never") as spec, pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(starting.StubAhead.start, spec.plan)


REPLACED = """
import asyncio, sys
from pathlib import Path
from latticed.processes import child
from latticed.processes.ahead import Ahead
from latticed.sandbox import launch
from tests.house import children

place = Path(launch.__file__).parent
assert str(place).startswith(sys.argv[1])
for one in place.glob("stub*.py"):
    one.write_text("raise SystemExit('of another version')")

async def main():
    async with Ahead() as ahead:
        for way in (ahead, None):
            with children.spec_of("echo here", level="filtered", features=()) as spec:
                out = children.Heard()
                started = await child.spawn(spec, on_exit=print, stdout=out, stderr=children.Heard(), ahead=way)
                await started.gone()
                assert out.data == b"here\\n", out.data
        assert ahead.stub is not None and not ahead.stub.ended()

asyncio.run(main())
"""


def test_upgrade_before_the_first_child_mixes_no_versions(tmp_path):
    """What the stub executes is of the daemon that runs, whatever lies in its package by then."""
    shutil.copytree(ROOT / "latticed", tmp_path / "latticed", ignore=shutil.ignore_patterns("__pycache__", "console"))
    path = f"{tmp_path}:{ROOT}"
    found = subprocess.run(
        [sys.executable, "-P", "-c", REPLACED, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, check=False, cwd="/", timeout=2 * processes.PATIENCE_S,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr.decode()


async def test_clone_that_is_refused_is_not_needed(ahead, monkeypatch):
    """The stub stays, and each child gets one of its own."""
    injected(monkeypatch, REFUSED)
    for _ in range(keeping.ENDS + 1):
        assert await said(ahead, "echo here", "isolated") == b"here\n"
    assert not ahead.stub.ended()


async def test_step_that_fails_is_reported_by_its_name(ahead):
    """It is not tried again: the same plan would fail again."""
    with children.spec_of("echo never", level="filtered", features=()) as spec:
        spec.plan["program"] = "/nothing/here"
        for way in (ahead, None):
            with pytest.raises(launch.StageFailed) as found:
                await child.spawn(spec, on_exit=print, stdout=children.Heard(), stderr=children.Heard(), ahead=way)
            assert (found.value.stage, found.value.errno) == ("exec_fd", 2)


async def test_stub_holds_nothing_of_the_children_that_it_made(ahead):
    """Its descriptors are the same before and after, and its memory stays what it was."""
    await said(ahead, "echo first")
    before, fds = resident_kib(ahead), descriptors(ahead)
    for _ in range(long.times(10, 250)):
        await asyncio.gather(*(said(ahead, "echo next", *shape) for shape in SHAPES))
    assert descriptors(ahead) == fds
    assert sorted(fds) == [0, 1, 2, 102, 107]
    assert resident_kib(ahead) <= before + 256


async def test_children_started_together_get_what_is_theirs(ahead):
    """Arguments, environment and descriptors; the plans are under way at once."""

    async def one(number: int) -> None:
        out, ended = children.Heard(), asyncio.get_running_loop().create_future()
        level, features = SHAPES[number % len(SHAPES)]
        script = f'read x; echo "{number} $1 $x"'
        with children.spec_of(script, level=level, features=features, args=(f"argument-{number}",)) as spec:
            started = await child.spawn(
                spec, on_exit=ended.set_result, stdout=out, stderr=children.Heard(), ahead=ahead
            )
        started.stdin.write(b"input-%d\n" % number)
        await ended
        assert out.data.decode() == f"{number} argument-{number} input-{number}\n"

    async with asyncio.timeout(processes.PATIENCE_S):
        await asyncio.gather(*(one(number) for number in range(24)))


async def test_stub_cannot_be_looked_into(ahead, monkeypatch):
    """It has the daemon's uid, and stays: its memory and descriptors belong to root, whoever it runs as. So it is asked
    itself (PR_GET_DUMPABLE), as it makes a child: where the tests run as root, files of /proc tell nothing.
    """
    injected(monkeypatch, DUMPABLE)
    await said(ahead, "echo here")
    assert not ahead.stub.ended()
    place = Path(f"/proc/{ahead.stub.pid}")
    rows = dict(row.split(":\t", 1) for row in (place / "status").read_text().splitlines() if ":\t" in row)
    assert rows["NoNewPrivs"] == "1"
    assert (place / "mem").stat().st_uid == 0
    assert (place / "environ").stat().st_uid == 0
    assert (place / "oom_score_adj").read_text().strip() == str(max(500, children.probed().standing.oom_score_adj))


async def test_end_of_the_daemon_ends_the_stub():
    """`async with`: nothing is left at its end, also of a stub that is stopped."""
    async with Ahead() as ahead:
        await said(ahead, "echo here")
        os.kill(ahead.stub.pid, signal.SIGSTOP)
    assert not children.stubs(os.getpid())
    async with Ahead():
        pass  # nothing was started


BLOCKED = """
import asyncio, signal, sys
from latticed.processes import child, spawn
from latticed.processes.ahead import Ahead
from latticed.sandbox import ahead as starting
from latticed.sandbox import launch
from tests.house import children

spawn._LOOK_S = 1000  # a stub that is stopped stays
more = compile(sys.argv[1], "injected", "exec")
real = launch._compiled
launch._compiled = lambda name: more if name == "injected" else real(name)
starting._MODULES = (*starting._MODULES, "injected")

async def main():
    with children.spec_of("sleep 1000", level="isolated", features=()) as spec:
        await child.spawn(spec, on_exit=print, stdout=children.Heard(), stderr=children.Heard(), ahead=Ahead())

asyncio.run(main())
"""


@pytest.mark.parametrize("code", [STOPS, AFTER_CLONE])
def test_kill_9_of_the_daemon_ends_stub_and_clone_that_are_stopped(code):
    """A clone that waits for its pid ends without having done anything."""
    parent = subprocess.Popen(
        [sys.executable, "-c", BLOCKED, code.replace("SIGNAL", str(int(signal.SIGSTOP)))],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    wanted = 1 + (code == AFTER_CLONE)
    try:
        processes.until(lambda: len(stopped(parent.pid)) == 1 and len(tree(parent.pid)) == wanted, what="the stop")
        left = tree(parent.pid)
        parent.kill()
        parent.wait()
        processes.until(lambda: not any(map(children.alive, left)), what="the stub and its clone to be gone")
    finally:
        parent.kill()
        parent.wait()


NAMED = """
import asyncio, json, os, sys
from latticed.processes import child
from latticed.processes.ahead import Ahead
from latticed.sandbox import launch, namespaces
from tests.house import children
from tests.house.confined_driver import refuse

async def stages(flag):
    found = []
    for ahead in (None, Ahead()):
        with children.spec_of("exit 0", level="isolated", features=()) as spec:
            try:
                started = await child.spawn(
                    spec, on_exit=print, stdout=children.Heard(), stderr=children.Heard(), ahead=ahead)
                found.append((await started.gone()).message)
            except launch.StageFailed as failed:
                found.append(f"{failed.errno} {failed.stage}")
    return found

children.probed()
for name, flag in (namespaces.USER, namespaces.MOUNT, namespaces.PID, namespaces.NET, namespaces.IPC):
    read, write = os.pipe()
    if not os.fork():
        refuse(flag)
        os.write(write, json.dumps([name, *asyncio.run(stages(flag))]).encode())
        os._exit(0)
    os.wait()
    print(os.read(read, 4096).decode())
"""


@pytest.mark.root
@pytest.mark.parametrize("user", [None, processes.STRANGER], ids=["root", "stranger"])
def test_refused_namespace_is_named_as_without_the_stub(user):
    """A filter of calls refuses one kind to clone and unshare."""
    if os.getuid() != 0:
        pytest.skip("running a process under another uid needs uid 0")
    ids = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
    python = processes.reachable_python() if user else sys.executable
    found = subprocess.run(
        [python, "-P", "-c", NAMED],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, check=False, cwd="/", timeout=2 * processes.PATIENCE_S, **ids,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    # Root needs no user namespace.
    expected = [(name, "exited 0" if name == "user" and not user else f"1 unshare({name})") for name, *_ in rows]
    assert len(rows) == 5
    assert rows == [[name, what, what] for name, what in expected]


def resident_kib(ahead: Ahead) -> int:
    rows = Path(f"/proc/{ahead.stub.pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith("VmRSS:"))


def descriptors(ahead: Ahead) -> set[int]:
    return {int(name) for name in os.listdir(f"/proc/{ahead.stub.pid}/fd")}


def nothing_left(ahead: Ahead) -> bool:
    """Whether no child is left but the stub, once what nobody waits for is reaped as the daemon does."""
    orphans.reap()
    return tree(os.getpid()) <= {ahead.stub.pid}


def tree(pid: int) -> set[int]:
    return children.descendants(pid) | children.stubs(pid)


def stopped(pid: int) -> set[int]:
    """Stopped children of `pid`."""
    found = set()
    for one in tree(pid):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
                found.add(one)
    return found
