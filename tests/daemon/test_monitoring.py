"""The alert rules and the dashboard, against a running daemon's /metrics and by Prometheus's own promtool."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess

import pytest

from latticed.model.plan import PlanState
from tests.daemon import test_schedules
from tests.house import hosting, nginxes, pages, ports, processes, prometheus
from tests.house.prometheus import Case

WELL = {
    'up{job="latticed",instance="a"}': "1x400",
    "latticed_healthy": "1x400",
    "latticed_start_time_seconds": "1x400",
    'latticed_host_calls_denied_total{plugin="acme.demo"}': "3x400",
    "latticed_state_free_bytes": "900000000x400",
    "latticed_state_size_bytes": "20000000000x400",
    "latticed_records_unsaved": "0x400",
    "latticed_audit_unsaved": "0x400",
    "latticed_log_dropped_total": "7x400",
    "latticed_candidates": "0x400",
    'latticed_plans{state="applied"}': "2x400",
    'latticed_notify_oldest_seconds{channel="ops"}': "10x400",
    'latticed_notify_degraded{channel="ops"}': "0x400",
    'latticed_schedule_failures_total{plugin="acme.demo",schedule="night"}': "1x400",
    'latticed_bundles_refused{code="host_incompatible"}': "1x400",
    'latticed_source_ends_seconds{source="shop",document="index"}': "2000000x400",
    'latticed_nginx_certificate_ends_seconds{site="shop"}': "2000000x400",
    "latticed_backup_last_success_seconds": "2000000x400",
}
"""What a daemon shows that is well: little room on a disk is no matter while there is enough, nor are old failures."""
CASES = [
    Case(alert="LatticedDown", series={'up{job="latticed",instance="a"}': "1x5 0x60"}, quiet="7m", fires="10m"),
    Case(alert="LatticedDown", series={}, absent=('up{job="latticed",instance="a"}',), quiet="2m", fires="4m"),
    Case(alert="LatticedUnhealthy", series={"latticed_healthy": "1x5 0x60"}, quiet="9m", fires="12m"),
    Case(
        alert="LatticedRestarting",
        series={"latticed_start_time_seconds": "1x10 100x10 200x10 300x10 400x10"},
        quiet="35m",
        fires="50m",
    ),
    Case(
        alert="LatticedBreakerOpen",
        series={'latticed_active_not_running{reason="breaker_open"}': "0x5 1x60"},
        quiet="4m",
        fires="8m",
    ),
    Case(
        alert="LatticedPluginsNotRunning",
        series={'latticed_active_not_running{reason="exited"}': "0x5 2x60"},
        quiet="14m",
        fires="18m",
    ),
    Case(
        alert="LatticedDenials",
        series={'latticed_host_calls_denied_total{plugin="acme.demo"}': "3x20 3+30x60"},
        quiet="22m",
        fires="45m",
    ),
    Case(
        alert="LatticedBundlesRefused",
        series={'latticed_bundles_refused{code="digest_mismatch"}': "0x5 1x60"},
        quiet="8m",
        fires="12m",
    ),
    Case(
        alert="LatticedDiskFull",
        series={"latticed_state_free_bytes": "300000000x5 200000000x60"},
        quiet="9m",
        fires="12m",
    ),
    Case(alert="LatticedNotRecorded", series={"latticed_records_unsaved": "0x5 3x60"}, quiet="6m", fires="9m"),
    Case(alert="LatticedNotRecorded", series={"latticed_audit_unsaved": "0x5 3x60"}, quiet="6m", fires="9m"),
    Case(alert="LatticedLogDropped", series={"latticed_log_dropped_total": "7x20 90x60"}, quiet="19m", fires="25m"),
    Case(
        alert="LatticedCandidateWaits", series={"latticed_candidates": "0x5 1x300"}, quiet="6d", fires="8d", step="1h"
    ),
    Case(
        alert="LatticedPlanWaits",
        series={'latticed_plans{state="planned"}': "0x5 1x60"},
        quiet="26h",
        fires="32h",
        step="1h",
    ),
    Case(
        alert="LatticedPlanFailed",
        series={'latticed_plans{state="rolled_back"}': "0x20 1x60"},
        quiet="19m",
        fires="23m",
    ),
    Case(
        alert="LatticedSourceEnds",
        series={'latticed_source_ends_seconds{source="shop",document="index"}': "300000x400"},
        quiet="2h",
        fires="14h",
        step="10m",
    ),
    Case(
        alert="LatticedCertificateEnds",
        series={'latticed_nginx_certificate_ends_seconds{site="shop"}': "700000x400"},
        quiet="20h",
        fires="60h",
        step="1h",
    ),
    Case(
        alert="LatticedBackupOld",
        series={"latticed_backup_last_success_seconds": "0x400"},
        quiet="8d",
        fires="10d",
        step="1h",
    ),
    Case(
        alert="LatticedNotificationsLate",
        series={'latticed_notify_oldest_seconds{channel="ops"}': "10x5 4000x60"},
        quiet="19m",
        fires="22m",
    ),
    Case(
        alert="LatticedNotificationsLate",
        series={'latticed_notify_degraded{channel="ops"}': "0x5 1x60"},
        quiet="19m",
        fires="22m",
    ),
    Case(
        alert="LatticedScheduleFails",
        series={'latticed_schedule_failures_total{plugin="acme.demo",schedule="night"}': "1x30 2x30 3x30 4x90"},
        quiet="55m",
        fires="100m",
    ),
]
PROMETHEUS_OWN = {"job", "instance"}
"""Labels that a scrape adds."""
ELSEWHERE = {
    "latticed_plans": {"state"},  # tests/daemon/test_plans.py
    "latticed_source_ends_seconds": {"document", "source"},  # tests/daemon/test_market.py
    "latticed_notify_oldest_seconds": {"channel"},  # tests/daemon/test_notification_fanout_faults.py
    "latticed_notify_degraded": {"channel"},
    "latticed_notify_waiting": {"channel"},
}
"""Labels of metrics that have no sample in the daemon here; what shows them."""
OF_PLUGINS = {"latticed_nginx_certificate_ends_seconds": {"site"}}  # tests/net/test_nginx_plugin.py
"""The same of plugins that do not run in the daemon here."""
PAGE = pages.CHECKOUT / "docs/operate/monitoring.md"
FALLS = b"#!/bin/sh\nexit 3\n"
DENIED = b"""#!/usr/bin/env python3
from latticed.sdk import HostError, Plugin


