"""Plugins that crash, hang or are unhealthy: failed with a code, retried with backoff, given up, stopped."""

from __future__ import annotations

import os
import signal

import pytest

from tests.house import children, hosting, peers, programs

pytestmark = [pytest.mark.daemon, pytest.mark.slow]

QUICK = """
[supervision]
backoff_base_s = 0.05
backoff_ceiling_s = 0.1
breaker_failures = 3
stop_grace_s = 1.0
"""
OFTEN = {"health": {"interval_s": 1, "timeout_s": 1, "failures": 2}, "sandbox": {"features": ["processes"]}}


@pytest.fixture(scope="module")
def host():
    with hosting.hosting(QUICK) as host:
        yield host


def failures(host, plugin_id):
    events = host.daemon.events(action="plugin.runtime", target=plugin_id)
    return [event for event in events if event["detail"]["state"] == "failed"]


def until_failed(host, plugin_id, times):
    """The events, once it has failed so many times."""
    host.daemon.until(lambda: len(failures(host, plugin_id)) >= times, f"{plugin_id} to have failed {times} times")
    return failures(host, plugin_id)


@pytest.mark.parametrize(
    ("action", "code", "words"),
    [("crash", "exited", "exited 3; it said last: farewell"), ("abort", "crashed", "killed by SIG")],
)
def test_crashed_plugin_fails_its_invocation_and_is_restarted(host, action, code, words):
    """The invocation gets the exit as its error; the plugin is failed with it, and armed again after the backoff."""
    plugin_id = host.up(f"acme.{action}", programs.MOODY)
    answer = host.invoke(plugin_id, action)
    assert (answer.status, answer.code) == (502, code)
    assert words in answer.json()["detail"]
    (failed,) = until_failed(host, plugin_id, 1)
    assert words in failed["reason"]
    host.until_story(plugin_id, "armed", f"failed {code}", "armed")
    assert host.runtime(plugin_id)["restart_count"] == 1
    assert host.invoke(plugin_id, "mood", "healthy").status == 200


def test_plugin_in_backoff_shows_its_next_attempt(place, acme):
    """It is failed, with the last error and the time; disabling it cancels the attempt."""
    place.set("[supervision]\nbackoff_base_s = 600.0\nbackoff_ceiling_s = 600.0")
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        plugin_id = host.up("acme.demo", programs.MOODY)
        host.invoke(plugin_id, "crash")
        runtime = daemon.until_state("failed", plugin_id, code="exited")["runtime"]
        assert runtime["next_retry_at"] > runtime["updated_at"]
        assert "pid" not in runtime
        assert "farewell" in daemon.ctl("info", plugin_id).stdout
        assert host.invoke(plugin_id, "mood", "healthy").code == "not_armed"
        assert daemon.set_status("disabled", plugin_id).json()["runtime"]["state"] == "stopped"
        assert host.processes() == set()


def test_crash_loop_opens_the_breaker_and_restart_closes_it(host):
    """Several failures in a row open it; a failing restart opens it again, a successful one closes it."""
    plugin_id = host.up("acme.loop", programs.MOODY)
    host.result(plugin_id, "break")
    host.invoke(plugin_id, "crash")
    until_failed(host, plugin_id, 3)
    rests = host.daemon.until_state("failed", plugin_id)["runtime"]
    assert "next_retry_at" not in rests
    assert "I cannot start" in rests["last_error"]["message"]
    assert host.daemon.ctl("restart", plugin_id).returncode == 1
    assert len(until_failed(host, plugin_id, 6)) == 6
    assert "next_retry_at" not in host.daemon.until_state("failed", plugin_id)["runtime"]
    bucket = f"/api/kv/plugin:{plugin_id}/broken"
    assert host.daemon.ask("DELETE", bucket).status in {200, 204}
    assert host.daemon.ctl("restart", plugin_id).returncode == 0
    assert host.daemon.until_state("armed", plugin_id)["runtime"].get("last_error") is None


