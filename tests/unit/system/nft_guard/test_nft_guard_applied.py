"""What is committed, what holds and what is put back, from renderings and listings alone."""

from __future__ import annotations

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.system.nft_guard import applied, decode, parse
from latticed.system.nft_guard.render import render

NOW = 1_800_000_000
BASE = {"groups": [{"name": "ssh", "rules": [{"proto": "tcp", "ports": [22]}]}], "bindings": {"groups": ["ssh"]}}
STATELESS = b"table inet latticed_guard {\n\tset bans4 {\n\t\ttype ipv4_addr\n\t\tflags timeout\n\t}\n}\n"


def rendered(*bans, **more):
    plain = [{"address": address, "expires_at": until} for address, until in bans]
    return render(decode.read({**BASE, "bans": plain, **more}))


def element(address, *, timeout=None, expires=None, comment=""):
    if timeout is None and not comment:
        return address
    inner = {"val": address, "timeout": timeout, "expires": expires, "comment": comment or None}
    return {"elem": {key: value for key, value in inner.items() if value is not None}}


def listing(*elements, **more):
    """As `nft -j list table` prints a table with these in its sets of bans."""
    sets = []
    for name, kind, version in (("bans4", "ipv4_addr", 4), ("bans6", "ipv6_addr", 6)):
        own = [one for one in elements if ipaddress.ip_address(plain(one)).version == version]
        sets.append({"set": {"family": "inet", "name": name, "table": "latticed_guard", "type": kind, "elem": own}})
    return {"nftables": [{"metainfo": {"version": '"1.0.6"'}}, *sets, *more.get("others", ())]}


def plain(one):
    return one if isinstance(one, str) else one["elem"]["val"]


def added(text):
    return sorted(line for line in text.decode().splitlines() if line.startswith("add element"))


def ban(address, seconds, until=None):
    comment = "" if until is None else f' comment "until {until}"'
    name = "bans6" if ":" in address else "bans4"
    return f"add element inet latticed_guard {name} {{ {address} timeout {seconds}s{comment} }}"


# What is committed.


def test_first_commit_gives_each_ban_the_time_to_its_end_and_leaves_out_what_is_over():
    rendering = rendered(("192.0.2.1", NOW + 60), ("2001:db8::1", NOW + 90), ("192.0.2.2", NOW))
    text = applied.transaction(rendering, None, NOW)
    assert text.startswith(rendering)
    assert added(text) == [ban("192.0.2.1", 60, NOW + 60), ban("2001:db8::", 90, NOW + 90)]


def test_ban_that_is_there_with_the_same_end_keeps_what_the_kernel_says_remains():
    """A clock that was set in between changes nothing for it; one with another end gets its new time."""
    live = listing(
        element("192.0.2.1", timeout=600, expires=17, comment=f"until {NOW + 60}"),
        element("192.0.2.2", timeout=600, expires=17, comment=f"until {NOW + 60}"),
    )
    rendering = rendered(("192.0.2.1", NOW + 60), ("192.0.2.2", NOW + 90))
    found = added(applied.transaction(rendering, live, NOW - 1_000))
    assert found == [ban("192.0.2.1", 17, NOW + 60), ban("192.0.2.2", 1_090, NOW + 90)]


def test_ban_that_came_in_while_the_clock_was_behind_ends_when_the_intent_says_so():
    """At a boot before the clock is set: the kernel was told years for an hour."""
    live = listing(
        element("192.0.2.1", timeout=63_075_600, expires=63_075_000, comment=f"until {NOW + 3_000}"),
        element("192.0.2.2", timeout=63_075_600, expires=63_075_000, comment=f"until {NOW - 60}"),
    )
    rendering = rendered(("192.0.2.1", NOW + 3_000), ("192.0.2.2", NOW - 60))
    assert added(applied.transaction(rendering, live, NOW)) == [ban("192.0.2.1", 3_000, NOW + 3_000)]


@pytest.mark.parametrize(("left", "told"), [(61, True), (60, False), (1, False)])
def test_table_tells_of_bans_that_outlast_their_end(left, told):
    """By more than a minute: a clock that is set by a little is no reason to load the table again."""
    live = listing(
        element("192.0.2.1", timeout=600, expires=left, comment=f"until {NOW}"),
        element("192.0.2.2", timeout=600, expires=600, comment=f"until {NOW + 600}"),
        element("192.0.2.3", timeout=600, expires=600),
    )
    assert applied.outlast(parse.bans(live), applied.ends(live), NOW) is told


def test_ban_that_the_intent_has_no_more_is_gone_and_one_put_in_by_hand_stays_unless_never_has_it():
    live = listing(
        element("192.0.2.1", timeout=600, expires=100, comment=f"until {NOW + 100}"),
        element("192.0.2.2", timeout=600, expires=100),
        element("192.0.2.3", timeout=600, expires=100),
    )
    assert added(applied.transaction(rendered(never=["192.0.2.3"]), live, NOW)) == [ban("192.0.2.2", 100)]


def test_removal_of_the_table_commits_no_bans():
    removing = render(
        decode.read({"bindings": {"managed": False}, "bans": [{"address": "192.0.2.1", "expires_at": NOW}]})
    )
    live = listing(element("192.0.2.9", timeout=600, expires=100))
    assert applied.transaction(removing, live, NOW - 60) == removing


@pytest.mark.parametrize("comment", ["until", "until x", "until 1800000000 ", "UNTIL 1", "until 1234567890123", '"'])
def test_comment_of_anybody_else_is_no_end(comment):
    live = listing(element("192.0.2.1", timeout=9, expires=9, comment=comment), {"elem": {"val": "192.0.2.2"}})
    assert applied.ends(live) == {}


