"""Plugins that violate latticed-stdio-1, by mistake or on purpose: each fails with a reason, the daemon goes on."""

from __future__ import annotations

import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.house import hosting, peers, programs, raw_http

pytestmark = [pytest.mark.daemon, pytest.mark.slow]

SETTINGS = """
[supervision]
backoff_base_s = 600.0
backoff_ceiling_s = 600.0
start_deadline_s = 2.0
stop_grace_s = 1.0
[host_calls]
per_second = 1000000
burst = 1000000
log_per_second = 100000
"""
OFTEN = {"health": {"interval_s": 1, "timeout_s": 1, "failures": 1}}
SOON = {"health": {"interval_s": 1, "timeout_s": 1, "failures": 3}, "limits": {"invoke_timeout_s": 30}}
"""For plugins that have to answer until they stop doing so: on a busy machine a single answer may be late."""
GARBAGE = {
    "no json": (rb"hello\n", '"hello"'),
    "no object": (rb"[1]\n", "object"),
    "no utf-8": (rb"{\"jsonrpc\":\"2.0\",\"id\":\"\xff\"}\n", ""),
    "another version": (rb"{\"jsonrpc\":\"1.0\",\"id\":1,\"result\":1}\n", "2.0"),
    "an unknown field": (rb"{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":1,\"more\":1}\n", "more"),
    "an unknown id": (rb"{\"jsonrpc\":\"2.0\",\"id\":4711,\"result\":{}}\n", "4711"),
    "an id of text": (rb"{\"jsonrpc\":\"2.0\",\"id\":\"2\",\"result\":{}}\n", "id 2"),
    "nothing to answer": (rb"{\"jsonrpc\":\"2.0\",\"method\":\"kv.get\"}\n", "an id and a method"),
    "too deep": (b'{"jsonrpc":"2.0","id":9,"result":' + b"[" * 5000 + b"]" * 5000 + b"}\\n", ""),
    "an empty line": (rb"\n", ""),
}


@pytest.fixture(scope="module")
def arena():
    with hosting.hosting(SETTINGS, probed=True) as host:
        yield host


@pytest.fixture
def host(arena):
    """A daemon that must not block during the test; afterwards all is stopped, and no process is left."""
    with arena.answering(), arena.daemon.turns.short():
        yield arena
    for one in arena.daemon.get("/api/plugins").json():
        if one["status"] == "active":
            arena.daemon.set_status("disabled", one["id"])
    arena.until_only()


@pytest.fixture
def name(request):
    """A plugin id of this test's own."""
    return "acme." + "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower()).strip("-")


def failed(host, plugin_id, code="protocol_error"):
    """The message of its failure, once it has failed."""
    return host.daemon.until_state("failed", plugin_id, code=code)["runtime"]["last_error"]["message"]


@pytest.mark.parametrize("kind", GARBAGE)
def test_invalid_message_ends_the_session(host, name, kind):
    """protocol_error with what was expected; waiting invocations fail with the same, at once."""
    data, words = GARBAGE[kind]
    body = f"message = hear()\nos.write(1, b'{data.decode('latin-1')}')\nserve()"
    host.up(name, peers.peer(body))
    answer = host.invoke(name, "anything")
    assert (answer.status, answer.code) == (502, "protocol_error"), answer
    assert words in answer.json()["detail"]
    assert words in failed(host, name)


@pytest.mark.parametrize("at_once", [True, False])
def test_plugin_that_prints_garbage_at_start_is_not_armed(host, name, at_once):
    """The reason is the protocol error, not a timeout."""
    body = "os.write(1, b'hello')\n" + ("os.write(1, b'\\n')" if at_once else "hear(); os.write(1, b'\\n')")
    runtime = host.activated(name, peers.peer(body + "\nserve()", greet=False)).json()["runtime"]
    assert (runtime["state"], runtime["last_error"]["code"]) == ("failed", "protocol_error")


def test_plugin_that_never_answers_is_not_armed(host, name):
    """The start times out, and no process is left."""
    runtime = host.activated(name, peers.peer("time.sleep(1000)", greet=False)).json()["runtime"]
    assert (runtime["state"], runtime["last_error"]["code"]) == ("failed", "start_timeout")
    host.until_only()


