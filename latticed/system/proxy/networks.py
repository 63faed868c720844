"""The networks that users do not reach unless `reach_private` is set, for both cores. Pure."""

from __future__ import annotations

from ipaddress import IPv6Network
from typing import TYPE_CHECKING, Final

from latticed.model import addresses

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAT64: Final = IPv6Network("64:ff9b::/96")
"""By these addresses a host without IPv4 reaches all of it (RFC 6052): no more of them are private than of IPv4's."""


def _private() -> Iterator[str]:
    for block, _ in addresses.blocks(4):
        yield str(block)
        inner = int(_NAT64.network_address) | int(block.network_address)
        yield str(IPv6Network((inner, _NAT64.prefixlen + block.prefixlen)))
    for block, _ in addresses.blocks(6):
        if block != _NAT64:
            yield str(block)


PRIVATE: Final = tuple(sorted(_private()))
