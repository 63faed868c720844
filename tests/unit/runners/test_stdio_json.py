"""stdio-json-v1 from the host's side, without a process."""

from __future__ import annotations

import asyncio
import json

import pytest

from latticed.host.call import HostError
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from latticed.runners import stdio_json
from latticed.runners.unrepresentable import Unrepresentable, unread_call
from tests.house import conversations

REPLY = {"ok": True, "message": "done", "result": {"a": 1}, "error": None}


@pytest.fixture
async def call():
    async with conversations.invocation() as found:
        yield found


async def _code(call):
    with pytest.raises(Problem) as caught:
        await call.invocation.outcome
    return caught.value.code


def test_request_is_one_line_with_the_action_first():
    """A shell script can then find the action."""
    assert stdio_json.request("greet", {"name": "Ada\n"}) == b'{"action":"greet","payload":{"name":"Ada\\n"}}\n'
    assert stdio_json.request("describe", None) == b'{"action":"describe","payload":null}\n'


# The reply.


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (REPLY, REPLY),
        ({"ok": True}, {"ok": True, "message": "", "result": None, "error": None}),
        ({"ok": False, "error": "no"}, {"ok": False, "message": "", "result": None, "error": "no"}),
        ({"ok": True, "plan": [1]}, {"ok": True, "message": "", "result": [1], "error": None}),
        ({"ok": True, "plan": [1], "result": 0}, {"ok": True, "message": "", "result": 0, "error": None}),
        ({"ok": True, "plan": [1], "result": None}, {"ok": True, "message": "", "result": [1], "error": None}),
        ({"ok": True, "message": None}, {"ok": True, "message": "", "result": None, "error": None}),
        ({"ok": True, "extra": 1}, {"ok": True, "message": "", "result": None, "error": None}),
    ],
)
async def test_reply_is_the_outcome_with_defaults_for_missing_fields(call, said, found):
    """`plan` stands for `result`; unknown fields are dropped."""
    call.hear(said)
    assert await call.invocation.outcome == found


async def test_message_and_error_of_reply_are_cut_to_2000_characters(call):
    call.hear({"ok": False, "message": "m" * 5_000, "error": "e" * 5_000})
    found = await call.invocation.outcome
    assert len(found["message"]) == len(found["error"]) == 2_000


async def test_output_after_the_reply_is_ignored(call):
    """Invalid lines, host calls, the exit status."""
    call.hear(REPLY, {"host_call": {"id": 1, "method": "kv.get"}})
    call.invocation.feed(b"nonsense\n")
    call.invocation.ended("exited", "status 3")
    assert await call.invocation.outcome == REPLY
    assert call.calls == []


async def test_reply_without_newline_counts_when_the_process_ends(call):
    call.invocation.feed(json.dumps(REPLY).encode())
    assert not call.invocation.outcome.done()
    call.invocation.ended("exited", "status 1")
    assert await call.invocation.outcome == REPLY


@pytest.mark.parametrize("before", [b"", b"\n", b"  \r\n\n", b"   "])
async def test_exit_without_reply_fails_the_invocation(call, before):
    """Its stdout has blank lines or none."""
    call.invocation.feed(before)
    call.invocation.ended("exited", "status 1")
    assert await _code(call) == "exited"


async def test_truncated_reply_is_protocol_error(call):
    call.invocation.feed(b'{"ok": true, "mess')
    call.invocation.ended("killed", "signal 9")
    assert await _code(call) == "protocol_error"


# Host calls.


async def test_host_call_is_carried_out_and_answered_under_its_id(call):
    for number in (1, "1", ""):
        call.call(number, "kv.get", key="a")
        await call.until_said(1)
        answer = {"id": number, "ok": True, "result": ["kv.get", {"key": "a"}], "error": None}
        assert call.said.pop() == {"host_response": answer}


async def test_missing_params_of_host_call_count_as_empty(call):
    call.hear({"host_call": {"id": 1, "method": "node.facts"}}, {"host_call": {"id": 2, "method": "a", "params": None}})
    await call.until_said(2)
    assert call.calls == [("node.facts", {}), ("a", {})]


async def test_refused_host_call_is_answered_with_code_and_text(call):
    async def refuse(method, params):
        raise HostError(Denial.CAPABILITY_DENIED, "the manifest does not declare kv:read")

    call.serve = refuse
    call.call("7", "kv.get", key="a")
    await call.until_said(1)
    words = "capability_denied: the manifest does not declare kv:read"
    assert call.said == [{"host_response": {"id": "7", "ok": False, "result": None, "error": words}}]


