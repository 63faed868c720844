r"""Host calls whose line cannot be passed on, such as `{"key": NaN}`, are decided, counted, recorded and slowed by the
Gate like any other, in both protocols.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib

import pytest

from latticed.broker.decide import Rights
from latticed.broker.gate import Broker, GateLimits
from latticed.host.call import Caller, table
from latticed.host.kv import KvCalls, quota_of
from latticed.kit.clock import SystemClock
from latticed.kit.token_bucket import Rate
from latticed.ledger import audit, coalesce, open_ledger
from latticed.model.chain import CALLS
from latticed.runners import lines
from latticed.settings import HostCallSettings
from tests.house import conversations

PROTOCOLS = ["latticed-stdio-1", "stdio-json-v1"]
KV = frozenset({"kv:read", "kv:write"})
ODD = {
    "NaN": b"NaN",
    "infinite": b"[1.5, -Infinity]",
    "surrogate": rb'"\ud800"',
    "half of a pair": rb'"\ud83d\ude00\ude00"',
    "surrogate beside a backslash": rb'"\ud83d\\\ude00"',
}


def calls_on_record(ledger):
    return ledger.read(lambda db: audit.query(db, chain=CALLS, action="host.call", limit=1_000))


class _Plugin:
    """One plugin: a real ledger, a Gate before it, and a conversation of one of the two protocols."""

    def __init__(self, protocol, ledger, talk, limits):
        self.protocol, self.ledger, self.talk = protocol, ledger, talk
        self.broker = Broker(
            table(KvCalls(ledger, quota=quota_of(HostCallSettings())).calls()),
            record=ledger.note,
            clock=SystemClock(),
            gate_limits=limits,
        )
        self.gate = self.broker.gate(Caller(plugin_id="acme.demo"), Rights(declared=KV, granted=KV))
        if protocol == PROTOCOLS[0]:
            self.feed = talk.session.feed
            talk.session._serve, talk.session._refuse = self.gate.begin, self.gate.refuse
        else:
            self.feed = talk.invocation.feed
            talk.invocation._serve, talk.invocation._refuse = self.gate.call_raw, self.gate.refuse_raw

    def line(self, value, method=b"kv.get"):
        call = b'"id":1,"method":"%b","params":{"key":%b}' % (method, value)
        if self.protocol == PROTOCOLS[0]:
            return b'{"jsonrpc":"2.0",' + call + b"}"
        return b'{"host_call":{' + call + b"}}"

    async def refused(self, *lines):
        """The codes with which the calls in these lines are refused."""
        before = len(self.talk.said)
        self.feed(b"".join(line + b"\n" for line in lines))
        await self.talk.until_said(before + len(lines))
        if self.protocol == PROTOCOLS[0]:
            return [one["error"]["data"]["code"] for one in self.talk.said[before:]]
        return [one["host_response"]["error"].partition(":")[0] for one in self.talk.said[before:]]

    def recorded(self):
        return calls_on_record(self.ledger)


@contextlib.asynccontextmanager
async def plugin(tmp_path, protocol, limits=None):
    talking = conversations.session() if protocol == PROTOCOLS[0] else conversations.invocation(max_host_calls=512)
    async with open_ledger(tmp_path, clock=SystemClock()) as ledger, talking as talk:
        yield _Plugin(protocol, ledger, talk, limits or GateLimits())


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_call_whose_line_cannot_be_passed_on_is_counted_and_recorded(tmp_path, protocol, value):
    """Its size and hash are those of the line."""
    async with plugin(tmp_path, protocol) as it:
        line = it.line(value)
        assert await it.refused(line) == ["bad_params"]
        (event,) = it.recorded()
        assert (event["actor"], event["target"], event["decision"]) == ("plugin:acme.demo", "kv.get", "deny")
        assert event["code"] == "bad_params"
        assert event["detail"] == {"bytes": len(line), "sha256": hashlib.sha256(line).hexdigest()}
        count = it.broker.count("acme.demo")
        assert (count.calls, count.denied) == (1, 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_what_a_plugin_may_not_do_is_said_before_its_values(tmp_path, protocol):
    """No such call, no grant, too large; a method that has no UTF-8 is none."""
    async with plugin(tmp_path, protocol, GateLimits(request_bytes=1_000)) as it:
        asked = (
            it.line(b"NaN", b"no.such"),
            it.line(b"NaN", rb"kv.\ud800"),
            it.line(b"NaN", b"http.do"),
            it.line(b"[" + b"1," * 1_000 + b"NaN]"),
        )
        wanted = ["not_found", "not_found", "capability_denied", "too_large"]
        assert await it.refused(*asked) == wanted
        assert [event["code"] for event in it.recorded()] == wanted


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_calls_that_cannot_be_passed_on_use_up_the_rate(tmp_path, protocol):
    """So that a good one after them is refused too."""
    slow = GateLimits(rate=Rate(per_second=0.001, burst=2))
    async with plugin(tmp_path, protocol, slow) as it:
        assert await it.refused(it.line(b"NaN"), it.line(b"NaN")) == ["bad_params", "bad_params"]
        assert await it.refused(it.line(b"NaN"), it.line(b'"a"')) == ["rate_limited", "rate_limited"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_flood_of_calls_that_cannot_be_passed_on_is_recorded_as_a_count(tmp_path, protocol):
    """As other denials are: a few one by one, then how many."""
    flood = 300
    async with plugin(tmp_path, protocol) as it:
        assert await it.refused(*[it.line(b"NaN")] * flood) == ["bad_params"] * flood
        assert it.broker.count("acme.demo").denied == flood
    async with open_ledger(tmp_path, clock=SystemClock()) as ledger:
        events = calls_on_record(ledger)
    assert sum(event["detail"].get(coalesce.COUNT, 1) for event in events) == flood
    assert len(events) < flood


async def test_line_of_too_many_values_is_recorded(tmp_path):
    """Its params are not read at all."""
    async with plugin(tmp_path, PROTOCOLS[0]) as it:
        line = it.line(b"[" + b"1," * lines.MAX_VALUES + b"1]")
        assert await it.refused(line) == ["bad_params"]
        (event,) = it.recorded()
        assert (event["code"], event["detail"]["bytes"]) == ("bad_params", len(line))


async def test_lines_that_cannot_be_passed_on_count_as_pending_memory(tmp_path):
    """A plugin that does not read its answers makes the daemon keep a bounded number of long lines."""
    async with plugin(tmp_path, PROTOCOLS[0]) as it:
        it.talk.room.clear()
        line = it.line(b'["' + b"x" * 900_000 + b'", NaN]')
        for _ in range(100):
            it.feed(line + b"\n")
        assert it.talk.session.under_way * len(line) <= 16 << 20
        assert it.talk.flows == [False]
        it.talk.room.set()
        await it.talk.until_said(100)


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":1,"method":"kv.get","params":{},"result":NaN}',
        b'{"jsonrpc":"2.0","id":1,"method":"kv.get","params":{},"more":NaN}',
        b'{"jsonrpc":"2.0","id":1,"method":"%b","params":{"key":NaN}}' % (b"m" * 129),
    ],
)
async def test_line_that_would_be_no_call_with_other_values_breaks_the_session(tmp_path, line):
    async with plugin(tmp_path, PROTOCOLS[0]) as it:
        it.feed(line + b"\n")
        assert it.talk.broken_code() == "protocol_error"
        await asyncio.sleep(0)
        assert it.recorded() == []
