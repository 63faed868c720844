"""Random intents of WireGuard, as documents: valid, small, with every field now and then."""

from __future__ import annotations

import base64
import random
from typing import Any

from latticed.system.wireguard import check, decode
from latticed.system.wireguard.intent import Intent

SERVER_KEY = base64.b64encode(bytes([96, *range(101, 131), 67])).decode()
"""As `wg genkey` makes one: with the bits that Curve25519 asks for."""


def key(seed: int | str) -> str:
    """32 bytes in base64, the same for the same seed."""
    return base64.b64encode(random.Random(f"key {seed}").randbytes(32)).decode()


def document(**changes: Any) -> dict[str, Any]:
    """A network of one member, with `changes` to the network."""
    network = {
        "name": "wg-home",
        "listen_port": 51820,
        "endpoint": "vpn.example.org:51820",
        "private_key": "${secret:WG_HOME}",
        "addresses": ["10.80.0.1/24"],
        "members": [member("anna", 2)],
    }
    return {"networks": [{**network, **changes}]}


def member(member_id: str, last: int, **changes: Any) -> dict[str, Any]:
    return {"id": member_id, "public_key": key(member_id), "addresses": [f"10.80.0.{last}"], **changes}


def sound(rng: random.Random) -> dict[str, Any]:
    """A document that decode and check take."""
    while True:
        found = anything(rng)
        if not check.check(decode.read(found)):
            return found


def intent(rng: random.Random) -> Intent:
    return decode.read(sound(rng))


def anything(rng: random.Random) -> dict[str, Any]:
    """A document of the right form, most of which pass check."""
    return {"networks": [network(rng, index) for index in rng.sample(range(4), rng.randrange(4))]}


def network(rng: random.Random, index: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": f"wgt{index}",
        "topology": rng.choice(["hub", "mesh"]),
        "listen_port": 51_820 + index,
        "private_key": rng.choice([f"${{secret:WG_{index}}}", f"${{secret:WG#net-{index}}}"]),
        "addresses": [f"10.8{index}.0.1/24", *([f"fd8{index}::1/64"] if rng.random() < 0.5 else [])],
    }
    if rng.random() < 0.5:
        found["endpoint"] = rng.choice(["vpn.example.org:51820", "[2001:db8::1]:51820", "192.0.2.1:443"])
    if rng.random() < 0.3:
        found["mtu"] = rng.choice([1280, 1400])
    if rng.random() < 0.3:
        found["dns"] = [f"10.8{index}.0.1"]
    if rng.random() < 0.3:
        found["keepalive_s"] = rng.choice([0, 15])
    if rng.random() < 0.3:
        found["routes"] = [f"10.8{index}.0.0/24", "192.168.0.0/16"]
    if rng.random() < 0.5:
        found["may_reach"] = reaches(rng)
    two = len(found["addresses"]) == 2
    found["members"] = [_member(rng, index, number, two=two) for number in rng.sample(range(2, 9), rng.randrange(6))]
    if rng.random() < 0.3:
        found["held"] = [{"id": "gone", "addresses": [f"10.8{index}.0.99"]}]
    return found


def _member(rng: random.Random, index: int, number: int, *, two: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": f"m{number}",
        "public_key": key(f"{index}.{number}"),
        "addresses": [f"10.8{index}.0.{number}", *([f"fd8{index}::{number}"] if two else [])],
    }
    if rng.random() < 0.3:
        found["name"] = f"Member {number}"
    if rng.random() < 0.3:
        found["preshared_key"] = f"${{secret:PSK#{index}-{number}}}"
    if rng.random() < 0.2:
        found["subnets"] = [f"192.168.{index * 10 + number}.0/24"]
    if rng.random() < 0.3:
        found["endpoint"] = rng.choice([f"192.0.2.{number}:51820", f"[2001:db8::{number}]:1"])
    if rng.random() < 0.2:
        found["enabled"] = False
    if rng.random() < 0.3:
        found["expires_at"] = rng.choice([1_000_000_000, 4_000_000_000])
    if rng.random() < 0.3:
        found["keepalive_s"] = rng.choice([0, 30])
    if rng.random() < 0.5:
        found["may_reach"] = reaches(rng)
    return found


def reaches(rng: random.Random) -> list[Any]:
    places = ["server", "members", "192.168.7.0/24", "10.9.2.2", "fd09::/48", "0.0.0.0/0", "::/0"]
    found: list[Any] = []
    for place in rng.sample(places, rng.randrange(4)):
        if rng.random() < 0.5:
            found.append(place)
        else:
            proto = rng.choice(["any", "tcp", "udp", "icmp", "icmpv6"])
            ports = {} if proto not in {"tcp", "udp"} else {"ports": rng.sample([22, 53, 443, "8000-8010"], 2)}
            found.append({"to": place, "proto": proto, **ports})
    return found
