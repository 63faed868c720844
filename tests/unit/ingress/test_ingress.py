"""The route listener: when it is open, headers of every answer, failures of targets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import pytest

from latticed.host.route.table import RouteResponse
from latticed.ingress import connection
from latticed.ingress import ingress as ingress_module
from latticed.model.errors import Problem
from tests.house import ingresses, ports, raw_http


@pytest.fixture
async def outside(tmp_path):
    async with ingresses.opened(tmp_path) as found:
        yield found


@pytest.fixture
def echo():
    return ingresses.Echo()


async def claimed(outside, target, plugin_id="acme.demo"):
    claim = outside.routes.claim(plugin_id, [f"/{plugin_id}/"], target)
    assert (await outside.routes.wait_for_listener(ingresses.PATIENCE_S)).url
    return claim


def listening(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# When it listens.


async def test_listener_is_open_only_while_there_is_a_route(outside, echo):
    """It is closed before the first and after the last, and opened again for the next."""
    assert outside.routes.listener.url == ""
    one, two = await claimed(outside, echo), await claimed(outside, echo, "acme.two")
    port = outside.port
    assert listening(port)
    outside.routes.release(one)
    assert (await outside.get("/acme.two/")).status == 200
    outside.routes.release(two)
    await ingresses.until(lambda: not outside.routes.listener.url, "no listener")
    assert not listening(port)
    await claimed(outside, echo)
    assert (await outside.get("/acme.demo/")).status == 200


async def test_removing_the_last_route_closes_its_connections(outside):
    """Idle ones are closed at once, others after their answer."""
    held = ingresses.Echo(held=asyncio.Event())
    claim = await claimed(outside, held)
    idle_reader, idle = await outside.connect()
    reader, writer = await outside.connect()
    writer.write(b"GET /acme.demo/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await ingresses.until(lambda: held.asked and len(outside.ingress._limiter.connections()) == 2, "both")
    outside.routes.release(claim)
    assert await ingresses.until_closed(idle_reader) == b""
    held.held.set()
    (answer,) = raw_http.parsed(await ingresses.until_closed(reader))
    assert answer.status == 200
    for one in (idle, writer):
        await ingresses.gone(one)


async def test_port_in_use_of_route_listener_is_reported_and_retried(tmp_path, echo, monkeypatch):
    """The route shows the reason; once the port is free, it is served."""
    monkeypatch.setattr(ingress_module, "RETRY_S", 0.01)
    port = ports.free()
    with socket.create_server(("127.0.0.1", port)) as squatter:
        async with ingresses.opened(tmp_path, listen=f"127.0.0.1:{port}") as outside:
            worker = await outside.arm(b"served at last")
            assert "Address already in use" in worker.message
            assert worker.message.startswith("listener unavailable for /acme.demo/")
            assert (await worker.check()).health == "degraded"
            squatter.close()
            await ingresses.until(lambda: outside.routes.listener.url, "the port to be free")
            assert (await worker.check()).health == "healthy"
            assert (await outside.get("/acme.demo/")).body == b"served at last"


async def test_route_listener_serves_on_ipv6_loopback(tmp_path, echo):
    """The URL has the address in brackets."""
    async with ingresses.opened(tmp_path, listen="[::1]:0") as outside:
        await claimed(outside, echo)
        assert outside.routes.listener.url.startswith("http://[::1]:")
        reader, writer = await asyncio.open_connection("::1", outside.port)
        writer.write(b"GET /acme.demo/ HTTP/1.1\r\nHost: [::1]:%d\r\nConnection: close\r\n\r\n" % outside.port)
        (answer,) = raw_http.parsed(await ingresses.until_closed(reader))
        await ingresses.gone(writer)
        assert answer.status == 200


async def test_closing_waits_for_a_running_answer(tmp_path):
    """Idle connections are not waited for."""
    held = ingresses.Echo(held=asyncio.Event())
    async with ingresses.opened(tmp_path) as outside:
        await claimed(outside, held)
        reader, writer = await outside.connect()
        idle_reader, idle = await outside.connect()
        writer.write(b"GET /acme.demo/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await ingresses.until(lambda: held.asked, "the request")
        asyncio.get_running_loop().call_soon(held.held.set)
    (answer,) = raw_http.parsed(await ingresses.until_closed(reader))
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert await ingresses.until_closed(idle_reader) == b""
    for one in (writer, idle):
        await ingresses.gone(one)


async def test_closing_waits_for_a_limited_time_for_answers(tmp_path, monkeypatch):
    """A target that never answers is cancelled."""
    monkeypatch.setattr(ingress_module, "DRAIN_S", 0.01)
    held = ingresses.Echo(held=asyncio.Event())
    async with ingresses.opened(tmp_path) as outside:
        await claimed(outside, held)
        reader, writer = await outside.connect()
        writer.write(b"GET /acme.demo/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await ingresses.until(lambda: held.asked, "the request")
    assert await ingresses.until_closed(reader) == b""
    await ingresses.gone(writer)


async def test_closing_waits_for_a_client_that_still_takes_its_answer(tmp_path):
    """The answer is made, and megabytes of it are in the daemon's buffers."""
    size = 8 << 20

    class Large:
        methods = frozenset({"GET"})

        async def serve(self, _):
            return RouteResponse(body=b"x" * size, content_type="text/plain")

    async with contextlib.AsyncExitStack() as stack:
        outside = await stack.enter_async_context(ingresses.opened(tmp_path))
        await claimed(outside, Large())
        sock = stack.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.connect(("127.0.0.1", outside.port))
        sock.setblocking(False)
        sock.sendall(b"GET /acme.demo/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connections = outside.ingress._limiter.connections
        await ingresses.until(lambda: any(one.wire.get_write_buffer_size() for one in connections()), "the answer")

        async def taken() -> int:
            await ingresses.until(lambda: outside.ingress._server is None, "the listener to close")
            loop, count = asyncio.get_running_loop(), 0
            while data := await loop.sock_recv(sock, 65_536):
                count += len(data)
            return count

        taking = asyncio.create_task(taken())
        await outside.ingress.__aexit__()
        assert await taking > size


async def test_lost_connection_cancels_handler(outside):
    """The target's task is cancelled."""
    ended = asyncio.Event()

    class Slow:
        methods = frozenset({"GET"})

        async def serve(self, request):
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    await claimed(outside, Slow())
    _, writer = await outside.connect()
    writer.write(b"GET /acme.demo/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await ingresses.until(lambda: any(one.answering for one in outside.ingress._limiter.connections()), "the request")
    reset = struct.pack("ii", 1, 0)  # close with RST instead of FIN: gone, not only done with writing
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    writer.transport.abort()
    await ingresses.gone(writer)
    async with asyncio.timeout(ingresses.PATIENCE_S):
        await ended.wait()


async def test_half_closed_connection_still_gets_all_answers(outside):
    """Complete requests are answered; an incomplete one is not."""
    held = ingresses.Echo(held=asyncio.Event())
    await claimed(outside, held)
    one = b"GET /acme.demo/%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for asked in (one % 1 + one % 2, one % 3 + one % 4 + b"GET /acme.demo/half HTTP/1.1\r\nHo"):
        reader, writer = await outside.connect()
        writer.write(asked)
        writer.write_eof()
        await ingresses.until(lambda: held.asked, "the first request")
        held.held.set()
        found = raw_http.parsed(await ingresses.until_closed(reader))
        await ingresses.gone(writer)
        assert [answer.status for answer in found] == [200, 200]
        held.held.clear()
        held.asked.clear()


async def test_client_that_half_closes_during_an_answer_gets_it_whole(outside):
    """The connection is closed afterwards."""

    class Large:
        methods = frozenset({"GET"})

        async def serve(self, request):
            return RouteResponse(body=b"x" * (24 << 20))

    await claimed(outside, Large())
    limiter = outside.ingress._limiter
    reader, writer = await outside.connect()
    writer.transport.pause_reading()
    writer.write(b"GET /acme.demo/ HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await ingresses.until(
        lambda: any(one.wire.get_write_buffer_size() for one in limiter.connections()), "more than it takes"
    )
    writer.write_eof()
    await ingresses.until(lambda: any(one._ended for one in limiter.connections()), "the end of its requests")
    writer.transport.resume_reading()
    (answer,) = raw_http.parsed(await ingresses.until_closed(reader))
    assert len(answer.body) == 24 << 20
    await ingresses.gone(writer)


async def test_client_that_half_closes_within_a_body_is_disconnected(outside, echo):
    """This is at once, since the rest of the body cannot come."""
    await claimed(outside, echo)
    reader, writer = await outside.connect()
    writer.write(b"POST /acme.demo/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nabc")
    await ingresses.until(lambda: any(one.wants_body for one in outside.ingress._limiter.connections()), "the head")
    writer.write_eof()
    assert await ingresses.until_closed(reader) == b""
    await ingresses.gone(writer)
    assert echo.asked == []


# What every answer carries.


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/acme.demo/", 200),
        ("HEAD", "/acme.demo/", 200),
        ("GET", "/", 404),
        ("PUT", "/acme.demo/", 405),
        ("GET", "/%00", 400),
        ("GET", "/" + "a" * 5_000, 414),
        ("GET", "/" + "a" * 9_000, 414),
        ("\x01", "/", 400),
    ],
)
async def test_every_answer_has_the_protective_headers(outside, echo, method, target, status):
    """For any status these are nosniff, no scripts and no caching; there is no Server header."""
    await claimed(outside, echo)
    answer = await outside.ask(method, target)
    assert answer.status == status
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["cache-control"] == "no-store"
    assert not {"server", "x-powered-by", "via"} & answer.headers.keys()
    assert b"aiohttp" not in answer.body
    if status >= 400:
        assert answer.json().keys() == {"type", "title", "status", "code", "detail"}


