"""latticectl doctor on a machine with systemd and journald."""

from __future__ import annotations

import json


def findings(machine):
    """{check: states} of what it says, asked as root."""
    found = {}
    for one in json.loads(machine.run("latticectl", "doctor", "--format", "json").stdout):
        found.setdefault(one["check"], []).append(one["state"])
    return found


def test_doctor_finds_an_installed_machine_well_and_a_stopped_daemon_bad(machine):
    machine.check("latticectl", "status")
    found = findings(machine)
    assert {found[name][0] for name in ("daemon", "sandbox", "journal", "disk", "keys")} == {"ok"}, found
    machine.check("systemctl", "stop", "latticed.socket", "latticed.service")
    try:
        found = findings(machine)
        assert ("bad" in found["unit"], found["daemon"]) == (True, ["bad"])
    finally:
        machine.check("systemctl", "start", "latticed.socket")
        machine.check("latticectl", "status")
