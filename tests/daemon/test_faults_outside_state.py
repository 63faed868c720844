"""Disk faults in files the daemon only reads, at its start, and in its log."""

from __future__ import annotations

import errno
import json
import os

import pytest

from tests.house import bundles, faults, long

pytestmark = pytest.mark.daemon

named = pytest.mark.parametrize("error", faults.DISK_ERRORS, ids=errno.errorcode.get)

RESCAN = "[watch]\nrescan_s = 0.5"


# The operator's files.


def test_unreadable_policy_is_reread_later(place, acme, sick):
    """The old one stays in force, health reports it; the retry needs no change of the file."""
    other = bundles.author("other")
    place.drop("other", author=other, id="other.demo")
    with place.running() as daemon:
        with sick.failing(errno.EIO, faults.OPEN_READ, below=place.trust):
            place.trust_us(acme, other)
            daemon.until(lambda: faults.health_with(daemon, "policy_unreadable"), "health to say so")
        daemon.until(lambda: daemon.get("/api/health").status == 200, "the policy to be read")
        daemon.until(lambda: daemon.plugin("other.demo"), "the bundle that it trusts")


def test_unreadable_settings_are_reread_later(place, sick):
    """Health is 503 until they can be read; the failure is logged once."""
    with place.running() as daemon:
        with sick.failing(errno.EMFILE, faults.OPEN_READ, below=place.config):
            place.set('[log]\nlevel = "debug"')
            daemon.until(lambda: daemon.get("/api/health").status == 503, "health to say so")
        daemon.until(lambda: daemon.get("/api/health").status == 200, "the settings to be read")
        assert len(daemon.logged("settings_refused")) == 1


# Bundles.


@pytest.mark.parametrize("error", [errno.EMFILE, *long.only(errno.EIO, errno.ENFILE)], ids=errno.errorcode.get)
def test_active_plugin_with_unreadable_bundle_is_stopped(place, acme, sick, error):
    """It is stopped once the unreadable bundle changes; disable works; the intact bundle is armed again."""
    place.set(RESCAN)
    for name in ("one", "two"):
        place.drop(name, author=acme, id=f"acme.{name}")
    with place.running() as daemon:
        for name in ("one", "two"):
            daemon.activate(f"acme.{name}")
        with sick.failing(error, faults.OPEN_READ, below=place.plugins / "one"):
            os.utime(place.plugins / "one" / "artifact")
            daemon.until_state("failed", "acme.one", code="unreadable")
            assert daemon.plugin("acme.two")["runtime"]["state"] == "armed"
            assert daemon.set_status("disabled", "acme.two").json()["runtime"]["state"] == "stopped"
        daemon.until_state("armed", "acme.one")
        assert daemon.rejected() == {}


# Starting.


@pytest.mark.parametrize(
    ("path", "calls", "code"),
    [
        ("state/ledger.sqlite3", faults.WRITES, "state_unusable"),
        ("state/.host.key", faults.RENAME, "state_unusable"),
        ("state/bundles", faults.MKDIR, "state_unusable"),
        ("run/", faults.BIND, "socket_unusable"),
        *long.only(
            ("state/lock", faults.OPEN_WRITE, "state_unusable"),
            ("state/.host.key", faults.OPEN_WRITE, "state_unusable"),
            ("state/.host.key", faults.WRITE, "state_unusable"),
            ("state/.host.key", faults.SYNC, "state_unusable"),
        ),
    ],
)
def test_failed_first_start_says_why_and_the_next_succeeds(place, acme, sick, path, calls, code):
    """One line with the problem's code, and an exit status that is not 0."""
    with sick.failing(errno.ENOSPC, calls, below=place.home / path):
        ran = place.once()
    assert ran.returncode not in {0, 2}, ran
    assert ran.stderr.startswith(f"latticed: {code}: "), ran.stderr
    assert ran.stderr.count("\n") == 1, ran.stderr
    assert not place.socket.exists()
    assert list(place.state.glob(".host.key*")) == []
    with place.running() as daemon:
        assert daemon.get("/api/health").status == 200
        faults.chain_holds(daemon)


def test_failed_socket_call_at_start_is_one_line_on_stderr(place, sick):
    """EMFILE from socket(2), with a service manager to be notified and without."""
    with sick.failing(errno.EMFILE, faults.SOCKET, below="/"):
        ran = place.once()
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1), ran.stderr
    assert ran.stderr.startswith("latticed: socket_unusable: ")


@named
def test_start_that_fails_by_disk_faults_loses_nothing(place, acme, sick, error):
    place.drop(author=acme)
    with place.running() as daemon:
        daemon.activate()
        assert faults.kv(daemon, "key", b"value").status == 200
        daemon.kill()
    with sick.failing(error, faults.WRITES, below=place.state / "ledger.sqlite3"):
        ran = place.once()
    assert ran.returncode == 1, ran
    assert ran.stderr.startswith("latticed: state_unusable: "), ran.stderr
    assert ran.stderr.count("\n") == 1
    with place.running() as again:
        again.until_state("armed")
        assert faults.kv(again, "key").body == b"value"
        faults.chain_holds(again)


# The log.


def test_failed_log_writes_do_not_stop_the_daemon(place, acme, sick):
    """Requests are served, and lines are whole again afterwards."""
    place.drop(author=acme)
    with place.running() as daemon:
        with sick.failing(errno.ENOSPC, faults.WRITE, below=daemon.log_file, halves=True):
            daemon.activate()
            for number in range(200):
                bundles.tamper(place.plugins / "demo" / "artifact", offset=number % 4)
                if number % 50 == 0:
                    daemon.until_rejected("demo", "digest_mismatch")
            assert daemon.get("/api/health").status == 200
        place.trust_us(acme, bundles.author("other"))
        daemon.until(lambda: b"trust_policy_loaded" in daemon.log_file.read_bytes(), "the log to go on")
        last = daemon.log_file.read_text().splitlines()[-1]
        assert json.loads(last)["event"] == "trust_policy_loaded"


def test_full_log_does_not_change_the_exit_status(place, sick):
    """SIGTERM still gives 0."""
    with place.running() as daemon, sick.failing(errno.ENOSPC, faults.WRITE, below=daemon.log_file):
        assert daemon.stop() == 0
