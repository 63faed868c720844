"""stdio-json-v1 from the host's side, without a process."""

from __future__ import annotations

import asyncio
import json

import pytest

from latticed.host.call import HostError
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from latticed.runners import stdio_json
from latticed.runners.unrepresentable import Unrepresentable
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


def test_the_request_is_one_line_with_the_action_first():
    """A shell can find it there."""
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
async def test_a_reply_is_the_outcome(call, said, found):
    """Whatever may be left out, `plan` for result; fields that nobody knows are left to their plugin."""
    call.hear(said)
    assert await call.invocation.outcome == found


async def test_messages_are_cut_to_a_bounded_length(call):
    call.hear({"ok": False, "message": "m" * 5_000, "error": "e" * 5_000})
    found = await call.invocation.outcome
    assert len(found["message"]) == len(found["error"]) == 2_000


async def test_output_after_the_reply_is_ignored(call):
    """Neither nonsense nor calls, nor how it ended."""
    call.hear(REPLY, {"host_call": {"id": 1, "method": "kv.get"}})
    call.invocation.feed(b"nonsense\n")
    call.invocation.ended("exited", "status 3")
    assert await call.invocation.outcome == REPLY
    assert call.calls == []


async def test_a_reply_without_a_newline_counts_at_the_end(call):
    call.invocation.feed(json.dumps(REPLY).encode())
    assert not call.invocation.outcome.done()
    call.invocation.ended("exited", "status 1")
    assert await call.invocation.outcome == REPLY


@pytest.mark.parametrize("before", [b"", b"\n", b"  \r\n\n", b"   "])
async def test_an_exit_without_a_reply_is_the_outcome(call, before):
    """Blank lines say nothing."""
    call.invocation.feed(before)
    call.invocation.ended("exited", "status 1")
    assert await _code(call) == "exited"


async def test_a_line_cut_off_at_the_end_is_no_reply(call):
    call.invocation.feed(b'{"ok": true, "mess')
    call.invocation.ended("killed", "signal 9")
    assert await _code(call) == "protocol_error"


# Host calls.


async def test_a_call_is_carried_out_and_answered(call):
    for number in (1, "1", ""):
        call.call(number, "kv.get", key="a")
        await call.until_said(1)
        answer = {"id": number, "ok": True, "result": ["kv.get", {"key": "a"}], "error": None}
        assert call.said.pop() == {"host_response": answer}


async def test_params_may_be_missing(call):
    call.hear({"host_call": {"id": 1, "method": "node.facts"}}, {"host_call": {"id": 2, "method": "a", "params": None}})
    await call.until_said(2)
    assert call.calls == [("node.facts", {}), ("a", {})]


async def test_a_refusal_is_code_and_text(call):
    async def refuse(method, params):
        raise HostError(Denial.CAPABILITY_DENIED, "the manifest does not declare kv:read")

    call.serve = refuse
    call.call("7", "kv.get", key="a")
    await call.until_said(1)
    words = "capability_denied: the manifest does not declare kv:read"
    assert call.said == [{"host_response": {"id": "7", "ok": False, "result": None, "error": words}}]


@pytest.mark.parametrize("fault", ["raises", "no json", "cancelled"])
async def test_an_exception_in_a_service_is_internal(call, fault):
    """The plugin learns `internal`, and may still reply."""

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


async def test_an_unread_answer_does_not_spoil_the_reply(call):
    """A plugin may close its end as soon as it knows enough."""
    for broken in ("write", "drain"):
        call.fail = broken
        call.call(1, "log.write")
        await conversations.until(lambda: not call.invocation._serving)
    call.hear(REPLY)
    assert await call.invocation.outcome == REPLY


async def test_few_calls_are_carried_out_at_once_and_answers_wait_for_room(call):
    """One that asks and never reads has a few answers in our memory, not all."""
    call.room.clear()
    for number in range(60):
        call.call(number, "kv.get")
    await conversations.until(lambda: len(call.calls) == stdio_json.MAX_AT_ONCE)
    for _ in range(10):
        await asyncio.sleep(0)
    assert (len(call.calls), len(call.said)) == (stdio_json.MAX_AT_ONCE, 1)
    call.room.set()
    await call.until_said(60)


async def test_calls_are_carried_out_together_and_answered_in_order(call):
    """Also those that fail, are refused, or are a fault of ours."""
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


