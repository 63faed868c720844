"""Every runner in a complete daemon: its plugins look alike to operators and in the audit."""

from __future__ import annotations

import pytest

from tests.house import in_process, leftovers, runner_plugins

SOON = "[supervision]\nbackoff_base_s = 0.1\n"


every = pytest.mark.parametrize("way", runner_plugins.WAYS.values(), ids=runner_plugins.WAYS)


def able(what):
    """The runners that support this; `test_unsupported_behaviour_of_a_runner_has_a_reason` has the others."""
    found = {name: way for name, way in runner_plugins.WAYS.items() if not runner_plugins.reason(way, what)}
    return pytest.mark.parametrize("way", found.values(), ids=found)


async def activated(home, way, *, artifact=None, capabilities=None, name="demo"):
    """The answer to its activation."""
    plugin_id = way.id(name)
    if way.builtin is None:
        wanted = {"capabilities": list(capabilities or way.declares), **way.fields}
        home.drop(name, id=plugin_id, artifact=artifact or way.artifact, **wanted)
    await home.seen(plugin_id)
    assert (await home.decide(plugin_id, "installed")).status == 200
    start = home.mark()
    answer = await home.decide(plugin_id, "active")
    assert answer.status == 200, answer
    await in_process.until(lambda: states(home, start, plugin_id), "what came of it on record")
    return answer


async def invoked(home, action, plugin_id):
    """The (reply, code) of an invocation: a refusal of the plugin counts as a code; else the problem's."""
    answer = await home.ask("POST", f"/api/plugins/by-id/{plugin_id}/invoke", {"action": action, "payload": None})
    if answer.status != 200:
        return None, answer.code
    result = answer["result"] if isinstance(answer["result"], dict) else {}
    said = answer["error"] or result.get("error", {}).get("code", "")
    return dict(answer), said.partition(":")[0]


def recorded(home, after, plugin_id):
    """(call, decision, code) of its host calls since `after`."""
    found = home.events(after=after, action="host.call", actor=f"plugin:{plugin_id}")
    return [(event["target"], event["decision"], event["code"]) for event in found]


def states(home, after, plugin_id):
    """Its runtime states, as audited."""
    found = home.events(after=after, action="plugin.runtime", target=plugin_id)
    return [f"{event['detail']['state']} {event['code']}".strip() for event in found]


def left(home, before):
    """What an instance left over: children, and descriptors opened for it."""
    found = leftovers.survey().new_since(before)
    return [line for line in found if not line.startswith("thread 'asyncio_")]


def test_unsupported_behaviour_of_a_runner_has_a_reason():
    """A runner that is not named here can make host calls, exit, hang and exceed its limits."""
    found = {
        name: [what for what in runner_plugins.ABLE if runner_plugins.reason(way, what)]
        for name, way in runner_plugins.WAYS.items()
    }
    assert {name: cannot for name, cannot in found.items() if cannot} == {
        "noop": ["calls", "crash", "never", "limit"],
        "worker": ["crash", "never"],
        "builtin": ["tampered"],
    }


async def test_plugin_of_noop_cannot_be_invoked():
    way = runner_plugins.WAYS["noop"]
    async with runner_plugins.opened(way, way.toml) as home:
        answer = await activated(home, way)
        assert "not executed" in answer["runtime"]["message"]
        assert await invoked(home, "get", way.id()) == (None, "service_unavailable")
        assert recorded(home, 0, way.id()) == []


@every
async def test_plugin_of_each_runner_is_armed_and_stopped(way):
    """It has the health that it reports; no process is left afterwards. Both decisions are audited."""
    async with runner_plugins.opened(way, way.toml) as home:
        before = leftovers.survey()
        runtime = (await activated(home, way))["runtime"]
        assert (runtime["state"], runtime["runner"]) == ("armed", way.runner)
        instance = home.app.api.supervisor._handles[way.id()].instance()
        assert (await instance.check()).health.value == way.health
        runtime = (await home.decide(way.id(), "disabled"))["runtime"]
        assert runtime["state"] == "stopped"
        await in_process.until(lambda: left(home, before) == [], "nothing left")
        await in_process.until(lambda: states(home, 0, way.id()) == ["armed", "stopped"], "both on record")


