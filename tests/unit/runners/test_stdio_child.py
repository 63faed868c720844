"""Health checks of a child on stdio; the protocol itself is in test_jsonrpc.py and test_sdk_and_host.py."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

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
