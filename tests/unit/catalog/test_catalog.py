"""The catalog on real bundles in real directories."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from pathlib import Path

import pytest

from latticed.bundle.read import BundleDirectory, ReadLimits
from latticed.catalog import Catalog, Store
from latticed.kit.clock import SystemClock
from latticed.model.errors import Problem
from latticed.model.verdict import Code, Refused, Verified
from latticed.settings import WatchSettings
from latticed.trust.policy import TrustPolicy
from tests.house import bundles, catalogs
from tests.house.catalogs import until

ACME = bundles.author()


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    place = tmp_path / "plugins"
    place.mkdir()
    return place


async def test_first_batch_of_sightings_has_every_bundle(plugins: Path) -> None:
    """It includes refused ones."""
    bundles.drop(plugins, "one", author=ACME, id="acme.one")
    bundles.drop(plugins, "two", author=bundles.author("evil"), id="acme.two")
    for leftover in (".hidden", "lost+found", "@eaDir", "__MACOSX", "$RECYCLE.BIN"):
        (plugins / leftover).mkdir()
    (plugins / "README").write_text("not a bundle")
    async with catalogs.watching(plugins, ACME) as seen:
        assert len(seen.batches) == 1
        assert set(seen.now) == {"plugins/one", "plugins/two"}
        assert seen.code("plugins/one") == "verified"
        assert seen.code("plugins/two") == "publisher_untrusted"


@pytest.mark.parametrize("name", ["lost+found", "@eaDir", "__MACOSX", "$RECYCLE.BIN"])
async def test_directories_of_file_systems_and_archivers_are_ignored(plugins: Path, name: str) -> None:
    """Events and timed scans ignore them, although they contain a valid bundle."""
    async with catalogs.watching(plugins, ACME, watch=WatchSettings(rescan_s=0.5)) as seen:
        bundles.drop(plugins, name, author=ACME, id="acme.left")
        bundles.drop(plugins, "demo", author=ACME)
        await until(lambda: seen.code("plugins/demo") == "verified")
        scans = seen.catalog.counters["scans"]
        await until(lambda: seen.catalog.counters["scans"] > scans)
        assert seen.code(f"plugins/{name}") is None
        with pytest.raises(Problem, match="a name within the plugin directory"):
            await seen.catalog.judge(name)


async def test_first_batch_of_sightings_is_empty_without_bundles(plugins: Path) -> None:
    """The reader then need not wait."""
    async with catalogs.watching(plugins, ACME) as seen:
        assert seen.batches == [()]


async def test_bundle_is_followed_through_arrival_tampering_repair_and_removal(plugins: Path) -> None:
    """After the repair it verifies with the same identity."""
    async with catalogs.watching(plugins, ACME) as seen:
        bundle = bundles.drop(plugins, "demo", author=ACME)
        await until(lambda: seen.code("plugins/demo") == "verified")
        before = bundles.tamper(bundle.artifact_path)
        await until(lambda: seen.code("plugins/demo") == "digest_mismatch")
        bundle.artifact_path.write_bytes(before)
        await until(lambda: seen.code("plugins/demo") == "verified")
        os.rename(bundle.path, plugins.parent / "elsewhere")
        await until(lambda: seen.code("plugins/demo") is None)
        told = seen.told("plugins/demo")
        assert told == [told[0], "digest_mismatch", told[0], "gone"]


async def test_timed_scans_find_changes_without_events(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The observer reports nothing at all."""
    monkeypatch.setattr("latticed.catalog.dirty_names.DirtyNames.note", lambda *_, **__: None)
    async with catalogs.watching(plugins, ACME, watch=WatchSettings(rescan_s=0.5)) as seen:
        bundle = bundles.drop(plugins, "demo", author=ACME)
        await until(lambda: seen.code("plugins/demo") == "verified")
        bundles.tamper(bundle.artifact_path)
        await until(lambda: seen.code("plugins/demo") == "digest_mismatch")
        assert seen.catalog.counters["events"] == 0


async def test_timed_scans_judge_only_changed_bundles(plugins: Path) -> None:
    """A bundle with an equal fingerprint is not read again; a rescan on request judges everything."""
    for number in range(3):
        bundles.drop(plugins, f"p{number}", author=ACME, id=f"acme.p{number}")
    catalogs.age(plugins)
    async with catalogs.watching(plugins, ACME, watch=WatchSettings(rescan_s=0.5)) as seen:
        counters = seen.catalog.counters
        assert counters["judged"] == 3
        scans = counters["scans"]
        await until(lambda: counters["scans"] >= scans + 2)
        assert counters["judged"] == 3
        seen.catalog.rescan(rehash=True)
        await until(lambda: counters["judged"] == 6)


