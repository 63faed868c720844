"""Which line of a table decides for a packet: the model of what the kernel does with it.

Tests send the packets that this model judges through a real table and compare.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from latticed.system.nft_guard import table as tables

if TYPE_CHECKING:
    from collections.abc import Collection

    from latticed.model.addresses import Address, Network
    from latticed.system.nft_guard.intent import Ports
    from latticed.system.nft_guard.table import Line, Table

HOOKS: Final = (tables.INPUT, tables.FORWARD, tables.OUTPUT)
"""Where a packet meets the table: to this host, through it, from it."""
STATES: Final = ("new", "established", "related", "invalid", "untracked")


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """One packet at one hook, with what connection tracking thinks of it.

    `inbound` and `outbound` are names of interfaces; there is none at the other end of input and output. `proto` is
    tcp, udp, icmp, icmpv6, or another protocol by any other name. `icmp` is the type by nft's name. Forwarded packets
    have the destination and port that they are forwarded to, after any DNAT. `reply`: its connection was opened by a
    packet that went the other way.
    """

    hook: str
    source: Address
    destination: Address
    inbound: str = ""
    outbound: str = ""
    proto: str = "tcp"
    sport: int = 0
    dport: int = 0
    icmp: str = ""
    hop_limit: int = 64
    state: str = "new"
    reply: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of a packet: `verdict` accept, drop or reject; `line` is None when it was the chain's policy.

    `above`: what becomes of it while the limit of `line`, and every other that it meets, is exceeded; None for a line
    without a limit.
    """

    verdict: str
    chain: str
    line: Line | None = None
    above: Decision | None = None

    @property
    def accepted(self) -> bool:
        """Whether it passes as long as no limit is exceeded."""
        return self.verdict == "accept"


def decide(table: Table | None, packet: Packet, *, banned: Collection[Network] = ()) -> Decision:
    """The decision of the table over a packet, with these networks in its sets; None for a table accepts all."""
    if table is None:
        return Decision(verdict="accept", chain=packet.hook)
    decision = _decided(table, packet, banned, exceeded=False)
    if decision.line is None or not decision.line.limit:
        return decision
    return replace(decision, above=_decided(table, packet, banned, exceeded=True))


def _decided(table: Table, packet: Packet, banned: Collection[Network], *, exceeded: bool) -> Decision:
    found = _walked(table, packet.hook, packet, banned, exceeded=exceeded)
    return found or Decision(verdict=table.chain(packet.hook).policy, chain=packet.hook)


def _walked(table: Table, name: str, packet: Packet, banned: Collection[Network], *, exceeded: bool) -> Decision | None:
    """The first line of a chain that decides, where all limits are `exceeded` or none; None when no line does."""
    for line in table.chain(name).lines:
        if not line.verdict or (line.limit and exceeded) or not fits(line, packet, banned):
            continue
        if line.verdict in {"accept", "drop", "reject"}:
            return Decision(verdict=line.verdict, chain=name, line=line)
        jumped = _walked(table, line.verdict, packet, banned, exceeded=exceeded)
        if jumped is not None:
            return jumped
    return None


def fits(line: Line, packet: Packet, banned: Collection[Network] = ()) -> bool:
    """Whether a packet has all that a line asks of it."""
    return (
        (not line.states or packet.state in line.states)
        and (not line.reply or packet.reply)
        and (not line.inbound or packet.inbound in line.inbound)
        and (not line.outbound or packet.outbound in line.outbound)
        and (not line.family or packet.source.version == line.family)
        and (not line.source or _in(packet.source, line.source))
        and (not line.destination or _in(packet.destination, line.destination))
        and (not line.banned or _in(packet.source, banned))
        and (not line.proto or packet.proto == line.proto)
        and (not line.sport or _within(packet.sport, line.sport))
        and (not line.dport or _within(packet.dport, line.dport))
        and (not line.icmp or packet.icmp in line.icmp)
        and (not line.hop_limit or packet.hop_limit == line.hop_limit)
    )


def _in(address: Address, networks: Collection[Network]) -> bool:
    return any(address in network for network in networks)


def _within(port: int, ranges: Collection[Ports]) -> bool:
    return any(one.low <= port <= one.high for one in ranges)
