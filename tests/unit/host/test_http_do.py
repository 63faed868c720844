"""http.do: requests, limits, secrets; against real servers on loopback, reached as bound origins."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gzip
import hashlib
import hmac
import threading
import time
import zlib

import aiohttp
import pytest

from latticed.host.call import Caller, HostError
from latticed.host.egress import body, headers
from latticed.host.egress.client import EgressClient, EgressLimits
from latticed.host.egress.guard import Guard
from latticed.host.http.calls import MAX_IN_FLIGHT_OF_PLUGIN, HttpCalls
from latticed.host.secret.references import PluginSecrets
from latticed.model import egress
from latticed.model.egress import EgressRights
from tests.house import dials, origins, plugin_secrets, processes
from tests.house.origins import answer, serving
from tests.house.outside import CALLER, call

KIB = 1024
SECRET = "s3cr&t/välue"


class Bench:
    """http.do with one server, bound as `http://backend.lan:PORT` and `https://…`."""

    def __init__(self, http, client, server):
        self.http, self.client, self.server = http, client, server
        self.url = f"http://backend.lan:{server.port}"

    async def do(self, path="/", **params):
        return await call(self.http, url=params.pop("url", self.url + path), **params)

    async def refused(self, path="/", **params):
        with pytest.raises(HostError) as caught:
            await self.do(path, **params)
        return str(caught.value)


@contextlib.asynccontextmanager
async def bench(
    said,
    *,
    tls=None,
    trust=None,
    secrets_of=plugin_secrets.no_secrets,
    limits=None,
    contacted=lambda caller, target: None,
):
    """A Bench around a server that says `said`."""
    async with serving(said, tls=tls) as server:
        names = [f"{scheme}://backend.lan:{server.port}=127.0.0.1" for scheme in ("http", "https")]
        rights = EgressRights(origins=tuple(egress.origin(name) for name in names))
        async with EgressClient(Guard(), tls=trust or origins.Authority().trust()) as client:
            http = HttpCalls(
                client,
                rights_of=lambda caller: rights,
                secrets_of=secrets_of,
                limits=limits or EgressLimits(),
                contacted=contacted,
            )
            yield Bench(http, client, server)


async def connected(it, count):
    """Wait until the server has accepted `count` connections."""
    async with asyncio.timeout(processes.PATIENCE_S):
        while it.server.connections < count:  # noqa: ASYNC110 - the server is another program's part
            await asyncio.sleep(0.001)


def body_of(result) -> bytes:
    return base64.b64decode(result["body_base64"])


async def test_request_reaches_server_and_response_reaches_plugin():
    """Canonical header names; repeated fields are joined, hop-by-hop and framing fields left out."""
    lines = ["content-type: text/x", "X-A: 1", "x-a: 2", "Set-Cookie: a=b", "Connection: close", "ETAG: W/x"]
    heard = []
    listen = lambda caller, target: heard.append((caller.plugin_id, target))  # noqa: E731
    async with bench(answer(b"\xffbytes", *lines, status="201 Made"), contacted=listen) as it:
        result = await it.do("/a%2Fb/ü?q=<1>#part", method="put", header={"X-Key": "ü 1"}, body="hé")
        assert result == {
            "status_code": 201,
            "header": {"Content-Type": "text/x", "X-A": "1, 2", "Set-Cookie": "a=b", "Etag": "W/x"},
            "body_base64": base64.b64encode(b"\xffbytes").decode(),
        }
        (seen,) = it.server.seen
        assert (seen.method, seen.path, seen.body) == ("PUT", "/a%2Fb/%C3%BC?q=%3C1%3E", "hé".encode())
        assert seen.header == {
            "host": f"backend.lan:{it.server.port}",
            "accept-encoding": "identity",
            "x-key": "ü 1",
            "user-agent": "latticed",
            "connection": "close",
            "content-length": "3",
        }
        assert heard == [("acme.fetch", f"backend.lan:{it.server.port}")]


async def test_http_do_without_options_is_a_plain_get():
    """GET for an absent or empty method, no header, no body; a plugin's own Accept-Encoding is replaced."""
    async with bench(answer()) as it:
        for params in ({}, {"method": "", "body": None, "body_base64": ""}, {"header": {"accept-encoding": "br"}}):
            assert await it.do(**params) == {"status_code": 200, "header": {}, "body_base64": ""}
        await it.do(method="POST", body_base64=base64.b64encode(b"\0\xff").decode(), header={"User-Agent": "x/1"})
        assert [(one.method, one.body) for one in it.server.seen] == [("GET", b"")] * 3 + [("POST", b"\0\xff")]
        assert {one.header["accept-encoding"] for one in it.server.seen} == {"identity"}
        assert it.server.seen[-1].header["user-agent"] == "x/1"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"url": ""}, "bad_params: url"),
        ({"url": "backend.lan/x"}, "bad_params: url"),
        ({"url": "http:/backend.lan/"}, "bad_params: url"),
        ({"url": "http://"}, "bad_params: url: expected a host"),
        ({"url": "http://u:p@backend.lan/"}, "bad_params: url: expected no user name and password"),
        ({"url": "http://backend.lan:0/"}, "bad_params: url: expected a port"),
        ({"url": "http://backend.lan:٣/"}, "bad_params: url: expected a port"),
        ({"url": "http://backend.lan:65536/"}, "bad_params: url: expected a port"),
        ({"url": "http://[::1]x/"}, "bad_params: url: expected a port"),
        ({"url": "http://a b/"}, "bad_params: url: expected no white space"),
        ({"url": "http://a/\r\nx"}, "bad_params: url: expected no white space"),
        ({"url": "http://a/\u2028x"}, "bad_params: url: expected no white space"),
        ({"url": "http://a\\b/"}, "bad_params: url: expected no white space"),
        ({"url": "http://a/\ud800"}, "bad_params: url: expected no white space"),
        ({"url": "http://backend.lan/" + "x" * 8192}, "bad_params: url: expected at most 8192"),
        ({"url": "http://backend.lan/" + "ü" * 4000}, "bad_params: url: expected at most 16384"),
        ({"url": "ws://backend.lan/"}, "egress_blocked: scheme not allowed"),
        ({"url": "http://127.0.0.1/"}, "egress_blocked: address not public: 127.0.0.1 has one that is loopback"),
        ({"url": "http://2130706433/"}, "egress_blocked: host not understood"),
        ({"method": "CONNECT"}, "bad_params: method"),
        ({"method": "GET /x HTTP/1.1\r\n"}, "bad_params: method"),
        ({"header": {"X-A": "\ud800"}}, "bad_params: header X-A"),
        ({"header": {"X A": "1"}}, "bad_params: header"),
        ({"header": {"X-A": "1", "x-a": "2"}}, "bad_params: header x-a: expected once"),
        ({"header": {f"X-{n}": "" for n in range(65)}}, "too_large: header"),
        ({"header": {"X-A": "x" * 33_000}}, "too_large: header"),
        ({"body": "a", "body_base64": "YQ=="}, "bad_params: expected at most one"),
        ({"body_base64": "%%"}, "bad_params: body_base64"),
        ({"body": "\ud800"}, "bad_params: body"),
        ({"body": "x" * (256 * KIB + 1)}, "too_large: body: expected at most 262144 bytes, found 262145"),
        ({"body": "${secret:TOKEN}"}, "bad_params: the operator has bound no secret"),
        ({"header": {"X-A": "${secret:TOKEN}"}}, "bad_params: the operator has bound no secret"),
    ],
)
async def test_bad_http_requests_are_refused_before_connecting(params, message):
    """URL, method, headers and body are checked; the error has a code and the name of the parameter."""
    async with bench(answer()) as it:
        with dials.watched() as dialled:
            assert (await it.refused(**params)).startswith(message)
        assert (dialled, it.server.connections) == ([], 0)


