"""The networks that users do not reach unless `reach_private` is set, for both cores. Pure."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Final

from latticed.model import addresses

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_NAT64: Final = IPv6Network("64:ff9b::/96")
"""By these addresses a host without IPv4 reaches all of it (RFC 6052): no more of them are private than of IPv4's."""


MAPPED: Final = "::ffff:0:0/96"
"""As it is written for the cores: Python 3.13 would write `::ffff:0.0.0.0/96`, which v2ray does not take."""


def _private() -> Iterator[str]:
    for block, _ in addresses.blocks(4):
        yield str(block)
        inner = int(_NAT64.network_address) | int(block.network_address)
        yield str(IPv6Network((inner, _NAT64.prefixlen + block.prefixlen)))
    for block, _ in addresses.blocks(6):
        if block != _NAT64:
            yield MAPPED if block == IPv6Network(MAPPED) else str(block)


def _public() -> Iterator[str]:
    """All else: of IPv4 piece by piece, of IPv6 where some is."""
    left = [IPv4Network("0.0.0.0/0")]
    for block, _ in addresses.blocks(4):
        left = [piece for one in left for piece in _without(one, block)]
    yield from (str(one) for one in left)
    yield from (str(addresses.GLOBAL_UNICAST), str(_NAT64))


def _without(network: IPv4Network, block: addresses.Network) -> Iterable[IPv4Network]:
    if not isinstance(block, IPv4Network) or not network.overlaps(block):
        return (network,)
    return network.address_exclude(block) if block.subnet_of(network) else ()


PRIVATE: Final = tuple(sorted(_private()))
PUBLIC: Final = tuple(sorted(_public()))
"""Within PRIVATE nothing of IPv4; where an address of IPv6 is in both, PRIVATE counts."""
