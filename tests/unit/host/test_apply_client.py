"""The daemon's side of the root helper's socket, asked of a helper that has too much to do."""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from latticed.host.network import apply_client
from latticed.host.network.apply_client import ApplyHelper, HelperRefusal
from latticed.plans import protocol

BUSY = protocol.ErrorAnswer(code="busy", message="too many requests wait at the root helper", hint="try again")


@contextlib.asynccontextmanager
async def answering(path, *answers):
    """A helper that gives these answers in turn (None: none at all), and the last of them from then on; yields what it
    was asked.
    """
    asked = []

    async def answer(reader, writer):
        asked.append(await reader.readuntil(b"\n"))
        given = answers[min(len(asked), len(answers)) - 1]
        if given is None:
            await reader.read()
        else:
            writer.write(protocol.encode(given))
            await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(answer, path):
        yield asked


async def test_a_busy_helper_is_asked_again_until_it_has_time(tmp_path, monkeypatch):
    monkeypatch.setattr(apply_client, "BUSY_PAUSE_S", 0.01)
    done = protocol.Observed(kinds=(), targets=(), plans=(), steps=(), first_step=0, last_step=0, live=None)
    async with answering(tmp_path / "sock", BUSY, BUSY, done) as asked:
        helper = ApplyHelper(tmp_path / "sock", uid=os.getuid())
        answer = await helper.ask(protocol.Observe(), within_s=60)
    assert (answer, len(asked), len(set(asked))) == (done, 3, 1)


@pytest.mark.parametrize("then", [(), (None,)], ids=["busy again", "silent"])
async def test_a_helper_that_stays_busy_is_said_to_be_so(tmp_path, monkeypatch, then):
    """Not that it may still carry the request out, as one that gave no answer in time may."""
    monkeypatch.setattr(apply_client, "BUSY_PAUSE_S", 0.5)
    async with answering(tmp_path / "sock", BUSY, *then) as asked:
        helper = ApplyHelper(tmp_path / "sock", uid=os.getuid())
        with pytest.raises(HelperRefusal, match="too many requests wait") as caught:
            await helper.ask(protocol.Observe(), within_s=3)
    assert caught.value.code == "busy"
    assert len(asked) > 1