async def test_too_large_request_or_response_body_is_refused():
    """256 KiB each way, by Content-Length and by the bytes that arrive; HEAD is not judged by Content-Length."""
    whole = b"x" * (256 * KIB)
    async with bench(answer(whole)) as it:
        assert body_of(await it.do(method="POST", body_base64=base64.b64encode(whole).decode())) == whole
        assert it.server.seen[0].body == whole

    async def announce(_request, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 262145\r\n\r\n")  # refused by this alone: no body follows

    async def flood(_request, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(whole)
            await writer.drain()

    for said in (announce, flood):
        async with bench(said) as it:
            assert await it.refused() == "too_large: the answer's body is over 262144 bytes"
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\nContent-Encoding: gzip\r\n\r\n"
    async with bench(head) as it:
        assert (await it.do(method="HEAD"))["status_code"] == 200


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("deflate", zlib.compress(b"content")),
        ("deflate", zlib.compressobj(wbits=-15).compress(b"") + zlib.compress(b"content")[2:-4]),
        ("x-gzip", zlib.compress(b"content", wbits=31)),
        ("Identity", b"content"),
    ],
)
async def test_response_with_unrequested_encoding_is_decoded(encoding, data):
    """Requests ask for identity; some servers send gzip or deflate all the same."""
    async with bench(answer(data, f"Content-Encoding: {encoding}")) as it:
        assert body_of(await it.do()) == b"content"


