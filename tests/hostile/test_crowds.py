"""Many clients and many refusals: none blocks those of other users, and a flood of denials is a few audit events."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time

import pytest

from latticed.host.call import HostError
from latticed.kit import peer_connection
from latticed.model.hostcall import Denial
from tests.house import bundles, daemons, in_process, processes, raw_http

ACME = bundles.author("acme")
OPEN_GID = 65510
CROWD = processes.User(uid=65530, gid=OPEN_GID)
USERS, HALVES = 12, 200
"""Users at once, and requests of each that are never completed."""
FEW = 60
"""What a flood may add to the chain: the quota of its window, and a count a second while it lasts."""

_FLOOD = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
answers = sock.makefile("rb")
refused = 0
for number in range(int(sys.argv[2])):
    sock.sendall(f"GET /api/plugins/by-id/x{number} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
    refused += answers.readline().split()[1] == b"403"
    size = 0
    while (line := answers.readline().strip()):
        if line.lower().startswith(b"content-length:"):
            size = int(line.split(b":")[1])
    answers.read(size)
print(refused)
"""
_CROWD = """
import socket, sys
crowd = []
for number in range(int(sys.argv[2])):
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1])
    crowd.append(sock)
    try:
        sock.sendall(b"GET /api/health HTTP/1.1\\r\\nHo"[: number % 30])
    except OSError:
        pass
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def crowded():
    """A daemon whose socket the crowd's user can reach, without any scope."""
    with daemons.placed(probed=True) as place:
        place.trust_us(ACME)
        place.drop(author=ACME)
        for path in (place.home.parent, place.home, place.run):
            path.chmod(0o711)
        with place.running() as daemon:
            if os.getuid() == 0:
                os.chown(place.socket, -1, OPEN_GID)
            daemon.activate()
            yield daemon
            assert daemon.plugin()["runtime"]["state"] == "armed"


@pytest.fixture
def daemon(crowded):
    """That daemon, whose event loop must not block for long during any test."""
    with crowded.turns.short():
        yield crowded


def _as_crowd(script, daemon, number, user=CROWD, **options):
    if os.getuid() != 0:
        pytest.skip("asking under another uid needs uid 0")
    command = [processes.reachable_python(), "-I", "-c", script, str(daemon.place.socket), str(number)]
    return subprocess.Popen(
        command, user=user.uid, group=user.gid, extra_groups=[], cwd="/", stdout=subprocess.PIPE, **options
    )


@pytest.mark.daemon
def test_three_hundred_stalled_requests_of_a_user_do_not_block_its_others(daemon):
    """They have half headers, half bodies, are half-closed or silent: each whole request of that user is answered."""
    starts = [
        b"",
        b"GET /api/hea",
        b"GET /api/health HTTP/1.1\r\nHost: x\r\n",
        raw_http.request("POST", "/x", b"{}")[:-1],
    ]
    crowd = []
    try:
        for number in range(300):
            crowd.append(raw_http.connected(daemon.place.socket))
            raw_http.send_anyway(crowd[-1], starts[number % 4])
            if number % 8 == 0:
                crowd[-1].shutdown(socket.SHUT_WR)
            if number % 10 == 0:
                assert daemon.get("/api/health").status == 200
        for _ in range(50):
            assert daemon.get("/api/health").status == 200
            assert daemon.get("/api/plugins").status == 200
    finally:
        for sock in crowd:
            sock.close()
    daemon.until(lambda: _descriptors(daemon) < 60, "the daemon to let go of them")


def _descriptors(daemon):
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


