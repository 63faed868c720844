"""The console beside those who only hold connections, and bytes that are no request: any local user can connect."""

from __future__ import annotations

import contextlib
import html
import http.client
import json
import os
import re
import resource
import select
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from latticed.console.connection import MOST
from latticed.kit import descriptors
from tests.house import bundles, consoles, daemons, processes

pytestmark = [pytest.mark.daemon, pytest.mark.slow]

ACME = bundles.author("acme")
ID = "acme.demo"
STALLED = 2_000
HALF = {
    "nothing": b"",
    "half a line": b"GET /x HTT",
    "half a header": b"GET /x HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: latticed_ui=",
    "half a form": b"POST /x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900\r\n\r\nact=",
    "half a chunk": b"POST /x HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n90\r\nact=",
}


NO_REQUESTS = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET / HTTP/1.1\r\nHost: {host}\r\nA: " + b"x" * 100_000 + b"\r\n\r\n",
    b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: {host}\r\n" + b"A: b\r\n" * 500 + b"\r\n",
    b"GET / HTTP/1.1\r\nHost: {host}\r\nHost: {host}\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"GET {base}/ HTTP/1.1\r\nHost: {host}\r\nExpect: the-unexpected\r\n\r\n",
    b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: {host}\r\n\r\n",
    b"GET http://{host}{base}/ HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n\r\n",
    b"GET //{host}{base}/ HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n\r\n",
    b"GET {base}/plugins/%ff HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n\r\n",
    b"GET {base}/audit?actor=\xff HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n\r\n",
    b"GET {base}/?q=%ff%00%0d%0aSet-Cookie:%20a=b HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n\r\n",
    b"TRACE {base}/ HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n\r\n",
]
FRAMINGS = [
    b"Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: {length}\r\n",
    b"Content-Length: {length}\r\nContent-Length: 0\r\n",
    b"Content-Length: +{length}\r\n",
    b"Content-Length: {length}, 0\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding:\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b" Content-Length: {length}\r\n",
]


@pytest.fixture(scope="module")
def daemon():
    with daemons.placed() as place:
        place.trust_us(ACME)
        place.drop("demo", author=ACME, id=ID)
        with place.running() as daemon:
            yield daemon


@pytest.fixture(scope="module")
def console(daemon, links):
    with consoles.running(daemon, "--link-socket", str(links)) as console:
        assert console.enter().status == 303
        yield console


@pytest.fixture(scope="module")
def links(daemon) -> Path:
    """The socket where the console hands out links."""
    return daemon.place.run / "links.sock"


def port_of(console: consoles.RunningConsole) -> int:
    return urlsplit(console.link).port or 0


def open_files(console: consoles.RunningConsole) -> int:
    return len(list(Path(f"/proc/{console.process.pid}/fd").iterdir()))


@contextlib.contextmanager
def stalled(console: consoles.RunningConsole, count: int, halves: tuple[bytes, ...]) -> Iterator[list[socket.socket]]:
    """So many connections that owe the rest of a request."""
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))
        descriptors.raise_limit()
        sockets = []
        for number in range(count):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port_of(console)), processes.PATIENCE_S))
            with contextlib.suppress(ConnectionError):  # it was cut already
                sock.sendall(halves[number % len(halves)])
            sockets.append(sock)
        yield sockets


def ended(sockets: list[socket.socket]) -> int:
    """How many of them the other side has closed."""
    poll = select.poll()
    for sock in sockets:
        poll.register(sock, select.POLLRDHUP)
    return len(poll.poll(0))


def told(stream: http.client.HTTPResponse, daemon: daemons.Daemon) -> None:
    """Wait until the page hears of refusals that go on meanwhile: the console's own stream may begin a moment later."""
    over = threading.Event()

    def refused() -> None:
        while not over.wait(0.2):
            daemon.set_status("active", "acme.nobody")

    asking = threading.Thread(target=refused)
    asking.start()
    try:
        while not stream.readline().startswith(b"data:"):
            pass
    finally:
        over.set()
        asking.join()


def test_two_thousand_stalled_connections_leave_an_open_tab_as_it_was(daemon, console):
    """Beyond MOST the oldest is cut; the operator's pages come, and the tab's stream goes on."""
    with consoles.listening(console) as stream, stalled(console, STALLED, tuple(HALF.values())) as sockets:
        processes.until(lambda: ended(sockets) >= STALLED - MOST, what="the oldest to be cut")
        for page in ("/", "/health", "/static/live.js"):
            assert console.get(page).status == 200
        # Its own few, those who may wait, and as many again that it has yet to close.
        assert open_files(console) < 2 * MOST
        told(stream, daemon)


