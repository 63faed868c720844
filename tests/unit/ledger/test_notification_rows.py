"""ledger.notifications: accepting, counting, delivering in turns, and removing notifications."""

from __future__ import annotations

import apsw
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from latticed.ledger import migrations
from latticed.ledger import notification_upkeep as upkeep
from latticed.ledger import notifications as rows
from latticed.ledger.notifications import NotificationQuota, NotificationRow
from latticed.model.errors import Problem

WIDE = NotificationQuota(items=1_000, total_bytes=1 << 20, all_items=10_000, all_bytes=1 << 24)
A, B = "acme.a", "acme.b"


class Change:
    """`execute` and `changes` of a transaction, over a bare connection."""

    def __init__(self, connection):
        self._connection = connection
        self.execute = connection.execute

    def changes(self):
        return self._connection.changes()


@pytest.fixture
def tx(memory):
    return Change(memory)


def accept(tx, plugin_id=A, title="t", *, quota=WIDE, now=1_000, **fields):
    return rows.accept(tx, plugin_id, NotificationRow(title=title, **fields), quota, now_us=now)


def stored(tx, item_id):
    """The stored notification, or None."""
    return rows._one(tx, "id = ?", item_id)


def test_accepted_notification_is_taken_unchanged(tx):
    """Every field, with a stable id; taking it counts the first attempt."""
    accepted = accept(tx, title="Tür ☂", body="a\nb", severity="critical", event="disk.full", dedupe="d")
    item = rows.take(tx, now_us=1_000)
    assert item == stored(tx, accepted.id)
    assert (item.plugin_id, item.title, item.body, item.severity, item.event) == (
        A,
        "Tür ☂",
        "a\nb",
        "critical",
        "disk.full",
    )
    assert (item.status, item.attempts, item.created_at) == ("delivering", 1, 1_000)
    assert rows.take(tx, now_us=1_000) is None


def test_dedupe_key_identifies_one_notification_per_plugin(tx):
    """A second one returns the first's id, delivered or not. Without a key none is a duplicate."""
    first = accept(tx, dedupe="x")
    again = accept(tx, title="other", dedupe="x")
    assert (again.id, again.duplicate) == (first.id, True)
    assert accept(tx, B, dedupe="x").id != first.id
    assert accept(tx).id != accept(tx).id
    rows.finish(tx, first.id, "done", now_us=2_000)
    assert accept(tx, dedupe="x").id == first.id
    upkeep.retain(tx, before_us=3_000, most=0)
    assert accept(tx, dedupe="x").id != first.id


@pytest.mark.parametrize(
    ("quota", "what"),
    [
        (
            NotificationQuota(items=2, total_bytes=1 << 20, all_items=9, all_bytes=1 << 20),
            "at most 2 notifications of acme.a",
        ),
        (
            NotificationQuota(items=9, total_bytes=600, all_items=9, all_bytes=1 << 20),
            "at most 600 bytes of notifications of",
        ),
        (
            NotificationQuota(items=9, total_bytes=1 << 20, all_items=3, all_bytes=1 << 20),
            "at most 3 notifications waiting",
        ),
        (
            NotificationQuota(items=9, total_bytes=1 << 20, all_items=9, all_bytes=900),
            "at most 900 bytes of notifications waiting",
        ),
    ],
    ids=["items", "bytes", "all items", "all bytes"],
)
def test_notification_beyond_any_quota_is_refused(tx, quota, what):
    """It changes nothing; delivered messages free their share."""
    accept(tx, B, quota=quota)
    kept = [accept(tx, quota=quota) for _ in range(2)]
    before = rows.usage(tx), rows.usage(tx, A)
    with pytest.raises(Problem, match=what) as caught:
        accept(tx, quota=quota)
    assert caught.value.code == "quota_exceeded"
    assert (rows.usage(tx), rows.usage(tx, A)) == before
    rows.finish(tx, kept[0].id, "done", now_us=2_000)
    accept(tx, quota=quota)


def test_notifications_of_plugins_are_taken_in_turn(tx):
    """A plugin with a hundred messages delays another's single one by one delivery; each keeps its order."""
    mine = [accept(tx, A).id for _ in range(100)]
    assert rows.take(tx, now_us=1_000).id == mine[0]
    theirs = [accept(tx, B).id for _ in range(2)]
    taken = [rows.take(tx, now_us=1_000).id for _ in range(5)]
    assert taken == [theirs[0], mine[1], theirs[1], mine[2], mine[3]]


