"""A host service that fails: the plugin gets `internal`, the log gets a bounded number of lines."""

from __future__ import annotations

import asyncio

import pytest

from latticed.broker import gate as gate_module
from latticed.broker.decide import Rights
from latticed.broker.gate import Broker, GateLimits
from latticed.host.call import Caller, HostError, Params, Served, table
from latticed.kit.token_bucket import Rate
from tests.house.clocks import ManualClock


class Nothing(Params, frozen=True):
    pass


async def test_many_failing_calls_log_one_line_and_then_a_count(monkeypatch):
    logged = []

    class Log:
        def error(self, event, **fields):
            logged.append((event, fields["count"]))

    async def serve(caller, asked):
        raise ZeroDivisionError

    def record(event, done):
        done(1, None)

    clock = ManualClock()
    monkeypatch.setattr(gate_module, "log", Log())
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


@pytest.mark.parametrize("method", ["log.write", "kv.put", "no.such"])
async def test_denied_host_call_over_the_rate_is_delayed(monkeypatch, method):
    """Otherwise denied calls, known or not, would load the event loop more than allowed ones."""
    waited = []

    def later(seconds, call, *arguments):
        waited.append(seconds)
        call(*arguments)

    async def serve(caller, asked):
        return {}

    def record(event, done):
        done(1, None)

    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", later)
    calls = table([Served(method="log.write", params=Nothing, serve=serve)])
    limits = GateLimits(rate=Rate(per_second=1, burst=3))
    broker = Broker(calls, record=record, clock=ManualClock(), gate_limits=limits)
    gate = broker.gate(Caller(plugin_id="acme.demo"), Rights(declared=frozenset({"log:write"}), granted=frozenset()))
    for _ in range(5):
        with pytest.raises(HostError):
            await gate.call(method, {})
    assert waited == [gate_module.PAUSE_S] * 2