@pytest.mark.daemon
@pytest.mark.root
def test_connections_of_one_user_close_none_of_another(daemon):
    """Three hundred of one user; another user's stay open, idle or not."""
    with raw_http.connected(daemon.place.socket) as idle, raw_http.connected(daemon.place.socket) as begun:
        idle.sendall(raw_http.GOOD)
        assert raw_http.receive(idle).status == 200
        begun.sendall(raw_http.GOOD[:-2])
        with _as_crowd(_CROWD, daemon, 300, stdin=subprocess.PIPE) as crowd:
            assert crowd.stdout.readline() == b"there\n"
            begun.sendall(raw_http.GOOD[-2:])
            assert raw_http.receive(begun).status == 200
            idle.sendall(raw_http.GOOD)
            assert raw_http.receive(idle).status == 200
            assert _descriptors(daemon) < 200
            crowd.stdin.close()
        assert crowd.returncode == 0


@pytest.mark.daemon
@pytest.mark.root
def test_stalled_requests_of_twelve_users_do_not_affect_others(daemon):
    """Two hundred incomplete requests of each; every whole request is answered, their own too."""
    with contextlib.ExitStack() as stack:
        idle = stack.enter_context(raw_http.connected(daemon.place.socket))
        idle.sendall(raw_http.GOOD)
        assert raw_http.receive(idle).status == 200
        users = [processes.User(uid=CROWD.uid + 1 + number, gid=OPEN_GID) for number in range(USERS)]
        crowds = [_as_crowd(_CROWD, daemon, HALVES, user, stdin=subprocess.PIPE) for user in users]
        for crowd in crowds:
            stack.enter_context(crowd)
            assert daemon.get("/api/plugins").status == 200
        for crowd in crowds:
            assert crowd.stdout.readline() == b"there\n"
            assert daemon.get("/api/plugins").status == 200
        assert daemon.post("/api/plugins/by-id/acme.demo/invoke", {"action": "x"}).status == 200
        assert daemon.get("/api/health", user=users[0]).status == 200
        idle.sendall(raw_http.GOOD)
        assert raw_http.receive(idle).status == 200
        assert _descriptors(daemon) < USERS * peer_connection.PER_UID + FEW
        for crowd in crowds:
            crowd.stdin.close()
    assert [crowd.returncode for crowd in crowds] == [0] * USERS
    daemon.until(lambda: _descriptors(daemon) < FEW, "the daemon to let go of them")


@pytest.mark.daemon
@pytest.mark.root
def test_flood_of_403s_is_audited_as_a_few_counted_events(daemon):
    """Each is answered the same; the log has only a few lines as well."""
    before, logged = daemon.get("/api/status").json()["audit"]["seq"], len(daemon.log())
    with _as_crowd(_FLOOD, daemon, 2_000) as flood:
        assert int(flood.communicate()[0]) == 2_000
    events = daemon.until(lambda: _all_counted(daemon, before, 2_000), "all refusals to be accounted for")
    assert len(events) <= FEW
    assert {one["code"] for one in events} == {"access_denied"}
    assert all(str(CROWD.uid) in one["actor"] for one in events)
    assert len(daemon.log()) - logged <= FEW
    assert daemon.get("/api/audit/verify").json()["ok"] is True


def _all_counted(daemon, before, wanted):
    events = daemon.events(after=str(before), action="api.refused")
    assert sum(one["detail"].get("count", 1) for one in events) <= wanted
    return events if sum(one["detail"].get("count", 1) for one in events) == wanted else None


@pytest.mark.daemon
def test_flood_of_refused_decisions_is_audited_as_a_few_events(daemon):
    """A user with scope operate sends them, about plugins that do not exist."""
    before = daemon.get("/api/status").json()["audit"]["seq"]
    with raw_http.connected(daemon.place.socket) as sock:
        for number in range(1_000):
            body = json.dumps({"id": f"no.such{number}", "status": "active"}).encode()
            sock.sendall(raw_http.request("POST", "/api/plugins/lifecycle", body))
            assert raw_http.receive(sock).status == 404
    events = daemon.events(after=str(before), action="plugin.status", decision="deny")
    assert 0 < len(events) <= FEW


