"""What members may reach, as a table of nft of its own: AllowedIPs in a member's file bind nobody but itself.

    iifname "wg-home" ip saddr { 10.80.0.2, 10.80.0.5 } ip daddr 192.168.1.10 tcp dport 443 accept
    iifname "wg-home" counter drop

WireGuard takes no packet from a member whose source is not the member's own, so the source says who it is. Only replies
pass without being asked for: a connection that a member made is judged packet by packet, so what is taken away from
`may_reach` ends at once. What others send to members is not judged.

A chain that nothing leads to says who has which address and until when: wg(8) knows keys alone.

    iifname "wg-home" ip saddr 10.80.0.2 comment "anna-phone until 1800000000"
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from latticed.system.nft_guard import compile as compiler
from latticed.system.nft_guard import parse, render
from latticed.system.nft_guard import table as tables
from latticed.system.nft_guard.intent import Proto
from latticed.system.nft_guard.table import Chain, Line, Table
from latticed.system.wireguard.intent import Place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from latticed.model.addresses import Address, Network
    from latticed.system.wireguard.intent import Intent, Reach, WgMember, WgNetwork

FAMILY: Final = "inet"
NAME: Final = "latticed_wireguard"
MEMBERS: Final = "members"
REMOVED: Final = f"table {FAMILY} {NAME}\ndelete table {FAMILY} {NAME}\n"
"""The first line makes the table when there is none: nft 1.0.6 has no `destroy table`."""


def of(tunnel: WgNetwork, member: WgMember) -> tuple[Reach, ...]:
    """What a member may reach: its own list, or the network's."""
    return tunnel.may_reach if member.may_reach is None else member.may_reach


def routes(tunnel: WgNetwork, member: WgMember) -> tuple[Network, ...]:
    """What a member's device sends through the tunnel."""
    return (tunnel.routes if member.routes is None else member.routes) or tunnel.pools()


def dns(tunnel: WgNetwork, member: WgMember) -> tuple[Address, ...]:
    """What a member's device asks for names."""
    return tunnel.dns if member.dns is None else member.dns


def table(intent: Intent) -> Table:
    """The table of an intent that passed `decode`; members that are not enabled are not in it."""
    tunnels = sorted(intent.networks, key=lambda one: one.name)
    chains = [
        Chain(name=name, policy="accept", lines=tuple(line for tunnel in tunnels for line in _lines(tunnel, name)))
        for name in (tables.INPUT, tables.FORWARD)
    ]
    names = Chain(name=MEMBERS, lines=tuple(line for tunnel in tunnels for line in _named(tunnel)))
    return parse.canonical(Table(chains=(*chains, *([names] if names.lines else []))))


def known(found: Table) -> dict[Network, tuple[str, int | None]]:
    """By address: the id of each member in the table, and its end in seconds since 1970."""
    by_address: dict[Network, tuple[str, int | None]] = {}
    for line in found.chain(MEMBERS).lines:
        member, _, until = line.comment.partition(" until ")
        for network in line.source:
            by_address[network] = (member, int(until) if until.isdecimal() else None)
    return by_address


def interfaces(found: Table) -> frozenset[str]:
    """The interfaces that the table is about."""
    return frozenset(name for chain in found.chains for line in chain.lines for name in line.inbound)


def text(found: Table) -> str:
    """One file for `nft -f` that replaces the table; without lines, that removes it."""
    if not any(chain.lines for chain in found.chains):
        return REMOVED
    body = [line for chain in found.chains for line in render.chain_lines(chain)]
    return REMOVED + "".join(f"{line}\n" for line in (f"table {FAMILY} {NAME} {{", *body, "}"))


def listed(listing: Any) -> Table:
    """The table in the decoded `nft -j list table`; parse.Foreign for what is not written here."""
    return parse.table(listing, sets={})


def _named(tunnel: WgNetwork) -> Iterator[Line]:
    for member in sorted(tunnel.members, key=lambda one: one.id):
        until = "" if member.expires_at is None else f" until {member.expires_at}"
        for address in member.addresses if member.enabled else ():
            family, source = address.version, (_single(address),)
            yield Line(inbound=(tunnel.name,), family=family, source=source, comment=f"{member.id}{until}")


def _lines(tunnel: WgNetwork, chain: str) -> Iterator[Line]:
    inbound = (tunnel.name,)
    yield Line(verdict="accept", states=("established", "related"), reply=True, inbound=inbound)
    for line in compiler.ERRORS:
        # To what a member sent itself: no reply to connection tracking, but path MTU discovery fails without.
        yield replace(line, states=("related",), inbound=inbound, origin="")
    alike: dict[tuple[Reach, ...], list[WgMember]] = {}
    for member in sorted(tunnel.members, key=lambda one: one.id):
        if member.enabled:
            alike.setdefault(_ordered(of(tunnel, member)), []).append(member)
    for reaches, members in sorted(alike.items(), key=lambda one: one[1][0].id):
        sources = tables.networks(
            network for member in members for network in (*map(_single, member.addresses), *member.subnets)
        )
        for family, source in sorted(sources.items()):
            line = Line(verdict="accept", inbound=inbound, family=family, source=source)
            yield from _reached(line, tunnel, reaches, chain)
    yield Line(verdict="drop", inbound=inbound, counter=True)


def _reached(line: Line, tunnel: WgNetwork, reaches: Sequence[Reach], chain: str) -> Iterator[Line]:
    """`line` for each thing that is reached in this chain; networks of one protocol and ports are one line."""
    together: dict[tuple[str, tuple[Any, ...]], list[Network]] = {}
    for one in reaches:
        if compiler.FAMILIES.get(one.proto, line.family) != line.family:
            continue
        proto = "" if one.proto is Proto.ANY else str(one.proto)
        asked = replace(line, proto=proto, dport=tables.ports(one.ports))
        match one.to:
            case Place.SERVER:
                if chain == tables.INPUT:
                    yield asked
            case Place.MEMBERS:
                if chain == tables.FORWARD:
                    yield replace(asked, outbound=(tunnel.name,))
            case network:
                together.setdefault((proto, asked.dport), []).append(network)
    for (proto, dport), networks in together.items():
        destination = tables.networks(networks).get(line.family)
        if destination is not None:
            yield replace(line, proto=proto, dport=dport, destination=destination)


def _ordered(reaches: Sequence[Reach]) -> tuple[Reach, ...]:
    return tuple(sorted(set(reaches), key=lambda one: (str(one.to), str(one.proto), one.ports)))


def _single(address: Address) -> Network:
    return ipaddress.ip_network(address)
