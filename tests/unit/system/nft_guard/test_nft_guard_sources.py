"""Facts of the host from what programs print; the real programs are in tests/net."""

from __future__ import annotations

import ipaddress
import json

import pytest

from latticed.system.nft_guard import facts, sources
from latticed.system.nft_guard.facts import Interface, Listener, LiveFacts, SshSession
from latticed.system.nft_guard.sources import Process

ip = ipaddress.ip_address

LISTENING = b"""\
LISTEN 0      128          0.0.0.0:22        0.0.0.0:*    users:(("sshd",pid=7,fd=3)) ino:1 sk:1 cgroup:/ <->
LISTEN 0      128             [::]:22           [::]:*    users:(("systemd",pid=1,fd=9),("sshd",pid=7,fd=4)) ino:2 sk:2
LISTEN 0      4096  127.0.0.53%lo:53         0.0.0.0:*    users:(("systemd-resolve",pid=5,fd=14))
LISTEN 0      511                *:80              *:*    users:(("nginx",pid=9,fd=6),("nginx",pid=8,fd=6))
LISTEN 0      128  [fe80::1]%eth0:2222          [::]:*
"""
ESTABLISHED = b"""\
0      0        192.0.2.1:22      203.0.113.7:50022 users:(("sshd",pid=70,fd=4),("sshd",pid=71,fd=4))
0      36   [::ffff:192.0.2.1]:22 [::ffff:203.0.113.8]:50023
0      0     [fe80::1]%eth0:2222     [fe80::9]:50024 users:(("sshd-session",pid=70,fd=4))
0      0        192.0.2.1:443     203.0.113.9:50025 users:(("nginx",pid=9,fd=6))
"""


SSHD = Process(uids=frozenset({0}), title="sshd: ada [priv]")
ROOT = dict.fromkeys((7, 70, 71), SSHD)
"""The processes in them that are sshd's."""
ACCOUNT = 102
"""Of sshd's processes before a login."""


def test_listeners_have_port_address_and_process():
    assert set(sources.listeners(LISTENING, ROOT)) == {
        Listener(port=22, address=ip("0.0.0.0"), process="sshd"),
        Listener(port=22, address=ip("::"), process="sshd"),
        Listener(port=53, address=ip("127.0.0.53"), process="systemd-resolve"),
        Listener(port=80, address=None, process="nginx"),
        Listener(port=2222, address=ip("fe80::1"), process=""),
    }


def sessions(printed, ports, processes=ROOT):
    return sources.sessions(sources.connections(printed, ports, processes, ACCOUNT))


def test_sessions_are_those_at_a_port_of_sshd_and_those_that_a_process_of_it_has():
    found = sessions(ESTABLISHED, {22})
    assert {one.peer for one in found} == {ip("203.0.113.7"), ip("::ffff:203.0.113.8"), ip("fe80::9")}
    assert SshSession(peer=ip("fe80::9"), local=ip("fe80::1"), interface="eth0") in found
    assert {str(one.peer) for one in sessions(ESTABLISHED, ())} == {"203.0.113.7", "fe80::9"}


@pytest.mark.parametrize(
    "printed", [b"", b"\n", b"x", b"\xff" * 80, b"LISTEN 0 1 a:b c:d\n", b"LISTEN 0 1 [::::]:22 *:*\n", b"0 0 :22 :1\n"]
)
def test_lines_that_are_none_are_left_out(printed):
    assert sources.listeners(printed, ROOT) == ()
    assert sessions(printed, {22}) == ()


def test_sessions_and_listeners_without_end_are_cut():
    lines = "".join(f"0 0 192.0.2.1:22 10.{n >> 16}.{n >> 8 & 255}.{n & 255}:5000\n" for n in range(5_000))
    assert len(sessions(lines.encode(), {22})) == sources.MAX_SESSIONS
    # Those of sshd are what a lockout is judged by.
    lines = "".join(f'LISTEN 0 1 *:{n} *:* users:(("a",pid=1,fd=1))\n' for n in range(1, 5_000))
    found = sources.listeners(lines.encode() + b'LISTEN 0 1 *:60000 *:* users:(("sshd",pid=7,fd=1))\n', ROOT)
    assert (len(found), found[0].port) == (sources.MAX_LISTENERS, 60_000)


