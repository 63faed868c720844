"""Proxied services on real sockets: what is forwarded to the backend and back, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json

import aiohttp
import pytest

from latticed.ingress.proxy import ProxyLimits
from latticed.ingress.upstream_listener import PUBLIC_S
from tests.house import backends, ingresses, ports, raw_http, routed
from tests.house.routed import ID, echoed

PREFIX = f"/{ID}"
PUBLIC = ["/download/*/*", "/feed", "/assets/**"]


@pytest.fixture
async def backend():
    async with backends.running() as found:
        yield found


@pytest.fixture
async def world(tmp_path, backend):
    async with routed.opened(tmp_path, limits=ProxyLimits(body_bytes=1 << 20, message_bytes=1 << 16)) as found:
        await found.serve(backend, public=PUBLIC)
        yield found


@pytest.fixture
async def session(world):
    return await world.cookie()


@contextlib.asynccontextmanager
async def browsing(world, session):
    """An HTTP client that has logged in."""
    name, _, value = session.removeprefix("Cookie: ").partition("=")
    headers = {"Origin": f"http://{routed.HOST}:{world.port()}", "Cookie": f"{name}={value}"}
    async with aiohttp.ClientSession(f"http://{routed.HOST}:{world.port()}", headers=headers) as client:
        yield client


# Access.


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_request_without_a_login_never_reaches_the_backend(world, backend, method):
    """401 for programs, the login page for browsers; no connection to the backend."""
    for path in ("/", "/api/utils/env", "/download/x", "/feed/more", "/assets"):
        answer = await world.ask(method, PREFIX + path)
        assert answer.status == 401
    if method == "GET":
        answer = await world.get(f"{PREFIX}/a%20b?c=d&e", "Accept: text/html,*/*")
        where = f"/.latticed/login?to={PREFIX}/a%2520b%3Fc%3Dd%26e"
        assert (answer.status, answer.headers["location"]) == (303, where)
    assert backend.seen == []


@pytest.mark.parametrize("path", ["/download/name/target", "/feed", "/assets/js/app.js", "/assets/", "/feed?token=1"])
async def test_public_paths_need_no_login(world, backend, path):
    assert echoed(await world.get(PREFIX + path))["path"] == path
    assert (await world.ask("HEAD", PREFIX + path)).status == 200
    assert backend.paths == [path, path]


@pytest.mark.parametrize(
    "path",
    [
        "/download/a%2fb/c",
        "/download/a%5cb/c",
        "/download/a%252fb/c",
        "/download/a;b/c",
        "/download//c",
        "/download/a/b/c",
        "/Feed",
        "/feed/",
        "/feed;x",
        "/feed%00",
        "/feed%3fx",
        "//feed",
        "/%2ffeed",
        "/x%2f..%2ffeed",
        "/assets/..;/api",
        "/assets/%2e%2e/api",
        "/assets/%252e%252e/api",
        "/assets/%25252e%25252e/api",
        "/assets/..%5capi",
        "/assets/%c0%ae%c0%ae/api",
        "/assets/a%2f..%2f..%2fapi",
    ],
)
async def test_encoded_path_that_only_looks_public_needs_a_login(world, backend, path):
    """401, or 400 where it is ambiguous."""
    answer = await world.get(PREFIX + path)
    assert answer.status in {400, 401}
    assert backend.seen == []


async def test_public_paths_accept_only_get_and_head(world, backend):
    """Other methods, bodies and websockets are refused."""
    handshake = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    for answer in (
        await world.ask("POST", f"{PREFIX}/feed", world.here),
        await world.ask("GET", f"{PREFIX}/feed", body=b"x"),
        await world.get(f"{PREFIX}/feed", *handshake, "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="),
    ):
        assert answer.status == 401
    assert backend.seen == []


async def test_service_without_password_serves_only_its_public_paths(tmp_path, backend):
    """Other paths are 404, and there is no login page."""
    async with routed.opened(tmp_path) as world:
        await world.serve(backend, login="", public=["/feed"])
        assert (await world.get(f"{PREFIX}/feed")).status == 200
        assert (await world.get(f"{PREFIX}/api", "Accept: text/html")).status == 404
        assert (await world.get(f"/.latticed/login?to={PREFIX}/")).status == 404
    assert backend.paths == ["/feed"]


async def test_dot_segments_are_refused_even_with_a_session(world, backend, session):
    for path in ("/../x", "/a/%2e%2e/b", "/a/..%2fb", "/a/%252e%252e/b", "/a/..;x/b", "/%2e", "/a\\..\\b"):
        assert (await world.get(PREFIX + path, session)).status == 400
    assert backend.seen == []


async def test_services_are_served_only_at_their_own_listener(world, backend):
    """http.listen does not serve them, and this listener serves no templates."""
    answer = await world.put(path=f"{PREFIX}/page/", target="template", template="hi")
    assert answer["url"].startswith(world.pages.listener.url)
    assert (await world.get(f"{PREFIX}/feed", table=world.pages)).status == 404
    assert (await world.get(f"{PREFIX}/page/", table=world.pages)).body == b"hi"
    assert (await world.get(f"{PREFIX}/page/")).status == 401
    assert backend.seen == []


@pytest.mark.parametrize(
    "path", ["/", "/other.one/", "/acme.demos/", "/.well-known/acme", "/.latticed/", "/.latticed/x"]
)
async def test_path_outside_any_service_is_404(world, session, path):
    assert (await world.get(path, session)).status == 404


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.2", "127.0.0.1.evil.example", "", "a b"])
async def test_service_listener_refuses_other_hosts(world, backend, session, host):
    """This prevents DNS rebinding."""
    assert (await world.get(f"{PREFIX}/feed", f"Host: {host}", session)).status in {400, 421}
    assert backend.seen == []


# Forwarded paths and headers.


async def test_path_is_forwarded_still_encoded(world, session):
    """The route's prefix is removed; escapes and query are unchanged."""
    for path in ("/", "/a%20b/%C3%BC", "/a%2Fb?x=%2B+1&x=2&&=", "/a?b?c", "/'(*)!~,=:@$&+"):
        assert echoed(await world.get(PREFIX + path, session))["path"] == path
    assert echoed(await world.get(f"http://127.0.0.1{PREFIX}/a%20b?c", session))["path"] == "/a%20b?c"
    answer = await world.get(f"{PREFIX}?x=1", session)
    assert (answer.status, answer.headers["location"]) == (308, f"{PREFIX}/?x=1")
    assert (await world.get("/acme%2Edemo/x", session)).status == 404


