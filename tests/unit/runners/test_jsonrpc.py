"""latticed-stdio-1 from the host's side, without a transport."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from latticed.host.call import HostError
from latticed.model.errors import Problem
from latticed.model.hostcall import Denial
from latticed.runners import jsonrpc
from latticed.runners import message_memory as held
from latticed.runners.unrepresentable import Unrepresentable
from tests.house import conversations

LIMIT = jsonrpc.MAX_LINE_BYTES
CAP = jsonrpc.MAX_IN_FLIGHT


@pytest.fixture
async def talk():
    async with conversations.session() as found:
        yield found


async def _asked(talk, method="health", params=None):
    """Make a request and leave it under way: (task, its id)."""
    before = len(talk.said)
    task = asyncio.create_task(talk.session.ask(method, params or {}))
    await conversations.until(lambda: len(talk.said) > before or task.done())
    return task, talk.said[-1]["id"] if len(talk.said) > before else None


# Requests to the plugin.


async def test_ask_sends_request_with_unique_id_and_returns_its_result(talk):
    """Results are any JSON value."""
    for result in ({"a": [1, None]}, None, "text", 5, True, []):
        task, number = await _asked(talk, "invoke", {"action": "x"})
        assert talk.said[-1] == {"jsonrpc": "2.0", "id": number, "method": "invoke", "params": {"action": "x"}}
        talk.hear({"id": number, "result": result})
        assert await task == result
    assert len({one["id"] for one in talk.said}) == 6


async def test_answers_in_any_order_reach_their_requests(talk):
    first, one = await _asked(talk)
    second, two = await _asked(talk)
    talk.hear({"id": two, "result": "second"})
    talk.hear({"id": one, "result": "first"})
    assert (await first, await second) == ("first", "second")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ({"code": -32601, "message": "no such method"}, "no such method"),
        ({"message": "\x1b[31mred"}, "\\x1b[31mred"),
        ({}, "no message"),
        ({"message": {"a": 1}}, "{'a': 1}"),
    ],
)
async def test_error_answer_raises_plugin_error(talk, error, words):
    """The error has its message, control characters escaped; a result of null beside the error is ignored."""
    for more in ({}, {"result": None}):
        task, number = await _asked(talk)
        talk.hear({"id": number, "error": error, **more})
        with pytest.raises(Problem) as caught:
            await task
        assert caught.value.code == "plugin_error"
        assert words in caught.value.reason
    assert talk.broken == []


async def test_error_of_null_counts_as_absent(talk):
    task, number = await _asked(talk)
    talk.hear({"id": number, "result": 1, "error": None})
    assert await task == 1


async def test_late_answer_to_abandoned_request_is_ignored_once(talk):
    """A second answer to it has an unknown id and breaks the session."""
    task, number = await _asked(talk)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    talk.hear({"id": number, "result": 1})
    assert talk.broken == []
    talk.hear({"id": number, "result": 1})
    assert talk.broken_code() == "protocol_error"


async def test_answer_to_request_cancelled_in_the_same_turn_is_ignored(talk):
    """Answer and cancellation come in the same turn of the event loop."""
    task, number = await _asked(talk)
    task.cancel()
    talk.hear({"id": number, "result": 1})
    await asyncio.gather(task, return_exceptions=True)
    assert talk.broken == []


async def test_abandoned_requests_are_remembered_up_to_a_bound(talk, monkeypatch):
    """Beyond the bound the oldest is forgotten: an answer to it has an unknown id."""
    monkeypatch.setattr(jsonrpc, "MAX_GIVEN_UP", 3)
    numbers = []
    for _ in range(4):
        task, number = await _asked(talk)
        numbers.append(number)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    for number in numbers[1:]:
        talk.hear({"id": number, "result": 1})
    assert talk.broken == []
    talk.hear({"id": numbers[0], "result": 1})
    assert talk.broken_code() == "protocol_error"


async def test_second_answer_to_a_request_breaks_the_session(talk):
    task, number = await _asked(talk)
    talk.hear({"id": number, "result": 1}, {"id": number, "result": 2})
    assert await task == 1
    assert talk.broken_code() == "protocol_error"


async def test_closing_session_fails_waiting_and_later_requests(talk):
    task, _ = await _asked(talk)
    await talk.session.close()
    for late in (task, talk.session.ask("health", {})):
        with pytest.raises(Problem) as caught:
            await late
        assert caught.value.code == "plugin_gone"


async def test_broken_session_fails_waiting_requests(talk):
    """They fail at once, with the code and reason of what broke it."""
    tasks = [(await _asked(talk))[0] for _ in range(2)]
    talk.session.feed(b"what?\n")
    for task in tasks:
        with pytest.raises(Problem, match="expected one JSON-RPC") as caught:
            await task
        assert caught.value.code == "protocol_error"


async def test_request_that_cannot_be_written_is_plugin_gone(talk):
    """Writing or draining fails; no entry for the request is left."""
    for broken in ("write", "drain"):
        talk.fail = broken
        with pytest.raises(Problem) as caught:
            await talk.session.ask("health", {})
        assert caught.value.code == "plugin_gone"
    assert talk.session._waiting == {}


# The plugin's calls.


async def test_host_call_is_carried_out_and_answered_under_its_id(talk):
    """The plugin chooses the id, a number or a text."""
    for number in (0, -1, 7, "call-1", "", 2**70):
        talk.hear({"id": number, "method": "kv.get", "params": {"key": "a"}})
        await talk.until_said(1)
        assert talk.said.pop() == {"jsonrpc": "2.0", "id": number, "result": ["kv.get", {"key": "a"}]}


async def test_missing_params_of_host_call_count_as_empty(talk):
    for more in ({}, {"params": None}, {"params": {}}):
        talk.hear({"id": 1, "method": "node.facts", **more})
        await talk.until_said(1)
        assert talk.said.pop()["result"] == ["node.facts", {}]


async def test_refused_host_call_is_answered_with_its_code(talk):
    async def refuse(method, params):
        raise HostError(Denial.QUOTA_EXCEEDED, "expected less")

    talk.serve = refuse
    talk.hear({"id": 1, "method": "kv.put"})
    await talk.until_said(1)
    error = {"code": -32000, "message": "expected less", "data": {"code": "quota_exceeded"}}
    assert talk.said == [{"jsonrpc": "2.0", "id": 1, "error": error}]


@pytest.mark.parametrize("fault", ["raises", "no json", "cancelled"])
async def test_exception_in_service_is_answered_internal_and_keeps_the_session(talk, fault, caplog):
    """The answer has no details of the exception."""

    async def fail(method, params):
        if fault == "raises":
            raise KeyError("secret")
        if fault == "cancelled":
            raise asyncio.CancelledError
        return object()

    talk.serve, before = fail, talk.serve
    talk.hear({"id": 1, "method": "kv.put"})
    await talk.until_said(1)
    assert talk.said[0]["error"]["data"] == {"code": "internal"}
    assert "secret" not in json.dumps(talk.said)
    talk.serve = before
    talk.hear({"id": 2, "method": "kv.put"})
    await talk.until_said(2)
    assert talk.said[1]["result"]
    assert talk.broken == []


async def test_host_calls_run_concurrently(talk):
    """Each is answered as soon as it is done, so a slow one does not delay the next."""
    gate = asyncio.Event()

    async def serve(method, params):
        if method == "slow":
            await gate.wait()
        return method

    talk.serve = serve
    talk.hear({"id": 1, "method": "slow"}, {"id": 2, "method": "fast"})
    await talk.until_said(1)
    gate.set()
    await talk.until_said(2)
    assert [one["id"] for one in talk.said] == [2, 1]


async def test_answer_that_cannot_be_written_keeps_the_session(talk):
    """The plugin's process is about to end, and what it has sent before still counts."""
    task, number = await _asked(talk)
    for broken in ("write", "drain"):
        talk.fail = broken
        talk.hear({"id": 1, "method": "kv.get"})
        await conversations.until(lambda: not talk.session.under_way)
    talk.hear({"id": number, "result": 1})
    assert await task == 1
    assert talk.broken == []


