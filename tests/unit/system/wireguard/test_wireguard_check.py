"""Which intents of WireGuard cannot be meant; most of them wg(8) would take, and do something else."""

from __future__ import annotations

import ipaddress

import pytest

from latticed.system.wireguard import allocate, check, decode
from latticed.system.wireguard.facts import Facts, HostInterface
from tests.house import tunnels


def found(document, facts=None):
    return [(one.code, one.path) for one in check.check(decode.read(document), facts)]


def second(**changes):
    (network,) = tunnels.document()["networks"]
    changed = {"name": "wg-two", "listen_port": 51821, "private_key": "${secret:TWO}", "addresses": ["10.81.0.1/24"]}
    return {**network, **changed, "members": [], **changes}


def test_a_sound_intent_has_no_findings():
    assert found(tunnels.document()) == []
    assert found({"networks": []}) == []


@pytest.mark.parametrize(
    ("changes", "code", "path"),
    [
        ({"name": "wg-home"}, "duplicate", "networks[1].name"),
        ({"listen_port": 51820}, "duplicate", "networks[1].listen_port"),
        ({"private_key": "${secret:WG_HOME}"}, "duplicate_key", "networks[1].private_key"),
        ({"addresses": ["10.80.0.1/16"]}, "overlapping_networks", "networks[1].addresses[0]"),
        ({"addresses": ["10.80.0.129/25"]}, "overlapping_networks", "networks[1].addresses[0]"),
        ({"addresses": ["127.0.0.1/8"]}, "bad_network", "networks[1].addresses[0]"),
        ({"addresses": ["224.0.0.1/24"]}, "bad_network", "networks[1].addresses[0]"),
        ({"addresses": ["fe80::1/64"]}, "bad_network", "networks[1].addresses[0]"),
        ({"addresses": ["10.81.0.0/24"]}, "bad_network", "networks[1].addresses[0]"),
        ({"addresses": ["10.81.0.255/24"]}, "bad_network", "networks[1].addresses[0]"),
    ],
)
def test_networks_that_get_in_each_others_way(changes, code, path):
    document = tunnels.document()
    document["networks"].append(second(**changes))
    assert found(document) == [(code, path)]


@pytest.mark.parametrize(
    ("members", "code", "path"),
    [
        ([("a", 2, {}), ("a", 3, {"public_key": tunnels.key("b")})], "duplicate", "members[1].id"),
        ([("a", 2, {}), ("b", 3, {"public_key": tunnels.key("a")})], "duplicate_key", "members[1].public_key"),
        ([("a", 2, {}), ("b", 2, {})], "duplicate_address", "members[1].addresses[0]"),
        ([("a", 1, {})], "duplicate_address", "members[0].addresses[0]"),
        ([("a", 2, {"addresses": ["10.80.0.2", "10.80.0.2"]})], "duplicate_address", "members[0].addresses[1]"),
        ([("a", 255, {})], "outside_network", "members[0].addresses[0]"),
        ([("a", 2, {"addresses": ["10.99.0.2"]})], "outside_network", "members[0].addresses[0]"),
        ([("a", 2, {"public_key": tunnels.SERVER_KEY})], "own_key", "members[0].public_key"),
        ([("a", 2, {"preshared_key": "${secret:WG_HOME}"})], "duplicate_key", "members[0].preshared_key"),
        ([("a", 2, {"endpoint": "home.example.org:1"})], "endpoint_name", "members[0].endpoint"),
        ([("a", 2, {"subnets": ["0.0.0.0/0"]})], "wide_route", "members[0].subnets[0]"),
        ([("a", 2, {"subnets": ["::/0"]})], "wide_route", "members[0].subnets[0]"),
        ([("a", 2, {"subnets": ["10.0.0.0/8"]})], "wide_route", "members[0].subnets[0]"),
        ([("a", 2, {"subnets": ["127.0.0.0/16"]})], "bad_network", "members[0].subnets[0]"),
        ([("a", 2, {"subnets": ["10.80.0.128/25"]})], "overlapping_subnets", "members[0].subnets[0]"),
        ([("a", 2, {"subnets": ["10.80.0.3/32"]}), ("b", 4, {})], "overlapping_subnets", "members[0].subnets[0]"),
        (
            [("a", 2, {"subnets": ["192.168.1.0/24"]}), ("b", 3, {"subnets": ["192.168.1.128/25"]})],
            "overlapping_subnets",
            "members[1].subnets[0]",
        ),
        (
            [("a", 2, {"subnets": ["192.168.1.0/24"]}), ("b", 3, {"subnets": ["192.168.0.0/16"]})],
            "overlapping_subnets",
            "members[1].subnets[0]",
        ),
        ([("a", 9, {})], "held_address", "members[0].addresses[0]"),
    ],
)
def test_members_that_wg_would_take_and_get_wrong(members, code, path):
    document = tunnels.document(
        public_key=tunnels.SERVER_KEY,
        held=[{"id": "old", "addresses": ["10.80.0.9"]}],
        members=[tunnels.member(name, last, **changes) for name, last, changes in members],
    )
    assert (code, f"networks[0].{path}") in found(document)
    assert {one for one, _ in found(document)} <= {code, "overlapping_subnets"}


