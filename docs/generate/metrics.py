"""docs/reference/metrics.md: what /metrics answers, as the code that writes it says with one value of each."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from types import SimpleNamespace
from typing import Any, Final, NamedTuple
from unittest import mock

from generate.markdown import Page, anchored, code, or_dash, sentence, slug
from latticed import system
from latticed.fleet import controller_view
from latticed.fleet.controller import measures
from latticed.rpc import counts, metrics, status
from latticed.runners.usage import Usage
from latticed.supervisor.schedules import ScheduleCounts
from latticed.system.plugin import SystemPlugin

FLEET: Final = "The controller of a fleet"
UNITS: Final = (("_seconds_total", "seconds"), ("_seconds", "seconds"), ("_bytes_total", "bytes"), ("_bytes", "bytes"))
SINCE_1970: Final = (
    "_last_run_seconds",
    "_next_run_seconds",
    "_last_success_seconds",
    "_start_time_seconds",
    "_handshake_seconds",
    "_ends_seconds",
)
_CATALOG: Final = {
    "events": "changes that the kernel reported below the plugin directories",
    "judged": "bundles that were verified",
    "overflows": "times that the kernel reported more changes than it could queue; a scan follows",
    "scans": "scans of the plugin directories",
    "watcher_restarts": "restarts of the watcher of the plugin directories",
}


class Metric(NamedTuple):
    """One metric. `group`: what of latticed it is about."""

    name: str
    kind: str
    text: str
    labels: tuple[str, ...]
    group: str

    @property
    def unit(self) -> str:
        """Its unit, by the end of its name."""
        if self.name.endswith(SINCE_1970):
            return "seconds since 1970"
        if self.name.endswith("_percent"):
            return "%"
        return next((unit for end, unit in UNITS if self.name.endswith(end)), "count")


class _Named(dict[str, float]):
    """Samples that know their label, also where there are none."""

    label: str = ""


def _labelled(label: str, _: Any) -> _Named:
    found = _Named()
    found.label = label
    return found


def known() -> list[Metric]:
    """All metrics, in the order in which they are answered."""
    found: list[Metric] = []

    def record(name: str, kind: str, text: str, values: Any) -> list[str]:
        sample = next(iter(values), "")
        labels = [one.partition("=")[0] for one in sample.strip("{}").split(",") if one] or [
            getattr(values, "label", "")
        ]
        found.append(Metric(name, kind, text, tuple(filter(None, labels)), group))
        return []

    api = mock.MagicMock()
    api.catalog.counters = Counter(dict.fromkeys(_CATALOG, 0))
    with mock.patch.object(metrics, "_family", record), mock.patch.object(metrics, "_labelled", _labelled):
        group = "The daemon"
        list(metrics._lines(api, counts.PluginCounts()))
        group = "What plugins use"
        list(metrics._resource_lines({"acme.demo": Usage(cpu_s=0.0, pressure={"cpu": 0.0})}))
        group = "Channels of notifications"
        list(metrics._channel_lines(api, []))
        group = "Schedules"
        run = ScheduleCounts(plugin_id="acme.demo", name="disk", runs=0, failures=0, last_at=0, next_at=0)
        list(metrics._schedule_lines([run]))
        group = "Sources of the market"
        end = status.SourceEnd(source="shop", document="index", ends_s=0, code="", detail="")
        list(metrics._source_lines([end]))
        group = "The disk of the state"
        list(metrics._disk_lines(None))
    with mock.patch.object(measures, "_family", record), mock.patch.object(measures, "views", _fleet_views()):
        group = FLEET
        one = mock.MagicMock()
        list(measures._lines(one, one, alarms=[one], rollouts={"running": 0}, heard={"status": 0}, now_s=0))
    for name, plugin in _measured():
        found += [Metric(f"latticed_{one.name}", one.kind, one.text, one.labels, f"Plugin {name}") for one in plugin]
    return found


def _fleet_views() -> Any:
    """What the controller's measures are made of: no node, and a certificate that holds."""
    nodes = controller_view.NodeCounts()
    certificate = controller_view.CertificateView(state="valid", key="")
    return SimpleNamespace(counts=lambda _: nodes, certificate=lambda _: certificate)


def _measured() -> list[tuple[str, Any]]:
    """(name, measures) of the built-in plugins that have some."""
    found = []
    for one in pkgutil.iter_modules(system.__path__):
        if not one.ispkg:
            continue
        module = importlib.import_module(f"latticed.system.{one.name}.plugin")
        for kind in vars(module).values():
            own = isinstance(kind, type) and issubclass(kind, SystemPlugin) and kind.__module__ == module.__name__
            if own and kind.measures is not SystemPlugin.measures:
                # Made at each look where they are many, else asked of the plugin.
                make = getattr(module, "_measures", None)
                asked: Any = mock.MagicMock(_usage=SimpleNamespace(used={}), _devices={})
                found.append((one.name, make(None, {}) if make is not None else kind.measures(asked)))
    return found


def page() -> str:
    """The page."""
    found = Page(
        "Metrics",
        "`GET /metrics` on the control socket answers in the Prometheus text format 0.0.4, with the scope `read`:",
    )
    found.block(
        "text",
        "curl --unix-socket /run/latticed/control.sock http://localhost/metrics\n\n# HELP latticed_healthy 1 when"
        " health is"
        ' ok\n# TYPE latticed_healthy gauge\nlatticed_healthy 1\nlatticed_plugins{status="active"} 12',
    )
    found.text(
        "Values are ids, codes and states, never a payload. A counter begins anew when the daemon starts, unless it"
        " says otherwise."
    )
    metrics_by: dict[str, list[Metric]] = {}
    for one in known():
        metrics_by.setdefault(one.group, []).append(one)
    for group, those in metrics_by.items():
        found.heading(group)
        if group == FLEET:
            found.text(
                "On the socket of `latticed-controller`, with `read` in its `[access]`; numbers, and names of no node:"
            )
            found.block("text", "curl --unix-socket /run/latticed-controller/control.sock http://localhost/metrics")
        found.table(
            ("metric", "type", "unit", "labels", "meaning"),
            [
                (
                    anchored(slug("metric", one.name), code(one.name)),
                    one.kind,
                    one.unit,
                    or_dash(", ".join(code(label) for label in one.labels)),
                    sentence(one.text if not one.name.startswith("latticed_catalog_") else _CATALOG[one.name[17:-6]]),
                )
                for one in those
            ],
        )
    return str(found)
