"""External parts block (log, mounts, DNS, disk): the daemon still pings, answers, stops tampered plugins, reloads."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.house import bundles, daemons, hanging_disk, hanging_mounts, hosting, long, namespaces, programs

pytestmark = pytest.mark.daemon

TALKER = (
    programs.SDK
    + b"""
    def do_shout(self, payload):
        for number in range(payload):
            print("x" * 1_000, file=sys.stderr)

    def do_fetch(self, payload):
        self.call("http.do", method="GET", url=payload)

Test().run()
"""
)
NAMESPACE = """
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal
mount --bind "$1/journal" /run/systemd/journal
mount --bind "$1/mount/passwd" /etc/passwd
mount --bind "$1/mount/hosts" /etc/hosts
shift
exec "$@"
"""


def armed(daemon, acme):
    """A daemon with a process plugin, and the plugin's pid."""
    host = hosting.Host(daemon=daemon, author=acme)
    host.drop("acme.demo", TALKER, capabilities=["http:egress"], egress={"hosts": ["stalled.example:443"]})
    daemon.activate(accept=["http:egress"], accept_hosts=["stalled.example:443"])
    return host, host.runtime("acme.demo")["pid"]


def drop_lines(daemon, host):
    """Have the plugin write more than the log pipe holds."""

    def dropped():
        assert host.result("acme.demo", "shout", 120) is None
        return "latticed_log_dropped_total 0\n" not in daemon.get("/metrics").body.decode()

    daemon.until(dropped, "log entries to be dropped")


def pings(daemon):
    """Two pings that were sent from now on."""
    daemon.notices.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            daemon.notices.recv(4096)
    for _ in range(2):
        daemon.expect_notice("WATCHDOG=1")


def goes_on(daemon, pid, among=None):
    """Check that the daemon pings, stops a tampered plugin (of `among`, or the plugin directory), and reloads."""
    pings(daemon)
    bundles.tamper((among or daemon.place.plugins) / "acme.demo" / "artifact")
    daemon.until(lambda: not os.path.exists(f"/proc/{pid}"), "the tampered plugin's process to be gone")
    daemon.until_state("failed", code="digest_mismatch")
    daemon.signal(signal.SIGHUP)
    told = daemon.expect_notice("READY=1")
    assert "STATUS=reloaded" in told


def ends(daemon):
    """Check that the daemon ends at once, with exit status 0."""
    began = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - began < 8.0


def test_log_lines_for_a_full_pipe_are_dropped_and_counted(place, acme):
    """The daemon runs as in `latticed | sleep 1000` with a plugin that logs a lot; the count is logged later."""
    read, write = os.pipe()
    with contextlib.closing(open(read, "rb")) as reader, place.running(output=write) as daemon:
        os.close(write)
        host, pid = armed(daemon, acme)
        drop_lines(daemon, host)
        goes_on(daemon, pid)
        drain(reader, b'"event": "log_dropped"', b'"entries": ')
        daemon.signal(signal.SIGHUP)
        drain(reader, b'"event": "settings_loaded"')
        ends(daemon)


def drain(reader, *words):
    """Read the log up to the line that has these words."""
    while line := reader.readline():
        if all(word in line for word in words):
            return
    pytest.fail(f"the log ended without {words}")


@pytest.mark.root
@pytest.mark.parametrize("which", ["trust.json", "latticed.toml"])
def test_settings_or_policy_on_a_hanging_mount_do_not_block_the_daemon(place, acme, which):
    """The file that can be read is still followed; health names the other."""
    file = place.home / which
    with hanging_mounts.mounted(place.home / "mount", {which: file.read_bytes()}, uid=place.uid) as there:
        file.unlink()
        file.symlink_to(there.path / which)
        os.chown(file, place.uid, place.uid, follow_symlinks=False)
        with place.running() as daemon:
            _, pid = armed(daemon, acme)
            there.stall()
            there.wait_for_somebody()
            if which == "latticed.toml":
                place.trust_us(acme, revoked={"keys": [acme.public]})
                daemon.until_state("failed", code="key_revoked")
                assert not os.path.exists(f"/proc/{pid}")
            code = {"trust.json": "policy_stalled", "latticed.toml": "settings_stalled"}[which]
            daemon.until(
                lambda: code in [one["code"] for one in daemon.get("/api/health").json()["problems"]],
                "health to say so",
            )
            if which == "trust.json":
                goes_on(daemon, pid)
            ends(daemon)


