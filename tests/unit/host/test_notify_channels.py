"""What waits for which channel: one row each, repeats together, degraded channels told of once, nothing lost."""

from __future__ import annotations

import asyncio

import pytest

from latticed.host.notify import rules
from latticed.host.notify.channels import ChannelKeeper
from latticed.host.notify.keeper import NotificationQueue
from latticed.host.notify.rules import Outcome
from latticed.ledger import audit, deliveries, open_ledger
from latticed.ledger.deliveries import Planned
from latticed.ledger.notifications import NotificationRow
from latticed.model.audit import Event
from latticed.settings import shapes
from tests.house.clocks import ManualClock

DONE = Outcome(outcome="done")
LATER = Outcome(outcome="retry", code="http_503", reason="busy")
REFUSED = Outcome(outcome="fail", code="http_401", reason="no such token")
MINUTE_US = 60_000_000


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
async def ledger(tmp_path, clock):
    async with open_ledger(tmp_path / "state", clock=clock) as opened:
        yield opened


class Fixture:
    def __init__(self, ledger, clock, **settings):
        self.ledger = ledger
        self.clock = clock
        wanted = shapes.NotifySettings(**settings)
        self.queue = NotificationQueue(ledger, clock=clock, settings=wanted, roll=lambda: 0.5)
        self.channels = ChannelKeeper(ledger, self.queue, clock=clock, roll=lambda: 0.5)

    async def planned(self, *channels, sender="acme.demo", **row):
        """Queue an item and hand it over to these channels; its id."""
        accepted = await self.queue.accept(sender, NotificationRow(**{"title": "t", **row}))
        item = await self.queue.take()
        assert item.id == accepted.id
        planned = [Planned(channel=one) if isinstance(one, str) else one for one in channels]
        await self.channels.plan([(item, planned)])
        return item.id

    async def taken(self, channel):
        """The items of the next message, None when nothing is due."""
        message = await self.channels.take(channel)
        return message and [item.id for item in message.items]

    async def report(self, channel, outcome):
        message = await self.channels.take(channel)
        await self.channels.report(message, outcome)
        return message

    async def status(self, item):
        (row,) = [one for one in await self.queue.page() if one.id == item]
        return row.status, row.code, {one.channel: one.state for one in (await self.channels.of_items([item]))[item]}


@pytest.fixture
def kept(ledger, clock):
    return Fixture(ledger, clock)


async def test_item_is_done_when_the_last_of_its_channels_has_it(kept):
    item = await kept.planned("a", "b")
    await kept.report("a", DONE)
    assert await kept.status(item) == ("delivering", "", {"a": "done", "b": "waiting"})
    await kept.report("b", DONE)
    assert await kept.status(item) == ("done", "", {"a": "done", "b": "done"})
    assert await kept.taken("a") is None


async def test_item_without_a_channel_ends(kept):
    item = await kept.planned()
    assert await kept.status(item) == ("done", "no_channel", {})


async def test_channel_that_fails_holds_up_no_other(kept, clock):
    first, second = await kept.planned("a", "b"), await kept.planned("a", "b")
    await kept.report("a", LATER)
    assert await kept.taken("a") is None, "it is paused"
    assert await kept.taken("b") == [first]
    await kept.report("b", DONE)
    assert (await kept.report("b", DONE)).items[0].id == second
    clock.advance(6)
    assert await kept.taken("a") == [second], "what failed comes after what waits"


async def test_what_waits_for_a_channel_counts_against_no_quota(ledger, clock):
    kept = Fixture(ledger, clock, plugin_items=1)
    for _ in range(5):
        await kept.planned("dead")
    assert kept.channels.waiting() == 0


async def test_repeats_within_the_window_become_one_message(kept, clock):
    planned = Planned(channel="a", bundle="acme\ndisk", window_us=MINUTE_US)
    first = await kept.planned(planned)
    assert await kept.taken("a") == [first]
    await kept.report("a", DONE)
    others = [await kept.planned(planned) for _ in range(3)]
    other = await kept.planned(Planned(channel="a", bundle="acme\ncpu", window_us=MINUTE_US))
    assert (await kept.report("a", DONE)).items[0].id == other
    assert await kept.taken("a") is None
    clock.advance(61)
    assert [item.id for item in (await kept.report("a", DONE)).items] == others
    last = await kept.planned(planned)
    assert await kept.taken("a") is None, "that message has opened a window of its own"
    clock.advance(61)
    assert await kept.taken("a") == [last]


async def test_quiet_hours_end_with_one_message(kept, clock):
    held = [await kept.planned(Planned(channel="a", bundle="quiet", hold_us=3_600_000_000 - n)) for n in range(3)]
    urgent = await kept.planned(Planned(channel="a", bundle="x"), severity="critical")
    assert await kept.taken("a") == [urgent]
    await kept.report("a", DONE)
    clock.advance(3_601)
    assert sorted(await kept.taken("a")) == sorted(held)


