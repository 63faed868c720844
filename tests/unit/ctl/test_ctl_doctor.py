"""latticectl doctor: what is not as it should be, and what helps."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from latticed.ctl import doctor

SOUND = {
    "LoadState": "loaded",
    "ActiveState": "active",
    "UnitFileState": "enabled",
    "NeedDaemonReload": "no",
    "Delegate": "yes",
    "RestrictNamespaces": "no",
}


def test_sound_unit_is_ok():
    assert [one.state for one in doctor.unit(SOUND)] == ["ok"]
    assert [one.state for one in doctor.unit({**SOUND, "RestrictNamespaces": "ipc net mnt pid user"})] == ["ok"]
    assert [one.state for one in doctor.unit(None)] == ["off"]
    assert [one.state for one in doctor.unit({"LoadState": "not-found"})] == ["off"]


@pytest.mark.parametrize(
    ("fields", "state", "helps"),
    [
        ({"ActiveState": "failed"}, "bad", "systemctl start latticed.service"),
        ({"UnitFileState": "disabled"}, "look", "systemctl enable latticed.service"),
        ({"NeedDaemonReload": "yes"}, "look", "systemctl daemon-reload"),
        ({"Delegate": "no"}, "look", "systemctl revert latticed.service, or set Delegate=yes"),
        ({"RestrictNamespaces": "yes"}, "look", "systemctl revert latticed.service, or set RestrictNamespaces=no"),
        ({"RestrictNamespaces": "net mnt"}, "look", "systemctl revert latticed.service, or set RestrictNamespaces=no"),
    ],
)
def test_unit_that_was_edited_says_what_helps(fields, state, helps):
    (found,) = doctor.unit({**SOUND, **fields})
    assert found.state == state
    assert found.helps.startswith(helps)


def test_daemon_and_sandbox_are_told_by_what_health_answers():
    health = {
        "status": "degraded",
        "problems": [{"code": "ledger_unavailable", "detail": "3 changes wait to be recorded"}],
        "sandbox": {"level": "filtered", "missing": [{"token": "cgroup", "step": "claim", "fix": "Delegate=cpu"}]},
    }
    assert [(one.check, one.state, one.helps) for one in (*doctor.daemon(health), *doctor.sandbox(health))] == [
        ("daemon", "bad", "df -h /var/lib/latticed"),
        ("cgroups", "look", "Delegate=cpu"),
    ]
    well = {"status": "ok", "sandbox": {"level": "isolated", "missing": []}}
    assert [one.state for one in (*doctor.daemon(well), *doctor.sandbox(well))] == ["ok", "ok"]
    assert [one.state for one in doctor.sandbox({"status": "ok"})] == ["off"], "without the scope read"


@pytest.mark.parametrize(
    ("code", "helps"),
    [
        ("ledger_unavailable", "df -h '/srv/a b'"),
        ("catalog_degraded", "ls -ld /srv/plugins"),
        ("policy_missing", "latticectl trust add PUBLISHER KEY"),
        ("of_another_version", "latticectl health"),
    ],
)
def test_a_problem_is_told_with_what_helps_on_this_host(code, helps):
    settings = SimpleNamespace(state_dir=Path("/srv/a b"), plugin_dir=Path("/srv/plugins"))
    health = {"status": "degraded", "problems": [{"code": code, "detail": "d"}]}
    assert [one.helps for one in doctor.daemon(health, settings)] == [helps]


def test_active_plugins_that_do_not_run_are_counted_by_reason():
    """In words."""
    health = {"status": "ok", "problems": [], "not_running": {"key_revoked": 2, "exited": 1}}
    found = next(one for one in doctor.daemon(health) if one.check == "plugins")
    assert (found.state, found.found) == ("look", "not running 2 key_revoked, 1 exited")


def test_disk_and_clock_tell_what_helps(tmp_path, monkeypatch):
    assert doctor.disk(str(tmp_path)).state == "ok"
    assert doctor.disk(str(tmp_path / "none")).state == "off"
    nearly = os.statvfs_result((4096, 4096, 1_000_000, 10, 10, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: nearly)
    assert (doctor.disk("/").state, "du -xh /" in doctor.disk("/").helps) == ("look", True)
    assert [doctor.clock(synchronised=said).state for said in (True, False, None)] == ["ok", "look", "off"]


def test_daemon_that_does_not_run_is_bad_and_the_rest_is_looked_at(ctl, tmp_path):
    """Exit code 3."""
    (tmp_path / "latticed.toml").write_text(f'state_dir = "{tmp_path}"\nruntime_dir = "{tmp_path}/run"\n')
    ran = ctl("doctor", "--format", "json", "--config", str(tmp_path / "latticed.toml"))
    checks = {one["check"]: one for one in ran.json}
    assert ran.code == 3
    assert (checks["daemon"]["state"], checks["disk"]["state"]) == ("bad", "ok")
    assert "systemctl start latticed" in checks["daemon"]["helps"]


def test_bad_settings_are_told_and_the_rest_is_looked_at(ctl, tmp_path, monkeypatch):
    """Also where they would say where the socket is."""
    monkeypatch.delenv("LATTICED_SOCKET", raising=False)
    monkeypatch.delenv("LATTICED_RUNTIME_DIR", raising=False)
    (tmp_path / "bad.toml").write_text("nonsense =")
    ran = ctl("doctor", "--format", "json", "--config", str(tmp_path / "bad.toml"))
    checks = {one["check"]: one for one in ran.json}
    assert (ran.code, checks["daemon"]["state"], checks["settings"]["state"]) == (3, "bad", "bad")
    assert "clock" in checks
