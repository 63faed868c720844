"""Whether operators who are connected to sshd through a tunnel still get in with an intent."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latticed.system.findings import Finding
from latticed.system.nft_guard import packets
from latticed.system.nft_guard import table as tables
from latticed.system.nft_guard.bans import Covered
from latticed.system.nft_guard.facts import bare
from latticed.system.wireguard import reach
from latticed.system.wireguard.intent import Intent

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from latticed.model.addresses import Address
    from latticed.system.wireguard.facts import Facts
    from latticed.system.wireguard.intent import WgMember, WgNetwork

SOON_S: Final = 3_600
"""An end that is so near counts as reached: it may be by the time of the commit, which brings nobody back."""


def find(intent: Intent, facts: Facts) -> Iterator[Finding]:
    """Findings `lockout_source`; none for who comes by another way, or for a host without sshd."""
    ends = _ends(facts)
    members = [
        (tunnel, member) for tunnel in intent.networks for member in tunnel.members if _stays(member, facts.now_s)
    ]
    by_address = {address: (tunnel, member) for tunnel, member in members for address in member.addresses}
    for peer in sorted(ends, key=str):
        behind = (one for one in members if any(peer in subnet for subnet in one[1].subnets))
        found = by_address.get(peer) or next(behind, None)
        if found is None or not _may_reach(*found, peer, ends[peer], facts.sshd_ports):
            yield Finding(
                code="lockout_source",
                path="networks",
                expected=f"a way to sshd from {peer}, where an operator is connected from through a tunnel",
                found="no member that has it and may reach sshd",
                hint="keep the member and what it may reach, or connect by another way first",
                overridable=True,
            )


def _ends(facts: Facts) -> dict[Address, set[Address]]:
    """By address of who is connected through a tunnel: the addresses of this host that sshd may be reached at."""
    ours = Covered(facts.behind_peers)
    own = {address.ip for one in facts.interfaces for address in one.addresses}
    found: dict[Address, set[Address]] = {}
    for one in facts.sessions if facts.sshd_ports else ():
        if ours.hit_by(ipaddress.ip_network(peer := bare(one.peer))):
            found.setdefault(peer, set()).update(own if one.local is None else {bare(one.local)})
    return found


def _stays(member: WgMember, now_s: int) -> bool:
    return member.enabled and (member.expires_at is None or member.expires_at > now_s + SOON_S)


def _may_reach(
    tunnel: WgNetwork, member: WgMember, peer: Address, ends: Collection[Address], ports: Collection[int]
) -> bool:
    """Whether a new connection of the member's `peer` to one of these addresses and ports is accepted."""
    # With this member alone: the table of thousands of them takes its time.
    table = reach.table(Intent(networks=(replace(tunnel, members=(member,)),)))
    packet = packets.Packet(hook=tables.INPUT, source=peer, destination=peer, inbound=tunnel.name)
    return any(
        packets.decide(table, replace(packet, destination=end, dport=port)).accepted
        for end in ends
        for port in ports
        if end.version == peer.version
    )
