"""The kind nft with real programs: what it observes, commits, proves and puts back, in a network namespace."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from latticed.model.errors import Problem
from latticed.plans.nft import NftKind
from latticed.plans.programs import ProgramTools
from latticed.system.nft_guard import decode, facts, parse, question
from tests.house import firewalled, processes, ssh_logins

pytestmark = pytest.mark.root

KIND = NftKind()
SSH = {"name": "ssh", "rules": [{"proto": "tcp", "ports": [22]}]}
INTENT = {"groups": [SSH], "bindings": {"groups": ["ssh"]}}
STRANGER = "198.51.100.7"


@pytest.fixture(scope="module")
def namespaces() -> Iterator[firewalled.Net]:
    with firewalled.network() as made:
        yield made


@pytest.fixture
def net(namespaces) -> Iterator[firewalled.Net]:
    """With an empty ruleset, and this thread inside the firewall."""
    namespaces.run("r", "nft", "flush", "ruleset")
    with namespaces.inside("r"):
        yield namespaces


@pytest.fixture
def tools() -> ProgramTools:
    return ProgramTools(KIND.programs)


def rendered(intent):
    return KIND.render(intent, None, {})


def committed(intent, tools):
    rendering = rendered(intent)
    KIND.validate(rendering, tools)
    KIND.commit(rendering, tools)
    KIND.self_check(rendering, tools)
    return rendering


def banned(address, seconds, **more):
    return {"address": address, "expires_at": int(time.time()) + seconds, **more}


def remaining(tools):
    return {one["network"]: one["remaining_s"] for one in KIND.observe(tools).facts["table"]["bans"]}


def codes(intent, live, source=""):
    return [one.code for one in KIND.check(intent, live, source)]


def test_nothing_holds_before_a_commit_and_what_was_committed_after_it(net, tools):
    assert KIND.observe(tools).basis == b""
    assert KIND.observe(tools).facts["table"] == {"present": False, "understood": True, "bans": []}
    assert not KIND.holds(rendered(INTENT), KIND.observe(tools))
    rendering = committed(INTENT, tools)
    assert KIND.holds(rendering, KIND.observe(tools))
    assert not KIND.holds(rendered({}), KIND.observe(tools))


def test_text_of_the_live_table_is_what_was_reviewed_so_that_a_diff_of_it_is_empty(net, tools):
    zones = [{"name": "a", "interfaces": ["r0"], "forward": "guard"}]
    rules = [
        {"proto": "tcp", "ports": [22], "rate": {"packets": 10, "per": "minute"}, "log": True, "comment": "x"},
        {"dir": "out", "action": "drop", "remote": ["192.0.2.0/24"]},
    ]
    intent = {
        "zones": zones,
        "groups": [{"name": "g", "rules": rules}],
        "bindings": {"groups": ["g"]},
        "bans": [banned(STRANGER, 3_600), banned("2001:db8::1", 7_200)],
    }
    rendering = committed(intent, tools)
    assert KIND.observe(tools).text == rendering.decode()
    assert KIND.holds(rendering, KIND.observe(tools))


def test_unmanaged_host_has_no_table_and_that_holds(net, tools):
    committed(INTENT, tools)
    rendering = committed({"bindings": {"managed": False}}, tools)
    assert KIND.observe(tools).facts["table"]["present"] is False
    assert KIND.holds(rendering, KIND.observe(tools))


@pytest.mark.parametrize(
    "edit",
    [
        ("flush", "ruleset"),
        ("delete", "table", *firewalled.TABLE),
        ("insert", "rule", *firewalled.TABLE, "input", "tcp", "dport", "23", "accept"),
        ("insert", "rule", *firewalled.TABLE, "input", "meta", "mark", "1", "accept"),
        ("add", "chain", *firewalled.TABLE, "x"),
        ("add", "chain", *firewalled.TABLE, "input", "{ policy accept ; }"),
    ],
    ids=" ".join,
)
def test_edit_of_somebody_else_is_drift_and_a_commit_ends_it(net, tools, edit):
    bans = [banned(STRANGER, 3_600)]
    rendering = committed({**INTENT, "bans": bans}, tools)
    net.run("r", "nft", *edit)
    assert not KIND.holds(rendering, KIND.observe(tools))
    with pytest.raises(Problem, match="something else changes it"):
        KIND.self_check(rendering, tools)
    KIND.commit(rendering, tools)
    KIND.self_check(rendering, tools)
    assert KIND.holds(rendering, KIND.observe(tools))
    assert 3_500 < remaining(tools)[f"{STRANGER}/32"] <= 3_600


def test_bans_are_no_drift_and_do_not_change_the_basis(net, tools):
    rendering = committed({**INTENT, "bans": [banned(STRANGER, 3_600)]}, tools)
    before = KIND.observe(tools).basis
    net.run("r", "nft", "add", "element", *firewalled.TABLE, "bans4", "{ 192.0.2.1 timeout 1h, 192.0.2.2 }")
    net.run("r", "nft", "delete", "element", *firewalled.TABLE, "bans4", f"{{ {STRANGER} }}")
    assert KIND.observe(tools).basis == before
    assert KIND.holds(rendering, KIND.observe(tools))


def test_bans_outlive_an_apply_with_the_time_that_the_kernel_says(net, tools):
    """The one that is new gets its whole time, the one that is left out goes, one put in by hand stays."""
    kept, gone = banned(STRANGER, 3_600), banned("198.51.100.8", 3_600)
    committed({**INTENT, "bans": [kept, gone]}, tools)
    net.run("r", "nft", "delete", "element", *firewalled.TABLE, "bans4", f"{{ {STRANGER} }}")
    element = f'{{ {STRANGER} timeout 1h expires 10m comment "until {kept["expires_at"]}" }}'
    net.run("r", "nft", "add", "element", *firewalled.TABLE, "bans4", element)
    net.run("r", "nft", "add", "element", *firewalled.TABLE, "bans4", "{ 192.0.2.1 timeout 5m }")
    committed({**INTENT, "bans": [kept, banned("2001:db8:7::9", 60)]}, tools)
    found = remaining(tools)
    assert sorted(found) == ["192.0.2.1/32", f"{STRANGER}/32", "2001:db8:7::/64"]
    assert 580 < found[f"{STRANGER}/32"] <= 600
    assert 280 < found["192.0.2.1/32"] <= 300


def test_never_ends_a_ban_that_was_put_in_by_hand(net, tools):
    committed(INTENT, tools)
    net.run("r", "nft", "add", "element", *firewalled.TABLE, "bans4", "{ 192.0.2.1 timeout 5m }")
    committed({**INTENT, "never": ["192.0.2.0/24"]}, tools)
    assert remaining(tools) == {}


def test_restore_puts_back_table_and_bans_as_they_were_however_often(net, tools):
    committed({**INTENT, "bans": [banned(STRANGER, 3_600)]}, tools)
    net.run("r", "nft", "insert", "rule", *firewalled.TABLE, "input", "meta", "mark", "7", "accept")
    net.run("r", "nft", "add", "element", *firewalled.TABLE, "bans4", '{ 192.0.2.1, 192.0.2.2 timeout 1h comment "x" }')
    foreign = b"table ip nat {\nchain c {\ntcp dport 1 accept\n}\n}\n"
    net.run("r", "nft", "-f", "-", stdin=foreign)
    before, other = net.stateless(), net.run("r", "nft", "-a", "list", "table", "ip", "nat")
    kept = KIND.snapshot(tools)
    committed({}, tools)
    for _ in range(2):
        KIND.restore(kept, tools)
        assert net.stateless() == before
    assert net.run("r", "nft", "-a", "list", "table", "ip", "nat") == other


def test_sets_that_somebody_put_in_by_hand_are_put_back_with_their_elements(net, tools):
    """Under names of nft's own rules; elements have the timeout of their set, or one of their own."""
    committed(INTENT, tools)
    edit = """
        table inet latticed_guard {
            set a.b { type ipv4_addr; timeout 1h; elements = { 192.0.2.1, 192.0.2.2 timeout 2h expires 30m } }
            set x/y-z { type ipv6_addr; elements = { 2001:db8::1 } }
        }
    """
    net.run("r", "nft", "-f", "-", stdin=edit.encode())
    before = net.stateless()
    kept = KIND.snapshot(tools)
    committed({}, tools)
    assert net.stateless() != before
    for _ in range(2):
        KIND.restore(kept, tools)
        assert net.stateless() == before


