"""Retention in the real daemon: what is removed leaves a signed checkpoint, and the rest still shows every change."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.daemon

EVENTS = 1_300  # more than are between two signed heads: nothing is removed before it is under one
KEPT_BYTES = 100_000


def test_old_events_are_removed_and_the_rest_still_verifies(place):
    """Checks, online and offline, begin at the checkpoint; an edited or shortened export is refused."""
    place.set(f"[audit]\nmax_bytes = {KEPT_BYTES}")
    with place.running() as daemon:
        for number in range(EVENTS):
            assert daemon.ask("PUT", f"/api/kv/default/k{number % 7}", b"value").status == 200
        daemon.stop()
    with place.running() as daemon:  # retention looks at start, then every minute
        report = daemon.until(
            lambda: (found := daemon.get("/api/audit/verify").json()).get("removed_seq") and found,
            "events to be removed",
        )
        assert report["ok"]
        assert [event["action"] for event in daemon.events(action="audit.removed")]
        key = daemon.get("/api/status").json()["public_key"]
        exported = daemon.ctl("audit", "export")
        assert exported.returncode == 0
        lines = exported.stdout.splitlines()
        assert "checkpoint" in json.loads(lines[0])
        path = place.home / "audit.ndjson"

        def verified(kept: list[str]) -> int:
            place.write(path, ("\n".join(kept) + "\n").encode())
            return daemon.ctl("audit", "verify", str(path), "--public-key", key).returncode

        assert verified(lines) == 0
        assert verified(lines[1:]) == 6  # without the checkpoint: a beginning that somebody removed
        assert verified([lines[0], *lines[2:]]) == 6  # one event more than was signed away
        edited = json.loads(lines[1]) | {"actor": "somebody else"}
        assert verified([lines[0], json.dumps(edited), *lines[2:]]) == 6
