"""Removing or replacing the daemon's socket, directories and groups while it runs."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat

import pytest

from tests.house import daemons, processes, raw_http

pytestmark = pytest.mark.daemon


def answers(daemon):
    def asked():
        try:
            return daemon.get("/api/health").status == 200
        except OSError:
            return False

    daemon.until(asked, "an answer on the control socket")


def test_removed_control_socket_is_bound_again(daemon):
    """It is removed, replaced by another socket, or its whole directory is removed; open connections continue."""
    place = daemon.place
    with raw_http.connected(place.socket) as early:
        place.socket.unlink()
        answers(daemon)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
            stranger.bind(str(place.run / "other"))
            (place.run / "other").rename(place.socket)
            daemon.until(lambda: len(daemon.log("control_socket_bound_again")) == 2, "the socket to be ours again")
            answers(daemon)
        if os.access(place.home, os.W_OK):
            shutil.rmtree(place.run)
            answers(daemon)
        early.sendall(raw_http.GOOD)
        assert raw_http.receive(early).status == 200
    assert daemon.stop() == 0
    assert not place.socket.exists()


def test_foreign_file_at_the_sockets_path_is_left_in_place(daemon):
    """Health reports it over open connections; once it is removed, the socket is bound again."""
    place = daemon.place
    place.socket.unlink()
    place.socket.mkdir()
    daemon.until(lambda: daemon.log("control_socket_lost"), "the log to say so")
    assert daemon.logged("control_socket_lost")[0]["code"] == "socket_unusable"
    place.socket.rmdir()
    answers(daemon)


def test_second_daemon_with_the_same_runtime_directory_exits_with_75(daemon):
    """It has another state directory; the first daemon's files are untouched."""
    place = daemon.place
    other = place.home / "other-state"
    place.env["LATTICED_STATE_DIR"] = str(other)
    before = {path: path.lstat().st_ino for path in place.run.iterdir()}
    ran = place.once()
    assert (ran.returncode, ran.stderr.count("\n")) == (75, 1), ran
    assert ran.stderr.startswith(f"latticed: runtime_in_use: another latticed (pid {daemon.process.pid}) holds ")
    assert {path: path.lstat().st_ino for path in place.run.iterdir()} == before
    assert daemon.get("/api/health").status == 200


