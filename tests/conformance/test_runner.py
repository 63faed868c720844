"""The contract between supervisor and every runner. Add a new runner to RUNNERS."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields

import pytest
from wasmtime import wat2wasm as wasm

from latticed.broker.decide import Rights
from latticed.broker.gate import Broker, GateLimits
from latticed.bundle import decode, read
from latticed.host.call import Caller
from latticed.kit.clock import SystemClock
from latticed.model import runtime
from latticed.model.errors import Problem
from latticed.runners import choice
from latticed.runners.contract import Checkup, PluginToRun
from latticed.runners.noop import NoopRunner
from latticed.settings import shapes
from tests.house import builtins, bundles, in_process, leftovers, runner_deps, supervisors, wasms
from tests.house.runners import Driven

REPLY = '{"ok": true, "message": "", "result": null}'
MODULE = wasms.module(wasms.packed(8, len(REPLY)), more=wasms.says(8, REPLY))
WAYS = {
    "noop": {},
    "driven": {},
    "process-stdio-json-v1": {},
    "process-latticed-stdio-1": {"v2": True, "runtime": {"protocol": "latticed-stdio-1"}},
    "wasm": {
        "type": "wasm",
        "artifact": bytes(wasm(wasms.module(wasms.packed(8, len(REPLY)), more=wasms.says(8, REPLY)))),
    },
    "worker": {"type": "worker", "artifact": b"hello {{path}}", "capabilities": ["worker:route", "kv:read"]},
    "builtin": {},
}
"""Each runner with its bundle. Add a new runner here."""
INVOKES = {"driven", "process", "wasm", "builtin"}
START_S = STOP_S = 10.0


def test_every_runner_of_the_settings_is_in_runners():
    """Those that settings may name for a type, and the one that the ids of built-in plugins choose."""
    allowed = {name for field in fields(shapes.RunnerSettings) for name in field.metadata["one_of"]}
    assert {way.partition("-")[0] for way in WAYS} == allowed | {"driven", "builtin"}


@pytest.fixture(params=WAYS)
def way(request):
    return request.param


@pytest.fixture
def runner(way, tmp_path, bundle):
    if way == "driven":
        return Driven()
    if way == "builtin":
        return choice.choose({}, runner_deps.deps(tmp_path, bundle.builtins))["builtin"]
    fields = WAYS[way]
    name = way.partition("-")[0]
    return choice.choose({fields.get("type", "system"): name}, runner_deps.deps(tmp_path))[fields.get("type", "system")]


@pytest.fixture
def bundle(tmp_path, way):
    if way == "builtin":
        return builtins.brought(builtins.made(tmp_path, capabilities=["kv:read", "log:write"]))
    return bundles.drop(tmp_path, author=bundles.author(), **{"capabilities": ["kv:read", "log:write"], **WAYS[way]})


@pytest.fixture
def plugin(way, bundle):
    if way == "builtin":
        return bundle.plugin
    _, manifest = decode.decode(json.dumps(bundle.raw).encode())
    return PluginToRun(id=bundle.id, identity="1" * 64, manifest=manifest)


@pytest.fixture
def start(way, runner, plugin, bundle):
    """Starts an instance, as the supervisor does: from an open pair that is closed afterwards, with a deadline."""
    exits: list[tuple[str, str]] = []

    def record(_event, done):

        done(1, None)

    broker = Broker({}, record=record, clock=SystemClock(), gate_limits=GateLimits())
    rights = Rights(declared=frozenset(plugin.manifest.capabilities), granted=frozenset())

    def opened():
        if way == "builtin":
            return bundle.builtins.pair(plugin.identity)
        return read.open_bundle(bundle.path, limits=read.ReadLimits(), owners=supervisors.owners())

    async def one():
        gate = broker.gate(Caller(plugin_id=plugin.id), rights)
        with opened() as pair:
            return await asyncio.wait_for(
                runner.start(plugin, pair, gate, lambda code, message: exits.append((code, message))), START_S
            )

    one.exits = exits
    return one


def left(before):
    """What an instance left over, not counting the event loop's helper threads."""
    return [line for line in leftovers.survey().new_since(before) if not line.startswith("thread 'asyncio_")]


