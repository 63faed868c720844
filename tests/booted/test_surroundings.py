"""What the daemon lives with under systemd goes wrong: journald, its directories, its processes."""

from __future__ import annotations

import json

import pytest

from tests.house import machines, processes

JOURNALD = (
    *("systemd-journald.socket", "systemd-journald-dev-log.socket", "systemd-journald-audit.socket"),
    "systemd-journald.service",
)
SMALL = """
set -e
mkdir -p /run/systemd/journald.conf.d
printf '[Journal]\\nStorage=volatile\\n' >/run/systemd/journald.conf.d/small.conf
mount -t tmpfs -o size=16m tmpfs /run/log/journal
"""
FILL = """
dd if=/dev/zero of=/run/log/journal/full bs=64k 2>/dev/null || true
head -c 12M /dev/urandom | base64 -w 40000 | systemd-cat -t filling
journalctl --sync
logger -t probe 'nothing of this is kept'
journalctl --sync
! journalctl -q -t probe -o cat | grep -q 'nothing of this is kept'
"""
"""A small file system for the journal; everything in it used up, which an entry that is lost shows."""
DROPPED = """
import re, socket
with socket.socket(socket.AF_UNIX) as asking:
    asking.connect("/run/latticed/control.sock")
    asking.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
    print(*re.findall(rb"latticed_log_dropped_total (\\d+)", b"".join(iter(lambda: asking.recv(65536), b""))))
"""


@pytest.fixture(autouse=True)
def up(machine):
    """The daemon runs, and has a plugin that sleeps as long as it is told."""
    if "acme.sleeper" not in machine.check("latticectl", "list"):
        machine.drop("acme.sleeper", machines.SLEEPER)
    machine.run("latticectl", "install", "acme.sleeper")
    machine.check("latticectl", "activate", "acme.sleeper")


def test_daemon_goes_on_without_journald_and_says_what_it_could_not_write(machine):
    """Requests are answered, what was dropped is counted, and said once journald is back."""
    pid = machine.property("latticed.service", "MainPID")
    machine.check("systemctl", "stop", *JOURNALD)
    try:
        machine.check("latticectl", "restart", "acme.sleeper")
        processes.until(
            lambda: "b'0'" not in machine.check("python3", "-P", "-c", DROPPED),
            what="dropped entries to be counted",
            deadline_s=machines.BOOT_S,
        )
    finally:
        machine.check("systemctl", "start", *JOURNALD)
    machine.check("latticectl", "restart", "acme.sleeper")
    machine.until_logged("LATTICED_EVENT=log_dropped", f"_PID={pid}")
    machine.check("latticectl", "audit", "verify")
    assert machine.property("latticed.service", "MainPID") == pid


@pytest.fixture
def full_journal(machine):
    """journald cannot write an entry, and has nowhere else to go."""
    machine.check("systemctl", "stop", *JOURNALD)
    machine.check("sh", "-c", SMALL)
    machine.check("systemctl", "start", *JOURNALD)
    machine.check("sh", "-c", FILL)
    yield
    machine.check("systemctl", "stop", *JOURNALD)
    machine.check("umount", "/run/log/journal")
    machine.check("rm", "/run/systemd/journald.conf.d/small.conf")
    machine.check("systemctl", "start", *JOURNALD)


def test_full_journal_stops_nothing(machine, full_journal):
    """journald takes entries and loses them. The daemon is not held up and its audit record is whole: what happened
    can be asked of it, also what the journal has not.
    """
    pid = machine.property("latticed.service", "MainPID")
    written = len(machine.journal(f"_PID={pid}"))
    machine.check("latticectl", "restart", "acme.sleeper")
    assert json.loads(machine.check("latticectl", "invoke", "acme.sleeper", "sleep", "0"))["slept"] == 0
    machine.check("latticectl", "health", "--check")
    machine.check("latticectl", "audit", "verify")
    machine.check("systemctl", "restart", "latticed.service")
    machine.check("latticectl", "wait", "acme.sleeper", "--for", "active", "--timeout", "60")
    assert machine.property("latticed.service", "MainPID") != pid
    assert len(machine.journal(f"_PID={pid}")) == written, "it was full all the time"


