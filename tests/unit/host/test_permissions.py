"""The one rule of what may be done for a plugin: every combination, and who is told of a change."""

from __future__ import annotations

import itertools

import pytest

from latticed.host import permissions
from latticed.host.permissions import Permissions, PluginStanding

GOOD = PluginStanding(active=True, granted=frozenset({"task:run", "ddns:admin"}))


@pytest.mark.parametrize(
    ("seen", "fault", "active", "granted"),
    [
        (*flags, granted)
        for flags in itertools.product((True, False), ("", "key_revoked"), (True, False))
        for granted in (frozenset(), frozenset({"kv:read"}), frozenset({"kv:read", "task:run"}))
    ],
)
def test_only_what_is_seen_verified_active_and_granted_may(seen, fault, active, granted):
    """One of the four missing is enough; the reason names the first that is."""
    refusal = permissions.judge(PluginStanding(seen=seen, fault=fault, active=active, granted=granted), "task:run")
    may = seen and not fault and active and "task:run" in granted
    assert (refusal is None) is may
    if refusal is not None:
        expected = (
            "not_seen"
            if not seen
            else "not_available"
            if fault
            else "not_active"
            if not active
            else "capability_not_granted"
        )
        assert refusal.code == expected
        assert refusal.distrusted is (seen and bool(fault)), "killed, rather than asked to end"
        assert refusal.lost is seen, "before the first look at the disk nobody has lost anything"
        assert (fault in refusal.reason) is (refusal.code == "not_available" or not fault)


def test_one_of_several_capabilities_is_enough():
    assert permissions.judge(GOOD, "notify:send", "task:run") is None
    refusal = permissions.judge(GOOD, "notify:send", "monitor:admin")
    assert refusal is not None
    assert refusal.reason == "notify:send or monitor:admin is not granted"


def test_who_is_not_known_may_nothing():
    assert permissions.judge(permissions.UNKNOWN, "task:run").code == "not_active"
    assert Permissions().refusal("acme.demo", "task:run").code == "not_seen"


def test_a_change_is_told_once():
    """Only what decides counts; one that is as it was before anybody asked is no change."""
    standing = {}
    here = Permissions()
    here.follow(lambda plugin_id: standing.get(plugin_id, permissions.UNKNOWN))
    assert not here.changed("acme.demo")
    for now in (GOOD, PluginStanding(active=True, fault="digest_mismatch", granted=GOOD.granted), permissions.UNKNOWN):
        standing["acme.demo"] = now
        assert (here.changed("acme.demo"), here.changed("acme.demo")) == (True, False)
        assert here.may("acme.demo", "ddns:admin") is (now == GOOD)
    assert here._told == {}, "nothing is kept of those that may nothing: there may be thousands"
