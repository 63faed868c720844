"""Rows for `top`, from the list of plugins and the daemon's metrics. Pure."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.model.runtime import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from latticed import wire

# Names of the daemon's metrics (`rpc.metrics`).
CALLS: Final = "latticed_host_calls_total"
DENIED: Final = "latticed_host_calls_denied_total"
_SAMPLE: Final = re.compile(r'([a-z_]+)\{plugin="([^"]*)"\} ([0-9.eE+-]+)')
"""A sample with one label, as `rpc.metrics` writes it: `latticed_host_calls_total{plugin="acme.demo"} 42`."""


class Sample(NamedTuple):
    """Host calls and denials by plugin id since the daemon started; `at_s`: monotonic seconds when they were read."""

    calls: Mapping[str, int]
    denied: Mapping[str, int]
    at_s: float


class ActivityRow(NamedTuple):
    """One plugin's row; `uptime_s` and `calls_per_s` are None where not known, as in the first sample."""

    id: str
    status: str
    runtime: str
    health: str
    restarts: int
    uptime_s: float | None
    calls_per_s: float | None
    calls: int
    denied: int


def read(metrics: str, at_s: float) -> Sample:
    """Parse the per-plugin counters out of Prometheus text; other metrics are ignored."""
    found: dict[str, dict[str, int]] = {CALLS: {}, DENIED: {}}
    for line in metrics.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match is not None and match[1] in found:
            found[match[1]][match[2]] = int(float(match[3]))
    return Sample(calls=found[CALLS], denied=found[DENIED], at_s=at_s)


def rows(views: Iterable[wire.PluginView], now: Sample, before: Sample | None, *, now_s: float) -> list[ActivityRow]:
    """The rows, sorted by call rate, then active ones first, then by id; `now_s` is seconds since the epoch."""
    found = [_row(view, now, before, now_s) for view in views]
    return sorted(found, key=lambda row: (-(row.calls_per_s or 0), row.status != "active", row.id))


def _row(view: wire.PluginView, now: Sample, before: Sample | None, now_s: float) -> ActivityRow:
    """One plugin's row from its view and two samples; `before` is None for the first sample, `now_s` seconds since the
    epoch.
    """
    runtime = view.runtime
    return ActivityRow(
        id=view.id,
        status=view.status,
        runtime=shown(runtime.state, runtime.message),
        health=runtime.health,
        restarts=runtime.restart_count or 0,
        uptime_s=_uptime(runtime.started_at, now_s) if runtime.state == "armed" else None,
        calls_per_s=_rate(view.id, now, before),
        calls=now.calls.get(view.id, 0),
        denied=now.denied.get(view.id, 0),
    )


def _rate(plugin_id: str, now: Sample, before: Sample | None) -> float | None:
    """Calls per second between two samples; None for the first one."""
    # Two readings at the same time have no rate.
    if before is None or now.at_s <= before.at_s:
        return None
    more = now.calls.get(plugin_id, 0) - before.calls.get(plugin_id, 0)
    return max(0, more) / (now.at_s - before.at_s)  # negative after a restart of the daemon


def _uptime(started_at: Any, now_s: float) -> float | None:
    """Seconds since `started_at` (RFC 3339), at least 0; None when that is no time."""
    try:
        return max(0.0, now_s - datetime.fromisoformat(str(started_at)).timestamp())
    # Not raised: without a valid time only the column stays empty.
    except (ValueError, OverflowError):
        return None
