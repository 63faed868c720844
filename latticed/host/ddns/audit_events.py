"""Audit events of tries: of every change at a provider, and of every new failure; repetitions have none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.host.ddns.outcome import UpdateFailed
from latticed.model.audit import Actor, Event

if TYPE_CHECKING:
    from latticed.host.ddns.outcome import Published
    from latticed.host.ddns.record import KeptRecord
    from latticed.ledger.ddns import DdnsStatus


def of(one: KeptRecord, before: DdnsStatus, outcome: Published | UpdateFailed) -> Event | None:
    """The event of a try of a record with status `before`; None when there is nothing new."""
    detail: dict[str, str | int | bool] = {
        "type": one.spec.type,
        "provider": one.spec.provider,
        "address": one.wanted,
        "before": before.published,
    }
    actor = str(Actor(kind="plugin", name=one.plugin_id))
    if isinstance(outcome, UpdateFailed):
        is_new = outcome.lasting or before.state != "retrying" or before.code != outcome.code
        if not is_new:
            return None
        return Event(
            actor=actor,
            action="ddns.update",
            target=one.name,
            decision="deny" if outcome.lasting else "-",
            code=outcome.code,
            reason=outcome.reason,
            detail=detail,
        )
    if not outcome.changed:
        return None
    return Event(actor=actor, action="ddns.update", target=one.name, detail=detail)
