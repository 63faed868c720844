"""Configurations while something fails: the disk, the daemon, its end, another operator."""

from __future__ import annotations

import concurrent.futures
import contextlib
import errno
import hashlib
import http.client
import json
import threading
import time

import pytest

from tests.daemon.test_config import ECHO, SCHEMA, SPEAKING
from tests.house import children, faults, long

pytestmark = pytest.mark.daemon

URL = "/api/plugins/by-id/acme.demo/config"
STEPS = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n - 1}"}] * 2} for n in range(1, 41)}
ENDLESS = {"$defs": {"a0": {"type": "integer"}, **STEPS}, "properties": {"x": {"$ref": "#/$defs/a40"}}}
POINTS = long.times(3, 50)


@pytest.fixture
def bundle(place, acme):
    """acme.demo, which says what it was given."""
    place.drop(author=acme, v2=True, artifact=ECHO, runtime=SPEAKING, config=SCHEMA)
    return place


def put(daemon, config):
    return daemon.ask("PUT", URL, {"config": config})


def given(daemon):
    answer = daemon.post("/api/plugins/by-id/acme.demo/invoke", {"action": "config", "payload": None})
    return answer.json()["result"]


@pytest.mark.parametrize("error", faults.DISK_ERRORS, ids=errno.errorcode.get)
def test_failed_write_of_a_configuration_changes_nothing(bundle, sick, error):
    """The answer is 503; the ledger and the plugin keep the old document, and the plugin is not restarted."""
    with bundle.running() as daemon:
        daemon.activate()
        assert put(daemon, {"city": "Bern"}).status == 200
        before = given(daemon)
        with sick.failing(error, faults.WRITES, below=bundle.state / "ledger.sqlite3"):
            answer = put(daemon, {"city": "Chur"})
            assert (answer.status, answer.code) == (503, "ledger_unavailable")
            assert daemon.get(URL).json()["config"] == {"city": "Bern"}
        assert given(daemon) == before
        assert put(daemon, {"city": "Chur"}).status == 200
        assert given(daemon)["config"] == {"city": "Chur"}
        faults.chain_holds(daemon)


def test_kill_9_leaves_the_old_configuration_or_the_new_one(bundle):
    """It comes at any moment of a change: the document is whole, an answered one is kept, the audit event agrees."""
    acknowledged = {}
    with bundle.running() as daemon:
        daemon.activate()
        assert put(daemon, {"city": "00"}).status == 200
        acknowledged = {"city": "00"}
        daemon.kill()
    for point in range(POINTS):
        wanted = {"city": f"{point:02}", "token": "x" * 2_000}
        with bundle.running() as daemon:
            daemon.until_state("armed")
            killing = threading.Timer(0.01 + 0.4 * point / POINTS, daemon.kill)
            killing.start()
            answered = None
            with contextlib.suppress(OSError, http.client.HTTPException):
                answered = put(daemon, wanted).status
            killing.join()
        with bundle.running() as daemon:
            daemon.until_state("armed")
            shown = daemon.get(URL).json()
            assert shown["config"] in ([wanted] if answered == 200 else [acknowledged, wanted])
            compact = json.dumps(shown["config"], separators=(",", ":"), sort_keys=True).encode()
            assert shown["sha256"] == hashlib.sha256(compact).hexdigest()
            last = daemon.events(action="plugin.config", decision="allow")[-1]
            assert last["detail"]["sha256"] == shown["sha256"]
            assert given(daemon)["config"] == shown["config"]
            acknowledged = shown["config"]
            daemon.kill()


def test_concurrent_configuration_changes_are_serialised(bundle):
    """All sixteen are answered and audited; the plugin has the document that is stored."""
    with bundle.running() as daemon:
        daemon.activate()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: put(daemon, {"city": f"city {n}"}), range(16)))
        assert {answer.status for answer in answers} == {200}
        assert len(daemon.events(action="plugin.config", decision="allow")) == 16
        assert given(daemon)["config"] == daemon.get(URL).json()["config"]
        assert daemon.plugin()["runtime"]["state"] == "armed"


@pytest.mark.slow
def test_sigterm_ends_the_daemon_during_an_endless_check(place, acme):
    """SIGTERM comes in the middle of an endless check: the daemon ends, and its child with it."""
    place.drop(author=acme, v2=True, artifact=ECHO, runtime=SPEAKING, config=ENDLESS)
    with place.running() as daemon:
        daemon.until(daemon.plugin, "it to be seen")
        asking = threading.Thread(target=lambda: _suppressed(daemon), name="asking")
        asking.start()
        pids = daemon.until(lambda: children.descendants(daemon.process.pid), "the check's child")
        began = time.monotonic()
        assert daemon.stop() == 0
        assert time.monotonic() - began < 12
        asking.join()
        daemon_gone = [pid for pid in pids if children.alive(pid)]
        assert daemon_gone == []


def _suppressed(daemon):
    with contextlib.suppress(OSError, http.client.HTTPException):
        daemon.ask("PUT", URL, {"config": {"x": 1}, "dry_run": True})


@pytest.mark.slow
def test_document_whose_check_never_ends_is_refused(place, acme):
    """A document whose check does not end is refused and not stored; the plugin keeps running without one."""
    place.drop(author=acme, v2=True, artifact=ECHO, runtime=SPEAKING, config=ENDLESS)
    with place.running() as daemon:
        daemon.activate()
        instance = given(daemon)["instance"]
        assert put(daemon, {"x": 1}).code == "deadline_exceeded"
        assert daemon.get(URL).json()["is_set"] is False
        assert given(daemon)["instance"] == instance
