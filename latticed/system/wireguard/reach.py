"""What members may reach, as a table of nft of its own: AllowedIPs in a member's file bind nobody but itself.

    set group1 { type ipv4_addr; flags interval; elements = { 10.80.0.2, 10.80.0.5 } }
    iifname "wg-home" ip saddr @group1 ip daddr 192.168.1.10 tcp dport 443 accept
    iifname "wg-home" counter drop

Members who may reach the same are one set, so that one more of them is one more element (`additions`): where a rule is
replaced, nft ends no sooner than the kernel has freed the old one, some 10 ms later.

WireGuard takes no packet from a member whose source is not the member's own, so the source says who it is. Only replies
pass without being asked for: a connection that a member made is judged packet by packet, so what is taken away from
`may_reach` ends at once. What others send to members is not judged.

A chain that nothing leads to says who has which address and until when: wg(8) knows keys alone.

    iifname "wg-home" ip saddr 10.80.0.2 comment "anna-phone until 1800000000"
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from latticed.system.nft_guard import compile as compiler
from latticed.system.nft_guard import parse, render
from latticed.system.nft_guard import table as tables
from latticed.system.nft_guard.intent import Proto
from latticed.system.nft_guard.table import Chain, Line, Table
from latticed.system.wireguard.intent import Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from latticed.model.addresses import Address, Network
    from latticed.system.wireguard.intent import Intent, Reach, WgMember, WgNetwork

FAMILY: Final = "inet"
NAME: Final = "latticed_wireguard"
MEMBERS: Final = "members"
_ELEMENTS: Final = "\t\telements = { "
_SET: Final = frozenset({"family", "name", "table", "type", "handle", "flags", "elem"})
_FAMILIES: Final = {"ipv4_addr": 4, "ipv6_addr": 6}
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
    return _in_order(parse.canonical(Table(chains=(*chains, *([names] if names.lines else [])))))


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


def text(found: Table, *, sets: bool = True) -> str:
    """One file for `nft -f` that replaces the table; without lines, that removes it.

    `sets` False: as versions before wrote it, with all sources in the rule itself.
    """
    if not any(chain.lines for chain in found.chains):
        return REMOVED
    groups = _groups(found) if sets else {}
    body = [line for sources, name in groups.items() for line in _set_lines(name, sources)]
    for chain in found.chains:
        body += render.chain_lines(chain, {} if chain.name == MEMBERS else groups)
    return REMOVED + "".join(f"{line}\n" for line in (f"table {FAMILY} {NAME} {{", *body, "}"))


def listed(listing: Any) -> tuple[Table, str]:
    """The table in the decoded `nft -j list table`, and its `text`; parse.Foreign for what is not written here.

    One of a version before, without sets, is in the form that it had.
    """
    try:
        sets, without = _without_sets(listing)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise parse.Foreign("a form that is not written here") from error
    found = parse.table(without, sets={})
    if sets:
        found = _in_order(found)
        if {name: sources for sources, name in _groups(found).items()} != sets:
            raise parse.Foreign("a set")
    return found, text(found, sets=bool(sets))


def additions(have: str, wanted: str) -> str | None:
    """What nft is given to make one table of another, both as `text` writes them, where members are added alone.

    None where anything else differs: another rule, or a member that goes.
    """
    old, new = _Parts.of(have), _Parts.of(wanted)
    if old.rest != new.rest or not old.groups or not set(old.members) <= set(new.members):
        return None
    lines = []
    for name, sources in new.groups.items():
        more = _beyond(sources, old.groups[name])
        if more is None:
            return None
        if more:
            elements = ", ".join(map(render.written, more))
            lines.append(f"add element {FAMILY} {NAME} {name} {{ {elements} }}")
    there = set(old.members)
    lines += [f"add rule {FAMILY} {NAME} {MEMBERS} {line}" for line in new.members if line not in there]
    return "".join(f"{line}\n" for line in lines)


@dataclass(frozen=True, slots=True)
class _Parts:
    """A text in parts: what each set has, the lines about members, and all other lines."""

    groups: dict[str, tuple[Network, ...]]
    members: tuple[str, ...]
    rest: tuple[str, ...]

    @classmethod
    def of(cls, shown: str) -> _Parts:
        groups: dict[str, tuple[Network, ...]] = {}
        members: list[str] = []
        rest: list[str] = []
        block = ""
        for line in shown.splitlines():
            if line.startswith("\t\t") and block == f"chain {MEMBERS}":
                members.append(line.strip())
            elif line.startswith(_ELEMENTS):
                words = line.removeprefix(_ELEMENTS).removesuffix(" }").split(", ")
                groups[block.removeprefix("set ")] = tuple(map(ipaddress.ip_network, words))
            else:
                rest.append(line)
                if not line.startswith("\t\t"):
                    block = line.strip().removesuffix(" {")
        return cls(groups, tuple(members), tuple(rest))


def _beyond(wanted: Iterable[Network], have: Iterable[Network]) -> list[Network] | None:
    """The networks of `wanted` without those of `have`; None where `have` is not within them."""
    kept = set(have)
    parts = [one for one in wanted if one not in kept]
    for gone in sorted(kept.difference(wanted)):
        around = next((one for one in parts if gone.subnet_of(one)), None)  # type: ignore[arg-type]
        if around is None:
            return None
        parts.remove(around)
        parts += around.address_exclude(gone)  # type: ignore[arg-type]
    return sorted(parts)


def _groups(found: Table) -> dict[tuple[Network, ...], str]:
    """A name for all sources of a line that may reach anything, in the order of the lines."""
    groups: dict[tuple[Network, ...], str] = {}
    for chain in found.chains:
        for line in chain.lines if chain.name != MEMBERS else ():
            if line.source:
                groups.setdefault(line.source, f"group{len(groups) + 1}")
    return groups


def _set_lines(name: str, sources: tuple[Network, ...]) -> Iterator[str]:
    yield f"\tset {name} {{"
    yield f"\t\ttype ipv{sources[0].version}_addr"
    # Also for single addresses: with a subnet of a member the set stays of the same kind.
    yield "\t\tflags interval"
    yield f"{_ELEMENTS}{', '.join(map(render.written, sources))} }}"
    yield "\t}"


def _without_sets(listing: Any) -> tuple[dict[str, tuple[Network, ...]], dict[str, Any]]:
    """The sets of a listing by name, and the same with their elements in the rules."""
    items: dict[str, list[Any]] = {}
    sets: dict[str, tuple[Network, ...]] = {}
    rest = []
    for entry in listing["nftables"]:
        if "set" not in entry:
            rest.append(entry)
            continue
        found = entry["set"]
        if not _SET.issuperset(found) or parse.flags(found) != ["interval"]:
            raise parse.Foreign("a set")
        items[found["name"]] = found.get("elem", [])
        networks = tables.networks(network for item in items[found["name"]] for network in parse.element(item))
        sets[found["name"]] = networks.get(_FAMILIES[found["type"]], ())
    return sets, {"nftables": [_with_elements(entry, items) for entry in rest]}


def _with_elements(entry: dict[str, Any], items: Mapping[str, list[Any]]) -> dict[str, Any]:
    if "rule" not in entry:
        return entry
    return {"rule": {**entry["rule"], "expr": [_with_items(one, items) for one in entry["rule"]["expr"]]}}


def _with_items(statement: dict[str, Any], items: Mapping[str, list[Any]]) -> dict[str, Any]:
    match statement.get("match"):
        case {"left": {"payload": {"field": "saddr"}}, "right": str(right), **rest} if right[:1] == "@":
            return {"match": {**rest, "left": statement["match"]["left"], "right": {"set": items[right[1:]]}}}
    return statement


def _in_order(found: Table) -> Table:
    """With the lines about members in their order: those that were added are the last in the kernel's."""
    chains = (
        replace(chain, lines=tuple(sorted(chain.lines, key=_about))) if chain.name == MEMBERS else chain
        for chain in found.chains
    )
    return replace(found, chains=tuple(chains))


def _about(line: Line) -> tuple[Any, ...]:
    return (line.inbound, line.comment.partition(" ")[0], line.family, line.source)


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
    # By what is reached: one member more must not move the lines of others.
    for reaches, members in sorted(alike.items(), key=lambda one: [_order(each) for each in one[0]]):
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
    return tuple(sorted(set(reaches), key=_order))


def _order(one: Reach) -> tuple[Any, ...]:
    return (str(one.to), str(one.proto), one.ports)


def _single(address: Address) -> Network:
    return ipaddress.ip_network(address)
