"""What an intent means, and whether that can be meant: all findings at once, without and with facts of the host.

wg(8) takes almost anything: port 70000 becomes 4464, an address that two peers have is silently the last one's, a peer
with the interface's own key is silently left out (docs/internals/system-plugins.md). So each of these is refused here.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from latticed.system.findings import MAX_FINDINGS, Finding, twice
from latticed.system.nft_guard.intent import Proto
from latticed.system.wireguard import lockout, reach
from latticed.system.wireguard.intent import Place

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from latticed.model.addresses import Address, Network
    from latticed.system.wireguard.facts import Facts
    from latticed.system.wireguard.intent import Intent, Reach, WgMember, WgNetwork

WIDEST: Final = {4: 16, 6: 48}
"""Shortest prefixes of a network behind a member: a wider one would draw this host's own traffic into the tunnel."""
MAX_LINES: Final = 4_096
"""Lines of the table that enforces `may_reach`."""
_NO_POOL: Final = tuple(
    ipaddress.ip_network(one) for one in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/64", "fe80::/10", "ff00::/8")
)
"""This network, loopback, multicast and broadcast, link-local."""
_DNS_PORT: Final = 53


def check(intent: Intent, facts: Facts | None = None) -> tuple[Finding, ...]:
    """Every fault (at most 100) in the meaning of an intent that `decode.read` took; with facts, of the host too."""
    found = [*_names(intent), *_pools(intent)]
    for index, tunnel in enumerate(intent.networks):
        found += _members(tunnel, f"networks[{index}]")
        found += _dns(tunnel, f"networks[{index}]")
    found += _subnets(intent)
    if not found:
        found += _size(intent)
    if facts is not None:
        found += _host(intent, facts)
        found += lockout.find(intent, facts)
    return tuple(found[:MAX_FINDINGS])


def _names(intent: Intent) -> Iterator[Finding]:
    """Names, ports and keys that two networks have."""
    for name in ("name", "listen_port", "private_key"):
        values = [getattr(tunnel, name) for tunnel in intent.networks]
        code = "duplicate_key" if name == "private_key" else "duplicate"
        shown = [f"${{secret:{one}}}" for one in values] if name == "private_key" else values
        yield from twice(values, code, "networks", f".{name}", "one of its own", shown=shown)


def _pools(intent: Intent) -> Iterator[Finding]:
    """Networks that are no place for hosts, or overlap."""
    placed = [
        (f"networks[{index}].addresses[{place}]", one)
        for index, tunnel in enumerate(intent.networks)
        for place, one in enumerate(tunnel.addresses)
    ]
    for path, one in placed:
        if any(_overlap(one.network, other) for other in _NO_POOL):
            yield Finding(code="bad_network", path=path, expected="a network for hosts", found=str(one.network))
        elif not _is_host(one.ip, one.network):
            yield Finding(code="bad_network", path=path, expected="the address of a host in it", found=str(one))
    yield from _overlaps([(path, one.network) for path, one in placed], "overlapping_networks")


def _members(tunnel: WgNetwork, path: str) -> Iterator[Finding]:
    members = tunnel.members
    yield from twice([one.id for one in members], "duplicate", f"{path}.members", ".id", "each id once")
    keys = [one.public_key for one in members]
    yield from twice(keys, "duplicate_key", f"{path}.members", ".public_key", "a key of its own")
    own = {one.ip: f"this host ({tunnel.name})" for one in tunnel.addresses}
    taken: dict[Address, str] = dict(own)
    held = {address: one.id for one in tunnel.held for address in one.addresses}
    for index, member in enumerate(members):
        where = f"{path}.members[{index}]"
        if member.public_key == tunnel.public_key:
            expected = "the key of another host: wg leaves out a peer with the interface's own, silently"
            yield Finding(code="own_key", path=f"{where}.public_key", expected=expected, found=repr(member.public_key))
        if member.preshared_key and member.preshared_key == tunnel.private_key:
            expected = "another secret than the private key of the network"
            found = f"${{secret:{member.preshared_key}}}"
            yield Finding(code="duplicate_key", path=f"{where}.preshared_key", expected=expected, found=found)
        if member.endpoint is not None and not _is_literal(member.endpoint.host):
            expected = "an address: this host looks up no name for its peers"
            yield Finding(code="endpoint_name", path=f"{where}.endpoint", expected=expected, found=member.endpoint.host)
        for place, address in enumerate(member.addresses):
            spot = f"{where}.addresses[{place}]"
            yield from _address(tunnel, member, address, spot, taken.get(address, ""), held.get(address, ""))
            taken[address] = f"the member {member.id}"


def _address(
    tunnel: WgNetwork, member: WgMember, address: Address, path: str, taken: str, held: str
) -> Iterator[Finding]:
    pool = next((one for one in tunnel.pools() if address in one), None)
    if pool is None or not _is_host(address, pool):
        expected = f"the address of a host in {' or '.join(map(str, tunnel.pools()))}"
        yield Finding(code="outside_network", path=path, expected=expected, found=str(address))
    if taken:
        expected = f"an address of its own ({taken} has it): wg gives it to the last one, silently"
        yield Finding(code="duplicate_address", path=path, expected=expected, found=str(address))
    if held and held != member.id:
        hint = "take it out of the list held to release it"
        expected = f"an address that is free, not held for {held}"
        yield Finding(code="held_address", path=path, expected=expected, found=str(address), hint=hint)


