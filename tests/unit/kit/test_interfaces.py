"""The addresses of network interfaces, as the kernel lists them."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from latticed.kit import interfaces
from latticed.kit.interfaces import InterfaceAddress


def test_loopback_has_its_prefix_when_that_is_asked_for():
    assert InterfaceAddress(b"lo", IPv4Address("127.0.0.1"), 8) in list(interfaces.ipv4(with_prefix=True))
    assert InterfaceAddress(b"lo", IPv4Address("127.0.0.1")) in list(interfaces.ipv4())


def test_a_buffer_that_is_too_small_cuts_nothing(monkeypatch):
    """The kernel fills what it is given and does not say that there was more."""
    expected = list(interfaces.ipv4())
    monkeypatch.setattr(interfaces, "_FIRST_ENTRIES", 1)
    assert list(interfaces.ipv4()) == expected


def test_without_ipv6_there_are_no_such_addresses(tmp_path):
    assert list(interfaces.ipv6(tmp_path / "missing")) == []


def test_a_line_that_no_kernel_writes_is_an_error(tmp_path):
    """Otherwise the guard would take an address of this host for a stranger's."""
    listed = tmp_path / "if_inet6"
    listed.write_bytes(b"odd\n")
    with pytest.raises(ValueError, match="unpack"):
        list(interfaces.ipv6(listed))
