"""A Gate that is closed while one of its calls is being recorded."""

from __future__ import annotations

import asyncio

import pytest

from latticed.broker.decide import Rights
from latticed.broker.gate import Broker, GateLimits
from latticed.host.call import Caller, HostError, Params, Served, table
from latticed.kit.clock import SystemClock


class Nothing(Params, frozen=True):
    pass


async def test_call_is_not_carried_out_after_gate_closed():
    """The stop comes between recording and dispatch: the call is denied, and audited too."""
    recording, go_on, recorded, served = asyncio.Event(), asyncio.Event(), [], []

    async def record(event):
        recorded.append((event.decision, event.code))
        recording.set()
        await go_on.wait()
        return len(recorded)

    async def serve(caller, asked):
        served.append((caller, asked))

    calls = table([Served(method="log.write", params=Nothing, serve=serve)])
    broker = Broker(calls, record=record, clock=SystemClock(), gate_limits=GateLimits())
    rights = Rights(declared=frozenset({"log:write"}), granted=frozenset({"log:write"}))
    gate = broker.gate(Caller(plugin_id="acme.demo"), rights)
    call = asyncio.create_task(gate.call("log.write", {}))
    await recording.wait()
    gate.close()
    go_on.set()
    with pytest.raises(HostError, match="being stopped"):
        await call
    assert not served
    assert recorded == [("allow", ""), ("deny", "service_unavailable")]
