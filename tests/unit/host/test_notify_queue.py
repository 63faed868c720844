"""notify.send and its queue: an accepted message is on disk, delivered at least once, and fails only after days."""

from __future__ import annotations

import asyncio
import json

import msgspec
import pytest

from latticed.host.call import Caller, HostError
from latticed.host.notify.calls import NotifyCalls, NotifySend, body_text, checked
from latticed.host.notify.keeper import DAY_S, LEASE_S, NotificationQueue
from latticed.ledger import audit, open_ledger
from latticed.ledger.notifications import NotificationRow
from latticed.model.errors import Problem
from latticed.settings import shapes
from tests.house import processes
from tests.house.clocks import ManualClock

ACME = Caller(plugin_id="acme.demo")


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
async def ledger(tmp_path, clock):
    async with open_ledger(tmp_path / "state", clock=clock) as opened:
        yield opened


@pytest.fixture
async def queue(ledger, clock):
    async with made(ledger, clock) as opened:
        yield opened


def made(ledger, clock, *, may=lambda _: True, **settings):
    return NotificationQueue(ledger, clock=clock, settings=shapes.NotifySettings(**settings), may=may, roll=lambda: 0.5)


async def send(queue, title="disk full", **params):
    (call,) = NotifyCalls(queue).calls()
    assert call.method == "notify.send"
    return await call.answer(ACME, msgspec.convert({"title": title, **params}, NotifySend, strict=True))


async def test_notification_is_queued_and_delivered_once(queue):
    """The caller gets the id, the deliverer the item with that id and its plugin; done items are not due again."""
    answer = await send(queue, body="/var: 99 %", severity="critical", event="disk.full")
    assert answer == {"ok": True, "id": answer["id"], "duplicate": False}
    item = await queue.next()
    assert (item.id, item.plugin_id, item.title, item.body) == (answer["id"], "acme.demo", "disk full", "/var: 99 %")
    assert (item.severity, item.event, item.status, item.attempts) == ("critical", "disk.full", "delivering", 1)
    assert await queue.done(item.id)
    assert not await queue.done(item.id)
    assert await queue.take() is None
    assert await queue.counts() == {"queued": 0, "delivering": 0, "done": 1, "failed": 0}


async def test_notification_of_plugin_that_may_not_act_waits(ledger, clock):
    """It is not due, does not block other plugins, and is delivered once its plugin may act again."""
    may = set()
    async with made(ledger, clock, may=may.__contains__) as queue:
        held = await send(queue)
        assert await queue.take() is None
        assert queue._pause_s() > 1, "a deliverer does not look for it again and again"
        other = await queue.accept("acme.other", NotificationRow(title="mine"))
        may.add("acme.other")
        assert (await queue.next()).id == other.id
        may.add(ACME.plugin_id)
        assert (await queue.next()).id == held["id"]


async def test_notification_with_same_dedupe_key_is_queued_once(queue):
    """A plugin can then safely repeat a call whose answer it did not get."""
    first = await send(queue, dedupe="run-7")
    again = await send(queue, dedupe="run-7")
    assert again == {"ok": True, "id": first["id"], "duplicate": True}
    assert (await queue.counts())["queued"] == 1


@pytest.mark.parametrize(
    "params",
    [
        {"title": " \t"},
        {"event": ""},
        {"event": "Disk full"},
        {"event": "x" * 65},
        {"event": "a\n"},
        {"dedupe": "d" * 129},
        {"dedupe": "a\nb"},
    ],
)
async def test_notification_with_bad_values_is_bad_params(queue, params):
    """The error says what was expected; nothing is queued."""
    with pytest.raises(HostError, match=r"bad_params: .*expected"):
        await send(queue, **params)
    assert sum((await queue.counts()).values()) == 0


