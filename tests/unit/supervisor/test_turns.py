"""Plugins armed at the same time are started a few at a time, and none misses its deadline by waiting."""

from __future__ import annotations

import asyncio

import pytest

from latticed.supervisor import deps
from tests.house import supervisors
from tests.house.in_process import until
from tests.house.processes import PATIENCE_S

MANY = 3 * deps.STARTS


@pytest.fixture
async def stand(tmp_path):
    async with supervisors.standing(tmp_path, start_deadline_s=PATIENCE_S) as found:
        yield found


async def armed(stand, count):
    """Arm so many plugins."""
    ids = [f"acme.p{number}" for number in range(count)]
    plugins = [await asyncio.to_thread(stand.stored, id=one) for one in ids]
    for plugin in plugins:
        stand.supervisor.arm(plugin, supervisors.GRANTED)
    return plugins


async def test_concurrent_plugin_starts_are_limited(stand):
    """The next begins when one of them is done, and all are armed in the end."""
    under_way = most = 0

    async def start(_instance):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1

    stand.driven.starting = start
    plugins = await armed(stand, MANY)
    for plugin in plugins:
        await stand.settled(plugin)
    assert {stand.runtime(plugin).state for plugin in plugins} == {"armed"}
    assert most == deps.STARTS


async def test_start_deadline_begins_when_the_start_gets_its_slot(stand):
    """Those that wait for longer than it are made when it is their turn; one that hangs then fails."""
    stand.tools.starts = asyncio.Semaphore(0)
    stand.tools.start_deadline_s = 0.2
    plugins = await armed(stand, 3)

    async def start(instance):
        if instance.plugin.id == plugins[0].id:
            await asyncio.Event().wait()

    stand.driven.starting = start
    await stand.quiet()
    await asyncio.sleep(2 * stand.tools.start_deadline_s)
    stand.tools.starts.release()
    await stand.quiet()
    # The first has its slot, and so its deadline: only this one is to pass, on a machine as busy as it may be.
    stand.tools.start_deadline_s = PATIENCE_S
    for plugin in plugins:
        await stand.settled(plugin)
    hung, *others = map(stand.runtime, plugins)
    assert hung.last_error.code == "start_timeout"
    assert {runtime.state for runtime in others} == {"armed"}


async def test_hanging_starts_do_not_block_others(stand, monkeypatch):
    """They lose their slot long before their deadline."""
    monkeypatch.setattr(deps, "TURN_S", 0.01)
    stand.tools.start_deadline_s = 60.0

    async def hang(_instance):
        await asyncio.Event().wait()

    stand.driven.starting = hang
    await armed(stand, MANY)
    await until(lambda: sum(stand.driven.attempts.values()) == MANY, "all of them to begin")


async def test_plugin_stopped_while_queued_never_starts(stand):
    """It leaves nothing in the queue."""
    stand.tools.starts = asyncio.Semaphore(0)
    one, other = await armed(stand, 2)
    await stand.quiet()
    stand.supervisor.disarm(one)
    await stand.settled(one)
    stand.tools.starts.release()
    await stand.settled(other)
    assert (stand.runtime(one).state, stand.runtime(other).state) == ("stopped", "armed")
    assert stand.driven.attempts[one.id] == 0
