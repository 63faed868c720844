"""Health checks of a child on stdio; the protocol itself is in test_jsonrpc.py and test_sdk_and_host.py."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from latticed.model.errors import Problem
from latticed.model.runtime import Health
from latticed.runners.child_spawner import Invoking
from latticed.runners.stdio_child import StdioChild, StdioChildSpec


async def test_health_check_during_invocation_gives_no_result(monkeypatch):
    """Repeating the last one would count a bad answer again at each check, until the plugin is restarted."""
    bounds = Invoking(timeout_s=5, line_bytes=1 << 20, stderr_bytes=1 << 10, host_calls=1, at_once=2)
    spec = StdioChildSpec(plugin=None, gate=SimpleNamespace(refuse=None), invoking=bounds, stderr=None, sandbox="")
    child = StdioChild(spec, lambda *_: None)
    answered = asyncio.Event()

    async def ask(method, _params):
        if method == "health":
            return {"status": "unhealthy", "message": "no peer"}
        await answered.wait()
        return {"ok": True}

    monkeypatch.setattr(child.session, "ask", ask)
    assert (await child.check()).health is Health.UNHEALTHY
    invocation = asyncio.create_task(child.invoke("work", None))
    await asyncio.sleep(0)
    assert [await child.check() for _ in range(3)] == [None, None, None]
    answered.set()
    assert (await invocation)["ok"]
    assert (await child.check()).health is Health.UNHEALTHY


async def test_health_is_asked_during_an_invocation_once_another_was_over_its_time(monkeypatch):
    """Otherwise one that hangs would not be noticed while it is invoked again and again; any answer ends this."""
    bounds = Invoking(timeout_s=0.05, line_bytes=1 << 20, stderr_bytes=1 << 10, host_calls=1, at_once=2)
    stderr = SimpleNamespace(waits=False)
    spec = StdioChildSpec(plugin=None, gate=SimpleNamespace(refuse=None), invoking=bounds, stderr=stderr, sandbox="")
    child = StdioChild(spec, lambda *_: None)
    asked = asyncio.Queue()
    monkeypatch.setattr(child, "_stdin", lambda: SimpleNamespace(write=asked.put_nowait, drain=_at_once))
    with pytest.raises(Problem, match="deadline_exceeded"):
        await child.invoke("hang", None)
    waiting = asyncio.create_task(child.invoke("hang", None))
    await asyncio.sleep(0)
    assert await child.check() is None, "it may have answered something just before"
    checking = asyncio.create_task(child.check())
    assert [b"health" in await asked.get() for _ in range(3)] == [False, False, True]
    child.session.feed(b'{"jsonrpc":"2.0","id":3,"result":{"status":"degraded"}}\n')
    assert (await checking).health is Health.DEGRADED
    assert await child.check() is None, "it answers"
    with pytest.raises(Problem, match="deadline_exceeded"):
        await waiting


async def _at_once():
    """Nothing waits to be read."""