def test_a_connection_that_owes_its_request_is_cut_in_time(console):
    """Fewer than MOST are not held for long either; no byte now and then, and no session, renews their time."""
    own = (
        f"POST {console.base}/market HTTP/1.1\r\nHost: {urlsplit(console.link).netloc}\r\nOrigin: {console.origin}\r\n"
    )
    own += (
        f"Cookie: {console.cookie}\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 99999\r\n\r\n"
    )
    # One that has sent nothing yet may be a browser that connects ahead: it has longer.
    halves = (own.encode(), *(half for half in HALF.values() if half))
    with stalled(console, 2 * len(halves), halves) as sockets:

        def cut() -> bool:
            for sock in sockets[len(halves) :]:
                with contextlib.suppress(OSError):
                    sock.send(b"x")
            return ended(sockets) == len(sockets)

        processes.until(cut, what="all to be cut")


@pytest.mark.parametrize("raw", NO_REQUESTS, ids=lambda raw: repr(raw[:40]))
def test_bytes_that_are_no_request_of_a_browser_get_a_plain_refusal(console, raw: bytes):
    """Each answer has the headers of every page, tells nothing of the cookie, and the console goes on."""
    answer = spoken(console, raw)
    head = answer.partition(b"\r\n\r\n")[0].lower()
    code = int(head.split()[1])
    if b"?q=" in raw or b"?actor=" in raw:
        assert code in {200, 400}, answer
    else:
        assert 400 <= code < 500, answer
    assert b"content-security-policy: default-src 'none'" in head, answer
    assert b"set-cookie" not in head, answer
    assert b"aiohttp" not in answer
    assert console.cookie.partition("=")[2].encode() not in answer
    assert console.get("/").status == 200


def test_cookies_of_other_pages_of_this_address_do_not_keep_the_operator_out(console):
    """A browser sends them here, too: as many as usual are read past; of more it is said what helps."""
    asked = "GET {base}/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nCookie: %s; {cookie}\r\n\r\n"
    others = "; ".join(f"other{number}={'x' * 4_000}" for number in range(12))
    assert spoken(console, (asked % others).encode()).startswith(b"HTTP/1.1 200 ")
    answer = spoken(console, (asked % f"{others}; {others}").encode())
    assert answer.split()[1] == b"431"
    assert b"delete the cookies of this address" in answer


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
def test_no_second_request_is_smuggled_in_a_body(console, framing: bytes):
    """A proxy of the operator may read the same bytes in another way: then nothing of them is answered twice."""
    hidden = b"0\r\n\r\nGET {base}/ HTTP/1.1\r\nHost: {host}\r\nCookie: {cookie}\r\n\r\n"
    head = b"POST {base}/leave HTTP/1.1\r\nHost: {host}\r\nOrigin: https://evil.example\r\n"
    answer = spoken(console, head + framing + b"\r\n" + hidden)
    statuses = re.findall(rb"^HTTP/1\.1 (\d+)", answer, re.MULTILINE)
    assert b"200" not in statuses, answer
    assert set(statuses) <= {b"400", b"403", b"413"}, answer
    assert console.get("/").status == 200


def spoken(console: consoles.RunningConsole, raw: bytes) -> bytes:
    """All that is answered to these bytes until the console closes, or says no more to a half-closed connection."""
    given = {"host": urlsplit(console.link).netloc, "base": console.base, "cookie": console.cookie}
    wanted = {"length": str(4_000), **given}
    for name, value in wanted.items():
        raw = raw.replace(b"{%s}" % name.encode(), value.encode())
    with socket.create_connection(("127.0.0.1", port_of(console)), processes.PATIENCE_S) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(raw)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(65536):
                answer += piece
                if b"\r\n\r\n" in answer and not select.select([sock], [], [], 0.5)[0]:
                    break
        return answer


