"""What passes nft guard, with real packets between network namespaces."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from latticed.system.nft_guard import compile as compiler
from latticed.system.nft_guard import decode
from latticed.system.nft_guard import render as renderer
from latticed.system.nft_guard.bans import LiveBan
from latticed.system.nft_guard.render import render
from tests.house import firewalled
from tests.house.firewalled import ROUTER, reaches

pytestmark = pytest.mark.root

FOUR, SIX = ROUTER["a"][0], ROUTER["a"][1]
SSH = {"name": "ssh", "rules": [{"proto": "tcp", "ports": [22]}]}
ONLY_SSH = {"groups": [SSH], "bindings": {"groups": ["ssh"]}}
DOCKER = b"""
    table inet docker {
        chain prerouting {
            type nat hook prerouting priority dstnat
            tcp dport 8080 ip daddr 10.9.0.1 dnat ip to 10.9.2.2:80
        }
    }
"""
COUNTED = b"""
    table inet counted {
        counter passed {
        }
        chain input {
            type filter hook input priority filter + 10
            %s counter name passed
        }
    }
"""
"""Behind nft guard at the same hook: it sees what nft guard accepted, and nothing else."""


@pytest.fixture(scope="module")
def net() -> Iterator[firewalled.Net]:
    with firewalled.network() as made, firewalled.servers(made):
        yield made


@pytest.fixture(autouse=True)
def no_foreign_table(net) -> Iterator[None]:
    yield
    net.run("r", "nft", "flush", "ruleset")


def counting(net: firewalled.Net, match: bytes) -> None:
    net.run("r", "nft", "-f", "-", stdin=COUNTED % match)


def passed(net: firewalled.Net) -> int:
    """Packets that came through; waits a little for one that is under way."""
    end = time.monotonic() + 2
    while True:
        words = net.run("r", "nft", "list", "counter", "inet", "counted", "passed").split()
        count = int(words[words.index(b"packets") + 1])
        if count or time.monotonic() > end:
            return count


@pytest.mark.parametrize("address", [FOUR, SIX])
def test_port_22_is_open_and_23_is_dropped(net, address):
    net.load(render(decode.read(ONLY_SSH)))
    assert reaches(net, "a", address, 22, expected=True)
    assert not reaches(net, "a", address, 23, expected=False)
    assert not reaches(net, "a", address, 22, proto="udp", expected=False)


def test_neighbours_are_found_under_default_drop(net):
    net.load(render(decode.read(ONLY_SSH)))
    for _ in range(2):
        for letter in "ra":
            net.run(letter, "ip", "-6", "neigh", "flush", "dev", "r0" if letter == "r" else "eth0")
        assert reaches(net, "a", SIX, 22, expected=True)


def test_without_those_lines_they_would_not_be_found(net):
    """What the test above shows is not there anyway."""
    table = compiler.table(decode.read(ONLY_SSH))
    deaf = replace(
        table,
        chains=tuple(
            replace(chain, lines=tuple(line for line in chain.lines if line not in compiler.LINK))
            for chain in table.chains
        ),
    )
    net.load("".join(line + "\n" for line in renderer.lines(deaf)).encode())
    for letter in "ra":
        net.run(letter, "ip", "-6", "neigh", "flush", "dev", "r0" if letter == "r" else "eth0")
    assert not reaches(net, "a", SIX, 22, expected=False)


def test_packet_too_big_passes_though_it_belongs_to_no_connection(net):
    net.load(render(decode.read(ONLY_SSH)))
    counting(net, b"icmpv6 type packet-too-big")
    inner = bytes.fromhex("6000000000080640") + socket.inet_pton(socket.AF_INET6, SIX) + bytes(16) + bytes(8)
    with net.inside("a"), socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        raw.sendto(struct.pack("!BBHI", 2, 0, 0, 1_280) + inner, (SIX, 0))
    assert passed(net) == 1


def test_fragmentation_needed_passes_though_it_belongs_to_no_connection(net):
    net.load(render(decode.read(ONLY_SSH)))
    counting(net, b"icmp type destination-unreachable")
    inner = bytes.fromhex("450000240000000040060000") + socket.inet_aton(FOUR) + bytes(4) + bytes(8)
    message = struct.pack("!BBHHH", 3, 4, 0, 0, 1_280) + inner
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    with net.inside("a"), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.sendto(message, (FOUR, 0))
    assert passed(net) == 1


def checksum(message: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


@pytest.mark.parametrize(
    ("family", "source", "port", "passes"),
    [(4, 67, 68, True), (4, 66, 68, False), (6, 547, 546, True), (6, 547, 545, False)],
)
def test_dhcp_replies_pass(net, family, source, port, passes):
    net.load(render(decode.read(ONLY_SSH)))
    counting(net, b"udp dport 545-546" if family == 6 else b"udp dport 68")
    with (
        net.inside("a"),
        socket.socket(socket.AF_INET6 if family == 6 else socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.bind(("", source))
        sender.sendto(
            b"reply", (link_local(net), port, 0, socket.if_nametoindex("eth0")) if family == 6 else (FOUR, port)
        )
    assert (passed(net) > 0) is passes


def link_local(net: firewalled.Net) -> str:
    words = net.run("r", "ip", "-6", "-o", "address", "show", "dev", "r0", "scope", "link").split()
    return words[words.index(b"inet6") + 1].split(b"/")[0].decode()


@pytest.mark.parametrize("address", [FOUR, SIX])
def test_an_open_stream_survives_an_apply_that_closes_its_port(net, address):
    net.load(render(decode.read(ONLY_SSH)))
    with net.inside("r"):
        listener = firewalled.listening(address, 2_022)
    with listener, net.inside("a"):
        opened = {
            "groups": [{"name": "x", "rules": [{"proto": "tcp", "ports": [2_022]}]}],
            "bindings": {"groups": ["x"]},
        }
        net.load(render(decode.read(opened)))
        with socket.create_connection((address, 2_022), timeout=10) as stream:
            assert select.select([listener], [], [], 10)[0]
            with listener.accept()[0] as other:
                other.settimeout(10)
                for bindings in (opened, ONLY_SSH, {}, opened, ONLY_SSH):
                    net.load(render(decode.read(bindings)))
                    stream.sendall(b"ping")
                    assert other.recv(4) == b"ping"
                    other.sendall(b"pong")
                    assert stream.recv(4) == b"pong"
    assert not reaches(net, "a", address, 2_022, expected=False)


@pytest.mark.parametrize(("address", "banned"), [(FOUR, "10.9.0.2"), (SIX, "fd09:0:0:a::77")])
def test_a_ban_drops_its_address_and_ends(net, address, banned):
    """Of IPv6 its whole /64."""
    intent = decode.read({**ONLY_SSH, "bans": [{"address": banned, "expires_at": 2_000_000_000}]})
    (ban,) = intent.bans
    net.load(render(intent, bans=[LiveBan(ban.network, 3_600)]))
    assert not reaches(net, "a", address, 22, expected=False)
    assert reaches(net, "b", ROUTER["b"][0] if address == FOUR else ROUTER["b"][1], 22, expected=True)
    net.load(render(intent, bans=[LiveBan(ban.network, 1)]))
    end = time.monotonic() + 10
    while not reaches(net, "a", address, 22, expected=False):
        assert time.monotonic() < end


@pytest.mark.parametrize(
    ("forward", "rules", "open_to_clients"),
    [
        ("leave", [], True),
        ("guard", [], False),
        ("guard", [{"dir": "in", "proto": "tcp", "ports": [8080]}], False),
        ("guard", [{"dir": "forward", "proto": "tcp", "ports": [80]}], True),
    ],
)
def test_a_port_that_a_foreign_table_publishes_is_guarded_or_left_as_its_zone_says(
    net, forward, rules, open_to_clients
):
    """As Docker does: DNAT to a container, so that the packet passes the forward hook and never the input hook."""
    net.run("r", "nft", "-f", "-", stdin=DOCKER)
    document = {
        "zones": [{"name": "outside", "interfaces": ["r0"], "forward": forward}],
        "groups": [SSH, {"name": "web", "rules": rules}],
        "bindings": {"groups": ["ssh", "web"]},
    }
    before = net.run("r", "nft", "-a", "list", "table", "inet", "docker")
    net.load(render(decode.read(document)))
    assert reaches(net, "a", FOUR, 8080, expected=open_to_clients) is open_to_clients
    assert reaches(net, "b", "10.9.2.2", 443, expected=True), "another zone than the guarded"
    assert net.run("r", "nft", "-a", "list", "table", "inet", "docker") == before


def test_rules_for_what_leaves_hold_it_back_and_leave_answers_alone(net):
    document = {
        "groups": [SSH, {"name": "out", "rules": [{"dir": "out", "action": "drop"}]}],
        "bindings": {"groups": ["ssh", "out"]},
    }
    net.load(render(decode.read(document)))
    net.run("r", "ip", "-6", "neigh", "flush", "dev", "r0")
    assert not reaches(net, "r", "10.9.2.2", 80, expected=False)
    assert reaches(net, "a", FOUR, 22, expected=True)
    assert reaches(net, "a", SIX, 22, expected=True)
