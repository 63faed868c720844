"""Prometheus's own checker, promtool, and cases of alerts for it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.house import pages

RULES = pages.CHECKOUT / "packaging/prometheus/latticed.rules.yml"
DASHBOARD = pages.CHECKOUT / "packaging/grafana/latticed.json"
FLEET_RULES = pages.CHECKOUT / "packaging/prometheus/latticed-fleet.rules.yml"
FLEET_DASHBOARD = pages.CHECKOUT / "packaging/grafana/latticed-fleet.json"
_SAMPLE = re.compile(r"^([a-z_:0-9]+)(?:\{(.*)\})? \S+$", re.MULTILINE)
_USE = re.compile(r"\b((?:latticed|process)_[a-z_]+)(?:\{([^}]*)\})?")
_LABEL = re.compile(r'(\w+)(?:=~|!~|!=|=)"')


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """`series` in the notation of promtool, one value each `step`; `alert` fires at `fires`, and at `quiet` nothing."""

    alert: str
    series: dict[str, str]
    quiet: str
    fires: str
    step: str = "1m"
    absent: tuple[str, ...] = field(default=())
    """Series of a daemon that is well, left out."""


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed here")
    return found


def tested(
    cases: list[Case], well: dict[str, str], directory: Path, *, rules: Path
) -> subprocess.CompletedProcess[str]:
    """`promtool test rules` of all cases, each besides what a daemon that is `well` shows."""
    files = []
    # A file for each step, at which rules are evaluated, too: those that take days would else take minutes.
    for step in dict.fromkeys(case.step for case in cases):
        tests = [_plain(case, well) for case in cases if case.step == step]
        files.append(directory / f"{step}.yml")
        # JSON is YAML.
        files[-1].write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": step, "tests": tests}))
    return subprocess.run([promtool(), "test", "rules", *files], capture_output=True, text=True, check=False)


def _plain(case: Case, well: dict[str, str]) -> dict[str, Any]:
    series = {name: values for name, values in well.items() if name not in case.absent} | case.series
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    return {
        "interval": case.step,
        "name": case.alert,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {"expr": firing, "eval_time": case.quiet, "exp_samples": []},
            {
                "expr": firing,
                "eval_time": case.fires,
                "exp_samples": [{"labels": f'{{alertname="{case.alert}"}}', "value": 1}],
            },
        ],
    }


def alerts(rules: Path = RULES) -> list[str]:
    return re.findall(r"^ +- alert: (\w+)$", rules.read_text(), re.MULTILINE)


def expressions(rules: Path = RULES, dashboard: Path = DASHBOARD) -> list[str]:
    """All queries of the rules and of the dashboard."""
    found = re.findall(r"^ +expr: (.+)$", rules.read_text(), re.MULTILINE)
    panels = json.loads(dashboard.read_text())["panels"]
    return found + [target["expr"] for panel in panels for target in panel.get("targets", [])]


def used(expression: str) -> dict[str, set[str]]:
    """The metrics of latticed that a query names, with the labels it selects them by."""
    found: dict[str, set[str]] = {}
    for name, selected in _USE.findall(expression):
        found.setdefault(name, set()).update(_LABEL.findall(selected))
    return found


def grouped(expression: str) -> set[str]:
    """Labels by which a query groups."""
    groups = re.findall(r"\bby \(([^)]*)\)", expression)
    return {label.strip() for group in groups for label in group.split(",")}


def exposed(text: str) -> dict[str, set[str]]:
    """The metrics of an answer of /metrics, those without a sample too, with the labels of their samples."""
    found: dict[str, set[str]] = {name: set() for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)}
    for name, labels in _SAMPLE.findall(text):
        found[name].update(_LABEL.findall(labels))
    return found
