"""Hostile requests on real sockets: refused, cut in time, and never answered out of step."""

from __future__ import annotations

import asyncio
import socket

import pytest

from latticed.ingress import connection, ingress
from tests.house import ingresses, raw_http


@pytest.fixture
async def echo():
    return ingresses.Echo()


@pytest.fixture
async def outside(tmp_path, echo):
    async with ingresses.opened(tmp_path) as found:
        found.routes.claim("acme.demo", ["/acme.demo/"], echo)
        assert (await found.routes.wait_for_listener(ingresses.PATIENCE_S)).url
        yield found


GOOD = b"GET /acme.demo/good HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


# Hosts.


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8787", "localhost", "LOCALHOST:80", "localhost:"])
async def test_request_with_allowed_host_is_served(outside, host):
    """The host may have a port."""
    assert (await outside.ask("GET", "/acme.demo/", host=host)).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8787", "127.0.0.2", "[::1]", "0", "2130706433"],
)
async def test_request_with_other_host_is_refused(outside, echo, host):
    """This prevents DNS rebinding: such a page cannot even find out which routes exist."""
    for path in ("/acme.demo/", "/", "/nothing"):
        answer = await outside.ask("GET", path, host=host)
        assert (answer.status, answer.code) == (421, "host_not_allowed")
    assert echo.asked == []


@pytest.mark.parametrize(
    "host", ["", "a b", "localhost/x", "localhost@evil.example", "localhost:x", "localhost,evil.example"]
)
async def test_request_with_malformed_host_is_refused(outside, echo, host):
    head = f"GET /acme.demo/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    (answer,) = await outside.send(head.encode())
    assert answer.status == 400
    assert echo.asked == []


@pytest.mark.parametrize(
    "fields", ["", "Host: localhost\r\nHost: localhost\r\n", "Host: localhost\r\nhost: evil.example\r\n"]
)
async def test_request_must_have_exactly_one_host(outside, echo, fields):
    (answer,) = await outside.send(f"GET /acme.demo/ HTTP/1.1\r\n{fields}Connection: close\r\n\r\n".encode())
    assert answer.status == 400
    assert echo.asked == []


async def test_absolute_target_overrides_the_host_header(outside, echo):
    """RFC 9112, section 3.2.2, says so."""
    assert (await outside.ask("GET", "http://evil.example/acme.demo/")).status == 421
    assert (await outside.ask("GET", "http://localhost/acme.demo/", host="evil.example")).status == 200
    assert len(echo.asked) == 1


async def test_hosts_in_settings_replace_the_default(tmp_path, echo):
    """A name with a port admits that port only, one without admits any."""
    async with ingresses.opened(tmp_path, hosts=("app.example.org", "other.example.org:8443")) as named:
        named.routes.claim("acme.demo", ["/acme.demo/"], echo)
        await named.routes.wait_for_listener(ingresses.PATIENCE_S)
        for host, status in {
            "app.example.org": 200,
            "app.example.org:9": 200,
            "other.example.org:8443": 200,
            "other.example.org": 421,
            "other.example.org:80": 421,
            "localhost": 421,
            "127.0.0.1": 421,
        }.items():
            assert (await named.ask("GET", "/acme.demo/", host=host)).status == status, host


# Paths.


@pytest.mark.parametrize(
    "target",
    [
        "/acme.demo/../etc/passwd",
        "/acme.demo/%2e%2e/%2e%2e/etc/passwd",
        "/acme.demo/..%2f..%2fetc",
        "/acme.demo/..%5c..%5cetc",
        "/acme.demo/%00",
        "/acme.demo/a%00.txt",
        "/acme.demo/%ff",
        "/acme.demo/%c0%ae%c0%ae/",
        "/acme.demo/\udcff",
        "/acme.demo/%",
        "/acme.demo/?a=%ff",
        "/nothing/..%2facme.demo/",
    ],
)
async def test_request_with_ambiguous_path_is_refused(outside, echo, target):
    """No route is looked up."""
    answer = await outside.ask("GET", target)
    assert (answer.status, answer.code) == (400, "bad_request")
    assert echo.asked == []


@pytest.mark.parametrize("length", [4_097, 8_000, 9_000, 70_000, 1_000_000])
async def test_request_with_too_long_a_path_is_refused(outside, echo, length):
    """Below and above the parser's own limit."""
    request = b"GET /acme.demo/%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n" % (b"a" * length)
    (answer,) = await outside.send(request)
    assert (answer.status, answer.code) == (414, "uri_too_long")
    assert echo.asked == []


