"""Timed bans over an apply: replacing a table empties its sets, so what is banned is carried over."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latticed.system.nft_guard import table as tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from latticed.model.addresses import Network
    from latticed.system.nft_guard.intent import Intent

MAX_REMAINING_S: Final = 99_999_999
"""Three years. nft 1.0.6 takes eight digits of seconds, and says "value too large" to more."""


@dataclass(frozen=True, slots=True)
class LiveBan:
    """An element of a set of bans in the kernel: an IPv4 address or IPv6 /64, and whole seconds that remain to it."""

    network: Network
    remaining_s: int

    def __lt__(self, other: LiveBan) -> bool:
        return (self.network.version, self.network) < (other.network.version, other.network)


def carried(new: Intent, *, approved: Intent | None, live: Iterable[LiveBan], now_s: int) -> tuple[LiveBan, ...]:
    """The elements with which `new` is to be rendered when it replaces `approved`; `now_s`: seconds since 1970.

    A ban that both intents have with the same end keeps the time that the kernel says remains, so that a clock that was
    set back does not lengthen it, but never beyond that end: the clock may have been behind when it came in, as at a
    boot before it is set. Another one gets the time to its end. What an operator put into the
    set by hand (`nft add element`, with a timeout) stays, unless `never` has it. What `approved` had and `new` has not
    is gone. None gets more than three years.
    """
    return kept(
        {ban.network: ban.expires_at for ban in new.bans},
        known={ban.network: ban.expires_at for ban in approved.bans} if approved else {},
        never=new.never,
        live=live,
        now_s=now_s,
    )


def kept(
    wanted: Mapping[Network, int],
    *,
    known: Mapping[Network, int],
    never: Iterable[Network],
    live: Iterable[LiveBan],
    now_s: int,
) -> tuple[LiveBan, ...]:
    """As `carried`, from the ends of bans alone: of those that are wanted, and of those that are `known` to be ours."""
    remaining = {ban.network: ban.remaining_s for ban in live}
    covered = Covered(never)
    found: dict[Network, int] = {}
    for network, expires_at in wanted.items():
        same = known.get(network) == expires_at and network in remaining
        left = expires_at - now_s
        found[network] = min(remaining[network], left) if same else left
    for network, left in remaining.items():
        if network not in known and network not in found and not covered.hit_by(network):
            found[network] = left
    return tuple(sorted(LiveBan(network, min(left, MAX_REMAINING_S)) for network, left in found.items() if left > 0))


class Covered:
    """The addresses of some networks, to ask of many bans whether they hit one: 4,096 bans, 256 networks of `never`."""

    def __init__(self, networks: Iterable[Network]) -> None:
        self._firsts: dict[int, list[int]] = {4: [], 6: []}
        self._lasts: dict[int, list[int]] = {4: [], 6: []}
        merged = tables.joined(networks)
        for one in merged:
            self._firsts[one.version].append(int(one.network_address))
            self._lasts[one.version].append(int(one.broadcast_address))

    def hit_by(self, network: Network) -> bool:
        """Whether `network` has an address of one of the networks."""
        # Networks either contain each other or are apart, and these are sorted and joined: the last one that begins
        # before the end of `network` is the only one that can reach into it.
        place = bisect.bisect_right(self._firsts[network.version], int(network.broadcast_address))
        return place > 0 and self._lasts[network.version][place - 1] >= int(network.network_address)