@pytest.mark.root
def test_unanswered_name_lookups_and_full_journald_do_not_block_the_daemon(acme):
    """Users and hosts are looked up at a start, a call and a reload; a dead directory service never answers."""
    namespaces.needed()
    with daemons.placed(None, settings='[log]\nformat = "journal"\n[access.users]\nbin = ["read"]') as place:
        place.trust_us(acme)
        (place.home / "journal").mkdir()
        users = b"root:x:0:0:root:/root:/bin/sh\nbin:x:2:2:bin:/bin:/bin/sh\n"
        names = {"passwd": users, "hosts": b"127.0.0.1 localhost\n"}
        place.before = ("unshare", "-m", "/bin/sh", "-c", NAMESPACE, "sh", str(place.home))
        with (
            hanging_mounts.mounted(place.home / "mount", names, uid=0) as there,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald,
        ):
            journald.bind(str(place.home / "journal" / "socket"))
            with place.running(ready=False) as early:
                command = Path(f"/proc/{early.process.pid}/cmdline")
                started = b"\0".join(map(os.fsencode, place.command()[:3]))
                early.until(lambda: command.read_bytes().startswith(started), "the namespace to be made")
                there.stall()
                there.wait_for_somebody()
                assert early.stop() == 0
            there.go_on()
            with place.running() as daemon:
                host, pid = armed(daemon, acme)
                daemon.until(
                    lambda: (
                        host.result("acme.demo", "shout", 60) is None
                        and "latticed_log_dropped_total 0\n" not in daemon.get("/metrics").body.decode()
                    ),
                    "log entries to be dropped",
                )
                there.stall()
                with asking(host):
                    there.wait_for_somebody()
                    daemon.signal(signal.SIGHUP)
                    goes_on(daemon, pid)
                    ends(daemon)


@contextlib.contextmanager
def asking(host):
    """The plugin looks up a name meanwhile; its answer does not matter."""

    def ask():
        with contextlib.suppress(OSError):
            host.invoke("acme.demo", "fetch", "https://stalled.example/")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_full_notify_socket_does_not_block_the_daemon(place, acme):
    """Pings are sent again once there is room."""
    with place.running() as daemon:
        _, pid = armed(daemon, acme)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    filler.sendto(b"X=1", daemon.notices.getsockname())
        daemon.signal(signal.SIGHUP)
        daemon.until(lambda: len(daemon.log("settings_loaded")) == 1, "the reload")
        goes_on(daemon, pid)
        ends(daemon)


def armed_from_both(daemon, acme):
    """A daemon with acme.other from the plugin directory and acme.demo from the market's; that one's pid."""
    daemon.place.drop("acme.other", author=acme, id="acme.other", v2=True)
    bundles.drop(daemon.place.state / "bundles", "acme.demo", author=acme, v2=True)
    daemon.activate("acme.other")
    return daemon.activate()["runtime"]["pid"]


@contextlib.contextmanager
def unanswered(place):
    """The plugin directory answers nothing, as on a dead network mount."""
    with hanging_mounts.mounted(place.plugins, {}, uid=place.uid) as there:
        there.stall()
        yield there


@pytest.mark.root
def test_plugin_directory_that_does_not_answer_blocks_neither_the_daemon_nor_other_directories(place, acme):
    """While the daemon runs, and from its start on; what is in the directory counts as unreadable."""
    place.set("[limits]\nread_deadline_s = 5.0")
    market = place.state / "bundles"
    with place.running() as daemon:
        pid = armed_from_both(daemon, acme)
        with unanswered(place):
            daemon.until_state("failed", "acme.other", code="unreadable")
            goes_on(daemon, pid, market)
            ends(daemon)
    bundles.tamper(market / "acme.demo" / "artifact")
    with unanswered(place), place.running() as daemon:
        daemon.until_state("failed", "acme.other", code="unreadable")
        goes_on(daemon, daemon.until_state("armed")["runtime"]["pid"], market)
        ends(daemon)


