"""Signal handlers of plugins: one that raises breaks a host call off, and one that makes host calls is refused."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import termios
import threading

from latticed.sdk.testing import Gate, LongLived
from tests.house import plugins, processes

LATE = """
class Late(Exception):
    pass

def late(self, *_):
    raise self.Late

def do_read(self, payload):
    import signal
    signal.signal(signal.SIGUSR1, self.late)
    try:
        self.call(*payload)
    except self.Late:
        print("late", flush=True)
    return [self.kv.get(key) for key in ("a", "b")]

def do_write(self, payload):
    import signal
    signal.signal(signal.SIGUSR1, self.late)
    try:
        self.kv.put("a", "x" * payload)
    except self.Late:
        print("late", flush=True)
    return self.kv.get("a")
"""


BEAT = """
seen = None

def beat(self, *_):
    try:
        self.kv.put("beat", "1")
    except HostError as error:
        self.seen = f"{error}"
        print(error.code, flush=True)

def do_watch(self, payload):
    import signal
    signal.signal(signal.SIGUSR1, self.beat)
    return os.getpid()

def do_seen(self, payload):
    return self.seen

def do_once(self, payload):
    self.do_watch(payload)
    return [self.kv.get("a"), self.seen]
"""
REFUSED = "service_unavailable: a host call in a signal handler, which interrupted another"


class _Host:
    """The host's side of one program, line by line, on stdin, stdout and the descriptor of answers."""

    def __init__(self, process, answers):
        self.process = process
        self.answers = answers

    def say(self, message):
        self.process.stdin.write(json.dumps(message).encode() + b"\n")

    def answer(self, number, value):
        self.answers.write(_answer(number, value))

    def heard(self):
        return json.loads(self.process.stdout.readline())

    def noted(self):
        return self.process.stderr.readline()

    def interrupt(self):
        self.process.send_signal(signal.SIGUSR1)


def _answer(number, value):
    result = {"ok": True, "value_base64": value, "version": 1}
    told = {"host_response": {"id": number, "ok": True, "result": result, "error": None}}
    return json.dumps(told).encode() + b"\n"


@contextlib.contextmanager
def _running(tmp_path, body):
    """A plugin of one action, which is killed when it does not end."""
    reading, writing = os.pipe()
    with (
        os.fdopen(writing, "wb", buffering=0) as answers,
        subprocess.Popen(
            plugins.program(tmp_path, body),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env={**plugins.ENVIRONMENT, "LATTICE_HOST_RESPONSE_FD": str(reading)},
            pass_fds=[reading],
        ) as process,
    ):
        os.close(reading)
        too_long = threading.Timer(processes.PATIENCE_S, process.kill)
        too_long.start()
        try:
            yield _Host(process, answers)
        finally:
            too_long.cancel()
            too_long.join()
            process.kill()


def test_after_a_call_that_was_broken_off_each_call_gets_its_own_answer(tmp_path):
    """The answer of that one comes first, and is nobody's."""
    with _running(tmp_path, LATE) as host:
        host.say({"action": "read", "payload": ["node.facts"]})
        assert host.heard()["host_call"]["id"] == "1"
        host.interrupt()
        for number, value in (("2", "YQ=="), ("3", "Yg==")):
            assert host.heard()["host_call"]["id"] == number
            if number == "2":
                host.answer("1", "bm8=")
            host.answer(number, value)
        assert host.heard()["result"] == ["a", "b"]


def test_a_call_that_was_broken_off_in_the_middle_of_its_answer_leaves_the_rest_readable(tmp_path):
    with _running(tmp_path, LATE) as host:
        host.say({"action": "read", "payload": ["node.facts"]})
        assert host.heard()["host_call"]["id"] == "1"
        line = _answer("1", "bm8=")
        host.answers.write(line[:40])
        host.interrupt()
        assert host.heard()["host_call"]["id"] == "2"
        host.answers.write(line[40:] + _answer("2", "YQ=="))
        assert host.heard()["host_call"]["id"] == "3"
        host.answer("3", "Yg==")
        assert host.heard()["result"] == ["a", "b"]


def test_a_call_that_was_broken_off_in_the_middle_of_its_line_is_written_to_its_end(tmp_path):
    """The host would take the next call for a part of it."""
    with _running(tmp_path, LATE) as host:
        size = fcntl.fcntl(host.process.stdout, fcntl.F_GETPIPE_SZ)
        host.say({"action": "write", "payload": 3 * size})

        def full():
            held = fcntl.ioctl(host.process.stdout, termios.FIONREAD, b"\0" * 4)
            return int.from_bytes(held, "little") == size

        processes.until(full, what="the plugin to fill the pipe")
        host.interrupt()
        assert host.noted() == b"late\n"
        assert host.heard()["host_call"]["params"] == {"key": "a", "value": "x" * 3 * size}
        assert host.heard()["host_call"] == {"id": "2", "method": "kv.get", "params": {"key": "a"}}
        host.answer("1", "")
        host.answer("2", "YQ==")
        assert host.heard()["result"] == "a"


def test_a_host_call_in_a_signal_handler_is_refused_while_the_plugin_waits_for_a_request(tmp_path):
    """It waited for an answer that nobody read, and the plugin answered nothing more."""
    with LongLived(plugins.program(tmp_path, BEAT), Gate(["kv:write"]), env=plugins.ENVIRONMENT) as plugin:
        pid = plugin.invoke("watch")["result"]

        def refused():
            # Between two requests the plugin is for a moment not waiting: the call is then made.
            os.kill(pid, signal.SIGUSR1)
            return plugin.invoke("seen")["result"] == REFUSED

        processes.until(refused, what="the handler's call to be refused")
        assert plugin.health()["status"] == "healthy"
    assert plugin.returncode == 0


def test_a_host_call_in_a_signal_handler_is_refused_while_an_action_waits_for_another(tmp_path):
    with _running(tmp_path, BEAT) as host:
        host.say({"action": "once"})
        assert host.heard()["host_call"]["method"] == "kv.get"
        host.interrupt()
        assert host.noted() == b"service_unavailable\n"
        host.answer("1", "YQ==")
        assert host.heard()["result"] == ["a", REFUSED]