# Headers and bodies.


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (b"X: " + b"a" * 9_000, 431),
        (b"a" * 9_000 + b": x", 431),
        (b"\r\n".join(b"X-%d: %s" % (number, b"a" * 4_000) for number in range(6)), 431),
        (b"\r\n".join(b"X-%d: a" % number for number in range(200)), 400),
    ],
)
async def test_request_with_too_many_headers_is_refused(outside, echo, fields, status):
    """One too long, too long together, or too many."""
    request = b"GET /acme.demo/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%s\r\n\r\n" % fields
    assert (await outside.send(request))[0].status == status
    assert echo.asked == []


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"Content-Length: 262145", b""),
        (b"Content-Length: 99999999999999999999", b""),
        (b"Transfer-Encoding: chunked", (b"10000\r\n" + b"a" * 0x10000 + b"\r\n") * 5),
    ],
)
async def test_request_with_too_large_a_body_is_refused(outside, echo, head, body):
    """It is judged by Content-Length or while read; unread bytes are never taken for a request."""
    request = b"POST /acme.demo/ HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n%s" % (head, body)
    found = await outside.send(request + GOOD)
    assert [answer.status for answer in found] in ([413], [400])
    assert echo.asked == []


async def test_body_of_the_largest_size_is_accepted(outside, echo):
    body = b"a" * ingress.MAX_BODY_BYTES
    request = b"POST /acme.demo/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    first, second = await outside.send(request + body + GOOD)
    assert (first.json()["body"], second.status) == (len(body), 200)


async def test_expect_100_continue_is_answered(outside):
    """Expect: 100-continue, once the request is otherwise in order; any other expectation fails."""
    head = (
        b"POST /acme.demo/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nConnection: close\r\nExpect: %s\r\n\r\n"
    )
    reader, writer = await outside.connect()
    writer.write(head % b"100-Continue")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    (answer,) = raw_http.parsed(await ingresses.until_closed(reader))
    assert answer.json()["body"] == 3
    await ingresses.gone(writer)
    (answer,) = await outside.send(head % b"a-pony")
    assert (answer.status, answer.code) == (417, "expectation_failed")
    (answer,) = await outside.send((head % b"100-continue").replace(b"3", b"9999999"))
    assert answer.status == 413


# Framing and pipelining.


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 3\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3",
        b"Content-Length: 3\r\nContent-Length: 4",
        b"Content-Length: +3",
        b"Content-Length: 3, 3",
        b"Content-Length: 0x3",
        b"Content-Length: -1",
        b"Content-Length : 3",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: xchunked",
        b"Content-Length: 3\r\nTransfer-Encoding:",
        b"Transfer-Encoding: \r\nContent-Length: 3",
        b"Content-Length: 3\r\nTransfer-Encoding: identity",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b" Content-Length: 3",
        b"X: a\r\n folded",
        b"X: a\x00b",
        b"X\x00: b",
        b"X y: b",
    ],
)
async def test_request_with_ambiguous_framing_is_refused(outside, echo, head):
    """Later bytes are not answered: that would be request smuggling."""
    smuggled = b"GET /acme.demo/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    request = b"POST /acme.demo/ HTTP/1.1\r\nHost: localhost\r\n%s\r\n\r\n0\r\n\r\n" % head
    found = await outside.send(request + smuggled)
    assert [answer.status for answer in found] == [400]
    assert echo.asked == []


@pytest.mark.parametrize(
    "chunks",
    [b"zz\r\nabc\r\n0\r\n\r\n", b"3\r\nabcd\r\n0\r\n\r\n", b"-3\r\nabc\r\n0\r\n\r\n", b"fffffffffffffffff\r\na"],
)
async def test_request_with_broken_chunks_is_refused(outside, echo, chunks):
    request = b"POST /acme.demo/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    found = await outside.send(request + chunks + GOOD)
    assert [answer.status for answer in found] == [400]
    assert echo.asked == []


@pytest.mark.parametrize("chunks", [b"zz\r\n", b"3\r\nabcd\r\n", b"-3\r\nabc\r\n", b"fffffffffffffffff\r\na"])
@pytest.mark.parametrize("first", [b"", b"2\r\nab\r\n"])
async def test_broken_chunk_after_the_head_is_refused_at_once(outside, echo, first, chunks):
    """It is refused when it arrives, not at a deadline: one answer, then the connection is closed."""
    reader, writer = await outside.connect()
    writer.write(b"POST /acme.demo/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + first)
    await ingresses.until(
        lambda: any(one.wants_body for one in outside.ingress._limiter.connections()), "the body to be read"
    )
    writer.write(chunks + GOOD)
    (answer,) = raw_http.parsed(await ingresses.until_closed(reader))
    assert (answer.status, answer.code) == (400, "bad_request")
    assert echo.asked == []
    await ingresses.gone(writer)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET /acme.demo/ HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PUT /acme.demo/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 400\r\n\r\n",
        b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 400\r\n\r\n",
    ],
)
async def test_ambiguous_rest_of_a_request_is_never_answered(outside, echo, raw):
    """After Upgrade, CONNECT or an unread body the connection is closed."""
    found = await outside.send(raw + GOOD)
    assert len(found) == 1
    assert not any(asked.path == "/acme.demo/good" for asked in echo.asked)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0" * 64,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /acme.demo/ HTTP/9.9\r\n\r\n",
        b"\r\n\r\nhello\r\n\r\n",
    ],
)
async def test_bytes_that_are_not_http_1_are_400(outside, echo, raw):
    """They are TLS, HTTP/2 or random."""
    assert [answer.status for answer in await outside.send(raw)] == [400]
    assert echo.asked == []


