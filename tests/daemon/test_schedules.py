"""A plugin with schedules on a real daemon: run, shown, counted, masked after an upgrade, stopped with the plugin."""

from __future__ import annotations

import re

import pytest

from tests.house import hosting

pytestmark = pytest.mark.daemon

ID = "acme.clock"
SOURCE = b"""#!/usr/bin/env python3
from latticed.sdk import Plugin


class Clock(Plugin):
    def do_tick(self, payload):
        self.kv.put("ticks", str(int(self.kv.get("ticks") or "0") + payload["by"]))

    def do_fail(self, payload):
        raise ValueError("no disk")

    def do_ticks(self, payload):
        return self.kv.get("ticks")


Clock().run()
"""
TICK = {"name": "tick", "every_s": 10, "action": "tick", "payload": {"by": 5}}
FAIL = {"name": "fail", "every_s": 3600, "action": "fail"}
NIGHTLY = {"name": "night", "cron": "30 3 * * 1-5", "action": "tick", "payload": {"by": 1}}
KV = ["kv:read", "kv:write"]


@pytest.fixture(scope="module")
def host():
    with hosting.hosting() as host:
        yield host


def schedules(host):
    """The report's schedules by name."""
    report = host.daemon.get(f"/api/plugins/by-id/{ID}").json()
    return {one["name"]: one for one in report["schedules"]}


def until_ran(host, name):
    """The schedule once a run of it has ended."""
    return host.daemon.until(lambda: (one := schedules(host)[name]).get("ended_at") and one, f"a run of {name}")


def test_schedules_run_and_are_shown_with_last_next_and_outcome(host):
    """In the API, in latticectl info and in the metrics; each action was called with its payload."""
    host.up(ID, SOURCE, capabilities=KV, version="1.0.0", schedules=[TICK, FAIL, NIGHTLY])
    ticked, failed = until_ran(host, "tick"), until_ran(host, "fail")
    assert (ticked["outcome"], ticked["when"], ticked["failures"]) == ("ok", "every_s:10", 0)
    assert int(host.result(ID, "ticks")) % 5 == 0
    assert (failed["outcome"], failed["reason"], failed["failures"]) == ("plugin_error", "ValueError: no disk", 1)
    assert "outcome" not in schedules(host)["night"]
    told = host.daemon.ctl("info", ID, "--abs-time").stdout
    assert re.search(
        r"^schedule fail +every_s:3600, next .+, last .+: plugin_error, ValueError: no disk$", told, re.MULTILINE
    )
    assert re.search(r"^schedule night +cron:30 3 \* \* 1-5, next \d{4}-", told, re.MULTILINE)
    metrics = host.daemon.get("/metrics").body.decode()
    assert f'latticed_schedule_failures_total{{plugin="{ID}",schedule="fail"}} 1\n' in metrics
    assert re.search(rf'latticed_schedule_next_run_seconds{{plugin="{ID}",schedule="night"}} \d{{10}}\n', metrics)


def test_schedule_of_an_upgrade_runs_once_it_is_accepted_and_stops_with_its_plugin(host):
    """Masked like all else that an upgrade adds; what was accepted before goes on where it was."""
    daemon = host.daemon
    added = {"name": "more", "every_s": 3600, "action": "tick", "payload": {"by": 1000}}
    host.drop(ID, SOURCE, capabilities=KV, version="1.1.0", schedules=[TICK, FAIL, added])
    daemon.until(lambda: (daemon.plugin(ID).get("candidate") or {}).get("version") == "1.1.0", "the candidate")
    word = f"schedule={daemon.plugin(ID)['candidate']['adds'][0].partition('=')[2]}"
    assert re.fullmatch(r"schedule=more@every_s:3600@tick@[0-9a-f]{12}", word)
    done = daemon.ctl("upgrade", ID)
    assert (done.returncode, f"not accepted: {word}" in done.stderr) == (0, True)
    assert set(schedules(host)) == {"tick", "fail"}
    assert schedules(host)["fail"]["runs"] == 1
    assert daemon.ctl("caps", "grant", ID, word).returncode == 0
    assert until_ran(host, "more")["outcome"] == "ok"
    assert int(host.result(ID, "ticks")) >= 1000
    assert daemon.ctl("disable", ID).returncode == 0
    assert {one["state"] for one in schedules(host).values()} == {"stopped"}
    assert all("next_at" not in one for one in schedules(host).values())
    assert "latticed_schedule_runs_total{" not in daemon.get("/metrics").body.decode()


def test_daemon_that_was_killed_runs_what_it_missed_once_and_nothing_that_ran(host):
    """The hourly one ran less than an hour ago; the one of ten seconds runs again."""
    daemon = host.daemon
    assert daemon.ctl("activate", ID).returncode == 0
    before = schedules(host)
    daemon.kill()
    with daemon.place.running() as again:
        host = hosting.Host(daemon=again, author=host.author)
        after = again.until(lambda: (one := schedules(host)["tick"])["runs"] > before["tick"]["runs"] and one, "a run")
        assert after["last_at"] > before["tick"]["last_at"]
        assert schedules(host)["more"]["runs"] == before["more"]["runs"]
