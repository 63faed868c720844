"""latticectl logs -f: lines of a plugin as they are written, each once, also across restarts of the daemon."""

from __future__ import annotations

import contextlib
import json
import signal

import pytest

from tests.house import hosting, processes, programs

pytestmark = pytest.mark.daemon


def test_followed_logs_continue_across_a_restart(place, acme):
    """Lines written before the follower reconnects are printed, too; none comes twice."""
    shown = place.home.parent / "follow.out"
    with place.running() as daemon, contextlib.ExitStack() as later:
        host = hosting.Host(daemon=daemon, author=acme)
        host.up("acme.demo", programs.GREETER)
        host.result("acme.demo", "greet", {"name": "early"})
        host.until_said("acme.demo", "greeting early")
        follow = daemon.ctl_command("logs", "acme.demo", "--follow")
        notes = shown.with_suffix(".err")
        following = processes.spawned(follow, user=place.user, env=place.environment(), stdout=shown, stderr=notes)
        follower = later.enter_context(following)
        daemon.until(lambda: "greeting early" in shown.read_text(), "what was said before")
        host.result("acme.demo", "greet", {"name": "now"})
        daemon.until(lambda: "greeting now" in shown.read_text(), "what is said now")
        daemon.kill()
        processes.until(lambda: "daemon is gone" in notes.read_text(), what="the loss")
        follower.send_signal(signal.SIGSTOP)
        again = later.enter_context(place.running())
        host = hosting.Host(daemon=again, author=acme)
        again.until_state("armed")
        names = [f"later-{number}" for number in range(5)]
        for name in names:
            host.result("acme.demo", "greet", {"name": name})
        host.until_said("acme.demo", "greeting later-4")
        follower.send_signal(signal.SIGCONT)
        again.until(lambda: "greeting later-4" in shown.read_text(), "what was said meanwhile")
        assert "daemon is back" in notes.read_text()
        assert follower.poll() is None
    said = [line.split("greeting ")[1] for line in shown.read_text().splitlines()]
    assert said == ["early", "now", *names]


def test_logs_follow_as_json_prints_one_object_per_line(place, acme):
    """`next` of an answer without lines misses no later line."""
    shown = place.home.parent / "follow.out"
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        host.up("acme.demo", programs.GREETER)
        follow = daemon.ctl_command("--format", "json", "logs", "acme.demo", "-f")
        with processes.spawned(follow, user=place.user, env=place.environment(), stdout=shown) as follower:
            before = daemon.get("/api/plugins/by-id/acme.demo/logs?wait_s=1").json()
            assert before["lines"] == []
            host.result("acme.demo", "greet", {"name": "you"})
            daemon.until(lambda: "greeting you" in shown.read_text(), "the line")
            assert follower.poll() is None
        (row,) = map(json.loads, shown.read_text().splitlines())
        assert (row["stream"], row["text"]) == ("stderr", "greeting you")
        after = daemon.get(f"/api/plugins/by-id/acme.demo/logs?after={before['next']}").json()
        assert [line["text"] for line in after["lines"]] == ["greeting you"]


def test_logs_of_a_plugin_that_wrote_nothing_say_so(place, acme):
    """On stderr, with where older lines are: stdout stays empty for programs that read it."""
    with place.running() as daemon:
        hosting.Host(daemon=daemon, author=acme).up("acme.demo", programs.GREETER)
        silent = daemon.ctl("logs", "acme.demo")
        assert (silent.returncode, silent.stdout) == (0, "")
        assert "acme.demo has written nothing" in silent.stderr
        assert "journalctl -t latticed-plugin:acme.demo" in silent.stderr
        assert daemon.ctl("--format", "json", "logs", "acme.demo").stderr == ""
