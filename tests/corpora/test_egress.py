"""The egress suites: addresses, URLs and flows that must never lead to a connection; and those that must."""

from __future__ import annotations

import contextlib
from ipaddress import IPv6Address, ip_address

import pytest

from latticed.host.call import HostError
from latticed.host.egress.client import EgressClient
from latticed.host.egress.guard import Guard
from latticed.host.http.calls import HttpCalls
from latticed.model import addresses
from latticed.model.hostcall import Denial
from tests.house import corpora, dials, flows, nameservers, netns, origins, outside, plugin_secrets

IPS = corpora.rows("egress_ips.json")
URLS = corpora.rows("egress_urls.json")
FLOWS = corpora.rows("egress_flows.json")
WHY_NOT = netns.why_not()
RESOLVING = {
    "localhost": [["127.0.0.1", "::1"]],
    "ip6-localhost": [["::1"]],
    "metadata": [["169.254.169.254"]],
    "rancher-metadata": [["169.254.169.250"]],
    "metadata.google.internal": [["169.254.169.254"]],
    "test": [["93.184.215.14"]],
    "foo.baz.com": [["93.184.215.14"]],
    "www.example.com": [["93.184.215.14"]],
    "service.test": [["93.184.215.14"]],
    "evil.com": [["93.184.215.14"]],
}
"""DNS answers for the names in the suite."""


@contextlib.asynccontextmanager
async def plugin_that_may_go_anywhere(zone):
    """(http.do as it is granted `*`, what it dials); this machine has no public address for the guard to know."""
    async with nameservers.serving(zone) as names:
        guard = Guard(resolver=nameservers.AskingResolver(names.address))
        async with EgressClient(guard, tls=origins.Authority().trust()) as client:
            http = HttpCalls(client, rights_of=lambda caller: outside.ANYWHERE, secrets_of=plugin_secrets.no_secrets)
            with dials.watched() as dialled:
                yield http, dialled


@pytest.mark.parametrize("row", IPS, ids=lambda row: row["ip"])
async def test_address_is_connected_to_only_if_public(row):
    """The address is in the URL, or that of a name; what the suite leaves to policy is blocked."""
    address = ip_address(row["ip"])
    assert (addresses.blocked_class(address) is None) is (row["expected"] == "allow"), row
    plain = address.compressed.partition("%")[0]
    written = f"[{address.compressed}]" if isinstance(address, IPv6Address) else plain
    async with plugin_that_may_go_anywhere({"name.example.com": [[plain]]}) as (http, dialled):
        for url in (f"http://{written}/", "http://name.example.com/"):
            with pytest.raises(HostError) as caught:
                await outside.call(http, url=url)
            # A public one is dialled, and cut off by the test, for nothing leaves this machine.
            dialled_one = caught.value.code is Denial.SERVICE_UNAVAILABLE
            assert (dialled_one, caught.value.code is Denial.EGRESS_BLOCKED) == (
                row["expected"] == "allow",
                row["expected"] != "allow",
            )
        assert dialled == ([(plain, 80)] * 2 if row["expected"] == "allow" else [])


@pytest.mark.parametrize("row", URLS, ids=lambda row: ascii(row["url"]))
async def test_url_is_connected_to_only_where_allowed(row):
    """Two parsers may read these URLs differently."""
    async with plugin_that_may_go_anywhere(RESOLVING) as (http, dialled):
        with pytest.raises(HostError) as caught:
            await outside.call(http, url=row["url"])
    if row["expected"] == "allow":
        assert (caught.value.code, dialled) == (Denial.SERVICE_UNAVAILABLE, [("8.8.8.8", 80)])
        return
    assert dialled == []
    assert caught.value.code in {Denial.EGRESS_BLOCKED, Denial.BAD_PARAMS}


@pytest.mark.root
@pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
@pytest.mark.parametrize("row", FLOWS, ids=lambda row: row["id"])
def test_egress_flow_ends_as_the_suite_says(row):
    """It runs against real servers on public and private addresses, a real DNS, and a proxy in the environment."""
    netns.run(outside.ADDRESSES, flows.FLOWS[row["id"]])
