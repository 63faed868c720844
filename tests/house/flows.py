"""How http.do must react to hostile servers: one coroutine for each scenario; run each within `netns.run`."""

from __future__ import annotations

import base64
import gzip
import os
from collections.abc import Awaitable, Callable
from unittest import mock

import pytest

from latticed.host.call import HostError
from latticed.host.egress.client import EgressLimits
from latticed.kit import interfaces
from latticed.model import egress
from latticed.model.egress import EgressRights
from tests.house import outside, plugin_secrets
from tests.house.origins import answer, redirect
from tests.house.outside import METADATA, OTHER, PRIVATE, PUBLIC, PUBLIC6, WIRESERVER

FLOWS: dict[str, Callable[[], Awaitable[None]]] = {}
ZONE = {"example.com": [[PUBLIC]], "other.example.net": [[OTHER]], "internal.example.net": [[PRIVATE]]}


def flow(name: str):
    """Add a scenario to FLOWS."""
    return lambda scenario: FLOWS.setdefault(name, scenario)


def text(result) -> str:
    """The body of a result."""
    return base64.b64decode(result["body_base64"]).decode()


async def refused_at_once(zone, url, reason, **named):
    """http.do to `url` is refused for `reason`, and no connection is made."""
    async with outside.opened(zone, **named) as world:
        assert reason in await world.refused(url)
        assert (world.dialled, world.seen, world.contacted) == ([], [], [])


async def refused_after_redirect(location, reason, *, status=302, scheme="http", zone=ZONE, rights=None, **params):
    """example.com is asked, the redirect to `location` is not followed, and no other connection is made."""
    routes = {("example.com", "/"): redirect(location, status)}
    async with outside.opened(zone, routes, rights=rights or outside.ANYWHERE) as world:
        assert reason in await world.refused(f"{scheme}://example.com/", **params)
        assert {address for address, _ in world.dialled} == {PUBLIC}
        assert len(world.seen) == 1


@flow("dns-any-private")
async def name_with_one_private_address_is_refused():
    zone = {"example.com": [[PUBLIC, PRIVATE]]}
    await refused_at_once(zone, "http://example.com/", "egress_blocked: address not public: example.com")


@flow("dns-mapped-meta")
async def mapped_metadata_address_is_refused():
    await refused_at_once({"example.com": [["::ffff:169.254.169.254"]]}, "http://example.com/", "IPv4 within IPv6")


@flow("dns-rebind-ttl0")
async def each_request_connects_to_the_address_it_resolved():
    async with outside.opened({"example.com": [[PUBLIC], ["127.0.0.1"]]}) as world:
        assert text(await world.do("http://example.com/")) == "fine"
        assert (world.names.lookups["example.com"], world.dialled) == (1, [(PUBLIC, 80)])
        assert [one.at for one in world.web.seen] == [PUBLIC]
        assert "loopback" in await world.refused("http://example.com/")
        assert world.dialled == [(PUBLIC, 80)]


@flow("dns-rebind-multi")
async def name_with_one_unspecified_address_is_refused():
    await refused_at_once({"example.com": [[PUBLIC, "0.0.0.0"]]}, "http://example.com/", "this network")


@flow("dns-empty")
async def name_without_addresses_is_service_unavailable():
    await refused_at_once({"example.com": [[]]}, "http://example.com/", "service_unavailable: example.com has no")


@flow("redirect-private")
async def redirect_to_a_private_address_is_refused():
    await refused_after_redirect("http://internal.example.net/", "egress_blocked: address not public")


@flow("redirect-307-308-body")
async def redirect_with_body_to_loopback_is_refused():
    for status in (307, 308):
        reason = "egress_blocked: address not public: 127.0.0.1"
        await refused_after_redirect("http://127.0.0.1/", reason, status=status, method="POST", body="payload")


