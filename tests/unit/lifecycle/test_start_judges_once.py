"""A start hashes no stored artifact before it is ready: an active plugin's own start does, the rest is judged then.

Real bundles, real daemon, restarted.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

from latticed.catalog.store import Store
from latticed.lifecycle.registry import Registry
from tests.house import bundles, in_process

ACME = bundles.author()
RUNNING, RESTING = "acme.running", "acme.resting"


async def filled(root: Any) -> dict[str, str]:
    """One plugin active, one installed, as a daemon left them; their identities by id."""
    async with in_process.opened(root, author=ACME) as home:
        home.drop("running", id=RUNNING)
        home.drop("resting", id=RESTING, artifact=b"#!/bin/sh\n# rests\n")
        await home.armed(RUNNING)
        await home.seen(RESTING)
        assert (await home.decide(RESTING, "installed")).status == 200
        return {one: home.app.api.lifecycle.records[one].facts.identity for one in (RUNNING, RESTING)}


async def test_restart_hashes_each_stored_artifact_once_and_waits_for_none(tmp_path, monkeypatch):
    """While hashing hangs the daemon is ready; with it, each pair was hashed once."""
    ids = {identity: one for one, identity in (await filled(tmp_path)).items()}
    hashed, go_on, real = Counter[str](), threading.Event(), Store.verify

    def verify(self, identity, policy, *, host_version, sha256=None):
        if sha256 is None:
            hashed[ids[identity]] += 1
            go_on.wait(30)
        return real(self, identity, policy, host_version=host_version, sha256=sha256)

    monkeypatch.setattr(Store, "verify", verify)
    try:
        async with in_process.opened(tmp_path, author=ACME) as home:
            assert home.driven.running[RUNNING] == 0
            go_on.set()
            await home.until_plugin(RUNNING, lambda view: view["runtime"]["state"] == "armed")
            await home.app.api.lifecycle.pairs.judged()
            assert hashed == {RUNNING: 1, RESTING: 1}
    finally:
        go_on.set()


async def test_artifact_damaged_in_the_store_while_daemon_was_down_never_runs(tmp_path):
    """Active or not: found, replaced from the plugin directory, on record; the active one runs again."""
    ids = await filled(tmp_path)
    for identity in ids.values():
        stored = tmp_path / "state/store" / identity / "artifact"
        stored.chmod(0o600)
        stored.write_bytes(stored.read_bytes() + b"tampered")
    async with in_process.opened(tmp_path, author=ACME) as home:
        await in_process.until(lambda: len(home.events(action="plugin.mended")) == 2, "both are mended")
        assert {event["target"] for event in home.events(action="plugin.mended")} == set(ids)
        await home.until_plugin(RUNNING, lambda view: view["runtime"]["state"] == "armed")
        assert [one.artifact_sha256 for one in home.driven.of(RUNNING)] == [
            home.app.api.lifecycle.records[RUNNING].facts.artifact_sha256
        ]
        assert (await home.decide(RESTING, "active")).status == 200


async def test_pair_revoked_while_daemon_was_down_is_never_available(tmp_path, monkeypatch):
    """Though another version lies in the plugin directory: its host services do nothing from the first scan on."""
    async with in_process.opened(tmp_path, author=ACME) as home:
        home.drop("running", id=RUNNING, version="1.0.0")
        await home.armed(RUNNING)
        home.drop("running", id=RUNNING, version="2.0.0")
        await home.until_plugin(RUNNING, lambda view: view.get("candidate"))
    revoked = {"keys": [], "digests": [], "plugins": [f"{RUNNING}@1.0.0"]}
    seen: list[bool] = []

    real = Registry.update_permissions

    def update(self: Registry, plugin_id: str) -> None:
        real(self, plugin_id)
        seen.append(self.state.presence(plugin_id).available)

    monkeypatch.setattr(Registry, "update_permissions", update)
    policy = bundles.policy_bytes(ACME, revoked=revoked)
    async with in_process.opened(tmp_path, author=ACME, policy=policy) as home:
        view = await home.until_plugin(RUNNING, lambda view: view["runtime"]["state"] == "failed")
        assert view["runtime"]["last_error"]["code"] == "plugin_revoked"
        await asyncio.wait_for(home.app.api.lifecycle.pairs.judged(), 30)
        assert home.driven.attempts[RUNNING] == 0
    assert seen
    assert not any(seen)
