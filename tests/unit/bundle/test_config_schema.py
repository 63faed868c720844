"""The JSON Schema of a manifest: complete in itself, patterns in linear time, every fault with its place."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time

import pytest

from latticed.bundle import config_schema
from latticed.bundle.rules import Broken

HONEST = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Rules",
    "type": "object",
    "additionalProperties": False,
    "$defs": {"port": {"type": "integer", "minimum": 1, "maximum": 65535}, "a/b~c": {"type": "string"}},
    "properties": {
        "ports": {"type": "array", "items": {"$ref": "#/$defs/port"}, "uniqueItems": True},
        "odd": {"$ref": "#/$defs/a~1b~0c"},
        "name": {"type": "string", "pattern": r"^[\p{L}\w-]{1,30}$", "format": "hostname"},
        "tree": {"$ref": "#/properties/tree/anyOf/0", "anyOf": [{"type": "object"}]},
        "again": {"$ref": "#"},
        "any": True,
    },
    "patternProperties": {"^x-": {}},
    "examples": [{"$ref": "https://example.org/", "pattern": "("}],
    "x-ours": {"$id": "https://example.org/"},
}


def fault(schema):
    with pytest.raises(Broken) as broken:
        config_schema.check(schema)
    return str(broken.value)


def test_valid_schema_is_accepted():
    """It has references within it, unknown keywords, and data that merely looks like schemas."""
    config_schema.check(HONEST)
    config_schema.check({})


@pytest.mark.parametrize(
    ("schema", "place", "word"),
    [
        ({"type": "strin"}, "config.type", "strin"),
        ({"properties": {"a": {"minimum": "1"}}}, "config.properties.a.minimum", "number"),
        ({"required": "a"}, "config.required", "array"),
        ({"items": [{}]}, "config.items", ""),
        ({"minLength": -1}, "config.minLength", ""),
        ({"properties": []}, "config.properties", "object"),
        ({"allOf": [{}, {"enum": 1}]}, "config.allOf.1.enum", "array"),
        ({"pattern": "("}, "config.pattern", "regular expression"),
        ({"pattern": "(?=a)b"}, "config.pattern", "look-around"),
        ({"pattern": r"(a)\1"}, "config.pattern", "back references"),
        ({"pattern": 5}, "config.pattern", "int"),
        ({"patternProperties": {"(?<!a)b": {}}}, "config.patternProperties.(?<!a)b", "look-around"),
        ({"$ref": "http://127.0.0.1/a"}, "config.$ref", "http://127.0.0.1/a"),
        ({"not": {"$ref": "file:///etc/passwd"}}, "config.not.$ref", "file:"),
        ({"$ref": "other.json#/a"}, "config.$ref", "other.json"),
        ({"$ref": "#anchor"}, "config.$ref", "#anchor"),
        ({"$ref": "#/$defs/none"}, "config.$ref", "none"),
        ({"$ref": "#/x-ours", "x-ours": {"$ref": "http://127.0.0.1/"}}, "config.$ref", "x-ours"),
        ({"$ref": 5}, "config.$ref", "int"),
        ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "config.$ref", "json-schema.org"),
        ({"$schema": "http://127.0.0.1:9/x"}, "config.$schema", "127.0.0.1"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "config.$schema", "draft-07"),
        ({"properties": {"a": {"$schema": config_schema.DIALECT}}}, "config.properties.a.$schema", ""),
        ({"$id": "https://example.org/"}, "config", "$id"),
        ({"items": {"$dynamicRef": "#a"}}, "config.items", "$dynamicRef"),
        ({"$defs": {"a": {"$anchor": "x"}}}, "config.$defs.a", "$anchor"),
    ],
)
def test_invalid_schema_is_refused_with_the_place_of_its_fault(schema, place, word):
    said = fault(schema)
    assert f"`{place}`" in said
    assert word in said


def test_schema_over_its_size_limits_is_refused():
    """64 KiB, 100 patterns, 4 MiB for all of them compiled."""
    assert "65536" in fault({"description": "x" * (64 << 10)})
    many = {f"p{n}": {"pattern": "a"} for n in range(101)}
    assert "at most 100 patterns" in fault({"properties": many})
    assert "at most 4096 KiB" in fault({"pattern": r"(\p{L}{100}){100}"})
    wide = {f"p{n}": {"pattern": r"^(\p{L}x){1,400}$"} for n in range(2)}
    assert "at most 2048 KiB" in fault({"properties": wide})


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"pattern": r"^\p{L}{1,60}$"}]},
        {"allOf": [{"pattern": rf"^\p{{L}}[a-z]{{1,200}}{n}"} for n in range(100)]},
        {"allOf": [{"pattern": r"(((\p{L}{9}){9}){9}){9}"}] * 100},
        {"patternProperties": {f"[ab]{{0,600}}{n}": True for n in range(100)}},
    ],
)
def test_any_schema_is_judged_within_milliseconds(schema):
    """It may have any patterns, and is judged before a signature is verified."""
    config_schema.check({})
    began = time.thread_time()
    with contextlib.suppress(Broken):
        config_schema.check(schema)
    assert time.thread_time() - began < 0.15


def test_judging_a_schema_makes_no_connection():
    """All its references lead to a listening server."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.5)

        def accept():
            try:
                asked.append(server.accept())
            except TimeoutError:
                return

        waiting = threading.Thread(target=accept)
        waiting.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        for schema in ({"$schema": url}, {"$ref": url}, {"$id": url, "$ref": "b.json"}, {"$dynamicRef": url}):
            fault(schema)
        config_schema.check({"x-other": {"$ref": url}, "examples": [{"$schema": url}], "enum": [{"$ref": url}]})
        waiting.join()
    assert asked == []


def test_schema_library_is_imported_only_for_the_first_schema():
    """It takes 7 MiB, which latticectl's verbs and a daemon without schemas save."""
    code = """
import sys
import latticed.app, latticed.ctl.config, latticed.ctl.verify, latticed.bundle.decode, latticed.runners.config_checker
assert "jsonschema_rs" not in sys.modules
assert "tomllib" not in sys.modules or sys.modules["tomllib"] is not None
from latticed.bundle import config_schema
config_schema.check({"type": "object"})
assert "jsonschema_rs" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_fault_deep_inside_a_schema_is_found():
    """The schema is as deep as a manifest may be."""
    schema = {"pattern": "("}
    for _ in range(30):
        schema = {"not": schema}
    assert "regular expression" in fault(json.loads(json.dumps(schema)))
