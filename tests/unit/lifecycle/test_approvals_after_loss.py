"""Tasks that were approved and had not begun, once what was decided since is lost. Real children, a real backup."""

from __future__ import annotations

import io

import pytest

from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger
from latticed.lifecycle import restore, startup_merge
from tests.unit.host.test_task_keeper import OPERATOR, A, until, world
from tests.unit.lifecycle.test_clock_set_back import Host

CLOCK = SystemClock()


async def rolled_back(host, ledger):
    """The ledger's files are put back as they were, and a start accepts that."""
    for path in host.state.glob("ledger.sqlite3*"):
        path.unlink()
    (host.state / "ledger.sqlite3").write_bytes(ledger)
    async with open_ledger(host.state, clock=CLOCK, accept_rollback=True) as opened:
        await startup_merge.merge(opened, CLOCK, accept=True, journalled=host.journalled)


@pytest.mark.parametrize("way", ["restore", "accept_rollback"])
async def test_task_approved_before_a_loss_needs_approval_again(tmp_path, way):
    """It may have run since, or been cancelled: an approval is good for one run."""
    host = Host(tmp_path)
    async with world(tmp_path, plugin_at_once=1) as here:
        await here.ledger.write_floors(here.ledger.floors)
        runs = await here.submit("sleep 1000")
        await here.approve(runs)
        await until(lambda: here.tasks.get(runs).state == "running", "it to run")
        ran, cancelled = await here.submit("echo ran"), await here.submit("echo cancelled")
        for waits in (ran, cancelled):
            await here.approve(waits)
    backup, ledger = host.backup(), (host.state / "ledger.sqlite3").read_bytes()
    async with world(tmp_path, plugin_at_once=1) as here:
        await here.tasks.cancel(cancelled, by=OPERATOR)
        assert (await here.ended(ran)).outcome.stdout == "ran\n"
        await here.ledger.write_floors(here.ledger.floors)
    if way == "restore":
        restore.restore(host.place, io.BytesIO(backup), CLOCK)
    else:
        await rolled_back(host, ledger)
    async with world(tmp_path, plugin_at_once=1) as here:
        here.tasks.recheck(A.plugin_id)
        assert [here.tasks.get(one).state for one in (runs, ran, cancelled)] == ["interrupted", *["submitted"] * 2]
        assert here.actions(cancelled) == [("task.approve", ""), ("task.withdraw", "")]
        await here.approve(ran)
        assert (await here.ended(ran)).state == "done"
        assert (here.tasks.get(cancelled).state, here.spawner.spawned) == ("submitted", 1)
