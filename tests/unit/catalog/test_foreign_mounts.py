"""Another user's file system mounted in, or as, the plugin directory: it affects no other bundle."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path

import pytest

from latticed.bundle.read import ReadLimits
from latticed.catalog import Catalog
from latticed.kit.clock import SystemClock
from latticed.model.errors import Problem
from latticed.model.verdict import Verified
from latticed.settings import WatchSettings
from tests.house import bundles, catalogs, fuse
from tests.house.catalogs import until

pytestmark = [pytest.mark.root, fuse.needed]

ACME = bundles.author()


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    place = tmp_path / "plugins"
    place.mkdir()
    for name in ("a-demo", "z-other"):
        bundles.drop(place, name, author=ACME, id=f"acme.{name}")
    (place / "evil").mkdir()
    return place


async def test_bundle_on_unreadable_mount_is_refused_alone(plugins: Path) -> None:
    """It is mounted before the start or later, and unreadable; the others verify and are followed."""
    for early in (True, False):
        with contextlib.ExitStack() as mounts:
            if early:
                mounts.enter_context(fuse.mounted(plugins / "evil", uid=fuse.NOBODY, shared=False))
            async with catalogs.watching(plugins, ACME, watch=WatchSettings(rescan_s=0.5)) as seen:
                if not early:
                    mounts.enter_context(fuse.mounted(plugins / "evil", uid=fuse.NOBODY, shared=False))
                with pytest.raises(PermissionError):
                    os.stat(plugins / "evil")
                await until(lambda: seen.code("plugins/evil") == "unreadable")
                assert [seen.code(f"plugins/{name}") for name in ("a-demo", "z-other")] == ["verified"] * 2
                before = bundles.tamper(plugins / "z-other" / "artifact")
                await until(lambda: seen.code("plugins/z-other") == "digest_mismatch")
                (plugins / "z-other" / "artifact").write_bytes(before)
                await until(lambda: seen.code("plugins/z-other") == "verified")
                assert seen.catalog.problems() == ()
                assert len(seen.told("plugins/a-demo")) == 1
                mounts.close()
                await until(lambda: seen.code("plugins/evil") == "manifest_missing")


async def test_bundle_on_which_something_was_mounted_is_watched_again(plugins: Path) -> None:
    """While another bundle that verifies is mounted there, scans are frequent; afterwards they need not be."""
    tree = {part: (plugins / "z-other" / part).read_bytes() for part in ("manifest.json", "artifact")}
    async with catalogs.watching(plugins, ACME) as seen:
        (directory,) = seen.catalog._directories.values()
        assert directory._watched()
        with fuse.mounted(plugins / "z-other", tree):
            await until(lambda: directory._watcher.mounted and not directory._watched())
        await until(lambda: directory._watched() and not directory._watcher.mounted)
        bundles.tamper(plugins / "z-other" / "artifact")
        await until(lambda: seen.code("plugins/z-other") == "digest_mismatch")
        assert seen.catalog.counters["events"] > 0


async def test_bundle_whose_file_system_fails_at_close_is_judged_and_nothing_stays_open(plugins: Path) -> None:
    """As a network mount does that dies while it is read: of that, closing is told an error."""
    tree = {part: (plugins / "z-other" / part).read_bytes() for part in ("manifest.json", "artifact")}
    with fuse.mounted(plugins / "evil", tree, fails={fuse.FLUSH}):
        async with catalogs.watching(plugins, ACME) as seen:
            await until(lambda: seen.code("plugins/evil") in {"verified", "duplicate_id"})


async def test_hanging_mounts_do_not_delay_other_bundles(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the start nor a change of recorded bundles waits for their deadline."""
    monkeypatch.setattr("latticed.catalog.directory.START_WAIT_S", 0.3)
    trusted = catalogs.trusting(ACME)
    for number in range(4):
        (plugins / f"b-evil-{number}").mkdir()
    with contextlib.ExitStack() as mounts:
        for number in range(4):
            mounts.enter_context(fuse.mounted(plugins / f"b-evil-{number}", hangs=set(fuse.EVERYTHING)))
        catalog = Catalog(
            {"plugins": plugins},
            policy=lambda: trusted,
            host_version=catalogs.HOST_VERSION,
            clock=SystemClock(),
            watch=catalogs.SWIFT,
            limits=ReadLimits(deadline_s=600),
        )
        catalog.mark_recorded("plugins/z-other")
        async with catalog:
            held = "plugins/z-other"
            assert isinstance(catalogs.verdicts(catalog)[held], Verified)
            before = bundles.tamper(plugins / "z-other" / "artifact")
            await until(lambda: not isinstance(catalogs.verdicts(catalog)[held], Verified), "the tampering")
            (plugins / "z-other" / "artifact").write_bytes(before)
            await until(lambda: isinstance(catalogs.verdicts(catalog)[held], Verified), "the mending")
            mounts.close()  # what waited for an answer gets its error


