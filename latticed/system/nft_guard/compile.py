"""An intent as a table: connection tracking, loopback, what IP itself needs, bans, zones, overrides, groups, drop.

Example: the rule `{"proto": "tcp", "ports": [22], "remote": ["lan"]}`, where zone `lan` is interface eth1 and network
10.0.0.0/24, is one line `iifname "eth1" ip saddr 10.0.0.0/24 tcp dport 22 accept`. The intent must have passed `check`.
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from latticed.system.nft_guard import table as tables
from latticed.system.nft_guard.intent import Direction, Forward, Ports, Proto
from latticed.system.nft_guard.table import Chain, Line, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.model.addresses import Network
    from latticed.system.nft_guard.intent import Intent, Rate, Rule, Zone

FAMILIES: Final = {Proto.ICMP: 4, Proto.ICMPV6: 6}
"""Protocols that have but one family."""
_LINK_LOCAL: Final = (ipaddress.ip_network("fe80::/10"),)
_ERRORS4: Final = tables.names(["destination-unreachable", "parameter-problem", "time-exceeded"])
_ERRORS6: Final = tables.names([*_ERRORS4, "packet-too-big"])
_DISCOVERY: Final = tables.names(["nd-neighbor-advert", "nd-neighbor-solicit", "nd-router-advert", "nd-router-solicit"])
_MULTICAST: Final = tables.names(
    ["mld-listener-done", "mld-listener-query", "mld-listener-report", "mld2-listener-report"]
)

TRACKED: Final = Line(verdict="accept", states=("established", "related"), origin="connection tracking")
INVALID: Final = Line(verdict="drop", states=("invalid",), counter=True, origin="connection tracking")
LAST: Final = Line(verdict="drop", counter=True, origin="default")

# RFC 4890, 4.3.1 and 4.4.1: errors that must not be dropped; path MTU discovery fails without packet-too-big, of
# IPv4 destination-unreachable (fragmentation needed). Ahead of INVALID: an error whose connection conntrack has already
# forgotten is invalid to it.
ERRORS: Final = (
    Line(verdict="accept", family=6, proto="icmpv6", icmp=_ERRORS6, origin="errors of IP"),
    Line(verdict="accept", family=4, proto="icmp", icmp=_ERRORS4, origin="errors of IP"),
)
# RFC 4861: hop limit 255 proves that the sender is on the link. Switches that snoop need the multicast listener
# messages, or drop neighbour solicitations (RFC 4541, 3).
LINK: Final = (
    Line(verdict="accept", family=6, hop_limit=255, proto="icmpv6", icmp=_DISCOVERY, origin="neighbour discovery"),
    Line(
        verdict="accept",
        family=6,
        source=_LINK_LOCAL,
        proto="icmpv6",
        icmp=_MULTICAST,
        origin="multicast listener discovery",
    ),
)
# Answers to a broadcast or multicast come from an address that was not asked: they are new to conntrack. RFC 8415
# fixes the client's port alone.
DHCP: Final = (
    Line(
        verdict="accept",
        family=4,
        proto="udp",
        sport=(Ports(67, 67),),
        dport=(Ports(68, 68),),
        origin="DHCP replies",
    ),
    Line(
        verdict="accept",
        family=6,
        destination=_LINK_LOCAL,
        proto="udp",
        dport=(Ports(546, 546),),
        origin="DHCPv6 replies",
    ),
)
# What this host itself has to send for the above, ahead of `out` rules that drop.
_SENT: Final = (
    Line(verdict="accept", family=6, proto="icmpv6", icmp=tables.names([*_DISCOVERY, *_MULTICAST]), origin="IPv6"),
    Line(verdict="accept", family=4, proto="udp", sport=(Ports(68, 68),), dport=(Ports(67, 67),), origin="DHCP"),
    Line(verdict="accept", family=6, proto="udp", sport=(Ports(546, 546),), dport=(Ports(547, 547),), origin="DHCPv6"),
)
BANNED: Final = tuple(
    Line(verdict="drop", family=family, banned=True, counter=True, origin="bans") for family in sorted(tables.BANS)
)


def table(intent: Intent) -> Table | None:
    """The table that an intent asks for; None when the host is not managed."""
    if not intent.bindings.managed:
        return None
    return _Compiler(intent).table()


def zone_lines(zone: Zone, *, outbound: bool = False) -> tuple[Line, ...]:
    """Lines without a verdict that together match all traffic from the zone (`outbound`: to it)."""
    names = tables.names(zone.interfaces)
    line = Line(outbound=names) if outbound else Line(inbound=names)
    return tuple(_within(line, zone.cidrs, outbound=outbound))


class _Compiler:
    def __init__(self, intent: Intent) -> None:
        self._intent = intent
        self._zones = {
            (zone.name, outbound): zone_lines(zone, outbound=outbound)
            for zone in intent.zones
            for outbound in (False, True)
        }
        self._limits: dict[str, Rate] = {}
        places = {group.name: index for index, group in enumerate(intent.groups)}
        self._rules: list[tuple[str, Rule]] = [
            (f"bindings.overrides[{index}]", rule) for index, rule in enumerate(intent.bindings.overrides)
        ]
        for name in intent.bindings.groups:
            place = places[name]
            for index, rule in enumerate(intent.groups[place].rules):
                self._rules.append((f"groups[{place}].rules[{index}]", rule))

    def table(self) -> Table:
        chains = [self._input(), *self._forward(), *self._output()]
        return Table(chains=tuple(chains), limits=tuple(sorted(self._limits.items())))

    def _input(self) -> Chain:
        loopback = Line(verdict="accept", inbound=("lo",), origin="loopback")
        # Bans come behind what IP needs: a banned neighbour of the same /64 must not end neighbour discovery.
        head = (TRACKED, loopback, *LINK, *ERRORS, *DHCP, INVALID, *BANNED)
        lines = (*head, *self._trusted(), *self._ruled(Direction.IN), LAST)
        return Chain(name=tables.INPUT, policy="drop", lines=lines)

    def _forward(self) -> Iterator[Chain]:
        guarded = [zone for zone in self._intent.zones if zone.forward is Forward.GUARD]
        if not guarded:
            return
        jumps = [
            replace(line, verdict=tables.GUARDED, origin=f"zone {zone.name}")
            for zone in sorted(guarded, key=lambda zone: zone.name)
            for line in self._zones[zone.name, False]
        ]
        # A chain that is jumped to has to be declared first.
        lines = (INVALID, *BANNED, *self._trusted(), *self._ruled(Direction.FORWARD), LAST)
        yield Chain(name=tables.GUARDED, lines=lines)
        yield Chain(name=tables.FORWARD, policy="accept", lines=(TRACKED, *ERRORS, *jumps))

    def _output(self) -> Iterator[Chain]:
        ruled = tuple(self._ruled(Direction.OUT))
        if ruled:
            loopback = Line(verdict="accept", outbound=("lo",), origin="loopback")
            lines = (TRACKED, loopback, *_SENT, *ERRORS, *ruled)
            yield Chain(name=tables.OUTPUT, policy="accept", lines=lines)

    def _trusted(self) -> Iterator[Line]:
        for name in sorted(set(self._intent.bindings.trusted_zones)):
            for line in self._zones[name, False]:
                yield replace(line, verdict="accept", origin=f"trusted zone {name}")

    def _ruled(self, direction: Direction) -> Iterator[Line]:
        for origin, rule in self._rules:
            if rule.direction is direction:
                yield from self._rule(rule, origin)

    def _rule(self, rule: Rule, origin: str) -> Iterator[Line]:
        limit = ""
        matches = self._matches(rule)
        if rule.rate is not None and matches:
            limit = f"rate_{len(self._limits)}"
            self._limits[limit] = rule.rate
        for match in matches:
            line = replace(match, comment=rule.comment, origin=origin)
            if rule.log:
                yield replace(line, log=f"latticed-guard {rule.action}: ")
            yield replace(line, verdict=str(rule.action), limit=limit)

    def _matches(self, rule: Rule) -> tuple[Line, ...]:
        """What a rule matches, as lines without verdict: one for each zone and family of its remotes."""
        outbound = rule.direction is Direction.OUT
        lines = list(_within(Line(), rule.remotes, outbound=outbound)) if rule.remotes or not rule.remote_zones else []
        for name in tables.names(rule.remote_zones):
            lines += self._zones[name, outbound]
        proto = "" if rule.proto is Proto.ANY else str(rule.proto)
        family = FAMILIES.get(rule.proto, 0)
        dport = tables.ports(rule.ports)
        return tuple(
            replace(line, proto=proto, dport=dport, family=family or line.family)
            for line in lines
            if not family or line.family in {0, family}
        )


def _within(line: Line, cidrs: tuple[Network, ...], *, outbound: bool) -> Iterator[Line]:
    """`line` narrowed to these networks, a line for each family; itself when there are none."""
    if not cidrs:
        yield line
    for family, merged in tables.networks(cidrs).items():
        if outbound:
            yield replace(line, family=family, destination=merged)
        else:
            yield replace(line, family=family, source=merged)
