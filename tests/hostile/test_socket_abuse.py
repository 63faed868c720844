"""Any bytes on the control socket, at any pace: a 4xx problem document or a closed connection; the daemon goes on."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import time
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latticed.kit.peer_connection import REQUEST_S
from tests.house import bundles, daemons, raw_http

pytestmark = pytest.mark.daemon

ACME = bundles.author("acme")
BODY = b'{"name": "nothing"}'
VERIFY = raw_http.request("POST", "/api/plugins/verify", BODY)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda leaf: st.lists(leaf) | st.dictionaries(st.text(), leaf),
)


@pytest.fixture(scope="module")
def daemon():
    """A daemon whose event loop must not block for long during any test."""
    with daemons.placed(probed=True) as place:
        place.trust_us(ACME)
        place.drop(author=ACME)
        with place.running() as daemon:
            daemon.activate()
            with daemon.turns.short():
                yield daemon
            assert [one for one in daemon.log() if one["event"] == "request_failed"] == []
            assert daemon.plugin()["runtime"]["state"] == "armed"


def _goes_on(daemon):
    assert daemon.get("/api/health").status == 200


def _answers(daemon, data):
    """What comes back for `data` when nothing more will be sent."""
    with raw_http.connected(daemon.place.socket) as sock:
        raw_http.send_anyway(sock, data)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)
        return raw_http.parsed(raw_http.until_closed(sock))


@FEW
@given(st.binary(max_size=2000))
def test_any_bytes_on_the_socket_get_a_refusal_or_no_answer(daemon, data):
    assert all(400 <= answer.status < 500 for answer in _answers(daemon, data + b"\r\n\r\n"))
    _goes_on(daemon)


@FEW
@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH"]),
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=200),
    st.binary(max_size=500),
)
def test_any_path_and_body_get_a_json_answer_below_500(daemon, method, path, body):
    """The requests are well-formed, for anything."""
    answers = _answers(daemon, raw_http.request(method, f"/api/{path}", body, Connection="close"))
    assert len(answers) <= 1
    for answer in answers:
        assert answer.status < 500, answer
        assert not answer.body or "json" in answer.headers["content-type"] or "octet" in answer.headers["content-type"]


@FEW
@given(JSON)
def test_unexpected_json_body_is_400_on_every_route(daemon, value):
    """Every route that takes a body is tried."""
    for path in ("lifecycle", "verify", "by-id/acme.demo/upgrade", "by-id/acme.demo/restart"):
        answer = daemon.post(f"/api/plugins/{path}", json.dumps(value).encode())
        if value != {} or path in {"lifecycle", "verify"}:
            assert (answer.status, answer.code) == (400, "bad_request"), (path, value)


CHUNKED = raw_http.request("POST", "/api/plugins/verify", Transfer_Encoding="chunked")
STALLS = {
    "in the method": [b"G"],
    "after the line": [b"GET /api/health HTTP/1.1\r\n"],
    "in a header": [b"GET /api/health HTTP/1.1\r\nHost: x\r\nX-Slow: "],
    "in a body": [VERIFY[:-5]],
    "in a chunk": [CHUNKED + b"5\r\nab"],
    "behind an answer": [raw_http.GOOD, b"GET /api/hea"],
    "after a chunk without size": [CHUNKED, b"zz\r\n"],
    "after a chunk without end": [CHUNKED, b"5\r\nhelloXX\r\n"],
    "after a trailer too long": [CHUNKED, b"5\r\nhello\r\n0\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"],
}


@pytest.mark.slow
def test_stalled_connection_is_closed_within_seconds(daemon):
    """It may stall anywhere, and is closed with a 4xx or without. Others are served meanwhile."""
    with contextlib.ExitStack() as stack:
        stalled = {name: stack.enter_context(raw_http.connected(daemon.place.socket)) for name in STALLS}
        for name, sock in stalled.items():
            for packet in STALLS[name]:
                raw_http.send_anyway(sock, packet)
                _goes_on(daemon)  # and the packet has been read by then
        for name, sock in stalled.items():
            statuses = [answer.status for answer in raw_http.parsed(raw_http.until_closed(sock))]
            expected = statuses[1:] if name == "behind an answer" else statuses
            assert [status // 100 for status in expected] in ([], [4]), (name, statuses)
    _goes_on(daemon)


@pytest.mark.parametrize("broken", [b"zz\r\n", b"5\r\nhelloXX\r\n", b"-1\r\n"])
def test_malformed_chunk_is_400_at_once(daemon, broken):
    """The answer comes long before the deadline of a request; then the connection is closed, and later bytes are no
    request.
    """
    with raw_http.connected(daemon.place.socket) as sock:
        sock.sendall(CHUNKED)
        _goes_on(daemon)
        began_s = time.monotonic()
        raw_http.send_anyway(sock, broken + raw_http.GOOD)
        assert [answer.status for answer in raw_http.parsed(raw_http.until_closed(sock))] == [400]
        assert time.monotonic() - began_s < REQUEST_S / 2


def test_request_with_two_framings_of_its_body_is_refused(daemon):
    """An empty one counts as well. With one framing the request is answered, and so is the next one."""
    body, last = b'{"name":"x"}', raw_http.request("GET", "/api/health", Connection="close")
    length = ("Content_Length", str(len(body)))
    framings = [({}, [404, 200])]
    for coding in (("Transfer_Encoding", ""), ("Transfer_Encoding", "identity")):
        framings += [(dict(fields), [400]) for fields in itertools.permutations((length, coding))]
    for fields, statuses in framings:
        with raw_http.connected(daemon.place.socket) as sock:
            asked = raw_http.request("POST", "/api/plugins/verify", body, Content_Type="application/json", **fields)
            sock.sendall(asked + last)
            assert [answer.status for answer in raw_http.parsed(raw_http.until_closed(sock))] == statuses, fields


@pytest.mark.slow
def test_one_byte_at_a_time_does_not_extend_the_deadline(daemon):
    """Bytes are sent within headers and within a body."""
    with raw_http.connected(daemon.place.socket) as headers, raw_http.connected(daemon.place.socket) as body:
        headers.sendall(b"GET /api/health HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        body.sendall(b"POST /api/plugins/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        deadline = time.monotonic() + raw_http.PATIENCE_S
        open_still = {headers, body}
        for sock in open_still:
            sock.settimeout(0.1)
        while open_still:
            assert time.monotonic() < deadline, "a dribbling client is still connected"
            for sock in tuple(open_still):
                try:
                    sock.send(b"x")
                    if sock.recv(65536) == b"":
                        open_still.remove(sock)
                except TimeoutError:
                    continue
                except OSError:
                    open_still.remove(sock)
    _goes_on(daemon)


def test_half_closed_client_gets_its_answers(daemon):
    """It shuts its writing side after the requests, as nc and socat do."""
    answers = _answers(daemon, raw_http.request("GET", "/api/plugins") * 3)
    assert [answer.status for answer in answers] == [200, 200, 200]


def test_client_that_disconnects_causes_no_error_log(daemon):
    """It disconnects during a header, a body or an answer."""
    for start in (raw_http.GOOD[:-5], VERIFY[:-5], raw_http.request("GET", "/api/plugins/lifecycle") * 50):
        for _ in range(10):
            with raw_http.connected(daemon.place.socket) as sock:
                raw_http.send_anyway(sock, start)
    _goes_on(daemon)
    assert [one for one in daemon.log() if one["level"] == "error"] == []


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "no-such"])
def test_compressed_body_is_400_and_never_decoded(daemon, coding):
    """It is broken, or a bomb."""
    bomb = zlib.compress(b" " * (16 << 20))
    for body in (b"hello", bomb):
        answer = daemon.ask_raw("POST", "/api/plugins/verify", body, Content_Encoding=coding)
        assert (answer.status, answer.code) == (400, "bad_request")


@pytest.mark.parametrize("path", ["/api/plugins/verify", "/api/nothing"])
def test_unknown_expect_header_gives_a_problem_document(daemon, path):
    answer = daemon.ask_raw("POST", path, BODY, Expect="miracles")
    assert (answer.status, answer.code) == (417, "bad_request")


@pytest.mark.parametrize(
    "head",
    [
        b"GET /api/health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * (1 << 20),
        b"GET /api/health HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 200_000,
        b"GET /api/health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(50_000)),
        b"GET /api/" + b"a" * (1 << 20) + b" HTTP/1.1\r\nHost: x\r\n",
        b"GET /api/health?" + b"a=b&" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n",
        b"GET /api/health HTTP/1.1\r\nHost: x\r\n" + b"Y" * (1 << 20) + b": z\r\n",
    ],
    ids=["long field", "many fields", "many names", "long path", "long query", "long name"],
)
def test_endless_headers_are_refused(daemon, head):
    """400 or closed; never buffered without a limit."""
    with raw_http.connected(daemon.place.socket) as sock:
        raw_http.send_anyway(sock, head + b"\r\n\r\n")
        answers = raw_http.parsed(raw_http.until_closed(sock))
    assert all(400 <= answer.status < 500 for answer in answers), [answer.status for answer in answers]
    _goes_on(daemon)


@pytest.mark.parametrize("declared", [True, False], ids=["Content-Length", "chunked"])
def test_body_over_the_limit_is_413(daemon, declared):
    """One byte over a mebibyte; with Content-Length or chunked."""
    size = (1 << 20) + 1
    if declared:
        data = raw_http.request("POST", "/api/plugins/verify", b" " * size)
    else:
        data = raw_http.request("POST", "/api/plugins/verify", Transfer_Encoding="chunked")
        data += b"%x\r\n" % size + b" " * size + b"\r\n0\r\n\r\n"
    (answer,) = _answers(daemon, data)
    assert (answer.status, answer.code) == (413, "too_large")


def test_body_declared_far_too_long_is_refused_at_once(daemon):
    """Its Content-Length is a terabyte."""
    head = b"POST /api/plugins/verify HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n\r\n"
    with raw_http.connected(daemon.place.socket) as sock:
        sock.sendall(head + b" " * 4096)
        assert raw_http.receive(sock).status == 413


@pytest.mark.parametrize(
    "body",
    [
        b'{"name": "a", "name": "b"}',
        b'{"name": "a", "\\u006eame": "b"}',
        b'{"name": "a", "nam": 1}',
        b'{"Name": "a"}',
        b'{"name": "a"}\0',
        b'{"name": NaN}',
        b'{"name": 1e999}',
        b'{"name": "' + b"\\ud83d" + b'"}',
        b"\xff\xfe{\x00}\x00",
    ],
)
def test_json_that_is_not_strict_is_400(daemon, body):
    """Duplicate keys, unknown fields, what lenient parsers accept."""
    answer = daemon.post("/api/plugins/verify", body)
    assert (answer.status, answer.code) == (400, "bad_request")


def test_connection_is_usable_after_a_refusal(daemon):
    """Each answer belongs to its own request."""
    with raw_http.connected(daemon.place.socket) as sock:
        for path, status in (("/api/nothing", 404), ("/api/plugins?x=1", 400), ("/api/plugins", 200)) * 5:
            sock.sendall(raw_http.request("GET", path))
            assert raw_http.receive(sock).status == status
    together = raw_http.request("POST", "/api/plugins/verify", b"{}") + VERIFY + raw_http.GOOD
    assert [answer.status for answer in _answers(daemon, together)] == [400, 404, 200]


def test_rest_of_a_refused_body_is_never_taken_for_a_request(daemon):
    """The rest of the body looks like a request."""
    smuggled = raw_http.request("POST", "/api/plugins/lifecycle", b'{"id": "acme.demo", "status": "disabled"}')
    for target in ("/api/nothing", "/api/plugins/by-id/acme.demo/nothing"):
        answers = _answers(daemon, raw_http.request("POST", target, smuggled))
        assert [answer.status for answer in answers] == [404]
    assert daemon.plugin()["status"] == "active"


def test_two_hundred_idle_connections_do_not_block_new_requests(daemon):
    """All are of one user: the oldest without a request are closed."""
    idle = [raw_http.connected(daemon.place.socket) for _ in range(200)]
    try:
        for _ in range(20):
            _goes_on(daemon)
        with raw_http.connected(daemon.place.socket) as sock:
            sock.sendall(VERIFY)
            assert raw_http.receive(sock).status == 404
        assert raw_http.until_closed(idle[0]) == b""
        idle[-1].sendall(raw_http.GOOD)
        assert raw_http.receive(idle[-1]).status == 200
    finally:
        for sock in idle:
            sock.close()


def test_two_hundred_partial_requests_do_not_block_new_requests(daemon):
    """They have begun and stall."""
    begun = [raw_http.connected(daemon.place.socket) for _ in range(200)]
    try:
        for sock in begun:
            raw_http.send_anyway(sock, VERIFY[:-5])
        _goes_on(daemon)
        assert daemon.get("/api/plugins").status == 200
    finally:
        for sock in begun:
            sock.close()


def test_client_that_never_reads_does_not_delay_another(daemon):
    """It sends hundreds of pipelined requests."""
    with raw_http.connected(daemon.place.socket) as sock:
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionError):
            for _ in range(2000):
                sock.send(raw_http.request("GET", "/api/plugins/lifecycle"))
        for _ in range(5):
            _goes_on(daemon)


def test_pipelined_requests_are_answered_in_order(daemon):
    targets = [f"/api/plugins/by-id/acme.x{number}" for number in range(50)]
    data = b"".join(raw_http.request("GET", target) for target in targets)
    answers = _answers(daemon, data)
    assert [f"acme.x{number}'" in str(answer.json()["detail"]) for number, answer in enumerate(answers)] == [True] * 50


COSTLY = {
    "empty lists": b'{"name": [' + b"[]," * 340_000 + b"[]]}",
    "objects": b'{"name": [' + b'{"a":1},' * 125_000 + b"{}]}",
    "numbers": b'{"name": [' + b"1," * 500_000 + b"1]}",
    "keys": b"{" + b",".join(b'"%d":0' % number for number in range(90_000)) + b"}",
    "brackets in a text": b'{"name": "' + b"[]," * 340_000 + b'"}',
    "brackets that end nothing": b'{"name": ' + b"]" * 1_000_000 + b"}",
    "brackets without end": b'{"name": ' + b"[" * 1_000_000 + b"}",
    "escapes in a text": b'{"name": "' + b"\\u0000" * 170_000 + b'"}',
    "control characters": b'{"name": "' + b"\x7f" * 1_000_000 + b'"}',
}


@pytest.mark.parametrize("body", COSTLY.values(), ids=COSTLY)
def test_no_large_body_blocks_the_event_loop(daemon, body):
    """A mebibyte of any kind is answered with 400, and other clients do not wait."""
    with daemon.turns.short(worst_s=0.030, p99_s=0.030):
        for _ in range(3):
            assert daemon.ask("POST", "/api/plugins/verify", body).status == 400
            _goes_on(daemon)
