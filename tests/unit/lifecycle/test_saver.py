"""Write-behind: changes take effect in memory and are written when the ledger can. Real ledger, real daemon."""

from __future__ import annotations

import asyncio
import functools

import pytest

from latticed.ledger import records as rows
from latticed.lifecycle import write_behind
from latticed.model.audit import Event
from latticed.model.errors import Problem
from tests.house import bundles, in_process

FULL = Problem("ledger_unavailable", "the ledger cannot be written: disk full")


@pytest.fixture
async def home(monkeypatch):
    monkeypatch.setattr(write_behind, "AGAIN_S", 0.02)
    async with in_process.opened() as found:
        yield found


@pytest.fixture
def disk(home, monkeypatch):
    """A switch for the ledger's writes: `full` makes them fail as a full disk does."""

    class Disk:
        full = False
        tries = 0

    real = home.app.api.ledger.write

    async def write(change, **how):
        Disk.tries += 1
        if Disk.full:
            raise FULL
        return await real(change, **how)

    monkeypatch.setattr(home.app.api.ledger, "write", write)
    return Disk


def stored(home, plugin_id="acme.demo"):
    found = [record for record in home.app.api.ledger.read(rows.load_all) if record.id == plugin_id]
    return found[0] if found else None


async def test_disable_on_full_disk_takes_effect_and_is_written_later(home, disk):
    """The plugin is stopped at once; the record and its event are written without another request."""
    home.drop()
    instance = await home.armed("acme.demo")
    await in_process.until(lambda: stored(home).status == "active")
    mark = home.mark()
    disk.full = True
    answer = await home.decide("acme.demo", "disabled")
    assert (answer.status, answer["status"], instance.alive) == (200, "disabled", False)
    assert stored(home).status == "active"
    await in_process.until(lambda: disk.tries > 3, "tried again")
    health = await home.ask("GET", "/api/health")
    assert health.status == 503
    assert "ledger_unavailable" in [problem["code"] for problem in health["problems"]]
    disk.full = False
    await in_process.until(lambda: stored(home).status == "disabled")
    assert [e["detail"]["to"] for e in home.events(after=mark, action="plugin.status")] == ["disabled"]
    await home.healthy()


async def test_narrowed_grants_take_effect_on_full_disk(home, disk):
    """The remaining hosts and permits were granted before, so nothing waits for the disk."""
    home.drop()
    await home.armed("acme.demo")
    grants = "/api/plugins/by-id/acme.demo/grants"
    both = {"hosts": ["a.example:443", "b.example:443"], "permits": ["bucket=one", "bucket=two"]}
    assert (await home.ask("PUT", grants, both)).status == 200
    disk.full = True
    fewer = {"hosts": ["b.example:443"], "permits": ["bucket=two"]}
    answer = await home.ask("PUT", grants, fewer)
    assert (answer.status, answer.get("hosts"), answer.get("permits")) == (200, *fewer.values()), answer
    assert (await home.ask("PUT", grants, both)).code == "ledger_unavailable"
    disk.full = False
    await in_process.until(lambda: stored(home).permits == ("bucket=two",))


async def test_start_on_full_disk_is_refused(home, disk):
    """A plugin is not started unless the decision is recorded."""
    home.drop()
    await home.seen("acme.demo")
    disk.full = True
    answer = await home.decide("acme.demo", "installed")
    assert (answer.status, answer.code) == (503, "ledger_unavailable")
    disk.full = False
    assert (await home.plugin("acme.demo"))["status"] == "verified"
    assert (await home.decide("acme.demo", "installed")).status == 200
    disk.full = True
    assert (await home.decide("acme.demo", "active")).status == 503
    assert home.driven.attempts["acme.demo"] == 0
    assert (await home.plugin("acme.demo"))["status"] == "installed"


async def test_new_bundle_on_full_disk_is_known_in_memory(home, disk):
    """It is written later."""
    disk.full = True
    home.drop()
    await home.seen("acme.demo")
    assert stored(home) is None
    disk.full = False
    await in_process.until(lambda: stored(home) is not None)


