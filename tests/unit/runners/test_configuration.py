"""Operators' documents: values that JSON readers disagree about are refused, the rest is kept in one form."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.kit.strict_json import MAX_INTEGER
from latticed.model.errors import Problem
from latticed.runners import configuration
from latticed.runners.configuration import ConfigInvalid, Configuration

SCALARS = st.none() | st.booleans() | st.integers(-MAX_INTEGER, MAX_INTEGER) | st.text()
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS | FLOATS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)
DOCUMENTS = st.dictionaries(st.text(), VALUES)


@given(DOCUMENTS)
def test_configuration_keeps_its_document_whatever_the_order_of_keys(document):
    """Its hash is that of its bytes."""
    if "${secret:" in json.dumps(document):
        return
    kept = Configuration.of(document)
    assert json.loads(kept.data) == document
    assert kept == Configuration.of(dict(reversed(document.items())))
    assert kept.sha256 == hashlib.sha256(kept.data).hexdigest()


@given(DOCUMENTS, st.integers(min_value=MAX_INTEGER + 1), st.lists(st.integers(0, 3) | st.text(min_size=1), max_size=5))
def test_integer_that_json_readers_would_round_is_refused_with_its_place(document, number, path):
    """It may be nested deeply."""
    value = number
    for step in reversed(path):
        value = {step: value} if isinstance(step, str) else [*([0] * step), value]
    with pytest.raises(ConfigInvalid) as invalid:
        Configuration.of({**dict.fromkeys(document, 1), "here": value})
    (fault,) = invalid.value.faults
    assert fault.path == ("here", *path)
    assert str(number)[:20] not in fault.discreet


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ((), "the document"),
        (("rules", 3, "port"), "rules[3].port"),
        ((0, "a"), "[0].a"),
        (("zones", "a.b", "x"), 'zones["a.b"].x'),
        (("a\x1b[31m",), '["a\\x1b[31m"]'),
        (("",), '[""]'),
        (("a" * 300, "b"), None),
    ],
)
def test_place_of_a_fault_is_written_as_a_path(path, shown):
    """It has no control characters and a bounded length."""
    fault = configuration.ConfigFault(path=path, expected="x", found="y", kind="z")
    assert fault.where == shown or (shown is None and len(fault.where) <= 200)


@pytest.mark.parametrize("text", ["${secret:A}", "x ${secret:A1_B} y", "${secret:A#alice}${secret:B}", "$ {secret}"])
def test_valid_secret_references_in_a_configuration_are_accepted(text):
    assert Configuration.of({"a": [text]}).data


@pytest.mark.parametrize(
    "text", ["${secret:}", "${secret:a}", "${secret:A", "${secret:A B}", "${secret:A#}", "${secret:A} ${secret:9}"]
)
def test_malformed_secret_reference_in_a_configuration_is_refused(text):
    """It is refused when it is set and not at its first use."""
    with pytest.raises(ConfigInvalid) as invalid:
        Configuration.of({"a": [{"b": text}]})
    (fault,) = invalid.value.faults
    assert fault.where == "a[0].b"


def test_secret_names_in_a_configuration_are_listed_once():
    found = configuration.secrets_of({"a": ["${secret:B}", {"c": "${secret:A#x} ${secret:B}"}], "${secret:KEY}": 1})
    assert found == ["A", "B"]


def test_size_limit_applies_to_the_compact_form_of_a_configuration():
    """Exactly 256 KiB is accepted."""
    fits = {"a": "x" * ((256 << 10) - len('{"a":""}'))}
    assert len(Configuration.of(fits).data) == 256 << 10
    with pytest.raises(Problem, match="262144") as problem:
        Configuration.of({"a": fits["a"] + "x"})
    assert problem.value.code == "too_large"


def test_number_of_listed_configuration_faults_is_bounded():
    with pytest.raises(ConfigInvalid) as invalid:
        Configuration.of({"a": [2**60] * 1000})
    assert len(invalid.value.faults) == configuration.MAX_FAULTS
    assert "more than 20 faults" in invalid.value.reason
