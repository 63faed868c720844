"""A service in a network of its own, in the real daemon under its own user: the ways in and out, and what is closed."""

from __future__ import annotations

import contextlib
import json
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.house import hosting, listeners

pytestmark = pytest.mark.daemon

ID = "acme.proxied"
CAPABILITIES = ["http:egress", "task:run", "worker:route"]
PLUGIN = b"""#!/usr/bin/env python3
from latticed.sdk import HostError, Plugin

class Proxied(Plugin):
    def do_put(self, payload):
        return self.service.put("web", program="python", network="own", **payload)

    def do_fetch(self, payload):
        try:
            found = self.http.get(**payload)
        except HostError as error:
            return {"code": error.code}
        return {"status": found.status, "text": found.text()}

    def do_route(self, payload):
        return self.route.put(**payload)

Proxied().run()
"""
SETTINGS = """
[http]
service_listen = "127.0.0.1:0"
[service]
programs = { python = "/usr/bin/python3" }
"""
# Answers GET /KIND/REST with what it finds when it tries that: a file, a socket in the file system, host:port.
WEB = """
import os, socket, threading
def tried(what):
    kind, _, rest = what.partition('/')
    try:
        if kind == 'file': return str(os.stat('/' + rest).st_mode)
        if kind == 'unix':
            socket.socket(socket.AF_UNIX).connect('/' + rest)
            return 'connected'
        host, _, port = rest.rpartition(':')
        with socket.create_connection((host.strip('[]'), int(port)), timeout=10) as one:
            one.sendall(b'GET /from-inside HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')
            said = b''
            while piece := one.recv(1000): said += piece
            return said.split(b'\\r\\n')[0].decode() or 'closed'
    except OSError as error:
        return type(error).__name__
def answer(one):
    with one, one.makefile('rb') as lines:
        first = lines.readline().split(b' ')
        while lines.readline() not in (b'\\r\\n', b''): pass
        said = tried(first[1].decode()[1:]).encode() if len(first) > 1 else b''
        one.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n' % len(said) + said)
listener = socket.create_server(('127.0.0.1', 3000))
while True:
    threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
"""
UNREACHED = {"FileNotFoundError", "PermissionError", "ConnectionRefusedError", "OSError", "gaierror"}


@pytest.fixture(scope="module")
def host():
    with hosting.hosting(SETTINGS) as found:
        found.drop(ID, PLUGIN, capabilities=CAPABILITIES)
        found.daemon.activate(ID, accept=CAPABILITIES)
        yield found


@pytest.fixture
def server():
    with listeners.listening() as found:
        yield found


@contextlib.contextmanager
def bound(host, server):
    """Within the block `files.example.org` at the server's port is an origin that the plugin may reach."""
    permit = f"origin=http://files.example.org:{server.port}=127.0.0.1"
    assert host.daemon.ctl("caps", "grant", ID, permit).returncode == 0
    yield
    assert host.daemon.ctl("caps", "trim", ID, permit).returncode == 0


def inside(host, what):
    return host.result(ID, "fetch", {"url": f"http://127.0.0.1:3000/{what}", "service": "web"})


def started(host, **more):
    host.result(ID, "put", {"args": ["-c", WEB], **more})
    host.daemon.until(lambda: inside(host, "file/").get("status") == 200, "the service to answer")


def tried(host, what):
    """What the program found when it tried `what`."""
    found = inside(host, what)
    assert found["status"] == 200, found
    return found["text"]


def last_call(host):
    """The last connection on record: (decision, code, host)."""
    event = host.daemon.events(action="host.call", target="service.connect")[-1]
    return event["decision"], event["code"], event["detail"]["host"]


def programs(host):
    """The processes of the service."""
    return [pid for pid in host.processes() if b"from-inside" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_nothing_of_the_host_is_within_reach_and_a_granted_host_is(host, server):
    place, name = host.daemon.place, f"files.example.org:{server.port}"
    refused = host.invoke(ID, "put", {"args": ["-c", WEB], "hosts": [name]})
    assert "egress_blocked" in json.dumps(refused.json())
    with bound(host, server):
        started(host, hosts=[name], data={"bytes": 100_000, "files": 10})
        assert tried(host, f"tcp/{name}") == "HTTP/1.0 200 OK"
        assert server.connections == 1
        for what in (
            f"unix{place.socket}", f"file{place.state}/ledger.sqlite3", f"file{place.config}", "file/proc/self/status",
            f"tcp/127.0.0.1:{server.port}", f"tcp/localhost:{server.port}", f"tcp/[::1]:{server.port}",
            "tcp/169.254.169.254:80", "tcp/10.0.0.1:80", "tcp/192.168.1.1:80", "tcp/8.8.8.8:53", "tcp/example.org:443",
        ):  # fmt: skip
            assert tried(host, what) in UNREACHED, what
        assert server.connections == 1
        assert last_call(host) == ("allow", "", name)
    # Taken back: refused and on record, while the program runs on; then nothing of it is left.
    assert tried(host, f"tcp/{name}") in {"closed", "ConnectionResetError"}
    assert server.connections == 1
    assert last_call(host)[:2] == ("deny", "egress_blocked")
    assert programs(host)
    assert host.daemon.set_status("disabled", ID).status == 200
    assert programs(host) == []
    assert host.daemon.set_status("active", ID).status == 200
    host.daemon.until_state("armed", ID)


def test_visitors_reach_it_by_a_route_and_are_told_while_it_is_away(host):
    started(host)
    put = host.result(
        ID,
        "route",
        {
            "path": f"/{ID}/",
            "target": "service",
            "service": "web",
            "origin": "http://127.0.0.1:3000",
            "public": ["/file/*"],
        },
    )

    def visited():
        try:
            with urllib.request.urlopen(f"{put['url']}file/x", timeout=30) as answer:  # noqa: S310 - our listener
                return answer.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    assert visited() == 200
    host.result(ID, "put", {"args": ["-c", "import time; time.sleep(1000)"]})
    host.daemon.until(lambda: visited() == 502, "visitors to be told")
    started(host)
    assert visited() == 200
    listed = json.loads(host.daemon.ctl("route", "list", "--format", "json").stdout)
    assert [one["service"] for one in listed] == ["web"]


def test_killed_daemon_takes_program_and_door_with_it():
    """Nothing of either is left, and both are there again after the next start."""
    with hosting.hosting(SETTINGS) as host:
        host.drop(ID, PLUGIN, capabilities=CAPABILITIES)
        host.daemon.activate(ID, accept=CAPABILITIES)
        started(host)
        everything = host.processes()
        host.daemon.kill()
        hosting.until_gone(everything)
        with host.daemon.place.running() as again:
            back = hosting.Host(daemon=again, author=host.author)
            again.until_state("armed", ID)
            again.until(lambda: inside(back, "file/").get("status") == 200, "the service to answer again")