async def test_more_than_the_rate_goes_together_and_what_is_critical_first(kept, clock):
    await kept.planned("a")
    await kept.report("a", Outcome(outcome="done", pause_s=3))
    waiting = [await kept.planned("a", title=f"t{n}") for n in range(5)]
    urgent = await kept.planned("a", severity="critical")
    assert await kept.taken("a") is None
    clock.advance(4)
    message = await kept.channels.take("a")
    assert sorted(item.id for item in message.items) == sorted([urgent, *waiting])


async def test_message_keeps_its_items_and_id_over_attempts_and_crashes(ledger, clock):
    kept = Fixture(ledger, clock)
    await kept.planned("a")
    await kept.report("a", Outcome(outcome="done", pause_s=1))
    for _ in range(3):
        await kept.planned("a")
    clock.advance(2)
    first = await kept.channels.take("a")
    await kept.planned("a")
    again = Fixture(ledger, clock)  # a daemon that knows nothing of what was taken
    async with again.queue:
        second = await again.channels.take("a")
        assert (second.id, second.items, second.attempts) == (first.id, first.items, 2)
        assert len(second.items) == 3
        assert await again.queue.take() is None, "what was handed over is not queued again"


async def test_degraded_channel_is_told_of_once_and_recovers(kept, clock, ledger):
    await kept.planned("a", "b")
    await kept.report("a", REFUSED)
    assert kept.channels.degraded() == {"a": "http_401: no such token"}
    news = await kept.queue.take()
    assert (news.plugin_id, news.event, news.severity) == ("latticed", rules.DEGRADED, "error")
    assert "channel a is degraded: http_401" in news.title
    for _ in range(3):
        clock.advance(1_000)
        await kept.planned("a")
        await kept.report("a", REFUSED)
    assert await kept.queue.take() is None
    await kept.planned("a")
    clock.advance(1_000)
    await kept.report("a", DONE)
    assert kept.channels.degraded() == {}
    failed = ledger.read(lambda db: audit.query(db, action="notify.failed"))
    assert [event["detail"]["channel"] for event in failed] == ["a"] * 4


async def test_channel_is_degraded_after_an_hour_of_failures_or_when_told_to_wait_so_long(kept, clock):
    await kept.planned("a", "b")
    await kept.report("b", Outcome(outcome="retry", code="http_429", retry_after_s=86_400))
    assert kept.channels.degraded() == {"b": "http_429"}
    (waits,) = [wait for name, wait in kept.channels.due() if name == "b"]
    assert waits == 6 * 3_600, "a day is cut to what the queue waits at most"
    for _ in range(8):
        await kept.report("a", LATER)
        clock.advance(1_000)
    assert set(kept.channels.degraded()) == {"a", "b"}


async def test_degraded_channel_is_tried_with_one_item_at_a_time(kept, clock):
    items = [await kept.planned("a") for _ in range(5)]
    await kept.report("a", REFUSED)
    clock.advance(1_000)
    assert len(await kept.taken("a")) == 1
    await kept.report("a", DONE)
    assert len(await kept.taken("a")) == len(items) - 2, "and what is left goes together"


async def test_fault_of_the_message_leaves_the_channel_alone(kept):
    item, other = await kept.planned("a"), await kept.planned("a")
    await kept.report("a", Outcome(outcome="fail", code="http_400", reason="too long", blames_channel=False))
    assert await kept.status(item) == ("failed", "http_400", {"a": "failed"})
    assert await kept.taken("a") == [other]
    assert kept.channels.degraded() == {}


async def test_failed_item_is_sent_again_to_those_alone_that_had_not_got_it(kept, clock):
    item = await kept.planned("a", "b")
    await kept.report("a", DONE)
    await kept.report("b", REFUSED)
    assert (await kept.status(item))[0] == "failed"
    await kept.queue.take()  # the news
    assert await kept.queue.reopen(item)
    taken = await kept.queue.take()
    await kept.channels.plan([(taken, [Planned(channel="a"), Planned(channel="b")])])
    clock.advance(1_000)
    assert await kept.taken("a") is None
    await kept.report("b", DONE)
    assert await kept.status(item) == ("done", "", {"a": "done", "b": "done"})


async def test_what_waits_too_long_or_is_too_much_fails(ledger, clock):
    kept = Fixture(ledger, clock, total_items=3, give_up_days=1)
    items = [await kept.planned("dead") for _ in range(5)]
    await kept.channels.sweep()
    assert [(await kept.status(one))[:2] for one in items] == [("failed", "overflow")] * 2 + [("delivering", "")] * 3
    clock.advance(86_401)
    await kept.queue.sweep()
    await kept.channels.sweep()
    assert [(await kept.status(one))[1] for one in items] == ["overflow"] * 2 + ["gave_up"] * 3