async def test_unsupported_method_is_405_with_allow(outside):
    """A template answers GET and HEAD."""
    await outside.arm(b"x")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "BREW"):
        answer = await outside.ask(method, "/acme.demo/")
        if answer.status != 400:  # the parser knows no such method
            assert (answer.status, answer.code, answer.headers["allow"]) == (405, "method_not_allowed", "GET, HEAD")
        assert method not in {"POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"} or answer.status == 405


async def test_head_is_answered_as_get_without_its_body(outside):
    """It has the Content-Length of GET."""
    await outside.arm(b"0123456789")
    got, head = await outside.ask("GET", "/acme.demo/"), await outside.ask("HEAD", "/acme.demo/")
    assert (got.body, head.body) == (b"0123456789", b"")
    assert got.headers["content-length"] == head.headers["content-length"] == "10"


async def test_target_that_serves_only_get_answers_head_too(outside, echo):
    """The plugin receives GET; Allow lists both."""
    echo.methods = frozenset({"GET"})
    await claimed(outside, echo)
    got, head = await outside.ask("GET", "/acme.demo/"), await outside.ask("HEAD", "/acme.demo/")
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == got.headers["content-length"]
    assert [one.method for one in echo.asked] == ["GET", "GET"]
    echo.methods = frozenset({"POST"})
    assert (await outside.ask("HEAD", "/acme.demo/")).headers["allow"] == "POST"


