"""The kind wireguard with real programs: what it observes, commits, proves and puts back, in network namespaces."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from latticed.model.errors import Problem
from latticed.plans.programs import ProgramTools
from latticed.plans.wireguard import WireguardKind
from latticed.system.wireguard import decode, reach
from tests.house import firewalled, tunnels, wireguards

pytestmark = pytest.mark.root

KIND = WireguardKind()


@pytest.fixture(scope="module")
def namespaces() -> Iterator[firewalled.Net]:
    with firewalled.network() as made:
        yield made


@pytest.fixture
def net(namespaces) -> Iterator[firewalled.Net]:
    """With this thread inside the server, where nothing of ours is left afterwards."""
    with namespaces.inside("r"):
        yield namespaces
        tools = ProgramTools(KIND.programs)
        KIND.commit(KIND.render({"networks": []}, None, {}), tools)
        assert KIND.observe(tools).facts["networks"] == []


@pytest.fixture
def tools() -> ProgramTools:
    return ProgramTools(KIND.programs)


@pytest.fixture
def name() -> str:
    return wireguards.unique()


def document(name, *members, **changes):
    return tunnels.document(name=name, members=list(members), **changes)


def rendered(intent, *secrets):
    values = {one: tunnels.key(one) for one in KIND.secrets(intent)}
    return KIND.render(intent, None, values)


def committed(intent, tools):
    assert KIND.check(intent, KIND.observe(tools), "") == ()
    rendering = rendered(intent)
    KIND.validate(rendering, tools)
    KIND.commit(rendering, tools)
    KIND.self_check(rendering, tools)
    assert KIND.holds(rendering, KIND.observe(tools))
    return rendering


def tried(rendering, tools):
    """As the helper does it: what can be known before anything is touched is said then."""
    KIND.validate(rendering, tools)
    KIND.commit(rendering, tools)


def shown(name):
    """`wg show` and addresses, whole."""
    dump = subprocess.run(["wg", "show", name, "dump"], check=True, capture_output=True).stdout
    return dump, subprocess.run(["ip", "-j", "address", "show", name], check=True, capture_output=True).stdout


def ip(*words):
    return json.loads(subprocess.run(["ip", "-j", *words], check=True, capture_output=True).stdout or b"[]")


def test_an_intent_becomes_interfaces_peers_routes_and_a_table(net, tools, name):
    site = tunnels.member("site", 3, subnets=["192.168.9.0/24", "fd99::/64"], endpoint="10.9.0.2:51820")
    psk = tunnels.member("anna", 2, preshared_key="${secret:PSK#anna}", addresses=["10.80.0.2", "fd80::2"])
    committed(document(name, psk, site, addresses=["10.80.0.1/24", "fd80::1/64"], mtu=1400), tools)
    live = KIND.observe(tools)
    (network,) = live.facts["networks"]
    assert (network["name"], network["listen_port"], len(network["peers"])) == (name, 51_820, 2)
    assert [one["dst"] for one in ip("-4", "route", "show", "dev", name)] == ["10.80.0.0/24", "192.168.9.0/24"]
    assert "fd99::/64" in [one["dst"] for one in ip("-6", "route", "show", "dev", name)]
    (link,) = ip("link", "show", name)
    assert (link["mtu"], link["ifalias"], "UP" in link["flags"]) == (1400, "latticed-wireguard", True)
    for secret in ("WG_HOME", "PSK#anna"):
        assert tunnels.key(secret) not in f"{live.facts} {live.basis!r} {live.text}"
    assert "# Id = anna\n" in live.text


def test_the_diff_of_what_is_applied_is_the_secrets_alone(net, tools, name):
    intent = document(name, tunnels.member("anna", 2, expires_at=4_000_000_000))
    committed(intent, tools)
    told = KIND.render(intent, None, {one: f"${{secret:{one}}}" for one in KIND.secrets(intent)}).decode()
    live = KIND.observe(tools).text
    assert live.replace("(a secret)", "${secret:WG_HOME}") == told


def test_what_has_ended_is_left_out_and_is_no_drift(net, tools, name):
    over = tunnels.member("over", 2, expires_at=int(time.time()) - 1)
    committed(document(name, over, tunnels.member("anna", 3, expires_at=int(time.time()) + 3_600)), tools)
    (network,) = KIND.observe(tools).facts["networks"]
    assert [one["public_key"] for one in network["peers"]] == [tunnels.key("anna")]


def test_a_change_keeps_interface_and_peers_and_going_back_is_exact(net, tools, name):
    first = document(name, tunnels.member("anna", 2, preshared_key="${secret:PSK}"), addresses=["10.80.0.1/24"])
    committed(first, tools)
    before, index = shown(name), ip("link", "show", name)[0]["ifindex"]
    snapshot = KIND.snapshot(tools)
    wide = document(
        name,
        tunnels.member("anna", 2, subnets=["192.168.9.0/24"], keepalive_s=9, endpoint="10.9.0.2:1"),
        tunnels.member("ben", 3),
        addresses=["10.80.0.1/24", "fd80::1/64"],
        may_reach=["0.0.0.0/0"],
        mtu=1300,
    )
    committed(wide, tools)
    assert ip("link", "show", name)[0]["ifindex"] == index
    assert shown(name) != before
    for _ in range(2):  # it may be asked twice
        KIND.restore(snapshot, tools)
        # wg has no way to forget where a peer was last; it is where it will be dialled, and no more.
        assert re.sub(rb"Endpoint = .*\n", b"", KIND.snapshot(tools)) == snapshot
    assert ip("link", "show", name)[0]["ifindex"] == index


def test_a_network_that_goes_is_gone_and_comes_back_with_the_snapshot(net, tools, name):
    committed(document(name, tunnels.member("anna", 2)), tools)
    snapshot = KIND.snapshot(tools)
    committed({"networks": []}, tools)
    assert name not in [one["ifname"] for one in ip("link", "show")]
    assert not Path(f"/var/run/wireguard/{name}.sock").exists()
    KIND.restore(snapshot, tools)
    assert KIND.snapshot(tools) == snapshot
    KIND.restore(rendered({"networks": []}), tools)
    assert KIND.observe(tools).text == ""


@pytest.mark.parametrize(
    "edit",
    [
        ["wg", "set", "NAME", "listen-port", "51999"],
        ["wg", "set", "NAME", "peer", tunnels.key("eve"), "allowed-ips", "10.80.0.77/32"],
        ["wg", "set", "NAME", "peer", tunnels.key("anna"), "remove"],
        ["wg", "set", "NAME", "peer", tunnels.key("anna"), "allowed-ips", "0.0.0.0/0"],
        ["wg", "set", "NAME", "peer", tunnels.key("anna"), "persistent-keepalive", "5"],
        ["ip", "address", "add", "10.81.0.1/24", "dev", "NAME"],
        ["ip", "link", "set", "NAME", "mtu", "1300"],
        ["ip", "route", "add", "192.168.77.0/24", "dev", "NAME"],
        ["ip", "link", "delete", "NAME"],
        ["nft", "delete", "table", reach.FAMILY, reach.NAME],
        ["nft", "insert", "rule", reach.FAMILY, reach.NAME, "input", "accept"],
        ["nft", "add", "set", reach.FAMILY, reach.NAME, "x", "{ type ipv4_addr; }"],
        ["nft", "add", "element", reach.FAMILY, reach.NAME, "group1", "{ 10.80.0.77 }"],
        ["nft", "flush", "set", reach.FAMILY, reach.NAME, "group1"],
    ],
    ids=lambda edit: " ".join(edit)[:60],
)
def test_edits_of_others_are_drift_and_are_put_back(net, tools, name, edit):
    rendering = committed(document(name, tunnels.member("anna", 2)), tools)
    subprocess.run([one.replace("NAME", name) for one in edit], check=True)
    assert not KIND.holds(rendering, KIND.observe(tools))
    KIND.commit(rendering, tools)
    KIND.self_check(rendering, tools)
    assert KIND.holds(rendering, KIND.observe(tools))


def test_roaming_and_counters_are_no_drift(net, tools, name):
    rendering = committed(document(name, tunnels.member("anna", 2)), tools)
    basis = KIND.observe(tools).basis
    subprocess.run(["wg", "set", name, "peer", tunnels.key("anna"), "endpoint", "10.9.0.2:1234"], check=True)
    live = KIND.observe(tools)
    assert (live.basis, KIND.holds(rendering, live)) == (basis, True)
    assert live.facts["networks"][0]["peers"][0]["endpoint"] == "10.9.0.2:1234"


def test_interfaces_of_others_are_left_alone(net, tools, name):
    other = wireguards.unique()
    private, _ = wireguards.genkey()
    with wireguards.interface(net, "r", other):
        wireguards.setconf(net, "r", other, f"[Interface]\nPrivateKey = {private}\nListenPort = 51999\n".encode())
        before = shown(other)
        committed(document(name, tunnels.member("anna", 2)), tools)
        committed({"networks": []}, tools)
        assert shown(other) == before
        taken = document(other, tunnels.member("anna", 2))
        assert [one.code for one in KIND.check(taken, KIND.observe(tools), "")] == ["interface_taken"]
        with pytest.raises(Problem) as caught:
            KIND.commit(rendered(taken), tools)
        assert caught.value.code == "apply_failed"
        port = document(name, tunnels.member("anna", 2), listen_port=51_999)
        assert [one.code for one in KIND.check(port, KIND.observe(tools), "")] == ["port_taken"]
        assert shown(other) == before


def test_a_route_of_others_to_what_is_behind_a_member_is_left_alone(net, tools, name):
    """It is not replaced, so that undoing need not know of it; what was there of ours comes back."""
    before = committed(document(name, tunnels.member("anna", 2)), tools)
    snapshot = KIND.snapshot(tools)
    subprocess.run(["ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1"], check=True)
    try:
        for end in ("lan0", "lan1"):
            subprocess.run(["ip", "link", "set", end, "up"], check=True)
        for network in ("10.99.1.0/24", "fd99:1::/64"):
            subprocess.run(["ip", "route", "add", network, "dev", "lan0"], check=True)
        theirs = ip("route", "show", "dev", "lan0"), ip("-6", "route", "show", "dev", "lan0")
        for network in ("10.99.1.0/24", "fd99:1::/64"):
            wanted = rendered(document(name, tunnels.member("anna", 2, subnets=[network])))
            with pytest.raises(Problem) as caught:
                tried(wanted, tools)
            assert caught.value.code == "apply_failed"
            assert network in caught.value.reason
            KIND.restore(snapshot, tools)
            assert (ip("route", "show", "dev", "lan0"), ip("-6", "route", "show", "dev", "lan0")) == theirs
            assert KIND.holds(before, KIND.observe(tools))
    finally:
        subprocess.run(["ip", "link", "delete", "lan0"], check=True)


def test_a_network_behind_a_member_moves_to_another_interface_in_one_change(net, tools, name):
    """Also to one that is made before the other."""
    first, second = sorted((name, wireguards.unique()))

    def both(*behind):
        made = [
            document(
                one, tunnels.member(f"m{n}", 2, addresses=[f"10.8{n}.0.2"], **changes), addresses=[f"10.8{n}.0.1/24"]
            )
            for n, (one, changes) in enumerate(zip((first, second), behind, strict=True))
        ]
        networks = [one["networks"][0] for one in made]
        more = {"listen_port": 51_821, "private_key": "${secret:WG_OTHER}"}
        return {"networks": [networks[0], {**networks[1], **more}]}

    moved = {"subnets": ["10.99.1.0/24"]}
    committed(both({}, moved), tools)
    committed(both(moved, {}), tools)
    assert [one["dev"] for one in ip("route", "show", "10.99.1.0/24")] == [first]


def test_a_port_that_is_taken_meanwhile_is_said_and_the_old_one_comes_back(net, tools, name):
    rendering = committed(document(name, tunnels.member("anna", 2)), tools)
    snapshot = KIND.snapshot(tools)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("0.0.0.0", 51_999))
        with pytest.raises(Problem, match="Address already in use"):
            KIND.commit(rendered(document(name, tunnels.member("anna", 2), listen_port=51_999)), tools)
        KIND.restore(snapshot, tools)
        assert KIND.snapshot(tools) == snapshot
        assert KIND.holds(rendering, KIND.observe(tools))


def test_what_a_kill_left_between_making_and_marking_is_ours(net, tools, name):
    rendering = rendered(document(name, tunnels.member("anna", 2)))
    subprocess.run(["nft", "-f", "-"], input=rendering[rendering.index(b"table inet") :], check=True)
    subprocess.run(["wireguard-go", name], check=True, env={}, stderr=subprocess.DEVNULL)
    KIND.commit(rendering, tools)
    KIND.self_check(rendering, tools)
    KIND.commit(rendered({"networks": []}), tools)
    subprocess.run(["nft", "-f", "-"], input=rendering[rendering.index(b"table inet") :], check=True)
    subprocess.run(["wireguard-go", name], check=True, env={}, stderr=subprocess.DEVNULL)
    KIND.restore(rendered({"networks": []}), tools)
    assert name not in [one["ifname"] for one in ip("link", "show")]


def test_keys_that_wg_would_leave_out_silently_are_refused_before_anything_is_touched(net, tools, name):
    private, public = wireguards.genkey()
    intent = document(name, {**tunnels.member("anna", 2), "public_key": public})
    with pytest.raises(Problem, match="key of its own for the member anna"):
        KIND.validate(KIND.render(intent, None, {"WG_HOME": private}), tools)
    other = document(name, tunnels.member("anna", 2), public_key=tunnels.key("other"))
    with pytest.raises(Problem, match="expected the network") as caught:
        KIND.validate(KIND.render(other, None, {"WG_HOME": private}), tools)
    assert private not in caught.value.reason
    same = {"networks": [{**other["networks"][0], "public_key": public}]}
    KIND.validate(KIND.render(same, None, {"WG_HOME": private}), tools)
    assert KIND.observe(tools).facts["networks"] == []


def grown(live, wanted, tools):
    KIND.commit(wanted, tools, live=live)
    KIND.self_check(wanted, tools)
    assert KIND.holds(wanted, KIND.observe(tools))


def rules():
    """The table's rules with their handles, without those that name members."""
    shown = subprocess.run(["nft", "-a", "list", "table", reach.FAMILY, reach.NAME], check=True, capture_output=True)
    return [line for line in shown.stdout.decode().splitlines() if " comment " not in line and "elements" not in line]


