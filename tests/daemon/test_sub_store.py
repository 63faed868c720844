"""Sub-Store end to end: the real daemon, a Node backend with its routes, visitors, an operator, and what goes wrong."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.house import children, corpora, path_readings, raw_http, sub_stores
from tests.house.sub_stores import ID, PASSWORD, TOKEN

pytestmark = pytest.mark.daemon

SUB = {"name": "mine", "source": "local", "content": "vless://somewhere"}


@pytest.fixture(scope="module")
def shared():
    """One that has been set up, for tests that change nothing but subscriptions."""
    with sub_stores.running() as found:
        found.log_in()
        found.api("POST", "/subs", SUB)
        yield found


@pytest.fixture
def store():
    with sub_stores.running() as found:
        found.log_in()
        found.api("POST", "/subs", SUB)
        yield found


@contextlib.contextmanager
def anonymous(store):
    cookie, store.cookie = store.cookie, ""
    try:
        yield store
    finally:
        store.cookie = cookie


# Who reaches it.


def test_api_is_behind_the_login_and_has_no_secret(shared):
    """Its API is code execution: not one request without login reaches it."""
    with anonymous(shared):
        for method, path in (
            ("GET", "/backend/api/utils/env"),
            ("POST", "/backend/api/preview/sub"),
            ("GET", "/api/utils/env"),
            ("GET", "/backend/download/../api/utils/env"),
            ("GET", "/backend/download/%2e%2e/api"),
        ):
            assert shared.ask(method, path, {} if method == "POST" else None).status in {400, 401}, path
    env = shared.api("GET", "/utils/env")["meta"]["node"]["env"]
    assert env["SUB_STORE_BACKEND_API_HOST"] == "127.0.0.1"
    assert env["SUB_STORE_BACKEND_PREFIX"] == "1"
    assert env["SUB_STORE_DATA_BASE_PATH"] == "/data"
    assert set(env) == set(sub_stores.VARIABLES)
    whole = json.dumps(shared.run("return JSON.stringify(process.env)"))
    assert PASSWORD not in whole
    assert TOKEN not in whole
    assert "secret" not in whole.lower()


RECORD = """
const server = require('http').Server.prototype;
if (!server.seen) {
  const emit = server.emit;
  server.seen = [];
  server.emit = function (name, request) {
    if (name === 'request' || name === 'upgrade') server.seen.push([request.method, request.url, request.rawHeaders]);
    return emit.apply(this, arguments);
  };
}
return JSON.stringify(server.seen.splice(0));
"""


STRANGER = "a-stranger"
"""A value of X-Request-ID, which the proxy passes on."""


@pytest.fixture
def recorded(shared):
    """What reaches the backend is recorded inside it: `shared.run(RECORD)` gives and forgets [method, url, headers]."""
    shared.run(RECORD)
    shared.run(RECORD)
    return shared


HEALTH = ["GET", "/backend/api/utils/env"]


def arrived(store):
    """All requests since the last look, but for the look itself and the plugin's own health checks."""
    found = store.run(RECORD)
    assert found.pop()[:2] == ["POST", "/backend/api/preview/sub"]
    return [one for one in found if one[:2] != HEALTH or STRANGER in one[2]]


def sent(store, data):
    """The answers to these bytes, until the other side closes."""
    where = urlsplit(store.url)
    with socket.create_connection((where.hostname, where.port), timeout=sub_stores.PATIENCE_S) as sock:
        raw_http.send_anyway(sock, data)
        return raw_http.parsed(raw_http.until_closed(sock), first_method=data.partition(b" ")[0].decode("latin-1"))


def test_no_reading_of_a_strangers_path_leaves_the_downloads(recorded):
    """Dot segments and dividers in every encoding, with the token: the backend sees downloads of two names alone."""
    where, reached = urlsplit(recorded.url), 0
    head = f" HTTP/1.1\r\nHost: {where.netloc}\r\nX-Request-ID: {STRANGER}\r\nConnection: close\r\n\r\n"
    for target in path_readings.targets():
        answers = sent(recorded, f"GET {where.path}backend{target}?token={TOKEN}{head}".encode())
        assert not {answer.status for answer in answers} & {200, 502, 504}, (target, answers)
    for method, url, _ in arrived(recorded):
        reached += 1
        assert method == "GET"
        for one in path_readings.readings(url):
            parts = one.strip("/").split("/")
            assert (len(parts), parts[:2]) == (4, ["backend", "download"]), (url, one)
    assert reached, "some of these paths are downloads"


