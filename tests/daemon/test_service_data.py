"""What services keep, in the real daemon under its own user: restarts, kills, backup, purge, reload."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest

from tests.house import bundles, daemons, hosting

pytestmark = pytest.mark.daemon

ID = "acme.keeper"
PLUGIN = b"""#!/usr/bin/env python3
from latticed.sdk import Plugin

class Keeper(Plugin):
    def do_put(self, payload):
        return self.service.put("web", **payload)

    def do_said(self, payload):
        (found,) = self.service.status("web")["services"]
        return {"state": found["state"], "error": (found["last_error"] or {}).get("code"), **found["output"]}

    def do_delete(self, payload):
        return self.service.delete("web", **payload)

Keeper().run()
"""
SETTINGS = '[service]\nprograms = { shell = "/bin/sh" }\n'
COUNTS = {
    "program": "shell",
    "args": ["-c", "echo line >>/data/lines; wc -l </data/lines; sleep 1000"],
    "data": {"bytes": 1 << 20, "files": 10},
}


@contextlib.contextmanager
def keeping(place):
    """A daemon at `place`, with the plugin active."""
    with place.running() as daemon:
        if any(place.state.glob("store/*")):
            daemon.until_state("armed", ID)
        else:
            daemon.activate(ID, accept=["task:run"])
        yield hosting.Host(daemon=daemon, author=None)


@pytest.fixture
def acme():
    return bundles.author("acme")


@pytest.fixture
def kept_at(acme):
    with daemons.placed("stranger", settings=f"{SETTINGS}[watch]\nquiet_s = 0.01") as place:
        place.trust_us(acme)
        place.drop("keeper", author=acme, id=ID, artifact=PLUGIN, v2=True, capabilities=["task:run"])
        yield place


def until_said(host, text, state="running"):
    def said():
        found = host.result(ID, "said")
        return found["state"] == state and text in found["stdout"]

    host.daemon.until(said, f"the service to be {state} and say {text!r}")


def lines(place):
    return (place.state / "services/acme" / ID / "web/data/lines").read_text().count("\n")


def test_data_survives_kill_backup_and_restore_and_goes_with_a_purge(kept_at):
    place = kept_at
    with keeping(place) as host:
        host.result(ID, "put", COUNTS)
        until_said(host, "1\n")
        host.daemon.kill()
    with keeping(place) as host:
        until_said(host, "2\n")
        path = place.home / "backup.tar"
        ran = host.daemon.ctl("backup", str(path))
        assert ran.returncode == 0, ran
        assert host.daemon.set_status("disabled", ID).status == 200
        assert host.daemon.set_status("active", ID).status == 200
        until_said(host, "3\n")
        assert host.daemon.stop() == 0
    assert lines(place) == 3
    ran = place.once("--restore", str(path))
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    assert lines(place) == 2
    (aside,) = place.state.glob("replaced-*")
    assert (aside / "services/acme" / ID / "web/data/lines").read_text().count("\n") == 3
    # Into an empty state too, as on a new machine.
    for one in list(place.state.iterdir()):
        shutil.rmtree(one) if one.is_dir() else one.unlink()
    assert place.once("--restore", str(path)).returncode == 0
    with keeping(place) as host:
        until_said(host, "3\n")
        assert host.daemon.set_status("disabled", ID).status == 200
        forgotten = json.loads(host.daemon.ctl("forget", ID, "--format", "json").stdout)
        assert forgotten["data"]["services"] == 1
        assert lines(place) == 3
        ran = host.daemon.ctl("forget", "--purge", ID)
        assert "1 service's directory" in ran.stdout, ran
        assert list((place.state / "services").glob("*/*")) == []
        assert host.daemon.stop() == 0


def test_another_publisher_gets_none_of_the_data_and_the_first_one_gets_it_back(kept_at, acme):
    """As with values of kv: kept under the name of who left it, whoever has the id meanwhile."""
    place, other = kept_at, bundles.author("other")
    place.trust_us(acme, other)
    with keeping(place) as host:
        host.result(ID, "put", COUNTS)
        until_said(host, "1\n")
        place.drop("second", author=other, id=ID, artifact=PLUGIN, v2=True, capabilities=["task:run"], version="9.0.0")
        host.daemon.until_rejected("second", "publisher_changed")
        for publisher, seen, more in (("other", "1\n", {}), ("acme", "2\n", {"allow_downgrade": True})):
            wanted = {"accept_publisher": publisher, "accept": ["task:run"], **more}
            answer = host.daemon.post(f"/api/plugins/by-id/{ID}/upgrade", wanted)
            assert (answer.status, answer.json()["publisher"]) == (200, publisher), answer
            host.daemon.until_state("armed", ID)
            # What ran for the one before is not run again for this one.
            assert json.loads(host.daemon.ctl("service", "list", "--format", "json").stdout) == []
            host.result(ID, "put", COUNTS)
            until_said(host, seen)
        assert (place.state / "services/other" / ID / "web/data/lines").read_text() == "line\n"
        assert lines(place) == 2
        assert host.daemon.stop() == 0


def test_settings_of_services_take_effect_on_reload(kept_at):
    """A program that is taken from the list is stopped at once; a lower bound counts at the next start."""
    place = kept_at
    with keeping(place) as host:
        host.result(ID, "put", COUNTS)
        until_said(host, "1\n")
        place.set("[service]\nprograms = {}\n[watch]\nquiet_s = 0.01")
        host.daemon.until(lambda: host.result(ID, "said")["state"] == "stopped", "the program to be stopped")
        assert host.result(ID, "said")["error"] == "program_not_allowed"
        answer = host.invoke(ID, "put", {**COUNTS, "restart": "never"})
        assert "the operator allows (none)" in json.dumps(answer.json())
        place.set(f"{SETTINGS}data_files = 5\n[watch]\nquiet_s = 0.01")
        until_said(host, "2\n")
        answer = host.invoke(ID, "put", {**COUNTS, "restart": "never"})
        assert "service.data_" in json.dumps(answer.json())
        assert host.daemon.stop() == 0


def test_program_over_its_quota_leaves_the_daemon_answering(kept_at):
    place = kept_at
    with keeping(place) as host, host.answering():
        fill = "i=0; while :; do i=$((i+1)); head -c 500000 /dev/zero >/data/$i; done"
        host.result(ID, "put", {**COUNTS, "args": ["-c", fill]})
        host.daemon.until(lambda: host.result(ID, "said")["error"] == "data_full", "the program to be ended")
        shown = json.loads(host.daemon.ctl("service", "list", "--format", "json").stdout)
        assert shown[0]["data"]["bytes"] == 1 << 20
        assert host.result(ID, "delete", {"data": True}) == {"ok": True}
        host.result(ID, "put", COUNTS)
        until_said(host, "1\n")
