"""What the plugin keeps, plans and has applied, against a host that answers as it is told."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from typing import Any

import pytest

from latticed.sdk.base import PluginError
from latticed.sdk.calls import HostError
from latticed.system.host import Host
from latticed.system.nft_guard import plugin as guard

CONFIG = {"groups": [{"name": "ssh", "rules": [{"proto": "tcp", "ports": [22]}]}], "bindings": {"groups": ["ssh"]}}
ADA, BOB = "192.0.2.7", "192.0.2.8"
SOON = int(time.time()) + 3_600


class World:
    """A host: kv, plans by name, and a table that has the bans of the plan that was applied last."""

    def __init__(self) -> None:
        self.kv: dict[str, bytes] = {}
        self.plans: dict[str, dict[str, Any]] = {}
        self.applied: list[dict[str, Any]] = []
        self.target: dict[str, Any] = {"confirmed": "ab" * 32, "unconfirmed": "", "drifted": False}
        self.refuses: dict[str, str] = {}
        self.killed_at = ""
        self.unfinished = False
        self.is_unheard = False

    async def ask(self, method: str, params: dict[str, Any]) -> Any:
        await asyncio.sleep(0)
        if method == self.killed_at:
            raise asyncio.CancelledError
        if method in self.refuses:
            raise HostError("service_unavailable", self.refuses[method])
        match method:
            case "kv.get":
                value = self.kv.get(params["key"])
                return {"ok": value is not None, "value_base64": base64.b64encode(value or b"").decode()}
            case "kv.put":
                self.kv[params["key"]] = params["value"].encode()
                return {"ok": True}
            case "network.plan":
                name = hashlib.sha256(json.dumps(params["intent"], sort_keys=True).encode()).hexdigest()
                self.plans[name] = params["intent"]
                return {"ok": True, "sha256": name, "state": "planned"}
            case "network.apply":
                self.applied.append(self.plans[params["sha256"]])
                self.target["confirmed"] = params["sha256"]
                if self.is_unheard:
                    raise HostError("service_unavailable", "nothing was applied: helper_unavailable")
                return {"ok": True, "state": "applying"}
            case "network.plans":
                if params["sha256"] not in self.plans:
                    raise HostError("not_found", "this plugin has no plan of that sha256")
                return {"plans": [{"intent": self.plans[params["sha256"]]}], "next": None}
            case "network.state":
                table = {"present": True, "bans": self.table()}
                return {"target": self.target, "live": {"table": table, "unfinished": self.unfinished}}
        raise AssertionError(method)

    def table(self) -> list[dict[str, str]]:
        bans = self.applied[-1].get("bans", []) if self.applied else []
        return [{"network": f"{one['address']}/32"} for one in bans]

    def kept(self) -> list[str]:
        return [one["address"] for one in json.loads(self.kv.get("bans", b"{}")).values()]

    def plugin(self, **config: Any) -> guard.NftGuard:
        return guard.NftGuard(Host(self.ask), id="latticed.nft-guard", capabilities=(), config={**CONFIG, **config})


def ban(address, seconds=600):
    return {"address": address, "seconds": seconds}


def bans(intent):
    return {one["address"]: one["expires_at"] for one in intent.get("bans", [])}


# Bans.


async def test_bans_at_once_are_all_kept_and_the_last_plan_has_them_all():
    world = World()
    plugin = world.plugin()
    await asyncio.gather(*(plugin.do_ban(ban(f"192.0.2.{n}")) for n in range(1, 9)))
    assert sorted(world.kept()) == [f"192.0.2.{n}" for n in range(1, 9)]
    assert sorted(bans(world.applied[-1])) == sorted(world.kept())


async def test_ban_that_is_refused_is_not_kept_and_an_unban_that_is_refused_is():
    world = World()
    plugin = world.plugin()
    await plugin.do_ban(ban(ADA))
    world.refuses["network.apply"] = "not_approved"
    with pytest.raises(PluginError, match="not_approved"):
        await plugin.do_ban(ban(BOB))
    with pytest.raises(PluginError, match="not_approved"):
        await plugin.do_unban({"address": ADA})
    assert world.kept() == [ADA]


@pytest.mark.parametrize("action", ["do_ban", "do_unban"])
async def test_ban_that_was_cut_off_while_it_was_applied_is_kept_and_applied_later(action):
    """Never the other way round: one in the table that `unban` knows nothing of."""
    world = World()
    await world.plugin().do_ban(ban(ADA))
    world.killed_at = "network.apply"
    with pytest.raises(asyncio.CancelledError):
        await getattr(world.plugin(), action)({"address": ADA} if action == "do_unban" else ban(BOB))
    world.killed_at = ""
    assert set(world.kept()) == ({ADA} if action == "do_unban" else {ADA, BOB})
    plugin = world.plugin()
    await plugin._mend(await world.ask("network.state", {}))
    assert set(bans(world.applied[-1])) == set(world.kept())


async def test_ban_that_was_applied_by_a_helper_that_did_not_come_to_say_so_can_be_lifted():
    """One of the configuration is lifted there, as ever."""
    world = World()
    await world.plugin().do_ban(ban(ADA))
    world.is_unheard = True
    with pytest.raises(PluginError, match="helper_unavailable"):
        await world.plugin().do_ban(ban(BOB))
    world.is_unheard = False
    assert (world.kept(), sorted(bans(world.applied[-1]))) == ([ADA], [ADA, BOB])
    with pytest.raises(PluginError, match="was not banned by this action"):
        await world.plugin(bans=[{"address": BOB, "expires_at": SOON}]).do_unban({"address": BOB})
    await world.plugin().do_unban({"address": BOB})
    assert (world.kept(), sorted(bans(world.applied[-1]))) == ([ADA], [ADA])


async def test_ban_of_an_address_that_is_banned_for_longer_changes_nothing():
    world = World()
    plugin = world.plugin()
    first = await plugin.do_ban(ban(ADA, 600))
    again = await plugin.do_ban(ban(ADA, 60))
    assert (again["expires_at"], len(world.applied)) == (first["expires_at"], 1)
    longer = await plugin.do_ban(ban(ADA, 900))
    assert longer["expires_at"] > first["expires_at"]


async def test_most_bans_are_kept_and_one_more_is_refused():
    world = World()
    many = {
        f"10.0.{n >> 8}.{n & 255}/32": {"address": f"10.0.{n >> 8}.{n & 255}", "expires_at": SOON} for n in range(512)
    }
    world.kv["bans"] = json.dumps(many).encode()
    plugin = world.plugin()
    with pytest.raises(PluginError, match="at most 512 bans"):
        await plugin.do_ban(ban(ADA))
    await plugin.do_unban({"address": "10.0.0.0"})
    await plugin.do_ban(ban(ADA))
    assert len(world.kept()) == 512


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"\xff", b'{"x": 1}', b'{"x": {"address": 3, "expires_at": "x"}}'])
async def test_what_an_operator_wrote_there_that_is_no_ban_is_left_out(value):
    world = World()
    world.kv["bans"] = value
    assert await world.plugin()._intent() == CONFIG


async def test_bans_that_are_over_are_forgotten_and_not_planned():
    world = World()
    over = {f"{ADA}/32": {"address": ADA, "expires_at": 1}, f"{BOB}/32": {"address": BOB, "expires_at": SOON}}
    world.kv["bans"] = json.dumps(over).encode()
    plugin = world.plugin()
    assert bans(await plugin._intent()) == {BOB: SOON}
    await plugin._expire()
    assert world.kept() == [BOB]


@pytest.mark.parametrize(("configured", "kept", "holds"), [(SOON, SOON + 9, SOON + 9), (SOON + 9, SOON, SOON + 9)])
def test_of_two_bans_of_one_network_the_later_end_holds(configured, kept, holds):
    config = {
        **CONFIG,
        "bans": [{"address": ADA, "expires_at": configured}, {"address": "no address", "expires_at": 1}],
    }
    found = guard._merged(config, {f"{ADA}/32": {"address": ADA, "expires_at": kept}}, SOON - 60)
    assert bans(found) == {ADA: holds, "no address": 1}


WIDER = {**CONFIG, "never": ["203.0.113.0/24"]}


async def test_ban_brings_in_nothing_that_was_configured_and_not_applied():
    """Neither does lifting it, nor a ban that is applied later."""
    world = World()
    await world.ask("network.apply", {"sha256": (await world.ask("network.plan", {"intent": WIDER}))["sha256"]})
    plugin = world.plugin()
    await plugin.do_ban(ban(ADA))
    await plugin.do_ban(ban(BOB))
    await plugin.do_unban({"address": ADA})
    assert [sorted(bans(one)) for one in world.applied[1:]] == [[ADA], [ADA, BOB], [BOB]]
    world.kv["bans"] = json.dumps({f"{ADA}/32": {"address": ADA, "expires_at": SOON}}).encode()
    await plugin._mend(await world.ask("network.state", {}))
    assert {json.dumps({**one, "bans": 0}) for one in world.applied[1:]} == {json.dumps({**WIDER, "bans": 0})}
    await plugin.do_unban({"address": ADA})
    await plugin._expire()
    # What an operator plans is the configuration.
    assert await plugin._intent() == CONFIG


async def test_ban_while_the_applied_plan_is_of_somebody_else_is_of_the_configuration():
    world = World()
    await world.plugin().do_ban(ban(ADA))
    assert {**world.applied[-1], "bans": 0} == {**CONFIG, "bans": 0}


async def test_lifted_ban_of_an_address_that_the_configuration_bans_too_leaves_that_one():
    world = World()
    plugin = world.plugin(bans=[{"address": ADA, "expires_at": SOON - 3_000}])
    await plugin.do_ban(ban(ADA, 3_000))
    assert bans(world.applied[-1])[ADA] > SOON - 3_000
    await plugin.do_unban({"address": ADA})
    assert bans(world.applied[-1]) == {ADA: SOON - 3_000}


def test_bans_that_are_over_are_left_out_unless_the_configuration_has_them():
    """Else each ban would stay in all later intents."""
    over = [{"address": ADA, "expires_at": 50}, {"address": BOB, "expires_at": 60}]
    found = guard._exchanged({**CONFIG, "bans": over}, {**CONFIG, "bans": over[:1]}, ({}, {}), 100)
    assert bans(found) == {ADA: 50}
    assert guard._exchanged({**CONFIG, "bans": over}, CONFIG, ({}, {}), 100) == CONFIG


# Mending and health.


@pytest.mark.parametrize("target", [{"confirmed": ""}, {"unconfirmed": "cd" * 32}, {"drifted": True}])
async def test_nothing_is_applied_unasked_while_a_plan_waits_drifted_or_none_is_confirmed(target):
    world = World()
    world.kv["bans"] = json.dumps({f"{ADA}/32": {"address": ADA, "expires_at": SOON}}).encode()
    world.target |= target
    await world.plugin()._mend(await world.ask("network.state", {}))
    assert world.applied == []


async def test_bans_that_outlast_their_end_are_applied_again_once_in_a_while():
    world = World()
    plugin = world.plugin()
    await plugin.do_ban(ban(ADA))
    world.unfinished = True
    state = await world.ask("network.state", {})
    for _ in range(3):
        await plugin._mend(state)
    assert (len(world.applied), world.applied[1]) == (2, world.applied[0])
    world.unfinished = False
    plugin._mended_s = float("-inf")
    await plugin._mend(await world.ask("network.state", {}))
    assert (len(world.applied), plugin._unapplied) == (2, "")


async def test_bans_that_cannot_be_applied_are_tried_once_in_a_while_and_told():
    world = World()
    world.kv["bans"] = json.dumps({f"{ADA}/32": {"address": ADA, "expires_at": SOON}}).encode()
    world.refuses["network.apply"] = "not_approved"
    plugin, state = world.plugin(), await world.ask("network.state", {})
    for _ in range(3):
        await plugin._mend(state)
    assert (plugin._unapplied.startswith("1 bans are not in the table: "), len(world.plans)) == (True, 1)
    world.refuses.clear()
    plugin._mended_s = float("-inf")
    await plugin._mend(state)
    assert (plugin._unapplied, list(bans(world.applied[-1]))) == ("", [ADA])


@pytest.mark.parametrize(
    ("target", "table", "status", "words"),
    [
        ({}, {"present": True, "bans": [1, 2]}, "healthy", "2 bans"),
        ({"unconfirmed": "cd" * 32, "deadline_s": 41.7}, {}, "degraded", "is undone in 41 s"),
        ({"confirmed": ""}, {}, "degraded", "no plan is applied"),
        ({"drifted": True}, {"present": False}, "degraded", "the table is gone"),
        ({"drifted": True}, {"present": True}, "degraded", "the table was changed"),
    ],
)
def test_health_says_what_there_is_to_do(target, table, status, words):
    found = guard._health({"target": {"confirmed": "ab" * 32, **target}, "live": {"table": table}})
    assert (found.status, words in found.message) == (status, True)


async def test_helper_that_does_not_answer_is_degraded_with_its_words():
    world = World()
    world.refuses["network.state"] = "only root can see the ruleset: tool_missing: nft (package nftables)"
    found = await world.plugin().check()
    assert (found.status, "package nftables" in found.message) == ("degraded", True)


@pytest.mark.parametrize("payload", [None, [], {}, {"address": ADA}, {**ban(ADA), "x": 1}, ban(ADA, 0), ban(ADA, True)])
async def test_bad_ban_asks_nothing_of_the_host(payload):
    world = World()
    with pytest.raises(PluginError):
        await world.plugin().do_ban(payload)
    assert (world.kv, world.plans) == ({}, {})
