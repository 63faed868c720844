from __future__ import annotations

import copy
import json

import pytest

from latticed.ctl import decision
from tests.house import api_server


def test_plugin_is_installed_activated_disabled_and_forgotten(ctl, api):
    """One line each in text, the record in JSON."""
    api.add()
    assert ctl("install", "acme.demo").out == "acme.demo installed: version 1.0.0\n"
    assert ctl("activate", "acme.demo").out == "acme.demo activated: version 1.0.0 (armed, noop, health unknown)\n"
    assert ctl("restart", "acme.demo").out == "acme.demo restarted: version 1.0.0 (armed, noop, health unknown)\n"
    assert ctl("disable", "acme.demo", "--format", "json").json["status"] == "disabled"
    assert ctl("forget", "acme.demo").out == "acme.demo forgotten\n"
    assert ctl("forget", "acme.demo").code == 4


def test_forget_counts_kept_data_and_purge_counts_removed_data(ctl, api):
    """Forget: on stderr, with the purging command; purge: on stdout."""
    api.left = {"values": 3, "files": 1, "notifications": 0}
    api.add()
    ran = ctl("forget", "acme.demo")
    assert (ran.code, ran.out) == (0, "acme.demo forgotten\n")
    assert ran.err == "kept: 3 values, 1 file; latticectl forget --purge acme.demo removes them\n"
    api.add()
    assert ctl("forget", "--purge", "acme.demo").out == "acme.demo forgotten, removed with it: 3 values, 1 file\n"
    assert json.loads(api.bodies[-1]) == {"purge": True}
    old = {"id": "acme.demo", "forgotten": False, "purged": True, "data": {}}
    api.override["POST plugins/by-id/acme.demo/forget"] = (200, old)
    ran = ctl("forget", "--purge", "acme.demo")
    assert (ran.out, ran.err) == (
        "acme.demo removed: nothing\n",
        "its bundle is still in the plugin directory\n",
    )


@pytest.mark.parametrize(
    ("verb", "status", "told"),
    [
        ("install", "installed", "acme.demo already installed: version 1.0.0\n"),
        ("install", "active", "acme.demo already installed (status active): version 1.0.0"),
        ("install", "disabled", "acme.demo already installed (status disabled): version 1.0.0"),
        ("activate", "active", "acme.demo already active: version 1.0.0"),
        ("disable", "disabled", "acme.demo already disabled: version 1.0.0\n"),
    ],
)
def test_repeated_decision_succeeds_with_a_note(ctl, api, verb, status, told):
    api._arm(api.add(status=status))
    ran = ctl(verb, "acme.demo")
    assert ran.code == 0
    assert ran.out.startswith(told)
    assert ctl(verb, "acme.demo", "--format", "json").json["status"] == status


@pytest.mark.parametrize(("verb", "status"), [("activate", "verified"), ("disable", "verified")])
def test_invalid_transition_exits_with_an_error(ctl, api, verb, status):
    api.add(status=status)
    ran = ctl(verb, "acme.demo")
    assert (ran.code, ran.data) == (1, b"")
    assert ran.err == f"error: acme.demo is {status}\nhint: see latticectl info\n"


def test_activation_that_cannot_be_armed_fails_with_its_reason(ctl, api):
    """The API answers 200 with runtime.state=failed; a repeated request fails as well."""
    api.add(status="installed")
    api.fails_to_arm.add("acme.demo")
    for told in ("activated", "already active"):
        ran = ctl("activate", "acme.demo")
        assert ran.code == 1
        assert ran.out.startswith(f"acme.demo {told}: version 1.0.0 (failed, ")
        assert "could not be armed: start_timeout: no answer within 10 s" in ran.err
        assert "latticectl restart acme.demo" in ran.err


def test_consent_is_sent_by_name_and_only_when_given(ctl, api):
    api.add()
    ctl("install", "acme.demo")
    assert json.loads(api.bodies[-1]) == {"id": "acme.demo", "status": "installed", "already_so": True}
    api.add()
    ctl(
        "install",
        "acme.demo",
        "--accept",
        "http:egress",
        "--accept",
        "kv:write",
        "--accept-host",
        "a:443",
        "--allow-downgrade",
        "--identity",
        "ef" * 32,
    )
    assert json.loads(api.bodies[-1]) == {
        "id": "acme.demo",
        "status": "installed",
        "already_so": True,
        "identity": "ef" * 32,
        "accept": ["http:egress", "kv:write"],
        "accept_hosts": ["a:443"],
        "allow_downgrade": True,
    }


def test_ungranted_capabilities_are_noted_with_the_granting_command(ctl, api):
    api.add(capabilities=["kv:read", "http:egress", "task:run"])
    ran = ctl("install", "acme.demo", "--accept", "task:run")
    assert ran.err == ("not granted (host risk): http:egress\nhint: latticectl caps grant acme.demo cap=http:egress\n")
    assert ctl("caps", "grant", "acme.demo", "cap=http:egress").code == 0
    assert ctl("activate", "acme.demo").err == ""


def test_consent_on_a_repeated_decision_is_not_granted(ctl, api):
    api.add(status="installed")
    assert "use latticectl caps grant" in ctl("install", "acme.demo", "--accept", "kv:read").err


def test_consent_on_a_plugin_that_is_up_to_date_is_not_granted(ctl, api):
    """Neither is a capability that there is not taken for granted."""
    api.add(status="active")
    ran = ctl("upgrade", "acme.demo", "--accept", "http:egress")
    assert "use latticectl caps grant" in ran.err
    ran = ctl("upgrade", "acme.demo", "--accept", "cap=htp:egress")
    assert (ran.code, ran.out, "unknown capability 'htp:egress'" in ran.err) == (2, "", True)


