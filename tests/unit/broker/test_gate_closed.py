"""A Gate that is closed while one of its calls is being recorded."""

from __future__ import annotations

import asyncio

import pytest

from latticed.broker.decide import Rights
from latticed.broker.gate import Broker, GateLimits
from latticed.host.call import Caller, HostError, Params, Served, table
from latticed.kit.clock import SystemClock
from tests.house import conversations


class Nothing(Params, frozen=True):
    pass


async def test_call_is_not_carried_out_after_gate_closed():
    """The stop comes between recording and dispatch: the call is denied, and audited too."""
    recorded, on_record, served = [], [], []

    def record(event, done):
        recorded.append((event.decision, event.code))
        on_record.append(done)

    async def serve(caller, asked):
        served.append((caller, asked))

    calls = table([Served(method="log.write", params=Nothing, serve=serve)])
    broker = Broker(calls, record=record, clock=SystemClock(), gate_limits=GateLimits())
    rights = Rights(declared=frozenset({"log:write"}), granted=frozenset({"log:write"}))
    gate = broker.gate(Caller(plugin_id="acme.demo"), rights)
    call = asyncio.create_task(gate.call("log.write", {}))
    await asyncio.sleep(0)
    gate.close()
    on_record.pop()(1, None)
    await conversations.until(lambda: on_record)
    on_record.pop()(2, None)
    with pytest.raises(HostError, match="being stopped"):
        await call
    assert not served
    assert recorded == [("allow", ""), ("deny", "service_unavailable")]


async def test_caller_cancelled_while_its_call_is_recorded_changes_nothing_on_record():
    """A service that waits is not asked then; one that does not wait is, as the record says, and nobody is answered."""
    on_record, served = [], []

    async def put(caller, asked):
        served.append("kv.put")

    calls = table(
        [
            Served(method="kv.put", params=Nothing, serve=put),
            Served(method="kv.get", params=Nothing, serve=lambda caller, asked: served.append("kv.get")),
        ]
    )
    broker = Broker(calls, record=lambda _, done: on_record.append(done), clock=SystemClock(), gate_limits=GateLimits())
    kv = frozenset({"kv:read", "kv:write"})
    gate = broker.gate(Caller(plugin_id="acme.demo"), Rights(declared=kv, granted=kv))
    callers = [asyncio.create_task(gate.call(method, {})) for method in ("kv.put", "kv.get")]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    for done in on_record:
        done(1, None)
    await asyncio.gather(*callers, return_exceptions=True)
    assert all(caller.cancelled() for caller in callers)
    assert (served, len(on_record)) == (["kv.get"], 2)
