"""The SDK's latticed-stdio-1 protocol, with real processes and pipes."""

from __future__ import annotations

import os
import subprocess

import pytest

from latticed.sdk.testing import Gate, LongLived, ProgramError
from tests.house import plugins, processes

KV = ("kv:read", "kv:write")


@pytest.fixture
def running_plugin(tmp_path):
    """A context manager that starts a plugin with the given class body."""

    def start(body, *capabilities, **more):
        command = plugins.program(tmp_path, body)
        return LongLived(command, Gate(capabilities, **more), env=plugins.ENVIRONMENT, config={"city": "Ulm"})

    return start


def test_session_calls_all_methods_of_plugin_from_initialize_to_shutdown(running_plugin):
    """started, actions, health, host calls, stopping; exit code 0 and an empty stderr."""
    body = """
    def started(self):
        self.kv.put("started", f"{self.id} {self.config['city']} {self.capabilities}")

    def do_say_it(self, payload):
        return {"payload": payload, "kept": self.kv.get("started")}

    def health(self):
        return Health("degraded", "tired")

    def stopping(self):
        self.kv.put("stopped", "yes")
    """
    with running_plugin(body, *KV) as plugin:
        kept = "test.plugin Ulm ('kv:read', 'kv:write')"
        answer = {"ok": True, "message": "", "result": {"payload": [1, "ä\n"], "kept": kept}, "error": None}
        assert plugin.invoke("say-it", [1, "ä\n"]) == answer
        assert plugin.health() == {"status": "degraded", "message": "tired"}
    assert plugin.gate.kv["stopped"] == b"yes"
    assert (plugin.returncode, plugin.stderr) == (0, "")


def test_exception_of_an_action_is_returned_as_its_error(running_plugin):
    """Its traceback goes to stderr, except for deliberate errors; the plugin keeps running."""
    body = """
    def do_break(self, payload):
        return {}[payload]

    def do_refuse(self, payload):
        raise PluginError("expected more")

    def do_ask(self, payload):
        return self.kv.get("a")

    def do_work(self, payload):
        return Reply([payload], message="done")

    def do_fail(self, payload):
        return Reply("half", message="only half", ok=False)
    """
    with running_plugin(body) as plugin:
        assert plugin.invoke("break", "key")["error"] == "KeyError: 'key'"
        assert plugin.invoke("refuse")["error"] == "expected more"
        assert plugin.invoke("ask")["error"] == "capability_denied: the manifest does not declare kv:read"
        assert plugin.invoke("dance")["error"] == "no such action: dance"
        assert plugin.invoke("__init__")["error"] == "no such action: __init__"
        assert plugin.invoke("work", 1) == {"ok": True, "message": "done", "result": [1], "error": None}
        failed = {"ok": False, "message": "only half", "result": "half", "error": "only half"}
        assert plugin.invoke("fail") == failed
    assert plugin.stderr.count("Traceback") == 1
    assert "KeyError: 'key'" in plugin.stderr
    assert plugin.returncode == 0


@pytest.mark.parametrize(
    ("result", "why"),
    [
        ("{1, 2}", "TypeError"),
        ("float('nan')", "ValueError"),
        ("chr(0xd800)", "UnicodeEncodeError"),
        ("{(1, 2): 3}", "TypeError"),
        ("loop()", "ValueError"),
        ("'x' * (1 << 20)", "at most 1048576 bytes"),
        ("raise_odd()", "odd ?"),
    ],
)
def test_result_that_cannot_be_encoded_is_an_error_of_its_action(running_plugin, result, why):
    """No malformed line is written, and the next action works."""
    body = f"""
    def do_it(self, payload):
        def loop():
            circle = []
            circle.append(circle)
            return circle
        def raise_odd():
            raise PluginError("odd " + chr(0xdfff))
        return {result}

    def do_work(self, payload):
        return 1
    """
    with running_plugin(body) as plugin:
        found = plugin.invoke("it")
        assert not found["ok"]
        assert why in found["error"]
        assert plugin.invoke("work")["ok"]


def test_largest_result_that_fits_is_sent(running_plugin):
    """A line of exactly the limit is sent; with one byte more the action fails."""
    around = len(b'{"jsonrpc":"2.0","id":2,"result":{"ok":true,"message":"","result":"","error":null}}\n')
    body = f"""
    def do_it(self, payload):
        return "x" * (payload - {around})
    """
    with running_plugin(body) as plugin:
        assert plugin.invoke("it", 1 << 20)["ok"]
        assert "at most" in plugin.invoke("it", (1 << 20) + 1)["error"]