@pytest.mark.parametrize("params", [{"severity": "fatal"}, {"title": None}, {"channel": "telegram"}, {"body": 1}])
def test_notification_with_wrong_types_or_unknown_fields_is_refused(params):
    """Severities are a closed set; a sender cannot choose a channel."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"title": "t", **params}, NotifySend, strict=True)


def test_notification_text_is_escaped_and_cut():
    """Line ends in a body become line feeds, other invisible characters are escaped; `{{}}` is not expanded."""
    message = checked(NotifySend(title=" a\nb\x1b[31m\u202e ", body="{{title}}\r\nb\rc\x00\ud800" + "x" * 9_000))
    assert message.title == "a\\x0ab\\x1b[31m\\u202e"
    assert message.body.startswith("{{title}}\nb\nc\\x00\\ud800xxx")
    assert (len(message.body), message.body[-1]) == (8_192, "…")
    assert len(checked(NotifySend(title="ü" * 500)).title) == 200
    assert body_text("a\n\nb") == "a\n\nb"


async def test_full_notification_queue_is_quota_exceeded(ledger, clock):
    """The error has the limit; delivering an item makes room."""
    async with made(ledger, clock, plugin_items=2) as queue:
        await send(queue)
        await send(queue)
        with pytest.raises(HostError, match=r"quota_exceeded: expected at most 2 notifications of acme\.demo waiting"):
            await send(queue)
        await queue.done((await queue.take()).id)
        await send(queue)


async def test_notification_with_closed_ledger_is_service_unavailable(tmp_path, clock):
    """What cannot be written to disk is not accepted."""
    async with open_ledger(tmp_path / "other", clock=clock) as ledger:
        queue = made(ledger, clock)
    with pytest.raises(HostError, match="service_unavailable"):
        await send(queue)


async def test_retry_backoff_is_lengthened_by_retry_after(queue, clock):
    """5 s, 10 s, 20 s ... up to 15 min; Retry-After can only lengthen a pause, up to 6 h."""
    await send(queue)
    waits = []
    for retry_after_s in (None, None, None, 100.0, None, *[None] * 6, 10**9):
        item = await queue.take()
        assert await queue.retry(item, code="http_503", reason="busy\n", retry_after_s=retry_after_s) == "queued"
        (kept,) = await queue.page()
        waits.append((kept.next_at - clock.wall_us()) // 1_000_000)
        assert (kept.code, kept.reason) == ("http_503", "busy\\x0a")
        clock.advance(waits[-1] - 1)
        assert await queue.take() is None
        clock.advance(1)
    assert waits == [5, 10, 20, 100, 80, 160, 320, 640, 900, 900, 900, 21_600]
    assert (await queue.take()).attempts == 13


async def test_undelivered_notification_fails_after_days_of_uptime(queue, ledger, clock):
    """One audit event per plugin; age is counted in uptime, so setting the wall clock ahead expires nothing."""
    await send(queue)
    await send(queue, body="kept")
    clock.advance(60)
    await queue.sweep()
    assert (await queue.counts())["queued"] == 2
    await forward(queue, clock, days=3)
    assert await queue.counts() == {"queued": 0, "delivering": 0, "done": 0, "failed": 2}
    (event,) = ledger.read(lambda db: audit.query(db, action="notify.failed"))
    assert (event["target"], event["code"], event["detail"]["count"]) == ("acme.demo", "gave_up", 2)
    (kept, _) = await queue.page(statuses=["failed"])
    assert await queue.reopen(kept.id)
    assert not await queue.reopen(kept.id)
    assert (await queue.next()).body == "kept"


async def test_wall_clock_jump_expires_and_delays_no_notification(ledger):
    """It jumps decades ahead or back: queued items are still due within the longest backoff."""

    class Jumping(ManualClock):
        offset_us = 0

        def wall_us(self):
            return self.now_us + self.offset_us

    clock = Jumping()
    async with made(ledger, clock) as queue:
        for years in (30, -30, 0):
            clock.offset_us = years * 365 * DAY_S * 1_000_000
            await queue.sweep()
            await send(queue, dedupe=str(years))
        assert (await queue.counts())["queued"] == 3
        for years in (0, 30, -30):
            clock.offset_us = years * 365 * DAY_S * 1_000_000
            clock.advance(6 * 3_600 + 1)
            item = await queue.take()
            assert item is not None
            await queue.retry(item, code="busy")
        assert (await queue.counts())["queued"] == 3


async def test_attempt_that_fails_after_the_age_limit_is_the_last(queue, ledger, clock):
    """The item fails with the last reason, and an audit event."""
    accepted = await send(queue)
    item = await queue.take()
    await forward(queue, clock, days=3, keep_out=item)
    assert await queue.retry(item, code="http_500", reason="broken") == "failed"
    (failed,) = await queue.page(statuses=["failed"])
    assert (failed.id, failed.code, failed.reason) == (accepted["id"], "http_500", "broken")
    (event,) = ledger.read(lambda db: audit.query(db, action="notify.failed"))
    assert (event["target"], event["code"], event["reason"]) == (accepted["id"], "http_500", "broken")
    assert "disk full" not in json.dumps(event)


async def test_permanently_refused_delivery_is_not_retried(queue, clock):
    await send(queue)
    item = await queue.take()
    assert await queue.fail(item, code="http_400", reason="no such channel")
    assert not await queue.fail(item, code="http_400")
    clock.advance(DAY_S)
    assert await queue.take() is None


async def test_notification_is_queued_again_when_its_lease_ends(queue, ledger, clock):
    """So is one whose `take` was cancelled after the row was marked as delivering."""
    await send(queue)
    item = await queue.take()
    clock.advance(LEASE_S - 1)
    await queue.sweep()
    assert await queue.take() is None
    clock.advance(1)
    await queue.sweep()
    again = await queue.take()
    assert (again.id, again.attempts, again.code) == (item.id, 2, "lost")
    assert await queue.done(item.id)

    await send(queue)
    taking = asyncio.create_task(queue.take())
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.wait([taking])
    await ledger.write(lambda _: None)  # the cancelled write is ahead of this one: it is done now
    await queue.sweep()  # its lease begins here
    clock.advance(LEASE_S)
    await queue.sweep()
    assert (await queue.take()) is not None


async def test_restart_queues_notifications_in_delivery_again(ledger, clock):
    """They keep their id; the attempt counts."""
    async with made(ledger, clock) as queue:
        await send(queue)
        item = await queue.take()
    async with made(ledger, clock) as queue:
        again = await queue.next()
        assert (again.id, again.attempts) == (item.id, item.attempts + 1)


async def test_accepted_notification_wakes_waiting_deliverer(queue):
    waiting = asyncio.create_task(queue.next())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    accepted = await send(queue)
    async with asyncio.timeout(processes.PATIENCE_S):
        assert (await waiting).id == accepted["id"]


async def test_ended_notifications_are_kept_until_retention_or_prune(queue, clock):
    for number in range(3):
        await send(queue, title=str(number))
        await queue.done((await queue.take()).id)
        clock.advance(DAY_S)
    clock.advance(5 * DAY_S)
    await queue.sweep()
    assert [item.title for item in await queue.page(statuses=["done"])] == ["2", "1"]
    assert await queue.prune(before_us=clock.wall_us() - 6 * DAY_S * 1_000_000) == 1
    await send(queue, title="waiting")
    assert await queue.prune() == 1
    assert [item.title for item in await queue.page()] == ["waiting"]


async def test_rolled_back_transaction_queues_no_notification(queue, ledger):
    """`accept_in` is a part of the caller's transaction."""

    def change(tx):
        queue.accept_in(tx, "acme.demo", NotificationRow(title="t"))
        raise Problem("not_found", "the rest failed")

    with pytest.raises(Problem):
        await ledger.write(change)
    assert await queue.take() is None


async def forward(queue, clock, *, days, keep_out=None):
    """Let days pass in steps of an hour, each with a sweep; `keep_out` is taken again whenever its lease ends."""
    for _ in range(days * 24):
        clock.advance(3_600)
        await queue.sweep()
        if keep_out is not None:
            assert (await queue.take()).id == keep_out.id
