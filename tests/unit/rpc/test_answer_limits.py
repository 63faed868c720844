"""How long an answer of the control API may take before its connection is cut."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from latticed.kit import connection_limiter
from latticed.rpc import running
from latticed.rpc.connection import ControlConnection
from tests.house import in_process
from tests.house.runners import DrivenInstance

ID = "acme.demo"


@pytest.mark.parametrize(("margin_s", "answered"), [(3_600.0, True), (-3_600.0, False)])
async def test_invocation_over_the_api_may_take_as_long_as_its_plugin_allows(monkeypatch, margin_s, answered):
    """It may take longer than other answers, up to plugin_limits.max_invoke_timeout_s; without that it would be cut."""
    monkeypatch.setattr(running, "MARGIN_S", margin_s)
    monkeypatch.setattr(connection_limiter, "SWEEP_S", 0.02)
    swept, enough, really_overdue = 0, asyncio.Event(), ControlConnection.overdue

    def overdue(self, now_s):
        nonlocal swept
        swept += self.answering
        if swept > 20:
            enough.set()
        return really_overdue(self, now_s)

    monkeypatch.setattr(ControlConnection, "overdue", overdue)

    async def invoke(self, action, payload):
        await enough.wait()
        return {"ok": True, "message": "slow", "result": None, "error": None}

    monkeypatch.setattr(DrivenInstance, "invoke", invoke)
    async with in_process.opened() as home:
        home.drop("demo", id=ID, capabilities=["kv:read"])
        await home.seen(ID)
        await home.decide(ID, "installed")
        await home.decide(ID, "active")
        monkeypatch.setattr(ControlConnection, "answer_s", 0.1)
        asked = home.ask("POST", f"/api/plugins/by-id/{ID}/invoke", {"action": "x"})
        if answered:
            assert (await asked)["message"] == "slow"
        else:
            with pytest.raises(aiohttp.ClientConnectionError):
                await asked
            enough.set()
