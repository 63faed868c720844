"""Host services end to end: a confined plugin that uses the SDK, the real daemon, the operator's view."""

from __future__ import annotations

import base64
import json

import pytest

from tests.house import hosting, listeners

pytestmark = pytest.mark.daemon

PLUGIN = b"""#!/usr/bin/env python3
from latticed.sdk import HostError, Plugin, PluginError

class Everything(Plugin):
    def do_fetch(self, payload):
        try:
            found = self.http.get(payload["url"], headers=payload.get("headers"))
        except HostError as error:
            return {"code": error.code, "message": error.message}
        return {"status": found.status, "text": found.text()}

    def do_keep(self, payload):
        self.kv.put(payload["key"], payload["value"])

    def do_shout(self, payload):
        self.log.write("info", payload)
        raise PluginError(payload)

    def do_notify(self, payload):
        return self.notify.send(payload["title"], payload["body"], severity="warning", event="test.event")

    def do_watch(self, payload):
        return self.monitor.put("web", "http", payload, interval_s=1, timeout_s=1, failures=1)

    def do_watched(self, payload):
        return self.monitor.results("web")

    def do_unwatch(self, payload):
        return self.monitor.delete("web")

    def do_publish(self, payload):
        self.static.put("page.txt", payload)
        return self.static.get_bytes("page.txt").decode(), [one["path"] for one in self.static.list()]

    def do_facts(self, payload):
        return self.node.facts()

Everything().run()
"""
ID = "acme.everything"
CAPABILITIES = (
    "http:egress kv:read kv:write log:write monitor:admin monitor:read node:read notify:send static:read static:write"
).split()
HOST_RISK = ["http:egress", "monitor:admin", "static:write"]
SECRET = "hunter2-Zq8/xT+is=secret"
BEARER = {"headers": {"Authorization": "Bearer ${secret:API_TOKEN}"}}
SETTINGS = "[monitor]\nmin_interval_s = 0.5\n"


@pytest.fixture(scope="module")
def host():
    with hosting.hosting(SETTINGS) as found:
        found.drop(ID, PLUGIN, capabilities=CAPABILITIES)
        found.daemon.activate(ID, accept=HOST_RISK)
        yield found


@pytest.fixture
def server():
    with listeners.listening() as found:
        yield found


@pytest.fixture
def permit(host):
    """Have the operator bind origins to the plugin, for the duration of the test."""
    given = []

    def give(origin):
        given.append(f"origin={origin}")
        ctl(host, "caps", "grant", ID, given[-1])

    yield give
    if given:
        ctl(host, "caps", "trim", ID, *given)


def ctl(host, *words, stdin=""):
    """The output of latticectl, which must succeed."""
    done = host.daemon.ctl(*words, stdin=stdin)
    assert done.returncode == 0, done
    return done.stdout


def denials(host):
    return [event["code"] for event in host.daemon.events(actor=f"plugin:{ID}", decision="deny")]


def test_private_target_is_reached_only_while_granted(host, server, permit):
    """Not one connection is made without a grant; once trimmed, it is blocked at once."""
    asked = {"url": f"{server.origin}/x"}
    assert host.result(ID, "fetch", asked)["code"] == "egress_blocked"
    assert server.connections == 0
    assert denials(host)[-1] == "egress_blocked"
    permit(server.origin)
    assert host.result(ID, "fetch", asked) == {"status": 200, "text": "nobody"}
    assert server.connections == 1
    shown = json.loads(ctl(host, "--format", "json", "caps", "list", ID))
    assert shown["permits"] == [f"origin={server.origin}"]
    ctl(host, "caps", "trim", ID, f"origin={server.origin}")
    assert host.result(ID, "fetch", asked)["code"] == "egress_blocked"
    assert server.connections == 1


