"""Cloudflare: zones and records on any page, writes only for differences, the outcome of each refusal."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass

import pytest

from latticed.host.call import HostError
from latticed.host.ddns import cloudflare_api
from latticed.host.ddns.cloudflare import CloudflareProvider
from latticed.host.ddns.outcome import ProviderRefused, Published, UpdateFailed, UpdateJob
from latticed.host.egress.client import EgressClient
from latticed.host.egress.guard import Guard
from latticed.model import egress
from latticed.model.egress import EgressRights
from tests.house import cloudflares, origins
from tests.house.cloudflares import HOST, TOKEN
from tests.house.origins import Authority, answer

A, B = "93.184.216.34", "93.184.216.35"
NAME = "home.example.org"


@pytest.fixture(scope="module")
def authority():
    return Authority()


@dataclass
class Bench:
    fake: cloudflares.Cloudflare
    provider: CloudflareProvider

    async def publish(self, address=A, *, name=NAME, kind="A", ttl=1, zone="", token=TOKEN) -> Published | UpdateFailed:
        try:
            return await self.provider.publish(
                UpdateJob(name=name, type=kind, address=address, ttl=ttl, zone=zone), token
            )
        except ProviderRefused as refused:
            said = refused.fault
        assert TOKEN not in str(said)
        return said


@contextlib.asynccontextmanager
async def bench(authority):
    async with cloudflares.serving(authority) as fake, EgressClient(Guard(), tls=authority.trust()) as client:
        rights = EgressRights(origins=(egress.origin(f"https://{HOST}:{fake.port}=127.0.0.1"),))
        yield Bench(fake, CloudflareProvider(client, base=f"https://{HOST}:{fake.port}/client/v4", rights=rights))


@pytest.fixture
async def it(authority):
    async with bench(authority) as opened:
        yield opened


async def test_record_is_created_then_changed_then_left_unchanged(it):
    """One request to write when it differs, none when it does not; the TTL counts too."""
    it.fake.zone("example.org")
    assert await it.publish(A) == Published(address=A, changed=True)
    assert it.fake.found(NAME) == [("A", A, 1)]
    assert await it.publish(A) == Published(address=A, changed=False)
    assert len(it.fake.writes) == 1
    assert await it.publish(B) == Published(address=B, changed=True)
    assert await it.publish(B, ttl=120) == Published(address=B, changed=True)
    assert it.fake.found(NAME) == [("A", B, 120)]
    assert [one.split()[0] for one in it.fake.writes] == ["POST", "PATCH", "PATCH"]


async def test_records_of_other_types_and_names_are_unchanged(it):
    zone = it.fake.zone("example.org")
    for name, content, kind in ((NAME, "2606:4700::1", "AAAA"), (f"x.{NAME}", B, "A"), ("example.org", B, "A")):
        it.fake.record(zone, name, content, kind=kind)
    before = [dict(one) for one in it.fake.records.values()]
    assert (await it.publish(A)).changed
    assert (await it.publish("2606:4700::2", kind="AAAA")).changed
    assert it.fake.found(NAME) == [("A", A, 1), ("AAAA", "2606:4700::2", 1)]
    assert [one for one in it.fake.records.values() if one in before] == before[1:]


async def test_record_with_other_spelling_of_ipv6_address_is_not_rewritten(it):
    """Cloudflare may write it in full."""
    zone = it.fake.zone("example.org")
    it.fake.record(zone, NAME, "2606:4700:0:0:0:0:0:1", kind="AAAA")
    assert not (await it.publish("2606:4700::1", kind="AAAA")).changed


async def test_zone_with_longest_suffix_is_found_on_last_page(it):
    """A suffix must end at a label."""
    for number in range(120):
        it.fake.zone(f"zone-{number:03}.net")
    it.fake.zone("example.org")
    it.fake.zone("ome.example.org")
    wanted = it.fake.zone("deep.example.org")
    assert (await it.publish(A, name="a.b.deep.example.org")).changed
    (made,) = it.fake.records.values()
    assert made["zone"] == wanted
    assert it.fake.asked.count("GET /zones") == 3


async def test_dns_record_on_later_page_is_found(it):
    """The server may ignore the filter and list all records."""
    zone = it.fake.zone("example.org")
    for number in range(230):
        it.fake.record(zone, f"h{number:03}.example.org", A)
    it.fake.record(zone, NAME, A)
    unfiltered = it.fake._page

    def page(items, query, known, **bounds):
        return unfiltered(items, {key: query[key] for key in query if key in ("page", "per_page")}, known, **bounds)

    it.fake._page = page
    assert not (await it.publish(A)).changed
    assert sum(one.endswith("/dns_records") for one in it.fake.asked) == 3


async def test_zone_named_in_the_spec_is_used(it):
    """A zone with a longer suffix exists as well."""
    wanted = it.fake.zone("example.org")
    it.fake.zone("home.example.org")
    assert (await it.publish(A, zone="example.org")).changed
    assert [one["zone"] for one in it.fake.records.values()] == [wanted]


async def test_active_zone_is_preferred_and_two_active_zones_are_refused(it):
    """The same name may be in two accounts."""
    it.fake.zone("example.org", status="pending")
    active = it.fake.zone("example.org")
    assert (await it.publish(A)).changed
    assert [one["zone"] for one in it.fake.records.values()] == [active]
    it.fake.zone("example.org")
    assert (await it.publish(B)).code == "several_zones"


async def test_name_without_zone_is_denied(it):
    """Nothing is written."""
    it.fake.zone("example.net")
    found = await it.publish(A)
    assert (found.code, found.lasting, it.fake.writes) == ("no_zone", True, [])


async def test_name_with_several_records_is_denied(it):
    """Any of them may be somebody else's: none is changed or deleted."""
    zone = it.fake.zone("example.org")
    it.fake.record(zone, NAME, A)
    it.fake.record(zone, NAME, B)
    found = await it.publish(A)
    assert (found.code, found.lasting) == ("several_records", True)
    assert it.fake.found(NAME) == [("A", A, 1), ("A", B, 1)]
    assert it.fake.writes == []


