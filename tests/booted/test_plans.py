"""The root helper as a unit: its timer undoes what nobody confirms, a boot restores what was confirmed."""

from __future__ import annotations

import json

from tests.house import machines, processes

GUARD = """
[[groups]]
name = "web"
[[groups.rules]]
proto = "tcp"
ports = [22, 80]

[bindings]
groups = ["web"]
"""
TABLE = "table inet latticed_guard"
HELPER = ("latticed-apply.socket", "latticed-apply.service")


def approved(machine):
    """A plan of nft guard that is approved."""
    machine.check("latticectl", "install", "latticed.nft-guard", "--accept", "network:plan")
    machine.check("latticectl", "activate", "latticed.nft-guard")
    machine.write("/root/guard.toml", GUARD)
    # The first call prints the review and ends with 1.
    machine.run("latticectl", "apply", "latticed.nft-guard", "-f", "/root/guard.toml")
    listed = json.loads(machine.check("latticectl", "plan", "list", "--format", "json"))
    (plan,) = [one["sha256"] for one in listed["plans"]]
    machine.check("latticectl", "plan", "approve", plan, shown(machine, plan)["review"])
    return plan


def shown(machine, plan):
    return json.loads(machine.check("latticectl", "plan", "show", plan, "--format", "json"))


def tables(machine):
    return machine.check("nft", "list", "tables")


def test_timer_undoes_what_nobody_confirms_when_everybody_is_gone(machine):
    """Daemon and root helper are stopped; nothing of latticed runs until the timer fires."""
    plan = approved(machine)
    machine.check("latticectl", "plan", "apply", plan, "--confirm-within", "10s")
    assert TABLE in tables(machine)
    (timer,) = json.loads(machine.check("systemctl", "list-timers", "--output=json", "latticed-undo-*"))
    machine.check("systemctl", "stop", "latticed.socket", "latticed.service", *HELPER)
    machine.run("systemctl", "kill", "--signal=KILL", *HELPER)
    processes.until(lambda: TABLE not in tables(machine), what="the table to go", deadline_s=machines.BOOT_S)
    (entry,) = machine.until_logged("LATTICED_EVENT=plan_rolled_back", "_UID=0")
    assert (entry["_SYSTEMD_UNIT"], entry["LATTICED_REASON"]) == (timer["activates"], "deadline")
    processes.until(
        lambda: "latticed-undo" not in machine.check("systemctl", "list-units", "--all", "latticed-undo-*"),
        what="timer and service to be collected",
        deadline_s=machines.BOOT_S,
    )
    machine.check("systemctl", "start", "latticed.socket", "latticed.service", HELPER[0])
    # A confirmed one leaves no timer, and is there however often the helper starts.
    machine.check("latticectl", "plan", "approve", plan, shown(machine, plan)["review"])
    machine.check("latticectl", "plan", "apply", plan, "--confirm-within", "600s")
    machine.check("latticectl", "plan", "confirm", plan)
    processes.until(
        lambda: json.loads(machine.check("systemctl", "list-timers", "--output=json", "latticed-undo-*")) == [],
        what="the timer to be stopped",
        deadline_s=machines.BOOT_S,
    )
    machine.check("systemctl", "kill", "--signal=KILL", HELPER[1])
    assert TABLE in tables(machine)
    assert shown(machine, plan)["state"] == "applied"
