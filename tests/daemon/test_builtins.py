"""A daemon that brings built-in plugins: kill -9, newer and older versions, lost and restored state."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import signal
import sqlite3
from pathlib import Path

import pytest

from tests.house import bundles, damage, faults

pytestmark = pytest.mark.daemon

ID = "latticed.allowlist"
GRANTED = ["kv:read", "kv:write", "log:write", "network:plan"]
INTENT = {"doors": [{"name": "cellar", "people": ["bob", "ann"]}]}


@pytest.fixture
def place(place):
    place.builtins = ("eight", "1.0.0")
    return place


def active(daemon):
    assert daemon.set_status("installed", ID, accept=["network:plan"]).status == 200
    answer = daemon.set_status("active", ID)
    assert answer.status == 200, answer
    return answer.json()


def invoke(daemon, action, payload=None):
    answer = daemon.post(f"/api/plugins/by-id/{ID}/invoke", {"action": action, "payload": payload})
    return answer.json()


def test_built_in_plugins_are_hidden_by_latticectl_until_installed(place):
    """The API lists them at once, whatever the policy says; `latticectl list --all` does, too."""
    place.trust.unlink()
    with place.running() as daemon:
        rows = daemon.get("/api/plugins").json()
        assert (len(rows), {row["status"] for row in rows}, {row["builtin"] for row in rows}) == (
            8,
            {"verified"},
            {True},
        )
        listed = daemon.ctl("list")
        assert (listed.returncode, "latticed." in listed.stdout) == (0, False)
        assert "no plugins" in listed.stderr
        assert "latticectl list --all" in listed.stderr
        assert daemon.ctl("list", "--all").stdout.count("latticed.") == 8
        assert daemon.ctl("install", ID).returncode == 0
        assert daemon.ctl("list").stdout.count("latticed.") == 1
        assert [row["id"] for row in json.loads(daemon.ctl("list", "--format", "json").stdout)] == [ID]
        assert len(json.loads(daemon.ctl("list", "--all", "--format", "json").stdout)) == 8
        assert "(built in)" in daemon.ctl("info", ID).stdout
        assert daemon.ctl("explain", ID).returncode == 0
        assert daemon.stop() == 0


def test_built_in_plugin_keeps_its_values_over_kill_9(place):
    """Its background task runs, and the audit chains verify."""
    with place.running() as daemon:
        assert active(daemon)["granted"] == GRANTED
        assert invoke(daemon, "set", INTENT)["result"] == {"rendered": "cellar: ann bob\n"}
        assert "doors[0].name" in invoke(daemon, "set", {"doors": [{"name": "; drop"}]})["error"]
        daemon.until(lambda: invoke(daemon, "ticks")["result"] > 2, "its background task")
        daemon.kill()
    with place.running() as daemon:
        daemon.until_state("armed", ID)
        assert invoke(daemon, "show")["result"] == ["cellar: ann bob"]
        daemon.until(lambda: daemon.plugin(ID)["runtime"]["health"] == "healthy", "its health")
        assert daemon.get("/api/audit/verify").json()["ok"] is True
        assert daemon.stop() == 0


def test_built_in_plugin_gets_the_operators_configuration(place):
    """It is checked against the plugin's schema, and kept over kill -9 and by a newer latticed."""
    with place.running() as daemon:
        active(daemon)
        document = place.home / "config.toml"
        place.write(document, b"tick_ms = 0\n")
        refused = daemon.ctl("config", "set", ID, "-f", str(document))
        assert (refused.returncode != 0, "tick_ms" in refused.stderr) == (True, True), refused
        assert invoke(daemon, "config")["result"] == {}
        place.write(document, b"tick_ms = 7\n")
        assert daemon.ctl("config", "set", ID, "-f", str(document)).returncode == 0
        daemon.until_state("armed", ID)
        assert invoke(daemon, "config")["result"] == {"tick_ms": 7}
        daemon.kill()
    place.builtins = ("next", "1.1.0")
    with place.running() as daemon:
        daemon.until_state("armed", ID)
        assert invoke(daemon, "config")["result"] == {"tick_ms": 7}
        assert daemon.stop() == 0


