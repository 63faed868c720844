"""kill -9 at random points under load: everything acknowledged survives, nothing is left half done.

The seed and the number of points can be chosen: LATTICED_CRASH_SEED=7 LATTICED_CRASH_POINTS=1000 (the long test).
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import secrets
import shutil
import time

import pytest

from tests.house import crashes, long

pytestmark = pytest.mark.daemon

QUICK = 10
MANY = int(os.environ.get("LATTICED_CRASH_POINTS", "200"))
_LEFT = re.compile(r"\.(tmp-|floors\.json\.|host\.key\.)")


@pytest.mark.parametrize("points", [QUICK, *long.only(MANY)])
@pytest.mark.timeout(900)
def test_kill_9_at_random_points_loses_nothing_acknowledged(place, acme, points):
    seed = os.environ.get("LATTICED_CRASH_SEED") or secrets.token_hex(4)
    print(f"LATTICED_CRASH_SEED={seed}, {points} points")
    chance = random.Random(seed)
    if points > QUICK:
        place.set('[runners]\nsystem = "noop"')  # many starts: real children are in those few points
    load = crashes.load(place, acme)
    for point in range(points):
        with place.running() as daemon:
            _check(daemon, load)
            with load.running(f"{seed}/{point}"):
                _kill_within(daemon, load, chance)
        load.mend()
    with place.running() as daemon:
        _check(daemon, load)
        acknowledged = sum(known.acknowledged for known in (*load.plugins.values(), *load.values.values()))
        assert acknowledged > points, "the clients were hardly ever answered"
        daemon.until(lambda: _leftovers(place) == [], f"remains of interrupted writes to go: {_leftovers(place)}")
        assert daemon.stop() == 0


def test_temporary_files_of_interrupted_writes_are_removed_at_start(place):
    """They are those of `replace`; files with similar names stay."""
    remains = [place.state / f".{name}.0123456789ab" for name in ("floors.json", "host.key")]
    kept = [place.state / name for name in (".floors.json.mine", ".notes", "floors.json.0123456789ab")]
    for path in (*remains, *kept):
        path.touch()
    with place.running():
        assert [path for path in remains if path.exists()] == []
        assert [path for path in kept if not path.exists()] == []


@pytest.mark.parametrize("points", [3, *long.only(40)])
@pytest.mark.timeout(180)
def test_start_succeeds_after_kill_9_during_the_first_start(place, acme, points):
    """The daemon is killed anywhere before READY=1: there is one host key, and a chain that verifies."""
    place.drop(author=acme)
    seed = os.environ.get("LATTICED_CRASH_SEED") or secrets.token_hex(4)
    print(f"LATTICED_CRASH_SEED={seed}")
    chance = random.Random(seed)
    for _ in range(points):
        wanted = chance.choice(["lock", "ledger.sqlite3", "host.key", "bundles"])
        with place.running(ready=False) as daemon:
            daemon.until((place.state / wanted).exists, f"{wanted} to be made")
            time.sleep(chance.uniform(0, 0.01))
            daemon.kill()
        with place.running() as daemon:
            assert daemon.plugin()["status"] == "verified"
            assert daemon.get("/api/audit/verify").json()["ok"] is True
            daemon.kill()
        shutil.rmtree(place.state)
        place.state.mkdir(mode=0o700)
        place.own(place.state)


def _kill_within(daemon, load, chance):
    """Kill it after a random number of answers and a random moment more."""
    target = load.answers + chance.randrange(40)
    daemon.until(lambda: load.answers >= target, "the clients to be answered")
    time.sleep(chance.uniform(0, 0.01))  # the point itself, anywhere between two answers
    daemon.kill()


def _check(daemon, load):
    """Check that the restarted daemon shows what was acknowledged, or what was being requested, and is consistent."""
    report = daemon.get("/api/audit/verify").json()
    assert report["ok"] is True, report
    daemon.until(lambda: all(one["available"] for one in daemon.get("/api/plugins").json()), "mended bundles to verify")
    records = {one["id"]: one for one in daemon.get("/api/plugins").json()}
    assert records.keys() == load.plugins.keys()
    for plugin_id, known in load.plugins.items():
        record = records[plugin_id]
        found = (record["status"], tuple(record["granted"]))
        assert found in known.possible(), (plugin_id, found, known)
        known.settle(found)
        _is_whole(daemon, record)
    for key, known in load.values.items():
        answer = daemon.get(f"/api/kv/default/{key}")
        value = answer.body if answer.status == 200 else None
        assert value in known.possible(), (key, value and value[:20], known.acknowledged)
        known.settle(value)


def _is_whole(daemon, record):
    """Check that the decision, its event, its times and the stored pair agree, and that what is active is alive."""
    status = record["status"]
    last = daemon.events(action="plugin.status", target=record["id"], decision="allow", newest="1", limit="1")
    assert (last[0]["detail"]["to"] if last else "verified") == status, (record, last)
    if status == "verified":
        assert "installed_at" not in record
        return
    assert record["installed_at"] <= record["updated_at"]
    assert {"active": "activated_at", "disabled": "disabled_at"}.get(status, "installed_at") in record
    pair = daemon.place.state / "store" / last[0]["detail"]["identity"]
    assert hashlib.sha256((pair / "artifact").read_bytes()).hexdigest() == record["artifact_sha256"]
    assert (pair / "manifest.json").stat().st_size > 0
    daemon.until_state("armed" if status == "active" else "stopped", record["id"])


def _leftovers(place):
    return [path for path in place.state.rglob(".*") if _LEFT.match(path.name)]
