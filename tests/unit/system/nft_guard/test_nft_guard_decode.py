"""Intents from JSON: what is taken, and what is refused with its place, before nft could see it."""

from __future__ import annotations

import itertools

import pytest

from latticed.system.findings import IntentRefused
from latticed.system.nft_guard import decode
from latticed.system.nft_guard.intent import Action, Direction, Forward, Ports, Proto, Rate

TEXTS = (
    *('x" accept; flush ruleset', "x\naccept", "x\n", "\nx", "x;", "x{", "x}", 'x"', "x'", "x\\", "x$y", "x#y", "x`y"),
    *(
        "x\x00",
        "x\x1b[31m",
        "x\u202ey",
        "xé",
        "x\ud800",
        "x\u2028",
        "\u0661",
        "x\r",
        "x\t",
        "x*y?",
        "x<y",
        "x&y",
        "x|y",
    ),
    *("x(y)", "x[y]", "x,y", "x=y", "x!y", "x~y", "x^y", "x%y", "x+y", "ｘ", "x\u00a0y", "x\u200by"),
)
NAMES = (*TEXTS, "", " ", "X", "1a", "-a", "_a", "a" * 33, "a b", "a.b", "a/b", "a@b", "a:b", "../a", "input ", "é")
COMMENTS = (*TEXTS, "a" * 129, "a" * 10_000)
INTERFACES = (*TEXTS, "", " ", ".", "..", "-x", "a" * 16, "eth*", "*", "eth 0", "a/b", "a:b", "a@b", "eth0\n", "é")
ADDRESSES = (
    *(
        "",
        "localhost",
        "example.org",
        "10.0.0.1/8",
        "10.0.0",
        "10.0.0.0/33",
        "1",
        "0x7f000001",
        "10.0.0.1 ",
        "010.0.0.1",
    ),
    *(
        "10.0.0.0/255.0.0.0",
        "10.0.0.1-10.0.0.9",
        "fe80::1%eth0",
        "::ffff:10.0.0.1",
        "::ffff:10.0.0.0/104",
        "2001:db8::1/64",
    ),
    *(
        "10.0.0.1\n",
        "10.0.0.1;drop",
        "@bans4",
        "$x",
        "{ 10.0.0.1 }",
        "1.2.3.4/",
        "/8",
        "::/129",
        ":::",
        "١.2.3.4",
        "::1/1_0",
    ),
)
PORTS = (
    *(
        0,
        -1,
        65_536,
        2**70,
        10**5_000,
        1.5,
        True,
        None,
        "",
        "0",
        "22;drop",
        "22-",
        "-22",
        "90-80",
        "0-22",
        "1-65536",
        "ssh",
    ),
    *("22 ", " 22", "22\n", "+22", "2_2", "٢٢", "22-23-24", "0x16", [22], {"from": 1}, "{ 22 }", "022222"),
)
HOSTILE = (
    *(("zones", [{"name": one, "interfaces": ["eth0"]}], "zones[0].name") for one in NAMES),
    *(("groups", [{"name": one}], "groups[0].name") for one in NAMES),
    *(("bindings", {"trusted_zones": [one]}, "bindings.trusted_zones[0]") for one in NAMES),
    *(("bindings", {"overrides": [{"comment": one}]}, "bindings.overrides[0].comment") for one in COMMENTS),
    *(("bans", [{"address": "192.0.2.1", "expires_at": 1, "comment": one}], "bans[0].comment") for one in COMMENTS),
    *(("zones", [{"name": "a", "interfaces": [one]}], "zones[0].interfaces[0]") for one in INTERFACES),
    *(("zones", [{"name": "a", "cidrs": [one]}], "zones[0].cidrs[0]") for one in ADDRESSES),
    *(("never", [one], "never[0]") for one in ADDRESSES),
    *(
        ("bindings", {"overrides": [{"proto": "tcp", "ports": [one]}]}, "bindings.overrides[0].ports[0]")
        for one in PORTS
    ),
)


def refused(document):
    with pytest.raises(IntentRefused) as caught:
        decode.read(document)
    return caught.value.findings


def test_a_whole_document():
    intent = decode.read(
        {
            "zones": [{"name": "lan", "interfaces": ["eth1"], "cidrs": ["10.0.0.0/24"], "forward": "guard"}],
            "groups": [
                {
                    "name": "ssh",
                    "rules": [
                        {
                            "dir": "in",
                            "action": "accept",
                            "proto": "tcp",
                            "ports": [22, "2200-2210"],
                            "remote": ["lan", "2001:db8::/32", "192.0.2.1"],
                            "rate": {"packets": 10, "per": "minute", "burst": 3},
                            "log": True,
                            "comment": "ops@example.org: see /x_1",
                        }
                    ],
                }
            ],
            "bindings": {"groups": ["ssh"], "overrides": [], "trusted_zones": ["lan"], "managed": True},
            "bans": [{"address": "2001:db8:1:2:3::4", "expires_at": 1_900_000_000}],
            "never": ["198.51.100.0/24"],
        }
    )
    (zone,) = intent.zones
    assert (zone.name, zone.interfaces, zone.forward) == ("lan", ("eth1",), Forward.GUARD)
    (rule,) = intent.groups[0].rules
    assert (rule.direction, rule.action, rule.proto, rule.log) == (Direction.IN, Action.ACCEPT, Proto.TCP, True)
    assert rule.ports == (Ports(22, 22), Ports(2_200, 2_210))
    assert (rule.remote_zones, [str(one) for one in rule.remotes]) == (("lan",), ["2001:db8::/32", "192.0.2.1/32"])
    assert rule.rate == Rate(packets=10, per="minute", burst=3)
    assert [str(ban.network) for ban in intent.bans] == ["2001:db8:1:2::/64"]


