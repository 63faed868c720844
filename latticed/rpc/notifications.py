"""Handlers for queued notifications and their channels: list, retry, prune, test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, Literal, cast

from msgspec import Meta

from latticed.kit.clock import rfc3339
from latticed.model.audit import Event
from latticed.model.errors import Problem
from latticed.rpc.api import Body, QueryParams
from latticed.rpc.plugins import Nothing
from latticed.rpc.running import known

if TYPE_CHECKING:
    from latticed.ledger.deliveries import ChannelView, DeliveryRow
    from latticed.ledger.notifications import Item
    from latticed.rpc.api import Ask
    from latticed.rpc.service_responses import (
        ChannelTested,
        Notification,
        NotificationChannel,
        NotificationDelivery,
        NotificationPage,
        NotificationReopened,
        NotificationsPruned,
    )

TEST_S: Final = 20.0
"""Seconds that a test message may take: as long as a host call of the plugin, and some."""

Status = Literal["queued", "delivering", "done", "failed"]


class Shelf(QueryParams, frozen=True):
    """Selects at most `limit` notifications by status and plugin, newest first; `after`: the previous page's `next`.

    `before`: the name of `after` until 0.1, still accepted for one version.
    """

    status: Status | None = None
    plugin: str | None = None
    after: Annotated[int, Meta(ge=0, le=2**53)] = 0
    before: Annotated[int, Meta(ge=0, le=2**53)] = 0
    limit: Annotated[int, Meta(ge=1, le=500)] = 100


class Prune(Body, frozen=True):
    """Which to remove; queued ones only when named."""

    statuses: tuple[Literal["queued", "done", "failed"], ...] = ("done", "failed")
    plugin: str | None = None


class Test(Body, frozen=True):
    """The name of a channel."""

    channel: str


async def listing(ask: Ask) -> NotificationPage:
    """Notifications by status and plugin, newest first, without their bodies."""
    wanted = ask.query(Shelf)
    statuses = (wanted.status,) if wanted.status else ()
    found = await ask.api.notifications.page(
        statuses=statuses,
        plugin_id=wanted.plugin,
        before_seq=wanted.after or wanted.before,
        # One more than is shown, which tells whether another page follows.
        limit=wanted.limit + 1,
    )
    # Those of a plugin that is gone from the records are still shown.
    if wanted.plugin is not None and not found:
        known(ask, wanted.plugin, forgotten=True)
    counts = await ask.api.notifications.counts()
    page = found[: wanted.limit]
    channels = await ask.api.channels.of_items([item.id for item in page])
    return {
        "notifications": [_row(item, channels[item.id]) for item in page],
        "channels": [_channel(one) for one in await ask.api.channels.view()],
        "next": page[-1].seq if len(found) > len(page) else None,
        "counts": {str(status): count for status, count in counts.items()},
    }


async def reopen(ask: Ask) -> NotificationReopened:
    """Queue a failed notification again, with its attempts at 0."""
    await ask.body(Nothing)
    item_id = ask.part("item")
    told = Event(actor=str(ask.actor), action="notify.retry", target=item_id, decision="allow")
    async with ask.recorded(told):
        if not await ask.api.notifications.reopen(item_id):
            raise Problem("not_found", f"there is no failed notification {item_id[:80]!r}", "latticectl notify list")
    return {"id": item_id, "queued": True}


async def test(ask: Ask) -> ChannelTested:
    """Send a test message to a channel, and say what the other side answered."""
    body = await ask.body(Test)
    told = Event(actor=str(ask.actor), action="notify.test", target=body.channel[:64], decision="allow")
    ask.may_take(TEST_S)
    async with ask.recorded(told):
        return cast("ChannelTested", await ask.api.test_channel(body.channel))


async def prune(ask: Ask) -> NotificationsPruned:
    """Remove notifications that are done or failed, or, when named, those that are queued."""
    body = await ask.body(Prune)
    detail: dict[str, str | int | bool] = {"statuses": ",".join(body.statuses), "plugin": body.plugin or ""}
    told = Event(actor=str(ask.actor), action="notify.prune", target="notifications", decision="allow", detail=detail)
    async with ask.recorded(told):
        removed = await ask.api.notifications.prune(statuses=body.statuses, plugin_id=body.plugin)
        if body.plugin is not None and not removed:
            known(ask, body.plugin, forgotten=True)
        return {"removed": removed}


def _channel(one: ChannelView) -> NotificationChannel:
    """One channel as the API's JSON."""
    channel = one.channel
    failing = "failing" if channel.failures else "ok"
    return {
        "name": channel.name,
        "state": "degraded" if channel.degraded else failing,
        "code": channel.code,
        "reason": channel.reason,
        "waiting": one.waiting,
        "oldest_at": _time(one.oldest_at),
        "failing_since": _time(channel.failing_since),
        "paused_until": _time(channel.paused_until),
        "last_success_at": _time(channel.last_success),
    }


def _delivery(row: DeliveryRow) -> NotificationDelivery:
    """How an item fares at one channel, as the API's JSON."""
    return {
        "channel": row.channel,
        "state": row.state,
        "attempts": row.attempts,
        "next_at": rfc3339(row.next_at) if row.state == "waiting" else None,
        "code": row.code,
        "reason": row.reason,
    }


def _time(at: int) -> str | None:
    """A time as the API has it; null for 0."""
    return rfc3339(at) if at else None


def _row(item: Item, channels: list[DeliveryRow]) -> Notification:
    """One notification as the API's JSON, without its body."""
    return {
        "seq": item.seq,
        "id": item.id,
        "plugin": item.plugin_id,
        "severity": item.severity,
        "event": item.event,
        "title": item.title,
        "status": item.status,
        "attempts": item.attempts,
        "next_at": rfc3339(item.next_at) if item.status == "queued" else None,
        "code": item.code,
        "reason": item.reason,
        "channels": [_delivery(one) for one in channels],
        "created_at": rfc3339(item.created_at),
        "updated_at": rfc3339(item.updated_at),
    }
