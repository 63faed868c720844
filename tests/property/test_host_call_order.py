"""Host calls of one plugin, some of services that wait: what is recorded, made and answered, and in which order."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json

from hypothesis import example, given
from hypothesis import strategies as st

from latticed.broker.decide import Rights
from latticed.broker.gate import Broker, GateLimits
from latticed.host.call import Caller, HostError, Params, Served, table
from latticed.kit.token_bucket import Rate
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from latticed.runners import jsonrpc
from tests.house import conversations
from tests.house.clocks import ManualClock

BURST = 60
KINDS = ("kv.get", "kv.put", "log.write", "log.write fails", "kv.get odd", "mail.send", "no.such")
"""A plain service and one that waits; one that is refused by itself; parameters, capability and name that are wrong."""
PLAIN = ("kv.get", "log.write")
READ = frozenset({"kv:read", "kv:write", "log:write"})

steps = st.lists(
    st.tuples(st.just("hear"), st.lists(st.sampled_from(KINDS), min_size=1, max_size=12))
    | st.tuples(st.sampled_from(["commit", "release", "turn"]), st.integers(1, 12))
    | st.tuples(st.sampled_from(["revoke", "close", "full disk", "not read", "read"]), st.just(0)),
    max_size=20,
)


class Number(Params, frozen=True):
    n: int
    fail: bool = False


class World:
    """One plugin before a Gate and a session, and a ledger that commits when it is told to."""

    def __init__(self, talk):
        self.talk = talk
        self.calls = []  # (number, kind)
        self.rows = []  # (number, decision, code), in the order in which they were queued
        self.uncommitted = []  # (row, done)
        self.committed = []
        self.made = []  # (number, whether the call may be made then)
        self.held = {}  # events of calls whose service waits, by number
        self.full = False
        self.numbers = {}
        services = table(
            [
                Served(method="kv.get", params=Number, serve=self.plain),
                Served(method="log.write", params=Number, serve=self.plain),
                Served(method="kv.put", params=Number, serve=self.waits),
            ]
        )
        limits = GateLimits(rate=Rate(per_second=1, burst=BURST))
        broker = Broker(services, record=self.record, clock=ManualClock(), gate_limits=limits)
        self.gate = broker.gate(Caller(plugin_id="acme.demo"), Rights(declared=READ, granted=READ))
        self.granted = READ
        self.open = True
        talk.session._serve = self.gate.begin

    def record(self, event, done):
        row = (self.numbers[event.detail["sha256"]], event.decision, event.code)
        self.rows.append(row)
        self.uncommitted.append((row, done))

    def plain(self, _caller, asked):
        self.note(asked.n)
        if asked.fail:
            raise HostError(Denial.NOT_FOUND, "there is none")
        return asked.n

    async def waits(self, _caller, asked):
        self.note(asked.n)
        event = self.held[asked.n] = asyncio.Event()
        await event.wait()
        return asked.n

    def note(self, number):
        method = self.calls[number][1].partition(" ")[0]
        needs = {"kv.get": "kv:read", "kv.put": "kv:write", "log.write": "log:write"}[method]
        recorded = (number, "allow", "") in self.committed
        self.made.append((number, recorded and self.open and needs in self.granted))

    def hear(self, kinds):
        messages = []
        for kind in kinds:
            number, (method, _, how) = len(self.calls), kind.partition(" ")
            params = {"n": number, **({"fail": True} if how == "fails" else {"odd": 1} if how else {})}
            self.calls.append((number, kind))
            self.numbers[hashlib.sha256(json.dumps(params).encode()).hexdigest()] = number
            messages.append({"id": number, "method": method, "params": params})
        self.talk.hear(*messages)

    def commit(self, count):
        for row, done in [self.uncommitted.pop(0) for _ in range(min(count, len(self.uncommitted)))]:
            if self.full:
                done(None, Problem("audit_unavailable", "the disk is full"))
            else:
                self.committed.append(row)
                done(len(self.committed), None)

    def release(self, count):
        for event in list(itertools.islice(self.held.values(), count)):
            event.set()

    async def do(self, what, much):
        if what == "hear":
            self.hear(much)
        elif what == "commit":
            self.commit(much)
        elif what == "release":
            self.release(much)
        elif what == "revoke":
            self.granted = frozenset({"kv:write"})
            self.gate.regrant(self.granted)
        elif what == "close":
            self.open = False
            self.gate.close()
        elif what == "full disk":
            self.full = not self.full
        elif what == "not read":
            self.talk.room.clear()
        elif what == "read":
            self.talk.room.set()
        for _ in range(much if what == "turn" else 1):
            await asyncio.sleep(0)
        assert len(self.uncommitted) <= jsonrpc.SERVED_AT_ONCE, "what one plugin may have under way"
        # No answer is there before what it says is on record.
        for one in self.talk.said:
            self.check_answer(one)

    def check_answer(self, one):
        number, code = one["id"], one.get("error", {}).get("data", {}).get("code", "")
        if not code:
            assert one["result"] == number
            assert (number, "allow", "") in self.committed
            assert (number, True) in self.made
        elif code not in ("audit_unavailable", "service_unavailable"):
            assert (number, "deny", code) in self.committed

    async def end(self):
        """Everything is committed, read and released until all are answered, and their answers are read."""
        self.talk.room.set()
        self.full = False
        for _ in range(2_000):
            if len(self.talk.said) == len(self.calls) and not self.talk.session.under_way:
                break
            self.commit(99)
            self.release(99)
            await asyncio.sleep(0)


async def _played(steps):
    async with conversations.session() as talk:
        world = World(talk)
        # A pause is for a turn of the loop's clock, which no test waits for.
        loop, later = asyncio.get_running_loop(), asyncio.get_running_loop().call_later
        loop.call_later = lambda s, call, *rest: later(0 if s == 0.02 else s, call, *rest)
        for what, much in steps:
            await world.do(what, much)
        await world.end()
        return world


@given(steps=steps)
@example(steps=[("hear", ["kv.put", "kv.get", "kv.put", "log.write"] * 12), ("commit", 3), ("turn", 3), ("close", 0)])
@example(steps=[("hear", ["kv.get", "kv.put"]), ("revoke", 0), ("commit", 9), ("turn", 4)])
@example(steps=[("hear", ["kv.get"]), ("not read", 0), ("commit", 1)])
@example(
    steps=[("hear", ["kv.get"] * 9), ("turn", 1), ("not read", 0), ("commit", 4), ("hear", ["kv.get"]), ("read", 0)]
)
def test_calls_are_recorded_in_their_order_made_after_that_and_answered_once(steps):
    world = asyncio.run(_played(steps))
    assert world.talk.broken == []
    # Each is answered once, whatever became of it.
    said = [one["id"] for one in world.talk.said]
    assert sorted(said) == [number for number, _ in world.calls]
    # The first row of each call, which says what was decided, stands where the plugin made the call.
    first = list(dict.fromkeys(number for number, _, _ in world.rows))
    assert first == sorted(first)
    # It was on record, and the plugin was still allowed to, whenever a service was asked; once for each call.
    assert all(allowed for _, allowed in world.made)
    assert len({number for number, _ in world.made}) == len(world.made)
    # Calls that wait for nothing are answered in their order.
    kinds = dict(world.calls)
    plain = [one["id"] for one in world.talk.said if "result" in one and kinds[one["id"]] in PLAIN]
    assert plain == sorted(plain)
    assert world.talk.session.under_way == 0
