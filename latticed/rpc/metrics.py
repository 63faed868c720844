"""`GET /metrics`: counts in the Prometheus text format 0.0.4; ids and codes only, never a payload."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections import Counter
from typing import TYPE_CHECKING, Final

from aiohttp import web

from latticed.kit import logs
from latticed.ledger import audit as rows
from latticed.ledger import plans
from latticed.model.plan import PlanState
from latticed.rpc import counts
from latticed.rpc.status import source_ends, troubles

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from latticed.ledger.deliveries import ChannelView
    from latticed.rpc.api import Api, Ask
    from latticed.rpc.counts import PluginCounts
    from latticed.rpc.status import SourceEnd
    from latticed.runners.usage import Usage
    from latticed.supervisor.schedules import ScheduleCounts
    from latticed.system.plugin import Measure

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
DISK_S: Final = 1.0
"""How long a scrape waits for what a disk says of its room."""


async def metrics(ask: Ask) -> web.Response:
    """Counters and gauges of the daemon and of all plugins, in the Prometheus text format 0.0.4."""
    counted = await counts.count_plugins(ask.api)
    channels = await ask.api.channels.view()
    measured = _measure_lines(ask.api.supervisor.measures())
    # Paced: with ten thousand plugins there are tens of thousands of lines.
    scheduled = _schedule_lines(ask.api.schedules.counts())
    around = itertools.chain(_source_lines(source_ends(ask.api)), _disk_lines(await _state_disk(ask.api)))
    used = {one: ask.api.spawner.usage.of(one) async for one in counts.paced(ask.api.spawner.usage.plugins())}
    resources = _resource_lines(used)
    notified = _channel_lines(ask.api, channels)
    lines = itertools.chain(_lines(ask.api, counted), resources, notified, scheduled, around, measured)
    body = "".join([line async for line in counts.paced(lines)]).encode("ascii")
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})


def _lines(api: Api, counted: PluginCounts) -> Iterator[str]:
    """All lines, metric by metric: those of one metric must be together (Prometheus text format)."""
    yield from _family("latticed_healthy", "gauge", "1 when health is ok", {"": int(not troubles(api))})
    yield from _family(
        "latticed_plugins", "gauge", "plugins on record by status", _labelled("status", counted.statuses)
    )
    yield from _family(
        "latticed_plugins_available", "gauge", "plugins on record whose bundle verifies", {"": counted.available}
    )
    yield from _family(
        "latticed_candidates", "gauge", "plugins with another version on disk to upgrade to", {"": counted.candidates}
    )
    yield from _family(
        "latticed_handles",
        "gauge",
        "started plugins by state: armed, stopped, failed",
        _labelled("state", counted.states),
    )
    idle = _labelled("reason", counted.not_running)
    yield from _family("latticed_active_not_running", "gauge", "active plugins that do not run, by reason", idle)
    yield from _family(
        "latticed_restarts",
        "gauge",
        "restarts of a plugin by itself since an operator started it last",
        _labelled("plugin", counted.restarts),
    )
    yield from _family(
        "latticed_bundles_refused",
        "gauge",
        "bundles in the plugin directories that are refused, by code",
        _labelled("code", counted.refused),
    )
    calls = api.supervisor.calls()
    made, denied = {i: one.calls for i, one in calls.items()}, {i: one.denied for i, one in calls.items()}
    yield from _family(
        "latticed_host_calls_total", "counter", "host calls that a plugin made", _labelled("plugin", made)
    )
    yield from _family(
        "latticed_host_calls_denied_total",
        "counter",
        "host calls of a plugin that were denied",
        _labelled("plugin", denied),
    )
    tunnels = [(one.plugin_id, one.view()) for one in api.tunnels.every()]
    states = Counter(view["state"] for _, view in tunnels)
    yield from _family("latticed_tunnels", "gauge", "tunnels by state", _labelled("state", states))
    restarts: Counter[str] = Counter()
    for plugin_id, view in tunnels:
        restarts[plugin_id] += view["restarts"]
    yield from _family(
        "latticed_tunnel_restarts", "gauge", "restarts of cloudflared since its start", _labelled("plugin", restarts)
    )
    # States that no plan is in as well: an alert on a rise does not see one that begins with a series (PromQL, delta).
    planned = _labelled("state", {**dict.fromkeys(PlanState, 0), **api.ledger.read(plans.states)})
    yield from _family("latticed_plans", "gauge", "plans for this host by state", planned)
    kept = {"": api.supervisor.kept_artifact_bytes}
    yield from _family("latticed_kept_artifact_bytes", "gauge", "memory that holds artifacts for the next start", kept)
    upgrades = api.lifecycle.upgrades
    gating = sum(one.state == "gating" for one in upgrades.shown.values())
    yield from _family("latticed_upgrades_gating", "gauge", "upgrades that are being watched", {"": gating})
    ended = _labelled("result", upgrades.results)
    yield from _family("latticed_upgrades_total", "counter", "upgrades that were watched, by result", ended)
    for name, value in sorted(api.catalog.counters.items()):
        yield from _family(f"latticed_catalog_{name}_total", "counter", f"catalog: {name}", {"": value})
    yield from _family(
        "latticed_records_unsaved",
        "gauge",
        "changes that wait to be recorded, as the disk does not take them",
        {"": api.lifecycle.write_behind.refused},
    )
    yield from _family("latticed_audit_unsaved", "gauge", "events that wait to be recorded", {"": api.ledger.refused})
    seen = api.ledger.read(rows.position)
    yield from _family(
        "latticed_audit_events_total", "counter", "events of the decisions' audit chain, ever", {"": seen.decisions}
    )
    yield from _family(
        "latticed_audit_calls_total", "counter", "events of the host calls' audit chain, ever", {"": seen.calls}
    )
    yield from _family(
        "latticed_backup_last_success_seconds",
        "gauge",
        "when a backup was last read to its end, 0 for never",
        {"": api.backups.last_s},
    )
    yield from _family(
        "latticed_log_dropped_total",
        "counter",
        "log entries that were dropped, as nobody read the log fast enough",
        {"": logs.dropped()},
    )
    yield from _family(
        "latticed_start_time_seconds", "gauge", "when the daemon started", {"": api.started_at // 1_000_000}
    )
    yield from _family(
        "process_resident_memory_bytes",
        "gauge",
        "resident memory of the daemon, without its children",
        {"": _resident_bytes()},
    )
    # The descriptor that lists the directory is counted, too.
    yield from _family(
        "process_open_fds", "gauge", "open descriptors of the daemon", {"": len(os.listdir("/proc/self/fd"))}
    )


async def _state_disk(api: Api) -> os.statvfs_result | None:
    """The file system of the state directory (statvfs(3)); None when it cannot be asked, or does not answer."""
    # RuntimeError: no thread could be started for it.
    with contextlib.suppress(OSError, RuntimeError):
        async with asyncio.timeout(DISK_S):
            return await asyncio.to_thread(os.statvfs, api.settings.state_dir)
    return None


def _disk_lines(found: os.statvfs_result | None) -> Iterator[str]:
    """The lines about the disk of the state directory; without samples while it does not answer."""
    # Without what is reserved for root, unlike f_bfree.
    free = {} if found is None else {"": found.f_bavail * found.f_frsize}
    size = {} if found is None else {"": found.f_blocks * found.f_frsize}
    yield from _family("latticed_state_free_bytes", "gauge", "room on the disk of the state directory", free)
    yield from _family("latticed_state_size_bytes", "gauge", "size of that disk", size)


def _source_lines(found: Iterable[SourceEnd]) -> Iterator[str]:
    """The lines about sources of the market."""
    ends = {f'{{source="{one.source}",document="{one.document}"}}': one.ends_s for one in found}
    text = "when a document of a source ends, and nothing new is installed from it"
    yield from _family("latticed_source_ends_seconds", "gauge", text, ends)


def _resource_lines(used: Mapping[str, Usage]) -> Iterator[str]:
    """The lines about what plugins' processes use."""
    cpu = {one: round(usage.cpu_s, 6) for one, usage in used.items()}
    yield from _family(
        "latticed_plugin_cpu_seconds_total",
        "counter",
        "processor time of its processes since the daemon started",
        _labelled("plugin", cpu),
    )
    memory = {one: usage.memory_bytes for one, usage in used.items()}
    yield from _family("latticed_plugin_memory_bytes", "gauge", "memory of its processes", _labelled("plugin", memory))
    tasks = {one: usage.tasks for one, usage in used.items()}
    yield from _family("latticed_plugin_tasks", "gauge", "its processes and threads", _labelled("plugin", tasks))
    waited = {
        f'{{plugin="{one}",resource="{resource}"}}': percent
        for one, usage in used.items()
        for resource, percent in usage.pressure.items()
    }
    text = "percent of the last 10 s in which some of its processes waited"
    yield from _family("latticed_plugin_pressure_percent", "gauge", text, waited)


