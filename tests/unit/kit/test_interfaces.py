"""kit.interfaces: addresses of network interfaces, as the kernel lists them."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from latticed.kit import interfaces
from latticed.kit.interfaces import InterfaceAddress


def test_loopback_has_its_prefix_length_on_request():
    assert InterfaceAddress(b"lo", IPv4Address("127.0.0.1"), 8) in list(interfaces.ipv4(with_prefix=True))
    assert InterfaceAddress(b"lo", IPv4Address("127.0.0.1")) in list(interfaces.ipv4())


def test_full_ioctl_buffer_is_enlarged(monkeypatch):
    """The kernel fills the buffer without saying that there was more."""
    expected = list(interfaces.ipv4())
    monkeypatch.setattr(interfaces, "_FIRST_ENTRIES", 1)
    assert list(interfaces.ipv4()) == expected


def test_interfaces_without_if_inet6_have_no_ipv6_addresses(tmp_path):
    assert list(interfaces.ipv6(tmp_path / "missing")) == []


def test_malformed_if_inet6_line_is_an_error(tmp_path):
    """A skipped line would let an address of this host pass as a foreign one."""
    listed = tmp_path / "if_inet6"
    listed.write_bytes(b"odd\n")
    with pytest.raises(ValueError, match="unpack"):
        list(interfaces.ipv6(listed))
