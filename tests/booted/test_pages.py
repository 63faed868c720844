"""Commands of pages that want systemd and root: blocks marked `machine`, run as printed, in the order of their page."""

from __future__ import annotations

import re

import pytest

from tests.house import long, machines, pages, processes

DOCS = pages.CHECKOUT / "docs"
READING = ("operate/audit.md", "operate/secrets.md", "system-plugins/how-to/ssh-alerts.md")
REPLACING = ("operate/recovery.md", "operate/README.md")

on_machines = pytest.mark.parametrize("machine", ["trixie", *long.only("bookworm")], indirect=True)
"""The commands are of latticed, not of a suite: all of them in the long run."""


def blocks(page):
    return [one for one in pages.blocks(DOCS / page) if one.words[:2] == ("sh", "machine")]


def typed(machine, block):
    done = machine.run("sh", "-ec", f"cd /root\n{block.text}", within_s=machines.BOOT_S)
    assert done.returncode == block.exits, f"{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def listed(machine):
    """`latticectl list` once the daemon answers and what is active is armed again."""

    def armed():
        shown = machine.run("latticectl", "list").stdout
        return shown if "armed" in shown else ""

    return processes.until(armed, what="the plugin to be armed again", deadline_s=machines.BOOT_S)


@pytest.fixture
def active(machine):
    """A daemon with one active plugin."""
    machine.check("systemctl", "start", "latticed.service")
    machine.drop("acme.pages", b"#!/bin/sh\nread -r line\necho '{\"ok\":true}'\n", type="system")
    machine.check("latticectl", "install", "acme.pages")
    machine.check("latticectl", "activate", "acme.pages")
    yield machine
    machine.run("latticectl", "disable", "acme.pages")
    machine.run("latticectl", "forget", "--purge", "acme.pages")
    machine.run("rm", "-r", "/var/lib/latticed-plugins/acme.pages")


def test_every_block_for_a_machine_is_run_here():
    found = {
        str(page.relative_to(DOCS)) for page in pages.PAGES for one in pages.blocks(page) if "machine" in one.words
    }
    assert found == {*READING, *REPLACING}


@on_machines
def test_commands_that_look_at_a_machine_end_as_their_page_says(active):
    for page in READING:
        for block in blocks(page):
            typed(active, block)
    # The key of the page's last change is where the daemon finds it, and seals.
    active.check("latticectl", "secret", "set", "PAGES", stdin="a value of the page")
    active.check("latticectl", "secret", "delete", "PAGES")
    active.check("rm", "/etc/systemd/system/latticed.service.d/secrets.conf")
    active.check("systemctl", "daemon-reload")
    active.check("systemctl", "restart", "latticed.service")


@on_machines
def test_recovery_and_restore_of_the_page_leave_a_daemon_that_runs(active):
    """The backup that is restored is the page's own; afterwards the plugin is active again. The journal vouches for the
    record before, and does again from the restore on; what was signed in between is missing, and the answer says why.
    """
    active.check("latticectl", "audit", "verify", "--journal")
    active.check("mkdir", "-p", "/var/backups")
    active.check("latticectl", "backup", "/var/backups/latticed-2026-01-31.tar")
    recover, restore, space = blocks("operate/recovery.md")
    active.check("systemctl", "stop", "latticed.service", "latticed.socket")
    active.check("sh", "-c", "head -c 64 /dev/zero | dd conv=notrunc of=/var/lib/latticed/ledger.sqlite3")
    typed(active, recover)
    statuses = {row[0]: row[3] for row in map(str.split, active.check("latticectl", "list").splitlines()[1:])}
    assert statuses["acme.pages"] == "verified"
    typed(active, restore)
    assert "acme.pages" in listed(active)
    active.check("systemctl", "restart", "latticed.service")  # a head is signed
    missing = active.run("latticectl", "audit", "verify", "--journal")
    assert missing.returncode == 6, missing
    told = re.search(r"(ledger.restored) at (\S+): heads from before .* --since \2 leaves them out", missing.stderr)
    assert told, missing
    active.check("latticectl", "audit", "verify", "--journal", "--since", told[2])
    assert "/var/lib/latticed" in typed(active, space)


@on_machines
def test_the_move_of_the_guide_leads_to_another_host(active):
    """The new host is this machine with state, settings and key of a new installation."""
    old, new, _ = blocks("operate/README.md")
    typed(active, old)
    active.check("rm", "-rf", "/etc/latticed", "/etc/credstore/latticed-secrets.key", "/var/lib/latticed")
    active.install()
    active.check("systemctl", "start", "latticed.service")
    typed(active, new)
    assert "acme.pages" in listed(active)


@on_machines
def test_the_guide_shares_access_with_who_may_look_and_who_may_start(active):
    """bob is denied what alice may."""
    *_, groups = blocks("operate/README.md")
    (settings,) = [one for one in pages.blocks(DOCS / "operate/README.md") if one.language == "toml"]
    for name in ("alice", "bob"):
        active.check("useradd", name)
    typed(active, groups)
    active.write("/etc/latticed/latticed.toml", machines.SETTINGS + settings.text.partition("own_user = false\n")[2])
    active.check("latticectl", "health")

    def asks(name, *words):
        return active.run("runuser", "-u", name, "--", "latticectl", *words).returncode

    processes.until(lambda: asks("alice", "restart", "acme.pages") == 0, what="the settings to be read")
    assert asks("bob", "list") == 0
    assert asks("bob", "restart", "acme.pages") == 5
    active.write("/etc/latticed/latticed.toml", machines.SETTINGS)
