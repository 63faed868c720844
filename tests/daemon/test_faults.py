"""Full, broken and read-only disks, no descriptors, a clock that jumps, under the real process.

On every write path: an error with a name, nothing acknowledged lost, nothing half done, recovery without a hand when it
is over; and stopping works throughout.
"""

from __future__ import annotations

import errno
import json
import os
import time

import pytest

from tests.house import bundles, daemons, faults, processes, raw_http

pytestmark = pytest.mark.daemon

DISKS = [errno.ENOSPC, errno.EIO, errno.EROFS]
YEAR_S = 365 * 86_400
RESCAN = "[watch]\nrescan_s = 0.5"
named = pytest.mark.parametrize("error", DISKS, ids=errno.errorcode.get)


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    return faults.compiled(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def sick(place, shim):
    with faults.attached(place, shim) as sick:
        yield sick


def _kv(daemon, key, value=None):
    if value is None:
        return daemon.get(f"/api/kv/default/{key}")
    return daemon.ask("PUT", f"/api/kv/default/{key}", value)


def _chain_holds(daemon):
    report = daemon.get("/api/audit/verify").json()
    assert report["ok"] is True, report


def _recorded(daemon, plugin_id, status):
    """Whether the decision is in the chain."""
    found = daemon.events(action="plugin.status", target=plugin_id, decision="allow")
    return bool(found) and found[-1]["detail"]["to"] == status


def _ledger(place):
    return place.state / "ledger.sqlite3"


def _refused(answer, *codes):
    """A problem document of one of `codes`: 503, for it may go better later."""
    assert (answer.status, answer.code in codes) == (503, True), answer
    assert answer.json()["detail"]


# The ledger.


@named
@pytest.mark.parametrize("halves", [False, True], ids=["whole", "halves"])
def test_a_write_that_the_ledger_cannot_take_is_refused_by_name(place, acme, sick, error, halves):
    """503 ledger_unavailable, the old value stays; the next write after the fault is taken, and the chain holds."""
    with place.running() as daemon:
        assert _kv(daemon, "key", b"old").status == 200
        with sick.failing(error, faults.WRITES, below=_ledger(place), halves=halves):
            for _ in range(3):
                _refused(_kv(daemon, "key", b"new"), "ledger_unavailable")
            _refused(daemon.ask("DELETE", "/api/kv/default/key"), "ledger_unavailable")
            assert _kv(daemon, "key").body == b"old"
            assert daemon.get("/api/plugins").status == 200
        assert _kv(daemon, "key").body == b"old"
        assert _kv(daemon, "key", b"new").status == 200
        daemon.kill()
    with place.running() as again:
        assert _kv(again, "key").body == b"new"
        _chain_holds(again)


@named
def test_deciding_waits_for_the_disk_and_stopping_does_not(place, acme, sick, error):
    """Activate, grants and restart: refused, nothing changed. Disable and tamper-stop: at once, recorded when it can."""
    for name in ("installed", "active", "tampered"):
        place.drop(name, author=acme, id=f"acme.{name}")
    with place.running() as daemon:
        daemon.activate("acme.active")
        daemon.activate("acme.tampered")
        assert daemon.set_status("installed", "acme.installed").status == 200
        before = daemon.plugin("acme.installed")
        with sick.failing(error, faults.WRITES, below=_ledger(place)):
            _refused(daemon.set_status("active", "acme.installed"), "ledger_unavailable")
            grants = "/api/plugins/by-id/acme.installed/grants"
            _refused(daemon.ask("PUT", grants, {"trim": ["kv:read"]}), "ledger_unavailable")
            _refused(daemon.post("/api/plugins/by-id/acme.active/restart"), "audit_unavailable", "ledger_unavailable")
            assert daemon.plugin("acme.installed") == before
            assert daemon.plugin("acme.active")["runtime"]["state"] == "armed"

            disabled = daemon.set_status("disabled", "acme.active")
            assert (disabled.status, disabled.json()["runtime"]["state"]) == (200, "stopped")
            bundles.tamper(place.plugins / "tampered" / "artifact")
            daemon.until_state("failed", "acme.tampered", code="digest_mismatch")
        daemon.until(lambda: _recorded(daemon, "acme.active", "disabled"), "the stop to be recorded")
        assert daemon.set_status("active", "acme.installed").status == 200
        daemon.until(lambda: daemon.get("/api/health").status == 200, "health to be good again")
        daemon.kill()
    with place.running() as again:
        states = {one["id"]: one["status"] for one in again.get("/api/plugins").json()}
        assert states == {"acme.installed": "active", "acme.active": "disabled", "acme.tampered": "active"}
        assert again.plugin("acme.active")["runtime"]["state"] == "stopped"
        assert again.plugin("acme.installed")["granted"] == ["kv:read", "log:write"]
        _chain_holds(again)


def test_what_comes_and_goes_on_disk_meanwhile_is_recorded_afterwards(place, acme, sick):
    """New bundles are shown although their records cannot be written, health says so, and all are written in the end."""
    with place.running() as daemon:
        with sick.failing(errno.EIO, faults.WRITES, below=_ledger(place)):
            for number in range(5):
                place.drop(f"p{number}", author=acme, id=f"acme.p{number}")
            daemon.until(lambda: len(daemon.get("/api/plugins").json()) == 5, "the bundles to be shown")
            health = daemon.until(lambda: _health_with(daemon, "ledger_unavailable"), "health to say so")
            assert health.status == 503
        daemon.until(lambda: daemon.get("/api/health").status == 200, "health to be good again")
        daemon.kill()
    for number in range(5):
        (place.plugins / f"p{number}").rename(place.home / f"gone{number}")
    with place.running() as again:
        assert {one["id"] for one in again.get("/api/plugins").json()} == {f"acme.p{number}" for number in range(5)}


def _health_with(daemon, code):
    answer = daemon.get("/api/health")
    return answer if code in [one["code"] for one in answer.json()["problems"]] else None


# The store.


@named
def test_a_pair_that_cannot_be_stored_is_not_installed(place, acme, sick, error):
    """503 store_unavailable and still `verified`, whichever step fails; no remains; then it is installed."""
    place.drop(author=acme)
    store = place.state / "store"
    with place.running() as daemon:
        daemon.until(daemon.plugin, "the bundle")
        for step in (faults.MKDIR, faults.OPEN_WRITE, faults.WRITE, faults.SYNC, faults.RENAME):
            with sick.failing(error, step, below=store):
                _refused(daemon.set_status("installed"), "store_unavailable")
                assert daemon.plugin()["status"] == "verified"
        assert [path.name for path in store.glob(".tmp-*")] == []
        assert daemon.activate()["status"] == "active"
        assert len(list(store.iterdir())) == 1
        _chain_holds(daemon)


def test_half_written_pairs_are_cleared_away(place, acme, sick):
    """When not even the remains can be removed, a later tidying does."""
    place.drop(author=acme)
    store = place.state / "store"
    with place.running() as daemon:
        daemon.until(daemon.plugin, "the bundle")
        with sick.failing(errno.EIO, faults.RENAME | faults.UNLINK, below=store):
            _refused(daemon.set_status("installed"), "store_unavailable")
        assert [path.name for path in store.iterdir()] != []
        daemon.activate()
        daemon.until(lambda: len(list(store.iterdir())) == 1, "the remains to be gone")


def test_a_stored_pair_that_cannot_be_read_is_tried_again(place, acme, sick):
    """Not armed while the disk errs, armed without a hand afterwards; the clock may jump meanwhile."""
    place.set("[supervision]\nbackoff_base_s = 0.2\nbackoff_ceiling_s = 0.5\nbreaker_failures = 1000")
    place.drop(author=acme)
    with place.running() as daemon:
        daemon.activate()
        with sick.failing(errno.EIO, faults.OPEN_READ, below=place.state / "store"):
            assert daemon.post("/api/plugins/by-id/acme.demo/restart").status == 200
            record = daemon.until_state("failed", code="unreadable")
            assert record["runtime"]["next_retry_at"]
            sick.shift_clock(-5 * YEAR_S)
        daemon.until_state("armed")


# What is mirrored outside the ledger.


@named
def test_floors_that_could_not_be_written_are_written_later(place, acme, sick, error):
    """A decision does not depend on the mirror; the mirror catches up by itself."""
    place.drop(author=acme, version="3.2.1")
    floors = place.state / "floors.json"
    with place.running() as daemon:
        with sick.failing(error, faults.WRITES, below=place.state / ".floors.json"):
            daemon.activate()
            daemon.until(lambda: daemon.log("floors_not_written"), "the failure to be logged")
        daemon.until(
            lambda: floors.exists() and json.loads(floors.read_bytes())["versions"] == {"acme.demo": "3.2.1"},
            "the floors to be written",
        )


def test_a_revocation_holds_although_it_cannot_be_recorded(place, acme, sick):
    """Stopped at once; remembered once the disk is well, even when the file forgets it again after that."""
    place.drop(author=acme, version="1.0.0")
    with place.running() as daemon:
        daemon.activate()
        with sick.failing(errno.ENOSPC, faults.WRITES, below=place.state):
            place.trust_us(acme, revoked={"keys": [], "digests": [], "plugins": ["acme.demo@*"]})
            daemon.until_state("failed", code="plugin_revoked")
        daemon.until(lambda: daemon.events(action="trust.revoked"), "the revocation to be recorded")
        place.trust_us(acme)
        daemon.until(lambda: len(daemon.log("trust_policy_loaded")) >= 2, "the new policy")
        assert daemon.plugin()["available"] is False
        daemon.kill()
    with place.running() as again:
        assert again.plugin()["available"] is False


# The operator's files.


def test_a_policy_that_cannot_be_read_for_a_while_is_read_later(place, acme, sick):
    """The old one stays in force, health says so; nobody needs to touch the file again."""
    other = bundles.author("other")
    place.drop("other", author=other, id="other.demo")
    with place.running() as daemon:
        with sick.failing(errno.EIO, faults.OPEN_READ, below=place.trust):
            place.trust_us(acme, other)
            daemon.until(lambda: _health_with(daemon, "policy_unreadable"), "health to say so")
        daemon.until(lambda: daemon.get("/api/health").status == 200, "the policy to be read")
        daemon.until(lambda: daemon.plugin("other.demo"), "the bundle that it trusts")


def test_settings_that_cannot_be_read_for_a_while_are_read_later(place, sick):
    """As with the policy."""
    with place.running() as daemon:
        with sick.failing(errno.EMFILE, faults.OPEN_READ, below=place.config):
            place.set('[log]\nlevel = "debug"')
            daemon.until(lambda: daemon.get("/api/health").status == 503, "health to say so")
        daemon.until(lambda: daemon.get("/api/health").status == 200, "the settings to be read")
        assert len(daemon.log("settings_refused")) == 1


# Bundles.


@pytest.mark.parametrize("error", [errno.EIO, errno.EMFILE, errno.ENFILE], ids=errno.errorcode.get)
def test_a_bundle_that_cannot_be_read_does_not_run(place, acme, sick, error):
    """Whoever changes it while nobody can look stops it; disable works; what is whole runs again by itself."""
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
        ("state/lock", faults.OPEN_WRITE, "state_unusable"),
        ("state/ledger.sqlite3", faults.WRITES, "state_unusable"),
        ("state/.host.key", faults.OPEN_WRITE, "state_unusable"),
        ("state/.host.key", faults.WRITE, "state_unusable"),
        ("state/.host.key", faults.SYNC, "state_unusable"),
        ("state/.host.key", faults.RENAME, "state_unusable"),
        ("state/bundles", faults.MKDIR, "state_unusable"),
        ("run/", faults.BIND, "socket_unusable"),
    ],
)
def test_a_first_start_that_fails_says_why_and_the_next_succeeds(place, acme, sick, path, calls, code):
    """One line with the problem's code, an exit status that is not 0, nothing in the way of the next start."""
    for error in DISKS[:2]:
        with sick.failing(error, calls, below=place.home / path):
            ran = place.once()
        assert ran.returncode not in {0, 2}, ran
        assert ran.stderr.startswith(f"latticed: {code}: "), ran.stderr
        assert ran.stderr.count("\n") == 1, ran.stderr
    assert not place.socket.exists()
    assert list(place.state.glob(".host.key*")) == []
    with place.running() as daemon:
        assert daemon.get("/api/health").status == 200
        _chain_holds(daemon)