async def test_service_at_the_root_path_is_served(tmp_path, backend):
    """Paths and redirects are unchanged; reserved paths and the login pages remain ours."""
    async with routed.opened(tmp_path) as world:
        world.plugins.granted_prefixes[ID] = frozenset({"/"})
        await world.serve(backend, path="/", public=["/feed"])
        session = await world.cookie(to="/")
        assert echoed(await world.get("/a%20b?c", session))["path"] == "/a%20b?c"
        assert (await world.get("/redirect?to=/x", session)).headers["location"] == "/x"
        assert (await world.get("/feed")).status == 200
        assert (await world.get("/")).status == 401
        assert (await world.get("/.latticed/x", session)).status == 404
        assert (await world.get("/.well-known/x", session)).status == 404
    assert backend.paths == ["/a%20b?c", "/redirect?to=/x", "/feed"]


TAKEN_AT_THEIR_WORD = """
    Remote-User Remote-Groups Remote-Name Remote-Email X-Remote-User X-WEBAUTH-USER X-Auth-Request-User
    X-Auth-Request-Email X-Auth-Request-Access-Token X-Authenticated-User X-Forwarded-User
    X-Forwarded-Preferred-Username X-SSL-Client-Verify X-SSL-Client-DN SSL-Client-Cert X-Client-Cert
    X-Original-Forwarded-For X-Original-Remote-Addr X-Original-URI Client-IP X-Client-IP X-Cluster-Client-IP
    Fastly-Client-IP Fly-Client-IP CF-Access-Authenticated-User-Email X-Goog-Iap-Jwt-Assertion
    X-Amzn-Oidc-Identity Tailscale-User-Login X-authentik-username X-Vouch-User X-MS-Client-Principal
    X-Token-Subject X-Method-Override X-Envoy-External-Address X-Azure-ClientIP
""".split()
"""Headers by which some program or other lets a proxy say who the user is, where he is, or what he asked for."""


