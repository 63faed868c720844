"""For any two intents: what `narrows` lets through without an approval accepts no packet that was stopped before."""

from __future__ import annotations

import copy
import ipaddress
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latticed.system.nft_guard import check, decode, packets
from latticed.system.nft_guard import compile as compiler
from latticed.system.nft_guard.intent import Intent
from latticed.system.nft_guard.narrows import narrows
from latticed.system.nft_guard.packets import Decision, Packet
from tests.house import intents, long

ADDRESSES = tuple(
    ipaddress.ip_address(one)
    for one in (
        *("10.9.0.2", "10.9.0.3", "10.9.0.5", "10.9.0.77", "10.9.1.5", "10.9.1.9", "10.9.2.2", "10.9.9.9", "192.0.2.1"),
        *("fd09:0:0:a::2", "fd09:0:0:a::9", "fd09:0:0:aa::3", "fd09:0:0:b::7", "fd09:0:0:c::2", "fd09:1::", "fe80::1"),
    )
)
_SEEDS = st.integers(0, 2**48)
_TRIED = 400


def a_packet(rng: random.Random) -> Packet:
    source = rng.choice(ADDRESSES)
    proto = rng.choice(["tcp", "tcp", "udp", "udp", "icmp" if source.version == 4 else "icmpv6", "sctp"])
    return Packet(
        hook=rng.choice(packets.HOOKS),
        source=source,
        destination=rng.choice([one for one in ADDRESSES if one.version == source.version]),
        inbound=rng.choice([*intents.INTERFACES, "lo", "other"]),
        outbound=rng.choice([*intents.INTERFACES, "lo", "other"]),
        proto=proto,
        sport=rng.choice([67, 547, 30_000]),
        dport=rng.choice([*intents.PORTS, 8_085, 40, 68, 546, 1]) if proto in {"tcp", "udp"} else 0,
        icmp=rng.choice(["echo-request", "nd-neighbor-solicit", "packet-too-big"]) if proto.startswith("icmp") else "",
        hop_limit=rng.choice([64, 255]),
        state=rng.choice(["new"] * 6 + ["established", "invalid", "untracked"]),
    )


def ever(decision: Decision | None) -> bool:
    """Whether the packet may pass, whether limits are exceeded or not."""
    return decision is not None and (decision.accepted or ever(decision.above))


def widened(approved: Intent, new: Intent, rng: random.Random) -> Packet | None:
    """A packet that `new` lets through and `approved` stops."""
    before, after = compiler.table(approved), compiler.table(new)
    old_bans, new_bans = ([ban.network for ban in one.bans] for one in (approved, new))
    for _ in range(_TRIED):
        one = a_packet(rng)
        accepted = packets.decide(after, one, banned=new_bans)
        if ever(accepted) and not ever(packets.decide(before, one, banned=old_bans)):
            return one
    return None


def changed(rng: random.Random, document: dict[str, Any]) -> dict[str, Any]:
    """The document after one to three edits of any kind, narrowing or not, that check takes."""
    while True:
        new = copy.deepcopy(document)
        for _ in range(rng.choice([1, 1, 2, 3])):
            _edit(rng, new)
        if not check.check(decode.read(new)):
            return new


def _edit(rng: random.Random, new: dict[str, Any]) -> None:  # noqa: C901, PLR0912 - a case for each kind of edit
    zones = [one["name"] for one in new["zones"]]
    guarded = any(one["forward"] == "guard" for one in new["zones"])
    lists = [new["bindings"]["overrides"], *(group["rules"] for group in new["groups"])]
    rules = rng.choice(lists)
    match rng.randrange(11):
        case 0 if rules:
            rules.pop(rng.randrange(len(rules)))
        case 1:
            rules.insert(rng.randrange(len(rules) + 1), intents.rule(rng, zones, guarded=guarded))
        case 2:
            rules.insert(0, {"action": "drop", "remote": [rng.choice(intents.NETWORKS)]})
        case 3 if rules:
            other = intents.rule(rng, zones, guarded=guarded)
            key = rng.choice(["action", "proto", "remote", "ports", "rate", "dir"])
            rules[rng.randrange(len(rules))].pop(key, None)
            if key in other:
                rules[rng.randrange(len(rules))][key] = other[key]
        case 4:
            rng.shuffle(rules)
        case 5:
            rng.shuffle(new["bindings"]["groups"])
        case 6 if new["bindings"]["trusted_zones"]:
            new["bindings"]["trusted_zones"].pop()
        case 7 if new["zones"]:
            zone = rng.choice(new["zones"])
            zone["forward"] = rng.choice(["guard", "leave"])
        case 8:
            new["bans"] = [{"address": one, "expires_at": 2_000_200_000} for one in intents.BANNED]
        case 9 if new["bans"]:
            rng.choice(new["bans"])["expires_at"] += rng.choice([-1, 1])
        case 10 if new["bindings"]["groups"]:
            new["bindings"]["groups"].pop(rng.randrange(len(new["bindings"]["groups"])))
        case _:
            new["bans"] = new["bans"][1:]


