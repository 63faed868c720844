"""What is rendered for WireGuard in the real wg, wireguard-go and nft: taken, and read back as it was meant."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from latticed.system.wireguard import applied, dump, reach, render
from tests.house import firewalled, tunnels, wireguards

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def net() -> Iterator[firewalled.Net]:
    with firewalled.network() as made:
        yield made


@pytest.fixture(scope="module")
def device(net) -> Iterator[str]:
    with wireguards.interface(net, "r", wireguards.unique()) as name:
        yield name


@pytest.mark.parametrize("seed", range(25))
def test_random_intents_are_taken_and_read_back_as_they_were_meant(net, device, seed):
    intent = tunnels.intent(random.Random(seed))
    secrets = {name: wireguards.genkey()[0] for name in render.references(intent)}
    wanted = applied.read(render.render(intent, secrets))
    for link in wanted.links:
        wireguards.setconf(
            net, "r", device, applied.setconf(link), how=random.Random(seed).choice(["setconf", "syncconf"])
        )
        found = dump.read(net.run("r", "wg", "show", device, "dump"))
        assert (found.private_key, found.listen_port) == (link.private_key, link.listen_port)
        assert {one.public_key: (one.preshared_key, one.allowed, one.keepalive_s) for one in found.peers} == {
            one.public_key: (one.preshared_key, one.allowed, one.keepalive_s) for one in link.peers
        }
        endpoints = {one.public_key: one.endpoint for one in found.peers}
        assert all(endpoints[one.public_key] == one.endpoint for one in link.peers if one.endpoint)
    net.load(wanted.table.encode())
    if intent.networks:
        listing = json.loads(net.run("r", "nft", "-j", "list", "table", reach.FAMILY, reach.NAME))
        assert reach.listed(listing)[1] == wanted.table
        _grow(net, intent, random.Random(seed))
        net.load(reach.REMOVED.encode())


def _grow(net, intent, rng):
    """Take a member out, and add it again without replacing a rule, where that is possible."""
    tunnel = rng.choice(intent.networks)
    if not tunnel.members:
        return
    less = replace(tunnel, members=tuple(rng.sample(tunnel.members, len(tunnel.members) - 1)))
    few = replace(intent, networks=tuple(less if one is tunnel else one for one in intent.networks))
    have, wanted = reach.text(reach.table(few)), reach.text(reach.table(intent))
    more = reach.additions(have, wanted)
    if more:
        net.load(have.encode())
        net.load(more.encode())
        assert (
            reach.listed(json.loads(net.run("r", "nft", "-j", "list", "table", reach.FAMILY, reach.NAME)))[1] == wanted
        )
