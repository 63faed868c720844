"""Rows for `top`, from the list of plugins and the daemon's metrics, and what keys do to the view of them. Pure."""

from __future__ import annotations

import math
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from latticed.ctl import times
from latticed.model.runtime import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from latticed import wire

# Names of the daemon's metrics (`rpc.metrics`).
CALLS: Final = "latticed_host_calls_total"
DENIED: Final = "latticed_host_calls_denied_total"
CPU: Final = "latticed_plugin_cpu_seconds_total"
MEMORY: Final = "latticed_plugin_memory_bytes"
STARTED: Final = "latticed_start_time_seconds"
_SAMPLE: Final = re.compile(r'([a-z_]+)(?:\{plugin="([^"]*)"\})? ([0-9.eE+-]+)')
"""A sample without a label or with this one, as `rpc.metrics` writes it:
`latticed_host_calls_total{plugin="acme.demo"} 42`.
"""


class Sample(NamedTuple):
    """What was counted by plugin id since the daemon started: host calls, denials, seconds of processor time; and the
    memory of now. `at_s`: monotonic seconds when it was read; `started_s`: when the daemon started, since the epoch.
    """

    calls: Mapping[str, int]
    denied: Mapping[str, int]
    at_s: float
    cpu_s: Mapping[str, float] = {}
    memory: Mapping[str, int] = {}
    started_s: int = 0


class ActivityRow(NamedTuple):
    """One plugin's row. None is what is not known: `uptime_s` of one that is not armed, memory and processor time of
    one that has no process, rates in the first sample. `cpu_percent` is of one core.
    """

    id: str
    status: str
    runtime: str
    health: str
    cpu_percent: float | None
    memory_bytes: int | None
    restarts: int
    uptime_s: float | None
    calls_per_s: float | None
    denied_per_s: float | None
    calls: int
    denied: int


SORTS: Final[Mapping[str, Callable[[ActivityRow], float]]] = {
    "cpu": lambda row: -(row.cpu_percent or 0),
    "memory": lambda row: -(row.memory_bytes or 0),
    "restarts": lambda row: -row.restarts,
    "calls": lambda row: -(row.calls_per_s or 0),
    "denied": lambda row: -(row.denied_per_s or 0),
    "uptime": lambda row: math.inf if row.uptime_s is None else row.uptime_s,
    "id": lambda _: 0,
}
"""What rows can be sorted by: the most of it first, the shortest uptime, or the id alone."""

KEYS: Final = {"c": "cpu", "m": "memory", "r": "restarts", "h": "calls", "d": "denied", "u": "uptime", "i": "id"}
"""The key that sorts by each."""


class View(NamedTuple):
    """What a user wants to see. `typing`: the filter is being typed."""

    sort: str = "cpu"
    only: str = ""
    typing: bool = False


def pressed(view: View, keys: str) -> View | None:
    """The view after these keys; None to quit. An arrow or other special key comes as several and is passed over."""
    if keys.startswith("\x1b") and len(keys) > 1:
        return view
    for key in keys:
        # Ctrl-D comes as a character, since without line mode it is no end of file (termios(3)).
        if key in "\x03\x04" or (key in "qQ" and not view.typing):
            return None
        view = _typed(view, key) if view.typing else _chosen(view, key)
    return view


def _chosen(view: View, key: str) -> View:
    """The view after a key that is no part of the filter."""
    if key == "/":
        return view._replace(only="", typing=True)
    if key == "\x1b":
        return view._replace(only="")
    return view._replace(sort=KEYS.get(key.lower(), view.sort))


def _typed(view: View, key: str) -> View:
    """The view after a key within the filter: Enter keeps it, Esc drops it."""
    if key in "\r\n":
        return view._replace(typing=False)
    if key == "\x1b":
        return view._replace(only="", typing=False)
    if key in "\x7f\b":
        return view._replace(only=view.only[:-1])
    return view._replace(only=(view.only + key)[:128]) if key.isprintable() else view


def read(metrics: str, at_s: float) -> Sample:
    """Parse what is needed out of Prometheus text; other metrics, and values that are no numbers, are ignored."""
    found: dict[str, dict[str, float]] = {CALLS: {}, DENIED: {}, CPU: {}, MEMORY: {}, STARTED: {}}
    for line in metrics.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match is not None and match[1] in found and (value := _number(match[3])) is not None:
            found[match[1]][match[2] or ""] = value
    return Sample(
        calls=_whole(found[CALLS]),
        denied=_whole(found[DENIED]),
        at_s=at_s,
        cpu_s=found[CPU],
        memory=_whole(found[MEMORY]),
        started_s=int(found[STARTED].get("", 0)),
    )


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _whole(values: Mapping[str, float]) -> dict[str, int]:
    return {one: int(value) for one, value in values.items()}