# Deadlines and limits.


async def cut(outside, reader, seconds):
    """Advance the clock by `seconds`; the next sweep closes overdue connections."""
    outside.clock.advance(seconds)
    received = await ingresses.until_closed(reader)
    assert received == b""


@pytest.mark.parametrize(
    "part",
    [
        b"GET /acme.demo/",
        b"GET /acme.demo/ HTTP/1.1\r\nHost: local",
        b"POST /acme.demo/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc",
        b"POST /acme.demo/ HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
)
async def test_client_with_slow_headers_or_body_is_disconnected_in_seconds(outside, echo, part):
    """The deadline is for the whole request, so a byte now and then does not extend it."""
    reader, writer = await outside.connect()
    writer.write(part)
    await ingresses.until(lambda: any(one.begun for one in outside.ingress._limiter.connections()), "the first bytes")
    outside.clock.advance(connection.REQUEST_S / 2)
    writer.write(b"a")
    await cut(outside, reader, connection.REQUEST_S / 2 + 0.1)
    assert echo.asked == []
    await ingresses.gone(writer)
    assert (await outside.get("/acme.demo/")).status == 200


async def test_idle_connections_are_closed(outside):
    """They are idle before the first request, or after an answer."""
    fresh, one = await outside.connect()
    used, two = await outside.connect()
    two.write(GOOD.replace(b"close", b"keep-alive"))
    await used.readuntil(b"}")
    await cut(outside, fresh, connection.IDLE_S + 0.1)
    assert await ingresses.until_closed(used) == b""
    for writer in (one, two):
        await ingresses.gone(writer)


async def test_client_that_does_not_read_its_answer_is_disconnected(tmp_path):
    """There are megabytes in the write buffer then."""
    async with ingresses.opened(tmp_path) as outside:
        await outside.put("default", "k", b"x" * 1_000_000)
        await outside.arm(b"{{kv:default/k}}")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            sock.connect(("127.0.0.1", outside.port))
            sock.sendall(GOOD.replace(b"close", b"keep-alive") * 20)
            await ingresses.until(_stuck(outside), "more than it takes")
            outside.clock.advance(connection.ANSWER_S + 0.1)
            await ingresses.until(lambda: not outside.ingress._limiter.connections(), "the connection to be cut")
        assert len(outside.calls()) < 20


def _stuck(outside):
    """A predicate: whether the write buffers held the same number of bytes, not 0, in its last twenty calls."""
    seen: list[int] = []

    def look():
        seen.append(sum(one.wire.get_write_buffer_size() for one in outside.ingress._limiter.connections()))
        return seen[-1] > 0 and len(seen) >= 20 and len(set(seen[-20:])) == 1

    return look


async def test_connection_over_the_limit_closes_the_oldest_incomplete_one(outside, echo):
    """One that is being answered is never closed; if all are, the new connection is closed."""
    outside.ingress._limiter._most = 3
    echo.held = asyncio.Event()
    answered_reader, answered = await outside.connect()
    answered.write(GOOD)
    await ingresses.until(lambda: echo.asked, "the request")
    waiting = []
    for number in range(5):
        outside.clock.advance(0.1)
        waiting.append(await outside.connect())
        many = min(number + 2, 3)
        await ingresses.until(lambda many=many: len(outside.ingress._limiter.connections()) == many, "it to be let in")
    for reader, _ in waiting[:3]:
        assert await ingresses.until_closed(reader) == b""
    for _, writer in waiting[3:]:
        writer.write(GOOD)
    await ingresses.until(lambda: len(echo.asked) == 3, "all to be answered")
    turned_away, late = await outside.connect()
    assert await ingresses.until_closed(turned_away) == b""
    echo.held.set()
    for reader in (answered_reader, *(reader for reader, _ in waiting[3:])):
        (answer,) = raw_http.parsed(await ingresses.until_closed(reader))
        assert answer.status == 200
    for writer in (answered, late, *(writer for _, writer in waiting)):
        await ingresses.gone(writer)


async def test_many_idle_clients_delay_no_request(outside):
    """Two hundred clients stall in different ways."""
    parts = (
        b"",
        b"G",
        b"GET /acme.demo/ HTTP/1.1\r\n",
        b"POST /acme.demo/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n",
    )
    stalled = []
    for number in range(200):
        stalled.append(await outside.connect())
        stalled[-1][1].write(parts[number % len(parts)])
    assert (await outside.get("/acme.demo/")).status == 200
    outside.clock.advance(connection.IDLE_S + 1)
    for reader, writer in stalled:
        assert await ingresses.until_closed(reader) == b""
        await ingresses.gone(writer)
    assert outside.ingress._limiter.cut >= 200
