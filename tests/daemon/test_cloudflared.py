"""The built-in plugin cloudflared at a real daemon: visitors through the tests' edge, and what operators see."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.house import children, daemons, edges, hosting, processes

pytestmark = pytest.mark.daemon

ID = "latticed.cloudflared"
HOST = "app.example.com"
REST = {"service": "http_status:404"}
HELLO = (200, "hello")


@dataclass
class Site:
    """One daemon that has the plugin active, and the world outside."""

    place: daemons.Place
    daemon: daemons.Daemon
    outside: edges.Visited

    def tunnel(self, *names: str, **more: Any) -> dict[str, Any]:
        rules = [{"hostname": name, "service": self.outside.service} for name in (HOST, *names)]
        wanted = {"name": "main", "tunnel": edges.TUNNEL, "credentials": "main.json", "ingress": [*rules, REST]}
        return {**wanted, **more}

    def configure(self, *tunnels: dict[str, Any], **more: Any) -> None:
        """As `latticectl config set`: returns once the plugin is armed again."""
        answer = self.daemon.ask("PUT", f"/api/plugins/by-id/{ID}/config", {"config": {"tunnels": [*tunnels], **more}})
        assert answer.status == 200, answer
        self.daemon.until_state("armed", ID)

    def invoke(self, action: str, payload: Any = None) -> dict[str, Any]:
        answer = self.daemon.post(f"/api/plugins/by-id/{ID}/invoke", {"action": action, "payload": payload})
        assert answer.status == 200, answer
        return dict(answer.json())

    def status(self) -> list[dict[str, Any]]:
        found = self.invoke("status")
        assert found["ok"], found
        return list(found["result"]["tunnels"])

    def until_level(self, level: str, code: str = "") -> dict[str, Any]:
        """The one tunnel's status, once it has this level and code."""

        def now() -> dict[str, Any] | None:
            (found,) = self.status()
            return found if (found["level"], found["code"]) == (level, code) else None

        return processes.until(now, what=f"{level} {code}")

    def until_health(self, *words: str) -> str:
        def now() -> str | None:
            runtime = self.daemon.plugin(ID)["runtime"]
            said = f"{runtime['health']}: {runtime['message']}"
            return said if all(word in said for word in words) else None

        return processes.until(now, what=f"health to say {words}")

    def connectors(self) -> set[int]:
        return {pid for pid in children.descendants(self.daemon.process.pid) if children.alive(pid)}

    def told(self) -> list[tuple[str, str]]:
        rows = self.daemon.get("/api/notifications").json()["notifications"]
        return [(one["event"], one["title"]) for one in rows]


@contextlib.contextmanager
def placed(outside: edges.Visited, **settings: Any) -> Iterator[daemons.Place]:
    with daemons.placed("stranger") as place:
        program = place.own(edges.install(place.home, edge=outside.edge.address))
        keys = edges.write_keys(place.home / "keys")
        for path in (*keys.iterdir(), keys):
            place.own(path)
        wanted = {"program": str(program), "credentials_dir": str(keys), "check_s": 0.1, "ready_s": 60.0, **settings}
        lines = [f"{key} = {json.dumps(value)}" for key, value in wanted.items()]
        place.set("\n".join(["[monitor]", "min_interval_s = 0.5", "[watch]", "quiet_s = 0.01", "[tunnel]", *lines]))
        place.builtins = ("latticed", "")
        place.trust_us()
        yield place


def activated(place: daemons.Place, daemon: daemons.Daemon, outside: edges.Visited) -> Site:
    daemon.activate(ID, accept=["tunnel:admin", "monitor:admin"])
    permits = [f"origin={outside.service}"]
    assert daemon.ask("PUT", f"/api/plugins/by-id/{ID}/grants", {"permits": permits}).status == 200
    return Site(place, daemon, outside)


@pytest.fixture
def site() -> Iterator[Site]:
    with edges.in_thread() as outside, placed(outside) as place, place.running() as daemon:
        yield activated(place, daemon, outside)