def _channel_lines(api: Api, channels: list[ChannelView]) -> Iterator[str]:
    """The lines about channels of notifications."""
    now_us = api.clock.wall_us()
    ages = {one.channel.name: max(now_us - one.oldest_at, 0) // 1_000_000 if one.waiting else 0 for one in channels}
    for name, text, values in (
        ("waiting", "notifications that wait for a channel", {one.channel.name: one.waiting for one in channels}),
        ("oldest_seconds", "age of the oldest that waits", ages),
        (
            "last_success_seconds",
            "when a channel last took one",
            {one.channel.name: one.channel.last_success // 1_000_000 for one in channels},
        ),
        ("degraded", "1 when a channel is degraded", {one.channel.name: int(one.channel.degraded) for one in channels}),
    ):
        yield from _family(f"latticed_notify_{name}", "gauge", text, _labelled("channel", values))


def _schedule_lines(found: list[ScheduleCounts]) -> Iterator[str]:
    """The lines about schedules of plugins that run."""
    for name, kind, text in (
        ("runs_total", "counter", "runs of a schedule since it was accepted"),
        ("failures_total", "counter", "runs that failed"),
        ("last_run_seconds", "gauge", "when its last run began, 0 for none"),
        ("next_run_seconds", "gauge", "when its next run begins, 0 for never"),
    ):
        values = {f'{{plugin="{one.plugin_id}",schedule="{one.name}"}}': _of_schedule(one, name) for one in found}
        yield from _family(f"latticed_schedule_{name}", kind, text, dict(sorted(values.items())))


def _of_schedule(one: ScheduleCounts, name: str) -> int:
    """The value of a metric of `_schedule_lines`."""
    match name:
        case "runs_total":
            return one.runs
        case "failures_total":
            return one.failures
        case "last_run_seconds":
            return one.last_at // 1_000_000
        case _:
            return one.next_at // 1_000_000


def _measure_lines(measures: list[Measure]) -> Iterator[str]:
    """The lines of built-in plugins' own metrics."""
    for one in measures:
        values = {
            "{" + ",".join(f'{label}="{value}"' for label, value in zip(one.labels, key, strict=True)) + "}": count
            for key, count in sorted(one.values.items())
        }
        yield from _family(f"latticed_{one.name}", one.kind, one.text, values)


def _family(name: str, kind: str, text: str, values: Mapping[str, float]) -> Iterator[str]:
    """The lines of one metric: HELP, TYPE, and a sample for each text of labels (empty: without labels)."""
    yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
    for labels, value in values.items():
        yield f"{name}{labels} {value}\n"


def _labelled(label: str, values: Mapping[str, float]) -> dict[str, float]:
    """`{label="key"}` to value for each key. Keys are ids, codes and states, which need no escaping."""
    return {f'{{{label}="{value}"}}': count for value, count in sorted(values.items())}


def _resident_bytes() -> int:
    """The daemon's resident memory in bytes."""
    with open("/proc/self/statm", encoding="ascii") as statm:
        # The second field: resident pages (proc_pid_statm(5)).
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
