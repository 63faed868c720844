"""What a kill or a full disk at each step of an install or import leaves: the old bundle or the new one, nothing else.

Steps are all that writes: each piece of a file and its sync, directories and renames of the market, rows of the ledger.
The state directory is copied before each, which is what a kill at that moment leaves; a daemon is started on each copy.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import tarfile
import threading

import pytest

from latticed.kit import files
from latticed.market import fetch, imports, rules
from latticed.market.shelf import MarketShelf
from latticed.model.audit import Actor
from latticed.model.errors import Problem
from tests.house import bundles, in_process, indexes, stepping

ID = "acme.demo"
ACME, SOURCE = bundles.author("acme"), bundles.author("source")


@pytest.fixture
def steps(monkeypatch):
    found = stepping.Steps()
    for name in ("stage", "place", "unstage"):
        found.before(MarketShelf, name, monkeypatch)
    for name in ("write", "sync"):
        found.before(fetch.FileCopy, name, monkeypatch)
    for name in ("sync_directory", "exchange"):
        found.before(files, name, monkeypatch)
    return found


@pytest.fixture
def source(tmp_path):
    """A directory with an index of two versions, and the settings that name it."""
    shelf = tmp_path / "shelf"
    old, new = (
        bundles.drop(shelf, f"v{n}", author=ACME, id=ID, version=f"1.{n}.0", artifact=bundles.ARTIFACT + b"#\n" * n)
        for n in range(2)
    )
    entry = indexes.entry(new, f"file://{new.path}/", indexes.release(old, f"file://{old.path}/"))
    (shelf / "plugins.json").write_bytes(indexes.encoded(indexes.index(entry, signers=[SOURCE])))
    spool = tmp_path / "spool"
    spool.mkdir()
    for made in (old, new):
        with tarfile.open(spool / f"{made.raw['version']}.tar", "w", format=tarfile.GNU_FORMAT) as archive:
            for name in ("manifest.json", "artifact"):
                archive.add(made.path / name, name)
    sources = f'[market.sources.local]\nurl = "file://{shelf}/plugins.json"\nkeys = ["{SOURCE.public}"]\n'
    return f'[market]\nimport_dir = "{spool}"\n{sources}'


@pytest.fixture(params=["install", "import"])
def install(request):
    """Takes the bundle of a version, either way."""

    async def taken(home, version):
        if request.param == "import":
            body = {"name": f"{version}.tar", "allow_downgrade": True}
        else:
            body = {"id": ID, "version": version}
        return await home.ask("POST", f"/api/market/{request.param}", body)

    return taken


async def begun(home, install):
    """1.0.0 placed and seen."""
    assert (await home.ask("POST", "/api/market/refresh", {})).status == 200
    answer = await install(home, "1.0.0")
    assert answer.status == 200, answer
    await home.seen(ID)


def placed(home):
    """The version in the market's directory; nothing else may be there."""
    place = home.root / "state" / "bundles"
    assert [one.name for one in place.iterdir()] == [ID]
    assert sorted(one.name for one in (place / ID).iterdir()) == ["artifact", "manifest.json"]
    return json.loads((place / ID / "manifest.json").read_bytes())["version"]


async def test_kill_leaves_the_old_or_the_new_bundle(tmp_path, source, install, steps, monkeypatch):
    made = []

    def copy(name):
        made.append(tmp_path / f"{len(made):02}")
        stepping.copy_as_killed(home.root, made[-1])

    async with in_process.opened(author=ACME, toml=source) as home:
        await begun(home, install)
        for name in ("write", "write_floors"):
            steps.before(home.app.api.ledger, name, monkeypatch)
        steps.names.clear()
        steps.at = copy
        assert (await install(home, "1.1.0")).status == 200
        steps.at = lambda _: None
        copy("end")
    assert {"stage", "write", "sync", "place", "exchange", "sync_directory", "unstage"} <= set(steps.names)
    found = []
    for root in made:
        async with in_process.opened(root, author=ACME, toml=source) as home:
            version = placed(home)
            found.append(version)
            # Whole: it verifies, as the version that is there; and the other one can be taken.
            await home.seen(ID)
            await home.until_plugin(ID, lambda view, version=version: view["available"] and view["version"] == version)
            assert (await install(home, "1.1.0")).status == 200
            assert placed(home) == "1.1.0"
        shutil.rmtree(root)
    assert (found[0], found[-1], found) == ("1.0.0", "1.1.0", sorted(found))


