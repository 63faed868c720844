"""What the plugin keeps: however much that is, and whatever cannot be kept, who has to go is cut."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid

import pytest

from latticed.sdk.calls import HostError
from latticed.system.host import Kv
from latticed.system.proxy import plugin as proxy
from latticed.system.proxy import usage
from latticed.system.proxy.accounts import Account
from latticed.system.proxy.usage import ByteCount
from tests.house import proxies
from tests.unit.system.test_given_back import Helper
from tests.unit.system.test_long_values import Bucket

MANY = 2_500
"""Connections of one user, whose state is longer than a value of kv."""


class Refusing(Bucket):
    """A bucket that takes no value of some keys."""

    refused: tuple[str, ...] = ()

    async def ask(self, method, params):
        if method == "kv.put" and params["key"].startswith(self.refused or ("-",)):
            raise HostError("quota_exceeded", "expected a smaller value")
        return await super().ask(method, params)


class Core(Helper):
    """A root helper whose core tells of connections, and a kv with the bounds of the real one."""

    def __init__(self, bucket=None):
        super().__init__()
        self.bucket = bucket or Refusing()
        self.kv = Kv(self.bucket.ask)
        self.told = []
        self.live = {}
        self.unconfirmed = ""
        self.looks = 0

    async def state(self, kind):
        found = await super().state(kind)
        self.looks += 1
        found["target"]["unconfirmed"] = self.unconfirmed
        return {**found, "live": {"answers": True, "sound": True, "connections": self.told, "ended": [], **self.live}}

    def let_in(self):
        return {one["id"] for one in self.plans[self.confirmed]["intent"]["users"] if one.get("enabled", True)}


def connection(rng, user, up_bytes=0):
    made = str(uuid.UUID(int=rng.getrandbits(128), version=4))
    down_bytes = rng.randrange(900_000)
    return {"id": made, "user": user, "source": "198.51.100.7", "up_bytes": up_bytes, "down_bytes": down_bytes}


def plugin_of(core, *users):
    named = [one if isinstance(one, dict) else proxies.user(one) for one in users]
    config = proxies.document(users=named)
    return proxy.ProxyCores(core, id="latticed.proxy", capabilities=(), config=config)


async def applied(core, *users):
    plugin = plugin_of(core, *users)
    await plugin.started()
    await core.apply((await plugin.do_plan(None))["sha256"])
    return plugin


async def looking(plugin, holds, monkeypatch):
    """Look again and again until that holds."""
    monkeypatch.setattr(proxy, "POLL_S", 0.01)
    loop = asyncio.create_task(plugin.run())
    try:
        async with asyncio.timeout(60):
            while not holds():
                assert not loop.done()
                await asyncio.sleep(0.01)
    finally:
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop


async def test_a_user_with_thousands_of_connections_is_counted_and_keeps_nobody_from_being_cut(monkeypatch):
    core, rng = Core(), random.Random(1)
    plugin = await applied(core, "anna", proxies.user("ben", quota_bytes=1_000))
    core.told = [*(connection(rng, "anna", rng.randrange(90_000)) for _ in range(MANY)), connection(rng, "ben", 1_000)]
    await looking(plugin, lambda: core.let_in() == {"anna"}, monkeypatch)
    await plugin.do_disable({"id": "anna"})
    assert core.let_in() == set()
    counted = sum(one["up_bytes"] + one["down_bytes"] for one in core.told if one["user"] == "anna")
    again = plugin_of(core, "anna", "ben")
    await again.started()
    assert again._usage.used["anna"].total() == counted
    assert usage.polled(again._usage, [usage.Connection(**one) for one in core.told]) == again._usage


@pytest.mark.parametrize("refused", [("usage.",), ("usage.", "users.", "part.")])
async def test_what_cannot_be_kept_keeps_nobody_from_being_cut(monkeypatch, refused):
    core, rng = Core(), random.Random(1)
    ended = proxies.user("cleo", expires_at=int(time.time()) + 1)
    plugin = await applied(core, "anna", proxies.user("ben", quota_bytes=1_000), ended)
    core.told = [connection(rng, "ben", 1_000)]
    core.bucket.refused = refused
    await looking(plugin, lambda: core.let_in() == {"anna"}, monkeypatch)
    health = await plugin.check()
    assert (health.status, "quota_exceeded" in health.message) == ("degraded", True)


async def test_who_is_disabled_stays_so_though_the_state_of_others_cannot_be_kept():
    core = Core()
    plugin = await applied(core, "anna", "ben")
    group = usage.group("anna")
    assert group != usage.group("ben")
    plugin._usage = usage.Usage(used={"anna": ByteCount(up_bytes=5), "ben": ByteCount(up_bytes=5)})
    plugin._accounts["ben"] = Account(told="quota 5")
    core.bucket.refused = ("usage.", f"users.{usage.group('ben')}")
    await plugin.do_disable({"id": "anna"})
    again = plugin_of(core, "anna", "ben")
    await again.started()
    assert (core.let_in(), again._accounts["anna"].off) == ({"ben"}, True)


async def test_a_reset_that_cannot_be_kept_counts_on():
    core = Core()
    plugin = await applied(core, "anna")
    plugin._usage = usage.Usage(used={"anna": ByteCount(up_bytes=5)})
    await plugin._keep()
    core.bucket.refused = ("usage.",)
    with pytest.raises(proxy.PluginError, match="cannot be kept"):
        await plugin.do_reset({"id": "anna"})
    assert plugin._usage.used["anna"].total() == 5


async def looked(plugin, core, monkeypatch):
    """Look twice, the second time at what the first has kept."""
    until = core.looks + 3
    await looking(plugin, lambda: core.looks >= until, monkeypatch)


async def started(core, *users):
    plugin = plugin_of(core, *users)
    await plugin.started()
    return plugin


async def test_what_is_kept_of_a_user_goes_with_him_and_not_before_he_is_gone_for_good(monkeypatch):
    """Not while the plan without him is unapproved, nor unconfirmed, nor when that is undone."""
    core, rng = Core(), random.Random(1)
    ended = proxies.user("cleo", expires_at=int(time.time()) - 60)
    plugin = await applied(core, "anna", "ben", ended)
    await plugin.do_token({"id": "ben"})
    core.told = [connection(rng, "anna", 5), connection(rng, "ben", 5)]
    await looked(plugin, core, monkeypatch)
    await plugin.do_disable({"id": "ben"})
    kept = plugin._accounts["ben"], plugin._usage.used["ben"]
    assert "cleo" in plugin._usage.ended
    with_all = core.confirmed
    for unconfirmed in ("", "f" * 64, ""):
        core.unconfirmed = unconfirmed
        without = await started(core, "anna")
        await looked(without, core, monkeypatch)
        assert (without._accounts["ben"], without._usage.used["ben"]) == kept
    # What an undo brings back is confirmed; who is to come with an unconfirmed plan is not.
    await core.apply((await without.do_plan(None))["sha256"])
    assert core.confirmed != with_all
    core.unconfirmed = with_all
    await looked(without, core, monkeypatch)
    assert (without._accounts["ben"], without._usage.used["ben"]) == kept
    core.unconfirmed = ""
    await looked(without, core, monkeypatch)
    again = await started(core, "anna", "ben", ended)
    assert again._account("ben") == Account()
    assert set(again._usage.used) == {"anna"}
    assert again._usage.ended == {}
    # What he had open is not counted for whoever has the id now.
    await looked(again, core, monkeypatch)
    assert again._usage.used.get("ben", ByteCount()).total() == 0


async def test_a_token_can_be_revoked_of_a_user_who_is_configured_no_more():
    core = Core()
    plugin = await applied(core, "anna", "ben")
    await plugin.do_token({"id": "ben"})
    without = await started(core, "anna")
    assert await without.do_revoke({"id": "ben"}) == {"id": "ben", "revoked": True}
    assert (await started(core, "anna"))._account("ben").token == ""
    with pytest.raises(proxy.PluginError, match="has no user"):
        await without.do_revoke({"id": "cleo"})