async def test_body_of_too_many_gzip_members_is_refused():
    """Each takes a decompressor and a copy of the rest, however little is in it."""
    empty, content = gzip.compress(b""), gzip.compress(b"content")
    async with bench(answer(empty * (body.MAX_MEMBERS - 1) + content, "Content-Encoding: gzip")) as it:
        assert body_of(await it.do()) == b"content"
    async with bench(answer(empty * body.MAX_MEMBERS + content, "Content-Encoding: gzip")) as it:
        assert "expected at most 64 members" in await it.refused()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (b"", "service_unavailable: {shown} broke off"),
        (b"SSH-2.0-x\r\n\r\n", "service_unavailable: {shown} did not answer in HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "service_unavailable: {shown} broke off"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9000 + b"\r\n\r\n", "too_large: the header of {shown}"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 3000 + b"\r\n", "service_unavailable: {shown} did not"),
        (b"HTTP/1.1 200 OK\r\n" + (b"X: " + b"y" * 8000 + b"\r\n") * 5 + b"\r\n", "too_large: the answer's header"),
        (
            b"HTTP/1.1 101 Switch\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            "service_unavailable: the answer changes",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", "service_unavailable: {shown} did"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "service_unavailable: {shown}"),
    ],
)
async def test_malformed_responses_are_host_errors(said, message):
    """There is no partial body, and no text of the server in the error."""
    async with bench(said) as it:
        assert (await it.refused()).startswith(message.format(shown=f"backend.lan:{it.server.port}"))


async def test_header_values_are_decoded_as_latin1():
    """A field value that is no UTF-8 still gives valid JSON."""
    async with bench(b"HTTP/1.1 200 OK\r\nX-A: caf\xe9\r\nX-B: a\tb\r\nContent-Length: 0\r\n\r\n") as it:
        assert (await it.do())["header"] == {"X-A": "café", "X-B": "a\tb"}


async def test_silent_http_server_is_deadline_exceeded():
    """`total_s` covers the whole exchange."""

    async def silence(_request, _writer):
        await asyncio.Event().wait()

    async with bench(silence, limits=EgressLimits(total_s=0.05)) as it:
        assert await it.refused() == (
            f"deadline_exceeded: no whole answer from backend.lan:{it.server.port} within 0.05 s"
        )


async def test_request_over_concurrency_limit_of_plugin_is_rate_limited():
    """Other plugins are still served; each ended request frees its slot."""
    free = asyncio.Event()

    async def wait(_request, writer):
        await free.wait()
        writer.write(answer(b"late"))

    async with bench(wait) as it:
        tasks = [asyncio.create_task(it.do()) for _ in range(MAX_IN_FLIGHT_OF_PLUGIN)]
        await connected(it, MAX_IN_FLIGHT_OF_PLUGIN)
        assert (await it.refused()).startswith("rate_limited: expected at most 8")
        other = asyncio.create_task(call(it.http, caller=Caller(plugin_id="acme.other"), url=it.url))
        await connected(it, MAX_IN_FLIGHT_OF_PLUGIN + 1)
        free.set()
        assert {body_of(found) for found in await asyncio.gather(*tasks, other)} == {b"late"}
        assert body_of(await it.do()) == b"late"