async def test_bundle_on_hanging_mount_is_refused_at_its_deadline(plugins: Path) -> None:
    """It is unreadable, and counted in health; once unmounted, the directory beneath is judged."""
    with contextlib.ExitStack() as mounts:
        mounts.enter_context(fuse.mounted(plugins / "evil", hangs=set(fuse.EVERYTHING)))
        options = {"limits": ReadLimits(deadline_s=0.2), "watch": WatchSettings(rescan_s=0.5)}
        async with catalogs.watching(plugins, ACME, **options) as seen:  # type: ignore[arg-type]
            await until(lambda: seen.code("plugins/evil") == "unreadable")
            assert [seen.code(f"plugins/{name}") for name in ("a-demo", "z-other")] == ["verified"] * 2
            assert seen.catalog.problems() == ("1 reads of bundles do not return",)
            mounts.close()
            await until(lambda: seen.code("plugins/evil") == "manifest_missing" and not seen.catalog.problems())


async def test_plugin_directory_whose_listing_hangs_is_a_problem(plugins: Path, tmp_path: Path) -> None:
    """It is one at the deadline of the listing; verified bundles stay, as each is opened by its name."""
    place = tmp_path / "mounted"
    place.mkdir()
    tree = {
        f"{name}/{part}": (plugins / name / part).read_bytes()
        for name in ("a-demo", "z-other")
        for part in ("manifest.json", "artifact")
    }
    with fuse.mounted(place, tree) as server:
        options = {"limits": ReadLimits(deadline_s=0.2), "watch": WatchSettings(rescan_s=0.5)}
        async with catalogs.watching(place, ACME, **options) as seen:  # type: ignore[arg-type]
            assert set(map(seen.code, ("plugins/a-demo", "plugins/z-other"))) == {"verified"}
            server.hangs.add(fuse.READDIR)
            await until(lambda: any("no answer in time" in problem for problem in seen.catalog.problems()))
            judged = seen.catalog.counters["judged"]
            seen.catalog.rescan()
            await until(lambda: seen.catalog.counters["judged"] >= judged + 2)
            assert set(map(seen.code, ("plugins/a-demo", "plugins/z-other"))) == {"verified"}
            assert all(len(seen.told(name)) == 1 for name in seen.now)


async def test_start_does_not_wait_for_each_bundle_of_a_directory_that_does_not_answer(
    plugins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many of them records name: they count as unreadable, not as gone, and verify once it answers."""
    monkeypatch.setattr("latticed.catalog.directory.START_WAIT_S", 0.3)
    trusted = catalogs.trusting(ACME)
    catalog = Catalog(
        {"plugins": plugins},
        policy=lambda: trusted,
        host_version=catalogs.HOST_VERSION,
        clock=SystemClock(),
        watch=WatchSettings(rescan_s=0.5),
        limits=ReadLimits(deadline_s=0.2),
    )
    recorded = {f"plugins/{name}" for name in ("a-demo", *(f"b-{number}" for number in range(40)))}
    for name in recorded:
        catalog.mark_recorded(name)
    async with contextlib.AsyncExitStack() as stack:
        mount = stack.enter_context(contextlib.ExitStack())
        mount.enter_context(fuse.mounted(plugins, hangs=set(fuse.EVERYTHING)))
        async with asyncio.timeout(catalogs.DEADLINE_S):
            await stack.enter_async_context(catalog)
        first = await anext(catalog.changes())
        assert {(seen.name, seen.verdict and catalogs.plain(seen.verdict)) for seen in first} == {
            (name, "unreadable") for name in recorded
        }
        mount.close()
        await until(lambda: isinstance(catalogs.verdicts(catalog).get("plugins/a-demo"), Verified))


async def test_hanging_bundle_does_not_stand_for_one_of_its_name_in_another_directory(tmp_path: Path) -> None:
    """`market/demo` is judged while `plugins/demo` hangs."""
    author, plugins, market = bundles.author(), tmp_path / "plugins", tmp_path / "market"
    for place in (plugins, market):
        place.mkdir()
    bundles.drop(market, "demo", author=author)
    (plugins / "demo").mkdir()
    limits = ReadLimits(deadline_s=0.2)
    async with catalogs.watching({"plugins": plugins, "market": market}, author, limits=limits) as seen:
        with fuse.mounted(plugins / "demo", hangs=set(fuse.EVERYTHING)):
            with pytest.raises(Problem, match="deadline_exceeded"):
                await seen.catalog.judge("plugins/demo")
            assert isinstance(await seen.catalog.judge("market/demo"), Verified)
