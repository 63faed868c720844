"""The SDK's and the host's implementation of both protocols understand each other, over real pipes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
from dataclasses import dataclass

import pytest

from latticed.host.call import HostError
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from latticed.processes.pipes import PipeReader, PipeWriter
from latticed.runners import replies, stdio_json
from latticed.runners.jsonrpc import JsonRpcSession
from latticed.runners.stdio_json import Invocation
from tests.house import plugins, processes

BODY = """
def started(self):
    self.began = self.kv.get("began")

def do_ask(self, payload):
    return [self.began, self.call("kv.get", key="a"), payload]

def do_denied(self, payload):
    self.log.info("no")

def do_crowd(self, payload):
    found = []
    threads = [threading.Thread(target=lambda n=n: found.append(self.kv.get(str(n)) == str(n))) for n in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found

def do_big(self, payload):
    return self.kv.put("big", "x" * payload)
"""


def _value(key):
    return {"ok": True, "value": key, "value_base64": base64.b64encode(key.encode()).decode(), "version": 1}


async def serve(method, params, _answer=None):
    params = json.loads(params) if isinstance(params, bytes) else params
    if method == "log.write":
        raise HostError(Denial.CAPABILITY_DENIED, "the manifest does not declare log:write")
    await asyncio.sleep(0)
    return _value(params["key"])


class Heard(asyncio.Protocol):
    """A connection that passes data on and records its end."""

    def __init__(self):
        self.feed = None
        self.over = asyncio.Event()

    def data_received(self, data):
        self.feed(data)

    def connection_lost(self, exc):
        self.over.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipes:
    """The host's ends of the pipes; `answers` is None under latticed-stdio-1."""

    stdin: PipeWriter
    stdout: asyncio.ReadTransport
    heard: Heard
    answers: PipeWriter | None


@contextlib.asynccontextmanager
async def piped(command, *, one_shot=False):
    """A program on pipes of the test, which must exit with 0 by itself."""
    pairs = [os.pipe() for _ in range(3 if one_shot else 2)]
    (stdin, our_stdin), (our_stdout, stdout), *rest = pairs
    theirs = [pair[0] for pair in rest]
    env = {**plugins.ENVIRONMENT, **({"LATTICE_HOST_RESPONSE_FD": str(theirs[0])} if one_shot else {})}
    process = subprocess.Popen(command, stdin=stdin, stdout=stdout, env=env, pass_fds=theirs)
    for fd in (stdin, stdout, *theirs):
        os.close(fd)
    heard = Heard()
    pipes = Pipes(
        stdin=await PipeWriter.connect(our_stdin),
        stdout=await PipeReader.connect(our_stdout, heard, lambda: None),
        heard=heard,
        answers=await PipeWriter.connect(rest[0][1]) if one_shot else None,
    )
    try:
        yield pipes
        pipes.stdin.close()
        async with asyncio.timeout(processes.PATIENCE_S):
            await heard.over.wait()
        assert process.wait(timeout=20) == 0
    finally:
        process.kill()
        process.wait()
        for writer in filter(None, (pipes.stdin, pipes.answers)):
            writer.abort()
        pipes.stdout.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def spoken(command):
    """A session with a plugin, from `initialize` to `shutdown`."""
    broken = []
    async with piped(command) as pipes:
        session = JsonRpcSession(
            write=pipes.stdin.write,
            serve=serve,
            refuse=None,
            flow=lambda on: pipes.stdout.resume_reading() if on else pipes.stdout.pause_reading(),
            broken=lambda *why: broken.append(why),
            drain=pipes.stdin.drain,
        )
        pipes.heard.feed = session.feed
        hello = {"protocol": "latticed-stdio-1", "id": "acme.demo", "capabilities": ["kv:read"], "config": {}}
        try:
            assert await session.ask("initialize", hello) == {}
            yield session
            assert await session.ask("shutdown", {}) == {}
            assert broken == []
        finally:
            await session.close()


async def _invoke(session, action, payload=None):
    return replies.reply(await session.ask("invoke", {"action": action, "payload": payload}))


async def test_latticed_stdio_1_session_between_sdk_and_host_carries_calls_and_errors(tmp_path):
    """Requests and host calls, allowed and denied, from one thread and from forty, with several invocations at once."""
    async with spoken(plugins.program(tmp_path, BODY)) as session:
        assert (await _invoke(session, "ask", {"x": "ä"}))["result"] == ["began", _value("a"), {"x": "ä"}]
        denied = "capability_denied: the manifest does not declare log:write"
        assert (await _invoke(session, "denied"))["error"] == denied
        answers = await asyncio.gather(
            *(_invoke(session, "crowd") for _ in range(3)), *(session.ask("health", {}) for _ in range(3))
        )
        assert [one["result"] for one in answers[:3]] == [[True] * 40] * 3
        assert answers[3:] == [{"status": "healthy", "message": ""}] * 3
        with pytest.raises(Problem, match="no such method: dance"):
            await session.ask("dance", {})


async def test_messages_up_to_the_size_limit_pass_and_longer_ones_are_too_large(tmp_path):
    """This holds in both directions; the SDK refuses one byte more, which would make the host end the session."""
    around = len(b'{"jsonrpc":"2.0","id":2,"method":"kv.put","params":{"key":"big","value":""}}\n')
    async with spoken(plugins.program(tmp_path, BODY)) as session:
        assert (await _invoke(session, "big", (1 << 20) - around))["ok"]
        assert (await _invoke(session, "big", 1 << 20))["error"].startswith("too_large: ")
        assert (await _invoke(session, "ask", "x" * ((1 << 20) - 1_000)))["ok"]


@pytest.mark.parametrize(
    ("action", "result"), [("ask", ["began", _value("a"), [1]]), ("describe", None), ("health", None)]
)
async def test_stdio_json_v1_invocation_returns_the_plugins_result(tmp_path, action, result):
    """A reply before the end counts; `ended` afterwards changes nothing."""
    async with piped(plugins.program(tmp_path, BODY), one_shot=True) as pipes:
        call = Invocation(
            answer=pipes.answers.write,
            serve=serve,
            refuse=None,
            max_line_bytes=1 << 20,
            max_host_calls=64,
            drain=pipes.answers.drain,
        )
        pipes.heard.feed = call.feed
        pipes.stdin.write(stdio_json.request(action, [1]))
        pipes.stdin.close()
        await pipes.heard.over.wait()
        call.ended("exited", "without a reply")
        found = await call.outcome
        await call.close()
    assert found["ok"]
    if result is not None:
        assert found["result"] == result