def test_health_that_raises_or_is_invalid_is_unhealthy(running_plugin):
    body = """
    def health(self):
        if self.call("kv.get", key="how")["ok"]:
            raise RuntimeError("broken " + chr(0xd800))
        return None
    """
    with running_plugin(body, "kv:read") as plugin:
        assert plugin.health()["status"] == "unhealthy"
        plugin.gate.kv["how"] = b""
        assert plugin.health() == {"status": "unhealthy", "message": "RuntimeError: broken ?"}
    assert plugin.returncode == 0


def test_print_in_a_plugin_writes_to_stderr(running_plugin):
    """So do prints of Python at any time, of C libraries, and of child processes."""
    body = """
    print("at import")

    def do_print(self, payload):
        print("printed")
        sys.stdout.write("written\\n")
        os.write(1, b"below\\n")
        subprocess.run(["echo", "child"])
        sys.__stdout__.write("original\\n")
        sys.__stdout__.flush()
        return sys.stdin.read()
    """
    with running_plugin(body) as plugin:
        assert plugin.invoke("print")["result"] == "", "stdin is at its end, and takes nothing from the protocol"
    assert plugin.stderr.splitlines() == ["at import", "printed", "written", "below", "child", "original"]


def test_children_do_not_inherit_the_pipes(tmp_path):
    """A child that outlives the plugin must not delay end of file for the host."""
    body = """
    def do_spawn(self, payload):
        return subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False,
                                stdout=subprocess.DEVNULL).pid
    """
    text = plugins.say("initialize", {"id": 2, "method": "invoke", "params": {"action": "spawn"}}, "shutdown")
    said, done = plugins.told(plugins.program(tmp_path, body), text)
    os.kill(said[1]["result"]["result"], 9)
    assert [one["id"] for one in said] == [1, 2, 3]
    assert done.returncode == 0


def test_requests_that_arrive_during_a_host_call_are_kept(tmp_path):
    """They are answered after the call, in order."""
    body = """
    def do_ask(self, payload):
        return self.call("node.facts")
    """
    text = plugins.say(
        "initialize",
        {"id": 2, "method": "invoke", "params": {"action": "ask"}},
        "health",
        {"id": 4, "method": "invoke", "params": {"action": "none"}},
        {"id": 1, "result": {"a": 1}},
        {"id": 5, "method": "shutdown"},
    )
    said, done = plugins.told(plugins.program(tmp_path, body), text)
    assert said[1] == {"jsonrpc": "2.0", "id": 1, "method": "node.facts", "params": {}}
    assert [one["id"] for one in said if "method" not in one] == [1, 2, 3, 4, 5]
    assert said[2]["result"]["result"] == {"a": 1}
    assert (done.returncode, done.stderr) == (0, "")


def test_each_answer_reaches_the_thread_that_called(running_plugin):
    """Many threads call at once, interleaved with requests of the host."""
    body = """
    def do_crowd(self, payload):
        found = {}

        def look(number):
            for turn in range(20):
                self.kv.put(f"key-{number}", f"{number}-{turn}")
                found[number, turn] = self.kv.get(f"key-{number}") == f"{number}-{turn}"

        threads = [threading.Thread(target=look, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [len(found), all(found.values())]
    """
    with running_plugin(body, *KV) as plugin:
        for _ in range(3):
            assert plugin.invoke("crowd")["result"] == [160, True]
            assert plugin.health()["status"] == "healthy"


def test_background_thread_can_call_between_requests(running_plugin):
    """The thread that reads stdin delivers answers to all: here the main thread, waiting for a request."""
    body = """
    def started(self):
        threading.Thread(target=self.tick).start()

    def tick(self):
        for turn in range(50):
            self.kv.put("tick", str(turn))
        self.kv.put("ticked", "yes")

    def do_work(self, payload):
        return self.kv.get("ticked")
    """
    with running_plugin(body, *KV) as plugin:
        processes.until(lambda: plugin.invoke("work")["result"] == "yes", what="the thread's calls")
        assert plugin.gate.kv["tick"] == b"49"


@pytest.mark.parametrize("payload", ["parameters", "size"])
def test_host_calls_that_cannot_be_encoded_raise_locally(running_plugin, payload):
    """The codes are those of the Gate; nothing reaches the host."""
    body = """
    def do_parameters(self, payload):
        self.call("kv.put", key={1, 2})

    def do_size(self, payload):
        self.call("kv.put", key="x" * (1 << 20))
    """
    with running_plugin(body, *KV) as plugin:
        code = {"parameters": "bad_params", "size": "too_large"}[payload]
        assert plugin.invoke(payload)["error"].startswith(f"{code}: expected ")
        assert plugin.gate.calls == []


