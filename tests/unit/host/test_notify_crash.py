"""kill -9 at any moment: no accepted notification is lost, none that is done is delivered again, ids are stable."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from latticed.host.notify.keeper import NotificationQueue
from latticed.kit.clock import SystemClock
from latticed.ledger import notification_upkeep, open_ledger
from latticed.settings import shapes
from tests.house import long

PROGRAM = Path(__file__).resolve().parents[2] / "house/notify_process.py"


@pytest.mark.parametrize("runs", [6, *long.only(60)])
@pytest.mark.timeout(300)
async def test_accepted_notifications_survive_kill_9(tmp_path, runs):
    """Several processes work on one queue, one after another, each killed at a random line of its output."""
    seed = os.environ.get("LATTICED_CRASH_SEED") or secrets.token_hex(4)
    print(f"LATTICED_CRASH_SEED={seed}")
    chance = random.Random(seed)
    accepted: dict[str, str] = {}
    done: set[str] = set()
    state = tmp_path / "state"
    for run in range(runs):
        for line in _run_until_killed(state, f"{seed}.{run}", lines=chance.randrange(1, 250)):
            match line.split():
                case ["accepted", item_id, dedupe]:
                    assert item_id not in accepted, "an id is given once"
                    accepted[item_id] = dedupe
                case ["taken", item_id]:
                    assert item_id not in done, "what is done is not delivered again"
                case ["done", item_id]:
                    done.add(item_id)
    clock = SystemClock()
    async with (
        open_ledger(state, clock=clock) as ledger,
        NotificationQueue(ledger, clock=clock, settings=shapes.NotifySettings()) as queue,
    ):
        found = {item.id: item for item in await queue.page(limit=10**6)}
        assert set(accepted) <= set(found), "accepted means kept"
        assert {found[item_id].status for item_id in done} <= {"done"}
        assert {item.status for item in found.values()} <= {"queued", "done"}, "nothing is still out"
        assert (await queue.counts())["queued"] > 0
        left = {item.id for item in found.values() if item.status == "queued"}
        await ledger.write(lambda tx: tx.execute("UPDATE notifications SET next_at = 0"))
        while (item := await queue.take()) is not None:
            left.remove(item.id)
            await queue.done(item.id)
        assert left == set()
        assert ledger.read(notification_upkeep.counts)["done"] == len(found)


def _run_until_killed(state, run, *, lines):
    """The output of one process until it was killed, after at least `lines` lines."""
    said = []
    child = subprocess.Popen([sys.executable, "-P", PROGRAM, state, run], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "ready\n"
        said.extend(child.stdout.readline() for _ in range(lines))
    finally:
        child.kill()
        rest = child.stdout.read()
        child.stdout.close()
        child.wait()
    whole = [*said, *rest.splitlines(keepends=True)]
    return [line for line in whole if line.endswith("\n")]