def test_no_request_fails_while_the_configuration_changes(site):
    """Ten a second: changes that connect, one that does not, one that means nothing, one that the schema refuses."""
    site.configure(site.tunnel())
    site.until_level("ok")
    with site.outside.visiting(HOST) as answers:
        for names in (("one.example.com",), ("one.example.com", "two.example.com"), ()):
            site.configure(site.tunnel(*names))
            site.until_level("ok")
            for name in names[-1:]:  # the level may be that of the configuration before
                processes.until(lambda name=name: site.outside.ask(name) == HELLO, what=f"{name} to be answered")
        site.configure(site.tunnel("managed.example.com"))
        found = site.until_level("degraded", "change_undone")
        assert "was not connected in time" in found["message"]
        assert "change_undone" in site.until_health("degraded")
        processes.until(lambda: [one for one, _ in site.told()] == ["tunnel.not_as_configured"], what="the alert")
        # Hidden by the rule before it: the schema cannot say so, and what answers goes on.
        site.configure(site.tunnel("*.example.com", "a.example.com"))
        assert "tunnels[0].ingress[2]" in site.until_health("degraded", "not carried out")
        wrong = {"tunnels": [site.tunnel(ingress=[{"service": "bastion"}])]}
        refused = site.daemon.ask("PUT", f"/api/plugins/by-id/{ID}/config", {"config": wrong})
        assert (refused.status, "tunnels[0].ingress[0].service" in refused.body.decode()) == (422, True), refused
        site.configure(site.tunnel())
        site.until_level("ok")
        assert len(answers) > 30
        assert [one for one in answers if one != HELLO] == []
    assert site.until_health("healthy", "1 tunnels connected")
    metrics = site.daemon.get("/metrics").body.decode()
    assert 'latticed_tunnels{state="connected"} 1\n' in metrics
    assert f'latticed_tunnel_restarts{{plugin="{ID}"}} 0\n' in metrics


def test_every_loss_of_the_plugins_permission_ends_its_connectors(site):
    """Disabled, a capability trimmed, an origin withdrawn: no process is left; given back, visitors are answered."""
    site.configure(site.tunnel(), monitor_s=0)
    grants = f"/api/plugins/by-id/{ID}/grants"
    for take, give in (
        (lambda: site.daemon.set_status("disabled", ID), lambda: site.daemon.set_status("active", ID)),
        (
            lambda: site.daemon.ask("PUT", grants, {"trim": ["tunnel:admin"]}),
            lambda: site.daemon.ask("PUT", grants, {"grant": ["tunnel:admin"]}),
        ),
    ):
        processes.until(lambda: site.outside.ask(HOST) == HELLO, what="an answer")
        assert site.connectors()
        answer = take()
        assert answer.status == 200, answer
        assert site.connectors() == set(), "when the answer came"
        assert site.outside.ask(HOST)[0] == edges.NOBODY
        answer = give()
        assert answer.status == 200, answer
    processes.until(lambda: site.outside.ask(HOST) == HELLO, what="an answer")
    assert site.daemon.stop() == 0
    assert site.outside.ask(HOST)[0] == edges.NOBODY


def test_connector_sees_nothing_of_ours(site):
    """It has the network, so a rule of a hijacked account could have it dial our socket: no path leads there."""
    site.configure(site.tunnel())
    site.until_level("ok")
    ours = [
        site.place.socket,
        site.place.state / "ledger.sqlite3",
        site.place.config,
        site.place.home / "keys/main.json",
    ]
    assert all(path.exists() for path in ours)
    here = os.stat("/")
    # Not those with the daemon's own root, which start the connector and wait for it.
    roots = [
        root for pid in site.connectors() if not os.path.samestat(os.stat(root := Path(f"/proc/{pid}/root")), here)
    ]
    assert roots
    for root in roots:
        assert (root / "usr").is_dir(), "the test can look into it"
        assert [path for path in ours if (root / path.relative_to("/")).exists()] == []