def test_settings_that_cannot_be_read_change_nothing_and_start_nothing(machine):
    """With all of /etc/latticed: the daemon that runs goes on and says so; a start is refused, and not tried again."""
    pid = machine.property("latticed.service", "MainPID")
    files = ("/etc/latticed/latticed.toml", "/etc/latticed/trust.json")
    machine.check("chmod", "0600", *files)
    try:
        machine.check("systemctl", "reload", "latticed.service")
        told = machine.until_logged("LATTICED_EVENT=settings_refused", f"_PID={pid}")[-1]
        assert "/etc/latticed/latticed.toml" in told["MESSAGE"]
        shown = machine.run("latticectl", "health")
        assert "Permission denied" in shown.stdout
        assert json.loads(machine.check("latticectl", "invoke", "acme.sleeper", "sleep", "0"))["slept"] == 0
        # Nor are a user's own settings taken instead of those that are closed to him.
        machine.check("chmod", "0700", "/etc/latticed")
        user = ("setpriv", "--reuid=nobody", "--clear-groups", "latticed", "--check-config")
        refused = machine.run(*user)
        assert (refused.returncode, "Traceback" in refused.stderr) == (78, False), refused
        assert "cannot read /etc/latticed/latticed.toml: Permission denied" in refused.stderr
        machine.check("chmod", "0755", "/etc/latticed")
        machine.run("systemctl", "restart", "latticed.service")
        assert machine.property("latticed.service", "ExecMainStatus") == "78"
        assert machine.property("latticed.service", "NRestarts") == "0"
    finally:
        machine.check("chmod", "0644", *files)
    machine.run("systemctl", "reset-failed", "latticed.service", "latticed.socket")
    machine.check("systemctl", "restart", "latticed.socket", "latticed.service")
    machine.check("latticectl", "wait", "acme.sleeper", "--for", "active", "--timeout", "60")


def test_runtime_directory_that_is_gone_comes_back_as_the_catalog_says(machine):
    """The daemon may not make it in /run. It goes on, and so do its plugins."""
    pid = machine.property("latticed.service", "MainPID")
    machine.check("rm", "-rf", "/run/latticed")
    machine.until_logged("LATTICED_EVENT=control_socket_lost", f"_PID={pid}")
    shown = machine.check("journalctl", "--catalog", "--no-pager", "LATTICED_EVENT=control_socket_lost")
    command = "systemctl restart latticed.socket latticed.service"
    assert command in shown
    assert machine.property("latticed.service", "MainPID") == pid
    machine.check(*command.split())
    assert json.loads(machine.check("latticectl", "status", "--format", "json"))
    machine.check("systemctl", "restart", "latticed-journal.socket")  # its socket is in there, too


def test_process_that_is_killed_as_for_memory_is_its_plugins_failure(machine):
    """SIGKILL, as the kernel's OOM killer sends it: here no controller counts memory."""
    pid = machine.property("latticed.service", "MainPID")
    group = f"/sys/fs/cgroup{machine.property('latticed.service', 'ControlGroup')}/plugins/acme.sleeper"
    # At work for a second: neither one that is being set up, nor a check of its health.
    working = f"ps -o etimes=,pid= -p $(cat {group}/child-*/cgroup.procs | paste -sd,) | awk '$1 > 0 {{print $2}}'"
    with machine.started("sh", "-c", "latticectl invoke acme.sleeper sleep 9 2>&1") as asking:
        pids = processes.until(
            lambda: machine.run("sh", "-c", working).stdout,
            what="the plugin's process",
            deadline_s=machines.BOOT_S,
        )
        machine.run("kill", "-KILL", *pids.split())  # one of them may have ended meanwhile
        out, _ = asking.communicate(timeout=machines.BOOT_S)
    assert "killed by SIGKILL (out of memory?)" in out
    assert machine.property("latticed.service", "MainPID") == pid
    assert json.loads(machine.check("latticectl", "invoke", "acme.sleeper", "sleep", "0"))["slept"] == 0