FAKES = {
    "of another user": ('("sshd",pid=666,fd=3)', " uid:65533 ino:5"),
    "with root's number in its name": ('("sshd",pid=7,fd=",pid=666,fd=3)', " uid:65533 ino:5"),
    "with root's number in a whole name": ('("",pid=7,fd=3)",pid=666,fd=3)', " uid:65533 ino:5"),
    "of another user, with a socket of root's": ('("sshd",pid=666,fd=3)', " ino:5"),
    "setuid root, with a socket of another user": ('("sshd",pid=7,fd=0)', " uid:65533 ino:5"),
}


@pytest.mark.parametrize("fake", FAKES)
def test_process_that_only_calls_itself_sshd_listens_and_has_sessions_as_any_other(fake):
    users = f"users:({FAKES[fake][0]}){FAKES[fake][1]} sk:5 cgroup:/ <->\n"
    found_now = {**ROOT, 666: Process(uids=frozenset({65_533}), title="")}
    (found,) = sources.listeners(f"LISTEN 0 128 0.0.0.0:8001 0.0.0.0:* {users}".encode(), found_now)
    assert found == Listener(port=8001, address=ip("0.0.0.0"))
    assert sessions(f"0 0 192.0.2.1:8001 203.0.113.7:5000 {users}".encode(), {22}, found_now) == ()


# Titles as OpenSSH 9.2 and 10.0 have them.
STAGES = {
    "accepted": ([(0, "sshd: [accepted]")], False),
    "accepted, 10.0": ([(0, "sshd-session: [accepted]")], False),
    "asks": ([(0, "sshd: ada [priv]"), (ACCOUNT, "")], False),
    "asks, 10.0": ([(0, "sshd-session: unknown [priv]"), (ACCOUNT, "")], False),
    "user": ([(0, "sshd: ada [priv]"), (1000, "")], True),
    "root": ([(0, "sshd: root@pts/0")], True),
    "root, 10.0": ([(0, "sshd-session: root [priv]"), (0, "sshd-session: root@notty")], True),
    "root without a terminal": ([(0, "sshd: root")], True),
    "forked": ([(0, "sshd: /usr/sbin/sshd -D [listener] 1 of 10-100 startups")], None),
    "started": ([(0, "/usr/sbin/sshd\0-D\0-R")], None),
    "started again": ([(0, "sshd: [rexeced]")], None),
    "between password and shell, or at its end": ([(0, "sshd: ada [priv]")], None),
    "user with a name of two words": ([(0, "sshd: ada b [priv]")], None),
    "gone": ([], None),
}


@pytest.mark.parametrize("stage", STAGES)
def test_processes_of_a_connection_tell_whether_somebody_is_logged_in(stage):
    having, is_login = STAGES[stage]
    processes = {pid: Process(uids=frozenset({uid}), title=title) for pid, (uid, title) in enumerate(having, 70)}
    users = ",".join(f'("sshd",pid={pid},fd=4)' for pid in (70, 71))
    printed = f"0 0 192.0.2.1:22 203.0.113.7:5000 users:({users}) ino:5 sk:1\n".encode()
    found = sources.connections(printed, {22}, processes, ACCOUNT)
    assert [one.is_login for one in found] == ([] if is_login is False else [is_login is True])


def test_connection_of_an_account_that_is_not_there_counts():
    having = {70: SSHD, 71: Process(uids=frozenset({ACCOUNT}), title="")}
    assert len(sources.connections(ESTABLISHED.splitlines()[0], {22}, having, None)) == 1


def test_name_of_a_process_makes_no_line_of_its_own():
    printed = b'LISTEN 0 1 *:80 *:* users:(("\x0bx x x *:22 *:*",pid=9,fd=1))\n'
    assert [one.port for one in sources.listeners(printed, ROOT)] == [80]


def test_connections_by_loopback_push_no_session_out():
    mapped = "".join(f"0 0 [::ffff:127.0.0.1]:22 [::ffff:127.1.{n >> 8}.{n & 255}]:5000\n" for n in range(1_500))
    lines = "".join(f"0 0 127.0.0.1:22 127.0.{n >> 8}.{n & 255}:5000\n" for n in range(1_500))
    printed = f"{lines}0 0 [::1]:22 [::1]:5000\n{mapped}0 0 192.0.2.1:22 203.0.113.9:5000\n"
    (found,) = sessions(printed.encode(), {22})
    assert found == SshSession(peer=ip("203.0.113.9"), local=ip("192.0.2.1"))


def test_ports_of_sshd_are_those_of_all_its_lines():
    printed = b"port 22\nport 2222\naddressfamily any\nlistenaddress [::1]:2200\nlistenaddress 0.0.0.0:22\nport x\n"
    assert sources.sshd_ports(printed) == (22, 2200, 2222)