def test_repeated_answer_ends_the_session(host, name):
    """The first counts, the second answers no request."""
    host.up(name, peers.peer("message = answer(hear())\nanswer(message)\nserve()"))
    host.invoke(name, "anything")
    words = failed(host, name)
    assert "expected one answer to the request" in words or "an answer to something that was asked" in words


def test_endless_line_ends_the_session(host, name):
    """message_too_large once it is over the limit; the daemon buffers no more than that."""
    before = host.daemon.memory_kib()
    host.up(name, peers.peer("hear()\nwhile True:\n    os.write(1, b'[' * 65536)"))
    answer = host.invoke(name, "anything")
    assert (answer.status, answer.code) == (502, "message_too_large")
    assert "1048576 bytes" in failed(host, name, "message_too_large")
    assert host.daemon.memory_kib(peak=True) - before < 16 << 10


@pytest.mark.parametrize("end", [0, 1])
def test_plugin_that_closes_its_pipes_is_ended(host, name, end):
    """That is the reason that is reported, long before a health check would find the plugin unhealthy."""
    runtime = {"health": {"interval_s": 1, "timeout_s": 60, "failures": 60}}
    host.up(name, peers.peer(f"hear()\nos.close({end})\ntime.sleep(1000)"), runtime=runtime)
    host.invoke(name, "anything")
    assert f"keep its {('stdin', 'stdout')[end]} open" in failed(host, name)


def test_exit_while_being_written_to_reports_the_exit_status(host, name):
    """The broken pipe is not reported."""
    host.up(name, peers.peer("hear()\nos.close(0)\nos.close(1)\ntime.sleep(0.2)\nos._exit(9)"))
    answer = host.invoke(name, "anything")
    assert (answer.status, answer.code) == (502, "exited")
    assert "exited 9" in failed(host, name, "exited")


@pytest.mark.parametrize(("call", "limit"), [("kv.get", 0), ("audit.query", 500)])
def test_unread_results_of_host_calls_are_bounded(host, name, call, limit):
    """The daemon's memory stays bounded however large results are; in the end the plugin is unhealthy."""
    body = """
message = hear()
for _ in range(6 if LIMIT else 1):  # so many events are there to ask for
    waiting = 100 if LIMIT else 1
    for number in range(waiting):
        say(id=number, method="kv.put", params={"key": "key", "value": "x" * (9 if LIMIT else 65000)})
    while waiting:
        if "method" in (heard := hear()):  # it is asked for its health meanwhile
            answer(heard)
        else:
            waiting -= 1
answer(message)
while True:
    number += 1
    say(id=number, method="CALL", params={"limit": 500} if LIMIT else {"key": "key"})
"""
    host.up(name, peers.peer(body.replace("LIMIT", str(limit)).replace("CALL", call)), runtime=SOON)
    before = host.daemon.memory_kib()
    host.result(name, "make room")
    assert "no answer within 1 s" in failed(host, name, "unhealthy")
    assert host.daemon.memory_kib(peak=True) - before < 64 << 10
    assert host.daemon.events(action="host.call", target=call)


@pytest.mark.parametrize("value", ["'[],' * 349_000 + '[]'", "'[],' * 49_000 + '[]'", "'\"' + 'x' * 1_040_000 + '\"'"])
def test_large_host_calls_of_a_plugin_that_never_reads_are_bounded(host, name, value):
    """The megabyte consists of nested lists, of as many values as are allowed, or of one text."""
    body = """
message = hear()
say(id=0, method="kv.put", params={"key": "key", "value": "x" * 60000})
hear()
answer(message)
params = b'{"a":[' + (VALUE).encode() + b"]}"
for number in range(1, 1000):
    say(id=number, method="kv.get", params={"key": "key"}) if number < 40 else None
    os.write(1, b'{"jsonrpc":"2.0","id":"%d","method":"kv.get","params":%b}\\n' % (number, params))
"""
    before = host.daemon.memory_kib()
    body = body.replace("VALUE", value).replace("os.write(1, ", "sys.stdout.buffer.write(")
    host.up(name, peers.peer(body))
    host.result(name, "make room")
    until_s = time.monotonic() + 2
    while time.monotonic() < until_s:  # it would have sent hundreds by then
        assert host.daemon.memory_kib(peak=True) - before < 96 << 10
        time.sleep(0.05)


