"""The Gate for any call: what it refuses, what a plugin learns of a failure, what is audited.

test_gate_table has every call with every outcome.
"""

from __future__ import annotations

import asyncio
import json

import pytest

from latticed.broker.gate import Broker
from latticed.host.call import HostError, Params, Served
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from tests.house import hostcalls, in_process
from tests.house.clocks import ManualClock
from tests.house.hostcalls import caller


@pytest.fixture
async def home():
    async with in_process.opened() as found:
        yield found


@pytest.fixture
async def plugin(home):
    """A plugin that declares everything and was granted everything."""
    return await caller(home, *hostcalls.EVERYTHING, accept=hostcalls.HOST_RISK)


def serve(home, **calls):
    """Put services of the test into the broker: name → coroutine of (caller, params)."""
    broker: Broker = home.app.broker
    extra = {
        name.replace("_", "."): Served(method=name.replace("_", "."), params=Anything, serve=work)
        for name, work in calls.items()
    }
    broker.services = {**broker.services, **extra}


class Anything(Params, frozen=True):
    note: str = ""


async def test_audit_event_of_a_call_has_size_and_hash_of_params_only(home, plugin):
    """The values themselves are never in it."""
    await plugin.call("kv.put", key="a", value="hunter2")
    (event,) = [e for e in home.events(action="host.call") if e["target"] == "kv.put"]
    assert set(event["detail"]) == {"bytes", "sha256"}
    assert "hunter2" not in json.dumps(event)


@pytest.mark.parametrize("method", ["kv.steal", "", "kv", "KV.GET", "kv.get ", "__class__", "\x1b[2J\n", "x" * 5000])
async def test_unknown_host_call_is_not_found(plugin, method):
    """This holds for any name; the event of the call has the name in printable form."""
    assert await plugin.denied(method) == "not_found"
    ((target, decision, code),) = plugin.recorded()
    assert (decision, code) == ("deny", "not_found")
    assert target.isprintable()
    assert len(target) <= 200


async def test_host_calls_over_the_rate_are_rate_limited():
    """A burst is accepted at once, then calls as fast as the bucket fills; each plugin has its own bucket."""
    async with in_process.opened(toml="[host_calls]\nper_second = 2\nburst = 3\n") as home:
        clock = home.app.broker.clock = ManualClock()
        one = await caller(home, "kv:read")
        two = await caller(home, "kv:read", plugin_id="acme.other", name="other")
        for _ in range(3):
            await one.call("kv.get", key="a")
        assert await one.denied("kv.get", key="a") == "rate_limited"
        await two.call("kv.get", key="a")
        clock.advance(0.5)
        await one.call("kv.get", key="a")
        assert await one.denied("kv.get", key="a") == "rate_limited"


@pytest.mark.parametrize(
    "params", [{"key": "\ud800"}, {"key": object()}, {"key": {1, 2}, "x": b"\xff"}, {1: {2: 3 + 1j}}]
)
async def test_parameters_with_lone_surrogates_are_denied_and_audited(plugin, params):
    """Most JSON decoders accept a lone surrogate; the audit log cannot store it."""
    with pytest.raises(HostError) as caught:
        await plugin.instance.gate.call("kv.get", params)
    assert caught.value.code is Denial.BAD_PARAMS
    assert plugin.recorded()[-1][1:] == ("deny", "bad_params")


async def test_too_deeply_nested_parameters_are_denied(plugin):
    """No recursion error reaches the runner."""
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert await plugin.denied("kv.get", key=deep) == "bad_params"
    while deep:  # freed one by one: the interpreter's own recursion has a limit too
        deep = deep.pop()  # type: ignore[assignment]


async def test_slow_service_is_cancelled_with_deadline_exceeded():
    """The call is audited as allowed, then as failed."""
    async with in_process.opened(toml="[host_calls]\ndeadline_s = 0.1\n") as home:
        plugin = await caller(home, "node:read")
        ended = asyncio.Event()

        async def slow(_caller, _params):
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        serve(home, node_facts=slow)
        assert await plugin.denied("node.facts") == "deadline_exceeded"
        assert ended.is_set()
        assert plugin.recorded() == [("node.facts", "allow", ""), ("node.facts", "deny", "deadline_exceeded")]


async def test_exception_in_service_is_internal_to_the_plugin(plugin):
    """The message goes to the log only."""

    async def broken(_caller, _params):
        raise KeyError("/var/lib/latticed/secret")

    serve(plugin.home, node_facts=broken)
    with pytest.raises(HostError) as caught:
        await plugin.call("node.facts")
    assert caught.value.code is Denial.INTERNAL
    assert "secret" not in str(caught.value)
    assert plugin.recorded() == [("node.facts", "allow", ""), ("node.facts", "deny", "internal")]


async def test_refusal_by_a_service_keeps_its_code(plugin):
    """Services refuse with codes such as not_found and egress_blocked."""

    async def nothing(_caller, _params):
        raise HostError(Denial.EGRESS_BLOCKED, "expected a host that was accepted")

    serve(plugin.home, http_do=nothing)
    assert await plugin.denied("http.do") == "egress_blocked"
    assert plugin.recorded() == [("http.do", "allow", ""), ("http.do", "deny", "egress_blocked")]


async def test_host_call_that_cannot_be_audited_is_not_carried_out(home, monkeypatch):
    """audit_unavailable: the service is never called, and nothing is recorded; later calls work again."""
    plugin = await caller(home, "kv:read", "kv:write")
    asked = []

    async def note(_caller, params):
        asked.append(params)

    def record(_event, done):
        done(None, Problem("audit_unavailable", "the event cannot be recorded: disk full"))

    serve(home, kv_put=note)
    with monkeypatch.context() as patch:
        patch.setattr(home.app.broker, "record", record)
        assert await plugin.denied("kv.put", note="a") == "audit_unavailable"
        assert await plugin.denied("kv.steal") == "audit_unavailable", "a denial that is not on record is no answer"
    assert asked == []
    assert plugin.recorded() == []
    await plugin.call("kv.put", note="b")
    assert len(asked) == 1
    assert plugin.recorded() == [("kv.put", "allow", "")]


async def test_audit_event_is_committed_before_the_call_is_carried_out(home):
    """An allow can be read from the ledger while the service runs; a denial before it is answered."""
    plugin = await caller(home, "node:read")
    found = []

    async def look(_caller, _params):
        found.extend(plugin.recorded())

    serve(home, node_facts=look)
    await plugin.call("node.facts")
    assert found == [("node.facts", "allow", "")]


async def test_denials_beyond_the_quota_share_counted_events(home):
    """All are answered alike."""
    plugin = await caller(home, "kv:read")
    for _ in range(60):
        assert await plugin.denied("kv.put", key="a", value="1") == "capability_denied"
    alone = [e for e in home.events(after=plugin.seen, action="host.call") if "count" not in e["detail"]]
    assert 0 < len(alone) < 60

    def told():
        found = home.events(after=plugin.seen, action="host.call")
        return sum(event["detail"].get("count", 1) for event in found)

    await in_process.until(lambda: told() == 60, "all 60 accounted for")