async def test_calls_under_way_are_bounded(call):
    """The rest stays in the pipe until an answer is read; nothing of it is lost, not even a reply after the end."""
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


async def test_reading_resumes_after_the_outcome(call):
    """Else the end of its output would never be seen."""
    gate = asyncio.Event()
    call.serve = lambda method, params: gate.wait()
    for number in range(6):
        call.call(number, "kv.put", key="a", value="x" * 900_000)
    assert call.flows == [False]
    call.invocation.fail("deadline_exceeded", "too late")
    assert await _code(call) == "deadline_exceeded"
    await conversations.until(lambda: call.flows == [False, True])


async def test_closing_cancels_calls_under_way(call):
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


async def test_an_outcome_without_a_caller_is_not_logged(call):
    """The caller may have been cancelled."""
    call.invocation.feed(b"nonsense\n")
    await call.invocation.close()


# Limits.


async def test_a_line_on_stdout_has_a_limit():
    """Of exactly so many bytes; one more is output_too_large, in whatever pieces. All lines together have none."""
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


async def test_a_reply_within_the_limit_counts_whatever_follows_it():
    """Whether it arrives in one piece with the rest or alone."""
    line = json.dumps(REPLY).encode() + b"\n"
    for pieces in ([line + b"x" * 500], [line, b"x" * 500]):
        async with conversations.invocation(max_line_bytes=len(line)) as call:
            for piece in pieces:
                call.invocation.feed(piece)
            assert await call.invocation.outcome == REPLY


async def test_host_calls_have_a_limit():
    """The one beyond it is not carried out."""
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
async def test_an_invalid_line_is_protocol_error(call, line):
    """protocol_error, with a reason that can be printed; a reply after it comes too late."""
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
async def test_an_unrepresentable_reply_is_plugin_error(call, line):
    """plugin_error: it spoke the protocol, and what it said has no form here."""
    call.invocation.feed(line + b"\n")
    with pytest.raises(Unrepresentable) as caught:
        await call.invocation.outcome
    assert caught.value.code == "plugin_error"
    assert caught.value.reason.isprintable()


async def test_an_unrepresentable_call_is_refused_alone(call):
    """bad_params for that call, and the invocation goes on; it counts for the limit of calls."""
    call.invocation.feed(rb'{"host_call":{"id":7,"method":"kv.put","params":{"key":"\ud800"}}}' + b"\n")
    await call.until_said(1)
    assert call.said[0]["host_response"]["error"].startswith("bad_params: ")
    assert (call.said[0]["host_response"]["id"], call.calls) == (7, [])
    call.hear(REPLY)
    assert await call.invocation.outcome == REPLY


async def test_noise_on_stdout_is_quoted_in_the_reason(call):
    """Also when it happens to be JSON."""
    call.invocation.feed(b'{"level":"debug"}\n')
    with pytest.raises(Problem, match=r'found something else: "\{"level":"debug"\}"'):
        await call.invocation.outcome


async def test_a_reply_of_the_greatest_depth_is_accepted(call):
    call.invocation.feed(b'{"ok":true,"result":' + b"[" * 99 + b"]" * 99 + b"}\n")
    assert (await call.invocation.outcome)["ok"]


async def test_a_line_of_too_many_values_is_not_even_decoded(call, monkeypatch):
    """It costs this invocation, as an answer that cannot be carried on does."""
    monkeypatch.setattr(stdio_json, "_decode", lambda line: pytest.fail("it was decoded"))
    call.invocation.feed(b'{"ok":true,"result":[' + b"[]," * 60_000 + b"[]]}\n")
    with pytest.raises(Problem, match="more than 50000 values") as failed:
        await call.invocation.outcome
    assert failed.value.code == "plugin_error"


@pytest.mark.parametrize("line", [b"\n", b" \n"])
async def test_empty_lines_yield_to_the_event_loop(call, line):
    """A pipe full of them is no fault, and no long turn of the loop; meanwhile nothing more is read."""
    call.invocation.feed(line * 30_000 + json.dumps(REPLY).encode() + b"\n")
    assert call.flows == [False]
    turns = 0
    while not call.invocation.outcome.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 30_000 // stdio_json.LINES_A_TURN
    assert call.invocation.outcome.result() == REPLY