async def test_only_listed_request_headers_are_forwarded(world, backend, session):
    """Host and Origin are the service's; there is no session cookie, no credentials, nothing about the client."""
    fields = [
        *(f"{name}: admin" for name in TAKEN_AT_THEIR_WORD),
        "Cookie: app=1; LATTICED-session=x; other=2",
        "Authorization: Basic abc",
        "Proxy-Authorization: Basic abc",
        "X-Forwarded-For: 1.2.3.4",
        "X-Forwarded-Host: evil",
        "Forwarded: for=1.2.3.4",
        "X-Real-IP: 1.2.3.4",
        "X-Original-URL: /admin",
        "X-Rewrite-URL: /admin",
        "X-HTTP-Method-Override: DELETE",
        "Content_Length: 5",
        "TE: trailers",
        "Keep-Alive: 5",
        "X-Custom: dropped",
        "X-CSRF-Token: kept",
        "Accept-Encoding: gzip, br",
        "User-Agent: test",
        "Range: bytes=0-1",
        "X-Hop: 1",
        "Connection: X-Hop",
        f"Referer: http://{routed.HOST}/secret",
        world.here,
    ]
    told = echoed(await world.ask("POST", f"{PREFIX}/x", session, *fields, body=b"abc"))["headers"]
    assert told.pop("connection", "close") == "close"
    assert told == {
        "host": f"127.0.0.1:{backend.port}",
        "origin": backend.origin,
        "cookie": "app=1; other=2",
        "x-csrf-token": "kept",
        "accept-encoding": "gzip, br",
        "user-agent": "test",
        "range": "bytes=0-1",
        "content-length": "3",
    }


async def test_unsafe_response_headers_of_backend_are_removed(world, session):
    """Hop-by-hop headers, authentication prompts and orders to proxies in front; shared caches may store nothing."""
    headers = (await world.get(f"{PREFIX}/x", session)).headers
    assert headers["x-service"] == "yes"
    assert headers["cache-control"] == "private"
    assert "Cookie" in headers["vary"]
    forbidden = {"x-hop", "keep-alive", "www-authenticate", "strict-transport-security", "x-accel-redirect"}
    assert not forbidden & headers.keys()


async def test_401_of_backend_arrives_with_a_challenge_for_which_no_browser_asks(world, session):
    answer = await world.get(f"{PREFIX}/guarded", session)
    assert (answer.status, answer.body) == (401, b"who are you?")
    assert answer.headers["www-authenticate"] == "Cookie"


async def test_backend_can_set_cookies_only_below_its_route(world, session):
    """They lose Domain; none with the name of a session cookie, in any spelling, is passed on."""
    answer = await world.send(
        f"GET {PREFIX}/cookies HTTP/1.1\r\nHost: 127.0.0.1\r\n{session}\r\nConnection: close\r\n\r\n".encode()
    )
    assert "forged" not in str(answer)
    assert "nameless" not in str(answer)
    async with browsing(world, session) as client, client.get(f"{PREFIX}/cookies") as found:
        assert found.headers.getall("Set-Cookie") == [f"app=1; Path={PREFIX}/; HttpOnly", f"deep=2; Path={PREFIX}/api"]
        assert found.headers["Cache-Control"] == "max-age=60, private"


@pytest.mark.parametrize(
    ("to", "seen"),
    [
        ("/x?y", f"{PREFIX}/x?y"),
        ("{origin}/x", f"{PREFIX}/x"),
        ("{origin}", f"{PREFIX}/"),
        ("x/y", "x/y"),
        ("https://example.org/", "https://example.org/"),
        ("//example.org/", "//example.org/"),
        ("{origin}.example.org/", "{origin}.example.org/"),
    ],
)
async def test_redirects_of_backend_are_passed_on_and_not_followed(world, backend, session, to, seen):
    to, seen = to.format(origin=backend.origin), seen.format(origin=backend.origin)
    answer = await world.get(f"{PREFIX}/redirect?to={to}", session)
    assert (answer.status, answer.headers["location"]) == (302, seen)
    assert len(backend.seen) == 1