def test_only_consecutive_bad_health_checks_restart_a_plugin(host):
    """A plugin that is unhealthy every other time is not restarted; a hanging one is unhealthy, and restarted."""
    fickle = host.up("acme.fickle", programs.MOODY, runtime=OFTEN)
    ill = host.up("acme.ill", programs.MOODY, runtime=OFTEN)
    hung = host.up("acme.hung", programs.MOODY, runtime=OFTEN)
    frozen = host.up("acme.frozen", programs.MOODY, runtime=OFTEN)
    host.result(fickle, "mood", "unhealthy,healthy")
    host.result(ill, "mood", "unhealthy")
    host.result(hung, "mood", "hung")
    before = host.runtime(fickle)["pid"]
    os.kill(host.runtime(frozen)["pid"], signal.SIGSTOP)
    with host.answering():
        told = until_failed(host, ill, 1)[0]
        assert (told["code"], told["reason"]) == ("unhealthy", "unhealthy 2 times in a row: as I was told")
        for plugin_id in (hung, frozen):
            told = until_failed(host, plugin_id, 1)[0]
            assert (told["code"], told["reason"]) == ("unhealthy", "unhealthy 2 times in a row: no answer within 1 s")
            host.daemon.until(lambda one=plugin_id: "armed" in host.story(one)[2:], f"{plugin_id} to be started again")
        seen = lambda: host.lines(fickle).count("feeling unhealthy")  # noqa: E731 - read twice
        host.daemon.until(lambda: seen() >= 3, "three bad checks of the fickle one")
    assert (host.runtime(fickle)["pid"], failures(host, fickle)) == (before, [])
    host.daemon.until(lambda: host.runtime(fickle)["health"] == "unhealthy", "the fickle one to be shown unhealthy")
    host.daemon.until(lambda: host.runtime(fickle)["health"] == "healthy", "the fickle one to be shown healthy")
    for plugin_id in (fickle, ill, hung, frozen):
        assert host.daemon.set_status("disabled", plugin_id).json()["runtime"]["state"] == "stopped"


def test_health_is_503_while_a_critical_plugin_is_not_healthy(place, acme):
    """It is 200 where the operator's settings say that the plugin does not count."""
    place.set(QUICK)
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        assert daemon.get("/api/health").status == 200
        plugin_id = host.up("acme.demo", programs.MOODY, critical=True, runtime=OFTEN)
        daemon.until(lambda: daemon.get("/api/health").status == 200, "health once the plugin is healthy")
        host.result(plugin_id, "mood", "unhealthy")
        daemon.until(lambda: daemon.get("/api/health").status == 503, "health to suffer")
        (problem,) = daemon.get("/api/health").json()["problems"]
        assert (problem["code"], plugin_id in problem["detail"]) == ("critical_plugin", True)
        assert daemon.ctl("health", "--check").returncode == 3
    place.set(f"{QUICK}ignore_critical = true")
    with place.running() as daemon:
        daemon.until_state("armed")
        daemon.until(lambda: daemon.plugin()["runtime"]["health"] == "unhealthy", "the plugin to feel as before")
        assert daemon.get("/api/health").status == 200


@pytest.mark.parametrize(
    ("program", "last_words"),
    [
        (peers.POLITE, ["asked by a message"]),
        (peers.TERMINABLE, ["asked by a message", "asked by a signal"]),
        (peers.DEAF, ["asked by a message"]),
    ],
    ids=["polite", "terminable", "deaf"],
)
def test_stopping_plugin_sends_shutdown_then_sigterm_then_sigkill(host, program, last_words, request):
    """Whichever of them the plugin obeys, no process is left, and the stop is no failure."""
    plugin_id = host.up(f"acme.stops-{request.node.callspec.id}", program)
    pid = host.runtime(plugin_id)["pid"]
    answer = host.daemon.set_status("disabled", plugin_id)
    assert answer.json()["runtime"]["state"] == "stopped"
    assert not children.alive(pid)
    assert host.lines(plugin_id) == last_words
    host.until_story(plugin_id, "armed", "stopped")


def test_restart_of_plugin_replaces_its_process(host):
    """It has another pid; the old process and its descendants are gone."""
    plugin_id = host.up("acme.restarted", programs.MOODY, runtime=OFTEN)
    pid = host.runtime(plugin_id)["pid"]
    host.result(plugin_id, "fork")
    host.daemon.until(
        lambda: len(children.family(pid)) == 8, "six processes of its own, and process 1 of their namespace"
    )
    tree = children.family(pid)
    assert host.daemon.ctl("restart", plugin_id).returncode == 0
    assert host.runtime(plugin_id)["pid"] != pid
    hosting.until_gone(tree)
    assert host.daemon.set_status("disabled", plugin_id).status == 200
