"""The nft file of an intent, line by line, and what is carried over and read back."""

from __future__ import annotations

import ipaddress
import json
import random

import pytest

from latticed.system.findings import IntentRefused
from latticed.system.nft_guard import compile as compiler
from latticed.system.nft_guard import decode, parse, question
from latticed.system.nft_guard.bans import LiveBan, carried
from latticed.system.nft_guard.facts import Interface, LiveFacts
from latticed.system.nft_guard.render import render
from tests.house import intents

DOCUMENT = {
    "zones": [
        {"name": "wan", "interfaces": ["eth0"], "forward": "guard"},
        {"name": "lan", "interfaces": ["eth2", "eth1"], "cidrs": ["10.0.1.0/24", "10.0.0.0/24", "fd00::/8"]},
    ],
    "groups": [
        {"name": "web", "rules": [{"proto": "tcp", "ports": [443, "80-81", 82], "comment": "site"}]},
        {
            "name": "ssh",
            "rules": [
                {
                    "proto": "tcp",
                    "ports": [22],
                    "remote": ["lan", "203.0.113.7"],
                    "rate": {"packets": 10, "per": "minute", "burst": 3},
                }
            ],
        },
        {"name": "published", "rules": [{"dir": "forward", "proto": "tcp", "ports": [80]}]},
        {"name": "unbound", "rules": [{"proto": "udp"}]},
    ],
    "bindings": {
        "groups": ["ssh", "web", "published"],
        "overrides": [{"action": "drop", "remote": ["198.51.100.0/24"], "log": True}],
        "trusted_zones": ["lan"],
    },
    "bans": [{"address": "2001:db8::1", "expires_at": 0}, {"address": "192.0.2.9", "expires_at": 1_900_000_000}],
}
EXPECTED = """\
table inet latticed_guard
delete table inet latticed_guard
# ban 192.0.2.9 until 2030-03-17T17:46:40Z
# ban 2001:db8::/64 until 1970-01-01T00:00:00Z
table inet latticed_guard {
	limit rate_0 {
		rate 10/minute burst 3 packets
	}
	set bans4 {
		type ipv4_addr
		flags timeout
		elements = { 192.0.2.9 timeout 60s }
	}
	set bans6 {
		type ipv6_addr
		flags timeout
		elements = { 2001:db8:: timeout 5s }
	}
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iifname "lo" accept
		ip6 hoplimit 255 icmpv6 type { nd-neighbor-advert, nd-neighbor-solicit, nd-router-advert, nd-router-solicit } accept
		ip6 saddr fe80::/10 icmpv6 type { mld-listener-done, mld-listener-query, mld-listener-report, mld2-listener-report } accept
		icmpv6 type { destination-unreachable, packet-too-big, parameter-problem, time-exceeded } accept
		icmp type { destination-unreachable, parameter-problem, time-exceeded } accept
		meta nfproto ipv4 udp sport 67 udp dport 68 accept
		ip6 daddr fe80::/10 udp dport 546 accept
		ct state invalid counter drop
		ip saddr @bans4 counter drop
		ip6 saddr & ffff:ffff:ffff:ffff:: @bans6 counter drop
		iifname { "eth1", "eth2" } ip saddr 10.0.0.0/23 accept
		iifname { "eth1", "eth2" } ip6 saddr fd00::/8 accept
		ip saddr 198.51.100.0/24 limit rate 5/second burst 10 packets log prefix "latticed-guard drop: "
		ip saddr 198.51.100.0/24 drop
		ip saddr 203.0.113.7 tcp dport 22 limit name "rate_0" accept
		iifname { "eth1", "eth2" } ip saddr 10.0.0.0/23 tcp dport 22 limit name "rate_0" accept
		iifname { "eth1", "eth2" } ip6 saddr fd00::/8 tcp dport 22 limit name "rate_0" accept
		tcp dport { 80-82, 443 } accept comment "site"
		counter drop
	}
	chain forward_guarded {
		ct state invalid counter drop
		ip saddr @bans4 counter drop
		ip6 saddr & ffff:ffff:ffff:ffff:: @bans6 counter drop
		iifname { "eth1", "eth2" } ip saddr 10.0.0.0/23 accept
		iifname { "eth1", "eth2" } ip6 saddr fd00::/8 accept
		tcp dport 80 accept
		counter drop
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related accept
		icmpv6 type { destination-unreachable, packet-too-big, parameter-problem, time-exceeded } accept
		icmp type { destination-unreachable, parameter-problem, time-exceeded } accept
		iifname "eth0" jump forward_guarded
	}
}
"""  # noqa: E501 - as nft is given it
FACTS = LiveFacts(
    interfaces=(
        Interface(name="lo"),
        Interface(name="eth0", addresses=(ipaddress.ip_address("203.0.113.1"),)),
        Interface(name="eth1"),
    )
)
LISTING = b"""\
table inet latticed_guard {
	set bans4 {
		type ipv4_addr
		flags timeout
%s	}

	chain input {
		type filter hook input priority filter; policy drop;
		tcp dport 22 accept comment "elements = { }"
	}
}
"""