async def test_closing_session_cancels_running_host_calls(talk):
    """Calls that arrive afterwards are not answered."""
    ended = asyncio.Event()

    async def serve(method, params):
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    talk.serve = serve
    talk.hear({"id": 1, "method": "kv.get"})
    await conversations.until(lambda: talk.session.under_way and talk.calls)
    await talk.session.close()
    assert ended.is_set()
    talk.hear({"id": 2, "method": "kv.get"})
    assert (talk.said, talk.broken, talk.session._tasks) == ([], [], set())


# Limits and back-pressure.


async def test_host_calls_beyond_the_cap_pause_reading(talk):
    """At most MAX_IN_FLIGHT are under way, also when more arrive in one read; reading resumes when all fit."""
    gate, running, most = asyncio.Event(), 0, 0

    async def serve(method, params):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await gate.wait()
        running -= 1
        return method

    talk.serve = serve
    talk.hear(*({"id": n, "method": "kv.get"} for n in range(CAP * 3)))
    await conversations.until(lambda: talk.session.under_way == CAP)
    assert (running, talk.flows) == (jsonrpc.SERVED_AT_ONCE, [False])
    talk.hear({"id": "more", "method": "kv.get"})  # what was already read is kept
    gate.set()
    await talk.until_said(CAP * 3 + 1)
    await conversations.until(lambda: not talk.session.under_way)
    assert most == jsonrpc.SERVED_AT_ONCE
    assert talk.flows[-1] is True
    assert all(now != then for now, then in itertools.pairwise(talk.flows)), "said once each"
    assert len({json.dumps(one["id"]) for one in talk.said}) == CAP * 3 + 1


