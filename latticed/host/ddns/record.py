"""One DNS record as it is kept in memory, its JSON, and the audit events of tries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latticed.host.ddns.outcome import UpdateFailed
from latticed.host.scheduled import ScheduledItem
from latticed.kit import clock
from latticed.model.audit import Actor, Event

if TYPE_CHECKING:
    from latticed.host.ddns.outcome import Published
    from latticed.host.ddns.source import Seen
    from latticed.host.ddns.spec import DdnsSpec
    from latticed.ledger.ddns import DdnsRow, DdnsStatus


@dataclass(slots=True, kw_only=True, eq=False)
class KeptRecord(ScheduledItem):
    """One DNS record. `status` is that of its row; `wanted`: the address to publish, empty while there is none; `seen`:
    what its interface has, and since when; `try_at`: when the next try is due, wall clock in µs, None when none is.
    """

    spec: DdnsSpec
    status: DdnsStatus
    wanted: str = ""
    seen: Seen | None = None
    try_at: int | None = None

    @property
    def slow(self) -> bool:
        """Whether its next try may take long, as the last one failed."""
        return self.status.failures > 0

    def view(self) -> dict[str, Any]:
        """One record as `ddns.status` shows it, as JSON: times in RFC 3339, null where there is none. `last_error`
        stays after a success.
        """
        spec, status = self.spec, self.status
        error = None
        if status.failed_at:
            error = {"code": status.code, "message": status.reason, "at": clock.rfc3339(status.failed_at)}
        return {
            "name": spec.name,
            "type": spec.type,
            "provider": spec.provider,
            "zone": spec.zone or None,
            "server": spec.server or None,
            "ttl": spec.ttl,
            "interface": spec.interface or None,
            # A denial is shown even without an address: it lasts until the plugin or the operator does something.
            "state": status.state if self.wanted or status.state == "denied" else "no_address",
            "address": self.wanted or None,
            "published": status.published or None,
            "failures": status.failures,
            "last_success": _time(status.succeeded_at),
            "last_change": _time(status.changed_at),
            "last_error": error,
            "next_try": _time(self.try_at or 0),
        }


def of_row(row: DdnsRow, spec: DdnsSpec) -> KeptRecord:
    """A record from its row; `spec` is the row's spec, decoded."""
    return KeptRecord(
        key=row.key, plugin_id=row.plugin_id, name=spec.name, spec=spec, status=row.standing, wanted=spec.address
    )


def audit_event(one: KeptRecord, before: DdnsStatus, outcome: Published | UpdateFailed) -> Event | None:
    """The event `ddns.update` of a try that changed the address, or failed in a new way, else None.

    `before`: the status before the try. A retry that fails with the same code gives none: retries go on for as long as
    the provider is down. Denials always do, as they are not retried.
    """
    detail: dict[str, str | int | bool] = {
        "type": one.spec.type,
        "provider": one.spec.provider,
        "address": one.wanted,
        "before": before.published,
    }
    actor = str(Actor(kind="plugin", name=one.plugin_id))
    if isinstance(outcome, UpdateFailed):
        # A retry that fails with the same code is no news.
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


def _time(wall_us: int) -> str | None:
    """RFC 3339, or None for 0 (never)."""
    return clock.rfc3339(wall_us) if wall_us else None