def test_retried_notification_is_taken_when_due(tx):
    """It is not taken before `next_at`; it has the same id, its attempts counted and its reason kept."""
    first, second = accept(tx), accept(tx)
    rows.take(tx, now_us=1_000)
    assert rows.put_back(tx, first.id, next_at=5_000, now_us=1_500, code="http_503", reason="busy")
    assert rows.take(tx, now_us=2_000).id == second.id
    assert rows.next_due(tx, now_us=2_000) == 5_000
    assert rows.take(tx, now_us=4_999) is None
    item = rows.take(tx, now_us=5_000)
    assert (item.id, item.attempts, item.code, item.reason) == (first.id, 2, "http_503", "busy")


def test_retried_notification_is_due_after_clock_is_set_back(tx):
    """A `next_at` beyond the longest delay was set before the clock changed: it is due now."""
    accepted = accept(tx, now=10**15)
    rows.take(tx, now_us=10**15)
    rows.put_back(tx, accepted.id, next_at=10**18, now_us=10**15, code="", reason="")
    assert stored(tx, accepted.id).next_at == 10**15 + rows.LONGEST_WAIT_US
    assert rows.next_due(tx, now_us=1_000) == 1_000
    assert rows.take(tx, now_us=1_000).id == accepted.id


def test_ended_notification_cannot_end_again(tx):
    """A second result, or one for an unknown id, changes nothing."""
    accepted = accept(tx)
    rows.take(tx, now_us=1_000)
    assert rows.finish(tx, accepted.id, "done", now_us=2_000)
    assert not rows.finish(tx, accepted.id, "failed", now_us=3_000)
    assert not rows.put_back(tx, accepted.id, next_at=1, now_us=1, code="", reason="")
    assert not rows.finish(tx, "nobody", "done", now_us=3_000)
    assert not rows.reopen(tx, accepted.id, WIDE, now_us=1)
    assert (stored(tx, accepted.id).status, stored(tx, accepted.id).body) == ("done", "")
    assert rows.usage(tx) == (0, 0)


def test_notification_fails_after_waiting_too_long(tx):
    """Counted seconds decide, not the wall clock. One in delivery does not fail; a failed one can be reopened."""
    out, old = accept(tx), accept(tx, body="kept")
    rows.take(tx, now_us=1_000)
    upkeep.age(tx, 90)
    young = accept(tx, now=10**15)
    upkeep.age(tx, 10)
    assert upkeep.give_up(tx, 100, now_us=10**15) == {A: 1}
    assert [stored(tx, one.id).status for one in (out, old, young)] == ["delivering", "failed", "queued"]
    assert (rows.usage(tx)[0], stored(tx, old.id).code, stored(tx, old.id).body) == (2, "gave_up", "kept")
    assert rows.reopen(tx, old.id, WIDE, now_us=10**15)
    assert (stored(tx, old.id).status, rows.waited_s(tx, old.id), rows.usage(tx)[0]) == ("queued", 0, 3)


def test_retention_keeps_newest_ended_notifications(tx):
    """It removes by age, then by number; queued ones are never removed."""
    ended = [accept(tx).id for _ in range(5)]
    waiting = accept(tx).id
    for number, item_id in enumerate(ended):
        rows.finish(tx, item_id, "failed" if number % 2 else "done", now_us=number)
    assert upkeep.retain(tx, before_us=2, most=2) == 3
    assert [item.id for item in upkeep.page(tx)] == [waiting, ended[4], ended[3]]


def test_retention_makes_room_for_some_more_at_once(tx):
    ended = [accept(tx).id for _ in range(9)]
    for number, item_id in enumerate(ended):
        rows.finish(tx, item_id, "done", now_us=number)
    assert upkeep.retain(tx, before_us=0, most=9, room=3) == 0
    assert upkeep.retain(tx, before_us=0, most=8, room=3) == 4
    assert [item.id for item in upkeep.page(tx)] == list(reversed(ended[4:]))


def test_sender_of_many_notifications_pushes_out_its_own_ended_ones_alone(tx):
    """Else one plugin could have those of all others forgotten, and with them what was a repeat."""
    theirs = accept(tx, B, dedupe="x").id
    mine = [accept(tx, A).id for _ in range(9)]
    for number, item_id in enumerate([theirs, *mine]):
        rows.finish(tx, item_id, "done", now_us=number)
    assert upkeep.retain(tx, before_us=0, most=4) == 6
    assert [item.id for item in upkeep.page(tx)] == [*reversed(mine[-3:]), theirs]
    assert accept(tx, B, dedupe="x").duplicate