async def test_flood_of_denied_host_calls_is_audited_as_a_few_events():
    """A plugin repeats a call that it was not granted."""
    async with in_process.opened() as home:
        home.drop(capabilities=["kv:read"])
        instance = await home.armed("acme.demo")
        mark = home.mark()
        for number in range(3_000):
            with pytest.raises(HostError) as denied:
                await instance.call("kv.put", key=f"key{number}", value="x")
            assert denied.value.code in {Denial.CAPABILITY_DENIED, Denial.RATE_LIMITED}
        await in_process.until(lambda: _denied(home, mark) == 3_000, "all denials to be accounted for")
        assert len(home.events(after=mark)) <= FEW


def _denied(home, mark):
    return sum(one["detail"].get("count", 1) for one in home.events(after=mark, decision="deny"))


@pytest.mark.daemon
def test_request_text_cannot_forge_log_or_audit_lines(daemon):
    """Line breaks, terminal escapes and whole entries in names and paths each stay one value of one line."""
    forged = '%0A{"event":"daemon_stopped"}%1B[2J%C2%85%E2%80%A8'
    before, logged = daemon.get("/api/status").json()["audit"]["seq"], len(daemon.log())
    for method, path, body in (
        ("GET", f"/api/plugins/by-id/{forged}", b""),
        ("POST", f"/api/plugins/by-id/{forged}/restart", b"{}"),
        ("PUT", f"/api/kv/default/{forged}", b"x"),
        (
            "POST",
            "/api/plugins/lifecycle",
            json.dumps({"id": '\n{"event":"x"}\x1b[2J\u2028', "status": "active"}).encode(),
        ),
        ("POST", "/api/plugins/verify", json.dumps({"name": "\n\x1b]0;x\x07"}).encode()),
    ):
        answer = raw_http.ask(daemon.place.socket, method, path, body)
        assert 400 <= answer.status < 500, answer
        assert answer.body.isascii()
        assert b"\x1b" not in answer.body
    assert daemon.log("daemon_stopped") == []
    assert len(daemon.log()) - logged <= 5
    for event in daemon.events(after=str(before)):
        assert json.dumps(event, ensure_ascii=False).isprintable()


@pytest.mark.daemon
@pytest.mark.slow
def test_hundreds_of_large_requests_do_not_grow_memory(daemon):
    """Headers and bodies of a mebibyte; the resident size before and after is compared."""
    bombs = [
        b"GET /api/health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * (1 << 20),
        b"GET /api/health HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100_000,
        raw_http.request("POST", "/api/plugins/verify", b"[" * (1 << 20)),
        raw_http.request("POST", "/api/plugins/verify", b'{"name": "' + b"\\u0000" * 170_000 + b'"}'),
    ]

    def throw(times):
        for number in range(times):
            with raw_http.connected(daemon.place.socket) as sock:
                raw_http.send_anyway(sock, bombs[number % len(bombs)])
                raw_http.send_anyway(sock, b"\r\n\r\n")
        assert daemon.get("/api/health").status == 200
        return _resident_kib(daemon)

    settled = throw(40)
    assert throw(200) - settled < 20 << 10


def _resident_kib(daemon):
    text = daemon.get("/metrics").body.decode()
    value = next(line for line in text.splitlines() if line.startswith("process_resident_memory_bytes "))
    return int(value.split()[1]) >> 10


@pytest.mark.daemon
@pytest.mark.slow
def test_stalled_connections_are_closed_and_free_their_descriptors(daemon):
    """There are three hundred incomplete requests."""
    crowd = [raw_http.connected(daemon.place.socket) for _ in range(300)]
    try:
        for sock in crowd:
            raw_http.send_anyway(sock, raw_http.GOOD[:-2])
        deadline = time.monotonic() + raw_http.PATIENCE_S
        for sock in crowd:
            raw_http.until_closed(sock, deadline_s=max(0.1, deadline - time.monotonic()))
        daemon.until(lambda: _descriptors(daemon) < 60, "the daemon to let go of them")
    finally:
        for sock in crowd:
            sock.close()
