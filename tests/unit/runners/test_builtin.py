"""A built-in plugin that raises, hangs, cancels or never ends harms its own handle and nothing else."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys
from dataclasses import replace

import pytest

from latticed.broker.decide import Rights
from latticed.broker.gate import Broker, GateLimits
from latticed.host.call import Caller, Params, Served
from latticed.host.network import offers
from latticed.host.secret import typed
from latticed.kit.clock import SystemClock
from latticed.model.errors import Problem
from latticed.model.runtime import Health
from latticed.runners import choice
from latticed.sdk import HostError, PluginError, Reply
from latticed.sdk.base import Health as Told
from latticed.system.plugin import Measure, SecretReply, SystemPlugin
from tests.house import builtins, in_process, plugin_secrets, processes, runner_deps

NEVER = 3600.0


class Get(Params, frozen=True):
    key: str


class Stage:
    """Starts classes as the plugin latticed.demo; `exits` is what they ended with."""

    def __init__(self, root, *, granted=("kv:read",), timeout_s=5, config=b"{}", secrets=None):
        self.root = root
        self.granted = frozenset(granted)
        self.timeout_s = timeout_s
        self.config = config
        self.secrets = plugin_secrets.secrets_of({"latticed.demo": secrets or {}})
        self.exits = []
        self.events = []
        self.instances = []
        self.gate = None

    async def start(self, kind, **fields):
        fields = {"runtime": {"limits": {"invoke_timeout_s": self.timeout_s}}, **fields}
        brought = builtins.brought(builtins.made(self.root, kind, **fields))
        runner = choice.choose({}, runner_deps.deps(self.root, brought.builtins, self.secrets))["builtin"]
        plugin = brought.plugin
        self.gate = self.broker().gate(
            Caller(plugin_id=plugin.id), Rights(declared=frozenset(plugin.manifest.capabilities), granted=self.granted)
        )
        configured = replace(plugin, config=self.config)
        with brought.builtins.pair(plugin.identity) as pair:
            made = await runner.start(configured, pair, self.gate, lambda *end: self.exits.append(end))
        self.instances.append(made)
        return made

    def broker(self):
        def record(event, done):
            self.events.append((event.target, event.decision, event.code))
            done(len(self.events), None)

        async def get(_caller, asked):
            if asked.key == "slow":
                await asyncio.sleep(NEVER)
            return {"ok": True, "value": asked.key}

        served = {"kv.get": Served(method="kv.get", params=Get, serve=get)}
        return Broker(served, record=record, clock=SystemClock(), gate_limits=GateLimits())


@pytest.fixture
async def stage(tmp_path):
    made = Stage(tmp_path)
    yield made
    for instance in made.instances:
        await instance.stop(1.0)


async def ended(stage):
    await in_process.until(lambda: stage.exits, "an end on report")
    return stage.exits


async def test_actions_of_a_built_in_plugin_answer_like_those_of_others(stage):
    """They return a value, a reply with a message, a stated failure or an unforeseen one; the plugin goes on after
    each.
    """

    class Kinds(SystemPlugin):
        async def do_value(self, payload):
            return {"got": payload}

        async def do_said(self, _):
            return Reply([1], message="well")

        async def do_stated(self, _):
            raise PluginError("no such door")

        async def do_unforeseen(self, _):
            raise ZeroDivisionError("by zero")

    instance = await stage.start(Kinds)
    assert await instance.invoke("value", 1) == {"ok": True, "message": "", "result": {"got": 1}, "error": None}
    assert await instance.invoke("said", None) == {"ok": True, "message": "well", "result": [1], "error": None}
    assert (await instance.invoke("stated", None))["error"] == "no such door"
    assert "ZeroDivisionError: by zero" in (await instance.invoke("unforeseen", None))["error"]
    assert "no such action: nothing" in (await instance.invoke("nothing", None))["error"]
    assert (await instance.check()).health is Health.HEALTHY
    assert stage.exits == []


@pytest.mark.parametrize("found", [object(), float("nan"), "\ud800", {"a": object()}], ids=repr)
async def test_result_that_json_cannot_carry_fails_the_action(stage, found):
    class Odd(SystemPlugin):
        async def do_odd(self, _):
            return found

    reply = await (await stage.start(Odd)).invoke("odd", None)
    if isinstance(found, float):  # NaN becomes null, as JSON has no such number
        assert reply["result"] is None
    else:
        assert (reply["ok"], reply["result"]) == (False, None)
        assert "JSON can carry" in reply["error"]


@pytest.mark.parametrize("size", ["long", "many", "deep"])
async def test_result_beyond_the_limits_fails_the_action(stage, size):
    """They are those of a plugin's message: length, number of values, depth. The API answers with the result."""
    deep = []
    for _ in range(200):
        deep = [deep]
    value = {"long": "x" * (2 << 20), "many": [1] * 100_000, "deep": deep}[size]

    class Large(SystemPlugin):
        async def do_large(self, _):
            return value

    reply = await (await stage.start(Large)).invoke("large", None)
    assert not reply["ok"]
    assert "at most" in reply["error"]


@pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(3), KeyboardInterrupt(), RecursionError()], ids=repr)
async def test_exception_of_a_built_in_plugin_never_leaves_its_handle(stage, error):
    """An action, a check and the background task raise it; SystemExit in a task would end the event loop."""

    class Raises(SystemPlugin):
        async def run(self):
            await self.go.wait()
            raise error

        async def started(self):
            self.go = asyncio.Event()

        async def check(self):
            raise error

        async def do_raise(self, _):
            raise error

        async def do_go(self, _):
            self.go.set()

    instance = await stage.start(Raises)
    assert type(error).__name__ in (await instance.invoke("raise", None))["error"]
    found = await instance.check()
    assert (found.health, type(error).__name__ in found.message) == (Health.UNHEALTHY, True)
    assert stage.exits == []
    await instance.invoke("go", None)
    ((code, message),) = await ended(stage)
    assert (code, type(error).__name__ in message) == ("plugin_error", True)


@pytest.mark.parametrize("way", ["returns", "cancels"])
async def test_a_background_task_that_ends_is_reported(stage, way):
    """Returned, or cancelled by itself: it is no longer what it was started for."""

    class Ends(SystemPlugin):
        async def run(self):
            await asyncio.sleep(0.01)
            if way == "cancels":
                asyncio.current_task().cancel()
                await asyncio.sleep(NEVER)

    await stage.start(Ends)
    ((code, message),) = await ended(stage)
    assert (code, "background task" in message) == ("exited", True)


async def test_start_that_raises_is_plugin_error(stage):
    class Fails(SystemPlugin):
        async def started(self):
            raise ValueError("config.doors: expected a list")

    with pytest.raises(Problem) as failed:
        await stage.start(Fails)
    assert failed.value.code == "plugin_error"
    assert "config.doors: expected a list" in failed.value.reason


async def test_hanging_start_of_a_built_in_plugin_can_be_abandoned(stage):
    """It may ignore being cancelled: the supervisor's deadline does not wait for it."""
    goes_on = asyncio.Event()

    class Hangs(SystemPlugin):
        async def started(self):
            while not goes_on.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await goes_on.wait()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await stage.start(Hangs)
    goes_on.set()


async def test_hanging_action_is_deadline_exceeded(tmp_path):
    """Other actions and checks are answered meanwhile."""
    stage = Stage(tmp_path, timeout_s=1)

    class Hangs(builtins.Echo):
        async def do_hang(self, _):
            await asyncio.sleep(NEVER)

    instance = await stage.start(Hangs)
    hanging = asyncio.ensure_future(instance.invoke("hang", None))
    assert (await instance.invoke("echo", 1))["result"] == 1
    assert (await instance.check()).health is Health.HEALTHY
    with pytest.raises(Problem) as late:
        await hanging
    assert late.value.code == "deadline_exceeded"
    assert stage.exits == []
    await instance.stop(1.0)


async def test_hanging_check_counts_as_bad_and_is_not_repeated(stage):
    """No other check is begun while it goes on after its timeout."""
    goes_on, begun = asyncio.Event(), []

    class Hangs(SystemPlugin):
        async def check(self):
            begun.append(1)
            while not goes_on.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await goes_on.wait()
            return Told()

    instance = await stage.start(Hangs)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await instance.check()
    found = await instance.check()
    assert (found.health, len(begun)) == (Health.UNHEALTHY, 1)
    goes_on.set()
    await asyncio.sleep(0.01)
    assert (await instance.check()).health is Health.HEALTHY


