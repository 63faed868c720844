"""The table of nft guard as values: chains of lines, each with what it asks of a packet and what becomes of it.

Between intent and nft: `compile` makes a Table of an intent, `render` writes it, `parse` reads one from `nft -j`, and
`packets` and `narrows` reason about it. Two tables are equal when nft would do the same with them: networks, ports and
names are merged and sorted by `networks`, `ports` and `names`, whoever makes the lines.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from latticed.system.nft_guard.intent import Ports

if TYPE_CHECKING:
    from collections.abc import Iterable

    from latticed.model.addresses import Network
    from latticed.system.nft_guard.intent import Rate

NAME: Final = "latticed_guard"
FAMILY: Final = "inet"
INPUT: Final = "input"
FORWARD: Final = "forward"
GUARDED: Final = "forward_guarded"
OUTPUT: Final = "output"
BANS: Final = {4: "bans4", 6: "bans6"}
"""Sets of banned addresses, and of banned /64 by their first address."""
BANS_MASK: Final = "ffff:ffff:ffff:ffff::"
LOG_PACKETS: Final = 5
LOG_BURST: Final = 10
"""Messages a second that a rule with `log` writes at most, and at once: anyone can send packets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a chain. A packet has to fit every field that is not empty; `verdict` is what becomes of it then.

    `verdict` is `accept`, `drop`, `reject`, the name of a chain to jump to, or empty for a line that only logs.
    `reply`: it goes the other way than the packet that opened its connection. `family` is 4, 6 or 0. `banned`: the
    source is in the set of its family. `limit` names one of the table's limits; the packets above it go on to the next
    line. `origin` says which part of the intent it is from; a parsed line has
    none.
    """

    verdict: str = ""
    states: tuple[str, ...] = ()
    reply: bool = False
    inbound: tuple[str, ...] = ()
    outbound: tuple[str, ...] = ()
    family: int = 0
    source: tuple[Network, ...] = ()
    destination: tuple[Network, ...] = ()
    banned: bool = False
    proto: str = ""
    sport: tuple[Ports, ...] = ()
    dport: tuple[Ports, ...] = ()
    icmp: tuple[str, ...] = ()
    hop_limit: int = 0
    limit: str = ""
    log: str = ""
    counter: bool = False
    comment: str = ""
    origin: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """`policy` is empty for a chain without a hook, which lines jump to; a hook has the chain's name."""

    name: str
    policy: str = ""
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`limits`: (name, rate), sorted by name. The elements of the sets are no part of it."""

    chains: tuple[Chain, ...]
    limits: tuple[tuple[str, Rate], ...] = ()

    def chain(self, name: str) -> Chain:
        """The chain of this name; one that accepts all when the table has none: a hook without a chain lets pass."""
        return next((chain for chain in self.chains if chain.name == name), Chain(name=name, policy="accept"))


def networks(found: Iterable[Network]) -> dict[int, tuple[Network, ...]]:
    """By family: sorted, neighbours joined, none within another. All of a family gives an empty tuple.

    nft 1.0.6 refuses a set with overlapping elements ("conflicting intervals specified").
    """
    merged: dict[int, tuple[Network, ...]] = {}
    for one in joined(found):
        merged[one.version] = () if one.prefixlen == 0 else (*merged.get(one.version, ()), one)
    return merged


def joined(found: Iterable[Network]) -> list[Network]:
    """Sorted, IPv4 first; neighbours are one network, and none is within another."""
    every = list(found)
    four = ipaddress.collapse_addresses(one for one in every if isinstance(one, ipaddress.IPv4Network))
    six = ipaddress.collapse_addresses(one for one in every if isinstance(one, ipaddress.IPv6Network))
    return [*four, *six]


def ports(found: Iterable[Ports]) -> tuple[Ports, ...]:
    """Sorted; ranges that overlap or touch are one."""
    merged: list[Ports] = []
    for one in sorted(found):
        if merged and one.low <= merged[-1].high + 1:
            merged[-1] = Ports(merged[-1].low, max(one.high, merged[-1].high))
        else:
            merged.append(one)
    return tuple(merged)


def names(found: Iterable[str]) -> tuple[str, ...]:
    """Sorted, each once."""
    return tuple(sorted(set(found)))
