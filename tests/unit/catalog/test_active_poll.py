"""Changes of active bundles that inotify does not report are seen within 1.5 s; a stat that hangs delays no other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from pathlib import Path

import pytest

from latticed.catalog import active_poll, scanner
from latticed.settings import WatchSettings
from tests.house import bundles, catalogs
from tests.house.catalogs import until

ACME = bundles.author()
AS_SET = WatchSettings()
"""The settings that an operator has who changed nothing."""
SEEN_S = 1.5
SLACK_S = 8.0
"""What a machine under load may add; without the look it takes 40 s or more."""


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    place = tmp_path / "plugins"
    place.mkdir()
    return place


@contextlib.asynccontextmanager
async def activated(plugins: Path, *names: str, active: bool = True, **options):
    """Bundles of these names, set active and polled once."""
    made = {name: bundles.drop(plugins, name, author=ACME, id=f"acme.{name}") for name in names}
    catalogs.age(plugins)
    async with catalogs.watching(plugins, ACME, watch=AS_SET, **options) as seen:
        (directory,) = seen.catalog._directories.values()
        for name in names if active else ():
            seen.catalog.set_active(f"plugins/{name}", active=True)
        await until(lambda: len(directory.active_poll._every_write) == (len(names) if active else 0), "a first poll")
        yield seen, made


async def seen_within(seen, name: str, code: str, *, since_s: float) -> None:
    await until(lambda: seen.code(f"plugins/{name}") == code, f"{name} to be {code}")
    assert time.monotonic() - since_s < SEEN_S + SLACK_S


def through_a_hard_link(artifact: Path, beside: Path) -> None:
    os.link(artifact, beside)
    bundles.tamper(beside)


def truncated(artifact: Path, beside: Path) -> None:
    os.link(artifact, beside)
    os.truncate(beside, 3)


@pytest.mark.parametrize("how", [through_a_hard_link, truncated])
async def test_write_that_inotify_does_not_report_is_seen(plugins: Path, tmp_path: Path, how) -> None:
    """The write that undoes it is seen, too."""
    async with activated(plugins, "demo") as (seen, made):
        began_s = time.monotonic()
        how(made["demo"].artifact_path, tmp_path / "beside")
        await seen_within(seen, "demo", "digest_mismatch", since_s=began_s)
        began_s = time.monotonic()
        (tmp_path / "beside").write_bytes(bundles.ARTIFACT)
        await seen_within(seen, "demo", "verified", since_s=began_s)


@pytest.mark.parametrize("pause_s", [None, 0.02], ids=["once", "all the time"])
async def test_change_by_writer_that_never_closes_the_file_is_seen(plugins: Path, pause_s: float | None) -> None:
    """One such writer wrote once, another writes so often that the name never settles."""
    async with activated(plugins, "demo") as (seen, made):
        began_s = time.monotonic()
        over = asyncio.Event()

        async def write() -> None:
            with made["demo"].artifact_path.open("r+b", buffering=0) as artifact:
                while not over.is_set():
                    artifact.seek(0)
                    artifact.write(os.urandom(8))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(pause_s):
                            await over.wait()

        writing = asyncio.ensure_future(write())
        try:
            await until(lambda: seen.code("plugins/demo") != "verified", "the writing to be seen")
            assert time.monotonic() - began_s < SEEN_S + SLACK_S
        finally:
            over.set()
            await writing
        await until(lambda: seen.code("plugins/demo") == "digest_mismatch", "the end of it")


async def test_slow_copy_over_active_bundle_is_judged_again_at_its_end(plugins: Path) -> None:
    """During the copy it is a mismatch; after the last close its final verdict."""
    async with activated(plugins, "demo") as (seen, made):
        with made["demo"].artifact_path.open("wb", buffering=0) as artifact:
            artifact.write(bundles.ARTIFACT[:5])
            await until(lambda: seen.code("plugins/demo") == "digest_mismatch", "the copy in progress")
            artifact.write(bundles.ARTIFACT[5:])
        await until(lambda: seen.code("plugins/demo") == "verified", "the whole copy")


async def test_write_to_inactive_bundle_is_noticed_on_close(plugins: Path) -> None:
    """Single writes to it cause no events."""
    async with activated(plugins, "demo", active=False) as (seen, made):
        events = seen.catalog.counters["events"]
        with made["demo"].artifact_path.open("r+b", buffering=0) as artifact:
            for _ in range(100):
                artifact.write(b"x")
            await seen.catalog.judge("demo")
            assert seen.catalog.counters["events"] == events
        await until(lambda: seen.code("plugins/demo") == "digest_mismatch", "the close")


async def test_change_within_timestamp_granularity_is_found(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle judged just after a change is judged once more, but not for ever."""
    monkeypatch.setattr(scanner, "_RACY_NS", 1 << 62)
    async with activated(plugins, "demo") as (seen, _):
        await until(lambda: seen.catalog.counters["judged"] == 2, "a second judgement")
        (directory,) = seen.catalog._directories.values()
        await directory.active_poll.check_all()
        await directory.active_poll.check_all()
        await seen.catalog.judge("demo")
        assert seen.catalog.counters["judged"] == 2


async def test_hanging_stat_does_not_delay_other_bundles(
    plugins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop is not delayed either. The bundle is polled again once its file system answers."""
    hanging, plain = threading.Event(), scanner.has_changed

    def has_changed(name: str, root, known):
        if name == "b-stuck" and threading.current_thread() is not threading.main_thread() and armed.is_set():
            hanging.wait()
        return plain(name, root, known)

    armed = threading.Event()
    monkeypatch.setattr(scanner, "has_changed", has_changed)
    async with activated(plugins, "a", "b-stuck", "c") as (seen, made):
        armed.set()
        try:
            (directory,) = seen.catalog._directories.values()
            await until(lambda: directory.active_poll._alone, "the hanging one to be found")
            for name in ("a", "c"):
                began_s = time.monotonic()
                through_a_hard_link(made[name].artifact_path, tmp_path / name)
                await seen_within(seen, name, "digest_mismatch", since_s=began_s)
            assert directory.active_poll._pool.abandoned <= 2
        finally:
            armed.clear()
            hanging.set()
        through_a_hard_link(made["b-stuck"].artifact_path, tmp_path / "b")
        await until(lambda: seen.code("plugins/b-stuck") == "digest_mismatch", "the one that hung")


async def test_poll_takes_one_fingerprint_per_bundle(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later poll of two thousand bundles looks at each of them once; all are watched."""
    names = [f"b{number}" for number in range(2_000)]
    async with catalogs.watching(plugins, ACME, watch=AS_SET) as seen:
        (directory,) = seen.catalog._directories.values()
        for name in names:
            (plugins / name).mkdir()
            for part in ("manifest.json", "artifact"):
                (plugins / name / part).touch()
        poll = active_poll.ActivePoll(plugins, watcher=directory._watcher, entries={}, note=lambda _: None)
        for name in names:
            poll.set_active(name, active=True)
        await poll.check_all()
        looked: list[str] = []
        fingerprint = poll._has_changed
        monkeypatch.setattr(poll, "_has_changed", lambda name, root: looked.append(name) or fingerprint(name, root))
        watched = set(poll._every_write)
        await poll.check_all()
        assert sorted(looked) == sorted(watched) == sorted(names)