def test_a_member_more_replaces_no_rule_and_what_was_changed_since_the_look_is_found(net, tools, name, tmp_path):
    anna, ben, carl = (tunnels.member(one, last) for one, last in (("anna", 2), ("ben", 3), ("carl", 9)))
    committed(document(name, anna), tools)
    before = rules()
    grown(KIND.observe(tools), rendered(document(name, anna, ben)), tools)
    assert rules() == before
    three = rendered(document(name, anna, ben, carl))
    live = KIND.observe(tools)
    subprocess.run(["nft", "delete", "element", reach.FAMILY, reach.NAME, "group1", "{ 10.80.0.2 }"], check=True)
    KIND.commit(three, tools, live=live)
    with pytest.raises(Problem, match="not what was applied"):
        KIND.self_check(three, tools)
    # An nft that does not take additions is asked for the whole table.
    script = tmp_path / "nft"
    script.write_text(
        '#!/bin/sh\n[ "$*" = "-f -" ] || exec /usr/sbin/nft "$@"\nall=$(cat)\n'
        'case "$all" in add*) exit 1;; esac\nprintf "%s\\n" "$all" | exec /usr/sbin/nft -f -\n'
    )
    script.chmod(0o755)
    grown(KIND.observe(tools), three, ProgramTools({**KIND.programs, "nft": str(script)}))
    assert rules() != before