@settings(deadline=None, max_examples=long.times(200, 2_000))
@given(_SEEDS)
def test_what_narrows_an_intent_accepts_no_packet_that_was_stopped(seed):
    rng = random.Random(seed)
    document = intents.sound(rng)
    approved, new = decode.read(document), decode.read(changed(rng, document))
    if narrows(approved, new):
        found = widened(approved, new, rng)
        assert found is None, found


@settings(deadline=None, max_examples=long.times(100, 1_000))
@given(_SEEDS, _SEEDS)
def test_nor_does_it_between_any_two_intents(one, other):
    approved, new = intents.intent(random.Random(one)), intents.intent(random.Random(other))
    if narrows(approved, new):
        found = widened(approved, new, random.Random(one))
        assert found is None, found


def test_the_edits_are_of_both_kinds():
    """Else the properties above would say nothing: many edits narrow, and many that do not are seen by a packet."""
    allowed = seen = 0
    for seed in range(150):
        rng = random.Random(seed)
        document = intents.sound(rng)
        approved, new = decode.read(document), decode.read(changed(rng, document))
        if narrows(approved, new):
            allowed += approved != new
        elif widened(approved, new, rng):
            seen += 1
    assert allowed > 25
    assert seen > 15


BASE: dict[str, Any] = {
    "zones": [
        {"name": "lan", "interfaces": ["r1"], "forward": "leave"},
        {"name": "dmz", "interfaces": ["r0"], "forward": "guard"},
    ],
    "groups": [
        {"name": "ssh", "rules": [{"proto": "tcp", "ports": [22], "rate": {"packets": 10, "burst": 5}}]},
        {
            "name": "web",
            "rules": [
                {"action": "drop", "remote": ["192.0.2.0/24"]},
                {"proto": "tcp", "ports": [80, 443], "remote": ["10.0.0.0/8", "lan"]},
                {"dir": "forward", "proto": "tcp", "ports": [80]},
            ],
        },
    ],
    "bindings": {"groups": ["ssh", "web"], "overrides": [{"proto": "icmp"}], "trusted_zones": ["lan"]},
    "bans": [{"address": "198.51.100.1", "expires_at": 1_000}],
    "never": ["203.0.113.0/24"],
}


def edited(path: str, value: Any) -> Intent:
    """BASE with the value at `path` (names and numbers between dots) replaced; None takes it out."""
    document = copy.deepcopy(BASE)
    *way, last = (int(step) if step.isdigit() else step for step in path.split("."))
    place: Any = document
    for step in way:
        place = place[step]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return decode.read(document)


