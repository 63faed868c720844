"""Real inotify: which events are reported, and the fallbacks where it fails."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from latticed.bundle.read import ReadLimits
from latticed.catalog import root as roots
from latticed.catalog import scanner
from latticed.catalog.directory import Directory
from latticed.catalog.dirty_names import DirtyNames
from latticed.catalog.scanner import Listing
from latticed.catalog.watcher import Watcher
from latticed.model.verdict import Refused
from latticed.settings import WatchSettings
from tests.house import bundles, catalogs, forks
from tests.house.catalogs import until

ACME = bundles.author()
BURST_FILES = 20_000


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    place = tmp_path / "plugins"
    place.mkdir()
    return place


def directory_of(seen: catalogs.Seen) -> Directory:
    (directory,) = seen.catalog._directories.values()
    return directory


async def test_only_events_of_manifest_and_artifact_are_reported(plugins: Path) -> None:
    """Editors' temporary files and trees within a bundle cause no judgement."""
    bundle = bundles.drop(plugins, "demo", author=ACME)
    catalogs.age(plugins)
    async with catalogs.watching(plugins, ACME) as seen:
        (bundle.path / "manifest.json~").write_text("x")
        (bundle.path / ".manifest.json.swp").write_text("x")
        (bundle.path / "deep" / "tree").mkdir(parents=True)
        (bundle.path / "deep" / "tree" / "artifact").write_text("x")
        bundle.artifact_path.touch()
        await until(lambda: seen.catalog.counters["judged"] > 1)
        assert seen.catalog.counters["judged"] == 2
        assert seen.told("plugins/demo") == [catalogs.plain(seen.now["plugins/demo"])]


async def test_reading_a_bundle_causes_no_inotify_event(plugins: Path) -> None:
    """Otherwise each judgement would cause another."""
    bundles.drop(plugins, "demo", author=ACME)
    async with catalogs.watching(plugins, ACME) as seen:
        events = seen.catalog.counters["events"]
        await seen.catalog.judge("demo")
        seen.catalog.rescan(rehash=True)
        await until(lambda: seen.catalog.counters["judged"] >= 2)
        assert seen.catalog.counters["events"] == events


