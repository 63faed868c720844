"""What WireGuard takes for narrowing gives nobody anything: no peer, address, route or way that was not approved."""

from __future__ import annotations

import copy
import ipaddress
import random

import pytest

from latticed.system.nft_guard import packets
from latticed.system.wireguard import check, decode, narrows, reach, render
from tests.house import tunnels

ADDRESSES = [
    ipaddress.ip_address(one)
    for one in (
        "10.80.0.1",
        "10.80.0.3",
        "10.81.0.5",
        "192.168.7.9",
        "10.9.2.2",
        "192.0.2.9",
        "fd80::3",
        "fd09::9",
        "2001:db8::9",
    )
]


@pytest.mark.parametrize("seed", range(300))
def test_no_packet_passes_that_was_stopped_and_no_peer_is_new(seed):
    rng = random.Random(seed)
    document = tunnels.sound(rng)
    changed = mutated(rng, document)
    approved, new = decode.read(document), decode.read(changed)
    if check.check(new) or not narrows.narrows(approved, new):
        return
    secrets = {name: name for one in (approved, new) for name in render.references(one)}
    before = {link.name: link for link in render.links(approved, secrets)}
    for link in render.links(new, secrets):
        was = before[link.name]
        assert (link.private_key, link.listen_port, link.addresses) == (was.private_key, was.listen_port, was.addresses)
        keys = {peer.public_key: peer for peer in was.peers}
        for peer in link.peers:
            old = keys[peer.public_key]
            assert set(peer.allowed) <= set(old.allowed)
            assert (peer.preshared_key, peer.endpoint) == (old.preshared_key, old.endpoint)
            assert old.until is None or (peer.until is not None and peer.until <= old.until)
    old_table, new_table = reach.table(approved), reach.table(new)
    for tunnel in new.networks:
        for member in tunnel.members:
            # A member without its address cannot send from it: the peer has it no more.
            for source in member.addresses if member.enabled else ():
                for destination in ADDRESSES:
                    if destination.version != source.version:
                        continue
                    for proto, port in (("tcp", 22), ("tcp", 443), ("udp", 53), ("tcp", 8005), ("icmp", 0)):
                        for hook, outbound in (("input", ""), ("forward", "eth0"), ("forward", tunnel.name)):
                            packet = packets.Packet(
                                hook=hook,
                                source=source,
                                destination=destination,
                                inbound=tunnel.name,
                                outbound=outbound,
                                proto=proto,
                                dport=port,
                            )
                            if packets.decide(new_table, packet).accepted:
                                assert packets.decide(old_table, packet).accepted


def mutated(rng, document):
    changed = copy.deepcopy(document)
    for _ in range(rng.randrange(1, 4)):
        members = [member for network in changed["networks"] for member in network["members"]]
        match rng.randrange(10):
            case 0 if members:
                rng.choice(members)["enabled"] = rng.random() < 0.3
            case 1 if members:
                rng.choice(members)["may_reach"] = tunnels.reaches(rng)
            case 2 if members:
                rng.choice(members)["expires_at"] = rng.choice([5, 2_000_000_000])
            case 3 if members:
                rng.choice(members)["public_key"] = tunnels.key(rng.random())
            case 4 if members:
                member = rng.choice(members)
                member["addresses"] = member["addresses"][: rng.randrange(1, 3)]
            case 5 if changed["networks"]:
                network = rng.choice(changed["networks"])
                network["members"] = network["members"][: rng.randrange(3)]
            case 6 if changed["networks"]:
                rng.choice(changed["networks"])["may_reach"] = tunnels.reaches(rng)
            case 7:
                changed["networks"] = changed["networks"][: rng.randrange(4)]
            case 8 if members:
                rng.choice(members).pop("subnets", None)
            case 9 if members:
                rng.choice(members)["name"] = "Another name"
    return changed


def member(**changes):
    return tunnels.member("anna", 2, **{"expires_at": 1_000, **changes})


def judged(changed, approved=None):
    before = approved or tunnels.document(members=[member(), tunnels.member("ben", 3)])
    return narrows.narrows(decode.read(before), decode.read(changed))


@pytest.mark.parametrize(
    "members",
    [
        [],
        [member()],
        [member(enabled=False), tunnels.member("ben", 3)],
        [member(expires_at=999)],
        [member(), tunnels.member("ben", 3, expires_at=5)],
        [member(name="Renamed")],
        [member(may_reach=[])],
        [member(may_reach=["server"])],
        [member(may_reach=[{"to": "server", "proto": "tcp", "ports": [22]}, "members"])],
    ],
)
def test_what_only_takes_away_needs_no_approval(members):
    assert judged(tunnels.document(members=members))


@pytest.mark.parametrize(
    "members",
    [
        [member(expires_at=1_001)],
        [tunnels.member("anna", 2)],
        [member(public_key=tunnels.key("other"))],
        [member(preshared_key="${secret:PSK}")],
        [member(addresses=["10.80.0.9"])],
        [member(addresses=["10.80.0.2", "10.80.0.9"])],
        [member(subnets=["192.168.9.0/24"])],
        [member(endpoint="192.0.2.1:1")],
        [member(may_reach=["server", "members", "192.168.7.0/24"])],
        [member(), tunnels.member("cleo", 4)],
        [tunnels.member("eve", 2)],
    ],
)
def test_what_gives_something_needs_one(members):
    assert not judged(tunnels.document(members=members))


def test_of_a_network_nothing_but_its_members_and_reach_may_change():
    for change in (
        {"listen_port": 9},
        {"private_key": "${secret:OTHER}"},
        {"addresses": ["10.80.0.4/24"]},
        {"mtu": 1300},
    ):
        assert not judged(tunnels.document(**change), tunnels.document())
    assert judged({"networks": []}, tunnels.document())
    assert not judged(tunnels.document(), {"networks": []})
    assert judged(tunnels.document(may_reach=["server"]), tunnels.document())
    assert not judged(tunnels.document(may_reach=["192.168.0.0/16"]), tunnels.document(may_reach=["192.168.7.0/24"]))
    assert judged(tunnels.document(may_reach=["192.168.7.0/24"]), tunnels.document(may_reach=["192.168.0.0/16"]))


def test_a_disabled_member_is_not_enabled_and_a_held_address_is_not_released_without_approval():
    disabled = tunnels.document(members=[member(enabled=False)])
    assert not judged(tunnels.document(members=[member()]), disabled)
    held = [{"id": "old", "addresses": ["10.80.0.9"]}]
    assert not judged(tunnels.document(), tunnels.document(held=held))
    assert judged(tunnels.document(held=held), tunnels.document())
