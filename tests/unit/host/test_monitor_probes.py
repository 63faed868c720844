"""Checks of real targets on loopback through the real guard: each failure has a code, no exception escapes."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import errno
import gzip
import os
import resource
import socket
import ssl
import subprocess
import sys
import zlib

import msgspec
import pytest
import trustme

from latticed.host.egress.guard import Guard
from latticed.host.monitor import spec as specs
from latticed.host.monitor.probes import Probes
from latticed.host.monitor.rules import MonitorStatus, decide, of_error
from latticed.model.egress import EgressRights
from tests.house import netns, ports, processes, targets

LOOPBACK = ("127.0.0.1", "[::1]")


def wanted(kind, target, **params):
    put = msgspec.convert({"name": "t", "kind": kind, "target": target, "timeout_s": 5.0, **params}, specs.MonitorPut)
    return specs.checked(put, least_interval_s=0.1)


async def check(kind, target, *, rights=None, tls=None, **params):
    """The result of one check by a plugin to which exactly this target is bound."""
    spec = wanted(kind, target, **params)
    origin = spec.target if kind == "http" else f"{kind}://{targets_host(spec)}"
    chosen = rights if rights is not None else targets.bound(origin.partition("?")[0].rstrip("/"))
    return await Probes(Guard(), tls=tls).check(spec, chosen)


def targets_host(spec):
    return f"[{spec.target}]" if spec.kind == "ping" and ":" in spec.target else spec.target


# HTTP.


def answer(status=200, body=b"all is well", *headers):
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def test_site_that_answers_is_up():
    """One plain GET with our own headers, and nothing of the environment's."""
    async with targets.site() as site:
        result = await check("http", site.url(path="/health?x=1"), rights=targets.bound(site.url().rstrip("/")))
        (request,) = site.requests
    assert (result.outcome, result.code, result.http_status, result.expires_at) == ("up", "", 200, 0)
    head = request.decode().split("\r\n")
    assert head[0] == "GET /health?x=1 HTTP/1.1"
    usual = {"Accept: */*", "Accept-Encoding: identity", "User-Agent: latticed", "Connection: close"}
    assert set(head[1:]) - {""} == usual | {f"Host: 127.0.0.1:{site.port}"}


@pytest.mark.parametrize(
    ("status", "statuses", "outcome"),
    [
        (204, (), "up"),
        (302, (), "up"),
        (404, (), "down"),
        (500, (), "down"),
        (404, (200, 404), "up"),
        (200, (204,), "down"),
    ],
)
async def test_unexpected_status_is_down(status, statuses, outcome):
    """200 to 399, or what was asked for; redirects are not followed."""
    body = b"" if status == 204 else b"x"
    async with targets.site(answer(status, body, "Location: http://127.0.0.1:1/")) as site:
        result = await check("http", site.url(), statuses=statuses)
        assert len(site.requests) == 1
    assert (result.outcome, result.http_status) == (outcome, status)
    if outcome == "down":
        assert result.code == "status_unexpected"
        assert f"found {status}" in result.reason


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nall is \r\n4\r\nwell\r\n0\r\n\r\n"
UNTIL_EOF = b"HTTP/1.0 200 OK\r\n\r\nall is well"
PACKED = gzip.compress(b"all is well")


def page(text, charset, *headers):
    named = f"Content-Type: text/html; charset={charset}"
    return answer(200, text.encode(charset), named, *headers)


