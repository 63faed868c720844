"""Logins to proxied services: passwords, throttling, cookies, and origins that may use them."""

from __future__ import annotations

import asyncio
import html
import re

import aiohttp
import pytest

from latticed.ingress import sessions
from latticed.kit import passwords
from latticed.model.audit import Event
from tests.house import backends, ingresses, routed
from tests.house.routed import ID, PASSWORD

PREFIX = f"/{ID}"
HTTPS = "Origin: https://sub.example.org"
NAMED = "Host: sub.example.org"


@pytest.fixture
async def backend():
    async with backends.running() as found:
        yield found


@pytest.fixture
async def world(tmp_path, backend):
    async with routed.opened(tmp_path, hosts=("127.0.0.1", "localhost", "sub.example.org")) as found:
        await found.serve(backend)
        yield found


# The cookie.


async def test_session_cookie_over_http_is_httponly_and_samesite_without_secure(world):
    """It has no `__Host-` and no Secure, which browsers accept over https only, and all other restrictions."""
    answer = await world.log_in(to=f"{PREFIX}/x?y=1")
    assert (answer.status, answer.headers["location"]) == (303, f"{PREFIX}/x?y=1")
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert re.fullmatch(r"latticed-session=[A-Za-z0-9_-]{43}", cookie)
    assert attributes == ["Path=/", "Max-Age=43200", "HttpOnly", "SameSite=Strict"]


async def test_session_cookie_over_https_is_secure(world, backend):
    """It has `__Host-` and Secure behind a TLS proxy, and is not valid under the http name."""
    answer = await world.log_in(PASSWORD, NAMED, origin=HTTPS)
    cookie, *attributes = answer.headers["set-cookie"].split("; ")
    assert re.fullmatch(r"__Host-latticed-session=[A-Za-z0-9_-]{43}", cookie)
    assert attributes == ["Path=/", "Max-Age=43200", "HttpOnly", "SameSite=Strict", "Secure"]
    assert (await world.get(f"{PREFIX}/x", NAMED, f"Cookie: {cookie}")).status == 200
    plain = cookie.removeprefix("__Host-")
    assert (await world.get(f"{PREFIX}/x", NAMED, f"Cookie: {plain}")).status == 401
    assert len(backend.seen) == 1


async def test_every_login_gets_a_new_session_id(world):
    """Session fixation: an id from before the login never becomes valid."""
    planted = "Cookie: latticed-session=" + "A" * 43
    first = (await world.log_in(PASSWORD, planted)).headers["set-cookie"].partition(";")[0]
    second = (await world.log_in(PASSWORD, f"Cookie: {first}")).headers["set-cookie"].partition(";")[0]
    assert len({planted.removeprefix("Cookie: "), first, second}) == 3
    statuses = [(await world.get(f"{PREFIX}/x", f"Cookie: {one}")).status for one in (first, second)]
    assert (await world.get(f"{PREFIX}/x", planted)).status == 401
    assert statuses == [401, 200]


@pytest.mark.parametrize("cookie", ["", "latticed-session=", "latticed-session", "latticed-session=\u00fc", "; ;=;"])
async def test_invalid_session_cookies_give_no_session(world, backend, cookie):
    assert (await world.get(f"{PREFIX}/x", f"Cookie: {cookie}")).status == 401
    assert backend.seen == []


# The password.


async def test_wrong_password_shows_the_form_with_an_error(world, backend):
    """403 with the form; the password tried is neither shown nor recorded."""
    to = f"{PREFIX}/\"><script>?b=%22%3E&'c"
    answer = await world.log_in("not this one", to=to)
    page = answer.body.decode()
    assert answer.status == 403
    assert "this is not the password" in page
    assert "not this one" not in page
    assert "<script>" not in page
    assert f'value="{html.escape(to, quote=True)}"' in page
    assert "set-cookie" not in answer.headers
    (event,) = world.events
    assert (event.action, event.target, event.decision, event.code) == ("route.login", ID, "deny", "login_failed")
    assert "not this one" not in str(event)
    await world.log_in()
    assert world.events[-1] == Event(
        actor="latticed", action="route.login", target=ID, decision="allow", detail={"path": f"{PREFIX}/"}
    )
    assert backend.seen == []