async def test_one_host_call_below_the_cap_does_not_pause_reading(talk):
    gate = asyncio.Event()

    async def serve(method, params):
        await gate.wait()

    talk.serve = serve
    talk.hear(*({"id": n, "method": "a"} for n in range(CAP - 1)))
    await conversations.until(lambda: talk.session.under_way == CAP - 1)
    assert talk.flows == [False, True]  # while it took turns
    talk.hear({"id": "last", "method": "a"})
    await conversations.until(lambda: talk.flows == [False, True, False])
    gate.set()
    await conversations.until(lambda: not talk.session.under_way)
    assert talk.flows == [False, True, False, True]


async def test_reading_is_paused_while_lines_are_unprocessed(talk):
    """The cap on calls does not apply to lines that are refused at once: they would fill memory."""
    lines = b"".join(b'{"jsonrpc":"2.0","id":%d,"method":"a","params":{"a":1e400}}\n' % n for n in range(1_000))
    talk.session.feed(lines)
    assert talk.flows == [False]
    await conversations.until(lambda: talk.flows == [False, True])
    await talk.until_said(1_000)


async def test_unread_answers_pause_reading(talk):
    """Calls that were read meanwhile are not carried out: no answer of theirs would wait in memory."""
    talk.room.clear()
    talk.hear(*({"id": n, "method": "kv.get"} for n in range(CAP * 2)))
    await conversations.until(lambda: talk.session.under_way == CAP)
    await asyncio.sleep(0)
    assert (talk.said, talk.calls, talk.flows) == ([], [], [False])
    asked = asyncio.create_task(talk.session.ask("health", {}))
    await asyncio.sleep(0)
    assert talk.said == [], "a question waits for room too"
    talk.room.set()
    await talk.until_said(CAP * 2 + 1)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)


async def test_answers_that_nobody_reads_are_those_of_started_calls(talk):
    """Once the pipe is full no call is started; all are answered after it was read."""
    gate = asyncio.Event()

    async def serve(method, params):
        await gate.wait()
        return method

    talk.serve = serve
    talk.hear(*({"id": n, "method": "kv.get"} for n in range(CAP)))
    await conversations.until(lambda: len(talk.calls) == jsonrpc.SERVED_AT_ONCE)
    talk.room.clear()
    gate.set()
    await talk.until_said(jsonrpc.SERVED_AT_ONCE)
    for _ in range(10):
        await asyncio.sleep(0)
    assert (len(talk.said), talk.session.under_way) == (jsonrpc.SERVED_AT_ONCE, CAP)
    talk.room.set()
    await talk.until_said(CAP)
    assert [one["id"] for one in talk.said] == list(range(CAP))


async def test_answers_of_one_turn_leave_in_one_write(talk):
    talk.session._serve = lambda method, params, answer: answer(method, None)
    talk.hear(*({"id": n, "method": "kv.get"} for n in range(20)))
    await talk.until_said(20)
    assert (talk.writes, [one["id"] for one in talk.said]) == ([20], list(range(20)))


