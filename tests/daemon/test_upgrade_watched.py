"""Upgrades under watch of a real daemon: real processes, kill -9, full disks, latticectl."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import secrets
import threading
import time
from pathlib import Path

import pytest

from tests.house import children, faults, hosting, long

pytestmark = pytest.mark.daemon

ID = "acme.kept"
MARK = "service-of-acme-kept"
CAPABILITIES = ["kv:read", "kv:write", "task:run"]
PLUGIN = f"""#!/usr/bin/env python3
from latticed.sdk import Health, Plugin

class Kept(Plugin):
    version = "VERSION"

    def do_begin(self, payload):
        self.kv.put("value", self.version)
        return self.service.put("beat", program="shell", args=["-c", "sleep 100000; : {MARK} " + self.version])

    def do_state(self, payload):
        return self.kv.get("value"), self.version

    def do_end(self, payload):
        import os
        os._exit(3)
"""
LOOPING = PLUGIN + "\n    raise SystemExit(4)\n"
SETTINGS = "[upgrade]\ngate_s = {gate_s}\n[service]\nprograms = {{ shell = '/bin/sh' }}\n"


def artifact(version: str, source: str = PLUGIN) -> bytes:
    return f"{source}\n\nKept().run()\n".replace("VERSION", version).encode()


def candidate(host, version, source=PLUGIN):
    host.drop(ID, artifact(version, source), version=version, capabilities=CAPABILITIES)
    host.daemon.until(
        lambda: (host.daemon.plugin(ID) or {}).get("candidate", {}).get("version") == version, f"{version} to be seen"
    )


def up(host):
    """Version 1.0.0 armed, with a value and a service of its own."""
    host.drop(ID, artifact("1.0.0"), version="1.0.0", capabilities=CAPABILITIES)
    host.daemon.activate(ID, accept=["task:run"])
    host.result(ID, "begin")
    return host.daemon.until(lambda: services(host), "the service to run")


def order(version):
    return [int(part) for part in version.split(".")]


def services(host):
    """The command lines of the service's processes below the daemon."""
    found = []
    for pid in children.descendants(host.daemon.process.pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            # The script itself, not what it runs: one for each service.
            found += [word.decode().split()[-1] for word in words if MARK.encode() in word and words[0] != b"sleep"]
    return found


def ended(host):
    return host.daemon.until(
        lambda: (one := host.daemon.plugin(ID)).get("upgrade", {}).get("state") not in {None, "gating"} and one,
        "the gate to end",
    )


@pytest.fixture
def host():
    with hosting.hosting(SETTINGS.format(gate_s=3600)) as found:
        yield found


def test_crash_looping_upgrade_is_back_by_itself_and_its_service_was_never_doubled(host):
    """Long before the gate ends; the old process goes on, with its value, and so does the service it ran."""
    up(host)
    pid, beat = host.runtime(ID)["pid"], host.daemon.get("/api/services").json()["services"]
    most, over = [], threading.Event()

    def watch():
        while not over.is_set():
            most.append(len(services(host)))
            time.sleep(0.02)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        candidate(host, "1.1.0", LOOPING)
        answer = host.daemon.post(f"/api/plugins/by-id/{ID}/upgrade")
        assert answer.status == 200, answer
        view = ended(host)
    finally:
        over.set()
        watching.join()
    assert (view["version"], view["upgrade"]["state"], view["upgrade"]["code"]) == ("1.0.0", "rolled_back", "exited")
    assert (host.runtime(ID)["pid"], host.result(ID, "state")) == (pid, ["1.0.0", "1.0.0"])
    assert set(most) <= {0, 1}
    assert host.daemon.get("/api/services").json()["services"][0]["restarts"] == beat[0]["restarts"]


def test_service_that_the_new_version_changed_is_the_old_ones_again(host):
    """While both run there is one; after the return it is what it was."""
    up(host)
    candidate(host, "1.1.0")
    assert host.daemon.post(f"/api/plugins/by-id/{ID}/upgrade").json()["upgrade"]["state"] == "gating"
    assert len([pid for pid in children.descendants(host.daemon.process.pid) if children.alive(pid)]) >= 3
    host.result(ID, "begin")
    host.daemon.until(lambda: services(host) == ["1.1.0"], "the service of the new version alone")
    assert host.result(ID, "state") == ["1.1.0", "1.1.0"]
    host.invoke(ID, "end")
    assert ended(host)["version"] == "1.0.0"
    host.daemon.until(lambda: services(host) == ["1.0.0"], "the service of the old version alone")
    assert host.result(ID, "state") == ["1.0.0", "1.0.0"]


def test_full_disk_refuses_an_upgrade_and_delays_only_the_record_of_its_end(place, acme, sick):
    place.set(SETTINGS.format(gate_s=3600))
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        up(host)
        candidate(host, "1.1.0")
        ledger = place.state / "ledger.sqlite3"
        for below, code in ((place.state / "store", "store_unavailable"), (ledger, "ledger_unavailable")):
            with sick.failing(errno.ENOSPC, faults.WRITES, below=below):
                refused = daemon.post(f"/api/plugins/by-id/{ID}/upgrade")
                assert (refused.status, refused.code) == (503, code), refused
            assert (daemon.plugin(ID)["version"], host.result(ID, "state")) == ("1.0.0", ["1.0.0", "1.0.0"])
        assert daemon.post(f"/api/plugins/by-id/{ID}/upgrade").json()["upgrade"]["state"] == "gating"
        new = host.runtime(ID)["pid"]
        with sick.failing(errno.ENOSPC, faults.WRITES, below=ledger):
            os.kill(new, 9)
            daemon.until(lambda: not children.alive(new), "the new version to be gone")
            daemon.logged("gate_not_recorded")
        assert ended(host)["version"] == "1.0.0"
        assert host.result(ID, "state") == ["1.0.0", "1.0.0"]
        faults.chain_holds(daemon)


def test_latticectl_waits_for_the_gate_and_goes_back():
    with hosting.hosting(SETTINGS.format(gate_s=1)) as host:
        up(host)
        candidate(host, "1.1.0")
        done = host.daemon.ctl("upgrade", ID, "--wait")
        assert (done.returncode, "upgraded: version 1.1.0" in done.stdout) == (0, True), done
        back = host.daemon.ctl("rollback", ID)
        assert (back.returncode, "rolled back: version 1.0.0" in back.stdout) == (0, True), back
        shown = host.daemon.ctl("info", ID).stdout
        assert [word for word in ("given up", "rolled_back", "kept") if word not in shown] == [], shown
        refused = host.daemon.ctl("upgrade", ID)
        assert (refused.returncode, f"hint: latticectl upgrade {ID} --retry" in refused.stderr) == (1, True), refused
        candidate(host, "1.2.0", LOOPING)
        gone = host.daemon.ctl("upgrade", ID, "--wait")
        assert (gone.returncode, f"error: {ID} 1.2.0 was given up: exited" in gone.stderr) == (1, True), gone
        metrics = host.daemon.get("/metrics").body.decode()
        assert 'latticed_upgrades_total{result="committed"} 1' in metrics
        assert 'latticed_upgrades_total{result="rolled_back"} 1' in metrics


@pytest.mark.timeout(300)
def test_kill_9_at_random_points_leaves_one_version_with_its_own_values(place, acme):
    """Of the daemon, during upgrades, returns and rollbacks; nothing is left behind."""
    place.set(SETTINGS.format(gate_s=0.3))
    chance = random.Random(seed := os.environ.get("LATTICED_CRASH_SEED") or secrets.token_hex(4))
    print(f"LATTICED_CRASH_SEED={seed}")
    with place.running() as daemon:
        up(hosting.Host(daemon=daemon, author=acme))
    for number in range(1, long.times(4, 40) + 1):
        with place.running() as daemon:
            host = hosting.Host(daemon=daemon, author=acme)
            daemon.until_state("armed", ID)
            value, version = host.result(ID, "state")
            # A new version begins with the values of the one before; never has an old one those of a newer one.
            assert order(value) <= order(version)
            assert version == daemon.plugin(ID)["version"]
            assert len(services(host)) <= 1
            candidate(host, f"1.{number}.0")
            verbs = ["upgrade", "rollback"] if number > 1 else ["upgrade"]
            asked = threading.Thread(target=_asked, args=(host, verbs), daemon=True)
            asked.start()
            time.sleep(chance.uniform(0, 1.5))
            daemon.kill()
            asked.join()
    with place.running() as daemon:
        host = hosting.Host(daemon=daemon, author=acme)
        daemon.until_state("armed", ID)
        assert host.result(ID, "state")[1] == daemon.plugin(ID)["version"]
        kept = daemon.get(f"/api/plugins/by-id/{ID}").json()["kept"]
        assert len(kept) <= 3
        daemon.until(lambda: len(list((place.state / "store").iterdir())) == 1 + len(kept), "the store to be tidy")
        faults.chain_holds(daemon)


def _asked(host, verbs):
    """An upgrade that writes values of its own, then a rollback with the old ones, until the daemon is gone."""
    with contextlib.suppress(Exception):
        for verb in verbs:
            body = {"snapshot": True} if verb == "rollback" else {"retry": True}
            host.daemon.post(f"/api/plugins/by-id/{ID}/{verb}", body)
            host.invoke(ID, "begin")
