"""Whether a plugin may act now: every combination of reasons, and which updates count as changes."""

from __future__ import annotations

import itertools
from dataclasses import replace

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
def test_plugin_may_act_only_if_seen_verified_active_and_granted(seen, fault, active, granted):
    """The refusal names the first of the four that is missing."""
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


def test_one_granted_of_several_capabilities_is_enough():
    assert permissions.judge(GOOD, "notify:send", "task:run") is None
    refusal = permissions.judge(GOOD, "notify:send", "monitor:admin")
    assert refusal is not None
    assert refusal.reason == "notify:send or monitor:admin is not granted"


def test_unknown_plugin_may_do_nothing():
    assert permissions.judge(permissions.UNKNOWN, "task:run").code == "not_active"
    assert Permissions().refusal("acme.demo", "task:run").code == "not_seen"


def test_unknown_plugin_is_not_seen_until_records_are_read():
    """A refusal not_seen does not count as a loss of permission."""
    here = Permissions()
    assert here.refusal("acme.demo", "task:run").code == "not_seen"
    here.complete = True
    assert here.refusal("acme.demo", "task:run").code == "not_active"


def test_standing_update_returns_whether_permission_changed():
    """A plugin that may do nothing, before and after, is no change."""
    here = Permissions()
    assert not here.update("acme.demo", permissions.UNKNOWN)
    assert not here.update("acme.demo", permissions.NOT_SEEN)
    for now in (GOOD, PluginStanding(active=True, fault="digest_mismatch", granted=GOOD.granted), permissions.UNKNOWN):
        assert (here.update("acme.demo", now), here.update("acme.demo", now)) == (True, False)
        assert here.may("acme.demo", "ddns:admin") is (now == GOOD)
    assert here._standings == {}, "nothing is kept of those that may nothing: there may be thousands"


def test_permits_and_hosts_are_split_by_kind():
    """`origin` is for the plugin's own requests, `publish` for its routes."""
    here = Permissions()
    granted = (
        "bucket=shared",
        "env=TOKEN",
        "origin=http://127.0.0.1:80",
        "prefix=/app/",
        "publish=http://127.0.0.1:81",
    )
    here.update("acme.demo", PluginStanding(active=True, permits=granted, hosts=("*",), declared_hosts=("*",)))
    assert (here.buckets("acme.demo"), here.variables("acme.demo")) == ({"shared"}, {"TOKEN"})
    assert here.prefixes("acme.demo") == {"/app/"}
    assert [one.port for one in here.origins("acme.demo")] == [80], "for its own requests"
    assert [one.port for one in here.published("acme.demo").origins] == [81], "for its routes"
    rights = here.egress_rights("acme.demo")
    assert (rights.hosts, rights.declared, rights.owner) == (("*",), ("*",), "acme.demo")


READS = PluginStanding(active=True, granted=frozenset({"static:read"}), permits=("share=acme.site",))
SITE = PluginStanding(active=True, granted=frozenset({"static:write"}))


@pytest.mark.parametrize(
    ("reader", "owner", "may"),
    [
        (READS, SITE, True),
        (replace(READS, permits=("share=acme.sites",)), SITE, False),
        (replace(READS, granted=frozenset({"static:write"})), SITE, False),
        (replace(READS, active=False), SITE, False),
        (replace(READS, fault="key_revoked"), SITE, False),
        (READS, replace(SITE, active=False), False),
        (READS, replace(SITE, fault="digest_mismatch"), False),
        (READS, replace(SITE, granted=frozenset({"static:read"})), False),
        (READS, replace(SITE, seen=False), False),
    ],
)
def test_files_are_shared_while_both_plugins_may_act(reader, owner, may):
    """By a permit of the reader; the other way round it gives nothing."""
    here = Permissions(complete=True)
    here.update("acme.demo", reader)
    here.update("acme.site", owner)
    assert here.may_read("acme.demo", "acme.site") is may
    assert not here.may_read("acme.site", "acme.demo")
    assert here.may_read("acme.site", "acme.site") is here.may("acme.site", "static:write")
