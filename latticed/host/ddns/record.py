"""One record while it is kept up to date: what is known of it, and what is going on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latticed.kit import clock

if TYPE_CHECKING:
    import asyncio

    from latticed.host.ddns.source import Seen
    from latticed.host.ddns.spec import DdnsSpec
    from latticed.kit.wheel import Ticket
    from latticed.ledger.ddns import DdnsRow, DdnsStatus


@dataclass(slots=True, kw_only=True, eq=False)
class KeptRecord:
    """`wanted` is the address that is to be published, nothing while there is none; `try_at` when the next try is due.

    `busy` from the moment a try is due to the moment its outcome is kept; `gone` once it is deleted or replaced.
    """

    key: int
    plugin_id: str
    spec: DdnsSpec
    standing: DdnsStatus
    wanted: str = ""
    seen: Seen | None = None
    try_at: int | None = None
    ticket: Ticket | None = None
    task: asyncio.Task[None] | None = None
    busy: bool = False
    gone: bool = False

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def slow(self) -> bool:
        """Whether a try may take long, as far as is known."""
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
    return KeptRecord(key=row.key, plugin_id=row.plugin_id, spec=spec, standing=row.standing, wanted=spec.address)


def _time(wall_us: int) -> str | None:
    return clock.rfc3339(wall_us) if wall_us else None