def live(**remaining):
    return [LiveBan(ipaddress.ip_network(network.replace("_", ".")), left) for network, left in remaining.items()]


def networks(*pairs):
    return [LiveBan(ipaddress.ip_network(network), left) for network, left in pairs]


def test_the_whole_file():
    elements = networks(("2001:db8::/64", 5), ("192.0.2.9/32", 60))
    assert render(decode.read(DOCUMENT), bans=elements).decode() == EXPECTED


def test_what_an_operator_reviews_has_no_times_that_pass():
    reviewed = render(decode.read(DOCUMENT)).decode()
    assert "elements" not in reviewed
    assert "# ban 192.0.2.9 until 2030-03-17T17:46:40Z" in reviewed


def test_an_unmanaged_host_is_rid_of_the_table():
    document = {**DOCUMENT, "bindings": {"managed": False}}
    assert render(decode.read(document)) == b"table inet latticed_guard\ndelete table inet latticed_guard\n"


@pytest.mark.parametrize("seed", range(100))
def test_the_order_of_keys_changes_no_byte(seed):
    rng = random.Random(seed)
    document = intents.sound(rng)
    text = json.dumps(document)
    again = intents.shuffled(rng, json.loads(text))
    assert render(decode.read(document)) == render(decode.read(again)) == render(decode.read(json.loads(text)))


@pytest.mark.parametrize("seed", range(50))
def test_every_closing_brace_has_a_line_or_is_of_a_set_on_one(seed):
    """nft 1.0.6 refuses one behind a statement: it expects a newline or a semicolon."""
    for line in render(intents.intent(random.Random(seed))).decode().splitlines():
        assert line.count("{") == line.count("}") or line.strip() == "}" or line.endswith("{")


def test_bans_are_carried_over_with_what_the_kernel_says_remains():
    first = {"address": "192.0.2.1", "expires_at": 2_000}
    approved = decode.read({"bans": [first, {"address": "192.0.2.2", "expires_at": 2_000}]})
    new = decode.read(
        {
            "bans": [
                first,
                {"address": "192.0.2.3", "expires_at": 1_300},
                {"address": "192.0.2.4", "expires_at": 1_000},
            ],
            "never": ["192.0.2.6"],
        }
    )
    found = networks(("192.0.2.1", 17), ("192.0.2.2", 900), ("192.0.2.5", 44), ("192.0.2.6", 44))
    assert carried(new, approved=approved, live=found, now_s=1_000) == tuple(
        networks(
            ("192.0.2.1", 17),  # not 1,000: the clock may have been set back
            ("192.0.2.3", 300),  # new
            ("192.0.2.5", 44),  # put in by hand
            # 192.0.2.2 was taken out, 192.0.2.4 is over, 192.0.2.6 is in `never`
        )
    )


def test_a_ban_that_was_prolonged_gets_its_new_time_and_after_a_boot_all_do():
    approved = decode.read({"bans": [{"address": "192.0.2.1", "expires_at": 2_000}]})
    longer = decode.read({"bans": [{"address": "192.0.2.1", "expires_at": 3_000}]})
    found = networks(("192.0.2.1", 17))
    assert carried(longer, approved=approved, live=found, now_s=1_000) == tuple(networks(("192.0.2.1", 2_000)))
    assert carried(approved, approved=approved, live=(), now_s=1_500) == tuple(networks(("192.0.2.1", 500)))


@pytest.mark.parametrize(
    "elements",
    [
        b"\t\telements = { 192.0.2.1 timeout 1h }\n",
        b"\t\telements = { 192.0.2.1 timeout 1h,\n\t\t\t     192.0.2.2 timeout 2h }\n",
        b'\t\telements = { 192.0.2.1 timeout 1h comment "}",\n\t\t\t     192.0.2.2 timeout 2h }\n',
    ],
)
def test_elements_are_no_drift(elements):
    assert parse.drift_hash(LISTING % elements) == parse.drift_hash(LISTING % b"")


@pytest.mark.parametrize("old", [b"22", b"elements = { }", b"drop", b"timeout\n"])
def test_all_else_is_drift(old):
    listing = LISTING % b"\t\telements = { 192.0.2.1 timeout 1h }\n"
    assert parse.drift_hash(listing.replace(old, b"0")) != parse.drift_hash(listing)