def test_failing_action_of_a_built_in_plugin_affects_no_other_request(place):
    """An action that raises or hangs is answered with an error; the plugin stays armed and can be stopped at once."""
    place.set("[plugin_limits]\ninvoke_timeout_s = 1\n")
    with place.running() as daemon:
        active(daemon)
        assert "RuntimeError: boom" in invoke(daemon, "raise", "boom")["error"]
        assert invoke(daemon, "hang")["code"] == "deadline_exceeded"
        assert daemon.get("/api/plugins").status == 200
        assert daemon.plugin(ID)["runtime"]["state"] == "armed"
        assert daemon.set_status("disabled", ID).json()["runtime"]["state"] == "stopped"
        assert daemon.stop() == 0


def test_built_in_plugin_follows_newer_versions_of_latticed_only(place):
    """What a newer one widens is masked; an older one does not run it; without it in latticed the record is kept."""
    with place.running() as daemon:
        active(daemon)
        invoke(daemon, "set", INTENT)
        assert daemon.stop() == 0
    place.builtins = ("next", "1.1.0")
    with place.running() as daemon:
        view = daemon.until_state("armed", ID)
        assert (view["version"], view["granted"], "candidate" in view) == ("1.1.0", GRANTED, False)
        assert set(view["capabilities"]) - set(view["granted"]) == {"network:apply", "node:read"}
        assert invoke(daemon, "show")["result"] == ["cellar: ann bob"]
        (event,) = [one for one in daemon.events(action="plugin.status", target=ID) if one["actor"] == "latticed"]
        assert event["detail"]["version"] == "1.1.0"
        daemon.kill()
    place.builtins = ("eight", "1.0.0")
    with place.running() as daemon:
        view = daemon.until_state("failed", ID, code="version_downgrade")
        assert (view["status"], view["available"]) == ("active", False)
        assert "--allow-downgrade" in daemon.ctl("explain", ID).stdout
        assert daemon.stop() == 0
    place.builtins = ("none", "1.2.0")
    with place.running() as daemon:
        view = daemon.until_state("failed", ID, code="manifest_missing")
        assert (view["status"], view["available"], view["builtin"]) == ("active", False, True)
        assert "this version of latticed does not bring it" in daemon.ctl("explain", ID).stdout
        assert daemon.stop() == 0
    place.builtins = ("next", "1.2.0")
    with place.running() as daemon:
        assert daemon.until_state("armed", ID)["granted"] == GRANTED
        assert daemon.stop() == 0


def test_kill_9_during_a_change_of_version_adds_no_grant_and_no_second_event(place):
    """After several kills the newer version runs."""
    with place.running() as daemon:
        active(daemon)
        assert daemon.stop() == 0
    place.builtins = ("next", "1.1.0")
    for _ in range(5):
        with place.running(ready=False) as daemon:
            daemon.expect_notice("READY=1")
            daemon.signal(signal.SIGKILL)
            daemon.ended()
    with place.running() as daemon:
        view = daemon.until_state("armed", ID)
        assert (view["version"], view["granted"]) == ("1.1.0", GRANTED)
        followed = [one for one in daemon.events(action="plugin.status", target=ID) if one["actor"] == "latticed"]
        assert len(followed) == 1
        assert daemon.get("/api/audit/verify").json()["ok"] is True
        assert daemon.stop() == 0


def test_built_in_plugin_keeps_masks_and_floor_over_a_lost_ledger(place):
    """After --recover it is verified, with the operator's masks, and not active."""
    with place.running() as daemon:
        active(daemon)
        assert daemon.ask("PUT", f"/api/plugins/by-id/{ID}/grants", {"trim": ["kv:write"]}).status == 200
        assert daemon.stop() == 0
    damage.truncated(place.state)
    assert place.once().returncode == 74
    ran = place.once("--recover")
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    with place.running() as daemon:
        view = daemon.plugin(ID)
        assert (view["status"], view["available"], view["granted"]) == ("verified", True, ["kv:read", "log:write"])
        assert len(daemon.get("/api/plugins").json()) == 8
        assert daemon.stop() == 0
    damage.truncated(place.state)
    place.builtins = ("eight", "0.9.0")
    assert place.once("--recover").returncode == 0
    with place.running() as daemon:
        refused = daemon.set_status("installed", ID)
        assert (refused.status, refused.json()["code"]) == (409, "version_downgrade")
        assert daemon.stop() == 0