def test_who_loses_an_address_has_it_no_more_when_the_table_gives_it_to_another(net, tools, name, tmp_path):
    """Also in a restore, and where only the addresses of two members who stay are exchanged."""
    seen, script = tmp_path / "seen", tmp_path / "nft"
    script.write_text(
        '#!/bin/sh\n[ "$*" = "-f -" ] || exec /usr/sbin/nft "$@"\nall=$(cat)\n'
        f'wg show {name} allowed-ips > {seen} || :\nprintf "%s\\n" "$all" | exec /usr/sbin/nft -f -\n'
    )
    script.chmod(0o755)
    spied = ProgramTools({**KIND.programs, "nft": str(script)})
    narrow, carl = {"may_reach": []}, tunnels.member("carl", 9)
    first = rendered(document(name, tunnels.member("anna", 2), tunnels.member("ben", 3, **narrow), carl))
    swapped = rendered(document(name, tunnels.member("anna", 3), tunnels.member("ben", 2, **narrow), carl))
    replaced = rendered(document(name, tunnels.member("dora", 2, **narrow), tunnels.member("eric", 3), carl))
    grown(None, first, tools)
    for wanted in (swapped, replaced, first):
        grown(None, wanted, spied)
        (stayed,) = (one for one in seen.read_text().splitlines() if "(none)" not in one)
        assert stayed == f"{tunnels.key('carl')}\t10.80.0.9/32"