@pytest.mark.parametrize("fault", ["raises", "no json", "cancelled"])
async def test_exception_in_service_is_answered_internal(call, fault):
    """The answer has no details of the exception; the plugin may still reply."""

    async def fail(method, params):
        if fault == "raises":
            raise KeyError("secret")
        if fault == "cancelled":
            raise asyncio.CancelledError
        return object()

    call.serve = fail
    call.call(1, "kv.get")
    await call.until_said(1)
    assert call.said[0]["host_response"]["error"].startswith("internal: ")
    assert "secret" not in json.dumps(call.said)
    call.hear(REPLY)
    assert await call.invocation.outcome == REPLY


async def test_answer_that_cannot_be_written_does_not_fail_the_invocation(call):
    """A plugin may close its end of the pipe before it replies."""
    for broken in ("write", "drain"):
        call.fail = broken
        call.call(1, "log.write")
        await conversations.until(lambda: not call.invocation._serving)
    call.hear(REPLY)
    assert await call.invocation.outcome == REPLY


async def test_unread_answers_bound_the_number_of_running_host_calls(call):
    """MAX_AT_ONCE run while answers wait for room in the pipe, so few of them are held in memory."""
    call.room.clear()
    for number in range(60):
        call.call(number, "kv.get")
    await conversations.until(lambda: len(call.calls) == stdio_json.MAX_AT_ONCE)
    for _ in range(10):
        await asyncio.sleep(0)
    assert (len(call.calls), len(call.said)) == (stdio_json.MAX_AT_ONCE, 1)
    call.room.set()
    await call.until_said(60)


async def test_concurrent_host_calls_are_answered_in_order(call):
    """Some of them fail, are refused, or raise in the service."""
    gates = [asyncio.Event() for _ in range(5)]

    async def serve(method, params):
        number = params["n"]
        await gates[number].wait()
        if number == 1:
            raise HostError(Denial.NOT_FOUND, "no")
        if number == 3:
            raise KeyError("ours")
        return number

    call.serve = serve
    for number in range(5):
        call.call(number, "kv.get", n=number)
    call.invocation.feed(rb'{"host_call":{"id":5,"method":"kv.put","params":{"key":"\ud800"}}}' + b"\n")
    await conversations.until(lambda: len(call.calls) == 5)
    for number in (4, 3, 2, 1):
        gates[number].set()
        for _ in range(5):
            await asyncio.sleep(0)
    assert call.said == []
    gates[0].set()
    await call.until_said(6)
    answers = [one["host_response"] for one in call.said]
    assert [one["id"] for one in answers] == [0, 1, 2, 3, 4, 5]
    assert [one["ok"] for one in answers] == [True, False, True, False, True, False]


async def test_large_host_calls_pause_reading(call):
    """All are carried out in the end, and the reply after them counts although the process has ended."""
    gate = asyncio.Event()

    async def serve(method, params):
        await gate.wait()

    call.serve = serve
    for number in range(8):
        call.call(number, "kv.put", key="a", value="x" * 900_000)
    call.hear(REPLY)
    call.invocation.ended("exited", "status 0")
    await conversations.until(lambda: len(call.calls) == 5)
    assert call.flows == [False]
    assert not call.invocation.outcome.done()
    gate.set()
    assert await call.invocation.outcome == REPLY
    assert len(call.calls) == 8
    assert call.flows[-1] is True


async def test_reading_of_stdout_resumes_after_the_outcome(call):
    """Otherwise the end of the output would never be read."""
    gate = asyncio.Event()
    call.serve = lambda method, params: gate.wait()
    for number in range(6):
        call.call(number, "kv.put", key="a", value="x" * 900_000)
    assert call.flows == [False]
    call.invocation.fail("deadline_exceeded", "too late")
    assert await _code(call) == "deadline_exceeded"
    await conversations.until(lambda: call.flows == [False, True])


async def test_closing_invocation_cancels_running_host_calls(call):
    ended = asyncio.Event()

    async def serve(method, params):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    call.serve = serve
    call.call(1, "kv.get")
    await conversations.until(lambda: call.calls)
    await call.invocation.close()
    assert ended.is_set()
    assert call.invocation.outcome.cancelled()
    assert call.said == []


async def test_failed_outcome_without_caller_is_not_logged(call):
    """The caller may have been cancelled."""
    call.invocation.feed(b"nonsense\n")
    await call.invocation.close()


# Limits.


