"""Deliveries under random plans, outcomes, times and crashes: nothing is lost, told twice, or waits for ever."""

from __future__ import annotations

from types import SimpleNamespace

import apsw
from hypothesis import given, settings
from hypothesis import strategies as st

from latticed.host.notify import rules
from latticed.host.notify.rules import Outcome
from latticed.ledger import deliveries, migrations, notifications
from latticed.ledger.deliveries import Planned
from latticed.ledger.notifications import NotificationQuota, NotificationRow

QUOTA = NotificationQuota(items=10_000, total_bytes=1 << 30, all_items=10_000, all_bytes=1 << 30)
CHANNELS = ("a", "b")
OUTCOMES = (
    Outcome(outcome="done"),
    Outcome(outcome="done", pause_s=3),
    Outcome(outcome="retry", code="http_503"),
    Outcome(outcome="retry", code="http_429", retry_after_s=90_000),
    Outcome(outcome="retry", code="busy", retry_after_s=1, blames_channel=False),
    Outcome(outcome="fail", code="http_400", blames_channel=False),
    Outcome(outcome="fail", code="http_401"),
)
STEPS = st.one_of(
    st.tuples(
        st.just("plan"),
        st.lists(st.sampled_from(CHANNELS), unique=True),
        st.sampled_from(["", "x", "y"]),
        st.sampled_from(["info", "critical"]),
        st.sampled_from([0, 60, 20 * 3_600]),
    ),
    st.tuples(st.just("deliver"), st.sampled_from(CHANNELS), st.sampled_from(OUTCOMES)),
    st.tuples(st.just("crash"), st.sampled_from(CHANNELS)),
    st.tuples(st.just("pass"), st.sampled_from([1, 61, 3_600, 90_000, -400 * 86_400])),
)


class World:
    """The rows in a ledger of their own, and what the other side has seen."""

    def __init__(self):
        self.db = apsw.Connection(":memory:")
        migrations.migrate(self.db)
        self.tx = SimpleNamespace(execute=self.db.execute, changes=self.db.changes)
        self.now_us = 1_800_000_000_000_000
        self.done = {name: {} for name in CHANNELS}  # item: id of the message that was taken
        self.sent = {name: {} for name in CHANNELS}  # id of a message: its items
        self.planned = {}

    def plan(self, channels, bundle, severity, hold_s):
        row = NotificationRow(title="t", severity=severity)
        item = notifications.accept(self.tx, "acme.demo", row, QUOTA, now_us=self.now_us)
        taken = notifications.take(self.tx, now_us=self.now_us)
        wanted = [
            Planned(channel=name, bundle=bundle, window_us=60_000_000 * bool(bundle), hold_us=hold_s * 1_000_000)
            for name in channels
        ]
        deliveries.plan(self.tx, taken, wanted, now_us=self.now_us)
        assert taken.id == item.id
        self.planned[item.id] = set(channels)

    def take(self, name):
        message = deliveries.take(self.tx, name, now_us=self.now_us, most=5)
        if message is not None:
            items = [item.id for item in message.items]
            assert items
            assert self.sent[name].setdefault(message.id, items) == items, "an id stands for the same items for ever"
            assert not self.done[name].keys() & set(items), "what was taken is not sent again"
        return message

    def deliver(self, name, found):
        message = self.take(name)
        if message is None:
            return
        before = deliveries.get(self.tx, name)
        deliveries.put(self.tx, rules.after(before, found, now_us=self.now_us, backoff_s=lambda n: 5.0 * n))
        if found.outcome == "retry":
            next_at = deliveries.get(self.tx, name).paused_until
            deliveries.put_back(self.tx, message, next_at=next_at, code=found.code, reason="")
        else:
            state = "done" if found.outcome == "done" else "failed"
            deliveries.end(self.tx, message, state, now_us=self.now_us, code=found.code)
        if found.outcome == "done":
            self.done[name] |= dict.fromkeys((item.id for item in message.items), message.id)

    def settled(self):
        """Whatever waits is sent in the end, each to each channel that it was planned for."""
        for _ in range(2_000):
            for name in CHANNELS:
                self.deliver(name, OUTCOMES[0])
            self.now_us += 600_000_000
            if not self.db.execute("SELECT count(*) FROM deliveries WHERE state = 'waiting'").get:
                return
        raise AssertionError("something waits for ever")

    def check(self):
        rows = self.db.execute("SELECT item, channel, state FROM deliveries").fetchall()
        assert {(item, channel) for item, channel, _ in rows} == {
            (item, channel) for item, channels in self.planned.items() for channel in channels
        }
        waiting = {item for item, _, state in rows if state == "waiting"}
        failed = {item for item, _, state in rows if state == "failed"}
        for item, status in self.db.execute("SELECT id, status FROM notifications"):
            expected = "delivering" if item in waiting else "failed" if item in failed else "done"
            assert status == expected
        assert notifications.usage(self.tx) == (0, 0)


@given(st.lists(STEPS, max_size=40))
@settings(max_examples=150, deadline=None)
def test_deliveries_keep_their_promises(steps):
    world = World()
    for kind, *given_ in steps:
        match kind:
            case "plan":
                world.plan(*given_)
            case "deliver":
                world.deliver(*given_)
            case "crash":
                world.take(*given_)  # and nothing is reported
                notifications.recover(world.tx)
            case _:
                world.now_us += given_[0] * 1_000_000
        world.check()
    world.settled()
    world.check()
    for item, channels in world.planned.items():
        for name in channels:
            state = world.db.execute("SELECT state FROM deliveries WHERE item = ? AND channel = ?", (item, name)).get
            assert (state == "done") == (item in world.done[name])
    world.db.close()