class Denied(Plugin):
    def do_reach(self, payload):
        try:
            self.kv.put("a", "b")
        except HostError as failure:
            return failure.code


Denied().run()
"""


def _listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def host():
    """The metrics of a daemon with plugins that fail and are denied, schedules, and a bundle that is refused."""
    with hosting.hosting() as host:
        daemon = host.daemon
        host.up(
            test_schedules.ID, test_schedules.SOURCE, capabilities=test_schedules.KV, schedules=[test_schedules.FAIL]
        )
        host.up("acme.denied", DENIED, capabilities=["kv:read"])
        assert host.result("acme.denied", "reach") == "capability_denied"
        host.activated("acme.falls", FALLS)
        host.drop("acme.changed", FALLS, digest_sha256="0" * 64)
        daemon.until(lambda: daemon.get("/api/plugins/rejected").json(), "the refusal")
        daemon.until(lambda: host.runtime("acme.falls")["state"] == "failed", "the failure")
        yield host


@pytest.mark.daemon
def test_rules_and_dashboard_name_what_a_daemon_shows(host):
    """Every metric, and every label of it."""
    shown = prometheus.exposed(host.daemon.get("/metrics").body.decode())
    for expression in prometheus.expressions():
        labels = set()
        for name, selected in prometheus.used(expression).items():
            assert name in shown or name in OF_PLUGINS, f"{name} in {expression}"
            known = shown.get(name) or {**ELSEWHERE, **OF_PLUGINS}.get(name, set())
            assert selected - PROMETHEUS_OWN <= known, f"labels of {name} in {expression}"
            labels |= known
        assert prometheus.grouped(expression) - PROMETHEUS_OWN <= labels, expression


@pytest.mark.daemon
def test_states_of_plans_are_shown_before_any_plan_is_in_them(host):
    """Else the first plan that failed raised no alert: what a series begins with is no rise."""
    shown = host.daemon.get("/metrics").body.decode()
    assert {state for state in PlanState if f'latticed_plans{{state="{state}"}} 0\n' in shown} == {*PlanState}


@pytest.mark.daemon
def test_nginx_of_the_page_serves_the_metrics_and_nothing_else_of_the_api(host, tmp_path):
    port = ports.free()
    (block,) = [one.text for one in pages.blocks(PAGE) if one.text.startswith("server {")]
    assert "127.0.0.1:9464" in block
    server = block.replace("9464", str(port)).replace("/run/latticed/control.sock", str(host.daemon.place.socket))
    main = tmp_path / "nginx.conf"
    # Its workers as root, who may read all: what www-data is told is a matter of [access].
    main.write_text(f"user root; daemon off; pid {tmp_path}/pid; events {{}}\nhttp {{ access_log off; {server} }}\n")
    with processes.spawned([nginxes.NGINX, "-e", "stderr", "-p", tmp_path, "-c", main]):
        processes.until(lambda: _listens(port), what="nginx to listen")

        def asked(method, path):
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read().decode()
            connection.close()
            return answer.status, body

        status, body = asked("GET", "/metrics")
        assert (status, "latticed_healthy 1\n" in body) == (200, True)
        for method, path in (("GET", "/api/plugins"), ("GET", "/metrics/../api/plugins"), ("POST", "/api/trust/lift")):
            assert asked(method, path)[0] == 404, path
        assert asked("POST", "/metrics")[0] == 403


def test_labels_that_alerts_write_are_left_by_their_queries():
    text = prometheus.RULES.read_text()
    for rule in text.split("- alert: ")[1:]:
        query = re.search(r"^ +expr: (.+)$", rule, re.MULTILINE)[1]
        for label in set(re.findall(r"\$labels\.(\w+)", rule)):
            known = prometheus.grouped(query) or {
                one
                for name in prometheus.used(query)
                for one in {**ELSEWHERE, **OF_PLUGINS}.get(name, {"plugin", "schedule", "reason"})
            }
            assert label in known, rule


def test_promtool_takes_the_rules():
    done = subprocess.run(
        [prometheus.promtool(), "check", "rules", "--lint-fatal", prometheus.RULES],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_each_alert_fires_for_what_it_is_for_and_no_other_does(tmp_path):
    """And none for a daemon that is well."""
    assert {case.alert for case in CASES} == set(prometheus.alerts())
    done = prometheus.tested(CASES, WELL, tmp_path, rules=prometheus.RULES)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_has_a_query_in_each_panel_and_ids_of_its_own():
    board = json.loads(prometheus.DASHBOARD.read_text())
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    assert all(panel["targets"] and panel["title"] for panel in panels)
    assert board["templating"]["list"][0]["type"] == "datasource"
    # Side by side, without overlaps: the grid has 24 columns.
    taken = [
        (place["x"] + column, place["y"] + line)
        for panel in board["panels"]
        if (place := panel["gridPos"])
        for column in range(place["w"])
        for line in range(place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(column for column, _ in taken) == 23


def test_page_names_each_alert():
    assert pages.column("docs/operate/monitoring.md", "alert") == prometheus.alerts()
