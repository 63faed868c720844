"""Lifting a remembered revocation while a change of the trust policy is being recorded."""

from __future__ import annotations

import asyncio

from latticed.model.audit import Actor
from tests.house import bundles, in_process

STRANGER = bundles.author("stranger")


async def test_lifted_revocation_is_not_recorded_again_by_an_earlier_change_of_the_policy(monkeypatch):
    """The change was read while the key was still revoked, and is written after the key was to be lifted."""
    lapsed = bundles.author("lapsed")
    async with in_process.opened() as home:
        api = home.app.api

        async def policy_of(*authors, **fields):
            home.trust.write_bytes(bundles.policy_bytes(home.author, *authors, **fields))
            await asyncio.to_thread(api.policy.look, always=True)

        revoked = {"keys": [lapsed.public], "digests": [], "plugins": []}
        await policy_of(lapsed, revoked=revoked)
        await api.revocations.remember()
        await policy_of(lapsed, STRANGER)
        assert lapsed.public in api.policy.current.revoked.keys
        write, writing, go_on = api.ledger.write, asyncio.Event(), asyncio.Event()

        async def slow_at_first(*what, **how):
            if not writing.is_set():
                writing.set()
                await go_on.wait()
            return await write(*what, **how)

        monkeypatch.setattr(api.ledger, "write", slow_at_first)
        recording = asyncio.create_task(api.revocations.remember())
        await writing.wait()
        lifting = asyncio.create_task(
            api.revocations.lift(Actor(kind="peer", name="root", uid=0, pid=1), "key", lapsed.public)
        )
        for _ in range(20):
            await asyncio.sleep(0)
        await asyncio.sleep(0.2)  # without the lock, the key is lifted by now
        go_on.set()
        await asyncio.gather(recording, lifting)
        assert lapsed.public not in api.policy.current.revoked.keys
        assert await api.revocations.remember()
        assert lapsed.public not in api.policy.current.revoked.keys