def rows(views: Iterable[wire.PluginView], now: Sample, before: Sample | None, *, now_s: float) -> list[ActivityRow]:
    """A row for each plugin but built-ins that nobody has installed; `now_s` is seconds since the epoch."""
    # Counters of another daemon than before begin at 0.
    since = before if before is not None and before.started_s == now.started_s else None
    return [_row(view, now, since, now_s) for view in views if not (view.builtin and view.status == "verified")]


def seen(found: Iterable[ActivityRow], view: View) -> list[ActivityRow]:
    """The rows that a view has, in its order: then active ones first, then by id."""
    wanted = view.only.lower()
    order = SORTS[view.sort]
    kept = [row for row in found if wanted in row.id.lower()]
    return sorted(kept, key=lambda row: (order(row), view.sort != "id" and row.status != "active", row.id))


def _row(view: wire.PluginView, now: Sample, before: Sample | None, now_s: float) -> ActivityRow:
    """One plugin's row from its view and two samples; `before` is None for the first sample."""
    runtime = view.runtime
    cpu_s = _rate(view.id, now, before, lambda sample: sample.cpu_s) if view.id in now.cpu_s else None
    return ActivityRow(
        id=view.id,
        status=view.status,
        runtime=shown(runtime.state, runtime.message),
        health=runtime.health,
        cpu_percent=None if cpu_s is None else 100 * cpu_s,
        memory_bytes=now.memory.get(view.id),
        restarts=runtime.restart_count or 0,
        uptime_s=_uptime(runtime.started_at, now_s) if runtime.state == "armed" else None,
        calls_per_s=_rate(view.id, now, before, lambda sample: sample.calls),
        denied_per_s=_rate(view.id, now, before, lambda sample: sample.denied),
        calls=now.calls.get(view.id, 0),
        denied=now.denied.get(view.id, 0),
    )


def _rate(
    plugin_id: str, now: Sample, before: Sample | None, counted: Callable[[Sample], Mapping[str, float]]
) -> float | None:
    """How much more a second was counted between two samples; None for the first one."""
    # Two readings at the same time have no rate.
    if before is None or now.at_s <= before.at_s:
        return None
    more = counted(now).get(plugin_id, 0) - counted(before).get(plugin_id, 0)
    return max(0, more) / (now.at_s - before.at_s)  # a plugin that was forgotten meanwhile begins at 0 again


def _uptime(started_at: Any, now_s: float) -> float | None:
    """Seconds since `started_at` (RFC 3339), at least 0; None when that is no time."""
    try:
        return max(0.0, now_s - datetime.fromisoformat(str(started_at)).timestamp())
    # Not raised: without a valid time only the column stays empty.
    except (ValueError, OverflowError):
        return None


class Shown(NamedTuple):
    """A column: its title, its text for a row, and what it can be sorted by."""

    title: str
    text: Callable[[ActivityRow], str | None]
    sort: str = ""


def _fixed(value: float | None, unit: str = "") -> str | None:
    return None if value is None else f"{value:.1f}{unit}"


COLUMNS: Final = (
    Shown("ID", lambda row: row.id, "id"),
    Shown("STATUS", lambda row: row.status),
    Shown("RUNTIME", lambda row: row.runtime),
    Shown("HEALTH", lambda row: row.health),
    Shown("CPU%", lambda row: _fixed(row.cpu_percent), "cpu"),
    Shown("MEMORY", lambda row: _fixed(row.memory_bytes and row.memory_bytes / (1 << 20), "M"), "memory"),
    Shown("RESTARTS", lambda row: str(row.restarts), "restarts"),
    Shown("UPTIME", lambda row: None if row.uptime_s is None else times.duration(row.uptime_s), "uptime"),
    Shown("CALLS/S", lambda row: _fixed(row.calls_per_s), "calls"),
    Shown("DENIED/S", lambda row: _fixed(row.denied_per_s), "denied"),
    Shown("CALLS", lambda row: str(row.calls)),
    Shown("DENIED", lambda row: str(row.denied)),
)
_NEEDED: Final = ("ID", "CPU%", "MEMORY", "CALLS/S", "DENIED/S", "HEALTH", "RESTARTS", "RUNTIME", "STATUS", "UPTIME")
"""Columns in the order in which a narrow terminal gets them; then the others."""
LEAST_ID: Final = 12
"""Characters of an id that a column is not shown for the price of."""


def fitting(found: Sequence[ActivityRow], sort: str, width: int | None) -> list[Shown]:
    """The columns that have room in `width` (None: any), that of the order always among them."""
    if width is None:
        return list(COLUMNS)
    order = [*_NEEDED, *(one.title for one in COLUMNS if one.title not in _NEEDED)]
    ranked = sorted(COLUMNS, key=lambda one: (one.title != "ID", one.sort != sort, order.index(one.title)))
    kept: set[str] = set()
    left = width
    for one in ranked:
        most = max((len(one.text(row) or "-") for row in found), default=0)
        room = max(len(one.title), min(most, LEAST_ID) if one.title == "ID" else most) + (2 if kept else 0)
        if room > left and len(kept) >= 2:
            break
        kept.add(one.title)
        left -= room
    return [one for one in COLUMNS if one.title in kept]
