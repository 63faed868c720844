"""Scopes by uid and groups of the peer's credentials, resolved when settings are loaded."""

from __future__ import annotations

import grp
import pwd

import pytest

from latticed.kit.peers import Peer
from latticed.model.errors import Problem
from latticed.rpc import access
from latticed.rpc.access import Scope
from latticed.settings import SCOPES, AccessSettings

OWN, OTHER, NOBODY = 990, 4_242, 65_534


def peer(uid, *groups, gid=7):
    return Peer(pid=1, uid=uid, gid=gid, groups=frozenset(groups))


def resolved(**wanted):
    return access.resolve(AccessSettings(**wanted), own_uid=OWN)


EVERYBODY = {"users": {"65534": SCOPES, "4242": ("read",)}, "groups": {"500": ("operate",), "65534": SCOPES}}


@pytest.mark.parametrize(
    ("wanted", "who", "expected"),
    [
        ({}, peer(0), Scope.ALL),
        ({"own_user": False}, peer(0), Scope.ALL),
        ({"users": {"0": ("read",)}}, peer(0), Scope.ALL),
        ({}, peer(OWN), Scope.ALL),
        ({"own_user": False}, peer(OWN), Scope.NONE),
        ({"own_user": False, "users": {str(OWN): ("read",)}}, peer(OWN), Scope.READ),
        ({}, peer(OTHER), Scope.NONE),
        ({}, peer(OTHER, 0, gid=0), Scope.NONE),
        ({"users": {"4242": ("read",)}}, peer(OTHER), Scope.READ),
        ({"users": {"4242": ("operate",)}}, peer(OTHER), Scope.READ | Scope.OPERATE),
        ({"users": {"4242": ("host",)}}, peer(OTHER), Scope.HOST),
        ({"users": {"4242": ("trust",)}}, peer(OTHER), Scope.TRUST),
        ({"users": {"4242": ("host", "trust", "operate")}}, peer(OTHER), Scope.ALL),
        ({"users": {"4242": ()}}, peer(OTHER), Scope.NONE),
        ({"groups": {"500": ("operate",)}}, peer(OTHER, 500), Scope.READ | Scope.OPERATE),
        ({"groups": {"500": ("operate",)}}, peer(OTHER, gid=500), Scope.READ | Scope.OPERATE),
        ({"groups": {"500": ("operate",)}}, peer(500), Scope.NONE),
        ({"groups": {"500": ("host",), "501": ("read",)}}, peer(OTHER, 500, 501), Scope.HOST | Scope.READ),
        ({"users": {"4242": ("trust",)}, "groups": {"500": ("read",)}}, peer(OTHER, 500), Scope.TRUST | Scope.READ),
        (EVERYBODY, peer(NOBODY, 500, gid=NOBODY), Scope.NONE),
    ],
)
def test_scopes_follow_uid_and_groups(wanted, who, expected):
    """Root has all, and by default the daemon's own uid; 65534 has none; others have what the settings name."""
    assert resolved(**wanted).scopes(who) == expected


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"users": {"4242": ("read",)}, "groups": {"0": ("read",), "65534": ("read",)}}, []),
        ({"users": {"nobody": ("read",)}}, [("access.users.nobody", "give it to a user of its own")]),
        ({"users": {"65534": ("read",)}}, [("access.users.65534", "whom it cannot name")]),
        ({"users": {"root": ("read",), "0": ("host",)}}, [("access.users.root", "all"), ("access.users.0", "all")]),
        ({"users": {str(OWN): ("read",)}}, [(f"access.users.{OWN}", "own_user = false")]),
        ({"own_user": False, "users": {str(OWN): ("read",)}}, []),
        (
            {"users": {"4242": ()}, "groups": {"500": ()}},
            [("access.users.4242", "read"), ("access.groups.500", "read")],
        ),
    ],
)
def test_entries_that_give_nobody_anything_are_named(wanted, said):
    found = resolved(**wanted).without_effect
    assert len(found) == len(said)
    for line, (entry, why) in zip(found, said, strict=True):
        assert line.startswith(f"{entry} has no effect: ")
        assert why in line


def test_what_one_user_is_given_under_two_names_is_added_up():
    me = pwd.getpwuid(2).pw_name
    assert resolved(users={me: ("read",), "2": ("host",)}).scopes(peer(2)) == Scope.READ | Scope.HOST


def test_user_and_group_names_are_resolved_once():
    """They may be numbers; audit events use the user name known when settings were loaded."""
    root, group = pwd.getpwuid(0).pw_name, grp.getgrgid(0).gr_name
    found = resolved(users={root: ("read",), "4242": ("read",)}, groups={group: ("trust",)})
    assert found.scopes(peer(OTHER, 0)) == Scope.READ | Scope.TRUST
    assert str(found.actor(peer(0))) == f"uid:0 user:{root} pid:1"
    assert str(found.actor(peer(OTHER))) == "uid:4242 user:4242 pid:1"
    assert str(found.actor(peer(9_999))) == "uid:9999 user:- pid:1"


@pytest.mark.parametrize("where", ["users", "groups"])
def test_unknown_user_or_group_in_settings_is_an_error(where):
    """The start fails; otherwise no one would have the scope."""
    with pytest.raises(Problem, match="no-such-name") as caught:
        resolved(**{where: {"no-such-name": ("read",)}})
    assert caught.value.code == "settings_invalid"


def test_socket_group_is_given_by_name_or_number():
    assert access.socket_gid("") == -1
    assert access.socket_gid("500") == 500
    assert access.socket_gid(grp.getgrgid(0).gr_name) == 0
    with pytest.raises(Problem, match="no-such-name"):
        access.socket_gid("no-such-name")
