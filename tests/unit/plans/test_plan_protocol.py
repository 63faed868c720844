"""The messages of the root helper's socket: strict to read, bounded, and the same after a round."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import msgspec.inspect
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.model.errors import Problem
from latticed.plans import protocol

NAME = "0" * 64
REQUESTS = [
    protocol.Offer(
        kind="nft",
        intent={"ports": [22], "note": "ü"},
        secrets=(protocol.SecretValue(reference="wg#ada", form="uuid", value="value-of-it"),),
    ),
    protocol.Observe(kind="nft", steps_after=0),
    protocol.Review(plan=NAME, source="2001:db8::1"),
    protocol.Approve(plan=NAME, review=NAME),
    protocol.Refuse(plan=NAME),
    protocol.Apply(plan=NAME, confirm_within_s=5),
    protocol.Confirm(plan=NAME),
    protocol.Rollback(plan=NAME),
    protocol.Boot(),
]


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda one: type(one).__name__)
def test_requests_come_out_as_they_went_in(request_):
    line = protocol.encode(request_)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert protocol.decode_request(line) == request_
    spoiled = json.dumps(json.loads(line) | {"path": "/etc/shadow"}).encode()
    with pytest.raises(Problem, match="unknown field `path`"):
        protocol.decode_request(spoiled)


@pytest.mark.parametrize("source", ["", "192.0.2.7", "2001:db8::1", "fe80::1%eth0", "fe80::1%br-lan.20", "fe80::1%3"])
def test_source_is_an_address_with_or_without_its_interface(source):
    asked = protocol.Review(plan=NAME, source=source)
    assert protocol.decode_request(protocol.encode(asked)) == asked


@pytest.mark.parametrize(
    "source", ["%eth0", "fe80::1%", "fe80::1%a/b", "fe80::1%a b", "fe80::1%a%b", "fe80::1%" + "x" * 16, "host", "::1\n"]
)
def test_source_of_another_form_is_a_bad_request(source):
    assert outcome(json.dumps({"verb": "review", "plan": NAME, "source": source}).encode()) == "bad_request"


def test_every_request_has_an_answer():
    assert {type(one) for one in REQUESTS} == set(protocol.ANSWERS)


def test_answers_are_errors_or_those_of_their_request():
    moved = protocol.Moved(plan=NAME, state="applied")
    assert protocol.decode_answer(protocol.encode(moved), REQUESTS[-2]) == moved
    error = protocol.ErrorAnswer(code="stale", message="moved")
    assert protocol.decode_answer(protocol.encode(error), REQUESTS[-2]) == error
    newer = protocol.encode(moved).replace(b"{", b'{"new_field":1,', 1)
    assert protocol.decode_answer(newer, REQUESTS[-2]) == moved
    for line in (b"", b"[]\n", b"{}\n", b'{"plan":1,"state":"applied"}\n', b"\xff\n"):
        with pytest.raises(Problem, match="bad_request"):
            protocol.decode_answer(line, REQUESTS[-2])


def test_no_message_has_a_field_for_paths_arguments_or_bytes():
    """Texts of requests have a pattern or are secrets in one of their forms; only the intent is free."""
    free = []
    for kind in protocol.ANSWERS:
        for field in msgspec.inspect.type_info(kind).fields:
            if isinstance(field.type, msgspec.inspect.BytesType):
                free.append(field.name)
            if isinstance(field.type, msgspec.inspect.StrType) and field.type.pattern is None:
                free.append(field.name)
    assert free == []


def test_values_of_secrets_are_not_in_their_repr():
    assert "value-of-it" not in repr(REQUESTS[0])


def test_too_large_request_is_refused_before_it_is_sent():
    with pytest.raises(Problem, match="too_large"):
        protocol.encode(protocol.Offer(kind="nft", intent={"a": "x" * protocol.MAX_REQUEST_BYTES}))


def outcome(line):
    """The code of what is refused, the verb of what is not."""
    try:
        return type(protocol.decode_request(line)).__name__
    except Problem as problem:
        return problem.code


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_a_problem(data):
    assert outcome(data) in {"bad_request", "Boot", "Observe"}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda i: st.lists(i) | st.dictionaries(st.text(), i)
    )
)
def test_any_json_is_a_request_or_a_problem(value):
    for wrapped in (value, {"verb": "offer", "kind": "nft", "intent": value}, {"verb": "apply", "plan": value}):
        assert outcome(json.dumps(wrapped).encode()) in {"bad_request", "Offer"}


def test_importing_it_brings_neither_asyncio_nor_the_daemon():
    """latticectl uses it."""
    loaded = "[name for name in ('asyncio', 'structlog', 'aiohttp') if name in sys.modules]"
    code = f"import sys, latticed.plans.protocol; print({loaded})"
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert ran.stdout == "[]\n"
