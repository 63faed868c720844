"""What becomes of an intent: one text with the same bytes for the same intent, which is read back as it was meant."""

from __future__ import annotations

import ipaddress
import random
from dataclasses import replace

import pytest

from latticed.system.nft_guard import packets
from latticed.system.nft_guard.intent import Proto
from latticed.system.wireguard import applied, decode, dump, reach, render
from latticed.system.wireguard.intent import Place
from tests.house import intents, tunnels

SHOWN = """\
# WireGuard interfaces and peers of latticed, and what members may reach

[Interface]
# Name = wg-home
Address = 10.80.0.1/24
MTU = 1420
ListenPort = 51820
PrivateKey = ${secret:WG_HOME}

[Peer]
# Id = anna
# Until = 1800000000
PublicKey = KEY
PresharedKey = ${secret:PSK#anna}
AllowedIPs = 10.80.0.2/32

table inet latticed_wireguard
delete table inet latticed_wireguard
table inet latticed_wireguard {
	set group1 {
		type ipv4_addr
		flags interval
		elements = { 10.80.0.2 }
	}
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state established,related ct direction reply iifname "wg-home" accept
		ct state related iifname "wg-home" icmpv6 type { ERRORS6 } accept
		ct state related iifname "wg-home" icmp type { ERRORS4 } accept
		iifname "wg-home" ip saddr @group1 ip daddr 192.168.1.10 tcp dport 443 accept
		iifname "wg-home" counter drop
	}
	chain input {
		type filter hook input priority filter; policy accept;
		ct state established,related ct direction reply iifname "wg-home" accept
		ct state related iifname "wg-home" icmpv6 type { ERRORS6 } accept
		ct state related iifname "wg-home" icmp type { ERRORS4 } accept
		iifname "wg-home" ip saddr @group1 accept
		iifname "wg-home" ip saddr @group1 ip daddr 192.168.1.10 tcp dport 443 accept
		iifname "wg-home" counter drop
	}
	chain members {
		iifname "wg-home" ip saddr 10.80.0.2 comment "anna until 1800000000"
	}
}
"""


def shown(intent):
    return {name: f"${{secret:{name}}}" for name in render.references(intent)}


def values(intent):
    return {name: tunnels.key(name) for name in render.references(intent)}


def test_what_an_operator_reads():
    may_reach = ["server", {"to": "192.168.1.10", "proto": "tcp", "ports": [443]}]
    member = tunnels.member(
        "anna", 2, preshared_key="${secret:PSK#anna}", expires_at=1_800_000_000, may_reach=may_reach
    )
    intent = decode.read(tunnels.document(members=[member, tunnels.member("gone", 3, enabled=False)]))
    expected = SHOWN.replace("KEY", tunnels.key("anna"))
    expected = expected.replace("ERRORS6", "destination-unreachable, packet-too-big, parameter-problem, time-exceeded")
    expected = expected.replace("ERRORS4", "destination-unreachable, parameter-problem, time-exceeded")
    assert render.render(intent, shown(intent)).decode() == expected


def test_no_network_takes_all_away():
    text = render.render(decode.read({"networks": []}), {})
    assert applied.read(text).links == ()
    assert applied.read(text).table == reach.REMOVED


@pytest.mark.parametrize("seed", range(150))
def test_the_same_intent_gives_the_same_bytes_and_is_read_back(seed):
    rng = random.Random(seed)
    document = tunnels.sound(rng)
    intent = decode.read(document)
    text = render.render(intent, values(intent))
    moved = intents.shuffled(rng, document)
    for network in moved["networks"]:
        rng.shuffle(network["members"])
    rng.shuffle(moved["networks"])
    assert render.render(decode.read(moved), values(intent)) == text
    wanted = applied.read(text)
    assert wanted.links == render.links(intent, values(intent))
    assert wanted.table == reach.text(reach.table(intent))


def test_bytes_that_are_no_rendering_are_refused():
    for data in (b"", b"x", b"[Interface]\n"):
        with pytest.raises(ValueError, match="no rendering"):
            applied.read(data)


@pytest.mark.parametrize("seed", range(60))
def test_the_table_decides_over_each_packet_as_the_intent_says(seed):
    rng = random.Random(seed)
    intent = tunnels.intent(rng)
    table = reach.table(intent)
    checked = 0
    for _ in range(300):
        if not intent.networks:
            break
        tunnel = rng.choice(intent.networks)
        if not tunnel.members:
            continue
        member = rng.choice(tunnel.members)
        source = rng.choice(member.addresses)
        hook = rng.choice(["input", "forward"])
        texts = ["192.168.7.9", "10.9.2.2", "10.9.2.3", "fd09::5", "fd0a::5", "192.0.2.7", "2001:db8::7"]
        texts += [str(one) for other in tunnel.members for one in other.addresses]
        destination = ipaddress.ip_address(rng.choice(texts))
        if destination.version != source.version:
            continue
        proto = rng.choice(["tcp", "udp", "icmp" if source.version == 4 else "icmpv6"])
        port = 0 if proto.startswith("icmp") else rng.choice([22, 53, 443, 8005, 9])
        inside = any(destination in one.addresses for one in tunnel.members)
        packet = packets.Packet(
            hook=hook,
            source=source,
            destination=destination,
            inbound=tunnel.name,
            outbound=(tunnel.name if inside else "eth0") if hook == "forward" else "",
            proto=proto,
            dport=port,
        )
        expected = member.enabled and any(_allows(one, packet, tunnel) for one in reach.of(tunnel, member))
        assert packets.decide(table, packet).accepted == expected, packet
        assert packets.decide(table, replace(packet, inbound="eth0")).accepted
        reply = replace(packet, state="established", reply=True)
        assert packets.decide(table, reply).accepted
        # What a member opened is judged for as long as it lasts.
        assert packets.decide(table, replace(packet, state="established")).accepted == expected
        checked += 1
    assert checked or not any(one.members for one in intent.networks)