def test_lock_by_another_user_does_not_prevent_a_start(place):
    """Any user may open the runtime directory, and lock it; what the daemon locks, only its user can open."""
    fd = os.open(place.run, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with place.running() as daemon:
            assert stat.S_IMODE((place.run / ".lock").stat().st_mode) == 0o600
            answers(daemon)
        assert not (place.run / ".lock").exists()
    finally:
        os.close(fd)


def health(daemon):
    """The codes of the problems in health."""
    return [one["code"] for one in daemon.get("/api/health").json()["problems"]]


def moved_away(path):
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    return lambda: aside.rename(path)


def replaced(path):
    """Replace it by a copy: the same bytes in another file. Returns a function that undoes this."""
    back = moved_away(path)
    aside = path.with_name(f"{path.name}.aside")
    if aside.is_dir():
        shutil.copytree(aside, path)
    else:
        shutil.copy2(aside, path)
    os.chown(path, aside.stat().st_uid, aside.stat().st_gid)

    def put_back():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        back()

    return put_back


def overwritten(path):
    """Overwrite it in place: the same file with other bytes. Returns a function that undoes this."""
    before, stamp = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(bytes(len(before)))

    def put_back():
        path.write_bytes(before)
        os.utime(path, ns=(stamp, stamp))

    return put_back


STATE = [
    (moved_away, "", "state_replaced"),
    (replaced, "", "state_replaced"),
    (moved_away, "ledger.sqlite3", "ledger_replaced"),
    (replaced, "ledger.sqlite3", "ledger_replaced"),
    (moved_away, "ledger.sqlite3-wal", "ledger_replaced"),
    (moved_away, "host.key", "host_key_replaced"),
    (replaced, "host.key", "host_key_replaced"),
    (overwritten, "host.key", "host_key_replaced"),
    (moved_away, "lock", "state_replaced"),
]


def test_acknowledged_decisions_survive_a_replaced_state(daemon):
    """Meanwhile decisions are refused, and health has a code; once the files are back, they are accepted again."""
    place, acknowledged = daemon.place, set()

    def write(key):
        answer = daemon.ask("PUT", f"/api/kv/default/{key}", key.encode())
        if answer.status < 300:
            acknowledged.add(key)
        return answer

    def written(key):
        return write(key).status < 300

    assert written("first")
    said = set()
    for number, (spoil, name, code) in enumerate(STATE):
        put_back = spoil(place.state / name if name else place.state)
        answer = write(f"lost-{number}")
        assert (answer.status, answer.json()["code"]) == (503, "ledger_unavailable"), (spoil, name)
        if code not in said:
            daemon.until(lambda code=code: code in health(daemon), f"health to say {code}")
            said.add(code)
        put_back()
        daemon.until(lambda key=f"kept-{number}": written(key), f"writes to go on after {name} is back")
    daemon.until(lambda: not said & set(health(daemon)), "health to be good again")
    daemon.kill()
    with place.running() as again:
        kept = set(again.get("/api/kv/default").json()["keys"])
    assert kept == acknowledged


def test_disable_that_cannot_be_recorded_says_so(daemon, acme):
    """The plugin is stopped all the same; once the state is back it is on record, and a start later, too."""
    place = daemon.place
    place.drop(author=acme)
    daemon.activate()
    put_back = moved_away(place.state)
    daemon.until(lambda: "state_replaced" in health(daemon), "health to say that the state is gone")
    grants = "/api/plugins/by-id/acme.demo/grants"
    trimmed = daemon.ask("PUT", grants, {"trim": ["kv:read"]}).json()
    assert (trimmed["masked"], trimmed.get("unrecorded")) == (["kv:read"], True)
    ran = daemon.ctl("caps", "trim", "acme.demo", "log:write")
    assert (ran.returncode, "error: this cannot be written down yet" in ran.stderr) == (1, True), ran
    answer = daemon.set_status("disabled").json()
    assert (answer["status"], answer["runtime"]["state"], answer.get("unrecorded")) == ("disabled", "stopped", True)
    ran = daemon.ctl("disable", "acme.demo")
    assert ran.returncode == 1
    assert "error: this cannot be written down yet" in ran.stderr
    put_back()
    daemon.until(lambda: "unrecorded" not in daemon.plugin(), "the decision to be on record")
    assert "unrecorded" not in daemon.get(grants).json()
    assert daemon.ctl("disable", "acme.demo").returncode == 0
    daemon.kill()
    with place.running() as again:
        assert again.plugin()["status"] == "disabled"


@pytest.mark.root
def test_reload_refuses_an_unusable_socket_group_and_applies_another():
    """An unknown group, or one that the daemon may not give the socket to, keeps the old settings."""
    user = processes.User(uid=processes.STRANGER.uid, gid=processes.STRANGER.gid, groups=(65_499,))
    with daemons.placed(user) as place, place.running() as daemon:

        def problems():
            return [(one["code"], one["detail"]) for one in daemon.get("/api/health").json()["problems"]]

        for group, code in (("no-such-group-here", "settings_invalid"), ("65498", "socket_unusable")):
            place.set(f'[access]\nsocket_group = "{group}"\n[host_calls]\nper_second = 7')
            daemon.until(lambda code=code: code in dict(problems()), f"{group} to be refused")
            assert place.once("--check-config").returncode == (78 if code == "settings_invalid" else 0)
            assert place.socket.stat().st_gid == place.user.gid
        assert daemon.log("settings_loaded") == []
        place.set('[access]\nsocket_group = "65499"')
        daemon.until(lambda: place.socket.stat().st_gid == 65_499, "the socket to have its group")
        daemon.until(lambda: problems() == [] or problems()[0][0] == "policy_missing", "health to be good again")
        place.set()
        daemon.until(lambda: place.socket.stat().st_gid == place.user.gid, "the socket to be our own group's")


def test_passed_socket_of_another_group_than_the_settings_is_logged(place):
    """The service manager's socket keeps its group."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place.socket))
        place.own(place.socket)
        listener.listen(16)
        with place.running(listener=listener) as daemon:
            assert daemon.log("socket_group_differs") == []
            place.set('[access]\nsocket_group = "65499"')
            daemon.until(lambda: daemon.log("socket_group_differs"), "the log to say so")
            told = daemon.log("socket_group_differs")[0]
            assert (told["expected"], told["found"]) == (65_499, place.socket.stat().st_gid)