def test_revoked_plugin_has_no_connector_until_the_revocation_is_lifted(site):
    """`latticectl trust revoke` with a tunnel that serves; a new start of the daemon opens none either."""
    site.configure(site.tunnel(), monitor_s=0)
    site.until_level("ok")
    revoked = f"{ID}@*"
    told = site.daemon.ctl("trust", "revoke", "--plugin", revoked, "--trust", str(site.place.trust))
    assert told.returncode == 0, told
    site.daemon.until_state("failed", ID, code="plugin_revoked")
    assert site.connectors() == set()
    assert site.outside.ask(HOST)[0] == edges.NOBODY
    assert site.daemon.stop() == 0
    with site.place.running() as daemon:
        again = Site(site.place, daemon, site.outside)
        daemon.until_state("failed", ID, code="plugin_revoked")
        assert again.connectors() == set()
        site.place.trust_us()
        lifted = {"kind": "plugin", "value": revoked}
        daemon.until(lambda: daemon.post("/api/trust/lift", lifted).status == 200, "the revocation to be lifted")
        daemon.until_state("armed", ID)
        processes.until(lambda: site.outside.ask(HOST) == HELLO, what="an answer")
        assert daemon.stop() == 0


def test_tunnels_come_back_after_kill_9_and_a_change_under_way_is_made(site):
    """The daemon is killed while a change is tried: the rules before serve, then the configured ones."""
    site.configure(site.tunnel())
    site.until_level("ok")
    site.configure(site.tunnel("unready.example.com"))
    processes.until(lambda: site.status()[0]["trying"], what="the change to be tried")
    left = site.connectors()
    site.daemon.kill()
    hosting.until_gone(left)
    with site.place.running() as daemon:
        again = Site(site.place, daemon, site.outside)
        processes.until(lambda: site.outside.ask(HOST) == HELLO, what="an answer")
        processes.until(lambda: again.status()[0]["trying"], what="the change to be tried again")
        again.configure(again.tunnel("two.example.com"))
        processes.until(lambda: site.outside.ask("two.example.com") == HELLO, what="an answer by the new rules")
        again.until_level("ok")
        assert daemon.stop() == 0


@pytest.mark.parametrize("mode", [0o644, 0o640])
def test_credentials_that_others_can_read_start_nothing(site, mode):
    """Told with file and mode; once it is mended, the next try finds it so."""
    key = site.place.home / "keys/main.json"
    key.chmod(mode)
    site.configure(site.tunnel())
    found = site.until_level("down", "service_unavailable")
    assert f"main.json has mode {mode:04o}" in found["message"]
    assert site.connectors() == set()
    key.chmod(0o600)
    assert site.invoke("retry")["ok"]
    site.until_level("ok")
    # While it runs, a change with such a file is refused, and what runs goes on.
    key.chmod(mode)
    site.configure(site.tunnel("one.example.com"))
    assert "what was configured before goes on" in site.until_level("degraded", "service_unavailable")["message"]
    assert site.outside.ask(HOST) == HELLO


def test_operator_is_told_of_refused_credentials_once_and_retries_them(site):
    """cloudflared ends with 255, is not started again, and a mended file takes one command."""
    key = site.place.home / "keys/main.json"
    edges.write_credentials(key, secret="QQ" * 16)
    site.configure(site.tunnel())
    found = site.until_level("down", "credentials_refused")
    assert "tunnel.credentials_dir" in found["fix"]
    assert site.connectors() == set()
    (event,) = processes.until(lambda: [one for one in site.told() if one[0] == "tunnel.down"], what="the alert")
    assert "credentials_refused" in event[1]
    edges.write_credentials(key)
    assert site.invoke("retry", {"name": "main"})["ok"]
    site.until_level("ok")
    processes.until(lambda: sorted(one for one, _ in site.told()) == ["tunnel.down", "tunnel.up"], what="its end")


@pytest.mark.parametrize(
    ("name", "level", "code"),
    [
        ("offline.example.com", "down", "no_name_service"),
        ("unready.example.com", "down", "edge_unreachable"),
        ("managed.example.com", "down", "remotely_managed"),
    ],
)
def test_each_state_of_a_tunnel_has_a_code_and_what_to_do(site, name, level, code):
    text = site.place.config.read_text()
    site.place.write(site.place.config, text.replace("ready_s = 60.0", "ready_s = 1.0").encode())
    seen = len(site.daemon.log("settings_loaded"))
    site.daemon.process.send_signal(signal.SIGHUP)
    processes.until(lambda: len(site.daemon.log("settings_loaded")) > seen, what="the settings")
    site.configure(site.tunnel(name))
    found = site.until_level(level, code)
    assert found["fix"]
    assert code in site.until_health("degraded", "main")


