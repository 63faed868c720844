"""HTTP requests that other parsers are tested with, raw on the control socket.

Never a 5xx, never a hang, never a connection out of step: a request sent right behind gets its own answer, or the
connection is closed. Each row is sent as it is, and once more with the Host field that HTTP/1.1 asks for, so that it is
not refused for that alone.
"""

from __future__ import annotations

import base64

import pytest

from tests.house import corpora, daemons, raw_http

pytestmark = pytest.mark.daemon

ROWS = corpora.rows("http_requests.json")

# A request whose answer nothing else gives, to see whether the connection is in step.
PROBE = b"GET /api/plugins/by-id/probe.of.step HTTP/1.1\r\nHost: latticed\r\nConnection: close\r\n\r\n"

TAKEN = {
    "gunicorn-invalid-012": "refused there for a limit of its settings on the number of header bytes; these are few",
    "gunicorn-invalid-019": "X-Forwarded-* that contradict each other: we believe none of them, on a unix socket",
}
"""Rows that another parser refuses and ours takes as the well-formed requests they are, and why that is right."""


@pytest.fixture(scope="module")
def daemon():
    with daemons.placed() as place:
        place.trust_us()
        with place.running() as daemon:
            yield daemon


def _with_host(raw):
    """`raw` with a Host field after its request line, unless it has one or has no whole line."""
    start = len(raw) - len(raw.lstrip(b"\r\n"))
    line, end, rest = raw[start:].partition(b"\n")
    return raw if b"host:" in raw.lower() or not end else raw[:start] + line + end + b"Host: latticed\r\n" + rest


def _is_probes(answer):
    return answer.status == 404 and b"probe.of.step" in answer.body


@pytest.mark.parametrize("form", ["as it is", "with Host"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"].replace(" ", "-"))
def test_request_is_answered_or_refused_in_step(daemon, row, form):
    """What the suite calls `reject` gets 400, and later requests on the connection no answer; others 2xx or 4xx."""
    raw = base64.b64decode(row["raw_b64"])
    if form == "with Host":
        raw = _with_host(raw)
    with raw_http.connected(daemon.place.socket) as sock:
        raw_http.send_anyway(sock, raw + PROBE)
        received = raw_http.until_closed(sock)
    understood_as_head = raw.startswith(b"HEAD") and b"Host:" in raw  # else refused unread, which has a body
    answers = raw_http.parsed(received, first_method="HEAD" if understood_as_head else "GET")
    for answer in answers:
        assert 200 <= answer.status < 500, answer
    assert not any(_is_probes(answer) for answer in answers[:-1]), answers
    if row["expected"] == "reject" and row["id"] not in TAKEN:
        assert [answer.status for answer in answers] in ([], [400]), answers
        assert all(answer.code == "bad_request" for answer in answers)


@pytest.mark.parametrize("together", [True, False], ids=["in one packet", "after the answer"])
@pytest.mark.parametrize(
    "raw",
    [
        b"GET /api/health HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: ws\r\n\r\n",
        b"GET /api/health HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /api/health HTTP/1.1\r\nHost: x\r\nConnection: upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
        b"POST /api/nothing HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: tcp\r\nContent-Length: 2\r\n\r\n{}",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_upgrade_request_is_answered_without_waiting_for_more(daemon, raw, together):
    """It is answered as a plain request; then the connection is closed, or later requests are answered."""
    with raw_http.connected(daemon.place.socket) as sock:
        sock.sendall(raw + PROBE if together else raw)
        received = b""
        if not together:
            received = sock.recv(65536)
            raw_http.send_anyway(sock, PROBE)
        answers = raw_http.parsed(received + raw_http.until_closed(sock))
    assert 200 <= answers[0].status < 500
    assert len(answers) == 1 or (_is_probes(answers[1]) and len(answers) == 2)


def test_daemon_logs_no_failed_request(daemon):
    """It is sent all requests of the suite, and still answers afterwards."""
    assert daemon.get("/api/health").status == 200
    assert [one for one in daemon.log() if one["level"] in {"error", "critical"}] == []
