"""Random intents of nft guard, as documents: valid, small, about the same few places, so that rules meet packets."""

from __future__ import annotations

import random
from typing import Any

from latticed.system.nft_guard import check, decode
from latticed.system.nft_guard.intent import Intent

INTERFACES = ("r0", "r1", "r2")
NETWORKS = (
    *("10.9.0.0/24", "10.9.0.2", "10.9.0.4/30", "10.9.1.0/24", "10.9.2.2", "10.9.0.0/16"),
    *("fd09:0:0:a::/64", "fd09:0:0:a::2", "fd09:0:0:aa::/64", "fd09:0:0:b::/64", "fd09:0:0:c::2", "fd09::/48"),
    *("0.0.0.0/0", "::/0"),
)
PORTS = (22, 23, 53, 80, 443, 8080, 8081, 9000)
BANNED = ("10.9.0.3", "10.9.1.5", "fd09:0:0:aa::/64", "fd09:0:0:b::7")
COMMENTS = ("", "a web site", "ops@example.org: see /wiki/x_1", "-" * 128)


def sound(rng: random.Random) -> dict[str, Any]:
    """A document that decode and check take."""
    while True:
        document = anything(rng)
        if not check.check(decode.read(document)):
            return document


def intent(rng: random.Random) -> Intent:
    return decode.read(sound(rng))


def anything(rng: random.Random) -> dict[str, Any]:
    """A document of the right form, most of which pass check."""
    zones = [zone(rng, name) for name in rng.sample(["dmz", "lan", "lab", "net"], rng.randrange(4))]
    names = [one["name"] for one in zones]
    guarded = any(one.get("forward") == "guard" for one in zones)
    groups = [
        {"name": name, "rules": [rule(rng, names, guarded=guarded) for _ in range(rng.randrange(4))]}
        for name in rng.sample(["admin", "dns", "web"], rng.randrange(4))
    ]
    trusted = [one["name"] for one in zones if rng.random() < 0.3]
    return {
        "zones": zones,
        "groups": groups,
        "bindings": {
            "groups": [one["name"] for one in groups if rng.random() < 0.9],
            "overrides": [rule(rng, names, guarded=guarded) for _ in range(rng.randrange(3))],
            "trusted_zones": trusted,
        },
        "bans": [
            {"address": address, "expires_at": rng.randrange(2_000_000_000, 2_000_100_000)}
            for address in rng.sample(BANNED, rng.randrange(3))
        ],
        "never": rng.choice([[], ["10.9.2.2", "fd09:0:0:c::/64"]]),
    }


def zone(rng: random.Random, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "forward": rng.choice(["leave", "guard"])}
    if rng.random() < 0.7:
        found["interfaces"] = rng.sample(INTERFACES, rng.randrange(1, 3))
    if rng.random() < 0.5 or "interfaces" not in found:
        found["cidrs"] = rng.sample(NETWORKS[:-2], rng.randrange(1, 4))
    return found


def rule(rng: random.Random, zones: list[str], *, guarded: bool) -> dict[str, Any]:
    proto = rng.choice(["tcp", "tcp", "udp", "udp", "any", "icmp", "icmpv6"])
    found: dict[str, Any] = {
        "dir": rng.choice(["in", "in", "in", "out", *(["forward"] * 3 if guarded else [])]),
        "action": rng.choice(["accept", "accept", "accept", "drop", "reject", "reject"]),
        "proto": proto,
        "remote": rng.sample([*NETWORKS, *zones], rng.choice([0, 0, 1, 2, 3])),
        "log": rng.random() < 0.2,
        "comment": rng.choice(COMMENTS),
    }
    if proto in {"tcp", "udp"} and rng.random() < 0.8:
        found["ports"] = [rng.choice([*PORTS, "8080-8090", "20-60"]) for _ in range(rng.randrange(1, 4))]
    if found["action"] == "accept" and rng.random() < 0.2:
        # Far above what tests send: a limit that is reached would leave the verdict to the clock.
        found["rate"] = {"packets": rng.choice([1_000, 2_000]), "per": "second", "burst": rng.choice([500, 1_000])}
    return found


def shuffled(rng: random.Random, value: Any) -> Any:
    """The same document with the keys of all its objects in another order."""
    if isinstance(value, dict):
        items = [(key, shuffled(rng, inner)) for key, inner in value.items()]
        rng.shuffle(items)
        return dict(items)
    return [shuffled(rng, inner) for inner in value] if isinstance(value, list) else value