async def test_proxied_record_keeps_proxy_and_ttl(it):
    """Only the address is written."""
    zone = it.fake.zone("example.org")
    it.fake.record(zone, NAME, A, proxied=True)
    assert not (await it.publish(A, ttl=120)).changed
    assert (await it.publish(B, ttl=120)).changed
    (record,) = it.fake.records.values()
    assert (record["proxied"], record["ttl"], record["content"]) == (True, 1, B)


async def test_cname_of_that_name_is_denied(it):
    """The API's own message is kept."""
    zone = it.fake.zone("example.org")
    it.fake.record(zone, NAME, "elsewhere.example.net", kind="CNAME")
    found = await it.publish(A)
    assert (found.code, found.lasting) == ("provider_refused", True)
    assert "81053 An A, AAAA, or CNAME record" in found.reason


async def test_wrong_api_token_is_denied(it):
    """The API's message may contain the token: the caller, who knows the secret, redacts it."""
    it.fake.zone("example.org")
    found = await it.publish(A, token="wrong-token")
    assert (found.code, found.lasting, len(it.fake.asked)) == ("bad_credentials", True, 1)
    assert "9109" in found.reason
    with pytest.raises(HostError, match="control characters"):
        await it.publish(A, token="two\r\nlines")


async def test_rate_limit_of_cloudflare_gives_retry_after(it):
    """Seconds or a date; without the header, the five minutes of the API's rate limit window."""
    it.fake.zone("example.org")
    it.fake.left = 1
    found = await it.publish(A)
    assert (found.code, found.lasting, found.retry_after_s) == ("provider_rate_limited", False, 17)
    it.fake.left, it.fake.retry_after = 0, ""
    assert (await it.publish(A)).retry_after_s == cloudflare_api.DEFAULT_PAUSE_S
    assert cloudflare_api.retry_after_s("Fri, 31 Dec 1999 23:59:59 GMT", now_s=946_684_789) == 10
    far = "Fri, 31 Dec 99999999999 23:59:59 GMT"
    for odd in ("", "-1", "soon", "1e9", "Fri, 99 Dec 1999 23:59:59 GMT", far):
        assert cloudflare_api.retry_after_s(odd, now_s=time.time()) == 0
    assert cloudflare_api.retry_after_s("9" * 40, now_s=0) == cloudflare_api.LONGEST_PAUSE_S


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (answer(b"upstream", status="502 Bad Gateway"), "provider_unavailable"),
        (answer(b"<html>", status="200 OK"), "bad_answer"),
        (answer(b'{"success":false,"errors":null,"result":null}'), "bad_answer"),
        (answer(b'{"success":true,"result":{"id":1}}'), "bad_answer"),
        (answer(b'{"success":true,"result":[{"id":"../../zones","name":"example.org"}]}'), "bad_answer"),
        (answer(b'{"success":true,"result":[{"name":"example.org"}]}'), "bad_answer"),
        (answer(b'{"success":false,"errors":[{"code":7003}]}', status="404 Not Found"), "provider_conflict"),
    ],
)
async def test_server_errors_of_cloudflare_are_transient(it, said, code):
    """5xx, malformed answers, a record that is gone."""
    it.fake.zone("example.org")
    it.fake.fail = [said]
    found = await it.publish(A)
    assert (found.code, found.lasting) == (code, False)
    assert (await it.publish(A)).changed