async def test_cancelled_request_frees_its_slot():
    held = asyncio.Event()

    async def hold(_request, _writer):
        held.set()
        await asyncio.Event().wait()

    async with bench(hold) as it:
        task = asyncio.create_task(it.do())
        await held.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert it.http._in_flight.total() == 0


BOUND = plugin_secrets.secrets_of({CALLER.plugin_id: {"TOKEN": SECRET, "LINES": "a\r\nbcdef"}})


async def test_secrets_are_expanded_in_request_and_redacted_in_response():
    """Expanded in path, query, header and body; redacted in a response that echoes them."""

    async def echo(request, writer):
        writer.write(answer(f"you sent {request.header['x-key']}".encode(), f"X-Echo: {request.header['x-key']}"))

    async with bench(echo, secrets_of=BOUND) as it:
        path, header = "/bot${secret:TOKEN}/x?t=${secret:TOKEN}", {"X-Key": "Bearer ${secret:TOKEN}"}
        result = await it.do(path, method="POST", header=header, body="t=${secret:TOKEN}")
        (seen,) = it.server.seen
        assert seen.path == "/bots3cr%26t%2Fv%C3%A4lue/x?t=s3cr%26t%2Fv%C3%A4lue", "a value cannot add a segment"
        assert (seen.header["x-key"], seen.body) == (f"Bearer {SECRET}", f"t={SECRET}".encode())
        assert body_of(result) == b"you sent Bearer ${secret:TOKEN}"
        assert result["header"]["X-Echo"] == "Bearer ${secret:TOKEN}"


@pytest.mark.parametrize(
    ("status", "method", "last"),
    [(301, "POST", "GET"), (302, "POST", "GET"), (303, "PUT", "GET"), (307, "POST", "POST"), (301, "PUT", "PUT")],
)
async def test_answer_after_redirects_says_which_request_it_is_the_answer_to(status, method, last):
    """Else a page behind a redirect passes for the answer to what was posted. Its URL holds no value of a secret."""

    async def moved(request, writer):
        writer.write(answer(b"page") if request.path.endswith("/") else origins.redirect(f"{request.path}/", status))

    async with bench(moved, secrets_of=BOUND) as it:
        found = await it.do("/hook-${secret:TOKEN}", method=method, body="a message")
        assert found["redirected"] == {"method": last, "url": f"{it.url}/hook-${{secret:TOKEN}}/"}
        assert it.server.seen[-1].method == last
        assert "redirected" not in await it.do("/hook/", method=method, body="a message")


async def test_secret_in_response_header_name_is_redacted():
    """Names are canonicalised (`x-tok3n-abc` to `X-Tok3n-Abc`), so the value is searched in any case."""

    async def echo(request, writer):
        writer.write(answer(b"", f"X-{request.header['x-key']}: 1", f"{request.header['x-key'].upper()}: 2"))

    async with bench(echo, secrets_of=plugin_secrets.secrets_of({CALLER.plugin_id: {"TOKEN": "tok3n-abc"}})) as it:
        found = (await it.do("/", header={"X-Key": "${secret:TOKEN}"}))["header"]
        assert "tok3n" not in str(found).lower()
        assert "X-${secret:TOKEN}" in found


class Watched(PluginSecrets):
    """Secrets that note on which threads they are looked for."""

    threads: set

    def redact(self, text, *, any_case=False):
        self.threads.add(threading.current_thread())
        return super().redact(text, any_case=any_case)


