"""Thousands of bundles: first scan, restart, burst of changes, overflow of inotify. Ends as a fresh scan would.

The tests share one place and build on one another; each leaves a stopped daemon behind.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time

import pytest

from tests.house import bundles, daemons, flocks, long, processes, raw_http

pytestmark = [pytest.mark.daemon, pytest.mark.slow, pytest.mark.timeout(300)]

FEW = long.times(150, 500)
ACTIVE = 4 * FEW
BUNDLES = 20 * FEW
MEMORY_MB = long.times(120, 185)
SETTINGS = """
[watch]
rescan_s = 3600  # no timer helps
[runners]
system = "noop"  # so many processes are the machine's business
"""
PATIENCE_S = 120.0
PEAKS: dict[str, float] = {}


@pytest.fixture(scope="module")
def herd():
    """The place with its bundles, made once."""
    author = bundles.author("acme")
    with daemons.placed(settings=SETTINGS) as place:
        place.trust_us(author)
        flocks.put(place.plugins, author, range(BUNDLES))
        yield place, author


def _metric(daemon, name):
    text = daemon.get("/metrics").body.decode()
    return sum(int(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\d+)$", text, re.MULTILINE))


def _sees_what_is_there(daemon):
    """Wait until the list matches the directory; polled about once a second, because the answer is long."""
    found = flocks.fresh(daemon.place)
    deadline = time.monotonic() + PATIENCE_S
    while wrong := flocks.differences(daemon, found):
        assert time.monotonic() < deadline, wrong
        time.sleep(1.0)
    assert daemon.get("/api/audit/verify").json()["ok"] is True
    assert daemon.get("/api/health").status == 200


def _weigh(daemon, when):
    """Note the daemon's peak resident memory so far, in MB, for the test at the end."""
    PEAKS[when] = flocks.peak_mb(daemon.process.pid)
    print(f"{when}: at most {PEAKS[when]:.0f} MB, now {flocks.resident_mb(daemon.process.pid):.0f} MB")


def _armed(daemon):
    return sum(one["runtime"]["state"] == "armed" for one in daemon.get("/api/plugins").json())


def test_first_scan_finds_all_bundles(herd):
    """All are recorded at READY=1."""
    place, _ = herd
    with place.running() as daemon:
        assert _metric(daemon, "latticed_plugins") == BUNDLES
        _sees_what_is_there(daemon)
        _weigh(daemon, "first scan")
        assert daemon.stop() == 0


def test_restart_arms_every_active_plugin(herd):
    """Several clients activated them concurrently; the daemon is ended by kill -9."""
    place, _ = herd
    with place.running() as daemon:
        _decide_all(place, range(ACTIVE))
        assert _armed(daemon) == ACTIVE
        _weigh(daemon, "activation")
        daemon.kill()
    with place.running() as daemon:
        processes.until(lambda: _armed(daemon) == ACTIVE, what="all to be armed again", deadline_s=PATIENCE_S)
        _sees_what_is_there(daemon)
        _weigh(daemon, "restart")
        assert daemon.stop() == 0


def _decide_all(place, numbers):
    """Install and activate all of them, over four connections."""
    failed = []

    def client(mine):
        with raw_http.connected(place.socket) as sock:
            for number in mine:
                for status in ("installed", "active"):
                    body = b'{"id": "%s", "status": "%s"}' % (flocks.id_of(number).encode(), status.encode())
                    sock.sendall(raw_http.request("POST", "/api/plugins/lifecycle", body))
                    answer = raw_http.receive(sock)
                    if answer.status != 200:
                        failed.append(answer)

    threads = [threading.Thread(target=client, args=(numbers[part::4],)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_changes_of_many_bundles_at_once_take_effect(herd):
    """Bundles are tampered with, removed, replaced and added; only the plugins concerned are stopped."""
    place, author = herd
    with place.running() as daemon:
        processes.until(lambda: _armed(daemon) == ACTIVE, what="all to be armed", deadline_s=PATIENCE_S)
        flocks.tamper(place.plugins, range(FEW))
        flocks.take(place.plugins, range(FEW, 2 * FEW))
        flocks.put(place.plugins, author, range(2 * FEW, 3 * FEW), version="2.0.0")
        flocks.put(place.plugins, author, range(BUNDLES, BUNDLES + FEW))
        _sees_what_is_there(daemon)
        records = {one["id"]: one for one in daemon.get("/api/plugins").json()}
        for number in range(ACTIVE):
            record = records[flocks.id_of(number)]
            error = record["runtime"].get("last_error", {}).get("code")
            expected = "digest_mismatch" if number < FEW else "manifest_missing" if number < 2 * FEW else None
            assert (record["status"], error) == ("active", expected), record
            assert record["runtime"]["state"] == ("failed" if expected else "armed"), record
        _weigh(daemon, "burst")
        flocks.tamper(place.plugins, range(FEW))  # back as it was
        flocks.put(place.plugins, author, range(FEW, 2 * FEW))
        flocks.take(place.plugins, range(BUNDLES, BUNDLES + FEW))
        _sees_what_is_there(daemon)
        processes.until(lambda: _armed(daemon) == ACTIVE, what="all to be armed again", deadline_s=PATIENCE_S)
        assert daemon.stop() == 0


def test_dropped_kernel_events_are_counted_and_nothing_is_missed(herd):
    """More changes while the process is suspended than the kernel queues events for (max_queued_events, 16,384)."""
    place, author = herd
    with place.running() as daemon:
        assert _metric(daemon, "latticed_catalog_overflows_total") == 0
        daemon.signal(signal.SIGSTOP)
        flocks.put(place.plugins, author, range(ACTIVE, BUNDLES), version="3.0.0")
        flocks.tamper(place.plugins, range(ACTIVE))
        flocks.put(place.plugins, author, range(BUNDLES, BUNDLES + 2 * FEW))
        flocks.take(place.plugins, range(18 * FEW, 19 * FEW))
        for _ in range(3):  # the same event twice in a row would be one
            for path in place.plugins.glob("*/*"):
                os.utime(path)
        daemon.signal(signal.SIGCONT)
        processes.until(
            lambda: _metric(daemon, "latticed_catalog_overflows_total") > 0,
            what="the overflow to be counted",
            deadline_s=PATIENCE_S,
        )
        _sees_what_is_there(daemon)
        assert _armed(daemon) == 0
        flocks.put(place.plugins, author, range(10))  # it is watched as before
        processes.until(lambda: _armed(daemon) == 10, what="the mended ones to be armed", deadline_s=PATIENCE_S)
        _weigh(daemon, "flood")
        assert daemon.stop() == 0


@pytest.mark.parametrize("when", ["first scan", "activation", "restart", "burst", "flood"])
def test_peak_memory_with_thousands_of_bundles_is_bounded(when):
    """Peak resident memory in all tests above."""
    assert when in PEAKS, "the tests of this file build on one another: run all of them"
    assert PEAKS[when] < MEMORY_MB, PEAKS