async def test_policy_change_reports_only_changed_verdicts(plugins: Path) -> None:
    """`rescan` judges all bundles under the present policy."""
    revoked: list[str] = []
    bundles.drop(plugins, "one", author=ACME, id="acme.one")
    bundles.drop(plugins, "two", author=ACME, id="acme.two")

    def policy() -> TrustPolicy:
        return catalogs.trusting(ACME, revoked={"plugins": revoked})

    async with catalogs.watching(plugins, policy=policy) as seen:
        assert seen.code("plugins/one") == "verified"
        revoked.append("acme.one@*")
        seen.catalog.rescan()
        await until(lambda: seen.code("plugins/one") == "plugin_revoked")
        revoked.clear()
        seen.catalog.rescan()
        await until(lambda: seen.code("plugins/one") == "verified")
        assert len(seen.told("plugins/two")) == 1


async def test_rescan_reuses_hashes_of_unchanged_artifacts(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`rehash` reads them again."""
    hashed: list[int] = []
    original = BundleDirectory.hash_artifact

    def counting(self: BundleDirectory, *args: object, **named: object) -> tuple[str, int]:
        hashed.append(1)
        return original(self, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(BundleDirectory, "hash_artifact", counting)
    bundles.drop(plugins, "one", author=ACME, id="acme.one")
    catalogs.age(plugins)
    async with catalogs.watching(plugins, ACME) as seen:
        assert len(hashed) == 1
        seen.catalog.rescan()
        await until(lambda: seen.catalog.counters["judged"] == 2)
        assert len(hashed) == 1
        seen.catalog.rescan(rehash=True)
        await until(lambda: seen.catalog.counters["judged"] == 3)
        assert len(hashed) == 2


async def test_bundle_names_carry_their_directory_label(plugins: Path, tmp_path: Path) -> None:
    """The same name in two directories is two bundles; a missing directory is only a problem."""
    market = tmp_path / "market"
    bundles.drop(plugins, "demo", author=ACME)
    async with catalogs.watching({"plugins": plugins, "market": market}, ACME) as seen:
        assert set(seen.now) == {"plugins/demo"}
        assert [str(market) in problem for problem in seen.catalog.problems()] == [True]
        market.mkdir()
        bundles.drop(market, "demo", author=ACME)
        await until(lambda: seen.code("market/demo") == "verified")
        assert seen.catalog.problems() == ()


async def test_bundles_beyond_the_limit_are_refused_and_counted(plugins: Path) -> None:
    """Only newcomers are refused; a slot that becomes free is used."""
    for name in ("b", "c", "d"):
        bundles.drop(plugins, name, author=ACME, id=f"acme.{name}")
    async with catalogs.watching(plugins, ACME, max_bundles=2) as seen:
        assert [seen.code(f"plugins/{name}") for name in "bcd"] == ["verified", "verified", "unreadable"]
        bundles.drop(plugins, "a", author=ACME, id="acme.aaa")
        await until(lambda: seen.code("plugins/a") == "unreadable")
        assert seen.code("plugins/b") == seen.code("plugins/c") == "verified"
        assert any("at most 2 bundles, found 2 more" in problem for problem in seen.catalog.problems())
        os.rename(plugins / "b", plugins.parent / "b")
        await until(lambda: seen.code("plugins/a") == "verified")
        assert seen.code("plugins/b") is None


async def test_judge_reads_the_bundle_and_reports_no_sighting(plugins: Path) -> None:
    """The name may have its label or not."""
    bundle = bundles.drop(plugins, "demo", author=ACME)
    async with catalogs.watching(plugins, ACME, watch=WatchSettings(quiet_s=5.0, max_wait_s=5.0)) as seen:
        bundles.tamper(bundle.artifact_path)
        for name in ("demo", "plugins/demo"):
            verdict = await seen.catalog.judge(name)
            assert isinstance(verdict, Refused)
            assert verdict.code is Code.DIGEST_MISMATCH
        assert isinstance(catalogs.verdicts(seen.catalog)["plugins/demo"], Verified)


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b/c", "plugins/", "nowhere/demo", "../demo", "x\0y"])
async def test_judge_refuses_names_outside_the_directory(plugins: Path, name: str) -> None:
    """A name stays within the plugin directory."""
    async with catalogs.watching(plugins, ACME) as seen:
        with pytest.raises(Problem) as caught:
            await seen.catalog.judge(name)
        assert caught.value.code == "bad_request"


async def test_judge_of_missing_bundle_is_not_found(plugins: Path) -> None:
    """Links and files of that name are not bundles."""
    (plugins / "link").symlink_to("/etc")
    async with catalogs.watching(plugins, ACME) as seen:
        for name in ("absent", "link"):
            with pytest.raises(Problem) as caught:
                await seen.catalog.judge(name)
            assert caught.value.code == "not_found"


async def test_keep_stores_the_verified_pair(plugins: Path, tmp_path: Path) -> None:
    """It verifies from the store."""
    bundles.drop(plugins, "demo", author=ACME)
    store = Store(tmp_path / "store")
    async with catalogs.watching(plugins, ACME, store=store) as seen:
        verdict = seen.now["plugins/demo"]
        assert isinstance(verdict, Verified)
        await seen.catalog.keep("plugins/demo", verdict)
    again = store.verify(verdict.identity, catalogs.trusting(ACME), host_version=catalogs.HOST_VERSION)
    assert again == verdict


async def test_slow_reader_gets_only_the_latest_verdict(plugins: Path) -> None:
    """At most one sighting per name waits; a bundle that came and went is not reported."""
    trusted = catalogs.trusting(ACME)
    catalog = Catalog(
        {"plugins": plugins},
        policy=lambda: trusted,
        host_version=catalogs.HOST_VERSION,
        clock=SystemClock(),
        watch=catalogs.SWIFT,
    )
    async with catalog:
        stream = catalog.changes()
        assert await anext(stream) == ()
        for round_ in range(3):
            bundle = bundles.drop(plugins, "demo", author=ACME, version=f"1.0.{round_}")
            await until(lambda: _version(catalog, "plugins/demo") == f"1.0.{round_}")  # noqa: B023
        bundles.drop(plugins, "brief", author=ACME, id="acme.brief")
        await until(lambda: "plugins/brief" in catalogs.verdicts(catalog))
        os.rename(plugins / "brief", plugins.parent / "brief")
        await until(lambda: "plugins/brief" not in catalogs.verdicts(catalog))
        (sighting,) = await anext(stream)
        assert sighting.name == "plugins/demo"
        assert isinstance(sighting.verdict, Verified)
        assert sighting.verdict.manifest.version == json.loads(bundle.manifest_path.read_bytes())["version"]
        await stream.aclose()


async def test_second_reader_of_changes_is_an_error(plugins: Path) -> None:
    """It would take sightings from the first."""
    async with catalogs.watching(plugins, ACME) as seen:
        with pytest.raises(RuntimeError):
            await anext(seen.catalog.changes())


async def test_tampering_is_noticed_during_a_rescan(plugins: Path) -> None:
    """A long rescan does not delay a bundle that changes meanwhile."""
    for number in range(200):
        bundles.drop(plugins, f"p{number}", author=ACME, id=f"acme.p{number}")
    slow = threading.Event()
    trusted = catalogs.trusting(ACME)

    def policy() -> TrustPolicy:
        if slow.is_set():
            time.sleep(0.05)
        return trusted

    async with catalogs.watching(plugins, policy=policy) as seen:
        judged = seen.catalog.counters["judged"]
        slow.set()
        seen.catalog.rescan(rehash=True)
        await until(lambda: seen.catalog.counters["judged"] > judged)
        bundles.tamper(plugins / "p199" / "artifact")
        await until(lambda: seen.code("plugins/p199") == "digest_mismatch")
        assert seen.catalog.counters["judged"] < judged + 200
        slow.clear()


async def test_bundle_files_beyond_the_size_limits_are_refused(plugins: Path) -> None:
    """What is larger than the settings allow is refused with its code."""
    bundles.drop(plugins, "demo", author=ACME, artifact=bytes(2000))
    async with catalogs.watching(plugins, ACME, limits=ReadLimits(artifact_bytes=1000)) as seen:
        assert seen.code("plugins/demo") == "artifact_too_large"


async def test_hanging_read_delays_only_its_bundle(plugins: Path) -> None:
    """That one is unreadable after the deadline, and judged once the read returns."""
    release = threading.Event()
    names = [f"p{number}" for number in range(12)]
    for name in names:
        bundles.drop(plugins, name, author=ACME, id=f"acme.{name}")
    hanging = iter([True])
    trusted = catalogs.trusting(ACME)

    def policy() -> TrustPolicy:
        if next(hanging, False):  # the first judgement gets stuck in the middle, as a dead disk would have it
            release.wait()
        return trusted

    try:
        limits = ReadLimits(deadline_s=0.2)
        async with catalogs.watching(plugins, policy=policy, limits=limits, watch=WatchSettings(rescan_s=0.5)) as seen:
            codes = [seen.code(f"plugins/{name}") for name in names]
            assert sorted(codes) == ["unreadable", *["verified"] * 11]
            release.set()
            await until(lambda: all(seen.code(f"plugins/{name}") == "verified" for name in names))
    finally:
        release.set()


async def test_failure_of_the_catalog_is_raised_in_its_reader(plugins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the reader would wait for ever."""

    async def broken(_: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr("latticed.catalog.directory.Directory._check_watch", broken)
    trusted = catalogs.trusting(ACME)
    catalog = Catalog(
        {"plugins": plugins}, policy=lambda: trusted, host_version=catalogs.HOST_VERSION, clock=SystemClock()
    )
    async with catalog:
        stream = catalog.changes()
        assert await anext(stream) == ()
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            await anext(stream)


async def test_closing_during_a_rescan_leaves_nothing_behind(plugins: Path) -> None:
    """No thread, task or descriptor is left."""
    for number in range(50):
        bundles.drop(plugins, f"p{number}", author=ACME, id=f"acme.p{number}", artifact=bytes(4 << 20))
    async with catalogs.watching(plugins, ACME) as seen:
        seen.catalog.rescan(rehash=True)
        await asyncio.sleep(0)


def _version(catalog: Catalog, name: str) -> str | None:
    verdict = catalogs.verdicts(catalog).get(name)
    return verdict.manifest.version if isinstance(verdict, Verified) else None
