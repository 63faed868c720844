"""Any bytes of a plugin, in any chunks: the session goes on or ends with a reason."""

from __future__ import annotations

import asyncio
import itertools
import json

from hypothesis import example, given
from hypothesis import strategies as st

from latticed.model.errors import Problem
from latticed.runners import jsonrpc
from latticed.runners.lines import LineSplitter, LineTooLong
from tests.house import conversations

CODES = {"protocol_error", "plugin_error", "message_too_large", "output_too_large", "too_many_host_calls", "ended"}
CAP = 6
SMALL = 400

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
ids = st.integers(-1, 6) | st.text(max_size=2) | values
rpc = st.fixed_dictionaries(
    {"jsonrpc": st.just("2.0")},
    optional={
        "id": ids,
        "method": st.sampled_from(["kv.get", "slow", "refused"]) | values,
        "params": st.dictionaries(st.text(max_size=3), values, max_size=2) | values,
        "result": values,
        "error": st.dictionaries(st.sampled_from(["code", "message", "x"]), values) | values,
    },
)
proper_calls = st.fixed_dictionaries({"jsonrpc": st.just("2.0"), "id": st.integers(0, 9), "method": st.just("kv.get")})
host_calls = st.fixed_dictionaries({"id": ids, "method": st.just("kv.get") | values}, optional={"params": values})
one_shot = (
    st.fixed_dictionaries({"host_call": host_calls})
    | st.fixed_dictionaries({"ok": st.booleans() | values}, optional={"message": values, "result": values})
    | st.fixed_dictionaries({"host_call": st.just({"id": 1, "method": "kv.get"})})
)
deep = st.integers(1, 3_000).map(lambda depth: b'{"a":' + b"[" * depth + b"]" * depth + b"}")


def _as_lines(messages):
    return st.lists(
        messages.map(lambda one: json.dumps(one).encode()) | st.binary(max_size=12) | deep, max_size=12
    ).map(lambda lines: b"\n".join(lines) + b"\n")


def _pieces(data, cuts):
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in itertools.pairwise(places)]


cuts = st.lists(st.integers(0, 1 << 16), max_size=8)


@given(data=st.binary(max_size=200) | st.text("ab\n", max_size=60).map(str.encode), cuts=cuts, limit=st.integers(1, 30))
def test_split_lines_do_not_depend_on_chunking(data, cuts, limit):
    """They are all complete lines before the first that is too long."""

    def fed(pieces):
        lines, found = LineSplitter(max_bytes=limit), []
        try:
            for piece in pieces:
                found.extend(lines.feed(piece))  # keeps what came before an exception
        except LineTooLong:
            return found, None
        return found, lines.rest

    naive: list[bytes] = []
    *complete, rest = data.split(b"\n")
    for line in complete:
        if len(line) > limit:
            break
        naive.append(line)
    expected = (naive, rest if len(naive) == len(complete) and len(rest) <= limit else None)
    assert fed([data]) == fed(_pieces(data, cuts)) == expected


async def _serve(method, params):
    if method == "slow":
        for _ in range(3):
            await asyncio.sleep(0)
    if method == "refused":
        raise Problem("odd", "not what a service raises")
    return params


def _spoken(pieces):
    """(why broken, calls made, lines sent) of a session with requests 1 to 3 waiting and 4 abandoned."""

    async def conversation():
        async with conversations.session() as talk:
            talk.serve = _serve
            asked = [asyncio.create_task(talk.session.ask("health", {})) for _ in range(4)]
            await talk.until_said(4)
            asked[3].cancel()
            await asyncio.wait([asked[3]])
            for piece in pieces:
                talk.session.feed(piece)
            await conversations.until(lambda: talk.broken or not talk.session.under_way)
            broken = list(talk.broken)
            await talk.session.close()
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert all(not isinstance(one, BaseException) or isinstance(one, Problem) for one in answers[:3])
            told = [json.dumps(one) if not isinstance(one, BaseException) else str(one) for one in answers[:3]]
            return broken, talk.calls, told

    return asyncio.run(conversation())


@given(data=_as_lines(rpc) | _as_lines(proper_calls) | st.binary(max_size=300), cuts=cuts)
@example(data=b'{"jsonrpc":"2.0","id":4,"result":1}\n' * 2, cuts=[])
@example(data=b'{"jsonrpc":"2.0","id":1,"result":1,"result":2}\n', cuts=[40])
def test_session_given_any_bytes_continues_or_ends_with_a_reason(data, cuts):
    """The result is the same for one chunk and for many."""
    whole = _spoken([data])
    broken, calls, _ = whole
    assert len(broken) <= 1
    for code, reason in broken:
        assert code in CODES
        assert reason.isprintable()
    if not broken:
        assert len(calls) <= data.count(b"\n")
    split = _spoken(_pieces(data, cuts))
    assert split[0] == broken
    assert split[2] == whole[2]
    if not broken:  # what is under way when it breaks depends on when it breaks
        assert split[1] == calls


@given(bursts=st.lists(st.integers(0, 3 * CAP), max_size=5))
def test_host_calls_of_any_session_stay_within_the_limit(bursts):
    """Every call is answered, and reading resumes at the end."""

    async def conversation():
        running = most = 0

        async def serve(method, params):
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

        async with conversations.session() as talk:
            talk.serve = serve
            for burst in bursts:
                talk.hear(*({"id": n, "method": "kv.get"} for n in range(burst)))
                await asyncio.sleep(0)
            await talk.until_said(sum(bursts))
            await conversations.until(lambda: talk.broken or not talk.session.under_way)
            assert most <= CAP
            assert talk.flows == [False, True] * (len(talk.flows) // 2)

    saved, jsonrpc.MAX_IN_FLIGHT = jsonrpc.MAX_IN_FLIGHT, CAP
    try:
        asyncio.run(conversation())
    finally:
        jsonrpc.MAX_IN_FLIGHT = saved


def _invoked(pieces):
    """The outcome of an invocation: its reply or the code of its problem."""

    async def conversation():
        async with conversations.invocation(max_line_bytes=SMALL, max_host_calls=4) as call:
            call.serve = _serve
            for piece in pieces:
                call.invocation.feed(piece)
            call.invocation.ended("ended", "without a reply")
            await conversations.until(lambda: not call.invocation._serving)
            await asyncio.wait([call.invocation.outcome])
            problem = call.invocation.outcome.exception()
            if problem is None:
                return json.dumps(call.invocation.outcome.result())
            assert isinstance(problem, Problem)
            assert problem.code in CODES
            assert problem.reason.isprintable()
            return problem.code

    return asyncio.run(conversation())


@given(data=_as_lines(one_shot) | st.binary(max_size=SMALL + 20), cuts=cuts)
@example(data=b'{"ok":true}\n' + b"x" * SMALL, cuts=[12])
@example(data=b'{"ok":true}', cuts=[3])
def test_invocation_given_any_bytes_has_one_outcome(data, cuts):
    """It is a reply, or a problem with its code, and the same for any chunking."""
    assert _invoked([data]) == _invoked(_pieces(data, cuts))