async def test_line_on_stdout_over_the_limit_is_output_too_large():
    """It comes in any number of reads; a line of exactly the limit is accepted, and the sum of all has no limit."""
    line = json.dumps(REPLY).encode() + b"\n"
    for pieces in ([line], [line[:10], line[10:]], [b"\n" * 5_000, line], [b" \n" * 5_000 + line]):
        async with conversations.invocation(max_line_bytes=len(line) - 1) as call:
            for piece in pieces:
                call.invocation.feed(piece)
            assert await call.invocation.outcome == REPLY
    for pieces in ([b" " + line], [b" ", line], [b"x" * 500], [b"\n", b" " * 500]):
        async with conversations.invocation(max_line_bytes=len(line) - 1) as call:
            for piece in pieces:
                call.invocation.feed(piece)
            assert await _code(call) == "output_too_large"


async def test_reply_counts_although_too_long_a_line_follows():
    """That line is in the same read or in the next one."""
    line = json.dumps(REPLY).encode() + b"\n"
    for pieces in ([line + b"x" * 500], [line, b"x" * 500]):
        async with conversations.invocation(max_line_bytes=len(line)) as call:
            for piece in pieces:
                call.invocation.feed(piece)
            assert await call.invocation.outcome == REPLY


async def test_host_call_beyond_the_limit_is_too_many_host_calls():
    """It is not carried out."""
    async with conversations.invocation(max_host_calls=2) as call:
        for number in range(3):
            call.call(number, "kv.get")
        assert await _code(call) == "too_many_host_calls"
        assert len(call.calls) <= 2