async def test_full_disk_leaves_the_old_or_the_new_bundle(source, install, steps, monkeypatch):
    """At the first step, at the second, and so on, until an install comes through."""
    async with in_process.opened(author=ACME, toml=source) as home:
        await begun(home, install)
        ledger, write = home.app.api.ledger, home.app.api.ledger.write

        async def written(change, **named):
            steps.names.append("ledger")
            if len(steps.names) == full:
                raise Problem("ledger_unavailable", "the disk is full")
            return await write(change, **named)

        monkeypatch.setattr(ledger, "write", written)

        def fails(name):
            # What makes and renames directories is refused in tests/daemon/test_market.py, by the kernel.
            if len(steps.names) == full and name not in {"stage", "place", "unstage"}:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        steps.at = fails
        full, codes = 0, []
        while True:
            full += 1
            steps.names.clear()
            answer = await install(home, "1.1.0")
            version = placed(home)
            if len(steps.names) < full:
                break
            if answer.status != 200:
                codes.append(answer.code)
                # The new one only once it was put there whole, and only its directory is not synced yet.
                assert version == "1.0.0" or steps.names[full - 1] == "sync_directory", steps.names
            if version == "1.1.0":
                assert (await install(home, "1.0.0")).status == 200
        assert (answer.status, placed(home)) == (200, "1.1.0")
        assert set(codes) <= {"store_unavailable", "ledger_unavailable"}
        assert len(codes) >= 6, codes
        await home.until_plugin(ID, lambda view: view["available"] and view["version"] == "1.1.0")


async def test_import_that_is_cancelled_closes_its_file_when_nobody_reads_it_any_more(source, monkeypatch):
    """The number of its descriptor may be another's as soon as it is closed, whose bytes would be read then."""
    reading, go_on, order = threading.Event(), threading.Event(), []

    def read(archive, size, original=imports._Archive.read):
        reading.set()
        go_on.wait(30)
        order.append("read")
        return original(archive, size)

    def close(archive, original=imports._Archive.close):
        order.append("closed")
        original(archive)

    async with in_process.opened(author=ACME, toml=source) as home:
        monkeypatch.setattr(imports._Archive, "read", read)
        monkeypatch.setattr(imports._Archive, "close", close)
        wanted = rules.WantedImport(name="1.0.0.tar")
        taking = asyncio.create_task(home.app.api.market().importer.take(wanted, Actor(kind="daemon")))
        await asyncio.to_thread(reading.wait, 30)
        taking.cancel()
        await asyncio.wait({taking}, timeout=0.5)
        go_on.set()
        await asyncio.wait({taking})
    assert taking.cancelled()
    assert (order[0], order[-1]) == ("read", "closed")


@pytest.mark.parametrize("kind", ["install", "import"])
async def test_install_that_is_cancelled_while_it_places_removes_nothing_beside_that(source, monkeypatch, kind):
    """What is staged is the old bundle once both have changed places."""
    async with in_process.opened(author=ACME, toml=source) as home:
        assert (await home.ask("POST", "/api/market/refresh", {})).status == 200
        market, actor = home.app.api.market(), Actor(kind="daemon")

        def begin():
            if kind == "install":
                return market.installer.install(rules.WantedRelease(id=ID), actor)
            return market.importer.take(rules.WantedImport(name="1.1.0.tar"), actor)

        order = await stepping.cancelled_in(MarketShelf, "place", "unstage", monkeypatch, begin)
        assert order == ["place", "unstage"]
        assert placed(home) == "1.1.0"
