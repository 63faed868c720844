"""Operators who are connected to sshd through a tunnel: which intents would let them in no more."""

from __future__ import annotations

import pytest

from latticed.model.errors import Problem
from latticed.plans.kind import Live
from latticed.plans.wireguard import WireguardKind
from latticed.system.wireguard import lockout
from tests.house import tunnels

KIND = WireguardKind()
NOW = 1_800_000_000
ANNA, BEN, OFFICE, ABROAD = "10.80.0.2", "10.80.0.3", "192.168.9.7", "203.0.113.9"
BOUND = tunnels.document(
    addresses=["10.80.0.1/24", "fd80::1/64"],
    members=[
        tunnels.member("anna", 2, addresses=[ANNA, "fd80::2"]),
        tunnels.member("ben", 3, subnets=["192.168.9.0/24"]),
    ],
)


@pytest.fixture(autouse=True)
def now(monkeypatch):
    monkeypatch.setattr("latticed.plans.wireguard._now_s", lambda: NOW)


def live(*peers, ports=(22,), local="10.80.0.1"):
    """As the helper observes the host where `BOUND` is applied, with operators connected from `peers`."""
    allowed = [[f"{ANNA}/32", "fd80::2/128"], [f"{BEN}/32", "192.168.9.0/24"]]
    return Live(
        facts={
            "interfaces": [
                {"name": "eth0", "addresses": ["192.0.2.1/24"], "ours": False},
                {"name": "wg-home", "addresses": ["10.80.0.1/24", "fd80::1/64"], "ours": True},
            ],
            "udp_ports": [],
            "networks": [{"name": "wg-home", "peers": [{"allowed": one} for one in allowed]}],
            "sshd_ports": list(ports),
            "sessions": [{"peer": peer, "local": local} for peer in peers],
        }
    )


def changed(of, **changes):
    """The bound with changes to one member, or to the network."""
    (network,) = BOUND["networks"]
    if not of:
        return {"networks": [{**network, **changes}]}
    members = [{**one, **changes} if one["id"] == of else one for one in network["members"]]
    return {"networks": [{**network, "members": members}]}


def shut_out(intent, found, source=""):
    findings = KIND.check(intent, found, source)
    assert {(one.code, one.path, one.overridable) for one in findings} <= {("lockout_source", "networks", True)}
    return [one.expected.split(",")[0].rpartition(" ")[2] for one in findings]


ONLY_WEB = [{"to": "server", "proto": "tcp", "ports": [443]}]
WITHOUT_ANNA = {
    "no network": {"networks": []},
    "gone": changed("", members=[tunnels.member("ben", 3)]),
    "disabled": changed("anna", enabled=False),
    "ended": changed("anna", expires_at=NOW),
    "about to end": changed("anna", expires_at=NOW + lockout.SOON_S),
    "reaches nothing": changed("anna", may_reach=[]),
    "reaches another port": changed("anna", may_reach=ONLY_WEB),
    "reaches members": changed("", may_reach=["members"]),
    "another address": changed("anna", addresses=["fd80::2"]),
}


@pytest.mark.parametrize("intent", WITHOUT_ANNA.values(), ids=WITHOUT_ANNA.keys())
def test_who_is_connected_through_a_tunnel_is_shut_out_by_an_intent_without_a_way(intent):
    assert KIND.narrows(BOUND, intent, now_s=NOW)
    assert shut_out(intent, live(ANNA)) == [ANNA]
    assert shut_out(intent, live(f"::ffff:{ANNA}", local="::ffff:10.80.0.1")) == [ANNA]


WITH_ANNA = {
    "the same": BOUND,
    "others gone": changed("", members=[tunnels.member("anna", 2)]),
    "ends later": changed("anna", expires_at=NOW + lockout.SOON_S + 1),
    "reaches sshd": changed("anna", may_reach=[{"to": "server", "proto": "tcp", "ports": ["20-30"]}]),
    "reaches its address": changed("anna", may_reach=["10.80.0.0/24"]),
}


@pytest.mark.parametrize("intent", WITH_ANNA.values(), ids=WITH_ANNA.keys())
def test_who_still_has_a_way_is_not(intent):
    assert shut_out(intent, live(ANNA)) == []


def test_networks_behind_a_member_and_both_families_count():
    assert shut_out(changed("ben", subnets=[]), live(OFFICE)) == [OFFICE]
    assert shut_out(changed("ben", enabled=False), live(OFFICE, BEN, ANNA)) == [BEN, OFFICE]
    assert shut_out(changed("anna", addresses=[ANNA]), live("fd80::2", local="fd80::1")) == ["fd80::2"]
    assert shut_out(BOUND, live(OFFICE)) == shut_out(BOUND, live("fd80::2", local="fd80::1")) == []


def test_who_comes_by_another_way_or_finds_no_sshd_is_nobodys_concern():
    assert shut_out({"networks": []}, live(ABROAD, "10.80.0.4")) == []
    assert shut_out({"networks": []}, live(ANNA, ports=())) == []


def test_who_approved_counts_by_any_address_of_this_host_and_a_session_by_its_own():
    assert shut_out(changed("anna", may_reach=["192.0.2.1"]), live(ANNA)) == [ANNA]
    assert shut_out(changed("anna", enabled=False), live(), ANNA) == [ANNA]
    assert shut_out(changed("anna", may_reach=["192.0.2.1"]), live(), ANNA) == []
    assert shut_out(changed("anna", enabled=False), live(), ABROAD) == []


def test_of_more_than_a_thousand_members_each_session_is_judged_by_its_own():
    members = [
        {"id": f"m{n}", "public_key": tunnels.key(n), "addresses": [f"10.80.{n // 250}.{n % 250 + 2}"]}
        for n in range(1_500)
    ]
    found = live(*(one["addresses"][0] for one in members[:1_000]))
    found.facts["networks"] = [{"peers": [{"allowed": [f"{one['addresses'][0]}/32"]} for one in members]}]
    assert shut_out(changed("", addresses=["10.80.0.1/16"], members=members), found) == []
    assert len(shut_out(changed("", addresses=["10.80.0.1/16"], members=members[1_000:]), found)) == 100


def test_address_of_the_approver_that_is_none_is_refused():
    with pytest.raises(Problem, match="address of the operator's session"):
        KIND.check(BOUND, live(), "anna")
