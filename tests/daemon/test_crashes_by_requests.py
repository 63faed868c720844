"""Crashes caused by outside requests restart the plugin but open no breaker; crashes of its own do."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest
import wasmtime

from latticed.model.restart import VISITED
from tests.house import hosting, peers, route_clients, wasms

pytestmark = pytest.mark.daemon

SETTINGS = """
[http]
listen = "127.0.0.1:0"
[supervision]
backoff_base_s = 0.05
backoff_ceiling_s = 0.2
breaker_failures = 2
stop_grace_s = 1.0
"""
PEER = peers.peer(
    """
ROUTE = {"path": "/ID/", "target": "invoke", "action": "web"}
while True:
    message = hear()
    if message.get("method") != "invoke":
        answer(message) if "method" in message else None
        continue
    asked = message["params"]
    way = asked["payload"]["path"].rpartition("/")[2] if asked["action"] == "web" else asked["action"]
    if way == "put":
        say(id="put", method="route.put", params=ROUTE)
        while (heard := hear()).get("id") != "put":  # it is served before it is stored, and a crash would drop it
            answer(heard)
        assert "result" in heard, heard
    elif way == "abort":
        os.abort()
    elif way == "noise":
        os.write(1, b"Traceback\\n")
    elif way == "flood":
        os.write(1, b"x" * (2 << 20))
    elif way == "exit":
        os._exit(3)
    elif way == "slow":
        os.write(2, b"at work\\n")
        time.sleep(0.2)
        os._exit(3)
    say(id=message["id"], result={"ok": True, "message": "", "result": {"body": "hello"}})
    if way == "late":
        time.sleep(0.05)
        os._exit(3)
"""
)
CALL = '{"method": "route.put", "params": {"path": "/ID/", "target": "invoke", "action": "boom"}}'
REPLY = '{"ok": true, "result": null}'


@pytest.fixture(scope="module")
def host():
    with hosting.hosting(SETTINGS) as found:
        yield found


def place(host, plugin_id):
    """The address of the route's listener, once it serves: the route is withdrawn while the plugin is down."""

    def served():
        found = host.daemon.get("/api/routes").json()["routes"]
        return next((one["url"] for one in found if (one["plugin"], one["state"]) == (plugin_id, "served")), None)

    return host.daemon.until(served, f"the route of {plugin_id} to be served")


def fallen(host, plugin_id, times):
    """The recorded last failure, once the plugin has failed and is armed again so often."""

    def again():
        runtime = host.runtime(plugin_id)
        return (runtime["state"], runtime.get("restart_count")) == ("armed", times)

    def failures():
        events = host.daemon.events(action="plugin.runtime", target=plugin_id)
        return [event for event in events if event["detail"]["state"] == "failed"]

    host.daemon.until(again, f"{plugin_id} to have been started again {times} times")
    host.daemon.until(lambda: len(failures()) == times, "its end to be recorded")
    return failures()[-1]


def hang_up(host, plugin_id, url):
    """Send a request that takes a moment, and disconnect before it is answered."""
    where = urlsplit(url)
    with socket.create_connection((where.hostname, where.port)) as sock:
        sock.sendall(f"GET /{plugin_id}/slow HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
        host.until_said(plugin_id, "at work")


def test_crashes_by_outside_requests_open_no_breaker(host):
    """The crash may come after the answer, or after the client has disconnected. Two crashes of its own open it."""
    plugin_id = host.up("acme.web", PEER.replace(b"ID", b"acme.web"), capabilities=["worker:route"])
    assert host.invoke(plugin_id, "put").status == 200
    ways = ["exit", "abort", "noise", "flood", "late", "slow"]
    for times, way in enumerate(ways, 1):
        url = place(host, plugin_id)
        if way == "slow":
            hang_up(host, plugin_id, url)
        else:
            answer = route_clients.ask(url, f"/{plugin_id}/{way}")
            assert answer.status == (200 if way == "late" else 502), (way, answer)
        assert fallen(host, plugin_id, times)["reason"].endswith(VISITED), way
    assert route_clients.text(place(host, plugin_id), f"/{plugin_id}/hello") == "hello"
    explained = " ".join(host.daemon.ctl("explain", plugin_id).stdout.split())
    assert f"exited: exited 3; it said last: at work {VISITED}" in explained
    host.daemon.ctl("restart", plugin_id)  # a new instance without any outside request yet
    host.daemon.until(lambda: "last end" not in host.daemon.ctl("explain", plugin_id).stdout, "the restart on record")
    for _ in range(2):
        host.daemon.until_state("armed", plugin_id)
        assert host.invoke(plugin_id, "exit").status == 502
    rests = host.daemon.until_state("failed", plugin_id, code="exited")["runtime"]
    assert ("next_retry_at" in rests, VISITED in rests["last_error"]["message"]) == (False, False)


def test_wasm_trap_by_outside_request_opens_no_breaker(host):
    plugin_id, call = "acme.trap", CALL.replace("ID", "acme.trap")
    source = wasms.module(
        f"""(if (i32.eq (i32.load8_u offset=12 (local.get $at)) (i32.const 98)) (then (unreachable)))
        (drop (call $call (i32.const 16) (i32.const {len(call)}))) {wasms.packed(1024, len(REPLY))}""",
        more=wasms.says(16, call) + wasms.says(1024, REPLY),
        imports='(import "latticed" "call" (func $call (param i32 i32) (result i64)))',
    )
    code = bytes(wasmtime.wat2wasm(source))
    host.up(plugin_id, code, type="wasm", capabilities=["worker:route"])
    assert host.invoke(plugin_id, "put").status == 200
    for times in range(1, 4):
        assert route_clients.ask(place(host, plugin_id), f"/{plugin_id}/").status == 502
        assert fallen(host, plugin_id, times)["code"] == "wasm_trap"
    assert host.invoke(plugin_id, "put").status == 200
