"""kill -9 at any moment around a run: every approved task is begun once at most, and no script outlives the daemon."""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from latticed.host.task.keeper import TaskKeeper
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger
from latticed.settings.programs import TaskSettings as Settings
from tests.house import children, confinements, long, processes

PROGRAM = Path(__file__).resolve().parents[2] / "house/task_process.py"


@pytest.mark.parametrize("runs", [6, *long.only(40)])
@pytest.mark.timeout(600)
async def test_task_runs_once_when_daemon_is_killed_at_any_point(tmp_path, runs):
    """Several processes work on one queue, one after another; each but the last is killed at a random line of its
    output.
    """
    seed = os.environ.get("LATTICED_CRASH_SEED") or secrets.token_hex(4)
    print(f"LATTICED_CRASH_SEED={seed}")
    chance = random.Random(seed)
    state, begun, finished = tmp_path / "state", tmp_path / "begun", set()
    for _ in range(runs):
        for line in _run_until_killed(state, begun, lines=chance.randrange(1, 24)):
            if line.startswith("ended "):
                finished.add(line.split()[1])
    clock = SystemClock()
    async with open_ledger(state, clock=clock) as ledger:
        settings = Settings(total_at_once=8, plugin_at_once=8)
        async with TaskKeeper(
            ledger, clock=clock, spawner=confinements.Spawner(), settings=settings, refusal=lambda _: None
        ) as tasks:
            deadline = time.monotonic() + processes.LONG_PATIENCE_S
            while open_ := await tasks.page(states=("approved", "running"), limit=10_000):
                assert time.monotonic() < deadline, open_
                await asyncio.sleep(0.01)
            found = {task.id: tasks.get(task.id) for task in await tasks.page(limit=10_000)}
    runs = Counter(line.split()[1] for line in begun.read_text().splitlines())
    assert set(runs.values()) <= {1}, "a task is begun once at most"
    assert {found[one].state for one in finished} <= {"done"}
    assert {task.state for task in found.values()} <= {"done", "interrupted", "submitted"}
    done = [task for task in found.values() if task.state == "done"]
    assert all(task.outcome.stdout == "begun\nover\n" and task.run_id for task in done)
    cut = [task for task in found.values() if task.state == "interrupted"]
    assert all(task.run_id for task in cut), "what was cut off had been on record before it began"
    assert set(runs) <= {task.id for task in (*done, *cut)}
    assert len(done) > 0


def _run_until_killed(state, begun, *, lines):
    """The output of one process until it was killed after so many lines; nothing it started is left."""
    said = []
    command = [sys.executable, "-P", PROGRAM, state, begun]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        said.extend(child.stdout.readline() for _ in range(lines))
    finally:
        scripts = children.descendants(child.pid)
        child.kill()
        rest = child.stdout.read()
        child.stdout.close()
        child.wait()
    processes.until(lambda: not any(map(children.alive, scripts)), what="its scripts to be gone")
    whole = [*said, *rest.splitlines(keepends=True)]
    return [line for line in whole if line.endswith("\n")]