async def test_many_messages_in_one_read_do_not_delay_other_sessions():
    """They are processed LINES_A_TURN per turn of the event loop."""
    of_greedy = jsonrpc.LINES_A_TURN * 4
    async with conversations.session() as greedy, conversations.session() as modest:
        taken = []

        async def serve(method, params):
            taken.append(len(greedy.calls))

        modest.serve = serve
        greedy.hear(*({"id": n, "method": "kv.get"} for n in range(of_greedy)))
        modest.hear({"id": 1, "method": "kv.get"})
        await modest.until_said(1)
        await greedy.until_said(of_greedy)
        assert taken == [jsonrpc.LINES_A_TURN]


async def test_large_host_calls_pause_reading_below_the_cap(talk):
    """Waiting calls of a plugin are also bounded by their size in memory once decoded; all are answered in the end."""
    talk.room.clear()
    params = {"a": [[]] * 40_000}  # 120 KB on the wire, about 2.5 MB of objects
    talk.hear(*({"id": n, "method": "kv.get", "params": params} for n in range(12)))
    await conversations.until(lambda: talk.flows == [False])
    assert talk.session.under_way < 6
    talk.room.set()
    await talk.until_said(12)
    await conversations.until(lambda: talk.flows[-1])
    assert len({one["id"] for one in talk.said}) == 12


async def test_beyond_the_shared_memory_bound_each_plugin_may_have_one_call(monkeypatch):
    """A session paused because of another plugin's calls resumes when there is room again."""
    monkeypatch.setattr(held, "ALL", held.MessageMemory(of_all=1_000))
    async with conversations.session() as greedy, conversations.session() as modest:
        greedy.room.clear()
        modest.room.clear()
        greedy.hear({"id": 1, "method": "kv.get", "params": {"a": "x" * 2_000}})
        modest.hear(*({"id": n, "method": "kv.get"} for n in range(3)))
        await conversations.until(lambda: modest.flows == [False])
        assert modest.session.under_way == 1
        greedy.room.set()
        await conversations.until(lambda: modest.flows == [False, True])
        modest.room.set()
        await modest.until_said(3)


async def test_plugin_that_never_reads_its_answers_is_ended(talk, monkeypatch):
    monkeypatch.setattr(jsonrpc, "UNREAD_S", 0.01)
    talk.room.clear()
    talk.hear({"id": 1, "method": "kv.get"})
    await conversations.until(lambda: talk.broken)
    assert talk.broken_code() == "answers_unread"
    talk.room.set()


@pytest.mark.parametrize(
    "value",
    [[[]] * 50_001, [{}] * 50_001, list(range(60_000)), {str(n): 0 for n in range(60_000)}, ["a,b"] * 50_001],
    ids=["lists", "dicts", "numbers", "keys", "texts"],
)
async def test_message_with_too_many_values_is_refused_undecoded(talk, value, monkeypatch):
    """The host call gets bad_params, the answer raises plugin_error; the session continues."""
    task, number = await _asked(talk)
    odd = json.dumps({"jsonrpc": "2.0", "id": "c", "method": "kv.get", "params": {"a": value}}, separators=(",", ":"))
    answer = json.dumps({"jsonrpc": "2.0", "id": number, "result": value}, separators=(",", ":"))
    monkeypatch.setattr(jsonrpc, "_decode", lambda line: pytest.fail("it was decoded"))
    talk.session.feed(f"{odd}\n{answer}\n".encode())
    with pytest.raises(Problem, match="more than 50000 values") as failed:
        await task
    assert failed.value.code == "plugin_error"
    await talk.until_said(2)
    assert talk.said[-1]["error"]["data"]["code"] == "bad_params"
    assert talk.broken == []


async def test_commas_and_brackets_in_strings_do_not_count_as_values(talk):
    """A large table as text, or JSON within JSON, is one value."""
    for value in ("a,b[{" * 40_000, json.dumps([[], "\\"] * 8_000), '\\"' * 30_000):
        task, number = await _asked(talk)
        talk.hear({"id": number, "result": [value]})
        assert await task == [value]


async def test_invalid_message_after_capped_calls_breaks_the_session_once_they_end(talk):
    gate = asyncio.Event()

    async def serve(method, params):
        await gate.wait()

    talk.serve = serve
    talk.hear(*({"id": n, "method": "a"} for n in range(CAP)))
    talk.session.feed(b"what?\n")
    assert talk.broken == []
    gate.set()
    await conversations.until(lambda: talk.broken)
    assert talk.broken_code() == "protocol_error"