def _allows(one, packet, tunnel):
    if one.proto is not Proto.ANY and one.proto != packet.proto:
        return False
    if one.ports and not any(ports.low <= packet.dport <= ports.high for ports in one.ports):
        return False
    if one.to is Place.SERVER:
        return packet.hook == "input"
    if one.to is Place.MEMBERS:
        return packet.hook == "forward" and packet.outbound == tunnel.name
    return packet.destination in one.to


def test_a_peer_whose_time_is_over_is_not_given_to_wg():
    intent = decode.read(
        tunnels.document(members=[tunnels.member("anna", 2, expires_at=100), tunnels.member("ben", 3)])
    )
    (link,) = render.links(intent, values(intent))
    assert [one.id for one in applied.due(link, 99).peers] == ["anna", "ben"]
    assert [one.id for one in applied.due(link, 100).peers] == ["ben"]


def test_a_dump_is_read_and_never_repeated():
    key, other = tunnels.key(1), tunnels.key(2)
    lines = [f"{key}\t{other}\t51820\toff"]
    lines.append(f"{other}\t(none)\t192.0.2.1:5\t10.0.0.2/32,fd00::2/128\t1700000000\t1\t2\t25")
    lines.append(f"{key}\t{key}\t(none)\t(none)\t0\t0\t0\toff")
    device = dump.read("\n".join(lines).encode() + b"\n")
    assert (device.private_key, device.public_key, device.listen_port) == (key, other, 51_820)
    first = next(one for one in device.peers if one.public_key == other)
    assert (first.endpoint, first.handshake_at, first.rx_bytes, first.tx_bytes, first.keepalive_s) == (
        "192.0.2.1:5",
        1_700_000_000,
        1,
        2,
        25,
    )
    assert [str(one) for one in first.allowed] == ["10.0.0.2/32", "fd00::2/128"]
    assert key not in repr(replace(device, peers=()))
    for broken in (b"", b"x", lines[0].encode() + b"\nx", lines[0].encode().replace(b"51820", b"x"), b"\xff\t\t\t"):
        with pytest.raises(ValueError, match="no dump of wg") as caught:
            dump.read(broken)
        assert key not in str(caught.value)
        assert caught.value.__cause__ is None


def _basis(intent, *, leave_out=()):
    facts = [
        applied.fact(
            link.name,
            public_key=f"public {link.private_key}",
            port=link.listen_port,
            addresses=link.addresses,
            mtu=link.mtu,
            routes=link.routes(),
            peers=[
                (one.public_key, one.preshared_key, one.allowed, one.keepalive_s)
                for one in link.peers
                if one.id not in leave_out
            ],
        )
        for link in render.links(intent, values(intent))
    ]
    return applied.basis(facts, reach.text(reach.table(intent)))


def test_drift_is_what_differs_and_an_ended_peer_is_none():
    members = [tunnels.member("anna", 2, expires_at=100), tunnels.member("ben", 3, preshared_key="${secret:PSK}")]
    document = tunnels.document(members=members)
    intent = decode.read(document)
    text = render.render(intent, values(intent))

    def holds(found, now_s):
        return applied.holds(text, found, public=lambda key: f"public {key}", now_s=now_s)

    assert holds(_basis(intent), 50)
    assert holds(_basis(intent), 150)
    assert not holds(_basis(intent, leave_out={"anna"}), 50)
    assert holds(_basis(intent, leave_out={"anna"}), 150)
    assert not holds(_basis(intent, leave_out={"ben"}), 150)
    for change in ({"mtu": 1300}, {"listen_port": 9}, {"addresses": ["10.80.0.4/24"]}, {"may_reach": []}):
        assert not holds(_basis(decode.read(tunnels.document(**{"members": members, **change}))), 50)
    other = decode.read(tunnels.document(members=[members[0], tunnels.member("ben", 3)]))
    assert not holds(_basis(other), 50)
    assert b"public" in _basis(intent)
    assert tunnels.key("PSK").encode() not in _basis(intent)


def test_routes_are_for_what_the_networks_of_the_interface_do_not_hold():
    document = tunnels.document(members=[tunnels.member("site", 2, subnets=["192.168.9.0/24", "fd99::/64"])])
    (link,) = render.links(decode.read(document), {"WG_HOME": "x"})
    assert [str(one) for one in link.routes()] == ["192.168.9.0/24", "fd99::/64"]
