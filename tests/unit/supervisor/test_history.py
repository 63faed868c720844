"""Who is looked at when, in virtual time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from latticed.broker.gate import Count
from latticed.kit.wheel import Wheel
from latticed.supervisor.history import AT_ONCE, History


class Time:
    now_s = 5_000.0

    def wall_us(self) -> int:
        return int(self.now_s * 1e6)

    def monotonic_s(self) -> float:
        return self.now_s


class Plugins(dict[str, Any]):
    """Handles of which only the restarts are asked; `looked`: at whom, and how many in a turn at most."""

    def __init__(self, count: int) -> None:
        super().__init__({f"acme.p{one}": SimpleNamespace(runtime=lambda: self.runtime) for one in range(count)})
        self.runtime = SimpleNamespace(restart_count=2)
        self.counts = {"acme.p0": Count(calls=7, denied=1)}
        self.looked: list[str] = []
        self.longest = 0
        self.time = Time()
        self.wheel = Wheel(self.time)
        self.history = History(self, self.counts, self.used, clock=self.time, wheel=self.wheel)

    def used(self, plugin_id: str) -> tuple[int, int]:
        self.looked.append(plugin_id)
        return 1_500, 4_096

    def pass_(self, seconds: float, *, step_s: float = 0.05) -> None:
        end = self.time.now_s + seconds
        while self.time.now_s < end - 1e-6:
            self.time.now_s += step_s
            before = len(self.looked)
            self.wheel.advance()
            self.longest = max(self.longest, len(self.looked) - before)


@pytest.mark.parametrize("count", [1, 17, 10_000])
def test_each_plugin_is_looked_at_once_a_minute_a_few_in_a_turn(count):
    found = Plugins(count)
    with found.history:
        found.pass_(59.9)
        assert found.looked == [], "the first minute is not over"
        found.pass_(60)
        assert sorted(found.looked) == sorted(found)
        assert found.longest <= max(1, count // 500)
        found.pass_(60)
    assert sorted(found.looked) == sorted([*found] * 2)
    found.pass_(120)
    assert len(found.looked) == 2 * count, "it is closed"
    step = found.history.of("acme.p0").hour()[0]
    assert (step.cpu_ms, step.memory_kib, step.restarts, step.calls, step.denied) == (1_500, 4_096, 2, 7, 1)


def test_more_plugins_than_a_minute_has_room_for_get_gaps():
    """No turn becomes longer for them, and all are looked at sooner or later."""
    found = Plugins(3 * AT_ONCE)
    with found.history:
        found.pass_(60, step_s=60)
        for _ in range(8):  # a loop that comes round twice a minute
            found.pass_(60, step_s=30)
    assert found.longest == AT_ONCE
    steps = [found.history.of(one).hour() for one in found if found.history.of(one)]
    assert any(None in one for one in steps) or len(steps) < len(found)


def test_forgotten_plugins_have_no_ring():
    found = Plugins(2)
    with found.history:
        found.pass_(61)
        del found["acme.p0"]
        found.history.forget("acme.p0")
        found.pass_(120)
    assert found.history.of("acme.p0") is None
    assert found.looked.count("acme.p0") == 1
    assert found.history.of("acme.p1").last == 3
    assert found.history.at_us(1) == pytest.approx(5_060 * 1_000_000, abs=1_000)