def _subnets(intent: Intent) -> Iterator[Finding]:
    """Networks behind members: narrow, and apart from each other, from the tunnels and from members' addresses."""
    placed = [
        (f"networks[{index}].members[{place}].subnets[{spot}]", one)
        for index, tunnel in enumerate(intent.networks)
        for place, member in enumerate(tunnel.members)
        for spot, one in enumerate(member.subnets)
    ]
    for path, one in placed:
        if one.prefixlen < WIDEST[one.version]:
            expected = f"/{WIDEST[one.version]} at the widest: a member gets no route that others' traffic takes"
            yield Finding(code="wide_route", path=path, expected=expected, found=str(one))
        elif any(_overlap(one, other) for other in _NO_POOL):
            yield Finding(code="bad_network", path=path, expected="a network for hosts", found=str(one))
    pools = [(f"networks[{index}]", pool) for index, tunnel in enumerate(intent.networks) for pool in tunnel.pools()]
    yield from _overlaps([*pools, *placed], "overlapping_subnets", after=len(pools))


def _dns(tunnel: WgNetwork, path: str) -> Iterator[Finding]:
    """Resolvers that a device is told to use through the tunnel and may not reach: it would find no name at all."""
    for index, member in enumerate(tunnel.members):
        routes = reach.routes(tunnel, member)
        for address in reach.dns(tunnel, member):
            through = any(address in one for one in routes)
            if through and not any(_reaches(tunnel, one, address) for one in reach.of(tunnel, member)):
                where = f"{path}.members[{index}].may_reach"
                expected = f"a way to port 53 of its DNS server {address}"
                hint = 'as {"to": "' + str(address) + '", "proto": "udp", "ports": [53]}'
                yield Finding(code="dns_unreachable", path=where, expected=expected, found="none", hint=hint)
                break


def _reaches(tunnel: WgNetwork, one: Reach, address: Address) -> bool:
    if one.proto not in {Proto.ANY, Proto.UDP}:
        return False
    if one.ports and not any(ports.low <= _DNS_PORT <= ports.high for ports in one.ports):
        return False
    match one.to:
        case Place.SERVER:
            return any(address == own.ip for own in tunnel.addresses)
        case Place.MEMBERS:
            within = [*tunnel.pools(), *(subnet for member in tunnel.members for subnet in member.subnets)]
            return all(address != own.ip for own in tunnel.addresses) and any(address in each for each in within)
        case network:
            return address in network


def _size(intent: Intent) -> Iterator[Finding]:
    lines = sum(len(chain.lines) for chain in reach.table(intent).chains if chain.name != reach.MEMBERS)
    if lines > MAX_LINES:
        expected = f"rules of at most {MAX_LINES} lines in nft"
        hint = "give members the same may_reach, or that of the network"
        yield Finding(code="too_large", path="networks", expected=expected, found=f"{lines} lines", hint=hint)


def _host(intent: Intent, facts: Facts) -> Iterator[Finding]:
    """What does not fit this host."""
    foreign = [one for one in facts.interfaces if not one.ours]
    names = {one.name for one in foreign}
    networks = [(one.name, address.network) for one in foreign for address in one.addresses]
    for index, tunnel in enumerate(intent.networks):
        path = f"networks[{index}]"
        if tunnel.name in names:
            hint = f"wg-quick down {tunnel.name}, when it is to be taken over"
            expected = "a name that no interface of others has"
            yield Finding(code="interface_taken", path=f"{path}.name", expected=expected, found=tunnel.name, hint=hint)
        if tunnel.listen_port in facts.udp_ports:
            expected = "a UDP port that nothing else has bound"
            found = str(tunnel.listen_port)
            yield Finding(code="port_taken", path=f"{path}.listen_port", expected=expected, found=found)
        wanted: list[tuple[str, Network]] = [(f"{path}.addresses", pool) for pool in tunnel.pools()]
        for place, member in enumerate(tunnel.members):
            wanted += [(f"{path}.members[{place}].subnets", subnet) for subnet in member.subnets]
        for where, network in wanted:
            other = next((one for one in networks if one[0] != tunnel.name and _overlap(one[1], network)), None)
            if other is not None:
                expected = f"a network apart from {other[1]} of this host's {other[0]}"
                yield Finding(code="overlapping_host", path=where, expected=expected, found=str(network))


def _overlaps(placed: Iterable[tuple[str, Network]], code: str, *, after: int = 0) -> Iterator[Finding]:
    """A finding for each network that shares addresses with one before it; the first `after` are not compared."""
    ordered = sorted(
        enumerate(placed), key=lambda one: (one[1][1].version, one[1][1].network_address, one[1][1].prefixlen)
    )
    widest: tuple[int, str, Network] | None = None
    for index, (path, network) in ordered:
        # Sorted so, a network overlaps an earlier one only if it lies in the one that reaches furthest.
        if widest is not None and _overlap(widest[2], network):
            if max(index, widest[0]) >= after:
                where, other = (path, widest[2]) if index > widest[0] else (widest[1], network)
                inner = network if index > widest[0] else widest[2]
                yield Finding(code=code, path=where, expected=f"no part of {other}", found=str(inner))
        else:
            widest = (index, path, network)


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def _is_host(address: Address, network: Network) -> bool:
    """Whether a host can have it: not what names the network, nor broadcast (RFC 3021: a /31 has neither)."""
    if network.max_prefixlen - network.prefixlen < 2:
        return True
    return address != network.network_address and (network.version == 6 or address != network.broadcast_address)


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