async def test_compressed_answers_are_forwarded_unchanged(world, session):
    answer = await world.get(f"{PREFIX}/packed", session)
    assert answer.headers["content-encoding"] == "gzip"
    assert gzip.decompress(answer.body) == b"squeezed"


async def test_server_sent_events_are_forwarded_without_buffering(world, backend, session):
    async with browsing(world, session) as client, client.get(f"{PREFIX}/sse") as stream:
        assert await stream.content.readuntil(b"\n\n") == b"data: first\n\n"
        assert backend.held == 1
        backend.hold.set()
        assert await stream.content.read() == b"data: second\n\n"


async def test_lost_client_closes_the_backend_connection(world, backend, session):
    async with browsing(world, session) as client:
        stream = await client.get(f"{PREFIX}/sse")
        assert await stream.content.readuntil(b"\n\n")
        stream.close()
        await ingresses.until(lambda: backend.held == 0, "the backend let go")


# Bodies.


async def test_request_bodies_of_both_framings_arrive_whole(world, backend, session):
    async with browsing(world, session) as client:
        big = bytes(range(256)) * 2_000

        async def pieces():
            for place in range(0, len(big), 50_000):
                yield big[place : place + 50_000]

        for data in (big, pieces()):
            async with client.post(f"{PREFIX}/x", data=data) as answer:
                assert answer.status == 200
    assert [one.body for one in backend.seen] == [big, big]
    assert backend.seen[0].headers["content-length"] == str(len(big))
    assert backend.seen[1].headers["transfer-encoding"] == "chunked"


async def test_too_large_content_length_is_refused_at_once(world, backend, session):
    head = f"POST {PREFIX}/x HTTP/1.1\r\nHost: 127.0.0.1:{world.port()}\r\n{session}\r\n{world.here}\r\n"
    (answer,) = await world.send(f"{head}Content-Length: 1048577\r\n\r\n".encode())
    assert (answer.status, answer.code) == (413, "request_too_large")
    assert backend.seen == []


async def test_upload_is_forwarded_whole_although_its_answer_has_begun(world, session):
    """A service may answer while the body is still being sent."""
    head = f"POST {PREFIX}/early HTTP/1.1\r\nHost: 127.0.0.1:{world.port()}\r\n{session}\r\n{world.here}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port())
    writer.write(f"{head}Content-Length: 6\r\nConnection: close\r\n\r\nabc".encode())
    begun = await reader.readuntil(b"begun ")
    for piece in (b"d", b"e", b"f"):
        writer.write(piece)
        await asyncio.sleep(0.02)  # each in a piece of its own
    (answer,) = raw_http.parsed(begun + await ingresses.until_closed(reader))
    assert (answer.status, answer.body) == (200, b"begun 6")
    await ingresses.gone(writer)


async def test_too_large_chunked_body_is_413_and_reaches_backend_truncated(world, backend, session):
    head = f"POST {PREFIX}/x HTTP/1.1\r\nHost: 127.0.0.1:{world.port()}\r\n{session}\r\n{world.here}\r\n"
    chunk = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    (answer,) = await world.send(
        f"{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode() + chunk * 17 + b"0\r\n\r\n"
    )
    assert (answer.status, answer.code) == (413, "request_too_large")
    await ingresses.until(lambda: [one.body for one in backend.seen] in ([b"<broken>"], []), "a broken body")


async def test_broken_chunk_in_upload_closes_both_connections_at_once(world, backend, session):
    """400 before any deadline; the backend sees a truncated body, and the slot is free."""
    head = f"POST {PREFIX}/x HTTP/1.1\r\nHost: 127.0.0.1:{world.port()}\r\n{session}\r\n{world.here}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port())
    writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n".encode())
    await asyncio.sleep(0.05)  # some of it may have reached the backend, or none: either way it ends
    writer.write(b"zz\r\n")
    (answer,) = raw_http.parsed(await ingresses.until_closed(reader))
    assert (answer.status, answer.code) == (400, "bad_request")
    await ingresses.gone(writer)
    await ingresses.until(lambda: [one.body for one in backend.seen] in ([b"<broken>"], []), "a broken body")