@pytest.mark.parametrize("answer", [None, "well", Told("splendid"), Told("healthy", "x" * 10_000)], ids=repr)
async def test_invalid_health_of_a_built_in_plugin_is_unhealthy(stage, answer):
    class Odd(SystemPlugin):
        async def check(self):
            return answer

    found = await (await stage.start(Odd)).check()
    if isinstance(answer, Told) and answer.status == "healthy":
        assert len(found.message) <= 2_000
    else:
        assert found.health is Health.UNHEALTHY


async def test_stop_of_a_built_in_plugin_ends_its_task_and_actions(stage):
    """The background task may clean up; the caller of an action gets plugin_gone."""
    tidied = []

    class Busy(SystemPlugin):
        async def run(self):
            try:
                await asyncio.sleep(NEVER)
            finally:
                tidied.append("run")

        async def do_wait(self, _):
            await asyncio.sleep(NEVER)

    instance = await stage.start(Busy)
    waiting = asyncio.ensure_future(instance.invoke("wait", None))
    await asyncio.sleep(0.01)
    async with asyncio.timeout(processes.PATIENCE_S):
        await instance.stop(NEVER)
    with pytest.raises(Problem) as gone:
        await waiting
    assert (gone.value.code, tidied, stage.exits) == ("plugin_gone", ["run"], [])
    with pytest.raises(Problem) as late:
        await instance.invoke("wait", None)
    assert late.value.code == "plugin_gone"


async def test_stop_of_a_built_in_plugin_waits_no_longer_than_the_grace(stage):
    """A task that ignores being cancelled is left behind; its Gate is closed, so its host calls are refused."""
    goes_on, begun, refused = asyncio.Event(), asyncio.Event(), []

    class Stubborn(SystemPlugin):
        async def run(self):
            begun.set()
            while not goes_on.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await goes_on.wait()
            try:
                await self.host.call("kv.get", key="a")
            except HostError as error:
                refused.append(error.code)

    instance = await stage.start(Stubborn)
    await begun.wait()
    stage.gate.close()
    began = asyncio.get_running_loop().time()
    await instance.stop(0.2)
    assert asyncio.get_running_loop().time() - began < 1.0
    goes_on.set()
    await in_process.until(lambda: refused, "the call of what was left behind")
    assert (refused, stage.exits) == (["service_unavailable"], [])


async def test_host_calls_of_a_built_in_plugin_go_through_its_gate(tmp_path):
    """Each way to be refused has the Gate's code, and every call is audited."""
    stage = Stage(tmp_path, granted=("kv:read",))

    class Calls(SystemPlugin):
        async def do_call(self, payload):
            params = {"key": object()} if payload[1] == "unfit" else payload[1]
            try:
                return await self.host.call(payload[0], **params)
            except HostError as error:
                return error.code

    instance = await stage.start(Calls, capabilities=["kv:read", "log:write"])
    asked = [
        ("kv.get", {"key": "a"}),
        ("kv.put", {"key": "a", "value": "b"}),
        ("log.write", {"message": "x"}),
        ("kv.get", {"keys": "a"}),
        ("kv.get", "unfit"),
        ("no.such", {}),
    ]
    found = [(await instance.invoke("call", one))["result"] for one in asked]
    codes = ["capability_denied", "capability_not_granted", "bad_params", "bad_params", "not_found"]
    assert found == [{"ok": True, "value": "a"}, *codes]
    assert [code for _, _, code in stage.events] == ["", *codes]
    stage.gate.close()
    assert (await instance.invoke("call", ("kv.get", {"key": "a"})))["result"] == "service_unavailable"
    await instance.stop(1.0)


async def test_host_call_under_way_ends_when_its_grant_is_removed(stage):
    """It raises HostError capability_not_granted."""

    class Waits(SystemPlugin):
        async def do_slow(self, _):
            try:
                return await self.host.call("kv.get", key="slow")
            except HostError as error:
                return error.code

    instance = await stage.start(Waits)
    waiting = asyncio.ensure_future(instance.invoke("slow", None))
    await in_process.until(lambda: stage.events, "the call on record")
    stage.gate.regrant(frozenset())
    assert (await waiting)["result"] == "capability_not_granted"


