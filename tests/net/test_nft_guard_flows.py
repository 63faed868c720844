"""The packet model of nft guard against packets that are really sent: whatever it says is what the kernel does."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from latticed.system.nft_guard import compile as compiler
from latticed.system.nft_guard import packets
from latticed.system.nft_guard.bans import LiveBan
from latticed.system.nft_guard.intent import Intent
from latticed.system.nft_guard.render import render
from tests.house import firewalled, intents
from tests.house.firewalled import CLIENTS, INTERFACES, ROUTER, Flow

pytestmark = pytest.mark.root

ROUNDS = 15
FLOWS = 25
_met: Counter[tuple[str, str, str, int]] = Counter()


@pytest.fixture(scope="module")
def net() -> Iterator[firewalled.Net]:
    with firewalled.network() as made, firewalled.servers(made):
        yield made


def flow(rng: random.Random) -> Flow:
    """From a client to the firewall, to another client or to the server, or from the firewall to one of them."""
    start = rng.choice("aaabbr")
    end = rng.choice([one for one in "rrabc" if one != start])
    version = rng.choice([4, 6])
    to_own = [one for one in ROUTER[start] if firewalled.version(one) == version] if start in ROUTER else []
    ends = to_own if end == "r" else [one for one in CLIENTS[end] if firewalled.version(one) == version]
    starts = ROUTER[end] if start == "r" else CLIENTS[start]
    return Flow(
        start=start,
        source=rng.choice([one for one in starts if firewalled.version(one) == version]),
        destination=rng.choice(ends),
        proto=rng.choice(["tcp", "udp"]),
        port=rng.choice(intents.PORTS),
    )


def packet(sent: Flow) -> packets.Packet:
    """The flow's first packet, as the firewall sees it."""
    ends = {one: letter for letter, addresses in CLIENTS.items() for one in addresses}
    end = ends.get(sent.destination, "r")
    return packets.Packet(
        hook="output" if sent.start == "r" else "input" if end == "r" else "forward",
        source=ipaddress.ip_address(sent.source),
        destination=ipaddress.ip_address(sent.destination),
        inbound=INTERFACES.get(sent.start, ""),
        outbound=INTERFACES.get(end, ""),
        proto=sent.proto,
        sport=20_000,
        dport=sent.port,
    )


def loaded(net: firewalled.Net, intent: Intent) -> None:
    net.load(render(intent, bans=[LiveBan(ban.network, 3_600) for ban in intent.bans]))


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_what_the_model_says_of_random_flows_is_what_becomes_of_them(net, seed):
    rng = random.Random(1_000 + seed)
    intent = intents.intent(rng)
    loaded(net, intent)
    flows = [flow(rng) for _ in range(FLOWS)]
    table = compiler.table(intent)
    banned = [ban.network for ban in intent.bans]
    decisions = [packets.decide(table, packet(one), banned=banned) for one in flows]
    found = firewalled.outcomes(net, flows, [decision.verdict for decision in decisions])
    differing = [
        (one, decision.verdict, decision.line, outcome)
        for one, decision, outcome in zip(flows, decisions, found, strict=True)
        if decision.verdict != outcome
    ]
    assert not differing, "\n".join(map(str, differing))
    for one, outcome in zip(flows, found, strict=True):
        _met[packet(one).hook, one.proto, outcome, firewalled.version(one.source)] += 1


def test_those_flows_met_every_hook_protocol_family_and_verdict():
    """Otherwise the agreement above would be one about nothing."""
    assert sum(_met.values()) == ROUNDS * FLOWS
    wanted = {
        (hook, proto, verdict, version)
        for hook in ("input", "forward")
        for proto in ("tcp", "udp")
        for verdict in ("accept", "drop")
        for version in (4, 6)
    }
    assert wanted - set(_met) == set()
    assert {verdict for _, _, verdict, _ in _met} == {"accept", "drop", "reject"}
