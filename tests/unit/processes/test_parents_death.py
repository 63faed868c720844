"""Children end with the daemon, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from latticed.sandbox import cgroup
from tests.house import cgroups, children, confined, processes

PARENT = """
import asyncio, os, sys
from latticed.processes import child
from latticed.sandbox import launch_calls
from tests.house import children

async def main():
    kept = []
    if sys.argv[1:]:
        launch_calls.possible = lambda _: False
    for level, features in (("filtered", ()), ("isolated", ("processes",)), ("open", ())):
        heard = children.Heard()
        program = "sleep 1000 & echo ready; wait" if features else "echo ready; while :; do read x || :; done"
        with children.spec_of(program, level=level, features=features) as spec:
            kept.append(await child.spawn(spec, on_exit=print, stdout=heard, stderr=children.Heard()))
        while not heard.data:
            heard.any.clear()
            await heard.any.wait()
    print("ready", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize(("number", "stub"), [(signal.SIGKILL, False), (signal.SIGTERM, False), (signal.SIGKILL, True)])
def test_all_descendants_end_when_their_parent_is_killed(number, stub):
    """The parent gets SIGKILL, or SIGTERM without a handler; it has children at every level, and grandchildren."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *["stub"] * stub],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
    )
    try:
        assert parent.stdout.readline() == b"ready\n"
        tree = children.descendants(parent.pid)
        assert len(tree) == 5
        os.kill(parent.pid, number)
        parent.wait()
        processes.until(lambda: not any(map(children.alive, tree)), what="the children to be gone")
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()


AGAIN = """
import asyncio, sys
from latticed.processes import child
from latticed.sandbox import launch_calls
from tests.house import children, launchers

async def main():
    if sys.argv[2:]:
        launch_calls.possible = lambda _: False
    program, kept = open(sys.argv[1], "rb").read(), []
    for level in ("filtered", "isolated"):
        for who in ("leader", "thread"):
            how = {"level": level, "features": ("threads",)}
            with children.spec_of(program, **how) as made:
                words = (hex(launchers.launchers_path(made)), str(made.plan["exec_fd"]), who)
            heard = children.Heard()
            with children.spec_of(program, args=words, **how) as made:
                kept.append(await child.spawn(made, on_exit=print, stdout=heard, stderr=children.Heard()))
            while b"\\n" not in heard.data:
                heard.any.clear()
                await heard.any.wait()
            print(heard.data.decode().strip(), flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize("stub", [False, True])
def test_child_that_wants_to_be_another_program_ends_with_its_parent(stub, tmp_path):
    """It knows all of its launcher's exec that is not drawn for it. What a second thread executes gets no signal."""
    program = tmp_path / "outlives"
    program.write_bytes(confined.compiled("outlives"))
    parent = subprocess.Popen(
        [sys.executable, "-c", AGAIN, program, *["stub"] * stub],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
    )
    tree = set()
    try:
        said = [parent.stdout.readline() for _ in range(4)]
        tree = children.descendants(parent.pid)
        parent.kill()
        parent.wait()
        processes.until(lambda: not any(map(children.alive, tree)), what="the children to be gone")
        assert (said, len(tree)) == ([b"refused\n"] * 4, 4)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        for pid in filter(children.alive, tree):
            os.kill(pid, signal.SIGKILL)


FORKS = """
import asyncio, dataclasses, pathlib, sys
from latticed.processes import child
from latticed.sandbox import cgroup
from tests.house import children

async def main():
    on = dataclasses.replace(children.probed(), delegation=cgroup.Delegation(base=pathlib.Path(sys.argv[1])))
    heard = children.Heard()
    with children.spec_of("sleep 1000 & echo ready; wait", level=sys.argv[2], features=("processes",), on=on) as spec:
        kept = await child.spawn(spec, on_exit=print, stdout=heard, stderr=children.Heard())
    await heard.any.wait()
    print(kept.pid, flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.root
@pytest.mark.parametrize("level", ["filtered", "isolated"])
def test_what_a_child_forked_ends_with_its_parent_or_with_its_group(level):
    """Without a pid namespace the kernel kills the child alone; the next daemon ends the rest, by the group."""
    with cgroups.delegated() as group:
        parent = subprocess.Popen(
            [sys.executable, "-c", FORKS, group, level],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
        )
        try:
            pid = int(parent.stdout.readline())
            tree = children.descendants(parent.pid)
            (forked,) = children.descendants(pid)
        finally:
            parent.kill()
            parent.wait()
            parent.stdout.close()
        processes.until(lambda: not any(map(children.alive, tree - {forked})), what="the child to be gone")
        if level == "filtered":
            assert children.alive(forked)
            assert cgroup.sweep(cgroup.Delegation(base=group)) == 1
        processes.until(lambda: not children.alive(forked), what="what it forked to be gone")
