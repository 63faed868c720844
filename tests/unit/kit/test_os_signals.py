"""Signals of a real process: none is lost behind others, and no number of them hangs the program."""

from __future__ import annotations

import subprocess
import sys

FLOODED = """
import asyncio, os, signal
from latticed.kit import os_signals

async def run():
    stopped, reloaded = asyncio.Event(), asyncio.Event()
    os_signals.act_on({signal.SIGTERM: stopped.set, signal.SIGHUP: reloaded.set})
    for _ in range(5_000):
        os.kill(os.getpid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(stopped.wait(), 10)
    print(reloaded.is_set())

asyncio.run(run())
"""
"""More signals in one turn of the loop than fit into the socket that wakes it, and then the one to end by."""

IDLE = """
import asyncio, signal
from latticed.kit import os_signals

async def run():
    stopped = asyncio.Event()
    os_signals.act_on({signal.SIGTERM: stopped.set})
    print("ready", flush=True)
    await stopped.wait()

asyncio.run(run())
"""


def test_signal_is_heard_after_more_others_than_a_turn_has_room_for():
    """It was lost; and for a warning of it Python's handler took a lock, in which a daemon hung for ever."""
    ran = subprocess.run([sys.executable, "-P", "-c", FLOODED], capture_output=True, text=True, check=False, timeout=60)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("True\n", "", 0)


def test_program_that_waits_for_nothing_else_hears_a_signal():
    with subprocess.Popen([sys.executable, "-P", "-c", IDLE], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "ready\n"
        program.terminate()
        assert program.wait(60) == 0