DOOR = "Tür zu 关门"
DEFLATE = zlib.compress(b"x" * 9 + b"all is well")
GZIP_OF_TWO = gzip.compress(b"all is") + gzip.compress(b" well")
LONG = b"x" * (256 << 10)
OUTCOMES = {
    "plain": (answer(), "up", ""),
    "other": (answer(200, b"nothing is"), "down", "body_mismatch"),
    "empty": (answer(200, b""), "down", "body_mismatch"),
    "chunked": (CHUNKED, "up", ""),
    "until eof": (UNTIL_EOF, "up", ""),
    "no UTF-8, words in ASCII": (answer(200, b"\xff\xfe all is well"), "up", ""),
    "within the cap": (answer(200, b"x" * (200 << 10) + b"all is well"), "up", ""),
    "other up to the cap": (answer(200, LONG), "down", "body_mismatch"),
    "beyond the cap": (answer(200, LONG + b"all is well"), "error", "body_too_large"),
    "cut at the cap": (answer(200, LONG[:-4] + b"all is well"), "error", "body_too_large"),
    "gzip": (answer(200, PACKED, "Content-Encoding: gzip"), "up", ""),
    "gzip of two members": (answer(200, GZIP_OF_TWO, "Content-Encoding: x-gzip"), "up", ""),
    "gzip of other words": (answer(200, gzip.compress(b"not so"), "Content-Encoding: GZIP"), "down", "body_mismatch"),
    "deflate": (answer(200, DEFLATE, "Content-Encoding: deflate"), "up", ""),
    "deflate without header": (answer(200, DEFLATE[2:-4], "Content-Encoding: deflate"), "up", ""),
    "gzip cut before the words": (answer(200, PACKED[:12], "Content-Encoding: gzip"), "down", "protocol_error"),
    "no gzip at all": (answer(200, b"all is well", "Content-Encoding: gzip"), "down", "protocol_error"),
    "bomb": (answer(200, gzip.compress(bytes(64 << 20)), "Content-Encoding: gzip"), "error", "body_too_large"),
    "coding br": (answer(200, b"all is well", "Content-Encoding: br"), "error", "content_coding"),
    "coding zstd": (answer(200, b"all is well", "Content-Encoding: zstd"), "error", "content_coding"),
    "two codings": (answer(200, b"all is well", "Content-Encoding: gzip, gzip"), "error", "content_coding"),
    "no charset of that name": (page("all is well", "utf-8").replace(b"utf-8", b"x-odd"), "error", "charset_unknown"),
    "a codec that is no charset": (page("all is well", "utf-8").replace(b"utf-8", b"zlib"), "error", "charset_unknown"),
}


@pytest.mark.parametrize("case", OUTCOMES)
async def test_missing_word_in_body_is_down(case):
    """This holds for any framing and content coding; a body that cannot be decoded here is an error, not down."""
    said, outcome, code = OUTCOMES[case]
    async with targets.site(said) as site:
        result = await check("http", site.url(), body="all is well")
    assert (result.outcome, result.code) == (outcome, code), result


@pytest.mark.parametrize(
    ("said", "outcome", "code"),
    [
        (page(DOOR, "utf-8"), "up", ""),
        (answer(200, DOOR.encode()), "up", ""),
        (page(DOOR, "gb18030"), "up", ""),
        (page(DOOR, "utf-16"), "up", ""),
        (page("Tür zu", "iso-8859-1"), "down", "body_mismatch"),
        (page("anders", "gb18030"), "down", "body_mismatch"),
        (answer(200, DOOR.encode("gb18030")), "error", "charset_unknown"),
        (answer(200, b"anders"), "down", "body_mismatch"),
    ],
)
async def test_body_is_decoded_by_its_coding_and_charset(said, outcome, code):
    """A body that names no charset and is no UTF-8 is an error."""
    async with targets.site(said) as site:
        result = await check("http", site.url(), body=DOOR)
    assert (result.outcome, result.code) == (outcome, code), result


@pytest.mark.parametrize("head", [b"a: " + b"b" * 9_000, b"a" * 9_000 + b": b", b"\r\n".join([b"a: b"] * 400)])
async def test_too_large_header_is_an_error_not_down(head):
    """The limit is this host's, the response may be valid: no alert."""
    async with targets.site(b"HTTP/1.1 200 OK\r\n" + head + b"\r\nContent-Length: 0\r\n\r\n") as site:
        result = await check("http", site.url())
    assert (result.outcome, result.code) == ("error", "header_too_large")
    assert decide(MonitorStatus(state="up", against=1), result.outcome, 1) == (
        MonitorStatus(state="up", against=1),
        None,
    )