def test_origin_that_is_down_is_watched_and_told(site):
    """Its monitor is the plugin's; the tunnel itself is connected. An answer of 401 is one of an origin that works."""
    site.outside.site.answer = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
    site.configure(site.tunnel(), monitor_s=10)
    found = site.until_level("ok")
    assert [one["service"] for one in found["origins"]] == [site.outside.service]
    processes.until(lambda: site.status()[0]["origins"][0]["state"] == "up", what="the origin's monitor")
    rows = site.daemon.get("/api/monitors").json()["monitors"]
    assert [(one["name"], one["interval_s"]) for one in rows] == [(f"http-127.0.0.1-{site.outside.site.port}", 10)]
    site.outside.site.answer = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
    processes.until(lambda: site.status()[0]["origins"][0]["state"] == "down", what="the origin down")
    assert site.until_health("degraded", f"origin {site.outside.service} is down: status_unexpected")
    processes.until(lambda: "monitor.down" in [one for one, _ in site.told()], what="the alert")
    assert site.status()[0]["level"] == "ok"
    site.configure(site.tunnel(), monitor_s=0)
    processes.until(lambda: site.daemon.get("/api/monitors").json()["monitors"] == [], what="no monitor")
    assert site.status()[0]["origins"][0]["state"] == "not_watched"


def test_tunnel_that_is_renamed_or_no_longer_configured(site):
    """Under another name it goes on until the new one answers; a configuration without tunnels ends them."""
    site.configure(site.tunnel(name="first"))
    site.until_level("ok")
    with site.outside.visiting(HOST) as answers:
        site.configure(site.tunnel(name="second"))
        processes.until(lambda: _names(site) == ["second"], what="the second in the first one's place")
        site.until_level("ok")
        assert [one for one in answers if one != HELLO] == []
    site.configure()
    processes.until(lambda: site.connectors() == set(), what="no connector")
    assert site.outside.ask(HOST)[0] == edges.NOBODY


def _names(site: Site) -> list[str]:
    return sorted(path.name.partition("+")[2] for path in (site.place.state / "tunnels").iterdir())


def test_version_is_shown_and_an_old_one_noted_and_replaced_by_the_operator_alone(site):
    """A newer cloudflared beside it, and a reload: visitors do not notice."""
    site.configure(site.tunnel())
    assert site.until_level("ok")["version"] == "2025.11.1"
    old = site.place.own(edges.install(site.place.home, edge=site.outside.edge.address, version="2020.1.0", name="old"))
    with site.outside.visiting(HOST) as answers:
        text = site.place.config.read_text()
        site.place.write(site.place.config, text.replace('/cloudflared"', '/old"').encode())
        site.daemon.process.send_signal(signal.SIGHUP)
        found = processes.until(
            lambda: next((one for one in site.status() if one["version"] == "2020.1.0"), None), what="the other version"
        )
        assert "older than a year" in found["note"]
        assert site.until_health("healthy", "older than a year")
        assert old.exists()
        assert [one for one in answers if one != HELLO] == []


def test_findings_name_their_places_before_anything_is_set(site):
    """`latticectl invoke latticed.cloudflared check`, with every kind of rule that cloudflared would take."""
    bad = [
        {"service": one} for one in ("unix:/run/latticed/control.sock", "tcp://db:5432", "ssh://h:22", "socks-proxy")
    ]
    found = site.invoke("check", {"tunnels": [site.tunnel(ingress=[*bad, REST])]})["result"]
    assert found["ok"] is False
    assert [one["path"] for one in found["findings"]] == [f"tunnels[0].ingress[{n}].service" for n in range(4)]
    assert site.invoke("check", {"tunnels": [site.tunnel()]})["result"] == {"ok": True, "findings": []}
    for name in ("main", ["main"], {}, None):
        assert "no such tunnel" in site.invoke("retry", {"name": name})["error"]
    assert "expected nothing" in site.invoke("retry", "main")["error"]