def test_nothing_of_a_strangers_request_reaches_the_api(recorded):
    """Rows that HTTP parsers are tested with, and a request for the API right behind them on the same connection."""
    rows = corpora.rows("http_requests.json")
    where = urlsplit(recorded.url)
    host = f"Host: {where.netloc}"
    probe = f"GET {where.path}backend/api/storage HTTP/1.1\r\n{host}\r\nConnection: close\r\n\r\n".encode()
    forged = (
        f"X-Request-ID: {STRANGER}",
        f"Authorization: Basic {'QQ' * 8}",
        "X-Forwarded-For: 127.0.0.1",
        "X-Original-URL: /backend/api/storage",
    )
    for below in ("backend/api/storage", f"backend/download/mine/Clash?token={TOKEN}"):
        for row in rows:
            answers = sent(
                recorded, corpora.aimed(base64.b64decode(row["raw_b64"]), where.path + below, host, *forged) + probe
            )
            assert all(200 <= answer.status < 500 for answer in answers), (row["id"], answers)
        found = arrived(recorded)
        if "api" in below:
            assert found == []
            continue
        assert found, "some of these rows are sound"
        for _, url, headers in found:
            assert url == "/backend/download/mine/Clash"
            names = {name.lower() for name in headers[::2]}
            assert not names & {"authorization", "x-forwarded-for", "x-original-url", "cookie"}, headers
    assert recorded.api("GET", "/subs") == [SUB]


def test_subscription_is_downloaded_by_its_token(shared):
    """And nothing but it: the token opens no API, and `url` in the query has the backend fetch nothing."""
    with anonymous(shared):
        path = "/backend/download/mine/Clash"
        assert shared.ask("GET", f"{path}?token={TOKEN}").body == b"# Clash\nvless://somewhere"
        assert shared.ask("GET", f"{path}?token={TOKEN}&content=mine&url=http://127.0.0.1/").body.endswith(b"somewhere")
        for wrong in (path, f"{path}?token={TOKEN}x", f"/backend/api/settings?token={TOKEN}"):
            assert shared.ask("GET", wrong).status == 401, wrong
        assert shared.ask("DELETE", f"{path}?token={TOKEN}").status == 401
    assert shared.ask("GET", "/backend/download/mine/Clash").status == 200


def test_backend_is_on_no_port_of_the_host(shared):
    """It listens in a network of its own: the host's loopback has it not."""
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", 3000)) != 0


def test_backend_reaches_nothing_of_the_host(shared):
    """Not our sockets and state, not the host's loopback and addresses, no metadata service, no private network."""
    place = shared.daemon.place
    with socket.create_server(("127.0.0.1", 0)) as here:
        targets = [
            ["127.0.0.1", here.getsockname()[1]],
            ["127.0.0.1", urlsplit(shared.url).port],
            ["169.254.169.254", 80],
            ["10.0.0.1", 80],
            ["192.168.1.1", 80],
            ["1.1.1.1", 53],
            [str(place.socket), 0],
        ]
        script = """
        const net = require('net'), fs = require('fs'), result = {};
        for (const [host, port] of TARGETS) {
          result[host + ':' + port] = await new Promise(done => {
            const sock = port ? net.connect(port, host) : net.connect(host);
            sock.setTimeout(2000, () => { sock.destroy(); done('timeout'); });
            sock.on('connect', () => { sock.destroy(); done('connected'); });
            sock.on('error', error => done(error.code));
          });
        }
        for (const path of PATHS) {
          try { result[path] = fs.readdirSync(path).length ? 'listed' : 'empty'; }
          catch (error) { result[path] = error.code; }
        }
        return JSON.stringify(result);
        """
        paths = [str(place.state), str(place.run), str(place.home), "/root", "/home"]
        found = shared.run(script.replace("TARGETS", json.dumps(targets)).replace("PATHS", json.dumps(paths)))
        here.setblocking(False)
        with pytest.raises(BlockingIOError):
            here.accept()
    assert "connected" not in found.values(), found
    assert found[str(place.state)] != "listed", found
    assert found[str(place.run)] != "listed", found


# It ends, it is broken, it misbehaves.


def test_restart_is_502_and_never_a_hang(store):
    """While it is killed over and over, every request gets an answer; then it serves again what it had."""
    stop, seen = threading.Event(), []

    def visitor():
        while not stop.is_set():
            seen.append(store.ask("GET", "/backend/api/subs").status)

    thread = threading.Thread(target=visitor)
    thread.start()
    try:
        for _ in range(3):
            pid = store.daemon.until(lambda: store.backend["pid"], "the backend")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            store.daemon.until(lambda gone=pid: store.backend["pid"] not in {None, gone}, "another backend")
        store.daemon.until(lambda: seen[-1:] == [200], "an answer")
    finally:
        stop.set()
        thread.join()
    assert set(seen) <= {200, 502}
    assert {200, 502} <= set(seen)
    assert store.api("GET", "/subs") == [SUB]


