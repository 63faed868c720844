"""What a kill at each step of a refresh leaves, for both formats: the old index or the new one, whole and usable.

Steps are all that writes: pieces of files and their sync, directories and renames, rows of the ledger. The state
directory is copied before each, which is what a kill at that moment leaves; a daemon is started on each copy.
"""

from __future__ import annotations

import os
import shutil
import time

import pytest

from latticed.kit import files
from latticed.market import fetch
from latticed.market.shelf import MarketShelf
from latticed.model.audit import Actor
from tests.house import bundles, in_process, indexes, stepping, tuf_repositories

ACME, SOURCE = bundles.author("acme"), bundles.author("source")


class StaticShelf:
    """A directory with a signed index."""

    def __init__(self, parent):
        self.place = parent / "shelf"
        self.place.mkdir()
        self.url = f"file://{self.place}/"
        self.settings = f'url = "{self.url}plugins.json"\nkeys = ["{SOURCE.public}"]\n'

    def publish(self, entry, at):
        made = indexes.index(entry, signers=[SOURCE], at=at)
        (self.place / "plugins.json").write_bytes(indexes.encoded(made))


class TufShelf:
    """A directory with a repository."""

    def __init__(self, parent):
        self.place = parent / "repository"
        self.repository = tuf_repositories.Repository()
        self.url = f"file://{self.place}/targets/"
        (parent / "root.json").write_bytes(self.repository.root)
        self.settings = f'url = "file://{self.place}/"\nformat = "tuf"\nroot = "{parent}/root.json"\n'

    def publish(self, entry, at):
        self.repository.put("plugins.json", indexes.encoded(indexes.index(entry, at=at)))
        self.repository.publish()
        for path, data in self.repository.files.items():
            (self.place / path).parent.mkdir(parents=True, exist_ok=True)
            (self.place / path).write_bytes(data)


@pytest.fixture
def steps(monkeypatch):
    found = stepping.Steps()
    for name in ("stage_repository", "put_repository", "put_index", "unstage"):
        found.before(MarketShelf, name, monkeypatch)
    for name in ("write", "sync"):
        found.before(fetch.FileCopy, name, monkeypatch)
    for name in ("sync_directory", "exchange"):
        found.before(files, name, monkeypatch)
    return found


@pytest.mark.parametrize("kind", [StaticShelf, TufShelf])
async def test_kill_leaves_the_old_or_the_new_index(kind, tmp_path, steps, monkeypatch):
    shelf, made = kind(tmp_path), []
    toml = f"[market.sources.local]\n{shelf.settings}"
    bundle = bundles.drop(tmp_path / "v", author=ACME, id="acme.demo")
    entry = indexes.entry(bundle, f"{shelf.url}acme.demo/")

    def copy(_name):
        made.append(tmp_path / f"{len(made):02}")
        stepping.copy_as_killed(home.root, made[-1])

    moments = [time.time() - seconds for seconds in (600, 60)]
    old, new = map(indexes.moment, moments)
    shelf.publish(entry, moments[0])
    async with in_process.opened(author=ACME, toml=toml) as home:
        assert await refreshed(home) == old
        shelf.publish(entry, moments[1])
        steps.before(home.app.api.ledger, "write", monkeypatch)
        steps.names.clear()
        steps.at = copy
        assert await refreshed(home) == new
        steps.at = lambda _: None
        copy("end")
    assert {"write", "sync", "sync_directory"} <= set(steps.names)
    found = []
    for root in made:
        async with in_process.opened(root, author=ACME, toml=toml) as home:
            found.append((await shown(home))["generated_at"])
            kept = home.root / "state" / "market" / "local"
            assert not [name for name in os.listdir(kept) if name.startswith(".")]
            assert await refreshed(home) == new
        shutil.rmtree(root)
    assert (found[0], found[-1], found) == (old, new, sorted(found))


async def test_refresh_that_is_cancelled_while_it_places_a_repository_removes_nothing_beside_that(
    tmp_path, monkeypatch
):
    """Else what is placed would lack what was removed of it just then."""
    shelf = TufShelf(tmp_path)
    bundle = bundles.drop(tmp_path / "v", author=ACME, id="acme.demo")
    shelf.publish(indexes.entry(bundle, f"{shelf.url}acme.demo/"), time.time() - 60)
    async with in_process.opened(author=ACME, toml=f"[market.sources.local]\n{shelf.settings}") as home:
        market, actor = home.app.api.market(), Actor(kind="daemon")
        order = await stepping.cancelled_in(
            MarketShelf, "put_repository", "unstage", monkeypatch, lambda: market.refresh("local", actor)
        )
        assert order == ["put_repository", "unstage"]


async def shown(home):
    """The source, which can be installed from."""
    (row,) = (await home.ask("GET", "/api/market"))["sources"]
    assert row["usable"] is True, row
    return row


async def refreshed(home):
    """The moment of the index that a refresh brings."""
    answer = await home.ask("POST", "/api/market/refresh", {})
    assert answer.status == 200, answer
    return (await shown(home))["generated_at"]