async def test_password_guessing_is_throttled(world):
    """Ten guesses are checked at once, then one in ten seconds for all clients; the right password is throttled as
    well.
    """
    for _ in range(sessions.ATTEMPTS.burst):
        assert (await world.log_in("guess")).status == 403
    for password in ("guess", PASSWORD):
        answer = await world.log_in(password)
        assert (answer.status, answer.headers["retry-after"]) == (429, "11")
        assert "set-cookie" not in answer.headers
    assert len(world.events) == sessions.ATTEMPTS.burst
    world.clock.advance(1 / sessions.ATTEMPTS.per_second)
    assert (await world.log_in()).status == 303
    assert (await world.log_in()).status == 429


async def test_concurrent_password_guesses_share_the_throttle(world):
    """Of 25 guesses at once, by several connections, 10 are checked (403) and 15 are refused (429)."""
    answers = await asyncio.gather(*(world.log_in("guess") for _ in range(25)))
    assert sorted(answer.status for answer in answers) == [403] * 10 + [429] * 15


async def test_password_check_does_not_block_other_requests(world):
    """The hash is slow on purpose, and computed on a thread."""
    await world.secrets.set("WEB", PASSWORD)  # as it is: checked at full cost
    trying = asyncio.gather(*(world.log_in("guess") for _ in range(3)))
    while not trying.done():
        assert (await world.get("/.latticed/login?to=/acme.demo/")).status == 200
    assert {answer.status for answer in await trying} == {403}
    assert (await world.log_in()).status == 303


async def test_changed_password_ends_every_session(world):
    """Unbinding the secret does, too; without one no login is possible."""
    session = await world.cookie()
    assert (await world.get(f"{PREFIX}/x", session)).status == 200
    await world.secrets.set("WEB", passwords.make_hash("another horse", ln=10))
    assert (await world.get(f"{PREFIX}/x", session)).status == 401
    assert (await world.log_in()).status == 403
    session = await world.cookie(password="another horse")
    assert (await world.get(f"{PREFIX}/x", session)).status == 200
    await world.secrets.unbind("WEB", ID)
    assert (await world.get(f"{PREFIX}/x", session)).status == 401
    answer = await world.log_in("another horse")
    assert (answer.status, answer.code) == (503, "service_unavailable")
    assert "WEB" not in answer.body.decode()


async def test_session_expires_when_unused_or_old(world):
    """It does after two hours without use, and after twelve in any case."""
    session = await world.cookie()
    for _ in range(7):
        world.clock.advance(1.7 * 3_600)
        assert (await world.get(f"{PREFIX}/x", session)).status == 200
    world.clock.advance(0.2 * 3_600)
    assert (await world.get(f"{PREFIX}/x", session)).status == 401
    world.clock.advance(60)
    session = await world.cookie()
    world.clock.advance(2.1 * 3_600)
    assert (await world.get(f"{PREFIX}/x", session)).status == 401


async def test_logout_ends_the_session(world, backend):
    """It ends at once, also for open streams; the cookie is deleted."""
    session = await world.cookie()
    page = await world.get(f"/.latticed/logout?to={PREFIX}/", session)
    assert (page.status, b"Log out" in page.body) == (200, True)
    headers = {"Cookie": session.removeprefix("Cookie: ")}
    address = f"http://127.0.0.1:{world.port()}"
    async with aiohttp.ClientSession(address, headers=headers) as client, client.get(f"{PREFIX}/sse") as stream:
        assert await stream.content.readuntil(b"\n\n")
        kind = "Content-Type: application/x-www-form-urlencoded"
        form = f"to={PREFIX}/".encode()
        assert (await world.ask("POST", "/.latticed/logout", kind, session, body=form)).status == 403
        out = await world.ask("POST", "/.latticed/logout", kind, session, world.here, body=form)
        assert (out.status, out.headers["location"]) == (303, f"/.latticed/login?to={PREFIX}/")
        assert out.headers["set-cookie"].startswith("latticed-session=; Path=/; Max-Age=0; HttpOnly")
        assert (await world.get(f"{PREFIX}/x", session)).status == 401
        with pytest.raises(aiohttp.ClientError):
            await stream.content.read()
    await ingresses.until(lambda: backend.held == 0, "the backend let go")


