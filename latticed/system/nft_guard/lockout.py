"""Whether a table still lets operators in: a way to sshd from anywhere, and one from where each of them is now."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from latticed.system.findings import Finding
from latticed.system.nft_guard import packets
from latticed.system.nft_guard import table as tables
from latticed.system.nft_guard.facts import SSHD, bare
from latticed.system.nft_guard.table import Chain, Table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from latticed.model.addresses import Address, Network
    from latticed.system.nft_guard.facts import LiveFacts, SshSession
    from latticed.system.nft_guard.table import Line

_HINT: Final = "add a rule that accepts tcp to the port of sshd from there"
MAX_WORK: Final = 1_000_000
"""Comparisons of an address with a network, about a second: no intent may keep daemon or helper busy for long."""
_LEAST_TRIES: Final = 100
_ELSEWHERE: Final = "?"
"""An interface that no zone names; Linux has none of this name (`reading.INTERFACE`), so it fits no line by chance."""
_LOCAL: Final = {4: ipaddress.ip_address("192.0.2.1"), 6: ipaddress.ip_address("2001:db8::1")}
"""Stands for this host's address. No line of the input chain asks for it, but those of DHCPv6 and of no TCP."""


def find(table: Table, facts: LiveFacts, banned: Collection[Network]) -> Iterator[Finding]:
    """Findings `lockout` and `lockout_source`; none for a host without sshd: nothing there to be locked out of.

    A session is let in when a new connection from its peer to any port of sshd is accepted, whichever interface it
    comes by: the one that has its local address, or each that there is when none has. An open connection would go on,
    but a broken one could not come back.
    """
    ports = sshd_ports(facts)
    if not ports:
        return
    families = _families(facts, ports)
    by = _interfaces(facts)
    if not any(_way(table, port, family, by, banned) for family in families for port in ports):
        named = ", ".join(map(str, ports))
        yield Finding(
            code="lockout",
            path="bindings",
            expected=f"a rule or trusted zone that accepts tcp to a port of sshd ({named})",
            found="none, and all else is dropped",
            hint=_HINT,
            overridable=True,
        )
    sessions = {*([facts.approver] if facts.approver else []), *facts.sessions}
    shut_out = {bare(one.peer) for one in sessions if not _let_in(table, facts, one, bare(one.peer), banned)}
    for peer in sorted(shut_out, key=str):
        yield Finding(
            code="lockout_source",
            path="bindings",
            expected=f"a way to sshd from {peer}, where an operator is connected from",
            found="its new connections are dropped",
            hint=_HINT,
            overridable=True,
        )


def sshd_ports(facts: LiveFacts) -> tuple[int, ...]:
    """Every port of `sshd -T`, and those at which it listens off loopback."""
    listening = {one.port for one in facts.listeners if one.process == SSHD and not _loopback(one.address)}
    return tuple(sorted({*facts.sshd_ports, *listening}))


def _loopback(address: Address | None) -> bool:
    return address is not None and bare(address).is_loopback


def _families(facts: LiveFacts, ports: Collection[int]) -> set[int]:
    """The families by which sshd can be reached; both when nothing is known of its sockets."""
    addresses = [one.address for one in facts.listeners if one.port in ports and not _loopback(one.address)]
    if not addresses or None in addresses:
        return {4, 6}
    return {address.version for address in addresses if address is not None}


def _let_in(table: Table, facts: LiveFacts, session: SshSession, peer: Address, banned: Collection[Network]) -> bool:
    """Whether new connections of the session's peer are accepted at some port, on each interface they may come by."""
    if peer.is_loopback:
        return True
    inbound = {session.interface} if session.interface else set()
    if not inbound and session.local is not None:
        local = bare(session.local)
        if local == peer:
            return True  # from this host to itself, by the loopback interface
        inbound = {one.name for one in facts.interfaces if local in map(bare, one.addresses)}
    if not inbound:
        inbound = {*_interfaces(facts)}
    return all(any(_accepted(table, peer, name, port, banned) for port in sshd_ports(facts)) for name in inbound)


def _interfaces(facts: LiveFacts) -> tuple[str, ...]:
    """By which packets of others can come; one that no line names when nothing is known of them."""
    return tables.names(one.name for one in facts.interfaces if one.name != "lo") or (_ELSEWHERE,)


def _way(table: Table, port: int, family: int, interfaces: tuple[str, ...], banned: Collection[Network]) -> bool:
    """Whether any source at all is accepted at the port.

    The lines divide sources and interfaces into pieces, in each of which all packets have one fate; one packet of each
    piece within a line that accepts is tried. When that takes too long, none is found: the operator is asked.
    """
    lines = [line for line in table.chain(tables.INPUT).lines if line.verdict and _may_fit(line, port, family)]
    table = Table(chains=(Chain(name=tables.INPUT, policy="drop", lines=tuple(lines)),))
    tries = max(MAX_WORK // (len(banned) + sum(1 + len(line.source) for line in lines)), _LEAST_TRIES)
    for index, line in enumerate(lines):
        names = [name for name in interfaces if not line.inbound or name in line.inbound]
        if line.verdict != "accept" or not names:
            continue
        for source in _sources(line, lines[:index], family, banned):
            for name in names:
                tries -= 1
                if tries < 0:
                    return False
                if _accepted(table, source, name, port, banned):
                    return True
    return False


def _may_fit(line: Line, port: int, family: int) -> bool:
    return (
        line.family in {0, family}
        and line.proto in {"", "tcp"}
        and (not line.states or "new" in line.states)
        and (not line.dport or any(one.low <= port <= one.high for one in line.dport))
    )


def _sources(line: Line, earlier: list[Line], family: int, banned: Collection[Network]) -> Iterator[Address]:
    """An address of every piece of what `line` accepts, as earlier lines and bans divide it."""
    everything = ipaddress.ip_network("0.0.0.0/0" if family == 4 else "::/0")
    within = line.source or (everything,)
    for network in within:
        yield network.network_address
    for other in (*(network for one in earlier for network in one.source), *banned):
        if other.version != family:
            continue
        following = int(other.broadcast_address) + 1
        if following >= 1 << other.max_prefixlen:
            continue
        address = type(other.network_address)(following)
        if any(address in network for network in within):
            yield address


def _accepted(table: Table, source: Address, inbound: str, port: int, banned: Collection[Network]) -> bool:
    packet = packets.Packet(
        hook=tables.INPUT,
        source=source,
        destination=_LOCAL[source.version],
        inbound=inbound,
        proto="tcp",
        dport=port,
    )
    return packets.decide(table, packet, banned=banned).accepted
