"""The real process without free descriptors, and with a wall clock that jumps."""

from __future__ import annotations

import errno
import os
import time

import pytest

from tests.house import bundles, daemons, faults, long, processes, raw_http

pytestmark = pytest.mark.daemon


YEAR_S = 365 * 86_400
RESCAN = "[watch]\nrescan_s = 0.5"


# Descriptors.


@pytest.mark.parametrize("error", [errno.EMFILE, *long.only(errno.ENFILE)], ids=errno.errorcode.get)
def test_connections_wait_while_no_descriptor_is_free(place, acme, sick, error):
    """They are served once there are descriptors; meanwhile the daemon neither floods the log nor is busy."""
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
    """Tampering stops the plugin, as seen over a connection from before."""

    def stopped():
        sock.sendall(raw_http.request("GET", "/api/plugins/by-id/acme.demo"))
        return raw_http.receive(sock).json()["plugin"]["runtime"]["state"] == "failed"

    processes.until(stopped, what="the tampered plugin to be stopped")


class _Limited(daemons.Place):
    """A place whose daemon has a low RLIMIT_NOFILE."""

    limit = 64

    def command(self, *arguments):
        return ["/usr/bin/prlimit", f"--nofile={self.limit}:{self.limit}", *super().command(*arguments)]


def test_clients_cannot_exhaust_the_descriptors(place, acme):
    """The limit is 64, and 300 clients connect: scans, decisions and requests continue, and no plugin is stopped."""
    limited = _Limited(home=place.home, user=place.user)
    limited.set(f'{RESCAN}\n[runners]\nsystem = "noop"')  # a child alone takes hundreds of numbers
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
            assert faults.kv(daemon, "key", b"value").status == 200
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


@pytest.mark.parametrize("years", [-5, *long.only(5)])
def test_wall_clock_jumps_keep_audit_order_and_uptime(place, acme, sick, years):
    """The chain verifies, every event has the clock's time, health is unchanged, and no timer runs in a loop."""
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
        faults.chain_holds(daemon)
        assert faults.cpu_s(daemon.process.pid) - used_s < max(1.0, 0.5 * (time.monotonic() - started))
        daemon.kill()
    with place.running() as again:
        again.until_state("armed", "acme.one")
        assert again.plugin("acme.two")["status"] == "disabled"
        faults.chain_holds(again)
