"""kill -9 or a power cut while an earlier version's ledger is migrated: the next start goes on, nothing is lost."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from latticed.ledger import migrations
from tests.house import bundles, daemons, faults, long, packages, processes

pytestmark = [pytest.mark.daemon, pytest.mark.timeout(900)]

POINTS = long.times(3, 40)
"""At how many of the writes of a migration the daemon ends."""
DISK_BYTES = 64 << 20


@pytest.fixture
def older(acme: bundles.Author) -> Iterator[daemons.Place]:
    """A place whose state was written by the daemon of an earlier commit, with an active plugin and a value."""
    if not packages.earlier_known():
        pytest.skip("this checkout has no history to build an earlier package of")
    with daemons.placed() as place:
        code = place.home / "earlier"
        code.mkdir()
        packages.earlier_source(code)
        place.trust_us(acme)
        place.drop(author=acme)
        place.env["PYTHONPATH"], place.builtins = str(code), ()
        with place.running() as daemon:
            daemon.activate()
            assert daemon.ask("PUT", "/api/kv/default/motd", b"hello").status == 200
            assert daemon.stop() == 0
        del place.env["PYTHONPATH"]
        assert schema(place) == packages.EARLIER_SCHEMA
        shutil.copytree(place.state, place.home / "before")
        yield place


def schema(place: daemons.Place) -> int:
    """How many migrations the ledger of a daemon that has ended has taken, by a copy: SQLite would write beside it."""
    copy = place.home / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(place.state, copy, ignore=shutil.ignore_patterns("lost+found"))
    connection = apsw.Connection(str(copy / "ledger.sqlite3"))
    try:
        return migrations.version_of(connection)
    finally:
        connection.close()


def restore(place: daemons.Place) -> None:
    """The state as the earlier daemon left it."""
    for path in place.state.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    shutil.copytree(place.home / "before", place.state, dirs_exist_ok=True)
    for path in (place.state, *place.state.rglob("*")):
        place.own(path)


def points(place: daemons.Place, sick: faults.Faults) -> list[int]:
    """Numbers of writes to the ledger before the daemon is ready, from the first one on. Migrates it."""
    with sick.halting(None, below=place.state / "ledger.sqlite3"), place.running() as daemon:
        whole = sick.hits
        daemon.kill()
    return sorted({1 + whole * 9 * turn // (10 * POINTS) for turn in range(POINTS)})


def goes_on(place: daemons.Place) -> None:
    with place.running() as daemon:
        assert daemon.get("/api/kv/default/motd").body == b"hello"
        assert daemon.until_state("armed")["status"] == "active"
        report = daemon.get("/api/audit/verify?whole=1").json()
        assert report["ok"] is True, report
        assert daemon.stop() == 0
    assert schema(place) == len(migrations.MIGRATIONS)


def test_daemon_killed_at_any_write_of_a_migration_goes_on_at_the_next_start(older, shim):
    """Each step and its number are one transaction: the ledger is of some version in between, and of a sound one."""
    reached = set()
    with faults.attached(older, shim) as sick:
        for point in points(older, sick):
            restore(older)
            with sick.halting(point, below=older.state / "ledger.sqlite3"), older.running(ready=False) as daemon:
                assert daemon.ended() == -signal.SIGKILL, daemon.complaints()
            reached.add(schema(older))
            goes_on(older)
    assert min(reached) == packages.EARLIER_SCHEMA
    assert len(reached) > 1, "no kill fell between two steps"


def _mounted(image: Path, place: daemons.Place) -> None:
    ran = subprocess.run(["mount", "-o", "loop", image, place.state], capture_output=True, text=True, check=False)
    if ran.returncode:
        pytest.skip(f"no disk of its own can be made here: {ran.stderr.strip()[:200]}")


@pytest.mark.root
def test_power_cut_at_any_write_of_a_migration_is_one(older, shim):
    """The disk's image is copied while the daemon stands still in the middle of it: what it has not synced is lost."""
    if os.getuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip("no disk of its own can be made here: that needs uid 0 and mkfs.ext4")
    with faults.attached(older, shim) as sick:
        for point in points(older, sick):
            # Others' mount namespaces may keep a disk of before mounted, and mount(8) would take its loop device again.
            image, cut = older.home.parent / f"disk-{point}", older.home.parent / f"cut-{point}"
            image.write_bytes(b"")
            os.truncate(image, DISK_BYTES)
            subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
            _mounted(image, older)
            try:
                older.own(older.state).chmod(0o700)
                restore(older)
                os.sync()
                by = {"by": signal.SIGSTOP, "below": older.state / "ledger.sqlite3"}
                with sick.halting(point, **by), older.running(ready=False) as daemon:
                    processes.until(lambda: stopped(daemon.process.pid), what=f"write {point}")
                    processes.until(functools.partial(copied, image, cut), what=f"a copy of one moment at {point}")
                    daemon.kill()
            finally:
                subprocess.run(["umount", older.state], check=True)
            _mounted(cut, older)
            try:
                goes_on(older)
            finally:
                subprocess.run(["umount", older.state], check=True)
            image.unlink()
            cut.unlink()


def copied(image: Path, cut: Path) -> bool:
    """Copy a disk to which the kernel may be writing back; whether it is of one moment, as after a power cut: nothing
    may have changed meanwhile.
    """
    subprocess.run(["cp", "--sparse=always", image, cut], check=True)
    return subprocess.run(["cmp", "--silent", image, cut], check=False).returncode == 0


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
