"""latticed under a real systemd as PID 1 and a real journald, of Debian 12 and 13."""

from __future__ import annotations

import json

import pytest

from tests.house import machines, processes

VERSIONS = {"bookworm": "252", "trixie": "257"}


@pytest.fixture(params=sorted(machines.SUITES))
def machine(request, tmp_path):
    with machines.booted(request.param, tmp_path) as found:
        yield found


def test_machine_is_up_with_the_systemd_of_its_suite(machine):
    assert machine.check("ps", "-o", "comm=", "-p", "1").strip() == "systemd"
    assert machine.check("systemctl", "--version").split()[1] == VERSIONS[machine.suite]
    assert machine.journal("_PID=1")
    assert machine.check("ip", "-brief", "link").split()[0] == "lo", "no way out"


def test_daemon_is_started_by_its_socket_ready_and_in_the_journal(machine):
    """The first client waits in the socket until it is answered."""
    machine.install()
    machine.check("systemctl", "enable", "--now", "latticed.socket")
    assert machine.property("latticed.service", "ActiveState") == "inactive"
    assert "latticed" in machine.check("latticectl", "version")
    assert machine.property("latticed.service", "ActiveState") == "active"
    pid = machine.property("latticed.service", "MainPID")
    (entry,) = machine.until_logged("_SYSTEMD_UNIT=latticed.service", "LATTICED_EVENT=daemon_ready")
    assert (entry["_PID"], entry["SYSLOG_IDENTIFIER"]) == (pid, "latticed")
    assert machine.check("ps", "-o", "user=", "-p", pid).strip() == "latticed"


def test_killed_daemon_is_started_again_and_answers(machine):
    machine.install()
    machine.check("systemctl", "enable", "--now", "latticed.socket", "latticed.service")
    before = machine.property("latticed.service", "MainPID")
    machine.check("kill", "-KILL", before)

    def again():
        pid = machine.property("latticed.service", "MainPID")
        return (
            pid
            if pid not in {"0", before} and machine.property("latticed.service", "ActiveState") == "active"
            else None
        )

    assert processes.until(again, what="another daemon", deadline_s=machines.BOOT_S)
    assert machine.property("latticed.service", "NRestarts") == "1"
    assert json.loads(machine.check("latticectl", "status", "--format", "json"))


@pytest.mark.parametrize("cut", [False, True], ids=["reboot", "power cut"])
def test_daemon_is_there_after_a_restart_of_the_machine(tmp_path, cut):
    """With its state: what a boot recorded is in the next one's audit record."""
    with machines.booted("trixie", tmp_path) as machine:
        machine.install()
        machine.check("systemctl", "enable", "--now", "latticed.socket", "latticed.service")
        machine.check("latticectl", "install", "latticed.ssh-alerts")
        (machine.kill if cut else machine.power_off)()
    with machines.booted("trixie", tmp_path) as machine:
        processes.until(
            lambda: machine.property("latticed.service", "ActiveState") == "active",
            what="the daemon",
            deadline_s=machines.BOOT_S,
        )
        assert "latticed.ssh-alerts" in machine.check("latticectl", "list")
        assert machine.run("latticectl", "audit", "verify").returncode == 0