async def test_sender_with_the_most_waiting_for_a_channel_pushes_out_its_own_alone(ledger, clock):
    """However urgent it says they are: what others sent before stays, and of its own the newest."""
    kept = Fixture(ledger, clock, plugin_items=10, total_items=20)
    others = [await kept.planned("dead", sender=f"acme.{name}") for name in ("backup", "backup", "sshd")]
    flood = [await kept.planned("dead", sender="acme.flood", severity="critical") for _ in range(40)]
    await kept.channels.sweep()
    assert [(await kept.status(one))[0] for one in others] == ["delivering"] * 3
    assert [(await kept.status(one))[:2] for one in flood] == [("failed", "overflow")] * 23 + [("delivering", "")] * 17


async def test_of_one_sender_what_is_critical_is_left_out_last(ledger, clock):
    kept = Fixture(ledger, clock, total_items=2)
    severities = ("critical", "info", "critical", "info")
    items = [await kept.planned("dead", severity=one) for one in severities]
    await kept.channels.sweep()
    assert [(await kept.status(one))[1] for one in items] == ["", "overflow", "", "overflow"]


def windows(kept):
    return kept.ledger.read(lambda db: db.execute("SELECT count(*) FROM delivery_windows").get)


async def test_what_a_sender_of_ever_new_events_leaves_behind_is_bounded(kept, clock):
    """Each event opens a window. The newest ones stay, and hold repeats back."""
    opened = (
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 12000)"
        " INSERT INTO delivery_windows SELECT 'a', 'acme.demo' || x, ? + x FROM n"
    )
    await kept.ledger.write(lambda tx: tx.execute(opened, (clock.wall_us(),)))
    clock.advance(1)
    repeat = Planned(channel="a", bundle="acme.demo\nlast", window_us=MINUTE_US)
    await kept.planned(repeat)
    await kept.report("a", DONE)
    await kept.channels.sweep()
    assert windows(kept) == 10_000
    await kept.planned(repeat)
    assert await kept.taken("a") is None, "its window is open"


async def test_windows_go_once_none_can_be_open_and_where_the_clock_was_set_back(kept, clock):
    old, wide = (Planned(channel="a", bundle=name, window_us=deliveries.LONGEST_HOLD_US) for name in ("old", "wide"))
    await kept.planned(old)
    clock.advance(24 * 3_600)
    await kept.planned(wide)
    clock.advance(2 * 3_600)
    await kept.channels.sweep()
    assert windows(kept) == 1
    clock.advance(-3 * 3_600)
    await kept.channels.sweep()
    assert windows(kept) == 0


async def test_critical_item_that_fails_lets_others_go_before_it(kept, clock):
    """One that the other side cannot take would keep the channel for itself, for as long as it is tried."""
    poison = await kept.planned("a", severity="critical")
    other = await kept.planned("a")
    assert [item.id for item in (await kept.report("a", LATER)).items] == [poison]
    clock.advance(6)
    assert [item.id for item in (await kept.report("a", DONE)).items] == [other]
    assert await kept.taken("a") == [poison]


async def test_what_waits_for_a_channel_that_is_gone_fails_together(kept):
    items = [await kept.planned("gone") for _ in range(50)]
    gone = Outcome(outcome="fail", code=rules.GONE, blames_channel=False)
    await kept.report("gone", gone)
    await kept.report("gone", gone)
    assert [(await kept.status(one))[:2] for one in items] == [("failed", rules.GONE)] * 50
    assert kept.channels.degraded() == {}


async def test_channel_that_was_told_of_is_told_of_again_in_its_next_time_of_trouble(kept, clock):
    """Not within the hour, but then, if it still fails."""
    await kept.planned("a")
    await kept.report("a", REFUSED)
    assert (await kept.queue.take()).event == rules.DEGRADED
    clock.advance(600)
    await kept.planned("a")
    await kept.report("a", DONE)
    told = []
    for _ in range(6):
        clock.advance(1_000)
        await kept.planned("a")
        await kept.report("a", REFUSED)
        told.append(await kept.queue.take() is not None)
    assert told == [False, False, True, False, False, False]


async def test_channel_that_took_a_test_message_is_sent_what_waits_at_once(kept):
    """Whatever pause it had asked for."""
    first, second = await kept.planned("a"), await kept.planned("a")
    await kept.report("a", Outcome(outcome="retry", code="http_429", retry_after_s=86_400))
    assert await kept.taken("a") is None
    await kept.channels.works("a")
    assert kept.channels.degraded() == {}
    sent = [item.id for _ in range(2) for item in (await kept.report("a", DONE)).items]
    assert sorted(sent) == sorted([first, second])


