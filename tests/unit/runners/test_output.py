"""Stderr of plugins through a pipe: lines in order, yielding to the event loop, rate and size limits."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from latticed.kit.token_bucket import Rate
from latticed.processes.pipes import PipeReader
from latticed.runners import output
from tests.house import conversations, runner_deps

PIPE_BYTES = 60_000  # a pipe takes it at once


@contextlib.asynccontextmanager
async def hearing(stderr, data):
    """Read a pipe with `data` in it by `stderr` from now on; returns its transport, and an event that is set at its
    end.
    """
    read, write = os.pipe()
    with open(write, "wb", buffering=0) as end:
        assert end.write(data) == len(data)
    over = asyncio.Event()
    transport = await PipeReader.connect(read, stderr, over.set)
    try:
        yield transport, over
    finally:
        transport.close()
        await over.wait()


async def most_in_a_turn(told, over):
    """The most lines that were passed on within one turn of the event loop."""
    most = 0
    while not over.is_set():
        before = len(told)
        await asyncio.sleep(0)
        most = max(most, len(told) - before)
    return most


@pytest.mark.parametrize("whole_bytes", [None, 1 << 20])
async def test_many_short_stderr_lines_yield_to_the_event_loop(monkeypatch, whole_bytes):
    """Thousands of them in one read: LINES_A_TURN per turn, in order, and all before the end is reported."""
    monkeypatch.setattr(output, "RATE", Rate(per_second=1, burst=1 << 30))
    told = []
    stderr = output.Stderr(runner_deps.outputs(told), "acme.demo", whole_bytes=whole_bytes)
    lines = [str(number) for number in range(10_000)]
    async with hearing(stderr, "\n".join(lines).encode()) as (_, over):
        assert await most_in_a_turn(told, over) <= 2 * output.LINES_A_TURN  # at times two callbacks share a turn
    assert [line for _, line in told] == lines
    assert stderr.words() == "; it said last: 9999"


async def test_many_empty_stderr_lines_yield_to_the_event_loop():
    """They are dropped, but take time as well."""
    told = []
    stderr = runner_deps.outputs(told).stderr_of_call("acme.demo", whole_bytes=1 << 20)
    async with hearing(stderr, b"\n" * PIPE_BYTES + b"end\n") as (_, over):
        turns = 0
        while not over.is_set():
            await asyncio.sleep(0)
            turns += 1
    assert turns > PIPE_BYTES / output.LINES_A_TURN
    assert [line for _, line in told] == ["end"]


@pytest.mark.parametrize(("line", "goes_on"), [(b"x" * 999 + b"\n", True), (b"x\n", False)])
async def test_many_short_lines_are_slowed_down_before_few_long_ones(line, goes_on):
    """They have as many bytes, but each line also counts as an entry of the log."""
    told, over = [], asyncio.Event()
    read, write = os.pipe()
    with open(write, "wb", buffering=0) as end:
        end.write(line * (PIPE_BYTES // len(line)))
        transport = await PipeReader.connect(read, runner_deps.outputs(told).stderr("acme.demo"), over.set)
        await conversations.until(lambda: len(told) == PIPE_BYTES // len(line))
        end.write(b"more\n")
        for _ in range(20):
            await asyncio.sleep(0)
        assert (told[-1] == ("acme.demo", "more")) is goes_on
        transport.close()
        await over.wait()


async def test_closing_drops_all_but_one_turns_lines():
    """It is closed while thousands of lines wait; no turn of the event loop passes on more lines than usual."""
    told = []
    stderr = runner_deps.outputs(told).stderr("acme.demo")
    async with hearing(stderr, b"x\n" * (PIPE_BYTES // 2)) as (transport, over):
        await conversations.until(lambda: told)
        transport.close()
        assert await most_in_a_turn(told, over) <= 2 * output.LINES_A_TURN
    assert len(told) < 10 * output.LINES_A_TURN


async def test_lines_of_invocations_are_held_to_one_allowance_of_their_plugin(monkeypatch):
    """Short lines count as entries of the log. What is beyond it is dropped, with one warning for an invocation."""
    monkeypatch.setattr(output, "RATE_OF_CALLS", Rate(per_second=1e-6, burst=5_000))
    told = []
    outputs = runner_deps.outputs(told)
    last = []
    for plugin_id in ("acme.demo", "acme.demo", "acme.other"):
        stderr = outputs.stderr_of_call(plugin_id, whole_bytes=1 << 20)
        async with hearing(stderr, b"x\n" * 1_000 + b"the reason\n") as (_, over):
            await over.wait()
        last.append(stderr.words())
    by_plugin = [sum(plugin_id == one for one, _ in told) for plugin_id in ("acme.demo", "acme.other")]
    assert by_plugin == [49, 49]  # of 101 characters each
    assert last == ["; it said last: the reason"] * 3
    warnings = [line.text for line in outputs.ring("acme.demo").lines if line.stream == "daemon"]
    assert len(warnings) == 2
    assert all("the rest is not kept" in warning for warning in warnings)


async def test_usual_lines_of_an_invocation_are_kept_up_to_its_limit():
    """1 MiB of them: the plugin's allowance is for lines that are far shorter."""
    told, lines = [], (1 << 20) // 64
    outputs = runner_deps.outputs(told)
    stderr = outputs.stderr_of_call("acme.demo", whole_bytes=1 << 20)
    for _ in range(lines):
        stderr.data_received(b"x" * 63 + b"\n")
    assert len(told) == lines
    stderr.data_received(b"more\n")
    assert len(told) == lines
    assert "more than 1048576 bytes" in outputs.ring("acme.demo").lines[-1].text


@pytest.mark.parametrize("chunk", [1, 7, 4_096])
@pytest.mark.parametrize(
    ("written", "kept", "last"),
    [
        ("ä" * 20 + "\n" + "ü" * 40 + "\nthe cause: ö\n", ["ä" * 20], "the cause: ö"),
        ("first\n" + "ü" * 60 + "\n", ["first"], "ü" * 60),
        ("ü" * 60, [], "ü" * 60),
        ("first\n" + "x" * 100 + "\n\nthe cau", ["first"], "the cau"),
        ("x" * 79 + "\n", ["x" * 79], "x" * 79),
        ("x" * 79 + "\n\n\n", ["x" * 79], "x" * 79),
    ],
)
async def test_lines_beyond_an_invocations_limit_are_dropped_whole(chunk, written, kept, last):
    """The line that crosses it is one of them, however the bytes arrive; the last one is known in whole."""
    told, data = [], written.encode()
    outputs = runner_deps.outputs(told)
    stderr = outputs.stderr_of_call("acme.demo", whole_bytes=80)
    async with hearing(stderr, b"") as (_, over):
        for start in range(0, len(data), chunk):
            stderr.data_received(data[start : start + chunk])
        await over.wait()
    assert [line for _, line in told] == kept
    assert stderr.words() == f"; it said last: {last}"
    warnings = [line.text for line in outputs.ring("acme.demo").lines if line.stream == "daemon"]
    assert len(warnings) == (len(data) > 80)


async def test_line_is_cut_between_characters_and_says_so():
    """Those of two bytes, of which the longest line has room for half of the last."""
    told = []
    stderr = runner_deps.outputs(told).stderr("acme.demo")
    async with hearing(stderr, b"x" + "ü".encode() * output.LINE_CHARACTERS + b"\n") as (_, over):
        await over.wait()
    half = (output.LINE_CHARACTERS - 1) // 2
    assert [line for _, line in told] == ["x" + "ü" * half + "…"]