def test_upgrade_requires_consent_to_a_downgrade(ctl, api):
    api.add(status="installed", candidate=api_server.CANDIDATE)
    assert ctl("upgrade", "acme.demo").out == "acme.demo upgraded: version 1.1.0\n"
    again = ctl("upgrade", "acme.demo")
    assert (again.code, again.out) == (0, "acme.demo already up to date: version 1.1.0\n")
    api.plugins["acme.demo"]["candidate"] = {**api_server.CANDIDATE, "version": "0.9.0", "needs_downgrade": True}
    refused = ctl("upgrade", "acme.demo")
    assert refused.code == 1
    assert "hint: latticectl upgrade acme.demo --allow-downgrade\n" in refused.err
    assert ctl("upgrade", "acme.demo", "--allow-downgrade").out == "acme.demo upgraded: version 0.9.0\n"


def test_upgrade_takes_what_the_dry_run_showed_and_nothing_else(ctl, api):
    api.add(status="installed", candidate=api_server.CANDIDATE)
    shown = f"--identity {api_server.CANDIDATE['identity']}"
    assert f"hint: {shown} has this version and no other one upgraded\n" in ctl("upgrade", "acme.demo", "--dry-run").err
    api.plugins["acme.demo"]["candidate"] = {**api_server.CANDIDATE, "version": "1.2.0", "identity": "0" * 64}
    refused = ctl("upgrade", "acme.demo", *shown.split())
    assert (refused.code, refused.out) == (1, "")
    assert "hint: latticectl info acme.demo\n" in refused.err
    api.plugins["acme.demo"]["candidate"] = api_server.CANDIDATE
    assert ctl("upgrade", "acme.demo", *shown.split()).out == "acme.demo upgraded: version 1.1.0\n"


GATING = {"state": "gating", "version": "1.1.0", "before": "1.0.0"}
GIVEN_UP = {**GATING, "state": "rolled_back", "code": "exited", "reason": "status 3"}


def test_upgrade_says_that_the_new_version_is_watched(ctl, api):
    api.add(status="installed", candidate=api_server.CANDIDATE, upgrade={**GATING, "until": "2999-01-01T00:00:00Z"})
    ran = ctl("upgrade", "acme.demo", "--abs-time")
    assert (ran.code, ran.out) == (0, "acme.demo upgraded: version 1.1.0\n")
    assert "1.0.0 stands by, and comes back if 1.1.0 does not do well; the watch ends 2999-01-01" in ran.err
    assert "latticectl rollback acme.demo goes back now" in ran.err


def test_upgrade_that_was_given_up_exits_1_and_one_of_before_is_not_told_again(ctl, api):
    api.add(status="installed", candidate=api_server.CANDIDATE, upgrade=GIVEN_UP)
    ran = ctl("upgrade", "acme.demo", "--wait")
    assert (ran.code, "error: acme.demo 1.1.0 was given up: exited: status 3" in ran.err) == (1, True)
    assert "latticectl upgrade acme.demo --retry" in ran.err
    assert ctl("upgrade", "acme.demo").code == 0


def test_dry_run_of_an_upgrade_waits_for_nothing(ctl, api):
    api.add(status="installed", candidate=api_server.CANDIDATE, upgrade=GATING)
    ran = ctl("upgrade", "acme.demo", "--dry-run", "--wait")
    assert (ran.code, ran.out.splitlines()[0]) == (0, "acme.demo would be upgraded: version 1.1.0")


def test_upgrade_of_an_unavailable_plugin_fails(ctl, api):
    """`already up to date` is for accepted, available plugins only; another publisher requires consent by name."""
    api.add(status="verified")
    assert ctl("upgrade", "acme.demo").code == 1
    api.add(status="installed", available=False)
    assert ctl("upgrade", "acme.demo").code == 1
    api.add(status="installed")
    assert ctl("upgrade", "acme.demo", "--accept-publisher", "evil").code == 1
    assert json.loads(api.bodies[-1]) == {"accept_publisher": "evil", "already_so": True}


def test_denied_decision_exits_5_and_names_the_missing_scope(ctl, api):
    api.override["POST plugins/lifecycle"] = api_server.problem(403, "access_denied", "this takes the scope operate")
    ran = ctl("install", "acme.demo")
    assert ran.code == 5
    assert "scope operate" in ran.err


@pytest.mark.parametrize("verb", ["activate", "restart"])
def test_activate_waits_until_armed_or_failed(ctl, api, verb):
    """The record is read again while the plugin is starting, so exit 0 never comes with `stopped`."""
    shown = api.add(status="active")
    slow = copy.deepcopy(shown)
    slow["runtime"]["message"] = "starting"
    api.override["POST plugins/lifecycle"] = api.override["POST plugins/by-id/acme.demo/restart"] = (200, slow)
    shown["runtime"] |= {"state": "armed"}
    ran = ctl(verb, "acme.demo")
    assert ran.code == 0
    assert ran.err == "acme.demo is being started\n"
    assert "(armed, noop, health unknown)" in ran.out
    shown["runtime"] |= {"state": "failed", "last_error": {"code": "start_timeout", "message": "no answer"}}
    ran = ctl(verb, "acme.demo")
    assert (ran.code, "could not be armed: start_timeout" in ran.err) == (1, True)


def test_activate_reports_start_that_does_not_end(ctl, api, monkeypatch):
    monkeypatch.setattr(decision, "WAIT_S", 0.05)
    slow = api.add(status="active")
    slow["runtime"]["message"] = "starting"
    api.override["POST plugins/by-id/acme.demo/restart"] = (200, slow)
    ran = ctl("restart", "acme.demo")
    assert ran.code == 1
    assert "error: acme.demo is still being started\nhint: latticectl wait acme.demo" in ran.err