def test_a_member_that_comes_back_may_have_its_held_address():
    held = [{"id": "old", "addresses": ["10.80.0.9"]}]
    assert found(tunnels.document(held=held, members=[tunnels.member("old", 9)])) == []


def test_a_resolver_that_the_device_may_not_reach_is_said():
    for may_reach, expected in (
        (["server"], []),
        ([{"to": "server", "proto": "udp", "ports": [53]}], []),
        ([{"to": "10.80.0.1"}], []),
        ([], ["dns_unreachable"]),
        (["members"], ["dns_unreachable"]),
        ([{"to": "server", "proto": "tcp"}], ["dns_unreachable"]),
        ([{"to": "server", "proto": "udp", "ports": [5353]}], ["dns_unreachable"]),
    ):
        assert [code for code, _ in found(tunnels.document(dns=["10.80.0.1"], may_reach=may_reach))] == expected
    # A resolver that is not asked through the tunnel is no matter of this host.
    assert found(tunnels.document(dns=["192.0.2.53"], may_reach=[])) == []


def test_what_does_not_fit_the_host():
    lan = ipaddress.ip_interface("192.168.1.1/24")
    facts = Facts(interfaces=(HostInterface(name="eth0", addresses=(lan,)), HostInterface(name="wg-home")))
    assert found(tunnels.document(), facts) == [("interface_taken", "networks[0].name")]
    ours = ipaddress.ip_interface("10.80.0.1/24")
    facts = Facts(interfaces=(HostInterface(name="wg-home", addresses=(ours,), ours=True),), udp_ports=(51820,))
    assert found(tunnels.document(), facts) == [("port_taken", "networks[0].listen_port")]
    facts = Facts(interfaces=(HostInterface(name="eth0", addresses=(lan,)),))
    assert found(tunnels.document(addresses=["192.168.0.1/16"], members=[]), facts) == [
        ("overlapping_host", "networks[0].addresses")
    ]
    behind = [tunnels.member("site", 2, subnets=["192.168.1.0/25"])]
    assert found(tunnels.document(members=behind), facts) == [("overlapping_host", "networks[0].members[0].subnets")]


def test_rules_for_which_no_table_should_be_made_are_too_large():
    members = [
        {
            "id": f"m{n}",
            "public_key": tunnels.key(n),
            "addresses": [f"10.{n // 250 + 1}.{n % 250 + 1}.1"],
            "may_reach": [{"to": "server", "proto": "tcp", "ports": [p]} for p in range(n + 1, n + 60)],
        }
        for n in range(200)
    ]
    document = tunnels.document(addresses=["10.0.0.1/8"], members=members)
    assert found(document) == [("too_large", "networks")]


def test_two_thousand_members_are_not_too_many():
    members = [
        {"id": f"m{n}", "public_key": tunnels.key(n), "addresses": [f"10.80.{n // 250}.{n % 250 + 2}"]}
        for n in range(2_000)
    ]
    assert found(tunnels.document(addresses=["10.80.0.1/16"], members=members)) == []


def test_the_lowest_free_address_is_given_and_a_held_one_to_its_owner_alone():
    document = tunnels.document(
        addresses=["10.80.0.1/29", "fd80::1/64"],
        members=[tunnels.member("anna", 2, addresses=["10.80.0.2", "fd80::2"])],
        held=[{"id": "old", "addresses": ["10.80.0.3", "fd80::3"]}],
    )
    (tunnel,) = decode.read(document).networks
    assert [str(one) for one in allocate.addresses(tunnel, "new")] == ["10.80.0.4", "fd80::4"]
    assert [str(one) for one in allocate.addresses(tunnel, "old")] == ["10.80.0.3", "fd80::3"]


def test_a_full_network_says_that_addresses_are_held():
    document = tunnels.document(
        addresses=["10.80.0.1/30"], members=[], held=[{"id": "old", "addresses": ["10.80.0.2"]}]
    )
    (tunnel,) = decode.read(document).networks
    with pytest.raises(allocate.NoAddress, match="1 are held"):
        allocate.addresses(tunnel, "new")
