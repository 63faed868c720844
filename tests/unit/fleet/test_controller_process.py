"""The program latticed-controller: its socket, who may ask what, its answers, its end."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from latticed.fleet.controller import settings
from latticed.trust import key_files
from tests.house import bundles, fleets, prometheus
from tests.house.controller_processes import ControllerProcess
from tests.house.fleet_controllers import Operator

_numbers = itertools.count(1)


@pytest.fixture
def operator():
    return Operator(f"process-{next(_numbers)}")


@pytest.fixture
def made(fleet, operator, tmp_path):
    controller = ControllerProcess(fleet, tmp_path, operator=operator)
    yield controller
    if controller.process is not None:
        controller.stop()


@pytest.fixture
def running(made):
    made.start()
    made.certified()
    made.leads()
    return made


def tarred(place: Path, **fields) -> tuple[str, bytes]:
    bundle = bundles.drop(place, "x", author=bundles.author("acme"), v2=True, **fields)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("manifest.json", "artifact"):
            archive.add(bundle.path / name, name)
    return hashlib.sha256(data.getvalue()).hexdigest(), data.getvalue()


def test_says_what_it_is_and_ends_by_sigterm(running):
    fleet = running.get("fleet")
    assert (fleet["fleet"], fleet["controller"], fleet["leader"]) == (running.operator.fleet, "c1", True)
    assert fleet["lease"]["holder"] == "c1"
    assert fleet["engine"] == {"connected": True, "reason": "", "cuts_off": False}
    assert fleet["certificate"]["state"] == "valid"
    assert running.stop() == 0
    assert not running.socket.exists()


def test_without_a_certificate_it_says_so(made):
    made.start()
    fleet = made.get("fleet")
    assert fleet["certificate"]["state"] == "missing"
    assert "controller_uncertified" in {one["code"] for one in fleet["alarms"]}
    assert made.get("health") == {"status": "degraded"}


def test_dry_run_shows_what_would_change_and_what_is_consented_to(running, tmp_path):
    operator = running.operator
    sha256, data = tarred(tmp_path, id="acme.demo", version="1.2.0")
    status, bundle = running.ask("PUT", f"/api/fleet/bundles/{sha256}", data)
    assert (status, bundle["id"], bundle["version"], bundle["new"]) == (200, "acme.demo", "1.2.0", True)
    assert running.ask("PUT", f"/api/fleet/bundles/{sha256}", data)[1]["new"] is False
    running.post("documents", operator.node("web-1", fleets.public(fleets.NODE)))
    plugin = fleets.plugin(
        identity=None, versions="^1.0", publisher="acme", accept=("host=example.org:443",), secrets=("token",)
    )
    intent = running.post("documents", operator.intent(plugins=(plugin,)))["sha256"]
    plan = running.post("plan", {"intent": intent, "nodes": ["web-1", "web-9"]})
    by_name = {one["node"]: one for one in plan["nodes"]}
    assert by_name["web-9"]["refused"] == "node_unknown"
    (change,) = by_name["web-1"]["changes"]
    assert (change["change"], change["to_version"], change["added"]) == ("install", "1.2.0", ["host=example.org:443"])
    assert any("way back" in one for one in plan["notes"])
    assert running.get("fleet", "rollouts") == {"rollouts": []}
    (listed,) = running.get("fleet", "intents")["intents"]
    assert (listed["sha256"], listed["selected"], listed["plugins"][0]["bundle"]) == (intent, 1, sha256)


def test_bundle_that_is_another_or_none_is_refused_and_leaves_nothing(running, tmp_path):
    sha256, data = tarred(tmp_path, id="acme.demo")
    for name, body, code in (
        ("ab" * 32, data, "bundle_mismatch"),
        (hashlib.sha256(b"no tar").hexdigest(), b"no tar", "bundle_invalid"),
        (sha256.upper(), data, "bad_request"),
    ):
        status, problem = running.ask("PUT", f"/api/fleet/bundles/{name}", body)
        assert (status >= 400, problem["code"]) == (True, code)
    assert list((running.state / "bundles").iterdir()) == []
    assert running.get("fleet", "bundles") == {"bundles": []}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "documents", b"{}", 400, "document_malformed"),
        ("POST", "documents", b"x" * (300 << 10), 413, "too_large"),
        ("POST", "rollouts", b'{"intent": "no"}', 400, "bad_request"),
        ("POST", "rollouts", b'{"intent": "' + b"a" * 64 + b'"}', 404, "not_found"),
        ("POST", "rollouts", b'{"intent": "' + b"a" * 64 + b'", "silly": 1}', 400, "bad_request"),
        ("POST", "rollouts/none/halt", b"{}", 404, "not_found"),
        ("GET", "rollouts/none", None, 404, "not_found"),
        ("GET", "nodes/none", None, 404, "not_found"),
        ("GET", "nodes?limit=0", None, 400, "bad_request"),
        ("GET", "events?after=9223372036854775808", None, 400, "bad_request"),
        ("GET", "nothing", None, 404, "not_found"),
        ("DELETE", "nodes", None, 405, "method_not_allowed"),
        ("POST", "invoke", b"[]", 400, "document_malformed"),
    ],
)
def test_what_is_asked_wrongly_is_refused_with_a_problem(running, method, path, body, status, code):
    found, problem = running.ask(method, f"/api/fleet/{path}", body)
    assert (found, problem["code"]) == (status, code)


def test_metrics_are_text_that_prometheus_reads(running):
    running.post("documents", running.operator.node("web-1", fleets.public(fleets.NODE)))
    status, text = running.ask("GET", "/metrics")
    assert status == 200
    assert prometheus.exposed(text.decode())["latticed_fleet_nodes"]
    lines = text.decode().splitlines()
    assert 'latticed_fleet_nodes{state="away"} 1' in lines
    assert "latticed_fleet_leader 1" in lines
    assert "latticed_fleet_engine_connected 1" in lines


def test_half_a_request_holds_nobody_up(running):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stalling:
        stalling.connect(str(running.socket))
        stalling.sendall(b"POST /api/fleet/documents HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert running.get("fleet")["leader"] is True
        stalling.settimeout(60)
        assert b"400" in stalling.recv(1 << 16).split(b"\r\n")[0]


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="needs another uid to ask as")
def test_others_may_ask_what_the_settings_say(fleet, operator, tmp_path):
    tmp_path.chmod(0o755)
    for path in tmp_path.parents:
        if path.stat().st_uid == os.getuid() and len(path.parts) > 2:
            path.chmod(path.stat().st_mode | 0o011)
    controller = ControllerProcess(
        fleet, tmp_path, operator=operator, more='[access]\nsocket_group = "65541"\nusers = {65541 = ["read"]}\n'
    )
    controller.start()
    try:
        asks = """
