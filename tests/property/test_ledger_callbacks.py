"""Callers of the ledger's writer, some of whom take long when they are called back: in which order, and beside what."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from latticed.ledger.writer import SLICE_S, LedgerWriter, WriteJob
from latticed.model.audit import HOST_CALL, Event
from latticed.model.chain import CALLS, Position
from tests.house.clocks import ManualClock

SLICE_MS = round(SLICE_S * 1_000)
KINDS = ("call", "decision", "change", "failing change", "failing caller", "caller who calls again", "sign")
steps = st.lists(
    st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2 * SLICE_MS)), max_size=12)  # what is asked in one turn
    | st.integers(1, 9),  # turns that pass
    max_size=12,
)


class World:
    """A writer in a loop whose clock also goes on by what callers take."""

    def __init__(self, directory):
        self.now_ms = 0
        self.loop = asyncio.get_running_loop()
        real = self.loop.time
        self.loop.time = lambda: real() + self.now_ms / 1_000
        self.faults = []
        self.loop.set_exception_handler(lambda _, context: self.faults.append(type(context["exception"])))
        self.asked = []
        self.called = []  # (number, result, error)
        self.costs = [[]]  # what callers took, turn by turn
        self.calls = []  # the seqs of host calls whose callers were called back
        self.heads = []  # (chain, seq, how many host calls had been called back)
        self.seen = []  # what a reader of events saw: the newest host call, and as above
        self.writer = LedgerWriter(directory, clock=ManualClock(), on_head=self.head)

    def head(self, head):
        self.heads.append((head.chain, head.seq, len(self.calls)))
        raise LookupError  # holds nobody up

    def ask(self, kind, cost_ms):
        number = len(self.asked)
        self.asked.append(kind)

        def done(result, error):
            self.called.append((number, result, error))
            self.costs[-1].append(cost_ms)
            self.now_ms += cost_ms
            if kind == "call":
                self.calls.append(result)
            if kind == "failing caller":
                raise ZeroDivisionError
            if kind == "caller who calls again" and self.writer._open:
                self.ask("call", 1)

        if kind in ("call", "decision"):
            action = HOST_CALL if kind == "call" else "plugin.install"
            self.writer.append(Event(actor="plugin:a.b", action=action, target=str(number), decision="allow"), done)
        elif kind == "failing change":
            self.writer._put(WriteJob(lambda _: [].pop(), done))
        else:
            self.writer._put(WriteJob(lambda tx: tx.chains.sign() if kind == "sign" else number, done))

    async def tick(self):
        """Note where turns of the loop begin."""
        while True:
            await asyncio.sleep(0)
            self.costs.append([])

    async def read(self):
        """As an event stream does."""
        seen = Position()
        while True:
            await self.writer.wait_for_events(seen, calls=True)
            seen = self.writer.tip
            self.seen.append((seen.calls, len(self.calls)))


async def _played(steps, directory):
    world = World(directory)
    await world.writer.start()
    others = [asyncio.create_task(world.tick()), asyncio.create_task(world.read())]
    for step in steps:
        for kind, cost_ms in step if isinstance(step, list) else ():
            world.ask(kind, cost_ms)
        for _ in range(step if isinstance(step, int) else 1):
            await asyncio.sleep(0)
    await world.writer.stop()
    called = len(world.called)
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    assert len(world.called) == called, "nobody is called back after the end"
    return world


@given(steps=steps)
@example(steps=[[("call", 1)] * 40])
@example(steps=[[("call", SLICE_MS)] * 3 + [("sign", 0)], [("caller who calls again", 2 * SLICE_MS)] * 3, 9])
def test_callers_are_called_back_once_in_their_order_and_a_little_in_each_turn(steps):
    with tempfile.TemporaryDirectory() as directory:
        world = asyncio.run(_played(steps, Path(directory) / "state"))
    # In the order in which they asked, each once, all of them by the time the writer has stopped.
    assert [number for number, _, _ in world.called] == list(range(len(world.asked)))
    failed = [world.asked[number] for number, _, error in world.called if error is not None]
    assert failed == [kind for kind in world.asked if kind == "failing change"]
    assert world.calls == list(range(1, 1 + len(world.calls)))
    assert world.faults.count(ZeroDivisionError) == world.asked.count("failing caller")
    # In each turn no further one is begun once the time is over.
    assert all(sum(costs[:-1]) < SLICE_MS for costs in world.costs)
    # Readers of events and the journal hear of a call when its caller has.
    assert all(newest <= called for newest, called in world.seen)
    assert all(seq <= called for chain, seq, called in world.heads if chain == CALLS)
    assert len(world.heads) == world.faults.count(LookupError)