@pytest.mark.parametrize(
    "listing",
    [
        None,
        {},
        {"nftables": [1]},
        {"nftables": [{"a": 1, "b": 2}]},
        {"nftables": [{"rule": {}}]},
        {"nftables": [{"chain": {"name": "x"}}, {"rule": {"chain": "x", "expr": [{"match": {}}]}}]},
        {"nftables": [{"chain": {"name": "x"}}, {"rule": {"chain": "x", "expr": [{"xt": None}]}}]},
        {"nftables": [{"set": {"name": "x", "type": "ipv4_addr"}}]},
    ],
)
def test_what_is_no_listing_of_ours_is_foreign(listing):
    with pytest.raises(parse.Foreign):
        parse.table(listing)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"from": "192.0.2.1", "to": "203.0.113.1", "port": 443}, [("eth0", "input", "accept", "groups[0].rules[0]")]),
        ({"from": "192.0.2.1", "to": "203.0.113.1", "port": 22}, [("eth0", "input", "drop", "default")]),
        ({"from": "192.0.2.9", "to": "203.0.113.1", "port": 443}, [("eth0", "input", "drop", "bans")]),
        (
            {"from": "198.51.100.1", "to": "203.0.113.1", "port": 443},
            [("eth0", "input", "drop", "bindings.overrides[0]")],
        ),
        (
            {"from": "10.0.0.9", "to": "203.0.113.1", "port": 1, "iface": "eth1"},
            [("eth1", "input", "accept", "trusted zone lan")],
        ),
        ({"from": "192.0.2.1", "to": "172.17.0.2", "port": 80}, [("eth0", "forward", "accept", "groups[2].rules[0]")]),
        ({"from": "192.0.2.1", "to": "172.17.0.2", "port": 81}, [("eth0", "forward", "drop", "default")]),
        ({"from": "192.0.2.1", "to": "172.17.0.2", "port": 81, "iface": "x"}, [("x", "forward", "accept", "policy")]),
        ({"from": "203.0.113.1", "to": "192.0.2.1", "port": 81}, [("eth0", "output", "accept", "policy")]),
        ({"from": "192.0.2.1", "to": "203.0.113.1", "proto": "icmp"}, [("eth0", "input", "drop", "default")]),
        (
            {"from": "192.0.2.1", "to": "203.0.113.1", "port": 9, "state": "established"},
            [("eth0", "input", "accept", "connection tracking")],
        ),
    ],
)
def test_a_question_is_answered_by_the_rule_that_decides(asked, told):
    answers = question.answer(decode.read(DOCUMENT), FACTS, {"iface": "eth0", **asked})["answers"]
    assert [(one["iface"], one["hook"], one["verdict"], one["rule"]) for one in answers] == told


def test_without_an_interface_each_is_answered_and_a_rate_has_two_answers():
    asked = {"from": "203.0.113.7", "to": "203.0.113.1", "port": 22}
    answers = question.answer(decode.read(DOCUMENT), FACTS, asked)["answers"]
    assert [one["iface"] for one in answers] == ["eth0", "eth1"]
    assert [(one["verdict"], one["above"]["verdict"]) for one in answers] == [("accept", "drop")] * 2
    json.dumps(answers)


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        ([], "payload"),
        ({"from": 1, "to": "192.0.2.1", "port": 1}, "from"),
        ({"from": "192.0.2.1", "to": "x", "port": 1}, "to"),
        ({"from": "192.0.2.1", "to": "::1", "port": 1}, "to"),
        ({"from": "fe80::1%eth0", "to": "::1", "port": 1}, "from"),
        ({"from": "192.0.2.1", "to": "192.0.2.2", "port": 0}, "port"),
        ({"from": "192.0.2.1", "to": "192.0.2.2", "port": True}, "port"),
        ({"from": "192.0.2.1", "to": "192.0.2.2", "port": 1, "proto": []}, "proto"),
        ({"from": "192.0.2.1", "to": "192.0.2.2", "port": 1, "state": "open"}, "state"),
        ({"from": "192.0.2.1", "to": "192.0.2.2", "port": 1, "iface": "a b"}, "iface"),
        ({"from": "192.0.2.1", "to": "192.0.2.2", "port": 1, "x": 1}, "payload"),
    ],
)
def test_another_question_is_refused_by_its_place(asked, path):
    with pytest.raises(IntentRefused) as caught:
        question.answer(decode.read(DOCUMENT), FACTS, asked)
    assert [one.path for one in caught.value.findings] == [path]


def test_the_limits_of_a_table_are_those_of_its_rules():
    table = compiler.table(decode.read(DOCUMENT))
    assert [(name, rate.packets, rate.burst) for name, rate in table.limits] == [("rate_0", 10, 3)]