# Invalid messages.

CALL = b'{"jsonrpc":"2.0","id":1,"method":"a"'
BROKEN = {
    "empty": b"",
    "blank": b"  ",
    "text": b"hello",
    "cut": b'{"jsonrpc":"2.0","id":1,',
    "array": b"[" + CALL + b"}]",
    "number": b"5",
    "two in a line": CALL + b"}" + CALL + b"}",
    "no version": b'{"id":1,"method":"a"}',
    "another version": b'{"jsonrpc":"1.0","id":1,"method":"a"}',
    "unknown field": CALL + b',"extra":1}',
    "notification": b'{"jsonrpc":"2.0","method":"a"}',
    "id null": b'{"jsonrpc":"2.0","id":null,"method":"a"}',
    "id fraction": b'{"jsonrpc":"2.0","id":1.5,"method":"a"}',
    "id true": b'{"jsonrpc":"2.0","id":true,"method":"a"}',
    "id object": b'{"jsonrpc":"2.0","id":{},"method":"a"}',
    "long id": b'{"jsonrpc":"2.0","id":"' + b"x" * 129 + b'","method":"a"}',
    "long number": b'{"jsonrpc":"2.0","id":' + b"1" * 4_000 + b',"method":"a"}',
    "endless number": b'{"jsonrpc":"2.0","id":' + b"1" * 9_000 + b',"method":"a"}',
    "long method": b'{"jsonrpc":"2.0","id":1,"method":"' + b"x" * 129 + b'"}',
    "method number": b'{"jsonrpc":"2.0","id":1,"method":1}',
    "params array": CALL + b',"params":[]}',
    "call with result": CALL + b',"result":1}',
    "call with error": CALL + b',"error":{}}',
    "unknown id": b'{"jsonrpc":"2.0","id":99,"result":1}',
    "id of nothing asked": b'{"jsonrpc":"2.0","id":0,"result":1}',
    "text id": b'{"jsonrpc":"2.0","id":"1","result":1}',
    "no id": b'{"jsonrpc":"2.0","result":1}',
    "nothing": b'{"jsonrpc":"2.0"}',
    "bad utf-8": CALL + b',"params":{"a":"\xff"}}',
    "bad utf-8 in a name": CALL + b',"params":{"\xff":1}}',
    "bad utf-8 in a field": CALL + b',"\xff":1}',
    "overlong utf-8": CALL + b',"params":{"a":"\xc0\x80"}}',
    "surrogate as utf-8": CALL + b',"params":{"a":"\xed\xa0\x80"}}',
    "byte order mark": b"\xef\xbb\xbf" + CALL + b"}",
    "control character": CALL + b',"params":{"a":"\x01"}}',
    "NUL": CALL + b"}\0",
    "bottomless error": b'{"jsonrpc":"2.0","id":1,"error":{"a":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}}",
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
async def test_invalid_message_breaks_the_session_once(talk, line):
    """The reason is printable; no call is carried out, and later messages are ignored."""
    talk.session.feed(line + b"\n" + CALL + b"}\n")
    talk.session.feed(CALL + b"}\n" + line)
    ((code, reason),) = talk.broken
    assert code == "protocol_error"
    assert reason.startswith("expected ")
    assert reason.isprintable()
    assert len(reason) < 400
    await asyncio.sleep(0)
    assert (talk.calls, talk.said) == ([], [])


ODD = {
    "surrogate": rb'"\ud800"',
    "surrogate in a name": rb'{"\udfff":1}',
    "infinite": b"1e400",
    "NaN": b"NaN",
    "minus infinity": b"[-Infinity]",
    "too many digits": b"7" * 5_000,
    "deep": b"[" * 101 + b"]" * 101,
    "bottomless": b"[" * 100_000 + b"]" * 100_000,
}


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
@pytest.mark.parametrize(
    "line", [b'{"jsonrpc":"2.0","id":%d,"result":%b}', b'{"result":%b , "id": %d, "jsonrpc": "2.0"}']
)
async def test_unrepresentable_answer_fails_only_its_request(talk, line, value):
    """It fails with plugin_error, wherever in the line the id is."""
    task, number = await _asked(talk)
    parts = (value, number) if line.startswith(b'{"result"') else (number, value)
    talk.session.feed(line % parts + b"\n")
    with pytest.raises(Unrepresentable, match="expected an answer whose value can be carried on, found ") as caught:
        await task
    assert caught.value.code == "plugin_error"
    again, number = await _asked(talk)
    talk.hear({"id": number, "result": 1})
    assert (await again, talk.broken) == (1, [])


@pytest.mark.parametrize("value", ODD.values(), ids=ODD)
async def test_params_of_host_call_reach_the_service_undecoded(talk, value):
    """test_gate_values.py tests how they are decoded. Some are refused with bad_params here; the session continues."""
    heard = []
    talk.session._serve = lambda method, params, _: talk.serve(method, heard.append(params))
    talk.session.feed(CALL + b',"params":{"a":' + value + b"}}\n")
    await talk.until_said(1)
    if heard:
        assert heard == [b'{"a":' + value + b"}"]
    else:
        assert talk.said[0]["error"]["data"] == {"code": "bad_params"}
    assert (talk.said[0]["id"], talk.broken) == (1, [])


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":99,"result":1e400}',
        b'{"jsonrpc":"1.0","id":1,"result":1e400}',
        b'{"jsonrpc":"2.0","id":true,"result":1e400}',
        b'{"jsonrpc":"2.0","method":"a","params":{"a":1e400}}',
        rb'{"jsonrpc":"2.0","id":"\ud800","method":"a"}',
        rb'{"jsonrpc":"2.0","id":1,"method":["\ud800"]}',
        b'{"jsonrpc":"2.0","result":{"id":1,"a":' + b"[" * 5_000 + b"]" * 5_000 + b',"id":1}}',
    ],
)
async def test_unrepresentable_value_without_an_id_breaks_the_session(talk, line):
    """Without the id of a request or of a call there is no single answer or call to fail."""
    task, number = await _asked(talk)
    assert number == 1
    talk.session.feed(line + b"\n")
    assert talk.broken_code() == "protocol_error"
    with pytest.raises(Problem):
        await task


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"debug: loaded 3 rows", '"debug: loaded 3 rows"'),
        (b"\x1b[31mred\x00", r'"\x1b[31mred\x00"'),
        (b"x" * 81, f'"{"x" * 80}…"'),
        (b"\xff\xfe", r'"\xff\xfe"'),
    ],
)
async def test_text_that_is_no_message_is_quoted_in_the_reason(talk, line, shown):
    """The first 80 characters, escaped: it may come from a print statement that was left in the plugin."""
    talk.session.feed(line + b"\n")
    ((_, reason),) = talk.broken
    assert shown in reason
    assert reason.isprintable()


