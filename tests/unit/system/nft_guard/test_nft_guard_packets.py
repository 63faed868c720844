"""The packet model, where no packet of tests/net goes: what one line asks, and what limits and states change."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest

from latticed.system.nft_guard import compile as compiler
from latticed.system.nft_guard import decode, packets
from latticed.system.nft_guard.packets import Packet

RATED = {"proto": "tcp", "ports": [22], "rate": {"packets": 1}}
INTENT = decode.read(
    {"groups": [{"name": "a", "rules": [RATED, {**RATED, "ports": ["20-30"]}]}], "bindings": {"groups": ["a"]}}
)
FOUR = Packet(hook="input", source=ipaddress.ip_address("192.0.2.1"), destination=ipaddress.ip_address("192.0.2.2"))
SIX = Packet(hook="input", source=ipaddress.ip_address("2001:db8::1"), destination=ipaddress.ip_address("fe80::2"))


def decided(packet, **banned):
    return packets.decide(compiler.table(INTENT), packet, **banned)


@pytest.mark.parametrize(
    ("packet", "origin"),
    [
        (replace(FOUR, proto="udp", sport=67, dport=68), "DHCP replies"),
        (replace(FOUR, proto="udp", sport=66, dport=68), "default"),
        (replace(SIX, proto="udp", sport=67, dport=68), "default"),
        (replace(SIX, proto="udp", sport=1, dport=546), "DHCPv6 replies"),
        (replace(SIX, proto="icmpv6", icmp="nd-neighbor-solicit", hop_limit=255), "neighbour discovery"),
        (replace(SIX, proto="icmpv6", icmp="nd-neighbor-solicit", hop_limit=254), "default"),
        (replace(SIX, proto="icmpv6", icmp="packet-too-big", state="invalid"), "errors of IP"),
        (replace(FOUR, proto="icmp", icmp="destination-unreachable", state="invalid"), "errors of IP"),
        (replace(FOUR, proto="icmp", icmp="echo-request"), "default"),
        (replace(FOUR, dport=22, state="invalid"), "connection tracking"),
        (replace(FOUR, dport=9, state="established"), "connection tracking"),
        (replace(FOUR, dport=9, inbound="lo"), "loopback"),
        (replace(FOUR, dport=22), "groups[0].rules[0]"),
        (replace(FOUR, dport=23), "groups[0].rules[1]"),
    ],
)
def test_which_line_decides(packet, origin):
    assert decided(packet).line.origin == origin


def test_above_its_limits_a_packet_meets_the_lines_behind_all_of_them():
    decision = decided(replace(FOUR, dport=22))
    assert (decision.verdict, decision.above.verdict, decision.above.line.origin) == ("accept", "drop", "default")
    assert decision.above.above is None


def test_a_banned_source_is_dropped_but_not_what_ip_needs_of_it():
    banned = [ipaddress.ip_network("2001:db8::/64")]
    assert decided(replace(SIX, dport=22), banned=banned).line.origin == "bans"
    solicit = replace(SIX, proto="icmpv6", icmp="nd-neighbor-solicit", hop_limit=255)
    assert decided(solicit, banned=banned).accepted


def test_without_a_table_or_a_chain_all_is_accepted():
    assert packets.decide(None, FOUR).accepted
    assert decided(replace(FOUR, hook="forward")).accepted
    assert decided(replace(FOUR, hook="output")).line is None
