"""What wg is given of peers: those that go, come or change, and no other."""

from __future__ import annotations

import base64
import random
from dataclasses import replace

import pytest

from latticed.system.wireguard import applied, decode, render
from latticed.system.wireguard.dump import Device, LivePeer
from tests.house import tunnels


def link_of(seed):
    document = tunnels.document(members=[tunnels.member(f"m{n}", n) for n in range(2, 2 + seed % 7)])
    return render.links(decode.read(document), {"WG_HOME": tunnels.SERVER_KEY})[0]


def device_of(link):
    peers = [
        LivePeer(
            public_key=one.public_key,
            preshared_key=one.preshared_key,
            allowed=one.allowed,
            keepalive_s=one.keepalive_s,
            endpoint="192.0.2.9:1234",
            rx_bytes=7,
        )
        for one in link.peers
    ]
    return Device(
        private_key=link.private_key, public_key=link.public_key, listen_port=link.listen_port, peers=tuple(peers)
    )


def test_a_key_that_wireguard_shows_with_other_bits_is_the_same():
    link = replace(link_of(3), private_key=base64.b64encode(b"\xff" * 32).decode())
    device = replace(device_of(link), private_key=base64.b64encode(b"\xf8" + b"\xff" * 30 + b"\x7f").decode())
    assert applied.moves(device, link) == applied.PeerMoves(gone=(), due=())
    assert applied.moves(replace(device, private_key=tunnels.SERVER_KEY), link) is None


@pytest.mark.parametrize("seed", range(20))
def test_who_stays_is_in_nothing_that_wg_is_given(seed):
    """Whatever its endpoint and counters are."""
    link = link_of(seed + 3)
    assert applied.moves(device_of(link), link) == applied.PeerMoves((), ())
    rng = random.Random(seed)
    peers = list(link.peers)
    gone = peers.pop(rng.randrange(len(peers))) if peers else None
    come = replace(link_of(6).peers[0], public_key=tunnels.key("new"))
    changed = []
    if peers:
        changed = [replace(peers.pop(), keepalive_s=25, preshared_key=tunnels.key("psk"))]
    moves = applied.moves(device_of(link), replace(link, peers=(*peers, *changed, come)))
    assert moves == applied.PeerMoves((gone.public_key,) if gone else (), (*changed, come))
    text = applied.addconf(moves.due).decode()
    assert text.count("[Peer]") == len(changed) + 1
    assert not any(one.public_key in text for one in peers)


def test_another_key_or_port_is_a_whole_file():
    link = link_of(4)
    assert applied.moves(device_of(link), replace(link, listen_port=4)) is None
    assert applied.moves(device_of(link), replace(link, private_key=tunnels.key("x"))) is None


def test_what_peers_have_no_more_is_taken_from_them_in_turns():
    link = link_of(6)
    assert applied.taken(device_of(link), link) == []
    one, two, *rest = link.peers
    less = replace(link, peers=(replace(one, allowed=()), replace(two, allowed=(*two.allowed, *one.allowed))))
    (words,) = applied.taken(device_of(link), less)
    assert words[:4] == ["peer", one.public_key, "allowed-ips", ""]
    assert words[4:] == [word for each in rest for word in ("peer", each.public_key, "remove")]
    many = tuple(replace(one, public_key=tunnels.key(number)) for number in range(1_200))
    turns = applied.taken(device_of(replace(link, peers=many)), link)
    assert [len(words) for words in turns] == [1_500, 1_500, 600]