def test_no_socket_to_be_had_is_said_in_one_line(place, sick):
    """EMFILE from socket(2), with a service manager to be notified and without."""
    with sick.failing(errno.EMFILE, faults.SOCKET, below="/"):
        ran = place.once()
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1), ran.stderr
    assert ran.stderr.startswith("latticed: socket_unusable: ")


@pytest.mark.parametrize("error", DISKS[:2], ids=errno.errorcode.get)
def test_a_start_over_a_sick_disk_loses_nothing(place, acme, sick, error):
    """The daemon that could not start left everything as it was."""
    place.drop(author=acme)
    with place.running() as daemon:
        daemon.activate()
        assert _kv(daemon, "key", b"value").status == 200
        daemon.kill()
    with sick.failing(error, faults.WRITES, below=_ledger(place)):
        ran = place.once()
    assert ran.returncode == 1, ran
    assert ran.stderr.startswith("latticed: state_unusable: "), ran.stderr
    assert ran.stderr.count("\n") == 1
    with place.running() as again:
        again.until_state("armed")
        assert _kv(again, "key").body == b"value"
        _chain_holds(again)


# The log.


def test_a_log_that_cannot_be_written_stops_nothing(place, acme, sick):
    """Requests are served, lines are whole again afterwards."""
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


def test_ending_with_a_log_that_is_full_is_still_a_good_end(place, sick):
    """Exit status 0."""
    with place.running() as daemon, sick.failing(errno.ENOSPC, faults.WRITE, below=daemon.log_file):
        assert daemon.stop() == 0


