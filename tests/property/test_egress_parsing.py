"""Untrusted URLs, hosts, addresses and bodies: two parsers agree, or the value is refused."""

from __future__ import annotations

import socket
import zlib
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from yarl import URL

from latticed.host.call import HostError
from latticed.host.egress import body, url
from latticed.model import addresses, egress, hosts
from latticed.model.egress import EgressRights
from latticed.model.hostcall import Denial

WORDS = """http https :// : / // ? # @ [ ] % %2e . .. 127 1 0x7f ::1 example org xn-- ü 。 a 80 - _ ﬀ ${secret:A} *"""
PIECES = st.sampled_from([*WORDS.split(), "\\", " ", "\r\n", "\0"])
NUMERIC = st.text(alphabet="0123456789abfx.", max_size=20)


def parsed(text: str) -> url.Target | None:
    """The target, or None for a refusal with one of the two possible codes."""
    try:
        return url.parse(text)
    except HostError as error:
        if error.code not in {Denial.BAD_PARAMS, Denial.EGRESS_BLOCKED}:
            raise
        return None


@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=14).map("".join)))
@example("http://a/?#")
@example("http://a:80")
def test_url_is_refused_or_parsed_as_by_another_parser(text):
    """The result parses to itself."""
    for whole in (text, f"http://{text}"):
        target = parsed(whole)
        if target is None:
            continue
        assert parsed(str(target)) == target
        other = URL(str(target), encoded=True)
        assert (other.scheme, other.raw_host, other.port) == (target.scheme, target.host, target.port)
        assert target.path.isascii()
        assert target.path.isprintable()
        assert " " not in target.path


@given(st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=8).map("".join)))
def test_redirect_location_gives_a_plain_target_or_is_refused(text):
    """A relative one stays at its origin."""
    base = url.parse("https://example.org/a/b?c")
    try:
        target = url.refer(base, text)
    except HostError:
        return
    assert parsed(str(target)) == target
    if "//" not in text:
        assert target.origin == base.origin


@given(st.one_of(st.text(max_size=40), NUMERIC, st.lists(PIECES, max_size=6).map("".join)))
@example("127.1")
@example("0x7f.1")
def test_host_has_one_normal_form_and_one_address(text):
    """Where the C library would read an address, it is the same one, or the host is refused."""
    try:
        normal = hosts.normal(text)
    except hosts.NotAHost:
        return
    assert hosts.normal(hosts.bracketed(normal)) == normal
    literal = hosts.address_of(normal)
    try:
        read = IPv4Address(socket.inet_aton(normal))
    except OSError:
        assert not isinstance(literal, IPv4Address)
    else:
        assert literal == read


@given(st.text(max_size=30), st.text(max_size=30), st.integers(0, 70_000))
def test_any_text_is_a_pattern_or_origin_or_is_refused(pattern, host, port):
    """Only ValueError is raised."""
    rights = EgressRights(hosts=(pattern,), declared=(pattern,))
    egress.refusal(rights, host=host, port=port)
    try:
        found = egress.origin(pattern)
    except ValueError:
        return
    assert egress.origin(str(found)) == found


@given(st.one_of(st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 2**128 - 1).map(IPv6Address)))
def test_special_purpose_addresses_are_blocked(address):
    """All in the standard library's table of the registries."""
    if addresses.blocked_class(address) is None:
        assert address.is_global
        assert not address.is_multicast


@pytest.mark.parametrize("prefix", ["::ffff:0:0/96", "::/96", "64:ff9b::/96", "2002::/16", "2001::/32"])
@given(low=st.integers(0, 2**32 - 1))
def test_addresses_with_an_embedded_ipv4_address_are_blocked(prefix, low):
    """The embedded address may be public."""
    from ipaddress import IPv6Network

    network = IPv6Network(prefix)
    shift = max(0, 96 - network.prefixlen)
    assert addresses.blocked_class(network[0] + (low << shift)) is not None


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate", "identity", "br", "gzip, gzip"]))
def test_any_response_body_is_decoded_or_refused(data, encoding):
    """It never gives more than the limit, and raises no other exception."""
    for raw in (data, zlib.compress(data), zlib.compress(data, wbits=31) + data):
        try:
            assert len(body.decoded(raw, encoding, limit=300)) <= 300 or encoding == "identity"
        except HostError as error:
            if error.code not in {Denial.TOO_LARGE, Denial.SERVICE_UNAVAILABLE}:
                raise
