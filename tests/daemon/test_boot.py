"""Starting the real process: READY=1 means ready, and a failed start is explained in one line."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import struct
import subprocess
import sys

import pytest

from tests.house import bundles, daemons, long, processes, raw_http

pytestmark = pytest.mark.daemon


def test_requests_are_served_right_after_ready(place, acme):
    """The first one already finds all bundles on disk."""
    place.drop(author=acme)
    with place.running() as daemon:
        assert [one["id"] for one in daemon.get("/api/plugins").json()] == ["acme.demo"]
        told = daemon.get("/api/health").json()
        assert (told["status"], told["problems"]) == ("ok", [])
        assert len(daemon.logged("daemon_ready")) == 1


def test_socket_is_accessible_to_owner_and_group_only(daemon):
    """Mode 0660, the daemon's user; the state directory is its own."""
    found = daemon.place.socket.lstat()
    assert stat.S_ISSOCK(found.st_mode)
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o660, daemon.place.uid)
    assert stat.S_IMODE(daemon.place.state.stat().st_mode) == 0o700
    for path in daemon.place.state.rglob("*"):
        assert not path.lstat().st_mode & 0o077, path


@pytest.mark.root
def test_socket_belongs_to_the_group_of_the_settings(acme):
    """The setting is `[access] socket_group`."""
    group = processes.STRANGER.gid  # the only one that user may give it to
    with daemons.placed(settings=f'[access]\nsocket_group = "{group}"') as place, place.running():
        assert place.socket.stat().st_gid == group


def test_socket_left_by_a_killed_daemon_is_replaced(place):
    with place.running() as first:
        first.kill()
    assert place.socket.is_socket()
    with place.running() as second:
        assert second.get("/api/health").status == 200


def test_second_daemon_on_the_same_state_exits_with_75(daemon):
    """It writes one line to stderr; the first one is not affected."""
    ran = daemon.place.once()
    assert ran.returncode == 75
    assert ran.stderr.startswith("latticed: state_in_use: ")
    assert ran.stderr.count("\n") == 1
    assert daemon.get("/api/health").status == 200


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('plugin_dri = "/srv"', ["plugin_dri", "plugin_dir"]),
        ("[watch]\nquiet = 1", ["watch.quiet", "watch.quiet_s"]),
        ("[watch]\nquiet_s = -1", ["watch.quiet_s", "0 to 60", "-1"]),
        ('[log]\nlevel = "loud"', ["log.level", "debug, info, warning, error", "loud"]),
        ('[runners]\nsystem = "docker"', ["runners.system", "process, noop", "docker"]),
        ("[access.users]\nalice = ['everything']", ["access.users.alice", "read, operate, host, trust", "everything"]),
        ("[access.users]\nno-such-user-here = ['read']", ["access.users", "no-such-user-here"]),
        ("[access]\nsocket_group = 'no-such-group-here'", ["access", "no-such-group-here"]),
        ("limits = 3", ["limits"]),
        ("this is not TOML", ["TOML"]),
    ],
)
def test_bad_settings_exit_with_78_and_name_key_and_file(place, text, named):
    """One line with what was expected and found; no file for names that the host does not know."""
    place.set(text)
    ran = place.once()
    assert ran.returncode == 78, ran
    assert ran.stderr.count("\n") == 1, ran.stderr
    for word in named:
        assert word in ran.stderr
    if "no-such" not in text:
        assert str(place.config) in ran.stderr
    assert "Traceback" not in ran.stderr


def test_settings_writable_by_others_are_refused(place):
    """Otherwise another user could control the daemon."""
    place.config.chmod(0o666)
    ran = place.once()
    assert (ran.returncode, "writable by others" in ran.stderr) == (78, True), ran


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs uid 0 to give directories to others")
@pytest.mark.parametrize("what", ["state", "run"])
def test_directory_of_another_user_is_refused_with_owner_and_mode(place, what):
    """Others own it or may write to it: nothing is opened or created there; once that is fixed, the daemon starts."""
    directory = {"state": place.state, "run": place.run}[what]
    stranger = processes.OTHER_STRANGER.uid
    more = long.only((stranger, 0o777), (place.uid, 0o777), (0, 0o1777))
    for uid, mode in ((stranger, 0o755), (place.uid, 0o775), *more):
        os.chown(directory, uid, uid)
        directory.chmod(mode)
        ran = place.once()
        assert ran.returncode == 1, ran
        assert f"{directory}: expected it to belong to uid 0 or {place.uid}" in ran.stderr
        assert f"found uid {uid} and mode {mode:04o}" in ran.stderr
        assert ran.stderr.count("\n") == 1
        assert list(directory.iterdir()) == []