# Descriptors.


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE], ids=errno.errorcode.get)
def test_connections_that_cannot_be_accepted_wait(place, acme, sick, error):
    """They are served once there are descriptors; meanwhile neither the log nor the processor is busy with it."""
    place.drop(author=acme)
    with place.running() as daemon:
        daemon.activate()
        logged, used_s = len(daemon.log()), faults.cpu_s(daemon.process.pid)
        with raw_http.connected(place.socket) as early, raw_http.connected(place.socket) as late:
            assert raw_http.ask(place.socket, "GET", "/api/health").status == 200
            with sick.failing(error, faults.ACCEPT, below="/"):
                late.close()
                with raw_http.connected(place.socket) as waiting:
                    waiting.sendall(raw_http.GOOD)
                    bundles.tamper(place.plugins / "demo" / "artifact")
                    _until_stopped(daemon, early)
                    sick.mend()
                    assert raw_http.receive(waiting).status == 200
        assert len(daemon.log()) - logged < 20
        assert faults.cpu_s(daemon.process.pid) - used_s < 1.0


def _until_stopped(daemon, sock):
    """Tamper-stop takes effect, as seen over a connection from before."""

    def stopped():
        sock.sendall(raw_http.request("GET", "/api/plugins/by-id/acme.demo"))
        return raw_http.receive(sock).json()["plugin"]["runtime"]["state"] == "failed"

    processes.until(stopped, what="the tampered plugin to be stopped")