async def test_control_api_paths_are_404_on_the_route_listener(outside, echo):
    """The table has a route of a plugin."""
    await claimed(outside, echo)
    for path in ("/api/health", "/api/plugins", "/metrics", "/openapi.json", "/"):
        answer = await outside.get(path)
        assert (answer.status, answer.code) == (404, "not_found")


async def test_connection_is_kept_for_the_next_request(outside, echo):
    """Pipelined requests are answered in order."""
    await claimed(outside, echo)
    one = b"GET /acme.demo/%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /acme.demo/end HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    found = await outside.send(b"".join(one % number for number in range(5)) + last)
    assert [answer.json()["path"] for answer in found] == [f"/acme.demo/{word}" for word in (0, 1, 2, 3, 4, "end")]


async def test_target_receives_method_path_query_and_body(outside, echo):
    """Method, decoded path, query, headers and body."""
    await claimed(outside, echo)
    await outside.send(
        b"POST /acme.demo/%C3%BC?a=1&a=2 HTTP/1.1\r\nHost: localhost\r\nX-Own: Value\r\nContent-Encoding: gzip\r\n"
        b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    (asked,) = echo.asked
    assert (asked.method, asked.path, asked.query) == ("POST", "/acme.demo/ü", (("a", "1"), ("a", "2")))
    assert (asked.headers["x-own"], asked.body) == ("Value", b"abcde")


# Failures of targets.


class Failing:
    """A target that raises a given exception."""

    methods = frozenset({"GET"})

    def __init__(self, error):
        self.error = error

    async def serve(self, request):
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Problem("plugin_error", "a secret"), 502, "plugin_error"),
        (Problem("crashed", "a secret"), 502, "crashed"),
        (Problem("service_unavailable", "a secret"), 503, "service_unavailable"),
        (Problem("not_armed", "a secret"), 503, "not_armed"),
        (Problem("deadline_exceeded", "a secret"), 504, "deadline_exceeded"),
        (RuntimeError("a secret"), 500, "internal"),
    ],
)
async def test_failure_of_target_has_a_code_and_no_internal_details(outside, error, status, code):
    """The connection and the listener stay open."""
    await claimed(outside, Failing(error))
    await claimed(outside, ingresses.Echo(), "acme.two")
    request = b"GET /%s/ HTTP/1.1\r\nHost: localhost\r\nConnection: %s\r\n\r\n"
    failed, well = await outside.send(request % (b"acme.demo", b"keep-alive") + request % (b"acme.two", b"close"))
    assert (failed.status, failed.code, well.status) == (status, code, 200)
    assert b"secret" not in failed.body