async def test_expect_100_continue_is_answered(world, backend, session):
    """Expect: 100-continue, once; another expectation is refused before any connection is made."""
    head = f"POST {PREFIX}/x HTTP/1.1\r\nHost: 127.0.0.1:{world.port()}\r\n{session}\r\n{world.here}\r\n"
    head += "Content-Length: 3\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port())
    writer.write(f"{head}Expect: 100-continue\r\nConnection: close\r\n\r\n".encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    (answer,) = raw_http.parsed(await ingresses.until_closed(reader))
    await ingresses.gone(writer)
    assert echoed(answer)["body"] == "abc"
    (answer,) = await world.send(f"{head}Expect: miracles\r\n\r\nabc".encode())
    assert answer.status == 417
    assert len([one for one in backend.seen if one.body != b"<broken>"]) == 1


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Content-Length: 3\r\nContent-Length: 4",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Content-Length: 3\r\nTransfer-Encoding:",
        "Content-Length: +3",
        "Content-Length: 3\r\n X: folded",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "X: a\nTransfer-Encoding: chunked",
        "X: a\rX: b",
    ],
)
async def test_request_hidden_by_ambiguous_framing_never_reaches_backend(world, backend, session, framing):
    """At most the outer request arrives there, reframed by the proxy."""
    hidden = f"GET {PREFIX}/hidden HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    head = (
        f"POST {PREFIX}/x HTTP/1.1\r\nHost: 127.0.0.1:{world.port()}\r\n{session}\r\n{world.here}\r\n{framing}\r\n\r\n"
    )
    answers = await world.send(f"{head}0\r\n\r\n{hidden}".encode())
    assert [answer.status for answer in answers] == [400]
    assert backend.seen == []


async def test_upgrade_other_than_websocket_is_proxied_as_plain_request(world, backend, session):
    """h2c is an example; later bytes are not taken for a request."""
    hidden = f"GET {PREFIX}/hidden HTTP/1.1\r\nHost: 127.0.0.1\r\n{session}\r\n\r\n"
    fields = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"
    head = f"GET {PREFIX}/x HTTP/1.1\r\nHost: 127.0.0.1\r\n{session}\r\n{fields}\r\n\r\n"
    answers = await world.send(f"{head}{hidden}".encode())
    assert echoed(answers[0])["path"] == "/x"
    assert backend.paths == ["/x"]
    assert not {"upgrade", "http2-settings"} & backend.seen[0].headers.keys()


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PURGE"])
async def test_unsupported_method_never_reaches_backend(world, backend, session, method):
    target = "127.0.0.1:1" if method == "CONNECT" else f"{PREFIX}/x"
    assert (await world.ask(method, target, session)).status in {400, 405}
    assert backend.seen == []


# Failures of the backend.


async def test_unreachable_backend_is_502_until_it_is_back(world, backend, session, tmp_path):
    """No restart or reload is needed."""
    port = backend.port
    again = backends.Backend()
    async with backends.running(port=ports.free()) as other:
        world.plugins.origins[ID] = (other.origin,)
        await world.serve(other)
        assert (await world.get(f"{PREFIX}/x", session)).status == 200
    answer = await world.get(f"{PREFIX}/x", session)
    assert (answer.status, answer.code) == (502, "service_failed")
    assert str(other.port) not in answer.body.decode()
    async with backends.running(again, port=other.port):
        assert (await world.get(f"{PREFIX}/x", session)).status == 200
    assert port != other.port


async def test_incomplete_backend_answer_is_502_or_cuts_the_connection(world, backend, session):
    """502 before the head was forwarded; after it the client's connection is cut, in either framing."""
    answer = await world.get(f"{PREFIX}/die?early", session)
    assert (answer.status, answer.code) == (502, "service_failed")
    async with browsing(world, session) as client:
        for how in ("", "?length"):
            with pytest.raises(aiohttp.ClientError):
                async with client.get(f"{PREFIX}/die{how}") as found:
                    await found.read()