def test_wildcard_grant_excludes_private_hosts(host, server):
    """`*` covers public hosts only: no connection is made to this machine, by any of its names."""
    plugin_id = "acme.curious"
    host.drop(plugin_id, PLUGIN, v2=False, capabilities=["http:egress"])
    host.daemon.activate(plugin_id, accept=["http:egress"])
    ctl(host, "caps", "grant", plugin_id, "host=*")
    for name in ("127.0.0.1", "localhost", "[::1]", "0.0.0.0", "2130706433", "[::ffff:127.0.0.1]"):
        found = host.result(plugin_id, "fetch", {"url": f"http://{name}:{server.port}/"})
        assert found["code"] == "egress_blocked", (name, found)
    assert server.connections == 0
    assert host.daemon.set_status("disabled", plugin_id).status == 200


def test_bound_origin_covers_its_scheme_host_and_port_only(host, server, permit):
    permit(server.origin)
    with listeners.listening() as other:
        for url in (other.origin, f"http://localhost:{server.port}", f"https://127.0.0.1:{server.port}"):
            assert host.result(ID, "fetch", {"url": url}).get("code") in {"egress_blocked", "service_unavailable"}, url
        assert (other.connections, server.requests) == (0, [])


def test_bound_secret_is_sent_and_never_shown(host, server, permit):
    """It is in the request's header; not in the plugin, state, log, audit, backup and API."""
    permit(server.origin)
    ctl(host, "secret", "set", "API_TOKEN", stdin=SECRET + "\n")
    asked = {"url": f"{server.origin}/", **BEARER}
    assert host.result(ID, "fetch", asked)["code"] == "bad_params", "set, and not bound"
    assert server.connections == 0
    ctl(host, "secret", "bind", "API_TOKEN", ID)
    echoed = host.result(ID, "fetch", asked)
    assert server.requests[0][1]["Authorization"] == f"Bearer {SECRET}"
    assert echoed == {"status": 200, "text": "Bearer ${secret:API_TOKEN}"}
    host.result(ID, "keep", {"key": "echoed", "value": echoed["text"]})
    assert host.invoke(ID, "shout", echoed["text"]).json()["ok"] is False
    assert "API_TOKEN" in ctl(host, "secret", "list")
    places = dict(everywhere(host))
    assert {where: forms for where, data in places.items() if (forms := seen_in(data))} == {}
    named = [where for where, data in places.items() if b"API_TOKEN" in data]
    assert {"/api/secrets", f"/api/kv/plugin:{ID}/echoed", f"logs {ID}", "backup"} <= set(named), (
        "it was looked for there"
    )
    key = (host.daemon.place.home / "secrets.key").read_bytes().strip()
    assert [where for where, data in places.items() if key in data] == []
    ctl(host, "secret", "unbind", "API_TOKEN", ID)
    assert host.result(ID, "fetch", asked)["code"] == "bad_params"
    ctl(host, "secret", "delete", "API_TOKEN")
    assert len(server.requests) == 1


def everywhere(host):
    """(where, bytes) of all that the daemon wrote, and of all API answers."""
    daemon, place = host.daemon, host.daemon.place
    files = [path for path in place.state.rglob("*") if path.is_file()]
    yield from ((str(path), path.read_bytes()) for path in [*files, place.config, daemon.log_file])
    yield "stderr", daemon.log_file.with_suffix(".err").read_bytes()
    for path in (
        *("/api/plugins", "/api/plugins/lifecycle", f"/api/plugins/by-id/{ID}", f"/api/plugins/by-id/{ID}/logs"),
        *("/api/secrets", "/api/audit?limit=500", "/api/notifications", "/api/health", "/metrics", "/openapi.json"),
        *(f"/api/kv/plugin:{ID}", f"/api/kv/plugin:{ID}/echoed", f"/api/plugins/by-id/{ID}/grants"),
    ):
        answer = daemon.get(path)
        assert answer.status == 200, (path, answer)
        yield path, answer.body
    for words in (("audit", "export"), ("logs", ID), ("secret", "list"), ("info", ID)):
        yield " ".join(words), ctl(host, *words).encode()
    backup = place.home / "backup.tar"
    ctl(host, "backup", str(backup))
    yield "backup", backup.read_bytes()
    backup.unlink()


def seen_in(data):
    """The encodings in which the value occurs in the data."""
    raw = SECRET.encode()
    forms = {"plain": raw, "base64": base64.b64encode(raw), "hex": raw.hex().encode(), "part": raw[:12]}
    return [name for name, form in forms.items() if form in data]


