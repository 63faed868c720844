"""The limit on nesting, checked before decoding."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latticed.kit import strict_json

WORDS = st.text(st.sampled_from('[]{}"\\,:x'), max_size=4)
VALUES = st.recursive(
    st.integers(0, 9) | WORDS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3)
)


def depth(value):
    """Nesting of arrays and objects."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(VALUES, st.integers(0, 4))
def test_json_nested_too_deep_is_refused(value, most):
    """Brackets, quotes and backslashes within strings do not count."""
    data = json.dumps(value).encode()
    if depth(value) <= most:
        assert strict_json.loads(data, max_depth=most) == value
    else:
        with pytest.raises(strict_json.InvalidJson, match=f"at most {most} levels of nesting"):
            strict_json.loads(data, max_depth=most)


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b"]" * 100_000,
        b"[" * 100_000 + b"}" * 100_000,
        b'{"a":' * 5_000,
        b"[" * 40 + b"]" * 39,
        b"[1," * 20_000 + b'"' + b"]" * 20_000,
        b"[]" * 40,
        b"]" + b"[" * 5_000 + b"]" * 5_000,
    ],
)
def test_invalid_json_is_refused_whatever_its_brackets(data):
    with pytest.raises(strict_json.InvalidJson):
        strict_json.loads(data)