async def test_backend_that_does_not_answer_is_504(tmp_path, backend):
    """Its connection is closed."""
    async with routed.opened(tmp_path, limits=ProxyLimits(head_s=0.2)) as world:
        await world.serve(backend)
        answer = await world.get(f"{PREFIX}/slow", await world.cookie())
        assert (answer.status, answer.code) == (504, "deadline_exceeded")
        await ingresses.until(lambda: backend.held == 0, "the backend let go")


async def test_backend_that_stalls_within_an_answer_is_disconnected(tmp_path, backend):
    async with routed.opened(tmp_path, limits=ProxyLimits(idle_s=0.2)) as world:
        await world.serve(backend)
        async with browsing(world, await world.cookie()) as client:
            with pytest.raises(aiohttp.ClientError):
                async with client.get(f"{PREFIX}/stall") as found:
                    await found.read()
        await ingresses.until(lambda: backend.held == 0, "the backend let go")


async def test_request_over_concurrency_limit_is_503_busy(tmp_path, backend):
    async with routed.opened(tmp_path, limits=ProxyLimits(at_once=1)) as world:
        await world.serve(backend)
        session = await world.cookie()
        first = asyncio.ensure_future(world.get(f"{PREFIX}/slow", session))
        await ingresses.until(lambda: backend.held == 1, "the first is there")
        answer = await world.get(f"{PREFIX}/x", session)
        assert (answer.status, answer.code) == (503, "busy")
        backend.hold.set()
        assert (await first).body == b"at last"
        assert (await world.get(f"{PREFIX}/x", session)).status == 200


async def test_proxy_connects_only_to_the_pinned_address(tmp_path, backend):
    """Names are not resolved; after the operator unbinds the origin, the next request is refused."""
    async with routed.opened(tmp_path) as world:
        pinned = f"http://backend.invalid:{backend.port}=127.0.0.1"
        world.plugins.origins[ID] = (pinned,)
        await world.serve(backend, origin=pinned)
        session = await world.cookie()
        assert echoed(await world.get(f"{PREFIX}/x", session))["headers"]["host"] == f"backend.invalid:{backend.port}"
        world.plugins.origins[ID] = ()
        answer = await world.get(f"{PREFIX}/x", session)
        assert (answer.status, answer.code) == (503, "service_unavailable")
        assert len(backend.seen) == 1


async def test_stopping_plugin_disconnects_clients_of_its_service(world, backend, session):
    """Open streams end, too."""
    async with browsing(world, session) as client, client.get(f"{PREFIX}/sse") as stream:
        assert await stream.content.readuntil(b"\n\n")
        world.plugins.live.discard(ID)
        assert (await world.get(f"{PREFIX}/feed")).status == 404
        with pytest.raises(aiohttp.ClientError):
            await stream.content.read()
    await ingresses.until(lambda: backend.held == 0, "the backend let go")


async def route_deleted(world, backend):
    await world.call(ID, "route.delete", path=f"{PREFIX}/")


async def put_anew(world, backend, **changed):
    """The route as it is, but for what is `changed`."""
    wanted = {"origin": backend.origin, "login": "${secret:WEB}", "public": PUBLIC, **changed}
    await world.put(path=f"{PREFIX}/", target="service", **wanted)


async def route_with_another_login(world, backend):
    await world.secrets.set("OTHER", routed.KEPT)
    await world.secrets.bind("OTHER", ID)
    await put_anew(world, backend, login="${secret:OTHER}")


async def route_to_another_origin(world, backend):
    async with backends.running() as other:
        world.plugins.origins[ID] = (backend.origin, other.origin)
        await put_anew(world, backend, origin=other.origin)


async def route_into_the_network_of_a_service(world, backend):
    """The same address is another program there."""
    world.plugins.networks = lambda *_: True
    await put_anew(world, backend, service="web")


@pytest.mark.parametrize(
    "change",
    [route_deleted, route_with_another_login, route_to_another_origin, route_into_the_network_of_a_service],
)
async def test_stream_ends_with_the_route_it_came_by(world, backend, session, change):
    """Although its login is still one, and its plugin runs on."""
    async with browsing(world, session) as client, client.get(f"{PREFIX}/sse") as stream:
        assert await stream.content.readuntil(b"\n\n")
        await change(world, backend)
        with pytest.raises(aiohttp.ClientError):
            await stream.content.read()
    await ingresses.until(lambda: backend.held == 0, "the backend let go")


