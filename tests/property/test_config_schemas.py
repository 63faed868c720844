"""Whatever stands in a manifest's `config`: it is judged in milliseconds, and refused only with a reason."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import time

import jsonschema_rs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from latticed.bundle import config_schema
from latticed.bundle.rules import Broken
from latticed.kit import text
from latticed.runners.config_inside import check
from tests.house import long

slow_to_make = functools.partial(settings, deadline=None, suppress_health_check=[HealthCheck.too_slow])

ONE = sorted(config_schema._ONE)
LIST = sorted(config_schema._LIST)
MAP = sorted(config_schema._MAP)
PATTERNS = st.sampled_from(["^a$", "(", "(?=a)", r"\p{L}{1,60}", "[ab]{0,900}", "(a+)+$", r"\1", "", "[^"]) | st.text()
REFERENCES = (
    st.sampled_from(["#", "#/$defs/a", "#/$defs/a/not", "#/properties/a", "http://127.0.0.1:9/", "a", "#a"]) | st.text()
)
VALUES = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text() | st.lists(st.text(), max_size=3)
LEAVES = st.booleans() | st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", "integer", ["null", "string"], "strin", 1]),
        "pattern": PATTERNS,
        "$ref": REFERENCES,
        "$schema": st.sampled_from([config_schema.DIALECT, "http://127.0.0.1:9/"]),
        "$id": st.text(),
        "enum": VALUES,
        "minimum": VALUES,
        "required": VALUES,
        "format": VALUES,
        "x-other": VALUES,
    },
)


def _within(inner):
    return st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(ONE, inner),
            **{word: st.lists(inner, max_size=3) | VALUES for word in LIST},
            **{word: st.dictionaries(PATTERNS | st.just("a"), inner, max_size=3) | VALUES for word in MAP},
            "$ref": REFERENCES,
            "const": inner,
        },
    )


SCHEMAS = st.recursive(LEAVES, _within, max_leaves=12).filter(lambda schema: isinstance(schema, dict))


@slow_to_make(max_examples=long.times(150, 1_000))
@given(SCHEMAS)
def test_any_schema_is_accepted_or_refused_with_a_reason(schema):
    """Only Broken is raised, within milliseconds, and with no text that could act on a terminal."""
    before = json.dumps(schema)
    began = time.thread_time()
    with contextlib.suppress(Broken):
        try:
            config_schema.check(schema)
        except Broken as broken:
            said = str(broken)
            assert "config" in said
            assert len(text.sanitise(said, 300)) <= 300
            raise
    assert time.thread_time() - began < 0.2
    assert json.dumps(schema) == before


DOCUMENTS = st.dictionaries(
    st.sampled_from("abc") | st.text(),
    st.recursive(
        VALUES | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=4,
)


RULES = st.recursive(
    st.booleans()
    | st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["object", "array", "integer", "string", "null", ["null", "boolean"]]),
            "enum": st.lists(VALUES, max_size=3),
            "const": VALUES,
            "minimum": st.integers(-9, 9),
            "exclusiveMaximum": st.integers(-9, 9),
            "multipleOf": st.integers(1, 9),
            "minLength": st.integers(0, 3),
            "maxLength": st.integers(0, 3),
            "minItems": st.integers(0, 3),
            "maxProperties": st.integers(0, 1),
            "pattern": st.sampled_from(["^a$", "b+"]),
            "format": st.sampled_from(["ipv4", "date", "no-such"]),
            "required": st.lists(st.sampled_from("abc"), unique=True, max_size=2),
            "dependentRequired": st.just({"a": ["b"]}),
            "uniqueItems": st.just(True),
            "additionalProperties": st.just(False),
            "unevaluatedProperties": st.just(False),
            "unevaluatedItems": st.just(False),
        },
    ),
    lambda inner: st.fixed_dictionaries(
        {},
        optional={
            **dict.fromkeys(["items", "not", "contains", "propertyNames", "if", "then", "else"], inner),
            **dict.fromkeys(["anyOf", "oneOf", "allOf", "prefixItems"], st.lists(inner, min_size=1, max_size=2)),
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
        },
    ),
    max_leaves=8,
)


@slow_to_make()
@given(RULES.filter(lambda schema: isinstance(schema, dict)))
def test_schema_that_takes_empty_validates_the_empty_object(schema):
    """Where `takes_empty` is true no check is made, so it must agree with the validator."""
    if config_schema.takes_empty(schema):
        assert jsonschema_rs.Draft202012Validator(schema, offline=True).is_valid({})


@slow_to_make(max_examples=long.times(200, 2_000))
@given(st.dictionaries(st.sampled_from("abc"), RULES).map(lambda rules: {"properties": rules}), DOCUMENTS)
def test_every_fault_says_what_was_expected_and_found(schema, document):
    """Its `kind` has no value of the document, and all of it is JSON."""
    with contextlib.suppress(Broken):
        config_schema.check(schema)
        limit = config_schema.pattern_bytes(schema)
        options = jsonschema_rs.RegexOptions(size_limit=limit, dfa_size_limit=limit)
        validator = jsonschema_rs.Draft202012Validator(
            schema, offline=True, validate_formats=True, pattern_options=options
        )
        for error in itertools.islice(validator.iter_errors(document), 20):
            said = check._fault(error)
            assert all(said[word] for word in ("expected", "found", "kind"))
            assert said == json.loads(json.dumps(said))