def test_secret_is_never_sent_without_tls(host, server):
    """Plain http to an origin that is not bound is refused before any DNS look-up, with or without a secret."""
    ctl(host, "secret", "set", "OPEN_WIRE", stdin=SECRET)
    ctl(host, "secret", "bind", "OPEN_WIRE", ID)
    ctl(host, "caps", "grant", ID, "host=*")
    asked = {"url": f"{server.origin}/", "headers": {"X-Token": "${secret:OPEN_WIRE}"}}
    found = host.result(ID, "fetch", asked)
    assert found["code"] == "egress_blocked"
    assert SECRET not in json.dumps(found)
    assert server.connections == 0
    ctl(host, "caps", "trim", ID, "host=*")
    ctl(host, "secret", "delete", "--unbind", "OPEN_WIRE")


def test_notification_is_listed_until_pruned(host):
    """The row has its sender and severity, and it is counted; accepting it wrote it to disk."""
    item = host.result(ID, "notify", {"title": "disk\x1b[31m is full", "body": "by 9 %"})
    assert "is full" in ctl(host, "notify", "list", "--plugin", ID)
    rows = json.loads(ctl(host, "--format", "json", "notify", "list"))["notifications"]
    (found,) = [row for row in rows if row["id"] == item]
    assert (found["plugin"], found["severity"], found["event"]) == (ID, "warning", "test.event")
    assert found["title"].isprintable()
    assert found["status"] in {"queued", "done"}
    ctl(host, "notify", "prune", "--status", "queued", "--status", "done", "--plugin", ID)
    assert json.loads(ctl(host, "--format", "json", "notify", "list"))["notifications"] == []


def test_target_that_goes_down_and_up_gives_two_alerts(host, server, permit):
    """They are in the operator's list and in the audit."""
    permit(server.origin)
    host.result(ID, "watch", f"{server.origin}/up")
    standing(host, "up")
    server.close()
    standing(host, "down")
    server.open()
    standing(host, "up")
    host.daemon.until(lambda: len(alerts(host)) >= 2, "two alerts")
    assert [row["event"] for row in sorted(alerts(host), key=lambda row: row["seq"])] == ["monitor.down", "monitor.up"]
    told = [event for event in host.daemon.events() if event["action"].startswith("monitor.")]
    assert [(event["action"], event["detail"]["state"]) for event in told] == [
        ("monitor.alert", "down"),
        ("monitor.alert", "up"),
    ]
    assert host.result(ID, "unwatch")
    assert {path for path, _ in server.requests} == {"/up"}
    ctl(host, "notify", "prune", "--status", "queued", "--plugin", ID)


def standing(host, wanted):
    host.daemon.until(lambda: host.result(ID, "watched")["state"] == wanted, f"the target to be {wanted}")


def alerts(host):
    rows = json.loads(ctl(host, "--format", "json", "notify", "list", "--plugin", ID))["notifications"]
    return [row for row in rows if row["event"] != "test.event"]


def test_static_files_are_published_and_node_facts_answered(host):
    """Facts that need node:admin are left out."""
    assert host.result(ID, "publish", "grüße\n") == ["grüße\n", ["page.txt"]]
    facts = host.result(ID, "facts")
    assert facts["cpus"]["count"] > 0
    assert facts["memory"]["total_bytes"] > 0
    assert facts["hardware"] is None


def test_all_host_calls_are_audited(host):
    """Allowed or not, in a chain that verifies."""
    before = host.daemon.events(action="host.call", actor=f"plugin:{ID}")
    host.result(ID, "facts")
    host.result(ID, "fetch", {"url": "http://192.0.2.1/"})
    calls = host.daemon.events(action="host.call", actor=f"plugin:{ID}")[len(before) :]
    assert [(call["target"], call["decision"], call["code"]) for call in calls] == [
        ("node.facts", "allow", ""),
        ("http.do", "allow", ""),
        ("http.do", "deny", "egress_blocked"),
    ]
    assert "the chain holds" in ctl(host, "audit", "verify")
