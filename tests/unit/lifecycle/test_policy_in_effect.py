"""When a trust policy counts as in effect: `Pairs.in_effect`, which `GET /api/trust` waits for."""

from __future__ import annotations

import asyncio

from latticed.lifecycle import pairs
from tests.house import bundles, in_process

ID = "acme.demo"


async def test_newer_policy_is_in_effect_although_judging_the_older_one_ends_later(monkeypatch):
    """Two changes in a row overlap when the first one waits for a plugin to stop."""
    async with in_process.opened() as home:
        home.drop("demo", id=ID, capabilities=["kv:read"])
        await home.decide(ID, "installed")
        kept, go_on = home.app.api.lifecycle.pairs, asyncio.Event()
        judge, calls = kept._judge_without_hashing, 0

        async def slow_at_first():
            nonlocal calls
            calls += 1
            if calls == 1:
                await go_on.wait()
            return await judge()

        monkeypatch.setattr(kept, "_judge_without_hashing", slow_at_first)
        before = home.app.api.policy.current
        older = asyncio.create_task(kept.policy_changed())
        await asyncio.sleep(0)
        home.trust.write_bytes(bundles.policy_bytes(home.author, require_signature=False))
        await asyncio.to_thread(home.app.api.policy.look, always=True)
        assert home.app.api.policy.current != before
        await kept.policy_changed()
        go_on.set()
        await older
        monkeypatch.setattr(pairs, "EFFECT_S", 0.0)
        await kept.in_effect()
        assert kept._in_effect == home.app.api.policy.current
