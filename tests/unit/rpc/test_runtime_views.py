"""The API's views of a plugin's runtime: starting, failed, not running, and its entrypoint."""

from __future__ import annotations

import asyncio

import pytest

from latticed.lifecycle import effect_waiter
from latticed.model.errors import Problem
from tests.house import bundles, in_process

ID = "acme.demo"


@pytest.fixture
async def home():
    async with in_process.opened() as found:
        yield found


async def installed(home, plugin_id=ID, **fields):
    home.drop(plugin_id, id=plugin_id, **fields)
    await home.seen(plugin_id)
    assert (await home.decide(plugin_id, "installed")).status == 200


async def idle(home):
    """`not_running` in health, status and /metrics, which must agree."""
    health, status = await home.ask("GET", "/api/health"), await home.ask("GET", "/api/status")
    assert health["not_running"] == status["not_running"]
    lines = (await home.ask("GET", "/metrics"))["raw"].decode().splitlines()
    counted = [f'latticed_active_not_running{{reason="{why}"}} {n}' for why, n in health["not_running"].items()]
    assert [line for line in lines if line.startswith("latticed_active_not_running{")] == counted
    return health.status, health["not_running"]


async def test_slow_start_is_reported_as_starting(home, monkeypatch):
    """State `stopped`, reason `starting`, in the answer and all views until it is armed."""
    monkeypatch.setattr(effect_waiter, "SETTLE_S", 0.01)
    go = asyncio.Event()
    home.driven.starting = lambda _: go.wait()
    await installed(home)
    answer = await home.decide(ID, "active")
    listed = (await home.ask("GET", "/api/plugins"))["rows"][0]
    for view in (answer, await home.plugin(ID), listed):
        assert (view["status"], view["runtime"]["state"], view["runtime"]["message"]) == (
            "active",
            "stopped",
            "starting",
        )
    assert await idle(home) == (200, {"starting": 1})
    go.set()
    view = await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "armed")
    assert view["runtime"]["message"] == "driven by a test"
    assert await idle(home) == (200, {})


async def test_plugin_in_backoff_is_reported_as_failed(home):
    """The view has the time of the next try; it is counted under its error code."""

    async def fails(_):
        raise Problem("exited", "exited 3")

    home.driven.starting = fails
    await installed(home)
    runtime = (await home.decide(ID, "active"))["runtime"]
    assert (runtime["state"], runtime["last_error"]["code"]) == ("failed", "exited")
    assert runtime["next_retry_at"]
    assert await idle(home) == (200, {"exited": 1})


async def test_tampered_bundle_degrades_health_only_if_critical(home):
    """It is counted by its verdict's code; disabled plugins are not counted."""
    await installed(home)
    await home.decide(ID, "active")
    await installed(home, "acme.off")
    await home.decide("acme.off", "active")
    await home.decide("acme.off", "disabled")
    assert await idle(home) == (200, {})
    bundles.tamper(home.dropped[ID].artifact_path)
    await home.until_plugin(ID, lambda view: view["runtime"]["state"] == "failed")
    assert await idle(home) == (200, {"digest_mismatch": 1})


async def test_plugin_view_has_the_manifests_entrypoint(home):
    """It has it before and after an install, and none where the manifest has none."""
    home.drop("one", id="acme.one", entrypoint="plugin.wasm")
    home.drop("two", id="acme.two", entrypoint=None)
    for plugin_id in ("acme.one", "acme.two"):
        await home.seen(plugin_id)
    for status in ("verified", "installed", "active"):
        if status != "verified":
            assert (await home.decide("acme.one", status)).status == 200
        one, two = (await home.ask("GET", "/api/plugins/lifecycle"))["rows"]
        assert (one["status"], one["entrypoint"], one["runtime"]["plugin_id"]) == (status, "plugin.wasm", "acme.one")
        assert ("entrypoint" in two, two["runtime"]["plugin_id"]) == (False, "acme.two")