class _Limited(daemons.Place):
    """A place whose daemon may have few descriptors."""

    limit = 64

    def command(self, *arguments):
        return ["/usr/bin/prlimit", f"--nofile={self.limit}:{self.limit}", *super().command(*arguments)]


def test_clients_cannot_use_up_the_descriptors(place, acme):
    """With 64 in all and 300 clients: scans, decisions and requests go on; nothing runs out, nobody is stopped."""
    limited = _Limited(home=place.home, user=place.user)
    limited.set(RESCAN)
    limited.drop(author=acme)
    with limited.running() as daemon:
        daemon.activate()
        crowd = [raw_http.connected(limited.socket) for _ in range(300)]
        try:
            for sock in crowd[::2]:
                raw_http.send_anyway(sock, raw_http.GOOD[:-4])
            for number in range(20):
                limited.drop(f"new{number}", author=acme, id=f"acme.new{number}")
            daemon.until(lambda: len(daemon.get("/api/plugins").json()) == 21, "new bundles to be seen")
            assert _kv(daemon, "key", b"value").status == 200
            assert daemon.plugin()["runtime"]["state"] == "armed"
            bundles.tamper(limited.plugins / "demo" / "artifact")
            daemon.until_state("failed", code="digest_mismatch")
            assert len(os.listdir(f"/proc/{daemon.process.pid}/fd")) < limited.limit
        finally:
            for sock in crowd:
                sock.close()
        assert daemon.rejected() == {"demo": "digest_mismatch"}
        assert [one for one in daemon.log() if "out of system resource" in str(one)] == []
        assert daemon.stop() == 0


