"""Both ways of starting a child, at every level: what they start, report, and leave behind when ended."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from latticed.processes import child
from latticed.sandbox import launch, launch_calls
from tests.house import children, long, processes

SHAPES = [
    ("open", ()),
    ("filtered", ("threads",)),
    ("isolated", ("threads", "workdir")),
    ("isolated", ("threads", "workdir", "processes")),
]
ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("launcher")


async def start(program: str, level: str, features: tuple[str, ...], **more) -> tuple:
    """A child, its output, and the future of its exit."""
    out, ended = children.Heard(), asyncio.get_running_loop().create_future()
    with children.spec_of(program, level=level, features=features, **more) as spec:
        started = await child.spawn(spec, on_exit=ended.set_result, stdout=out, stderr=children.Heard())
    return started, out, ended


def test_plans_are_lists_of_calls_wherever_they_can_be(launcher):
    """Without this the other tests would say nothing of one of the ways."""
    for level, features in SHAPES:
        with children.spec_of("exit 0", level=level, features=features) as spec:
            assert launch_calls.possible(spec.plan) == (launcher == "calls")
            assert (launch_calls.executable(spec.plan) is not None) == (launcher == "calls")


@pytest.mark.parametrize(("level", "features"), SHAPES)
async def test_children_are_the_daemons_own_and_nothing_else_is_left_of_the_start(level, features):
    started, _, _ = await start("read x", level, features)
    parents = {int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]) for pid in started.roots}
    assert parents == {os.getpid()}
    assert children.descendants(os.getpid()) == set(started.roots)
    await started.stop(0)


async def test_children_started_together_get_what_is_theirs():
    """Arguments, environment and descriptors."""

    async def one(number: int) -> None:
        level, features = SHAPES[number % len(SHAPES)]
        script = f'read x; echo "{number} $1 $x"'
        started, out, ended = await start(script, level, features, args=(f"argument-{number}",))
        started.stdin.write(b"input-%d\n" % number)
        await ended
        assert out.data.decode() == f"{number} argument-{number} input-{number}\n"

    async with asyncio.timeout(processes.PATIENCE_S):
        await asyncio.gather(*(one(number) for number in range(24)))


async def test_starts_that_are_cancelled_at_any_moment_leave_nothing():
    """The fixtures look for processes and descriptors."""
    chance = random.Random(17)
    for _ in range(long.times(20, 300)):
        task = asyncio.create_task(start("sleep 1000", *chance.choice(SHAPES)))
        await asyncio.sleep(chance.uniform(0, 0.01))
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            await task.result()[0].stop(0)
        assert not children.descendants(os.getpid())


@pytest.mark.parametrize(("level", "features"), SHAPES)
async def test_step_that_fails_is_reported_by_its_name(level, features):
    with children.spec_of("echo never", level=level, features=features) as spec:
        spec.plan["program"] = "/nothing/here"
        with pytest.raises(launch.StageFailed) as found:
            await child.spawn(spec, on_exit=print, stdout=children.Heard(), stderr=children.Heard())
    assert (found.value.stage, found.value.errno) == ("exec_fd", 2)


@pytest.mark.parametrize(("level", "features"), SHAPES[2:])
async def test_path_that_is_needed_and_missing_is_named(level, features):
    """Others that are missing are left out; they may be files or directories."""
    with children.spec_of("echo never", level=level, features=features) as spec:
        tree = spec.plan["tree"]
        tree["binds"] = [("/nothing/optional", False), ("/nothing/needed", False), *tree["binds"]]
        tree["needed"] = (*tree["needed"], "/nothing/needed")
        with pytest.raises(launch.StageFailed) as found:
            await child.spawn(spec, on_exit=print, stdout=children.Heard(), stderr=children.Heard())
    assert (found.value.stage, found.value.errno) == ("bind(/nothing/needed)", 2)


async def test_artifact_of_many_reads_is_copied_whole():
    """Into a root of its own: a script there is read by its path."""
    text = "x" * (3 << 20)
    _, out, ended = await start(f": {text}\necho whole", "isolated", ())
    assert (await ended).message == "exited 0"
    assert out.data == b"whole\n"


async def test_launcher_that_is_killed_is_told_as_such(monkeypatch, stuck):
    """It has reported no pid: nothing of the child is there."""
    real = launch.launch

    def killed(*arguments, **more):
        started = real(*arguments, **more)
        os.kill(started.pid, 9)
        return started

    monkeypatch.setattr(launch, "launch", killed)
    with children.spec_of("echo never") as spec:
        spec.plan.update(stuck)
        with pytest.raises(launch.StageFailed, match="ended without a word"):
            await child.spawn(spec, on_exit=print, stdout=children.Heard(), stderr=children.Heard())
    assert not children.descendants(os.getpid())


NAMED = """
import asyncio, json, os, sys
from latticed.processes import child
from latticed.sandbox import launch, launch_calls, namespaces
from tests.house import children
from tests.house.confined_driver import refuse

if sys.argv[1:] == ["stub"]:
    launch_calls.possible = lambda _: False

async def stage(flag):
    with children.spec_of("exit 0", level="isolated", features=()) as spec:
        try:
            started = await child.spawn(spec, on_exit=print, stdout=children.Heard(), stderr=children.Heard())
            return (await started.gone()).message
        except launch.StageFailed as failed:
            return f"{failed.errno} {failed.stage}"

children.probed()
for name, flag in (namespaces.USER, namespaces.MOUNT, namespaces.PID, namespaces.NET, namespaces.IPC):
    read, write = os.pipe()
    if not os.fork():
        refuse(flag)
        os.write(write, json.dumps([name, asyncio.run(stage(flag))]).encode())
        os._exit(0)
    os.wait()
    print(os.read(read, 4096).decode())
"""


@pytest.mark.root
@pytest.mark.parametrize("user", [None, processes.STRANGER], ids=["root", "stranger"])
def test_refused_namespace_is_named(launcher, user):
    """A filter of calls refuses one kind."""
    if os.getuid() != 0:
        pytest.skip("running a process under another uid needs uid 0")
    ids = {"user": user.uid, "group": user.gid, "extra_groups": []} if user else {}
    python = processes.reachable_python() if user else sys.executable
    found = subprocess.run(
        [python, "-P", "-c", NAMED, launcher],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, check=False, cwd="/", timeout=2 * processes.PATIENCE_S, **ids,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    # Root needs no user namespace.
    expected = [[name, "exited 0" if name == "user" and not user else f"1 unshare({name})"] for name, _ in rows]
    assert len(rows) == 5
    assert rows == expected