def test_a_table_of_a_version_before_is_no_drift_and_is_replaced_by_the_next_change(net, tools, name):
    anna = tunnels.member("anna", 2)
    rendering = committed(document(name, anna), tools)
    old = reach.text(reach.table(decode.read(document(name, anna))), sets=False).encode()
    before = rendering[: rendering.index(b"table inet")] + old
    KIND.commit(before, tools)
    live = KIND.observe(tools)
    assert "@group1" not in live.text
    assert KIND.holds(before, live)
    KIND.restore(KIND.snapshot(tools), tools)
    assert KIND.holds(before, KIND.observe(tools))
    grown(live, rendered(document(name, anna, tunnels.member("ben", 3))), tools)
    assert "@group1" in KIND.observe(tools).text


def test_a_table_edited_beyond_recognition_is_no_snapshot(net, tools, name):
    committed(document(name, tunnels.member("anna", 2)), tools)
    subprocess.run(
        ["nft", "insert", "rule", reach.FAMILY, reach.NAME, "input", "meta", "mark", "1", "accept"], check=True
    )
    with pytest.raises(Problem) as caught:
        KIND.snapshot(tools)
    assert (caught.value.code, "nft delete table inet latticed_wireguard" in caught.value.hint) == (
        "apply_failed",
        True,
    )