def test_restore_of_no_table_leaves_none(net, tools):
    kept = KIND.snapshot(tools)
    committed(INTENT, tools)
    for _ in range(2):
        KIND.restore(kept, tools)
        assert b"latticed_guard" not in net.run("r", "nft", "list", "tables")


@pytest.mark.parametrize(
    "edit",
    [
        """
        delete set inet latticed_guard bans4
        add set inet latticed_guard bans4 { type ipv4_addr . inet_service; }
        add element inet latticed_guard bans4 { 192.0.2.1 . 80 }
        """,
        """
        add set inet latticed_guard mine { type ipv4_addr; flags interval; }
        add element inet latticed_guard mine { 192.0.2.0/24 }
        """,
        """
        add map inet latticed_guard m { type ipv4_addr : verdict; }
        add element inet latticed_guard m { 192.0.2.1 : accept }
        """,
        """
        add element inet latticed_guard bans4 { 192.0.2.1 timeout 1h comment "a;b" }
        """,
    ],
    ids=["concatenation", "interval", "map", "comment"],
)
def test_elements_of_others_that_could_not_be_put_back_are_drift_and_keep_a_plan_from_replacing_them(net, tools, edit):
    rendering = committed(INTENT, tools)
    net.run("r", "nft", "flush", "chain", *firewalled.TABLE, "input")
    net.run("r", "nft", "-f", "-", stdin=edit.encode())
    assert not KIND.holds(rendering, KIND.observe(tools))
    with pytest.raises(Problem, match="edited by hand"):
        KIND.snapshot(tools)
    # What was confirmed is put back all the same.
    KIND.commit(rendering, tools)
    KIND.self_check(rendering, tools)


