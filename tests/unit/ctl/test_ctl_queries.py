from __future__ import annotations

import re
import socket
import threading
from contextlib import closing

import pytest

from tests.house import api_server


def test_status_shows_counts_and_omits_absent_fields(ctl, api):
    ran = ctl("status", "--abs-time")
    assert ran.code == 0
    assert ran.out.splitlines() == [
        "latticed  9.8.7",
        "state     ok",
        "uptime    2h 1m",
        "started   2025-01-31T08:00:00Z",
        "plugins   2 active, 1 installed",
        "runtime   1 armed, 1 failed",
        "rejected  1",
        "audit     event 12, head abababababababab",
    ]
    assert ctl("status", "--format", "json").json["audit"] == {"seq": 12, "head": "ab" * 32}


def test_list_aligns_columns_and_shows_dashes(ctl, api):
    """One row per plugin; absent values are `-`; JSON is the daemon's list."""
    api.add("acme.demo", status="active", candidate=api_server.CANDIDATE)
    api.add("acme.other", version=None, updated_at=None, available=False)
    ran = ctl("list", "--abs-time")
    assert ran.out.splitlines() == [
        "ID          VERSION  TYPE    STATUS    AVAILABLE  RUNTIME  HEALTH   CANDIDATE  UPDATED",
        "acme.demo   1.0.0    system  active    yes        stopped  unknown  1.1.0      2025-01-31T08:00:00Z",
        "acme.other  -        system  verified  no         stopped  unknown  -          -",
    ]
    assert ctl("list", "--format", "json").json == list(api.plugins.values())
    assert [row["id"] for row in ctl("list", "--status", "verified", "--format=json").json] == ["acme.other"]


def test_list_hides_built_in_plugins_that_are_not_installed(ctl, api):
    """Eight that nobody asked for would hide what an operator has; --all shows them, in JSON too."""
    api.add("acme.demo")
    api.add("latticed.used", builtin=True, status="disabled")
    api.add("latticed.offered", builtin=True)
    ran = ctl("list")
    assert [line.split()[0] for line in ran.out.splitlines()[1:]] == ["acme.demo", "latticed.used"]
    assert "hint: latticectl list --all" in ran.err
    assert "(1)" in ran.err
    every = ctl("list", "--all")
    shown = {line.split()[0] for line in every.out.splitlines()[1:]}
    assert shown == {"acme.demo", "latticed.offered", "latticed.used"}
    assert "--all" not in every.err
    assert [row["id"] for row in ctl("list", "--format", "json").json] == ["acme.demo", "latticed.used"]
    assert len(ctl("list", "--all", "--format", "json").json) == 3
    assert [row["id"] for row in ctl("list", "--status", "verified", "--format", "json").json] == ["acme.demo"]


def test_times_in_lists_are_relative_without_abs_time(ctl, api):
    api.add(updated_at="2001-01-01T00:00:00.000000Z")
    assert "y ago" in ctl("list").out
    assert "2001-01-01T00:00:00Z" in ctl("--abs-time", "list").out


def test_absent_fields_of_an_older_daemon_are_accepted(ctl, api):
    """`version` and `publisher` may be absent (contracts §7); unknown fields are ignored."""
    shown = api.add(later_field={"x": 1})
    del shown["version"], shown["publisher"]
    assert ctl("list").code == 0
    assert "publisher    -\n" in ctl("info", "acme.demo").out


def test_empty_list_is_noted_on_stderr(ctl, api):
    ran = ctl("list")
    assert (ran.code, ran.data, ran.err) == (0, b"", "no plugins\n")


def test_info_prints_every_field(ctl, api):
    plugin = api.add(
        status="active", candidate={**api_server.CANDIDATE, "needs_downgrade": True}, capabilities=["a", "http:egress"]
    )
    plugin["granted"] = ["a"]
    plugin["runtime"] |= {
        "state": "failed",
        "pid": 77,
        "restart_count": 3,
        "next_retry_at": "2099-01-01T00:00:00Z",
        "last_error": {"code": "crashed", "message": "exit 1"},
    }
    api.hosts["acme.demo"] = ["api.example.org:443"]
    api.denials = [
        api_server.event(4, action="host.call", decision="deny", code="rate_limited", detail={"call": "kv.get"})
    ]
    out = ctl("info", "acme.demo").out
    for line in (
        "id           acme.demo",
        "verdict      verified",
        "runtime      failed",
        "  pid        77",
        "  last error  crashed: exit 1",
        "granted      a",
        "not granted  http:egress",
        "hosts        api.example.org:443",
        "candidate    1.1.0",
        "needs --allow-downgrade",
        "rate_limited",
        "call=kv.get",
    ):
        assert " ".join(line.split()) in " ".join(out.split())
    assert "  next try    in " in out
    assert ctl("info", "acme.demo", "--format", "json").json["plugin"] == plugin