def test_failed_start_is_reported_and_ends_the_plugin(running_plugin):
    """The reason is the error of initialize, the traceback is on stderr, the exit code 1."""
    body = """
    def started(self):
        raise ValueError("no city " + chr(0xd800))
    """
    plugin = running_plugin(body)
    with pytest.raises(ProgramError, match=r"initialize was answered with the error .*ValueError: no city \?"):
        plugin.__enter__()
    assert plugin.returncode == 1
    assert "Traceback" in plugin.stderr


def test_failed_start_of_many_words_is_cut_and_told(running_plugin):
    """A line of more than the longest would end the plugin, and its reason be lost."""
    body = """
    def started(self):
        raise ValueError("no city " + "x" * (2 << 20))
    """
    with pytest.raises(
        ProgramError, match=r"initialize was answered with the error .*ValueError: no city xxx"
    ) as failed:
        running_plugin(body).__enter__()
    assert "message_too_large" not in str(failed.value)
    assert str(failed.value).partition("; its stderr")[0].count("x") < 2_001


def test_unknown_methods_are_refused_and_notifications_ignored(tmp_path):
    """A later version of the host may send them."""
    text = plugins.say(
        "initialize",
        "dance",
        {"method": "cheer"},
        {"method": "health"},
        {"id": 77, "result": 1},
        {"id": 6, "method": "shutdown"},
    )
    said, done = plugins.told(plugins.program(tmp_path, "pass"), text)
    assert [one["id"] for one in said] == [1, 2, 6]
    assert said[1]["error"] == {"code": -32601, "message": "no such method: dance"}
    assert done.returncode == 0


def test_request_without_params_is_answered(tmp_path):
    said, _ = plugins.told(plugins.program(tmp_path, "pass"), plugins.say("initialize", "invoke", "shutdown"))
    assert said[1]["result"]["error"] == "no such action: "


@pytest.mark.parametrize("text", ["", plugins.say("initialize"), plugins.say("initialize").rstrip("\n")])
def test_closed_stdin_ends_the_plugin(tmp_path, text):
    """It ends without shutdown, with exit code 0; the last line needs no newline."""
    said, done = plugins.told(plugins.program(tmp_path, "pass"), text)
    assert [one["id"] for one in said] == ([1] if text else [])
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_stdin_during_a_host_call_is_service_unavailable(tmp_path):
    """All waiting threads get it; then the plugin ends."""
    body = """
    def do_ask(self, payload):
        codes = []

        def ask():
            try:
                self.call("node.facts")
            except HostError as error:
                codes.append(error.code)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        ask()
        for thread in threads:
            thread.join()
        ask()
        print(codes)
    """
    text = plugins.say("initialize", {"id": 2, "method": "invoke", "params": {"action": "ask"}})
    said, done = plugins.told(plugins.program(tmp_path, body), text)
    assert done.stderr == f"{['service_unavailable'] * 5}\n"
    assert [one["method"] for one in said if "method" in one] == ["node.facts"] * len(said[1:-1])
    assert done.returncode == 0


def test_closed_stdout_ends_the_plugin_without_traceback(tmp_path):
    """EPIPE is not reported."""
    reading, writing = os.pipe()
    os.close(reading)
    command = plugins.program(tmp_path, "pass")
    text = plugins.say("initialize", "health").encode()
    with os.fdopen(writing, "wb") as out:
        done = subprocess.run(
            command, input=text, stdout=out, stderr=subprocess.PIPE, env=plugins.ENVIRONMENT, check=False, timeout=30
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_sys_exit_ends_the_plugin(tmp_path):
    """So does every BaseException that is no Exception."""
    body = """
    def do_leave(self, payload):
        sys.exit(7)
    """
    text = plugins.say("initialize", {"id": 2, "method": "invoke", "params": {"action": "leave"}}, "health")
    said, done = plugins.told(plugins.program(tmp_path, body), text)
    assert [one["id"] for one in said] == [1]
    assert done.returncode == 7


def test_host_calls_after_shutdown_are_refused(tmp_path):
    """Threads that still run after shutdown make them; an exception in stopping does not change that."""
    body = """
    def stopping(self):
        threading.Thread(target=self.late).start()
        raise RuntimeError("in a hurry")

    def late(self):
        threading.main_thread().join()
        try:
            self.kv.get("a")
        except HostError as error:
            print(error.code)
    """
    said, done = plugins.told(plugins.program(tmp_path, body), plugins.say("initialize", "shutdown"))
    assert [one["result"] for one in said] == [{}, {}]
    assert done.stderr.endswith("service_unavailable\n")
    assert "RuntimeError: in a hurry" in done.stderr
    assert done.returncode == 0