NARROWER = {
    "nothing": ("never", ["203.0.113.0/24"]),
    "a comment": ("groups.1.rules.0.comment", "x"),
    "a ban more": (
        "bans",
        [{"address": "192.0.2.1", "expires_at": 5}, {"address": "198.51.100.1", "expires_at": 1_000}],
    ),
    "a longer ban": ("bans.0.expires_at", 1_001),
    "an accepting rule less": ("groups.1.rules.1", None),
    "a group less that only accepts": ("bindings.groups", ["web"]),
    "fewer ports": ("groups.1.rules.1.ports", [443]),
    "fewer remotes": ("groups.1.rules.1.remote", ["10.1.0.0/16", "lan"]),
    "no zone as remote": ("groups.1.rules.1.remote", ["10.0.0.0/8"]),
    "a drop more": ("bindings.overrides", [{"action": "drop", "remote": ["10.0.0.1"]}, {"proto": "icmp"}]),
    "a wider drop": ("groups.1.rules.0.remote", ["192.0.0.0/16"]),
    "a lower rate": ("groups.0.rules.0.rate", {"packets": 9, "burst": 5}),
    "a lower rate in other words": ("groups.0.rules.0.rate", {"packets": 600, "per": "minute", "burst": 1}),
    "a rate where none was": ("groups.1.rules.2.rate", {"packets": 9}),
    "no trusted zone": ("bindings.trusted_zones", []),
    "a zone guarded": ("zones.0.forward", "guard"),
    "accept turned to drop": ("groups.1.rules.1.action", "drop"),
    "a drop of what leaves": (
        "bindings.overrides",
        [{"proto": "icmp"}, {"dir": "out", "action": "drop", "remote": ["192.0.2.1"]}],
    ),
}
WIDER = {
    "an earlier end of a ban": ("bans.0.expires_at", 999),
    "a ban less": ("bans", []),
    "never with less": ("never", []),
    "never with more": ("never", ["203.0.113.0/24", "192.0.2.0/24"]),
    "not managed": ("bindings.managed", False),
    "a drop less": ("groups.1.rules.0", None),
    "a narrower drop": ("groups.1.rules.0.remote", ["192.0.2.0/25"]),
    "more ports": ("groups.1.rules.1.ports", [80, 443, 8080]),
    "any port": ("groups.1.rules.1.ports", []),
    "any remote": ("groups.1.rules.1.remote", []),
    "another remote": ("groups.1.rules.1.remote", ["10.0.0.0/7"]),
    "any protocol": ("bindings.overrides.0.proto", "any"),
    "a higher rate": ("groups.0.rules.0.rate", {"packets": 11, "burst": 5}),
    "a larger burst": ("groups.0.rules.0.rate", {"packets": 10, "burst": 6}),
    "no rate": ("groups.0.rules.0.rate", None),
    "the same rate twice": (
        "groups.0.rules",
        [{"proto": "tcp", "ports": [22], "rate": {"packets": 10, "burst": 5}}] * 2,
    ),
    "the same rate for each half": (
        "groups.0.rules",
        [{"proto": "tcp", "ports": [22], "remote": [r], "rate": {"packets": 10}} for r in ("0.0.0.0/1", "128.0.0.0/1")],
    ),
    "another order of a drop and an accept": (
        "groups.1.rules",
        [*BASE["groups"][1]["rules"][1:], BASE["groups"][1]["rules"][0]],
    ),
    "another trusted zone": ("bindings.trusted_zones", ["lan", "dmz"]),
    "a zone left alone": ("zones.1.forward", "leave"),
    "a trusted zone with more": ("zones.0.interfaces", ["r1", "r2"]),
    "drop turned to accept": ("groups.1.rules.0.action", "accept"),
    "drop turned to reject": ("groups.1.rules.0.action", "reject"),
    "forwarded more": ("groups.1.rules.2.ports", [80, 81]),
    "in turned to forward": ("groups.1.rules.1.dir", "forward"),
}


@pytest.mark.parametrize("edit", NARROWER)
def test_what_only_takes_away_needs_no_approval(edit):
    assert narrows(decode.read(BASE), edited(*NARROWER[edit]))


@pytest.mark.parametrize("edit", WIDER)
def test_what_gives_needs_one(edit):
    assert not narrows(decode.read(BASE), edited(*WIDER[edit]))


def test_a_line_of_bans_stands_for_no_other_line():
    """Both tables drop what is banned; that does not make up for a drop of a whole family."""
    drop = {"action": "drop", "remote": ["0.0.0.0/0"]}
    rules = {"groups": [{"name": "a", "rules": [{}]}]}
    approved = decode.read({**rules, "bindings": {"groups": ["a"], "overrides": [drop]}})
    assert not narrows(approved, decode.read({**rules, "bindings": {"groups": ["a"]}}))


def test_an_expired_ban_may_go():
    assert narrows(decode.read(BASE), edited("bans", []), now_s=1_000)
    assert not narrows(decode.read(BASE), edited("bans", []), now_s=999)


def test_going_back_to_what_was_approved_needs_none():
    approved = decode.read(BASE)
    narrower = edited(*NARROWER["fewer ports"])
    assert narrows(approved, narrower)
    assert not narrows(narrower, approved), "not within the narrower one"
    assert narrows(approved, decode.read(BASE))


def test_the_largest_intents_are_judged_in_time():
    """Or not at all: the root helper must not be kept busy."""
    networks = [f"10.{n}.0.0/17" for n in range(256)]
    rules = [{"proto": "tcp", "ports": [n + 1], "remote": networks if n < 30 else []} for n in range(256)]
    groups = [{"name": f"g{n}", "rules": copy.deepcopy(rules)} for n in range(4)]
    for group in groups[1:]:
        for rule in group["rules"]:
            rule["remote"] = []
    approved = decode.read({"groups": groups, "bindings": {"groups": ["g0", "g1", "g2", "g3"]}})
    other = decode.read({"groups": groups, "bindings": {"groups": ["g3", "g2", "g1", "g0"]}})
    cidrs = [f"{n}.0.0.0/10" for n in range(1, 224)]
    zones = [{"name": f"z{n}", "cidrs": cidrs, "interfaces": [f"i{n}"], "forward": "guard"} for n in range(64)]
    guarded = decode.read({"zones": zones})
    renamed = decode.read({"zones": [{**zone, "interfaces": [f"j{n}"]} for n, zone in enumerate(zones)]})
    start = time.process_time()
    narrows(approved, other)
    narrows(other, approved)
    assert not narrows(guarded, renamed)
    assert not narrows(renamed, guarded)
    assert time.process_time() - start < 20