BROKEN = {
    "text": b"hello",
    "array": b'[{"ok":true}]',
    "number": b"5",
    "cut": b'{"ok":tru',
    "two in a line": b'{"ok":true}{"ok":true}',
    "no ok": b'{"message":"done"}',
    "ok number": b'{"ok":1}',
    "ok text": b'{"ok":"true"}',
    "nothing": b"{}",
    "call null": b'{"host_call":null}',
    "call without id": b'{"host_call":{"method":"kv.get"}}',
    "call id fraction": b'{"host_call":{"id":1.5,"method":"kv.get"}}',
    "call without method": b'{"host_call":{"id":1}}',
    "call method number": b'{"host_call":{"id":1,"method":1}}',
    "call params array": b'{"host_call":{"id":1,"method":"a","params":[]}}',
    "call long method": b'{"host_call":{"id":1,"method":"' + b"x" * 129 + b'"}}',
    "call long id": b'{"host_call":{"id":"' + b"x" * 129 + b'","method":"a"}}',
    "bad utf-8": b'{"ok":true,"message":"\xff"}',
    "bad utf-8 in a name": b'{"ok":true,"\xff":1}',
    "NUL": b'{"ok":true}\0',
    "byte order mark": b'\xef\xbb\xbf{"ok":true}',
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
async def test_invalid_line_is_protocol_error(call, line):
    """The reason is printable; a reply after it is ignored."""
    call.invocation.feed(line + b"\n" + json.dumps(REPLY).encode() + b"\n")
    with pytest.raises(Problem) as caught:
        await call.invocation.outcome
    assert caught.value.code == "protocol_error"
    assert caught.value.reason.startswith("expected ")
    assert caught.value.reason.isprintable()
    assert len(caught.value.reason) < 400
    assert call.calls == []


@pytest.mark.parametrize(
    "line",
    [
        rb'{"ok":true,"message":"\ud800"}',
        b'{"ok":true,"result":NaN}',
        b'{"ok":true,"result":[1e400]}',
        b'{"ok":true,"result":' + b"[" * 101 + b"]" * 101 + b"}",
        b'{"ok":true,"result":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"host_call":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    ],
)
async def test_unrepresentable_reply_is_plugin_error(call, line):
    """It is no protocol_error: the line is valid, but its value cannot be passed on."""
    call.invocation.feed(line + b"\n")
    with pytest.raises(Unrepresentable) as caught:
        await call.invocation.outcome
    assert caught.value.code == "plugin_error"
    assert caught.value.reason.isprintable()


def test_members_of_a_call_are_looked_for_at_both_ends_of_a_line_alone():
    """Else a line of a mebibyte would be work for a third of a second, and stop the daemon as long."""
    many = b'"a":1,' * 1_000

    def found(members):
        return unread_call(b'{"host_call":{' + members + b"}}", "too much").members["host_call"].keys()

    assert found(b'"id":7,"method":"kv.put",' + many + b'"params":{}') == {"id", "method", "a"}
    assert found(many + b'"params":{},"id":7') == {"a", "id"}
    assert found(many + b'"id":7,' + many + b'"params":{}') == {"a"}


async def test_host_call_with_unrepresentable_params_is_bad_params(call):
    """The invocation continues."""
    call.invocation.feed(rb'{"host_call":{"id":7,"method":"kv.put","params":{"key":"\ud800"}}}' + b"\n")
    await call.until_said(1)
    assert call.said[0]["host_response"]["error"].startswith("bad_params: ")
    assert (call.said[0]["host_response"]["id"], call.calls) == (7, [])
    call.hear(REPLY)
    assert await call.invocation.outcome == REPLY


MANY = b'{"a":[' + b"[]," * 60_000 + b"[]]}"


@pytest.mark.parametrize(
    "members",
    [
        b'"id":7,"method":"kv.put","params":' + MANY,
        b'"params":' + MANY + b',"id":7,"method":"kv.put"',
        b' "id" : 7, "params": ' + MANY + b', "method": "kv.put" ',
    ],
    ids=["before", "after", "around"],
)
async def test_host_call_with_too_many_values_is_bad_params_and_not_decoded(call, members):
    """As the Gate refuses it: on record, and at the plugin's rate. The invocation continues."""
    refused, refuse = [], call.invocation._refuse

    def noted(method, line, error):
        refused.append((method, line))
        return refuse(method, line, error)

    call.invocation._refuse = noted
    line = b'{"host_call":{' + members + b"}}"
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(stdio_json, "_decode", lambda line: pytest.fail("it was decoded"))
        call.invocation.feed(line + b"\n")
    await call.until_said(1)
    assert refused == [("kv.put", line)]
    assert "more than 50000 values" in call.said[0]["host_response"]["error"]
    assert call.said[0]["host_response"]["error"].startswith("bad_params: ")
    assert (call.said[0]["host_response"]["id"], call.calls) == (7, [])
    call.hear(REPLY)
    assert await call.invocation.outcome == REPLY


@pytest.mark.parametrize(
    "line",
    [
        b'{"host_call":{"params":' + MANY + b"}}",
        b'{"host_call":' + MANY + b"}",
        b'{"host_call":{"id":7,"method":["kv.put"],"params":' + MANY + b"}}",
    ],
)
async def test_line_with_too_many_values_that_is_no_call_to_refuse_is_plugin_error(call, line):
    call.invocation.feed(line + b"\n")
    assert await _code(call) == "plugin_error"
    assert call.said == []


async def test_params_of_host_call_reach_the_service_as_they_came(call):
    """Their size and hash are recorded, and the service judges their depth."""
    heard = []
    call.invocation._serve = lambda method, params: call._echo(method, heard.append(params))
    for params in (b'{ "key" : 1.0 }', b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"):
        call.invocation.feed(b'{"host_call":{"id":1,"method":"kv.get","params":' + params + b"}}\n")
        await conversations.until(lambda: heard)
        assert heard.pop() == params
    call.hear(REPLY)
    assert await call.invocation.outcome == REPLY


@pytest.mark.parametrize("params", [[], "text", 5, True])
async def test_params_that_are_no_object_are_a_protocol_error(call, params):
    call.hear({"host_call": {"id": 1, "method": "kv.get", "params": params}})
    with pytest.raises(Problem) as failed:
        await call.invocation.outcome
    assert failed.value.code == "protocol_error"


async def test_text_that_is_no_message_is_quoted_in_the_reason(call):
    """It may even be JSON."""
    call.invocation.feed(b'{"level":"debug"}\n')
    with pytest.raises(Problem, match=r'found something else: "\{"level":"debug"\}"'):
        await call.invocation.outcome


async def test_reply_of_the_greatest_depth_is_accepted(call):
    call.invocation.feed(b'{"ok":true,"result":' + b"[" * 99 + b"]" * 99 + b"}\n")
    assert (await call.invocation.outcome)["ok"]


async def test_reply_with_too_many_values_is_plugin_error_and_not_decoded(call, monkeypatch):
    monkeypatch.setattr(stdio_json, "_decode", lambda line: pytest.fail("it was decoded"))
    call.invocation.feed(b'{"ok":true,"result":[' + b"[]," * 60_000 + b"[]]}\n")
    with pytest.raises(Problem, match="more than 50000 values") as failed:
        await call.invocation.outcome
    assert failed.value.code == "plugin_error"


@pytest.mark.parametrize("line", [b"\n", b" \n"])
async def test_many_empty_stdout_lines_yield_to_the_event_loop(call, line):
    """Thousands in one read are no error, and no further read happens until all are processed."""
    call.invocation.feed(line * 30_000 + json.dumps(REPLY).encode() + b"\n")
    assert call.flows == [False]
    turns = 0
    while not call.invocation.outcome.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 30_000 // stdio_json.LINES_A_TURN
    assert call.invocation.outcome.result() == REPLY
