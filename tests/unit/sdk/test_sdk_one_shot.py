"""The SDK's stdio-json-v1 protocol, with real processes and pipes."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from latticed.runners import replies
from latticed.sdk.testing import Gate, run_once
from tests.house import plugins

BODY = """
def do_count(self, payload):
    count = int(self.kv.get("count") or "0") + 1
    self.kv.put("count", str(count))
    print("counted", flush=True)
    return count

def do_odd(self, payload):
    return {1}

def do_break(self, payload):
    return {}[payload]

def do_wrong(self, payload):
    self.call("kv.put", key={1})

def do_crowd(self, payload):
    found = []

    def look(n):
        for turn in range(30):
            self.kv.put(f"key-{n}", f"{n}-{turn}")
            found.append(self.kv.get(f"key-{n}") == f"{n}-{turn}")

    threads = [threading.Thread(target=look, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [len(found), all(found)]

def do_spawn(self, payload):
    return os.get_inheritable(3)
"""
KV = ("kv:read", "kv:write")


@pytest.fixture
def once(tmp_path):
    """Run one action of a plugin with the given class body."""

    def carry_out(action, payload=None, *, body=BODY, gate=None):
        command = plugins.program(tmp_path, body)
        return run_once(command, gate or Gate(KV), action, payload, env=plugins.ENVIRONMENT)

    return carry_out


def test_one_shot_action_runs_with_its_host_calls(once):
    """Printed text does not mix with protocol lines."""
    gate = Gate(KV)
    for count in (1, 2):
        assert once("count", gate=gate) == {"ok": True, "message": "", "result": count, "error": None}
    assert gate.kv["count"] == b"2"


def test_one_shot_describe_answers_name_and_actions(once):
    """A plugin may override it."""
    actions = ["break", "count", "crowd", "odd", "spawn", "wrong"]
    expected = {"name": "Tested", "about": "A plugin of a test.", "actions": actions}
    assert once("describe")["result"] == expected
    body = "def describe(self): return [1]"
    assert once("describe", body=body) == {"ok": True, "message": "", "result": [1], "error": None}
    assert once("describe", body="def describe(self): return {}[1]")["error"] == "KeyError: 1"


def test_one_shot_describe_is_answered_by_an_action_of_that_name(once):
    """As under latticed-stdio-1."""
    body = "def do_describe(self, payload): return ['mine', payload]"
    assert once("describe", 1, body=body) == {"ok": True, "message": "", "result": ["mine", 1], "error": None}


@pytest.mark.parametrize("text", ["raise PluginError(found)", "raise OSError(found)", "return Reply(message=found)"])
def test_long_texts_are_cut_as_the_host_cuts_them(once, text):
    """The line would be too long, and none of it reach anybody."""
    body = f"""
    def do_quote(self, payload):
        found = "why: " + "x" * 600_000
        {text}

    def health(self):
        return Health("degraded", "why: " + "x" * 600_000)
    """
    for action in ("quote", "health"):
        message = once(action, body=body)["message"]
        assert "why: xxx" in message
        assert message == replies.said_text(message)
    found = once("quote", body=body)
    assert found["error"] in {None, found["message"]}


@pytest.mark.parametrize(
    ("health", "status", "error"),
    [
        ("Health()", "healthy", None),
        ("Health('degraded', 'tired')", "degraded", None),
        ("Health('unhealthy', 'ill')", "unhealthy", "ill"),
        ("Health('unhealthy')", "unhealthy", "unhealthy"),
        ("{}[1]", "unhealthy", "KeyError: 1"),
    ],
)
def test_one_shot_health_answers_status(once, health, status, error):
    found = once("health", body=f"def health(self): return {health}")
    assert (found["ok"], found["error"], found["result"]) == (error is None, error, {"status": status})


def test_failed_action_is_reported_in_the_reply(once):
    assert "TypeError" in once("odd")["error"]
    assert once("break", "x")["error"] == "KeyError: 'x'"
    assert once("wrong")["error"].startswith("bad_params: expected parameters")
    assert once("dance")["error"] == "no such action: dance"
    denied = "capability_denied: the manifest does not declare kv:read"
    assert once("count", gate=Gate())["error"] == denied
    assert once("count", body="def started(self): raise ValueError('no')")["error"] == "ValueError: no"


def test_host_calls_from_threads_are_serialised(once):
    assert once("crowd")["result"] == [240, True]


def test_children_do_not_inherit_the_answer_descriptor(once):
    assert once("spawn")["result"] is False


def _shouted(tmp_path, request, answers, body=BODY):
    """Run with all answers written in advance; the plugin's output."""
    reading, writing = os.pipe()
    os.write(writing, answers)
    os.close(writing)
    try:
        done = subprocess.run(
            plugins.program(tmp_path, body),
            input=request,
            env={**plugins.ENVIRONMENT, "LATTICE_HOST_RESPONSE_FD": str(reading)},
            pass_fds=[reading],
            capture_output=True,
            check=False,
            timeout=30,
        )
    finally:
        os.close(reading)
    return [json.loads(line) for line in done.stdout.splitlines()], done


def test_one_shot_output_alternates_calls_and_ends_with_the_reply(tmp_path):
    """The lines are call, answer, call, answer, reply."""
    answers = (
        b'{"host_response": {"id": "1", "ok": true, "result": {"ok": false}, "error": null}}\n'
        b'{"host_response": {"id": "2", "ok": false, "result": null, "error": "quota_exceeded: full: up"}}\n'
    )
    said, done = _shouted(tmp_path, b'{"action": "count", "payload": {}}\n', answers)
    assert said == [
        {"host_call": {"id": "1", "method": "kv.get", "params": {"key": "count"}}},
        {"host_call": {"id": "2", "method": "kv.put", "params": {"key": "count", "value": "1"}}},
        {"ok": False, "message": "quota_exceeded: full: up", "result": None, "error": "quota_exceeded: full: up"},
    ]
    assert (done.returncode, done.stderr) == (0, b"")


def test_closed_pipe_during_a_call_is_service_unavailable(tmp_path):
    said, done = _shouted(tmp_path, b'{"action": "count"}', b"")
    assert said[-1]["error"].startswith("service_unavailable: ")
    assert done.returncode == 0


def test_one_shot_without_request_is_an_unknown_action(tmp_path):
    said, done = _shouted(tmp_path, b"", b"")
    assert said == [{"ok": False, "message": "no such action: ", "result": None, "error": "no such action: "}]
    assert done.returncode == 0


def test_host_call_after_the_reply_is_refused(tmp_path):
    """A thread that is still running makes it: the reply must be the last line."""
    body = """
    def do_leave(self, payload):
        threading.Thread(target=self.late).start()

    def late(self):
        threading.main_thread().join()
        try:
            self.kv.get("a")
        except HostError as error:
            print(error.code)
    """
    said, done = _shouted(tmp_path, b'{"action": "leave"}', b"", body)
    assert len(said) == 1
    assert done.stderr == b"service_unavailable\n"
