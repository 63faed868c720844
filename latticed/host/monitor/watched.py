"""One monitor as it is kept in memory, and the JSON of it and of its results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from latticed.host.monitor.rules import MonitorStatus, State
from latticed.host.scheduled import ScheduledItem
from latticed.kit import clock

if TYPE_CHECKING:
    from latticed.host.monitor.spec import MonitorSpec
    from latticed.ledger.monitors import MonitorRow, Result


@dataclass(slots=True, kw_only=True, eq=False)
class WatchedTarget(ScheduledItem):
    """One monitor. `status`, `since` (start of the state, wall clock in µs) and `last` (newest result, None before the
    first) are those of its rows; `skipped`: checks not made as the one before still waited or ran, since the daemon
    started. `checked_s`: when the last check of this name began (monotonic clock), minus infinity before the first.
    """

    spec: MonitorSpec
    status: MonitorStatus
    since: int
    last: Result | None
    skipped: int = 0
    checked_s: float = float("-inf")

    @property
    def slow(self) -> bool:
        """Whether its next check may take its whole timeout: it was never checked, or timed out last time."""
        return self.last is None or self.last.code == "timeout"

    def view(self, *, whole: bool) -> dict[str, Any]:
        """One monitor as `monitor.list` shows it, as JSON. Without `whole` (callers other than the owner) the target
        has no query, and `body` is empty.
        """
        spec = self.spec
        return {
            "name": self.name,
            "owner": self.plugin_id,
            "kind": spec.kind,
            "target": spec.target if whole else spec.shown,
            "interval_s": spec.interval_s,
            "timeout_s": spec.timeout_s,
            "failures": spec.failures,
            "statuses": list(spec.statuses),
            # What is expected in a body may be private, as may the query.
            "body": spec.body if whole else "",
            "certificate_days": spec.certificate_days,
            "shared": spec.shared,
            "state": self.status.state,
            "since": clock.rfc3339(self.since),
            "skipped": self.skipped,
            "last": None if self.last is None else result_view(self.last),
        }


def of_row(row: MonitorRow, spec: MonitorSpec, last: Result | None) -> WatchedTarget:
    """A monitor from its row; `spec` is that of the row, decoded, `last` its newest result."""
    return WatchedTarget(
        key=row.key,
        plugin_id=row.plugin_id,
        name=row.name,
        spec=spec,
        status=MonitorStatus(state=cast("State", row.state), against=row.against),
        since=row.since,
        last=last,
    )


def result_view(result: Result) -> dict[str, Any]:
    """A result as `monitor.results` shows it, as JSON: times in RFC 3339, `status` and `certificate_expires_at` null
    where there are none.
    """
    return {
        "number": result.number,
        "at": clock.rfc3339(result.at),
        "outcome": result.outcome,
        "code": result.code,
        "reason": result.reason,
        "took_ms": result.took_us // 1_000,
        "status": result.http_status or None,
        "certificate_expires_at": clock.rfc3339(result.expires_at) if result.expires_at else None,
    }
