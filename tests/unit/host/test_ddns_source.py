"""Which address of an interface is published, and when another one counts."""

from __future__ import annotations

import functools
import shutil
import subprocess
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.host.ddns import source
from latticed.kit import interfaces
from latticed.kit.interfaces import own_addresses
from tests.house import netns

A, B = "93.184.216.34", "93.184.216.35"


def chosen(*texts, kind="A", published="", private=False):
    return source.chosen([ip_address(one) for one in texts], kind, published=published, private=private)


def test_public_address_of_the_right_version_is_chosen():
    """Private ones are taken only where the operator allows them, and then after public ones; loopback and link-local
    never.
    """
    assert chosen("127.0.0.1", "10.0.0.5", A, "2606:4700::1") == A
    assert chosen("127.0.0.1", "10.0.0.5", A, "2606:4700::1", kind="AAAA") == "2606:4700::1"
    assert chosen("10.0.0.5", "169.254.1.1", "127.0.0.1") == ""
    assert chosen("10.0.0.5", "169.254.1.1", "127.0.0.1", private=True) == "10.0.0.5"
    assert chosen("10.0.0.5", A, private=True) == A
    assert chosen("fe80::1", "::1", kind="AAAA", private=True) == ""


def test_published_address_is_kept_while_interface_has_it():
    """One more address changes nothing; the order of interfaces neither."""
    assert chosen(A, B, published=B) == chosen(B, A, published=B) == B
    assert chosen(A, B, published="93.184.216.99") == chosen(B, A, published="") == A
    assert chosen("10.0.0.5", A, published="10.0.0.5") == A, "what may no longer be published does not stay"


def test_changed_address_is_taken_once_settled():
    """The first one is taken at once; one that comes and goes never is."""
    seen, counts = source.settled(None, A, published="", now_s=0, settle_s=30)
    assert counts == A
    for now_s, found, expected in ((1, B, A), (20, B, A), (25, A, A), (30, B, A), (59, B, A), (60, B, B), (61, "", A)):
        seen, counts = source.settled(seen, found, published=A, now_s=now_s, settle_s=30)
        assert counts == expected, now_s


@given(st.lists(st.tuples(st.sampled_from([A, B, ""]), st.integers(0, 29)), max_size=40))
def test_unsettled_address_is_never_taken(story):
    """In any sequence an address is taken only after it stayed for `settle_s`."""
    seen, now, since = None, 0, {}
    for found, passed in story:
        now += passed
        since = since if found in since else {found: now}
        seen, counts = source.settled(seen, found, published=A, now_s=now, settle_s=30)
        assert counts == A or now - since[counts] >= 30


def test_temporary_and_deprecated_addresses_are_left_out(tmp_path, monkeypatch):
    """Tentative and duplicate ones too (rtnetlink(7)); the file has the kernel's format."""
    listed = tmp_path / "if_inet6"
    line = "2606470000000000000000000000{:04x} 02 40 00 {:02x} {:>8}\n"
    flags = (0x80, 0x01, 0x08, 0x20, 0x40, 0x81, 0x00)
    listed.write_text("".join(line.format(number, flag, "none0") for number, flag in enumerate(flags)))
    monkeypatch.setattr(interfaces, "ipv6", functools.partial(interfaces.ipv6, listed))
    assert [str(address) for address in source.addresses_of("none0")] == ["2606:4700::", "2606:4700::6"]


def test_addresses_of_loopback_are_found_and_of_missing_interface_are_none():
    found = source.addresses_of("lo")
    assert ip_address("127.0.0.1") in found
    assert set(found) <= own_addresses()
    assert source.addresses_of("none0") == ()


@pytest.mark.root
@pytest.mark.skipif(netns.why_not() is not None, reason=str(netns.why_not()))
def test_addresses_of_interface_include_aliases_but_not_deprecated():
    """The interface is in a network namespace of the test."""

    async def scenario():
        ip = str(shutil.which("ip"))
        for arguments in (
            f"address add {A}/24 dev lo",
            f"address add {B}/24 dev lo label lo:1",
            "address add 2606:4700::5/64 dev lo nodad",
            "address add 2606:4700::6/64 dev lo nodad preferred_lft 0",
        ):
            subprocess.run([ip, *arguments.split()], check=True)
        found = {str(one) for one in source.addresses_of("lo")}
        assert {A, B, "2606:4700::5"} <= found
        assert "2606:4700::6" not in found

    netns.run((), scenario)