def test_backend_that_dies_in_an_upload_is_502(store):
    """The connection is not left open."""
    assert store.ask("POST", "/backend/api/preview/sub", die()).status == 502
    store.until_serving()
    assert store.api("GET", "/subs") == [SUB]


def die():
    step = {"type": "Script Operator", "args": {"content": "process.exit(3)"}}
    return {"source": "local", "content": "x" * 500_000, "process": [step]}


def test_backend_that_forks_and_fills_its_disk_is_ended_and_told(store):
    """The host goes on; more quota has it run again."""
    before = store.backend["pid"]
    store.configure("2.14.0", data_bytes=4 << 20)
    store.daemon.until(lambda: store.backend["pid"] not in {None, before}, "the backend with less quota")
    store.until_serving()
    script = """
    const { spawn } = require('child_process');
    for (let i = 0; i < 20; i++) spawn('sh', ['-c', 'trap "" TERM; cat /dev/zero >/data/' + i], { detached: true });
    return '0';
    """
    with contextlib.suppress(OSError, AssertionError, http.client.HTTPException):
        store.run(script)
    store.daemon.until(lambda: (store.backend["last_error"] or {}).get("code") == "data_full", "its end")
    store.daemon.until(lambda: "is failed" in store.daemon.plugin(ID)["runtime"]["message"], "the plugin to say so")
    assert store.ask("GET", "/backend/api/subs").status == 502
    assert store.daemon.get("/api/health").status in {200, 503}
    own = {pid for pid in children.descendants(store.daemon.process.pid) if children.alive(pid)}
    assert not [pid for pid in own if b"/dev/zero" in Path(f"/proc/{pid}/cmdline").read_bytes()]


GARBAGE = {
    "no HTTP": "sock => sock.end('lattice? never heard of it\\r\\n\\r\\n')",
    "an endless head": "sock => { const more = () => sock.write('X: y\\r\\n', more);"
    " sock.write('HTTP/1.1 200 OK\\r\\n', more); }",
    "two lengths": "sock => sock.end('HTTP/1.1 200 OK\\r\\nContent-Length: 1\\r\\nContent-Length: 2\\r\\n\\r\\nab')",
    "a reset": "sock => sock.resetAndDestroy()",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_backend_that_answers_garbage_is_502_and_degraded(store, name):
    """The daemon goes on, and the version before is one command away."""
    bundle = store.folder / "garbage.js"
    bundle.write_text(f"require('net').createServer({GARBAGE[name]}).on('error', () => 0).listen(3000, '127.0.0.1');")
    store.configure("2.14.0", bundle=str(bundle))
    store.daemon.until(lambda: store.daemon.plugin(ID)["runtime"]["health"] == "degraded", "the plugin to say so")
    store.daemon.until(lambda: store.backend["state"] == "running", "the backend to run")
    store.daemon.until(lambda: store.ask("GET", "/backend/api/subs").status == 502, "it to be 502")
    assert store.daemon.get("/api/health").status == 200
    store.configure("2.14.0")
    store.until_serving()
    assert store.api("GET", "/subs") == [SUB]


# Backups.


def test_daily_backup_is_made_and_restored_whole(store):
    """By latticectl; the state before is kept, too, so that a restore can be undone."""
    made = json.loads(store.ctl("invoke", ID, "backup", "--format", "json"))
    first = made["result"]["id"] if "result" in made else made["id"]
    store.api("POST", "/subs", {**SUB, "name": "more"})
    restored = store.invoke("restore", {"id": first})
    store.until_serving()
    assert store.api("GET", "/subs") == [SUB]
    store.invoke("restore", {"id": restored["before"]})
    store.until_serving()
    assert [one["name"] for one in store.api("GET", "/subs")] == ["mine", "more"]
    assert {one["id"] for one in store.invoke("backups")["backups"]} >= {first, restored["before"]}
    assert store.daemon.get("/api/audit/verify").json()["ok"] is True


def test_files_are_saved_before_another_version_runs(store):
    """And can be put back under the old one."""
    store.api("POST", "/subs", {**SUB, "name": "before"})
    had = {one["id"] for one in store.invoke("backups")["backups"]}
    store.configure("2.15.0")
    store.until_healthy("2.15.0")
    (fresh,) = {one["id"] for one in store.invoke("backups")["backups"]} - had
    store.api("DELETE", "/sub/before")
    store.invoke("restore", {"id": fresh})
    store.until_serving()
    assert [one["name"] for one in store.api("GET", "/subs")] == ["mine", "before"]


def test_kill_9_in_a_restore_leaves_old_or_new(store):
    """The daemon is killed at any moment of it; the backend starts with the files of one moment."""
    place = store.daemon.place
    big = "x" * 200_000
    ids = []
    for name in ("one", "two"):
        store.api("PATCH", "/settings", {"mark": name, "fill": big})
        store.run(f"require('fs').writeFileSync('/data/root.json', JSON.stringify({{mark: '{name}'}})); return '0'")
        ids.append(store.invoke("backup")["id"])
    store.daemon.kill()
    chance = random.Random(7)
    for turn in range(6):
        with place.running() as daemon:
            again = sub_stores.Store(daemon=daemon, folder=store.folder)
            again.until_healthy()
            # Every third time a backup is made while that goes on.
            wanted = {"action": "restore", "payload": {"id": ids[turn % 2]}} if turn % 3 else {"action": "backup"}
            asking = threading.Thread(target=lambda d=daemon, w=wanted: ignore(d, w))
            asking.start()
            time.sleep(chance.uniform(0, 0.4))
            daemon.kill()
            asking.join()
        marks = set()
        for name in ("root.json", "sub-store.json"):
            found = json.loads((again.data() / name).read_text())
            marks.add(found.get("mark") or found["settings"]["mark"])
        assert len(marks) == 1, "files of two moments"
    with place.running() as daemon:
        again = sub_stores.Store(daemon=daemon, folder=store.folder)
        again.until_healthy()
        assert daemon.get("/api/audit/verify").json()["ok"] is True


def ignore(daemon, wanted):
    with contextlib.suppress(Exception):
        daemon.post(f"/api/plugins/by-id/{ID}/invoke", wanted)


# The way out.


def test_granted_host_is_reached_by_a_plain_get_and_no_other():
    """The backend knows no proxy; a host that was not granted has no name there."""

    class Feed(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"trojan://x")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Feed) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        port = server.server_address[1]
        try:
            host = f"feed.example.org:{port}"
            bound = f"origin=http://{host}=127.0.0.1"
            with sub_stores.running(grants=(bound,), hosts=[host]) as store:
                store.log_in()
                store.api("POST", "/subs", {"name": "far", "source": "remote", "url": f"http://{host}/x"})
                assert store.ask("GET", "/backend/download/far/Clash").body == b"# Clash\ntrojan://x"
                store.api(
                    "POST", "/subs", {"name": "other", "source": "remote", "url": f"http://other.example:{port}/"}
                )
                assert store.ask("GET", "/backend/download/other/Clash").status == 500
        finally:
            server.shutdown()


