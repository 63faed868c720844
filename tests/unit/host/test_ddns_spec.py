"""ddns.put: names in normal form, numbers within bounds, public addresses."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host.call import HostError
from latticed.host.ddns import spec as specs

PUBLIC = "93.184.216.34"


def put(**fields):
    wanted = {"name": "h.example.org", "type": "A", "provider": "cloudflare", "secret": "${secret:TOKEN}"}
    if not {"address", "interface"} & set(fields):
        wanted["address"] = PUBLIC
    return msgspec.convert({**wanted, **fields}, specs.DdnsPut, strict=True)


def checked(*, private=False, **fields):
    return specs.checked(put(**fields), private=private)


def test_ddns_names_are_normalised():
    """Case, trailing dot, international letters; a wildcard keeps its star."""
    made = checked(name="Host.BÜCHER.example.", zone="bücher.example")
    assert (made.name, made.zone) == ("host.xn--bcher-kva.example", "xn--bcher-kva.example")
    assert checked(name="*.Example.org").name == "*.example.org"
    assert checked(name="example.org", zone="example.org").name == "example.org"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": "host"}, "name: expected a full domain name"),
        ({"name": "192.0.2.1"}, "name: expected a full domain name"),
        ({"name": "a b.example.org"}, "name: expected labels"),
        ({"name": "*.*.example.org"}, "name: expected labels"),
        ({"name": "h.example.org\n"}, "name: expected"),
        ({"zone": "example.net"}, "name: expected one within the zone"),
        ({"name": "notexample.org", "zone": "example.org"}, "name: expected one within the zone"),
        ({"ttl": 0}, "ttl: expected 1"),
        ({"ttl": 59}, "ttl: expected 1"),
        ({"ttl": 86_401}, "ttl: expected 1"),
        ({"secret": "hunter2"}, "secret: expected a reference"),
        ({"secret": "x${secret:TOKEN}"}, "secret: expected a reference"),
        ({"secret": "${secret:A}${secret:B}"}, "secret: expected a reference"),
        ({"address": PUBLIC, "interface": "eth0"}, "exactly one of address and interface"),
        ({"address": ""}, "exactly one of address and interface"),
        ({"interface": "eth/0"}, "interface: expected"),
        ({"interface": "e" * 16}, "interface: expected"),
        ({"address": "2606:4700::1111"}, "address: expected an IPv4 address"),
        ({"address": "0x5db8d822"}, "address: expected an IPv4 address"),
        ({"type": "AAAA", "address": PUBLIC}, "address: expected an IPv6 address"),
        ({"server": "ns.example.org"}, "server: expected nothing"),
        ({"key": "house"}, "key: expected nothing"),
    ],
)
def test_bad_ddns_parameters_are_refused_with_what_was_expected(fields, words):
    """A plain secret given instead of a reference is not in the error."""
    with pytest.raises(HostError) as caught:
        checked(**fields)
    assert caught.value.code == "bad_params"
    assert words in caught.value.reason
    assert "hunter2" not in caught.value.reason


@pytest.mark.parametrize(
    ("server", "found"),
    [
        ("NS.example.org", "ns.example.org:53"),
        ("ns.example.org:5353", "ns.example.org:5353"),
        ("192.0.2.1:54", "192.0.2.1:54"),
        ("[2001:DB8::1]", "[2001:db8::1]:53"),
        ("[2001:db8::1]:54", "[2001:db8::1]:54"),
    ],
)
def test_ddns_server_gets_port_53_by_default(server, found):
    made = checked(provider="rfc2136", server=server, key="House-Key.")
    assert (made.server, made.key) == (found, "house-key")
    assert f"{specs.host_and_port(found)[1]}" == found.rpartition(":")[2]


@pytest.mark.parametrize("server", ["", "ns:0", "ns:65536", "2001:db8::1", "ns.example.org:53:53", "a b", ":53"])
def test_malformed_ddns_server_is_refused(server):
    with pytest.raises(HostError, match="server"):
        checked(provider="rfc2136", server=server, key="k")


def test_private_address_is_refused_without_ddns_private():
    """Loopback, link-local, multicast and other addresses that name no machine are refused even with ddns.private."""
    for address in ("10.0.0.1", "192.168.1.1", "100.64.0.1"):
        with pytest.raises(HostError, match=r"ddns\.private"):
            checked(address=address)
        assert checked(address=address, private=True).address == address
    assert checked(type="AAAA", address="fd12::1", private=True).address == "fd12::1"
    for address in ("127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "192.0.2.1"):
        with pytest.raises(HostError, match="expected a public one"):
            checked(address=address, private=True)
    for address in ("::1", "fe80::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::1"):
        with pytest.raises(HostError, match="address: expected"):
            checked(type="AAAA", address=address, private=True)


def test_encoded_ddns_spec_decodes_to_the_same():
    """Every field survives; an incomplete spec is an error."""
    made = checked(provider="rfc2136", server="ns.example.org", key="k", zone="example.org", ttl=60)
    assert specs.decode(specs.encode(made)) == made
    with pytest.raises(msgspec.MsgspecError):
        specs.decode('{"name":"x"}')


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_any_ddns_parameters_give_a_spec_or_bad_params(name, address, server):
    """No text makes the check fail in another way."""
    for provider in ("cloudflare", "rfc2136"):
        try:
            made = checked(name=name, address=address, provider=provider, server=server, key=name)
            found = specs.decode(specs.encode(made)) == made
        except HostError as error:
            found = error.code == "bad_params"
        assert found
