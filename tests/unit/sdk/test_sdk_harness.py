"""Tests of a plugin class in its own process: the harness behaves like the host."""

from __future__ import annotations

import pytest

from latticed.sdk import Health, HostError, Plugin, PluginError, Reply
from latticed.sdk.testing import Harness


class Counter(Plugin):
    """A plugin that counts."""

    was_stopped = False

    def started(self):
        self.city = self.config.get("city", "nowhere")

    def do_count(self, payload):
        count = int(self.kv.get("count") or "0") + 1
        self.kv.put("count", str(count))
        return {"count": count, "payload": payload}

    def do_odd(self, payload):
        return {1, 2}

    def do_where(self, payload):
        return Reply((self.id, self.city), message="here")

    def do_refuse(self, payload):
        raise PluginError("not today")

    def do_leave(self, payload):
        raise SystemExit(3)

    def do_ask(self, payload):
        return self.http.get("https://example.org/").text()

    def health(self):
        return Health("degraded", self.city)

    def stopping(self):
        self.was_stopped = True


@pytest.fixture
def host():
    answer = {"status_code": 200, "body_base64": "aGk="}
    return Harness(
        Counter(),
        capabilities=["kv:read", "kv:write", "http:egress"],
        answers={"http.do": answer},
        id="acme.counter",
        config={"city": "Ulm"},
    )


def test_harness_actions_read_and_write_kv(host):
    assert host.invoke("count", 1)["result"] == {"count": 1, "payload": 1}
    assert host.gate.kv == {"count": b"1"}
    host.gate.kv["count"] = b"41"
    assert host.invoke("count")["result"]["count"] == 42
    assert [one.method for one in host.gate.calls] == ["kv.get", "kv.put"] * 2


def test_params_and_results_are_converted_through_json(host):
    """Tuples become lists, keys become strings; other types are an error of the action."""
    assert host.invoke("where") == {"ok": True, "message": "here", "result": ["acme.counter", "Ulm"], "error": None}
    assert host.invoke("count", {1: (2,)})["result"]["payload"] == {"1": [2]}
    assert "set" in host.invoke("odd")["error"]
    with pytest.raises(TypeError, match="set"):
        host.invoke("count", {1, 2})


def test_harness_errors_are_those_an_operator_sees(host):
    assert host.invoke("refuse") == {"ok": False, "message": "not today", "result": None, "error": "not today"}
    assert host.invoke("dance")["error"] == "no such action: dance"
    host.gate.kv["count"] = b"not a number"
    assert host.invoke("count")["error"].startswith("ValueError: ")
    with pytest.raises(SystemExit):
        host.invoke("leave")


def test_harness_refuses_undeclared_host_calls():
    bare = Harness(Counter())
    assert bare.invoke("count")["error"] == "capability_denied: the manifest does not declare kv:read"
    masked = Harness(Counter(), capabilities=["http:egress"], granted=[])
    assert masked.invoke("ask")["error"].startswith("capability_not_granted: ")


def test_host_call_other_than_kv_is_answered_by_the_test(host):
    assert host.invoke("ask")["result"] == "hi"

    def refuse(params):
        raise HostError("egress_blocked", "not there")

    host.gate.answers["http.do"] = refuse
    assert host.invoke("ask")["error"] == "egress_blocked: not there"


def test_harness_calls_health_and_stop(host):
    assert (host.health().status, host.health().message) == ("degraded", "Ulm")
    assert repr(host.health()) == "Health('degraded', 'Ulm')"
    host.stop()
    assert host.plugin.was_stopped


def test_plugin_with_its_own_constructor_works_in_harness():
    """Its constructor calls that of Plugin or does not."""

    class Own(Plugin):
        def __init__(self, word):
            self.word = word

        def do_say(self, payload):
            return [self.word, self.id, dict(self.config)]

    assert Own("a").answer("say", None)["result"] == ["a", "", {}]
    assert Harness(Own("a"), config={"b": 1}).invoke("say")["result"] == ["a", "test.plugin", {"b": 1}]


def test_overridden_invoke_gets_all_actions():
    class All(Plugin):
        def invoke(self, action, payload):
            return [action, payload]

    assert Harness(All()).invoke("any thing", 1)["result"] == ["any thing", 1]