def test_info_of_a_refused_bundle_names_the_reason(ctl, api):
    api.add()
    verdict = {"ok": False, "code": "digest_mismatch", "reason": "expected aa, found bb"}
    api.override["GET plugins/by-id/acme.demo"] = (200, {"plugin": api.plugins["acme.demo"], "verdict": verdict})
    out = " ".join(ctl("info", "acme.demo").out.split())
    assert "verdict refused: digest_mismatch reason expected aa, found bb" in out


@pytest.mark.parametrize("plugin_id", ["acme.none", "..", "../lifecycle", "A", "x" * 300, "acme.d\x1bmo"])
@pytest.mark.parametrize("verb", ["info", "install", "activate", "disable", "upgrade", "restart", "forget"])
def test_unknown_id_exits_4(ctl, api, verb, plugin_id):
    """The id may contain anything; it is escaped in the message."""
    ran = ctl(verb, plugin_id)
    assert (ran.code, ran.data) == (4, b"")
    assert "\x1b" not in ran.err


def test_foreign_text_is_escaped_and_json_is_ascii(ctl, api):
    api.rejected = [{"name": "e\x1b[2Jvil\n", "code": "manifest_invalid", "reason": "\u202eü\x9b", "hint": "fix"}]
    out = ctl("rejected").out
    assert "e\\x1b[2Jvil\\x0a" in out
    assert "\\u202eü\\x9b" in out
    assert ctl("rejected", "--format", "json").json == api.rejected


def test_rejected_prints_hints_on_request(ctl, api):
    api.rejected = [{"name": "bad", "code": "unreadable", "reason": "r", "hint": "chmod it"}]
    assert "chmod it" not in ctl("rejected").out
    assert "chmod it" in ctl("rejected", "--hints").out
    api.rejected = []
    assert ctl("rejected").err == "no bundle is refused\n"


def test_health_with_check_exits_0_or_3(ctl, api):
    """A report with 503 is printed; without a scope only the status is there."""
    assert ctl("health").out == "status  ok\n"
    assert ctl("health", "--check").code == 0
    api.health = (503, {"status": "degraded", "problems": [{"code": "policy_invalid", "detail": "no valid JSON"}]})
    ran = ctl("health")
    assert ran.code == 0
    assert "policy_invalid  no valid JSON" in ran.out
    assert ctl("health", "--check").code == 3
    assert ctl("health", "--check", "--format", "json").json["status"] == "degraded"
    api.health = (503, {"status": "degraded"})
    assert ctl("health", "--check").code == 3
    api.health = api_server.problem(503, "service_unavailable")
    assert ctl("health", "--check").code == 1
    api.health = api_server.problem(403, "access_denied")
    assert ctl("health").code == 5


def test_version_shows_client_and_daemon_versions(ctl, api):
    out = ctl("version").out.splitlines()
    assert out[0].startswith("latticectl  ")
    assert out[1] == "latticed    9.8.7"
    verbose = ctl("version", "--verbose", "--format", "json").json
    assert verbose["public_key"] == "aG9zdCBrZXk="
    ran = ctl("version", LATTICED_SOCKET="/nowhere/s")
    assert ran.code == 7
    assert ran.out.startswith("latticectl  ")
    assert "the daemon is not running" in ran.err
    assert ctl("--version", LATTICED_SOCKET="/nowhere/s").code == 0


@pytest.mark.parametrize(
    ("condition", "fields", "runtime"),
    [
        ("available", {"available": True}, {}),
        ("active", {"status": "active"}, {"state": "armed"}),
        ("healthy", {"status": "active"}, {"state": "armed", "health": "healthy"}),
        ("stopped", {"status": "disabled"}, {"state": "stopped"}),
        ("stopped", {"available": False}, {"next_retry_at": None}),
        ("stopped", {"status": "active"}, {"state": "failed", "next_retry_at": None}),
    ],
)
def test_wait_exits_when_its_condition_holds(ctl, api, condition, fields, runtime):
    plugin = api.add(available=False, status="active")
    plugin["runtime"] |= {"state": "failed", "health": "unhealthy", "next_retry_at": "2025-01-31T08:00:00Z"}
    late = ctl("wait", "acme.demo", "--for", condition, "--timeout", "0.05")
    assert late.code == 1
    assert f"acme.demo was not {condition} within 0.05 s" in late.err
    plugin |= fields
    plugin["runtime"] |= runtime
    assert ctl("wait", "acme.demo", "--for", condition).out == f"acme.demo is {condition}\n"


def test_wait_does_not_take_a_starting_plugin_for_stopped(ctl, api):
    api.add(status="active")["runtime"] |= {"message": "starting"}
    assert "runtime stopped" in ctl("wait", "acme.demo", "--for", "stopped", "--timeout", "0").err
    assert "starting" in ctl("info", "acme.demo").out


def test_wait_for_a_plugin_that_is_refused_says_why_and_else_where_to_look(ctl, api):
    late = ctl("wait", "acme.demo", "--for", "available", "--timeout", "0")
    assert (late.code, "latticectl health" in late.err) == (4, True)
    row = {
        "name": "demo",
        "id": "acme.demo",
        "code": "publisher_untrusted",
        "reason": "expected a, found b",
        "hint": "",
    }
    api.override["GET plugins/rejected"] = (200, [{**row, "version": "1.0.0", "publisher": "acme"}])
    late = ctl("wait", "acme.demo", "--for", "available", "--timeout", "0")
    assert (late.code, "hint: latticectl explain acme.demo" in late.err) == (4, True)
    assert "the bundle demo is refused: publisher_untrusted: expected a, found b" in late.err


