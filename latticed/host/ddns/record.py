"""One record while it is kept up to date: what is known of it, and what is going on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latticed.host.scheduled import ScheduledItem
from latticed.kit import clock

if TYPE_CHECKING:
    from latticed.host.ddns.source import Seen
    from latticed.host.ddns.spec import DdnsSpec
    from latticed.ledger.ddns import DdnsRow, DdnsStatus


@dataclass(slots=True, kw_only=True, eq=False)
class KeptRecord(ScheduledItem):
    """One DNS record. `wanted`: the address to publish, empty while there is none; `try_at`: when the next try is due,
    wall clock in µs, None when none is.
    """

    spec: DdnsSpec
    standing: DdnsStatus
    wanted: str = ""
    seen: Seen | None = None
    try_at: int | None = None

    @property
    def slow(self) -> bool:
        return self.standing.failures > 0

    def view(self) -> dict[str, Any]:
        """As `ddns.status` shows it."""
        spec, standing = self.spec, self.standing
        error = None
        if standing.failed_at:
            error = {"code": standing.code, "message": standing.reason, "at": clock.rfc3339(standing.failed_at)}
        return {
            "name": spec.name,
            "type": spec.type,
            "provider": spec.provider,
            "zone": spec.zone or None,
            "server": spec.server or None,
            "ttl": spec.ttl,
            "interface": spec.interface or None,
            "state": standing.state if self.wanted or standing.state == "denied" else "no_address",
            "address": self.wanted or None,
            "published": standing.published or None,
            "failures": standing.failures,
            "last_success": _time(standing.succeeded_at),
            "last_change": _time(standing.changed_at),
            "last_error": error,
            "next_try": _time(self.try_at or 0),
        }


def of_row(row: DdnsRow, spec: DdnsSpec) -> KeptRecord:
    return KeptRecord(
        key=row.key, plugin_id=row.plugin_id, name=spec.name, spec=spec, standing=row.standing, wanted=spec.address
    )


def _time(wall_us: int) -> str | None:
    return clock.rfc3339(wall_us) if wall_us else None