async def test_target_that_takes_too_long_is_cancelled_with_504(outside):
    """The next request on the connection is answered."""
    held = ingresses.Echo(held=asyncio.Event())
    await claimed(outside, held)
    await claimed(outside, ingresses.Echo(), "acme.two")
    request = b"GET /%s/ HTTP/1.1\r\nHost: localhost\r\nConnection: %s\r\n\r\n"
    asking = asyncio.create_task(
        outside.send(request % (b"acme.demo", b"keep-alive") + request % (b"acme.two", b"close"))
    )
    await ingresses.until(lambda: held.asked, "the request")
    outside.clock.advance(connection.DEADLINE_S + 0.1)
    late, well = await asking
    assert (late.status, late.code, well.status) == (504, "deadline_exceeded", 200)


async def test_connection_of_target_that_ignores_cancellation_is_closed(outside):
    ended = asyncio.Event()

    class Stubborn:
        methods = frozenset({"GET"})

        async def serve(self, request):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await ended.wait()
            return RouteResponse(body=b"too late")

    await claimed(outside, Stubborn())
    asking = asyncio.create_task(outside.send(b"GET /acme.demo/ HTTP/1.1\r\nHost: localhost\r\n\r\n"))
    limiter = outside.ingress._limiter
    await ingresses.until(lambda: any(one.answering for one in limiter.connections()), "the request")
    outside.clock.advance(connection.DEADLINE_S + 0.1)
    await ingresses.until(lambda: any(one.late for one in limiter.connections()), "its being given up")
    outside.clock.advance(connection.ANSWER_S)
    assert await asking == []
    ended.set()


async def test_target_chooses_status_and_content_type(outside):
    class Teapot:
        methods = frozenset({"GET"})

        async def serve(self, request):
            return RouteResponse(body=b"{}", content_type="application/json", status=418)

    await claimed(outside, Teapot())
    answer = await outside.get("/acme.demo/")
    assert (answer.status, answer.headers["content-type"], answer.body) == (418, "application/json", b"{}")


async def test_failed_listener_makes_worker_degraded(outside, monkeypatch):
    """Routes must not look healthy then."""

    def broken(endpoint):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(ingress_module, "_bound", broken)
    worker = await outside.arm(b"x")
    assert (await worker.check()).health == "degraded"
    assert "failed" in worker.message