def test_wait_sees_changes_and_new_plugins(ctl, api):
    """An unknown id may still appear; exit 4 if it does not."""
    assert ctl("wait", "acme.demo", "--for", "available", "--timeout", "0").code == 4

    def appear() -> None:
        api.until_asked(3)
        api.add()

    thread = threading.Thread(target=appear)
    thread.start()
    assert ctl("wait", "acme.demo", "--for", "available", "--format", "json").json["id"] == "acme.demo"
    thread.join()


def test_wait_goes_on_over_a_daemon_restart_and_fails_without_a_daemon(ctl, api):
    assert ctl("wait", "acme.demo", LATTICED_SOCKET="/nowhere/s").code == 7
    api.add()
    api.override["GET plugins/by-id/acme.demo"] = (200, {"plugin": api_server.plugin(available=False)})

    def restart() -> None:
        api.until_asked(1)
        api.drop = 4
        api.override.clear()

    thread = threading.Thread(target=restart)
    thread.start()
    assert ctl("wait", "acme.demo", "--for", "available").code == 0
    thread.join()


def test_wait_is_over_in_time_when_the_daemon_hangs(ctl, tmp_path):
    with closing(socket.socket(socket.AF_UNIX)) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        ran = ctl("wait", "acme.demo", "--timeout", "0", LATTICED_SOCKET=str(tmp_path / "s"))
    assert (ran.code, "no answer in time" in ran.err) == (7, True), ran.err


def test_wait_is_over_in_time_when_daemons_go_on_stopping(ctl, api):
    """It asks them again, but not for a minute."""
    api.stopping = [True] * 1000
    assert ctl("wait", "acme.demo", "--timeout", "0").code != 0
    assert 1 < len(api.asked) < 50


def test_active_plugins_not_running_are_counted_by_reason(ctl, api):
    """`list` counts its rows, `status` and `health` show the daemon's counts; there is no line when all run."""
    armed = {"state": "armed", "runner": "noop", "health": "unknown", "message": ""}
    api.add("acme.well", status="active", runtime=armed)
    assert ctl("list").err == ""
    failed = {**armed, "state": "failed", "last_error": {"code": "digest_mismatch", "message": "expected 7f"}}
    api.add("acme.bad", status="active", runtime=failed)
    api.add("acme.worse", status="active", runtime=failed)
    api.add("acme.soon", status="active", runtime={**armed, "state": "stopped", "message": "starting"})
    api.add("acme.off", status="disabled", runtime=failed)
    ran = ctl("list")
    assert "not running, of 4 active: 2 digest_mismatch, 1 starting" in ran.err
    assert [line.split()[5] for line in ran.out.splitlines() if line.startswith("acme.soon")] == ["starting"]
    why = {"digest_mismatch": 2, "starting": 1}
    api.health = (200, {"status": "ok", "problems": [], "not_running": why})
    for verb, plain in (("health", api.health[1]), ("status", {**api._status(), "not_running": why})):
        api.override[f"GET {verb}"] = (200, plain)
        assert re.search(r"^not running +2 digest_mismatch, 1 starting$", ctl(verb).out, re.MULTILINE)
        assert ctl(verb, "--format", "json").json["not_running"] == why
    assert ctl("health", "--check").code == 0


def test_caps_suggest_waits_for_enough_history(ctl, api):
    """Until then it prints since when usage is recorded; later the commands that trim unused grants."""
    api.add()
    usage = {"id": "acme.demo", "since": "2025-01-01T00:00:00Z", "calls": [], "hosts": []}
    early = {**usage, "watched_since": "2025-01-30T00:00:00Z", "enough": False, "unused": [], "unused_hosts": []}
    api.override["GET plugins/by-id/acme.demo/usage"] = (200, early)
    ran = ctl("caps", "suggest", "acme.demo", "--abs-time")
    assert (ran.code, ran.out) == (0, "")
    assert ran.err.startswith("watched since 2025-01-30T00:00:00Z: too short")
    assert "trim" not in ran.err
    late = {**early, "enough": True, "unused": ["kv:write"], "unused_hosts": ["a.example:443"]}
    api.override["GET plugins/by-id/acme.demo/usage"] = (200, late)
    assert (
        "hint: latticectl caps trim acme.demo cap=kv:write host=a.example:443"
        in ctl("caps", "suggest", "acme.demo").err
    )


def test_audit_query_of_a_decision_that_there_is_not_is_a_mistake(ctl):
    """`no such events` would say that nothing was denied."""
    ran = ctl("audit", "query", "--decision", "denied")
    assert (ran.code, ran.out) == (2, "")
    assert "choose from 'allow', 'deny', '-'" in ran.err
