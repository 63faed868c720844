"""The deliverer: what hangs, breaks or answers nonsense stays with its channel, and stopping waits for nothing."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from latticed.host.notify.channels import ChannelKeeper
from latticed.host.notify.keeper import NotificationQueue
from latticed.ingress import deliverer
from latticed.ingress.deliverer import Deliverer
from latticed.kit.clock import SystemClock
from latticed.ledger import open_ledger
from latticed.ledger.notifications import NotificationRow
from latticed.model.errors import Problem
from latticed.settings import shapes
from tests.house.in_process import until


class Plugin:
    """Stands for the fan-out: routes to `channels`; `deliver` is what a test makes of it."""

    def __init__(self, *channels):
        self.channels = channels
        self.running = 1
        self.told = []
        self.degraded = []
        self.deliver = self.take
        self.route = lambda _payload: {"channels": [{"name": name} for name in self.channels]}

    async def take(self, payload):
        return {"outcome": "done"}

    async def invoke(self, action, payload):
        if action == "degraded":
            self.degraded.append(payload)
            return {"ok": True, "result": {}}
        if action == "route":
            return {"ok": True, "result": self.route(payload)}
        found = await self.deliver(payload)
        if isinstance(found, dict) and found.get("outcome") == "done":
            self.told.append((payload["channel"], payload["item"]["title"]))
        return {"ok": True, "result": found}


class Opened:
    def __init__(self, plugin, queue, channels, running):
        self.plugin, self.queue, self.channels, self.running = plugin, queue, channels, running

    async def send(self, *titles):
        for title in titles:
            await self.queue.accept("acme.demo", NotificationRow(title=title))

    async def states(self):
        rows = await self.queue.page()
        return {row.title: row.status for row in rows if row.plugin_id == "acme.demo"}


@pytest.fixture
def opened(tmp_path):
    @contextlib.asynccontextmanager
    async def opening(plugin, drain_s=0.0):
        clock = SystemClock()
        settings = shapes.NotifySettings(backoff_base_s=0.1, backoff_ceiling_s=0.1)
        async with (
            open_ledger(tmp_path / "state", clock=clock) as ledger,
            NotificationQueue(ledger, clock=clock, settings=settings) as queue,
        ):
            channels = ChannelKeeper(ledger, queue, clock=clock)
            running = Deliverer(
                queue,
                channels,
                invoke=plugin.invoke,
                running=lambda: plugin.running,
                active=lambda: True,
                clock=clock,
                state_dir=tmp_path,
                drain_s=lambda: drain_s,
            )
            async with running:
                yield Opened(plugin, queue, channels, running)

    return opening


async def test_channel_that_hangs_holds_up_no_other_and_stopping_does_not_wait(opened):
    plugin = Plugin("hangs", "quick")

    async def deliver(payload):
        if payload["channel"] == "hangs":
            await asyncio.Event().wait()
        return {"outcome": "done"}

    plugin.deliver = deliver
    async with opened(plugin) as it, asyncio.timeout(30):
        await it.send(*(f"t{n}" for n in range(20)))
        await until(lambda: len(plugin.told) == 20)
    assert {channel for channel, _ in plugin.told} == {"quick"}


async def test_delivery_under_way_at_a_stop_ends_and_is_not_made_again(opened):
    """None begins meanwhile; what waits is delivered after the next start, with the same id where a stop cuts one."""
    plugin, began, go_on, ids = Plugin("a"), asyncio.Event(), asyncio.Event(), []

    async def deliver(payload):
        ids.append(payload["id"])
        began.set()
        await go_on.wait()
        return {"outcome": "done"}

    plugin.deliver = deliver
    async with opened(plugin, drain_s=60) as it:
        await it.send("first")
        await began.wait()
        await it.send("second")
        it.running.begin_none()
        asyncio.get_running_loop().call_later(0.05, go_on.set)
    assert (plugin.told, len(ids)) == ([("a", "first")], 1)
    began.clear()
    go_on.clear()
    async with opened(plugin) as it:  # which gives nothing to drain
        await began.wait()
    assert plugin.told == [("a", "first")]
    go_on.set()
    async with opened(plugin):
        await until(lambda: len(plugin.told) == 2)
    assert plugin.told == [("a", "first"), ("a", "second")]
    assert (len(ids), len(set(ids))) == (3, 2), "one id for both attempts at the second"


async def test_many_channels_that_hang_leave_slots_for_the_others(opened, monkeypatch):
    """The first time each may take a quick one; afterwards they have slots of their own."""
    monkeypatch.setattr(deliverer, "SLOW_S", 0.05)
    plugin = Plugin(*(f"slow{n}" for n in range(10)), "quick")

    async def deliver(payload):
        if payload["channel"] == "quick":
            return {"outcome": "done"}
        await asyncio.sleep(0.1)
        return {"outcome": "retry", "code": "deadline_exceeded"}

    plugin.deliver = deliver
    async with opened(plugin) as it:
        await it.send(*(f"t{n}" for n in range(30)))
        await until(lambda: len(plugin.told) == 30)


@pytest.mark.parametrize(
    "nonsense",
    [None, [], "done", {"outcome": "maybe"}, {"outcome": "done", "colour": 1}, {"outcome": "retry", "code": 5}],
)
async def test_nonsense_of_the_plugin_loses_nothing_and_blames_no_channel(opened, nonsense, monkeypatch):
    monkeypatch.setattr(deliverer, "FAULT_PAUSE_S", 0.05)
    plugin = Plugin("a")
    answers = [nonsense, nonsense]

    async def deliver(_payload):
        return answers.pop() if answers else {"outcome": "done"}

    plugin.deliver = deliver
    async with opened(plugin) as it:
        await it.send("t")
        await until(lambda: plugin.told == [("a", "t")])
        (view,) = await it.channels.view()
        assert view.channel.failures == 0


@pytest.mark.parametrize(
    "nonsense", [None, {"channels": "a"}, {"channels": [{"nome": "a"}]}, {"channels": [{"name": 1}]}]
)
async def test_item_that_cannot_be_routed_is_routed_later(opened, nonsense):
    plugin = Plugin("a")
    answers = [nonsense]
    sound = plugin.route
    plugin.route = lambda payload: answers.pop() if answers else sound(payload)
    async with opened(plugin) as it:
        await it.send("t")
        await until(lambda: plugin.told == [("a", "t")])


async def test_everything_waits_while_the_plugin_does_not_run(opened, monkeypatch):
    monkeypatch.setattr(deliverer, "POLL_S", 0.02)
    plugin = Plugin("a")
    plugin.running = 0
    async with opened(plugin) as it:
        await it.send("t")
        ((code, said),) = it.running.notes()
        assert (code, said.rpartition(": ")[2]) == ("notifications_wait", "latticectl explain latticed.notify")
        assert await it.states() == {"t": "queued"}
        plugin.running = 2
        await until(lambda: plugin.told == [("a", "t")])
        assert it.running.notes() == []
        plugin.running = 0
        await it.send("again")
        await until(it.running.notes)
        (row,) = [row for row in await it.queue.page() if row.title == "again"]
        assert (row.status, row.attempts) == ("queued", 0), "not even tried"


async def test_new_instance_of_the_plugin_is_told_what_is_degraded(opened):
    plugin = Plugin("a")

    async def deliver(_payload):
        return {"outcome": "fail", "code": "http_401"}

    plugin.deliver = deliver
    async with opened(plugin) as it:
        await it.send("t")
        await until(lambda: plugin.degraded == [{"a": "http_401"}])
        plugin.running = 7
        it.channels.changed.set()
        await until(lambda: plugin.degraded == [{"a": "http_401"}] * 2)


async def test_plugin_that_stops_in_the_middle_loses_nothing(opened, monkeypatch):
    monkeypatch.setattr(deliverer, "FAULT_PAUSE_S", 0.05)
    plugin = Plugin("a")
    faults = [Problem("plugin_gone", "stopped"), Problem("not_armed", "stopped"), Problem("busy", "later")]
    monkeypatch.setattr(deliverer, "POLL_S", 0.05)
    sound = plugin.invoke

    async def invoke(action, payload):
        if action != "degraded" and faults:
            raise faults.pop()
        return await sound(action, payload)

    plugin.invoke = invoke
    async with opened(plugin) as it:
        await it.send("t")
        async with asyncio.timeout(30):
            # Looked at again and again: a change between a look and a wait would not be heard.
            while await it.states() != {"t": "done"}:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert plugin.told == [("a", "t")]


async def test_disk_that_is_almost_full_is_told_of_once_a_day(opened, monkeypatch):
    """The state directory's own: any disk is, by these measures."""
    monkeypatch.setattr(deliverer, "SWEEP_S", 0.01)
    monkeypatch.setattr(deliverer, "LOW_BYTES", 1 << 62)
    monkeypatch.setattr(deliverer, "LOW_SHARE", 2.0)
    plugin = Plugin("a")
    async with opened(plugin) as it:
        await until(lambda: plugin.told)
        await it.send("afterwards")
        await until(lambda: ("a", "afterwards") in plugin.told)
    assert [title for _, title in plugin.told if "almost full" in title] == [
        "the disk of latticed's state directory is almost full"
    ]


def test_disk_with_room_or_that_cannot_be_asked_is_not_low(tmp_path):
    assert not deliverer._low(tmp_path / "nowhere")