def test_a_unix_socket_of_the_console_is_for_its_owner_and_group(daemon):
    """Mode 0660 from its first moment; a second console does not take its place, nor remove it; gone at the end."""
    place = daemon.place
    path, own_links = place.run / "http.sock", place.run / "link.sock"
    options = ("--listen", str(path), "--origin", "https://plugins.example.org", "--link-socket", str(own_links))
    path.write_bytes(b"")
    assert "cannot listen" in daemon.ctl("ui", *options).stderr
    assert path.read_bytes() == b"", "what is no socket stays"
    path.unlink()
    quiet = subprocess.DEVNULL
    log = place.home.parent / "unix.err"
    log.touch()
    with processes.spawned(
        daemon.ctl_command("ui", *options), user=place.user, env=place.environment(), stdout=quiet, stderr=log
    ) as first:
        processes.until(lambda: path.exists() and own_links.exists(), what="the sockets")
        assert {stat.S_IMODE(one.stat().st_mode) for one in (path, own_links)} == {0o660}
        second = daemon.ctl("ui", *options)
        assert (second.returncode, "another process listens" in second.stderr) == (1, True), second.stderr
        link = daemon.ctl("ui", "link", "--link-socket", str(own_links)).stdout.strip()
        assert link.startswith("https://plugins.example.org/")
        seen = asked_by_socket(path, urlsplit(link).path)
        assert (seen.status, "; Secure" in (seen.getheader("Set-Cookie") or "")) == (303, True)
        if os.geteuid() == 0:
            connect = f"import socket; socket.socket(socket.AF_UNIX).connect({str(own_links)!r})"
            tried = subprocess.run(
                [processes.reachable_python(), "-I", "-c", connect],
                check=False,
                capture_output=True,
                text=True,
                user=processes.OTHER_STRANGER.uid,
                group=processes.OTHER_STRANGER.gid,
                extra_groups=[],
                cwd="/",
            )
            assert "PermissionError" in tried.stderr, tried
        first.terminate()
        assert first.wait(processes.PATIENCE_S) == 0
    assert not path.exists()
    assert not own_links.exists()


def link_of(path: Path) -> str:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(processes.PATIENCE_S)
        sock.connect(str(path))
        return str(json.loads(sock.makefile("rb").readline())["link"])


def test_a_link_that_many_open_at_once_becomes_one_session(console, links):
    """Whoever is first has it; who else had read it learns that it was used."""
    target = urlsplit(link_of(links)).path
    with ThreadPoolExecutor(16) as threads:
        seen = list(threads.map(lambda _: console.ask("GET", target), range(32)))
    assert sorted(one.status for one in seen) == [303, *[401] * 31]
    assert sum("set-cookie" in one.headers for one in seen) == 1


def test_links_are_handed_out_beside_those_who_do_not_take_theirs(console, links):
    """The oldest of many links end; neither they nor a client that reads nothing keep anybody out."""
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(contextlib.closing(socket.socket(socket.AF_UNIX))).connect(str(links))
        assert console.ask("GET", urlsplit(link_of(links)).path).status == 303
    assert console.get("/").status == 200


def test_no_page_shows_a_secret_a_link_or_a_session(daemon, console, links):
    """Every page that a link of another leads to, and what the stream says, with a secret bound to a plugin."""
    value, link = "hunter2-do-not-show", link_of(links)
    assert daemon.ask("PUT", "/api/secrets/TOKEN", value.encode()).status < 300
    assert daemon.ask("PUT", f"/api/secrets/TOKEN/plugins/{ID}").status < 300
    kept = [value, console.cookie.partition("=")[2], link.rsplit("/", 1)[1]]
    left, seen = {f"{console.base}/", f"{console.base}/plugins/{ID}/logs"}, set()
    while left:
        path = left.pop()
        seen.add(path)
        page = console.ask("GET", path, headers={"Cookie": console.cookie})
        assert page.status in {200, 404}, (path, page.status)
        assert not [one for one in kept if one in page.text or one in str(page.headers)], path
        found = {html.unescape(one) for one in re.findall(r'(?:href|src)="([^"]+)"', page.text)}
        left |= {one for one in found if one.startswith(f"{console.base}/")} - seen
    assert f"{console.base}/plugins/{ID}" in seen
    assert len(seen) > 10
    for path in ("secrets", "secrets/TOKEN", f"plugins/{ID}/config", "backup"):
        assert console.get(f"/{path}").status == 404


def asked_by_socket(path: Path, target: str) -> http.client.HTTPResponse:
    """An answer over a unix socket, as a proxy asks."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.settimeout(processes.PATIENCE_S)
        sock.connect(str(path))
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: plugins.example.org\r\n\r\n".encode())
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        answer.read()
        return answer
