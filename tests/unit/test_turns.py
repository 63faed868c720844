"""The probe of event loop turns: it names what blocks the loop, garbage collection too; sleeping does not count."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import turns

ROOT = Path(turns.__file__).parents[2]
PROGRAM = """
import asyncio, gc, pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from tests.house import turns

def burn(cpu_s):
    until_s = time.thread_time() + cpu_s
    while time.thread_time() < until_s:
        pass

async def holds_up():
    await asyncio.sleep(0)
    burn(0.2)
    await asyncio.sleep(0)

async def in_many():
    await asyncio.gather(*(asyncio.sleep(0, burn(0)) for _ in range(10)))
    for _ in range(8):
        asyncio.get_running_loop().call_soon(burn, 0.025)
    await asyncio.sleep(0.01)

async def collects():
    garbage = [[] for _ in range(1_000_000)]
    await asyncio.sleep(0)
    gc.collect()

async def waits():
    for _ in range(200):
        await asyncio.sleep(0)
    time.sleep(0.1)

turns.Probe(pathlib.Path(sys.argv[2])).install()
asyncio.run(globals()[sys.argv[3]]())
"""


def run(tmp_path, name):
    """The probe's report of one of the coroutines above; AssertionError when a turn was over the limit."""
    report = turns.Turns(tmp_path / "turns")
    turns.prepare(report.path)
    with report.short():
        subprocess.run([sys.executable, "-P", "-c", PROGRAM, ROOT, report.path, name], check=True)
    return report


@pytest.mark.parametrize(
    ("name", "words"), [("holds_up", "'worst': 'holds_up:"), ("in_many", "'worst': 'burn'"), ("collects", "collects")]
)
def test_loop_turn_over_the_limit_fails(tmp_path, name, words):
    """The time is spent by one callback, or by many in one turn."""
    with pytest.raises(AssertionError, match=words):
        run(tmp_path, name)


def test_garbage_collection_counts_for_a_loop_turn(tmp_path):
    with pytest.raises(AssertionError):
        run(tmp_path, "collects")
    (longest,) = sorted(turns.Turns(tmp_path / "turns").long(), key=lambda one: one["cost_s"])[-1:]
    assert longest["collecting_s"] > 0


def test_sleeping_does_not_count_for_a_loop_turn(tmp_path):
    """Turns are measured in CPU time, so that a busy machine fails no test."""
    assert sum(run(tmp_path, "waits").counts()) >= 200


def test_p99_of_loop_turns_ignores_one_long_turn_in_a_hundred():
    steps = [0] * 400
    steps[1], steps[300] = 990, 10
    assert turns.p99(steps) == pytest.approx(0.0005)
    steps[300] = 11
    assert turns.p99(steps) == pytest.approx(0.07525)
    assert turns.p99([0] * 400) == 0


def test_p99_of_few_loop_turns_ignores_a_few_long_ones():
    steps = [0] * 400
    steps[1], steps[300] = 50, 3
    assert turns.p99(steps) == pytest.approx(0.0005)
    steps[300] = 4
    assert turns.p99(steps) == pytest.approx(0.07525)
