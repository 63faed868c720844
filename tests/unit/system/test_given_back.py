"""What was approved before and is given back reaches the helper, whatever was under way when it was asked for."""

from __future__ import annotations

import asyncio
import hashlib
import json
from types import SimpleNamespace

import pytest

from latticed.sdk.base import Health, PluginError
from latticed.sdk.calls import HostError
from latticed.system import plugin as system
from latticed.system.host import Log
from latticed.system.plugin import SystemPlugin
from latticed.system.proxy import plugin as proxy
from latticed.system.wireguard import plugin as wireguard
from tests.house import proxies, tunnels

LATE = HostError("service_unavailable", "nothing was applied: late: the root helper did not answer within 9 s")
AWAY = HostError("service_unavailable", "nothing was applied: not_running: the root helper is not running")
UNKNOWN = HostError("service_unavailable", "nothing was applied: not_found: no plan of that name")
WAITS = HostError("service_unavailable", "nothing was applied: not_approved: it does more than take away")
NEVER = HostError("service_unavailable", "nothing was applied: kind_unknown: this root helper applies no plans of it")
LOOKS = 6


class Helper:
    """A host whose root helper keeps plans; `answers` are what the first applies come to, all later ones succeed.

    An answer is an error, or the state that the plan is found in later though its apply was said to be under way.
    """

    def __init__(self, *answers):
        self.answers = list(answers)
        self.plans, self.confirmed, self.tried = {}, "", []
        self.kept = {}
        self.network = SimpleNamespace(state=self.state, plan=self.plan, apply=self.apply)
        self.log = SimpleNamespace(info=self.nothing, warning=self.nothing)
        self.notify = SimpleNamespace(send=self.nothing)
        self.kv = SimpleNamespace(get=self.get, get_bytes=self.get, put=self.put, delete=self.delete)

    async def nothing(self, *_, **__): ...

    async def get(self, key):
        return self.kept.get(key)

    async def put(self, key, value):
        self.kept[key] = value if isinstance(value, bytes) else value.encode()

    async def delete(self, key):
        return self.kept.pop(key, None) is not None

    async def state(self, kind):
        live = {"answers": False, "networks": []}
        return {"kind": kind, "target": {"confirmed": self.confirmed, "unconfirmed": ""}, "live": live}

    async def plan(self, _kind, intent):
        sha256 = hashlib.sha256(json.dumps(intent, sort_keys=True).encode()).hexdigest()
        state = "applied" if sha256 == self.confirmed else "planned"
        self.plans[sha256] = {"sha256": sha256, "state": state, "intent": intent}
        return {"ok": True, "sha256": sha256, "state": state}

    async def apply(self, sha256):
        self.tried.append(sha256)
        answer = self.answers.pop(0) if self.answers else "applied"
        if isinstance(answer, Exception):
            raise answer
        self.plans[sha256]["state"] = answer
        if answer == "applied":
            self.confirmed = sha256
        return {"ok": True, "sha256": sha256, "state": "applying"}

    async def call(self, name, /, **params):
        if name != "network.plans":
            return {"message": ""}
        if params["sha256"] not in self.plans:
            raise HostError("not_found", "this plugin has no plan of that sha256")
        return {"plans": [self.plans[params["sha256"]]]}


def proxy_of_two(helper):
    config = {**proxies.document(users=[proxies.user("anna"), proxies.user("ben")]), "public_url": "https://x.example"}
    plugin = proxy.ProxyCores(helper, id="latticed.proxy", capabilities=(), config=config)
    return proxy, plugin, {"id": "ben"}


def network_of_two(helper):
    config = tunnels.document(members=[tunnels.member("anna", 2), tunnels.member("ben", 3)])
    return (
        wireguard,
        wireguard.Wireguard(helper, id="latticed.wireguard", capabilities=(), config=config),
        {"id": "ben"},
    )


@pytest.mark.parametrize("made", [proxy_of_two, network_of_two])
@pytest.mark.parametrize(
    ("answers", "tries"),
    [
        ([], 1),
        ([LATE], 2),
        ([AWAY, AWAY, UNKNOWN], 4),
        (["stale"], 2),  # another change came to its end meanwhile
        ([WAITS], None),
        ([NEVER], None),
        (["rolled_back"], None),
        (["failed"], None),
    ],
)
async def test_who_is_enabled_again_is_let_in_unless_that_waits_or_came_to_nothing(monkeypatch, made, answers, tries):
    """Tried again at each look, and not at all where it waits for an approval, or would only fail once more."""
    helper = Helper()
    module, plugin, ben = made(helper)
    looks = asyncio.Queue()
    monkeypatch.setattr(module, "POLL_S", 0)
    monkeypatch.setattr(system, "RETRY_S", 0)
    await plugin.started()
    everything = (await plugin.do_plan(None))["sha256"]
    await helper.apply(everything)
    await plugin.do_disable(ben)
    without = helper.confirmed
    assert without != everything
    helper.answers, helper.tried = list(answers), []

    real = helper.state
    monkeypatch.setattr(helper.network, "state", lambda kind: looks.put_nowait(kind) or real(kind))
    await plugin.do_enable(ben)
    loop = asyncio.create_task(plugin.run())
    async with asyncio.timeout(60):
        for _ in range(LOOKS):
            await looks.get()
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    assert helper.confirmed == (everything if tries else without)
    assert helper.tried == [everything] * (tries or 1)


