"""What an intent means: refused where it cannot be meant, or would lock the operator out."""

from __future__ import annotations

import ipaddress
import time
from dataclasses import replace

import pytest

from latticed.system.nft_guard import check, decode
from latticed.system.nft_guard import compile as compiler
from latticed.system.nft_guard.facts import Interface, Listener, LiveFacts, SshSession

SSH = {"name": "ssh", "rules": [{"proto": "tcp", "ports": [22]}]}
OPEN = {"groups": [SSH], "bindings": {"groups": ["ssh"]}}
address = ipaddress.ip_address
FACTS = LiveFacts(
    interfaces=(
        Interface(name="lo", addresses=(address("127.0.0.1"), address("::1"))),
        Interface(name="eth0", addresses=(address("203.0.113.1"), address("2001:db8::1")), default_route=True),
        Interface(name="wg0", addresses=(address("10.8.0.1"),)),
    ),
    listeners=(
        Listener(port=22, address=address("0.0.0.0"), process="sshd"),
        Listener(port=22, address=address("::"), process="sshd"),
    ),
    sshd_ports=(22,),
    approver=SshSession(peer=address("198.51.100.9"), local=address("203.0.113.1")),
    sessions=(SshSession(peer=address("198.51.100.9"), local=address("203.0.113.1")),),
    foreign_tables=("ip nat", "ip filter"),
)


def found(document, facts=None):
    return [(one.code, one.path) for one in check.check(decode.read(document), facts)]


def overridden(*rules, **bindings):
    return {**OPEN, "bindings": {"groups": ["ssh"], "overrides": list(rules), **bindings}}


def only(remote, **rule):
    """SSH from these remotes alone."""
    return {
        "groups": [{"name": "ssh", "rules": [{"proto": "tcp", "ports": [22], "remote": remote, **rule}]}],
        "bindings": {"groups": ["ssh"]},
    }


def test_a_sound_intent_has_no_findings():
    assert found(OPEN, FACTS) == []


