"""Children end with the daemon, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import children, processes

PARENT = """
import asyncio, os, sys
from latticed.processes import child
from latticed.processes.ahead import Ahead
from latticed.sandbox import rlimits
from tests.house import children

async def main():
    kept = []
    ahead = Ahead() if sys.argv[1:] else None
    for level, features in (("filtered", ()), ("isolated", ("processes",)), ("open", ())):
        heard = children.Heard()
        program = "sleep 1000 & echo ready; wait" if features else "echo ready; while :; do read x || :; done"
        with children.spec_of(program, level=level, features=features) as spec:
            kept.append(await child.spawn(spec, on_exit=print, stdout=heard, stderr=children.Heard(), ahead=ahead))
        while not heard.data:
            heard.any.clear()
            await heard.any.wait()
    print("ready", flush=True)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


@pytest.mark.parametrize(("number", "ahead"), [(signal.SIGKILL, True), (signal.SIGTERM, True), (signal.SIGKILL, False)])
def test_all_descendants_end_when_their_parent_is_killed(number, ahead):
    """The parent gets SIGKILL, or SIGTERM without a handler; it has children at every level, and grandchildren, and a
    stub started ahead.
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *["ahead"] * ahead],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
    )
    try:
        assert parent.stdout.readline() == b"ready\n"
        tree = children.descendants(parent.pid)
        assert len(tree) == 5
        stubs = children.stubs(parent.pid)
        assert len(stubs) == ahead
        os.kill(parent.pid, number)
        parent.wait()
        processes.until(lambda: not any(map(children.alive, tree | stubs)), what="the children to be gone")
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
