"""What an intent means, and whether that can be meant: all findings at once, without and with facts of the host.

No check of nft's own is enough: `nft -c` takes port 0, host names and duplicates (docs/internals/system-plugins.md).
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from latticed.system.findings import MAX_FINDINGS, Finding
from latticed.system.nft_guard import compile as compiler
from latticed.system.nft_guard import lockout
from latticed.system.nft_guard import table as tables
from latticed.system.nft_guard.bans import Covered
from latticed.system.nft_guard.facts import bare
from latticed.system.nft_guard.intent import Action, Direction, Forward, Proto

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.model.addresses import Network
    from latticed.system.nft_guard.facts import LiveFacts, SshSession
    from latticed.system.nft_guard.intent import Ban, Intent, Rule, Zone

MAX_LINES: Final = 4_096
"""Lines of the whole table, of which a rule can make many: one for each zone and family of its remotes."""
MAX_NETWORKS: Final = 8_192
"""Networks in all lines together."""
PUBLIC_NAMES: Final = frozenset({"public", "external", "internet", "wan", "world"})
"""Names of zones that nobody gives to a network that is to be trusted."""
_WIDEST: Final = {4: 8, 6: 7}
"""Shortest prefixes that a trusted zone may have: 10.0.0.0/8 and fc00::/7 are the widest private networks."""
_NO_BAN: Final = Covered(
    ipaddress.ip_network(one) for one in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/64", "fe80::/10", "ff00::/8")
)
"""This network, loopback, multicast and broadcast, link-local: bans of them hit everyone or this host itself."""


def check(intent: Intent, facts: LiveFacts | None = None) -> tuple[Finding, ...]:
    """Every fault (at most 100) in the meaning of an intent that `decode.read` took; those against the host with facts.

    An intent with findings may be rendered only if all of them are `overridable` and an operator overrode them.
    """
    found = [*_names(intent), *_zones(intent), *_rules(intent), *_bans(intent)]
    # With names that nothing has, or ports of no protocol, there is no table to judge.
    if not found:
        found += _size(intent)
    sound = not found
    found += _trust(intent, facts)
    if facts is not None:
        found += _host(intent, facts)
        table = compiler.table(intent) if sound else None
        if table is not None:
            found += lockout.find(table, facts, [ban.network for ban in intent.bans])
    return tuple(found[:MAX_FINDINGS])


def _names(intent: Intent) -> Iterator[Finding]:
    """Names in bindings and rules that nothing has."""
    zones = {zone.name for zone in intent.zones}
    groups = {group.name for group in intent.groups}
    for index, name in enumerate(intent.bindings.groups):
        if name not in groups:
            path = f"bindings.groups[{index}]"
            yield Finding(code="unknown_group", path=path, expected="the name of a group", found=repr(name))
    named = [(f"bindings.trusted_zones[{index}]", name) for index, name in enumerate(intent.bindings.trusted_zones)]
    named += [(f"{path}.remote", name) for path, rule in _every(intent) for name in rule.remote_zones]
    for path, name in named:
        if name not in zones:
            yield Finding(code="unknown_zone", path=path, expected="the name of a zone", found=repr(name))


def _zones(intent: Intent) -> Iterator[Finding]:
    """Zones that match nothing or everything, and interfaces that are in two."""
    first: dict[str, Zone] = {}
    for index, zone in enumerate(intent.zones):
        path = f"zones[{index}]"
        if not zone.interfaces and not zone.cidrs:
            yield Finding(code="empty_zone", path=path, expected="interfaces or cidrs", found="neither")
        for place, name in enumerate(zone.interfaces):
            where = f"{path}.interfaces[{place}]"
            if name == "lo":
                expected = "no loopback: what uses it is always accepted"
                yield Finding(code="loopback_zone", path=where, expected=expected, found="'lo'")
            other = first.setdefault(name, zone)
            if other is not zone and not (other.cidrs and zone.cidrs):
                expected = f"an interface of one zone, or cidrs in both (it is in zone {other.name} too)"
                yield Finding(code="shared_interface", path=where, expected=expected, found=repr(name))


def _rules(intent: Intent) -> Iterator[Finding]:
    """Rules that cannot do what they say."""
    zones = {zone.name: zone for zone in intent.zones}
    guarded = any(zone.forward is Forward.GUARD for zone in intent.zones)
    bound = _bound(intent)
    for path, rule in _every(intent):
        if rule.ports and rule.proto not in {Proto.TCP, Proto.UDP}:
            found = f"ports with {rule.proto}"
            yield Finding(code="ports_without_protocol", path=f"{path}.ports", expected="proto tcp or udp", found=found)
        if rule.rate is not None and rule.action is not Action.ACCEPT:
            expected = "a rate with action accept: what is above the rate goes on to later rules"
            yield Finding(code="rate_of_denial", path=f"{path}.rate", expected=expected, found=str(rule.action))
        if all(name in zones for name in rule.remote_zones) and not _matches_something(rule, zones):
            found = f"{rule.proto}, and remotes of the other family alone"
            expected = "a protocol of a family that the remotes have"
            yield Finding(code="matches_nothing", path=path, expected=expected, found=found)
        if path.startswith(bound) and rule.direction is Direction.FORWARD and not guarded:
            expected = 'a zone with "forward": "guard"'
            hint = "without one, nft guard leaves forwarded traffic alone"
            yield Finding(code="unguarded_forward", path=f"{path}.dir", expected=expected, found="none", hint=hint)


def _matches_something(rule: Rule, zones: dict[str, Zone]) -> bool:
    """Whether its remotes have the family of its protocol, where that has one."""
    family = compiler.FAMILIES.get(rule.proto)
    if family is None or not (rule.remotes or rule.remote_zones):
        return True
    of_zones = [_families(zones[name].cidrs) or {family} for name in rule.remote_zones]
    return family in _families(rule.remotes).union(*of_zones)


def _bans(intent: Intent) -> Iterator[Finding]:
    """Bans that hit `never`, or addresses that no ban makes sense for."""
    never = Covered(intent.never)
    for index, ban in enumerate(intent.bans):
        path = f"bans[{index}].address"
        if _NO_BAN.hit_by(ban.network):
            expected = "an address of another host"
            yield Finding(code="bad_ban", path=path, expected=expected, found=str(ban.network))
        if never.hit_by(ban.network):
            expected = "an address outside the list never"
            yield Finding(code="ban_hits_never", path=path, expected=expected, found=str(ban.network))


def _size(intent: Intent) -> Iterator[Finding]:
    """Whether the table stays within bounds, counted without making it: a rule with zones can be very many lines."""
    zones = {zone.name: zone for zone in intent.zones}
    bound = _bound(intent)
    lines = networks = 0
    for path, rule in _every(intent):
        if not path.startswith(bound):
            continue
        each = [_families(rule.remotes)] if rule.remotes or not rule.remote_zones else []
        each += [_families(zones[name].cidrs) for name in rule.remote_zones]
        lines += sum(max(1, len(found)) for found in each) * (2 if rule.log else 1)
        networks += len(rule.remotes) + sum(len(zones[name].cidrs) for name in rule.remote_zones)
    hint = "use fewer zones and networks as remotes"
    for found, most, what in ((lines, MAX_LINES, "lines"), (networks, MAX_NETWORKS, "networks")):
        if found > most:
            expected = f"rules of at most {most} {what} in nft"
            yield Finding(code="too_large", path="bindings", expected=expected, found=f"{found} {what}", hint=hint)


def _families(networks: tuple[Network, ...]) -> set[int]:
    return {network.version for network in networks}


def _trust(intent: Intent, facts: LiveFacts | None) -> Iterator[Finding]:
    """Trusted zones that everybody is in."""
    zones = {zone.name: zone for zone in intent.zones}
    routes = {one.name for one in facts.interfaces if one.default_route} if facts else set[str]()
    for index, name in enumerate(intent.bindings.trusted_zones):
        zone = zones.get(name)
        found = "" if zone is None else _public(zone, routes)
        if found:
            path = f"bindings.trusted_zones[{index}]"
            hint = "trust a zone of your own networks, and accept what is public by rules"
            yield Finding(code="public_trusted", path=path, expected="no public zone", found=found, hint=hint)


def _public(zone: Zone, routes: set[str]) -> str:
    """Why the zone is public, or nothing."""
    if zone.name in PUBLIC_NAMES:
        return repr(zone.name)
    if wide := [one for one in tables.joined(zone.cidrs) if one.prefixlen < _WIDEST[one.version]]:
        return f"{zone.name!r} with {wide[0]}"
    if not zone.cidrs and (shared := sorted(routes.intersection(zone.interfaces))):
        return f"{zone.name!r} with {shared[0]}, which has the default route"
    return ""


def _host(intent: Intent, facts: LiveFacts) -> Iterator[Finding]:
    """What does not fit this host."""
    known = {one.name for one in facts.interfaces}
    for index, zone in enumerate(intent.zones):
        for place, name in enumerate(zone.interfaces):
            if name not in known:
                path = f"zones[{index}].interfaces[{place}]"
                expected = f"an interface of this host ({', '.join(sorted(known))[:200]})"
                yield Finding(code="unknown_interface", path=path, expected=expected, found=repr(name))
    # Two firewalls that each drop by default, and rewrite their rules when they are reloaded, cannot both be right.
    active = {*facts.active_firewalls, *(["firewalld"] if "inet firewalld" in facts.foreign_tables else [])}
    for name in sorted(active) if intent.bindings.managed else ():
        expected = "no other firewall that is active"
        hint = f"systemctl disable --now {name}" if name != "ufw" else "ufw disable"
        yield Finding(code="other_firewall", path="bindings.managed", expected=expected, found=name, hint=hint)
    yield from _bans_of_ours(intent, facts)


def _bans_of_ours(intent: Intent, facts: LiveFacts) -> Iterator[Finding]:
    """Bans that hit an operator or this host itself. They are no matter of overriding: `never` and a rule are."""
    own = [address for one in facts.interfaces for address in one.addresses if address.version == 4]
    for index, ban in enumerate(intent.bans):
        path = f"bans[{index}].address"
        if facts.approver is not None and _is_banned(facts.approver, ban):
            expected = "not the address that the approval comes from"
            yield Finding(code="ban_hits_approver", path=path, expected=expected, found=str(ban.network))
        elif any(_is_banned(session, ban) for session in facts.sessions):
            expected = "no address from which somebody is logged in by ssh"
            yield Finding(code="ban_hits_session", path=path, expected=expected, found=str(ban.network))
        if any(address in ban.network for address in own):
            expected = "no address of this host"
            yield Finding(code="ban_hits_host", path=path, expected=expected, found=str(ban.network))


def _is_banned(session: SshSession, ban: Ban) -> bool:
    peer = bare(session.peer)
    return peer.version == ban.network.version and peer in ban.network


def _bound(intent: Intent) -> tuple[str, ...]:
    """How the places of rules begin that hold on this host."""
    bound = set(intent.bindings.groups)
    return ("bindings.", *(f"groups[{index}]." for index, one in enumerate(intent.groups) if one.name in bound))


def _every(intent: Intent) -> Iterator[tuple[str, Rule]]:
    """Each rule with its place in the document, those of groups that are not bound too."""
    for index, rule in enumerate(intent.bindings.overrides):
        yield f"bindings.overrides[{index}]", rule
    for place, group in enumerate(intent.groups):
        for index, rule in enumerate(group.rules):
            yield f"groups[{place}].rules[{index}]", rule