def test_missing_bans_are_those_that_should_be_there_for_a_while_yet():
    rendering = rendered(("192.0.2.1", NOW + 61), ("192.0.2.2", NOW + 60), ("192.0.2.3", NOW + 600))
    live = listing(element("192.0.2.3", timeout=600, expires=600))
    assert [str(one) for one in applied.missing(rendering, live, NOW)] == ["192.0.2.1/32"]


# What holds.


def test_bans_and_the_list_never_are_no_part_of_what_holds():
    assert applied.holds(rendered(("192.0.2.1", NOW)), applied._basis(rendered(never=["192.0.2.0/24"]).decode()))
    other = {**BASE, "groups": [{"name": "ssh", "rules": [{"proto": "tcp", "ports": [23]}]}]}
    assert not applied.holds(render(decode.read(other)), applied._basis(rendered().decode()))
    assert applied.holds(render(decode.read({"bindings": {"managed": False}})), b"")
    assert not applied.holds(rendered(), b"")


def test_table_that_somebody_has_been_in_is_seen_as_it_is_printed_and_holds_nothing():
    chain = {"chain": {"family": "inet", "table": "latticed_guard", "name": "mine", "handle": 1}}
    live = listing(element("192.0.2.1", timeout=9, expires=9), others=[chain])
    seen = applied.seen(live, STATELESS)
    assert (seen.understood, seen.basis.startswith(b"foreign "), len(seen.bans)) == (False, True, 1)
    assert "set bans4" in seen.text
    assert not applied.holds(rendered(), seen.basis)


# What is put back.


def test_no_table_is_put_back_as_none_however_often():
    kept = applied.snapshot(None, b"", 100)
    assert (
        applied.restored(kept, 100)
        == applied.restored(kept, 10**9)
        == render(decode.read({"bindings": {"managed": False}}))
    )


def test_snapshot_is_put_back_with_less_time_and_without_what_is_over():
    live = listing(
        element("192.0.2.1", timeout=600, expires=100, comment=f"until {NOW}"),
        element("192.0.2.2", timeout=600, expires=30),
        element("192.0.2.3"),
        element("2001:db8::", timeout=60, expires=60),
    )
    kept = applied.snapshot(live, STATELESS, 1_000)
    table = "inet latticed_guard"
    first = f'add element {table} bans4 {{ 192.0.2.1 timeout 600s expires 70s comment "until {NOW}" }}'
    wanted = [
        first,
        f"add element {table} bans4 {{ 192.0.2.3 }}",
        f"add element {table} bans6 {{ 2001:db8:: timeout 60s expires 30s }}",
    ]
    assert added(applied.restored(kept, 1_030)) == wanted
    # Another boot's clock says nothing of what has gone by.
    assert "expires 100s" in applied.restored(kept, 5).decode()


@pytest.mark.parametrize(
    "live",
    [
        listing(element("192.0.2.1", timeout=9, expires=9, comment='a" accept #')),
        listing(element("192.0.2.1", timeout=9, expires=9, comment="a\\nb")),
        listing(element("192.0.2.1", timeout=9, expires=9, comment="é")),
        listing(others=[{"chain": {"name": 'x"'}}]),
        listing(others=[{"rule": {"comment": "a\tb"}}]),
        listing(others=[{"set": {"name": "mine", "elem": [80]}}]),
        listing(others=[{"map": {"name": "mine", "elem": [["192.0.2.1", 80]]}}]),
        listing(others=[{"set": {"name": "mine", "elem": [{"prefix": {"addr": "192.0.2.0", "len": 24}}]}}]),
        listing(others=[{"set": {"name": "mine", "elem": [{"elem": {"val": "192.0.2.1", "counter": {}}}]}}]),
        listing(others=[{"set": {"name": "a;b", "elem": ["192.0.2.1"]}}]),
    ],
    ids=range(10),
)
def test_table_of_which_no_text_can_be_made_is_unrestorable(live):
    with pytest.raises(applied.Unrestorable):
        applied.snapshot(live, STATELESS, 0)


@given(
    st.dictionaries(st.ip_addresses(v=4), st.tuples(st.integers(1, 10**6), st.booleans()), max_size=8),
    st.integers(0, 10**6),
)
def test_no_ban_is_put_back_for_longer_than_was_left_and_none_that_was_left_is_lost(bans, gone_s):
    live = listing(
        *(
            element(str(address), timeout=10**6, expires=left_s, comment=f"until {NOW}" if ours else "")
            for address, (left_s, ours) in bans.items()
        )
    )
    text = applied.restored(applied.snapshot(live, STATELESS, 50), 50 + gone_s)
    found = {line.split()[6]: int(line.split()[10].rstrip("s")) for line in added(text)}
    assert found == {str(one): left_s - gone_s for one, (left_s, _) in bans.items() if left_s > gone_s}
    assert text == applied.restored(applied.snapshot(json.loads(json.dumps(live)), STATELESS, 50), 50 + gone_s)


@pytest.mark.parametrize("flags", [["timeout"], "timeout"])
def test_a_single_flag_of_a_set_is_read_as_older_and_newer_versions_of_nft_list_it(flags):
    found = listing("192.0.2.1")
    for one in found["nftables"][1:]:
        one["set"]["flags"] = flags
    assert parse.table(found).chains == ()
    found["nftables"][1]["set"]["flags"] = ["timeout", "interval"]
    with pytest.raises(parse.Foreign):
        parse.table(found)
