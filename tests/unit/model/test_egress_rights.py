"""Normal form of hosts, patterns, bound origins, and refusals."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from latticed.model import addresses, egress, hosts
from latticed.model.egress import EgressRights, Origin


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("Example.ORG", "example.org"),
        ("example.org.", "example.org"),
        ("_dmarc.example.org", "_dmarc.example.org"),
        ("r3---sn-x.example.org", "r3---sn-x.example.org"),
        ("münchen.de", "xn--mnchen-3ya.de"),
        ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ("ｅｘａｍｐｌｅ。org", "example.org"),
        ("\u212a.example", "k.example"),  # KELVIN SIGN
        ("1.2.3.4", "1.2.3.4"),
        ("[2606:4700::0:1111]", "2606:4700::1111"),
        ("[::ffff:1.2.3.4]", "::ffff:102:304"),
        ("a" * 63 + ".example", "a" * 63 + ".example"),
    ],
)
def test_hosts_are_normalised(text, normal):
    """They may be written in any spelling."""
    assert hosts.normal(text) == normal


NO_HOSTS = """127.1 0x7f000001 2130706433 0177.0.0.1 1.2.3.4.5 1.2.3.256 08.8.8.8 0 0x o177.0.0.1
    １２７.0.0.1 127。0。0。1
    a..b .a -a.org a-.org a%2e.org a@b a:b [::1 ::1 [::1%eth0] [fe80::1%25eth0] [1.2.3.4] [] xn--a xn--ls8h.la x/y
    xn--example-.org I♥.org a\u200db.org .."""


@pytest.mark.parametrize(
    "text",
    [*NO_HOSTS.split(), "", "a b", "a\\b", "a" * 64, ".".join(["abcdefg"] * 33), "ä" * 10_000, "a\0b", "a,b"],
)
def test_ambiguous_or_invalid_hosts_are_refused(text):
    """A resolver might accept more and resolve them."""
    with pytest.raises(hosts.NotAHost, match="expected"):
        hosts.normal(text)


@pytest.mark.parametrize(
    ("pattern", "host", "port", "covered"),
    [
        ("api.example.org:443", "api.example.org", 443, True),
        ("api.example.org:443", "api.example.org", 80, False),
        ("api.example.org:443", "api.example.org", 0, True),
        ("api.example.org:443", "apiXexample.org", 443, False),
        ("*.example.net:443", "a.example.net", 443, True),
        ("*.example.net:443", "a.b.example.net", 443, True),
        ("*.example.net:443", "example.net", 443, False),
        ("*.example.net:443", "badexample.net", 443, False),
        ("[2606:4700:0::1111]:443", "2606:4700::1111", 443, True),
        ("1.1.1.1:443", "1.1.1.1", 443, True),
        ("127.1:443", "127.0.0.1", 443, False),
        ("[nonsense]:443", "nonsense", 443, False),
        ("*", "example.org", 443, False),
    ],
)
def test_host_pattern_covers_its_hosts_only(pattern, host, port, covered):
    """`*.` covers all names below, not the name itself, and is allowed at the beginning only."""
    assert egress.covers(pattern, host, port) is covered


@pytest.mark.parametrize(
    ("rights", "target", "reason"),
    [
        (EgressRights(), ("https", "a.example.org", 443), "host not granted"),
        (EgressRights(hosts=("*",)), ("https", "a.example.org", 443), None),
        (EgressRights(hosts=("*",), declared=()), ("https", "a.example.org", 443), "host not declared"),
        (EgressRights(hosts=(), declared=("a.example.org:443",)), ("https", "a.example.org", 443), "host not granted"),
        (EgressRights(hosts=("*",), declared=("*.example.org:443",)), ("https", "a.example.org", 443), None),
        (
            EgressRights(hosts=("b.example.org:443",), declared=("*.example.org:443",)),
            ("https", "a.example.org", 443),
            "host not granted",
        ),
        (EgressRights(hosts=("*",)), ("http", "a.example.org", 25), "port not granted"),
        (EgressRights(hosts=("*",)), ("tcp", "a.example.org", 8443), "port not granted"),
        (EgressRights(hosts=("a.example.org:25",)), ("http", "a.example.org", 25), None),
        (EgressRights(hosts=("*",), declared=("a.example.org:25",)), ("http", "a.example.org", 25), "port not granted"),
        (EgressRights(hosts=("*",)), ("http", "printer", 80), "host not public"),
        (EgressRights(hosts=("printer:80",)), ("http", "printer", 80), "host not public"),
        (EgressRights(hosts=("*",)), ("http", "x.localhost", 80), "host not public"),
        (EgressRights(hosts=("*",)), ("http", "metadata.google.internal", 80), "host not public"),
        (EgressRights(hosts=("*",)), ("ping", "2606:4700::1111", 0), None),
        (EgressRights(hosts=("a.example.org:443",)), ("ping", "a.example.org", 0), None),
    ],
)
def test_egress_refusal_names_the_rule_that_denies(rights, target, reason):
    """The host is not declared, not granted, or not a public name."""
    _, host, port = target
    found = egress.refusal(rights, host=host, port=port)
    assert (found is None) if reason is None else str(found).startswith(reason)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://127.0.0.1:8080", ("http", "127.0.0.1", 8080, "127.0.0.1")),
        ("https://10.0.0.5", ("https", "10.0.0.5", 443, "10.0.0.5")),
        ("https://[fd00::5]:8443", ("https", "fd00::5", 8443, "fd00::5")),
        ("https://backend.lan:8443=10.0.0.5", ("https", "backend.lan", 8443, "10.0.0.5")),
        ("smtp://mail.lan:25=fd00::5", ("smtp", "mail.lan", 25, "fd00::5")),
        ("ping://10.0.0.5", ("ping", "10.0.0.5", 0, "10.0.0.5")),
    ],
)
def test_origin_pins_scheme_host_port_and_address(text, origin):
    """Its text form is parsed to the same origin."""
    scheme, host, port, address = origin
    found = egress.origin(text)
    assert found == Origin(scheme=scheme, host=host, port=port, address=ip_address(address))
    assert egress.origin(str(found)) == found
    rights = EgressRights(origins=(found,))
    assert egress.pinned(rights, scheme=scheme, host=host, port=port) == (ip_address(address),)
    for other in (("tcp", host, port), (scheme, "other.lan", port), (scheme, host, port + 1)):
        assert egress.pinned(rights, scheme=other[0], host=other[1], port=other[2]) == ()


NO_ORIGINS = """
    backend.lan:80 http://backend.lan:80 http://backend.lan:80=nowhere http://10.0.0.5:80=10.0.0.6 ftp://10.0.0.5:21
    tcp://10.0.0.5 http://10.0.0.5:0 http://10.0.0.5:65536 http://10.0.0.5:80/path http://u@10.0.0.5:80
    ping://10.0.0.5:7 http://0.0.0.0:80 http://224.0.0.1:80 http://255.255.255.255:80 http://[::ffff:10.0.0.5]:80
    http://127.1:80 http://[fe80::1%25eth0]:80 http://a.lan:80=fe80::1%eth0 http://[::]:80"""


@pytest.mark.parametrize("text", [*NO_ORIGINS.split(), "", "http://a b:80=10.0.0.5"])
def test_invalid_origins_are_refused(text):
    """Addresses of many machines, of none, or of ambiguous spelling."""
    with pytest.raises(ValueError, match="expected"):
        egress.origin(text)


def test_special_addresses_that_ipaddress_calls_global_are_blocked():
    """Some embed a private IPv4 address."""
    for text in ("64:ff9b::a00:1", "168.63.129.16", "2606:4700::200:5efe:a9fe:a9fe", "192.31.196.1"):
        assert addresses.blocked_class(ip_address(text)) is not None
    assert addresses.blocked_class(ip_address("fe80::1%eth0")) == "link-local"
    assert addresses.blocked_class(ip_address("2606:4700::1%eth0")) == "zoned"
