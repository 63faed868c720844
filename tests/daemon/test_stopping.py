"""SIGTERM while something is under way: it ends, or is answered with `stopping`; nobody's connection just breaks."""

from __future__ import annotations

import contextlib
import signal
import threading

import pytest

from tests.house import hosting, peers, processes, raw_http, route_clients

pytestmark = pytest.mark.daemon

SLEEPER = b"""#!/usr/bin/env python3
import json, sys, time
asked = json.load(sys.stdin)
if asked["action"] == "sleep":
    print("sleeping", file=sys.stderr, flush=True)
    time.sleep(asked["payload"])
print(json.dumps({"ok": True, "result": asked.get("payload")}))
"""
LIMITS = {"protocol": "stdio-json-v1", "limits": {"invoke_timeout_s": 60}}
SETTINGS = "supervision.drain_s = 60\nplugin_limits.max_invoke_timeout_s = 60"


def sleeping(host, seconds):
    """A thread that has a plugin sleep, once it does; the thread and where its answer will be."""
    answers = []
    before = len(host.lines("acme.sleeper"))
    thread = threading.Thread(target=lambda: answers.append(host.invoke("acme.sleeper", "sleep", seconds)))
    thread.start()
    host.daemon.until(lambda: len(host.lines("acme.sleeper")) > before, "the plugin to sleep")
    return thread, answers


def test_what_is_under_way_ends_and_what_takes_too_long_is_told():
    """A short invocation is answered; a long one gets `stopping` when the drain is over, a new request at once. The
    time to drain is that of the settings as they are now.
    """
    with hosting.hosting(SETTINGS) as host:
        host.up("acme.sleeper", SLEEPER, runtime=LIMITS)
        host.daemon.place.set("supervision.drain_s = 4\nplugin_limits.max_invoke_timeout_s = 60")
        host.daemon.signal(signal.SIGHUP)
        host.daemon.until(lambda: host.daemon.log("settings_loaded"), "the settings to be loaded")
        short, long = sleeping(host, 1), sleeping(host, 59)
        with raw_http.connected(host.daemon.place.socket) as silent:
            host.daemon.signal(signal.SIGTERM)
            host.daemon.expect_notice("STOPPING=1")
            # Connected before, and asking only now.
            silent.sendall(raw_http.request("GET", "/api/status"))
            told = raw_http.receive(silent)
        assert (told.status, told.json()["code"], told.headers.get("retry-after")) == (503, "stopping", "1")
        late = host.invoke("acme.sleeper", "sleep", 0)
        assert (late.status, late.json()["code"], late.headers.get("retry-after")) == (503, "stopping", "1")
        for thread, _ in (short, long):
            thread.join(60)
        ((ended,), (broken_off,)) = short[1], long[1]
        assert (ended.status, ended.json()["result"]) == (200, 1)
        assert (broken_off.status, broken_off.json()["code"]) == (503, "stopping")
        assert broken_off.headers.get("retry-after") is None, "whether it was done is not known"
        assert host.daemon.ended() == 0
        processes.until(lambda: not host.daemon.place.socket.exists(), what="the socket to go")
        assert [one for one in host.daemon.log() if one["level"] in {"error", "critical"}] == []


def test_clients_that_say_nothing_hold_up_no_stop():
    """They go on to connect, to a socket that is the daemon's own until it ends: what was under way ends, and then the
    daemon.
    """
    with hosting.hosting(SETTINGS.replace("60", "300", 1)) as host, contextlib.ExitStack() as stack:
        host.up("acme.sleeper", SLEEPER, runtime=LIMITS)
        asking, answers = sleeping(host, 4)
        gone = threading.Event()

        def connecting():
            while not gone.is_set():
                try:
                    stack.enter_context(raw_http.connected(host.daemon.place.socket))
                except OSError:
                    return
                gone.wait(0.2)

        thread = threading.Thread(target=connecting)
        thread.start()
        stack.callback(thread.join)
        stack.callback(gone.set)
        host.daemon.signal(signal.SIGTERM)
        asking.join(60)
        assert [one.status for one in answers] == [200]
        assert host.daemon.ended() == 0


NAPPER = b"""#!/usr/bin/env python3
import json, sys, time
if json.load(sys.stdin)["action"] == "nap":
    print("fell asleep", file=sys.stderr, flush=True)
    time.sleep(2)
    print("woke up", file=sys.stderr, flush=True)
print(json.dumps({"ok": True}))
"""


def test_run_of_a_schedule_that_is_under_way_ends():
    """Though no request is under way, and longer than plugins that are stopped have."""
    with hosting.hosting("supervision.stop_grace_s = 0.1") as host:
        nap = {"name": "nap", "every_s": 10, "action": "nap"}
        host.up("acme.napper", NAPPER, runtime={"protocol": "stdio-json-v1"}, schedules=[nap])
        host.daemon.until(lambda: host.lines("acme.napper"), "a run to begin")
        host.daemon.signal(signal.SIGTERM)
        assert host.daemon.ended() == 0
        assert "woke up" in str(host.daemon.log())


PAGE = peers.peer(
    """
while True:
    message = hear()
    if message.get("method") != "invoke":
        answer(message) if "method" in message else None
        continue
    if message["params"]["action"] == "put":
        say(id="put", method="route.put", params={"path": "/ID/", "target": "invoke", "action": "web"})
        while (heard := hear()).get("id") != "put":
            answer(heard)
    if message["params"]["action"] == "web":
        os.write(2, b"at work\\n")
        time.sleep(5)
    say(id=message["id"], result={"ok": True, "message": "", "result": {"body": "hello"}})
"""
)


def test_page_of_a_plugin_that_is_under_way_is_answered():
    """Within the time to drain, though no request of the control API is under way."""
    with hosting.hosting('http.listen = "127.0.0.1:0"\nsupervision.drain_s = 30') as host:
        plugin_id = host.up("acme.page", PAGE.replace(b"ID", b"acme.page"), capabilities=["worker:route"])
        assert host.invoke(plugin_id, "put").status == 200

        def served():
            found = host.daemon.get("/api/routes").json()["routes"]
            return next((one["url"] for one in found if one["state"] == "served"), None)

        url, answers = host.daemon.until(served, "the route to be served"), []
        thread = threading.Thread(target=lambda: answers.append(route_clients.ask(url, f"/{plugin_id}/")))
        thread.start()
        host.until_said(plugin_id, "at work")
        host.daemon.signal(signal.SIGTERM)
        thread.join(60)
        assert [(one.status, one.body) for one in answers] == [(200, b"hello")]
        assert host.daemon.ended() == 0