def test_without_a_program_its_package_is_named(net, name):
    rendering = rendered(document(name, tunnels.member("anna", 2)))
    for missing in ("wg", "nft", "ip", "wireguard-go"):
        tools = ProgramTools({**KIND.programs, missing: f"/nonexistent/{missing}"})
        with pytest.raises(Problem) as caught:
            tried(rendering, tools)
        assert name not in [one["ifname"] for one in ip("link", "show")]
        assert caught.value.code == "tool_missing"
        assert "apt install" in caught.value.hint
        assert tunnels.key("WG_HOME") not in f"{caught.value.reason} {caught.value.hint}"


@pytest.mark.parametrize("program", ["wg", "nft", "ip"])
@pytest.mark.parametrize(
    "does",
    ["exec sleep 30", "head -c 10485760 /dev/zero", "kill -9 $$", "exit 3"],
    ids=["hangs", "floods", "dies", "fails"],
)
def test_a_program_that_misbehaves_in_the_middle_is_an_error_and_what_was_there_comes_back(
    net, tools, name, tmp_path, program, does
):
    """It reads as ever, so that nothing is noticed before the change has begun."""
    committed(document(name, tunnels.member("anna", 2)), tools)
    snapshot = KIND.snapshot(tools)
    script = tmp_path / program
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *addconf*|*-batch*|"-f -") {does};; esac\nexec {KIND.programs[program]} "$@"\n'
    )
    script.chmod(0o755)
    broken = ProgramTools({**KIND.programs, program: str(script)}, deadline_s=2.0)
    wide = rendered(document(name, tunnels.member("anna", 2), tunnels.member("ben", 3), mtu=1300, may_reach=[]))
    with pytest.raises(Problem) as caught:
        KIND.commit(wide, broken)
    assert caught.value.code == "tool_failed", caught.value
    assert tunnels.key("WG_HOME") not in caught.value.reason
    KIND.restore(snapshot, tools)
    assert KIND.snapshot(tools) == snapshot