async def test_answer_without_result_or_error_breaks_the_session(talk):
    for odd in ({}, {"result": 1, "params": {}}):
        async with conversations.session() as fresh:
            task, number = await _asked(fresh)
            fresh.hear({"id": number, **odd})
            assert fresh.broken_code() == "protocol_error"
            with pytest.raises(Problem):
                await task


async def test_message_of_the_greatest_depth_is_accepted(talk):
    """That is 100 levels, the message itself included."""
    talk.session.feed(CALL + b',"params":{"a":' + b"[" * 98 + b"]" * 98 + b"}}\n")
    await talk.until_said(1)
    assert talk.broken == []


async def test_last_of_duplicate_names_counts(talk):
    talk.session.feed(CALL + b',"params":{"key":"a"},"params":{"key":"b","key":"c"}}\n')
    await talk.until_said(1)
    assert talk.calls == [("a", {"key": "c"})]


async def test_white_space_around_message_is_ignored(talk):
    talk.session.feed(b" \t" + CALL + b" } \r\n")
    await talk.until_said(1)
    assert talk.broken == []


@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_line_over_the_limit_is_message_too_large(talk, end):
    """Its newline need not have arrived; a line of exactly the limit is accepted."""
    padding = b" " * (LIMIT - len(CALL) - 1)
    talk.session.feed(CALL + padding + b"}\n")
    await talk.until_said(1)
    assert talk.broken == []
    talk.session.feed(CALL + padding + b" }" + end)
    ((code, reason),) = talk.broken
    assert (code, str(LIMIT) in reason) == ("message_too_large", True)