@pytest.mark.parametrize(
    ("said", "codes"),
    [
        (b"", {"reset"}),
        (b"SSH-2.0-OpenSSH_9.2\r\n", {"protocol_error", "reset"}),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", {"protocol_error"}),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", {"protocol_error"}),
    ],
    ids="closed not-http bad-length cut".split(),
)
async def test_malformed_http_answer_is_down(said, codes):
    """The site closes without a response, speaks another protocol, or breaks the framing."""
    async with targets.site(said) as site:
        result = await check("http", site.url(), body="never there")
    assert result.outcome == "down"
    assert result.code in codes, result


async def test_hanging_site_is_down_after_the_timeout():
    """It sends no response, or one without an end."""
    async with targets.site(None) as site:
        result = await check("http", site.url(), timeout_s=0.2)
    assert (result.outcome, result.code) == ("down", "timeout")
    with targets.deaf() as port:
        assert (await check("http", f"http://127.0.0.1:{port}/", timeout_s=0.2)).code == "timeout"


async def test_target_that_refuses_connections_is_down():
    result = await check("http", f"http://127.0.0.1:{ports.free()}/")
    assert (result.outcome, result.code) == ("down", "refused")


async def test_checks_ignore_proxy_environment_variables(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{ports.free()}")
    async with targets.site() as site:
        assert (await check("http", site.url())).outcome == "up"


# Certificates.


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


def serving(authority, *, days, name="site.test"):
    """A server's TLS context whose certificate is good from 60 days ago until `days` from now."""
    now = dt.datetime.now(tz=dt.UTC)
    span = dt.timedelta(days=1)
    certificate = authority.issue_cert(name, not_before=now - 60 * span, not_after=now + days * span)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    return context


def trusting(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def check_tls(authority, *, days, name="site.test", trust=True, **params):
    async with targets.site(tls=serving(authority, days=days, name=name)) as site:
        rights = targets.bound(f"https://site.test:{site.port}=127.0.0.1")
        tls = trusting(authority) if trust else ssl.create_default_context()
        return await check("http", site.url("site.test", "https"), rights=rights, tls=tls, **params)


async def test_result_has_expiry_time_of_certificate(authority):
    """The certificate is checked for the name of the target, although its address is pinned."""
    result = await check_tls(authority, days=30, certificate_days=14)
    expected = dt.datetime.now(tz=dt.UTC).timestamp() + 30 * 86_400
    assert result.outcome == "up"
    assert abs(result.expires_at / 1e6 - expected) < 3_600


async def test_certificate_expiring_soon_is_down_if_asked_for(authority):
    """With 0 days the end is only shown in the result."""
    result = await check_tls(authority, days=10.5, certificate_days=14)
    assert (result.outcome, result.code, result.http_status) == ("down", "certificate_expiring", 200)
    assert "good for 14 days, found 10" in result.reason
    assert result.expires_at > 0
    assert (await check_tls(authority, days=10.5)).outcome == "up"


@pytest.mark.parametrize(
    ("case", "code", "said"),
    [
        ({"days": -1}, "certificate_expired", "expired"),
        ({"days": 30, "trust": False}, "certificate_invalid", "certificate"),
        ({"days": 30, "name": "other.test"}, "certificate_invalid", "site.test"),
    ],
    ids=["expired", "unknown authority", "another name"],
)
async def test_invalid_certificate_is_down(authority, case, code, said):
    """No request is sent."""
    result = await check_tls(authority, **case)
    assert (result.outcome, result.code, result.http_status) == ("down", code, 0)
    assert said in result.reason


async def test_failed_tls_handshake_is_down():
    """The server speaks plain HTTP at an https URL."""
    async with targets.site() as site:
        rights = targets.bound(f"https://127.0.0.1:{site.port}")
        result = await check("http", site.url(scheme="https"), rights=rights, timeout_s=0.3)
    assert result.outcome == "down"
    assert result.code in {"tls_failed", "reset", "timeout"}


# TCP.


@pytest.mark.parametrize("host", LOOPBACK)
async def test_tcp_target_is_up_when_connected(host):
    """A connection in the backlog suffices; it is closed again."""
    async with targets.site(None, host=host.strip("[]")) as site:
        assert (await check("tcp", f"{host}:{site.port}")).outcome == "up"
        async with asyncio.timeout(processes.PATIENCE_S):
            await site.idle.wait()
    with targets.deaf() as port:
        assert (await check("tcp", f"127.0.0.1:{port}")).outcome == "up"
    result = await check("tcp", f"{host}:{ports.free()}")
    assert (result.outcome, result.code) == ("down", "refused")


async def test_target_is_up_if_one_of_its_addresses_is():
    """Addresses are tried until one answers."""
    async with targets.site() as site:
        rights = targets.bound(*(f"tcp://twins.test:{site.port}={host}" for host in ("127.0.0.9", "127.0.0.1")))
        assert (await check("tcp", f"twins.test:{site.port}", rights=rights)).outcome == "up"
        assert (await check("tcp", f"twins.test:{site.port}", rights=targets.bound())).outcome == "blocked"


# Ping.


def can_ping(family, protocol):
    for kind in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        with contextlib.suppress(OSError):
            socket.socket(family, kind, protocol).close()
            return True
    return False


@pytest.mark.parametrize(
    ("host", "family", "protocol"),
    [("127.0.0.1", socket.AF_INET, socket.IPPROTO_ICMP), ("::1", socket.AF_INET6, socket.IPPROTO_ICMPV6)],
)
async def test_ping_is_up_or_unsupported(host, family, protocol):
    """It is up where this process may send echoes; where it may not, the result is `unsupported`, not `down`."""
    result = await check("ping", host)
    assert (result.outcome, result.code) == (
        ("up", "") if can_ping(family, protocol) else ("unsupported", "unsupported")
    )


BECOME_NOBODY = "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
PINGING = """
import asyncio, os, sys
sys.modules["tests"] = type(sys)("tests"); sys.modules["tests"].__path__ = [sys.argv[1]]
from latticed.host.egress.guard import Guard
from latticed.host.monitor import spec as specs
from latticed.host.monitor.rules import MonitorStatus, decide
from latticed.host.monitor.probes import Probes
from latticed.model import hosts
from tests.house import targets
{prepare}
spec = specs.checked(specs.MonitorPut(name="t", kind="ping", target="{target}", timeout_s=1.0), least_interval_s=1.0)
result = asyncio.run(Probes(Guard()).check(spec, targets.bound("ping://" + hosts.bracketed("{target}"))))
print(result.outcome, result.code, result.reason)
"""


def pinging(prepare, *, target="127.0.0.1", wrap=()):
    """The results of a process that makes one ping."""
    import tests.house

    folder = os.path.dirname(next(iter(tests.house.__path__)))
    code = PINGING.format(prepare=prepare, target=target)
    command = [*wrap, sys.executable, "-P", "-c", code, folder]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=50)


async def test_ping_works_without_cap_net_raw_inside_ping_group_range():
    """The test makes a network namespace with its own net.ipv4.ping_group_range; IPv4 and IPv6."""
    if (reason := netns.why_not()) is not None:
        pytest.skip(reason)
    allow = 'ip link set lo up && echo "65534 65534" > /proc/sys/net/ipv4/ping_group_range && exec "$0" "$@"'
    for target in ("127.0.0.1", "::1"):
        ran = await asyncio.to_thread(pinging, BECOME_NOBODY, target=target, wrap=("unshare", "-n", "sh", "-c", allow))
        assert ran.stdout.startswith("up"), ran.stdout + ran.stderr


async def test_ping_without_permission_is_unsupported():
    """Neither CAP_NET_RAW nor a group in ping_group_range: the reason says so, and there is no alert."""
    ran = await asyncio.to_thread(pinging, BECOME_NOBODY if os.geteuid() == 0 else "")
    with open("/proc/sys/net/ipv4/ping_group_range") as file:
        low, high = map(int, file.read().split())
    group = 65534 if os.geteuid() == 0 else os.getegid()
    expected = "up" if low <= group <= high else "unsupported unsupported expected CAP_NET_RAW"
    assert ran.stdout.startswith(expected), ran.stdout + ran.stderr


# Errors of this host, which are not `down`.


async def test_check_that_guard_refuses_is_blocked():
    """Its target is unbound, private or not granted; the reason is the guard's, and no connection is made."""
    async with targets.site() as site:
        for kind, target in (("http", site.url()), ("tcp", f"127.0.0.1:{site.port}"), ("ping", "127.0.0.1")):
            for rights in (EgressRights(), EgressRights(hosts=("*",)), targets.bound("http://127.0.0.1:1")):
                result = await check(kind, target, rights=rights)
                assert (result.outcome, result.code) == ("blocked", "egress_blocked"), (kind, rights)
        assert site.requests == []


async def test_target_with_unresolved_name_is_down():
    """A name that resolves to a private address is blocked."""

    class Names:
        def __init__(self, *found):
            self.found = found

        async def lookup(self, *_):
            if not self.found:
                raise OSError("no such name")
            return self.found

    everywhere = EgressRights(hosts=("*",))
    spec = wanted("http", "http://gone.example/")
    result = await Probes(Guard(resolver=Names())).check(spec, everywhere)
    assert (result.outcome, result.code) == ("down", "unresolved")
    import ipaddress

    inside = Guard(resolver=Names(ipaddress.ip_address("10.0.0.1")))
    assert (await Probes(inside).check(spec, everywhere)).outcome == "blocked"


async def test_slow_name_server_ends_check_at_the_monitors_timeout():
    """Within the monitor's timeout, even if the guard's is longer."""

    class Silent:
        async def lookup(self, *_):
            await asyncio.Event().wait()

    spec = wanted("tcp", "slow.example:443", timeout_s=0.1)
    result = await Probes(Guard(resolver=Silent())).check(spec, EgressRights(hosts=("*",)))
    assert (result.outcome, result.code) == ("down", "timeout")


async def test_check_without_free_descriptors_is_an_error_not_down():
    """EMFILE says nothing about the target: no alert."""
    async with targets.site() as site:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = os.dup(0)
        os.close(spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
        try:
            result = await check("tcp", f"127.0.0.1:{site.port}")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (result.outcome, result.code) == ("error", "no_resources")


@pytest.mark.parametrize(
    ("number", "code"),
    [(errno.EPERM, "not_permitted"), (errno.EACCES, "not_permitted"), (errno.EADDRNOTAVAIL, "no_resources")],
)
def test_errors_of_this_host_give_error_not_down(number, code):
    """Its firewall, no free port, an address that the guard has not allowed."""
    result = of_error(OSError(number, os.strerror(number)), late="")
    assert (result.outcome, result.code) == ("error", code)
    assert of_error(PermissionError("an address that the guard has not judged"), late="").outcome == "error"


async def test_check_with_unexpected_exception_is_an_error_not_down(capsys):
    """It is logged, and there is a result."""

    class Broken:
        async def lookup(self, *_):
            raise ZeroDivisionError

    spec = wanted("tcp", "a.example:443")
    result = await Probes(Guard(resolver=Broken())).check(spec, EgressRights(hosts=("*",)))
    assert (result.outcome, result.code) == ("error", "internal")
    assert "monitor_check_failed" in capsys.readouterr().out


def test_reasons_of_check_results_are_escaped_and_cut():
    """They may contain text of the peer."""
    result = of_error(OSError(5, "a\nb\x1b[31m" + "x" * 500), late="")
    assert result.reason.startswith("a\\x0ab\\x1b[31mxxx")
    assert len(result.reason) == 200
