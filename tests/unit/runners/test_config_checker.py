"""Documents checked against schemas in a confined child: valid ones, all faults, and checks that take too long."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from dataclasses import replace

import pytest

from latticed.model.errors import Problem
from latticed.runners import config_checker
from latticed.runners.config_checker import ConfigChecker
from latticed.runners.configuration import ConfigInvalid, Configuration
from tests.house import children, processes, runner_deps

DOUBLING = {
    "$defs": {"a0": {"type": "integer"}}
    | {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n - 1}"}] * 2} for n in range(1, 41)},
    "properties": {"x": {"$ref": "#/$defs/a40"}},
}
RECURSIVE = {"anyOf": [{"properties": {"x": {"$ref": "#"}, wrong: False}} for wrong in ("y", "z")]}

MANY = {"properties": {"a": {"items": {"enum": [str(n) * 3 for n in range(6000)]}}}}


def deep(levels):
    document = {"y": 1, "z": 1}
    for _ in range(levels):
        document = {"x": document}
    return document


@pytest.fixture
def checker():
    return ConfigChecker(runner_deps.spawner(), check_s=20.0)


async def check(checker, schema, document):
    await checker.check(Configuration.of(schema), Configuration.of(document))


async def faults(checker, schema, document):
    """The faults of a document that does not fit, one text each."""
    with pytest.raises(ConfigInvalid) as invalid:
        await check(checker, schema, document)
    return [str(fault) for fault in invalid.value.faults]


async def test_document_that_fits_its_schema_is_accepted(checker):
    """Recursive schemas too, one that refers only to itself, and formats."""
    await check(checker, {}, {"a": 1})
    await check(checker, {"$ref": "#"}, {"a": 1})
    await check(checker, {"properties": {"a": {"$ref": "#"}}, "minProperties": 1}, {"a": {"a": {"b": 1}}})
    await check(
        checker, {"properties": {"a": {"format": "ipv4"}, "b": {"format": "no-such"}}}, {"a": "::1"[:0] or "1.2.3.4"}
    )


@pytest.mark.parametrize(
    ("rule", "value", "said"),
    [
        ({"type": "integer"}, "1", 'a: expected an integer, found "1"'),
        ({"type": "integer"}, 1.5, "a: expected an integer, found 1.5"),
        ({"type": ["string", "null"]}, [], "a: expected null or a string, found an array"),
        ({"type": "boolean"}, {"b": 1}, "a: expected true or false, found an object"),
        ({"enum": ["tcp", "udp"]}, "tpc", 'a: expected one of "tcp", "udp", found "tpc"'),
        ({"const": 1}, None, "a: expected 1, found null"),
        ({"minimum": 1}, 0, "a: expected a number of at least 1, found 0"),
        ({"exclusiveMaximum": 5}, 5, "a: expected a number below 5, found 5"),
        ({"multipleOf": 5}, 7, "a: expected a multiple of 5, found 7"),
        ({"minLength": 2}, "x", "a: expected at least 2 characters, found 1"),
        ({"maxItems": 1}, [1, 2], "a: expected at most 1 items, found 2"),
        ({"minProperties": 1}, {}, "a: expected at least 1 keys, found 0"),
        ({"pattern": "^[a-z]+$"}, "A", 'a: expected text that matches "^[a-z]+$", found "A"'),
        ({"format": "ipv4"}, "1.2.3", 'a: expected text in the format ipv4, found "1.2.3"'),
        ({"uniqueItems": True}, [1, 1], "a: expected each item once, found one twice"),
        ({"required": ["b"]}, {}, 'a: expected the key "b", found none'),
        ({"additionalProperties": False}, {"b": 1, "c": 2}, "a: expected only known keys, found others"),
        (
            {"properties": {"x": {}}, "additionalProperties": False},
            {"b": 1, "c": 2},
            'a: expected only known keys, found "b", "c"',
        ),
        ({"propertyNames": {"maxLength": 1}}, {"bb": 1}, "a: expected keys that are at most 1 characters, found 2"),
        ({"not": {"type": "string"}}, "x", 'a: expected something else than the schema excludes here, found "x"'),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, 1, "a: expected what fits one of the schema's"),
        ({"oneOf": [{}, {}]}, 1, "a: expected what fits exactly one of the schema's alternatives, found 1"),
        (False, 1, "a: expected nothing here, found 1"),
        ({"contains": {"type": "string"}}, [1], "a: expected an item of the kind that the schema asks for"),
        ({"prefixItems": [{"type": "string"}]}, [1], "a[0]: expected a string, found 1"),
        ({"dependentRequired": {"b": ["c"]}}, {"b": 1}, 'a: expected the key "c", found none'),
        ({"items": {"properties": {"p q": {"type": "null"}}}}, [{"p q": 1}], 'a[0]["p q"]: expected null, found 1'),
        ({"type": "null"}, "\x1b[31m\u202e" + "x" * 500, "a: expected null, found "),
    ],
)
async def test_each_kind_of_fault_has_a_readable_message(checker, rule, value, said):
    """It says where, what was expected and what was found, in printable ASCII of bounded length."""
    (found,) = await faults(checker, {"properties": {"a": rule}}, {"a": value})
    assert found.startswith(said)
    assert found.isascii()
    assert found.isprintable()
    assert len(found) < 400


async def test_fault_is_that_of_the_alternative_that_fits_furthest(checker):
    """An alternative fits further if its first fault is deeper in the document."""
    kinds = [
        {"properties": {"kind": {"const": kind}, value: {"type": "integer"}}, "required": ["kind"]}
        for kind, value in (("a", "x"), ("b", "y"))
    ]
    schema = {"properties": {"rule": {"oneOf": [{"type": "string"}, kinds[0]]}}}
    assert await faults(checker, schema, {"rule": {"kind": "a", "x": "1"}}) == [
        'rule.x: expected an integer, found "1"'
    ]


async def test_at_most_twenty_faults_are_listed(checker):
    """A flag says that there are more."""
    schema = {"properties": {"a": {"items": {"type": "string"}}}}
    assert len(await faults(checker, schema, {"a": [*range(20)]})) == 20
    with pytest.raises(ConfigInvalid) as invalid:
        await check(checker, schema, {"a": [*range(45_000)]})
    assert (len(invalid.value.faults), invalid.value.whole) == (20, False)


async def test_long_keys_and_values_do_not_make_long_answers(checker):
    """A quarter of a megabyte in a key, a value, a key that is not known, a list of alternatives."""
    long = "k" * 120_000
    schema = {
        "properties": {long: {"type": "null"}, "a": {"const": "a" * 30_000}, "b": {"enum": ["c" * 300] * 100}},
        "additionalProperties": False,
    }
    said = await faults(checker, schema, {long: 1, "a": 1, "b": 1, "x" + long: 1})
    assert len(said) == 4
    assert max(map(len, said)) < 2_000


async def test_discreet_text_of_a_fault_has_no_value_of_the_document(checker):
    """It goes into audit events and refusals."""
    rules = {"type": "integer"}, {"enum": [1]}, {"pattern": "^a"}, {"const": 2}, {"format": "ipv4"}, {"maxLength": 2}
    schema = {"properties": {f"k{n}": rule for n, rule in enumerate(rules)}, "additionalProperties": False}
    document = {f"k{n}": "sesame" for n in range(len(rules))} | {"kx": "sesame"}
    with pytest.raises(ConfigInvalid) as invalid:
        await check(checker, schema, document)
    assert len(invalid.value.faults) == len(rules) + 1
    assert not any("sesame" in fault.discreet for fault in invalid.value.faults)
    assert "sesame" not in invalid.value.reason


@pytest.mark.parametrize("text", ["a" * 200_000 + "!", "ab" * 100_000])
@pytest.mark.parametrize("pattern", ["^(a+)+$", "^(a|aa)+$", "^(.*)*$x", "[ab]*a[ab]{500}$", "(a?){60}a{60}$"])
async def test_patterns_match_in_linear_time(checker, pattern, text):
    """Those that take a backtracking engine exponential time."""
    with_pattern = {"properties": {"a": {"pattern": pattern}}}
    with contextlib.suppress(ConfigInvalid):
        await check(checker, with_pattern, {"a": text})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schema", "document"),
    [
        (DOUBLING, {"x": 1}),
        (RECURSIVE, deep(30)),
        (
            {"properties": {"a": {"items": {"enum": [str(n) * 3 for n in range(6000)]}}}},
            {"a": [f"q{n}" for n in range(30_000)]},
        ),
    ],
    ids=["references that double", "alternatives that recurse", "a long enum for a long list"],
)
async def test_check_that_takes_too_long_is_ended_with_a_code(checker, schema, document):
    """The event loop is not blocked, no process is left, and the next check is answered."""
    turns = 0

    async def turn():
        nonlocal turns
        while True:
            await asyncio.sleep(0.01)
            turns += 1

    turning = asyncio.create_task(turn())
    began = time.monotonic()
    with pytest.raises(Problem) as problem:
        await check(ConfigChecker(runner_deps.spawner(), check_s=3.0), schema, document)
    took_s = time.monotonic() - began
    turning.cancel()
    assert problem.value.code in {"deadline_exceeded", "out_of_memory", "config_invalid"}
    assert took_s < 15
    assert turns > took_s, "more than one each second, on a machine that is busy too"
    await check(checker, {}, {})
    assert not any(map(children.alive, children.descendants(os.getpid())))


async def test_check_that_runs_out_of_memory_for_faults_reports_the_first():
    """The answer says that there are more."""
    checker = ConfigChecker(runner_deps.spawner(), memory_bytes=48 << 20)
    schema = {"properties": {"a": {"items": {"type": "string"}}}}
    with pytest.raises(ConfigInvalid) as invalid:
        await check(checker, schema, {"a": [*range(45_000)]})
    assert ([str(one) for one in invalid.value.faults], invalid.value.whole) == (
        ["a[0]: expected a string, found 0"],
        False,
    )


async def test_check_without_memory_for_the_document_has_no_result():
    """The document counts neither as valid nor as invalid. What ran short first says which code it is."""
    checker = ConfigChecker(runner_deps.spawner(), memory_bytes=10 << 20)
    with pytest.raises(Problem) as problem:
        await check(checker, {"required": ["b"]}, {"a": [{}] * 60_000})
    assert problem.value.code in {"out_of_memory", "sandbox_failed"}


async def test_checking_a_document_makes_no_connection(checker):
    """No judge has seen the schema: the child has no network, and the library may not connect."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        for schema in ({"$ref": url}, {"$ref": "file:///etc/hostname"}, {"$id": url, "$ref": "x"}):
            with pytest.raises(Problem) as problem:
                await check(checker, schema, {})
            assert problem.value.code == "sandbox_failed"
        with pytest.raises(TimeoutError):
            server.accept()