@pytest.mark.slow
async def test_inotify_queue_overflow_is_counted_and_causes_a_scan(plugins: Path) -> None:
    """The reader of events stalls and the kernel drops some; the scan finds the changes."""
    noisy = bundles.drop(plugins, "noisy", author=ACME, id="acme.noisy")
    victim = bundles.drop(plugins, "victim", author=ACME, id="acme.victim")
    async with catalogs.watching(plugins, ACME) as seen:
        inotify = directory_of(seen)._watcher._inotify
        assert inotify is not None
        with inotify._lock:  # watchdog's thread needs it for each event
            for number in range(BURST_FILES):
                os.close(os.open(noisy.path / f"file{number}", os.O_WRONLY | os.O_CREAT))
            bundles.tamper(victim.artifact_path)
            bundles.drop(plugins, "late", author=ACME, id="acme.late")
        await until(lambda: seen.catalog.counters["overflows"] >= 1)
        await until(lambda: seen.code("plugins/victim") == "digest_mismatch")
        await until(lambda: seen.code("plugins/late") == "verified")
        # The watches work again: what happens now is heard by event, not by the timer.
        overflows = seen.catalog.counters["overflows"]
        bundles.tamper(plugins / "late" / "artifact")
        await until(lambda: seen.code("plugins/late") == "digest_mismatch")
        assert seen.catalog.counters["overflows"] == overflows


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_dead_observer_is_replaced(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes while watchdog's thread was dead are found."""
    bundle = bundles.drop(plugins, "demo", author=ACME)
    async with catalogs.watching(plugins, ACME) as seen:
        inotify = directory_of(seen)._watcher._inotify
        assert inotify is not None

        def die(*_: object) -> None:
            raise RuntimeError("as an exception in a handler would")

        with monkeypatch.context() as patches:
            patches.setattr(inotify, "handle_event", die)
            bundles.tamper(bundle.artifact_path)
            await until(lambda: not inotify.is_alive())
        await until(lambda: seen.code("plugins/demo") == "digest_mismatch")
        assert seen.catalog.counters["watcher_restarts"] >= 1
        assert directory_of(seen)._watcher.alive
        events = seen.catalog.counters["events"]
        bundles.drop(plugins, "demo", author=ACME)
        await until(lambda: seen.code("plugins/demo") == "verified")
        assert seen.catalog.counters["events"] > events


async def test_removed_bundle_is_no_longer_watched(plugins: Path, tmp_path: Path) -> None:
    """After many moves out and back there is one watch per bundle."""
    bundles.drop(plugins, "demo", author=ACME)
    async with catalogs.watching(plugins, ACME) as seen:
        for _ in range(20):
            os.rename(plugins / "demo", tmp_path / "away")
            os.rename(tmp_path / "away", plugins / "demo")
        bundles.tamper(plugins / "demo" / "artifact")
        await until(lambda: seen.code("plugins/demo") == "digest_mismatch")
        assert _kernel_watches() == 2


def test_bundle_that_could_not_be_opened_once_is_no_longer_counted_as_unwatched(plugins: Path) -> None:
    """No descriptor was left when each write to it was to be reported, which is not wanted any more."""
    found = bundles.drop(plugins, "demo", author=ACME).path.stat()
    watcher, inode = Watcher(plugins, dirty=DirtyNames(lambda: None)), (found.st_dev, found.st_ino)
    watcher.start()
    root = roots.open_root(plugins)
    try:
        watcher.arm_root(root)
        watcher.arm("demo", root, inode)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        watcher.active.add("demo")
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            watcher.arm("demo", root, inode)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert watcher.failure == "1 bundles are not watched (Too many open files)"
        watcher.active.discard("demo")
        watcher.arm("demo", root, inode)
        assert watcher.failure == ""
    finally:
        root.close()
        watcher.close()


async def test_event_loop_does_not_wait_for_a_watch_that_is_being_made(plugins: Path) -> None:
    """inotify_add_watch(2) may wait for a file system that does not answer, with the watcher's lock held."""
    bundles.drop(plugins, "demo", author=ACME)
    async with catalogs.watching(plugins, ACME) as seen:
        directory, held, over = directory_of(seen), threading.Event(), threading.Event()
        ended: list[bool] = []

        def hold() -> None:
            with directory._watcher._lock:
                held.set()
                ended.append(over.wait(5))

        holder = threading.Thread(target=hold)
        holder.start()
        try:
            await asyncio.to_thread(held.wait)
            directory._apply_listing(Listing(names=frozenset({"demo"}), unlisted=0))
            assert directory.problems() == ()
        finally:
            over.set()
            holder.join()
        assert ended == [True]


async def test_inotify_watches_take_no_descriptor_per_bundle(plugins: Path) -> None:
    """Hundreds of bundles take as many descriptors as none."""
    before = len(os.listdir("/proc/self/fd"))
    async with catalogs.watching(plugins, ACME):
        empty = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        bundles.drop(plugins, f"p{number}", author=ACME, id=f"acme.p{number}")
    async with catalogs.watching(plugins, ACME) as seen:
        assert len(seen.now) == 300
        await until(lambda: len(os.listdir("/proc/self/fd")) == empty)
    await until(lambda: len(os.listdir("/proc/self/fd")) == before)


async def test_children_do_not_inherit_descriptors_of_the_catalog(plugins: Path) -> None:
    """No program started while the catalog is open finds its descriptors."""
    async with catalogs.watching(plugins, ACME):
        listed = subprocess.run(
            ["ls", "-l", "/proc/self/fd"], capture_output=True, text=True, check=True, close_fds=False
        )
    assert "inotify" not in listed.stdout
    assert "mountinfo" not in listed.stdout


def test_bundles_beyond_the_watch_limit_are_scanned(tmp_path: Path) -> None:
    """The scans are frequent, and health says why."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    for number in range(12):
        bundles.drop(plugins, f"p{number:02}", author=ACME, id=f"acme.p{number}")

    async def story() -> None:
        async with catalogs.watching(plugins, ACME) as seen:
            assert [seen.code(name) for name in seen.now] == ["verified"] * 12
            (problem,) = seen.catalog.problems()
            assert "bundles are not watched (inotify watch limit reached)" in problem
            for number in range(12):
                bundles.tamper(plugins / f"p{number:02}" / "artifact")
            await until(lambda: all(seen.code(name) == "digest_mismatch" for name in seen.now))

    forks.run_in_user_namespace({"max_inotify_watches": 8}, story)


def test_catalog_works_by_timer_without_inotify(tmp_path: Path) -> None:
    """No inotify instance can be had here; health says so."""
    plugins = tmp_path / "plugins"
    plugins.mkdir()

    async def story() -> None:
        async with catalogs.watching(plugins, ACME) as seen:
            assert "no inotify instance" in seen.catalog.problems()[0]
            bundles.drop(plugins, "demo", author=ACME)
            await until(lambda: seen.code("plugins/demo") == "verified")

    forks.run_in_user_namespace({"max_inotify_instances": 0}, story)


@forks.as_root
def test_unreadable_bundle_recovers_after_chmod(tmp_path: Path) -> None:
    """The test runs as an unprivileged user. Another bundle verifies meanwhile; the hint says what to look at."""
    plugins = _foreign_directory(tmp_path)

    async def story() -> None:
        bundle = bundles.drop(plugins, "demo", author=ACME)
        bundles.drop(plugins, "other", author=ACME, id="acme.other")
        async with catalogs.watching(plugins, ACME) as seen:
            bundle.path.chmod(0)
            await until(lambda: seen.code("plugins/demo") == "unreadable")
            refused = seen.now["plugins/demo"]
            assert isinstance(refused, Refused)
            assert refused.reason == "expected to read the bundle directory, found: Permission denied"
            assert refused.hint.startswith("check permissions")
            bundle.path.chmod(0o755)
            await until(lambda: seen.code("plugins/demo") == "verified")
            assert seen.told("plugins/other") == [catalogs.plain(seen.now["plugins/other"])]
            bundle.artifact_path.chmod(0)
            await until(lambda: seen.code("plugins/demo") == "unreadable")
            bundle.artifact_path.chmod(0o644)
            await until(lambda: seen.code("plugins/demo") == "verified")
            assert seen.catalog.problems() == ()

    forks.run_as(forks.NOBODY, story)


@forks.as_root
def test_unreadable_directory_recovers_after_chmod(tmp_path: Path) -> None:
    """The test runs as an unprivileged user. Meanwhile its bundles are `unreadable`, and `problems` names the
    directory.
    """
    plugins = _foreign_directory(tmp_path)

    async def story() -> None:
        bundles.drop(plugins, "demo", author=ACME)
        for mode in (0, 0o300, 0o600):
            async with catalogs.watching(plugins, ACME) as seen:
                plugins.chmod(mode)
                await until(lambda: seen.code("plugins/demo") == "unreadable", oct(mode))
                assert str(plugins) in seen.catalog.problems()[0]
                plugins.chmod(0o755)
                await until(lambda: seen.code("plugins/demo") == "verified")
                assert seen.catalog.problems() == ()

    forks.run_as(forks.NOBODY, story)


@forks.as_root
def test_directory_unreadable_at_start_is_followed_once_readable(tmp_path: Path) -> None:
    """`problems` names it until then."""
    plugins = _foreign_directory(tmp_path)
    bundles.drop(plugins, "demo", author=ACME)
    subprocess.run(["chown", "-R", str(forks.NOBODY), plugins], check=True)

    async def story() -> None:
        plugins.chmod(0)
        async with catalogs.watching(plugins, ACME) as seen:
            assert seen.now == {}
            assert len(seen.catalog.problems()) == 1
            plugins.chmod(0o755)
            await until(lambda: seen.code("plugins/demo") == "verified")

    forks.run_as(forks.NOBODY, story)


@forks.as_root
async def test_bundle_files_of_foreign_owners_are_refused(plugins: Path) -> None:
    """Those of the plugin directory's owner are accepted. A chown alone is noticed."""
    bundle = bundles.drop(plugins, "demo", author=ACME)
    async with catalogs.watching(plugins, ACME) as seen:
        os.chown(bundle.artifact_path, forks.NOBODY, -1)
        await until(lambda: seen.code("plugins/demo") == "foreign_owner")
        catalogs.age(plugins)
        scans = seen.catalog.counters["scans"]
        seen.catalog.rescan(rehash=True)
        await until(lambda: seen.catalog.counters["scans"] > scans)
        os.chown(plugins, forks.NOBODY, -1)
        await until(lambda: seen.code("plugins/demo") == "verified")
        os.chown(plugins, 0, -1)
        await until(lambda: seen.code("plugins/demo") == "foreign_owner")


async def test_endless_writer_does_not_delay_other_bundles(plugins: Path) -> None:
    """The rewritten bundle is judged now and then, its neighbour at once."""
    busy = bundles.drop(plugins, "busy", author=ACME, id="acme.busy")
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            busy.artifact_path.write_bytes(busy.artifact)
            stop.wait(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        async with catalogs.watching(plugins, ACME, watch=WatchSettings(quiet_s=0.05, max_wait_s=0.2)) as seen:
            judged = seen.catalog.counters["judged"]
            other = bundles.drop(plugins, "other", author=ACME, id="acme.other")
            await until(lambda: seen.code("plugins/other") == "verified")
            bundles.tamper(other.artifact_path)
            await until(lambda: seen.code("plugins/other") == "digest_mismatch")
            await until(lambda: seen.catalog.counters["judged"] >= judged + 4)
            stop.set()
            await until(lambda: seen.code("plugins/busy") == "verified")
    finally:
        stop.set()
        writer.join()


def _kernel_watches() -> int:
    """Number of inotify watches of this process, as the kernel counts them."""
    total = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:inotify":
                total += Path(f"/proc/self/fdinfo/{name}").read_text().count("inotify wd:")
        except FileNotFoundError:
            continue
    return total


def _foreign_directory(tmp_path: Path) -> Path:
    """A plugin directory that belongs to NOBODY, who can reach it."""
    for place in (tmp_path, *tmp_path.parents[:2]):
        place.chmod(0o755)
    plugins = tmp_path / "plugins"
    plugins.mkdir()
    os.chown(plugins, forks.NOBODY, forks.NOBODY)
    return plugins


async def test_listing_that_ends_too_late_ends_no_watch_of_what_came_since(
    plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given up, and knows nothing of what has come."""
    bundles.drop(plugins, "demo", author=ACME)
    catalogs.age(plugins)
    hang, go, ended = threading.Event(), threading.Event(), threading.Event()

    def looked_at(entry: os.DirEntry[str], real: Any = scanner._may_be_directory) -> bool:
        if hang.is_set():
            go.wait(30)
        return bool(real(entry))

    def listed(*given: Any, real: Any = scanner.list_names, **named: Any) -> Listing:
        late = hang.is_set()
        found: Listing = real(*given, **named)
        if late:
            ended.set()
        return found

    monkeypatch.setattr(scanner, "_may_be_directory", looked_at)
    monkeypatch.setattr(scanner, "list_names", listed)
    watch = WatchSettings(quiet_s=0.05, max_wait_s=0.5, rescan_s=86_400.0)
    async with catalogs.watching(plugins, ACME, watch=watch, limits=ReadLimits(deadline_s=0.2)) as seen:
        directory = directory_of(seen)
        hang.set()
        seen.catalog.rescan()
        await until(lambda: directory._problem)
        hang.clear()
        new = bundles.drop(plugins, "new", author=ACME, id="acme.new")
        await until(lambda: seen.code("plugins/new") == "verified")
        go.set()
        assert await asyncio.to_thread(ended.wait, 30)
        bundles.tamper(new.artifact_path)
        await until(lambda: seen.code("plugins/new") == "digest_mismatch")
