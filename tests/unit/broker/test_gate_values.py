"""Parameters reach a service as the plugin wrote them; the service's own struct validates them."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from latticed.broker.decide import Rights
from latticed.broker.gate import Broker, GateLimits
from latticed.host.call import Caller, HostError, Params, Served, table
from latticed.host.log import LogCalls
from latticed.kit.clock import SystemClock
from tests.house import conversations


class Asked(Params, frozen=True):
    a: Any = None


@pytest.fixture
def gate():
    """(Gate of a plugin that may call log.write, recorded events, values that the service got)."""
    events, served = [], []

    def record(event, done):
        events.append(event)
        done(len(events), None)

    async def serve(caller, asked):
        served.append(asked.a)
        return "done"

    calls = table([Served(method="log.write", params=Asked, serve=serve)])
    broker = Broker(calls, record=record, clock=SystemClock(), gate_limits=GateLimits())
    rights = Rights(declared=frozenset({"log:write"}), granted=frozenset({"log:write"}))
    found = broker.gate(Caller(plugin_id="acme.demo"), rights)
    return found, events, served


@pytest.mark.parametrize(
    "value",
    [rb'"\ud800"', rb'{"\udfff":1}', b"1e400", b"NaN", b"7" * 5_000, b"[" * 50_000 + b"]" * 50_000, b'"\xff"'],
    ids=["surrogate", "surrogate in a name", "infinite", "NaN", "too many digits", "bottomless", "no UTF-8"],
)
async def test_host_call_with_undecodable_value_is_refused(gate, value):
    """bad_params for that call, audited; nothing is carried out."""
    found, events, served = gate
    with pytest.raises(HostError) as refused:
        await found.call_raw("log.write", b'{"a":' + value + b"}")
    assert refused.value.code == "bad_params"
    assert [(event.decision, event.code) for event in events] == [("deny", "bad_params")]
    assert served == []


async def test_unknown_field_of_host_call_is_refused_undecoded(gate):
    """Many objects under an unknown name cost no decoding: the invalid number at their end is not reached."""
    found, events, served = gate
    with pytest.raises(HostError, match="unknown field `b`"):
        await found.call_raw("log.write", b'{"b":[' + b"[]," * 40_000 + b"1e400]}")
    assert (len(events), served) == (1, [])


async def test_audited_size_and_hash_are_of_the_received_params(gate):
    """They are not those of a re-encoded form."""
    found, events, served = gate
    said = b'{ "a" : "\\u00e9" }'
    assert await found.call_raw("log.write", said) == "done"
    assert events[0].detail == {"bytes": len(said), "sha256": hashlib.sha256(said).hexdigest()}
    assert served == ["é"]


@pytest.mark.parametrize(("depth", "code"), [(101, ""), (500, ""), (100_000, "bad_params")])
@pytest.mark.parametrize("protocol", ["latticed-stdio-1", "stdio-json-v1"])
async def test_params_may_be_nested_deeper_than_answers(protocol, depth, code):
    """Where the call takes any value, as docs/write/sdk.md says. A hundred thousand levels end no session."""
    written = []
    services = table(LogCalls(lambda *line: written.append(line)).calls())
    broker = Broker(services, record=lambda _, done: done(1, None), clock=SystemClock(), gate_limits=GateLimits())
    rights = Rights(declared=frozenset({"log:write"}), granted=frozenset({"log:write"}))
    gate = broker.gate(Caller(plugin_id="acme.demo"), rights)
    params = b'{"message":"m","fields":{"a":' + b"[" * depth + b"]" * depth + b"}}"
    call = b'"id":1,"method":"log.write","params":' + params
    if protocol == "latticed-stdio-1":
        async with conversations.session() as talk:
            talk.session._serve = gate.begin
            talk.session.feed(b'{"jsonrpc":"2.0",' + call + b"}\n")
            await talk.until_said(1)
            assert talk.broken == []
            (answer,) = talk.said
            found = answer.get("error", {}).get("data", {}).get("code", "")
    else:
        async with conversations.invocation() as talk:
            talk.invocation._serve, talk.invocation._refuse = gate.call_raw, gate.refuse_raw
            talk.invocation.feed(b'{"host_call":{' + call + b"}}\n")
            await talk.until_said(1)
            found = (talk.said[0]["host_response"]["error"] or "").partition(":")[0]
    assert found == code
    assert len(written) == (not code)
