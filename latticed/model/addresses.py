"""Which addresses are public: others can be reached only by origins that an operator bound (docs/operate/egress.md).

`ipaddress`'s is_global is not enough: it is true of transition addresses that embed a private IPv4 address (NAT64,
6to4, mapped, ISATAP), and clouds have services for their machines at addresses that look public. Sources: the IANA
special-purpose address registries (RFC 6890), RFC 4291, 5214, 6052; metadata addresses: documentation of the clouds.
"""

from __future__ import annotations

from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

METADATA: Final = "cloud metadata"
"""The kind of the addresses at which clouds serve their machines, credentials included."""

_V4: Final = (
    ("169.254.169.254/32 100.100.100.200/32 192.0.0.192/32 168.63.129.16/32", METADATA),
    ("161.26.0.0/16 166.8.0.0/14", METADATA),  # services that a cloud offers to its own machines only
    ("0.0.0.0/8", "this network"),
    ("127.0.0.0/8", "loopback"),
    ("10.0.0.0/8 172.16.0.0/12 192.168.0.0/16", "private"),
    ("100.64.0.0/10", "shared (carrier NAT)"),
    ("169.254.0.0/16", "link-local"),
    ("192.0.0.0/24 192.31.196.0/24 192.52.193.0/24 192.175.48.0/24", "special purpose"),
    ("192.0.2.0/24 198.51.100.0/24 203.0.113.0/24", "documentation"),
    ("192.88.99.0/24", "6to4 relay"),
    ("198.18.0.0/15", "benchmarking"),
    ("224.0.0.0/4", "multicast"),
    ("240.0.0.0/4", "reserved"),
)
"""(blocks, name) in the order in which they are asked: the first that contains the address names it."""
_V6: Final = (
    ("fd00:ec2::254/128 fd00:ec2::23/128 fd20:ce::254/128 fd00:42::42/128 fd00:a9fe:a9fe::1/128", METADATA),
    ("::1/128", "loopback"),
    ("::/128", "unspecified"),
    ("::ffff:0:0/96 ::ffff:0:0:0/96 ::/96", "IPv4 within IPv6"),
    ("64:ff9b::/96 64:ff9b:1::/48", "NAT64"),
    ("100::/64 100:0:0:1::/64", "discard"),
    ("fc00::/7", "private"),
    ("fe80::/10", "link-local"),
    ("fec0::/10", "site-local"),
    ("ff00::/8", "multicast"),
    ("2001::/32", "Teredo"),
    ("2001::/23 2620:4f:8000::/48", "special purpose"),
    ("2001:db8::/32 3fff::/20", "documentation"),
    ("2002::/16", "6to4"),
)
"""As `_V4`."""
GLOBAL_UNICAST: Final = IPv6Network("2000::/3")  # all that IANA has allocated from (RFC 4291, section 2.4)
_ISATAP: Final = frozenset({0x0000_5EFE, 0x0200_5EFE})  # upper half of the interface identifier (RFC 5214, 6.1)


def blocks(version: int) -> tuple[tuple[Network, str], ...]:
    """The blocks of an IP version (4 or 6) that are not public, each with its name, the most telling name first."""
    kind = IPv4Network if version == 4 else IPv6Network
    return tuple((kind(text), name) for texts, name in (_V4 if version == 4 else _V6) for text in texts.split())


@cache
def _table(version: int) -> tuple[tuple[int, int, str], ...]:
    """(mask, value, name) of each block."""
    # As integers: comparing those takes a fraction of what `address in network` takes.
    return tuple((int(block.netmask), int(block.network_address), name) for block, name in blocks(version))


def blocked_class(address: Address) -> str | None:
    """What kind of address this is when it is not public (`loopback`, `private`, …); None for a public one.

    `10.0.0.1` is `private`, `::ffff:8.8.8.8` is `IPv4 within IPv6`, `169.254.169.254` is `cloud metadata`.
    """
    number = int(address)
    for mask, value, name in _table(address.version):
        if number & mask == value:
            return name
    # Outside these blocks all of IPv4 is public; IPv6 needs the checks below.
    if isinstance(address, IPv4Address):
        return None
    # A zone (RFC 4007) belongs to addresses that are not global.
    if address.scope_id is not None:
        return "zoned"
    if (number >> 32) & 0xFFFF_FFFF in _ISATAP:
        return "ISATAP"
    return None if address in GLOBAL_UNICAST else "unallocated"
