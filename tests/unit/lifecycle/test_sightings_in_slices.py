"""Large batches of changes are taken in slices, between which others have their turn. Real daemon."""

from __future__ import annotations

from typing import Any

from latticed.catalog.catalog import Sighting
from latticed.lifecycle import registry
from tests.house import bundles, in_process

ACME = bundles.author()
MANY = 4


async def test_renamed_bundles_are_never_gone_between_slices(monkeypatch: Any) -> None:
    """However small the slices are, and with those that are gone first in the batch: the plugins run on."""
    monkeypatch.setattr(registry, "ENTERED", 1)
    monkeypatch.setattr(registry, "REFRESHED", 1)
    async with in_process.opened(author=ACME) as home:
        ids = [f"acme.n{number}" for number in range(MANY)]
        for plugin_id in ids:
            home.drop(plugin_id, id=plugin_id)
            await home.armed(plugin_id)
        lifecycle, supervisor = home.app.api.lifecycle, home.app.api.supervisor
        gone = [Sighting(name=f"plugins/{one}", verdict=None) for one in ids]
        come = [Sighting(name=f"plugins/{one}-2", verdict=lifecycle.presence(one).winner.verdict) for one in ids]
        states = set()
        for _ in lifecycle.registry.take([*gone, *come], set()):
            for one in ids:
                lifecycle.registry.refresh(one)  # as at the end of a decision in between
                states.add((lifecycle.presence(one).available, supervisor.runtime(one).state))
        assert states == {(True, "armed")}
        assert [lifecycle.records[one].source for one in ids] == [f"plugins/{one}-2" for one in ids]


async def test_active_plugins_are_looked_at_before_others(monkeypatch: Any) -> None:
    """They may have to be stopped; the others, whose ids sort before theirs, can wait."""
    monkeypatch.setattr(registry, "REFRESHED", 2)
    async with in_process.opened(author=ACME) as home:
        home.drop("z", id="acme.zz-active")
        await home.armed("acme.zz-active")
        others = {f"acme.a{number}" for number in range(4)}
        for plugin_id in others:
            home.drop(plugin_id, id=plugin_id)
            await home.seen(plugin_id)
        parts = list(home.app.api.lifecycle.registry.take((), {*others, "acme.zz-active", "acme.unknown"}))
        assert parts[0][0] == "acme.zz-active"
        assert [len(part) for part in parts] == [2, 2, 2]
        assert {one for part in parts for one in part} == {*others, "acme.zz-active", "acme.unknown"}