async def test_record_created_meanwhile_is_transient(it):
    """The API refuses an identical record; the next try finds it equal."""
    zone = it.fake.zone("example.org")
    nothing = {"success": True, "errors": [], "result": [], "result_info": {"page": 1, "total_pages": 0}}
    zones = {"success": True, "errors": [], "result": [{"id": zone, "name": "example.org"}]}
    it.fake.record(zone, NAME, A)
    it.fake.fail = [answer(json.dumps(zones).encode()), answer(json.dumps(nothing).encode())]
    found = await it.publish(A)
    assert (found.code, found.lasting) == ("provider_conflict", False)
    assert not (await it.publish(A)).changed


async def test_differing_written_record_is_reported(it):
    """The answer to a write must have the address that was sent."""
    zone = it.fake.zone("example.org")
    it.fake.record(zone, NAME, A)
    it.fake._changed = lambda zone, record, body: {"success": True, "result": it.fake.records[record]}
    assert (await it.publish(B)).code == "not_written"


async def test_endless_pages_are_cut_off(it):
    """The number of pages that are read is bounded."""
    it.fake._page = lambda *_, **__: {
        "success": True,
        "result": [{"id": "a", "name": "x.net"}],
        "result_info": {"page": 1, "total_pages": 10**9},
    }
    found = await it.publish(A)
    assert (found.code, len(it.fake.asked)) == ("too_many_pages", 200)


async def test_token_is_not_sent_without_tls(authority):
    """A bound origin gets none either, nor one to which the plugin has no rights."""
    async with (
        origins.serving(answer(b"{}")) as plain,
        EgressClient(Guard(), tls=authority.trust()) as client,
    ):
        rights = EgressRights(origins=(egress.origin(f"http://{HOST}:{plain.port}=127.0.0.1"),))
        provider = CloudflareProvider(client, base=f"http://{HOST}:{plain.port}", rights=rights)
        job = UpdateJob(name=NAME, type="A", address=A, ttl=1)
        with pytest.raises(HostError, match="https only"):
            await provider.publish(job, TOKEN)
        other = CloudflareProvider(client, base=f"https://{HOST}:{plain.port}")
        with pytest.raises(HostError, match="host not granted"):
            await other.publish(job, TOKEN)
        assert plain.connections == 0