def test_missing_settings_file_that_was_named_is_an_error(place):
    place.config.unlink()
    ran = place.once()
    assert (ran.returncode, str(place.config) in ran.stderr) == (78, True), ran


def test_check_config_prints_every_setting_with_its_origin(place):
    """It does not start the daemon."""
    place.env["LATTICED_LOG_LEVEL"] = "debug"
    place.set("[watch]\nquiet_s = 0.5")
    ran = place.once("--check-config")
    assert ran.returncode == 0
    lines = ran.stdout.splitlines()
    assert f'plugin_dir = "{place.plugins}"  # {place.config}; a change needs a restart' in lines
    assert 'log.level = "debug"  # environment LATTICED_LOG_LEVEL' in lines
    assert f"watch.quiet_s = 0.5  # {place.config}" in lines
    assert "limits.bundles = 20000  # default; a change needs a restart" in lines
    assert "supervision.drain_s = 10.0  # default" in lines
    assert list(place.state.iterdir()) == []


def test_deprecated_key_is_accepted_with_a_warning(place):
    """--check-config warns on stderr, the daemon in its log."""
    place.set("[tunnel]\ntunnels = 3")
    ran = place.once("--check-config")
    assert f"tunnel.total_tunnels = 3  # {place.config} as tunnel.tunnels" in ran.stdout.splitlines()
    assert ran.stderr.startswith("warning: tunnel.tunnels is called tunnel.total_tunnels now")
    with place.running() as daemon:
        (entry,) = daemon.logged("setting_renamed")
        assert "tunnel.total_tunnels" in entry["reason"]


def test_access_that_gives_nobody_anything_is_a_warning(place):
    """--check-config warns on stderr, the daemon in its log, at its start and when it reads the settings again."""
    place.set('[access.users]\nnobody = ["read"]')
    said = "access.users.nobody has no effect: "
    assert place.once("--check-config").stderr.startswith(f"warning: {said}")
    with place.running() as daemon:
        (entry,) = daemon.logged("access_without_effect")
        assert entry["reason"].startswith(said)
        place.set('[access.users]\nroot = ["read"]')
        daemon.until(lambda: len(daemon.logged("access_without_effect")) == 2, "the settings to be read again")
        assert daemon.logged("access_without_effect")[1]["reason"].startswith("access.users.root has no effect: ")


def test_environment_overrides_the_settings_file(place, acme):
    """LATTICE_PLUGIN_DIR, the name that plugin hosts of this family use."""
    elsewhere = place.home / "elsewhere"
    elsewhere.mkdir()
    place.own(elsewhere)
    place.env["LATTICE_PLUGIN_DIR"] = str(elsewhere)
    bundles.drop(elsewhere, "demo", author=acme)
    with place.running() as daemon:
        assert daemon.plugin() is not None


def test_unknown_option_exits_with_2(place):
    ran = place.once("--no-such-option")
    assert (ran.returncode, "Traceback" in ran.stderr) == (2, False)


def test_unusable_state_directory_is_one_line_on_stderr(place):
    """A file is in its place; no socket is left."""
    place.state.rmdir()
    place.state.write_text("in the way")
    ran = place.once()
    assert ran.returncode not in {0, 2}
    assert ran.stderr.count("\n") == 1, ran.stderr
    assert not place.socket.exists()


def test_damaged_ledger_exits_with_74(place):
    """One line says what is damaged; no request is served."""
    with place.running() as daemon:
        daemon.stop()
    ledger = place.state / "ledger.sqlite3"
    ledger.write_bytes(b"this is no database" * 1000)
    ran = place.once()
    assert ran.returncode == 74, ran
    assert (ran.stderr.count("\n"), "Traceback" in ran.stderr) == (1, False), ran.stderr