import http.client, socket, sys
def ask(method, path):
    made = http.client.HTTPConnection("localhost")
    made.sock = socket.socket(socket.AF_UNIX); made.sock.connect(sys.argv[1])
    made.request(method, path, b"{}" if method == "POST" else None)
    return made.getresponse().status
print(ask("GET", "/api/health"), ask("GET", "/api/fleet"), ask("POST", "/api/fleet/documents"), ask("GET", "/metrics"))
"""

        def asked(uid: int, gid: int) -> str:
            done = subprocess.run(
                [sys.executable, "-I", "-c", asks, str(controller.socket)],
                user=uid,
                group=gid,
                extra_groups=[],
                capture_output=True,
                text=True,
                check=False,
            )
            return done.stdout.strip() or done.stderr.strip().splitlines()[-1]

        assert asked(65541, 65541) == "200 200 403 200"
        assert asked(65542, 65541) == "200 403 403 403"
        assert "PermissionError" in asked(65542, 65542)
    finally:
        controller.stop()


def test_events_are_followed_as_lines(running):
    status, page = running.ask("GET", "/api/fleet/events")
    assert (status, page) == (200, {"events": [], "next": 0})
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as following:
        following.connect(str(running.socket))
        following.settimeout(60)
        following.sendall(b"GET /api/fleet/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n")
        heard = b""
        while b"\r\n\r\n" not in heard or b"\n\r\n" not in heard.partition(b"\r\n\r\n")[2]:
            heard += following.recv(4096)
        assert b"application/x-ndjson" in heard
        # The stream ends with the controller, which does not wait for it.
        assert running.stop() == 0
        while following.recv(4096):
            pass


def test_backup_is_written_whole_and_opens(running, tmp_path):
    intent = running.post("documents", running.operator.intent())["sha256"]
    done = running.post("backup", {"name": "one.db"})
    data = Path(done["path"]).read_bytes()
    assert (len(data), hashlib.sha256(data).hexdigest()) == (done["size"], done["sha256"])
    assert running.ask("POST", "/api/fleet/backup", b'{"name": "one.db"}')[1]["code"] == "exists"
    assert running.ask("POST", "/api/fleet/backup", b'{"name": "../x"}')[1]["code"] == "bad_request"
    running.stop()
    for one in running.state.glob("controller.db*"):
        one.unlink()
    Path(done["path"]).rename(running.state / "controller.db")
    running.start()
    assert [one["sha256"] for one in running.get("fleet", "intents")["intents"]] == [intent]


@pytest.mark.parametrize(
    ("break_it", "code", "says"),
    [
        (lambda one: one.config.write_text("fleet = 3"), os.EX_CONFIG, "settings_invalid"),
        (lambda one: one.config.write_text(one.config.read_text() + "\nsilly = 1\n"), os.EX_CONFIG, "settings_invalid"),
        (lambda one: one.config.chmod(0o666), os.EX_CONFIG, "settings_invalid"),
        (
            lambda one: (one.state.mkdir(0o700), (one.state / "controller.db").write_bytes(b"no database" * 999)),
            os.EX_IOERR,
            "store_damaged",
        ),
        (lambda one: (one.state.mkdir(0o755), one.state.chmod(0o755)), 1, "state_unusable"),
    ],
)
def test_what_it_cannot_start_with_is_said_with_an_exit_code(made, break_it, code, says):
    break_it(made)
    made.launch()
    assert made.process.wait(60) == code
    assert says in made.said


def test_second_one_on_the_same_state_is_refused(running, fleet, tmp_path):
    second = subprocess.run(
        [sys.executable, "-P", "-m", "latticed.fleet.controller.process", "--config", running.config],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (second.returncode, "state_in_use" in second.stderr) == (os.EX_TEMPFAIL, True)


def test_new_key_is_refused_while_it_runs(running):
    before = (running.state / "key").read_bytes()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "latticed.fleet.controller.process", "--config", running.config, "--new-key"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "state_in_use" in done.stderr) == (os.EX_TEMPFAIL, True)
    assert (running.state / "key").read_bytes() == before


def test_half_a_bundle_of_a_killed_controller_is_gone_after_its_next_start(running, tmp_path):
    sha256, data = tarred(tmp_path, id="acme.demo")
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(str(running.socket))
        head = f"PUT /api/fleet/bundles/{sha256} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        asking.sendall(head.encode() + data[:1_000])
        running.until(lambda: list((running.state / "bundles").iterdir()) != [], "half a bundle")
        running.kill()
    running.start()
    assert list((running.state / "bundles").iterdir()) == []


def test_new_key_is_made_while_it_does_not_run(made):
    made.start()
    first = made.get("fleet")["certificate"]["key"]
    made.stop()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "latticed.fleet.controller.process", "--config", made.config, "--new-key"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    made.start()
    assert made.get("fleet")["certificate"]["key"] == done.stdout.strip() != first
    assert len(list(made.state.glob("key.*"))) == 1


def test_files_that_only_root_reads_are_handed_over_by_the_service_manager(fleet, operator, tmp_path):
    """As the unit has it: no path of them can be read by the controller's user."""
    controller = ControllerProcess(fleet, tmp_path, operator=operator)
    handed = tmp_path / "credentials"
    handed.mkdir(0o700)
    key = key_files.generate()
    key_files.create(handed / "fleet_key", key)
    (handed / "fleet_ca.pem").write_bytes(fleet.ca.read_bytes())
    (handed / "fleet_nats.creds").write_bytes(fleet.controller.read_bytes())
    (handed / "fleet_node-signer").write_text(fleet.identities.node_signer.seed + "\n")
    plain = controller.config.read_text()
    for line in ("key = ", "ca = ", "credentials = "):
        plain = re.sub(rf"^{line}.*\n", "", plain, flags=re.MULTILINE)
    signer = f'[enrolment]\nnode_signer = "{settings.FILES}/node-signer"\naccount = "{fleet.identities.nodes.public}"\n'
    (handed / "fleet_controller.toml").write_text(plain + signer)
    controller.config = None
    controller.environment["CREDENTIALS_DIRECTORY"] = str(handed)
    controller.start()
    try:
        assert controller.get("fleet")["certificate"]["key"] == key_files.public_text(key)
        controller.certified()
        controller.leads()
        assert "joining_off" not in controller.said
        assert not (controller.state / "key").exists()
    finally:
        controller.stop()


def test_stopped_by_sigint_as_well(running):
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(60) == 0