async def test_built_in_plugin_gets_id_capabilities_and_configuration(tmp_path):
    stage = Stage(tmp_path, config=json.dumps({"doors": [1]}).encode())

    class Says(SystemPlugin):
        async def do_say(self, _):
            return [self.id, list(self.capabilities), self.config]

    instance = await stage.start(Says)
    assert (await instance.invoke("say", None))["result"] == ["latticed.demo", ["kv:read"], {"doors": [1]}]
    await instance.stop(1.0)


async def test_too_many_concurrent_invocations_of_a_built_in_plugin_are_busy(stage):
    class Waits(SystemPlugin):
        async def do_wait(self, _):
            await asyncio.sleep(NEVER)

    instance = await stage.start(Waits)
    waiting = [asyncio.ensure_future(instance.invoke("wait", None)) for _ in range(300)]
    await asyncio.sleep(0.05)
    codes = {one.exception().code for one in waiting if one.done()}
    assert codes == {"busy"}
    await instance.stop(1.0)
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_code_of_a_built_in_plugin_is_loaded_once_and_only_unchanged(tmp_path):
    """Files that were exchanged since the daemon's start are refused; code that is loaded already keeps running."""
    loaded = []
    brought = builtins.brought(builtins.made(tmp_path))
    held = brought.builtin.load

    class Counting:
        @staticmethod
        def load():
            loaded.append(1)
            return held()

    one = type(brought.builtin)(folder=brought.path, load=Counting.load)
    brought = builtins.brought(one)
    runner = choice.choose({}, runner_deps.deps(tmp_path, brought.builtins))["builtin"]
    stage = Stage(tmp_path)
    plugin = brought.plugin
    gate = stage.broker().gate(Caller(plugin_id=plugin.id), Rights(declared=frozenset(), granted=frozenset()))
    (brought.path / "plugin.py").write_text("another\n")
    pair = brought.builtins.pair(plugin.identity)
    with pytest.raises(Problem) as refused:
        await runner.start(plugin, pair, gate, lambda *_: None)
    assert (refused.value.code, "restart latticed" in refused.value.reason, loaded) == ("digest_mismatch", True, [])
    builtins.made(tmp_path)
    for _ in range(2):
        await (await runner.start(plugin, pair, gate, lambda *_: None)).stop(1.0)
    (brought.path / "plugin.py").write_text("another\n")
    await (await runner.start(plugin, pair, gate, lambda *_: None)).stop(1.0)
    assert loaded == [1]


async def test_code_that_cannot_be_imported_is_plugin_error(tmp_path):
    def load():
        raise ModuleNotFoundError("No module named 'segno'")

    made = builtins.made(tmp_path)
    brought = builtins.brought(type(made)(folder=made.folder, load=load))
    runner = choice.choose({}, runner_deps.deps(tmp_path, brought.builtins))["builtin"]
    with pytest.raises(Problem) as failed:
        await runner.start(brought.plugin, brought.builtins.pair(brought.plugin.identity), None, lambda *_: None)
    assert (failed.value.code, "segno" in failed.value.reason) == ("plugin_error", True)
    assert "latticed.demo" not in sys.modules


class Measured(SystemPlugin):
    """Shows one metric, or fails to."""

    def measures(self):
        if self.config:
            raise ZeroDivisionError
        return (Measure(name="x", kind="gauge", text="x", labels=("id",), values={("a",): 1}),)


async def test_metrics_of_a_plugin_are_shown_until_it_stops_and_a_failure_shows_none(stage):
    instance = await stage.start(Measured)
    assert [one.values for one in instance.measures()] == [{("a",): 1}]
    await instance.stop(1.0)
    assert instance.measures() == ()
    stage.config = b'{"fail": true}'
    assert (await stage.start(Measured)).measures() == ()


class Secretive(SystemPlugin):
    """Answers with text that the payload gives, and asks for the secrets that it names."""

    async def do_give(self, payload):
        return SecretReply(payload["result"], forms=payload["forms"], message="made")

    async def do_tell(self, payload):
        return payload

    async def do_encode(self, payload):
        def encode(values):
            if payload["fails"]:
                raise ValueError(f"no place for {values}")
            return {"body": base64.b64encode(" ".join(sorted(values.values())).encode()).decode()}

        return SecretReply(None, forms=payload["forms"], encode=encode)