FLOODS = {
    "calls": 'say(id=number, method="kv.get", params={"key": "key"})',
    "writes": 'say(id=number, method="kv.put", params={"key": "key", "value": "x" * 1000})',
    "log lines by call": 'say(id=number, method="log.write", params={"level": "info", "message": "x" * 900})',
    "queries of the audit": 'say(id=number, method="audit.query", params={"limit": 50})',
    "denied calls": 'say(id=number, method="http.do", params={"method": "GET", "url": "http://127.0.0.1/"})',
    "calls that there are not": 'say(id=number, method="no.such", params={})',
    "bad parameters": 'say(id=number, method="kv.get", params={"k": [[]] * 1000})',
    "calls whose values cannot be carried": """with speaking:
            os.write(1, b'{"jsonrpc":"2.0","id":1,"method":"kv.get","params":{"key":1e400}}\\n' * 1_000)""",
    "calls that cannot be read": """with speaking:
            os.write(1, b'{"jsonrpc":"2.0","id":1,"method":"http.do","params":{"url":NaN}}\\n' * 1_000)""",
    "long calls that cannot be read": """with speaking:
            os.write(1, b'{"jsonrpc":"2.0","id":1,"method":"http.do","params":{"url":[')
            os.write(1, b'1.2345678912345678e-300,' * 40_000 + b'NaN]}}\\n')""",
    "many values": 'say(id=number, method="log.write", params={"message": "", "fields": {"a": [[]] * 49_000}})',
    "too many values": 'say(id=number, method="log.write", params={"message": "", "fields": {"a": [[]] * 250_000}})',
    "control characters": """with speaking:
            os.write(1, b'{"jsonrpc":"2.0","id":%d,"method":"log.write","params":{"message":"' % number)
            os.write(1, b"\\x7f" * 240_000 + b'"}}\\n')""",
    "stderr": 'os.write(2, b"noise\\n" * 500)',
    "stderr of empty lines": 'os.write(2, b"\\n" * 60000)',
    "stderr without lines": 'os.write(2, b"\\x7f" * 60000)',
}
"""What a plugin may do without end, in a thread, while it answers as it should."""


@pytest.mark.parametrize("flood", FLOODS)
def test_flooding_plugin_does_not_delay_another(host, name, flood):
    """Its calls are carried out as fast as it reads answers; it stays armed."""
    body = """
def flood():
    number = 0
    while True:
        number += 1
        FLOOD
threading.Thread(target=flood, daemon=True).start()
while True:
    message = hear()
    if "method" in message:
        answer(message)
"""
    before = host.daemon.memory_kib(peak=True)
    other = host.up(f"{name}-other", programs.GREETER)
    body = body.replace("FLOOD", FLOODS[flood])
    runtime = {"sandbox": {"features": ["threads"]}, "limits": {"invoke_timeout_s": 1}}
    host.up(name, peers.peer(body), runtime=runtime)
    assert host.invoke(name, "anything").status in {200, 503}  # its answer may wait behind its own calls
    for number in range(5):
        assert host.result(other, "keep", str(number)) == str(number)
    assert host.runtime(name)["state"] == "armed"
    assert host.daemon.memory_kib(peak=True) - before < 64 << 10


def test_every_call_that_cannot_be_read_is_on_record(host, name):
    """Without any capability: counted for the plugin, and coalesced in the chain as other denials are."""
    body = """
while True:
    message = hear()
    if message["method"] == "invoke":
        for _ in range(500):
            os.write(1, b'{"jsonrpc":"2.0","id":1,"method":"node.facts","params":{"key":NaN}}\\n')
            assert hear()["error"]["data"]["code"] == "capability_denied"
    answer(message)
"""
    host.up(name, peers.peer(body))
    assert host.invoke(name, "ask").status == 200

    def counted():
        events = host.daemon.events(action="host.call", actor=f"plugin:{name}", decision="deny")
        return sum(event["detail"].get("count", 1) for event in events)

    host.daemon.until(lambda: counted() == 500, "all refusals to be on record")
    assert len(host.daemon.events(action="host.call", actor=f"plugin:{name}")) < 100


CALLS, READERS = 2_000, 16


