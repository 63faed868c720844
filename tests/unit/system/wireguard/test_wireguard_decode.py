"""Intents of WireGuard from JSON: what is taken, and what is refused with its place, before wg could see it."""

from __future__ import annotations

import copy
import random

import pytest

from latticed.system.findings import IntentRefused
from latticed.system.nft_guard.intent import Proto
from latticed.system.wireguard import decode
from latticed.system.wireguard.intent import Endpoint, Place, Topology
from tests.house import tunnels

HOSTILE = (
    *("x\n[Peer]", "x\n", "\nx", "x;y", "x y", "x\ty", "x\x00", "x\x1b[31m", "x#y", "x=y", 'x"', "x'", "x$y", "x`y`"),
    *(
        "x\u2028",
        "xé",
        "x\ud800",
        "\u0661",
        "x{",
        "x}",
        "x|y",
        "x&y",
        "x<y",
        "x>y",
        "$(id)",
        "../x",
        "x/y",
        "x%i",
        "ｘ",
    ),
)
KEYS = (
    *HOSTILE,
    *("", "=", "A" * 43, "A" * 44, "A" * 43 + "=", tunnels.SERVER_KEY[:-1], tunnels.SERVER_KEY + "=", "!" * 43 + "="),
    *(f"{tunnels.SERVER_KEY}\n", f" {tunnels.SERVER_KEY}", tunnels.SERVER_KEY.replace("=", ""), "A" * 42 + "B="),
    *("0" * 64, None, 1, True, [tunnels.SERVER_KEY], {"key": tunnels.SERVER_KEY}, "(none)", "${secret:WG}"),
)
INTERFACES = (*HOSTILE, "", ".", "-x", "a" * 16, "eth*", "a:b", "wg0\n", None, 1, [])
PORTS = (0, -1, 70_000, 65_536, 2**70, 1.5, True, None, "51820", [51_820])
SECRETS = (
    *HOSTILE,
    tunnels.SERVER_KEY,
    *(
        "",
        "WG",
        "${secret:}",
        "${secret:wg}",
        "${secret:WG",
        "${secret:WG}x",
        "x${secret:WG}",
        "${secret:WG#}",
        None,
        1,
    ),
    *("${secret:WG#a b}", "${secret:WG}\n", "${secret:WG#a\n}", "${secret:WG#a/b}", "${secret:WG}${secret:WG}"),
)
MEMBER_ADDRESSES = (
    *HOSTILE,
    *(
        "",
        "10.80.0.2/24",
        "10.80.0.0/31",
        "0.0.0.0/0",
        "::/0",
        "fd80::2/64",
        "10.80.0.2/33",
        "10.80.0.2-9",
        "::ffff:1.2.3.4",
    ),
    *("fe80::1%eth0", "10.80.0.02", "0x0a500002", "173015042", "10.80.0.2\n", None, 1, {}),
)
ENDPOINTS = (
    *HOSTILE,
    *(
        "",
        "vpn.example.org",
        "vpn.example.org:0",
        "vpn.example.org:70000",
        ":51820",
        "2001:db8::1:51820",
        "[::1]",
        "[]:1",
    ),
    *(
        "[::ffff:10.0.0.1]:1",
        "a..b:1",
        "-a.b:1",
        "a.b-:1",
        "1.2.3:1",
        "1.2.3.4.5:1",
        "[fe80::1%eth0]:1",
        "a_b:1",
        None,
        1,
    ),
    *(
        "vpn.example.org:51820\n",
        "vpn.example.org:51820 ",
        "vpn.example.org:+51820",
        "vpn.example.org:٥",
        "a" * 300 + ":1",
    ),
)


def refusal(document):
    with pytest.raises(IntentRefused) as caught:
        decode.read(document)
    return caught.value.findings


def test_an_intent_with_every_field():
    document = tunnels.document(
        topology="mesh",
        public_key=tunnels.SERVER_KEY,
        dns=["10.80.0.1"],
        routes=["10.80.0.0/24"],
        mtu=1400,
        keepalive_s=15,
        may_reach=["server", {"to": "192.168.1.0/24", "proto": "tcp", "ports": [443, "8000-8010"]}],
        held=[{"id": "old", "addresses": ["10.80.0.9"]}],
        members=[
            tunnels.member(
                "anna",
                2,
                name="Anna",
                preshared_key="${secret:PSK#anna}",
                subnets=["192.168.9.0/24"],
                endpoint="[2001:DB8::1]:1",
                enabled=False,
                expires_at=9,
                may_reach=[],
            )
        ],
    )
    (network,) = decode.read(document).networks
    (member,) = network.members
    assert (network.topology, network.private_key, network.keepalive_s) == (Topology.MESH, "WG_HOME", 15)
    assert network.may_reach[0].to is Place.SERVER
    assert network.may_reach[1].proto is Proto.TCP
    assert network.may_reach[1].ports[1].high == 8010
    assert (member.preshared_key, member.enabled, member.expires_at, member.may_reach) == ("PSK#anna", False, 9, ())
    assert member.endpoint == Endpoint(host="2001:db8::1", port=1)
    assert str(member.endpoint) == "[2001:db8::1]:1"


