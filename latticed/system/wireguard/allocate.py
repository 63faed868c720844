"""Addresses for members: the lowest that is free, and never one that another had before the operator released it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.model.addresses import Address, Network
    from latticed.system.wireguard.intent import WgNetwork


class NoAddress(ValueError):
    """A network without a free address; the text says which, and how many are held."""


def addresses(tunnel: WgNetwork, member_id: str) -> tuple[Address, ...]:
    """One address in each pool of the network, for a member that is to be; NoAddress.

    A member that comes back under its id gets those that are held for it.
    """
    taken = {one.ip for one in tunnel.addresses} | {each for one in tunnel.members for each in one.addresses}
    held = {each: one.id for one in tunnel.held for each in one.addresses}
    found = []
    for pool in tunnel.pools():
        kept = (each for each, owner in held.items() if owner == member_id and each in pool and each not in taken)
        free = (each for each in _hosts(pool) if each not in taken and each not in held)
        address = next(kept, None) or next(free, None)
        if address is None:
            raise NoAddress(f"{pool} of {tunnel.name} has no free address; {len(held)} are held: release some")
        found.append(address)
    return tuple(found)


def _hosts(pool: Network) -> Iterator[Address]:
    """In order, without what names the network, nor broadcast; IPv6 has as many as will be asked for."""
    if pool.max_prefixlen - pool.prefixlen < 2:
        yield from pool
        return
    last = int(pool.broadcast_address) - (1 if pool.version == 4 else 0)
    for number in range(int(pool.network_address) + 1, last + 1):
        yield pool.network_address + (number - int(pool.network_address))