async def test_services_of_a_plugin_have_separate_logins(world, backend):
    """A login to the second does not end that to the first."""
    await world.secrets.set("ADMIN", passwords.make_hash("another horse", ln=10))
    await world.secrets.bind("ADMIN", ID)
    await world.put(path=f"{PREFIX}/admin/", target="service", origin=backend.origin, login="${secret:ADMIN}")
    session = await world.cookie()
    assert (await world.get(f"{PREFIX}/x", session)).status == 200
    assert (await world.get(f"{PREFIX}/admin/x", session)).status == 401
    assert (await world.log_in(PASSWORD, session, to=f"{PREFIX}/admin/")).status == 403
    answer = await world.log_in("another horse", session, to=f"{PREFIX}/admin/")
    both = f"Cookie: {answer.headers['set-cookie'].partition(';')[0]}"
    assert [(await world.get(f"{PREFIX}{path}", both)).status for path in ("/x", "/admin/x")] == [200, 200]


@pytest.mark.parametrize("hours", [2.1, 12.1])
async def test_login_that_has_expired_does_not_come_back_with_another_login(world, backend, hours):
    """Neither what was unused nor what was used all the time, by a login elsewhere with its old cookie."""
    await world.secrets.set("ADMIN", passwords.make_hash("another horse", ln=10))
    await world.secrets.bind("ADMIN", ID)
    await world.put(path=f"{PREFIX}/admin/", target="service", origin=backend.origin, login="${secret:ADMIN}")
    session = await world.cookie()
    while hours > 2.1:
        world.clock.advance(1.9 * 3_600)
        hours -= 1.9
        assert (await world.get(f"{PREFIX}/x", session)).status == 200
    world.clock.advance(hours * 3_600)
    assert (await world.get(f"{PREFIX}/x", session)).status == 401
    answer = await world.log_in("another horse", session, to=f"{PREFIX}/admin/")
    new = f"Cookie: {answer.headers['set-cookie'].partition(';')[0]}"
    assert [(await world.get(f"{PREFIX}{path}", new)).status for path in ("/x", "/admin/x")] == [401, 200]


async def test_logins_elsewhere_do_not_make_a_login_last_longer(world, backend):
    await world.secrets.set("ADMIN", passwords.make_hash("another horse", ln=10))
    await world.secrets.bind("ADMIN", ID)
    await world.put(path=f"{PREFIX}/admin/", target="service", origin=backend.origin, login="${secret:ADMIN}")
    session = await world.cookie()
    for _ in range(6):
        world.clock.advance(1.9 * 3_600)
        answer = await world.log_in("another horse", session, to=f"{PREFIX}/admin/")
        session = f"Cookie: {answer.headers['set-cookie'].partition(';')[0]}"
        assert (await world.get(f"{PREFIX}/x", session)).status == 200
    world.clock.advance(1.9 * 3_600)
    assert [(await world.get(f"{PREFIX}{path}", session)).status for path in ("/x", "/admin/x")] == [401, 200]


# Requests from other origins.


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ("Origin: null",),
        ("Origin: http://evil.example",),
        ("Origin: http://127.0.0.1:1",),
        ("Origin: http://127.0.0.1.evil.example",),
        ("Origin: ftp://127.0.0.1:{port}",),
        ("Origin: http://127.0.0.1:{port}@evil.example",),
        ("Origin: http://localhost:{port}",),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_state_changing_requests_require_own_origin(world, backend, method, fields):
    session = await world.cookie()
    said = [field.format(port=world.port()) for field in fields]
    answer = await world.ask(method, f"{PREFIX}/x", session, *said)
    assert (answer.status, answer.code) == (403, "origin_not_allowed")
    assert backend.seen == []


