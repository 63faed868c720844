"""What a plugin used and did lately, from a daemon whose clock the test sets ahead."""

from __future__ import annotations

from datetime import datetime

import pytest

from latticed.host.call import HostError
from latticed.kit.clock import SystemClock
from tests.house import in_process

ID = "acme.demo"


class ClockAhead(SystemClock):
    """The system's clock, set ahead by a number of minutes."""

    minutes = 0

    def wall_us(self):
        return super().wall_us() + self.minutes * 60_000_000

    def monotonic_s(self):
        return super().monotonic_s() + self.minutes * 60


async def test_history_has_minutes_and_quarters_until_the_plugin_is_forgotten():
    clock = ClockAhead()
    async with in_process.opened(clock=clock) as home:
        home.drop(capabilities=["kv:read", "kv:write"])
        plugin = await home.armed(ID)
        path, kept = f"/api/plugins/by-id/{ID}/history", home.app.api.history
        empty = await home.ask("GET", path)
        assert (empty["since"], empty["hour"]["calls"], empty["day"]["until"]) == (None, [], None)
        for calls in (3, 0, 2):
            for _ in range(calls):
                await plugin.call("kv.get", key="a")
            with pytest.raises(HostError):
                await plugin.call("node.facts")
            clock.minutes += 1
            kept.look()
        found = await home.ask("GET", path)
        assert found["hour"]["step_s"], found["day"]["step_s"] == (60, 900)
        assert (found["hour"]["calls"], found["hour"]["denied"]) == ([4, 1, 3], [1, 1, 1])
        assert (found["day"]["calls"], found["day"]["denied"]) == ([8], [3])
        assert found["hour"]["cpu_s"] == [0, 0, 0]
        since, until = (datetime.fromisoformat(one) for one in (found["since"], found["hour"]["until"]))
        assert (until - since).total_seconds() == pytest.approx(180, abs=2)
        clock.minutes += 5
        kept.look()
        assert (await home.ask("GET", path))["hour"]["calls"] == [4, 1, 3, None, None, None, None, 0]
        home.app.api.spawner.usage.forget(ID)
        await home.decide(ID, "disabled")
        assert (await home.ask("GET", path))["since"], "a plugin that is stopped has one"
        (home.plugin_dir / "demo" / "artifact").unlink()
        await in_process.until(lambda: not home.app.api.lifecycle.presence(ID).available, "the bundle to be gone")
        assert (await home.ask("POST", f"/api/plugins/by-id/{ID}/forget", {})).status == 200
        assert kept.of(ID) is None
        assert ID not in home.app.broker.counts
        assert (await home.ask("GET", path)).status == 404


BUSY = b"""#!/usr/bin/env python3
import time

from latticed.sdk import Plugin


class Busy(Plugin):
    def do_work(self, payload):
        while time.process_time() < 0.3:
            pass


Busy().run()
"""


async def test_history_has_processor_time_and_memory_of_a_real_process():
    """Those of its minute; a minute of rest has no time, and one after the stop no memory."""
    clock = ClockAhead()
    async with in_process.opened(clock=clock, real=True) as home:
        home.drop(v2=True, artifact=BUSY, runtime={"protocol": "latticed-stdio-1"})
        await home.seen(ID)
        for status in ("installed", "active"):
            assert (await home.decide(ID, status)).status == 200
        work = {"action": "work", "payload": None}
        assert (await home.ask("POST", f"/api/plugins/by-id/{ID}/invoke", work))["ok"] is True
        for _ in range(2):
            clock.minutes += 1
            home.app.api.history.look()
        await home.decide(ID, "disabled")
        clock.minutes += 1
        home.app.api.history.look()
        hour = (await home.ask("GET", f"/api/plugins/by-id/{ID}/history"))["hour"]
        worked, rested, _ = hour["cpu_s"]
        assert worked >= 0.25
        assert rested < 0.1
        assert hour["memory_bytes"][0] > 1 << 20
        assert hour["memory_bytes"][2] == 0
