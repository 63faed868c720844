"""latticectl doctor on a machine with systemd and journald."""

from __future__ import annotations

import json


def findings(machine):
    """{check: states} of what it says, asked as root, and all of it."""
    said = json.loads(machine.run("latticectl", "doctor", "--format", "json").stdout)
    found = {}
    for one in said:
        found.setdefault(one["check"], []).append(one["state"])
    return found, said


def test_doctor_finds_an_installed_machine_well_and_a_stopped_daemon_bad(machine):
    machine.check("latticectl", "status")
    found, said = findings(machine)
    assert all(found[name] == ["ok"] for name in ("unit", "daemon", "journal", "disk", "keys")), said
    machine.check("systemctl", "stop", "latticed.socket", "latticed.service")
    try:
        found, said = findings(machine)
        assert ("bad" in found["unit"], found["daemon"]) == (True, ["bad"]), said
    finally:
        machine.check("systemctl", "start", "latticed.socket")
        machine.check("latticectl", "status")