def test_nothing_at_all_is_a_firewall_that_drops_all_that_comes_in():
    assert decode.read({}).bindings.managed


@pytest.mark.parametrize(("key", "value", "path"), HOSTILE)
def test_hostile_names_comments_interfaces_addresses_and_ports_are_refused_by_their_place(key, value, path):
    (finding,) = refused({key: value})
    assert finding.path == path
    assert finding.found.isascii()
    assert finding.found.isprintable()
    assert len(str(finding)) < 300


def test_there_are_more_than_two_hundred_of_them():
    assert len(HOSTILE) > 200


@pytest.mark.parametrize(
    ("document", "code", "path", "found"),
    [
        ([], "wrong_type", "intent", "a list"),
        (None, "wrong_type", "intent", "null"),
        ({"zone": []}, "unknown_key", "zone", "'zone'"),
        ({"Zones\n": []}, "unknown_key", "intent", r"'Zones\n'"),
        ({1: []}, "unknown_key", "intent", "1"),
        ({"zones": {}}, "wrong_type", "zones", "an object"),
        ({"zones": [[]]}, "wrong_type", "zones[0]", "a list"),
        ({"zones": [{"name": "a", "cidr": []}]}, "unknown_key", "zones[0].cidr", "'cidr'"),
        ({"zones": [{}]}, "missing_key", "zones[0].name", "none"),
        ({"zones": [{"name": "a"}, {"name": "a"}]}, "duplicate", "zones[1].name", "'a'"),
        ({"groups": [{"name": "a"}, {"name": "a"}]}, "duplicate", "groups[1].name", "'a'"),
        ({"bindings": {"groups": ["a", "a"]}}, "duplicate", "bindings.groups[1]", "'a'"),
        ({"bindings": None}, "wrong_type", "bindings", "null"),
        ({"bindings": {"managed": 1}}, "wrong_type", "bindings.managed", "1"),
        ({"bindings": {"overrides": [{"dir": "up"}]}}, "bad_choice", "bindings.overrides[0].dir", "'up'"),
        ({"bindings": {"overrides": [{"action": []}]}}, "bad_choice", "bindings.overrides[0].action", "a list"),
        ({"bindings": {"overrides": [{"rate": None}]}}, "wrong_type", "bindings.overrides[0].rate", "null"),
        ({"bindings": {"overrides": [{"rate": {}}]}}, "missing_key", "bindings.overrides[0].rate.packets", "none"),
        (
            {"bindings": {"overrides": [{"rate": {"packets": True}}]}},
            "bad_number",
            "bindings.overrides[0].rate.packets",
            "true",
        ),
        ({"bans": [{"address": "192.0.2.1"}]}, "missing_key", "bans[0].expires_at", "none"),
        ({"bans": [{"address": "192.0.2.1", "expires_at": 1.5}]}, "bad_number", "bans[0].expires_at", "a fraction"),
        (
            {"bans": [{"address": "192.0.2.1", "expires_at": 10**400}]},
            "bad_number",
            "bans[0].expires_at",
            "an integer of more than 64 bits",
        ),
        ({"bans": [{"address": "192.0.2.0/24", "expires_at": 1}]}, "bad_ban", "bans[0].address", "'192.0.2.0/24'"),
        ({"bans": [{"address": "2001:db8::/48", "expires_at": 1}]}, "bad_ban", "bans[0].address", "'2001:db8::/48'"),
        (
            {"bans": [{"address": "2001:db8::1", "expires_at": 1}, {"address": "2001:db8::2", "expires_at": 2}]},
            "duplicate",
            "bans[1].address",
            "'2001:db8::/64'",
        ),
    ],
)
def test_what_has_another_form_is_refused_by_its_place(document, code, path, found):
    (finding,) = refused(document)
    assert (finding.code, finding.path, finding.found) == (code, path, found)


def test_limits_are_named():
    many = [{"name": f"g{number}"} for number in range(129)]
    assert [one.path for one in refused({"groups": many})] == ["groups"]
    rules = [{"name": f"g{number}", "rules": [{}] * 256} for number in range(5)]
    (finding,) = refused({"groups": rules})
    assert (finding.code, finding.found) == ("too_many", "1280")
    ports = {"name": "a", "rules": [{"proto": "tcp", "ports": ["1-1000"]}, {"proto": "udp", "ports": ["1-25"]}]}
    (finding,) = refused({"groups": [ports]})
    assert (finding.code, finding.path, finding.found) == ("too_many_ports", "groups[0].rules", "1025")
    ports["rules"][1]["ports"] = ["1-24"]
    assert decode.read({"groups": [ports]})


def test_deep_nesting_is_a_wrong_type_where_it_begins():
    deep: object = []
    for _ in range(100_000):
        deep = [deep]
    assert [(one.code, one.path) for one in refused({"zones": [deep]})] == [("wrong_type", "zones[0]")]
    assert [(one.code, one.path) for one in refused({"never": [deep]})] == [("bad_address", "never[0]")]
    while deep:  # taken apart by hand: freeing it would go as deep
        (deep,) = deep


def test_all_faults_are_told_at_once_and_not_without_end():
    found = refused({"zones": [{"name": "A"}, {"name": "B"}], "never": ["x.y"], "bindings": {"managed": "yes"}})
    assert [one.path for one in found] == ["zones[0].name", "zones[1].name", "bindings.managed", "never[0]"]
    document = {"bans": [{str(key): 1 for key in itertools.islice(itertools.count(), 60)}] * 4_000}
    assert len(refused(document)) == 100