def test_notification_pages_and_prune_filter_by_status_and_plugin(tx):
    """Pages are newest first; queued ones are pruned only when their status is named."""
    mine, theirs = [accept(tx, A).id for _ in range(3)], [accept(tx, B).id for _ in range(2)]
    rows.finish(tx, mine[0], "done", now_us=2_000)
    rows.finish(tx, theirs[0], "failed", now_us=3_000)
    first = upkeep.page(tx, limit=3)
    rest = upkeep.page(tx, limit=3, before_seq=first[-1].seq)
    assert [item.id for item in first + rest] == [theirs[1], theirs[0], mine[2], mine[1], mine[0]]
    assert [item.id for item in upkeep.page(tx, plugin_id=A, statuses=["queued"])] == [mine[2], mine[1]]
    assert upkeep.counts(tx) == {"queued": 3, "delivering": 0, "done": 1, "failed": 1}
    assert upkeep.prune(tx, before_us=2_500) == 1
    assert upkeep.prune(tx) == 1
    assert upkeep.prune(tx, statuses=["queued"], plugin_id=A) == 2
    assert (rows.usage(tx)[0], rows.usage(tx, A)) == (1, (0, 0))


class Queue(RuleBasedStateMachine):
    """Random interleavings of senders, deliveries, time and operators: nothing is lost, the usage counts are right."""

    def __init__(self):
        super().__init__()
        self.connection = apsw.Connection(":memory:")
        migrations.migrate(self.connection)
        self.tx = Change(self.connection)
        self.now = 1_000
        self.accepted: set[str] = set()
        self.ended: set[str] = set()
        self.out: list[str] = []
        self.quota = NotificationQuota(items=6, total_bytes=3_000, all_items=9, all_bytes=4_000)

    def teardown(self):
        self.connection.close()

    @rule(plugin=st.sampled_from([A, B]), body=st.text("ü", max_size=200), dedupe=st.sampled_from(["", "", "1", "2"]))
    def send(self, plugin, body, dedupe):
        try:
            accepted = accept(self.tx, plugin, body=body, dedupe=dedupe, quota=self.quota, now=self.now)
        except Problem:
            return
        assert accepted.duplicate == (accepted.id in self.accepted)
        self.accepted.add(accepted.id)

    @rule()
    def take(self):
        item = rows.take(self.tx, now_us=self.now)
        if item is not None:
            assert item.id in self.accepted - self.ended - set(self.out)
            self.out.append(item.id)

    @precondition(lambda self: self.out)
    @rule(how=st.sampled_from(["done", "failed", "retry"]), data=st.data())
    def answer(self, how, data):
        item_id = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        if how == "retry":
            assert rows.put_back(self.tx, item_id, next_at=self.now + 50, now_us=self.now, code="", reason="")
        else:
            assert rows.finish(self.tx, item_id, how, now_us=self.now)
            self.ended.add(item_id)

    @rule(passed=st.integers(0, 100))
    def wait(self, passed):
        self.now += passed

    @rule()
    def restart(self):
        rows.recover(self.tx)
        self.out.clear()

    @rule(data=st.data())
    def reopen(self, data):
        failed = [item.id for item in upkeep.page(self.tx, statuses=["failed"])]
        if failed:
            chosen = data.draw(st.sampled_from(failed))
            try:
                assert rows.reopen(self.tx, chosen, self.quota, now_us=self.now)
            except Problem:
                return
            self.ended.discard(chosen)

    @invariant()
    def every_accepted_notification_is_stored(self):
        found = upkeep.page(self.tx, limit=100_000)
        assert {item.id for item in found} == self.accepted
        waiting = [item for item in found if item.status in {"queued", "delivering"}]
        assert {item.id for item in waiting} == self.accepted - self.ended
        assert {item.id for item in waiting if item.status == "delivering"} == set(self.out)

    @invariant()
    def usage_equals_the_stored_rows(self):
        counted = self.connection.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM notifications WHERE status IN ('queued', 'delivering')"
        ).get
        assert rows.usage(self.tx) == counted
        assert counted[0] <= 9
        assert counted[1] <= 4_000


TestNotificationQueueInvariants = Queue.TestCase
TestNotificationQueueInvariants.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
