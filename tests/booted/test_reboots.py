"""What is there after a reboot, and after a power cut: the daemon, its state, active plugins, confirmed plans."""

from __future__ import annotations

import json

import pytest

from tests.booted import test_plans
from tests.house import machines, processes


@pytest.mark.parametrize("suite", sorted(machines.SUITES))
def test_everything_is_back_after_reboot_and_power_cut(suite, tmp_path):
    with machines.booted(suite, tmp_path) as machine:
        machine.install()
        machine.check("systemctl", "enable", "--now", *machines.SOCKETS, "latticed.service")
        machine.drop("acme.sleeper", machines.SLEEPER)
        machine.check("latticectl", "install", "acme.sleeper")
        machine.check("latticectl", "activate", "acme.sleeper")
        plan = test_plans.approved(machine)
        machine.check("latticectl", "plan", "apply", plan, "--confirm-within", "600s")
        machine.check("latticectl", "plan", "confirm", plan)
        machine.power_off()
    for cut in (True, False):
        with machines.booted(suite, tmp_path) as machine:
            # The first client waits in the socket, whatever the daemon is doing.
            machine.check("latticectl", "wait", "acme.sleeper", "--for", "active", "--timeout", "60")
            assert json.loads(machine.check("latticectl", "invoke", "acme.sleeper", "sleep", "0")) == {"slept": 0}
            machine.check("latticectl", "audit", "verify")
            assert test_plans.TABLE in test_plans.tables(machine)
            # Before the network, and before anybody asked for it.
            assert machine.property("latticed-apply-boot.service", "Result") == "success"
            restored, network = (
                int(machine.property(one, "ActiveEnterTimestampMonotonic"))
                for one in ("latticed-apply-boot.service", "network-pre.target")
            )
            assert 0 < restored <= network
            processes.until(
                lambda machine=machine: machine.property("latticed.service", "ActiveState") == "active",
                what="the daemon",
                deadline_s=machines.BOOT_S,
            )
            if cut:
                machine.kill()
