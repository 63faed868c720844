"""Open gates when the version to return to is revoked: it is stopped, and the new one stays. The real App."""

from __future__ import annotations

import asyncio

import pytest

from latticed.lifecycle import effect_waiter
from latticed.supervisor import deps
from tests.house import bundles, in_process

ID, SLOW = "acme.demo", "acme.slow"
ACME = bundles.author("acme")
LONG = "[upgrade]\ngate_s = 3600\n"


@pytest.fixture
async def home():
    """With a gate that is open for an hour, of 1.1.0 beside 1.0.0."""
    async with in_process.opened(author=ACME, toml=LONG) as found:
        found.drop(version="1.0.0", type="system")
        await found.armed(ID)
        found.drop(version="1.1.0", type="system", artifact=bundles.ARTIFACT + b"#")
        await found.until_plugin(ID, lambda view: "candidate" in view)
        answer = await found.ask("POST", f"/api/plugins/by-id/{ID}/upgrade", {})
        assert answer["upgrade"]["state"] == "gating", answer
        yield found


def revoke(home, *plugins):
    home.trust.write_bytes(bundles.policy_bytes(ACME, revoked={"plugins": list(plugins)}))


async def stays(home):
    """That the gate ends with the new version on record, and why."""
    view = await home.until_plugin(ID, lambda view: view["upgrade"]["state"] != "gating")
    assert (view["version"], view["upgrade"]["state"]) == ("1.1.0", "committed")
    assert [event["code"] for event in home.events(action="plugin.upgrade")] == ["no_return"]
    assert home.app.api.lifecycle.state.bad.get(ID, {}) == {}


@pytest.mark.parametrize(("versions", "left"), [("*", 0), ("1.0.0", 1)])
async def test_revoked_versions_stop_while_another_plugin_takes_its_time_to_stop(home, monkeypatch, versions, left):
    """Neither waits for that one, and the daemon does not go back to a version that is revoked."""
    monkeypatch.setattr(deps, "STOP_MARGIN_S", 3600.0)
    monkeypatch.setattr(effect_waiter, "SETTLE_S", 3600.0)
    home.drop("slow", id=SLOW, type="system")
    slow, stopping, may_stop = await home.armed(SLOW), asyncio.Event(), asyncio.Event()

    async def waits(_):
        stopping.set()
        await may_stop.wait()

    slow.stopping = waits
    revoke(home, f"{ID}@{versions}", f"{SLOW}@*")
    looking = asyncio.create_task(home.look())
    try:
        await stopping.wait()
        await stays(home)
        await in_process.until(lambda: home.driven.running[ID] == left, "what is revoked stopped")
        assert slow.alive
    finally:
        may_stop.set()
    await looking
    assert (await home.plugin(ID))["runtime"]["state"] == ("armed" if left else "failed")


async def test_new_version_fails_when_the_old_one_has_just_been_revoked(home):
    """The policy counts from when it is read, before everything was judged by it."""
    revoke(home, f"{ID}@1.0.0")
    await asyncio.to_thread(home.app.api.policy.look, always=True)
    old, new = home.driven.of(ID)
    new.crash()
    await stays(home)
    await in_process.until(lambda: not old.alive, "the revoked one stopped")


async def test_verdict_that_comes_late_stops_no_other_version_that_stands_by_since(home, monkeypatch):
    """1.0.0 is revoked, and while it is judged an upgrade has 1.1.0 stand by in its place."""
    judge = home.app.api.lifecycle.upgrades.judge
    many, begun, go_on = judge.many, asyncio.Event(), asyncio.Event()

    async def slow(pairs):
        begun.set()
        await go_on.wait()
        return await many(pairs)

    monkeypatch.setattr(judge, "many", slow)
    revoke(home, f"{ID}@1.0.0")
    looking = asyncio.create_task(home.look())
    await begun.wait()
    monkeypatch.setattr(judge, "many", many)
    home.drop(version="1.2.0", type="system", artifact=bundles.ARTIFACT + b"##")
    await home.until_plugin(ID, lambda view: view.get("candidate", {}).get("version") == "1.2.0")
    answer = await home.ask("POST", f"/api/plugins/by-id/{ID}/upgrade", {})
    assert (answer["version"], answer["upgrade"]["state"]) == ("1.2.0", "gating")
    running = [one for one in home.driven.of(ID) if one.alive]
    go_on.set()
    await looking
    assert [one for one in running if not one.alive] == []
    assert (await home.plugin(ID))["upgrade"]["state"] == "gating"
