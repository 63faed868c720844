"""Which rule decides over a packet: the answers of the plugin's action `test`.

latticectl invoke latticed.nft-guard test '{"from": "203.0.113.7", "to": "192.0.2.1", "port": 22}'
"""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from latticed.system.findings import Finding, IntentRefused, shown
from latticed.system.nft_guard import compile as compiler
from latticed.system.nft_guard import packets
from latticed.system.nft_guard import table as tables
from latticed.system.nft_guard.packets import Packet
from latticed.system.reading import INTERFACE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latticed.model.addresses import Address
    from latticed.system.nft_guard.facts import LiveFacts
    from latticed.system.nft_guard.intent import Intent
    from latticed.system.nft_guard.packets import Decision

KEYS: Final = ("from", "to", "port", "proto", "iface", "state")
MAX_PORT: Final = 65_535
_PORTED: Final = ("tcp", "udp")
_PROTOS: Final = (*_PORTED, "icmp", "icmpv6")
_ECHO: Final = "echo-request"
"""The message of ICMP that a question is about: the others are answered by lines of nft guard's own."""


def answer(intent: Intent, facts: LiveFacts, plain: Any) -> dict[str, Any]:
    """What becomes of a packet: `{"answers": [{"iface", "hook", "verdict", "rule", "comment", "above"}]}`.

    `plain` is `{from, to, port, proto?, iface?, state?}`: two addresses, a port for tcp and udp. proto is tcp and state
    new unless said; without `iface` there is an answer for each interface but lo. Where `to` is no address of this
    host, the packet is one that is forwarded; where `from` is one, one that this host sends. `rule` is a place in the
    intent, or what nft guard brings itself, as `default`. `above` is the answer while a rate is exceeded, else null.
    IntentRefused for another question, with every fault.
    """
    packet = _read(plain, facts)
    given = packet.outbound if packet.hook == tables.OUTPUT else packet.inbound
    names = [given] if given else sorted(one.name for one in facts.interfaces if one.name != "lo")
    table = compiler.table(intent)
    banned = [ban.network for ban in intent.bans]
    return {
        "answers": [
            {"iface": name, "hook": packet.hook, **_told(packets.decide(table, _by(packet, name), banned=banned))}
            for name in names
        ]
    }


def _told(decision: Decision) -> dict[str, Any]:
    return {
        "verdict": decision.verdict,
        "rule": decision.line.origin if decision.line else "policy",
        "comment": decision.line.comment if decision.line else "",
        "above": _told(decision.above) if decision.above else None,
    }


def _by(packet: Packet, name: str) -> Packet:
    """The packet, by this interface."""
    return replace(packet, outbound=name) if packet.hook == tables.OUTPUT else replace(packet, inbound=name)


def _read(plain: Any, facts: LiveFacts) -> Packet:
    if not isinstance(plain, dict):
        raise IntentRefused([_finding("payload", "an object", plain)])
    findings = list(_faults(plain))
    source, destination = _address(plain.get("from")), _address(plain.get("to"))
    if findings or source is None or destination is None:
        raise IntentRefused(findings)
    own = {address for one in facts.interfaces for address in one.addresses}
    hook = tables.OUTPUT if source in own else tables.INPUT if destination in own else tables.FORWARD
    proto = plain.get("proto", "tcp")
    packet = Packet(
        hook=hook,
        source=source,
        destination=destination,
        proto=proto,
        dport=plain.get("port", 0),
        icmp="" if proto in _PORTED else _ECHO,
        state=plain.get("state", "new"),
    )
    return _by(packet, plain.get("iface", ""))


def _faults(plain: dict[Any, Any]) -> Iterator[Finding]:
    """What is wrong with a question."""
    for name in plain:
        if name not in KEYS:
            yield _finding("payload", f"one of {', '.join(KEYS)}", name)
    source, destination = _address(plain.get("from")), _address(plain.get("to"))
    if source is None:
        yield _finding("from", "an address", plain.get("from"))
    if destination is None or (source is not None and source.version != destination.version):
        yield _finding("to", f"an address of IPv{source.version}" if source else "an address", plain.get("to"))
    proto, port, state = plain.get("proto", "tcp"), plain.get("port", 0), plain.get("state", "new")
    # Lists and objects cannot be looked up in a set; in a tuple they are compared.
    if proto not in _PROTOS:
        yield _finding("proto", f"one of {', '.join(_PROTOS)}", proto)
    elif type(port) is not int or not (1 <= port <= MAX_PORT if proto in _PORTED else port == 0):
        yield _finding("port", f"1 to {MAX_PORT} for tcp and udp, none for others", port)
    if state not in packets.STATES:
        yield _finding("state", f"one of {', '.join(packets.STATES)}", state)
    iface = plain.get("iface", "")
    if not isinstance(iface, str) or (iface and not INTERFACE.fullmatch(iface)):
        yield _finding("iface", "the name of an interface", iface)


def _finding(path: str, expected: str, value: Any) -> Finding:
    return Finding(code="bad_question", path=path, expected=expected, found=shown(value))


def _address(value: Any) -> Address | None:
    # An integer would be an address to ip_address(), and a scope no part of what lines ask.
    if not isinstance(value, str) or "%" in value:
        return None
    try:
        return ipaddress.ip_address(value)
    except ValueError:
        return None