# The clock.


@pytest.mark.parametrize("years", [5, -5])
def test_a_clock_that_jumps_harms_nothing(place, acme, sick, years):
    """Audit order and chain hold, every event bears the clock's time, uptime and health do not care, nothing spins."""
    place.set(RESCAN)
    place.drop("one", author=acme, id="acme.one")
    with place.running() as daemon:
        daemon.activate("acme.one")
        used_s = faults.cpu_s(daemon.process.pid)
        started = time.monotonic()
        sick.shift_clock(years * YEAR_S)
        place.drop("two", author=acme, id="acme.two")
        record = daemon.activate("acme.two")
        year = time.gmtime(time.time() + years * YEAR_S).tm_year
        assert record["activated_at"][:4] == str(year)
        bundles.tamper(place.plugins / "one" / "artifact")
        daemon.until_state("failed", "acme.one", code="digest_mismatch")
        bundles.tamper(place.plugins / "one" / "artifact")
        daemon.until_state("armed", "acme.one")
        status = daemon.get("/api/status").json()
        assert 0 <= status["uptime_s"] < 3600
        assert status["state"] == "ok"
        sick.shift_clock(0)
        assert daemon.set_status("disabled", "acme.two").status == 200
        events = daemon.events()
        assert [one["seq"] for one in events] == list(range(1, len(events) + 1))
        assert {one["ts"][:4] for one in events} == {str(time.gmtime().tm_year), str(year)}
        _chain_holds(daemon)
        assert faults.cpu_s(daemon.process.pid) - used_s < max(1.0, 0.5 * (time.monotonic() - started))
        daemon.kill()
    with place.running() as again:
        again.until_state("armed", "acme.one")
        assert again.plugin("acme.two")["status"] == "disabled"
        _chain_holds(again)


# A disk that is really full.


@pytest.mark.root
def test_a_disk_that_is_really_full(place, acme):
    """Not one byte left below the state directory: decisions are refused by name, stopping works, then all is well."""
    for name in ("one", "two", "three"):
        place.drop(name, author=acme, id=f"acme.{name}")
    with faults.small_disk(place.state, kib=6 << 10, uid=place.uid), place.running() as daemon:
        daemon.activate("acme.one")
        daemon.activate("acme.two")
        assert _kv(daemon, "key", b"old").status == 200
        ballast = place.state / "ballast"
        faults.fill(ballast)
        big = b"x" * 60_000
        answers = [_kv(daemon, f"key{number}", big) for number in range(80)]
        _refused(answers[-1], "ledger_unavailable")
        faults.fill(place.state / "more")  # what a log, or a reserve, gave back
        _refused(daemon.set_status("installed", "acme.three"), "store_unavailable", "ledger_unavailable")
        assert daemon.set_status("disabled", "acme.one").json()["runtime"]["state"] == "stopped"
        bundles.tamper(place.plugins / "two" / "artifact")
        daemon.until_state("failed", "acme.two", code="digest_mismatch")
        assert _kv(daemon, "key").body == b"old"
        ballast.unlink()
        (place.state / "more").unlink()
        daemon.until(lambda: _recorded(daemon, "acme.one", "disabled"), "the stop to be recorded")
        daemon.until(lambda: daemon.set_status("installed", "acme.three").status in {200, 409}, "deciding to work")
        daemon.until(lambda: daemon.get("/api/health").status == 200, "health to be good again")
        daemon.kill()
        with place.running() as again:
            kept = [_kv(again, f"key{number}").status for number in range(80)]
            assert kept == [200 if answer.status == 200 else 404 for answer in answers]
            assert again.plugin("acme.one")["status"] == "disabled"
            assert again.plugin("acme.three")["status"] == "installed"
            _chain_holds(again)
