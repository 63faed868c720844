"""Tidying beside decisions: what it removes and what it writes is what holds by then. The real App."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

import pytest

from latticed.lifecycle import write_behind
from latticed.model.audit import Actor
from tests.house import bundles, in_process, stepping

ID = "acme.demo"
ACME = bundles.author("acme")
URL = f"/api/plugins/by-id/{ID}"
LONG = "[upgrade]\ngate_s = 3600\n"


@pytest.fixture
async def home(monkeypatch):
    monkeypatch.setattr(write_behind, "TIDY_S", 0.0)
    async with in_process.opened(author=ACME, toml=LONG) as found:
        found.drop(version="1.0.0", type="system", capabilities=["kv:read", "network:plan"])
        await found.armed(ID)
        yield found


@contextlib.contextmanager
def collecting(home, monkeypatch):
    """(begun, go on, done) of the next removal of unused pairs: events of the loop, a thread, the loop."""
    store, loop = home.app.api.lifecycle.deps.store, asyncio.get_running_loop()
    collect, begun, go_on, done = store.collect, asyncio.Event(), threading.Event(), asyncio.Event()

    def waited(in_use):
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(in_process.DEADLINE_S)
        removed = collect(in_use)
        loop.call_soon_threadsafe(done.set)
        return removed

    monkeypatch.setattr(store, "collect", waited)
    try:
        yield begun, go_on, done
    finally:
        go_on.set()


async def tidied(home):
    behind = home.app.api.lifecycle.write_behind
    await in_process.until(lambda: behind._tidying is None or behind._tidying.done(), "tidied")


async def test_version_before_stays_stored_when_tidying_comes_while_an_upgrade_is_put_on_record(home, monkeypatch):
    """The new version is on record by then, and what is kept of the one before was not read yet."""
    await tidied(home)
    home.drop(
        version="1.1.0", type="system", capabilities=["kv:read", "network:plan"], artifact=bundles.ARTIFACT + b"#"
    )
    await home.until_plugin(ID, lambda view: "candidate" in view)
    lifecycle, ledger, floors = home.app.api.lifecycle, home.app.api.ledger, home.app.api.revocations._turn
    old = lifecycle.records[ID].facts.identity
    write = ledger.write

    async def then_floors_are_busy(change, **how):
        answer = await write(change, **how)
        await floors.acquire()
        return answer

    with collecting(home, monkeypatch) as (_, go_on, done):
        monkeypatch.setattr(ledger, "write", then_floors_are_busy)
        upgrading = asyncio.create_task(home.ask("POST", f"{URL}/upgrade", {}))
        await in_process.until(lambda: lifecycle.records[ID].facts.version == "1.1.0", "on record")
        monkeypatch.setattr(ledger, "write", write)
        go_on.set()
        await done.wait()
        floors.release()
        answer = await upgrading
    assert (answer.status, answer["version"]) == (200, "1.1.0")
    await tidied(home)
    assert (home.root / "state/store" / old).exists()
    assert not lifecycle.state.being_kept
    answer = await home.ask("POST", f"{URL}/rollback", {})
    assert (answer.status, answer["version"]) == (200, "1.0.0"), answer


async def test_grant_that_is_answered_while_tidying_removes_pairs_is_not_masked_again(home, monkeypatch, tmp_path):
    """A kill after that leads to a start with what was granted."""
    await tidied(home)
    ledger, behind = home.app.api.ledger, home.app.api.lifecycle.write_behind
    write_floors, written = ledger.write_floors, []

    async def noted(floors):
        await write_floors(floors)
        written.append(floors)

    with collecting(home, monkeypatch) as (begun, go_on, _):
        behind.tidy()
        await begun.wait()
        answer = await home.ask("PUT", f"{URL}/grants", {"grant": ["network:plan"]})
        assert answer.status == 200, answer
        monkeypatch.setattr(ledger, "write_floors", noted)
        go_on.set()
        await in_process.until(lambda: written, "floors written")
    assert ID not in json.loads((home.root / "state/floors.json").read_bytes())["masked"]
    stepping.copy_as_killed(home.root, tmp_path / "c")
    await tidied(home)
    assert [floors.masked.get(ID) for floors in written] == [None] * len(written)
    async with in_process.opened(tmp_path / "c", author=ACME) as again:
        view = await again.plugin(ID)
        assert "network:plan" in view["granted"]
        assert again.events(action="ledger.held_to_floors") == []


async def test_pair_of_an_upgrade_that_comes_on_record_after_its_caller_has_gone_stays_stored(tmp_path, monkeypatch):
    """The daemon stops while the disk is slow, and at the next start a later bundle is there."""
    disk = threading.Event()
    async with in_process.opened(tmp_path, author=ACME, toml="[upgrade]\ngate_s = 0\n") as home:
        home.drop(version="1.0.0", type="system")
        await home.armed(ID)
        home.drop(version="1.1.0", type="system", artifact=bundles.ARTIFACT + b"#")
        await home.until_plugin(ID, lambda view: "candidate" in view)
        await tidied(home)
        ledger, writing = home.app.api.ledger, asyncio.Event()
        write = ledger.write

        async def slow(change, **how):
            queued = asyncio.ensure_future(write(lambda _: disk.wait(60)))
            answer = asyncio.ensure_future(write(change, **how))
            writing.set()
            await asyncio.wait({queued})
            return await answer

        with monkeypatch.context() as patched:
            patched.setattr(ledger, "write", slow)
            by = Actor(kind="peer", name="root", uid=0, pid=1)
            upgrading = asyncio.create_task(home.app.api.lifecycle.decisions.upgrade(by, ID))
            await writing.wait()
            upgrading.cancel()
            await asyncio.wait({upgrading})
        assert upgrading.cancelled()
        home.drop(version="1.2.0", type="system", artifact=bundles.ARTIFACT + b"##")
        disk.set()
    async with in_process.opened(tmp_path, author=ACME) as again:
        view = await again.until_plugin(ID, lambda view: view["runtime"]["state"] in {"armed", "failed"})
        assert (view["version"], view["runtime"]["state"]) == ("1.1.0", "armed")
