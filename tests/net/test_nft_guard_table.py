"""nft guard's table in the real nft: it is accepted, read back as meant, and replaced without loss."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from latticed.system.nft_guard import check, decode, parse
from latticed.system.nft_guard import compile as compiler
from latticed.system.nft_guard.bans import LiveBan, carried
from latticed.system.nft_guard.render import render
from tests.house import firewalled, intents

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def net() -> Iterator[firewalled.Net]:
    with firewalled.network() as made:
        yield made


@pytest.mark.parametrize("seed", range(30))
def test_random_intents_are_taken_and_read_back_as_they_were_meant(net, seed):
    intent = intents.intent(random.Random(seed))
    net.load(render(intent))
    meant = compiler.table(intent)
    assert meant is not None
    assert parse.table(net.listing()) == parse.canonical(meant)


@pytest.mark.parametrize("seed", range(10))
def test_the_hash_for_drift_holds_through_bans_and_traffic_and_ends_at_an_edit(net, seed):
    intent = intents.intent(random.Random(seed))
    net.load(render(intent, bans=[LiveBan(ban.network, 3_600) for ban in intent.bans]))
    before = parse.drift_hash(net.stateless())
    for element in ("bans4 { 192.0.2.9 timeout 1h, 192.0.2.10 timeout 1d }", "bans6 { 2001:db8:7:: timeout 1h }"):
        net.run("r", "nft", "add", "element", *firewalled.TABLE, *element.split())
    assert b"192.0.2.9" in net.stateless()
    assert parse.drift_hash(net.stateless()) == before
    net.load(render(intent))
    assert parse.drift_hash(net.stateless()) == before
    net.run("r", "nft", "insert", "rule", *firewalled.TABLE, "input", "tcp", "dport", "23", "accept")
    assert parse.drift_hash(net.stateless()) != before


def test_what_others_put_into_the_table_is_foreign_or_unequal(net):
    intent = decode.read({})
    meant = parse.canonical(compiler.table(intent))
    for rule in (
        "tcp dport 23 accept",
        "tcp dport 23 tcp dport 22 accept",
        "limit rate 5/second burst 10 packets accept",
        "tcp dport != 22 accept",
        "ip saddr 192.0.2.1-192.0.2.9 accept",
        "meta mark 1 accept",
        "ct state new accept",
        "return",
        "ip saddr vmap { 192.0.2.1 : accept }",
        "ct mark set 1",
        'log prefix "x"',
    ):
        net.load(render(intent))
        net.run("r", "nft", "insert", "rule", *firewalled.TABLE, "input", *rule.split())
        try:
            found = parse.table(net.listing())
        except parse.Foreign:
            continue
        assert found != meant, rule


def test_an_unmanaged_host_has_no_table(net):
    net.load(render(decode.read({})))
    net.load(render(decode.read({"bindings": {"managed": False}})))
    assert b"latticed_guard" not in net.run("r", "nft", "list", "tables")
    net.load(render(decode.read({"bindings": {"managed": False}})))


def test_bans_keep_their_remaining_time_when_the_table_is_replaced(net):
    """Though the clock was set back by a day in between: the kernel's own count is what is carried over."""
    now = 1_900_000_000
    bans = [{"address": one, "expires_at": now + 500} for one in ("192.0.2.7", "2001:db8:1:2::9")]
    approved = decode.read({"bans": bans})
    net.load(render(approved, bans=carried(approved, approved=None, live=(), now_s=now)))
    net.run("r", "nft", "add", "element", *firewalled.TABLE, "bans4", "{", "192.0.2.99", "timeout", "100s", "}")
    live = parse.bans(net.listing())
    assert [(str(ban.network), 480 < ban.remaining_s <= 500) for ban in live] == [
        ("192.0.2.7/32", True),
        ("192.0.2.99/32", False),
        ("2001:db8:1:2::/64", True),
    ]
    new = decode.read({"bans": [*bans, {"address": "192.0.2.8", "expires_at": now + 3_600}]})
    net.load(render(new, bans=carried(new, approved=approved, live=live, now_s=now - 86_400)))
    after = {str(ban.network): ban.remaining_s for ban in parse.bans(net.listing())}
    assert 470 < after["192.0.2.7/32"] <= 500
    assert 470 < after["2001:db8:1:2::/64"] <= 500
    assert 80 < after["192.0.2.99/32"] <= 100
    assert after["192.0.2.8/32"] > 86_400
    net.load(render(approved))  # without what is carried over, which is why it is
    assert parse.bans(net.listing()) == ()


def test_foreign_tables_stay_byte_for_byte(net):
    foreign = b"""
        table ip nat {
            chain prerouting {
                type nat hook prerouting priority dstnat
                tcp dport 8080 dnat to 10.9.2.2:80
            }
        }
        table inet filter {
            set seen {
                type ipv4_addr
                flags timeout
                elements = { 192.0.2.1 timeout 1d }
            }
            chain input {
                type filter hook input priority filter - 10
                counter
                ip saddr @seen drop
            }
        }
        table ip6 latticed_guard {
            chain input {
                tcp dport 1 accept
            }
        }
    """
    tables = (("ip", "nat"), ("inet", "filter"), ("ip6", "latticed_guard"))
    net.run("r", "nft", "-f", "-", stdin=foreign)
    try:
        before = [net.run("r", "nft", "-s", "-a", "list", "table", *one) for one in tables]
        for seed in range(5):
            net.load(render(intents.intent(random.Random(seed))))
        net.load(render(decode.read({"bindings": {"managed": False}})))
        after = [net.run("r", "nft", "-s", "-a", "list", "table", *one) for one in tables]
    finally:
        for one in tables:
            net.run("r", "nft", "delete", "table", *one)
    assert after == before


