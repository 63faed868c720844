"""Checking a configuration may take seconds, and disabling the plugin does not wait for it."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from latticed.model.lifecycle import Status
from tests.house import in_process

ID = "acme.demo"
PLUGIN = f"/api/plugins/by-id/{ID}"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
NEEDS = {**SCHEMA, "required": ["city"]}


@contextlib.asynccontextmanager
async def opened(schema=SCHEMA):
    """A daemon that has installed the plugin, whose configuration has this schema."""
    async with in_process.opened() as home:
        home.drop(id=ID, v2=True, config=schema, runtime={"protocol": "latticed-stdio-1"})
        await home.seen(ID)
        await home.decide(ID, "installed")
        yield home


class Slow:
    """A check of a configuration that ends when `go_on` is set; `checking` is set once it has begun."""

    def __init__(self, home, monkeypatch):
        self.checking, self.go_on = asyncio.Event(), asyncio.Event()
        monkeypatch.setattr(home.app.api.lifecycle.decisions.configurations.checker, "check", self.check)

    async def check(self, *_):
        self.checking.set()
        await self.go_on.wait()


async def test_plugin_is_disabled_while_its_configuration_is_checked(monkeypatch):
    """The document is set once it is checked."""
    async with opened() as home:
        assert (await home.decide(ID, "active"))["runtime"]["state"] == "armed"
        slow = Slow(home, monkeypatch)
        setting = asyncio.create_task(home.ask("PUT", f"{PLUGIN}/config", {"config": {"city": "Bern"}}))
        async with asyncio.timeout(in_process.DEADLINE_S):
            await slow.checking.wait()
            disabled = await home.decide(ID, "disabled")
        assert (disabled["status"], disabled["runtime"]["state"]) == ("disabled", "stopped")
        assert not setting.done()
        slow.go_on.set()
        assert (await setting).status == 200
        assert (await home.ask("GET", f"{PLUGIN}/config"))["config"] == {"city": "Bern"}


async def test_plugin_is_disabled_while_its_upgrade_is_checked(monkeypatch):
    """The upgrade is given up and says why; asked again, it leads to the new version, disabled."""
    async with opened() as home:
        assert (await home.decide(ID, "active"))["runtime"]["state"] == "armed"
        home.drop(id=ID, v2=True, version="2.0.0", config=NEEDS, runtime={"protocol": "latticed-stdio-1"})
        await home.until_plugin(ID, lambda view: view.get("candidate"))
        slow = Slow(home, monkeypatch)
        upgrading = asyncio.create_task(home.ask("POST", f"{PLUGIN}/upgrade", {}))
        async with asyncio.timeout(in_process.DEADLINE_S):
            await slow.checking.wait()
            disabled = await home.decide(ID, "disabled")
            refused = await upgrading
        assert (disabled["status"], disabled["version"]) == ("disabled", "1.0.0")
        assert disabled["runtime"]["state"] == "stopped"
        assert (refused.status, refused.code) == (409, "invalid_transition")
        assert "it is being disabled" in refused["detail"]
        assert [event["code"] for event in home.events(action="plugin.status", decision="deny")] == [refused.code]
        after = await home.ask("POST", f"{PLUGIN}/upgrade", {})
        assert (after["status"], after["version"]) == ("disabled", "2.0.0")


@pytest.mark.parametrize("waiting", [0, 2])
async def test_plugin_is_disabled_while_its_activation_is_checked(waiting, monkeypatch):
    """The last decision counts: neither this activation nor one that waits for its turn starts the plugin."""
    async with opened(NEEDS) as home:
        slow = Slow(home, monkeypatch)
        activations = [asyncio.create_task(home.decide(ID, "active"))]
        async with asyncio.timeout(in_process.DEADLINE_S):
            await slow.checking.wait()
            activations += [asyncio.create_task(home.decide(ID, "active")) for _ in range(waiting)]
            turn = home.app.api.lifecycle.decisions.turns._locks[ID]
            await in_process.until(lambda: len(turn._waiters or ()) == waiting, "activations that wait for their turn")
            disabled = await home.decide(ID, "disabled")
            refused = await asyncio.gather(*activations)
        assert (disabled["status"], disabled["runtime"]["state"]) == ("disabled", "stopped")
        assert [(answer.status, answer.code) for answer in refused] == [(409, "invalid_transition")] * (1 + waiting)
        # Nothing of it stays: a later activation is checked and starts the plugin.
        slow.go_on.set()
        assert (await home.decide(ID, "active"))["runtime"]["state"] == "armed"


async def test_activation_that_is_cancelled_while_checked_changes_nothing(monkeypatch):
    """As when the daemon stops meanwhile; the next decision takes its turn."""
    async with opened(NEEDS) as home:
        slow = Slow(home, monkeypatch)
        decisions = home.app.api.lifecycle.decisions
        activating = asyncio.create_task(decisions.change("operator", ID, Status.ACTIVE))
        async with asyncio.timeout(in_process.DEADLINE_S):
            await slow.checking.wait()
            activating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await activating
            assert (await home.decide(ID, "disabled"))["status"] == "disabled"