async def test_words_of_the_other_side_are_kept_escaped(kept):
    """They are shown in lists, in health and by other channels."""
    item = await kept.planned("a")
    said = "\x1b[31mno\r\n\u202e" + "x" * 1_000
    await kept.report("a", Outcome(outcome="fail", code="http_401", reason=said))
    (row,) = (await kept.channels.of_items([item]))[item]
    (shown,) = kept.channels.degraded().values()
    news = await kept.queue.take()
    for one in (row.reason, shown, news.title):
        assert "\\x1b[31mno\\x0d\\x0a\\u202ex" in one
        assert one.isprintable()
        assert len(one) < 400


async def test_rows_of_removed_items_are_gone(kept, ledger):
    item = await kept.planned("a")
    await kept.queue.prune(statuses=("delivering",))
    assert await kept.channels.of_items([item]) == {item: []}
    assert await kept.taken("a") is None


async def test_clock_that_is_set_back_holds_nothing_back(kept, clock):
    await kept.planned("a")
    await kept.report("a", LATER)
    clock.advance(-400 * 86_400)
    assert await kept.taken("a") is not None


# latticed's own events.


def event(action, target="acme.demo", **more):
    return Event(actor="latticed", action=action, target=target, **more)


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (event("plugin.runtime", code="exited", detail={"state": "failed"}), ("plugin.failed", "error")),
        (
            event("plugin.runtime", code="exited", detail={"state": "failed", "breaker": True}),
            ("plugin.breaker", "critical"),
        ),
        (event("plugin.runtime", detail={"state": "armed"}), None),
        (event("plugin.runtime", "latticed.notify", code="exited", detail={"state": "failed"}), None),
        (event("plugin.verdict", decision="deny", code="digest_mismatch"), ("bundle.refused", "error")),
        (event("bundle.verdict", decision="deny", code="signature_invalid"), ("bundle.refused", "warning")),
        (event("bundle.verdict", decision="allow"), None),
        (event("plugin.upgrade", decision="deny", code="exited"), ("plugin.rolled-back", "error")),
        (event("plugin.upgrade", decision="deny", code="rolled_back"), None),
        (event("plugin.upgrade", decision="allow"), None),
        (event("trust.revoked", "acme.demo@1.0.0"), ("trust.revoked", "warning")),
        (event("plan.apply", "ab" * 32, decision="allow"), ("plan.unconfirmed", "warning")),
        (event("plan.apply", "ab" * 32, decision="allow", detail={"narrows": True}), None),
        (event("plan.apply", "ab" * 32, decision="deny"), None),
        (event("plan.rollback", "ab" * 32, code="deadline"), ("plan.rolled-back", "error")),
        (event("plan.rollback", "ab" * 32, code="self_check"), ("plan.rolled-back", "error")),
        (event("plan.rollback", "ab" * 32, code="operator"), None),
        (event("audit.lost", "audit"), ("disk.lost", "critical")),
        (event("notify.failed", "a", code="http_401"), None),
    ],
)
async def test_own_events_that_people_are_told_of(kept, ledger, found, told):
    await begun(kept)
    await ledger.record(found)
    await kept.channels.follow(told=True)
    item = await kept.queue.take()
    assert (item and (item.plugin_id, item.event, item.severity)) == (told and ("latticed", *told))


async def begun(kept):
    """Have events looked at from now on; the seq of the last one of before."""
    seq = kept.ledger.read(audit.position).decisions
    await kept.ledger.write(lambda tx: deliveries.set_events_read(tx, seq))
    return seq


async def test_own_events_are_told_once_over_crashes_and_not_of_before_or_while_inactive(ledger, clock):
    await ledger.record(event("trust.revoked", "before"))
    kept = Fixture(ledger, clock)
    seen = await begun(kept)
    await ledger.record(event("trust.revoked", "told"))
    await kept.channels.follow(told=True)
    assert (await kept.queue.take()).title.startswith("told is revoked")
    # What was read is read again, as after a power cut: the same notification.
    await ledger.write(lambda tx: deliveries.set_events_read(tx, seen))
    await kept.channels.follow(told=True)
    assert await kept.queue.take() is None


async def test_own_events_are_not_told_while_the_plugin_is_not_active(kept, ledger):
    """Nor afterwards: what happened meanwhile is on record."""
    await begun(kept)
    for told in (False, True):
        following = asyncio.create_task(kept.channels.follow(told=told))
        async with asyncio.timeout(10):
            while (ledger.read(deliveries.events_read) is None) is told:  # noqa: ASYNC110 - nothing tells of a write
                await asyncio.sleep(0.001)
        await ledger.record(event("trust.revoked", f"while {told}"))
        await following
    assert (await kept.queue.take()).title.startswith("while True")
    assert await kept.queue.take() is None
