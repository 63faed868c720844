"""What an upgrade widens, seen at the child: its real limits, and what latticectl says of what was not accepted."""

from __future__ import annotations

import pytest

from tests.house import bombs, hosting

pytestmark = pytest.mark.daemon

ID = "acme.wide"
NARROW = {"memory_mib": 64, "open_files": 32}
WIDE = {"memory_mib": 96, "open_files": 128}


@pytest.fixture(scope="module")
def host():
    with hosting.hosting() as host:
        yield host


def limits_of(host) -> tuple[int, int]:
    """(MiB of data, open files) as the child itself sees them."""
    found = host.result(ID, "limits")
    return found["RLIMIT_DATA"][0] >> 20, found["RLIMIT_NOFILE"][0]


def candidate(host, version: str, artifact: bytes = bombs.BOMBS, **runtime) -> dict:
    """The plugin once another version of its bundle is a candidate."""
    host.drop(ID, artifact, version=version, capabilities=["kv:read"], runtime=runtime)
    return host.daemon.until(
        lambda: (one := host.daemon.plugin(ID)).get("candidate", {}).get("version") == version and one, version
    )


def accepted_on_record(daemon) -> list[tuple[str, str]]:
    """What was accepted by name, or with a minus taken away, as the audit record has it, and by which action."""
    found = []
    for event in daemon.events(target=ID, decision="allow"):
        for name, value in event["detail"].items():
            what, _, kind = name.partition("_")
            if what in {"accepted", "added", "removed"}:
                found.append((event["action"], f"{'-' if what == 'removed' else ''}{kind}={value}"))
    return found


def test_upgrade_keeps_the_granted_limits_until_more_is_granted(host):
    """A restart of the daemon changes nothing; once granted, the child has more; once trimmed, less at once."""
    daemon = host.daemon
    host.up(ID, bombs.BOMBS, version="1.0.0", capabilities=["kv:read"], runtime={"limits": NARROW})
    assert limits_of(host) == (64, 32)
    seen = candidate(host, "1.1.0", limits=WIDE)["candidate"]
    assert seen["adds"] == ["limit=memory_mib:96", "limit=open_files:128"]
    told = daemon.ctl("upgrade", ID, "--dry-run")
    assert "adds: limit=memory_mib:96, limit=open_files:128" in told.stdout
    assert "--accept limit=memory_mib:96" in told.stderr
    done = daemon.ctl("upgrade", ID, "--accept", "limit=open_files:128")
    assert (done.returncode, "not accepted: limit=memory_mib:96" in done.stderr) == (0, True)
    assert limits_of(host) == (64, 128)
    assert daemon.plugin(ID)["withheld"] == ["limit=memory_mib:96"]
    granted = daemon.ctl("caps", "grant", ID, "limit=memory_mib:96")
    assert "running has it from its next start" in granted.stderr
    assert granted.stderr.splitlines()[-1] == f"hint: latticectl restart {ID}"
    assert daemon.ctl("restart", ID).returncode == 0
    assert limits_of(host) == (96, 128)
    assert "accepted" in daemon.ctl("info", ID).stdout
    for said in ("limited to", "already limited to"):
        trimmed = daemon.ctl("caps", "trim", ID, "limit=memory_mib:64")
        assert trimmed.stdout.split() == [ID, *said.split(), "limit=memory_mib:64"]
        assert limits_of(host) == (64, 128)
    assert accepted_on_record(daemon) == [
        ("plugin.status", "limit=open_files:128"),
        ("plugin.grants", "limit=memory_mib:96"),
        ("plugin.grants", "-limit=memory_mib:64"),
        ("plugin.grants", "-limit=memory_mib:64"),
    ]
    assert "expected at most limit=memory_mib:96" in daemon.ctl("caps", "grant", ID, "limit=memory_mib:97").stderr


def test_upgrade_without_required_features_is_409_needs_consent(host):
    """Nothing is changed; the command that the answer has accepts them."""
    daemon = host.daemon
    before = daemon.plugin(ID) or host.up(ID, bombs.BOMBS, version="1.0.0", runtime={"limits": NARROW})
    other = bombs.BOMBS.replace(b"#!/usr/bin/env python3", b"#!/usr/bin/env python3 -B", 1)
    seen = candidate(host, "2.0.0", artifact=other, args=["--fast"], limits=NARROW)["candidate"]
    assert seen["must_name"] == ["interpreter=/usr/bin/env python3 -B", "args=--fast"]
    answer = daemon.post(f"/api/plugins/by-id/{ID}/upgrade", {})
    assert (answer.status, answer.code) == (409, "needs_consent")
    assert daemon.plugin(ID)["version"] != "2.0.0"
    refused = daemon.ctl("upgrade", ID)
    hint = refused.stderr.partition("hint: ")[2].strip()
    assert hint == f"latticectl upgrade {ID} --accept 'interpreter=/usr/bin/env python3 -B' --accept args=--fast"
    words = ["--accept", "interpreter=#!/usr/bin/env python3 -B", "--accept", "args=--fast"]
    assert daemon.ctl("upgrade", ID, *words).returncode == 0
    found = daemon.until_state("armed", ID)
    assert (found["version"], found["status"], before["id"]) == ("2.0.0", "active", ID)
    events = daemon.events(action="plugin.status", target=ID)
    assert [row["code"] for row in events if row["decision"] == "deny"].count("needs_consent") == 2
