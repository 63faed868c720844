"""Handler for a plugin's use of its grants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from latticed.kit.clock import rfc3339
from latticed.ledger import contacts
from latticed.model import hostcall
from latticed.model.audit import Actor
from latticed.model.lifecycle import Status
from latticed.rpc.api import QueryParams
from latticed.rpc.running import known

if TYPE_CHECKING:
    from latticed.rpc.api import Ask
    from latticed.rpc.service_responses import UsageReport

DAY_US = 86_400 * 1_000_000


class Lookback(QueryParams, frozen=True):
    """How many days to look back."""

    days: Annotated[int, Meta(ge=1, le=3_650)] = 14


async def usage(ask: Ask) -> UsageReport:
    """Host calls that a plugin made, hosts that it reached, and granted capabilities and hosts that it did not use.

    Nothing is reported as unused before the plugin was watched for as long as the query looks back.
    """
    record = ask.api.lifecycle.records[known(ask)]
    since_us = ask.api.clock.wall_us() - ask.query(Lookback).days * DAY_US
    actor = str(Actor(kind="plugin", name=record.id))
    made = await contacts.used(ask.api.ledger.read_slow, actor, since_us)
    watched = await contacts.watched_since(ask.api.ledger.read_slow, record.id)
    # A plugin that is not active makes no calls, whatever it was granted.
    enough = bool(watched) and watched <= rfc3339(since_us) and record.status is Status.ACTIVE
    reached = await ask.api.ledger.read_slow(lambda db: contacts.since(db, record.id, since_us))
    # A call that was only refused is no use of its capability.
    used = {hostcall.CAPABILITY_OF[one.call] for one in made if one.allowed and one.call in hostcall.CAPABILITY_OF}
    hosts = {host for host, _ in reached}
    return {
        "id": record.id,
        "since": rfc3339(since_us),
        "watched_since": watched or None,
        "enough": enough,
        "calls": [
            {"call": one.call, "allowed": one.allowed, "denied": one.denied, "last_at": one.last_at} for one in made
        ],
        "hosts": [{"host": host, "last_at": rfc3339(at)} for host, at in reached],
        "unused": [name for name in record.granted if name not in used and enough],
        # A pattern is never reported: which hosts it covered is not compared.
        "unused_hosts": [one for one in record.hosts if one not in hosts and "*" not in one and enough],
    }
