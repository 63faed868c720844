"""kit.wheel: never early, at most a tick late, no drift; in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticed.kit import wheel
from tests.house import processes


class Time:
    """A clock that is moved by the test."""

    def __init__(self, start_s: float = 1_000.0) -> None:
        self.now_s = start_s

    def wall_us(self) -> int:
        return int(self.now_s * 1e6)

    def monotonic_s(self) -> float:
        return self.now_s


def _turn(turning: wheel.Wheel, time: Time, seconds: float, step_s: float = 0.01) -> None:
    end = time.now_s + seconds
    while time.now_s < end:
        time.now_s += step_s
        turning.advance()


@given(delays=st.lists(st.floats(0, 30, allow_nan=False), max_size=30))
@settings(deadline=None)
def test_timer_call_is_made_once_and_at_most_a_tick_late(delays):
    """It is never made before it is due."""
    time = Time()
    turning, start, calls = wheel.Wheel(time), time.now_s, {}
    for number, delay in enumerate(delays):
        turning.add(delay, lambda number=number: calls.setdefault(number, []).append(time.now_s - start))
    step = 0.01
    _turn(turning, time, 31, step)
    assert sorted(calls) == list(range(len(delays)))
    for number, (came, *again) in calls.items():
        assert again == []
        assert delays[number] - 1e-6 <= came <= delays[number] + wheel.TICK_S + 2 * step
    assert len(turning) == 0


def test_periodic_timer_call_does_not_drift():
    """A thousand periods later the phase is that of the first call."""
    time, came = Time(), []
    turning = wheel.Wheel(time)
    turning.every(0.33, lambda: came.append(time.now_s))
    _turn(turning, time, 330)
    assert len(came) in {999, 1000}
    assert came[-1] - came[0] == pytest.approx(0.33 * (len(came) - 1), abs=wheel.TICK_S + 0.02)


def test_ten_thousand_periodic_timer_calls_are_all_made():
    """One per period for each ticket, with spread phases; the wheel holds no other tickets."""
    time = Time()
    turning, counts = wheel.Wheel(time), [0] * 10_000

    def count(number: int) -> None:
        counts[number] += 1

    for number in range(10_000):
        turning.every(5.0, lambda number=number: count(number), first_s=number / 2_000)
    _turn(turning, time, 20.2, 0.05)
    assert set(counts) <= {4, 5}
    assert len(turning) == 10_000


def test_missed_periods_of_a_timer_are_skipped():
    """After an hour's suspension a periodic call is made once, then at its period."""
    time, came = Time(), []
    turning = wheel.Wheel(time)
    turning.every(1.0, lambda: came.append(time.now_s))
    time.now_s += 3600.5
    assert turning.advance() == 1
    _turn(turning, time, 2.2)
    assert len(came) == 3


def test_cancelled_timer_call_is_not_made():
    """It is cancelled before it is due, or by its own callback."""
    time, came = Time(), []
    turning = wheel.Wheel(time)
    turning.add(0.2, lambda: came.append("single")).cancel()
    tickets: list[wheel.Ticket] = []

    def once() -> None:
        came.append("periodic")
        tickets[0].cancel()

    tickets.append(turning.every(0.1, once))
    _turn(turning, time, 1)
    assert came == ["periodic"]
    assert len(turning) == 0


def test_exception_of_a_timer_callback_does_not_stop_others(capsys):
    """It is logged, and the ticket keeps its period."""
    time, came = Time(), []
    turning = wheel.Wheel(time)
    turning.every(0.1, lambda: came.append(1 / 0))
    turning.every(0.1, lambda: came.append("fine"))
    _turn(turning, time, 0.35)
    assert came == ["fine", "fine", "fine"]
    assert capsys.readouterr().out.count("timer_call_failed") == 3


def test_timer_callback_may_add_a_call():
    """A chain of single calls makes one per tick at most."""
    time, came = Time(), []
    turning = wheel.Wheel(time)

    def again() -> None:
        came.append(time.now_s)
        turning.add(0.0, again)

    again()
    _turn(turning, time, 0.5, 0.05)
    assert 9 <= len(came) <= 11


async def test_wheel_sleeps_to_the_next_tick_and_waits_when_empty():
    """An empty wheel waits for `add`."""
    time, came, slept = Time(1_000.02), asyncio.Event(), []
    turning = wheel.Wheel(time)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.now_s += seconds + 1e-9
        await asyncio.sleep(0)

    running = asyncio.create_task(turning.run(sleep))
    for _ in range(10):
        await asyncio.sleep(0)
    assert slept == []
    turning.add(0.1, came.set)
    async with asyncio.timeout(processes.PATIENCE_S):
        await came.wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(slept) == 3
    assert slept[0] == pytest.approx(0.03, abs=1e-6)
    assert slept[1:] == pytest.approx([0.05, 0.05], abs=1e-6)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_timer_call_is_made_with_the_real_clock():
    """The sleep is real, too: nothing in this test is a fake."""
    turning, came = wheel.Wheel(), asyncio.Event()
    running = asyncio.create_task(turning.run())
    turning.add(0.01, came.set)
    async with asyncio.timeout(processes.PATIENCE_S):
        await came.wait()
    running.cancel()
    await asyncio.wait([running])


def test_cancelled_timer_call_is_not_held_until_it_was_due():
    """One that is replaced again and again, each a day ahead, takes no more room than one."""
    turning = wheel.Wheel(Time())
    kept = turning.add(86_400, lambda: None)
    for _ in range(1_000):
        turning.every(86_400, lambda: None).cancel()
        turning.add(30, lambda: None).cancel()
    assert (len(turning), len(turning._due)) == (1, 1)
    kept.cancel()
    kept.cancel()
    assert (len(turning), turning._due) == (0, {})


def test_timer_calls_of_one_tick_may_cancel_each_other():
    time, made = Time(), []
    turning = wheel.Wheel(time)
    later = []

    def call(number):
        made.append(number)
        later[1].cancel()
        later[2].cancel()

    later += [turning.every(1, lambda number=number: call(number)) for number in range(4)]
    _turn(turning, time, 1.1)
    assert (made, len(turning)) == ([0, 3], 2)


def test_timer_call_may_cancel_the_only_one_of_a_later_tick_that_is_due_too():
    """As after a pause of the loop; the calls after it are made."""
    time, made = Time(), []
    turning = wheel.Wheel(time)
    later = turning.add(2, lambda: made.append("cancelled"))
    turning.add(1, later.cancel)
    turning.add(3, lambda: made.append("last"))
    time.now_s += 5
    turning.advance()
    assert (made, len(turning)) == (["last"], 0)