async def test_cross_site_reads_are_refused(world, backend):
    """A page on another port of this host is same-site, so SameSite sends cookies along."""
    session = await world.cookie()
    for fields in (
        ("Origin: http://127.0.0.1:1",),
        ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"),
        ("Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: cors"),
    ):
        assert (await world.get(f"{PREFIX}/x", session, *fields)).status == 403
    assert backend.seen == []
    for fields in (
        (world.here,),
        ("Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"),
        ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate"),
        ("Sec-Fetch-Site: none",),
    ):
        assert (await world.get(f"{PREFIX}/x", session, *fields)).status == 200


@pytest.mark.parametrize("origin", [None, "http://evil.example", "null"])
async def test_websocket_requires_own_origin(world, backend, origin):
    """Browsers send cookies with handshakes from any page; the same-origin policy does not apply."""
    session = (await world.cookie()).removeprefix("Cookie: ")
    headers = {"Cookie": session} | ({"Origin": origin} if origin else {})
    async with aiohttp.ClientSession(f"http://127.0.0.1:{world.port()}", headers=headers) as client:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await client.ws_connect(f"{PREFIX}/ws")
    assert caught.value.status == 403
    assert backend.seen == []


@pytest.mark.parametrize("origin", ["Origin: http://evil.example", "X-Origin: none"])
async def test_login_requires_own_origin(world, origin):
    """Login CSRF: another page could log its victim in as another user."""
    answer = await world.log_in(origin=origin)
    assert (answer.status, answer.code) == (403, "origin_not_allowed")
    assert world.events == []


# The page itself.


async def test_login_page_has_protective_headers_and_no_internal_details(world):
    """It allows no scripts, no frames, and its own style by hash; the form goes to this origin only."""
    answer = await world.get(f"/.latticed/login?to={PREFIX}/")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert policy.endswith("; form-action 'self'; frame-ancestors 'none'")
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["referrer-policy"] == "same-origin"  # with none, the form would say `Origin: null`
    assert answer.headers["cache-control"] == "no-store"
    assert b"<script" not in answer.body


@pytest.mark.parametrize(
    "to",
    [
        "",
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "/other.plugin/",
        "/acme.demo/../x",
        "/acme.demo/\r\nSet-Cookie: a=b",
        "/acme.demo/\u00fc",
        "acme.demo/",
    ],
)
async def test_login_never_redirects_to_another_site(world, to):
    answer = await world.log_in(to=to)
    assert answer.status in {400, 404}
    assert "location" not in answer.headers
    assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    ("kind", "form", "status"),
    [
        ("application/json", b"{}", 400),
        ("text/plain", b"password=x&to=/acme.demo/", 400),
        ("application/x-www-form-urlencoded", b"password=%ff&to=/acme.demo/", 400),
        ("application/x-www-form-urlencoded", b"\xff", 400),
        ("application/x-www-form-urlencoded", b"a=b&" * 20, 400),
        ("application/x-www-form-urlencoded", b"password=" + b"x" * 20_000, 413),
        ("application/x-www-form-urlencoded", b"to=/acme.demo/", 403),
        ("application/x-www-form-urlencoded", b"to=/acme.demo/&password=" + b"x" * 2_000, 403),
    ],
)
async def test_invalid_login_forms_are_refused(world, kind, form, status):
    answer = await world.ask("POST", "/.latticed/login", f"Content-Type: {kind}", world.here, body=form)
    assert answer.status == status


async def test_incomplete_login_form_times_out(world):
    """Any other incomplete request does as well."""
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port())
    head = f"POST /.latticed/login HTTP/1.1\r\nHost: 127.0.0.1:{world.port()}\r\n{world.here}\r\n"
    kind = "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 100\r\n\r\n"
    writer.write((head + kind).encode())
    await ingresses.until(
        lambda: any(one.wants_body for one in world.ingress._limiter.connections()), "its head is read"
    )
    world.clock.advance(6)
    await ingresses.until_closed(reader)
    await ingresses.gone(writer)