@able("calls")
async def test_host_calls_of_each_runner_follow_grants(way):
    """The plugin makes them: allowed; denied from the next call on once trimmed; granted again; not declared. All are
    audited.
    """
    action, shows = way.calls
    grants = f"/api/plugins/by-id/{way.id()}/grants"
    async with runner_plugins.opened(way, way.toml) as home:
        await activated(home, way)
        start, codes = home.mark(), []
        for change in ("", "trim", "grant"):
            if change:
                assert (await home.ask("PUT", grants, {change: ["kv:read"]})).status == 200
            reply, code = await invoked(home, action, way.id())
            assert reply is not None
            codes.append(code)
        assert codes == ["", "capability_not_granted" if shows else "", ""]
        assert recorded(home, start, way.id()) == [
            ("kv.get", "allow", ""),
            ("kv.get", "deny", "capability_not_granted"),
            ("kv.get", "allow", ""),
        ]
        assert states(home, start, way.id()) == [], "no restart for that"
        await activated(home, way, capabilities=way.declares_less, name="less")
        assert (await invoked(home, action, way.id("less")))[1] == ("capability_denied" if shows else "")
        assert recorded(home, start, way.id("less")) == [("kv.get", "deny", "capability_denied")]


@able("crash")
async def test_plugin_that_exits_is_restarted(way):
    """A waiting invocation gets a code; the restarted plugin answers."""
    action, expected = way.crash
    async with runner_plugins.opened(way, way.toml + SOON) as home:
        await activated(home, way)
        start = home.mark()
        assert await invoked(home, action, way.id()) == (None, expected)
        if way.dies:
            await home.until_plugin(way.id(), lambda view: view["runtime"]["state"] == "armed" and _restarts(view) == 1)
            ended = [f"failed {expected}", "armed"]
            await in_process.until(lambda: states(home, start, way.id()) == ended, "both on record")
        assert (await invoked(home, way.calls[0], way.id()))[1] == ""
        assert recorded(home, start, way.id()) == [("kv.get", "allow", "")]


def _restarts(view):
    return view["runtime"].get("restart_count", 0)


@able("limit")
async def test_plugin_that_exceeds_a_limit_fails_its_invocation_with_a_code(way):
    """The daemon answers meanwhile, and the plugin can be stopped."""
    action, expected = way.limit
    async with runner_plugins.opened(way, way.toml + "[supervision]\nstop_grace_s = 1\n") as home:
        await activated(home, way)
        await home.ask("PUT", "/api/kv/default/a", b"x" * (32 << 10))
        assert (await invoked(home, action, way.id()))[1] == expected
        assert (await home.ask("GET", "/api/plugins")).status == 200
        assert (await home.decide(way.id(), "disabled"))["runtime"]["state"] == "stopped"


@able("never")
async def test_failed_start_of_each_runner_is_reported_and_retried(way):
    """The answer comes in time: 200, the status as decided, a code, the time of the next try; no process is left."""
    artifact, expected = way.never
    async with runner_plugins.opened(way, runner_plugins.start_toml(way), artifact) as home:
        before = leftovers.survey()
        answer = await activated(home, way, artifact=artifact)
        runtime = answer["runtime"]
        assert (answer["status"], runtime["state"]) == ("active", "failed")
        assert runtime["last_error"]["code"] == expected
        assert "next_retry_at" in runtime
        assert (await home.decide(way.id(), "disabled"))["runtime"]["state"] == "stopped"
        await in_process.until(lambda: left(home, before) == [], "nothing left")


@able("tampered")
async def test_tampering_stops_the_plugin_of_each_runner(way):
    """It is stopped at once: no request is answered, and no process is left."""
    async with runner_plugins.opened(way, way.toml) as home:
        before = leftovers.survey()
        await activated(home, way)
        artifact = home.dropped["demo"].artifact_path
        artifact.write_bytes(artifact.read_bytes() + b"\n")
        view = await home.until_plugin(way.id(), lambda view: view["runtime"]["state"] == "failed")
        assert view["runtime"]["last_error"]["code"] == "digest_mismatch"
        assert (await invoked(home, "get", way.id()))[1] == "not_armed"
        await in_process.until(lambda: left(home, before) == [], "nothing left")
