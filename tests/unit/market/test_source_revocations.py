"""What a source takes back reaches what came from it, and nothing else."""

from __future__ import annotations

import asyncio
import tarfile
import threading
import time

from latticed.market.rules import WantedRelease
from latticed.market.shelf import MarketShelf
from latticed.model.audit import Actor
from tests.house import bundles, in_process, indexes

ID = "acme.demo"
ACME, SOURCE = bundles.author("acme"), bundles.author("source")


def take_back(shelf, plugin, action):
    """Publish that this source takes a plugin back, as `ID@VERSION`."""
    taken_back = {
        "schema": "latticed.market.revocations.v1",
        "generated_at": indexes.moment(time.time() - 60),
        "revocations": [{"plugin": plugin, "action": action}],
    }
    signed = indexes.sign(taken_back, SOURCE, domain=b"LATTICED-MARKET-REVOCATIONS-V1\n")
    (shelf / "revocations.json").write_bytes(indexes.encoded(signed))


async def test_source_that_takes_back_all_versions_reaches_those_that_were_taken_of_it(tmp_path):
    """Not the one that came from elsewhere."""
    shelf = tmp_path / "shelf"
    theirs = bundles.drop(shelf, "theirs", author=ACME, id=ID, version="1.0.0", artifact=bundles.ARTIFACT + b"# 1\n")
    entry = indexes.entry(theirs, f"file://{theirs.path}/")
    (shelf / "plugins.json").write_bytes(indexes.encoded(indexes.index(entry, signers=[SOURCE])))
    own = bundles.drop(tmp_path, "own", author=ACME, id=ID, version="2.0.0", artifact=bundles.ARTIFACT + b"# 2\n")
    with tarfile.open(tmp_path / "2.0.0.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name in ("manifest.json", "artifact"):
            archive.add(own.path / name, name)
    source = f'[market.sources.local]\nurl = "file://{shelf}/plugins.json"\nkeys = ["{SOURCE.public}"]\n'
    toml = f'[market]\nimport_dir = "{tmp_path}"\n{source}'
    async with in_process.opened(author=ACME, toml=toml) as home:
        assert (await home.ask("POST", "/api/market/refresh", {})).status == 200
        assert (await home.ask("POST", "/api/market/install", {"id": ID})).status == 200
        await home.seen(ID)
        await home.armed(ID)
        assert (await home.ask("POST", "/api/market/import", {"name": "2.0.0.tar"})).status == 200
        await home.until_plugin(ID, lambda view: "candidate" in view)
        assert (await home.ask("POST", f"/api/plugins/by-id/{ID}/upgrade", {})).status == 200
        take_back(shelf, f"{ID}@*", "freeze")
        refreshed = await home.ask("POST", "/api/market/refresh", {})
        assert refreshed.status == 200, refreshed
        await home.look()
        view = await home.plugin(ID)
        assert (view["version"], view["runtime"]["state"]) == ("2.0.0", "armed")
        back = await home.ask("POST", f"/api/plugins/by-id/{ID}/rollback", {})
        assert (back.status, back.code) == (409, "plugin_revoked")
        assert (await home.ask("POST", "/api/market/install", {"id": ID, "version": "1.0.0"})).code == "release_revoked"


async def test_bundle_taken_after_a_refresh_that_was_cancelled_while_it_removed_one_stays(tmp_path, monkeypatch):
    """A slow disk removes the killed release only then; its place has another one by now."""
    shelf = tmp_path / "shelf"
    old, new = (
        bundles.drop(shelf, f"v{n}", author=ACME, id=ID, version=f"1.{n}.0", artifact=bundles.ARTIFACT + b"#\n" * n)
        for n in range(2)
    )
    entry = indexes.entry(new, f"file://{new.path}/", indexes.release(old, f"file://{old.path}/"))
    (shelf / "plugins.json").write_bytes(indexes.encoded(indexes.index(entry, signers=[SOURCE])))
    toml = f'[market.sources.local]\nurl = "file://{shelf}/plugins.json"\nkeys = ["{SOURCE.public}"]\n'
    removing, go_on, gone = threading.Event(), threading.Event(), threading.Event()

    def remove(shelf, *what, original=MarketShelf.remove):
        removing.set()
        go_on.wait(30)
        original(shelf, *what)
        gone.set()

    async with in_process.opened(author=ACME, toml=toml) as home:
        assert (await home.ask("POST", "/api/market/refresh", {})).status == 200
        assert (await home.ask("POST", "/api/market/install", {"id": ID, "version": "1.0.0"})).status == 200
        take_back(shelf, f"{ID}@1.0.0", "kill")
        monkeypatch.setattr(MarketShelf, "remove", remove)
        market, actor = home.app.api.market(), Actor(kind="daemon")
        refreshing = asyncio.create_task(market.refresh("local", actor))
        assert await asyncio.to_thread(removing.wait, 30)
        refreshing.cancel()
        await asyncio.wait({refreshing}, timeout=0.5)
        taking = asyncio.create_task(market.installer.install(WantedRelease(id=ID, version="1.1.0"), actor))
        await asyncio.wait({taking}, timeout=2)
        go_on.set()
        assert await asyncio.to_thread(gone.wait, 30)
        await taking
        assert refreshing.cancelled()
        assert market.deps.shelf.digest(ID) == new.raw["digest_sha256"]