class Counted(PluginSecrets):
    """Secrets that count the characters of what they have expanded."""

    characters = 0

    def expand(self, text, **limits):
        found = super().expand(text, **limits)
        self.characters += len(found)
        return found


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"path": "/" + "${secret:A}" * 700}, "bad_params: url: expected at most 16384 characters"),
        ({"path": "/?q=" + "ü${secret:B}" * 600}, "bad_params: url: expected at most 16384 characters"),
        ({"header": {f"X-{number}": "${secret:A}" * 40 for number in range(60)}}, "too_large: expected at most 32768"),
        ({"header": {f"X-{number}": "${secret:B}" * 2 for number in range(60)}}, "too_large: header"),
    ],
)
async def test_references_in_url_and_headers_are_expanded_up_to_the_limit_and_no_further(params, message):
    """A short request may refer to long values many times, and all of it is done before anything else."""
    secrets = Counted({"A": "v@lue " * 2_700, "B": "v@lue " * 300}.__getitem__)
    async with bench(answer(), secrets_of=lambda _: secrets) as it:
        assert message in await it.refused(**params)
        assert it.server.connections == 0
    assert secrets.characters <= 2 * headers.MAX_HEADER_BYTES


async def test_many_secrets_are_redacted_in_an_answer_off_the_loop():
    """An answer as large as it may be, full of values, with one in each of many headers."""
    values = {f"S{number}": f"value-{number:03}-{number * 7919 % 997:03}" for number in range(60)}
    every = "".join(values.values())
    echoed = (every * (1 + (256 << 10) // len(every)))[: 256 << 10].encode()
    fields = [f"X-{number}: {value}" for number, value in enumerate(values.values())]
    secrets = Watched(values.__getitem__)
    secrets.threads = set()
    async with bench(answer(echoed, *fields), secrets_of=lambda _: secrets) as it:
        found = await it.do(method="POST", body="".join(f"${{secret:{name}}}" for name in values))
    assert threading.main_thread() not in secrets.threads
    left = body_of(found).decode()
    assert not [value for value in values.values() if value in left]
    assert left.startswith("".join(f"${{secret:{name}}}" for name in values))
    assert [found["header"][f"X-{number}"] for number in range(60)] == [f"${{secret:{name}}}" for name in values]


async def test_secret_reference_in_host_or_port_is_refused():
    """Its value may not add a header line either, or show in an error about a redirect."""
    async with bench(origins.redirect(f"http://{SECRET}.example.org/"), secrets_of=BOUND) as it:
        assert "bad_params: url" in await it.refused(url="http://${secret:TOKEN}.example.org/")
        assert "bad_params: url" in await it.refused(url="http://backend.lan:${secret:TOKEN}/")
        assert "bad_params: header X-A: expected a value" in await it.refused(header={"X-A": "${secret:LINES}"})
        assert "bound no secret 'OTHER'" in await it.refused("/${secret:OTHER}")
        assert it.server.connections == 0
        assert SECRET not in await it.refused(header={"X-A": "${secret:TOKEN}"})


async def test_secret_reference_in_base64_body_is_not_expanded():
    """A response is not redacted when the request used no secret."""
    raw = b"${secret:TOKEN}\xff"
    async with bench(answer(SECRET.encode()), secrets_of=BOUND) as it:
        result = await it.do(method="POST", body_base64=base64.b64encode(raw).decode())
        assert (it.server.seen[0].body, body_of(result)) == (raw, SECRET.encode())


async def test_tls_trusts_only_the_given_authorities():
    """With an unknown authority the handshake fails and no request is sent."""
    authority = origins.Authority()
    async with bench(answer(b"safe"), tls=authority.server("backend.lan"), trust=authority.trust()) as it:
        url = f"https://backend.lan:{it.server.port}/"
        assert body_of(await it.do(url=url)) == b"safe"
        assert "service_unavailable" in await it.refused(), "plain HTTP to a TLS port"
    async with bench(answer(b"safe"), tls=authority.server("backend.lan")) as it:
        url = f"https://backend.lan:{it.server.port}/"
        assert "certificate of backend.lan" in await it.refused(url=url)
        assert it.server.seen == []


async def test_https_to_a_port_without_tls_is_service_unavailable():
    """The error differs from that of a refused connection."""

    def speak(_reader, writer):
        writer.write(b"220 ready\r\n")
        writer.close()

    async with bench(answer()) as it, await asyncio.start_server(speak, "127.0.0.1", 0) as plain:
        port = plain.sockets[0].getsockname()[1]
        rights = EgressRights(origins=(egress.origin(f"https://127.0.0.1:{port}"),))
        http = HttpCalls(it.client, rights_of=lambda caller: rights, secrets_of=plugin_secrets.no_secrets)
        with pytest.raises(HostError, match=f"service_unavailable: no TLS with 127.0.0.1:{port}"):
            await call(http, url=f"https://127.0.0.1:{port}/")
    with pytest.raises(HostError, match="the host is stopping"):
        await call(http, url=f"https://127.0.0.1:{port}/")


async def test_http_session_cannot_connect_without_guard():
    """aiohttp is used directly: it connects neither by name nor by address, nor to an origin used a moment ago."""
    async with bench(answer()) as it:
        await it.do()
        with dials.watched() as dialled:
            for host in ("127.0.0.1", "localhost", "backend.lan", "[::1]"):
                with pytest.raises((aiohttp.ClientError, OSError)):
                    await it.client._session.get(f"http://{host}:{it.server.port}/")
        assert (dialled, it.server.connections) == ([], 1)


async def test_request_after_client_is_closed_is_an_error():
    """The client is closed when the daemon stops."""
    async with serving(answer()) as server:
        rights = EgressRights(origins=(egress.origin(f"http://127.0.0.1:{server.port}"),))
        async with EgressClient(Guard(), tls=origins.Authority().trust()) as client:
            http = HttpCalls(client, rights_of=lambda caller: rights, secrets_of=plugin_secrets.no_secrets)
        with pytest.raises(HostError, match="the host is stopping"):
            await call(http, url=f"http://127.0.0.1:{server.port}/")


WHSEC = "whsec_" + base64.b64encode(b"k" * 32).decode()
SIGNERS = plugin_secrets.secrets_of({CALLER.plugin_id: {"HOOK": WHSEC, "PLAIN": SECRET, "BROKEN": "whsec_not-base64"}})


@pytest.mark.parametrize(("name", "key"), [("HOOK", b"k" * 32), ("PLAIN", SECRET.encode())])
async def test_signed_request_has_the_headers_of_a_standard_webhook(name, key):
    """HMAC-SHA256 over id, time and the body as it is sent, in base64."""
    async with bench(answer(b""), secrets_of=SIGNERS) as it:
        await it.do(method="POST", body="t=${secret:PLAIN}", sign={"secret": f"${{secret:{name}}}", "id": "msg_1"})
        seen = it.server.seen[0]
    made = int(seen.header["webhook-timestamp"])
    signed = b"msg_1." + str(made).encode() + b"." + seen.body
    wanted = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert (seen.header["webhook-id"], seen.header["webhook-signature"]) == ("msg_1", f"v1,{wanted}")
    assert abs(made - time.time()) < 60
    assert seen.body == f"t={SECRET}".encode()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"sign": {"secret": "${secret:NONE}", "id": "m"}}, "bad_params"),
        ({"sign": {"secret": "a value", "id": "m"}}, "bad_params: sign.secret"),
        ({"sign": {"secret": "x${secret:HOOK}", "id": "m"}}, "bad_params: sign.secret"),
        ({"sign": {"secret": "${secret:BROKEN}", "id": "m"}}, "bad_params: sign.secret"),
        ({"sign": {"secret": "${secret:HOOK}", "id": "a.b"}}, "bad_params: sign.id"),
        ({"sign": {"secret": "${secret:HOOK}", "id": "a\r\nX: y"}}, "bad_params: sign.id"),
        ({"sign": {"secret": "${secret:HOOK}", "id": ""}}, "bad_params: sign.id"),
        (
            {"sign": {"secret": "${secret:HOOK}", "id": "m"}, "header": {"webhook-ID": "x"}},
            "bad_params: header: expected no webhook-ID",
        ),
    ],
)
async def test_request_that_cannot_be_signed_is_refused_before_connecting(params, message):
    async with bench(answer(b""), secrets_of=SIGNERS) as it:
        assert (await it.refused(method="POST", body="b", **params)).startswith(message)
        assert it.server.connections == 0