async def test_result_of_a_check_is_cached(checker):
    """The same schema and document start no second child."""
    schema, document = {"required": ["b"]}, {"a": 1}
    first = await faults(checker, schema, document)
    spawned = []
    checker._spawner.spawn = lambda *_, **__: spawned.append(1)
    assert [await faults(checker, schema, document) for _ in range(50)] == [first] * 50
    assert spawned == []


async def _a_child():
    """Wait until a child runs."""
    async with asyncio.timeout(processes.PATIENCE_S):
        while not any(map(children.alive, children.descendants(os.getpid()))):  # noqa: ASYNC110 - the kernel's news
            await asyncio.sleep(0.005)


async def test_cancelled_check_leaves_no_process(checker):
    asking = asyncio.create_task(check(checker, DOUBLING, {"x": 1}))
    await _a_child()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert not any(map(children.alive, children.descendants(os.getpid())))


async def test_concurrent_checks_are_limited_to_two_children(checker):
    most = 0

    async def watch():
        nonlocal most
        while True:
            alive = [pid for pid in children.descendants(os.getpid()) if children.alive(pid)]
            most = max(most, len(alive))
            await asyncio.sleep(0.005)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(check(checker, {"maxProperties": 5}, {"n": n}) for n in range(12)))
    watching.cancel()
    assert 1 <= most <= 3 * config_checker.AT_ONCE  # a child may be two processes and one that is being reaped


async def test_check_without_sandbox_is_sandbox_unavailable(monkeypatch):
    """The host provides no level."""
    spawner = runner_deps.spawner()
    level = type(spawner.probed.provided.level)(0)
    spawner.probed = replace(spawner.probed, provided=replace(spawner.probed.provided, level=level))
    with pytest.raises(Problem) as problem:
        await check(ConfigChecker(spawner), {}, {})
    assert problem.value.code == "sandbox_unavailable"


def test_malformed_output_of_the_check_child_is_no_result():
    """Its last complete line counts."""
    one = b'{"fits":false,"faults":[],"all":false}\n'
    assert config_checker._decoded(b"") is None
    assert config_checker._decoded(b'{"fits":true') is None
    assert config_checker._decoded(b"\xff\n[]\n{}\n") is None
    assert config_checker._decoded(one + b'{"fits":false,"faul').fits is False
