"""A host service that fails: the plugin hears `internal`, the log hears it at a bounded rate."""

from __future__ import annotations

import pytest

from latticed.broker import gate as room
from latticed.broker.decide import Rights
from latticed.broker.gate import Broker, GateLimits
from latticed.host.service import Caller, HostError, Params, Served, table
from tests.house.clocks import ManualClock


class Nothing(Params, frozen=True):
    pass


async def test_a_flood_of_failing_calls_is_a_line_and_a_count(monkeypatch):
    logged = []

    class Log:
        def error(self, event, **fields):
            logged.append((event, fields["count"]))

    async def serve(caller, asked):
        raise ZeroDivisionError

    async def record(event):
        return 1

    clock = ManualClock()
    monkeypatch.setattr(room, "log", Log())
    calls = table([Served(method="log.write", params=Nothing, serve=serve)])
    broker = Broker(calls, record=record, clock=clock, gate_limits=GateLimits())
    rights = Rights(declared=frozenset({"log:write"}), granted=frozenset({"log:write"}))
    gate = broker.gate(Caller(plugin_id="acme.demo"), rights)
    for _ in range(100):
        with pytest.raises(HostError, match="internal"):
            await gate.call("log.write", {})
    assert logged == [("host_call_failed", 1)]
    clock.advance(11)
    with pytest.raises(HostError):
        await gate.call("log.write", {})
    assert logged[1:] == [("host_call_failed", 100)]