def test_socket_passed_by_service_manager_is_used(place):
    """LISTEN_FDS: a client that queued before the start is served, and the socket stays after the daemon."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place.socket))
        place.own(place.socket)
        listener.listen(16)
        with raw_http.connected(place.socket) as early:
            early.sendall(raw_http.GOOD)
            with place.running(listener=listener) as daemon:
                assert raw_http.receive(early).status in {200, 503}
                assert daemon.stop() == 0
        assert place.socket.is_socket()
        with place.running(listener=listener) as again:
            assert again.get("/api/health").status == 200


def test_announced_socket_that_is_not_open_is_told(place):
    """LISTEN_FDS with descriptor 3 closed, or a file, or with more than are open: an exit status and no traceback."""
    for count, opened in ((1, "<&-"), (1, "</dev/null"), (50, "<&-")):
        shell = f'export LISTEN_FDS={count} LISTEN_PID=$$; exec 3{opened}; exec "$@"'
        ran = place.ran(["/bin/sh", "-c", shell, "sh", *place.command()])
        assert ran.returncode == 1, ran
        assert ran.stderr.startswith("latticed: socket_unusable: expected a listening unix socket at"), ran.stderr
        assert "Traceback" not in ran.stderr


def test_watchdog_is_pinged_at_half_its_interval(place):
    """The test waits for two pings."""
    place.env["WATCHDOG_USEC"] = "500000"
    with place.running() as daemon:
        daemon.expect_notice("WATCHDOG=1")
        daemon.expect_notice("WATCHDOG=1")


def test_crash_writes_the_stacks_of_its_threads_to_stderr(place):
    """The journal then shows where it happened."""
    with place.running() as daemon:
        daemon.signal(signal.SIGSEGV)
        assert daemon.ended() == -signal.SIGSEGV
        said = daemon.log_file.with_suffix(".err").read_text()
        assert "Fatal Python error: Segmentation fault" in said
        assert "latticed/daemon.py" in said


def test_read_only_plugin_directory_suffices(place, acme):
    """The daemon never writes to it."""
    place.drop(author=acme)
    for path in (place.plugins / "demo", place.plugins):
        path.chmod(0o555)
    try:
        with place.running() as daemon:
            assert daemon.activate()["available"] is True
    finally:
        for path in (place.plugins, place.plugins / "demo"):
            path.chmod(0o755)


def test_missing_plugin_directory_is_watched_once_it_appears(place, acme):
    """Health reports it until then."""
    place.plugins.rmdir()
    with place.running() as daemon:
        health = daemon.get("/api/health")
        assert (health.status, health.json()["problems"][0]["code"]) == (503, "catalog_degraded")
        place.plugins.mkdir()
        place.own(place.plugins)
        place.drop(author=acme)
        daemon.until(daemon.plugin, "the bundle to be seen")
        daemon.until(lambda: daemon.get("/api/health").status == 200, "health to be good again")


@pytest.mark.root
def test_install_tamper_and_repair_work_as_root(acme):
    """Nothing depends on being unprivileged."""
    with daemons.placed(None) as place:
        place.trust_us(acme)
        bundle = place.drop(author=acme)
        with place.running() as daemon:
            daemon.activate()
            before = bundles.tamper(bundle.artifact_path)
            daemon.until_state("failed", code="digest_mismatch")
            bundle.artifact_path.write_bytes(before)
            daemon.until_state("armed")
            assert daemon.stop() == 0


def test_daemon_holds_only_its_own_descriptors(daemon):
    """They are those of log, ledger, socket and watches, and none of the test run's."""
    if daemon.place.user is not None and os.getuid() != 0:
        pytest.skip("looking into another user's process needs uid 0")
    targets = set()
    for name in os.listdir(f"/proc/{daemon.process.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):  # closed since
            targets.add(os.readlink(f"/proc/{daemon.process.pid}/fd/{name}"))
    assert not [target for target in targets if "pytest" in target], targets


def test_peer_that_disconnects_at_once_is_ignored(daemon):
    """Connections are reset before they are read."""
    for _ in range(50):
        with raw_http.connected(daemon.place.socket) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.send(b"GET /api/plugins HTTP/1.1\r\n")
    assert daemon.get("/api/health").status == 200
    assert daemon.log("request_failed") == []


def test_version_option_needs_no_settings():
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "latticed.daemon", "--version"], capture_output=True, text=True, check=True
    )
    assert ran.stdout.startswith("latticed ")


def test_sigint_stops_the_daemon_like_sigterm(daemon):
    daemon.signal(signal.SIGINT)
    assert daemon.ended() == 0
