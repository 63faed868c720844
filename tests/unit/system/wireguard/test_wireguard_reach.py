"""One table made of another by additions alone: only where members come and nothing else differs."""

from __future__ import annotations

import pytest

from latticed.system.nft_guard import parse
from latticed.system.wireguard import decode, reach
from tests.house import tunnels

TABLE = "inet latticed_wireguard"


def text(*members, **changes):
    return reach.text(reach.table(decode.read(tunnels.document(members=list(members), **changes))))


def anna(**changes):
    return tunnels.member("anna", 2, **changes)


def test_a_member_more_is_an_element_and_its_name():
    have, wanted = text(anna()), text(anna(), tunnels.member("ben", 5, expires_at=1_800_000_000))
    assert reach.additions(have, wanted) == (
        f"add element {TABLE} group1 {{ 10.80.0.5 }}\n"
        f'add rule {TABLE} members iifname "wg-home" ip saddr 10.80.0.5 comment "ben until 1800000000"\n'
    )
    assert reach.additions(wanted, wanted) == ""


def test_a_neighbour_is_added_alone_though_both_are_shown_as_one():
    have, wanted = text(anna()), text(anna(), tunnels.member("ben", 3))
    assert "elements = { 10.80.0.2/31 }" in wanted
    assert reach.additions(have, wanted).startswith(f"add element {TABLE} group1 {{ 10.80.0.3 }}\n")


def test_a_subnet_around_a_member_is_added_without_the_member():
    have, wanted = text(anna()), text(anna(subnets=["10.80.0.0/29"]))
    assert "elements = { 10.80.0.0/29 }" in wanted
    element, rest = reach.additions(have, wanted).split(" group1 { ")[1].split(" }\n", 1)
    assert (element, rest) == ("10.80.0.0/31, 10.80.0.3, 10.80.0.4/30", "")


def test_a_name_that_comes_first_moves_nobody_s_lines():
    have = text(anna(), tunnels.member("zoe", 9, may_reach=["members"]))
    aaron = tunnels.member("aaron", 4, may_reach=["members"])
    wanted = text(aaron, anna(), tunnels.member("zoe", 9, may_reach=["members"]))
    assert reach.additions(have, wanted).count("add element") == 1


@pytest.mark.parametrize(
    ("have", "wanted"),
    [
        (text(anna(), tunnels.member("ben", 3)), text(anna())),
        (text(anna()), text(tunnels.member("ben", 2))),
        (text(anna()), text(anna(expires_at=1_800_000_000))),
        (text(anna()), text(anna(addresses=["10.80.0.7"]))),
        (text(anna()), text(anna(), may_reach=["members"])),
        (text(anna()), text(anna(), may_reach=[])),
        (text(anna()), text(anna(), tunnels.member("ben", 3, may_reach=["members"]))),
        (text(anna()), text(anna(), tunnels.member("ben", 3, addresses=["fd80::3"]))),
        (text(anna()), text(anna(), name="wg-other")),
        (text(anna()), reach.REMOVED),
        (reach.REMOVED, text(anna())),
        (text(anna(), may_reach=[]), text(anna(), tunnels.member("ben", 3), may_reach=[])),
    ],
    ids="gone renamed ends moved wider narrower other-reach other-family interface removed new no-sets".split(),
)
def test_anything_else_is_no_addition(have, wanted):
    assert reach.additions(have, wanted) is None


def listing(**changes):
    """As nft prints the table of one member, with one set in it."""
    found = {"family": "inet", "name": "group1", "table": "latticed_wireguard", "type": "ipv4_addr", "handle": 1}
    rule = [
        {"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "saddr"}}, "right": "@group1"}},
        {"accept": None},
    ]
    chain = {"family": "inet", "table": "latticed_wireguard", "name": "input", "handle": 2}
    return {
        "nftables": [
            {"set": {**found, "flags": ["interval"], "elem": ["10.80.0.2"], **changes}},
            {"chain": {**chain, "type": "filter", "hook": "input", "prio": 0, "policy": "accept"}},
            {"rule": {"family": "inet", "table": "latticed_wireguard", "chain": "input", "handle": 3, "expr": rule}},
        ]
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"flags": ["interval", "timeout"]},
        {"flags": "timeout"},
        {"flags": []},
        {"timeout": 60},
        {"auto-merge": True},
        {"name": "group2"},
        {"elem": []},
        {"elem": [{"elem": {"val": "10.80.0.2", "timeout": 60}}]},
        {"elem": [7]},
        {"type": "ipv6_addr"},
        {"type": ["ipv4_addr", "inet_service"]},
    ],
    ids=str,
)
def test_a_set_that_is_not_written_here_is_foreign(changes):
    for flags in (["interval"], "interval"):
        assert "saddr @group1 accept" in reach.listed(listing(flags=flags))[1]
    with pytest.raises(parse.Foreign):
        reach.listed(listing(**changes))


@pytest.mark.parametrize("flags", ["dormant", ["dormant"], ["dormant", "owner"]], ids=str)
def test_a_table_with_a_flag_is_foreign(flags):
    """Made dormant by somebody, it has no effect at all."""
    table = {"family": "inet", "name": "latticed_wireguard", "handle": 1}
    plain, flagged = ({"table": {**table, **more}} for more in ({}, {"flags": flags}))
    assert reach.listed({"nftables": [plain, *listing()["nftables"]]}) == reach.listed(listing())
    with pytest.raises(parse.Foreign):
        reach.listed({"nftables": [flagged, *listing()["nftables"]]})
    assert parse.table({"nftables": [plain]}, sets={}).chains == ()
    with pytest.raises(parse.Foreign):
        parse.table({"nftables": [flagged]}, sets={})


@pytest.mark.parametrize("plain", [None, [], {}, {"nftables": 3}, {"nftables": [3]}, {"nftables": [{"rule": {}}]}])
def test_what_is_no_listing_is_foreign(plain):
    with pytest.raises(parse.Foreign):
        reach.listed(plain)
