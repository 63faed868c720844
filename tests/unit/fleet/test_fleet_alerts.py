"""The fleet's alert rules and dashboard, by Prometheus's own promtool. What a controller shows: test_fleet_page."""

from __future__ import annotations

import json
import subprocess

from tests.house import pages, prometheus
from tests.house.prometheus import FLEET_DASHBOARD, FLEET_RULES, Case

WELL = {
    'up{job="latticed-fleet",instance="a"}': "1x400",
    'up{job="latticed-fleet",instance="b"}': "1x400",
    'latticed_fleet_leader{instance="a"}': "1x400",
    'latticed_fleet_leader{instance="b"}': "0x400",
    'latticed_fleet_engine_connected{instance="a"}': "1x400",
    'latticed_fleet_certificate_seconds{instance="a"}': "2000000x400",
    'latticed_fleet_nodes{instance="a",state="settled"}': "95x400",
    'latticed_fleet_nodes{instance="a",state="pending"}': "3x400",
    'latticed_fleet_nodes{instance="a",state="away"}': "2x400",
    'latticed_fleet_nodes{instance="a",state="unwell"}': "0x400",
    'latticed_fleet_nodes{instance="a",state="refused"}': "0x400",
    'latticed_fleet_rollouts{instance="a",state="running"}': "1x400",
    'latticed_fleet_rollouts{instance="a",state="halted"}': "0x400",
    'latticed_fleet_rollouts{instance="a",state="returning"}': "0x400",
    'latticed_fleet_store_writable{instance="a"}': "1x400",
}
"""What two controllers show of a fleet that is well: one waits, some nodes are away, a rollout is under way."""


def nodes(state: str) -> str:
    return f'latticed_fleet_nodes{{instance="a",state="{state}"}}'


CASES = [
    Case(
        alert="FleetControllerDown",
        series={'up{job="latticed-fleet",instance="a"}': "1x5 0x60"},
        quiet="9m",
        fires="13m",
    ),
    Case(
        alert="FleetControllerDown",
        series={},
        absent=('up{job="latticed-fleet",instance="a"}', 'up{job="latticed-fleet",instance="b"}'),
        quiet="4m",
        fires="7m",
    ),
    Case(alert="FleetNobodyActs", series={'latticed_fleet_leader{instance="a"}': "1x5 0x60"}, quiet="9m", fires="13m"),
    Case(
        alert="FleetMessagesAway",
        series={'latticed_fleet_engine_connected{instance="a"}': "1x5 0x60"},
        quiet="9m",
        fires="13m",
    ),
    Case(
        alert="FleetCertificateEnds",
        series={'latticed_fleet_certificate_seconds{instance="a"}': "700000-3600x190"},
        quiet="25h",
        fires="40h",
        step="1h",
    ),
    Case(alert="FleetNodesUnwell", series={nodes("unwell"): "0x5 2x60"}, quiet="14m", fires="18m"),
    Case(alert="FleetNodesRefuse", series={nodes("refused"): "0x5 1x60"}, quiet="14m", fires="18m"),
    Case(alert="FleetNodesAway", series={nodes("away"): "2x5 20x60"}, quiet="14m", fires="18m"),
    Case(
        alert="FleetRolloutHalted",
        series={'latticed_fleet_rollouts{instance="a",state="halted"}': "0x5 1x60"},
        quiet="19m",
        fires="22m",
    ),
    Case(
        alert="FleetRolloutReturned",
        series={'latticed_fleet_rollouts{instance="a",state="returning"}': "0x20 1x60"},
        quiet="19m",
        fires="23m",
    ),
    Case(
        alert="FleetAlarm",
        series={'latticed_fleet_alarms{instance="a",code="operator_unknown"}': "0x5 1x60"},
        quiet="5m",
        fires="8m",
    ),
    Case(
        alert="FleetStoreFull",
        series={'latticed_fleet_store_writable{instance="a"}': "1x5 0x60"},
        quiet="6m",
        fires="9m",
    ),
]


def test_promtool_takes_the_rules():
    command = [prometheus.promtool(), "check", "rules", "--lint-fatal", FLEET_RULES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_each_alert_fires_for_what_it_is_for_and_no_other_does(tmp_path):
    """And none for a fleet that is well."""
    assert {case.alert for case in CASES} == set(prometheus.alerts(FLEET_RULES))
    done = prometheus.tested(CASES, WELL, tmp_path, rules=FLEET_RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_names_each_alert():
    assert pages.column("docs/operate/fleet.md", "alert") == prometheus.alerts(FLEET_RULES)


def test_the_dashboard_has_a_query_in_each_panel_and_no_two_in_one_place():
    panels = json.loads(FLEET_DASHBOARD.read_text())["panels"]
    assert len({one["id"] for one in panels}) == len(panels)
    assert all(one["targets"] and one["title"] and one["description"] for one in panels)
    taken = [
        (place["x"] + column, place["y"] + line)
        for one in panels
        if (place := one["gridPos"])
        for column in range(place["w"])
        for line in range(place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(column for column, _ in taken) == 23