@pytest.mark.root
@pytest.mark.parametrize("who", ["scan", "watcher"])
def test_plugin_directory_that_does_not_answer_does_not_block_the_end(place, acme, who):
    """However long a bundle may take to be read: neither a scan nor the thread that watches is waited for."""
    place.set("[limits]\nread_deadline_s = 600.0")
    with place.running() as daemon:
        armed_from_both(daemon, acme)
        with contextlib.ExitStack() as stack:
            beneath = os.open(place.plugins, os.O_PATH)
            stack.callback(os.close, beneath)
            there = stack.enter_context(unanswered(place))
            if who == "watcher":
                os.mkdir("late", dir_fd=beneath)
            else:
                daemon.signal(signal.SIGHUP)
                assert "STATUS=reloaded" in daemon.expect_notice("READY=1")
            there.wait_for_somebody()
            assert daemon.stop() == 0


@pytest.fixture
def disk(place):
    """The state directory on a disk of its own."""
    if os.getuid() != 0:
        pytest.skip("no disk of its own can be made here: that needs uid 0")
    image = place.home.parent / "state.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    for command in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(place.state)]):
        if not shutil.which(command[0]) or not shutil.which("fsfreeze"):
            pytest.skip(f"no disk of its own can be made here: {command[0]} or fsfreeze is missing")
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            pytest.skip(f"no disk of its own can be made here: {command[0]}: {ran.stderr.strip()[:200]}")
    place.own(place.state).chmod(0o700)
    yield place.state
    subprocess.run(["umount", str(place.state)], check=True)


@contextlib.contextmanager
def frozen(directory):
    """While the block lasts no write to the file system returns; a process in one cannot even be killed, so it is
    always thawed.
    """
    subprocess.run(["fsfreeze", "-f", str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", str(directory)], check=True)


@pytest.mark.root
def test_frozen_state_disk_does_not_block_stopping_of_plugins(place, acme, disk):
    """A tampered plugin is stopped, which is recorded once the file system is thawed."""
    with place.running() as daemon:
        _, pid = armed(daemon, acme)
        with frozen(disk):
            pings(daemon)
            bundles.tamper(daemon.place.plugins / "acme.demo" / "artifact")
            daemon.until(lambda: not os.path.exists(f"/proc/{pid}"), "the tampered plugin's process to be gone")
            assert daemon.plugin()["runtime"]["last_error"]["code"] == "digest_mismatch"
            daemon.signal(signal.SIGHUP)
            assert "STATUS=reloaded" in daemon.expect_notice("READY=1")
        daemon.until(
            lambda: "failed" in [one["detail"].get("state") for one in daemon.events(action="plugin.runtime")], "record"
        )
        ends(daemon)


@pytest.mark.root
@pytest.mark.parametrize("signals", [2, *long.only(1)])
def test_state_disk_that_hangs_within_a_commit_holds_up_nothing_but_records(place, acme, signals):
    """Neither answers nor a tampered plugin's end, a reload or the daemon's own; by one SIGTERM after its limit."""
    place.set("[supervision]\ndrain_s = 0.0\nstop_grace_s = 0.1")
    with hanging_disk.mounted(place.state) as disk, place.running() as daemon:
        _, pid = armed(daemon, acme)
        disk.hold(hanging_disk.WRITES)
        bundles.tamper(daemon.place.plugins / "acme.demo" / "artifact")
        disk.wait_for_somebody()
        daemon.until(lambda: not os.path.exists(f"/proc/{pid}"), "the tampered plugin's process to be gone")
        pings(daemon)
        daemon.until_state("failed", code="digest_mismatch")
        assert daemon.get("/api/health").status == 200
        daemon.signal(signal.SIGHUP)
        assert "STATUS=reloaded" in daemon.expect_notice("READY=1")
        assert disk.waiting
        disk.let_go()
        daemon.until(
            lambda: "failed" in [one["detail"].get("state") for one in daemon.events(action="plugin.runtime")], "record"
        )
        disk.hold(hanging_disk.WRITES)
        daemon.signal(signal.SIGTERM)
        disk.wait_for_somebody()
        if signals == 2:
            daemon.signal(signal.SIGTERM)
        assert daemon.ended() == 1
        assert len(daemon.log("daemon_forced")) == 1