def test_backup_has_record_and_values_of_a_built_in_plugin_but_not_its_code(place):
    """A restore runs it with the code of the latticed that is there; where that has none, it is reported as missing."""
    with place.running() as daemon:
        active(daemon)
        invoke(daemon, "set", INTENT)
        made = daemon.ctl("backup", str(place.home / "backup.tar"))
        assert made.returncode == 0, made
        assert daemon.stop() == 0
    for path in place.state.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    place.builtins = ("next", "1.1.0")
    ran = place.once("--restore", str(place.home / "backup.tar"))
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    assert "missing: latticed" not in ran.stdout
    assert "bundles put" not in ran.stdout
    with place.running() as daemon:
        view = daemon.until_state("armed", ID)
        assert (view["version"], view["granted"]) == ("1.1.0", GRANTED)
        assert invoke(daemon, "show")["result"] == ["cellar: ann bob"]
        assert daemon.stop() == 0
    for path in place.state.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    place.builtins = ("none", "1.2.0")
    ran = place.once("--restore", str(place.home / "backup.tar"))
    assert f"missing: {ID} does not verify here" in ran.stdout


def test_forged_record_of_a_reserved_id_runs_no_other_code(place):
    """The record names a bundle of the plugin directory and a pair that is not stored: the built-in code runs."""
    with place.running() as daemon:
        active(daemon)
        assert daemon.stop() == 0
    demo = place.drop("demo", author=bundles.author("acme"), id="acme.demo")
    with contextlib.closing(sqlite3.connect(place.state / "ledger.sqlite3")) as db, db:
        db.execute("UPDATE records SET source = ?, identity = ? WHERE id = ?", (b"plugins/demo", "0" * 64, ID))
    assert demo.path.exists()
    with place.running() as daemon:
        view = daemon.until_state("armed", ID)
        assert (view["publisher"], view["version"], view["runtime"]["runner"]) == ("latticed", "1.0.0", "builtin")
        assert daemon.stop() == 0


def test_revoked_built_in_plugin_is_stopped(place, acme):
    """`trust revoke --dry-run` names it before; it is stopped at once, and refused at the next start."""
    with place.running() as daemon:
        active(daemon)
        said = daemon.ctl("trust", "revoke", "--plugin", f"{ID}@*", "--dry-run", "--trust", str(place.trust))
        assert (said.returncode, ID in said.stdout) == (0, True), said
        place.trust_us(acme, revoked={"plugins": [f"{ID}@*"]})
        daemon.until_state("failed", ID, code="plugin_revoked")
        assert daemon.rejected() == {"allowlist": "plugin_revoked"}
        assert daemon.stop() == 0
    with place.running() as daemon:
        daemon.until_state("failed", ID, code="plugin_revoked")
        assert daemon.stop() == 0


def test_built_in_plugin_runs_within_the_daemons_process(place):
    """It has no child process, no pid and no sandbox level."""
    with place.running() as daemon:
        active(daemon)
        pid = daemon.process.pid
        assert daemon.plugin(ID)["runtime"].get("pid") is None
        assert "sandbox" not in daemon.plugin(ID)["runtime"]
        tasks = Path(f"/proc/{pid}/task").iterdir()
        assert "".join((task / "children").read_text() for task in tasks).split() == []
        assert daemon.stop() == 0


def test_a_full_disk_delays_no_stop_and_loses_no_decision(place, sick):
    """What cannot be recorded is not begun; stopping takes effect at once and is recorded when there is space again."""
    ledger = place.state / "ledger.sqlite3"
    with place.running() as daemon:
        active(daemon)
        with sick.failing(errno.ENOSPC, faults.WRITES, below=ledger):
            assert invoke(daemon, "set", INTENT)["code"] in {"audit_unavailable", "ledger_unavailable"}
            assert daemon.set_status("disabled", ID).json()["runtime"]["state"] == "stopped"
        daemon.until(lambda: daemon.events(action="plugin.status", target=ID)[-1]["detail"]["to"] == "disabled", "it")
        assert daemon.set_status("active", ID).json()["runtime"]["state"] == "armed"
        assert invoke(daemon, "set", INTENT)["ok"] is True
        assert daemon.stop() == 0