async def test_stream_goes_on_when_its_route_is_put_again_as_it_was(world, backend, session):
    """As a plugin does that starts again."""
    async with browsing(world, session) as client, client.ws_connect(f"{PREFIX}/ws") as talk:
        await world.serve(backend, public=PUBLIC)
        world.ingress._cut()
        await talk.send_str("on")
        assert await talk.receive_str() == "you said on"


async def test_public_stream_is_cut_after_its_time_limit(tmp_path, backend):
    """It is cut after PUBLIC_S; one with a session is not."""
    async with routed.opened(tmp_path) as world:
        await world.serve(backend, public=["/sse"])
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port())
        writer.write(f"GET {PREFIX}/sse HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert await reader.readuntil(b"first\n\n")
        world.clock.advance(PUBLIC_S + 1)
        await ingresses.until_closed(reader)
        await ingresses.gone(writer)
        await ingresses.until(lambda: backend.held == 0, "the backend let go")


# Websockets.


async def test_websocket_messages_are_relayed_both_ways(world, backend, session):
    """Text and binary, the subprotocol, close codes of either side."""
    async with browsing(world, session) as client:
        async with client.ws_connect(f"{PREFIX}/ws", protocols=["other", "chat"]) as talk:
            assert talk.protocol == "chat"
            await talk.send_str("h\u00e9llo")
            assert await talk.receive_str() == "you said h\u00e9llo"
            await talk.send_bytes(b"abc")
            assert await talk.receive_bytes() == b"cba"
            await talk.send_str("bye")
            assert (await talk.receive()).data == 4001
        async with client.ws_connect(f"{PREFIX}/ws") as talk:
            assert talk.protocol is None
            await talk.close(code=4002)
        await ingresses.until(lambda: backend.ended == [1000, 4002], "both ended")
    told = backend.seen[0].headers
    assert told["origin"] == backend.origin
    assert "cookie" not in told
    assert backend.sockets == 0


async def test_websocket_is_closed_when_its_backend_dies(world, backend, session):
    async with browsing(world, session) as client, client.ws_connect(f"{PREFIX}/ws") as talk:
        await talk.send_str("die")
        message = await talk.receive()
        assert (message.type, message.data) == (aiohttp.WSMsgType.CLOSE, 1011)


async def test_too_large_message_closes_the_websocket(world, backend, session):
    async with browsing(world, session) as client, client.ws_connect(f"{PREFIX}/ws") as talk:
        await talk.send_bytes(b"x" * 70_000)
        assert (await talk.receive()).type is not aiohttp.WSMsgType.BINARY
    await ingresses.until(lambda: backend.sockets == 0, "the backend's side ended")


async def test_redirect_of_websocket_by_backend_is_502(world, backend, session):
    """The backend gets one request."""
    async with browsing(world, session) as client:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await client.ws_connect(f"{PREFIX}/ws?go=elsewhere")
        assert caught.value.status == 502
    assert backend.paths == ["/ws?go=elsewhere"]


@pytest.mark.parametrize(
    "fields",
    [
        {"Sec-WebSocket-Version": "8"},
        {"Sec-WebSocket-Key": "short"},
        {"Sec-WebSocket-Key": "\u00fc" * 24},
        {"Connection": "keep-alive"},
        {"Sec-WebSocket-Protocol": "a b"},
    ],
)
async def test_invalid_websocket_handshake_is_400(world, backend, session, fields):
    sound = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    lines = {**sound, "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", **fields}
    head = [f"GET {PREFIX}/ws HTTP/1.1", "Host: 127.0.0.1", session, "Origin: http://127.0.0.1"]
    data = "\r\n".join([*head, *(f"{name}: {value}" for name, value in lines.items()), "", ""]).encode()
    answers = await world.send(data)
    assert answers[0].status == 400
    assert backend.seen == []


async def test_proxied_answer_lacks_our_content_security_policy(world, session):
    """Only our own pages have it."""
    answer = await world.get(f"{PREFIX}/x", session)
    assert "content-security-policy" not in answer.headers
    assert json.loads(answer.body)["method"] == "GET"