@flow("redirect-scheme")
async def redirect_to_another_scheme_is_refused():
    for location in ("ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "data:text/plain,x"):
        await refused_after_redirect(location, "egress_blocked: redirect not followed")


@flow("redirect-weaker-scheme")
async def redirect_from_https_to_http_is_refused():
    await refused_after_redirect("http://example.com/b", "it leads from https to http", scheme="https")


@flow("redirect-protorel")
async def redirect_without_scheme_to_private_host_is_refused():
    await refused_after_redirect("//internal.example.net/x", "egress_blocked: address not public")


@flow("redirect-not-granted")
async def redirect_to_a_host_that_is_not_granted_is_refused():
    """It is refused before the host is looked up."""
    zone = {"example.com": [[PUBLIC]], "other.example.net": ["silent"]}
    rights = EgressRights(hosts=("example.com:80",))
    await refused_after_redirect("http://other.example.net/", "host not granted", zone=zone, rights=rights)


@flow("redirect-relative")
async def relative_redirects_keep_origin_and_credentials():
    routes = {
        ("example.com", "/a/b?q=1"): redirect("c?x=%20y#part"),
        ("example.com", "/a/c?x=%20y"): redirect("/new-path", 307),
        ("example.com", "/new-path"): answer(b"here"),
    }
    async with outside.opened(ZONE, routes) as world:
        header = {"Authorization": "Bearer t", "X-Key": "k"}
        assert text(await world.do("http://example.com/a/b?q=1", header=header)) == "here"
        assert [one.header.get("authorization") for one in world.web.seen] == ["Bearer t"] * 3
        assert world.contacted == ["example.com:80"] * 3


@flow("redirect-missing-location")
async def redirect_without_location_is_refused():
    async with outside.opened(ZONE, {("example.com", "/"): redirect(None)}) as world:
        assert "answered 302 without a Location" in await world.refused("http://example.com/")


@flow("redirect-loop")
async def redirect_loop_is_refused_after_five():
    async with outside.opened(ZONE, {("example.com", "/"): redirect("/")}) as world:
        assert "egress_blocked: redirect not followed: more than 5" in await world.refused("http://example.com/")
        assert len(world.seen) == 6


@flow("redirect-cross-origin-auth")
async def redirect_to_another_origin_drops_credentials():
    """They stay dropped when a later redirect leads back."""
    routes = {
        ("example.com", "/"): redirect("http://other.example.net/"),
        ("other.example.net", "/"): redirect("http://example.com/back"),
    }
    header = {"Authorization": "Bearer t", "Cookie": "s=1", "X-Api-Key": "k", "Accept": "text/plain"}
    async with outside.opened(ZONE, routes) as world:
        await world.do("http://example.com/", header=header)
        first, *later = world.web.seen
        plain = {"host", "accept", "accept-encoding", "user-agent", "connection"}
        assert {"authorization", "cookie", "x-api-key"} <= set(first.header)
        assert [set(one.header) for one in later] == [plain] * 2
        assert [one.header["host"] for one in later] == ["other.example.net", "example.com"]


@flow("redirect-methods")
async def redirect_status_decides_method_and_body():
    for status, method, expected in (
        (301, "POST", ("GET", b"")),
        (302, "POST", ("GET", b"")),
        (303, "PUT", ("GET", b"")),
        (307, "POST", ("POST", b"payload")),
        (308, "POST", ("POST", b"payload")),
        (301, "PUT", ("PUT", b"payload")),
    ):
        routes = {("example.com", "/"): redirect("/next", status)}
        async with outside.opened(ZONE, routes) as world:
            header = {"Content-Type": "text/x"}
            await world.do("http://example.com/", method=method, body="payload", header=header)
            last = world.web.seen[-1]
            assert ((last.method, last.body), "content-type" in last.header) == (expected, bool(expected[1]))
    routes = {("example.com", "/"): redirect("/next", 303), ("example.com", "/next"): answer()}
    async with outside.opened(ZONE, routes) as world:
        await world.do("http://example.com/", method="HEAD")
        assert [method for _, method, _ in world.seen] == ["HEAD", "HEAD"]


@flow("redirect-operator-cross-origin")
async def redirect_away_from_a_bound_origin_is_refused():
    origin = egress.origin(f"http://backend.lan:80={PRIVATE}")
    rights = EgressRights(hosts=("*",), origins=(origin,))
    routes = {("backend.lan", "/"): redirect("http://example.com/"), ("backend.lan", "/near"): redirect("/far")}
    async with outside.opened(ZONE, routes, rights=rights) as world:
        assert "it leads away from the bound origin" in await world.refused("http://backend.lan/")
        assert text(await world.do("http://backend.lan/near")) == "fine"
        assert (set(world.dialled), world.names.lookups.total()) == ({(PRIVATE, 80)}, 0)


@flow("redirect-into-bound-origin")
async def redirect_into_a_bound_origin_is_refused():
    origin = egress.origin(f"http://backend.lan:80={PRIVATE}")
    rights = EgressRights(hosts=("*",), origins=(origin,))
    await refused_after_redirect("http://backend.lan/", "it leads into the bound origin", rights=rights)


@flow("env-proxy")
async def proxy_environment_variables_are_ignored():
    names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    with mock.patch.dict(os.environ, dict.fromkeys(names, f"http://{OTHER}:80")):
        async with outside.opened(ZONE) as world:
            assert text(await world.do("http://example.com/")) == "fine"
            assert text(await world.do("https://example.com/")) == "fine"
            assert world.dialled == [(PUBLIC, 80), (PUBLIC, 443)]


@flow("crlf-header")
async def header_with_line_break_is_bad_params():
    async with outside.opened(ZONE) as world:
        for header in ({"X-A": "a\r\nX-B: b"}, {"X-A": "a\n"}, {"X-A": "a\0"}, {"X-A\r\nX-B": "b"}, {"": "a"}):
            assert "bad_params: header" in await world.refused("http://example.com/", header=header)
        assert (world.dialled, world.names.lookups.total()) == ([], 0)


@flow("host-header-override")
async def header_that_only_the_host_may_set_is_bad_params():
    async with outside.opened(ZONE) as world:
        for name in ("Host", "host", ":authority", "Transfer-Encoding", "Content-Length", "Proxy-Authorization"):
            assert "bad_params: header" in await world.refused("http://example.com/", header={name: "1"})
        for name in ("Connection", "Upgrade", "TE", "Trailer", "Expect", "Keep-Alive", "Proxy-Connection"):
            assert "bad_params: header" in await world.refused("http://example.com/", header={name: "x"})
        assert world.dialled == []
        await world.do("http://EXAMPLE.com:80/")
        assert [one.header["host"] for one in world.web.seen] == ["example.com"]


@flow("sni-pin")
async def tls_certificate_is_verified_against_the_name():
    zone = {"example.com": [[PUBLIC]], "wrong.example.org": [[PUBLIC]]}
    async with outside.opened(zone) as world:
        assert text(await world.do("https://example.com/")) == "fine"
        assert [(one.sni, one.header["host"]) for one in world.secure.seen] == [("example.com", "example.com")]
        assert "certificate of wrong.example.org:443" in await world.refused("https://wrong.example.org/")
        assert f"certificate of {PUBLIC}:443" in await world.refused(f"https://{PUBLIC}/")
        assert len(world.seen) == 1


@flow("resp-bomb-gzip")
async def compressed_body_is_decoded_within_the_limit_or_refused():
    bomb = gzip.compress(bytes(64 << 20), 9)
    many = gzip.compress(bytes(200 << 10)) * 2
    fine = gzip.compress(b"two ") + gzip.compress(b"members")
    encoded = "Content-Encoding: gzip"
    routes = {
        ("example.com", "/bomb"): answer(bomb, encoded),
        ("example.com", "/many"): answer(many, encoded),
        ("example.com", "/fine"): answer(fine, encoded),
        ("example.com", "/tail"): answer(fine + b"garbage", encoded),
        ("example.com", "/half"): answer(fine[:-9], encoded),
    }
    async with outside.opened(ZONE, routes) as world:
        assert len(bomb) < 256 << 10, "the bomb must fit as it is"
        assert "too_large" in await world.refused("http://example.com/bomb")
        assert "too_large" in await world.refused("http://example.com/many")
        assert "is not what it says" in await world.refused("http://example.com/tail")
        assert "ends too early" in await world.refused("http://example.com/half")
        found = await world.do("http://example.com/fine")
        assert (text(found), "Content-Encoding" in found["header"]) == ("two members", False)
        assert {one.header["accept-encoding"] for one in world.web.seen} == {"identity"}


@flow("resp-bomb-unsupported-enc")
async def unsupported_content_encoding_is_service_unavailable():
    for lines in (["Content-Encoding: br"], ["Content-Encoding: br, gzip"], ["Content-Encoding: gzip"] * 2):
        async with outside.opened(ZONE, {("example.com", "/"): answer(b"x", *lines)}) as world:
            assert "service_unavailable: the answer has a" in await world.refused("http://example.com/")


@flow("resp-slow")
async def slow_answer_is_deadline_exceeded():
    import asyncio

    async def trickle(_request, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.005)

    async with outside.opened(ZONE, {("example.com", "/"): trickle}, limits=EgressLimits(total_s=0.1)) as world:
        assert "deadline_exceeded: no whole answer" in await world.refused("http://example.com/")


@flow("trailing-dot")
async def host_with_trailing_dot_is_judged_like_the_host():
    rights = EgressRights(hosts=("example.com:80",))
    async with outside.opened(ZONE, rights=rights) as world:
        assert text(await world.do("http://example.com./")) == "fine"
        assert [host for host, _, _ in world.seen] == ["example.com"]
        assert "host not granted" in await world.refused("http://other.example.net./")
    await refused_at_once(ZONE, "http://localhost./", "host not public")
    await refused_at_once(ZONE, "http://127.0.0.1./", "loopback")
    await refused_at_once(ZONE, "http://example.com../", "host not understood")


@flow("regex-allowlist")
async def dot_in_a_granted_host_matches_only_a_dot():
    rights = EgressRights(hosts=("exam.le:80", "*.ample.com:80"))
    await refused_at_once(ZONE, "http://example.com/", "host not granted", rights=rights)


@flow("idn-allowlist")
async def international_name_and_its_ascii_form_are_one_host():
    zone = {"xn--mnchen-3ya.example": [[PUBLIC]]}
    async with outside.opened(zone, rights=EgressRights(hosts=("xn--mnchen-3ya.example:443",))) as world:
        for name in ("münchen.example", "MÜNCHEN.example", "xn--mnchen-3ya.example", "XN--MNCHEN-3YA.example"):
            assert text(await world.do(f"https://{name}/")) == "fine"
        assert {host for host, _, _ in world.seen} == {"xn--mnchen-3ya.example"}
    for name in ("münchen.example", "xn--mnchen-3ya.example"):
        await refused_at_once(zone, f"https://{name}/", "host not granted", rights=EgressRights())


@flow("self-connection")
async def own_public_address_is_refused():
    own = interfaces.own_addresses
    for url in ("http://example.com/", f"http://{PUBLIC}/", f"http://[{PUBLIC6}]/"):
        await refused_at_once(ZONE, url, "this host's own", own_addresses=own)


@flow("port-policy")
async def port_of_another_protocol_needs_a_grant_by_number():
    for port in (22, 25, 6379):
        await refused_at_once(ZONE, f"http://example.com:{port}/", "port not granted")
    # An operator may name one; then it is dialled, and here nothing listens there.
    async with outside.opened(ZONE, rights=EgressRights(hosts=("example.com:6379",))) as world:
        assert "cannot connect to example.com:6379" in await world.refused("http://example.com:6379/")
        assert world.dialled == [(PUBLIC, 6379)]


@flow("zone-id")
async def address_with_zone_is_refused():
    for url in ("http://[fe80::1%25eth0]/", "http://[::1%25lo]/", "http://[fe80::1%eth0]/"):
        await refused_at_once(ZONE, url, "egress_blocked: host not understood")


@flow("azure-wireserver")
async def cloud_metadata_addresses_are_refused():
    await refused_at_once(ZONE, f"http://{WIRESERVER}/", "cloud metadata")
    await refused_at_once({"example.com": [[WIRESERVER]]}, "http://example.com/", "cloud metadata")
    await refused_at_once(ZONE, f"http://{METADATA}/latest/meta-data/", "cloud metadata")


@flow("ipv6")
async def public_ipv6_address_is_connected_to():
    async with outside.opened({"example.com": [[PUBLIC6]]}) as world:
        assert text(await world.do("http://example.com/")) == "fine"
        assert text(await world.do(f"http://[{PUBLIC6}]/")) == "fine"
        assert world.dialled == [(PUBLIC6, 80)] * 2
        assert [host for host, _, _ in world.seen] == ["example.com", f"[{PUBLIC6}]"]


@flow("secrets-across-origins")
async def secret_is_not_sent_to_another_origin():
    routes = {
        ("example.com", "/"): redirect("https://other.example.net/", 307),
        ("example.com", "/tell"): redirect("https://hunter2hunter2.example.net/"),
    }
    async with outside.opened(
        ZONE, routes, secrets_of=plugin_secrets.secrets_of({outside.CALLER.plugin_id: {"TOKEN": "hunter2hunter2"}})
    ) as world:
        reason = "it leads a body that holds a secret to another origin"
        url = "https://example.com/"
        assert reason in await world.refused(url, method="POST", body="t=${secret:TOKEN}")
        assert (len(world.seen), world.secure.seen[0].body) == (1, b"t=hunter2hunter2")
        # In a header that would otherwise go along, it does not; everything else does.
        header = {"User-Agent": "x/${secret:TOKEN}", "Accept": "a"}
        await world.do(url, method="POST", body="plain", header=header)
        last = world.secure.seen[-1]
        assert (last.body, "user-agent" in last.header, last.header["accept"]) == (b"plain", False, "a")
        # A server that knows the secret cannot put it into an error.
        header = {"X-Key": "${secret:TOKEN}"}
        reason = "the address of ${secret:TOKEN}.example.net cannot be found"
        assert reason in await world.refused("https://example.com/tell", header=header)
        # A public host gets no secret over http.
        with pytest.raises(HostError, match="secrets over https only"):
            await world.do("http://example.com/", header={"X-Key": "${secret:TOKEN}"})