def test_a_file_that_the_kernel_refuses_changes_nothing(net):
    """The file is one transaction: half of it is never there."""
    net.load(render(decode.read({})))
    before = net.stateless()
    broken = (
        render(decode.read({"groups": [], "zones": []}))
        + b"table inet latticed_guard { chain input { jump nowhere; } }\n"
    )
    with pytest.raises(AssertionError, match="nowhere"):
        net.run("r", "nft", "-f", "-", stdin=broken)
    assert net.stateless() == before


def test_the_most_bans_and_the_longest_are_taken(net):
    """nft 1.0.6 says "value too large" to nine digits of seconds."""
    bans = [
        {"address": f"10.{n >> 8}.{n & 255}.1" if n % 2 else f"2001:db8:{n:x}::1", "expires_at": 253_402_300_799 - n}
        for n in range(4_096)
    ]
    intent = decode.read({"bans": bans})
    net.load(render(intent, bans=carried(intent, approved=None, live=(), now_s=0)))
    found = parse.bans(net.listing())
    assert len(found) == 4_096
    assert all(99_999_000 < ban.remaining_s <= 99_999_999 for ban in found)


CORNERS = [
    {"zones": [{"name": "a", "interfaces": ["r0"], "cidrs": ["0.0.0.0/0"], "forward": "guard"}]},
    {"zones": [{"name": "a", "cidrs": ["0.0.0.0/0", "::/0"], "forward": "guard"}]},
    {"zones": [{"name": "a", "interfaces": [f"i{n}" for n in range(32)], "forward": "guard"}]},
    {"zones": [{"name": "a", "interfaces": ["_", "0eth", "a-b.c_d", "A" * 15, "set", "accept"], "forward": "guard"}]},
    *(
        {"bindings": {"overrides": [{"proto": "tcp", "rate": {"packets": packets, "per": per, "burst": burst}}]}}
        for packets, burst in ((1, 1), (100_000, 100_000), (7, 3))
        for per in ("second", "minute", "hour", "day")
    ),
    *(
        {"bindings": {"overrides": [{"comment": comment, "log": True}]}}
        for comment in (
            " ",
            "  a  ",
            "0",
            "-",
            ":",
            "@",
            "/",
            ".",
            "_",
            "@bans4",
            "0/0",
            "accept",
            " ".join("abc" * 20),
        )
    ),
    *(
        {"bindings": {"overrides": [{"remote": [one]}]}}
        for one in ("::/1", "128.0.0.0/1", "::1.2.3.4", "::", "255.255.255.255")
    ),
    *(
        {"bindings": {"overrides": [{"dir": direction, "action": action, "proto": proto, "remote": remote}]}}
        for direction in ("in", "out")
        for action in ("accept", "drop", "reject")
        for proto in ("any", "tcp", "udp", "icmp", "icmpv6")
        for remote in ([], ["0.0.0.0/0", "::/0"], ["10.0.0.1", "fd00::/9"])
    ),
    {"bindings": {"overrides": [{"proto": "tcp", "ports": ["1-1000", 65_535, 1_002]}]}},
    {"bindings": {"overrides": [{"proto": "udp", "ports": list(range(1, 2_000, 2))}]}},
    {"bindings": {"overrides": [{"remote": [f"10.{n}.0.0/17" for n in range(256)]}]}},
]


def test_corners_are_taken_and_read_back(net):
    for document in CORNERS:
        intent = decode.read(document)
        assert check.check(intent) == ()
        net.load(render(intent))
        assert parse.table(net.listing()) == parse.canonical(compiler.table(intent)), document


def test_what_nft_lists_can_be_loaded_again_and_is_the_same(net):
    """As a snapshot is, when a change is rolled back."""
    for document in CORNERS[:30]:
        net.load(render(decode.read(document), bans=[]))
        before = net.stateless()
        net.load(b"table inet latticed_guard\ndelete table inet latticed_guard\n" + before)
        assert net.stateless() == before
        assert parse.table(net.listing()) == parse.canonical(compiler.table(decode.read(document)))


def test_networks_that_follow_on_each_other_are_read_back_though_nft_lists_them_as_a_range(net):
    remote = ["10.9.0.2/31", "10.9.0.4", "10.9.0.8/29", "fd09:0:0:a::2/127", "fd09:0:0:a::4"]
    intent = decode.read(
        {"groups": [{"name": "some", "rules": [{"remote": remote}]}], "bindings": {"groups": ["some"]}}
    )
    net.load(render(intent))
    assert b"10.9.0.2-10.9.0.4" in net.stateless()
    meant = compiler.table(intent)
    assert meant is not None
    assert parse.table(net.listing()) == parse.canonical(meant)