# What stops.


def test_revoked_it_serves_nobody_until_the_revocation_is_lifted(store):
    """While the backend runs and a visitor is logged in: no process, no listener; the files stay."""
    url, pid, place = urlsplit(store.url), store.backend["pid"], store.daemon.place
    store.ctl("trust", "revoke", "--plugin", f"{ID}@*", "--trust", str(place.trust))
    store.daemon.until_state("failed", ID, code="plugin_revoked")
    assert not Path(f"/proc/{pid}").exists()
    assert not [one for one in children.descendants(store.daemon.process.pid) if children.alive(one)]
    with socket.socket() as sock:
        assert sock.connect_ex((url.hostname, url.port)) != 0
    assert json.loads((store.data() / "sub-store.json").read_text())["subs"] == [SUB]
    place.trust_us()
    lifted = {"kind": "plugin", "value": f"{ID}@*"}
    store.daemon.until(
        lambda: store.daemon.post("/api/trust/lift", lifted).status == 200, "the revocation to be lifted"
    )
    store.until_healthy()
    store.log_in()
    assert store.api("GET", "/subs") == [SUB]


def test_nothing_of_it_lives_on_when_it_is_disabled(store):
    """No process, no listener; a backup and the files stay."""
    url = urlsplit(store.url)
    pid = store.backend["pid"]
    store.ctl("disable", ID)
    assert not Path(f"/proc/{pid}").exists()
    assert not [one for one in children.descendants(store.daemon.process.pid) if children.alive(one)]
    with socket.socket() as sock:
        assert sock.connect_ex((url.hostname, url.port)) != 0
    assert (store.data() / "sub-store.json").exists()
    store.ctl("activate", ID)
    store.until_healthy()


@pytest.mark.skipif("SUB_STORE_BUNDLE" not in os.environ, reason="SUB_STORE_BUNDLE names no bundle of Sub-Store")
def test_real_bundle_serves_and_keeps_a_subscription():
    """The released backend, under the same confinement."""
    with sub_stores.placed() as (place, folder), place.running() as daemon:
        store = sub_stores.Store(daemon=daemon, folder=folder)
        store.bundle = lambda _version: real(folder)
        sub_stores.prepare(store)
        store.log_in()
        store.api("POST", "/subs", {**SUB, "process": []})
        assert [one["name"] for one in store.api("GET", "/subs")] == ["mine"]
        assert store.invoke("backup")["new"]


def real(folder):
    path = folder / "sub-store.bundle.js"
    path.write_bytes(Path(os.environ["SUB_STORE_BUNDLE"]).read_bytes())
    path.chmod(0o644)
    return path
