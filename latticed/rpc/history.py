"""Handler for what a plugin used and did lately."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latticed.kit.clock import rfc3339
from latticed.rpc.running import known
from latticed.supervisor.history import MINUTE_S
from latticed.supervisor.ring import QUARTER, HistoryRing

if TYPE_CHECKING:
    from latticed.rpc.api import Ask
    from latticed.rpc.responses import HistoryReport, HistorySteps
    from latticed.supervisor.ring import HistoryStep


async def history(ask: Ask) -> HistoryReport:
    """Processor time, memory, restarts and host calls of a plugin, by the minute and the quarter of an hour.

    Kept in memory alone: it begins anew with the daemon.
    """
    record = ask.api.lifecycle.records[known(ask)]
    kept = ask.api.history
    ring = kept.of(record.id) or HistoryRing()
    looked = ring.last >= 0
    until = rfc3339(kept.at_us(ring.last)) if looked else None
    return {
        "id": record.id,
        "since": rfc3339(kept.at_us(ring.first - 1)) if looked else None,
        "hour": _steps(ring.hour(), MINUTE_S, until),
        "day": _steps(ring.day(), MINUTE_S * QUARTER, until),
    }


def _steps(found: list[HistoryStep | None], step_s: int, until: str | None) -> HistorySteps:
    """Steps as the API shows them, a list for each number."""
    return {
        "step_s": step_s,
        "until": until,
        "cpu_s": [one and one.cpu_ms / 1_000 for one in found],
        "memory_bytes": [one and one.memory_kib << 10 for one in found],
        "restarts": [one and one.restarts for one in found],
        "calls": [one and one.calls for one in found],
        "denied": [one and one.denied for one in found],
    }