@pytest.mark.parametrize(
    ("document", "code", "path"),
    [
        ({"bindings": {"groups": ["x"]}}, "unknown_group", "bindings.groups[0]"),
        ({"bindings": {"trusted_zones": ["x"]}}, "unknown_zone", "bindings.trusted_zones[0]"),
        ({"groups": [{"name": "a", "rules": [{"remote": ["x"]}]}]}, "unknown_zone", "groups[0].rules[0].remote"),
        ({"zones": [{"name": "a"}]}, "empty_zone", "zones[0]"),
        ({"zones": [{"name": "a", "interfaces": ["lo"]}]}, "loopback_zone", "zones[0].interfaces[0]"),
        (
            {"zones": [{"name": "a", "interfaces": ["eth0"]}, {"name": "b", "interfaces": ["wg0", "eth0"]}]},
            "shared_interface",
            "zones[1].interfaces[1]",
        ),
        (overridden({"ports": [22]}), "ports_without_protocol", "bindings.overrides[0].ports"),
        (overridden({"proto": "icmp", "ports": [22]}), "ports_without_protocol", "bindings.overrides[0].ports"),
        (overridden({"action": "drop", "rate": {"packets": 1}}), "rate_of_denial", "bindings.overrides[0].rate"),
        (overridden({"proto": "icmp", "remote": ["::/0"]}), "matches_nothing", "bindings.overrides[0]"),
        (overridden({"proto": "icmpv6", "remote": ["10.0.0.0/8"]}), "matches_nothing", "bindings.overrides[0]"),
        (overridden({"dir": "forward"}), "unguarded_forward", "bindings.overrides[0].dir"),
        ({"bans": [{"address": "127.0.0.9", "expires_at": 1}]}, "bad_ban", "bans[0].address"),
        ({"bans": [{"address": "255.255.255.255", "expires_at": 1}]}, "bad_ban", "bans[0].address"),
        ({"bans": [{"address": "fe80::1", "expires_at": 1}]}, "bad_ban", "bans[0].address"),
        (
            {"bans": [{"address": "192.0.2.9", "expires_at": 1}], "never": ["192.0.2.0/28"]},
            "ban_hits_never",
            "bans[0].address",
        ),
        (
            {"bans": [{"address": "2001:db8::", "expires_at": 1}], "never": ["2001:db8::7"]},
            "ban_hits_never",
            "bans[0].address",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused_without_a_host(document, code, path):
    assert found(document) == [(code, path)]


def test_all_findings_are_told():
    document = {
        "zones": [{"name": "a"}, {"name": "b", "interfaces": ["eth9"]}],
        "bindings": {"groups": ["x"], "trusted_zones": ["y"], "overrides": [{"ports": [1]}]},
        "bans": [{"address": "198.51.100.9", "expires_at": 1}],
    }
    codes = [code for code, _ in found(document, replace(FACTS, active_firewalls=("ufw",)))]
    assert codes == [
        "unknown_group", "unknown_zone", "empty_zone", "ports_without_protocol",
        "unknown_interface", "other_firewall", "ban_hits_approver",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("zone", "facts"),
    [
        ({"name": "public", "interfaces": ["eth0"]}, None),
        ({"name": "wan", "cidrs": ["198.51.100.0/24"]}, None),
        ({"name": "a", "cidrs": ["0.0.0.0/0"]}, None),
        ({"name": "a", "cidrs": ["0.0.0.0/1", "128.0.0.0/1"]}, None),
        ({"name": "a", "cidrs": [f"{n}.0.0.0/8" for n in range(128)]}, None),
        ({"name": "a", "cidrs": ["2000::/3"]}, None),
        ({"name": "a", "interfaces": ["eth0"]}, FACTS),
    ],
)
def test_a_public_zone_is_not_trusted(zone, facts):
    document = {**OPEN, "zones": [zone], "bindings": {"groups": ["ssh"], "trusted_zones": [zone["name"]]}}
    assert found(document, facts) == [("public_trusted", "bindings.trusted_zones[0]")]


@pytest.mark.parametrize(
    "zone",
    [
        {"name": "a", "cidrs": ["10.0.0.0/8", "fc00::/7"]},
        {"name": "a", "interfaces": ["eth0"], "cidrs": ["10.0.0.0/24"]},
        {"name": "a", "interfaces": ["wg0"]},
    ],
)
def test_a_private_zone_is_trusted(zone):
    assert found({**OPEN, "zones": [zone], "bindings": {"groups": ["ssh"], "trusted_zones": ["a"]}}, FACTS) == []


def test_an_interface_that_the_host_has_not_is_refused():
    document = {**OPEN, "zones": [{"name": "a", "interfaces": ["eth0", "eth7"]}]}
    assert found(document, FACTS) == [("unknown_interface", "zones[0].interfaces[1]")]


@pytest.mark.parametrize(
    "facts",
    [
        replace(FACTS, active_firewalls=("ufw",)),
        replace(FACTS, active_firewalls=("firewalld",)),
        replace(FACTS, foreign_tables=("inet firewalld",)),
    ],
)
def test_another_active_firewall_is_refused_by_name_with_the_command_that_ends_it(facts):
    (finding,) = check.check(decode.read(OPEN), facts)
    assert finding.code == "other_firewall"
    assert finding.found in {"ufw", "firewalld"}
    assert finding.found in finding.hint
    assert found({"bindings": {"managed": False}}, facts) == []


@pytest.mark.parametrize(
    ("document", "codes"),
    [
        ({}, ["lockout", "lockout_source"]),
        (only(["198.51.100.0/24"]), []),
        (only(["192.0.2.0/24"]), ["lockout_source"]),
        (only(["2001:db8::/32"]), ["lockout_source"]),
        (only([], proto="udp"), ["lockout", "lockout_source"]),
        (only([], ports=[2222]), ["lockout", "lockout_source"]),
        (only([], ports=["20-30"]), []),
        (only([], rate={"packets": 5, "per": "minute"}), []),
        (only([], dir="out"), ["lockout", "lockout_source"]),
        (overridden({"action": "drop", "remote": ["198.51.100.9"]}), ["lockout_source"]),
        (overridden({"action": "reject", "remote": ["198.51.100.0/24"], "proto": "tcp"}), ["lockout_source"]),
        (overridden({"action": "drop"}), ["lockout", "lockout_source"]),
        (overridden({"action": "drop", "remote": ["0.0.0.0/0", "::/0"]}), ["lockout", "lockout_source"]),
        (overridden({"action": "drop", "remote": ["0.0.0.0/1", "::/0"]}), []),
        (overridden({"action": "drop", "proto": "udp"}), []),
        (overridden({"action": "drop", "proto": "tcp", "ports": [22]}), ["lockout", "lockout_source"]),
        (overridden({"remote": ["198.51.100.9"]}, {"action": "drop"}), []),
        ({"bindings": {"managed": False}}, []),
    ],
)
def test_a_firewall_without_a_way_to_sshd_or_for_the_operator_is_refused(document, codes):
    findings = check.check(decode.read(document), FACTS)
    assert [one.code for one in findings] == codes
    assert all(one.overridable and one.hint for one in findings)


def test_a_way_that_is_covered_by_denials_of_both_its_halves_is_none():
    halves = [{"action": "drop", "remote": [one]} for one in ("0.0.0.0/1", "128.0.0.0/1", "::/1", "8000::/1")]
    assert [code for code, _ in found(overridden(*halves), FACTS)] == ["lockout", "lockout_source"]
    assert [code for code, _ in found(overridden(*halves[:3]), FACTS)] == ["lockout_source"]


def test_a_way_through_an_interface_counts_where_the_operator_comes_by_it():
    zones = [{"name": "vpn", "interfaces": ["wg0"]}]
    document = {**only(["vpn"]), "zones": zones}
    assert [code for code, _ in found(document, FACTS)] == ["lockout_source"]
    by_vpn = SshSession(peer=address("10.8.0.7"), local=address("10.8.0.1"))
    assert found(document, replace(FACTS, approver=by_vpn, sessions=())) == []
    unknown = SshSession(peer=address("10.8.0.7"))
    assert [code for code, _ in found(document, replace(FACTS, approver=unknown, sessions=()))] == ["lockout_source"]
    trusted = {"zones": zones, "bindings": {"trusted_zones": ["vpn"]}}
    assert found(trusted, replace(FACTS, approver=by_vpn, sessions=())) == []


def test_a_way_by_an_interface_that_the_host_has_not_is_none():
    """All of this host's interfaces are in zones that are dropped; no other packet can come."""
    zones = [{"name": "a", "interfaces": ["eth0"]}, {"name": "b", "interfaces": ["wg0"]}]
    document = {**overridden({"action": "drop", "remote": ["a", "b"]}), "zones": zones}
    assert [code for code, _ in found(document, replace(FACTS, approver=None, sessions=()))] == ["lockout"]
    document = {**overridden({"action": "drop", "remote": ["a"]}), "zones": zones}
    assert found(document, replace(FACTS, approver=None, sessions=())) == []


def test_each_of_two_sessions_of_one_peer_has_to_be_let_in():
    zones = [{"name": "a", "interfaces": ["eth0"]}]
    both = tuple(SshSession(peer=address("10.8.0.7"), local=address(one)) for one in ("10.8.0.1", "203.0.113.1"))
    for sessions in (both, both[::-1]):
        facts = replace(FACTS, approver=None, sessions=sessions)
        assert [code for code, _ in found({**only(["a"]), "zones": zones}, facts)] == ["lockout_source"]


def test_sessions_count_when_sudo_dropped_the_approvers_variable():
    facts = replace(FACTS, approver=None)
    assert [code for code, _ in found(only(["192.0.2.0/24"]), facts)] == ["lockout_source"]
    assert found(only(["192.0.2.0/24"]), replace(facts, sessions=())) == []


def test_every_session_is_told_apart():
    more = SshSession(peer=address("198.51.100.77"), local=address("203.0.113.1"))
    findings = check.check(decode.read({}), replace(FACTS, sessions=(*FACTS.sessions, more)))
    assert [one.expected for one in findings[1:]] == [
        "a way to sshd from 198.51.100.77, where an operator is connected from",
        "a way to sshd from 198.51.100.9, where an operator is connected from",
    ]


@pytest.mark.parametrize("peer", ["::ffff:198.51.100.9", "fe80::5%eth0", "127.0.0.1", "::1", "203.0.113.1"])
def test_mapped_scoped_and_local_peers_are_understood(peer):
    session = SshSession(peer=address(peer), local=address("203.0.113.1"))
    assert found(OPEN, replace(FACTS, approver=session, sessions=())) == []
    document = only(["198.51.100.0/24", "fe80::/10"])
    assert found(document, replace(FACTS, approver=session, sessions=())) == []


def test_sshd_on_another_port_or_on_loopback_alone():
    elsewhere = replace(FACTS, sshd_ports=(2_222,), listeners=())
    assert [code for code, _ in found(OPEN, elsewhere)] == ["lockout", "lockout_source"]
    assert found(only([], ports=[2_222]), elsewhere) == []
    only_listener = Listener(port=2_200, address=address("203.0.113.1"), process="sshd")
    assert found(only([], ports=[2_200]), replace(FACTS, sshd_ports=(), listeners=(only_listener,))) == []
    local = Listener(port=2_200, address=address("127.0.0.1"), process="sshd")
    assert found({}, replace(FACTS, sshd_ports=(), listeners=(local,))) == [], "nothing to be locked out of"


def test_a_way_by_a_family_that_sshd_does_not_listen_on_is_none():
    four = replace(FACTS, listeners=FACTS.listeners[:1], approver=None, sessions=())
    assert [code for code, _ in found(only(["2001:db8::/32"]), four)] == ["lockout"]
    assert found(only(["192.0.2.0/24"]), four) == []


@pytest.mark.parametrize(
    ("banned", "code"),
    [
        ("198.51.100.9", "ban_hits_approver"),
        ("198.51.100.10", "ban_hits_session"),
        ("2001:db8:5:5::1", "ban_hits_session"),
        ("203.0.113.1", "ban_hits_host"),
    ],
)
def test_bans_never_hit_the_approver_a_session_or_this_host(banned, code):
    sessions = tuple(SshSession(peer=address(one)) for one in ("198.51.100.10", "2001:db8:5:5:9::9"))
    document = {**OPEN, "bans": [{"address": banned, "expires_at": 1}]}
    assert (code, "bans[0].address") in found(document, replace(FACTS, sessions=sessions))


def test_an_approver_that_a_socket_of_both_families_sees_is_not_banned_either():
    session = SshSession(peer=address("::ffff:198.51.100.10"))
    document = {**OPEN, "bans": [{"address": "198.51.100.10", "expires_at": 1}]}
    codes = [code for code, _ in found(document, replace(FACTS, approver=session))]
    assert "ban_hits_approver" in codes


def test_rules_of_too_many_lines_are_refused():
    zones = [{"name": f"z{n}", "cidrs": [f"10.{n}.0.0/16", f"fd{n:02x}::/16"]} for n in range(64)]
    rules = [{"proto": "tcp", "ports": [port], "remote": [f"z{n}" for n in range(64)]} for port in range(1, 200)]
    document = {"zones": zones, "groups": [{"name": "a", "rules": rules}], "bindings": {"groups": ["a"]}}
    assert [code for code, _ in found(document)] == ["too_large", "too_large"]


def test_hostile_sizes_are_judged_in_time():
    """Intents come from plugins; whoever judges them must not be kept busy."""
    networks = [f"{n}.0.0.0/9" for n in range(1, 200)]
    zones = [{"name": f"z{n}", "interfaces": [f"i{n}x{m}" for m in range(32)], "cidrs": networks} for n in range(64)]
    drops = [{"action": "drop", "remote": [f"z{n}"]} for n in range(40)]
    rated = {"rate": {"packets": 1}, "proto": "tcp", "ports": [22], "remote": ["203.0.113.0/24"]}
    rules = [{"name": f"g{n}", "rules": [{**rated, "remote": [f"203.0.{n}.0/24"]}] * 200} for n in range(4)]
    bans = [{"address": f"10.{n // 256}.{n % 256}.1", "expires_at": 1} for n in range(4_000)]
    document = {
        "zones": zones,
        "groups": rules,
        "bindings": {"groups": ["g0", "g1", "g2", "g3"], "overrides": drops},
        "bans": bans,
        "never": [f"172.{n}.0.0/16" for n in range(250)],
    }
    start = time.process_time()
    intent = decode.read(document)
    found = check.check(intent, FACTS)
    compiler.table(intent)
    assert time.process_time() - start < 15
    assert "unknown_interface" in {one.code for one in found}


def test_no_number_of_limits_is_too_deep():
    rated = {"rate": {"packets": 1}, "proto": "tcp", "ports": [22]}
    groups = [{"name": f"g{n}", "rules": [rated] * 250} for n in range(4)]
    intent = decode.read({"groups": groups, "bindings": {"groups": ["g0", "g1", "g2", "g3"]}})
    assert check.check(intent, FACTS) == ()