@pytest.mark.parametrize("made", [proxy_of_two, network_of_two])
async def test_what_an_earlier_one_came_to_is_not_held_against_who_could_not_even_be_planned(monkeypatch, made):
    """The helper is late with an end that is due at the same time: both are tried again at the next look."""
    helper = Helper()
    module, plugin, ben = made(helper)
    looks = asyncio.Queue()
    monkeypatch.setattr(module, "POLL_S", 0)
    monkeypatch.setattr(system, "RETRY_S", 0)
    await plugin.started()
    everything = (await plugin.do_plan(None))["sha256"]
    await helper.apply(everything)
    await plugin.do_disable(ben)
    helper.answers = ["failed"]
    await plugin.do_enable(ben)
    assert await plugin.came_to_nothing()
    helper.answers = [LATE]
    with pytest.raises(PluginError, match="tried again"):
        await plugin.do_disable({"id": "anna"})
    helper.answers = [LATE]
    with pytest.raises(PluginError, match="tried again"):
        await plugin.do_enable(ben)
    real = helper.state
    monkeypatch.setattr(helper.network, "state", lambda kind: looks.put_nowait(kind) or real(kind))
    loop = asyncio.create_task(plugin.run())
    async with asyncio.timeout(60):
        for _ in range(LOOKS):
            await looks.get()
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)
    wanted = (await plugin.do_plan(None))["sha256"]
    assert helper.confirmed == wanted != everything


@pytest.mark.parametrize("made", [proxy_of_two, network_of_two])
async def test_who_is_ended_is_told_so_though_the_log_takes_nothing(made):
    async def refused(method, _params):
        raise HostError("capability_not_granted", f"{method} is not granted")

    helper = Helper()
    helper.log = Log(refused)
    _, plugin, ben = made(helper)
    await plugin.started()
    everything = (await plugin.do_plan(None))["sha256"]
    await helper.apply(everything)
    await plugin.do_disable(ben)
    assert len(helper.tried) == 2
    assert helper.confirmed == helper.tried[-1] != everything


@pytest.mark.parametrize("made", [proxy_of_two, network_of_two])
async def test_a_plan_that_is_kept_no_more_holds_up_neither_ends_nor_who_is_let_in(monkeypatch, made):
    """The host keeps some plans of a plugin, and the oldest make room."""
    helper = Helper()
    module, plugin, ben = made(helper)
    monkeypatch.setattr(module, "POLL_S", 0)
    monkeypatch.setattr(system, "RETRY_S", 0)
    await plugin.started()
    everything = (await plugin.do_plan(None))["sha256"]
    await helper.apply(everything)
    await plugin.do_disable(ben)
    helper.answers = [LATE]
    await plugin.do_enable(ben)
    del helper.plans[everything]
    loop = asyncio.create_task(plugin.run())
    async with asyncio.timeout(60):
        while helper.confirmed != everything:
            assert not loop.done()
            await asyncio.sleep(0)
    loop.cancel()
    await asyncio.gather(loop, return_exceptions=True)


@pytest.mark.parametrize("made", [proxy_of_two, network_of_two])
async def test_an_operator_is_told_what_has_no_effect_yet_and_a_helper_that_is_away_is_asked_less_often(
    monkeypatch, made
):
    helper = Helper()
    _, plugin, ben = made(helper)
    now_s = 1_000.0
    monkeypatch.setattr(system, "time", SimpleNamespace(monotonic=lambda: now_s))
    await plugin.started()
    everything = await plugin.do_plan(None)
    await helper.apply(everything["sha256"])
    await plugin.do_disable(ben)
    well = Health("healthy", "plan x")
    assert plugin.with_refusal(well) is well
    pauses = []
    for _ in range(9):
        helper.answers = [AWAY]
        assert await plugin.apply_again(everything) == ("planned", True)
        began_s = now_s
        while not plugin.may_try():
            now_s += 1
        pauses.append(now_s - began_s)
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60, 60]
    assert plugin.with_refusal(well).status == "degraded"
    assert "not_running" in plugin.with_refusal(well).message
    helper.answers = [NEVER]
    assert await plugin.apply_again(everything) == ("planned", False)
    assert "nor tried again: nothing was applied: kind_unknown" in plugin.with_refusal(well).message
    worse = Health("degraded", "drift")
    assert plugin.with_refusal(worse) is worse
    assert await plugin.apply_again(everything) == ("applying", True)
    assert plugin.with_refusal(well) is well


async def test_a_plan_that_was_never_tried_came_to_nothing_as_little():
    assert not await SystemPlugin(Helper(), id="a.b", capabilities=(), config={}).came_to_nothing()