async def test_secrets_within_an_encoding_are_encoded_last_and_a_failure_tells_none(stage):
    stage.secrets = plugin_secrets.secrets_of({"latticed.demo": {"TOKEN": "hunter2-hunter2"}})
    instance = await stage.start(Secretive)
    forms = {"TOKEN": "password"}
    reply = await instance.invoke("encode", {"forms": forms, "fails": False})
    assert reply["result"] == {"body": base64.b64encode(b"hunter2-hunter2").decode()}
    failed = await instance.invoke("encode", {"forms": forms, "fails": True})
    assert (failed["ok"], "ValueError" in failed["error"], "hunter2" in str(failed)) == (False, True, False)
    unbound = await instance.invoke("encode", {"forms": {"OTHER": "key"}, "fails": False})
    assert (unbound["ok"], "OTHER" in unbound["error"]) == (False, True)


async def test_secrets_that_an_answer_names_are_put_in_last_and_others_stay(stage):
    stage.secrets = plugin_secrets.secrets_of({"latticed.demo": {"PSK": "one-secret", "TOKEN": "hunter2-hunter2"}})
    instance = await stage.start(Secretive)
    given = {
        "conf": "PresharedKey = ${secret:PSK#anna}\nToken = ${secret:TOKEN}",
        "ids": [{"${secret:PSK#anna}": "${secret:PSK#ben}"}, 7, None],
        "of others": "${secret:OTHER} ${secret:PSK#cleo} ${secret:PSK}",
    }
    forms = {"PSK#anna": "key", "PSK#ben": "uuid", "TOKEN": "password"}
    reply = await instance.invoke("give", {"result": given, "forms": forms})
    key = typed.derived("one-secret", "latticed.demo", "anna", "key")
    assert reply == {
        "ok": True,
        "message": "made",
        "error": None,
        "result": {
            "conf": f"PresharedKey = {key}\nToken = hunter2-hunter2",
            "ids": [{"${secret:PSK#anna}": typed.derived("one-secret", "latticed.demo", "ben", "uuid")}, 7, None],
            "of others": "${secret:OTHER} ${secret:PSK#cleo} ${secret:PSK}",
        },
    }
    # It is what a plan of the same plugin with that reference is applied with.
    plan = offers.values(
        "latticed.demo",
        {"psk": "${secret:PSK#anna}"},
        stage.secrets("latticed.demo"),
        {"PSK#anna": "key"},
    )
    assert [one.value for one in plan] == [key]


async def test_an_answer_that_asks_for_nothing_keeps_its_references(stage):
    stage.secrets = plugin_secrets.secrets_of({"latticed.demo": {"TOKEN": "hunter2-hunter2"}})
    instance = await stage.start(Secretive)
    assert (await instance.invoke("tell", "${secret:TOKEN}"))["result"] == "${secret:TOKEN}"


@pytest.mark.parametrize(
    ("forms", "said"),
    [
        ({"ABSENT": "key"}, "no secret 'ABSENT'"),
        ({"ABSENT#anna": "key"}, "no secret 'ABSENT'"),
        ({"TOKEN": "uuid"}, "expected a UUID"),
        ({"TOKEN#anna": ""}, "told the form"),
        ({"TOKEN#anna": "colour"}, "told the form"),
        ({"TOKEN": "colour"}, "cannot be used here"),
    ],
)
async def test_a_secret_that_cannot_be_put_in_fails_the_action_without_its_value(stage, forms, said):
    stage.secrets = plugin_secrets.secrets_of({"latticed.demo": {"TOKEN": "hunter2-hunter2"}})
    instance = await stage.start(Secretive)
    reply = await instance.invoke("give", {"result": "${secret:TOKEN}", "forms": forms})
    assert (reply["ok"], reply["result"]) == (False, None)
    assert said in reply["error"]
    assert "hunter2" not in str(reply)


async def test_secrets_do_not_make_an_answer_longer_than_answers_may_be(stage):
    stage.secrets = plugin_secrets.secrets_of({"latticed.demo": {"TOKEN": "x" * 200}})
    instance = await stage.start(Secretive)
    reply = await instance.invoke("give", {"result": "${secret:TOKEN}" * 9_000, "forms": {"TOKEN": "password"}})
    assert (reply["ok"], reply["error"][:9]) == (False, "too_large")