def test_source_that_is_no_address_is_a_bad_request(net, tools):
    with pytest.raises(Problem, match="source") as refused:
        KIND.check(INTENT, KIND.observe(tools), "1.2.3")
    assert refused.value.code == "bad_request"


def test_table_that_could_not_be_put_back_is_not_replaced(net, tools):
    """nft prints quotes in comments as they are, and reads other rules from that."""
    committed(INTENT, tools)
    rule = {
        "family": "inet",
        "table": "latticed_guard",
        "chain": "input",
        "expr": [{"accept": None}],
        "comment": 'a" accept #',
    }
    net.run("r", "nft", "-j", "-f", "-", stdin=json.dumps({"nftables": [{"add": {"rule": rule}}]}).encode())
    with pytest.raises(Problem, match="edited by hand") as refused:
        KIND.snapshot(tools)
    assert refused.value.code == "apply_failed"


def test_file_that_the_kernel_refuses_changes_nothing(net, tools):
    rendering = committed(INTENT, tools)
    broken = rendering.replace(b"counter drop", b"jump nowhere")
    assert broken != rendering
    with pytest.raises(Problem, match="nft ended with status 1"):
        KIND.commit(broken, tools)
    assert KIND.holds(rendering, KIND.observe(tools))


def test_ssh_session_from_a_source_that_would_be_dropped_is_a_lockout_and_its_ban_is_refused(net, tools):
    listener = firewalled.listening("10.9.0.1", 22)
    client = connected(net)
    listener.setblocking(True)
    accepted, _ = listener.accept()
    with listener, client, accepted:
        live = KIND.observe(tools)
        assert ["10.9.0.2", "10.9.0.1"] in [[one["peer"], one["local"]] for one in live.facts["sessions"]]
        assert codes(INTENT, live) == []
        assert codes({}, live) == ["lockout", "lockout_source"]
        narrow = {**INTENT, "groups": [{"name": "ssh", "rules": [{**SSH["rules"][0], "remote": ["10.9.1.0/24"]}]}]}
        assert codes(narrow, live) == ["lockout_source"]
        assert codes({**INTENT, "bans": [banned("10.9.0.2", 60)]}, live) == ["ban_hits_session", "lockout_source"]
    assert codes({**INTENT, "bans": [banned("10.9.1.2", 60)]}, live, "10.9.1.2")[0] == "ban_hits_approver"


def test_sshd_is_a_process_of_root_that_is_called_so(net, tools):
    fake = ssh_logins.named(net, "sshd", 8_001, processes.STRANGER)
    with ssh_logins.sshd(net, 2_222) as server, server.login("10.9.0.2"), fake:
        live = KIND.observe(tools)
    named = {one["port"]: one["process"] for one in live.facts["listeners"]}
    assert (named[2_222], named[8_001]) == ("sshd", "")
    assert [one["peer"] for one in live.facts["sessions"]] == ["10.9.0.2"]


def test_connection_is_a_session_once_somebody_is_logged_in(net, tools):
    with ssh_logins.sshd(net) as server:
        with server.connected("10.9.0.3"):
            assert peers(tools) == []
            with server.login("10.9.0.2"):
                assert peers(tools) == ["10.9.0.2"]
        for user in ("root", "no-such-user"):
            with server.guessing("10.9.0.4", user):
                assert peers(tools) == []
        with server.tunnel("10.9.0.5"):
            assert peers(tools) == ["10.9.0.5"]


def test_connection_that_nobody_has_accepted_is_no_session(net, tools):
    with firewalled.listening("10.9.0.1", 22), connected(net):
        assert peers(tools) == []


def test_connection_of_which_it_is_not_clear_is_a_session_if_it_lasts(net):
    with firewalled.listening("10.9.0.1", 22) as listener, connected(net) as client:
        listener.setblocking(True)
        accepted, _ = listener.accept()

        class Ending(ProgramTools):
            """Has the client gone as soon as it was seen."""

            def run(self, program, *arguments, **more):
                ended = super().run(program, *arguments, **more)
                if "established" in arguments:
                    client.close()
                return ended

        with accepted:
            assert peers(ProgramTools(KIND.programs)) == ["10.9.0.2"]
            assert peers(Ending(KIND.programs)) == []