async def test_concurrent_flushes_write_each_event_once(home, monkeypatch):
    """The catalog's changes and the saver's retry may coincide: no event is duplicated or lost."""
    home.drop("one", id="acme.one")
    home.drop("two", id="acme.two")
    for plugin_id in ("acme.one", "acme.two"):
        await home.seen(plugin_id)
    saver, ledger = home.app.api.lifecycle.write_behind, home.app.api.ledger
    await in_process.until(lambda: stored(home, "acme.two") is not None)
    gate, real, mark = asyncio.Event(), ledger.write, home.mark()

    async def slow(change, **how):
        await gate.wait()
        return await real(change, **how)

    monkeypatch.setattr(ledger, "write", slow)
    saver.save("acme.one", Event(actor="latticed", action="test", target="one"))
    first = asyncio.create_task(saver.flush())
    await asyncio.sleep(0)
    saver.save("acme.two", Event(actor="latticed", action="test", target="two"))
    second = asyncio.create_task(saver.flush())
    await asyncio.sleep(0)
    gate.set()
    assert await first
    assert await second
    assert [event["target"] for event in home.events(after=mark, action="test")] == ["one", "two"]


async def test_unexpected_write_error_is_retried(home, monkeypatch):
    """Any exception is retried, not only a full disk."""
    ledger, real, failures = home.app.api.ledger, home.app.api.ledger.write, [RuntimeError("a bug"), OSError(5)]

    async def write(change, **how):
        if failures:
            raise failures.pop()
        return await real(change, **how)

    monkeypatch.setattr(ledger, "write", write)
    home.drop()
    await home.seen("acme.demo")
    await in_process.until(lambda: stored(home) is not None)
    assert failures == []


async def test_pending_records_are_written_at_shutdown(tmp_path, monkeypatch):
    """The disk recovers just before shutdown: the decision is recorded after the next start."""
    monkeypatch.setattr(write_behind, "AGAIN_S", 3600.0)
    async with in_process.opened(tmp_path) as home:
        home.drop()
        await home.armed("acme.demo")
        await in_process.until(lambda: stored(home).status == "active")
        ledger, real = home.app.api.ledger, home.app.api.ledger.write

        async def write(change, **how):
            raise FULL

        monkeypatch.setattr(ledger, "write", write)
        assert (await home.decide("acme.demo", "disabled")).status == 200
        await in_process.until(lambda: home.app.api.lifecycle.write_behind.refused)
        monkeypatch.setattr(ledger, "write", real)
    author = home.author
    async with in_process.opened(tmp_path, author=author) as again:
        assert (await again.plugin("acme.demo"))["status"] == "disabled"
        assert [e["detail"]["to"] for e in again.events(action="plugin.status")][-1] == "disabled"


async def test_gate_that_was_ended_on_full_disk_is_over_after_a_later_activation(tmp_path, monkeypatch):
    """Also for the next start: what the new version has written since is not dropped for one that fails then."""
    monkeypatch.setattr(write_behind, "AGAIN_S", 0.02)
    author, caps = bundles.author(), ["kv:read", "kv:write"]
    opened = functools.partial(in_process.opened, tmp_path, author=author, toml="[upgrade]\ngate_s = 3600\n")
    async with opened() as home:
        home.drop(version="1.0.0", type="system", capabilities=caps)
        await home.armed("acme.demo")
        home.drop(version="2.0.0", type="system", capabilities=caps, artifact=bundles.ARTIFACT + b"#")
        await home.until_plugin("acme.demo", lambda view: "candidate" in view)
        answer = await home.ask("POST", "/api/plugins/by-id/acme.demo/upgrade", {})
        assert answer["upgrade"]["state"] == "gating", answer

        async def full(change, **how):
            raise FULL

        with monkeypatch.context() as context:
            context.setattr(home.app.api.ledger, "write", full)
            assert (await home.decide("acme.demo", "disabled")).status == 200
        await in_process.until(lambda: stored(home).status == "disabled")
        assert (await home.decide("acme.demo", "active")).status == 200
        await home.driven.only("acme.demo").call("kv.put", key="a", value="since")
    async with opened() as home:
        view = await home.until_plugin("acme.demo", lambda view: view["runtime"]["state"] == "armed")
        assert (view["version"], home.driven.running["acme.demo"], "upgrade" in view) == ("2.0.0", 1, False)
        home.driven.only("acme.demo").crash()
        await in_process.until(lambda: home.driven.attempts["acme.demo"] == 2, "started again")
        assert (await home.plugin("acme.demo"))["version"] == "2.0.0"
        assert (await home.ask("GET", "/api/kv/plugin:acme.demo/a"))["raw"] == b"since"