@pytest.mark.parametrize(
    ("change", "values", "code", "path"),
    [
        ("name", INTERFACES, "bad_interface", "networks[0].name"),
        ("listen_port", PORTS, "bad_number", "networks[0].listen_port"),
        ("private_key", SECRETS, "bad_secret", "networks[0].private_key"),
        ("public_key", KEYS, "bad_key", "networks[0].public_key"),
        ("endpoint", ENDPOINTS, "bad_endpoint", "networks[0].endpoint"),
        ("mtu", (0, 1279, 9001, "1420", None, 1.5), "bad_number", "networks[0].mtu"),
        ("topology", (*HOSTILE, "star", None, 1), "bad_choice", "networks[0].topology"),
    ],
)
def test_hostile_values_of_a_network_are_refused_with_their_place(change, values, code, path):
    for value in values:
        (found,) = refusal(tunnels.document(**{change: value}))
        assert (found.code, found.path) == (code, path), value
        assert found.found.isascii()
        assert found.found.isprintable()


@pytest.mark.parametrize(
    ("change", "values", "codes"),
    [
        ("id", (*HOSTILE, "", "A", "1a", "a" * 33, None, 1), {"bad_name"}),
        ("name", (*[one for one in HOSTILE if one not in {"x y", "../x", "x/y"}], "a" * 129, None), {"bad_comment"}),
        ("public_key", KEYS, {"bad_key"}),
        ("preshared_key", SECRETS, {"bad_secret"}),
        ("endpoint", ENDPOINTS, {"bad_endpoint"}),
        ("expires_at", (-1, 2**60, "soon", 1.5, None), {"bad_number"}),
        ("enabled", (0, 1, "yes", None), {"wrong_type"}),
    ],
)
def test_hostile_values_of_a_member_are_refused(change, values, codes):
    for value in values:
        findings = refusal(tunnels.document(members=[tunnels.member("anna", 2, **{change: value})]))
        assert {one.code for one in findings} == codes, value


def test_a_member_has_single_addresses_alone():
    for value in MEMBER_ADDRESSES:
        (found,) = refusal(tunnels.document(members=[tunnels.member("anna", 2, addresses=[value])]))
        assert found.path == "networks[0].members[0].addresses[0]"
        assert found.code in {"bad_address", "member_too_wide"}
    (found,) = refusal(tunnels.document(members=[tunnels.member("anna", 2, addresses=["10.80.0.0/25"])]))
    assert found.code == "member_too_wide"
    assert "subnets" in found.hint


def test_a_secret_in_clear_is_refused_and_not_repeated():
    (found,) = refusal(tunnels.document(private_key=tunnels.SERVER_KEY))
    assert tunnels.SERVER_KEY not in repr(found)
    (found,) = refusal(tunnels.document(members=[tunnels.member("anna", 2, preshared_key=tunnels.SERVER_KEY)]))
    assert tunnels.SERVER_KEY not in repr(found)


@pytest.mark.parametrize("hook", ["PostUp", "PreDown", "SaveConfig", "Table"])
def test_options_of_wg_quick_that_run_commands_are_refused_by_name(hook):
    (found,) = refusal(tunnels.document(**{hook: "iptables -F"}))
    assert (found.code, found.path) == ("hook", "networks[0]")
    assert "iptables" not in str(found)
    (found,) = refusal(tunnels.document(members=[tunnels.member("anna", 2, **{hook: "true"})]))
    assert (found.code, found.path) == ("hook", "networks[0].members[0]")


def test_what_an_intent_lacks_is_said_at_once():
    found = refusal({"networks": [{"members": [{}]}], "extra": 1})
    assert {(one.code, one.path) for one in found} == {
        ("unknown_key", "extra"),
        *(("missing_key", f"networks[0].{name}") for name in ("name", "listen_port", "private_key", "addresses")),
        *(("missing_key", f"networks[0].members[0].{name}") for name in ("id", "public_key", "addresses")),
    }


def test_ports_take_a_protocol_that_has_them():
    (found,) = refusal(tunnels.document(may_reach=[{"to": "server", "ports": [22]}]))
    assert (found.code, found.path) == ("ports_without_protocol", "networks[0].may_reach[0].ports")


def test_more_members_than_a_plan_holds_are_refused():
    members = [tunnels.member(f"m{n}", 2) for n in range(2_001)]
    (found,) = refusal(tunnels.document(members=members))
    assert found.code == "too_many"


@pytest.mark.parametrize("value", [None, 1, "x", [], {"networks": {}}, {"networks": [None]}, {"networks": "x"}])
def test_other_documents_are_no_intents(value):
    if value == []:
        assert refusal(value)[0].code == "wrong_type"
    else:
        assert refusal(value)[0].path in {"intent", "networks", "networks[0]"}


@pytest.mark.parametrize("seed", range(200))
def test_mutated_documents_are_read_or_refused_with_findings(seed):
    rng = random.Random(seed)
    document = tunnels.sound(rng)
    junk = [None, True, -1, 2**80, 1.5, "", "x\n", [], {}, [[]], {"a": 1}, *HOSTILE]
    for _ in range(rng.randrange(1, 4)):
        spot = document
        while True:
            keys = list(spot) if isinstance(spot, dict) else list(range(len(spot)))
            if not keys:
                break
            place = rng.choice(keys)
            if isinstance(spot[place], (dict, list)) and rng.random() < 0.7:
                spot = spot[place]
                continue
            spot[place] = copy.deepcopy(rng.choice(junk))
            break
    found = ()
    try:
        decode.read(document)
    except IntentRefused as refused:
        found = refused.findings
    assert all(one.found.isascii() and one.found.isprintable() for one in found)