def peers(tools):
    return [one["peer"] for one in KIND.observe(tools).facts["sessions"]]


def connected(net):
    with net.inside("a"):
        return socket.create_connection(("10.9.0.1", 22))


UFW = """set -e
[ -e "$1/ufw.conf" ] || cp -a /etc/ufw/. "$1"
mount --bind "$1" /etc/ufw
[ "$2" = nft ] || mount --bind /usr/sbin/xtables-legacy-multi /usr/sbin/xtables-nft-multi
shift 2
exec ufw "$@"
"""
"""ufw in the mount namespace that `ip netns exec` makes: its files are copies, its iptables is the one asked for."""


@pytest.mark.parametrize("tables", ["nft", "legacy"])
def test_ufw_is_refused_by_its_name_while_it_is_enabled(tools, tables, tmp_path):
    with firewalled.network() as net, net.inside("r"):
        ufw = ("sh", "-c", UFW, "sh", str(tmp_path), tables)
        net.run("r", *ufw, "--force", "enable")
        (found,) = KIND.check(INTENT, KIND.observe(tools), "")
        assert (found.code, found.found, found.hint) == ("other_firewall", "ufw", "ufw disable")
        assert codes({"bindings": {"managed": False}}, KIND.observe(tools)) == []
        net.run("r", *ufw, "disable")
        assert codes(INTENT, KIND.observe(tools)) == []


FIREWALLD = b"""
    table ip filter {
        chain IN_public { tcp dport 22 accept; }
        chain INPUT_direct { }
        chain INPUT_ZONES { counter goto IN_public; }
        chain INPUT {
            type filter hook input priority filter; policy accept;
            ct status dnat counter accept
            iifname "lo" counter accept
            ct state invalid counter drop
            counter jump INPUT_direct
            counter jump INPUT_ZONES
            counter reject with icmp type host-prohibited
        }
    }
"""


def test_active_firewalld_is_refused_by_its_name(net, tools):
    """By what it leaves in the kernel with either backend; the chains of iptables are those of firewalld 1.3.3."""
    net.run("r", "nft", "-f", "-", stdin=b"table ip filter { chain INPUT { type filter hook input priority 0; }; }")
    assert codes(INTENT, KIND.observe(tools)) == []
    net.run("r", "nft", "-f", "-", stdin=FIREWALLD)
    (found,) = KIND.check(INTENT, KIND.observe(tools), "")
    assert (found.code, found.found) == ("other_firewall", "firewalld")
    net.run("r", "nft", "flush", "ruleset")
    net.run("r", "nft", "add", "table", "inet", "firewalld")
    (found,) = KIND.check(INTENT, KIND.observe(tools), "")
    assert (found.code, found.found) == ("other_firewall", "firewalld")


def test_interfaces_are_those_of_the_host(net, tools):
    live = KIND.observe(tools)
    found = {one["name"]: one for one in live.facts["interfaces"]}
    assert {"lo", "r0", "r1", "r2"} <= found.keys()
    assert {"10.9.0.1", "fd09:0:0:a::1"} <= set(found["r0"]["addresses"])
    zones = [{"name": "z", "interfaces": ["r0", "eth7"]}]
    assert codes({**INTENT, "zones": zones}, live) == ["unknown_interface"]
    net.run("r", "ip", "route", "add", "default", "dev", "r1")
    try:
        found = {one["name"]: one["default_route"] for one in KIND.observe(tools).facts["interfaces"]}
    finally:
        net.run("r", "ip", "route", "del", "default", "dev", "r1")
    assert (found["r1"], found["r0"]) == (True, False)


def test_observed_facts_answer_which_rule_decides(net, tools):
    asked = {"from": "10.9.0.2", "to": "10.9.0.1", "port": 22, "iface": "r0"}
    found = facts.from_plain(json.loads(json.dumps(KIND.observe(tools).facts)))
    answers = question.answer(decode.read(INTENT), found, asked)["answers"]
    assert [(one["hook"], one["verdict"]) for one in answers] == [("input", "accept")]


def test_missing_nft_is_named_with_its_package(tmp_path):
    tools = ProgramTools({**KIND.programs, "nft": str(tmp_path / "nft")})
    with pytest.raises(Problem, match="package nftables") as missing:
        KIND.observe(tools)
    assert missing.value.code == "tool_missing"


def test_most_bans_are_committed_and_put_back(net, tools):
    bans = [banned(f"10.{n >> 8}.{n & 255}.1" if n % 2 else f"2001:db8:{n:x}::1", 3_600) for n in range(4_096)]
    committed({**INTENT, "bans": bans}, tools)
    kept = KIND.snapshot(tools)
    committed(INTENT, tools)
    assert parse.bans(net.listing()) == ()
    KIND.restore(kept, tools)
    assert len(parse.bans(net.listing())) == 4_096