def test_interfaces_know_whether_the_default_route_is_theirs():
    addresses = [
        {"ifname": "lo", "addr_info": [{"local": "127.0.0.1"}, {"local": "::1"}]},
        {},
        {"ifname": "eth0", "addr_info": [{"local": "192.0.2.1"}]},
        {"ifname": "eth1"},
    ]
    routes = [b"", json.dumps([{"dst": "default", "nexthops": [{"dev": "eth1"}, {"dev": "ppp0"}]}]).encode()]
    assert sources.interfaces(json.dumps(addresses).encode(), routes) == (
        Interface(name="eth0", addresses=(ip("192.0.2.1"),)),
        Interface(name="eth1", default_route=True),
        Interface(name="lo", addresses=(ip("127.0.0.1"), ip("::1"))),
    )


@pytest.mark.parametrize("printed", [b"{}", b"x", b"[1]", b'[{"ifindex": 1}]', b'[{"ifname": 3}]'])
def test_interfaces_that_cannot_be_read_are_no_host_without_any(printed):
    with pytest.raises(ValueError):
        sources.interfaces(printed, [])


@pytest.mark.parametrize("printed", [b"", b"[]", b"{}", b'{"nftables": 1}'])
def test_tables_that_cannot_be_read_are_no_host_without_any(printed):
    with pytest.raises(ValueError):
        sources.foreign_tables(printed)


def test_table_of_the_same_name_in_another_family_is_foreign():
    entries = [{"metainfo": {}}, *({"table": {"family": one, "name": "latticed_guard"}} for one in ("ip", "inet"))]
    assert sources.foreign_tables(json.dumps({"nftables": entries}).encode()) == (("ip latticed_guard",), True)
    assert sources.foreign_tables(b'{"nftables": []}') == ((), False)


def test_facts_come_back_from_their_plain_form():
    made = LiveFacts(
        interfaces=(Interface(name="eth0", addresses=(ip("192.0.2.1"), ip("fe80::1")), default_route=True),),
        listeners=(Listener(port=22, process="sshd"), Listener(port=80, address=ip("::"))),
        sshd_ports=(22,),
        sessions=(SshSession(peer=ip("fe80::9"), interface="eth0"), SshSession(peer=ip("192.0.2.7"), local=ip("::1"))),
        foreign_tables=("ip nat",),
        active_firewalls=("ufw",),
    )
    plain = json.loads(json.dumps(facts.plain(made)))
    assert facts.from_plain(plain) == made
    assert facts.from_plain(plain, source="203.0.113.7").approver == SshSession(peer=ip("203.0.113.7"))
    assert facts.from_plain(plain, source="fe80::7%eth0").approver == SshSession(peer=ip("fe80::7"), interface="eth0")


@pytest.mark.parametrize(
    ("target", "name", "full"),
    [
        ("ufw-before-logging-input", "ufw", "ufw-before-input"),
        ("INPUT_ZONES", "firewalld", "INPUT_ZONES"),
        ("DOCKER", "", ""),
        ("my-ufw-", "", ""),
    ],
)
def test_firewall_is_known_by_the_chains_that_the_input_chain_leads_to(target, name, full):
    rule = {"rule": {"expr": [{"counter": {"packets": 0}}, {"jump": {"target": target}}]}}
    assert sources.firewall(json.dumps({"nftables": [{"metainfo": {}}, rule]}).encode()) == (name, full)
    leads = f"*filter\n:INPUT DROP [0:0]\n:{target} - [0:0]\n-A INPUT -i eth0 -j {target}\n"
    assert sources.firewall_of_legacy(f"{leads}-A {full or target} -j ACCEPT\nCOMMIT\n".encode()) == name
    # A disabled ufw leaves empty chains behind, and the rules that lead to them.
    assert sources.firewall_of_legacy(f"{leads}COMMIT\n".encode()) == ""


@pytest.mark.parametrize("printed", [b"", b"-A", b"-A INPUT -j", b"-A INPUT", b"\xff\xfe", b"-A INPUT -m x --y -j"])
def test_rules_that_lead_nowhere_name_no_firewall(printed):
    assert sources.firewall_of_legacy(printed) == ""


def test_chain_has_rules_or_none():
    chain = {"chain": {"family": "ip", "table": "filter", "name": "ufw-before-input"}}
    assert sources.has_rules(json.dumps({"nftables": [chain]}).encode()) is False
    assert sources.has_rules(json.dumps({"nftables": [chain, {"rule": {"expr": []}}]}).encode()) is True