async def test_instance_starts_and_stops_within_its_deadlines(start):
    """No process is left; a requested stop is not reported as an exit."""
    before = leftovers.survey()
    instance = await start()
    async with asyncio.timeout(STOP_S):
        await instance.stop(1.0)
    await in_process.until(lambda: left(before) == [], "nothing left")
    assert start.exits == []


@pytest.mark.parametrize("way", ["process-stdio-json-v1", "process-latticed-stdio-1", "wasm", "worker", "builtin"])
async def test_runner_that_hashes_refuses_altered_artifact(runner, bundle, start):
    """The supervisor does not read the artifact before such a runner starts it."""
    assert runner.hashes_artifact
    (bundle.path / read.ARTIFACT).write_bytes(bundle.artifact + b" ")
    with pytest.raises(Problem) as refused:
        await start()
    assert refused.value.code == "digest_mismatch"


async def test_second_stop_of_an_instance_does_nothing(start):
    instance = await start()
    async with asyncio.timeout(STOP_S):
        await instance.stop(1.0)
        await instance.stop(0.0)


async def test_instances_start_one_after_another(start):
    """Nothing of an instance that ended prevents the next start."""
    for _ in range(5):
        instance = await start()
        assert isinstance(instance.pid, int)
        await instance.stop(1.0)


async def test_stopping_one_instance_leaves_another_running(start):
    one, two = await start(), await start()
    await one.stop(1.0)
    assert isinstance(await two.check(), Checkup)
    await two.stop(1.0)


async def test_health_check_of_runner_returns_status_and_message(start):
    """The message is readable text."""
    instance = await start()
    found = await asyncio.wait_for(instance.check(), START_S)
    assert found.health in set(runtime.Health)
    assert found.message.isprintable()
    assert instance.message.isprintable()
    await instance.stop(1.0)


async def test_invoke_returns_a_reply_or_raises_a_problem(start, runner):
    """`{ok, message, result, error}`, or a Problem with a code; no other exception."""
    instance = await start()
    if runner.name in INVOKES:
        assert set(await instance.invoke("echo", {"a": [1]})) == {"ok", "message", "result", "error"}
    else:
        with pytest.raises(Problem) as caught:
            await instance.invoke("echo", {})
        assert caught.value.code in {"service_unavailable", "bad_request"}
    await instance.stop(1.0)


async def test_cancelled_start_leaves_nothing_behind(start):
    """The start is cancelled at every moment."""
    before = leftovers.survey()
    for turns in range(6):
        attempt = asyncio.ensure_future(start())
        for _ in range(turns):
            await asyncio.sleep(0)
        attempt.cancel()
        (outcome,) = await asyncio.gather(attempt, return_exceptions=True)
        if not isinstance(outcome, BaseException):
            await outcome.stop(0.0)
    await in_process.until(lambda: left(before) == [], "nothing left")


async def test_noop_never_opens_the_artifact(tmp_path, plugin):
    """Any bytes are accepted, and the health stays unknown."""
    instance = await NoopRunner("held").start(plugin, None, None, None)  # type: ignore[arg-type]
    assert (instance.pid, instance.message, (await instance.check()).health) == (0, "held", "unknown")


def test_unknown_runner_name_gives_noop_with_a_reason(tmp_path):
    """The settings may name runners of later versions."""
    wanted = {"system": "process", "wasm": "noop", "worker": "later"}
    runners = choice.choose(wanted, runner_deps.deps(tmp_path))
    found = {name: runner.name for name, runner in runners.items()}
    assert found == {"system": "process", "wasm": "noop", "worker": "noop", "builtin": "builtin"}
    assert "later runner is not built" in runners["worker"]._reason  # type: ignore[attr-defined]
    assert "not built" not in runners["wasm"]._reason  # type: ignore[attr-defined]