def test_readers_of_all_events_do_not_delay_other_clients(host, name):
    """All read from the beginning at once, while the plugin makes more; each gets every event."""
    body = """
while True:
    message = hear()
    if message.get("method") == "invoke":
        for number in range(message["params"]["payload"]):
            say(id=number, method="kv.get", params={"key": "key"})
            if number >= 100:
                hear()
        for _ in range(100):
            hear()
    answer(message)
"""
    host.up(name, peers.peer(body))
    host.result(name, "make history", CALLS)
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(raw_http.connected(host.daemon.place.socket)) for _ in range(READERS)]
        for reader in readers:
            reader.sendall(raw_http.request("GET", "/api/events?after=0&host_calls=1"))
        # At once: who reads nothing for 10 s is cut.
        with ThreadPoolExecutor(READERS) as threads:
            heard = [threads.submit(_read_calls, reader, CALLS + CALLS // 10) for reader in readers]
            host.result(name, "make history", CALLS // 10)
            for one in heard:
                one.result()


def _read_calls(reader, count):
    """Read until so many host calls have come."""
    last, seen = b"", 0
    while seen < count:
        part = reader.recv(1 << 20)
        assert part, "the stream ended"
        seen += (last + part).count(b'"host.call"')
        last = (last + part)[-10:]  # it may be cut anywhere


def test_invalid_host_calls_are_answered_with_errors(host, name):
    """They are unknown, undeclared, or have wrong parameters or unusual ids; the session continues."""
    body = r"""
message = hear()
codes = []
for number, call in [(-1, "kv.get"), ("x" * 128, "no.such"), (2**60, "kv.put"), ("", "kv.get")]:
    say(id=number, method=call, params={"nothing": 1})
    found = hear()
    assert found["id"] == number
    codes.append(found["error"]["data"]["code"])
say(id=message["id"], result={"ok": True, "message": "", "result": codes})
serve()
"""
    host.up(name, peers.peer(body))
    assert host.result(name, "anything") == ["bad_params", "not_found", "bad_params", "bad_params"]


@pytest.mark.parametrize(
    ("result", "words"),
    [("None", "expected a reply"), ("{'ok': 1}", "expected a reply"), ("{'ok': True, 'message': 5}", "")],
)
def test_invalid_reply_is_plugin_error(host, name, result, words):
    """The plugin keeps running."""
    host.up(name, peers.peer(f"say(id=hear()['id'], result={result})\nserve()"))
    answer = host.invoke(name, "anything")
    if words:
        assert (answer.status, answer.code) == (502, "protocol_error")
        assert words in answer.json()["detail"]
    else:
        assert answer.json()["message"] == "5"
    assert host.invoke(name, "again").status == 200


ECHO = """
while True:
    message = hear()
    if message["method"] == "health" and unwell:
        os.write(1, b'{"jsonrpc":"2.0","id":%d,"result":{"status":"healthy","message":"\\\\ud800"}}\\n' % message["id"])
    elif message["method"] == "invoke":
        unwell = True
        odd = message["params"]["payload"].encode()
        os.write(1, b'{"jsonrpc":"2.0","id":%d,"result":{"ok":true,"result":%b}}\\n' % (message["id"], odd))
    else:
        answer(message)
"""


def test_echoed_client_input_never_ends_a_plugin(host, name):
    """Unrepresentable values in replies and in health answers are each that answer's plugin_error; no restart."""
    host.up(name, peers.peer("unwell = False" + ECHO), runtime=OFTEN)
    pid = host.runtime(name)["pid"]
    for odd in (r'"\ud800"', "1e400", "NaN", "[" * 5_000 + "]" * 5_000, "[" + "[]," * 300_000 + "0]") * 3:
        answer = host.invoke(name, "echo", odd)
        assert (answer.status, answer.code) == (502, "plugin_error"), answer
    host.daemon.until(lambda: host.runtime(name)["health"] == "degraded", "the odd health answer")
    assert "a lone surrogate" in host.runtime(name)["message"]
    assert host.invoke(name, "echo", "7").json()["result"] == 7
    assert (host.runtime(name)["pid"], host.story(name)) == (pid, ["armed"])


def test_invalid_health_answer_is_unhealthy(host, name):
    """The message says what was expected."""
    host.up(name, peers.peer("say(id=hear()['id'], result={'status': 'splendid'})\nserve()"), runtime=OFTEN)
    assert "found 'splendid'" in failed(host, name, "unhealthy")
